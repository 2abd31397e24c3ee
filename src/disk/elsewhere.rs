//! What stands for the calls of Linux on other systems: no hints, no reserved room, and a barrier
//! after each write that has to be one.

use std::fs::File;
use std::io;

#[cfg(all(unix, not(sessionlog_not_unix)))]
pub(super) use with_descriptors::{identity_at, identity_of, past_cache};

pub(super) fn will_read(_file: &File, _offset: u64, _bytes: u64) {}

#[expect(clippy::unnecessary_wraps, reason = "it fails on Linux")]
pub(super) fn allocate(_file: &File, _bytes: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(all(unix, not(sessionlog_not_unix)))]
mod with_descriptors {
    use std::fs::File;
    use std::os::fd::BorrowedFd;
    use std::path::Path;

    use rustix::fs::{AtFlags, OFlags, Stat, fstat, statat};
    use rustix::io::Errno;

    use crate::disk::Mode;
    use crate::disk::held::Identity;

    /// Nothing. What macOS writes with `O_DSYNC` may stay in the cache of the drive.
    pub(in crate::disk) fn past_cache(_mode: Mode) -> Option<OFlags> {
        None
    }

    /// The identity of an open file.
    pub(in crate::disk) fn identity_of(file: &File) -> Result<Identity, Errno> {
        fstat(file).map(|found| identity(&found))
    }

    /// The identity of what a name in a folder leads to.
    pub(in crate::disk) fn identity_at(
        dir: BorrowedFd<'_>,
        name: &Path,
        flags: AtFlags,
    ) -> Result<Identity, Errno> {
        statat(dir, name, flags).map(|found| identity(&found))
    }

    fn identity(found: &Stat) -> Identity {
        Identity {
            device: u64::try_from(found.st_dev).unwrap_or_default(),
            inode: found.st_ino,
        }
    }
}
