//! The folders that a log holds open: once it has entered its own, every name below is looked up
//! from there, and never from a path.
//!
//! A path may come to mean another folder while a log is open: the process changes its working
//! directory, somebody moves the folder, puts another in its place, mounts one over it. A
//! descriptor does not. So a log never writes into a folder that it has not locked. No symbolic
//! link below its folder is followed, since that may lead anywhere.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode as Permissions, OFlags, mkdirat, openat, statat, unlinkat,
};
use rustix::io::Errno;

use crate::disk::file::Location;
use crate::disk::lock::FolderLock;
use crate::disk::system::{identity_at, identity_of};
use crate::disk::{Hold, io_error, is_a_link};
use crate::model::{Error, Result};
use crate::sync::RwLock;

/// What a folder is opened with, to look up names from.
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// A folder of the log, and the path that led to it when it was opened.
pub(super) struct Folder {
    path: PathBuf,
    file: File,
    /// None for the log's own.
    parent: Option<Arc<Folder>>,
}

/// The log's folder and those below it that were asked for. Before the log has entered its folder
/// there is none, and paths are followed.
#[derive(Default)]
pub(super) struct HeldFolders {
    folders: RwLock<Vec<Arc<Folder>>>,
}

/// Where to look up a name.
pub(super) struct Place<'a> {
    /// None before the log has entered its folder, and for what lies outside.
    pub folder: Option<Arc<Folder>>,
    /// In that folder; else a path.
    pub name: &'a Path,
}

/// What tells files and folders apart, whatever they are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// Where an open file lies, if in a folder of the log.
pub(super) struct Located {
    folder: Option<Arc<Folder>>,
    /// It holds for as long as the file is open.
    identity: Option<Identity>,
}

impl HeldFolders {
    /// Enters the log's folder. A writer locks it, and the file `lock_name` in it.
    pub(super) fn enter(&self, path: &Path, lock_name: &str, hold: Hold) -> Result<FolderLock> {
        let file = File::from(
            openat(CWD, path, FOLDER, Permissions::empty()).map_err(errno("open", path))?,
        );
        let folder = Arc::new(Folder {
            path: path.to_path_buf(),
            file,
            parent: None,
        });
        let mut lock = FolderLock::new();
        if hold == Hold::Alone {
            // The folder's own lock holds also where the lock file is removed and made anew.
            let own = folder.file.try_clone().map_err(io_error("lock", path))?;
            match lock.take(own, path) {
                Err(refused) if !has_no_locks(&refused) => return Err(refused),
                _taken_or_not => {}
            }
            let name = Path::new(lock_name);
            match folder.open(name, OFlags::RDWR | OFlags::CREATE) {
                Ok(file) => lock.take(file, path)?,
                Err(refused) => return Err(folder.refusal("open", name, refused)),
            }
        }
        self.folders.write().push(folder);
        Ok(lock)
    }

    /// Where to look up `path`. The folders on the way are opened, and stay so.
    pub(super) fn place<'a>(&self, path: &'a Path) -> Result<Place<'a>> {
        let Some(root) = self.root().filter(|root| path.starts_with(&root.path)) else {
            return Ok(Place {
                folder: None,
                name: path,
            });
        };
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if path != root.path => Ok(Place {
                folder: Some(self.folder(&root, parent)?),
                name: Path::new(name),
            }),
            _ => Ok(Place {
                folder: Some(root),
                name: Path::new("."),
            }),
        }
    }

    /// The folder itself, if it is the log's or lies in it.
    pub(super) fn held(&self, path: &Path) -> Result<Option<Arc<Folder>>> {
        let root = self.root().filter(|root| path.starts_with(&root.path));
        root.map(|root| self.folder(&root, path)).transpose()
    }

    /// Looks up the folder anew when it is asked for again: it gets another name, or goes.
    pub(super) fn forget(&self, path: &Path) {
        self.folders
            .write()
            .retain(|folder| !folder.path.starts_with(path) || folder.parent.is_none());
    }

    pub(super) fn root(&self) -> Option<Arc<Folder>> {
        self.folders.read().first().map(Arc::clone)
    }

    fn folder(&self, root: &Arc<Folder>, path: &Path) -> Result<Arc<Folder>> {
        let mut folder = Arc::clone(root);
        let below = path
            .strip_prefix(&root.path)
            .expect("it lies in the log's folder");
        for name in below {
            let path = folder.path.join(name);
            let known = self
                .folders
                .read()
                .iter()
                .find(|folder| folder.path == path)
                .map(Arc::clone);
            folder = match known {
                Some(known) => known,
                None => self.open_below(folder, Path::new(name))?,
            };
        }
        Ok(folder)
    }

    fn open_below(&self, parent: Arc<Folder>, name: &Path) -> Result<Arc<Folder>> {
        let file = parent
            .open(name, FOLDER)
            .map_err(|refused| parent.refusal("open", name, refused))?;
        let folder = Arc::new(Folder {
            path: parent.path.join(name),
            file,
            parent: Some(parent),
        });
        let mut folders = self.folders.write();
        if let Some(first) = folders.iter().find(|known| known.path == folder.path) {
            return Ok(Arc::clone(first));
        }
        folders.push(Arc::clone(&folder));
        Ok(folder)
    }
}

impl Folder {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its path, or one above it, leads elsewhere by now; what happened to it, if so.
    fn displaced(&self) -> Option<(&Path, &'static str)> {
        if let Some(displaced) = self.parent.as_ref().and_then(|parent| parent.displaced()) {
            return Some(displaced);
        }
        match Identity::at(&self.path) {
            Ok(found) if Some(found) == Identity::of(&self.file) => None,
            Ok(_other) => Some((&self.path, "another folder is in its place")),
            Err(_gone) => Some((&self.path, "it was moved or removed")),
        }
    }

    /// Refuses a folder that its path does not lead to any more.
    pub(super) fn check_place(&self) -> Result<()> {
        let displaced = |(path, what): (&Path, &str)| Error::Displaced {
            path: path.to_path_buf(),
            what: what.to_owned(),
        };
        self.displaced().map(displaced).map_or(Ok(()), Err)
    }

    /// Opens a name in this folder, and no link.
    pub(super) fn open(&self, name: &Path, flags: OFlags) -> Result<File, Errno> {
        openat(
            &self.file,
            name,
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            OWNER_ALONE,
        )
        .map(File::from)
    }

    /// Says of a symbolic link what it is: the system's own words are about loops and folders.
    pub(super) fn refusal(&self, doing: &'static str, name: &Path, refused: Errno) -> Error {
        let path = self.path.join(name);
        let found = statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink) {
            return is_a_link(&path);
        }
        errno(doing, &path)(refused)
    }
}

/// Files that the log makes are its owner's.
pub(super) const OWNER_ALONE: Permissions = Permissions::RUSR.union(Permissions::WUSR);

pub(super) fn errno(doing: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    let refused = io_error(doing, path);
    move |errno| refused(errno.into())
}

impl Place<'_> {
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.folder
            .as_ref()
            .map_or(CWD, |folder| folder.file.as_fd())
    }

    /// The error of a call at this place.
    pub(super) fn refusal(&self, doing: &'static str, refused: Errno) -> Error {
        match &self.folder {
            Some(folder) => folder.refusal(doing, self.name, refused),
            None => errno(doing, self.name)(refused),
        }
    }

    pub(super) fn make_dir(&self) -> Result<()> {
        match mkdirat(self.dir(), self.name, OWNER_ALONE | Permissions::XUSR) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(refused) => Err(self.refusal("create", refused)),
        }
    }

    /// Removes a file, or a folder with all that is in it. Links are removed and not followed.
    pub(super) fn remove_tree(&self) -> Result<()> {
        remove_tree(self.dir(), self.name).map_err(|refused| self.refusal("remove", refused))
    }
}

fn remove_tree(dir: BorrowedFd<'_>, name: &Path) -> Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        // What a folder is said to be differs between systems.
        Err(Errno::ISDIR | Errno::PERM) => {}
        done => return done,
    }
    let folder = openat(dir, name, FOLDER | OFlags::NOFOLLOW, Permissions::empty())?;
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = Path::new(
            entry
                .file_name()
                .to_str()
                .map_err(|_not_text| Errno::ILSEQ)?,
        );
        if name != Path::new(".") && name != Path::new("..") {
            remove_tree(folder.as_fd(), name)?;
        }
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

impl Identity {
    /// That of an open file; `None` should the system not tell.
    pub(super) fn of(file: &File) -> Option<Self> {
        identity_of(file).ok()
    }

    /// That of what a path leads to.
    pub(super) fn at(path: &Path) -> Result<Self, Errno> {
        identity_at(CWD, path, AtFlags::empty())
    }

    /// That of a name in a folder; of a link itself.
    pub(super) fn within(folder: &Folder, name: &Path) -> Result<Self, Errno> {
        identity_at(folder.file.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
    }
}

impl Located {
    pub(super) fn of(file: &File, folder: Option<Arc<Folder>>) -> Self {
        let identity = folder.as_ref().and_then(|_folder| Identity::of(file));
        Self { folder, identity }
    }
}

impl Location for Located {
    fn check(&self, path: &Path) -> Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let is_ours = |found| self.identity.is_none_or(|ours| ours == found);
        match Identity::at(path) {
            Ok(found) if is_ours(found) => return Ok(()),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            // The path cannot be looked up, for instance since the process has given up rights. It
            // still can look into the folder.
            Err(_untold) => {
                let name = path.file_name().map_or(path, Path::new);
                if Identity::within(folder, name).is_ok_and(is_ours) {
                    return Ok(());
                }
            }
        }
        folder.check_place()?;
        Err(Error::Displaced {
            path: path.to_path_buf(),
            what: "it was moved, removed or replaced".to_owned(),
        })
    }
}

/// Some file systems lock files and no folders.
fn has_no_locks(refused: &Error) -> bool {
    let Error::Io { source, .. } = refused else {
        return false;
    };
    let errno = Errno::from_io_error(source);
    errno.is_some_and(|errno| {
        [
            Errno::BADF,
            Errno::INVAL,
            Errno::NOLCK,
            Errno::NOSYS,
            Errno::OPNOTSUPP,
        ]
        .contains(&errno)
    })
}

/// A path that leads to a name in the folder through its descriptor, where the system has such
/// paths.
pub(super) fn through_descriptor(folder: &Folder, name: &Path) -> Option<PathBuf> {
    let root = PathBuf::from(format!("/proc/self/fd/{}", folder.file.as_raw_fd()));
    let leads_there =
        Identity::at(&root).is_ok_and(|found| Some(found) == Identity::of(&folder.file));
    leads_there.then(|| root.join(name))
}
