//! Marks on segments that hold something removed, so that it is erased in time and its space given
//! back.
//!
//! Invariant: the manifest names the segment with a removal's record in the same write that marks
//! every older segment with removed events. Filters miss nothing, so no segment is left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::codec::Record;
use crate::manifest::{Manifest, Mark};
use crate::model::{FIRST_SEQ, Op, Result, Seq, SessionId};
use crate::read::Store;
use crate::segment::{Segment, SegmentInfo, SegmentSet};

/// The marks that the removals in some records put on the segments before them.
#[derive(Default)]
pub(super) struct NewMarks {
    /// By the first LSN of the segment: a merge may have put another in its place by the time that
    /// the marks are stored.
    marks: BTreeMap<u64, Mark>,
    removal_ms: Option<u64>,
    has_own_retention: bool,
}

impl NewMarks {
    /// Finds the segments that hold what the records remove.
    pub(super) fn of(store: &Store, set: &SegmentSet, records: &[Arc<Record>]) -> Result<Self> {
        let mut new = Self {
            has_own_retention: records.iter().any(|record| record.retains()),
            ..Self::default()
        };
        for record in records.iter().filter(|record| record.removes()) {
            new.removal_ms = earlier(new.removal_ms, Some(record.created_ms));
            for op in record.ops() {
                new.note_op(store, set, record, op)?;
            }
        }
        Ok(new)
    }

    fn note_op(&mut self, store: &Store, set: &SegmentSet, record: &Record, op: &Op) -> Result<()> {
        let (session, generation) = (&record.session, record.generation);
        let removal_ms = record.created_ms;
        match op {
            Op::Delete { ancestors, .. } => {
                self.note(set, session, removal_ms, (generation, Seq::MAX))?;
                self.note_ancestors(store, set, ancestors, removal_ms)
            }
            Op::Trim { first, .. } => {
                self.note(set, session, removal_ms, (generation, *first))?;
                let state = store.state(session)?;
                let pieces = state.pieces().iter();
                let ancestors: Vec<SessionId> = pieces.map(|piece| piece.session.clone()).collect();
                self.note_ancestors(store, set, &ancestors, removal_ms)
            }
            Op::Redact { event, .. } => {
                let holder = set.ending_at_or_after(*event).first();
                if let Some(segment) = holder.filter(|segment| segment.info.first_id() <= *event) {
                    self.add(segment, 1, removal_ms);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Notes what a fork was perhaps the last to keep of its ancestors.
    fn note_ancestors(
        &mut self,
        store: &Store,
        set: &SegmentSet,
        ancestors: &[SessionId],
        removal_ms: u64,
    ) -> Result<()> {
        for ancestor in ancestors {
            let state = store.state(ancestor)?;
            // Of a session in its first generation that was never trimmed, nothing goes.
            if !state.is_there() || state.generation > 1 || state.first > FIRST_SEQ {
                self.note(set, ancestor, removal_ms, (u32::MAX, Seq::MAX))?;
            }
        }
        Ok(())
    }

    /// Notes the events of a session before a place.
    fn note(
        &mut self,
        set: &SegmentSet,
        session: &SessionId,
        removal_ms: u64,
        before: (u32, Seq),
    ) -> Result<()> {
        for segment in set.iter() {
            if let Some(events) = segment.events_before(session, before)? {
                // Changes without an event have to go as well.
                self.add(segment, events.max(1), removal_ms);
            }
        }
        Ok(())
    }

    fn add(&mut self, segment: &Segment, events: u64, removal_ms: u64) {
        let mark = Mark {
            segment: segment.info.number,
            events,
            removal_ms,
        };
        add(&mut self.marks, segment.info.start_lsn, mark);
    }

    /// Puts the marks into the manifest, on segments that it still names.
    pub(super) fn put(self, manifest: &mut Manifest) {
        let mut marks = by_segment(&manifest.marks);
        for (start_lsn, mark) in self.marks {
            let mut named = manifest.segments.iter();
            let covers = |info: &&SegmentInfo| (info.start_lsn..info.end_lsn).contains(&start_lsn);
            if let Some(info) = named.find(covers) {
                let segment = info.number;
                add(&mut marks, segment, Mark { segment, ..mark });
            }
        }
        manifest.marks = marks.into_values().collect();
        manifest.has_own_retention |= self.has_own_retention;
        manifest.journal_removal_ms = earlier(manifest.journal_removal_ms, self.removal_ms);
    }
}

/// Moves the marks of merged segments to the one that took their place.
///
/// Marks as they were when the merge began are done with. Those added since are not.
pub(super) fn carry_over(manifest: &mut Manifest, before: &[Mark], inputs: &[u64], merged: u64) {
    let before = by_segment(before);
    let mut marks = by_segment(&manifest.marks);
    for input in inputs {
        let Some(mark) = marks.remove(input) else {
            continue;
        };
        let done = before.get(input).map_or(0, |mark| mark.events);
        if mark.events > done {
            let left = Mark {
                segment: merged,
                events: mark.events - done,
                removal_ms: mark.removal_ms,
            };
            add(&mut marks, merged, left);
        }
    }
    manifest.marks = marks.into_values().collect();
}

fn by_segment(marks: &[Mark]) -> BTreeMap<u64, Mark> {
    marks.iter().map(|mark| (mark.segment, *mark)).collect()
}

fn add(marks: &mut BTreeMap<u64, Mark>, key: u64, mark: Mark) {
    let known = marks.entry(key).or_insert(Mark { events: 0, ..mark });
    known.events += mark.events;
    known.removal_ms = known.removal_ms.min(mark.removal_ms);
}

pub(super) fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}
