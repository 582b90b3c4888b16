//! Event files of TensorBoard: the figures of `metrics.jsonl` while a run writes them.
//!
//! A file is a row of records, each an `Event` of `tensorflow/core/util/event.proto` in the frame of
//! `tensorflow/core/lib/io/record_writer.h`:
//!
//! ```text
//! length 8   masked CRC-32C of the length 4   event   masked CRC-32C of the event 4
//! ```
//!
//! Each session of a run has a file of its own, which begins with the version of the format. What an
//! earlier session, which was killed, has said of steps that are to be done again is taken out of its
//! file ([`forget`]), as out of `metrics.jsonl`: TensorBoard's usual reader does not know starts of
//! sessions, which others forget such steps by.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};
use crate::files;
use crate::train::event;

/// Folder of the files, in the run's.
pub const FOLDER: &str = "tensorboard";

/// The version of the format.
const VERSION: &str = "brain.Event:2";
/// What names of files begin with, and what tells this program's from others'.
const PREFIX: &str = "events.out.tfevents.";
const OWN: &str = ".cllm.";

/// `Event`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `Summary.Value` of a number. It is written if it is 0, too.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// The file of a session.
#[derive(Debug)]
pub struct Board {
    path: PathBuf,
    file: File,
}

impl Board {
    /// Begins a session's file in the run folder `dir`.
    ///
    /// # Errors
    /// Names what cannot be created or written.
    pub fn create(dir: &Path) -> Result<Self> {
        let folder = dir.join(FOLDER);
        files::create_own_dir(&folder)?;
        let (seconds, pid) = (seconds() as u64, std::process::id());
        let mut number = 0;
        let (path, file) = loop {
            let path = folder.join(format!("{PREFIX}{seconds:010}{OWN}{pid}.{number}"));
            match OpenOptions::new().create_new(true).write(true).open(&path) {
                Ok(file) => break (path, file),
                // Sessions of one second, or of containers, whose processes have one number.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(Error::io("create", &path, &e)),
            }
        };
        let mut board = Self { path, file };
        board.write(0, What::FileVersion(VERSION.to_owned()))?;
        Ok(board)
    }

    /// Writes the figures of an event, if it has any.
    ///
    /// # Errors
    /// Names the file when it cannot be written.
    pub fn event(&mut self, event: &event::Event) -> Result<()> {
        let Some((step, figures)) = figures(event) else { return Ok(()) };
        let value = |(tag, number): (&str, f64)| Value {
            tag: tag.to_owned(),
            simple_value: Some(number as f32),
        };
        let value = figures.into_iter().map(value).collect();
        self.write(step, What::Summary(Summary { value }))
    }

    fn write(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event { wall_time: seconds(), step: step as i64, what: Some(what) };
        let record = record(&event.encode_to_vec());
        // At once, and not a part: TensorBoard reads while the run goes on.
        self.file.write_all(&record).map_err(|e| Error::io("write", &self.path, &e))
    }
}

/// Takes out of the files in the run folder `dir` what they say of steps beyond `step`, and what is torn.
///
/// # Errors
/// Names what cannot be read or written.
pub fn forget(dir: &Path, step: u64) -> Result<()> {
    let folder = dir.join(FOLDER);
    files::refuse_link(&folder)?;
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(());
        }
        Err(e) => return Err(Error::io("read", &folder, &e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", &folder, &e))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        if !name.starts_with(PREFIX) || !name.contains(OWN) {
            continue;
        }
        let bytes = files::read(&path).map_err(|e| Error::io("read", &path, &e))?;
        let mut kept = Vec::with_capacity(bytes.len());
        for (record, event) in records(&bytes) {
            if event.step <= step as i64 {
                kept.extend(record);
            }
        }
        if kept.len() < bytes.len() {
            files::write_atomic(&path, &kept)?;
        }
    }
    Ok(())
}

/// The records of a file and what is in them, up to the first that is not whole.
fn records(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], Event)> {
    core::iter::from_fn(move || {
        let length = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
        let whole = length.checked_add(FRAME)?;
        let (this, rest) = bytes.split_at_checked(whole)?;
        let event = &this[12..12 + length];
        if record(event) != this {
            return None;
        }
        bytes = rest;
        Some((this, Event::decode(event).ok()?))
    })
}

/// Bytes around an event.
const FRAME: usize = 8 + 4 + 4;

/// The step of an event and its figures by name, if it has any.
fn figures(event: &event::Event) -> Option<(u64, Vec<(&'static str, f64)>)> {
    match event {
        event::Event::Step(step) => {
            let figures = vec![
                ("loss/train", step.loss),
                ("learning_rate", f64::from(step.lr)),
                ("grad_norm", step.grad_norm),
                ("speed/tokens_per_s", step.tokens_per_s),
                ("speed/share_of_peak", step.mfu),
                ("speed/data_wait_s", step.data_wait),
            ];
            Some((step.step, figures))
        }
        event::Event::Eval(eval) => Some((eval.step, vec![("loss/validation", eval.val_loss)])),
        _ => None,
    }
}

/// Seconds since 1970.
fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// An event in its frame.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(&length).to_le_bytes());
    record.extend(event);
    record.extend(masked(event).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted so that a checksum of bytes with checksums is no trivial one.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::event::{Eval, Step};

    /// The events of a file, all of whose frames must be whole and right.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let records: Vec<_> = records(&bytes).collect();
        assert_eq!(records.iter().map(|(record, _)| record.len()).sum::<usize>(), bytes.len());
        records.into_iter().map(|(_, event)| event).collect()
    }

    fn step(step: u64) -> event::Event {
        event::Event::Step(Step {
            step,
            loss: 2.5,
            lr: 0.0,
            grad_norm: f64::NAN,
            tokens_per_s: 1e4,
            mfu: 0.5,
            data_wait: 0.125,
            seconds: 1.0,
        })
    }

    #[test]
    fn a_file_has_a_version_and_every_figure() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = Board::create(dir.path()).unwrap();
        board.event(&step(8)).unwrap();
        board
            .event(&event::Event::Eval(Eval { step: 8, val_loss: 3.0, best: true, seconds: 1.5 }))
            .unwrap();
        let events = read(&board.path);
        assert_eq!(events[0].what, Some(What::FileVersion(VERSION.to_owned())));
        assert_eq!(events.iter().map(|event| event.step).collect::<Vec<_>>(), [0, 8, 8]);
        let values = |event: &Event| match &event.what {
            Some(What::Summary(summary)) => summary.value.clone(),
            other => panic!("{other:?}"),
        };
        let step = values(&events[1]);
        assert_eq!((step[0].tag.as_str(), step[0].simple_value), ("loss/train", Some(2.5)));
        assert_eq!(step[1].simple_value, Some(0.0));
        assert!(step[2].simple_value.unwrap().is_nan());
        assert_eq!(step[5].simple_value, Some(0.125));
        assert_eq!(values(&events[2])[0].tag, "loss/validation");
        assert!(events[1].wall_time > 1.7e9);
    }

    #[test]
    fn what_will_be_done_again_and_what_is_torn_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        forget(dir.path(), 3).unwrap();
        // Two of one second.
        let mut boards = [0, 1].map(|_| Board::create(dir.path()).unwrap());
        for (board, steps) in boards.iter_mut().zip([1..=4, 4..=6]) {
            steps.for_each(|at| board.event(&step(at)).unwrap());
        }
        boards[0].file.write_all(b"torn").unwrap();
        let others = dir.path().join(FOLDER).join("events.out.tfevents.1.theirs");
        fs::write(&others, "not ours").unwrap();
        forget(dir.path(), 5).unwrap();
        let steps = |board: &Board| read(&board.path).iter().map(|e| e.step).collect::<Vec<_>>();
        assert_eq!(boards.each_ref().map(steps), [vec![0, 1, 2, 3, 4], vec![0, 4, 5]]);
        forget(dir.path(), 0).unwrap();
        assert_eq!(boards.each_ref().map(steps), [vec![0], vec![0]]);
        assert_eq!(fs::read(others).unwrap(), b"not ours");
    }

    #[test]
    fn frames_have_the_checksum_of_record_writers() {
        // RFC 3720, section B.4: 32 bytes of zeros; then masked.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
