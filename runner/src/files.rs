//! Files that are either the old one or the new one, never half of each.
//!
//! A file is written beside its final place under the name `<name>.tmp`, made
//! durable (fsync), renamed over the old one, and the folder is made durable
//! too. A crash at any moment leaves the old file or the new one; the `.tmp`
//! that may stay behind is overwritten by the next attempt.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
#[cfg(unix)]
use rustix::fs::OFlags;

use crate::error::{Error, Result};
use crate::last_words;

/// Replaces the file at `path` by `bytes`, atomically and durably.
///
/// # Errors
/// Any failure to create, write, sync or rename names `path`; the file that
/// was there stays as it was.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, &e))?;
    file.commit()
}

/// Writes files into a folder, all of them or none: those that were written before one failed go again.
///
/// # Errors
/// As for [`write_atomic`].
#[cfg(feature = "hf")]
pub(crate) fn write_all(dir: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    for (done, (name, bytes)) in files.iter().enumerate() {
        if let Err(error) = write_atomic(&dir.join(name), bytes) {
            for (name, _) in &files[..done] {
                let _ = fs::remove_file(dir.join(name));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Refuses a path of an export that is there already: nothing is overwritten.
///
/// # Errors
/// Names it.
#[cfg(any(feature = "hf", feature = "gguf"))]
pub(crate) fn refuse_to_replace(path: &Path) -> Result<()> {
    if path.exists() {
        return Err(Error::failure(format!(
            "{}: it is there already; choose another --out, or remove what is there",
            path.display()
        )));
    }
    Ok(())
}

/// Opens a file of the program's own to write to it, or makes it: that of this name and no other. A folder of a run
/// may have come from anybody, and what a link in it points at is somebody else's; so is what reads from a pipe.
///
/// # Errors
/// The system's; the name is that of a link, or of something else than a file. The caller names it.
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        // Nor is it waited for who reads from a pipe.
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    }
    let file = options.open(path).map_err(|error| {
        if fs::symlink_metadata(path).is_ok_and(|about| about.is_symlink()) {
            return io::Error::other("it is a link, which is not followed; remove it");
        }
        error
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file; remove it")),
    }
}

/// As [`create_dir`], of a folder in one that may have come from anybody: see [`open_own`].
///
/// # Errors
/// As [`create_dir`], and a link.
#[cfg(feature = "report")]
pub(crate) fn create_own_dir(dir: &Path) -> Result<()> {
    refuse_link(dir)?;
    create_dir(dir)
}

/// Refuses a link.
///
/// # Errors
/// Names it.
pub(crate) fn refuse_link(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_symlink() => Err(Error::failure(format!(
            "{}: it is a link, and a run writes into its own folder alone; put what it points at in its place",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Creates `dir` and its parents.
///
/// # Errors
/// Names the folder when it cannot be created, or is a file.
pub fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("create the folder", dir, &e))
}

/// Most bytes that are read of what has no length of its own, as pipes have none.
const ENDLESS: u64 = 32 << 20;

/// Opens a file that lies in somebody's folder, to read it. A pipe in its place would be waited for without end: nobody
/// may ever write to it. Those that a shell gives names of descriptors are read.
///
/// # Errors
/// The system's; a pipe. The caller names the file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        let by_shell = ["/dev/fd", "/dev/stdin", "/proc"].iter().any(|dir| path.starts_with(dir));
        if !by_shell && fs::metadata(path)?.file_type().is_fifo() {
            return Err(io::Error::other("it is a pipe, which is not waited for"));
        }
    }
    File::open(path)
}

/// Reads all of a file that is read as a whole.
///
/// # Errors
/// As [`open`]; a device that does not end. The caller names the file.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_most(path, u64::MAX)
}

/// [`read`] for files of at most so many bytes.
///
/// # Errors
/// As [`read`], and a longer file.
pub(crate) fn read_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_all(open(path)?, most)
}

/// [`read_most`] of a file that a flag names, which may be a pipe.
///
/// # Errors
/// As [`read_most`]; a pipe that does not end.
pub(crate) fn read_given(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_all(File::open(path)?, most)
}

fn read_all(file: File, most: u64) -> io::Result<Vec<u8>> {
    let about = file.metadata()?;
    let most = if about.is_file() { most } else { most.min(ENDLESS) };
    let mut bytes = Vec::new();
    if about.is_file() {
        bytes.try_reserve_exact(about.len().min(most) as usize)?;
    }
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// As [`read_most`], of text.
///
/// # Errors
/// As [`read_most`], and bytes that are no UTF-8 (`InvalidData`).
pub(crate) fn read_text(path: &Path, most: u64) -> io::Result<String> {
    text(read_most(path, most)?)
}

/// Bytes that are a text.
///
/// # Errors
/// They are no UTF-8 (`InvalidData`).
pub(crate) fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8")
    })
}

/// Most bytes of a file of settings in TOML, whose values take some fifty times as much.
pub(crate) const SETTINGS: u64 = 512 << 10;

/// Maps all of a file, read-only: a copy would double the memory of a large model, and
/// what of it is not wanted stays on the disk. Should the file at `path` be cut while it is read, the program
/// ends, and says so ([`last_words`]).
///
/// # Errors
/// The system's; the caller names the file.
pub(crate) fn map(file: &File, path: &Path) -> io::Result<Mmap> {
    last_words::mapped(path);
    #[expect(unsafe_code, reason = "reading whole files would double the memory")]
    // SAFETY: the bytes must not change while mapped. This program replaces files by
    // renaming and never writes into one; that nobody else writes into or cuts a file that a
    // run reads is the duty of whoever owns its folder, as for every program that maps files.
    unsafe {
        Mmap::map(file)
    }
}

/// A buffered writer to a temporary file that takes its final name on
/// [`commit`](AtomicFile::commit) and vanishes when dropped before that.
#[derive(Debug)]
pub struct AtomicFile {
    writer: Option<BufWriter<File>>,
    path: PathBuf,
    temporary: PathBuf,
}

impl AtomicFile {
    /// Starts to write a new version of `path`.
    ///
    /// # Errors
    /// When the temporary file cannot be created (missing or read-only
    /// folder), or another process is writing the same file right now.
    pub fn create(path: &Path) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(Error::failure(format!(
                "cannot write {}: not a file name",
                path.display()
            )));
        };
        if path.is_dir() {
            return Err(Error::failure(format!("cannot write {}: it is a folder", path.display())));
        }
        let mut temporary_name = OsString::from(name);
        temporary_name.push(".tmp");
        let temporary = path.with_file_name(temporary_name);
        let io = |e: io::Error| Error::io("write", path, &e);
        // Not truncated before the lock is ours: it may be somebody's work.
        let file = open_own(&temporary).map_err(|e| match e.kind() {
            // Not the file that is written, but what is in its way.
            io::ErrorKind::Other => Error::io("write", &temporary, &e),
            _ => io(e),
        })?;
        match file.try_lock() {
            // The other writer may have renamed the file between our open and
            // our lock; then our handle is its finished file.
            Ok(()) if !temporary.exists() => return Err(busy(path)),
            Err(TryLockError::WouldBlock) => return Err(busy(path)),
            // A file system without locks is no reason to refuse to save.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        file.set_len(0).map_err(io)?;
        Ok(Self {
            writer: Some(BufWriter::with_capacity(1 << 18, file)),
            path: path.to_path_buf(),
            temporary,
        })
    }

    /// The final name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Overwrites bytes at the start of the file (a header whose counts are
    /// known only at the end), then returns to the end.
    ///
    /// # Errors
    /// Names the file when the write fails.
    pub fn patch_start(&mut self, bytes: &[u8]) -> Result<()> {
        let result = (|| {
            let writer = self.inner()?;
            writer.seek(SeekFrom::Start(0))?;
            writer.write_all(bytes)?;
            writer.seek(SeekFrom::End(0)).map(|_| ())
        })();
        result.map_err(|e| Error::io("write", &self.path, &e))
    }

    /// Flushes, syncs, renames and syncs the folder.
    ///
    /// # Errors
    /// Names the file; the old version then stays in place.
    pub fn commit(mut self) -> Result<()> {
        let result = (|| {
            let mut writer = self.writer.take().ok_or_else(finished)?;
            writer.flush()?;
            let file = writer.get_ref();
            file.sync_all()?;
            // Renamed while still locked, so that a second writer of the same
            // file cannot slip in and truncate what is about to be final.
            fs::rename(&self.temporary, &self.path)?;
            sync_parent(&self.path)
        })();
        if result.is_err() {
            let _ = fs::remove_file(&self.temporary);
        }
        result.map_err(|e| Error::io("write", &self.path, &e))
    }

    fn inner(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.writer.as_mut().ok_or_else(finished)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner()?.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // Never flushed: the bytes are not wanted any more.
            drop(writer.into_parts());
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn busy(path: &Path) -> Error {
    Error::failure(format!("cannot write {}: another process is writing it", path.display()))
}

fn finished() -> io::Error {
    io::Error::other("the file is already finished")
}

/// A rename is durable only when the folder is; folders cannot be opened for
/// that everywhere, and where they cannot there is nothing more to do.
#[cfg(unix)]
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(not(unix))]
fn sync_parent(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_a_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_atomic(&path, b"a long first version").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(dir.path()), ["a.bin"]);
    }

    #[test]
    fn an_abandoned_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_atomic(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.bin"]);
    }

    #[test]
    fn a_leftover_temporary_file_is_overwritten_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        fs::write(dir.path().join("a.bin.tmp"), b"left by a crash, and longer").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn two_writers_of_one_file_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let mut first = AtomicFile::create(&path).unwrap();
        first.write_all(b"first").unwrap();
        let second = AtomicFile::create(&path).unwrap_err().to_string();
        assert!(second.contains("another process"), "{second}");
        first.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn a_patched_header_keeps_the_tail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"....body").unwrap();
        file.patch_start(b"HEAD").unwrap();
        file.write_all(b"+tail").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"HEADbody+tail");
    }

    #[test]
    fn what_is_read_as_a_whole_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "four").unwrap();
        assert_eq!(read(&path).unwrap(), b"four");
        assert_eq!(read_most(&path, 4).unwrap(), b"four");
        assert!(read_most(&path, 3).unwrap_err().to_string().contains("more than 3 bytes"));
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(read(dir.path()).is_err());
        #[cfg(unix)]
        assert!(
            read(Path::new("/dev/zero")).unwrap_err().to_string().contains("more than 33554432")
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_and_pipes_are_not_written_through() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("other"), "somebody's").unwrap();
        for (target, link) in [("other", "a.tmp"), ("nowhere", "b.tmp"), (".", "c.tmp")] {
            symlink(at(target), at(link)).unwrap();
            let error = write_atomic(&at(link).with_extension(""), b"x").unwrap_err().to_string();
            assert!(error.contains(link) && error.contains("a link"), "{error}");
        }
        assert!(!at("nowhere").exists() && !at("a").exists());
        // That of the final name goes.
        symlink(at("other"), at("d")).unwrap();
        write_atomic(&at("d"), b"own").unwrap();
        assert!(!fs::symlink_metadata(at("d")).unwrap().is_symlink());
        assert_eq!(fs::read(at("other")).unwrap(), b"somebody's");
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{CWD, Mode, mkfifoat};
            mkfifoat(CWD, at("e.tmp"), Mode::RUSR | Mode::WUSR).unwrap();
            let error = write_atomic(&at("e"), b"x").unwrap_err().to_string();
            assert!(error.contains("it is no file"), "{error}");
        }
        symlink(dir.path(), at("f")).unwrap();
        assert!(refuse_link(&at("f")).unwrap_err().to_string().contains("a link"));
        assert_eq!(refuse_link(&at("g")), Ok(()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_in_a_folder_is_not_waited_for_and_one_that_is_given_is_read() {
        use rustix::fs::{CWD, Mode, mkfifoat};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        let told = |error: String| assert!(error.contains("a pipe"), "{error}");
        told(open(&path).unwrap_err().to_string());
        told(read(&path).unwrap_err().to_string());
        told(read_most(&path, 10).unwrap_err().to_string());
        told(read_text(&path, 10).unwrap_err().to_string());
        told(crate::checkpoint::CheckpointFile::open(&path).unwrap_err().to_string());
        told(crate::tokenizer::Tokenizer::load(&path).unwrap_err().to_string());
        told(crate::data::shard::Shard::open(&path).unwrap_err().to_string());
        assert!(!crate::data::shard::is_shard(&path));
        told(crate::inspect::Report::look(&path, false).unwrap_err().to_string());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| fs::write(&path, "given").unwrap());
            assert_eq!(read_given(&path, 10).unwrap(), b"given");
            writer.join().unwrap();
        });
    }

    #[test]
    fn a_missing_folder_or_a_folder_as_target_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such/a.bin");
        let text = write_atomic(&missing, b"x").unwrap_err().to_string();
        assert!(text.contains("no/such/a.bin"), "{text}");
        let text = write_atomic(dir.path(), b"x").unwrap_err().to_string();
        assert!(text.contains("is a folder"), "{text}");
    }
}
