//! An open file of the operating system.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::positions::Positions;
use crate::disk::{DiskFile, io_error, system};
use crate::model::Result;
use crate::sync::Mutex;

/// When what was written is put on stable storage.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Barrier {
    /// When asked to, or by the system with each write, as the file was opened.
    WhenAsked,
    /// After each write, by a call of its own.
    AfterEachWrite,
}

/// Where a file lies, and whether its path still leads there.
pub(super) trait Location: Send + Sync {
    fn check(&self, path: &Path) -> Result<()>;
}

pub(super) struct RealFile<L> {
    file: File,
    path: PathBuf,
    location: L,
    barrier: Barrier,
    /// Held from a write to its own barrier. The system reports a failed write-back once for an
    /// open file, so of two barriers at once one might be told of the other's failure, and the
    /// other of none.
    in_barrier: Mutex<()>,
}

impl<L: Location + 'static> RealFile<L> {
    pub(super) fn wrap(
        file: File,
        path: &Path,
        location: L,
        barrier: Barrier,
    ) -> Arc<dyn DiskFile> {
        Arc::new(Self {
            file,
            path: path.to_path_buf(),
            location,
            barrier,
            in_barrier: Mutex::default(),
        })
    }
}

impl<L: Location> DiskFile for RealFile<L> {
    fn len(&self) -> Result<u64> {
        self.file
            .metadata()
            .map(|metadata| metadata.len())
            .map_err(io_error("stat", &self.path))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(io_error("read", &self.path))
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        system::will_read(&self.file, offset, bytes);
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let is_barrier = self.barrier == Barrier::AfterEachWrite;
        let _alone = is_barrier.then(|| self.in_barrier.lock());
        self.file
            .write_all_at(bytes, offset)
            .map_err(io_error("write", &self.path))?;
        if is_barrier {
            self.file
                .sync_data()
                .map_err(io_error("sync", &self.path))?;
        }
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> Result<()> {
        system::allocate(&self.file, bytes).map_err(io_error("allocate", &self.path))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(io_error("sync", &self.path))
    }

    fn check_place(&self) -> Result<()> {
        self.location.check(&self.path)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
