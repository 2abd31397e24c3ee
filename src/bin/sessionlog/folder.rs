//! The folder of a log, looked at before it is opened, so that the error says what it is instead.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use sessionlog::{Options, SessionLog};

use crate::failure::{Failure, Result};

/// Names in the folder of a log. One of these, and it is a log or was one.
const OF_A_LOG: [&str; 4] = ["MANIFEST-0", "MANIFEST-1", "journal", "segments"];

/// Names in a folder without anything in it that counts.
const OF_NOTHING: [&str; 2] = ["LOCK", "lost+found"];

/// What a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Missing,
    Empty,
    /// It holds other files.
    Foreign,
    /// It holds files of a log.
    Log,
}

impl Kind {
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Kind::Missing),
            Err(error) => return Err(unreadable(folder, &error)),
        };
        let mut kind = Kind::Empty;
        for entry in entries {
            let entry = entry.map_err(|error| Failure::of_file("list", folder, &error))?;
            let name = entry.file_name();
            if OF_A_LOG.iter().any(|known| name == *known) {
                return Ok(Kind::Log);
            }
            if OF_NOTHING.iter().all(|known| name != *known) {
                kind = Kind::Foreign;
            }
        }
        Ok(kind)
    }
}

fn unreadable(folder: &Path, error: &std::io::Error) -> Failure {
    if error.kind() == ErrorKind::NotADirectory {
        let message = format!("{} is a file and no folder", folder.display());
        return Failure::new("no_log", message).hint("give the folder that holds the log");
    }
    Failure::of_file("list", folder, error)
}

/// Fails unless the folder holds a log.
pub(crate) fn check_is_log(folder: &Path) -> Result<()> {
    let shown = folder.display();
    let (message, hint) = match Kind::of(folder)? {
        Kind::Log => return Ok(()),
        Kind::Missing => (
            format!("there is no folder {shown}"),
            "check the path; `sessionlog serve --data DIR` begins a log",
        ),
        Kind::Empty => (
            format!("{shown} is empty, so there is no log in it"),
            "check the path, and whether its disk is mounted; \
             `sessionlog serve --data DIR` begins a log",
        ),
        Kind::Foreign => (
            format!("{shown} holds other files, and no log"),
            "give the folder that holds MANIFEST-0 and MANIFEST-1; it may be one below or above",
        ),
    };
    Err(Failure::new("no_log", message).hint(hint))
}

/// Opens a log without writing a byte.
pub(crate) fn open_to_read(folder: &Path) -> Result<SessionLog> {
    check_is_log(folder)?;
    Ok(Options::new().open_read_only(folder)?)
}

/// Opens a log that is there.
pub(crate) fn open_to_write(folder: &Path) -> Result<SessionLog> {
    check_is_log(folder)?;
    Ok(SessionLog::open(folder)?)
}
