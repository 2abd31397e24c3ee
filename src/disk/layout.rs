//! The paths of a log's top-level files and folders. No other file spells their names.

use std::path::{Path, PathBuf};

/// The extension of an unfinished file. Nothing in it counts.
pub(crate) const TEMPORARY: &str = "tmp";

/// The paths of the parts of a log.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The log's own folder.
    pub root: PathBuf,
    pub journal: PathBuf,
    pub segments: PathBuf,
    /// The folder in which version 1 kept filters over many segments.
    pub filters: PathBuf,
    /// The index, which can be rebuilt from the segments.
    pub index: PathBuf,
    /// Says that the log is being built from another one, and is not complete.
    pub unfinished: PathBuf,
}

impl Layout {
    /// The name of the lock file.
    pub(crate) const LOCK: &str = "LOCK";

    pub(crate) fn of(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            journal: root.join("journal"),
            segments: root.join("segments"),
            filters: root.join("filters"),
            index: root.join("index"),
            unfinished: root.join("UNFINISHED"),
        }
    }

    /// Returns the paths of the two manifest slots.
    pub(crate) fn manifest_slots(&self) -> [PathBuf; 2] {
        ["MANIFEST-0", "MANIFEST-1"].map(|slot| self.root.join(slot))
    }
}
