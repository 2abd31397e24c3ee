//! Every knob with its default, checked once when a log is opened.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::error::{Error, Result};
use crate::model::ids::{WallClock, system_clock};

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
    pub(crate) scan_bytes_max: usize,
    pub(crate) stall_wait: Duration,
    pub(crate) clock: WallClock,
}

/// What a caller may give at the most.
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

/// The smallest journal file, which is also the first one of a log. Tests make smaller ones.
const JOURNAL_FILE_BYTES_MIN: usize = 4 * MIB;

/// What an option may be raised to, so that every length in the format has room.
pub(crate) const BATCH_BYTES_CEILING: usize = 256 * MIB;
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
            scan_bytes_max: 16 * MIB,
            stall_wait: Duration::from_secs(10),
            clock: system_clock(),
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

    /// The largest data of one event, in bytes: 1 MiB.
    pub fn event_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.event_bytes_max = bytes;
        self
    }

    /// The largest sum of the data of a batch's events, in bytes: 4 MiB, and at most 256 MiB, to
    /// which their types are held together in any case.
    pub fn batch_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.batch_bytes_max = bytes;
        self
    }

    /// The most events in a batch: 1,000.
    pub fn batch_events_max(mut self, events: usize) -> Self {
        self.limits.batch_events_max = events;
        self
    }

    /// The longest event type, in bytes: 128.
    pub fn event_type_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.event_type_bytes_max = bytes;
        self
    }

    /// The longest idempotency key, in bytes: 256.
    pub fn idempotency_key_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.idempotency_key_bytes_max = bytes;
        self
    }

    /// The largest page, in events: 1,000.
    pub fn page_events_max(mut self, events: usize) -> Self {
        self.limits.page_events_max = events;
        self
    }

    /// The size that journal files grow to, in bytes: 64 MiB. The first is 4 MiB and each new one
    /// doubles. Larger files make fewer, larger segments and a longer replay after a crash. Full
    /// files are sealed when the log is idle, or once half a file more has been written. A write to
    /// the journal takes 4 KiB at least, so that small ones fill many files before their records
    /// are as much as that; the files are kept for what comes next, and all but a few are removed
    /// when the log is idle or closed.
    pub fn journal_file_bytes_max(mut self, bytes: usize) -> Self {
        self.journal_file_bytes_max = bytes;
        self
    }

    /// The most bytes written with one barrier, one batch at least: 4 MiB. As much may wait for its
    /// turn meanwhile; an append that finds no room waits.
    pub fn group_bytes_max(mut self, bytes: usize) -> Self {
        self.group_bytes_max = bytes;
        self
    }

    /// The most memory, in bytes, for what is not yet in a segment, bookkeeping included: 192 MiB.
    /// A log under load holds up to this; an idle one holds what its last journal file holds, and
    /// full ones until together they are as large as
    /// [`journal_file_bytes_max`](Options::journal_file_bytes_max).
    pub fn recent_bytes_max(mut self, bytes: usize) -> Self {
        self.recent_bytes_max = bytes;
        self
    }

    /// The most memory, in bytes, for blocks read from segments: 64 MiB.
    pub fn cache_bytes_max(mut self, bytes: usize) -> Self {
        self.cache_bytes_max = bytes;
        self
    }

    /// The memory, in bytes, for the index: 32 MiB. A quarter keeps what it said of the sessions
    /// that were read last, the rest is what it is told to stay within for its own cache, which is
    /// filled in the background when the log is opened.
    pub fn index_cache_bytes_max(mut self, bytes: usize) -> Self {
        self.index_cache_bytes_max = bytes;
        self
    }

    /// The most memory, in bytes, for where sessions stand that have nothing else in memory: 128
    /// MiB, of which each takes 128 bytes and its name. To append to one that is not remembered, or
    /// to read it, is to look in the segments for its end first.
    pub fn head_cache_bytes_max(mut self, bytes: usize) -> Self {
        self.head_cache_bytes_max = bytes;
        self
    }

    /// The most bytes that a page reads before it returns what it has found, with where to go on:
    /// 16 MiB. At least one event is read. Messages keep about as much, by estimate of the memory
    /// for it: a page of them ends before the turn that would exceed it, and a message leaves out
    /// its [earliest outputs](crate::Message::output_omitted).
    pub fn scan_bytes_max(mut self, bytes: usize) -> Self {
        self.scan_bytes_max = bytes;
        self
    }

    /// How long an append waits for room before it fails with a retryable error: 10 seconds for
    /// room in its group, and as long each for memory and for a journal file when that group is
    /// written. An [async append](SessionLog::append_async) waits for room in its group without a
    /// limit.
    pub fn stall_wait(mut self, wait: Duration) -> Self {
        self.stall_wait = wait;
        self
    }

    /// Takes the wall clock from `clock`, for tests and simulations. It is called once a batch, on
    /// the thread that appends, and by [`stats`](SessionLog::stats), each time without a lock of
    /// the log: it may wait, and read from the log that it is the clock of.
    pub fn clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
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
            .field("stall_wait", &self.stall_wait)
            .finish_non_exhaustive()
    }
}
