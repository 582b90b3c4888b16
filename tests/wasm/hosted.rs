//! A library of WebAssembly without std (`tests/wasm/`) trains to the losses of a hosted run: to the bit on scalar kernels.
//! Its own vectors round in another order.
//!
//! `tests/wasm.sh` builds it, and names it and a Node.js to run it with.

#[path = "../freestanding/src/workload.rs"]
mod workload;

use cllm_core::{Kernels, Mode, Plan};
use std::env;
use std::process::Command;
use std::sync::Mutex;
use workload::{CONFIG, Memory, SHAPE};

/// The first and the last loss of a run.
type Losses = [f64; 2];

fn hosted() -> Losses {
    // As in the library: too large for a test thread's stack.
    static MEMORY: Mutex<Memory> = Mutex::new(Memory::new());
    let mut memory = MEMORY.lock().expect("nobody panicked with it");
    let kernels = Kernels::scalar();
    let plan = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, kernels).expect("it fits");
    workload::train(&plan, kernels, &mut memory).expect("the hosted run trains").into()
}

/// What kernels of this number train to, `None` if the library has none.
fn trained(library: &str, number: u32) -> Option<Losses> {
    let node = env::var("NODE").expect("NODE names a Node.js: see tests/wasm.sh");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../wasm/train.mjs");
    let output = Command::new(node).args([script, library, &number.to_string()]).output();
    let output = output.expect("Node.js runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let words: Vec<&str> = told.split_whitespace().collect();
    let loss = |word: &str| f64::from_bits(u64::from_str_radix(word, 16).expect("bits"));
    match words[..] {
        ["0", first, last] => Some([first, last].map(loss)),
        ["2", ..] => None,
        _ => panic!("{told}"),
    }
}

#[test]
#[ignore = "wants what tests/wasm.sh builds"]
fn webassembly_trains_to_the_losses_of_a_hosted_run() {
    let [plain, with_vectors] = ["WASM_PLAIN", "WASM_SIMD128"].map(|name| {
        env::var(name).unwrap_or_else(|_| panic!("{name} names a library: see tests/wasm.sh"))
    });
    let expected = hosted();
    assert!(expected[1] < expected[0] - 1.0, "{expected:?}");
    for library in [&plain, &with_vectors] {
        let found = trained(library, 0).expect("scalar kernels are everywhere");
        assert_eq!(found.map(f64::to_bits), expected.map(f64::to_bits), "{found:?}, {expected:?}");
    }
    assert_eq!(trained(&plain, 1), None);
    let found = trained(&with_vectors, 1).expect("it is built for them");
    println!("hosted, scalar: {expected:?}\nsimd128: {found:?}");
    // That they are other kernels shows in the last bits.
    assert_ne!(found, expected);
    // Sixty steps at a high rate drive roundings apart; tests/elsewhere.rs compares the first ones there.
    assert!((found[0] / expected[0] - 1.0).abs() < 1e-4, "{found:?}, not {expected:?}");
    assert!(found[1] < found[0] - 1.0, "{found:?}");
}
