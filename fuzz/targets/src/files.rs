//! Bytes as files, for readers that take paths.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Stands between the files of one input.
pub const MARK: &[u8] = b"\n====\n";

/// The files of an input; those that are not there are empty, and the last one has the rest.
pub(crate) fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = data;
    core::array::from_fn(|n| {
        let end = rest.windows(MARK.len()).position(|window| window == MARK);
        match end.filter(|_| n + 1 < N) {
            Some(end) => {
                let part = &rest[..end];
                rest = &rest[end + MARK.len()..];
                part
            }
            None => core::mem::take(&mut rest),
        }
    })
}

/// A folder that goes when it is dropped, in memory where the system has such.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let made = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()),
            false => tempfile::tempdir(),
        };
        Self(made.expect("a temporary folder"))
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in it.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file; none of nothing.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.at(name);
        if !bytes.is_empty() {
            fs::write(&path, bytes).expect("a file in a temporary folder");
        }
        path
    }
}
