//! Tells the linker of a program that is built for size (the profile `dist`) what it can leave out.
//!
//! Such a program does not unwind: tables for unwinding are a twentieth of it. Nor is it moved
//! about in memory when it is loaded, for which each address in its data and tables would need a place
//! in a list, another twentieth; libraries, stacks and the heap still are. Of systems where this was
//! not tried nothing is assumed.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=small.ld");
    let is = |key, value| env::var(key).is_ok_and(|found| found == value);
    // Cargo tells no script the profile, nor what a panic does: the folder's name is the profile's.
    let dist = env::var("OUT_DIR").is_ok_and(|dir| dir.contains("/dist/build/"));
    let small = dist && is("OPT_LEVEL", "s") && is("TARGET", "x86_64-unknown-linux-gnu");
    if let (true, Ok(dir)) = (small, env::var("CARGO_MANIFEST_DIR")) {
        for arg in ["-no-pie", "-Wl,--no-eh-frame-hdr", &format!("-Wl,-T,{dir}/small.ld")] {
            println!("cargo::rustc-link-arg-bins={arg}");
        }
    }
}
