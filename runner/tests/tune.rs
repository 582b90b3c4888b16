//! `cllm tune`, and sets of sizes that are stored: found, announced, left out, refused; the same
//! weights with any of them.

mod cli_support;

use cli_support::{Ran, command, run_in};
use cllm_core::Caches;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A run of some steps of a very small model, of several row blocks.
const RUN: [(&str, &str); 16] = [
    ("--preset", "tiny"),
    ("--n-layer", "2"),
    ("--n-head", "2"),
    ("--n-embd", "32"),
    ("--block-size", "64"),
    ("--batch-size", "8"),
    ("--max-steps", "4"),
    ("--eval-interval", "4"),
    ("--eval-batches", "1"),
    ("--save-interval", "4"),
    ("--sample-tokens", "0"),
    ("--threads", "2"),
    ("--isa", "scalar"),
    ("--log-format", "json"),
    ("--tokenizer", "bytes"),
    ("--out-dir", "run"),
];

/// A command on that run, but for the flags in `more`.
fn arguments<'a>(name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let kept = RUN.iter().filter(|(flag, _)| !more.contains(flag));
    let kept = kept.flat_map(|(flag, value)| [*flag, *value]);
    [name].into_iter().chain(kept).chain(more.iter().copied()).collect()
}

fn run_with(dir: &Path, name: &str, more: &[&str]) -> Ran {
    run_in(dir, &arguments(name, more))
}

/// The event of this kind.
#[track_caller]
fn event(ran: &Ran, kind: &str) -> Value {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines = ran.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.into_iter().find(|event| event["event"] == kind).unwrap()
}

/// What the program measures for, and what it found.
fn tune(dir: &Path, out: &str) -> Value {
    run_with(dir, "tune", &["--json", "--seconds", "0.2", "--out", out]).json()
}

/// A file with a set for what `report` is of.
fn store(path: &Path, report: &Value, sizes: &[(&str, usize)]) {
    let mut text = "version = 1\n[[set]]\nratio = 0.5\n".to_owned();
    for key in ["cpu", "isa", "dtype", "threads", "n_layer", "n_embd", "d_ff", "vocab_size", "rows"]
    {
        // Of these texts and numbers JSON and TOML write the same.
        text.push_str(&format!("{key} = {}\n", report[key]));
    }
    for (name, value) in report["default"].as_object().unwrap() {
        let changed = sizes.iter().find(|(field, _)| field == name);
        let value = changed.map_or_else(|| value.clone(), |(_, value)| json!(value));
        text.push_str(&format!("{name} = {value}\n"));
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const SIZES: [(&str, usize); 4] =
    [("row_block", 32), ("weight_rows", 32), ("weight_cols", 64), ("logits_blocks", 5)];

#[test]
fn a_short_search_tells_what_it_tried_and_stores_what_is_better() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--json", "--seconds", "2", "--out", "new/tune.toml", "--threads", "1"];
    let report = run_with(dir.path(), "tune", &flags).json();
    for (key, value) in [
        ("isa", json!("scalar")),
        ("dtype", json!("f32")),
        ("threads", json!(1)),
        ("n_embd", json!(32)),
        ("d_ff", json!(128)),
        ("vocab_size", json!(257)),
        ("rows", json!(512)),
    ] {
        assert_eq!(report[key], value, "{key}");
    }
    let trials = report["trials"].as_array().unwrap();
    assert_eq!(trials[0]["change"], "default");
    assert!(trials[0]["ratios"]["rounds"].as_u64().unwrap() >= 5);
    assert!(trials.iter().any(|trial| trial["change"] == "row_block 64"), "{trials:?}");
    assert!(report["noise"].as_f64().unwrap() >= 0.005);
    let file = dir.path().join("new/tune.toml");
    let stored = !report["better"].is_null();
    assert_eq!((report["written"] == json!(true), file.exists()), (stored, stored));
    if stored {
        let flags = ["--tuning", "new/tune.toml", "--threads", "1"];
        let start = event(&run_with(dir.path(), "train", &flags), "start");
        assert_eq!(start["blocking"], report["better"]);
        assert!(start["tuning"].as_str().unwrap().ends_with("/new/tune.toml"), "{start}");
    }
    // For people, a line for each.
    let table = run_with(dir.path(), "tune", &["--seconds", "0.1", "--out", "other.toml"]);
    assert_eq!(table.code, 0, "{}", table.stderr);
    for part in [": scalar, f32, 2 thread(s); ", "the default against itself", "noise"] {
        assert!(table.stdout.contains(part), "{}", table.stdout);
    }
}

#[test]
fn what_is_stored_for_a_run_is_used_and_announced_and_changes_no_weight() {
    let dir = tempfile::tempdir().unwrap();
    let report = tune(dir.path(), "found.toml");
    store(&dir.path().join("t.toml"), &report, &SIZES);
    let plan = |more: &[&str]| {
        run_with(dir.path(), "plan", &[&["--json", "--no-estimate"], more].concat()).json()
    };
    let train = |more: &[&str]| {
        let ran = run_with(dir.path(), "train", more);
        let found = (event(&ran, "start"), event(&ran, "done")["weights_sha256"].clone());
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        found
    };
    let (usual, sha) = train(&["--tuning", "off"]);
    assert_eq!((&usual["tuning"], &usual["blocking"]), (&Value::Null, &report["default"]));
    let (tuned, same) = train(&["--tuning", "t.toml"]);
    // Its whole path: a run may be gone on with from another folder.
    let whole = dir.path().join("t.toml").canonicalize().unwrap();
    assert_eq!(tuned["tuning"], whole.to_str().unwrap());
    for (name, value) in SIZES {
        assert_eq!(tuned["blocking"][name], json!(value));
        assert_ne!(tuned["blocking"][name], usual["blocking"][name]);
    }
    assert_eq!(sha, same);
    // The plan says what training then takes, which is not what it takes without.
    for (start, more) in [(&usual, ["--tuning", "off"]), (&tuned, ["--tuning", "t.toml"])] {
        let plan = plan(&more);
        assert_eq!(plan["blocking"], start["blocking"]);
        assert_eq!(plan["tuning"].is_null(), start["tuning"].is_null());
        assert_eq!(plan["total_bytes"], start["planned_bytes"]["total"]);
        let pools = plan["pools"].as_object().unwrap();
        assert!(pools.iter().all(|(name, bytes)| start["planned_bytes"][name] == *bytes));
    }
    assert_ne!(usual["planned_bytes"], tuned["planned_bytes"]);
    // Of any other run it says nothing.
    let other = plan(&["--tuning", "t.toml", "--batch-size", "9"]);
    assert_eq!((&other["tuning"], &other["blocking"]), (&Value::Null, &report["default"]));
    let other = plan(&["--tuning", "t.toml", "--tiles-for", "3"]);
    assert_eq!(other["tuning"], Value::Null);

    let text = run_with(dir.path(), "plan", &["--no-estimate", "--tuning", "t.toml"]).stdout;
    assert!(text.contains("has found and stored them in t.toml\n"), "{text}");
    let text = run_with(dir.path(), "train", &["--tuning", "t.toml", "--log-format", "text"]);
    let said = format!("found and stored them in {}\n", whole.display());
    assert_eq!(text.stdout.matches(&said).count(), 1, "{}", text.stdout);
    let eval = ["eval", "--checkpoint", "run", "--isa", "scalar", "--threads", "2"];
    let eval = |more: &[&str]| run_in(dir.path(), &[&eval[..], more].concat());
    let (with, without) = (
        eval(&["--batch-size", "8", "--tuning", "t.toml"]),
        eval(&["--batch-size", "8", "--tuning", "off"]),
    );
    assert_eq!((with.code, &with.stdout), (0, &without.stdout));
    assert!(with.stderr.contains("stored them in t.toml"), "{}", with.stderr);
    assert_eq!(without.stderr, "");
}

#[test]
fn the_users_own_file_is_found_and_a_run_goes_on_with_or_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let report = tune(dir.path(), "found.toml");
    store(&dir.path().join("config/cllm/tune.toml"), &report, &SIZES);
    let at_home = |more: &[&str]| -> Ran {
        let mut command = command(dir.path());
        command.env("XDG_CONFIG_HOME", dir.path().join("config"));
        command.args(arguments("train", more)).output().unwrap().into()
    };
    let whole = at_home(&["--out-dir", "whole"]);
    let file = event(&whole, "start")["tuning"].as_str().unwrap().to_owned();
    assert!(file.ends_with("config/cllm/tune.toml"), "{file}");
    assert_eq!(
        event(&at_home(&["--out-dir", "off", "--tuning", "off"]), "start")["tuning"],
        json!(null)
    );
    // The first half with it, the second without; the rate still rises, so it does not depend on
    // the number of steps.
    assert_eq!(at_home(&["--max-steps", "2"]).code, 0);
    let rest = at_home(&["--resume", "--tuning", "off"]);
    assert_eq!(event(&rest, "start")["step"], json!(2));
    let sha = |ran: &Ran| event(ran, "done")["weights_sha256"].clone();
    assert_eq!(sha(&rest), sha(&whole));
}

#[test]
fn a_file_that_was_asked_for_and_has_nothing_that_fits_is_named_with_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let report = tune(dir.path(), "found.toml");
    store(&dir.path().join("t.toml"), &report, &SIZES);
    let quiet = |ran: &Ran| assert!(!ran.stderr.contains("tuning"), "{}", ran.stderr);
    for name in ["train", "plan"] {
        let more: &[&str] = if name == "plan" { &["--no-estimate"] } else { &[] };
        let with = |flags: &[&str]| {
            // The last one trained stays for `eval`.
            let _ =
                if name == "train" { fs::remove_dir_all(dir.path().join("run")) } else { Ok(()) };
            run_with(dir.path(), name, &[flags, more].concat())
        };
        quiet(&with(&["--tuning", "t.toml"]));
        quiet(&with(&["--tuning", "off", "--tiles-for", "3"]));
        let ran = with(&["--tuning", "t.toml", "--tiles-for", "3"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let said: Vec<_> = ran.stderr.lines().filter(|line| line.contains("tuning")).collect();
        let [said] = said[..] else { panic!("{name}: {}", ran.stderr) };
        assert!(said.starts_with("cllm: --tuning ") && said.contains("t.toml: no set "), "{said}");
        for part in [": scalar, f32, 3 thread(s); 2 layer(s), width 32, ", "for threads = 2; "] {
            assert!(said.contains(part), "no {part:?} in {said}");
        }
    }
    let eval = ["eval", "--checkpoint", "run", "--isa", "scalar", "--batches", "1"];
    let ran = run_in(dir.path(), &[&eval[..], &["--tuning", "t.toml", "--threads", "1"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("--tuning t.toml: no set of sizes in it is for "),
        "{}",
        ran.stderr
    );
    // Nobody asked for that of the user's configuration.
    store(&dir.path().join("cllm/tune.toml"), &report, &SIZES);
    let mut command = command(dir.path());
    command.env("XDG_CONFIG_HOME", dir.path());
    let ran: Ran = command
        .args(arguments("plan", &["--no-estimate", "--tiles-for", "3"]))
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    quiet(&ran);
}

#[test]
fn a_run_finds_its_file_from_another_folder_and_does_without_one_that_nobody_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let report = tune(dir.path(), "found.toml");
    store(&dir.path().join("t.toml"), &report, &SIZES);
    let begun = run_with(dir.path(), "train", &["--tuning", "t.toml", "--max-steps", "2"]);
    assert_eq!(begun.code, 0, "{}", begun.stderr);
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let on =
        ["train", "--resume", "--out-dir", "../run", "--max-steps", "3", "--log-format", "json"];
    let on = run_in(&other, &on);
    assert_eq!(on.code, 0, "{}", on.stderr);
    assert_eq!(event(&on, "start")["tuning"], event(&begun, "start")["tuning"]);

    // Where the configuration should lie there is a file.
    let mut command = command(dir.path());
    command.env("XDG_CONFIG_HOME", dir.path().join("t.toml"));
    let ran: Ran = command.args(arguments("train", &["--out-dir", "b"])).output().unwrap().into();
    assert_eq!((ran.code, &event(&ran, "start")["tuning"]), (0, &Value::Null), "{}", ran.stderr);
}

#[test]
fn a_recording_of_a_tuned_run_is_simulated_with_its_own_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let report = tune(dir.path(), "found.toml");
    store(&dir.path().join("t.toml"), &report, &SIZES);
    let traced = run_with(dir.path(), "train", &["--tuning", "t.toml", "--trace", "t.json"]);
    assert_eq!(traced.code, 0, "{}", traced.stderr);
    let trace = fs::read_to_string(dir.path().join("t.json")).unwrap();
    let trace: Value = serde_json::from_str(&trace).unwrap();
    assert_eq!(trace["otherData"]["blocking"]["row_block"], json!(32));
    let simulated = run_in(dir.path(), &["simulate", "--trace", "t.json", "--workers", "1,2"]);
    assert_eq!(simulated.code, 0, "{}", simulated.stderr);
    // With other sizes its tiles are not those of the recording.
    let mut other = trace;
    other["otherData"]["blocking"] = report["default"].clone();
    fs::write(dir.path().join("o.json"), other.to_string()).unwrap();
    let simulated = run_in(dir.path(), &["simulate", "--trace", "o.json", "--workers", "1"]);
    assert_ne!(simulated.code, 0, "{}", simulated.stdout);
}

#[test]
fn broken_and_missing_files_are_refused_with_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let report = tune(dir.path(), "found.toml");
    store(&dir.path().join("t.toml"), &report, &[("row_block", 33)]);
    let line = 1 + fs::read_to_string(dir.path().join("t.toml"))
        .unwrap()
        .lines()
        .position(|line| line == "row_block = 33")
        .unwrap();
    let wrong = format!("t.toml:{line}: row_block 33: it must be 32, 64, 96");
    for name in ["train", "plan"] {
        run_with(dir.path(), name, &["--tuning", "t.toml"]).refused(2, &[&wrong, "--tuning off"]);
        let missing = run_with(dir.path(), name, &["--tuning", "no.toml"]);
        missing.refused(2, &["--tuning no.toml: there is no such file"]);
    }
    run_with(dir.path(), "tune", &["--out", "t.toml"]).refused(2, &[&wrong]);
    let nowhere = run_with(dir.path(), "tune", &[]);
    nowhere.refused(2, &["--out is missing", "XDG_CONFIG_HOME"]);
    let never = run_with(dir.path(), "tune", &["--seconds", "0", "--out", "n.toml"]);
    never.refused(2, &["--seconds 0"]);
    assert!(!dir.path().join("run/metrics.jsonl").exists());
}

/// The system's description of the caches of the CPUs, where it has one.
#[test]
fn caches_are_those_that_the_system_reports() {
    let read = |path: &Path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let bytes = |text: String| {
        let digits = text.trim_end_matches(['K', 'M']);
        let unit = if text.ends_with('K') { 1 << 10 } else { 1 << 20 };
        digits.parse::<usize>().unwrap() * unit
    };
    // As many CPUs as a list such as 0-3,8 names.
    let count = |list: String| {
        let ends = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            last.parse::<usize>().unwrap() - first.parse::<usize>().unwrap() + 1
        };
        list.split(',').map(ends).sum::<usize>()
    };
    let mut all = Vec::new();
    for cpu in 0..1024 {
        let dir = format!("/sys/devices/system/cpu/cpu{cpu}/cache");
        let (mut sizes, mut threads) = ([0; 3], [1; 3]);
        for index in 0..8 {
            let dir = Path::new(&dir).join(format!("index{index}"));
            let file = |name: &str| read(&dir.join(name));
            let (Some(level), Some(kind), Some(size)) = (file("level"), file("type"), file("size"))
            else {
                break;
            };
            let level = level.parse::<usize>().unwrap();
            if kind != "Instruction" && (1..=3).contains(&level) {
                sizes[level - 1] = bytes(size);
                threads[level - 1] = file("shared_cpu_list").map_or(1, count);
            }
        }
        if sizes[0] > 0 && sizes[1] > 0 {
            all.push((sizes, threads[1] / threads[0]));
        }
    }
    if all.is_empty() || !cfg!(target_arch = "x86_64") {
        eprintln!("skipped: this system does not describe its caches");
        return;
    }
    let found = Caches::detect();
    // On a CPU of several kinds of cores any of them may have answered. CPUs that share a cache
    // may be switched off, or kept from this machine: then CPUID knows of more.
    let fits = |([l1d, l2, l3], sharing): &([usize; 3], usize)| {
        let share = l2 / sharing.max(&1);
        let is_share = found.l2 <= share && l2.is_multiple_of(found.l2);
        found.l1d == *l1d && is_share && found.l3 == *l3
    };
    assert!(all.iter().any(fits), "{found:?} is none of {all:?}");
}

#[test]
fn help_tells_where_it_starts_and_where_it_stores() {
    let help = run_in(Path::new("."), &["tune", "--help"]).stdout;
    for part in
        ["reference (the default)", "cllm/tune.toml", "--quick", "--seconds", "[default: 180]"]
    {
        assert!(help.contains(part), "no {part:?} in {help}");
    }
}
