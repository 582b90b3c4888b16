//! `metrics.jsonl`: the reported events of a run, each step once, however often the
//! run was killed and resumed.

use core::ops::Range;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::event::Event;
use crate::error::{Error, Result};
use crate::files::{self, AtomicFile};

/// No line has as many bytes.
pub(crate) const LONGEST_LINE: u64 = 4 << 20;

/// The open file.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

/// A warning names no more lines.
const MOST_NAMED: usize = 5;

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

/// What a line is to a run that goes on from some place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It belongs to the run.
    Stays,
    /// A session begins here, or one ends: the lines behind it are of what is done again, or of the end.
    Ends,
    /// It is about a later step, or says nothing: the run has been further, or the line is damaged. Steps never go
    /// back in a file that was only written to, so it is damaged if a line behind it stays.
    Strange,
}

impl Line {
    fn kind(&self, place: Place) -> Kind {
        let Place { step, rewinds, within } = place;
        let or = |stays, other| if stays { Kind::Stays } else { other };
        let beyond = |at| if at == step { Kind::Ends } else { Kind::Strange };
        match (self.event.as_str(), self.step) {
            ("step" | "eval" | "work" | "sample" | "threads", Some(at)) => {
                or(at <= step, Kind::Strange)
            }
            ("spike", Some(at)) => {
                let known = at < step || at == step && self.rewinds.unwrap_or(0) <= rewinds;
                or(known, beyond(at))
            }
            // A session that began here is begun again by the one that resumes.
            ("start", Some(at)) => or(at < step || at == step && within, beyond(at)),
            ("interrupted" | "done", _) => Kind::Ends,
            _ => Kind::Strange,
        }
    }
}

impl Metrics {
    /// Opens the file for a run that goes on from `place`: what was written about later steps is cut off, and lines
    /// that are damaged are left out of it, with a warning that has their numbers.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, place: Place) -> Result<Self> {
        let io = |e| Error::io("write", path, &e);
        let mut file = files::open_own(path).map_err(io)?;
        let mut kept = look(&file, place).map_err(io)?;
        if kept.damaged.count > 0 {
            kept.say_damaged(path);
            kept.length = copy(path, &mut file, &kept)?;
            file = files::open_own(path).map_err(io)?;
        }
        let end = kept.length;
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(io)?;
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

/// What stays of a file.
#[derive(Default)]
struct Kept {
    /// It is in so many bytes.
    length: u64,
    /// Lines between those that stay.
    damaged: Lines,
}

/// Lines of a file, in their order.
#[derive(Default)]
struct Lines {
    count: usize,
    /// Numbers of the first of them, from 1.
    named: Vec<u64>,
    /// Where they are: those that follow each other are one, so that this is less than the file.
    gaps: Vec<Range<u64>>,
}

impl Lines {
    fn push(&mut self, number: u64, at: Range<u64>) {
        self.count += 1;
        if self.named.len() < MOST_NAMED {
            self.named.push(number);
        }
        match self.gaps.last_mut() {
            Some(last) if last.end == at.start => last.end = at.end,
            _ => self.gaps.push(at),
        }
    }

    /// `others` are behind these, and there are none of them afterwards.
    fn append(&mut self, others: &mut Self) {
        self.count += core::mem::take(&mut others.count);
        let room = MOST_NAMED - self.named.len();
        self.named.extend(others.named.drain(..).take(room));
        self.gaps.append(&mut others.gaps);
    }
}

impl Kept {
    fn say_damaged(&self, path: &Path) {
        let Lines { count, named, .. } = &self.damaged;
        let numbers: Vec<_> = named.iter().map(u64::to_string).collect();
        let (lines, are) = if *count == 1 { ("line", "it is") } else { ("lines", "they are") };
        let more = match count - numbers.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        say!(
            "cllm: {}, {lines} {}{more}: {are} damaged, and left out from now on; what stands behind that stays",
            path.display(),
            numbers.join(", ")
        );
    }
}

/// Looks for what stays of the file, whose lines up to the end of the last session are gone through.
fn look(file: &File, place: Place) -> std::io::Result<Kept> {
    let mut reader = BufReader::new(file);
    let (mut kept, mut strange) = (Kept::default(), Lines::default());
    let (mut at, mut line) = (0, Vec::new());
    for number in 1.. {
        line.clear();
        let read = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? as u64;
        // The end, a line that is torn there, or one that no event has.
        if !line.ends_with(b"\n") {
            break;
        }
        let kind =
            serde_json::from_slice::<Line>(&line).map_or(Kind::Strange, |line| line.kind(place));
        let all = at..at + read;
        at = all.end;
        match kind {
            Kind::Ends => break,
            Kind::Strange => strange.push(number, all),
            Kind::Stays => {
                kept.damaged.append(&mut strange);
                kept.length = at;
            }
        }
    }
    Ok(kept)
}

/// Puts a file without the lines that are damaged in the place of one with them; how long it is.
fn copy(path: &Path, file: &mut File, kept: &Kept) -> Result<u64> {
    let io = |e| Error::io("write", path, &e);
    let mut whole = AtomicFile::create(path)?;
    let mut begin = 0;
    let mut length = 0;
    let end = kept.length..kept.length;
    for gap in kept.damaged.gaps.iter().chain([&end]) {
        file.seek(SeekFrom::Start(begin)).map_err(io)?;
        length += std::io::copy(&mut (&*file).take(gap.start - begin), &mut whole).map_err(io)?;
        begin = gap.end;
    }
    whole.commit()?;
    Ok(length)
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

    /// It takes nothing with it that stands behind it, if anything does that stays.
    #[test]
    fn a_damaged_line_goes_alone() {
        let lines: Vec<&str> = RUN.lines().take(4).collect();
        for at in 0..3 {
            let (event, step) = (
                lines[at].replacen("\":\"", "\":\"\u{1}", 1),
                lines[at].replace("\"step\":", "\"step\":9"),
            );
            let bytes = lines[at].replacen('{', "\u{fffd}", 1);
            for damaged in [event.as_str(), &step, &bytes, "", "{}"] {
                let mut all = lines.clone();
                all[at] = damaged;
                let with = all.join("\n")
                    + "\n{\"event\":\"done\",\"step\":2}\n{\"event\":\"work\",\"step\":2}\n";
                all.remove(at);
                assert_eq!(reopened(&with, 2), all.join("\n") + "\nnew\n", "{damaged:?}");
            }
        }
        // With nothing behind it that stays it goes with the end.
        assert_eq!(
            reopened(&(first_lines(3) + "{}\n{\"event\":\"step\",\"step\":3}\n"), 2),
            first_lines(3) + "new\n"
        );
    }

    /// Whatever they are, what is remembered of them is not more than they are.
    #[test]
    fn many_damaged_lines_are_one_gap() {
        let lines: Vec<&str> = RUN.lines().take(4).collect();
        let some = "\n".repeat(5000);
        let all = [lines[0], "\n", &some, lines[1], "\n{}\n", lines[2], "\n"].concat();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &all).unwrap();
        let kept = look(file.as_file(), Place { step: 2, ..Place::default() }).unwrap();
        assert_eq!((kept.damaged.count, kept.damaged.gaps.len()), (5001, 2));
        assert_eq!(kept.damaged.named, [2, 3, 4, 5, 6]);
        assert_eq!(reopened(&all, 2), first_lines(3) + "new\n");
    }

    #[test]
    fn a_torn_line_goes() {
        assert_eq!(reopened(&(first_lines(2) + "{\"event\":\"ste"), 9), first_lines(2) + "new\n");
        // Whole but for its newline: it cannot be told from a torn one.
        let unended = first_lines(2) + "{\"event\":\"step\",\"step\":2}";
        assert_eq!(reopened(&unended, 9), first_lines(2) + "new\n");
    }
}
