//! The trace file: the JSON that Perfetto and chrome://tracing open.
//!
//! One object: `otherData` has what the trace is about ([`About`]), `traceEvents` the spans,
//! each on a line of its own. Thread 0 is the training thread, thread n + 1 worker n. An event
//! of a tile is one operation of it; `args` say of which stage and which tile, so that the
//! operations of a tile can be put together again. Events are written one by one, and
//! read one by one into the few numbers that are wanted of them.

use core::fmt;
use core::ops::Range;
use std::io::{self, BufReader, Write};
use std::path::Path;

use cllm_core::Op;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::about::{About, VERSION};
use super::record::TileEvent;
use super::tracer::{Span, What};
use crate::error::{Error, Result};
use crate::files;

/// Most workers of a run.
const MOST_WORKERS: usize = 1024;

/// The one process of a trace.
const PROCESS: u32 = 1;

/// A complete event. Times are microseconds, to the nanosecond.
#[derive(Serialize)]
struct Complete<'a, A: Serialize> {
    name: &'a str,
    cat: &'a str,
    ph: &'static str,
    ts: f64,
    dur: f64,
    pid: u32,
    tid: usize,
    args: A,
}

#[derive(Serialize)]
struct TileArgs {
    stage: u16,
    tile: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<u32>,
    stolen: bool,
}

#[derive(Serialize)]
struct NoArgs {}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'static str,
    ph: &'static str,
    pid: u32,
    tid: usize,
    args: Named<'a>,
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
}

fn microseconds(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// Writes a trace. `sections` has the section of each stage.
pub(super) fn write(
    to: &mut dyn Write,
    about: &About,
    tracks: &[Vec<TileEvent>],
    spans: &[Span],
    sections: &[&str],
) -> io::Result<()> {
    write!(to, "{{\"otherData\":")?;
    serde_json::to_writer(&mut *to, about)?;
    write!(to, ",\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    let names = (0..tracks.len()).map(|n| format!("cllm-worker-{n}"));
    let process = Metadata {
        name: "process_name",
        ph: "M",
        pid: PROCESS,
        tid: 0,
        args: Named { name: "cllm train" },
    };
    writeln!(to)?;
    serde_json::to_writer(&mut *to, &process)?;
    for (tid, name) in ["main".to_owned()].into_iter().chain(names).enumerate() {
        let args = Named { name: &name };
        let thread = Metadata { name: "thread_name", ph: "M", pid: PROCESS, tid, args };
        writeln!(to, ",")?;
        serde_json::to_writer(&mut *to, &thread)?;
    }
    for span in spans {
        writeln!(to, ",")?;
        let event = Complete {
            name: span.what.name(),
            cat: "main",
            ph: "X",
            ts: microseconds(span.begin),
            dur: microseconds(span.end - span.begin),
            pid: PROCESS,
            tid: 0,
            args: NoArgs {},
        };
        serde_json::to_writer(&mut *to, &event)?;
    }
    for (worker, track) in tracks.iter().enumerate() {
        for event in track {
            writeln!(to, ",")?;
            let &TileEvent { begin, end, kind, layer, stage, tile, stolen, .. } = event;
            let event = Complete {
                name: Op::KINDS.get(usize::from(kind)).copied().unwrap_or_default(),
                cat: sections.get(usize::from(stage)).copied().unwrap_or_default(),
                ph: "X",
                ts: microseconds(begin),
                dur: microseconds(end - begin),
                pid: PROCESS,
                tid: worker + 1,
                args: TileArgs { stage, tile, layer, stolen },
            };
            serde_json::to_writer(&mut *to, &event)?;
        }
    }
    writeln!(to, "\n]}}")
}

/// A tile as it was run, with all operations that it went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Number of the stage.
    pub stage: u32,
    /// Which of its tiles.
    pub tile: u32,
    /// Nanoseconds.
    pub begin: u64,
    /// Nanoseconds.
    pub end: u64,
}

/// What is read of a trace.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What it says of itself.
    pub about: About,
    /// Tiles of each worker, in their order.
    pub workers: Vec<Vec<Tile>>,
    /// When each step began and ended, in nanoseconds.
    pub steps: Vec<Range<u64>>,
}

#[derive(Deserialize)]
struct ReadFile {
    #[serde(rename = "otherData")]
    about: About,
    #[serde(rename = "traceEvents", default, deserialize_with = "wanted")]
    events: Vec<ReadEvent>,
}

/// Of another version or not, or not ours at all.
#[derive(Deserialize)]
struct ReadVersion {
    #[serde(rename = "otherData")]
    about: Option<Version>,
}

#[derive(Deserialize)]
struct Version {
    cllm_trace: Option<u32>,
}

/// Events of tiles and steps alone: a file may have any number of others.
fn wanted<'de, D: Deserializer<'de>>(events: D) -> core::result::Result<Vec<ReadEvent>, D::Error> {
    struct Wanted;
    impl<'de> Visitor<'de> for Wanted {
        type Value = Vec<ReadEvent>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of events")
        }

        fn visit_seq<A: SeqAccess<'de>>(
            self,
            mut events: A,
        ) -> core::result::Result<Self::Value, A::Error> {
            let mut kept = Vec::new();
            while let Some(mut event) = events.next_element::<ReadEvent>()? {
                let is_tile = event.args.stage.is_some() && event.args.tile.is_some();
                if is_tile || event.is_step() {
                    event.name.shrink_to_fit();
                    kept.push(event);
                }
            }
            Ok(kept)
        }
    }
    events.deserialize_seq(Wanted)
}

#[derive(Deserialize)]
struct ReadEvent {
    #[serde(default)]
    name: String,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    tid: u32,
    #[serde(default)]
    args: ReadArgs,
}

impl ReadEvent {
    fn is_step(&self) -> bool {
        self.tid == 0 && self.name == What::Step.name()
    }
}

#[derive(Default, Deserialize)]
struct ReadArgs {
    stage: Option<u32>,
    tile: Option<u32>,
}

/// Reads a trace that [`write`] wrote.
///
/// # Errors
/// The file cannot be read, or is no such trace: the message names it and says what to do.
pub fn read(path: &Path) -> Result<Trace> {
    const RECORD: &str = "record one with `cllm train --trace FILE`";
    let file = || -> Result<_> {
        let file = files::open(path).map_err(|e| Error::io("read the trace", path, &e))?;
        Ok(BufReader::with_capacity(1 << 18, file))
    };
    let wrong = |what: String| Error::failure(format!("{}: {what}; {RECORD}", path.display()));
    // Read twice: what it is of decides what is kept of it.
    let cut = |e: serde_json::Error| wrong(format!("not a whole trace ({e})"));
    let version: ReadVersion = serde_json::from_reader(file()?).map_err(cut)?;
    match version.about.and_then(|about| about.cllm_trace) {
        Some(VERSION) => {}
        Some(other) => return Err(wrong(other_version(other))),
        None => return Err(wrong("not a trace of this program".to_owned())),
    }
    let read: ReadFile = serde_json::from_reader(file()?).map_err(cut)?;
    let about = read.about;
    if !(1..=MOST_WORKERS).contains(&about.workers) {
        return Err(wrong(format!("{} workers: no run has so many", about.workers)));
    }
    let (mut workers, mut steps) = (vec![Vec::<Tile>::new(); about.workers], Vec::new());
    for event in read.events {
        let nanos = |us: f64| (us * 1000.0).round() as u64;
        let begin = nanos(event.ts);
        let end = begin.saturating_add(nanos(event.dur));
        let (Some(stage), Some(tile)) = (event.args.stage, event.args.tile) else {
            if event.is_step() {
                steps.push(begin..end);
            }
            continue;
        };
        let worker = (event.tid as usize).checked_sub(1).and_then(|n| workers.get_mut(n));
        let Some(worker) = worker else {
            return Err(wrong(format!("an event of a thread {} that there is not", event.tid)));
        };
        match worker.last_mut() {
            // The next operation of the tile begins when the one before ends.
            Some(last) if (last.stage, last.tile, last.end) == (stage, tile, begin) => {
                last.end = end;
            }
            _ => worker.push(Tile { stage, tile, begin, end }),
        }
    }
    Ok(Trace { about, workers, steps })
}

fn other_version(version: u32) -> String {
    format!("a trace of format {version}, but this program reads {VERSION}")
}
