//! Moving a log as text: everything needed to come back bit for bit, as lines of JSON.
//!
//! [`export()`] writes the whole log, or some sessions of it, and [`import()`] makes a log of that.
//! Seqs, IDs, generations, times, idempotency keys, fingerprints, producers and the states of
//! sessions come back as they were. Only the store ID is a new one. An export leaves out
//! removed events.
//!
//! # The lines
//!
//! An export is text in UTF-8. Each line is a JSON object with one member:
//!
//! | member | content |
//! |---|---|
//! | `sessionlog_export` | the first line: the `version` of this form, the `store` ID |
//! | `part` | begins a part: the range of IDs, the number of sessions and keys at most |
//! | `record` | a batch: its session, place and time, its key, changes and events |
//! | `state` | the state of a session behind its records, as of the end of the part |
//! | `part_end` | ends a part: the number of its records and states |
//! | `export_end` | the last line |
//!
//! Parts follow each other in commit order. Within a part the sessions are in the order of their
//! IDs, and the records of a session in the order of generations and seqs. The state of a session
//! in the last part that has it is the one that counts.
//!
//! The data of an event stands in `data` if it is JSON without a line break, in `data_text` if it
//! is other text, and in `data_base64` otherwise. An event that has none of the three has no data.
//! `checksum` is the CRC32C of the batch in the log's own format. A batch that these members cannot
//! express also has `body_base64`, which counts.

mod export;
mod import;
mod lines;
mod omit;
mod record;
mod state;

#[cfg(feature = "postgres")]
pub(crate) use export::Exporter;
#[cfg(test)]
pub(crate) use export::export_from;
pub use export::{Complete, Export, Exported, export, last_complete};
#[cfg(any(test, feature = "postgres"))]
pub(crate) use import::Input;
#[cfg(test)]
pub(crate) use import::import_to;
pub use import::{Imported, import};
#[cfg(feature = "postgres")]
pub(crate) use import::{Item, Reading, Target, read_export};
#[cfg(feature = "postgres")]
pub(crate) use lines::PartLine;

/// How far an export or an import is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The number of events that were written or read.
    pub events: u64,
    /// The number of events in the log, by estimate. An import does not know it.
    pub events_total: Option<u64>,
    /// The number of parts that are complete.
    pub parts: u64,
}
