//! A copy of a folder that may be written to, and is removed in the end.

use std::path::{Path, PathBuf};

use crate::disk::io_error;
use crate::model::{Result, fresh_store_number};

/// A copy of a folder, in the system's folder for temporary files.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn copy_of(folder: &Path) -> Result<Self> {
        let name = format!("sessionlog-{:032x}", fresh_store_number());
        let scratch = Self(std::env::temp_dir().join(name));
        copy(folder, &scratch.0)?;
        Ok(scratch)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The system removes what is left there.
        let _removed = std::fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to).map_err(io_error("make", to))?;
    for entry in std::fs::read_dir(from).map_err(io_error("read", from))? {
        let entry = entry.map_err(io_error("read", from))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(io_error("read", &from))?;
        if kind.is_dir() {
            copy(&from, &to)?;
        } else {
            std::fs::copy(&from, &to).map_err(io_error("copy", &from))?;
        }
    }
    Ok(())
}
