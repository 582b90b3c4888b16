//! The freestanding program ends with the hosted run's loss, to the bit.
//!
//! This test trains the same workload with std underneath, builds the program that has
//! nothing underneath, and hands it the loss to reach.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[path = "freestanding/src/workload.rs"]
mod workload;

use cllm_core::{Isa, Kernels, Mode, Plan};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use workload::{CONFIG, Failure, Memory, SHAPE};

/// Builds the program in a target folder of its own and returns its path.
fn build(profile: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/freestanding");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("freestanding");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--profile", profile, "--target-dir"])
        .arg(&target)
        .current_dir(&folder)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the freestanding program does not build ({profile})");
    target.join(if profile == "dev" { "debug" } else { profile }).join("freestanding")
}

/// Bytes of memory that the program begins with and its file does not have: zeros. (ELF-64, program headers.)
fn zeroed(program: &Path) -> usize {
    let file = fs::read(program).expect("it is built");
    let number = |at: usize, bytes: usize| {
        file[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let (first, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let headers = (0..count).map(|i| first + i * size);
    let loaded = headers.filter(|at| number(*at, 4) == 1);
    loaded.map(|at| number(at + 40, 8) - number(at + 32, 8)).sum()
}

fn hosted(isa: Isa) -> Option<(f64, f64)> {
    let kernels = Kernels::for_isa(isa)?;
    // As in the program: too large for a test thread's stack.
    static MEMORY: Mutex<Memory> = Mutex::new(Memory::new());
    let mut memory = MEMORY.lock().expect("nobody panicked with it");
    Some(train(kernels, &mut memory).expect("the hosted run trains"))
}

fn train(kernels: &'static Kernels, memory: &mut Memory) -> Result<(f64, f64), Failure> {
    let plan = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, kernels).map_err(Failure::Plan)?;
    workload::train(&plan, kernels, memory)
}

#[test]
fn without_std_the_loss_is_the_same() {
    // At the same time: either is one thread that compiles for most of it.
    let programs = thread::scope(|scope| {
        ["dev", "release"]
            .map(|profile| (profile, scope.spawn(move || build(profile))))
            .map(|(profile, program)| (profile, program.join().expect("it has said why")))
    });
    // What the small images have to reach, of which `benches/code_size.sh` knows nothing else.
    for line in include_str!("freestanding/losses.txt").lines() {
        let (name, bits) = line.split_once(' ').expect("an instruction set and its loss");
        let isa = name.parse().expect("the name of an instruction set");
        let Some((_, last)) = hosted(isa) else { continue };
        let now = format!("{:016x}", last.to_bits());
        assert_eq!(now, bits, "{name}: write the new loss to tests/freestanding/losses.txt");
    }
    for (profile, program) in programs {
        // A static of the memory takes no room in the file: on a microcontroller that would be flash.
        let zeroed = zeroed(&program);
        assert!(zeroed >= size_of::<Memory>(), "{profile}: of its memory {zeroed} bytes are zeros");
        let exit = |isa: &str, loss: f64| {
            let bits = format!("{:016x}", loss.to_bits());
            Command::new(&program).args([isa, &bits]).status().expect("the program runs").code()
        };
        // Unoptimized scalar kernels take half a minute.
        let best = Kernels::detect().set().isa;
        for isa in Isa::ALL.into_iter().filter(|isa| profile == "release" || *isa == best) {
            let Some((first, last)) = hosted(isa) else { continue };
            assert!(last < first - 1.0, "{isa}: the hosted loss went from {first} to {last}");
            assert_eq!(exit(isa.name(), last), Some(0), "{isa} {profile}: hosted {last}");
            // The check can fail: another loss is not accepted.
            let other = f64::from_bits(last.to_bits() ^ 1);
            assert_eq!(exit(isa.name(), other), Some(1), "{isa} {profile}");
        }
        assert_eq!(exit("none", 0.0), Some(2));
    }
}
