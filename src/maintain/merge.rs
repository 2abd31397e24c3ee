//! Merging: writes the records of neighbouring segments again into one, session by session, and
//! leaves out what was removed.
//!
//! Eight segments of one tier make one of the next, so a record is written once a tier. While
//! nothing is appended, fewer are enough for the first merge, so that the sessions of a log at rest
//! lie together. A merge reads its inputs from front to back and keeps little of each in memory.
//!
//! Invariants:
//! * A merged segment covers the stretch of its inputs. The manifest names it in the same write
//!   that no longer names them.
//! * An input is removed after both slots are durable and no reader holds it.

use std::sync::Arc;
use std::time::Duration;

use crate::disk::{Halt, Work};
use crate::engine::{Engine, MergeOrders, Writer};
use crate::maintain::gather::gather;
use crate::maintain::marks::{NewMarks, carry_over};
use crate::maintain::name::{name_segments, reserve};
use crate::model::{Counters, EventId, Result};
use crate::segment::{Segment, SegmentSet, SegmentSpec, write_segment};
use crate::sync::{Instant, Ordering, Stopped};

/// How long to wait after a failure before merging again. The time doubles with each failure in a
/// row, because a merge that cannot be finished writes much for nothing.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The number of times that it doubles.
const DOUBLINGS_MAX: u32 = 6;

/// How long to wait before looking again whether readers have let go of a merged segment.
const RELEASE_AFTER: Duration = Duration::from_millis(100);

/// A log to which nothing was appended for this long is at rest.
const REST_AFTER: Duration = Duration::from_secs(1);

/// At rest, this share of the neighbours is enough if they are as large a share of all segments: a
/// quarter. So what lies together is most of a small log, and little is written again in a large
/// one.
const REST_SHARE: usize = 4;

/// The log that merging works on.
pub(super) struct Merger<'a> {
    pub(super) engine: &'a Engine,
    pub(super) writer: &'a Writer,
    /// Segments that were merged, until no reader holds them.
    replaced: Vec<Arc<Segment>>,
    /// The end of what was appended, and when it was first seen there.
    seen: (u64, Instant),
    /// Whether the work is done for waiting callers.
    pub(super) compacting: bool,
}

/// Runs the background thread until the log stops.
pub(crate) fn run(engine: &Engine) {
    let Some(writer) = &engine.writer else {
        return;
    };
    let mut merger = Merger {
        engine,
        writer,
        replaced: Vec::new(),
        seen: (writer.shared.state.durable_lsn(), Instant::now()),
        compacting: false,
    };
    let mut failures = 0;
    loop {
        let worked = merger.work();
        let waited = match worked {
            Ok(()) => {
                engine.refusals.note(Work::Merging, None);
                failures = 0;
                merger.wait()
            }
            Err(Halt::Failed(refused)) if writer.shared.state.check_poison().is_ok() => {
                engine.refusals.note(Work::Merging, Some(&refused));
                let time = RETRY_AFTER * 2_u32.pow(failures);
                failures = DOUBLINGS_MAX.min(failures + 1);
                writer
                    .merge
                    .pause(time, |orders| orders.asked > orders.answered)
            }
            Err(_for_good) => break,
        };
        if waited.is_err() {
            break;
        }
    }
    merger.remove_replaced();
    merger.answer_nobody();
}

impl Merger<'_> {
    /// Does all that is due: erases, merges, and removes what was merged.
    fn work(&mut self) -> Result<(), Halt> {
        self.mark_adopted()?;
        self.compact_if_asked()?;
        let erased = self.erase_due();
        let merged = self.merge_all();
        self.remove_replaced();
        erased.and(merged)
    }

    /// Waits until the segments have changed, something has to be erased, or it is time to look
    /// after replaced segments or after a log at rest.
    fn wait(&self) -> Result<(), Stopped> {
        let signal = &self.writer.merge;
        let has_orders = |orders: &MergeOrders| orders.changed || orders.asked > orders.answered;
        let mut time = self.time_until_due();
        if !self.replaced.is_empty() {
            time = RELEASE_AFTER;
        } else if self.choose_few(&self.engine.locator.segments()).is_some() {
            time = time.min(REST_AFTER);
        }
        signal.pause(time, has_orders)?;
        signal.with(|orders| orders.changed = false);
        Ok(())
    }

    fn merge_all(&mut self) -> Result<(), Halt> {
        loop {
            let set = self.engine.locator.segments();
            let options = &self.engine.store.options;
            let (fanout, bytes_max) = (options.merge_fanout, options.tier_bytes_max as u64);
            let chosen = choose_old(&set, fanout)
                .or_else(|| self.choose_dead(&set))
                .or_else(|| choose(&set, fanout, bytes_max))
                .or_else(|| self.choose_few(&set).filter(|_| self.is_at_rest()));
            let Some((inputs, tier)) = chosen else {
                return Ok(());
            };
            self.merge(&set, &inputs, tier)?;
            self.remove_replaced();
        }
    }

    /// Chooses the newest segments, which were never merged, if they are enough for a log at rest.
    fn choose_few(&self, set: &SegmentSet) -> Option<Choice> {
        let options = &self.engine.store.options;
        let newest = set.iter().rev();
        let mut unmerged: Vec<_> = newest
            .take_while(|segment| segment.info.tier == 0)
            .collect();
        unmerged.reverse();
        let fanout = options.merge_fanout;
        let fitting = fitting(&unmerged, fanout, options.tier_bytes_max as u64);
        let chosen = unmerged.get(..fitting)?;
        let is_enough = chosen.len() >= (fanout / REST_SHARE).max(2)
            && bytes_of(chosen.iter().copied()) >= bytes_of(set.iter()) / REST_SHARE as u64;
        is_enough.then(|| merged_from(chosen, 0))
    }

    /// Whether nothing was appended for a while.
    fn is_at_rest(&mut self) -> bool {
        let durable_lsn = self.writer.shared.state.durable_lsn();
        let (lsn, since) = &mut self.seen;
        if *lsn != durable_lsn {
            (*lsn, *since) = (durable_lsn, Instant::now());
        }
        since.elapsed() >= REST_AFTER
    }

    /// Puts the marks that a crash kept from the manifest, of segments that were adopted.
    fn mark_adopted(&self) -> Result<(), Halt> {
        let unmarked = self.writer.manifest.lock().value.unmarked.clone();
        let store = &self.engine.store;
        for number in unmarked {
            let set = self.engine.locator.segments();
            let mut removals = Vec::new();
            if let Some(segment) = set.by_number(number) {
                for record in segment.uncached()?.records()? {
                    let record = record?;
                    if record.removes() || record.retains() {
                        removals.push(Arc::new(record));
                    }
                }
            }
            let marks = NewMarks::of(store, &set, &removals)?;
            let slots = reserve(self.writer)?;
            name_segments(self.writer, &slots, |manifest| {
                marks.put(manifest);
                manifest.unmarked.retain(|left| *left != number);
            })?;
        }
        Ok(())
    }

    /// Replaces neighbouring segments by one.
    pub(super) fn merge(
        &mut self,
        set: &SegmentSet,
        inputs: &[Arc<Segment>],
        tier: u8,
    ) -> Result<(), Halt> {
        let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
            return Ok(());
        };
        let Engine {
            store,
            locator,
            segments,
            ..
        } = self.engine;
        let slots = reserve(self.writer)?;
        // Read first: what is marked later may be of a removal that this merge has not seen.
        let marks_before = self.writer.manifest.lock().value.marks.clone();
        let spec = SegmentSpec {
            store: segments.store,
            number: self.writer.next_segment(),
            tier,
            start_lsn: first.info.start_lsn,
            end_lsn: last.info.end_lsn,
            first_id: first_id_of(inputs),
            last_id: last.info.last_id(),
            compression: store.options.compression,
            items_max: inputs.iter().map(|segment| segment.filter_items()).sum(),
            table_bytes_max: store.options.table_bytes_max,
        };
        let _merging = Merging::begin(&store.counters, bytes_of(inputs));
        let info = write_segment(&*segments.disk, &segments.path, spec, |out| {
            let dropped = inputs.iter().map(|segment| segment.info.dropped).sum();
            out.note_dropped(dropped);
            gather(store, set, inputs, out, || self.check_on())
        })?;
        let numbers: Vec<u64> = inputs.iter().map(|input| input.info.number).collect();
        name_segments(self.writer, &slots, |manifest| {
            let named = &mut manifest.segments;
            let place = named.iter().position(|info| numbers.contains(&info.number));
            named.retain(|info| !numbers.contains(&info.number));
            named.insert(place.unwrap_or(0), info.clone());
            carry_over(manifest, &marks_before, &numbers, info.number);
        })?;
        let merged = Arc::new(segments.segment(info));
        locator.publish(|set| set.merged(inputs, merged));
        store.counters.merges.fetch_add(1, Ordering::Relaxed);
        self.replaced.extend(inputs.iter().map(Arc::clone));
        Ok(())
    }

    /// Whether all replaced segments are removed.
    pub(super) fn is_clean(&self) -> bool {
        self.replaced.is_empty()
    }

    /// Removes the replaced segments that no reader holds any more.
    pub(super) fn remove_replaced(&mut self) {
        let (engine, folder) = (self.engine, &self.engine.segments);
        let mut removed = false;
        self.replaced.retain(|segment| {
            if Arc::strong_count(segment) > 1 {
                return true;
            }
            segment.close_file();
            if let Err(refused) = folder.disk.remove(segment.path()) {
                // The next open finds it, and that others cover it.
                engine.refusals.note(Work::Merging, Some(&refused));
            }
            removed = true;
            false
        });
        if removed && let Err(refused) = folder.disk.sync_dir(&folder.path) {
            engine.refusals.note(Work::Merging, Some(&refused));
        }
    }
}

/// Counts the bytes of a merge until it ends.
struct Merging<'a> {
    counters: &'a Counters,
    bytes: u64,
}

impl<'a> Merging<'a> {
    fn begin(counters: &'a Counters, bytes: u64) -> Self {
        counters.merging_bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { counters, bytes }
    }
}

impl Drop for Merging<'_> {
    fn drop(&mut self) {
        let counter = &self.counters.merging_bytes;
        counter.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Returns the first ID of neighbours. The first ones may hold no record and have none.
fn first_id_of(inputs: &[Arc<Segment>]) -> EventId {
    let none = EventId::from_u128(0);
    let mut ids = inputs.iter().map(|input| input.info.first_id());
    ids.find(|id| *id > none).unwrap_or(none)
}

/// Returns the size of the files.
pub(super) fn bytes_of<'a>(segments: impl IntoIterator<Item = &'a Arc<Segment>>) -> u64 {
    let bytes = segments.into_iter().map(|segment| segment.info.file_bytes);
    bytes.sum()
}

/// The neighbours to merge, and the tier of the result.
pub(super) type Choice = (Vec<Arc<Segment>>, u8);

fn merged_from(chosen: &[&Arc<Segment>], tier: u8) -> Choice {
    let chosen = chosen.iter().map(|segment| Arc::clone(segment)).collect();
    (chosen, tier.saturating_add(1))
}

/// Chooses segments of version 1, from the oldest on, because they hold no states of sessions.
///
/// So those before the first one hold states, and no other merge touches one.
pub(super) fn choose_old(set: &SegmentSet, fanout: usize) -> Option<Choice> {
    let segments: Vec<&Arc<Segment>> = set.iter().collect();
    let is_old = |segment: &&&Arc<Segment>| segment.info.format == 1;
    let begin = segments
        .iter()
        .position(|segment| segment.info.format == 1)?;
    let old = segments.get(begin..)?;
    let count = old.iter().take(fanout).take_while(is_old).count();
    old.get(..count).map(|old| merged_from(old, 0))
}

/// Chooses the newest neighbours of one tier that are enough. Of these the oldest are merged: as
/// many as `fanout`, or fewer if more would exceed the largest segment.
fn choose(set: &SegmentSet, fanout: usize, bytes_max: u64) -> Option<Choice> {
    let segments: Vec<&Arc<Segment>> = set.iter().collect();
    let mut end = segments.len();
    while let Some(newest) = end.checked_sub(1).and_then(|last| segments.get(last)) {
        let tier = newest.info.tier;
        let of_tier = |segment: &&&Arc<Segment>| segment.info.tier == tier;
        let begin = end - segments.iter().take(end).rev().take_while(of_tier).count();
        // A segment that fits with none of those after it stays as it is.
        for from in begin..end {
            let neighbours = segments.get(from..end).unwrap_or_default();
            let fitting = fitting(neighbours, fanout, bytes_max);
            let is_enough = fitting == fanout || (fitting > 1 && fitting < neighbours.len());
            if is_enough && neighbours.len() >= fanout.min(fitting + 1) {
                return neighbours
                    .get(..fitting)
                    .map(|chosen| merged_from(chosen, tier));
            }
        }
        end = begin;
    }
    None
}

/// Returns how many of the first segments make one that is not too large.
fn fitting(segments: &[&Arc<Segment>], fanout: usize, bytes_max: u64) -> usize {
    let mut bytes = 0;
    let fits = |segment: &&&Arc<Segment>| {
        bytes += segment.info.file_bytes;
        bytes <= bytes_max
    };
    segments.iter().take(fanout).take_while(fits).count()
}
