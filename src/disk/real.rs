//! The file system of a unix: every name of a log is looked up from a descriptor.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, OFlags, linkat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use crate::disk::file::{Barrier, RealFile};
use crate::disk::held::{HeldFolders, Located, OWNER_ALONE, Place, errno, through_descriptor};
use crate::disk::system::past_cache;
use crate::disk::{BLOCK, BlockBuf, Disk, DiskFile, Hold, Mode, io_error, is_a_link};
use crate::model::Result;
use crate::sync::{AtomicBool, Ordering};

/// The operating system's file system, in which it keeps to one log's folder.
#[derive(Default)]
pub(crate) struct RealDisk {
    held: HeldFolders,
    /// Set once the file system refused direct I/O (older tmpfs, some network file systems).
    cannot_bypass_cache: AtomicBool,
}

impl Disk for RealDisk {
    fn make_dir(&self, path: &Path) -> Result<()> {
        let place = self.held.place(path)?;
        if place.folder.is_none() {
            return DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(io_error("create", path));
        }
        place.make_dir()?;
        self.held.held(path).map(|_held| ())
    }

    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>> {
        let folder = match self.held.held(dir)? {
            Some(folder) => folder.file().try_clone().map_err(io_error("list", dir))?,
            None => File::open(dir).map_err(io_error("list", dir))?,
        };
        list(&folder, dir)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        let place = self.held.place(path)?;
        // A link below the log's folder is there, and is refused when it is opened.
        let flags = if place.folder.is_some() {
            AtFlags::SYMLINK_NOFOLLOW
        } else {
            AtFlags::empty()
        };
        match statat(place.dir(), place.name, flags) {
            Ok(_found) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(refused) => Err(place.refusal("look for", refused)),
        }
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let place = self.held.place(path)?;
        unlinkat(place.dir(), place.name, AtFlags::empty())
            .map_err(|refused| place.refusal("remove", refused))
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        self.held.forget(path);
        self.held.place(path)?.remove_tree()
    }

    fn link(&self, from: &Path, to: &Path) -> Result<()> {
        let to = self.held.place(to)?;
        // The path may lead over a link to an open folder. The file itself is none.
        linkat(CWD, from, to.dir(), to.name, AtFlags::empty())
            .map_err(|refused| errno("link", from)(refused))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.held.forget(from);
        let (from, to) = (self.held.place(from)?, self.held.place(to)?);
        renameat(from.dir(), from.name, to.dir(), to.name)
            .map_err(|refused| from.refusal("rename", refused))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let synced = match self.held.held(dir)? {
            Some(folder) => folder.file().sync_all(),
            None => File::open(dir).and_then(|dir| dir.sync_all()),
        };
        synced.map_err(io_error("sync folder", dir))
    }

    fn open(&self, path: &Path, mode: Mode) -> Result<Arc<dyn DiskFile>> {
        let place = self.held.place(path)?;
        if let Some(flags) = past_cache(mode)
            && !self.cannot_bypass_cache.load(Ordering::Relaxed)
        {
            match open_file(&place, mode, flags) {
                Ok(file) if accepts_blocks(&file) => {
                    let located = Located::of(&file, place.folder);
                    return Ok(RealFile::wrap(file, path, located, Barrier::WhenAsked));
                }
                Ok(_) | Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
                Err(refused) => return Err(place.refusal("open", refused)),
            }
            self.cannot_bypass_cache.store(true, Ordering::Relaxed);
        }
        let file = open_file(&place, mode, OFlags::empty())
            .map_err(|refused| place.refusal("open", refused))?;
        let barrier = if mode == Mode::WriteThrough {
            Barrier::AfterEachWrite
        } else {
            Barrier::WhenAsked
        };
        let located = Located::of(&file, place.folder);
        Ok(RealFile::wrap(file, path, located, barrier))
    }

    fn enter(&self, folder: &Path, lock_name: &str, hold: Hold) -> Result<Box<dyn Send + Sync>> {
        Ok(Box::new(self.held.enter(folder, lock_name, hold)?))
    }

    fn path_for_others(&self, path: &Path) -> Result<PathBuf> {
        let Some(root) = self
            .held
            .root()
            .filter(|root| path.starts_with(root.path()))
        else {
            return Ok(path.to_path_buf());
        };
        let below = path
            .strip_prefix(root.path())
            .expect("it lies in the log's folder");
        if let Some(found) = through_descriptor(&root, below) {
            return Ok(found);
        }
        // The best there is without such paths: a moment later it may be true no more.
        root.check_place().map(|()| path.to_path_buf())
    }
}

fn list(folder: &File, dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in Dir::read_from(folder).map_err(errno("list", dir))? {
        let entry = entry.map_err(errno("list", dir))?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        let found = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => continue,
            Err(refused) => return Err(errno("list", dir)(refused)),
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => files.push((
                name.to_owned(),
                u64::try_from(found.st_size).unwrap_or_default(),
            )),
            FileType::Symlink => return Err(is_a_link(&dir.join(name))),
            _ => {}
        }
    }
    Ok(files)
}

fn open_file(place: &Place<'_>, mode: Mode, flags: OFlags) -> Result<File, Errno> {
    let access = if mode.writes() {
        OFlags::RDWR | OFlags::CREATE
    } else {
        OFlags::RDONLY
    };
    match &place.folder {
        Some(folder) => folder.open(place.name, access | flags),
        None => openat(
            CWD,
            place.name,
            access | flags | OFlags::CLOEXEC,
            OWNER_ALONE,
        )
        .map(File::from),
    }
}

fn refuses_direct(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput || error.kind() == io::ErrorKind::Unsupported
}

/// Some file systems open for direct I/O and then refuse the transfer, or want larger blocks; a
/// read of the first block tells.
fn accepts_blocks(file: &File) -> bool {
    let mut block = BlockBuf::zeroed(BLOCK);
    !file
        .read_at(block.as_mut_slice(), 0)
        .is_err_and(|error| refuses_direct(&error))
}
