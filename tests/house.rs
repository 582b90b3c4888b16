//! The rules of the house that a compiler does not check: which crates are
//! `no_std`, and how long a file may grow before it holds two ideas.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All `.rs` files below `dir`, build output excluded.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().unwrap() != "target" {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn kernels_core_and_the_c_interface_are_no_std_without_alloc() {
    for crate_dir in ["kernels", "core", "capi"] {
        let src = root().join(crate_dir).join("src");
        let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
        assert!(lib.contains("#![no_std]"), "{crate_dir}/src/lib.rs must be no_std");
        for path in sources(&src) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains("extern crate alloc"), "{} asks for alloc", path.display());
        }
    }
}

#[test]
fn files_stay_about_one_idea() {
    let mut checked = 0;
    for dir in
        ["kernels", "core", "tokens", "runner", "capi", "fuzz", "tests", "benches", "examples"]
    {
        for path in sources(&root().join(dir)) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= 600, "{} has {lines} lines: split it", path.display());
            checked += 1;
        }
    }
    assert!(checked > 3, "the house looks empty: {checked} files");
}

#[test]
fn nothing_starts_another_program() {
    let mut checked = 0;
    for crate_dir in ["kernels", "core", "tokens", "runner", "capi"] {
        for path in sources(&root().join(crate_dir).join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            for line in text.lines() {
                let starts = line.contains("process::") && line.contains("Command")
                    || ["libloading", "dlopen(", "execve(", "posix_spawn("]
                        .iter()
                        .any(|word| line.contains(word));
                assert!(!starts, "{}: {line}: what is read is never run", path.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked} files");
}
