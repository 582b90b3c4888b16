//! The commands from one end to the other, in their smallest form.

mod cli_support;

use cli_support::{Ran, run, run_in, words};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn text(dir: &Path) {
    let verse = "In the beginning God created the heaven and the earth.\n";
    fs::write(dir.join("t.txt"), verse.repeat(40)).unwrap();
}

#[track_caller]
fn events(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn train_resume_generate_and_eval() {
    let dir = tempfile::tempdir().unwrap();
    text(dir.path());
    let small = "train --data t.txt --n_layer 1 --n_head 2 --n_embd 16 --block_size 16 \
                 --batch_size 2 --max_steps 3 --log_format json --sample_tokens 0 --seed 5";
    let args: Vec<&str> = small.split_whitespace().collect();
    let first = events(&run_in(dir.path(), &args));
    assert_eq!(first[0]["event"], "start");
    let last = first.last().unwrap();
    assert_eq!((&last["event"], &last["steps"]), (&json!("done"), &json!(3)));

    // A resumed run needs no flags but those that change.
    let more = run_in(dir.path(), &["train", "--resume", "--max-steps", "5"]);
    let more = events(&more);
    assert_eq!(more[0]["config"]["n_embd"], 16);
    assert_eq!(more.last().unwrap()["steps"], 5);
    // Nor does the command as it was do any harm.
    let again = [&args[..], &["--resume", "--max-steps=6"]].concat();
    let again: Vec<&str> =
        again.into_iter().filter(|arg| *arg != "--max_steps" && *arg != "3").collect();
    assert_eq!(events(&run_in(dir.path(), &again)).last().unwrap()["steps"], 6);
    run_in(dir.path(), &["train", "--resume", "--n-embd", "32"]).refused(2, &["--n-embd"]);
    let nothing_left = run_in(dir.path(), &["train", "--resume", "--log-format", "text"]).stdout;
    assert!(nothing_left.contains("no step was left to do; --max-steps above 6"), "{nothing_left}");
    assert!(!nothing_left.contains("cllm-worker"), "{nothing_left}");

    let generate =
        ["generate", "--checkpoint", "out", "--tokens", "5", "--greedy", "--log-format", "json"];
    let spoken = run_in(dir.path(), &generate).json();
    assert!(spoken["text"].is_string(), "{spoken}");
    let eval = ["eval", "--checkpoint", "out", "--data", "t.txt", "--log-format", "json"];
    let loss = run_in(dir.path(), &eval).json()["val_loss"].as_f64().unwrap();
    assert!((1.0..6.0).contains(&loss), "{loss}");
}

#[test]
fn a_model_of_the_llama_family_is_trained_run_and_inspected() {
    let dir = tempfile::tempdir().unwrap();
    text(dir.path());
    let small = "train --data t.txt --n-layer 1 --n-head 4 --num-key-value-heads 2 --n-embd 16 \
                 --norm rms --positions rotary --activation swiglu --no-bias --block-size 16 \
                 --batch-size 2 --max-steps 3 --log-format json --sample-tokens 0 --threads 2";
    let args: Vec<&str> = small.split_whitespace().collect();
    let parts = events(&run_in(dir.path(), &args))[0]["model"]["parts"].clone();
    assert_eq!((&parts["norm"], &parts["n_kv_head"]), (&json!("rms"), &json!(2)), "{parts}");
    let generate = "generate --checkpoint out --tokens 30 --greedy --log-format json";
    let generate: Vec<&str> = generate.split_whitespace().collect();
    let spoken = run_in(dir.path(), &generate).json();
    assert!(spoken["tokens"].as_u64() >= Some(1), "{spoken}");
    let eval = ["eval", "--checkpoint", "out", "--data", "t.txt", "--log-format", "json"];
    let loss = run_in(dir.path(), &eval).json()["val_loss"].as_f64().unwrap();
    assert!((1.0..6.0).contains(&loss), "{loss}");
    let shown = run_in(dir.path(), &["inspect", "out/step-3.cllm", "--json"]).json();
    assert_eq!(shown["model"]["parts"], parts, "{shown}");
    run_in(dir.path(), &["train", "--n-kv-head", "3"]).refused(2, &["--n-kv-head 3", "--n-head"]);
}

#[test]
fn a_quiet_run_prints_nothing_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    text(dir.path());
    let small = "train --data t.txt --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 \
                 --batch-size 2 --max-steps 4 --log-interval 1 --threads 1";
    let metrics = |out: &str| {
        let lines = fs::read_to_string(dir.path().join(out).join("metrics.jsonl")).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| (line["event"].clone(), line["loss"].clone())).collect::<Vec<_>>()
    };
    for (out, flags) in [("loud", ""), ("still", "--quiet"), ("json", "--quiet --log-format json")]
    {
        let ran = run_in(dir.path(), &words(&format!("{small} --out-dir {out} {flags}")));
        assert_eq!((ran.code, ran.stdout.is_empty()), (0, out != "loud"), "{}", ran.stderr);
        assert_eq!(ran.stderr, "", "{out}");
    }
    assert_eq!(metrics("loud"), metrics("still"));
    assert_eq!(metrics("loud"), metrics("json"));
    // It is not remembered, and a session that goes on is quiet too if asked to.
    let resume = |flags: &str| {
        run_in(dir.path(), &words(&format!("train --resume --out-dir still --threads 1 {flags}")))
    };
    let quiet = resume("--max-steps 5 --quiet");
    assert_eq!((quiet.code, &*quiet.stdout, &*quiet.stderr), (0, "", ""));
    let loud = resume("--max-steps 6");
    assert!(
        loud.stdout.contains("done: 6 steps") && loud.stderr.contains("going on"),
        "{}",
        loud.stdout
    );
}

#[cfg(feature = "report")]
#[test]
fn each_session_has_a_file_for_tensorboard() {
    let dir = tempfile::tempdir().unwrap();
    text(dir.path());
    let files = || fs::read_dir(dir.path().join("out/tensorboard")).map_or(0, Iterator::count);
    let small = "train --data t.txt --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 \
                 --batch-size 2 --max-steps 2 --sample-tokens 0";
    run_in(dir.path(), &words(small)).done();
    assert_eq!(files(), 0);
    run_in(dir.path(), &words("train --resume --max-steps 3 --tensorboard")).done();
    assert_eq!(files(), 1);
    // It is a setting of the run.
    run_in(dir.path(), &words("train --resume --max-steps 4")).done();
    assert_eq!(files(), 2);
    run_in(dir.path(), &words("train --resume --max-steps 5 --tensorboard false")).done();
    assert_eq!(files(), 2);
    // What cannot be is refused before anything of the run is changed.
    let metrics = || fs::read(dir.path().join("out/metrics.jsonl")).unwrap();
    let before = metrics();
    fs::remove_dir_all(dir.path().join("out/tensorboard")).unwrap();
    fs::write(dir.path().join("out/tensorboard"), "a file").unwrap();
    run_in(dir.path(), &words("train --resume --max-steps 6 --tensorboard --quiet"))
        .refused(1, &["out/tensorboard"]);
    assert!(metrics() == before);
}

#[test]
fn tokenize_writes_shards_and_trains_tokenizers() {
    let dir = tempfile::tempdir().unwrap();
    text(dir.path());
    let tokenize = |args: &[&str]| {
        run_in(dir.path(), &[&["tokenize", "--data", "t.txt", "--out"], args].concat())
    };
    let bytes = tokenize(&["bytes", "--tokenizer", "bytes", "--val-fraction", "0.25"]);
    assert_eq!(bytes.code, 0, "{}", bytes.stderr);
    // 40 verses of 55 bytes and the end of text that begins the document: 2,201 tokens.
    assert!(
        bytes.stdout.contains("1651 tokens to train on, 550 to validate on"),
        "{}",
        bytes.stdout
    );
    let shard = fs::metadata(dir.path().join("bytes/train_000000.bin")).unwrap();
    assert_eq!(shard.len(), 1024 + 2 * 1651);

    let bpe = tokenize(&["bpe", "--train", "bpe", "--vocab-size", "270"]);
    assert_eq!(bpe.code, 0, "{}", bpe.stderr);
    assert!(bpe.stdout.contains("bpe tokenizer of 270 ids"), "{}", bpe.stdout);
    let only = tokenize(&["only", "--tokenizer", "bpe:270", "--tokenizer-only"]);
    assert_eq!(only.code, 0, "{}", only.stderr);
    let read = |path: &str| fs::read(dir.path().join(path)).unwrap();
    assert_eq!(read("bpe/tokenizer.json"), read("only/tokenizer.json"));
    assert!(!dir.path().join("only/train_000000.bin").exists());
    let again = tokenize(&["again", "--tokenizer", "bpe/tokenizer.json"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(read("bpe/train_000000.bin"), read("again/train_000000.bin"));

    for (args, code, part) in [
        (&["x", "--train", "bpe"][..], 2, "--vocab-size"),
        (&["x", "--train", "bpe", "--vocab-size", "9"], 2, "--vocab-size 9"),
        (&["x", "--train", "chars", "--vocab-size", "9"], 2, "--vocab-size 9"),
        (&["x", "--train", "words"], 2, "--train words"),
        (&["x", "--tokenizer", "bytes", "--vocab-size", "9"], 2, "--train"),
        (&["x"], 2, "--tokenizer"),
        (&["x", "--tokenizer", "bytes", "--val-fraction", "1"], 2, "--val-fraction"),
        (&["x", "--tokenizer", "bytes", "--shard-tokens", "0"], 2, "--shard-tokens"),
        (&["x", "--tokenizer", "gone.json"], 1, "gone.json"),
        (&["x", "--tokenizer", "bytes", "--val-data", "gone.txt"], 1, "gone.txt"),
        (&["x", "--tokenizer", "bytes", "--val-data", "bytes"], 2, "--val-data"),
    ] {
        tokenize(args).refused(code, &[part]);
    }
    assert!(!dir.path().join("x").exists());
}

#[test]
fn bench_measures_what_it_is_asked_for() {
    let report = run(&["bench", "--only", "attention", "--seconds", "0.001", "--json"]).json();
    let peak = report["machine"]["peak_gflops"].as_f64().unwrap();
    assert!(peak > 0.1);
    let kernels = report["kernels"].as_array().unwrap();
    assert!(kernels.len() >= 2);
    for kernel in kernels {
        assert!(kernel["kernel"].as_str().unwrap().contains("attention"), "{kernel}");
        let share = kernel["gflops"].as_f64().unwrap() / peak;
        assert!((kernel["share_of_peak"].as_f64().unwrap() - share).abs() < 1e-9);
    }
    let text = run(&["bench", "--only", "scale", "--seconds", "0.001", "--isa", "all"]).stdout;
    assert!(text.contains("\nscalar\n") && text.contains("scale/memory"), "{text}");
}

#[test]
fn bench_kernels_is_bench_and_bench_engine_holds_costs_against_targets() {
    let few = ["--only", "gelu", "--seconds", "0.001", "--json"];
    let names = |args: &[&str]| -> Vec<Value> {
        let report = run(&[args, &few[..]].concat()).json();
        report["kernels"].as_array().unwrap().iter().map(|k| k["kernel"].clone()).collect()
    };
    assert_eq!(names(&["bench"]), names(&["bench", "kernels"]));

    let report = run(&["bench", "engine", "--seconds", "0.001", "--json"]).json();
    let costs = report["costs"].as_array().unwrap();
    let find = |name: &str| costs.iter().find(|cost| cost["case"] == name).unwrap();
    let ring = find("ring/push and pop");
    assert_eq!(ring["target_ns"], 15.0);
    assert_eq!(ring["ok"].as_bool(), ring["median_ns"].as_f64().map(|ns| ns <= 15.0));
    let step = find("step/empty, 1 worker");
    let each = step["median_ns"].as_f64().unwrap() / step["tiles"].as_f64().unwrap();
    assert!((step["ns_per_tile"].as_f64().unwrap() - each).abs() < 1e-6);
    let text = run(&["bench", "engine", "--seconds", "0.001"]).stdout;
    assert!(text.contains("tile/stolen") && text.contains("at most  15.0 ns: "), "{text}");
}

#[test]
fn doctor_says_what_there_is_and_what_is_chosen() {
    let report = run(&["doctor", "--json"]).json();
    let sets = report["sets"].as_array().unwrap();
    assert_eq!(sets[0], json!({ "name": "scalar", "usable": true, "bf16": false }));
    let best = sets.iter().rfind(|set| set["usable"] == true).unwrap();
    assert_eq!(report["isa"], best["name"]);
    assert!(report["cpus"]["workers"].as_u64().unwrap() >= 1);
    let text = run(&["doctor"]).stdout;
    for name in ["CPU", "kernels", "caches", "threads", "memory", "huge pages"] {
        assert!(text.contains(&format!("\n{name} ")), "{text}");
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    for (shell, flag) in [
        ("bash", "--max-steps"),
        ("zsh", "--max-steps"),
        ("fish", "max-steps"),
        ("elvish", "--max-steps"),
    ] {
        let script = run(&["completions", shell]);
        assert_eq!(script.code, 0, "{}", script.stderr);
        for name in ["train", "generate", "doctor", flag] {
            assert!(script.stdout.contains(name), "{shell}: {name}");
        }
    }
    run(&["completions", "tcsh"]).refused(2, &["tcsh", "bash"]);

    let dir = tempfile::tempdir().unwrap();
    let out = run_in(dir.path(), &["man", "--out", "pages"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let page = |name: &str| fs::read_to_string(dir.path().join("pages").join(name)).unwrap();
    assert!(page("cllm.1").contains("train"), "the program's page lists the commands");
    assert!(page("cllm-data-reference.1").contains("reference"));
    let train = page("cllm-train.1");
    assert!(train.contains("max\\-steps") && train.contains("cllm train"), "{train}");
}
