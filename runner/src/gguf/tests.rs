//! Models of the Llama family, out and in again: those that no flag of training makes, too.

use std::fs;
use std::path::Path;

use cllm_core::{
    Activation, Architecture, ModelConfig, NormKind, ParamTable, Positions, Rotary, Scaling,
};

use super::blocks::Kind;
use super::value::Value;
use super::write::{self, Planned};
use super::{ExportSettings, export, import, read};
use crate::exchange::{NewRun, create_run};
use crate::tokenizer::usage::Usage;
use crate::trained::Trained;

const LLAMA3: Scaling = Scaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };

fn turned(theta: f32, scaling: Scaling) -> Architecture {
    Architecture { positions: Positions::Rotary(Rotary { theta, scaling }), ..Architecture::LLAMA }
}

fn model(arch: Architecture) -> ModelConfig {
    ModelConfig {
        vocab_size: 40,
        block_size: 16,
        n_layer: 2,
        n_head: 4,
        d_model: 64,
        d_ff: 96,
        bias: false,
        tied: true,
        dropout: 0.0,
        norm_eps: 1e-6,
        arch,
    }
}

/// Grouped heads and one table; wide heads, linear scaling and two tables; Llama 3's scaling; biases
/// of queries, keys and values; those with what llama.cpp's `qwen2` lacks; biases everywhere; norms of
/// heads, and those of heads of a width of their own.
fn models() -> [(&'static str, ModelConfig); 8] {
    let grouped = Architecture { n_kv_head: Some(2), ..Architecture::LLAMA };
    let qkv_bias = Architecture { qkv_bias: true, ..grouped };
    let linear = turned(5e4, Scaling::Linear { factor: 2.5 });
    let wide = Architecture { n_kv_head: Some(1), head_size: Some(24), ..linear };
    [
        ("llama", model(grouped)),
        ("llama", ModelConfig { tied: false, ..model(wide) }),
        ("llama", model(turned(5e5, LLAMA3))),
        ("qwen2", model(qkv_bias)),
        ("llama", model(Architecture { qkv_bias: true, ..turned(5e5, LLAMA3) })),
        ("llama", ModelConfig { bias: true, ..model(turned(1e4, Scaling::None)) }),
        ("qwen3", model(Architecture { qk_norm: true, ..grouped })),
        ("qwen3", ModelConfig { tied: false, ..model(Architecture { qk_norm: true, ..wide }) }),
    ]
}

/// Weights that are all different, and the padding of zeros.
fn weights(config: &ModelConfig) -> Vec<f32> {
    let table = ParamTable::new(config).unwrap();
    let mut arena = vec![0.0; table.arena_len()];
    for spec in table.iter() {
        for (i, to) in (spec.offset..).zip(&mut arena[spec.range()]) {
            let mixed = (i as u32).wrapping_mul(2_654_435_761) >> 8;
            *to = (mixed as f32 / (1 << 24) as f32 - 0.5) * 0.4;
        }
    }
    arena
}

/// Exports a model from the folder `out` to the file `m.gguf`.
fn exported(dir: &Path, config: &ModelConfig, kind: Kind) -> Vec<f32> {
    let arena = weights(config);
    let (out, usage) = (dir.join("out"), Usage::default());
    let checkpoint = create_run(&NewRun::of(&out, config, &arena, None, &usage)).unwrap();
    export(&ExportSettings { checkpoint, out: dir.join("m.gguf"), kind }).unwrap();
    arena
}

/// What is imported from it to the folder `back`.
fn imported(dir: &Path) -> Result<(ModelConfig, Vec<f32>), String> {
    let there = import(&dir.join("m.gguf"), &dir.join("back")).map_err(|e| e.to_string())?;
    let arena = Trained::open(&there.checkpoint).unwrap().parameters().unwrap().to_vec();
    Ok((there.config, arena))
}

/// Changes a file: its keys, and its tensors, which are all `f32`.
fn change(
    dir: &Path,
    change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<(Planned, Vec<f32>)>),
) {
    let path = dir.join("m.gguf");
    let bytes = fs::read(&path).unwrap();
    let file = read::File::parse(&bytes).unwrap();
    let mut keys: Vec<_> = file.keys.into_iter().collect();
    let tensors = file.tensors.into_iter().map(|(name, tensor)| {
        let mut values = vec![0.0; tensor.dims.iter().product()];
        tensor.kind.read(&bytes[tensor.bytes], &mut values);
        (Planned { name, dims: tensor.dims, kind: Kind::F32 }, values)
    });
    let mut tensors: Vec<_> = tensors.collect();
    change(&mut keys, &mut tensors);
    let planned: Vec<_> = tensors.iter().map(|(planned, _)| planned.clone()).collect();
    let mut bytes = write::header(&keys, &planned);
    for (planned, values) in &tensors {
        let row =
            |r: usize, to: &mut [f32]| to.copy_from_slice(&values[r * to.len()..][..to.len()]);
        assert_eq!(write::data(&mut bytes, planned, row).unwrap(), None);
    }
    fs::write(path, bytes).unwrap();
}

fn vector(name: &str, values: &[f32]) -> (Planned, Vec<f32>) {
    let planned = Planned { name: name.to_owned(), dims: vec![values.len()], kind: Kind::F32 };
    (planned, values.to_vec())
}

#[test]
fn models_of_the_llama_family_come_back_as_they_were() {
    for (architecture, config) in models() {
        let dir = tempfile::tempdir().unwrap();
        let arena = exported(dir.path(), &config, Kind::F32);
        let bytes = fs::read(dir.path().join("m.gguf")).unwrap();
        let file = read::File::parse(&bytes).unwrap();
        let named = file.keys["general.architecture"].text();
        assert_eq!(named, Some(architecture), "{config:?}");
        let (back, read) = imported(dir.path()).unwrap();
        assert_eq!(back, config);
        assert!(read == arena, "{config:?}");
        // Of all that others may change nothing is lost.
        change(dir.path(), |_, _| {});
        fs::remove_dir_all(dir.path().join("back")).unwrap();
        assert!(imported(dir.path()).unwrap().1 == arena);
    }
}

#[test]
fn eight_bits_are_within_half_a_step_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let (_, config) = models()[0];
    let arena = exported(dir.path(), &config, Kind::Q8_0);
    let (back, read) = imported(dir.path()).unwrap();
    assert_eq!(back, config);
    let table = ParamTable::new(&config).unwrap();
    for spec in table.iter() {
        for (x, y) in arena[spec.range()].iter().zip(&read[spec.range()]) {
            // No weight exceeds 0.2; and what the scale loses as f16.
            let most = 0.2 / 127.0 * 0.5 + x.abs() / 2048.0;
            let most = if spec.is_vector() { 0.0 } else { most };
            assert!((x - y).abs() <= most, "{}: {y} for {x}", spec.name());
        }
    }
}

/// Row 3 of the second head of queries, by the formula of llama.cpp's script: of heads of 16 columns it
/// is the second half's second column. A `qwen2` and a `qwen3` have the row as it is.
#[test]
fn queries_of_llama_lie_in_pairs_and_those_of_qwen_do_not() {
    let row = 16 + 3;
    for (n, column) in [(0, 16 + 8 + 1), (3, row), (6, row)] {
        let (_, config) = models()[n];
        let dir = tempfile::tempdir().unwrap();
        let arena = exported(dir.path(), &config, Kind::F32);
        let bytes = fs::read(dir.path().join("m.gguf")).unwrap();
        let file = read::File::parse(&bytes).unwrap();
        let table = ParamTable::new(&config).unwrap();
        let spec = |name: &str| table.iter().find(|spec| spec.name() == name).unwrap();
        let values = |name: &str| {
            let tensor = &file.tensors[name];
            let mut values = vec![0.0; tensor.dims.iter().product()];
            tensor.kind.read(&bytes[tensor.bytes.clone()], &mut values);
            values
        };
        let qkv = &arena[spec("h.1.attn.c_attn.weight").range()];
        let width = config.qkv_width();
        // Queries, keys, values: the last are never turned.
        for (name, first, column) in
            [("attn_q", 0, column), ("attn_k", 64, column), ("attn_v", 96, row)]
        {
            let theirs = &values(&format!("blk.1.{name}.weight"))[row * 64..][..64];
            let ours: Vec<_> = (0..64).map(|i| qkv[i * width + first + column]).collect();
            assert_eq!(theirs, ours, "{name}");
        }
        if config.arch.qkv_bias {
            let bias = &arena[spec("h.1.attn.c_attn.bias").range()];
            assert_eq!(values("blk.1.attn_k.bias"), bias[64..96]);
        }
        if config.arch.qk_norm {
            for (theirs, ours) in [("attn_q_norm", "attn.q_norm"), ("attn_k_norm", "attn.k_norm")] {
                let gain = &arena[spec(&format!("h.1.{ours}.weight")).range()];
                assert_eq!(values(&format!("blk.1.{theirs}.weight")), gain);
            }
        }
    }
}

#[test]
fn what_files_leave_out_has_a_meaning() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_, config) = models()[5];
    let arena = exported(dir, &config, Kind::F32);
    change(dir, |keys, tensors| {
        let meant = ["head_count_kv", "key_length", "value_length", "dimension_count", "freq_base"];
        keys.retain(|(name, _)| !meant.iter().any(|meant| name.ends_with(meant)));
        keys.push(("llama.attention.sliding_window".to_owned(), Value::U32(12)));
        keys.push(("llama.rope.scaling.type".to_owned(), Value::Text("none".to_owned())));
        keys.push(("llama.rope.scaling.factor".to_owned(), Value::F32(4.0)));
        // As a model of `transformers` with biases of attention alone.
        tensors.retain(|(planned, _)| {
            !(planned.name.contains("ffn_") && planned.name.ends_with("bias"))
        });
        tensors.push(vector("rope_freqs.weight", &[1.0; 8]));
    });
    let (back, read) = imported(dir).unwrap();
    assert_eq!(back, ModelConfig { block_size: 12, ..config });
    let table = ParamTable::new(&config).unwrap();
    for spec in table.iter() {
        let read = &read[spec.range()];
        if spec.name().contains("mlp.") && spec.is_vector() {
            assert!(read.iter().all(|x| *x == 0.0), "{}", spec.name());
        } else {
            assert!(*read == arena[spec.range()], "{}", spec.name());
        }
    }
}

#[test]
fn factors_of_no_published_model_come_back_by_what_they_are_made_of() {
    let scaling = Scaling::Llama3 { factor: 5.0, low: 1.5, high: 3.5, original: 12 };
    let config = model(turned(1e3, scaling));
    let dir = tempfile::tempdir().unwrap();
    let arena = exported(dir.path(), &config, Kind::F32);
    let (back, read) = imported(dir.path()).unwrap();
    assert_eq!(back, config);
    assert!(read == arena);
    for (name, value) in [("factor", 5.1), ("low_freq_factor", 0.0), ("high_freq_factor", f32::NAN)]
    {
        change(dir.path(), |keys, _| {
            set(keys, &format!("rope.scaling.llama3.{name}"), Value::F32(value));
        });
        let error = imported(dir.path()).unwrap_err();
        assert!(
            error.contains("other factors") && error.contains("rope.scaling.llama3"),
            "{error}"
        );
    }
}

#[test]
fn what_is_not_computed_is_refused_with_what_it_is() {
    type Change = fn(&mut Vec<(String, Value)>, &mut Vec<(Planned, Vec<f32>)>);
    let cases: [(Change, &str); 15] = [
        (|k, _| set(k, "rope.scaling.type", Value::Text("yarn".into())), "\"yarn\" cannot be"),
        (|k, _| set(k, "rope.scaling.type", Value::U32(1)), "llama.rope.scaling.type is no text"),
        (|k, _| set(k, "rope.scaling.factor", Value::F32(0.5)), "factor of rotary scaling is 0.5"),
        (|k, _| set(k, "rope.dimension_count", Value::U32(8)), "heads have 16 columns: only heads"),
        (|k, _| set(k, "attention.value_length", Value::U32(8)), "value_length is 8, but heads"),
        (|k, _| set(k, "attention.head_count_kv", Value::U32(3)), "head_count_kv 3"),
        (|k, _| set(k, "attention.head_count_kv", Value::U32(0)), "head_count_kv is 0"),
        (
            |k, _| set(k, "attention.head_count_kv", Value::Ints(vec![1, 2])),
            "head_count_kv is no size",
        ),
        (|k, _| set(k, "attention.head_count", Value::U32(0)), "llama.attention.head_count is 0"),
        (|k, _| set(k, "rope.freq_base", Value::F32(f32::NAN)), "theta of rotary positions is NaN"),
        (|k, _| set(k, "expert_count", Value::U32(8)), "a mixture of experts"),
        (
            |k, t| {
                set(k, "rope.scaling.factor", Value::F32(2.0));
                t.push(vector("rope_freqs.weight", &[1.0; 8]));
            },
            "rope_freqs.weight: angles can be scaled once",
        ),
        (|_, t| t.push(vector("rope_freqs.weight", &[1.5; 8])), "other factors than Llama 3.1"),
        (|_, t| t.push(vector("rope_freqs.weight", &[1.0; 9])), "a head of 16 columns has 8 pairs"),
        (
            |_, t| t.push(vector("blk.1.attn_q.bias", &[0.0; 64])),
            "no Llama has the tensor blk.1.attn_q.bias",
        ),
    ];
    for (made, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        exported(dir.path(), &models()[0].1, Kind::F32);
        change(dir.path(), made);
        let error = imported(dir.path()).unwrap_err();
        assert!(error.contains("m.gguf: ") && error.contains(words), "{error}");
        assert!(!dir.path().join("back").exists(), "{error}");
    }
}

#[test]
fn what_no_qwen3_has_is_refused() {
    type Change = fn(&mut Vec<(Planned, Vec<f32>)>);
    let cases: [(Change, &str); 5] = [
        (
            |t| t.push(vector("blk.0.attn_q.bias", &[0.0; 64])),
            "no Qwen3 has the tensor blk.0.attn_q.bias",
        ),
        (
            |t| t.push(vector("blk.0.ffn_up.bias", &[0.0; 96])),
            "no Qwen3 has the tensor blk.0.ffn_up.bias",
        ),
        (
            |t| t.push(vector("rope_freqs.weight", &[1.0; 8])),
            "no Qwen3 has the tensor rope_freqs.weight",
        ),
        (
            |t| t.retain(|(planned, _)| planned.name != "blk.1.attn_q_norm.weight"),
            "no tensor blk.1.attn_q_norm.weight",
        ),
        (
            |t| {
                t.retain(|(planned, _)| planned.name != "blk.1.attn_k_norm.weight");
                t.push(vector("blk.1.attn_k_norm.weight", &[1.0; 32]));
            },
            "blk.1.attn_k_norm.weight has the dimensions [32], but the keys make it [16]",
        ),
    ];
    for (made, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        exported(dir.path(), &models()[6].1, Kind::F32);
        change(dir.path(), |_, tensors| made(tensors));
        let error = imported(dir.path()).unwrap_err();
        assert!(error.contains("m.gguf: ") && error.contains(words), "{error}");
        assert!(!dir.path().join("back").exists(), "{error}");
    }
}

/// Puts a key of a file of the Llama family.
fn set(keys: &mut Vec<(String, Value)>, name: &str, value: Value) {
    let name = format!("llama.{name}");
    keys.retain(|(there, _)| *there != name);
    keys.push((name, value));
}

#[test]
fn models_that_other_programs_do_not_know_are_not_exported() {
    let dir = tempfile::tempdir().unwrap();
    let gelu = Architecture { activation: Activation::Gelu, ..Architecture::LLAMA };
    let layer = Architecture { norm: NormKind::Layer, ..Architecture::LLAMA };
    let biased = Architecture { qk_norm: true, qkv_bias: true, ..Architecture::LLAMA };
    let scaled = Architecture { qk_norm: true, ..turned(5e5, LLAMA3) };
    let cases = [
        (gelu, "--activation swiglu"),
        (layer, "--norm rms"),
        (biased, "--qk-norm and biases"),
        (scaled, "--qk-norm and Llama 3's scaling"),
        (
            Architecture { activation: Activation::Relu2, ..Architecture::GPT2 },
            "--activation relu2",
        ),
        (Architecture { logit_softcap: Some(15.0), ..Architecture::LLAMA }, "--logit-softcap 15"),
        (Architecture { previous_tokens: 2, ..Architecture::LLAMA }, "--previous-tokens 2"),
    ];
    for (n, (arch, words)) in cases.into_iter().enumerate() {
        let config = model(arch);
        let folder = dir.path().join(n.to_string());
        let checkpoint =
            create_run(&NewRun::of(&folder, &config, &weights(&config), None, &Usage::default()))
                .unwrap();
        let out = dir.path().join("m.gguf");
        let settings = ExportSettings { checkpoint, out: out.clone(), kind: Kind::F32 };
        let error = export(&settings).unwrap_err().to_string();
        assert!(error.contains("step-0.cllm: ") && error.contains(words), "{error}");
        assert!(!out.exists());
    }
}
