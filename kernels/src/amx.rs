//! AMX: what the tile registers' instructions are called by, and who may use them.
//!
//! The standard library has no stable intrinsics for them, and the compiler does not know the
//! registers: it neither uses nor saves them. They are this module's alone, from the first
//! [`Tiles::shape`] of a kernel to its end, which releases them: a thread that waits holds none.
//!
//! A program on Linux has to ask for the tiles once, because they make the state of a thread
//! 8 KiB larger (`Documentation/arch/x86/xstate.rst` of the kernel): [`is_granted`].

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _xgetbv};

/// Tile registers.
const REGISTERS: usize = 8;

/// Rows of the tiles of a block of two by two: tiles 0 and 1 are sums of its upper rows, 2 and
/// 3 of its lower ones; 4 and 5 are rows of A, upper and lower, 6 and 7 columns of B.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// 1 to 16.
    pub(crate) upper: usize,
    /// 0 to 16; without lower rows the tiles of them are not to be used.
    pub(crate) lower: usize,
}

/// What `ldtilecfg` loads (Intel SDM, volume 1, table 18-3).
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row; of tiles 8 to 15, which palette 1 lacks, 0.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tile registers of this thread, for as long as the value lives.
pub(crate) struct Tiles {
    shape: Shape,
}

impl Tiles {
    /// # Safety
    /// The CPU has AMX-TILE and AMX-BF16, and the system lets this program use tiles, for as
    /// long as the value lives. There is no other value in this thread.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self { shape: Shape::default() }
    }

    /// Gives the tiles their rows, each of 64 bytes. Undefined sums if the shape is another one
    /// than before.
    #[inline(always)]
    pub(crate) fn shape(&mut self, shape: Shape) {
        if self.shape != shape {
            self.configure(shape);
        }
    }

    #[inline(never)]
    #[cold]
    fn configure(&mut self, shape: Shape) {
        let Shape { upper, lower } = shape;
        debug_assert!((1..=16).contains(&upper) && lower <= 16);
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let rows = [upper, upper, lower, lower, upper, lower, 16, 16];
        for (i, rows) in rows.into_iter().enumerate().take(REGISTERS) {
            // A tile of no rows has no bytes in them either.
            config.row_bytes[i] = if rows > 0 { 64 } else { 0 };
            config.rows[i] = rows as u8;
        }
        // SAFETY: the value stands for AMX; the configuration is one of palette 1.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config,
                options(nostack, preserves_flags, readonly));
        }
        self.shape = shape;
    }

    /// Loads tile `T` from rows that begin `row` floats apart.
    ///
    /// # Safety
    /// The tile has rows, and memory is valid for reading 64 bytes at each.
    #[inline(always)]
    pub(crate) unsafe fn load<const T: u8>(&mut self, from: *const f32, row: usize) {
        // SAFETY: passed on from the caller; the value stands for the instruction.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {row}]", t = const T, from = in(reg) from,
                row = in(reg) row * size_of::<f32>(), options(nostack, preserves_flags, readonly));
        }
    }

    /// [`Tiles::load`] from what lies 64 bytes to the right.
    ///
    /// # Safety
    /// The same of memory there.
    #[inline(always)]
    pub(crate) unsafe fn load_right<const T: u8>(&mut self, from: *const f32, row: usize) {
        // SAFETY: passed on from the caller; the value stands for the instruction.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {row} + 64]", t = const T, from = in(reg) from,
                row = in(reg) row * size_of::<f32>(), options(nostack, preserves_flags, readonly));
        }
    }

    /// Stores tile `T` to rows that begin `row` floats apart.
    ///
    /// # Safety
    /// The tile has rows, and memory is valid for writing 64 bytes at each.
    #[inline(always)]
    pub(crate) unsafe fn store<const T: u8>(&mut self, to: *mut f32, row: usize) {
        // SAFETY: passed on from the caller; the value stands for the instruction.
        unsafe {
            asm!("tilestored [{to} + {row}], tmm{t}", t = const T, to = in(reg) to,
                row = in(reg) row * size_of::<f32>(), options(nostack, preserves_flags));
        }
    }

    /// Zeros tile `T`.
    ///
    /// # Safety
    /// The tile has rows.
    #[inline(always)]
    pub(crate) unsafe fn zero<const T: u8>(&mut self) {
        // SAFETY: passed on from the caller; the value stands for the instruction.
        unsafe {
            asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem));
        }
    }

    /// Adds to the sums in tile `C` the products of the rows of bf16 in `A` with the pairs of
    /// rows in `B`.
    ///
    /// # Safety
    /// The tiles have rows, `C` as many as `A`, `B` 16.
    #[inline(always)]
    pub(crate) unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: passed on from the caller; the value stands for the instruction.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, preserves_flags, nomem));
        }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        if self.shape != Shape::default() {
            // SAFETY: the value stands for the instruction, and nobody uses the tiles now.
            unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
        }
    }
}

/// Whether the CPU has AMX-TILE and AMX-BF16, and the system has switched them on and grants
/// them to this program, which is asked for here. The CPU has AVX.
pub(crate) fn is_granted() -> bool {
    // EDX of leaf 7.0: bit 22 is AMX-BF16, 24 AMX-TILE.
    const BOTH: u32 = 1 << 22 | 1 << 24;
    // XCR0: bit 17 is the configuration of tiles, 18 their data.
    const STATE: u64 = 1 << 17 | 1 << 18;
    // SAFETY: a CPU with AVX, which the caller has found, whose system has switched it on, has
    // the instruction.
    __cpuid_count(7, 0).edx & BOTH == BOTH && unsafe { xcr0() } & STATE == STATE && grant()
}

/// # Safety
/// The CPU has XSAVE, and the system has switched it on.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the caller's promise; register 0 is there wherever the instruction is.
    unsafe { _xgetbv(0) }
}

/// Asks Linux to let this process use tiles: for all of its threads, and for good. False if the
/// kernel is too old or forbids it. Asking again is cheap (some 100 ns) and changes nothing.
#[cfg(target_os = "linux")]
fn grant() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call of numbers, which touches no memory of the program; it clobbers
    // what the instruction does.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA, lateout("rcx") _, lateout("r11") _,
            options(nostack, nomem));
    }
    result == 0
}

/// Other systems switch tiles on for all programs or for none.
#[cfg(not(target_os = "linux"))]
fn grant() -> bool {
    true
}
