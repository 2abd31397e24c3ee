//! What Linux alone has: direct I/O, hints, room that is reserved, and an inode without its times.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{
    Advice, AtFlags, FallocateFlags, OFlags, StatxFlags, fadvise, fallocate, makedev, statx,
};
use rustix::io::Errno;

use crate::disk::Mode;
use crate::disk::held::Identity;

/// What a file is opened with to pass the page cache by. In `WriteThrough` it makes each write a
/// barrier for its own bytes too.
pub(super) fn past_cache(mode: Mode) -> Option<OFlags> {
    match mode {
        Mode::ReadDevice | Mode::WriteBlocks => Some(OFlags::DIRECT),
        Mode::WriteThrough => Some(OFlags::DIRECT | OFlags::DSYNC),
        Mode::Read | Mode::Write => None,
    }
}

pub(super) fn will_read(file: &File, offset: u64, bytes: u64) {
    // Without a length the call would mean all that follows.
    if let Some(bytes) = NonZero::new(bytes) {
        let _of_use = fadvise(file, offset, Some(bytes), Advice::WillNeed);
    }
}

pub(super) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(refused) => Err(refused.into()),
    }
}

/// The identity of an open file.
pub(super) fn identity_of(file: &File) -> Result<Identity, Errno> {
    look_up(file.as_fd(), Path::new(""), AtFlags::EMPTY_PATH)
}

/// The identity of what a name in a folder leads to.
pub(super) fn identity_at(
    dir: BorrowedFd<'_>,
    name: &Path,
    flags: AtFlags,
) -> Result<Identity, Errno> {
    look_up(dir, name, flags)
}

/// Asks for nothing but the inode. Since Linux 6.13 a file whose times were asked for gets new ones
/// with its next write, however soon that comes, and then a commit writes the inode too: it takes
/// half as long again.
fn look_up(dir: BorrowedFd<'_>, name: &Path, flags: AtFlags) -> Result<Identity, Errno> {
    let found = statx(dir, name, flags, StatxFlags::INO)?;
    Ok(Identity {
        device: makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
    })
}
