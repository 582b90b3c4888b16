//! Bad input gets one line that names what is wrong, and the right exit status.

mod cli_support;

use cli_support::{Ran, command, run, run_in};
use std::fs;
use std::path::Path;
use std::time::Instant;

#[test]
fn wrong_flags_are_usage_errors() {
    for (args, parts) in [
        (&["train", "--bacth-size", "1"][..], &["unknown flag --bacth-size", "--batch-size?"][..]),
        (&["train", "--bacth_size=1"], &["--bacth-size", "--batch-size?"]),
        (&["trian"], &["unknown command trian", "train?"]),
        (&["train", "surplus"], &["unexpected argument surplus"]),
        (&["train", "--batch-size"], &["--batch-size needs a value"]),
        (&["train", "--batch-size", "x"], &["--batch-size x: expected a whole number"]),
        (&["train", "--batch-size", "-3"], &["--batch-size -3: expected a whole number"]),
        (&["train", "--seed", "1", "--seed", "2"], &["--seed"]),
        (
            &["train", "--preset", "huge"],
            &["--preset huge: expected tiny, fast, reference, gpt2 or smollm2"],
        ),
        (&["train", "--tokenizer", "byte"], &["--tokenizer byte: expected bytes, chars, bpe:N"]),
        (&["train", "--log-format", "xml"], &["--log-format xml: expected text or json"]),
        (&["train", "--lr-schedule", "x"], &["--lr-schedule x: expected constant, linear"]),
        (
            &["train", "--isa", "sse9"],
            &["--isa sse9: expected scalar, neon, avx, avx2, avx512 or amx"],
        ),
        (&["train", "--dtype", "f16"], &["--dtype f16: expected f32 or bf16"]),
        (&["generate", "--checkpoint", "x", "--dtype", "fp8"], &["expected f32 or bf16"]),
        (&["train", "--threads", "0"], &["--threads 0: expected auto or a number from 1"]),
        (&["train", "--learning-rate", "nan"], &["--learning-rate nan: expected a number"]),
        (&["generate"], &["--checkpoint", "is missing"]),
        (&["generate", "--checkpoint", "x", "--top-p", "2"], &["--top-p"]),
        (&["generate", "--checkpoint", "x", "--temperature", "-1"], &["--temperature"]),
        (&["generate", "--checkpoint", "x", "--samples", "0"], &["--samples 0"]),
        (&["generate", "--checkpoint", "x", "--top-k", "-1"], &["--top-k -1: expected a whole"]),
        (&["bench", "engine", "--seconds", "-1"], &["--seconds -1: "]),
        (&["eval", "--checkpoint", "x", "--batch-size", "0"], &["--batch-size 0"]),
        (
            &["bench", "--isa", "sse9"],
            &["--isa sse9: expected all, scalar, neon, avx, avx2, avx512 or amx"],
        ),
        (&["bench", "--seconds", "0"], &["--seconds 0: it must be above 0"]),
        (&["bench", "engine", "--seconds", "0"], &["--seconds 0: it must be above 0"]),
        (&["bench", "engine", "--isa", "avx"], &["unknown flag --isa"]),
        (&["bench", "--only", "xyzzy", "--seconds", "1e-9"], &["--only xyzzy: no kernel"]),
        (&["data", "refrence", "--out", "x"], &["refrence", "reference?"]),
    ] {
        run(args).refused(2, parts);
    }
}

#[test]
fn sizes_and_rates_that_make_no_sense_are_usage_errors() {
    for (flag, value) in [
        ("--n-layer", "0"),
        ("--n-head", "0"),
        ("--n-embd", "0"),
        ("--d-ff", "0"),
        ("--block-size", "0"),
        ("--batch-size", "0"),
        ("--gradient-accumulation-steps", "0"),
        ("--max-steps", "0"),
        ("--vocab-size", "0"),
        ("--eval-interval", "0"),
        ("--n-layer", "99999999"),
        ("--n-embd", "18446744073709551615"),
        ("--n-embd", "268435456"),
        ("--batch-size", "268435456"),
        ("--n-head", "7"),
        ("--dropout", "1"),
        ("--dropout", "-0.1"),
        ("--val-fraction", "1"),
        ("--learning-rate", "-1"),
        ("--min-lr", "1"),
        ("--beta2", "1"),
        ("--momentum", "0.9"),
        ("--adam-eps", "0"),
        ("--grad-clip", "-1"),
        ("--weight-decay", "-1"),
        ("--tokenizer", "bpe:100"),
        ("--text-field", ""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let written = if value.is_empty() { "''" } else { value };
        for command in ["plan", "train"] {
            let ran = run_in(dir.path(), &[command, flag, value]);
            ran.refused(2, &[&format!("{flag} {written}: ")]);
        }
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "{flag} left something");
    }
}

#[test]
fn sizes_beyond_the_address_space_or_the_memory_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let overflow = ["--n-embd", "67108864", "--n-layer", "10000"];
    for command in ["plan", "train"] {
        run_in(dir.path(), &[&[command][..], &overflow].concat()).refused(2, &["--n-embd"]);
    }
    let large = ["--n-embd", "65536", "--n-layer", "100"];
    let train = run_in(dir.path(), &[&["train"][..], &large].concat());
    train.refused(1, &["memory", "TiB", "available", "--batch-size"]);
    let plan = run_in(dir.path(), &[&["plan", "--no-estimate"][..], &large].concat());
    assert!(plan.code == 0 && plan.stdout.contains("DOES NOT FIT"), "{}", plan.stdout);
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
}

/// A training run of almost nothing.
fn train(dir: &Path, args: &[&str]) -> Ran {
    let small = [
        "train",
        "--n-layer",
        "1",
        "--n-head",
        "1",
        "--n-embd",
        "8",
        "--block-size",
        "8",
        "--batch-size",
        "1",
        "--max-steps",
        "1",
        "--sample-tokens",
        "0",
    ];
    run_in(dir, &[&small[..], args].concat())
}

#[test]
fn data_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    write("empty.txt", b"");
    write("short.txt", b"abc");
    write("latin1.txt", &[b'a'; 500].map(|b| if b == b'a' { 0xe9 } else { b }));
    write("bad.jsonl", b"{\"text\":\"one\"}\n{\"txt\":\"two\"}\n");
    fs::create_dir(dir.path().join("nothing")).unwrap();
    for (args, parts) in [
        (&["--data", "missing.txt"][..], &["missing.txt"][..]),
        (&["--data", "empty.txt"], &["empty.txt"]),
        (&["--data", "nothing"], &["nothing"]),
        (&["--data", "short.txt"], &["tokens", "block"]),
        (&["--data", "latin1.txt", "--tokenizer", "chars"], &["latin1.txt", "byte 0", "UTF-8"]),
        (&["--data", "bad.jsonl"], &["bad.jsonl:2", "text"]),
        (&["--tokenizer", "missing.json"], &["missing.json"]),
    ] {
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("run");
        let args = [args, &["--out-dir", out.to_str().unwrap()]].concat();
        train(dir.path(), &args).refused(1, parts);
        // Nothing that says that a run has begun; what an earlier one was told is left as it was.
        let settings = out.join("settings.json");
        assert!(!settings.exists(), "{parts:?}");
        fs::create_dir_all(&out).unwrap();
        fs::write(&settings, "of another").unwrap();
        train(dir.path(), &args).refused(1, parts);
        assert_eq!(fs::read_to_string(&settings).unwrap(), "of another", "{parts:?}");
    }
}

#[test]
fn folders_that_cannot_be_written_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "in the way").unwrap();
    train(dir.path(), &["--out-dir", "file"]).refused(1, &["file"]);
    train(dir.path(), &["--out-dir", "file/below"]).refused(1, &["file/below"]);
    fs::write(dir.path().join("text.txt"), "some text").unwrap();
    let tokenize =
        ["tokenize", "--data", "text.txt", "--tokenizer", "bytes", "--out", "file/below"];
    run_in(dir.path(), &tokenize).refused(1, &["file/below"]);
    run_in(dir.path(), &["data", "reference", "--out", "file/below"]).refused(1, &["file/below"]);
}

#[test]
fn checkpoints_that_are_none_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("foreign.ckpt"), "this is no checkpoint").unwrap();
    for path in ["missing", "foreign.ckpt"] {
        let generate = run_in(dir.path(), &["generate", "--checkpoint", path]);
        generate.refused(1, &[path]);
        run_in(dir.path(), &["eval", "--checkpoint", path]).refused(1, &[path]);
    }
    let resume = run_in(dir.path(), &["train", "--resume", "--out-dir", "missing"]);
    resume.refused(1, &["--resume", "missing"]);
}

#[test]
fn a_closed_standard_output_ends_the_program_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut plan = command(Path::new("."));
    let output =
        plan.args(["plan", "--no-estimate", "--dtype", "f32"]).stdout(writer).output().unwrap();
    // As shells have it for SIGPIPE.
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut plan = command(Path::new("."));
    let output =
        plan.args(["plan", "--no-estimate", "--dtype", "f32"]).stdout(full).output().unwrap();
    Ran::from(output).refused(1, &["standard output", "No space left"]);
}

#[test]
fn a_refused_trace_leaves_what_an_earlier_run_reported() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    fs::write(&text, "a line of text\n".repeat(200)).unwrap();
    let out = dir.path().join("run");
    fs::create_dir(&out).unwrap();
    let earlier = [("metrics.jsonl", "{\"event\":\"start\"}\n"), ("settings.json", "of another")];
    for (name, text) in earlier {
        fs::write(out.join(name), text).unwrap();
    }
    let trace = dir.path().join("none/trace.json");
    let paths = [&text, &out, &trace].map(|path| path.to_str().unwrap());
    let args = ["--data", paths[0], "--out-dir", paths[1], "--trace", paths[2]];
    train(dir.path(), &args).refused(1, &["--trace", "trace.json"]);
    for (name, text) in earlier {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), text, "{name}");
    }
}
