//! Seeds: files that the program itself makes of very small models, and what people write by hand.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use cllm::cli::args::{Command, from_args};
use cllm::data::shard::ShardWriter;
use cllm::exchange::{Element, ExportSettings};
use cllm::lora::peft;
use cllm::tokenizer::{BpeTokenizer, CharTokenizer, Tokenizer};
use cllm::train::stop::Stop;
use cllm::train::train_until;
use cllm::{gguf, hf};
use cllm_fuzz_targets::MARK;

use super::write;

/// A seed: its target, its name, its bytes.
pub(crate) type Seed = (&'static str, &'static str, Vec<u8>);

const TEXT: &str = "the sea and the land were made in a day.\n";
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + \
    '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// All seeds.
pub(crate) fn all() -> Vec<Seed> {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("t.txt"), TEXT.repeat(60)).unwrap();
    run(dir, "gpt2", "--trace trace.json --trace-steps 1");
    run(
        dir,
        "llama",
        "--norm rms --positions rotary --activation swiglu --bias false --n-kv-head 1",
    );
    run(dir, "pairs", "--tokenizer bpe:262");
    run(dir, "momentum", "--optimizer momentum --activation relu2 --logit-softcap 5");
    run(
        dir,
        "newest",
        "--optimizer muon --activation relu2 --previous-tokens 2 --embedding-scale 2",
    );
    run(dir, "eight", "--optimizer adamw8");
    run(dir, "adapted", "--base llama --lora-rank 1 --val-fraction 0");
    let mut all = of_models(dir);
    all.extend(of_settings(dir));
    all.extend(of_data(dir));
    all.extend(of_tokenizers());
    all.extend(write::requests());
    all.extend(write::conversations());
    all
}

/// A run of a model that is as small as can be.
fn run(dir: &Path, out: &str, flags: &str) {
    let path = |name: &str| dir.join(name).display().to_string();
    let small = "--n-layer 1 --n-head 2 --n-embd 4 --d-ff 4 --block-size 8 --batch-size 1 \
                 --max-steps 2 --warmup-steps 0 --eval-batches 1 --sample-tokens 0 --threads 1 --tuning off --quiet";
    let chars = if flags.contains("--tokenizer") { "" } else { "--tokenizer chars" };
    let flags = if flags.contains("--base") {
        flags.to_owned()
    } else {
        format!("{small} {chars} {flags}")
    };
    let flags = match flags.contains("--base") {
        true => format!(
            "--max-steps 2 --warmup-steps 0 --batch-size 1 --sample-tokens 0 --threads 1 --tuning off \
             --quiet {flags}"
        ),
        false => flags,
    };
    let words = flags.split_whitespace().map(|word| match word {
        "trace.json" | "llama" => path(word),
        word => word.to_owned(),
    });
    let more = ["--data".to_owned(), path("t.txt"), "--out-dir".to_owned(), path(out)];
    let all = ["cllm", "train"].map(str::to_owned).into_iter().chain(words).chain(more);
    let cli = from_args(all.map(OsString::from)).unwrap_or_else(|e| panic!("{e}"));
    let Command::Train(args) = cli.command else { panic!("{flags}") };
    let settings = args.resolve().unwrap().settings;
    train_until(&settings, &Stop::new(), &mut Vec::<u8>::new()).unwrap();
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(MARK)
}

fn read(path: PathBuf) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Checkpoints, and what other programs have.
fn of_models(dir: &Path) -> Vec<Seed> {
    let checkpoint = |run: &str| read(dir.join(run).join("step-2.cllm"));
    let mut all: Vec<Seed> = ["gpt2", "llama", "momentum", "newest", "eight", "adapted"]
        .map(|run| ("checkpoint", run, checkpoint(run)))
        .into();
    // Numbers that make, fill and end both handles, in several orders.
    for (name, step) in [("orders", 1_u8), ("others", 7), ("many", 13)] {
        let numbers: Vec<u8> = (0..120).map(|n: u8| n.wrapping_mul(step) % 64).collect();
        all.push(("c_interface", name, joined(&[&numbers, &checkpoint("gpt2")])));
    }
    for (name, is_newer) in [("model", false), ("newer", true)] {
        let numbers = write::c_model(is_newer);
        all.push(("c_interface", name, joined(&[&numbers, &checkpoint("llama")])));
    }
    for (name, family, kind) in
        [("gpt2", "gpt2", gguf::Kind::F32), ("llama", "llama", gguf::Kind::F16)]
    {
        let bare = dir.join(format!("{name}-alone.cllm"));
        fs::copy(dir.join(family).join("step-2.cllm"), &bare).unwrap();
        let alone = tempfile::tempdir_in(dir).unwrap();
        let moved = alone.path().join("step-2.cllm");
        fs::rename(bare, &moved).unwrap();
        let out = dir.join(format!("{name}.gguf"));
        let settings = gguf::ExportSettings { checkpoint: moved.clone(), out: out.clone(), kind };
        gguf::export(&settings).unwrap();
        all.push(("gguf", name, read(out)));
        let out = dir.join(format!("{name}-hf"));
        let element = if name == "gpt2" { Element::F32 } else { Element::Bf16 };
        hf::export(&ExportSettings { checkpoint: moved, out: out.clone(), element }).unwrap();
        let (weights, config) =
            (read(out.join("model.safetensors")), read(out.join("config.json")));
        all.push(("transformers", name, joined(&[&weights, &config])));
        if name == "gpt2" {
            let usage =
                br#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true}"#;
            let index = br#"{"weight_map": {"wte.weight": "model.safetensors", "b": "../other.safetensors"}}"#;
            let tokenizer = chars().to_transformers().unwrap();
            let whole: [&[u8]; 5] = [&weights, &config, b"", tokenizer.as_bytes(), usage];
            all.push(("transformers", "with_tokenizer", joined(&whole)));
            all.push(("transformers", "with_index", joined(&[&weights, &config, index])));
        }
    }
    all.push(("gguf", "with_tokenizer", write::gguf_with_tokenizer()));
    all.push(of_older_files(dir));
    all.extend(of_adapters(dir));
    all
}

/// A folder with the files that were before `tokenizer.json`.
fn of_older_files(dir: &Path) -> Seed {
    let out = dir.join("pairs-hf");
    let checkpoint = dir.join("pairs/step-2.cllm");
    hf::export(&ExportSettings { checkpoint, out: out.clone(), element: Element::Bf16 }).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&read(out.join("tokenizer.json"))).unwrap();
    let pair = |merge: &serde_json::Value| match merge.as_array().map(Vec::as_slice) {
        Some([first, second]) => {
            format!("{} {}\n", first.as_str().unwrap(), second.as_str().unwrap())
        }
        _ => format!("{}\n", merge.as_str().unwrap()),
    };
    let merges: String = json["model"]["merges"].as_array().unwrap().iter().map(pair).collect();
    let (vocab, merges) = (json["model"]["vocab"].to_string(), format!("#version: 0.2\n{merges}"));
    let usage = br#"{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}"#;
    let whole: [&[u8]; 11] = [
        &read(out.join("model.safetensors")),
        &read(out.join("config.json")),
        b"",
        b"",
        usage,
        vocab.as_bytes(),
        merges.as_bytes(),
        br#"{"<|endoftext|>": 0}"#,
        br#"{"bos_token": {"content": "<|endoftext|>"}}"#,
        br#"{"eos_token_id": [0], "temperature": 0.5}"#,
        CHATML.as_bytes(),
    ];
    ("transformers", "older_files", joined(&whole))
}

/// Adapters as PEFT has them.
fn of_adapters(dir: &Path) -> [Seed; 2] {
    let out = dir.join("peft");
    let (checkpoint, element) = (dir.join("adapted"), Element::F32);
    peft::export(&ExportSettings { checkpoint, out: out.clone(), element }).unwrap();
    let weights = read(out.join("adapter_model.safetensors"));
    let mut config: serde_json::Value =
        serde_json::from_slice(&read(out.join("adapter_config.json"))).unwrap();
    let plain = joined(&[config.to_string().as_bytes(), &weights]);
    config["use_rslora"] = true.into();
    config["base_model_name_or_path"] = "somebody/model".into();
    [
        ("peft", "plain", plain),
        ("peft", "named", joined(&[config.to_string().as_bytes(), &weights])),
    ]
}

fn of_settings(dir: &Path) -> Vec<Seed> {
    let (summed, log) =
        (read(dir.join("gpt2/settings.json")), read(dir.join("gpt2/metrics.jsonl")));
    // Others than with their checksum are refused for nothing else.
    let fields = summed.windows(9).position(|part| part == b"\"crc32\": ").expect("a checksum");
    let settings =
        [summed[..fields].trim_ascii_end().strip_suffix(b",").expect("fields"), b"\n}\n"].concat();
    let trace = read(dir.join("trace.json"));
    let mut all = write::settings();
    all.push(("run_folder", "run", joined(&[&settings, &log])));
    all.push(("run_folder", "log", joined(&[b"", &log])));
    all.push(("run_folder", "settings", settings.clone()));
    all.push(("run_folder", "summed", summed));
    all.push(("inspect", "trace", joined(&[b"json", &trace])));
    all.push(("inspect", "settings", joined(&[b"json", &settings])));
    all.push(("inspect", "log", joined(&[b"jsonl", &log])));
    all.push(("inspect", "checkpoint", joined(&[b"", &read(dir.join("eight/step-2.cllm"))])));
    all
}

fn of_data(dir: &Path) -> Vec<Seed> {
    let shard = |vocab: usize, ids: &[u32]| {
        let path = dir.join("a.bin");
        let mut writer = ShardWriter::create(&path, vocab).unwrap();
        writer.write(ids).unwrap();
        writer.finish().unwrap();
        joined(&[&read(path), &read(dir.join("a.bin.sums"))])
    };
    let few: Vec<u32> = (0..100).collect();
    let mut all: Vec<Seed> = vec![
        ("shard", "narrow", shard(300, &few)),
        ("shard", "wide", shard(1 << 17, &[0, 65536, u32::MAX])),
        ("shard", "empty", shard(300, &[])),
        ("shard", "two_blocks", shard(300, &[7; 7700])),
    ];
    all.extend(write::texts());
    all.extend(write::lines());
    all
}

fn chars() -> Tokenizer {
    Tokenizer::Chars(CharTokenizer::train([TEXT.as_bytes()]).unwrap())
}

fn of_tokenizers() -> Vec<Seed> {
    let texts = vec![TEXT.repeat(20)];
    let bpe = Tokenizer::Bpe(Box::new(BpeTokenizer::train(texts.into_iter(), 262).unwrap()));
    let own = |tokenizer: &Tokenizer| tokenizer.to_json().unwrap().into_bytes();
    let mut all: Vec<Seed> = vec![
        ("tokenizer", "bytes", joined(&[&own(&Tokenizer::Bytes), TEXT.as_bytes()])),
        ("tokenizer", "chars", joined(&[&own(&chars()), TEXT.as_bytes()])),
        ("tokenizer", "bpe", joined(&[&own(&bpe), TEXT.as_bytes()])),
        ("inspect", "tokenizer", joined(&[b"json", &own(&chars())])),
    ];
    all.extend(write::tokenizers());
    all.push(("template", "chatml", joined(&[CHATML.as_bytes(), write::CONVERSATION.as_bytes()])));
    all
}
