//! The scalar kernels compute the same bits on every machine: the same losses, the same weights.
//!
//! The hashes were made on x86-64. `tests/aarch64.sh` has this test on 64-bit ARM, and `tests/wasm.sh` in WebAssembly, with a
//! compiler of another version. Who changes what scalar kernels compute, or in which order, changes them; nobody else does.

#[allow(dead_code, reason = "not all models")]
#[path = "support/config.rs"]
mod config;
#[allow(dead_code, reason = "others want more of it")]
#[path = "support/memory.rs"]
mod memory;

use cllm_core::{Batch, BatchShape, Dtype, Kernels, Mode, ModelConfig, Optimizer, Plan};
use config::{CAPPED, LLAMA, SMALL};
use memory::with_trainer;

const SHAPE: BatchShape = BatchShape { sequences: 3, tokens: 37 };

/// The losses of four steps, and FNV-1a of them and of the weights after them.
fn train(config: &ModelConfig, kernels: &'static Kernels) -> ([f64; 4], u64) {
    let plan = Plan::new(config, SHAPE, 1, Mode::Train, kernels).unwrap();
    let ids = |of: u32| -> Vec<u32> {
        (0..plan.tokens() as u32).map(|i| (i * i + 5 * i + of) % config.vocab_size as u32).collect()
    };
    with_trainer(&plan, kernels, 9, |trainer| {
        let losses = [0, 1, 2, 3].map(|step| {
            let (tokens, targets) = (ids(step), ids(step + 1));
            let batch = Batch::new(&tokens, &targets);
            let loss = trainer.accumulate(&batch, batch.counted()).unwrap().mean();
            trainer.update(&Optimizer::default(), 3e-3).unwrap();
            loss
        });
        let mut bits: Vec<u8> =
            losses.iter().flat_map(|loss| loss.to_bits().to_le_bytes()).collect();
        bits.extend(trainer.parameters().iter().flat_map(|x| x.to_bits().to_le_bytes()));
        let hash = bits.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        (losses, hash)
    })
}

#[test]
fn scalar_kernels_train_the_same_weights_on_every_machine() {
    let (f32, bf16) = (Kernels::scalar(), Kernels::scalar().with_dtype(Dtype::Bf16));
    let found = [(SMALL, f32), (CAPPED, f32), (LLAMA, f32), (LLAMA, bf16)]
        .map(|(config, kernels)| format!("{:016x}", train(&config, kernels).1));
    assert_eq!(
        found,
        ["d3d008b614f2c60e", "f0ffee8286f9bffe", "af534989f3253ff7", "ff269cfbf0154775"]
    );
}

#[test]
fn the_best_instruction_set_trains_to_the_same_losses_by_other_bits() {
    let best = Kernels::detect();
    for config in [SMALL, LLAMA] {
        let (losses, hash) = train(&config, best);
        let (expected, scalar) = train(&config, Kernels::scalar());
        for (loss, expected) in losses.iter().zip(expected) {
            assert!((loss / expected - 1.0).abs() < 1e-4, "{losses:?}, not {expected:?}");
        }
        // So the hashes are of what is computed.
        assert_eq!(hash == scalar, best.set() == Kernels::scalar().set());
    }
}
