//! A machine of two cores without an operating system that trains a language model: no std, no allocator, no
//! libc, no firmware's help. It starts by itself (`start.rs`), talks through a serial port, and ends with a
//! status.
//!
//! ```text
//! boot core                                 second core
//!   starts the other        ------------>   second_cpu
//!   engine, trainer
//!   says where the engine is  ---------->   Worker::run
//!   steps, tiles of them                      tiles of them
//!   closes the engine         ---------->   says how many tiles it did
//!   sample, hash, status
//! ```
//! Status 16 is success, 17 an error, 18 a panic, 19 two cores of which one does not come or did
//! nothing.
//! `tests/bare_metal.rs` builds it, starts it in QEMU and compares with a hosted run.
#![no_std]
#![no_main]

mod machine;
#[path = "../../freestanding/src/memory.rs"]
mod memory;
mod start;
mod workload;

use cllm_core::{Activity, Engine, Idle, Kernels, Observer, Worker};
use core::cell::UnsafeCell;
use core::fmt::Write as _;
use core::hint::spin_loop;
use core::panic::PanicInfo;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use machine::Serial;
use workload::{Memory, Trained};

const SUCCESS: u8 = 16;
const FAILED: u8 = 17;
const PANICKED: u8 = 18;
const ALONE: u8 = 19;

/// Static memory for the boot core.
struct Pool(UnsafeCell<Memory>);

// SAFETY: the boot core alone takes it, once; what workers share of it they get through the engine.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new(Memory::new()));

/// The second core is there.
static IS_UP: AtomicBool = AtomicBool::new(false);
/// The engine that it is to serve.
static ENGINE: AtomicPtr<Engine<'static>> = AtomicPtr::new(null_mut());
/// It has left the engine.
static HAS_LEFT: AtomicBool = AtomicBool::new(false);
/// Operations of tiles that it did.
static DONE: AtomicU32 = AtomicU32::new(0);

/// Where the boot core comes to from `start.rs`.
pub(crate) extern "C" fn boot_cpu() -> ! {
    // SAFETY: once, here; the other core waits for an engine.
    unsafe { machine::start_second_core() };
    let mut patience = 1_u64 << 32;
    while !IS_UP.load(Ordering::Acquire) {
        spin_loop();
        patience -= 1;
        if patience == 0 {
            let _ = Serial.write_str("the second core does not come\n");
            machine::exit(ALONE);
        }
    }
    let kernels = Kernels::detect();
    let _ = writeln!(Serial, "kernels   {}", kernels.set());
    // SAFETY: `boot_cpu` is entered once.
    let memory = unsafe { &mut *POOL.0.get() };
    let status = match workload::train(kernels, memory, &mut Serial, &Awake, beside) {
        Ok(Trained { hash, operations }) => {
            let _ = Serial.write_str("sha256    ");
            for byte in hash {
                let _ = write!(Serial, "{byte:02x}");
            }
            let done = DONE.load(Ordering::Acquire);
            let _ = writeln!(Serial, "\nsecond    {done} of {operations} operations");
            if 0 < done && (done as usize) < operations { SUCCESS } else { ALONE }
        }
        Err(failure) => {
            let _ = writeln!(Serial, "failed: {}", failure.0);
            FAILED
        }
    };
    machine::exit(status)
}

/// Has the second core serve the engine while `work` is done.
fn beside<'e>(engine: &'e Engine<'e>, work: &mut dyn FnMut()) {
    let shared = core::ptr::from_ref(engine).cast::<Engine<'static>>().cast_mut();
    ENGINE.store(shared, Ordering::Release);
    work();
    engine.close(&Awake);
    while !HAS_LEFT.load(Ordering::Acquire) {
        spin_loop();
    }
}

/// Where the second core comes to: it serves the engine, and sleeps for good.
pub(crate) extern "C" fn second_cpu() {
    IS_UP.store(true, Ordering::Release);
    let mut engine = ENGINE.load(Ordering::Acquire);
    while engine.is_null() {
        spin_loop();
        engine = ENGINE.load(Ordering::Acquire);
    }
    // SAFETY: `beside` keeps the engine until this core says that it has left.
    let engine: &Engine<'_> = unsafe { &*engine };
    let mut count = Count(0);
    let served = Worker::run_observed(engine, &Awake, &mut count);
    DONE.store(if served.is_ok() { count.0 } else { 0 }, Ordering::Release);
    HAS_LEFT.store(true, Ordering::Release);
}

/// How cores wait: awake, and without the processor's hint (`Spin`), at which an emulator lets other cores
/// run for so long that the waiting one would come too late for everything. The boot core works on the steps
/// that it asks for: all cores there are do.
struct Awake;

impl Idle for Awake {
    fn pause(&self, _round: u32) -> bool {
        for n in 0..8 {
            core::hint::black_box(n);
        }
        true
    }

    fn park(&self, _word: &AtomicU32, _seen: u32) {}

    fn wake(&self, _word: &AtomicU32) {}

    fn works(&self) -> bool {
        true
    }
}

/// Counts operations of tiles.
struct Count(u32);

impl Observer for Count {
    fn enter(&mut self, activity: Activity) {
        if let Activity::Tile { .. } = activity {
            self.0 += 1;
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Serial, "{info}");
    machine::exit(PANICKED)
}
