//! Of each kind of model: order, offsets, names and shapes of the tensors.

use super::*;
use crate::architecture::Architecture;
extern crate std;
use std::string::ToString;
use std::vec::Vec;

fn config(bias: bool, tied: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 37,
        block_size: 9,
        n_layer: 3,
        n_head: 3,
        d_model: 21,
        d_ff: 50,
        bias,
        tied,
        dropout: 0.0,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    }
}

/// Every kind of architecture, with biases and without.
fn architectures() -> impl Iterator<Item = ModelConfig> {
    let grouped = Architecture { n_kv_head: Some(1), ..Architecture::LLAMA };
    let wide = Architecture { head_size: Some(10), qkv_bias: true, ..grouped };
    let normed = Architecture { qk_norm: true, ..wide };
    let shifted = Architecture { previous_tokens: 3, ..Architecture::GPT2 };
    let both = Architecture { previous_tokens: 1, ..normed };
    let kinds = [Architecture::GPT2, shifted, Architecture::LLAMA, grouped, wide, normed, both];
    let flags = [(true, true), (true, false), (false, true), (false, false)];
    kinds.into_iter().flat_map(move |arch| {
        let even = |c: ModelConfig| match arch.rotary() {
            Some(_) => ModelConfig { d_model: 24, ..c },
            None => c,
        };
        flags.map(|(bias, tied)| ModelConfig { arch, ..even(config(bias, tied)) })
    })
}

#[test]
fn tensors_are_adjacent_aligned_and_in_one_order() {
    for config in architectures() {
        let table = ParamTable::new(&config).unwrap();
        let specs: Vec<_> = table.iter().collect();
        assert_eq!(specs.len(), table.count());
        let (mut end, mut values) = (0, 0);
        for spec in &specs {
            assert_eq!(spec.offset, end, "{}", spec.name());
            values += spec.len();
            assert_eq!(spec.offset % LANES, 0);
            assert_eq!(table.spec(spec.param).as_ref(), Some(spec));
            end = (spec.offset + spec.len()).next_multiple_of(LANES);
        }
        assert_eq!(end, table.arena_len());
        assert_eq!(values, table.parameters());
        assert!(table.get(table.count()).is_none());
    }
}

#[test]
fn names_shapes_and_decay_are_gpt2s() {
    let table = ParamTable::new(&config(true, false)).unwrap();
    let find = |name: &str| table.iter().find(|s| s.name().as_str() == name).unwrap();
    let qkv = find("h.2.attn.c_attn.weight");
    assert_eq!((qkv.rows, qkv.cols, qkv.decay), (21, 63, true));
    let bias = find("h.0.mlp.c_fc.bias");
    assert_eq!((bias.rows, bias.cols, bias.decay), (1, 50, false));
    assert!(!find("ln_f.weight").decay);
    assert!(find("wpe.weight").decay);
    assert_eq!(table.iter().last().unwrap().name().to_string(), "lm_head.weight");
    // 37*21*2 + 9*21 + 3 * (6*21 + 21*63 + 63 + 21*21 + 21*50 + 50 + 50*21) + 2*21
    let block = 6 * 21 + 21 * 63 + 63 + 21 * 21 + 21 * 50 + 50 + 50 * 21;
    assert_eq!(table.parameters(), 37 * 21 * 2 + 9 * 21 + 3 * block + 2 * 21);
}

#[test]
fn llamas_tensors_have_their_own_shapes() {
    let arch = Architecture { n_kv_head: Some(1), head_size: Some(10), ..Architecture::LLAMA };
    let table = ParamTable::new(&ModelConfig { arch, ..config(false, true) }).unwrap();
    let shapes: Vec<_> =
        table.iter().take(7).map(|s| (s.name().to_string(), s.rows, s.cols)).collect();
    let named = |name: &str, rows, cols| (name.to_string(), rows, cols);
    assert_eq!(
        shapes,
        [
            named("wte.weight", 37, 21),
            named("h.0.ln_1.weight", 1, 21),
            named("h.0.attn.c_attn.weight", 21, 50),
            named("h.0.attn.c_proj.weight", 30, 21),
            named("h.0.ln_2.weight", 1, 21),
            named("h.0.mlp.c_fc.weight", 21, 100),
            named("h.0.mlp.c_proj.weight", 50, 21),
        ]
    );
    assert_eq!(table.count(), 1 + 3 * 6 + 1);
    let qwen = Architecture { qkv_bias: true, ..arch };
    let table = ParamTable::new(&ModelConfig { arch: qwen, ..config(false, true) }).unwrap();
    assert!(table.spec(Param::Block(0, QkvBias)).is_some_and(|spec| spec.cols == 50));
    assert_eq!(table.count(), 1 + 3 * 7 + 1);
    let qwen3 = Architecture { qk_norm: true, ..arch };
    let table = ParamTable::new(&ModelConfig { arch: qwen3, ..config(false, true) }).unwrap();
    let gain = table.spec(Param::Block(2, KeyNormGain)).unwrap();
    assert_eq!((gain.cols, gain.decay, gain.init), (10, false, Init::Ones));
    assert_eq!(gain.name().as_str(), "h.2.attn.k_norm.weight");
    assert_eq!(table.count(), 1 + 3 * 8 + 1);
}

#[test]
fn absurd_sizes_are_an_error_not_an_overflow() {
    let huge = ModelConfig {
        vocab_size: 1 << 28,
        d_model: 1 << 28,
        d_ff: 1 << 28,
        n_layer: 1 << 28,
        n_head: 1,
        ..config(true, true)
    };
    assert_eq!(ParamTable::new(&huge).unwrap_err(), ConfigError::Overflow);
}
