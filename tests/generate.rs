//! Generation with a cache against PyTorch's logits, and against itself.

mod support;

use cllm_core::generate::{GenerateError, GeneratePlan, GeneratePools, Generator};
use cllm_core::{Isa, Kernels, Line};
use support::golden::{Golden, scatter};

/// Memory of one stream.
struct Memory {
    parameters: Vec<f32>,
    pools: [Vec<Line>; 3],
}

impl Memory {
    fn new(golden: &Golden, plan: &GeneratePlan) -> Self {
        let table = cllm_core::ParamTable::new(plan.config()).unwrap();
        let mut parameters = vec![0.0; table.arena_len()];
        scatter(&table, &golden.params, &mut parameters);
        let poison = Line([f32::NAN; cllm_core::LANES]);
        let lines = [plan.packed_lines(), plan.cache_lines(), plan.activation_lines()];
        Self { parameters, pools: lines.map(|n| vec![poison; n]) }
    }

    fn generator(&mut self, plan: &GeneratePlan, kernels: &'static Kernels) -> Generator<'_> {
        let [packed, cache, activations] = &mut self.pools;
        let pools = GeneratePools { parameters: &self.parameters, packed, cache, activations };
        Generator::new(plan, kernels, pools).unwrap()
    }
}

fn close(got: &[f32], expected: &[f32], place: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 2e-5 * b.abs().max(1.0), "{place} [{i}]: {a} for {b}");
    }
}

#[test]
fn logits_are_pytorchs_in_any_chunks() {
    for isa in Isa::ALL {
        let Some(kernels) = Kernels::for_isa(isa) else { continue };
        for golden in Golden::all() {
            let c = &golden.config;
            let plan = GeneratePlan::new(&c.model(), kernels).unwrap();
            let mut memory = Memory::new(&golden, &plan);
            let mut generator = memory.generator(&plan, kernels);
            let (t, v) = (c.tokens_per_sequence, c.vocab_size);
            for (b, text) in golden.tokens(0, 0).chunks_exact(t).enumerate() {
                let expected = |i: usize| &golden.logits[(b * t + i) * v..][..v];
                // Token by token, in growing chunks, at once.
                for stride in [1, 3, t] {
                    generator.reset();
                    let mut end = 0;
                    while end < t {
                        end = (end + stride).min(t);
                        let place = format!("{isa} {} stride {stride} at {end}", c.name);
                        let logits = generator.logits_after(&text[..end]).unwrap();
                        close(logits, expected(end - 1), &place);
                    }
                    // Asking again changes nothing.
                    close(generator.logits_after(text).unwrap(), expected(t - 1), &c.name);
                }
            }
        }
    }
}

#[test]
fn a_full_context_goes_on_from_its_newer_half() {
    let golden = Golden::named("odd_tokens");
    let kernels = Kernels::detect();
    let plan = GeneratePlan::new(&golden.config.model(), kernels).unwrap();
    let block = golden.config.block_size;
    let text: Vec<u32> = golden.tokens(0, 0).iter().cycle().take(3 * block).copied().collect();
    let (mut one, mut other) = (Memory::new(&golden, &plan), Memory::new(&golden, &plan));
    let mut sliding = one.generator(&plan, kernels);
    let mut fresh = other.generator(&plan, kernels);
    let mut start = 0;
    for end in 1..=text.len() {
        if end - start > block {
            start = end - block.div_ceil(2);
        }
        fresh.reset();
        let expected = fresh.logits_after(&text[start..end]).unwrap().to_vec();
        close(sliding.logits_after(&text[..end]).unwrap(), &expected, "sliding");
    }
    assert!(start > block, "the context slid more than once");
}

#[test]
fn bad_text_is_refused() {
    let golden = Golden::named("tied_bias");
    let kernels = Kernels::detect();
    let plan = GeneratePlan::new(&golden.config.model(), kernels).unwrap();
    let mut memory = Memory::new(&golden, &plan);
    let mut generator = memory.generator(&plan, kernels);
    assert_eq!(generator.logits_after(&[]).unwrap_err(), GenerateError::Empty);
    let vocab_size = golden.config.vocab_size;
    let id = vocab_size as u32;
    let error = generator.logits_after(&[0, id]).unwrap_err();
    assert_eq!(error, GenerateError::UnknownToken { id, vocab_size });
}
