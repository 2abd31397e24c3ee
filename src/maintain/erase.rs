//! Erasing: sees to it that removed bytes leave every file of the log in time.
//!
//! At first a removal only hides what it removed from readers. Half the time that the bytes may
//! stay is left for gathering more of them. Then the journal is sealed, its used files are removed,
//! and each segment with a mark is written again. A call of `compact` does the same at once.

use std::sync::Arc;
use std::time::Duration;

use crate::disk::Halt;
use crate::engine::MergeOrders;
use crate::maintain::marks::earlier;
use crate::maintain::merge::{Choice, Merger, bytes_of, choose_old};
use crate::maintain::name::{name_segments, reserve};
use crate::model::{CompactProgress, Compacted, Error, now_ms};
use crate::segment::{SegmentInfo, SegmentSet};

/// The longest wait before looking at the clock again. It is not the system's own, so it may move
/// in any way.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// How often a wait for another thread looks again.
const POLL: Duration = Duration::from_millis(5);

/// A segment is written again for space alone if more than a fifth of its events are removed. Then
/// these take a quarter of the space that the others take.
const DEAD_SHARE: u64 = 5;

/// Below this, removed bytes are left to ordinary merges.
const DEAD_BYTES_MIN: u64 = 64 * 1024 * 1024;

impl Merger<'_> {
    /// Returns how long to wait before looking for something due.
    pub(super) fn time_until_due(&self) -> Duration {
        let half = self.engine.store.options.erase_within / 2;
        (half / 16).clamp(Duration::from_millis(10), LOOK_AGAIN_AFTER)
    }

    /// Returns when the oldest removal was made that is not erased.
    fn oldest_removal(&self) -> Option<u64> {
        let in_memory = self.writer.shared.recent.oldest_removal_ms();
        let manifest = self.writer.manifest.lock();
        let marks = manifest.value.marks.iter().map(|mark| mark.removal_ms);
        earlier(
            earlier(in_memory, manifest.value.journal_removal_ms),
            marks.min(),
        )
    }

    /// Erases what is due.
    pub(super) fn erase_due(&mut self) -> Result<(), Halt> {
        let Some(removed_ms) = self.oldest_removal() else {
            return Ok(());
        };
        let options = &self.engine.store.options;
        let half = u64::try_from(options.erase_within.as_millis() / 2).unwrap_or(u64::MAX);
        if now_ms(&options.clock) < removed_ms.saturating_add(half) {
            return Ok(());
        }
        self.erase().map(drop)
    }

    /// Answers a caller that waits for everything to be erased.
    pub(super) fn compact_if_asked(&mut self) -> Result<(), Halt> {
        let asked = self
            .writer
            .merge
            .with(|orders| (orders.asked > orders.answered).then_some(orders.asked));
        let Some(asked) = asked else { return Ok(()) };
        self.compacting = true;
        let done = self.compact();
        self.compacting = false;
        let (answer, result) = match done {
            Ok(compacted) => (Ok(compacted), Ok(())),
            Err(Halt::Failed(error)) => (Err(error.clone()), Err(Halt::Failed(error))),
            // Nobody waits for this answer.
            Err(Halt::Stopped) if self.writer.merge.check_stop().is_ok() => {
                (Ok(Compacted::default()), Ok(()))
            }
            Err(Halt::Stopped) => (Err(Error::Closed), Err(Halt::Stopped)),
        };
        self.writer.merge.update(|orders| {
            orders.answer = Some(answer);
            orders.answered = asked;
        });
        result
    }

    /// Tells waiting callers that nothing more is erased.
    pub(super) fn answer_nobody(&self) {
        let error = self.writer.shared.state.check_poison().err();
        self.writer.merge.update(|orders| {
            orders.answered = u64::MAX;
            orders.answer = Some(Err(error.unwrap_or(Error::Closed)));
        });
    }

    /// Checks that the log is open, and that somebody waits if the work is done for callers alone.
    pub(super) fn check_on(&self) -> Result<(), Halt> {
        self.writer.merge.check_stop()?;
        if self.compacting && self.writer.merge.with(|orders| orders.waiting == 0) {
            Err(Halt::Stopped)
        } else {
            Ok(())
        }
    }

    fn compact(&mut self) -> Result<Compacted, Halt> {
        let bytes_before = bytes_of(self.engine.locator.segments().iter());
        let segments = if self.oldest_removal().is_some() {
            self.erase()?
        } else {
            0
        };
        Ok(Compacted {
            segments,
            bytes_before,
            bytes_after: bytes_of(self.engine.locator.segments().iter()),
        })
    }

    /// Erases everything that was removed before this call. Returns the number of segments written.
    ///
    /// A segment that cannot be read keeps no other from being erased.
    fn erase(&mut self) -> Result<u64, Halt> {
        self.erase_journal()?;
        let mut progress = CompactProgress::default();
        let mut first_error = None;
        let mut passed_over: Vec<u64> = Vec::new();
        while let Some((set, choice, left)) = self.next_to_erase(&passed_over) {
            let (inputs, tier) = choice;
            progress.segments_left = left;
            self.writer
                .merge
                .update(|orders| orders.progress = progress);
            match self.merge(&set, &inputs, tier) {
                Ok(()) => progress.segments += 1,
                Err(Halt::Failed(error @ Error::Corrupt { .. })) => {
                    passed_over.extend(inputs.iter().map(|input| input.info.number));
                    first_error.get_or_insert(error);
                }
                Err(halt) => return Err(halt),
            }
            drop((set, inputs));
            self.remove_replaced();
        }
        while !self.is_clean() {
            self.check_on()?;
            self.remove_replaced();
            self.writer.merge.pause(POLL, |_orders| false)?;
        }
        self.engine.index.remove_set_aside()?;
        first_error.map_or(Ok(progress.segments), |error| Err(error.into()))
    }

    /// Returns the next segments to write again, with their set and the number of those left.
    ///
    /// Segments of version 1 come first: without states of sessions, no single one can be.
    fn next_to_erase(&self, passed_over: &[u64]) -> Option<(Arc<SegmentSet>, Choice, u64)> {
        let set = self.engine.locator.segments();
        let marks = self.writer.manifest.lock().value.marks.clone();
        let mut marked = marks
            .iter()
            .filter(|mark| !passed_over.contains(&mark.segment))
            .filter_map(|mark| set.by_number(mark.segment));
        let segment = Arc::clone(marked.next()?);
        let tier = segment.info.tier;
        let fanout = self.engine.store.options.merge_fanout;
        let is_passed_over = |(inputs, _): &Choice| {
            inputs
                .iter()
                .any(|input| passed_over.contains(&input.info.number))
        };
        let old = choose_old(&set, fanout).filter(|old| !is_passed_over(old));
        let choice = old.unwrap_or_else(|| (vec![segment], tier));
        Some((set, choice, marks.len() as u64))
    }

    /// Seals all records and removes the journal files that held them.
    fn erase_journal(&self) -> Result<(), Halt> {
        let shared = &self.writer.shared;
        let began_ms = now_ms(&self.engine.store.options.clock);
        shared.spares.remove_used()?;
        let start_lsn = self.writer.seal_everything(|| self.check_on())?;
        shared.spares.remove_used()?;
        let slots = reserve(self.writer)?;
        name_segments(self.writer, &slots, |manifest| {
            // What was sealed since may hold a removal of its own.
            let is_all = manifest.sealed_lsn() == start_lsn;
            manifest.journal_removal_ms = if is_all { None } else { Some(began_ms) };
        })?;
        Ok(())
    }

    /// Chooses a segment to write again for its space.
    pub(super) fn choose_dead(&self, set: &SegmentSet) -> Option<Choice> {
        let manifest = self.writer.manifest.lock();
        let dead: Vec<(&SegmentInfo, u64)> = manifest.value.dead_bytes().collect();
        if dead.iter().map(|(_, bytes)| bytes).sum::<u64>() < DEAD_BYTES_MIN {
            return None;
        }
        let is_worth_it =
            |(info, bytes): &&(&SegmentInfo, u64)| bytes * DEAD_SHARE > info.file_bytes;
        let (info, _) = dead
            .iter()
            .filter(is_worth_it)
            .max_by_key(|(_, bytes)| *bytes)?;
        let segment = set.by_number(info.number)?;
        Some((vec![Arc::clone(segment)], info.tier))
    }
}

impl MergeOrders {
    /// Asks for everything to be erased. Returns the number of the request.
    pub(crate) fn ask(&mut self) -> u64 {
        self.asked = self.asked.saturating_add(1);
        self.waiting += 1;
        self.progress = CompactProgress::default();
        self.asked
    }
}
