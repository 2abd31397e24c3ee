//! Damaged logs: finding every fault, and saving what is left.
//!
//! The log itself never skips damage: it heals it or returns an error that names it. These calls
//! are for what comes then. [`verify()`] reads everything that a log stores, and reports each fault
//! with its file and offset. [`salvage()`] makes a log that opens out of everything that validates,
//! and reports what is missing, session by session. Neither changes the damaged log.

mod part;
mod salvage;
mod sessions;
mod survey;
mod verify;
mod wanted;

use std::path::PathBuf;

use serde::Serialize;

use crate::model::{Error, Seq, SessionId};

pub use salvage::{Salvaged, salvage};
pub use verify::{IndexCheck, Verified, verify};

/// A place where stored bytes are not as they should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The file or folder.
    pub file: PathBuf,
    /// The place in the file, in bytes from its start. It is 0 where the whole file is meant.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}

/// Events that could not be saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Loss {
    /// The session.
    pub session: SessionId,
    /// The generation of the session.
    pub generation: u32,
    /// The first seq that is missing.
    pub first: Seq,
    /// The last seq that is missing.
    pub last: Seq,
}

/// What is told while a log is verified or salvaged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Told {
    /// A fault was found.
    Finding(Finding),
    /// Events are lost.
    Loss(Loss),
    /// How many of the bytes have been read.
    Progress {
        /// The bytes so far.
        bytes: u64,
        /// All bytes.
        of: u64,
    },
}

/// Passes on what is found, and counts it.
struct Teller<'a> {
    tell: &'a mut dyn FnMut(Told),
    findings: u64,
    bytes: u64,
    of: u64,
}

impl<'a> Teller<'a> {
    fn new(tell: &'a mut dyn FnMut(Told)) -> Self {
        Self {
            tell,
            findings: 0,
            bytes: 0,
            of: 0,
        }
    }

    fn finding(&mut self, error: &Error) {
        self.findings += 1;
        let (file, offset, what) = match error {
            Error::Corrupt { file, offset, what } => (file.clone(), *offset, what.clone()),
            Error::Unsupported { file, .. } => (file.clone(), 0, error.to_string()),
            Error::Io { path, .. } => (path.clone(), 0, error.with_sources()),
            other => (PathBuf::new(), 0, other.with_sources()),
        };
        (self.tell)(Told::Finding(Finding { file, offset, what }));
    }

    fn loss(&mut self, loss: Loss) {
        (self.tell)(Told::Loss(loss));
    }

    fn progress(&mut self, bytes: u64) {
        self.bytes += bytes;
        (self.tell)(Told::Progress {
            bytes: self.bytes,
            of: self.of.max(self.bytes),
        });
    }
}
