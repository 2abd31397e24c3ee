//! Measures stretches of a session: their bytes, and where a time or a size begins.

use std::ops::{ControlFlow, RangeInclusive};

use crate::codec::{EventFrame, SessionState};
use crate::model::{Event, Result, Seq, SessionId};
use crate::read::scan::{ReadLimit, Scan, Visitor};
use crate::read::store::Store;

/// The events that are read at once to sum up their bytes.
const SUMMED_AT_ONCE: Seq = 1_000;

impl Store {
    /// Returns all events of a range.
    pub(crate) fn all_events(
        &self,
        session: &SessionId,
        state: &SessionState,
        range: RangeInclusive<Seq>,
    ) -> Result<Vec<Event>> {
        let everything = ReadLimit {
            events: usize::MAX,
            bytes: usize::MAX,
        };
        let mut scan = Scan::new(None, &range, everything);
        self.visit(session, state, range, &mut scan)?;
        Ok(scan.events)
    }

    /// Returns the bytes of the events of a range.
    pub(crate) fn bytes_of(
        &self,
        session: &SessionId,
        state: &SessionState,
        range: RangeInclusive<Seq>,
    ) -> Result<u64> {
        let mut sum = Sum::default();
        if !range.is_empty() {
            self.visit(session, state, range, &mut sum)?;
        }
        Ok(sum.bytes)
    }

    /// Returns the first seq with an event that was committed at `since_ms` or later. It is one
    /// past the last if there is none.
    ///
    /// Times rise with seqs but for steps of the clock, so it looks at a few events alone.
    pub(crate) fn first_since(
        &self,
        session: &SessionId,
        state: &SessionState,
        since_ms: u64,
    ) -> Result<Seq> {
        let since = i64::try_from(since_ms).unwrap_or(i64::MAX);
        let (mut from, mut to) = (state.first, state.last + 1);
        while from < to {
            let middle = from + (to - from) / 2;
            let one = ReadLimit {
                events: 1,
                bytes: usize::MAX,
            };
            let events = self.events_from(session, state, middle..=middle, one)?;
            let is_before = events
                .first()
                .is_some_and(|event| event.created_at.as_millisecond() < since);
            if is_before {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        Ok(from)
    }

    /// Returns the first seq from which on the events take at most `bytes_max`. The last event is
    /// kept in any case.
    pub(crate) fn first_within(
        &self,
        session: &SessionId,
        state: &SessionState,
        bytes_max: u64,
    ) -> Result<Seq> {
        let mut newest = Newest {
            left: bytes_max,
            first: state.last,
        };
        self.reader(session, state)?
            .scan_down(state.first..=state.last, &mut newest)?;
        Ok(newest.first)
    }
}

/// Sums the bytes of events.
#[derive(Default)]
struct Sum {
    bytes: u64,
}

impl Visitor for Sum {
    fn visit(&mut self, frame: &EventFrame<'_>) -> ControlFlow<()> {
        self.bytes += frame.encoded_bytes() as u64;
        ControlFlow::Continue(())
    }

    fn lookahead(&self) -> Seq {
        SUMMED_AT_ONCE
    }
}

/// Finds how far back events fit into some bytes.
struct Newest {
    left: u64,
    first: Seq,
}

impl Visitor for Newest {
    fn visit(&mut self, frame: &EventFrame<'_>) -> ControlFlow<()> {
        match self.left.checked_sub(frame.encoded_bytes() as u64) {
            Some(left) => {
                (self.left, self.first) = (left, frame.view.seq);
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        }
    }

    fn lookahead(&self) -> Seq {
        SUMMED_AT_ONCE
    }
}
