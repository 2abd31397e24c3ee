//! The seam below [`SessionLog`](crate::SessionLog): what an engine does, and the calls that work
//! over any.
//!
//! Checks, limits, cursors, pages, streams, folds, HTTP and adapters stand above the seam, once. An
//! engine commits proposals and answers reads through the seam under the read path, whose
//! documentation says what it must promise of what it shows. Of what it commits it must promise:
//!
//! * **One decision.** Proposals are decided one after the other by
//!   [`decide`](crate::write::decide), each on what those before it left, whether these are durable
//!   yet or not. Another server that commits to the same log is waited for first.
//! * **Durable before told.** An answer is given once everything that it rests on is durable, also
//!   the answers that nothing was written: a replay, a conflict, a mismatch.
//! * **All or nothing.** A proposal becomes one record, wholly or not at all. IDs rise in commit
//!   order, and seqs are dense.
//! * **In doubt is told.** An error says whether the batch may have landed.

mod answers;
mod calls;
mod judged;

use std::future::Future;
use std::ops::ControlFlow;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use crate::disk::Disk;
use crate::model::{BackupReport, CompactProgress, Compacted, Erasure, EventId, Result, Stats};
#[cfg(feature = "postgres")]
use crate::model::{Error, Moved, SessionId, Shard};
use crate::turn::TurnReader;
use crate::write::{Landed, Proposal};

pub(crate) use answers::{ack, ack_async, removed};
pub(crate) use calls::{
    Call, Reads, append_of, aside, call, call_async, change_of, create_of, delete_of, fork_of,
    passing_over, proposal, redact_of, trim_of,
};
#[cfg(feature = "durable-streams")]
pub(crate) use calls::{Made, call_once, call_once_async};
pub(crate) use judged::{Judged, only_if};

/// What keeps a log.
pub(crate) trait Backend: Send + Sync {
    /// Returns the reader of turns, and through it that of events and sessions.
    fn turns(&self) -> &TurnReader;

    /// Refuses a log that is open for reading only.
    fn check_writable(&self) -> Result<()>;

    /// Commits a proposal, and blocks until it is durable.
    fn append(&self, proposal: Proposal) -> Result<Landed>;

    /// Commits a proposal as a task of any runtime.
    fn append_async(&self, proposal: Proposal) -> Landing<'_>;

    /// Whether nothing is to be written until the next append.
    #[cfg(all(test, feature = "http"))]
    fn is_at_rest(&self) -> bool;

    /// Shows what another process has made durable. Returns the newest event or change.
    fn refresh(&self) -> Result<Option<EventId>>;

    /// Checks that appends find what they need. The log is open. It may block.
    fn health(&self) -> Result<()>;

    /// Checks for what only opening the log again mends, and waits for nothing.
    #[cfg(any(feature = "http", feature = "postgres"))]
    fn check_usable(&self) -> Result<()> {
        self.health()
    }

    fn stats(&self) -> Stats;

    /// Erases everything that was removed, unless `progress` ends the wait.
    fn compact(
        &self,
        progress: &mut dyn FnMut(CompactProgress) -> ControlFlow<()>,
    ) -> Result<Compacted>;

    /// Makes a folder a copy of the log.
    fn backup(&self, disk: Arc<dyn Disk>, folder: &Path) -> Result<BackupReport>;

    /// Returns what was removed and is not erased yet.
    fn erasure(&self) -> Result<Erasure>;

    /// Returns the shards, with where they are.
    #[cfg(feature = "postgres")]
    fn shards(&self) -> Result<Vec<Shard>> {
        Err(Error::invalid("shards", "a log in a folder has none"))
    }

    /// Returns the shard that a session is in.
    #[cfg(feature = "postgres")]
    fn shard_of(&self, _session: &SessionId) -> Result<u32> {
        Err(Error::invalid("shards", "a log in a folder has none"))
    }

    /// Moves a shard to another database, and blocks until it is there.
    #[cfg(feature = "postgres")]
    fn move_shard(&self, _shard: u32, _database: usize) -> Result<Moved> {
        Err(Error::invalid("shard", "a log in a folder has none"))
    }

    /// Ends the log. A second call does nothing.
    fn close(&self) -> Result<()>;
}

/// A proposal on its way.
pub(crate) type Landing<'a> = Pin<Box<dyn Future<Output = Result<Landed>> + Send + 'a>>;
