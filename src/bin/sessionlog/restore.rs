//! `sessionlog restore`: a log out of a backup.
//!
//! The manifest is copied last. A copy that is cut short before does not open, and is removed
//! unless the process is killed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::failure::{Failure, Result};
use crate::folder::{Kind, open_to_read};
use crate::holder::Holder;
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress::Progress;
use crate::text::{bytes, count};

/// The folders and files of a log that a copy needs, as the format names them. The index is made
/// again from the segments.
const FOLDERS: [&str; 2] = ["segments", "journal"];
const MANIFESTS: [&str; 2] = ["MANIFEST-0", "MANIFEST-1"];

/// Segments never change, so a link to one is as good as a copy.
const IMMUTABLE: &str = "segments";

/// The extension of a file that does not count.
const UNFINISHED: &str = "tmp";

/// The size of one read and write, in bytes.
const COPY_BYTES: usize = 1 << 20;

/// Makes a log out of a backup.
///
/// It opens the backup to check it, copies it, and opens the copy. The backup stays as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the backup
    from: PathBuf,

    /// Folder of the log: missing or empty
    dir: PathBuf,

    /// Link segments to those of the backup instead of copying them: at once and without space, on
    /// one file system
    #[arg(long)]
    link: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Copies,
    Links,
}

/// What a log holds, to compare a copy with its origin.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    store: String,
    events: u64,
    newest: Option<String>,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let Args { from, dir, link } = &args;
    check_target(dir)?;
    if let Some(holder) = Holder::of(from) {
        let message = format!(
            "{} is in use by {holder}, so it is no backup",
            from.display()
        );
        return Err(Failure::new("locked", message).hint("give the folder of a backup"));
    }
    let before = held_in(from)?;
    let files = files_of(from)?;
    let how = if *link { How::Links } else { How::Copies };
    let total = files.iter().map(|file| file.bytes).sum();
    let interrupt = Interrupt::watch();
    let mut made = Made::begin(dir)?;
    let progress = Progress::of_bytes(output, total, "restoring");
    for file in &files {
        made.take(from, file, how, &interrupt, &progress)?;
    }
    made.sync()?;
    drop(progress);
    let after = held_in(dir)?;
    if after != before {
        let message = format!(
            "{} does not hold what {} does",
            dir.display(),
            from.display()
        );
        return Err(Failure::new("changed", message).hint(
            "the backup was changed meanwhile: repeat the command when nothing writes to it",
        ));
    }
    made.keep();
    report(&args, &after, total, output)
}

fn report(args: &Args, held: &Held, total: u64, output: &Output) -> Result<()> {
    let Args { from, dir, .. } = args;
    if output.is_json() {
        return output.json(
            json!({
                "folder": dir.to_string_lossy(),
                "store_id": held.store,
                "events": held.events,
                "last_id": held.newest,
                "bytes": total,
            })
            .to_string(),
        );
    }
    let newest = held.newest.as_deref().unwrap_or("none");
    output.line(format!(
        "{} holds the log of {}: {} in {}, newest {newest}",
        dir.display(),
        from.display(),
        count(held.events, "event"),
        bytes(total),
    ))
}

fn check_target(dir: &Path) -> Result<()> {
    let what = match Kind::of(dir)? {
        Kind::Missing | Kind::Empty => return Ok(()),
        Kind::Log => "already holds a log",
        Kind::Foreign => "is not empty",
    };
    Err(
        Failure::new("not_empty", format!("{} {what}", dir.display()))
            .hint("give an empty folder, or a new one; this one stays as it is"),
    )
}

fn held_in(folder: &Path) -> Result<Held> {
    let log = open_to_read(folder)?;
    let stats = log.stats();
    Ok(Held {
        store: stats.store_id,
        events: stats.events,
        newest: stats.last_id.map(|id| id.to_string()),
    })
}

/// A file to copy, by its path in the folder of the log.
struct Source {
    path: PathBuf,
    bytes: u64,
    is_immutable: bool,
}

/// Lists the files of a log, manifests last.
fn files_of(from: &Path) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        let path = from.join(folder);
        let failed = |error: io::Error| Failure::of_file("list", &path, &error);
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            let name = Path::new(folder).join(entry.file_name());
            if metadata.is_file() && name.extension().is_none_or(|end| end != UNFINISHED) {
                files.push(Source {
                    path: name,
                    bytes: metadata.len(),
                    is_immutable: folder == IMMUTABLE,
                });
            }
        }
    }
    for name in MANIFESTS {
        // One of them may be missing.
        if let Ok(metadata) = fs::metadata(from.join(name)) {
            files.push(Source {
                path: name.into(),
                bytes: metadata.len(),
                is_immutable: false,
            });
        }
    }
    Ok(files)
}

/// A folder that is being filled. Unless it is kept, all that was put there is removed.
struct Made {
    dir: PathBuf,
    /// Whether the folder itself was made.
    is_new: bool,
    is_kept: bool,
}

impl Made {
    fn begin(dir: &Path) -> Result<Self> {
        let failed = |error: io::Error| Failure::of_file("make", dir, &error);
        let is_new = !dir.exists();
        make_private(dir).map_err(failed)?;
        let made = Self {
            dir: dir.to_path_buf(),
            is_new,
            is_kept: false,
        };
        for folder in FOLDERS {
            fs::create_dir_all(dir.join(folder)).map_err(failed)?;
        }
        Ok(made)
    }

    fn take(
        &self,
        from: &Path,
        file: &Source,
        how: How,
        interrupt: &Interrupt,
        progress: &Progress,
    ) -> Result<()> {
        let (source, target) = (from.join(&file.path), self.dir.join(&file.path));
        if how == How::Links && file.is_immutable {
            progress.add(file.bytes);
            return fs::hard_link(&source, &target).map_err(|error| {
                Failure::of_file("link", &target, &error)
                    .hint("links need one file system: leave --link out to copy")
            });
        }
        copy(&source, &target, interrupt, progress).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return Failure::new("interrupted", "it was ended before all was copied")
                    .hint("nothing is left of it: repeat the command");
            }
            Failure::of_file("copy to", &target, &error)
        })
    }

    /// Makes the names durable.
    fn sync(&self) -> Result<()> {
        let folders = FOLDERS.map(|folder| self.dir.join(folder));
        let parent = self
            .dir
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).to_path_buf();
        for folder in folders.iter().chain([&self.dir, &parent]) {
            sync_folder(folder).map_err(|error| Failure::of_file("sync", folder, &error))?;
        }
        Ok(())
    }

    fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // The failure that led here is what counts.
        for folder in FOLDERS {
            let _removed = fs::remove_dir_all(self.dir.join(folder));
        }
        for manifest in MANIFESTS {
            let _removed = fs::remove_file(self.dir.join(manifest));
        }
        if self.is_new {
            let _removed = fs::remove_dir(&self.dir);
        }
    }
}

/// Copies a file and makes it durable.
fn copy(from: &Path, to: &Path, interrupt: &Interrupt, progress: &Progress) -> io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    let mut piece = vec![0; COPY_BYTES];
    loop {
        if interrupt.is_set() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = from.read(&mut piece)?;
        let Some(read) = piece.get(..read).filter(|read| !read.is_empty()) else {
            return to.sync_all();
        };
        to.write_all(read)?;
        progress.add(read.len() as u64);
    }
}

/// Makes a folder that its owner alone may enter, as the log does.
#[cfg(unix)]
fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

#[cfg(not(unix))]
fn make_private(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}
