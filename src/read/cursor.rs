//! Resolves cursors: positions in a session by seq or by event ID.

use std::ops::RangeInclusive;

use crate::codec::{Record, SessionState};
use crate::model::{Cursor, CursorProblem, Error, EventId, FIRST_SEQ, Result, Seq, SessionId};
use crate::read::page::{Order, PageRequest};
use crate::read::scan::ReadLimit;
use crate::read::store::Store;

/// Where an event is stored, as seen from a session.
enum Position {
    /// At this seq of the session, which may have trimmed it.
    Own(Seq),
    /// Another session keeps it.
    Other,
    /// No session keeps it.
    None,
}

impl Store {
    /// Resolves a cursor to a seq.
    pub(crate) fn seq_of(
        &self,
        session: &SessionId,
        state: &SessionState,
        cursor: Cursor,
    ) -> Result<Seq> {
        let id = match cursor {
            Cursor::Seq(seq) => return Ok(seq),
            Cursor::Event(id) => id,
        };
        let problem = match self.position_of(session, state, id)? {
            Position::Own(seq) => return Ok(seq),
            Position::Other => CursorProblem::OtherSession(id),
            Position::None if self.is_trimmed(session, state, id)? => {
                CursorProblem::Trimmed { first: state.first }
            }
            Position::None => CursorProblem::Unknown(id),
        };
        Err(cursor_error(session, problem))
    }

    /// Returns where an event is stored, as seen from a session.
    fn position_of(
        &self,
        session: &SessionId,
        state: &SessionState,
        id: EventId,
    ) -> Result<Position> {
        let Some(slice) = self.records.record_of(id)? else {
            return Ok(Position::None);
        };
        let found = slice
            .records()
            .find_map(|record| Some((record, record.seq_of(id)?)));
        let Some((record, seq)) = found else {
            return Ok(Position::None);
        };
        let is_own = record.session == *session && record.generation == state.generation;
        // An event that a fork shares has the ID of the ancestor's.
        if is_own || shares_with(state, record, seq) {
            return Ok(Position::Own(seq));
        }
        let owner = self.state(&record.session)?;
        Ok(match self.keeper(&owner, record, seq)? {
            Some(_) => Position::Other,
            None => Position::None,
        })
    }

    /// Whether an event that is not stored is older than those that the session keeps.
    fn is_trimmed(&self, session: &SessionId, state: &SessionState, id: EventId) -> Result<bool> {
        // A fork may have trimmed events that are older than it.
        let is_older = id < state.created_id && state.lineage().is_none();
        if state.first == FIRST_SEQ || is_older {
            return Ok(false);
        }
        if state.first > state.last {
            return Ok(id <= state.last_id);
        }
        let one = ReadLimit {
            events: 1,
            bytes: usize::MAX,
        };
        let kept = self.events_from(session, state, state.first..=state.first, one)?;
        Ok(kept.first().is_some_and(|first| id < first.id))
    }

    /// Refuses a position that the session has not reached, or that lies before what it keeps.
    pub(crate) fn check_cursor(
        session: &SessionId,
        seq: Seq,
        reached: Seq,
        state: &SessionState,
    ) -> Result<()> {
        if seq < state.first - 1 {
            let first = state.first;
            return Err(cursor_error(session, CursorProblem::Trimmed { first }));
        }
        if seq <= reached {
            return Ok(());
        }
        let tail = state.last;
        Err(cursor_error(
            session,
            CursorProblem::BeyondTail { seq, tail },
        ))
    }

    /// Returns the seqs between the page's cursors. Without any, `from` is `to` + 1.
    pub(super) fn range(
        &self,
        session: &SessionId,
        state: &SessionState,
        page: &PageRequest,
    ) -> Result<RangeInclusive<Seq>> {
        let (mut from, mut to) = (state.first, state.last);
        if let Some(after) = page.after {
            let after = self.seq_of(session, state, after)?;
            Self::check_cursor(session, after, state.last, state)?;
            from = from.max(after + 1);
        }
        if let Some(before) = page.before {
            let before = self.seq_of(session, state, before)?;
            Self::check_cursor(session, before, state.last + 1, state)?;
            to = before.saturating_sub(1);
        }
        Ok(match page.order {
            Order::OldestFirst => from..=to.max(from - 1),
            Order::NewestFirst => from.min(to + 1)..=to,
        })
    }
}

/// Whether a session shares the event at `seq` of a record of an ancestor.
fn shares_with(state: &SessionState, record: &Record, seq: Seq) -> bool {
    let piece = state.pieces().iter().find(|piece| seq <= piece.through);
    piece.is_some_and(|piece| {
        piece.session == record.session && piece.generation == record.generation
    })
}

fn cursor_error(session: &SessionId, problem: CursorProblem) -> Error {
    Error::Cursor {
        session: session.clone(),
        problem,
    }
}
