//! Locks of files that end when they are dropped, and no later.
//!
//! The system ties such a lock to what was opened, not to the process: a child that another
//! thread is just starting shares all that is open until it runs its program. Closed by us
//! alone the lock would live on in the child for that moment, and whoever took it next would
//! hear of a process that there is not. So it is given back before the file is closed.

use std::fs::{File, TryLockError};
use std::path::Path;

/// The lock of a file, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the lock of `file`. A file system without locks is no reason to refuse: there the
    /// lock is had, and keeps nobody out.
    ///
    /// # Errors
    /// The file itself when somebody else holds its lock.
    pub(crate) fn take(file: File) -> Result<Self, File> {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(file),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self(file)),
        }
    }

    /// Whether the file at `path` is the one that is locked: whoever held the lock until now may have
    /// removed it, and another have made one anew, which is locked by itself.
    pub(crate) fn is_of(&self, path: &Path) -> bool {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let [ours, there] = [self.0.metadata(), path.metadata()].map(|of| {
                let of = of.ok()?;
                Some((of.dev(), of.ino()))
            });
            ours.is_some() && ours == there
        }
        // Elsewhere what is open is not removed.
        #[cfg(not(unix))]
        path.exists()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If this fails, closing the file does it.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_holder_though_a_child_still_has_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::create(dir.path().join("lock")).unwrap();
        let lock = Lock::take(open()).unwrap();
        // What a child has between its start and its program: the same opened file once more.
        let of_a_child = lock.0.try_clone().unwrap();
        assert!(Lock::take(open()).is_err(), "held");
        drop(lock);
        assert!(Lock::take(open()).is_ok(), "given back");
        drop(of_a_child);
    }

    #[test]
    fn a_lock_of_a_file_that_is_gone_is_of_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(File::create(&path).unwrap()).unwrap();
        assert!(lock.is_of(&path));
        #[cfg(unix)]
        {
            std::fs::remove_file(&path).unwrap();
            assert!(!lock.is_of(&path), "gone");
            File::create(&path).unwrap();
            assert!(!lock.is_of(&path), "another");
        }
    }
}
