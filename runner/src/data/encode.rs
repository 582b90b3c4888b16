//! Text to tokens on all CPUs.
//!
//! ```text
//! calling thread: reads pieces -> jobs      in the order of the jobs: tokens -> sink
//!                                  |             ^
//! a thread a CPU:                  +-- encodes --+
//! ```
//! Pieces are encoded one by one in any case, so the tokens do not depend on the threads.

use core::num::NonZero;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::pieces::{Piece, Pieces};
use super::source::{Origin, Source};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Bytes of text that make a job: short documents are put together until there are so many.
const JOB_BYTES: usize = 1 << 17;

/// What went through the tokenizer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of text.
    pub bytes: u64,
    /// Documents.
    pub documents: u64,
    /// Tokens, the end-of-text ones among them.
    pub tokens: u64,
}

/// Encodes `sources` on all CPUs and hands the tokens to `sink` part by part, in order.
///
/// # Errors
/// As [`prepare`](super::prepare::prepare), and whatever `sink` fails with: the first one in the order
/// of the text.
pub fn encode(
    sources: &[Source],
    text_field: &str,
    tokenizer: &Tokenizer,
    sink: &mut dyn FnMut(&[u32]) -> Result<()>,
) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut threads = thread::available_parallelism().map_or(1, NonZero::get);
    let (jobs, queue) = mpsc::channel();
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        // Dropped when this returns, whatever happened: then the threads end.
        let jobs = jobs;
        let mut pieces = Pieces::new(sources, text_field);
        let mut under_way = VecDeque::new();
        let mut started = 0;
        let mut take = |encoded: Receiver<Result<Encoded>>| {
            let lost = |_| Err(Error::failure("a thread that encoded text panicked"));
            let Encoded { ids, counts: more } = encoded.recv().unwrap_or_else(lost)?;
            counts.add(more);
            sink(&ids)
        };
        let broken = loop {
            let (job, more) = Job::read(&mut pieces);
            if job.parts.is_empty() {
                break more;
            }
            if started < threads {
                let thread = thread::Builder::new().name("cllm-encoder".to_owned());
                match thread.spawn_scoped(scope, || serve(&queue, tokenizer)) {
                    Ok(_) => started += 1,
                    // The others do it.
                    Err(_) if started > 0 => threads = started,
                    Err(e) => {
                        return Err(Error::failure(format!(
                            "cannot start a thread to encode the data (--data): {e}; allow more threads, or \
                             more memory (ulimit -u, -v)"
                        )));
                    }
                }
            }
            let (reply, encoded) = mpsc::channel();
            under_way.push_back(encoded);
            // Received as long as there is the queue.
            let _ = jobs.send((job, reply));
            // Enough to keep the threads busy while the sink writes.
            while under_way.len() > 3 * threads {
                under_way.pop_front().map_or(Ok(()), &mut take)?;
            }
            if more.is_err() {
                break more;
            }
        };
        under_way.into_iter().try_for_each(take)?;
        broken
    })?;
    if counts.documents == 0 {
        let first = sources.first().map_or_else(String::new, |s| s.name().display().to_string());
        return Err(Error::failure(format!("{first}: no text in the data")));
    }
    Ok(counts)
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.bytes += more.bytes;
        self.documents += more.documents;
        self.tokens += more.tokens;
    }
}

/// Pieces that are encoded together.
#[derive(Default)]
struct Job {
    text: Vec<u8>,
    parts: Vec<Part>,
}

/// A piece that ends there in the text of its job.
struct Part {
    end: usize,
    starts_document: bool,
    path: PathBuf,
    line: Option<u64>,
    offset: u64,
}

/// The tokens of a job.
struct Encoded {
    ids: Vec<u32>,
    counts: Counts,
}

type Order = (Job, Sender<Result<Encoded>>);

/// Encodes what comes, until no more can.
fn serve(queue: &Mutex<Receiver<Order>>, tokenizer: &Tokenizer) {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
    while let Ok((job, reply)) = next() {
        // Nobody listens after an error.
        let _ = reply.send(job.encode(tokenizer));
    }
}

/// Says so where a file begins as no text does: its bytes may be tokens, but hardly meant.
fn warn_of_bytes(piece: &Piece<'_>) {
    if !piece.starts_document || piece.origin.line.is_some() {
        return;
    }
    if let Some(what) = not_text(piece.bytes) {
        say!(
            "cllm: {}: it begins as {what}, not as text; its bytes are taken as they are",
            piece.origin.path.display()
        );
    }
}

/// What a file seems to be that begins with these bytes, if it seems to be no text.
fn not_text(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("text of UTF-16"),
        [0x1f, 0x8b, ..] => Some("a file of gzip"),
        [b'P', b'K', 3, 4, ..] => Some("an archive of zip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("a file of zstd"),
        _ => bytes[..bytes.len().min(4096)].contains(&0).then_some("a file of binary data"),
    }
}

impl Job {
    /// The next pieces, none at the end, and what there was instead of one more.
    fn read(pieces: &mut Pieces) -> (Self, Result<()>) {
        let mut job = Self::default();
        while job.text.len() < JOB_BYTES {
            match pieces.next_piece() {
                Ok(Some(piece)) => {
                    warn_of_bytes(&piece);
                    job.push(&piece);
                }
                Ok(None) => break,
                Err(error) => return (job, Err(error)),
            }
        }
        (job, Ok(()))
    }

    fn push(&mut self, piece: &Piece<'_>) {
        self.text.extend_from_slice(piece.bytes);
        self.parts.push(Part {
            end: self.text.len(),
            starts_document: piece.starts_document,
            path: piece.origin.path.to_path_buf(),
            line: piece.origin.line,
            offset: piece.offset,
        });
    }

    fn encode(&self, tokenizer: &Tokenizer) -> Result<Encoded> {
        let mut ids = Vec::with_capacity(self.text.len() / 3);
        let mut counts = Counts { bytes: self.text.len() as u64, ..Counts::default() };
        let mut start = 0;
        let begin = tokenizer.begin_of_text();
        for part in &self.parts {
            if part.starts_document {
                ids.push(tokenizer.end_of_text());
                ids.extend_from_slice(&begin);
                counts.documents += 1;
            }
            let text = &self.text[start..part.end];
            tokenizer.encode_more(text, !part.starts_document, &mut ids).map_err(|e| {
                e.in_origin(&Origin { path: &part.path, line: part.line }, part.offset)
            })?;
            start = part.end;
        }
        counts.tokens = ids.len() as u64;
        Ok(Encoded { ids, counts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(sources: &[Source], tokenizer: &Tokenizer) -> (Vec<u32>, Result<Counts>) {
        let mut all = Vec::new();
        let counts = encode(sources, "text", tokenizer, &mut |ids| {
            all.extend_from_slice(ids);
            Ok(())
        });
        (all, counts)
    }

    #[test]
    fn tokens_come_in_the_order_of_the_text() {
        // Documents far below a job's size and above it, many jobs in all.
        let texts: Vec<Vec<u8>> = (0..400_usize)
            .map(|i| (0..i * i % 50_021 + 1).map(|j| (i + j) as u8).collect())
            .collect();
        let sources: Vec<Source> =
            texts.iter().map(|text| Source::from_memory("m", text.as_slice())).collect();
        let (found, counts) = tokens(&sources, &Tokenizer::Bytes);
        let mut wanted = Vec::new();
        for text in &texts {
            wanted.push(Tokenizer::Bytes.end_of_text());
            wanted.extend(text.iter().map(|&byte| u32::from(byte)));
        }
        assert!(found == wanted, "tokens are not those of the documents");
        let bytes = texts.iter().map(|text| text.len() as u64).sum();
        assert_eq!(counts.unwrap(), Counts { bytes, documents: 400, tokens: bytes + 400 });
    }

    #[cfg(feature = "bpe")]
    #[test]
    fn documents_begin_as_the_tokenizer_says() {
        let mut json: serde_json::Value =
            serde_json::from_str(&Tokenizer::Bytes.to_transformers().unwrap()).unwrap();
        json["post_processor"] = crate::tokenizer::behind("B", 66);
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        let sources = [Source::from_memory("m", *b"ab"), Source::from_memory("n", *b"c")];
        let (found, counts) = tokens(&sources, &tokenizer);
        assert_eq!(found, [256, 66, 97, 98, 256, 66, 99]);
        assert_eq!(counts.unwrap().tokens, 7);
    }

    #[test]
    fn what_begins_as_no_text_is_known() {
        assert_eq!(not_text("In the beginning é".as_bytes()), None);
        assert_eq!(not_text(b"\xff\xfeI\0n\0"), Some("text of UTF-16"));
        assert_eq!(not_text(b"\x1f\x8b\x08"), Some("a file of gzip"));
        assert_eq!(not_text(b"abc\0"), Some("a file of binary data"));
        assert_eq!(not_text(b"\xe9t\xe9, of Latin-1"), None);
    }

    #[test]
    fn the_first_error_is_told_and_what_is_before_it_encoded() {
        let tokenizer = Tokenizer::from_json(br#"{"type":"cllm-chars","chars":["a"]}"#).unwrap();
        let good = vec![b'a'; 3 * JOB_BYTES];
        let sources = [("first", &good[..]), ("second", b"aab"), ("third", b"b"), ("last", &good)]
            .map(|(name, text)| Source::from_memory(name, text));
        let (found, counts) = tokens(&sources, &tokenizer);
        let message = counts.unwrap_err().to_string();
        assert!(message.contains("second: at byte 2"), "{message}");
        assert!(found.len() <= good.len() + 1, "tokens from behind the error");
        assert!(found.len() > JOB_BYTES, "tokens of whole jobs before the error are lost");
    }
}
