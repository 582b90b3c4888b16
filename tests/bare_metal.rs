//! The machine without an operating system (`tests/bare_metal/`) trains the weights of a hosted run, to the bit.
//!
//! Here the workload trains with threads of the standard library. The machine itself is started where `QEMU`
//! names an emulator: `tests/bare_metal.sh` gets one.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[path = "bare_metal/src/workload.rs"]
mod workload;

use core::sync::atomic::AtomicU32;
use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use cllm_core::{Engine, Idle, Isa, Kernels, Worker};
use workload::{Memory, Trained};

/// Seconds that the machine may take, which is emulated: a minute or two.
const PATIENCE: &str = "400";

/// What the workload tells and its hash, with so many threads beside the calling one.
fn hosted(isa: Isa, others: usize) -> (String, String) {
    // Too large for a test thread's stack.
    static MEMORY: Mutex<Memory> = Mutex::new(Memory::new());
    let kernels = Kernels::for_isa(isa).expect("the CPU has it");
    let mut memory = MEMORY.lock().expect("nobody panicked with it");
    let mut told = String::new();
    let trained = workload::train(kernels, &mut memory, &mut told, &Yield, |engine, work| {
        beside(engine, others, work);
    });
    let trained = trained.unwrap_or_else(|failure| panic!("{isa}: {}", failure.0));
    let Trained { hash, operations } = trained;
    assert!(operations > 1000);
    (told, hash.map(|byte| format!("{byte:02x}")).concat())
}

fn beside<'e>(engine: &'e Engine<'e>, others: usize, work: &mut dyn FnMut()) {
    thread::scope(|scope| {
        for _ in 0..others {
            scope.spawn(|| Worker::run(engine, &Yield).expect("there is a seat"));
        }
        work();
        engine.close(&Yield);
    });
}

/// Lets others have the core. Whoever asks for a step works on it, as in the machine.
struct Yield;

impl Idle for Yield {
    fn pause(&self, _round: u32) -> bool {
        thread::yield_now();
        true
    }

    fn park(&self, _word: &AtomicU32, _seen: u32) {}

    fn wake(&self, _word: &AtomicU32) {}

    fn works(&self) -> bool {
        true
    }
}

/// The losses of what was told.
fn losses(told: &str) -> Vec<f64> {
    let after = |line: &str| line.split_once("loss ").map(|(_, loss)| loss.parse().unwrap());
    told.lines().filter_map(after).collect()
}

#[test]
fn the_hosted_run_learns_the_same_on_any_number_of_threads() {
    for isa in Isa::ALL.into_iter().filter(|isa| Kernels::for_isa(*isa).is_some()) {
        let (told, hash) = hosted(isa, 0);
        assert_eq!(hosted(isa, workload::WORKERS - 1), (told.clone(), hash), "{isa}");
        println!("{isa}\n{told}");
        let losses = losses(&told);
        assert!(losses[losses.len() - 1] < losses[0] - 3.5, "{isa}: {told}");
    }
}

#[test]
fn the_machine_trains_the_same_weights() {
    let Some(qemu) = env::var_os("QEMU") else {
        println!("not started: QEMU names no qemu-system-x86_64; tests/bare_metal.sh gets one");
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bare_metal");
    // That of the other program without std, which has built the same core.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("freestanding");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--release", "--target-dir"])
        .arg(&target)
        .current_dir(&folder)
        .status();
    assert!(built.expect("cargo runs").success(), "the image does not build");
    let started = Command::new("timeout")
        .arg(PATIENCE)
        .arg(qemu)
        .args(["-cpu", "max", "-smp", "2", "-m", "64", "-no-reboot", "-display", "none"])
        .args(["-serial", "stdio", "-monitor", "none", "-nic", "none"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"])
        .arg(target.join("release/bare_metal"))
        .stdin(Stdio::null())
        .output()
        .expect("QEMU starts");
    let told = String::from_utf8(started.stdout).expect("it talks ASCII");
    println!("{told}");
    let errors = String::from_utf8_lossy(&started.stderr);
    // Twice the status of success, and one more.
    assert_eq!(started.status.code(), Some(33), "{told}{errors}");
    let field = |name: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {told}")).trim().to_owned()
    };
    let isa: Isa = field("kernels").parse().expect("the name of a set");
    assert!(isa >= Isa::Avx2, "the machine has not found its vector units: {isa}");
    assert!(Kernels::for_isa(isa).is_some(), "nothing to compare with: this CPU has no {isa}");
    let (hosted, hash) = hosted(isa, 1);
    assert_eq!(field("sha256"), hash);
    assert!(told.contains(&hosted), "{told}\nhosted:\n{hosted}");
    let numbers: Vec<f64> =
        field("second").split(' ').filter_map(|word| word.parse().ok()).collect();
    let share = numbers[0] / numbers[1];
    // Halves, but for what the emulator's host does meanwhile.
    assert!((0.2..0.8).contains(&share), "the second core did {share} of the work");
}
