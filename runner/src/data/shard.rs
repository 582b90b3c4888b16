//! Token shards in llm.c's `.bin` format, read by blocks that are verified.
//!
//! A shard is a header of 256 little-endian 32-bit integers (magic number,
//! version, number of tokens, zeros) and then the tokens, little-endian:
//! 16 bits each (magic 20240520, version 1) or, for vocabularies beyond
//! 65,536, 32 bits each (magic 20240801, version 7). Checksums of a shard lie beside
//! it, in `<name>.bin.sums`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::sums::{Blocks, Summing};
use crate::error::{Error, Result};
use crate::files::{self, AtomicFile};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 1024;

const NARROW: Format = Format { magic: 20_240_520, version: 1, bytes: 2 };
const WIDE: Format = Format { magic: 20_240_801, version: 7, bytes: 4 };

/// One of the two layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    magic: u32,
    version: u32,
    bytes: usize,
}

impl Format {
    /// The narrowest layout for identifiers below `vocab_size`.
    fn for_vocab(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { NARROW } else { WIDE }
    }

    fn by_magic(magic: u32) -> Option<Self> {
        [NARROW, WIDE].into_iter().find(|format| format.magic == magic)
    }

    fn header(self, tokens: u32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        for (place, field) in [self.magic, self.version, tokens].into_iter().enumerate() {
            header[place * 4..][..4].copy_from_slice(&field.to_le_bytes());
        }
        header
    }
}

/// Whether the file at `path` starts like a token shard. Unreadable and short
/// files do not.
#[must_use]
pub fn is_shard(path: &Path) -> bool {
    let mut magic = [0; 4];
    path.is_file()
        && files::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && Format::by_magic(u32::from_le_bytes(magic)).is_some()
}

/// Writes one shard, token by token; it takes its name when finished.
#[derive(Debug)]
pub struct ShardWriter {
    file: AtomicFile,
    format: Format,
    tokens: u32,
    sums: Summing,
}

impl ShardWriter {
    /// Most tokens that one shard can hold: the header counts in 31 bits.
    pub const MAX_TOKENS: u64 = i32::MAX as u64;

    /// Starts the shard `path` for identifiers below `vocab_size`.
    ///
    /// # Errors
    /// Names the file when it cannot be created.
    pub fn create(path: &Path, vocab_size: usize) -> Result<Self> {
        let format = Format::for_vocab(vocab_size);
        let mut file = AtomicFile::create(path)?;
        let header = format.header(0);
        file.write_all(&header).map_err(|e| Error::io("write", path, &e))?;
        let mut sums = Summing::default();
        sums.add(&header);
        Ok(Self { file, format, tokens: 0, sums })
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// A failed write, an identifier too large for the layout, or more than
    /// [`MAX_TOKENS`](Self::MAX_TOKENS): each names the file.
    pub fn write(&mut self, tokens: &[u32]) -> Result<()> {
        if u64::from(self.tokens) + tokens.len() as u64 > Self::MAX_TOKENS {
            return Err(self.failure("a shard cannot hold more than 2,147,483,647 tokens"));
        }
        let mut buffer = [0; 4096];
        for chunk in tokens.chunks(buffer.len() / self.format.bytes) {
            let bytes = &mut buffer[..chunk.len() * self.format.bytes];
            if self.format == NARROW {
                cllm_tokens::pack_narrow(chunk, bytes).map_err(|token| {
                    self.failure(&format!("token {token} does not fit 16 bits"))
                })?;
            } else {
                cllm_tokens::pack_wide(chunk, bytes);
            }
            let written = self.file.write_all(bytes);
            written.map_err(|e| Error::io("write", self.file.path(), &e))?;
            self.sums.add(bytes);
        }
        // Checked above to fit.
        self.tokens += tokens.len() as u32;
        Ok(())
    }

    /// Tokens written so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        u64::from(self.tokens)
    }

    /// Writes the count into the header and gives the file its name, durably; then its checksums.
    ///
    /// # Errors
    /// Names the file when a write, sync or rename fails.
    pub fn finish(mut self) -> Result<()> {
        let header = self.format.header(self.tokens);
        self.file.patch_start(&header)?;
        let path = self.file.path().to_path_buf();
        self.file.commit()?;
        self.sums.save(&path, &header)
    }

    fn failure(&self, what: &str) -> Error {
        Error::failure(format!("cannot write {}: {what}", self.file.path().display()))
    }
}

/// One shard: opening it reads only the header, and its checksums if it has any.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    storage: Storage,
    len: u64,
}

#[derive(Debug)]
enum Storage {
    File { blocks: Mutex<Blocks>, bytes: usize },
    Memory(Vec<u32>),
}

impl Shard {
    /// Opens the shard at `path` and checks its header against its length.
    ///
    /// # Errors
    /// A missing, foreign, newer, truncated or altered file, each named with
    /// what is wrong; checksums that are not its own.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io("open the token shard", path, &e);
        let mut file = files::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let fail = |what: String| Err(Error::failure(format!("{}: {what}", path.display())));
        if length < HEADER_BYTES as u64 {
            return fail(format!(
                "not a token shard: {length} bytes are less than its header of {HEADER_BYTES}"
            ));
        }
        let mut fields = [0; 12];
        file.read_exact(&mut fields).map_err(io)?;
        let field = |place: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&fields[place * 4..][..4]);
            u32::from_le_bytes(bytes)
        };
        let Some(format) = Format::by_magic(field(0)) else {
            return fail(format!(
                "not a token shard: it starts with {} instead of {} or {}; write shards with \
                 `cllm tokenize`",
                field(0),
                NARROW.magic,
                WIDE.magic
            ));
        };
        if field(1) != format.version {
            return fail(format!(
                "a token shard of version {}, but this program reads version {}",
                field(1),
                format.version
            ));
        }
        let len = u64::from(field(2));
        let wanted = HEADER_BYTES as u64 + len * format.bytes as u64;
        if length != wanted {
            let how = if length < wanted { "truncated" } else { "altered" };
            return fail(format!(
                "{how} token shard: its header counts {len} tokens, {wanted} bytes, but the file \
                 has {length}; write it again"
            ));
        }
        let blocks = Mutex::new(Blocks::new(path, file, length)?);
        let storage = Storage::File { blocks, bytes: format.bytes };
        Ok(Self { path: path.to_path_buf(), storage, len })
    }

    /// A shard that lives in memory; `name` stands for the path in errors.
    #[must_use]
    pub fn from_tokens(name: &str, tokens: Vec<u32>) -> Self {
        let len = tokens.len() as u64;
        Self { path: PathBuf::from(name), storage: Storage::Memory(tokens), len }
    }

    /// Opens the file for each block that is read from now on, so that any number of shards may be in use.
    pub(super) fn close(&mut self) {
        if let Storage::File { blocks, .. } = &mut self.storage {
            blocks.get_mut().unwrap_or_else(PoisonError::into_inner).close();
        }
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the tokens from place `start` on into `out`.
    ///
    /// # Errors
    /// When they reach beyond the end, or the file is not what was written any more.
    pub fn fill(&self, start: u64, out: &mut [u32]) -> Result<()> {
        if start.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(Error::failure(format!(
                "{}: tokens {start} and {} after it asked for, but there are {}",
                self.path.display(),
                out.len(),
                self.len
            )));
        }
        match &self.storage {
            Storage::Memory(tokens) => out.copy_from_slice(&tokens[start as usize..][..out.len()]),
            Storage::File { blocks, bytes } => {
                // What a panic has left is read again if it was not whole.
                let mut blocks = blocks.lock().unwrap_or_else(PoisonError::into_inner);
                let (mut at, mut rest) = (HEADER_BYTES as u64 + start * *bytes as u64, out);
                // No token is in two blocks.
                while !rest.is_empty() {
                    let source = blocks.at(at, rest.len() * bytes)?;
                    let (now, later) = rest.split_at_mut(source.len() / bytes);
                    match bytes {
                        2 => cllm_tokens::unpack_narrow(source, now),
                        _ => cllm_tokens::unpack_wide(source, now),
                    }
                    at += source.len() as u64;
                    rest = later;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn written(dir: &Path, vocab_size: usize, tokens: &[u32]) -> PathBuf {
        let path = dir.join(format!("v{vocab_size}.bin"));
        let mut writer = ShardWriter::create(&path, vocab_size).unwrap();
        for part in tokens.chunks(3000) {
            writer.write(part).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    #[test]
    fn both_layouts_come_back() {
        let dir = tempfile::tempdir().unwrap();
        for vocab_size in [257, 65_536, 65_537, 128_256] {
            let tokens: Vec<u32> =
                (0..7001u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab_size as u32).collect();
            let path = written(dir.path(), vocab_size, &tokens);
            let shard = Shard::open(&path).unwrap();
            assert!(is_shard(&path));
            assert_eq!(shard.len(), 7001);
            let mut part = vec![0; 4097];
            shard.fill(2001, &mut part).unwrap();
            assert_eq!(part, tokens[2001..2001 + 4097]);
            assert!(shard.fill(7000, &mut part[..2]).is_err());
            assert!(shard.fill(u64::MAX, &mut part).is_err());
        }
    }

    #[test]
    fn the_bytes_are_those_of_llm_c() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = fs::read(written(dir.path(), 50_257, &[50_256, 1, 515])).unwrap();
        assert_eq!(bytes.len(), 1024 + 6);
        assert_eq!(bytes[..12], [0x88, 0xd8, 0x34, 0x01, 1, 0, 0, 0, 3, 0, 0, 0]);
        assert!(bytes[12..1024].iter().all(|&b| b == 0));
        assert_eq!(bytes[1024..], [0x50, 0xc4, 1, 0, 3, 2]);
        let wide = fs::read(written(dir.path(), 128_256, &[128_000])).unwrap();
        assert_eq!(wide[..12], [0xa1, 0xd9, 0x34, 0x01, 7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(wide[1024..], [0, 0xf4, 1, 0]);
    }

    #[test]
    fn broken_shards_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), 300, &[1, 2, 3]);
        let good = fs::read(&path).unwrap();
        let message = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let message = Shard::open(&path).unwrap_err().to_string();
            assert!(message.contains("v300.bin"), "{message}");
            message
        };
        assert!(message(b"short").contains("not a token shard"));
        assert!(message(&[0; 2000]).contains("not a token shard"));
        assert!(message(&good[..good.len() - 1]).contains("truncated"));
        assert!(message(&[&good[..], b"xx"].concat()).contains("altered"));
        let mut newer = good.clone();
        newer[4] = 2;
        assert!(message(&newer).contains("version 2"));
        let missing = Shard::open(&dir.path().join("none.bin")).unwrap_err().to_string();
        assert!(missing.contains("none.bin"), "{missing}");
    }

    #[test]
    fn an_identifier_too_large_for_the_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let mut writer = ShardWriter::create(&path, 300).unwrap();
        let message = writer.write(&[1, 65_536]).unwrap_err().to_string();
        assert!(message.contains("65536") && message.contains("a.bin"), "{message}");
        drop(writer);
        assert!(!path.exists());
    }
}
