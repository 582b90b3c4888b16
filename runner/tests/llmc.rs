//! Folders of llm.c: every word of them, read as its C code does, and all that is refused.
#![cfg(feature = "hf")]

mod cli_support;

use std::fs;
use std::path::Path;

use cli_support::{run_in, words};
use safetensors::SafeTensors;

const IDS: usize = 257;
const PADDED: usize = 384;
const WIDTH: usize = 16;
const LAYERS: usize = 3;
const BLOCK: usize = 8;

/// A run folder `out` of a model that has learnt a little, with these flags.
fn train(dir: &Path, flags: &str) {
    fs::write(dir.join("t.txt"), "In the beginning was the word.\n".repeat(40)).unwrap();
    let small = format!(
        "train --data t.txt --n-layer {LAYERS} --n-head 2 --n-embd {WIDTH} --block-size {BLOCK} \
         --batch-size 2 --max-steps 5 --sample-tokens 0 --val-fraction 0 --seed 5"
    );
    run_in(dir, &words(&format!("{small} {flags}"))).done();
}

fn export(dir: &Path, flags: &str) -> cli_support::Ran {
    run_in(dir, &words(&format!("export --checkpoint out {flags}")))
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// A tensor of `model.safetensors`, by its name in transformers: values and columns.
fn tensor(file: &SafeTensors<'_>, name: &str) -> (Vec<f32>, usize) {
    let view = file.tensor(&format!("transformer.{name}")).unwrap();
    let values = words_of(view.data()).into_iter().map(f32::from_bits).collect();
    (values, *view.shape().last().unwrap())
}

/// In the order of llm.c's `ParameterTensors`, those of layers.
const OF_LAYERS: [&str; 12] = [
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
];

/// What llm.c reads behind the header, made of what transformers read.
fn expected(file: &SafeTensors<'_>) -> Vec<f32> {
    let mut all = tensor(file, "wte.weight").0;
    all.resize(PADDED * WIDTH, 0.0);
    all.extend(tensor(file, "wpe.weight").0);
    for name in OF_LAYERS {
        for layer in 0..LAYERS {
            let (values, cols) = tensor(file, &format!("h.{layer}.{name}"));
            let rows = values.len() / cols;
            for col in 0..cols {
                all.extend((0..rows).map(|row| values[row * cols + col]));
            }
        }
    }
    all.extend(["ln_f.weight", "ln_f.bias"].into_iter().flat_map(|name| tensor(file, name).0));
    all
}

#[test]
fn every_tensor_is_where_llm_c_looks_for_it() {
    for flags in ["--tokenizer bytes", "--tokenizer bytes --no-bias"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        train(dir, flags);
        export(dir, "--out hf").done();
        export(dir, "--format llmc --out c").done();
        let hf = fs::read(dir.join("hf/model.safetensors")).unwrap();
        let want = expected(&SafeTensors::deserialize(&hf).unwrap());
        let got = words_of(&fs::read(dir.join("c/gpt2_124M.bin")).unwrap());
        let (header, got) = got.split_at(256);
        let sizes = [BLOCK, IDS, LAYERS, 2, WIDTH, PADDED].map(|size| size as u32);
        assert_eq!(header[..2], [20_240_326, 3], "{flags}");
        assert_eq!(header[2..8], sizes, "{flags}");
        assert!(header[8..].iter().all(|word| *word == 0));
        let want: Vec<u32> = want.into_iter().map(f32::to_bits).collect();
        assert!(got == want, "{flags}: the weights differ");

        export(dir, "--format llmc --weights bf16 --out half").done();
        let half = fs::read(dir.join("half/gpt2_124M.bin")).unwrap();
        assert_eq!(words_of(&half[..8]), [20_240_326, 5]);
        let halves = half[1024..].as_chunks::<2>().0;
        let close = |(half, want): (&[u8; 2], &u32)| {
            let wide = f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16);
            (wide - f32::from_bits(*want)).abs() <= f32::from_bits(*want).abs() / 256.0
        };
        assert!(halves.len() == want.len() && halves.iter().zip(&want).all(close), "{flags}");
    }
}

#[test]
fn its_tokenizer_has_the_bytes_of_every_id() {
    for flags in ["bytes", "bpe:270"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        train(dir, &format!("--tokenizer {flags}"));
        export(dir, "--format llmc --out c").done();
        let file = fs::read(dir.join("c/gpt2_tokenizer.bin")).unwrap();
        let header = words_of(&file[..1024]);
        assert_eq!(header[..2], [20_240_328, 2], "{flags}");
        let (mut tokens, mut rest) = (Vec::new(), &file[1024..]);
        while let Some((length, after)) = rest.split_first() {
            assert!(*length > 0, "{flags}: an empty token");
            let (token, after) = after.split_at(usize::from(*length));
            tokens.push(token);
            rest = after;
        }
        let ids = if flags == "bytes" { 257 } else { 270 };
        assert_eq!((tokens.len(), header[2]), (ids, ids as u32), "{flags}");
        assert_eq!(tokens[header[3] as usize], b"<|endoftext|>", "{flags}");
        for byte in 0..=255_u8 {
            assert!(tokens.contains(&&[byte][..]), "{flags}: no token of the byte {byte}");
        }
    }
}

#[test]
fn what_llm_c_does_not_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "--format llmc --out c --weights q8_0").refused(2, &["q8_0", "llmc"]);
    export(dir, "--format llmc --out c --weights f16").refused(2, &["f16", "bf16"]);
    export(dir, "--format llmc --out c").done();
    export(dir, "--format llmc --out c")
        .refused(1, &["gpt2_124M.bin: it is there already", "--out"]);
    for (flags, word) in [
        ("--no-tied", "output projection"),
        ("--d-ff 48", "48"),
        ("--activation relu2", "--activation relu2"),
        ("--logit-softcap 15", "--logit-softcap 15"),
        ("--previous-tokens 2", "--previous-tokens 2"),
    ] {
        fs::remove_dir_all(dir.join("out")).unwrap();
        train(dir, &format!("--tokenizer bytes {flags}"));
        export(dir, "--format llmc --out other").refused(1, &["out", "llm.c", word]);
        assert!(!dir.join("other").exists(), "{flags}");
    }
    // Untied too, but first of all no GPT-2.
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/transformers");
    let llama = goldens.join("llama-untied-bf16");
    fs::remove_dir_all(dir.join("out")).unwrap();
    run_in(dir, &["import", llama.to_str().unwrap(), "--out-dir", "out"]).done();
    export(dir, "--format llmc --out other")
        .refused(1, &["out: its blocks are not made of GPT-2's parts", "llm.c", "safetensors"]);
    assert!(!dir.join("other").exists());
}
