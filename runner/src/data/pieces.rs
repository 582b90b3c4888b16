//! Documents from sources, read piece by piece in bounded memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::PathBuf;

use serde_json::Value;

use super::source::{Kind, Origin, Source};
use crate::error::{Error, Result};
use crate::json::ARRAY_HINT;
use crate::tokenizer::cut;

/// No line of what has no length of its own, as pipes have none, is as long.
const LONGEST_LINE: u64 = 32 << 20;

/// Bytes of a long text that are handed out at a time.
const PIECE_BYTES: usize = 1 << 18;

/// A document or a part of one.
#[derive(Debug)]
pub struct Piece<'a> {
    /// The bytes; never empty.
    pub bytes: &'a [u8],
    /// Whether a new document begins here.
    pub starts_document: bool,
    /// Where it comes from.
    pub origin: Origin<'a>,
    /// Offset of the piece in its document, in bytes.
    pub offset: u64,
}

/// Reads sources one after the other.
///
/// A long text comes in pieces cut between words (see `tokenizer/parts.rs`), so that
/// a tokenizer which splits there finds the same tokens as in the whole.
pub struct Pieces {
    sources: VecDeque<Source>,
    text_field: String,
    current: Option<Current>,
    /// What the last piece pointed into.
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that are handed out already.
    used: usize,
}

/// Reads the lines of sources, whatever they hold, but for blank ones.
pub(crate) struct Lines {
    sources: VecDeque<Source>,
    current: Option<Current>,
}

impl Lines {
    /// Starts to read `sources` in order.
    pub(crate) fn new(sources: &[Source]) -> Self {
        Self { sources: sources.iter().cloned().collect(), current: None }
    }

    /// Reads the next line into `buffer` and says where it is from; `None` after the last.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn next_line(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Origin<'_>>> {
        loop {
            if self.current.is_none() {
                let Some(source) = self.sources.pop_front() else { return Ok(None) };
                self.current = Some(open(source)?);
            }
            let Some(current) = &mut self.current else { continue };
            if next_raw(current, buffer)? {
                break;
            }
            self.current = None;
        }
        let current = self.current.as_ref();
        Ok(current.map(|current| Origin { path: &current.path, line: Some(current.position) }))
    }
}

struct Current {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    json_lines: bool,
    /// Lines read so far, or bytes handed out.
    position: u64,
    /// No line has as many bytes.
    longest: u64,
}

impl Pieces {
    /// Starts to read `sources` in order; `text_field` names the field of JSON
    /// lines that holds the text.
    #[must_use]
    pub fn new(sources: &[Source], text_field: &str) -> Self {
        Self {
            sources: sources.iter().cloned().collect(),
            text_field: text_field.to_owned(),
            current: None,
            buffer: Vec::new(),
            used: 0,
        }
    }

    /// The next piece; `None` after the last. Empty documents are passed over.
    ///
    /// # Errors
    /// A file that cannot be read, or (with its line) a line that is not a
    /// JSON object with the text in its field.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>> {
        loop {
            if self.current.is_none() {
                let Some(source) = self.sources.pop_front() else { return Ok(None) };
                self.current = Some(open(source)?);
                self.buffer.clear();
                self.used = 0;
            }
            let Some(current) = &mut self.current else { continue };
            let more = if current.json_lines {
                next_line(current, &mut self.buffer, &self.text_field)?
            } else {
                self.buffer.drain(..self.used);
                self.used = next_part(current, &mut self.buffer)?;
                self.used > 0
            };
            if more {
                break;
            }
            self.current = None;
        }
        let Some(current) = &mut self.current else { return Ok(None) };
        let path = &current.path;
        if current.json_lines {
            let origin = Origin { path, line: Some(current.position) };
            return Ok(Some(Piece {
                bytes: &self.buffer,
                starts_document: true,
                origin,
                offset: 0,
            }));
        }
        let offset = current.position;
        current.position += self.used as u64;
        Ok(Some(Piece {
            bytes: &self.buffer[..self.used],
            starts_document: offset == 0,
            origin: Origin { path, line: None },
            offset,
        }))
    }
}

fn open(source: Source) -> Result<Current> {
    let path = source.name().to_path_buf();
    let mut longest = LONGEST_LINE;
    let reader: Box<dyn BufRead + Send> = match source.kind() {
        Kind::Stdin => Box::new(BufReader::new(io::stdin())),
        Kind::Memory(text) => {
            longest = u64::MAX;
            Box::new(Cursor::new(text.clone()))
        }
        Kind::Text | Kind::JsonLines => {
            let file = File::open(&path).map_err(|e| Error::io("read the data", &path, &e))?;
            // A file's length bounds them.
            if file.metadata().is_ok_and(|about| about.is_file()) {
                longest = u64::MAX;
            }
            Box::new(BufReader::with_capacity(PIECE_BYTES, file))
        }
    };
    Ok(Current {
        path,
        reader,
        json_lines: *source.kind() == Kind::JsonLines,
        position: 0,
        longest,
    })
}

/// Fills `buffer` with the next line that is not blank; false at the end.
fn next_raw(current: &mut Current, buffer: &mut Vec<u8>) -> Result<bool> {
    loop {
        buffer.clear();
        let read = current.reader.by_ref().take(current.longest).read_until(b'\n', buffer);
        let read = read.map_err(|e| Error::io("read the data", &current.path, &e))?;
        if read == 0 {
            return Ok(false);
        }
        current.position += 1;
        // Some editors begin a file with a byte order mark.
        if current.position == 1 && buffer.starts_with(b"\xef\xbb\xbf") {
            buffer.drain(..3);
        }
        if read as u64 == current.longest && !buffer.ends_with(b"\n") {
            let origin = Origin { path: &current.path, line: Some(current.position) };
            return Err(Error::failure(format!(
                "{origin}: a line of more than {} bytes, without an end",
                current.longest
            )));
        }
        if !buffer.trim_ascii().is_empty() {
            return Ok(true);
        }
    }
}

/// Fills `buffer` with the text of the next line that has one; false at the
/// end.
fn next_line(current: &mut Current, buffer: &mut Vec<u8>, field: &str) -> Result<bool> {
    loop {
        if !next_raw(current, buffer)? {
            return Ok(false);
        }
        let fail = |what: String| {
            let origin = Origin { path: &current.path, line: Some(current.position) };
            Err(Error::failure(format!("{origin}: {what}")))
        };
        let mut json: Value = match crate::json::from_slice(buffer) {
            Ok(json) => json,
            Err(e) => return fail(crate::json::line_error(buffer, &e)),
        };
        match json.get_mut(field).map(Value::take) {
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => {
                *buffer = text.into_bytes();
                return Ok(true);
            }
            Some(_) => return fail(format!("the field \"{field}\" is not a text")),
            None if json.is_array() => {
                return fail(format!("an array, where each line is to be an object{ARRAY_HINT}"));
            }
            None => {
                let is_example =
                    ["messages", "conversations", "prompt", "completion", "instruction"]
                        .iter()
                        .any(|name| json.get(name).is_some());
                let hint = if is_example {
                    "; it is an example, and --loss-on completions learns from those"
                } else {
                    "; --text-field names another"
                };
                return fail(format!("no field \"{field}\" in this line{hint}"));
            }
        }
    }
}

/// Reads on until `buffer` is long enough, and says how much to hand out.
fn next_part(current: &mut Current, buffer: &mut Vec<u8>) -> Result<usize> {
    let missing = (PIECE_BYTES.saturating_sub(buffer.len())) as u64;
    let read = current.reader.by_ref().take(missing).read_to_end(buffer);
    read.map_err(|e| Error::io("read the data", &current.path, &e))?;
    Ok(if buffer.len() < PIECE_BYTES { buffer.len() } else { cut(buffer) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::{Input, TEXT_FIELD, discover};
    use std::fs;

    fn documents(sources: &[Source]) -> Result<Vec<(Vec<u8>, String)>> {
        let mut pieces = Pieces::new(sources, TEXT_FIELD);
        let mut documents: Vec<(Vec<u8>, String)> = Vec::new();
        while let Some(piece) = pieces.next_piece()? {
            assert!(!piece.bytes.is_empty() && piece.bytes.len() <= PIECE_BYTES);
            if piece.starts_document {
                documents.push((Vec::new(), piece.origin.to_string()));
            }
            let document = &mut documents.last_mut().unwrap().0;
            assert_eq!(piece.offset, document.len() as u64);
            document.extend_from_slice(piece.bytes);
        }
        Ok(documents)
    }

    fn jsonl(text: &str) -> Result<Vec<(Vec<u8>, String)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        fs::write(&path, text).unwrap();
        let Input::Text(sources) = discover(&[path]).unwrap() else { panic!() };
        documents(&sources)
    }

    #[test]
    fn json_lines_may_begin_with_a_byte_order_mark() {
        let found =
            jsonl("\u{feff}{\"text\": \"\u{feff}a\"}\r\n\r\n{\"text\": \"b\"}\r\n").unwrap();
        let texts: Vec<&[u8]> = found.iter().map(|(text, _)| &text[..]).collect();
        assert_eq!(texts, ["\u{feff}a".as_bytes(), b"b"]);
        assert!(jsonl("{\"text\": \"a\"}\n\u{feff}{\"text\": \"b\"}").is_err());
    }

    #[test]
    fn json_lines_are_documents_of_their_own() {
        let text = "{\"text\":\"one\\nline\",\"id\":1}\n\n  \r\n{\"text\":\"\"}\n{\"text\":\"é\"}";
        let found = jsonl(text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].0, b"one\nline");
        assert_eq!(found[1].0, "é".as_bytes());
        assert!(found[1].1.ends_with("d.jsonl:5"), "{}", found[1].1);
    }

    #[test]
    fn bad_json_lines_are_named_with_their_line() {
        for (text, what) in [
            (
                "{\"text\":\"a\"}\n{oops\n",
                "d.jsonl:2: not a line of JSON: key must be a string in column 2",
            ),
            (
                "[\n{\"text\":\"a\"}]",
                "a list; a file that is one array becomes such lines by jq -c '.[]'",
            ),
            ("{\n\"text\":\"a\"}", "; an object has to be whole in one line"),
            ("{\"texts\":\"a\"}", "d.jsonl:1: no field \"text\" in this line; --text-field"),
            (
                "{\"messages\":[]}",
                "no field \"text\" in this line; it is an example, and --loss-on",
            ),
            (
                "\n[1]\n",
                "d.jsonl:2: an array, where each line is to be an object; a file that is one",
            ),
            ("{\"text\":3}", "d.jsonl:1: the field \"text\" is not a text"),
        ] {
            let message = jsonl(text).unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
    }

    #[test]
    fn long_texts_come_whole_whatever_they_are_made_of() {
        let words: Vec<u8> = b"some words\n\nhere ".iter().copied().cycle().take(900_001).collect();
        let solid = "é🙂".repeat(150_000).into_bytes();
        let noise = vec![0x80; 600_000];
        let spaces = vec![b' '; 600_000];
        let texts = [words, solid, noise, spaces, b"x".to_vec(), Vec::new()];
        let sources: Vec<Source> =
            texts.iter().map(|text| Source::from_memory("m", text.as_slice())).collect();
        let found: Vec<Vec<u8>> =
            documents(&sources).unwrap().into_iter().map(|(text, _)| text).collect();
        assert!(found == texts[..5], "a text was changed");
    }
}
