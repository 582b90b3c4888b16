//! Event files of TensorBoard: the figures of `metrics.jsonl` while a run writes them.
//!
//! A file is a row of records, each an `Event` of `tensorflow/core/util/event.proto` in the frame of
//! `tensorflow/core/lib/io/record_writer.h`:
//!
//! ```text
//! length 8   masked CRC-32C of the length 4   event   masked CRC-32C of the event 4
//! ```
//!
//! Each session of a run has a file of its own. It begins with the version of the format and with the start
//! of a session at the first step to come: TensorBoard then forgets what an earlier session, which was
//! killed, has said of that step and those behind it, as `metrics.jsonl` does.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};
use crate::files;
use crate::train::event;

/// Folder of the files, in the run's.
pub const FOLDER: &str = "tensorboard";

/// The version whose readers know starts of sessions.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

/// `Event`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
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

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The file of a session.
#[derive(Debug)]
pub struct Board {
    path: PathBuf,
    file: File,
}

impl Board {
    /// Begins a session's file in the run folder `dir`, after `step` steps.
    ///
    /// # Errors
    /// Names what cannot be created or written.
    pub fn create(dir: &Path, step: u64) -> Result<Self> {
        let folder = dir.join(FOLDER);
        files::create_dir(&folder)?;
        // Read in the order of their names. A folder has one session at a time.
        let (seconds, pid) = (seconds() as u64, std::process::id());
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.cllm.{pid}"));
        let file = OpenOptions::new().create_new(true).write(true).open(&path);
        let file = file.map_err(|e| Error::io("create", &path, &e))?;
        let mut board = Self { path, file };
        board.write(0, What::FileVersion(VERSION.to_owned()))?;
        board.write(step + 1, What::SessionLog(SessionLog { status: START }))?;
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

    /// The events of a file, whose frames must be whole and right.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let (mut events, mut rest) = (Vec::new(), &bytes[..]);
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            assert_eq!(after[..4], masked(length).to_le_bytes());
            let event = &after[4..4 + n];
            assert_eq!(after[4 + n..8 + n], masked(event).to_le_bytes());
            events.push(Event::decode(event).unwrap());
            rest = &after[8 + n..];
        }
        events
    }

    #[test]
    fn a_file_has_a_version_a_start_and_every_figure() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = Board::create(dir.path(), 7).unwrap();
        let step = Step {
            step: 8,
            loss: 2.5,
            lr: 0.0,
            grad_norm: f64::NAN,
            tokens_per_s: 1e4,
            mfu: 0.5,
            data_wait: 0.125,
        };
        board.event(&event::Event::Step(step)).unwrap();
        board.event(&event::Event::Eval(Eval { step: 8, val_loss: 3.0, best: true })).unwrap();
        let events = read(&board.path);
        assert_eq!(events[0].what, Some(What::FileVersion(VERSION.to_owned())));
        assert_eq!(events[1].what, Some(What::SessionLog(SessionLog { status: 1 })));
        assert_eq!(events.iter().map(|event| event.step).collect::<Vec<_>>(), [0, 8, 8, 8]);
        let values = |event: &Event| match &event.what {
            Some(What::Summary(summary)) => summary.value.clone(),
            other => panic!("{other:?}"),
        };
        let step = values(&events[2]);
        assert_eq!((step[0].tag.as_str(), step[0].simple_value), ("loss/train", Some(2.5)));
        assert_eq!(step[1].simple_value, Some(0.0));
        assert!(step[2].simple_value.unwrap().is_nan());
        assert_eq!(step[5].simple_value, Some(0.125));
        assert_eq!(values(&events[3])[0].tag, "loss/validation");
        assert!(events[2].wall_time > 1.7e9);
    }

    #[test]
    fn frames_have_the_checksum_of_record_writers() {
        // RFC 3720, section B.4: 32 bytes of zeros; then masked.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
