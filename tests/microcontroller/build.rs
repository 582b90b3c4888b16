//! Links images of a microcontroller's flash memory, where `link.ld` puts it, and makes what is in there besides the
//! program: the part of the bundled text that a model learns from, and a model.

#[path = "src/split.rs"]
mod split;

use std::io::Read as _;
use std::path::Path;
use std::{env, fs};

const BUNDLED: &str = "../../runner/data/bible-kjv.txt.gz";

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo says where it is");
    println!("cargo::rustc-link-arg-bins=-T{folder}/link.ld");
    // Each section lies where the script says, or nothing is linked: none takes up RAM that nobody counts. Builds to
    // debug have sections for debuggers besides.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bins=--orphan-handling=error");
    }
    for file in ["link.ld", "src/split.rs", BUNDLED] {
        println!("cargo::rerun-if-changed={file}");
    }
    let packed = fs::read(Path::new(&folder).join(BUNDLED)).expect("the runner's text is there");
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut text).expect("it is whole");
    text.truncate(split::learnt(text.len()));
    let out = env::var("OUT_DIR").expect("cargo says where to write");
    let write = |name: &str, bytes: &[u8]| {
        fs::write(Path::new(&out).join(name), bytes).expect("it can be written there");
    };
    write("capitals.txt", &split::capitals(&text));
    write("text.txt", &text);
    // The model that `adapters` is to have in flash memory. Without one it builds all the same, and says so.
    println!("cargo::rerun-if-env-changed=MICROCONTROLLER_BASE");
    let base = env::var("MICROCONTROLLER_BASE").ok().map(|file| {
        println!("cargo::rerun-if-changed={file}");
        fs::read(file).expect("MICROCONTROLLER_BASE names a file")
    });
    write("base.bin", &base.unwrap_or_default());
}
