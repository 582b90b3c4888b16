//! Generating: texts that take turns with one model, and models that take the place of older ones.
//!
//! ```text
//! look: the model at the path, as soon as there is one
//!   generators, each of which continues one text at a time
//!     the next text in line -> the free generator that knows most of its prompt
//!     a turn of each text: a chunk of the prompt, or a token
//!     a newer checkpoint: nobody begins, until all have ended -> look
//! ```

use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use cllm_core::generate::Generator;

use super::Server;
use super::events::Event;
use super::model::{Found, Stamp};
use super::problem::Problem;
use super::queue::Ask;
use super::sequence::{Scratch, Sequence, Turn};
use super::texts::Texts;
use crate::error::Result;
use crate::generate;
use crate::model::kernels;
use crate::streams::Streams;

/// How often newer checkpoints are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Why a model is not served any more.
enum Left {
    Ended,
    Newer(Box<Found>),
}

/// Generates what is asked for until the line is closed, at first with `found`.
///
/// # Errors
/// The first model cannot be loaded.
pub(super) fn work(server: &Server, found: Option<Found>) -> Result<()> {
    let mut found = found.map(Box::new);
    let mut texts = None;
    let mut served = false;
    while !server.queue.is_closed() {
        let Some(now) = found.take() else {
            server.queue.wait_closed(LOOK);
            found = look(server, texts.as_ref()).map(Box::new);
            continue;
        };
        texts = Some(Arc::clone(&now.model.texts));
        match serve(server, *now) {
            Ok(Left::Ended) => break,
            Ok(Left::Newer(newer)) => found = Some(newer),
            // The path may have a better one later.
            Err(error) if served => {
                server.publish(None);
                server.log.note(&format!("cannot load the model: {error}"));
            }
            Err(error) => return Err(error),
        }
        served = true;
    }
    Ok(())
}

/// The model at the path; what is wrong with it is told and waited out.
fn look(server: &Server, before: Option<&Arc<Texts>>) -> Option<Found> {
    Found::look(&server.settings, before).unwrap_or_else(|error| {
        server.log.note(&format!("cannot read the model: {error}"));
        None
    })
}

/// Serves a model until the line is closed or there is a newer one.
fn serve(server: &Server, found: Found) -> Result<Left> {
    let settings = &server.settings;
    let config = found.config();
    let Found { trained, model, stamp } = found;
    let kernels = kernels(settings.isa, settings.dtype)?;
    let workers = generate::workers(settings.threads, &config, kernels)?;
    let parameters = trained.parameters()?;
    // The mapped file counts as memory of this program as long as it is held.
    drop(trained);
    let mut streams = Streams::new(&config, workers, settings.parallel, kernels)?;
    let scratch = Scratch::new(config.vocab_size)?;
    let texts = Arc::clone(&model.texts);
    streams.with_generators(&parameters, |generators| {
        server.publish(Some(model));
        let seats = generators.into_iter().map(Seat::new).collect();
        let mut table = Table { seats, texts: &texts, scratch, time: 0 };
        let mut watch = Watch { stamp, looked: Instant::now() };
        let mut newer = None;
        loop {
            if newer.is_none() && settings.reload {
                newer = watch.look(server, &texts);
            }
            while newer.is_none() && table.has_room() {
                let Some((ask, choice)) = server.queue.next() else { break };
                table.seat(ask, choice, &texts);
            }
            if table.turn() {
                continue;
            }
            match newer {
                Some(newer) => return Ok(Left::Newer(Box::new(newer))),
                None if server.queue.is_closed() => return Ok(Left::Ended),
                None => server.queue.wait(LOOK),
            }
        }
    })
}

/// Looks for newer checkpoints now and then.
struct Watch {
    stamp: Option<Stamp>,
    looked: Instant,
}

impl Watch {
    /// A newer model than the one that is served.
    fn look(&mut self, server: &Server, texts: &Arc<Texts>) -> Option<Found> {
        if self.looked.elapsed() < LOOK {
            return None;
        }
        self.looked = Instant::now();
        let stamp = Stamp::of(&server.settings.path)?;
        if self.stamp.as_ref() == Some(&stamp) {
            return None;
        }
        // Whatever comes of it: a file that is damaged is not read again and again.
        self.stamp = Some(stamp);
        look(server, Some(texts))
    }
}

/// Those whose turn it is.
struct Table<'a, 't> {
    seats: Vec<Seat<'a, 't>>,
    texts: &'t Texts,
    scratch: Scratch,
    /// Counts those who sat down.
    time: u64,
}

/// A generator, and whose text it continues.
struct Seat<'a, 't> {
    generator: Generator<'a>,
    /// Tokens that it was fed in whole chunks, from the beginning of a text.
    seen: Vec<u32>,
    /// When somebody sat down here.
    since: u64,
    sequence: Option<Sequence<'t>>,
}

impl<'a> Seat<'a, '_> {
    fn new(generator: Generator<'a>) -> Self {
        Self { generator, seen: Vec::new(), since: 0, sequence: None }
    }
}

impl<'t> Table<'_, 't> {
    fn has_room(&self) -> bool {
        self.seats.iter().any(|seat| seat.sequence.is_none())
    }

    /// Begins a text where most of it is known, and else where nobody has been for longest.
    fn seat(&mut self, ask: Arc<Ask>, choice: usize, texts: &Arc<Texts>) {
        // Waiting since before a model with other tokens took this one's place.
        if !Arc::ptr_eq(&ask.texts, texts) {
            let words = "another model took the place of the one that was asked; ask again";
            ask.out.send(Event::Failed(Problem::unavailable(words)));
            return;
        }
        let out = ask.out.clone();
        let mut sequence = match Sequence::new(ask, choice, self.texts) {
            Ok(sequence) => sequence,
            Err(problem) => {
                out.send(Event::Failed(problem));
                return;
            }
        };
        let free = self.seats.iter_mut().filter(|seat| seat.sequence.is_none());
        let best = |seat: &&mut Seat<'_, '_>| (sequence.known(&seat.seen), u64::MAX - seat.since);
        let Some(seat) = free.max_by_key(best) else { return };
        let known = sequence.known(&seat.seen);
        seat.generator.keep(known);
        seat.seen.truncate(known);
        self.time += 1;
        seat.since = self.time;
        sequence.begin(known);
        seat.sequence = Some(sequence);
    }

    /// A turn for everybody; false if there is nobody.
    fn turn(&mut self) -> bool {
        let mut somebody = false;
        for Seat { generator, seen, sequence, .. } in &mut self.seats {
            let Some(text) = sequence else { continue };
            somebody = true;
            if text.turn(generator, seen, &mut self.scratch) == Turn::Last {
                *sequence = None;
            }
        }
        somebody
    }
}
