//! The Cortex-M: from the reset to Rust, what memory there is, and a debugger that it talks to (semihosting).
//!
//! ```text
//! reset    paints the stack, clears and fills the statics, switches on the FPU if the program uses one
//! protect  has the MPU refuse all memory but flash, which cannot be written, and 256 KiB of RAM
//! fault    says what was refused and ends the machine with a status
//! ```
//! Arm, ARMv7-M Architecture Reference Manual: B1.5 (vectors, faults), B3.2 (control), B3.5 (MPU). Arm,
//! Semihosting for AArch32 and AArch64. Interrupts are never switched on.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt::{self, Write as _};
use core::panic::PanicInfo;

/// How the machine ends.
pub(crate) const SUCCESS: u32 = 0;
pub(crate) const FAILED: u32 = 17;
const PANICKED: u32 = 18;
const FAULTED: u32 = 19;

/// Where RAM is, and bytes of it: `link.ld` has the same.
pub(crate) const RAM: usize = 0x2000_0000;
pub(crate) const RAM_BYTES: usize = 256 << 10;

/// What the stack is filled with at first.
const PAINT: u32 = 0x5afe_57ac;

unsafe extern "C" {
    static stack_bottom: u32;
    static stack_top: u32;
    static data_start: u32;
    static bss_end: u32;
}

global_asm!(
    r#"
    .syntax unified
    .section .vectors, "a", %progbits
    .word stack_top
    .word reset
    .rept 14
    .word fault
    .endr

    .section .text.reset, "ax", %progbits
    .thumb
    .thumb_func
    .global reset
    .type reset, %function
reset:
    movw r0, #:lower16:stack_bottom
    movt r0, #:upper16:stack_bottom
    movw r1, #:lower16:stack_top
    movt r1, #:upper16:stack_top
    movw r2, #({paint} & 0xffff)
    movt r2, #({paint} >> 16)
1:
    stmia r0!, {{r2}}
    cmp r0, r1
    blo 1b
    movw r0, #:lower16:bss_start
    movt r0, #:upper16:bss_start
    movw r1, #:lower16:bss_end
    movt r1, #:upper16:bss_end
    movs r2, #0
    b 3f
2:
    stmia r0!, {{r2}}
3:
    cmp r0, r1
    blo 2b
    movw r0, #:lower16:data_start
    movt r0, #:upper16:data_start
    movw r1, #:lower16:data_end
    movt r1, #:upper16:data_end
    movw r2, #:lower16:data_source
    movt r2, #:upper16:data_source
    b 5f
4:
    ldmia r2!, {{r3}}
    stmia r0!, {{r3}}
5:
    cmp r0, r1
    blo 4b
    .if {fpu}
    // Coprocessors 10 and 11: CPACR.
    movw r0, #0xed88
    movt r0, #0xe000
    ldr r1, [r0]
    orr r1, r1, #0xf00000
    str r1, [r0]
    dsb
    isb
    .endif
    bl {main}
    udf #0

    .thumb_func
    .type fault, %function
fault:
    // The stack may be what is at fault.
    movw r0, #:lower16:stack_top
    movt r0, #:upper16:stack_top
    msr msp, r0
    mrs r0, ipsr
    bl {faulted}
    udf #0
    .text
    "#,
    paint = const PAINT,
    fpu = const cfg!(target_abi = "eabihf") as u32,
    main = sym crate::main,
    faulted = sym faulted,
);

/// A register of the system control space.
fn register(at: usize) -> *mut u32 {
    core::ptr::without_provenance_mut(at)
}

fn write(at: usize, value: u32) {
    // SAFETY: the registers of this module are the processor's own, which touch no memory of Rust's.
    unsafe { register(at).write_volatile(value) }
}

fn read(at: usize) -> u32 {
    // SAFETY: as `write`.
    unsafe { register(at).read_volatile() }
}

/// Leaves the program flash, to read and to execute, and RAM, to read and to write: the first 4 MiB, and 256 KiB
/// from `0x2000_0000` on. All else is refused: also what the board has besides.
pub(crate) fn protect() {
    const CONTROL: usize = 0xe000_ed94;
    /// Which region the next two registers are of.
    const NUMBER: usize = 0xe000_ed98;
    const BASE: usize = 0xe000_ed9c;
    const ATTRIBUTES: usize = 0xe000_eda0;
    /// Normal memory, cached.
    const NORMAL: u32 = 1 << 17;
    const READ_ONLY: u32 = 6 << 24;
    const READ_WRITE: u32 = 3 << 24;
    const NEVER_EXECUTED: u32 = 1 << 28;
    let regions = [
        (0, 4 << 20, NORMAL | READ_ONLY),
        (RAM as u32, RAM_BYTES as u32, NORMAL | READ_WRITE | NEVER_EXECUTED),
    ];
    for (number, (base, bytes, attributes)) in (0..).zip(regions) {
        write(NUMBER, number);
        write(BASE, base);
        write(ATTRIBUTES, attributes | (bytes.trailing_zeros() - 1) << 1 | 1);
    }
    // On, and no region for whatever lies in none.
    write(CONTROL, 1);
    // SAFETY: barriers.
    unsafe { asm!("dsb", "isb", options(nostack, preserves_flags)) }
}

/// What ends here by the vectors: a fault, since there are no interrupts.
extern "C" fn faulted(vector: u32) -> ! {
    let [status, address] = [read(0xe000_ed28), read(0xe000_ed34)];
    let _ = writeln!(Debugger, "fault {vector}, status {status:#x}, address {address:#x}");
    exit(FAULTED)
}

/// Asks the debugger for something.
///
/// # Safety
/// The argument is what the operation wants.
unsafe fn semihosting(operation: u32, argument: *mut u32) -> u32 {
    let result;
    // SAFETY: passed on from the caller; the debugger keeps all other registers.
    unsafe {
        asm!("bkpt 0xab", inout("r0") operation => result, in("r1") argument, options(nostack, preserves_flags));
    }
    result
}

/// Where the debugger shows what it is told.
pub(crate) struct Debugger;

impl fmt::Write for Debugger {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.as_bytes().chunks(63) {
            // The debugger wants a zero byte at the end.
            let mut told = [0; 64];
            told[..part.len()].copy_from_slice(part);
            // SAFETY: SYS_WRITE0 of a string that ends.
            unsafe { semihosting(0x04, told.as_mut_ptr().cast()) };
        }
        Ok(())
    }
}

/// Ends the machine: QEMU exits with the status.
pub(crate) fn exit(status: u32) -> ! {
    // By itself, not for a fault: ADP_Stopped_ApplicationExit.
    let mut reason = [0x2_0026, status];
    loop {
        // SAFETY: SYS_EXIT_EXTENDED of a reason and a status.
        unsafe { semihosting(0x20, reason.as_mut_ptr()) };
    }
}

/// What the debugger was told to do with the program, if it fits into the bytes: behind the program's name.
#[allow(dead_code, reason = "a program may take no argument")]
pub(crate) fn argument(bytes: &mut [u8; 64]) -> &str {
    // Exposed: the debugger writes there.
    let mut block = [bytes.as_mut_ptr().expose_provenance() as u32, bytes.len() as u32];
    // SAFETY: SYS_GET_CMDLINE into as many bytes as it is told.
    let failed = unsafe { semihosting(0x15, block.as_mut_ptr()) };
    let len = if failed == 0 { (block[1] as usize).min(bytes.len()) } else { 0 };
    let line = core::str::from_utf8(&bytes[..len]).unwrap_or("").trim_end_matches('\0');
    line.rsplit(' ').next().unwrap_or("")
}

/// Bytes of the stack: all, and those that have been used at some time.
pub(crate) fn stack() -> (usize, usize) {
    let (mut at, top) = (&raw const stack_bottom, &raw const stack_top);
    let all = top.addr() - at.addr();
    // SAFETY: the stack is memory, painted from the bottom on; the caller's own frame ends the loop.
    while at < top && unsafe { at.read_volatile() } == PAINT {
        // SAFETY: within the stack.
        at = unsafe { at.add(1) };
    }
    (all, top.addr() - at.addr())
}

/// Bytes of all statics, and of the gaps between them.
pub(crate) fn statics() -> usize {
    (&raw const bss_end).addr() - (&raw const data_start).addr()
}

/// Memory that exists once.
pub(crate) struct Static<T>(UnsafeCell<T>);

// SAFETY: there is one core, and no interrupt; who takes it, takes it once.
unsafe impl<T> Sync for Static<T> {}

impl<T> Static<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// # Safety
    /// Called once.
    #[expect(clippy::mut_from_ref, reason = "it exists once")]
    pub(crate) unsafe fn take(&self) -> &mut T {
        // SAFETY: passed on from the caller.
        unsafe { &mut *self.0.get() }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Debugger, "{info}");
    exit(PANICKED)
}
