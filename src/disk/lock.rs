//! The lock on a log's folder.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::disk::io_error;
use crate::model::{Error, Result};

/// The locks on a folder. A lock belongs to the open file, which a child process shares until it
/// executes another program; so it is given back, not just closed, and by the process that took it
/// alone.
pub(super) struct FolderLock {
    held: Vec<File>,
    owner: u32,
}

impl FolderLock {
    pub(super) fn new() -> Self {
        Self {
            held: Vec::new(),
            owner: std::process::id(),
        }
    }

    /// Locks a file of the folder at `path`, and keeps it.
    pub(super) fn take(&mut self, file: File, path: &Path) -> Result<()> {
        match file.try_lock() {
            Ok(()) => {
                self.held.push(file);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(Error::Locked {
                path: path.to_path_buf(),
            }),
            Err(TryLockError::Error(error)) => Err(io_error("lock", path)(error)),
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        if std::process::id() == self.owner {
            // Should this fail, closing the file gives the lock back a moment later.
            self.held.iter().for_each(|file| drop(file.unlock()));
        }
    }
}
