//! The shards of a log on PostgreSQL.

use std::time::Duration;

/// A shard of a log on PostgreSQL, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shard {
    /// Its number. The first is 0.
    pub number: u32,
    /// The place of its database among those that the log was opened with: 0 for that of
    /// [`connect`](crate::Options::connect), and from 1 on those of
    /// [`and_database`](crate::Options::and_database).
    pub database: usize,
    /// The database, as errors name it.
    pub place: String,
    /// The sessions that were ever begun in it.
    pub sessions: u64,
    /// The events that were ever committed to it.
    pub events: u64,
    /// Whether it is being copied to another database, or was when its mover ended.
    pub is_moving: bool,
}

/// What a move of a shard did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moved {
    /// The sessions that were copied.
    pub sessions: u64,
    /// The batches that were copied before the shard was locked.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the shard was locked: appends to it waited meanwhile.
    pub locked: Duration,
}
