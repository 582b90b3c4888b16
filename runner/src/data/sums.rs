//! Checksums of a file by blocks, in a file beside it: whoever reads a piece of a large file verifies the piece.
//!
//! ```text
//! magic   8  "CLLMSUMS"
//! version 4  1
//! block   4  bytes of a block
//! length  8  bytes of the file that the sums are of
//! sums       CRC-32 of each block (4 bytes each)
//! sum     4  CRC-32 of all above
//! ```
//! Little-endian. Token shards have one (`train_000000.bin.sums`); without it, as shards of other programs are,
//! they are read unchecked.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;

/// Bytes of a block: some windows of tokens, and verified in microseconds.
pub(super) const BLOCK: usize = 1 << 14;

const MAGIC: [u8; 8] = *b"CLLMSUMS";
const VERSION: u32 = 1;
const HEAD: usize = 8 + 4 + 4 + 8;

/// Where the sums of the file at `path` are.
#[must_use]
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".sums");
    path.with_file_name(name)
}

/// Removes a file and its sums, if it has any.
///
/// # Errors
/// Names what cannot be removed.
pub(super) fn remove_with(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|e| Error::io("remove", path, &e))?;
    let sums = beside(path);
    match fs::remove_file(&sums) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io("remove", &sums, &error))
        }
        _ => Ok(()),
    }
}

/// Sums of a file that is being written from its beginning.
#[derive(Debug, Default)]
pub(super) struct Summing {
    sums: Vec<u32>,
    hash: crc32fast::Hasher,
    /// Bytes of the block that `hash` has.
    held: usize,
    length: u64,
    /// The first block, which may be written again.
    first: Vec<u8>,
}

impl Summing {
    /// The next bytes.
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.held));
            if self.sums.is_empty() {
                self.first.extend_from_slice(now);
            }
            self.hash.update(now);
            self.held += now.len();
            if self.held == BLOCK {
                self.end_block();
            }
            bytes = later;
        }
    }

    fn end_block(&mut self) {
        self.sums.push(core::mem::take(&mut self.hash).finalize());
        self.held = 0;
    }

    /// Writes the sums of the file at `path`, whose first bytes have become `start`.
    ///
    /// # Errors
    /// Names the file of sums when it cannot be written.
    pub(super) fn save(mut self, path: &Path, start: &[u8]) -> Result<()> {
        if self.held > 0 {
            self.end_block();
        }
        if let Some(sum) = self.sums.first_mut() {
            self.first[..start.len()].copy_from_slice(start);
            *sum = crc32fast::hash(&self.first);
        }
        let mut bytes = Vec::with_capacity(HEAD + 4 * self.sums.len() + 4);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((BLOCK as u32).to_le_bytes());
        bytes.extend(self.length.to_le_bytes());
        self.sums.iter().for_each(|sum| bytes.extend(sum.to_le_bytes()));
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        files::write_atomic(&beside(path), &bytes)
    }
}

/// The sums beside the file at `path`, of `length` bytes; `None` if it has none.
fn load(path: &Path, length: u64) -> Result<Option<Vec<u32>>> {
    let name = beside(path);
    let blocks = length.div_ceil(BLOCK as u64);
    let wanted = HEAD as u64 + 4 * blocks + 4;
    let bytes = match files::read_most(&name, wanted) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read the checksums", &name, &error)),
    };
    let fail = |what: &str| {
        Err(Error::failure(format!(
            "{}: {what}; put it back as it was, or remove it: {} is read unchecked then",
            name.display(),
            path.display()
        )))
    };
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
    if bytes.len() < HEAD + 4 || crc32fast::hash(&bytes[..bytes.len() - 4]) != word(bytes.len() - 4)
    {
        return fail("damaged checksums");
    }
    if bytes[..8] != MAGIC || word(8) != VERSION || word(12) as usize != BLOCK {
        return fail("checksums that this program does not know");
    }
    let told = u64::from(word(16)) | u64::from(word(20)) << 32;
    if told != length || bytes.len() as u64 != wanted {
        return fail("checksums of another file");
    }
    Ok(Some((0..blocks as usize).map(|n| word(HEAD + 4 * n)).collect()))
}

/// A file that is read by blocks, each of which is verified if there are sums. Reads, and does not map: what is
/// cut off a file while it is read is an error then, not the end of the program.
#[derive(Debug)]
pub(super) struct Blocks {
    path: PathBuf,
    /// Opened for each block if `None`.
    file: Option<File>,
    sums: Option<Vec<u32>>,
    length: u64,
    /// The block that `bytes` has.
    held: Option<u64>,
    bytes: Vec<u8>,
}

impl Blocks {
    /// Reads `file`, of `length` bytes, which is at `path`.
    ///
    /// # Errors
    /// The sums beside it are damaged, or of another file.
    pub(super) fn new(path: &Path, file: File, length: u64) -> Result<Self> {
        let sums = load(path, length)?;
        let (path, bytes) = (path.to_path_buf(), vec![0; BLOCK]);
        Ok(Self { path, file: Some(file), sums, length, held: None, bytes })
    }

    /// Does not keep the file open: a process may have a thousand open, and runs may have more shards.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// The bytes of the file from place `at` to the end of its block, at most `most`: at least one, if `at` is
    /// in the file and `most` above 0. Allocates nothing while the file is kept open.
    ///
    /// # Errors
    /// Names the file when it cannot be read any more, has become shorter, or is not what was written.
    pub(super) fn at(&mut self, at: u64, most: usize) -> Result<&[u8]> {
        let block = at / BLOCK as u64;
        let first = block * BLOCK as u64;
        let len = (self.length - first).min(BLOCK as u64) as usize;
        if self.held != Some(block) {
            self.held = None;
            self.read(first, len)?;
            let sum = self.sums.as_ref().and_then(|sums| sums.get(block as usize));
            if sum.is_some_and(|sum| *sum != crc32fast::hash(&self.bytes[..len])) {
                return Err(self.damaged(&format!(
                    "damaged: its bytes {first} to {} fail their checksum",
                    first + len as u64
                )));
            }
            self.held = Some(block);
        }
        let bytes = &self.bytes[(at - first) as usize..len];
        Ok(&bytes[..bytes.len().min(most)])
    }

    fn read(&mut self, first: u64, len: usize) -> Result<()> {
        let opened;
        let mut file = match &self.file {
            Some(file) => file,
            None => {
                let file = files::open(&self.path);
                opened = file.map_err(|e| Error::io("read the token shard", &self.path, &e))?;
                &opened
            }
        };
        let read: io::Result<()> =
            file.seek(SeekFrom::Start(first)).and_then(|_| file.read_exact(&mut self.bytes[..len]));
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.damaged(&format!(
                "truncated while it was read: it has less than {} bytes now",
                first + len as u64
            )),
            _ => Error::io("read the token shard", &self.path, &error),
        })
    }

    fn damaged(&self, what: &str) -> Error {
        let place = self.path.parent().unwrap_or(Path::new(""));
        Error::failure(format!(
            "{}: {what}; put it back as it was, or remove {} and have it made again (that of a run's own text \
             is, with --resume)",
            self.path.display(),
            place.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// A file of two blocks and a half whose first byte was written again, and what it has.
    fn written(dir: &Path) -> (PathBuf, Vec<u8>) {
        let path = dir.join("a.bin");
        let mut all: Vec<u8> = (0..BLOCK * 5 / 2).map(|n| (n % 251) as u8).collect();
        let mut summing = Summing::default();
        all.chunks(1000).for_each(|bytes| summing.add(bytes));
        all[0] = 99;
        fs::write(&path, &all).unwrap();
        summing.save(&path, &[99]).unwrap();
        (path, all)
    }

    fn opened(path: &Path) -> Result<Blocks> {
        let file = File::open(path).unwrap();
        let length = file.metadata().unwrap().len();
        Blocks::new(path, file, length)
    }

    fn all_of(blocks: &mut Blocks) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while (all.len() as u64) < blocks.length {
            all.extend_from_slice(blocks.at(all.len() as u64, 777)?);
        }
        Ok(all)
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, all) = written(dir.path());
        let mut blocks = opened(&path).unwrap();
        assert_eq!(all_of(&mut blocks).unwrap(), all);
        blocks.close();
        assert_eq!(all_of(&mut blocks).unwrap(), all);
    }

    #[test]
    fn a_bit_that_flips_while_it_is_read_is_found_in_its_block() {
        let dir = tempfile::tempdir().unwrap();
        let (path, all) = written(dir.path());
        let mut blocks = opened(&path).unwrap();
        for at in [0, BLOCK - 1, BLOCK, 2 * BLOCK + 5, all.len() - 1] {
            blocks.held = None;
            let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            let mut put = |byte: u8| {
                file.seek(SeekFrom::Start(at as u64)).unwrap();
                file.write_all(&[byte]).unwrap();
            };
            put(all[at] ^ 16);
            let message = all_of(&mut blocks).unwrap_err().to_string();
            assert!(message.contains("a.bin: damaged"), "{message}");
            let other = if at < BLOCK { BLOCK as u64 } else { 0 };
            blocks.at(other, 1).unwrap();
            put(all[at]);
        }
        fs::remove_file(beside(&path)).unwrap();
        fs::write(&path, vec![0; all.len()]).unwrap();
        assert_eq!(all_of(&mut opened(&path).unwrap()).unwrap(), vec![0; all.len()], "unchecked");
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (path, all) = written(dir.path());
        let mut blocks = opened(&path).unwrap();
        fs::write(&path, &all[..BLOCK + 7]).unwrap();
        let message = all_of(&mut blocks).unwrap_err().to_string();
        assert!(message.contains("a.bin: truncated"), "{message}");
    }

    #[test]
    fn sums_that_are_damaged_or_of_another_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (path, all) = written(dir.path());
        let sums = fs::read(beside(&path)).unwrap();
        for at in 0..sums.len() {
            let mut bad = sums.clone();
            bad[at] ^= 1;
            fs::write(beside(&path), &bad).unwrap();
            let message = opened(&path).unwrap_err().to_string();
            assert!(message.contains("a.bin.sums") && message.contains("remove it"), "{message}");
            fs::write(beside(&path), &sums[..at]).unwrap();
            opened(&path).unwrap_err();
        }
        fs::write(beside(&path), &sums).unwrap();
        fs::write(&path, &all[1..]).unwrap();
        let message = opened(&path).unwrap_err().to_string();
        assert!(message.contains("of another file"), "{message}");
        remove_with(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
