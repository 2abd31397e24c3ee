//! Reads a session's records in either direction and passes their events to a visitor.
//!
//! Records come from the engine.

use std::ops::{ControlFlow, RangeInclusive};

use crate::codec::EventFrame;
use crate::model::{Event, EventId, EventType, Result, Seq, SessionId};
use crate::read::records::{Piece, RecordSlice};

/// The fewest events that a filtered page reads at once, since few of them may match.
const FILTERED_EVENTS_MIN: usize = 1_000;

/// Bounds one read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadLimit {
    pub events: usize,
    /// Reading stops after the event that reaches this number of bytes.
    pub bytes: usize,
}

/// Reads a session's records in either direction.
///
/// A fork reads the events that it shares from the ancestors that they were appended to.
pub(super) struct SessionReader<'a> {
    session: &'a SessionId,
    /// In the order of seqs. The last is the session's own.
    pieces: Vec<PieceReader<'a>>,
    /// The redacted events whose data may still be stored, in order.
    redacted: Vec<EventId>,
}

/// What one generation of one session contributes.
pub(super) struct PieceReader<'a> {
    pub(super) piece: Box<dyn Piece + 'a>,
    /// The last seq of the piece.
    pub(super) through: Seq,
}

impl<'a> SessionReader<'a> {
    pub(super) fn new(
        session: &'a SessionId,
        pieces: Vec<PieceReader<'a>>,
        mut redacted: Vec<EventId>,
    ) -> Self {
        redacted.sort_unstable();
        Self {
            session,
            pieces,
            redacted,
        }
    }

    /// Visits the events of `range` in ascending order. Returns the last seq visited.
    pub(super) fn scan_up(
        &mut self,
        range: RangeInclusive<Seq>,
        visitor: &mut impl Visitor,
    ) -> Result<Seq> {
        let (mut next, to) = range.into_inner();
        while next <= to {
            let wanted = next..=to.min(next.saturating_add(visitor.lookahead()));
            let (slice, wanted) = self.slice(next, &wanted)?;
            for record in slice.records() {
                for frame in record.events_in(&wanted) {
                    let frame = self.shown(frame.map_err(|fault| slice.fault(fault))?);
                    next = frame.view.seq + 1;
                    if visitor.visit(&frame).is_break() {
                        return Ok(next - 1);
                    }
                }
            }
        }
        Ok(next - 1)
    }

    /// Visits the events of `range` in descending order. Returns the last seq visited.
    pub(super) fn scan_down(
        &mut self,
        range: RangeInclusive<Seq>,
        visitor: &mut impl Visitor,
    ) -> Result<Seq> {
        let (from, mut to) = range.into_inner();
        let mut seen = to + 1;
        while to >= from && seen > from {
            let wanted = from.max(to.saturating_sub(visitor.lookahead()))..=to;
            let (slice, wanted) = self.slice(to, &wanted)?;
            let mut frames = Vec::new();
            for record in slice.records().rev() {
                let events = record.events_in(&wanted);
                frames.reserve(events.count_max());
                for frame in events {
                    frames.push(self.shown(frame.map_err(|fault| slice.fault(fault))?));
                }
                for frame in frames.drain(..).rev() {
                    seen = frame.view.seq;
                    if visitor.visit(&frame).is_break() {
                        return Ok(seen);
                    }
                }
            }
            to = seen.saturating_sub(1);
        }
        Ok(seen)
    }

    /// Returns the event as a reader of the session sees it.
    fn shown<'f>(&'f self, frame: EventFrame<'f>) -> EventFrame<'f> {
        let frame = frame.shown_in(self.session);
        if self.redacted.binary_search(&frame.view.id).is_ok() {
            frame.redacted()
        } else {
            frame
        }
    }

    /// Returns the records around `seq` that overlap `range` and are stored together, either in
    /// memory or in one run of a segment. Returns the part of the range that they are read for as
    /// well. `seq` must not exceed the session's end.
    fn slice(
        &mut self,
        seq: Seq,
        range: &RangeInclusive<Seq>,
    ) -> Result<(RecordSlice, RangeInclusive<Seq>)> {
        let nth = self.pieces.partition_point(|piece| piece.through < seq);
        let before = nth
            .checked_sub(1)
            .and_then(|before| self.pieces.get(before))
            .map_or(0, |before| before.through);
        let piece = self
            .pieces
            .get_mut(nth)
            .expect("the session's own piece is without an end");
        let range = (before + 1).max(*range.start())..=piece.through.min(*range.end());
        Ok((piece.piece.slice(seq, &range)?, range))
    }
}

/// Receives events one by one, until it has enough.
pub(crate) trait Visitor {
    fn visit(&mut self, frame: &EventFrame<'_>) -> ControlFlow<()>;

    /// How many events after the next one are worth reading together with it.
    fn lookahead(&self) -> Seq;
}

/// Collects the events of a page.
pub(super) struct Scan {
    pub(super) types: Option<Vec<EventType>>,
    pub(super) limit: usize,
    pub(super) bytes_left: usize,
    pub(super) events: Vec<Event>,
}

impl Scan {
    pub(super) fn new(
        types: Option<Vec<EventType>>,
        range: &RangeInclusive<Seq>,
        read_limit: ReadLimit,
    ) -> Self {
        let ReadLimit {
            events: limit,
            bytes: bytes_left,
        } = read_limit;
        let in_range = usize::try_from(range.end() + 1 - range.start()).unwrap_or(usize::MAX);
        // Few events may match a filter, so nothing is reserved.
        let likely = if types.is_some() {
            0
        } else {
            limit.min(in_range)
        };
        Self {
            types,
            limit,
            bytes_left,
            events: Vec::with_capacity(likely),
        }
    }
}

impl Visitor for Scan {
    fn visit(&mut self, frame: &EventFrame<'_>) -> ControlFlow<()> {
        self.bytes_left = self.bytes_left.saturating_sub(frame.read_bytes());
        if self
            .types
            .as_ref()
            .is_none_or(|types| types.iter().any(|wanted| wanted == frame.view.event_type))
        {
            self.events.push(frame.event());
        }
        if self.events.len() == self.limit || self.bytes_left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn lookahead(&self) -> Seq {
        let wanted = self.limit - self.events.len();
        let read = if self.types.is_some() {
            wanted.max(FILTERED_EVENTS_MIN)
        } else {
            wanted
        };
        read.saturating_sub(1) as Seq
    }
}
