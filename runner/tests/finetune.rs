//! Runs on examples: what counts, the same bits from any step, and what is refused.

mod cli_support;
mod hand;
mod support;

use std::fs;
use std::io::Write;
use std::path::Path;

use cli_support::{run_in, words};
use cllm::eval::{EvalSettings, measure};
use cllm::settings::{LossOn, Threads, TokenizerChoice, TrainSettings};
use cllm::train::stop::Stop;
use cllm::train::{Outcome, train_until};
use cllm_core::Dtype;
use hand::Model;
use serde_json::{Value, json};
use support::{course, events, settings, sha, train};

/// What is asked and what is to be answered: numbers and their names, which repeat.
fn pairs(count: usize) -> Vec<(String, String)> {
    const NAMES: [&str; 7] = ["one", "two", "three", "four", "five", "six", "seven"];
    (0..count)
        .map(|i| (format!("{}:", i % 7 + 1), format!(" {}{}", NAMES[i % 7], ".".repeat(i % 3))))
        .collect()
}

fn write_pairs(path: &Path, count: usize) {
    let line = |(prompt, completion)| {
        format!("{}\n", json!({ "prompt": prompt, "completion": completion }))
    };
    fs::write(path, pairs(count).into_iter().map(line).collect::<String>()).unwrap();
}

/// A finished run to start from, and a run from it on pairs of its own, in `dir`.
fn tuned(dir: &Path) -> TrainSettings {
    let base = TrainSettings { out_dir: dir.join("base"), ..settings(dir) };
    if !base.out_dir.exists() {
        assert_eq!(train(&base), Ok(Outcome::Finished));
        write_pairs(&dir.join("pairs.jsonl"), 60);
    }
    TrainSettings {
        base: Some(base.out_dir.clone()),
        tokenizer: TokenizerChoice::File(base.out_dir.join("tokenizer.json")),
        data: vec![dir.join("pairs.jsonl").to_str().unwrap().to_owned()],
        loss_on: Some(LossOn::Completions),
        eval_batches: 0,
        out_dir: dir.join("tuned"),
        ..base
    }
}

/// Trains until a step is reported, then stops in an orderly way.
fn train_to(settings: &TrainSettings, step: u64) -> cllm::Result<Outcome> {
    struct StopAt(String, Stop);
    impl Write for StopAt {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if String::from_utf8_lossy(bytes).contains(&self.0) {
                self.1.request();
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let stop = Stop::new();
    let mut out = StopAt(format!("\"event\":\"step\",\"step\":{step},"), stop.clone());
    train_until(settings, &stop, &mut out)
}

fn eval(checkpoint: &Path) -> EvalSettings {
    EvalSettings {
        checkpoint: checkpoint.to_path_buf(),
        data: Vec::new(),
        loss_on: None,
        text_field: "text".to_owned(),
        tokenizer: None,
        block_size: None,
        batch_size: 2,
        batches: 0,
        threads: Threads::Count(1),
        tuning: cllm::settings::TuningChoice::Off,
        isa: None,
        dtype: Dtype::F32,
        log_format: cllm::settings::LogFormat::Json,
    }
}

/// Sum and number of what counts of a pair, each computed alone.
fn by_hand(model: &mut Model, (prompt, completion): &(String, String)) -> (f64, usize) {
    let mut ids: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let first = ids.len();
    ids.extend(completion.bytes().map(u32::from));
    ids.push(256);
    (model.loss(&ids, first), ids.len() - first)
}

#[test]
fn a_model_learns_what_to_answer() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings {
        max_steps: 300,
        eval_interval: 100,
        learning_rate: 1e-2,
        dropout: 0.0,
        ..tuned(dir.path())
    };
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    let before = EvalSettings {
        data: settings.data.clone(),
        loss_on: settings.loss_on,
        ..eval(&dir.path().join("base"))
    };
    let before = measure(&before).unwrap().val_loss;
    let after = events(&settings, "done")[0]["val_loss"].as_f64().unwrap();
    // How many dots follow cannot be known: of about six tokens that one is a draw from three.
    assert!(before > 2.0 && after < 0.3, "{before} {after}");
    let start = &events(&settings, "start")[0];
    // Tokens, targets and starts of documents, in batches made ready and in one to validate with.
    let ids = settings.batch_size * settings.block_size * 3;
    let batch = &start["planned_bytes"]["batch"];
    assert_eq!(*batch, json!((settings.prefetch + 1) * ids * 4));
    let read = &start["examples"];
    assert_eq!((&read["train"], &read["val"]), (&json!(54), &json!(6)), "{read}");
    assert_eq!((&read["cut"], &read["dropped"]), (&json!(0), &json!(0)));
    assert!(read["padding"].as_f64().unwrap() < 0.3, "{read}");
    // Padding is none of the tokens, and each epoch has all of the others.
    let rows = read["rows_per_epoch"].as_u64().unwrap();
    let (all, done) = (start["train_tokens"].as_u64().unwrap(), &events(&settings, "done")[0]);
    let epochs = 300.0 * 8.0 / rows as f64;
    let tokens = done["tokens"].as_u64().unwrap() as f64;
    assert!((tokens / all as f64 - epochs).abs() < 0.1 * epochs, "{tokens} of {all} {epochs}");
    // It says them too.
    let generate = "generate --checkpoint tuned --greedy --tokens 9 --log-format json --prompt 3:";
    let spoken = run_in(dir.path(), &words(generate)).json();
    assert!(spoken["text"].as_str().unwrap().starts_with("3: three"), "{spoken}");
}

#[test]
fn the_loss_is_that_of_the_completions_each_alone() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing is learned, and a step has all of an epoch.
    let still = TrainSettings {
        learning_rate: 0.0,
        dropout: 0.0,
        max_steps: 1,
        val_fraction: 0.2,
        ..tuned(dir.path())
    };
    assert_eq!(train(&still), Ok(Outcome::Finished));
    let rows = events(&still, "start")[0]["examples"]["rows_per_epoch"].as_u64().unwrap();
    let whole = TrainSettings {
        batch_size: 1,
        gradient_accumulation_steps: rows as usize,
        out_dir: dir.path().join("whole"),
        ..still.clone()
    };
    assert_eq!(train(&whole), Ok(Outcome::Finished));
    let mut model = Model::open(&whole.out_dir.join("best.cllm"));
    let (mut train_loss, mut val_loss) = ((0.0, 0), (0.0, 0));
    for (i, pair) in pairs(60).iter().enumerate() {
        let sums = if i % 5 == 4 { &mut val_loss } else { &mut train_loss };
        let (sum, counted) = by_hand(&mut model, pair);
        *sums = (sums.0 + sum, sums.1 + counted);
    }
    let mean = |(sum, counted): (f64, usize)| sum / counted as f64;
    let close = |what: &Value, expected: f64| {
        let what = what.as_f64().unwrap();
        assert!((what - expected).abs() < 1e-4 * expected, "{what} {expected}");
    };
    close(&events(&whole, "step")[0]["loss"], mean(train_loss));
    close(&events(&whole, "eval")[0]["val_loss"], mean(val_loss));
    let start = &events(&whole, "start")[0]["examples"];
    assert_eq!(start["counted_tokens"], train_loss.1, "{start}");
    // So does the evaluation of the run, and of a file.
    let report = measure(&eval(&whole.out_dir)).unwrap();
    close(&json!(report.val_loss), mean(val_loss));
    assert_eq!(report.tokens, val_loss.1);
    let [low, high] = report.val_loss_interval.unwrap();
    assert!(low < report.val_loss && report.val_loss < high, "{low} {high}");
    let file = EvalSettings {
        data: whole.data.clone(),
        loss_on: Some(LossOn::Completions),
        ..eval(&whole.out_dir)
    };
    let all = (train_loss.0 + val_loss.0, train_loss.1 + val_loss.1);
    close(&json!(measure(&file).unwrap().val_loss), mean(all));
    // The end stands for no byte.
    let bytes = (all.1 - 60) as f64;
    let bits = measure(&file).unwrap().bits_per_byte.unwrap();
    close(&json!(bits), all.0 / core::f64::consts::LN_2 / bytes);
}

#[test]
fn from_any_step_and_with_any_prefetch_the_bits_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let whole = tuned(dir.path());
    assert_eq!(train(&whole), Ok(Outcome::Finished));
    let expected = sha(&whole);
    for (prefetch, step) in [(1, 1), (2, 3), (4, 7), (64, 11)] {
        let out_dir = dir.path().join(format!("at-{step}"));
        let part = TrainSettings { prefetch, out_dir, ..whole.clone() };
        assert_eq!(train_to(&part, step), Ok(Outcome::Interrupted));
        // The model it came from may be gone by then.
        let resumed = TrainSettings { resume: true, ..part.clone() };
        assert_eq!(train(&resumed), Ok(Outcome::Finished));
        assert_eq!(sha(&part), expected, "prefetch {prefetch}, step {step}");
        assert_eq!(course(&part), course(&whole));
    }
    let seed = TrainSettings { seed: 8, out_dir: dir.path().join("seed"), ..whole.clone() };
    assert_eq!(train(&seed), Ok(Outcome::Finished));
    assert_ne!(sha(&seed), expected);
}

#[test]
fn a_run_goes_on_with_its_own_examples_only_and_without_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let run = TrainSettings { epochs: Some(2.5), ..tuned(dir.path()) };
    assert_eq!(train_to(&run, 3), Ok(Outcome::Interrupted));
    fs::rename(dir.path().join("base"), dir.path().join("moved")).unwrap();
    let resumed = TrainSettings { resume: true, ..run.clone() };
    // As many tokens, and others.
    let file = dir.path().join("pairs.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("two", "tow", 1)).unwrap();
    let error = train(&resumed).unwrap_err().to_string();
    assert!(error.contains("other data than --data") && error.contains("step-3.cllm"), "{error}");
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    assert!(train(&resumed).is_err());
    // The same ones in another place.
    fs::remove_file(&file).unwrap();
    let moved = dir.path().join("moved.jsonl");
    fs::write(&moved, &text).unwrap();
    let resumed = TrainSettings { data: vec![moved.to_str().unwrap().to_owned()], ..resumed };
    assert_eq!(train(&resumed), Ok(Outcome::Finished));
    let rows = events(&run, "start")[0]["examples"]["rows_per_epoch"].as_u64().unwrap();
    let steps = events(&run, "done")[0]["steps"].as_u64().unwrap();
    // Epochs differ by a row or so.
    assert!(steps.abs_diff((5 * rows / 2).div_ceil(8)) <= 1, "{steps} steps, {rows} rows");
    let other = TrainSettings { loss_on: Some(LossOn::All), ..resumed };
    let error = train(&other).unwrap_err().to_string();
    assert!(error.starts_with("--loss-on: the run"), "{error}");
}

#[test]
fn the_command_has_its_own_settings_and_refuses_what_makes_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    tuned(dir.path());
    let run = |args: &str| run_in(dir.path(), &words(args));
    run("finetune --data pairs.jsonl").refused(2, &["--base <PATH> is missing"]);
    run("finetune --base base").refused(2, &["--data <PATH> is missing"]);
    run("finetune --base base --data pairs.jsonl --preset tiny").refused(2, &["--preset tiny"]);
    run("finetune --base base --data pairs.jsonl --n-layer 3")
        .refused(2, &["--n-layer: with --base"]);
    run("finetune --base base --data pairs.jsonl --epochs 1 --max-steps 3")
        .refused(2, &["--epochs and --max-steps"]);
    run("train --data pairs.jsonl --loss-on all").refused(2, &["--loss-on: ", "give --base"]);
    run("plan --epochs 3").refused(2, &["--epochs 3: ", "--max-steps"]);
    fs::write(dir.path().join("bad.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n{}\n")
        .unwrap();
    run("finetune --base base --data bad.jsonl --out-dir bad")
        .refused(1, &["bad.jsonl:2: no field"]);
    run("finetune --base base --data text.txt --out-dir bad")
        .refused(1, &["text.txt:1: not a line of JSON"]);
    let tuned = "finetune --base base --data pairs.jsonl --epochs 1 --out-dir tuned --lr 1e-3";
    let first = run(tuned).done();
    for part in
        ["57 examples of", "3 examples to validate on", "rows of 16 tokens", "% of them padding"]
    {
        assert!(first.stdout.contains(part), "no {part:?} in {}", first.stdout);
    }
    let stored = fs::read_to_string(dir.path().join("tuned/settings.json")).unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!((&stored["loss_on"], &stored["epochs"]), (&json!("completions"), &json!(1.0)));
    let steps = stored["max_steps"].as_u64().unwrap();
    // Longer examples are told of.
    let cut =
        run("finetune --base base --data pairs.jsonl --block-size 7 --max-steps 1 --out-dir cut");
    assert!(cut.done().stderr.contains("of 60 examples cut at block size 7"));
    run("train --resume --out-dir base --max-steps 12").done();
    run("finetune --resume --out-dir base").refused(2, &["not one of `cllm finetune`"]);
    let more = run("finetune --resume --epochs 2 --out-dir tuned --quiet --log-format json").done();
    assert_eq!(more.stdout, "");
    let done = fs::read_to_string(dir.path().join("tuned/metrics.jsonl")).unwrap();
    let done: Value = serde_json::from_str(done.lines().last().unwrap()).unwrap();
    assert_eq!(done["event"], "done");
    assert!(done["steps"].as_u64().unwrap().abs_diff(2 * steps) <= 1, "{done}");
    run("eval --checkpoint tuned").done();
    let help = run("finetune --help").done().stdout;
    assert!(help.contains("--loss-on") && !help.contains("--n-layer"), "{help}");
}

#[cfg(feature = "chat")]
#[test]
fn conversations_go_by_the_models_own_template() {
    let dir = tempfile::tempdir().unwrap();
    tuned(dir.path());
    let talk = |i: usize| {
        let messages = json!([
            { "role": "user", "content": format!("{}", i % 7) },
            { "role": "assistant", "content": format!("{}", i % 7 + 1) },
            { "role": "user", "content": "x" },
        ]);
        format!("{}\n", json!({ "messages": messages }))
    };
    fs::write(dir.path().join("talks.jsonl"), (0..30).map(talk).collect::<String>()).unwrap();
    let run = |args: &str| run_in(dir.path(), &words(args));
    let tune =
        "finetune --base base --data talks.jsonl --out-dir talks --max-steps 3 --log-format json";
    run(tune)
        .refused(1, &["talks.jsonl:1: messages want a chat template", "prompt and completion"]);
    let template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }};{% endfor %}{% if \
        add_generation_prompt %}a{% endif %}";
    let config = json!({ "chat_template": template }).to_string();
    fs::write(dir.path().join("base/tokenizer_config.json"), config).unwrap();
    let ran = run(tune).done();
    let start: Value = serde_json::from_str(ran.stdout.lines().next().unwrap()).unwrap();
    let (read, train) = (&start["examples"], start["examples"]["train"].as_u64().unwrap());
    // Of `u3;a4;` what comes behind the a.
    assert_eq!(read["counted_tokens"].as_u64().unwrap(), 2 * train, "{read}");
    assert_eq!(start["train_tokens"].as_u64().unwrap(), 5 * train, "{start}");
    fs::remove_dir_all(dir.path().join("base")).unwrap();
    run("finetune --resume --max-steps 4 --out-dir talks --quiet").done();
    run("eval --checkpoint talks --data talks.jsonl --loss-on all").done();
}

#[cfg(feature = "chat")]
#[test]
fn lines_of_other_programs_are_learnt_or_told_what_to_become() {
    let dir = tempfile::tempdir().unwrap();
    tuned(dir.path());
    let template = "{% for t in tools or [] %}{{ t.name }};{% endfor %}{% for m in messages %}{{ m.role[0] }}\
        {% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments.n }}{% else %}\
        {{ m.content }}{% endfor %};{% endfor %}{% if add_generation_prompt %}a{% endif %}";
    let config = json!({ "chat_template": template }).to_string();
    fs::write(dir.path().join("base/tokenizer_config.json"), config).unwrap();
    let user = json!({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]});
    let call = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"n\": 3}"}}]});
    let out = json!({"role": "tool", "tool_call_id": "1", "content": "7"});
    let reply = json!({"role": "assistant", "content": "z"});
    // Tokens that count, and all that are read or predicted, of `g;uxy;af3;t7;az;` and parts of it.
    let lines = [
        (json!({"prompt": [user], "completion": [reply]}), 2, 6),
        (json!({"prompt": [user, call, out], "completion": [reply]}), 2, 13),
        (json!({"messages": [user, call, out, reply], "tools": [{"name": "g"}]}), 3 + 2, 15),
        (json!({"messages": [user, call]}), 3, 7),
    ];
    let run = |args: &str| run_in(dir.path(), &words(args));
    for (i, (line, counted, all)) in lines.iter().enumerate() {
        fs::write(dir.path().join("lines.jsonl"), format!("{line}\n")).unwrap();
        let ran = run(&format!(
            "finetune --base base --data lines.jsonl --val-data lines.jsonl --max-steps 1 --log-format json \
             --out-dir out-{i}"
        ));
        let start: Value = serde_json::from_str(ran.done().stdout.lines().next().unwrap()).unwrap();
        assert_eq!(
            (&start["examples"]["counted_tokens"], &start["train_tokens"]),
            (&json!(counted), &json!(all))
        );
    }
    for (line, parts) in [
        (
            json!({"prompt": [user], "completion": "z"}),
            ["lines.jsonl:2: ", "make both texts, or both arrays"],
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}),
            ["lines.jsonl:2: message 1: content[0]: ", "a part of type \"image_url\""],
        ),
        (
            json!({"messages": [{"role": "usr", "content": "x"}]}),
            ["lines.jsonl:2: ", "did you mean user?"],
        ),
        (
            json!({"messages": [user, {"role": "assistant", "content": ""}]}),
            ["lines.jsonl:2: ", "says nothing"],
        ),
        (
            json!({"instruction": "x", "input": "", "output": "z"}),
            ["lines.jsonl:2: no field", "it looks like Alpaca"],
        ),
        (json!([{"messages": [user, reply]}]), ["lines.jsonl:2: an array", "jq -c '.[]'"]),
    ] {
        let good = json!({"messages": [user, reply]});
        fs::write(dir.path().join("lines.jsonl"), format!("{good}\n{line}\n")).unwrap();
        run("finetune --base base --data lines.jsonl --max-steps 1 --out-dir bad")
            .refused(1, &parts);
    }
    // Written by hand, over several lines.
    let array = serde_json::to_string_pretty(&json!([{"messages": [user, reply]}])).unwrap();
    fs::write(dir.path().join("array.json"), array).unwrap();
    run("finetune --base base --data array.json --max-steps 1 --out-dir bad")
        .refused(1, &["array.json:1: ", "jq -c '.[]'"]);
}
