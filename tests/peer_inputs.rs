//! Start files for other programs: a trainer that knows nothing but the file gets the losses
//! that the run behind it got.

#[path = "../examples/peer_inputs.rs"]
#[expect(dead_code, reason = "its main function reads the arguments of this program")]
mod peer_inputs;
mod support;

use cllm::cli::presets::Preset;
use cllm::settings::{Threads, TrainSettings};
use cllm::train::stop::Stop;
use cllm::train::{Outcome, train_until};
use cllm_core::{
    Architecture, Batch, BatchShape, Dtype, Engine, Kernels, Mode, ModelConfig, Optimizer, Plan,
    Trainer,
};
use peer_inputs::Ends;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use support::memory::Memory;

/// A run of four steps on a few sentences, in an empty folder `name`.
fn run(name: &str, change: impl FnOnce(&mut TrainSettings)) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    let text = dir.join("text.txt");
    fs::write(&text, "the sea and the land were made in a day; so it was. ".repeat(40)).unwrap();
    let mut settings = TrainSettings {
        data: vec![text.to_str().unwrap().to_owned()],
        n_layer: 2,
        n_head: 2,
        n_embd: 32,
        block_size: 16,
        batch_size: 3,
        gradient_accumulation_steps: 2,
        max_steps: 4,
        warmup_steps: 2,
        log_interval: 1,
        threads: Threads::Count(2),
        sample_tokens: 0,
        out_dir: dir.join("run"),
        ..Preset::Tiny.settings()
    };
    change(&mut settings);
    let outcome = train_until(&settings, &Stop::new(), &mut std::io::sink());
    assert_eq!(outcome, Ok(Outcome::Finished));
    settings.out_dir
}

/// Values of a tensor, decoded from chunks of `N` bytes.
fn read<T, const N: usize>(
    file: &SafeTensors<'_>,
    name: &str,
    decode: fn([u8; N]) -> T,
) -> (Vec<usize>, Vec<T>) {
    let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (chunks, rest) = tensor.data().as_chunks::<N>();
    assert!(rest.is_empty(), "{name} ends inside a value");
    (tensor.shape().to_vec(), chunks.iter().map(|&chunk| decode(chunk)).collect())
}

#[test]
fn the_file_alone_gives_the_losses_of_the_run() {
    let run = run("peer_inputs", |_| {});
    let path = run.with_extension("safetensors");
    peer_inputs::write(&run, &path, Ends::Both).unwrap();

    let bytes = fs::read(&path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let config: Value =
        serde_json::from_str(&metadata.metadata().as_ref().unwrap()["config"]).unwrap();
    assert!(config.get("parts").is_none(), "GPT-2's parts go without saying: {config}");
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let number = |value: &Value| value.as_f64().unwrap() as f32;
    let model = ModelConfig {
        vocab_size: size("vocab_size"),
        block_size: size("block_size"),
        n_layer: size("n_layer"),
        n_head: size("n_head"),
        d_model: size("d_model"),
        d_ff: size("d_ff"),
        bias: config["bias"].as_bool().unwrap(),
        tied: config["tied"].as_bool().unwrap(),
        dropout: 0.0,
        norm_eps: number(&config["layer_norm_eps"]),
        arch: Architecture::GPT2,
    };
    let optimizer = Optimizer {
        beta1: number(&config["betas"][0]),
        beta2: number(&config["betas"][1]),
        eps: number(&config["eps"]),
        weight_decay: number(&config["weight_decay"]),
        grad_clip: Some(number(&config["clip"])),
        ..Optimizer::default()
    };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (shape, tokens) = read(&file, "tokens", u32::from_le_bytes);
    let (_, targets) = read(&file, "targets", u32::from_le_bytes);
    let (_, losses) = read(&file, "losses", f64::from_le_bytes);
    let (_, norms) = read(&file, "grad_norms", f64::from_le_bytes);
    let (_, rates) = read(&file, "lrs", f64::from_le_bytes);
    assert_eq!(shape, [4, 2, 3, 16]);

    let (batch, kernels) = (BatchShape { sequences: 3, tokens: 16 }, Kernels::detect());
    let plan = Plan::new(&model, batch, 1, Mode::Train, kernels).unwrap();
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    // Another seed: every weight must come from the file.
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 99).unwrap();
    let names = config["parameters"].as_array().unwrap();
    assert_eq!(names.len(), plan.table().count());
    for (spec, name) in plan.table().iter().zip(names) {
        assert_eq!(spec.name().as_str(), name.as_str().unwrap());
        let (_, values) = read(&file, &format!("param/{}", spec.name()), f32::from_le_bytes);
        trainer.parameters_mut()[spec.range()].copy_from_slice(&values);
    }
    for step in 0..4 {
        let mut sum = 0.0;
        for micro in 0..2 {
            let range = (2 * step + micro) * 48..(2 * step + micro + 1) * 48;
            let batch = Batch::new(&tokens[range.clone()], &targets[range]);
            sum += trainer.accumulate(&batch, 96).unwrap().sum;
        }
        // The same kernels on the same numbers: the same bits.
        assert_eq!(sum / 96.0, losses[step], "loss of step {step}");
        let update = trainer.update(&optimizer, rates[step] as f32).unwrap();
        assert_eq!(update.grad_norm, norms[step], "gradient norm of step {step}");
    }
    assert!(losses[3] < losses[0], "{losses:?}");
    for spec in plan.table().iter() {
        let (_, values) = read(&file, &format!("final/{}", spec.name()), f32::from_le_bytes);
        assert_eq!(trainer.parameters()[spec.range()], values, "{}", spec.name());
    }
}

#[test]
fn a_run_with_a_base_begins_with_the_weights_of_that() {
    let base = run("peer_inputs_base", |s| s.logit_softcap = 5.0);
    let follows = run("peer_inputs_follows", |s| s.base = Some(base.clone()));
    let [ends, begins] = [&base, &follows].map(|run| run.with_extension("safetensors"));
    peer_inputs::write(&base, &ends, Ends::Both).unwrap();
    peer_inputs::write(&follows, &begins, Ends::Start).unwrap();
    let [end_bytes, begin_bytes] = [ends, begins].map(|path| fs::read(path).unwrap());
    let [ends, begins] =
        [&end_bytes, &begin_bytes].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    let (_, about) = SafeTensors::read_metadata(&begin_bytes).unwrap();
    let about: Value = serde_json::from_str(&about.metadata().as_ref().unwrap()["config"]).unwrap();
    assert_eq!(about["parts"]["logit_softcap"], 5.0, "{about}");
    let mut weights = 0;
    for (name, tensor) in ends.tensors() {
        let Some(name) = name.strip_prefix("final/") else { continue };
        let begin = begins.tensor(&format!("param/{name}")).unwrap();
        assert!(begin.data() == tensor.data(), "{name}");
        weights += 1;
    }
    assert!(weights > 10, "{weights}");

    // The layout has no tensors of adapters, whose own or whose base they are.
    let adapted = run("peer_inputs_lora", |s| {
        (s.base, s.lora_rank) = (Some(base.clone()), Some(2));
    });
    let message = peer_inputs::write(&adapted, &adapted.with_extension("safetensors"), Ends::Start);
    assert!(message.unwrap_err().to_string().contains("adapters"));
}

#[test]
fn runs_that_nobody_can_follow_are_refused() {
    let refused = |name: &str, change: fn(&mut TrainSettings), hint: &str| {
        let run = run(name, change);
        let message = peer_inputs::write(&run, &run.with_extension("safetensors"), Ends::Start);
        let message = message.unwrap_err().to_string();
        assert!(message.contains(hint), "{message}");
    };
    refused("peer_inputs_bf16", |s| s.dtype = Dtype::Bf16, "--dtype f32");
    refused("peer_inputs_dropout", |s| s.dropout = 0.1, "--dropout 0");
    refused("peer_inputs_unclipped", |s| s.grad_clip = 0.0, "--grad-clip");
    refused("peer_inputs_sparse", |s| s.log_interval = 2, "--log-interval 1");
    let missing = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peer_inputs_none");
    let message = peer_inputs::write(&missing, &missing.with_extension("safetensors"), Ends::Start);
    assert!(message.unwrap_err().to_string().contains("peer_inputs_none"));
}
