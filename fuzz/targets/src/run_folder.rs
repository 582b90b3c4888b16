//! A run folder: its settings, the events of its run, and the page that is made of both.

use std::fs;

use cllm::report::{data, page};
use cllm::train::folder::RunFolder;
use cllm::train::metrics::{Metrics, Place};

use crate::files::{Folder, parts};

/// `settings.json` and `metrics.jsonl`.
pub(crate) fn target(data: &[u8]) -> bool {
    let [settings, metrics] = parts(data);
    let folder = Folder::new();
    folder.put("settings.json", settings);
    let log = folder.put("metrics.jsonl", metrics);
    let run = RunFolder::existing(folder.path());
    let mut taken = false;
    if let Ok(settings) = run.settings()
        && settings.check().is_ok()
    {
        taken = true;
        run.save_settings(&settings).expect("settings can be written");
        assert_eq!(run.settings().as_ref(), Ok(&settings));
    }
    if let Ok(run) = data::load(folder.path()) {
        let page = page::render(&[run], false);
        let (scripts, ends) = (page.matches("<script").count(), page.matches("</script").count());
        let empty = page::render(&[], false);
        assert_eq!(scripts, empty.matches("<script").count(), "a script of the run's own");
        assert_eq!(ends, empty.matches("</script").count(), "the end of a script");
    }
    if log.exists() {
        let place = Place { step: 3, rewinds: 0, within: false };
        drop(Metrics::open(&log, place).expect("any log can be gone on with"));
        let kept = fs::read(&log).expect("the log");
        assert!(kept.is_empty() || kept.ends_with(b"\n"), "a line was cut");
        // Damaged lines between them are gone.
        let mut before = metrics.split(|&byte| byte == b'\n');
        for line in kept.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            assert!(
                before.any(|one| one == line),
                "a line is none of those before, or not behind them"
            );
        }
        drop(Metrics::open(&log, place).expect("what is gone on with can be again"));
        assert_eq!(fs::read(&log).ok(), Some(kept), "what was kept does not stay");
    }
    taken
}
