//! The options of a log, with their defaults. They are checked once, when the log is opened.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::error::{Error, Result};
use crate::model::ids::{WallClock, system_clock};
use crate::model::retention::Retention;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// How a log is opened.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path();
/// let log = sessionlog::Options::new().event_bytes_max(64 * 1024).open(path)?;
/// # log.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use = "options do nothing until `open` is called"]
pub struct Options {
    pub(crate) limits: Limits,
    pub(crate) read_only: bool,
    /// The first journal file of a log.
    pub(crate) journal_file_bytes_min: usize,
    pub(crate) journal_file_bytes_max: usize,
    pub(crate) group_bytes_max: usize,
    pub(crate) recent_bytes_max: usize,
    pub(crate) cache_bytes_max: usize,
    pub(crate) index_cache_bytes_max: usize,
    pub(crate) head_cache_bytes_max: usize,
    pub(crate) merge_fanout: usize,
    pub(crate) tier_bytes_max: usize,
    /// The memory for the tables of a segment that is being written.
    pub(crate) table_bytes_max: usize,
    pub(crate) scan_bytes_max: usize,
    pub(crate) compression: Compression,
    pub(crate) retention: Retention,
    pub(crate) erase_within: Duration,
    pub(crate) stall_wait: Duration,
    pub(crate) clock: WallClock,
    /// Whether the clock is the caller's.
    #[cfg(feature = "postgres")]
    pub(crate) has_own_clock: bool,
    #[cfg(feature = "postgres")]
    pub(crate) durability: Durability,
    #[cfg(feature = "postgres")]
    pub(crate) schema: String,
    #[cfg(feature = "postgres")]
    pub(crate) shards: u32,
    /// The URLs of further databases.
    #[cfg(feature = "postgres")]
    pub(crate) databases: Vec<String>,
}

/// What makes a commit of PostgreSQL durable, for a log that is
/// [connected](crate::SessionLog::connect).
#[cfg(feature = "postgres")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Standbys, as `synchronous_standby_names` says. A commit returns when a quorum of them has it
    /// on disk. Without that setting, or without `fsync`, the log is not opened.
    #[default]
    Replicated,
    /// The database replicates below what PostgreSQL knows of, as Aurora, AlloyDB and Neon do. Its
    /// settings are not checked.
    EngineReplicates,
    /// One node. An acknowledged batch survives a crash of it, and is lost with its disk. This is
    /// for tests, and where that is accepted.
    OneNode,
}

/// How segments store events.
///
/// It applies to the segments that are written from now on. A log reads all of them under either
/// value, so the value may differ from one opening to the next. The journal is never compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Blocks are compressed with LZ4, except those that it makes less than an eighth smaller.
    ///
    /// A segment of JSON or text takes about half the space, and a cold read fetches less from the
    /// disk. Sealing spends more CPU time, and so does the first read of a block. The cache holds
    /// blocks decompressed, so cached reads cost the same.
    #[default]
    Lz4,
    /// Events are stored as they are, for data that is already compressed or encrypted.
    None,
}

/// The limits of what a caller may pass in.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "each is named like its option")]
pub(crate) struct Limits {
    pub event_bytes_max: usize,
    pub batch_bytes_max: usize,
    pub batch_events_max: usize,
    pub event_type_bytes_max: usize,
    pub idempotency_key_bytes_max: usize,
    pub page_events_max: usize,
}

/// The smallest journal file, which is also the first one of a log. Tests use smaller ones.
const JOURNAL_FILE_BYTES_MIN: usize = 4 * MIB;

/// The maxima of options, so that every length has room in the format.
pub(crate) const BATCH_BYTES_CEILING: usize = 256 * MIB;
/// The longest name that PostgreSQL takes as it is.
#[cfg(feature = "postgres")]
const SCHEMA_BYTES_MAX: usize = 63;
/// The most shards of a log.
#[cfg(feature = "postgres")]
pub(crate) const SHARDS_MAX: u32 = 1024;
const BATCH_EVENTS_CEILING: usize = 1_000_000;
pub(crate) const NAME_BYTES_CEILING: usize = 64 * KIB;
pub(crate) const JOURNAL_FILE_BYTES_CEILING: usize = 4096 * MIB;

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits {
                event_bytes_max: MIB,
                batch_bytes_max: 4 * MIB,
                batch_events_max: 1_000,
                event_type_bytes_max: 128,
                idempotency_key_bytes_max: 256,
                page_events_max: 1_000,
            },
            read_only: false,
            journal_file_bytes_min: JOURNAL_FILE_BYTES_MIN,
            journal_file_bytes_max: 64 * MIB,
            group_bytes_max: 4 * MIB,
            recent_bytes_max: 192 * MIB,
            cache_bytes_max: 64 * MIB,
            index_cache_bytes_max: 32 * MIB,
            head_cache_bytes_max: 128 * MIB,
            merge_fanout: 8,
            tier_bytes_max: 2048 * MIB,
            table_bytes_max: 16 * MIB,
            scan_bytes_max: 16 * MIB,
            compression: Compression::default(),
            retention: Retention::new(),
            erase_within: Duration::from_hours(24),
            stall_wait: Duration::from_secs(10),
            clock: system_clock(),
            #[cfg(feature = "postgres")]
            has_own_clock: false,
            #[cfg(feature = "postgres")]
            durability: Durability::default(),
            #[cfg(feature = "postgres")]
            schema: "sessionlog".to_owned(),
            #[cfg(feature = "postgres")]
            shards: 1,
            #[cfg(feature = "postgres")]
            databases: Vec::new(),
        }
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// As for [`open_read_only`](Self::open_read_only), on a disk of a test's own.
    #[cfg(test)]
    pub(crate) fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The largest data of one event, in bytes. Default: 1 MiB.
    pub fn event_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.event_bytes_max = bytes;
        self
    }

    /// The largest data of a batch, summed over its events, in bytes. Default: 4 MiB. Maximum: 256
    /// MiB.
    ///
    /// The event types of a batch have a limit of their own, which is always 256 MiB.
    pub fn batch_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.batch_bytes_max = bytes;
        self
    }

    /// The largest number of events in a batch. Default: 1,000. Maximum: 1,000,000.
    pub fn batch_events_max(mut self, events: usize) -> Self {
        self.limits.batch_events_max = events;
        self
    }

    /// The longest event type, in bytes. Default: 128. Maximum: 64 KiB.
    pub fn event_type_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.event_type_bytes_max = bytes;
        self
    }

    /// The longest idempotency key, in bytes. Default: 256. Maximum: 64 KiB.
    pub fn idempotency_key_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.idempotency_key_bytes_max = bytes;
        self
    }

    /// The largest limit of a page, in events, messages or sessions. Default: 1,000.
    pub fn page_events_max(mut self, events: usize) -> Self {
        self.limits.page_events_max = events;
        self
    }

    /// The size that journal files grow to, in bytes. Default: 64 MiB. Maximum: 4 GiB.
    ///
    /// The first file of a log has 4 MiB, and each new one twice the size of the one before. Larger
    /// files make fewer and larger segments, and a longer replay after a crash.
    ///
    /// Full files are sealed when the log is idle, or once half a file more has been written. A
    /// write to the journal takes at least 4 KiB, so small writes fill many files before they are
    /// worth a segment. These files are reused. All but two are removed when the log is idle or
    /// closed.
    pub fn journal_file_bytes_max(mut self, bytes: usize) -> Self {
        self.journal_file_bytes_max = bytes;
        self
    }

    /// The largest commit group, in bytes: what is written with one barrier. Default: 4 MiB.
    ///
    /// A group has at least one batch. While a group is written, the next one fills up to the same
    /// size, and an append that finds it full waits.
    pub fn group_bytes_max(mut self, bytes: usize) -> Self {
        self.group_bytes_max = bytes;
        self
    }

    /// Memory for records that are not yet in a segment, in bytes. Default: 192 MiB.
    ///
    /// The sum includes bookkeeping. A log under load uses all of it. An idle log uses what its
    /// last journal file holds, and what full files hold until these together reach
    /// [`journal_file_bytes_max`](Options::journal_file_bytes_max).
    pub fn recent_bytes_max(mut self, bytes: usize) -> Self {
        self.recent_bytes_max = bytes;
        self
    }

    /// Memory for blocks read from segments, in bytes. Default: 64 MiB.
    pub fn cache_bytes_max(mut self, bytes: usize) -> Self {
        self.cache_bytes_max = bytes;
        self
    }

    /// Memory for the index, in bytes. Default: 32 MiB.
    ///
    /// A quarter caches the index's answers for sessions that were read last. The rest is the limit
    /// given to the index for its own cache, which is filled in the background after opening.
    pub fn index_cache_bytes_max(mut self, bytes: usize) -> Self {
        self.index_cache_bytes_max = bytes;
        self
    }

    /// Memory for the heads of idle sessions, in bytes. Default: 128 MiB.
    ///
    /// Each head takes 128 bytes plus the session's name. A session that is not cached costs one
    /// lookup in the segments on its next append or read.
    pub fn head_cache_bytes_max(mut self, bytes: usize) -> Self {
        self.head_cache_bytes_max = bytes;
        self
    }

    /// The number of neighbouring segments that are merged into one. Default: 8. Minimum: 2.
    ///
    /// A larger number writes each record less often, and leaves more segments to look in. When
    /// nothing was appended for a second, a quarter of this number is enough if the segments have a
    /// quarter of all bytes.
    pub fn merge_fanout(mut self, segments: usize) -> Self {
        self.merge_fanout = segments;
        self
    }

    /// The largest segment that merging makes, in bytes. Default: 2 GiB.
    ///
    /// A merge needs as much free space on the disk until it is done. Larger segments make fewer
    /// places to look in.
    pub fn tier_bytes_max(mut self, bytes: usize) -> Self {
        self.tier_bytes_max = bytes;
        self
    }

    /// The most bytes that one page reads. Default: 16 MiB.
    ///
    /// A page that reaches it ends there and says that there is more. Every page reads at least one
    /// event.
    ///
    /// For messages it also limits the memory that they keep, by estimate. A page of messages ends
    /// before the turn that would exceed it. A single message omits its [earliest
    /// outputs](crate::Message::output_omitted).
    pub fn scan_bytes_max(mut self, bytes: usize) -> Self {
        self.scan_bytes_max = bytes;
        self
    }

    /// How segments store events. Default: [`Compression::Lz4`].
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// What is removed by itself, of all sessions. Default: nothing.
    ///
    /// It is decided by the log's [clock](Self::clock), and looked after at least 16 times within
    /// the shortest time that is kept, but no more often than 50 times a second and at least once
    /// a minute.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// How long removed bytes may stay in the files of the log. Default: 24 hours.
    ///
    /// A removal hides what it removed from readers at once. The bytes leave every file within this
    /// time while the log is open. Erasing begins when half of it has passed.
    pub fn erase_within(mut self, time: Duration) -> Self {
        self.erase_within = time;
        self
    }

    /// How long an append waits for room before it fails. Default: 10 seconds.
    ///
    /// The wait begins with the call. It covers room in the commit group, memory, and a free
    /// journal file. The error is [retryable](Error::is_retryable) unless somebody has to mend its
    /// cause. Batches of one group share the deadline of the first, so a later batch may fail
    /// before its own.
    ///
    /// An [async append](crate::SessionLog::append_async) waits for room in its group without a
    /// limit. Its deadline begins when it joins the group.
    pub fn stall_wait(mut self, wait: Duration) -> Self {
        self.stall_wait = wait;
        self
    }

    /// Takes the wall clock from `clock`, for tests and simulations.
    ///
    /// It is called once per batch, on the thread that appends. So it is by
    /// [`stats`](crate::SessionLog::stats), by [`erasure`](crate::SessionLog::erasure), and by the
    /// thread that erases. No lock of the log is held during the call, so the
    /// clock may wait, and may read from the log.
    pub fn clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        #[cfg(feature = "postgres")]
        {
            self.has_own_clock = true;
        }
        self
    }

    /// What makes a commit durable, for a log on PostgreSQL. Default:
    /// [`Durability::Replicated`].
    #[cfg(feature = "postgres")]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The schema that holds the tables, for a log on PostgreSQL. Default: `sessionlog`. It is made
    /// if it is missing. Its name has 1 to 63 bytes, and no control characters.
    #[cfg(feature = "postgres")]
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = name.into();
        self
    }

    /// The number of shards of a log on PostgreSQL, from 1 to 1024. Default: 1.
    ///
    /// It counts when the tables are made, and stays for the life of the log: a log that is there
    /// keeps its number. Each shard commits by itself, so several are for a log that has more
    /// appends than one commit after the other takes. With more than one, IDs rise in commit order
    /// in each session and in what one server appends, and no longer over the whole log.
    #[cfg(feature = "postgres")]
    pub fn shards(mut self, shards: u32) -> Self {
        self.shards = shards;
        self
    }

    /// Adds a further database of a log on PostgreSQL, over which its shards are spread, beside the
    /// one that [`connect`](Self::connect) names.
    ///
    /// A log that is made is spread evenly: it needs as many [`shards`](Self::shards) as
    /// databases, or more. To one that is there, a database comes without shards, until
    /// [`move_shard`](crate::SessionLog::move_shard) moves some. Every server of the log has to
    /// name all of its databases, in any order. The schema is the same in each.
    ///
    /// Each database has its own primary and its own failover, so one that is held up holds up the
    /// appends of its own shards. The feed and the lists of sessions need all of them.
    ///
    /// [`connect`](Self::connect) fails with [`Error::Invalid`] for a database of another log, for
    /// one that is named twice, and for more databases than shards.
    #[cfg(feature = "postgres")]
    pub fn and_database(mut self, url: impl Into<String>) -> Self {
        self.databases.push(url.into());
        self
    }

    /// Returns the URLs of all databases, of which this is the first.
    #[cfg(feature = "postgres")]
    pub(crate) fn urls(&self, first: &str) -> Vec<String> {
        let mut urls = vec![first.to_owned()];
        urls.extend_from_slice(&self.databases);
        urls
    }

    pub(crate) fn check(&self) -> Result<()> {
        let limits = &self.limits;
        let within = |what, value: usize, min: usize, max: usize| {
            let why = || format!("{value} is not between {min} and {max}");
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(Error::invalid(what, why()))
            }
        };
        within(
            "batch_bytes_max",
            limits.batch_bytes_max,
            1,
            BATCH_BYTES_CEILING,
        )?;
        within(
            "event_bytes_max",
            limits.event_bytes_max,
            1,
            limits.batch_bytes_max,
        )?;
        within(
            "batch_events_max",
            limits.batch_events_max,
            1,
            BATCH_EVENTS_CEILING,
        )?;
        within(
            "event_type_bytes_max",
            limits.event_type_bytes_max,
            1,
            NAME_BYTES_CEILING,
        )?;
        within(
            "idempotency_key_bytes_max",
            limits.idempotency_key_bytes_max,
            1,
            NAME_BYTES_CEILING,
        )?;
        within(
            "page_events_max",
            limits.page_events_max,
            1,
            BATCH_EVENTS_CEILING,
        )?;
        within(
            "journal_file_bytes_max",
            self.journal_file_bytes_max,
            self.journal_file_bytes_min,
            JOURNAL_FILE_BYTES_CEILING,
        )?;
        within(
            "group_bytes_max",
            self.group_bytes_max,
            1,
            self.journal_file_bytes_max,
        )?;
        #[cfg(feature = "postgres")]
        {
            within("schema", self.schema.len(), 1, SCHEMA_BYTES_MAX)?;
            within("shards", self.shards as usize, 1, SHARDS_MAX as usize)?;
            if self.schema.contains(char::is_control) {
                return Err(Error::invalid("schema", "it has control characters"));
            }
        }
        self.retention.check()?;
        within("merge_fanout", self.merge_fanout, 2, usize::MAX)?;
        within("scan_bytes_max", self.scan_bytes_max, 1, usize::MAX)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("limits", &self.limits)
            .field("read_only", &self.read_only)
            .field("journal_file_bytes_max", &self.journal_file_bytes_max)
            .field("group_bytes_max", &self.group_bytes_max)
            .field("recent_bytes_max", &self.recent_bytes_max)
            .field("cache_bytes_max", &self.cache_bytes_max)
            .field("index_cache_bytes_max", &self.index_cache_bytes_max)
            .field("head_cache_bytes_max", &self.head_cache_bytes_max)
            .field("scan_bytes_max", &self.scan_bytes_max)
            .field("compression", &self.compression)
            .field("stall_wait", &self.stall_wait)
            .finish_non_exhaustive()
    }
}
