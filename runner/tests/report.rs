//! The page about runs: what is on it, whatever the runs are called and have said.
#![cfg(feature = "report")]

mod cli_support;
mod support;

use std::fs;
use std::io::Write;
use std::path::Path;

use cli_support::run_in;
use cllm::report::data::{Follower, load, load_all, to_json};
use cllm::report::page::{MARK, render};
use cllm::settings::TrainSettings;
use cllm::train::stop::Stop;
use cllm::train::{Outcome, train_until};
use serde_json::{Value, json};
use support::{course, events, metrics, settings, sha, train};

/// A run with all kinds of events.
fn full(dir: &Path) -> TrainSettings {
    TrainSettings { sample_tokens: 8, sample_interval: 5, ..settings(dir) }
}

/// The data that are embedded in a page.
fn embedded(page: &str) -> Value {
    let begin = "<script type=\"application/json\" id=\"data\">";
    let (_, rest) = page.split_once(begin).expect("a page has data");
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn data(dir: &Path) -> Value {
    serde_json::from_str(&to_json(&[load(dir).unwrap()])).unwrap()
}

/// Output that asks for a stop when it sees a text.
struct StopAt(&'static str, Stop);

impl Write for StopAt {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if String::from_utf8_lossy(bytes).contains(self.0) {
            self.1.request();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn curve<'r>(run: &'r Value, event: &str, key: &str) -> &'r Value {
    let curves = run["curves"].as_array().unwrap();
    let found = curves.iter().find(|curve| curve["event"] == event && curve["key"] == key);
    found.unwrap_or_else(|| panic!("no curve of {event}.{key} in {curves:?}"))
}

/// Puts lines where `metrics.jsonl` is.
fn fake(dir: &Path, lines: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("metrics.jsonl"), lines).unwrap();
}

/// Whether `told` is in `page`: an object or a list if all that is in it is.
fn has_all(page: &Value, told: &Value, path: &str) {
    match told {
        Value::Object(fields) => {
            fields
                .iter()
                .for_each(|(key, value)| has_all(&page[key], value, &format!("{path}.{key}")));
        }
        _ => assert_eq!(page, told, "{path}"),
    }
}

#[test]
fn every_figure_of_a_run_is_on_its_page() {
    let dir = tempfile::tempdir().unwrap();
    let settings = full(dir.path());
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    let page = render(&load_all(core::slice::from_ref(&settings.out_dir)).unwrap(), false);
    let run = &embedded(&page)["runs"][0];
    let mut kinds = Vec::new();
    for event in metrics(&settings) {
        let kind = event["event"].as_str().unwrap().to_owned();
        match kind.as_str() {
            "start" => has_all(&run["starts"][0], &event, "start"),
            "done" => has_all(&run["end"], &event, "done"),
            "sample" => assert!(run["samples"].as_array().unwrap().contains(&event), "{event}"),
            "work" => {
                let stretches = run["work"]["stretches"].as_array().unwrap();
                assert!(stretches.iter().any(|stretch| stretch["to"] == event["step"]), "{event}");
            }
            "threads" => assert_eq!(run["threads"][0], event),
            "step" | "eval" => {
                for (key, value) in event.as_object().unwrap() {
                    if ["event", "step", "best"].contains(&key.as_str()) {
                        continue;
                    }
                    let curve = curve(run, &kind, key);
                    let steps = curve["step"].as_array().unwrap();
                    let at = steps.iter().position(|step| *step == event["step"]).unwrap();
                    assert_eq!(&curve["value"][at], value, "{kind}.{key}");
                }
            }
            other => panic!("the page is not tested with {other}"),
        }
        kinds.push(kind);
    }
    for kind in ["start", "step", "eval", "work", "sample", "done"] {
        assert!(kinds.iter().any(|found| found == kind), "no {kind} in {kinds:?}");
    }
    let clock: Vec<f64> = serde_json::from_value(run["clock"]["value"].clone()).unwrap();
    assert!(
        clock.len() == 12 && clock.is_sorted() && run["clock_is_estimate"] == false,
        "{clock:?}"
    );
    // What a finished run says of its workers is what the last of its steps have said.
    let seconds = |value: &Value| value.as_f64().unwrap();
    let done = &events(&settings, "done")[0];
    let busy = seconds(&run["work"]["workers"][0][1][0]);
    assert!((busy - seconds(&done["workers"][0]["busy"])).abs() < 1e-4, "{busy}");
    let longest = &done["operations"][0];
    assert_eq!(run["work"]["operations"][0][0], longest["name"]);
    // And the page is one file.
    for address in ["http:", "https:", "src=", "url(\"", "@import", "href=\"/"] {
        let from_elsewhere = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!from_elsewhere.contains(address), "{address}");
    }
    for policy in ["default-src 'none'", "name=\"viewport\"", "prefers-color-scheme: dark"] {
        assert!(page.contains(policy), "{policy}");
    }
    assert!(!page.contains("connect-src") && !page.contains("@@"));
    let live = render(&load_all(&[settings.out_dir]).unwrap(), true);
    assert!(live.contains("connect-src 'self'") && live.contains("data-live=\"live\""));
}

#[test]
fn samples_on_the_way_and_what_workers_did_change_no_bit() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let plain = settings(a.path());
    assert_eq!(train(&plain), Ok(Outcome::Finished));
    let sampled = full(b.path());
    assert_eq!(train(&sampled), Ok(Outcome::Finished));
    assert_eq!((sha(&sampled), course(&sampled)), (sha(&plain), course(&plain)));
    let steps: Vec<_> = events(&sampled, "sample").iter().map(|s| s["step"].clone()).collect();
    assert_eq!(steps, [5, 10, 12]);
    assert!(events(&plain, "sample").is_empty());
    // All of so few steps have said what the workers did, and it only grows.
    let work = events(&sampled, "work");
    assert_eq!(work.len(), 12);
    let busy = |event: &Value| {
        let workers = event["workers"].as_array().unwrap();
        workers.iter().map(|worker| worker["busy"].as_f64().unwrap()).sum::<f64>()
    };
    let busy: Vec<_> = work.iter().map(busy).collect();
    assert!(busy.windows(2).all(|pair| pair[0] < pair[1]), "{busy:?}");
}

#[test]
fn a_run_that_was_stopped_and_resumed_has_each_step_once() {
    let dir = tempfile::tempdir().unwrap();
    let settings = full(dir.path());
    let stop = Stop::new();
    let mut out = StopAt("\"event\":\"step\",\"step\":7,", stop.clone());
    assert_eq!(train_until(&settings, &stop, &mut out), Ok(Outcome::Interrupted));
    let run = &data(&settings.out_dir)["runs"][0];
    assert_eq!((&run["end"]["event"], &run["end"]["step"]), (&json!("interrupted"), &json!(7)));
    let resumed = TrainSettings { resume: true, ..settings };
    assert_eq!(train(&resumed), Ok(Outcome::Finished));
    let run = &data(&resumed.out_dir)["runs"][0];
    assert_eq!(curve(run, "step", "loss")["step"], json!((1..=12).collect::<Vec<_>>()));
    assert_eq!(run["starts"].as_array().unwrap().len(), 2);
    assert_eq!(run["end"]["event"], "done");
    let samples: Vec<_> = run["samples"].as_array().unwrap().iter().map(|s| &s["step"]).collect();
    assert_eq!(samples, [5, 10, 12]);
    // The workers' time is that of both sessions.
    let last = run["end"]["step_seconds"].as_f64().unwrap();
    let all = run["work"]["seconds"].as_f64().unwrap();
    assert!(all > last, "{all} {last}");
    let stretches = run["work"]["stretches"].as_array().unwrap();
    assert!(stretches.iter().any(|s| s["to"] == 7) && stretches.iter().any(|s| s["from"] == 7));
}

#[test]
fn no_text_of_a_run_is_taken_for_a_part_of_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = "</script><script>alert(1)</script><!-- @@script@@ \u{2028} \" ' & {{x}}";
    let folder = dir.path().join("<img src=x onerror=alert(1)>&\"'");
    let sample = json!({"event": "sample", "step": 1, "prompt": hostile, "text": hostile});
    let odd = json!({"event": "step", "step": 1, "<b>loss</b>": 2.5, "loss": 1.0});
    fake(&folder, &format!("{sample}\n{odd}\n"));
    let page = render(&load_all(&[folder]).unwrap(), false);
    assert_eq!(embedded(&page)["runs"][0]["samples"][0]["text"], hostile);
    assert!(!page.contains("<script>alert") && !page.contains("<img") && !page.contains("<!--"));
    assert!(
        page.contains("<title>&lt;img src=x onerror=alert(1)&gt;&amp;&quot;'"),
        "{}",
        &page[..900]
    );
    assert_eq!(page.matches("</script>").count(), 2);
    assert_eq!(page.matches("<script").count(), 2);
    // Nothing that is drawn is made of text.
    for parser in
        ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "onclick=\""]
    {
        assert!(!page.contains(parser), "{parser}");
    }
}

#[test]
fn what_other_versions_write_is_read_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old");
    fake(
        &old,
        "{\"event\":\"start\",\"step\":0,\"tokens_per_step\":8,\"config\":{\"n_layer\":2}}\n\
         {\"event\":\"step\",\"step\":1,\"loss\":5.5,\"lr\":0.1,\"tokens_per_s\":4}\n\n\
         {\"event\":\"future\",\"step\":2,\"entropy\":0.5,\"what\":[1]}\n\
         {\"event\":\"remark\",\"text\":\"hello\"}\n\
         {\"event\":\"done\",\"steps\":2,\"seconds\":4.5,\"val_loss\":null}\n\
         {\"event\":\"sample\",\"prompt\":\"a\",\"text\":\"ab\"}\n",
    );
    let run = &data(&old)["runs"][0];
    assert_eq!((&run["work"], &run["settings"]), (&Value::Null, &Value::Null));
    assert_eq!(run["clock"], json!({"step": [1], "value": [2.0]}));
    assert_eq!(curve(run, "future", "entropy")["value"], json!([0.5]));
    assert_eq!(
        (&run["others"][0]["text"], &run["samples"][0]["text"]),
        (&json!("hello"), &json!("ab"))
    );
    // A line that is being written is not there yet.
    let whole = fs::read_to_string(old.join("metrics.jsonl")).unwrap();
    fs::write(old.join("metrics.jsonl"), whole.clone() + "{\"event\":\"step\",\"st").unwrap();
    assert_eq!(data(&old)["runs"][0]["curves"], run["curves"]);
    // One that is broken is named.
    fs::write(old.join("metrics.jsonl"), whole.clone() + "{\"event\":\"step\",\"st\n").unwrap();
    let message = load(&old).unwrap_err().to_string();
    assert!(
        message.contains("metrics.jsonl, line 8: EOF while parsing a string at column "),
        "{message}"
    );
    fs::write(old.join("metrics.jsonl"), whole + "{\"step\":1}\n").unwrap();
    let message = load(&old).unwrap_err().to_string();
    assert!(message.contains("line 8: no event of a run"), "{message}");
    fs::write(old.join("settings.json"), "{").unwrap();
    assert!(load(&old).unwrap_err().to_string().contains("settings.json: EOF"));
}

/// A live page asks every other second.
#[test]
fn a_run_that_grows_or_is_resumed_is_read_on() {
    let dir = tempfile::tempdir().unwrap();
    let line = |step: u32, loss: f64| {
        format!("{{\"event\":\"step\",\"step\":{step},\"loss\":{loss:?}}}\n")
    };
    let mut follower = Follower::new(dir.path());
    let mut losses = || {
        let run = serde_json::to_value(follower.load().unwrap()).unwrap();
        curve(&run, "step", "loss")["value"].clone()
    };
    let two = line(1, 5.0) + &line(2, 4.0);
    fake(dir.path(), &(two.clone() + "{\"event\":\"st"));
    assert_eq!(losses(), json!([5.0, 4.0]));
    // What was not whole is now; and what has been read is not read again, even if it could not be.
    fake(dir.path(), &(two.replacen("event", "other", 1) + &line(3, 3.0)));
    assert_eq!(losses(), json!([5.0, 4.0, 3.0]));
    // Cut, and as long as before.
    fake(dir.path(), &(two.clone() + &line(3, 3.5)));
    assert_eq!(losses(), json!([5.0, 4.0, 3.5]));
    fake(dir.path(), &line(1, 5.0));
    assert_eq!(losses(), json!([5.0]));
    fake(dir.path(), &(line(1, 5.0) + "oops\n"));
    assert!(follower.load().unwrap_err().to_string().contains("line 2: expected value"));
    fake(dir.path(), &two);
    assert_eq!(follower.load().unwrap().name, load(dir.path()).unwrap().name);
}

#[test]
fn a_run_of_a_million_steps_has_a_small_page_with_its_spikes() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = String::with_capacity(170 << 20);
    for step in 1..=1_000_000_u32 {
        let loss = if step == 765_432 { 1234.5 } else { 2.0 + 1.0 / f64::from(step) };
        lines.push_str(&format!(
            "{{\"event\":\"step\",\"step\":{step},\"loss\":{loss},\"lr\":{},\"grad_norm\":0.{step},\
             \"tokens_per_s\":{step}.5,\"mfu\":0.5123456789,\"data_wait\":1e-7,\"seconds\":{step}}}\n",
            1e-3 / f64::from(step)
        ));
        if step % 50 == 0 {
            lines.push_str(&format!(
                "{{\"event\":\"sample\",\"step\":{step},\"prompt\":\"\",\"text\":\"some text\"}}\n"
            ));
        }
    }
    fake(dir.path(), &lines);
    let page = render(&load_all(&[dir.path().to_path_buf()]).unwrap(), false);
    assert!(page.len() < 1_500_000, "{} bytes", page.len());
    let run = &embedded(&page)["runs"][0];
    for curve in run["curves"].as_array().unwrap() {
        assert!(curve["step"].as_array().unwrap().len() <= 2000);
        assert_eq!(curve["of"], 1_000_000);
    }
    let loss = curve(run, "step", "loss");
    let highest =
        loss["value"].as_array().unwrap().iter().position(|value| *value == 1234.5).unwrap();
    assert_eq!(loss["step"][highest], 765_432);
    assert_eq!(
        (run["samples"].as_array().unwrap().len(), &run["samples_of"]),
        (100, &json!(20_000))
    );
}

#[test]
fn the_command_writes_where_it_says_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let lines = "{\"event\":\"step\",\"step\":1,\"loss\":5.5}\n";
    for name in ["a", "b", "more/a"] {
        fake(&dir.path().join(name), lines);
    }
    let report = |args: &[&str]| run_in(dir.path(), &[&["report"], args].concat());
    let titled = |file: &str| {
        let page = fs::read_to_string(dir.path().join(file)).unwrap();
        let names = embedded(&page)["runs"].as_array().unwrap().clone();
        names.iter().map(|run| run["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(report(&["a"]).done().stdout, "a/report.html\n");
    assert_eq!(titled("a/report.html"), ["a"]);
    assert_eq!(report(&["a", "b"]).done().stdout, "report.html\n");
    // Runs whose folders have one name are told apart, even one that is given twice.
    assert_eq!(report(&["a", "more/a", "b", "b", "--out", "x.html"]).done().stdout, "x.html\n");
    assert_eq!(titled("x.html"), ["a", "more/a", "b", "b (2)"]);
    // A report is written anew, something else is not.
    report(&["b", "--out", "x.html"]).done();
    assert_eq!(titled("x.html"), ["b"]);
    fs::write(dir.path().join("notes.html"), "<p>mine</p>").unwrap();
    report(&["a", "--out", "notes.html"]).refused(1, &["notes.html", "--out", "--force"]);
    assert_eq!(fs::read(dir.path().join("notes.html")).unwrap(), b"<p>mine</p>");
    report(&["a", "--out", "notes.html", "--force"]).done();
    assert!(fs::read_to_string(dir.path().join("notes.html")).unwrap().contains(MARK));
    // No run, no folder, no place.
    fs::create_dir(dir.path().join("empty")).unwrap();
    report(&["empty"]).refused(1, &["empty: no run folder of `cllm train`", "metrics.jsonl"]);
    assert!(!dir.path().join("empty/report.html").exists());
    report(&["a", "nowhere"]).refused(1, &["nowhere: no run folder"]);
    report(&["notes.html"]).refused(1, &["notes.html: no run folder"]);
    report(&["a", "--out", "no/such/x.html"]).refused(1, &["no/such/x.html"]);
    report(&["a", "--out", "b"]).refused(1, &["b: it is a folder"]);
    // One that has begun, and said nothing.
    fs::write(dir.path().join("empty/settings.json"), "{\"max_steps\":9}").unwrap();
    report(&["empty"]).done();
    report(&[]).refused(2, &["RUN"]);
}
