//! The file system where there are no descriptors of folders to look names up from. Every name is
//! looked up by its path, so a log is not protected from its folder being moved or replaced while
//! it is open.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::file::{Barrier, Location, RealFile};
use crate::disk::lock::FolderLock;
use crate::disk::{Disk, DiskFile, Hold, Mode, io_error, is_a_link};
use crate::model::Result;

/// The operating system's file system.
#[derive(Default)]
pub(crate) struct RealDisk {}

/// Wherever its path leads.
struct ByPath;

impl Location for ByPath {
    fn check(&self, _path: &Path) -> Result<()> {
        Ok(())
    }
}

impl Disk for RealDisk {
    fn make_dir(&self, path: &Path) -> Result<()> {
        let made = DirBuilder::new().recursive(true).create(path);
        made.map_err(io_error("create", path))
    }

    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
            let entry = entry.map_err(io_error("list", dir))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let found = match entry.metadata() {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("list", dir)(error)),
            };
            if found.is_symlink() {
                return Err(is_a_link(&dir.join(name)));
            }
            if found.is_file() {
                files.push((name, found.len()));
            }
        }
        Ok(files)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        path.try_exists().map_err(io_error("look for", path))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(io_error("remove", path))
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
        let removed = if is_dir {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        removed.map_err(io_error("remove", path))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<()> {
        fs::hard_link(from, to).map_err(io_error("link", from))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(io_error("rename", from))
    }

    /// Windows cannot sync a folder. Its file system keeps names in a journal of its own.
    fn sync_dir(&self, dir: &Path) -> Result<()> {
        if cfg!(windows) {
            return Ok(());
        }
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(io_error("sync folder", dir))
    }

    fn open(&self, path: &Path, mode: Mode) -> Result<Arc<dyn DiskFile>> {
        let opened = if mode.writes() {
            to_write().create(true).open(path)
        } else if mode == Mode::ReadDevice {
            // Windows syncs only what is open for writing, and this may be synced.
            to_write().open(path).or_else(|_refused| File::open(path))
        } else {
            File::open(path)
        };
        let file = opened.map_err(io_error("open", path))?;
        let barrier = if mode == Mode::WriteThrough {
            Barrier::AfterEachWrite
        } else {
            Barrier::WhenAsked
        };
        Ok(RealFile::wrap(file, path, ByPath, barrier))
    }

    fn enter(&self, folder: &Path, lock_name: &str, hold: Hold) -> Result<Box<dyn Send + Sync>> {
        let path = folder.join(lock_name);
        let mut lock = FolderLock::new();
        if hold == Hold::Alone {
            let opened = to_write().create(true).open(&path);
            lock.take(opened.map_err(io_error("open", &path))?, folder)?;
        }
        Ok(Box::new(lock))
    }

    fn path_for_others(&self, path: &Path) -> Result<PathBuf> {
        Ok(path.to_path_buf())
    }
}

fn to_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}
