//! `metrics.jsonl`: the reported events of a run, each step once, however often the
//! run was killed and resumed.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::event::Event;
use crate::error::{Error, Result};
use crate::files;

/// No line has as many bytes.
pub(crate) const LONGEST_LINE: u64 = 4 << 20;

/// The open file.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

/// What decides whether a line stays.
#[derive(Deserialize)]
struct Line {
    event: String,
    step: Option<u64>,
    rewinds: Option<u32>,
}

/// How far a run is that goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Steps done.
    pub step: u64,
    /// Times that it has gone back to this step.
    pub rewinds: u32,
    /// It goes on in the session that went back.
    pub within: bool,
}

impl Line {
    /// Whether the line belongs to a run that goes on from `place`.
    fn is_before(&self, place: Place) -> bool {
        let Place { step, rewinds, within } = place;
        match (self.event.as_str(), self.step) {
            ("step" | "eval" | "work" | "sample" | "threads", Some(at)) => at <= step,
            ("spike", Some(at)) => at < step || at == step && self.rewinds.unwrap_or(0) <= rewinds,
            // A session that began here is begun again by the one that resumes.
            ("start", Some(at)) => at < step || at == step && within,
            _ => false,
        }
    }
}

impl Metrics {
    /// Opens the file for a run that goes on from `place`: what was written about later steps is cut off.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, place: Place) -> Result<Self> {
        let io = |e| Error::io("write", path, &e);
        let mut file = files::open_own(path).map_err(io)?;
        let keep = length_up_to(&file, place).map_err(io)?;
        file.set_len(keep).and_then(|()| file.seek(SeekFrom::Start(keep))).map_err(io)?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Goes back to `place`: what was written about later steps is cut off.
    ///
    /// # Errors
    /// As [`Metrics::open`].
    pub fn rewind(&mut self, place: Place) -> Result<()> {
        *self = Self::open(&self.path, place)?;
        Ok(())
    }

    /// Appends a line. It reaches the system at once, the disk with [`Metrics::sync`].
    ///
    /// # Errors
    /// Names the file when it cannot be written.
    pub fn write(&mut self, line: &str) -> Result<()> {
        let whole = format!("{line}\n");
        self.file.write_all(whole.as_bytes()).map_err(|e| Error::io("write", &self.path, &e))
    }

    /// Makes all lines durable: before a checkpoint that implies them.
    ///
    /// # Errors
    /// Names the file when it cannot be written.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("write", &self.path, &e))
    }
}

/// Bytes of the lines up to the first that is beyond `place` or torn.
fn length_up_to(file: &File, place: Place) -> std::io::Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut length, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let read = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        let stays = line.ends_with(b"\n")
            && serde_json::from_slice::<Line>(&line).is_ok_and(|line| line.is_before(place));
        if !stays {
            return Ok(length);
        }
        length += read as u64;
    }
}

/// The text of an event.
///
/// # Errors
/// None in practice: every event can be written as JSON.
pub fn line(event: &Event) -> Result<String> {
    serde_json::to_string(event).map_err(|e| Error::failure(format!("cannot report: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const RUN: &str = "\
{\"event\":\"start\",\"step\":0}
{\"event\":\"step\",\"step\":1}
{\"event\":\"step\",\"step\":2}
{\"event\":\"eval\",\"step\":2}
{\"event\":\"interrupted\",\"step\":2}
";

    fn reopened(text: &str, step: u64) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, text).unwrap();
        let place = Place { step, rewinds: 1, within: false };
        Metrics::open(&path, place).unwrap().write("new").unwrap();
        fs::read_to_string(&path).unwrap()
    }

    fn first_lines(n: usize) -> String {
        RUN.lines().take(n).fold(String::new(), |all, line| all + line + "\n")
    }

    #[test]
    fn what_is_beyond_the_step_is_cut() {
        assert_eq!(reopened(RUN, 2), first_lines(4) + "new\n");
        assert_eq!(reopened(RUN, 1), first_lines(2) + "new\n");
        assert_eq!(reopened(RUN, 0), "new\n");
        assert_eq!(reopened("", 7), "new\n");
    }

    #[test]
    fn a_second_session_from_the_same_step_replaces_the_first() {
        let again =
            first_lines(4) + "{\"event\":\"start\",\"step\":2}\n{\"event\":\"step\",\"step\":3}\n";
        assert_eq!(reopened(&again, 2), first_lines(4) + "new\n");
        assert_eq!(reopened(&again, 3), again + "new\n");
    }

    /// It is not the end of a session, behind which nothing comes that stays.
    #[test]
    fn the_number_of_workers_that_was_found_stays_with_what_follows() {
        let found = "{\"event\":\"threads\",\"step\":2}\n{\"event\":\"step\",\"step\":3}\n";
        let run = first_lines(4) + found;
        assert_eq!(reopened(&run, 3), run + "new\n");
    }

    #[test]
    fn samples_and_what_workers_did_stay_up_to_the_step() {
        let more = "{\"event\":\"work\",\"step\":2}\n{\"event\":\"sample\",\"step\":2}\n";
        let run = first_lines(3) + more + "{\"event\":\"work\",\"step\":3}\n";
        assert_eq!(reopened(&run, 2), first_lines(3) + more + "new\n");
        // Of before samples had a step: it is the finished run's.
        assert_eq!(reopened("{\"event\":\"sample\"}\n", 9), "new\n");
    }

    /// Which a run that was killed behind it comes to again.
    #[test]
    fn a_rewind_stays_if_the_checkpoint_knows_of_it() {
        let spike = |n: u32| format!("{{\"event\":\"spike\",\"step\":2,\"rewinds\":{n}}}\n");
        let skipped = "{\"event\":\"spike\",\"step\":2}\n{\"event\":\"step\",\"step\":2}\n";
        let run = first_lines(2) + skipped + &spike(1) + "{\"event\":\"step\",\"step\":3}\n";
        assert_eq!(reopened(&run, 3), run.clone() + "new\n");
        assert_eq!(reopened(&run, 2), first_lines(2) + skipped + &spike(1) + "new\n");
        assert_eq!(reopened(&run, 1), first_lines(2) + "new\n");
        let twice = first_lines(2) + skipped + &spike(1) + &spike(2);
        assert_eq!(reopened(&twice, 2), first_lines(2) + skipped + &spike(1) + "new\n");
    }

    #[test]
    fn a_session_that_goes_back_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, first_lines(3)).unwrap();
        let within = Place { within: true, ..Place::default() };
        let mut metrics = Metrics::open(&path, Place { step: 9, ..within }).unwrap();
        metrics.rewind(within).unwrap();
        metrics.write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), first_lines(1) + "new\n");
    }

    #[test]
    fn a_torn_line_goes() {
        assert_eq!(reopened(&(first_lines(2) + "{\"event\":\"ste"), 9), first_lines(2) + "new\n");
        // Whole but for its newline: it cannot be told from a torn one.
        let unended = first_lines(2) + "{\"event\":\"step\",\"step\":2}";
        assert_eq!(reopened(&unended, 9), first_lines(2) + "new\n");
    }
}
