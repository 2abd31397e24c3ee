//! Metrics of a log: its contents, the cost of commit groups, the state of background work, and the
//! result of recovery.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::model::ids::EventId;
use crate::sync::{AtomicU64, Ordering};

/// The metrics of a log at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The random number of the store, as 32 hexadecimal digits. Backups and copies have the same.
    pub store_id: String,
    /// The version of the format of the folder. Opening for writing makes it the newest.
    pub format: u32,
    /// The newest event or change that is shown. `None` in an empty log.
    pub last_id: Option<EventId>,
    /// Durable events in the store. An event is counted before its append returns.
    pub events: u64,
    /// Batches appended since the log was opened; replays are not counted.
    pub batches: u64,
    /// Commit groups written since the log was opened: each is one write and one barrier.
    pub groups: u64,
    /// Bytes written to the journal since the log was opened, padding included.
    pub journal_bytes: u64,
    /// Time spent in writes and barriers of groups. Two may run at once.
    pub barrier_time: Duration,
    /// The longest write and barrier of one group.
    pub barrier_time_max: Duration,
    /// Segments in the store.
    pub segments: u64,
    /// Bytes of the segments' files.
    pub segment_bytes: u64,
    /// The same by tier, from the lowest. Segments of tier 0 are made of the journal, and merging
    /// makes those of the next tier.
    pub tiers: Vec<Tier>,
    /// Segments made of the journal's records since the log was opened.
    pub seals: u64,
    /// Segments made of other segments since the log was opened.
    pub merges: u64,
    /// Memory for records that are not yet in a segment or not yet freed, by estimate.
    pub recent_bytes: u64,
    /// Merged segments that the index does not cover yet. Reads use their footers.
    pub index_lag: u64,
    /// How often the index was found wrong and rebuilt since the log was opened.
    pub index_rebuilds: u64,
    /// Streams and feeds that are open.
    pub streams: u64,
    /// Failed attempts of background work since the log was opened.
    pub refusals: u64,
    /// Background work that is refused at this moment.
    pub refused: Vec<Refusal>,
    /// The space that the log takes.
    pub space: Space,
    /// The difference between the wall clock and the newest event ID, when it is over a day. One of
    /// the two is wrong.
    pub clock_skew: Option<Duration>,
    /// The result of opening the log.
    pub recovery: Recovery,
}

impl Stats {
    /// Returns the mean number of batches in a commit group, or 0 before the first.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "an average of counts below 2^52"
    )]
    pub fn batches_per_group(&self) -> f64 {
        if self.groups == 0 {
            0.0
        } else {
            self.batches as f64 / self.groups as f64
        }
    }
}

/// The segments of one tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tier {
    /// The tier.
    pub tier: u8,
    /// Segments in it.
    pub segments: u64,
    /// Bytes of their files.
    pub bytes: u64,
}

/// The space that a log takes on the disk. The index comes on top: it is small, and can be removed
/// from a log that is closed. A log that is opened for reading alone counts the dead bytes that its
/// writer recorded last, and no spare file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Space {
    /// Bytes of segments, without the dead ones.
    pub live_bytes: u64,
    /// Bytes of segments that hold what was removed, by estimate. Merging gives them back.
    pub dead_bytes: u64,
    /// Bytes of journal files, spare ones included.
    pub journal_bytes: u64,
    /// Bytes of the segments and of the journal.
    pub total_bytes: u64,
    /// Journal files, spare ones included.
    pub journal_files: u64,
    /// Segments and journal files.
    pub files: u64,
    /// Bytes of the segments that are being merged at this moment.
    pub merging_bytes: u64,
    /// Bytes that were stored in the last 24 hours and are still there, by estimate.
    pub growth_bytes_a_day: u64,
    /// The time of the oldest stored event or change, which may have been removed since. `None` in
    /// an empty log.
    pub oldest: Option<Timestamp>,
}

/// Background work that the system refuses. It is retried until it succeeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Refusal {
    /// `journal files` or `sealing`, without which appends will fail; `index`, without which reads
    /// are slower; `merging`, without which nothing is erased and no space comes back.
    pub work: &'static str,
    /// The [code](crate::Error::code) of the last error.
    pub code: &'static str,
    /// The last error with its causes, for people.
    pub error: String,
    /// How long the work has been refused.
    pub lasts: Duration,
}

/// The result of opening a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recovery {
    /// The log had been closed, so nothing had to be recovered.
    pub clean: bool,
    /// Events read back from the journal.
    pub replayed_events: u64,
    /// Commit groups read back from the journal.
    pub replayed_groups: u64,
    /// Segments that were whole but not yet named in the manifest.
    pub adopted_segments: u64,
    /// The wall clock was over a day away from the newest event ID.
    pub clock_skew: Option<Duration>,
    /// How long opening took.
    pub took: Duration,
}

/// Counters of a running log.
#[derive(Default)]
pub(crate) struct Counters {
    pub batches: AtomicU64,
    groups: AtomicU64,
    pub journal_bytes: AtomicU64,
    barrier_nanos: AtomicU64,
    barrier_nanos_max: AtomicU64,
    pub streams: AtomicU64,
    pub seals: AtomicU64,
    pub merges: AtomicU64,
    pub merging_bytes: AtomicU64,
}

impl Counters {
    /// A group of `batches` reached stable storage.
    pub(crate) fn note_group(&self, batches: u32, bytes: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.batches.fetch_add(batches.into(), Ordering::Relaxed);
        self.journal_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.barrier_nanos.fetch_add(nanos, Ordering::Relaxed);
        // Written after the sums and read before them, so a sum covers all groups that a count or a
        // maximum covers.
        self.barrier_nanos_max.fetch_max(nanos, Ordering::Release);
        self.groups.fetch_add(1, Ordering::Release);
    }

    /// The number of groups. Read it before [what is counted per group](Self::note_group).
    pub(crate) fn groups(&self) -> u64 {
        self.groups.load(Ordering::Acquire)
    }

    /// The sum and the longest.
    pub(crate) fn barrier_time(&self) -> (Duration, Duration) {
        let longest = self.barrier_nanos_max.load(Ordering::Acquire);
        (
            Duration::from_nanos(self.barrier_nanos.load(Ordering::Relaxed)),
            Duration::from_nanos(longest),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::scope;

    #[test]
    fn figures_that_are_read_while_groups_are_counted_agree_with_each_other() {
        // Each takes longer than all before it together.
        const GROUPS: u32 = 60;
        for _ in 0..2_000 {
            let counters = Counters::default();
            scope(|scope| {
                scope.spawn(|| {
                    (0..GROUPS)
                        .for_each(|nth| counters.note_group(1, 1, Duration::from_nanos(1 << nth)));
                });
                let mut groups = 0;
                while groups < GROUPS.into() {
                    groups = counters.groups();
                    let batches = counters.batches.load(Ordering::Relaxed);
                    assert!(batches >= groups, "{batches} batches in {groups} groups");
                    let (sum, longest) = counters.barrier_time();
                    assert!(sum >= longest, "{longest:?} of {sum:?}");
                }
            });
        }
    }
}
