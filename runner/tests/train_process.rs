//! `cllm train` as a process: signals, kills, and disks that refuse.
#![cfg(unix)]

mod support;

use core::time::Duration;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use cllm::settings::{ScheduleChoice, TrainSettings};
use support::{
    arguments, checkpoints, command, course, events, names, settings, sha, step_file, undisturbed,
};

/// SIGKILLs and resumptions of `a_run_survives_kills`.
const KILLS: usize = 20;

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Killed at 20 random moments and resumed each time, a run ends with the weights of one
/// that was never killed. To watch: `cargo test --test train_process kills -- --nocapture`.
#[test]
fn a_run_survives_kills() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let settings = |dir: &Path| TrainSettings {
        max_steps: 600,
        save_interval: 7,
        eval_interval: 50,
        log_interval: 5,
        sample_tokens: 8,
        ..settings(dir)
    };
    let whole = settings(a.path());
    let begin = Instant::now();
    assert!(
        command(&whole).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    );
    let undisturbed = begin.elapsed();

    let mut killed = settings(b.path());
    // Moments over the whole of a session: preparation, steps, validation, saving. Together
    // they last no longer than the run, so it cannot end before the last of them.
    let longest = undisturbed.mul_f64(1.8 / KILLS as f64) + Duration::from_millis(80);
    let mut random = u64::from(std::process::id());
    let mut kills = 0;
    while kills < KILLS {
        killed.resume = killed.out_dir.join("settings.json").exists();
        let quiet = Stdio::null;
        let mut child = command(&killed).stdout(quiet()).stderr(quiet()).spawn().unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let moment = longest.mul_f64((random >> 40) as f64 / (1_u64 << 24) as f64);
        std::thread::sleep(moment);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let ended = status.code().is_some();
        assert!(!ended || status.success(), "a session ended by itself with {status}");
        if ended {
            break;
        }
        kills += 1;
        if killed.out_dir.exists() {
            println!("killed after {moment:?}: {:?}", checkpoints(&killed));
        }
    }
    assert!(kills >= KILLS / 2, "the run was over after {kills} kills");
    killed.resume = true;
    let output = command(&killed).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(sha(&killed), sha(&whole));
    assert_eq!(course(&killed), course(&whole));
    assert_eq!(checkpoints(&killed), checkpoints(&whole));
    assert!(!names(&killed.out_dir).iter().any(|name| name.ends_with(".tmp")));
    println!("{kills} kills, {}", sha(&killed));
}

fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1
}

#[test]
fn a_run_that_was_started_without_a_terminal_outlives_one() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let script = "trap '' HUP; exec \"$@\"";
    let mut child = Command::new("sh");
    child.args(["-c", script, "sh", env!("CARGO_BIN_EXE_cllm")]).args(arguments(&settings));
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.by_ref().map(Result::unwrap).find(|l| l.contains("\"step\":2,")).unwrap();
    signal(&child, "-HUP");
    let last = lines.map(Result::unwrap).last().unwrap();
    assert!(last.contains("\"done\""), "{last}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn signals_save_and_exit_with_130() {
    let whole = tempfile::tempdir().unwrap();
    let long = |dir: &Path| TrainSettings { max_steps: 400, dropout: 0.0, ..settings(dir) };
    let whole = long(whole.path());
    assert!(
        command(&whole).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    );
    // Whoever started the tests may have them ignore it.
    let hangup = !ignores_hangup();
    for name in ["-INT", "-TERM"].into_iter().chain(hangup.then_some("-HUP")) {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            TrainSettings { save_interval: 1_000, eval_interval: 1_000, ..long(dir.path()) };
        let mut child = command(&settings).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Under way.
        lines.by_ref().map(Result::unwrap).find(|l| l.contains("\"step\":20,")).unwrap();
        signal(&child, name);
        let last = lines.map(Result::unwrap).last().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        let event: serde_json::Value = serde_json::from_str(&last).unwrap();
        assert_eq!(event["event"], "interrupted");
        let step = event["step"].as_u64().unwrap();
        assert!((20..400).contains(&step));
        assert_eq!(checkpoints(&settings), [format!("step-{step}.cllm")]);
        let resumed = TrainSettings { resume: true, ..settings };
        assert!(
            command(&resumed)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(sha(&resumed), sha(&whole));
    }
}

/// As `timeout` sends them: to the program, and to its process group.
#[test]
fn two_signals_at_once_are_one_request() {
    for pause in [0, 5, 50] {
        let dir = tempfile::tempdir().unwrap();
        let settings = TrainSettings { max_steps: 100_000, ..settings(dir.path()) };
        let settings =
            TrainSettings { save_interval: 1_000_000, eval_interval: 1_000_000, ..settings };
        let mut child = command(&settings).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.by_ref().map(Result::unwrap).find(|l| l.contains("\"step\":20,")).unwrap();
        signal(&child, "-INT");
        thread::sleep(Duration::from_millis(pause));
        // It may have saved and ended by then.
        let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).output();
        let last = lines.map(Result::unwrap).last().unwrap();
        assert!(last.contains("\"interrupted\""), "{pause} ms: {last}");
        assert_eq!(child.wait().unwrap().code(), Some(130), "{pause} ms");
        assert_eq!(checkpoints(&settings).len(), 1, "{pause} ms");
    }
}

#[test]
fn a_run_to_which_nobody_listens_any_more_saves_first() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings { max_steps: 100_000, ..settings(dir.path()) };
    let settings = TrainSettings { save_interval: 1_000_000, eval_interval: 1_000_000, ..settings };
    let mut child =
        command(&settings).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.by_ref().map(Result::unwrap).find(|l| l.contains("\"step\":20,")).unwrap();
    drop(lines);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(141), "{told}");
    assert!(told.contains("saved") && told.contains("--resume"), "{told}");
    let saved = checkpoints(&settings);
    assert_eq!(saved.len(), 1);
    if Path::new("/dev/full").exists() {
        let full = TrainSettings { resume: true, ..settings };
        let file = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(&full).stdout(file).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("saved") && told.contains("standard output"), "{told}");
        // Before a first step of its own, what there was.
        assert_eq!(checkpoints(&full), saved);
    }
}

#[test]
fn standard_output_is_the_metrics_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let output = command(&settings).output().unwrap();
    let metrics = fs::read_to_string(settings.out_dir.join("metrics.jsonl")).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), metrics);
    assert!(output.stderr.is_empty());
    let other = tempfile::tempdir().unwrap();
    assert_eq!(sha(&settings), undisturbed(other.path()));
}

#[test]
fn a_resume_needs_no_more_than_the_folder() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = undisturbed(a.path());
    let settings = settings(b.path());
    let short = TrainSettings { max_steps: 6, ..settings.clone() };
    // The rate must not depend on where the run is said to end.
    let constant = |s| TrainSettings { lr_schedule: ScheduleChoice::Constant, ..s };
    assert!(
        command(&constant(short))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let mut resume = Command::new(env!("CARGO_BIN_EXE_cllm"));
    resume.args(["train", "--resume", "--max-steps", "12", "--out-dir"]).arg(&settings.out_dir);
    let output = resume.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let whole = constant(support::settings(a.path()));
    fs::remove_dir_all(&whole.out_dir).unwrap();
    support::train(&whole).unwrap();
    assert_ne!(sha(&whole), expected, "another schedule");
    assert_eq!(sha(&settings), sha(&whole));
}

/// Writes to standard output until the model stops, with `flags` behind the checkpoint.
fn generated(settings: &TrainSettings, flags: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cllm"));
    command.arg("generate").arg("--checkpoint").arg(&settings.out_dir).args(flags);
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code(), out, err)
}

#[test]
fn a_trained_model_speaks() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings { max_steps: 60, dropout: 0.0, ..settings(dir.path()) };
    support::train(&settings).unwrap();
    // Longer than the model's context of 16: it goes on all the same.
    let flags = ["--prompt", "the sea é", "--tokens", "50", "--temperature", "0.7"];
    let (code, text, err) = generated(&settings, &flags);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(text.starts_with("the sea é") && text.chars().count() > 30, "{text}");
    assert_eq!(generated(&settings, &flags).1, text, "the same seed");
    for threads in ["1", "2", "5"] {
        let on = [&flags[..], &["--threads", threads]].concat();
        assert_eq!(generated(&settings, &on).1, text, "on {threads} threads");
    }
    assert_eq!(generated(&settings, &["--threads", "0"]).0, Some(2));
    let other = [&flags[..], &["--seed", "2"]].concat();
    assert_ne!(generated(&settings, &other).1, text);
    let greedy = |seed| generated(&settings, &["--greedy", "--tokens", "20", "--seed", seed]).1;
    assert_eq!(greedy("1"), greedy("2"));

    a_prompt_may_be_in_a_file_and_a_text_may_stop(&settings, dir.path(), &flags);

    let json = ["--log-format", "json", "--samples", "2", "--tokens", "5", "--prompt", ""];
    let (_, lines, _) = generated(&settings, &json);
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["index"], 1);
    assert_eq!((&lines[0]["tokens"], &lines[0]["finish_reason"]), (&5.into(), &"length".into()));

    let best = settings.out_dir.join("best.cllm");
    let mut bytes = fs::read(&best).unwrap();
    bytes.truncate(1000);
    fs::write(&best, bytes).unwrap();
    let (code, _, err) = generated(&settings, &["--tokens", "1"]);
    assert_eq!(code, Some(0));
    assert!(err.contains("best.cllm: truncated"), "{err}");
    let torn = TrainSettings { out_dir: best, ..settings };
    let (code, out, err) = generated(&torn, &[]);
    assert_eq!((code, out.as_str(), err.lines().count()), (Some(1), "", 1), "{err}");
}

/// What `flags`, which begin with the prompt, generate does not depend on where the prompt comes from, and
/// a text that ends it cuts it.
fn a_prompt_may_be_in_a_file_and_a_text_may_stop(
    settings: &TrainSettings,
    dir: &Path,
    flags: &[&str],
) {
    let (prompt, flags) = (flags[1], &flags[2..]);
    let given = |prompt: &[&str]| generated(settings, &[prompt, flags].concat());
    let whole = given(&["--prompt", prompt]).1;
    let file = dir.join("prompt.txt");
    let path = file.to_str().unwrap();
    fs::write(&file, format!("\u{feff}{prompt}\r\n")).unwrap();
    assert_eq!(given(&["--prompt-file", path]).1, whole);
    let mut piped = Command::new(env!("CARGO_BIN_EXE_cllm"));
    piped.args(["generate", "--prompt-file", "-", "--checkpoint"]).arg(&settings.out_dir);
    let input = fs::File::open(&file).unwrap();
    let output = piped.args(flags).stdin(input).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), whole);

    // Three characters from the middle of what follows the prompt.
    let said: Vec<char> = whole[prompt.len()..].trim_end().chars().collect();
    let stop: String = said[10..13].iter().collect();
    let before = whole[prompt.len()..].find(&stop).unwrap() + prompt.len();
    let stopped = given(&["--prompt", prompt, "--stop", "never said", "--stop", &stop]);
    assert_eq!(stopped, (Some(0), format!("{}\n", &whole[..before]), String::new()));
    let (code, _, err) = given(&["--stop", ""]);
    assert_eq!((code, err.contains("--stop")), (Some(2), true), "{err}");

    fs::write(&file, b"the sea \xff").unwrap();
    let (code, _, err) = given(&["--prompt-file", path]);
    assert_eq!(code, Some(1));
    assert!(err.contains("prompt.txt") && err.contains("byte 8"), "{err}");
    let (code, _, err) = given(&["--prompt-file", "none"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("--prompt-file: cannot read none"), "{err}");
    assert_eq!(given(&["--prompt-file", path, "--prompt", "a"]).0, Some(2));
}

/// Runs `cllm train` where files may have at most `blocks` blocks of 512 bytes: a write
/// beyond fails, as on a full disk.
fn limited(settings: &TrainSettings, blocks: u64) -> (bool, String) {
    let script = format!("ulimit -f {blocks}; exec \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_cllm")])
        .args(arguments(settings))
        .output()
        .unwrap();
    (output.status.code() == Some(1), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_write_that_fails_is_an_error_and_spares_the_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let short =
        TrainSettings { max_steps: 6, lr_schedule: settings.lr_schedule, ..settings.clone() };
    assert!(
        command(&short).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    );
    let before: Vec<_> = checkpoints(&settings)
        .into_iter()
        .map(|name| (fs::read(settings.out_dir.join(&name)).unwrap(), name))
        .collect();
    let resumed = TrainSettings { resume: true, ..settings };
    // A checkpoint has some 400 KB.
    let (failed, text) = limited(&resumed, 200);
    assert!(failed, "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.contains("cannot write") && last.contains(".cllm"), "{text}");
    for (bytes, name) in &before {
        assert_eq!(&fs::read(resumed.out_dir.join(name)).unwrap(), bytes, "{name}");
    }
    assert!(!names(&resumed.out_dir).iter().any(|name| name.ends_with(".tmp")));
}

/// A child that has done some steps, and its standard output.
fn under_way(settings: &TrainSettings) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut command = command(settings);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.by_ref().filter(|l| l.contains("\"event\":\"step\"")).nth(5).unwrap();
    (child, lines)
}

/// How it ended without being asked to, and what it said.
fn ended((child, lines): (Child, impl Iterator<Item = String>)) -> (Option<i32>, String) {
    let _ = lines.count();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Mapped, a shard that was cut ended the program without a word, and of one that was changed the run learnt
/// other weights.
#[test]
fn a_shard_that_is_cut_or_changed_while_a_run_reads_it_is_named() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let long = |dir: &Path| TrainSettings { max_steps: 400, ..settings(dir) };
    let (whole, mut disturbed) = (long(a.path()), long(b.path()));
    support::train(&whole).unwrap();
    let shard = disturbed.out_dir.join("data/train_000000.bin");
    for what in ["truncated", "damaged"] {
        let child = under_way(&disturbed);
        let good = fs::read(&shard).unwrap();
        // In its place, as a program writes that does not know of the run.
        let file = fs::OpenOptions::new().write(true).open(&shard).unwrap();
        match what {
            "truncated" => file.set_len(good.len() as u64 / 2).unwrap(),
            _ => std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4000], 2000).unwrap(),
        }
        let (code, told) = ended(child);
        assert_eq!(code, Some(1), "{told}");
        let told = told.lines().last().unwrap();
        assert!(told.contains("train_000000.bin") && told.contains(what), "{told}");
        fs::write(&shard, good).unwrap();
        disturbed.resume = true;
    }
    support::train(&disturbed).unwrap();
    assert_eq!(sha(&disturbed), sha(&whole));
}

#[test]
fn what_the_system_ends_a_run_by_has_its_line() {
    for (name, said) in [("-BUS", "has been cut"), ("-ABRT", "memory")] {
        let dir = tempfile::tempdir().unwrap();
        let child = under_way(&TrainSettings { max_steps: 400, ..settings(dir.path()) });
        signal(&child.0, name);
        let (code, told) = ended(child);
        assert_eq!((code, told.lines().count()), (Some(1), 1), "{told}");
        assert!(
            told.starts_with("cllm: ") && told.contains(said) && told.contains("--resume"),
            "{told}"
        );
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    fs::write(&file, "").unwrap();
    let settings = TrainSettings { out_dir: file.join("run"), ..settings(dir.path()) };
    let output = command(&settings).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("a file/run"), "{text}");
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings { max_steps: 1_000_000, ..settings(dir.path()) };
    let mut child = command(&settings).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.by_ref().map(Result::unwrap).find(|line| line.contains("\"step\":3,")).unwrap();
    let resumed = TrainSettings { resume: true, ..settings.clone() };
    let output = command(&resumed).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("another process"), "{text}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(step_file(&settings, 3).exists() || !events(&settings, "step").is_empty());
}

/// As when the disk of its log is full: what cannot be said ends no run.
#[cfg(target_os = "linux")]
#[test]
fn a_run_goes_on_where_standard_error_takes_no_words() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = undisturbed(a.path());
    let run = settings(b.path());
    let mut first = command(&run);
    assert!(first.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    for name in ["best.cllm", "step-12.cllm"] {
        fs::remove_file(run.out_dir.join(name)).unwrap();
    }
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let resumed = TrainSettings { resume: true, ..run };
    // That it goes on is the first thing that it would say.
    let status = command(&resumed).stdout(Stdio::null()).stderr(full).status().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(sha(&resumed), expected);
    assert_eq!(events(&resumed, "start").len(), 2);
}
