//! The seeds of the fuzz targets, on stable Rust: each goes through its target, in bounded time and memory. What
//! fuzzing has found is among them. `fuzz/run.sh` looks for more.
//!
//! `cargo test --test fuzz -- --ignored` writes the seeds anew that the program's own files make; others, such as those that
//! were found (`found-*`), stay.

mod make;
mod write;

use core::time::Duration;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cllm_fuzz_targets::TARGETS;

/// Most bytes of a seed, and of all of them.
const SEED: u64 = 17 << 10;
const ALL: u64 = 300 << 10;
/// Most memory that a target may take for a seed, in kB.
const MEMORY: u64 = 96 << 10;
/// Longest that a target may take for a seed: all of them together take a fifth of a second.
const TIME: Duration = Duration::from_secs(5);

/// Seeds that have all parts of a model between them, so that none is to be refused.
const WHOLE: [(&str, &[&str]); 2] = [
    ("checkpoint", &["gpt2", "llama", "momentum", "newest", "eight", "adapted"]),
    ("c_interface", &["model", "newer"]),
];

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target)
}

/// Seeds of a target by their names.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut seeds: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    seeds.sort();
    seeds
}

/// The most memory that this process has had since it was asked last, in kB; `None` where the system does not say.
fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let peak = line.trim().strip_suffix(" kB")?.parse().ok()?;
    fs::write("/proc/self/clear_refs", "5").ok()?;
    Some(peak)
}

#[test]
fn every_seed_goes_through_its_target_in_bounded_memory() {
    if peak().is_none() {
        eprintln!("the system does not say how much memory a seed takes: only time is looked at");
    }
    for (target, run) in TARGETS {
        let seeds = seeds(target);
        assert!(seeds.len() >= 2, "{target}: {} seeds", seeds.len());
        // Twice, for what is made once stays.
        let _ = peak();
        run(&seeds[0].1);
        let mut taken = Vec::new();
        for (name, seed) in seeds {
            let before = peak();
            let here = format!("fuzz/seeds/{target}/{name}");
            let begin = Instant::now();
            let done = std::panic::catch_unwind(|| run(&seed));
            let done = done.unwrap_or_else(|_| panic!("{here}: the target panicked"));
            assert!(begin.elapsed() < TIME, "{here}: it takes {:?}", begin.elapsed());
            if done {
                taken.push(name);
            }
            if let (Some(_), Some(before), Some(after)) = (before, resident(), peak()) {
                assert!(after <= before + MEMORY, "{here}: {after} kB, and {before} stay");
            }
        }
        // Most of a target begins behind its reader's last refusal.
        assert!(taken.len() >= 2, "{target}: of its seeds only {taken:?} is taken");
        for name in WHOLE.iter().filter(|(of, _)| *of == target).flat_map(|(_, names)| *names) {
            assert!(taken.iter().any(|known| known == name), "fuzz/seeds/{target}/{name}: refused");
        }
    }
}

/// What of this process is in memory now, in kB.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[test]
fn seeds_are_small_and_of_targets_that_fuzzing_knows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let mut all = 0;
    for (target, _) in TARGETS {
        for (name, seed) in seeds(target) {
            assert!(seed.len() as u64 <= SEED, "{target}/{name}: {} bytes", seed.len());
            all += seed.len() as u64;
        }
        let program = format!("fuzz_targets/{target}.rs");
        let text = fs::read_to_string(root.join(&program)).unwrap();
        assert!(text.contains(&format!("run(\"{target}\"")), "{program}: of another target");
        assert!(manifest.contains(&format!("path = \"{program}\"")), "{program} is not built");
    }
    assert!(all <= ALL, "{all} bytes of seeds");
    let folders = fs::read_dir(root.join("seeds")).unwrap().count();
    assert_eq!(folders, TARGETS.len(), "a folder of seeds without a target");
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}

#[test]
#[ignore = "writes the seeds"]
fn seeds_are_written_anew() {
    for (target, name, seed) in make::all() {
        assert!(TARGETS.iter().any(|(known, _)| *known == target), "{target}");
        fs::create_dir_all(folder(target)).unwrap();
        fs::write(folder(target).join(name), seed).unwrap();
    }
}
