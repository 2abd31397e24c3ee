//! Lists the sessions of one segment: by ID, and by their positions.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::SessionState;
use crate::model::{EventId, FIRST_SEQ, Result, SessionId};
use crate::segment::table::{TableEntry, TableRoot};
use crate::segment::{RunTail, Segment, split_run_key};

/// By which of their positions sessions are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    Activity,
    Creation,
}

impl Position {
    /// Returns the position of a session.
    pub(crate) fn of(self, state: &SessionState) -> EventId {
        match self {
            Position::Activity => state.active_id,
            Position::Creation => state.created_id,
        }
    }
}

/// The sessions of a segment by their positions as of its end.
pub(crate) enum Positions<'a> {
    Table(&'a Segment, TableRoot),
    /// A segment of version 1 has no table. This is one in memory.
    List(Arc<[(EventId, SessionId)]>),
}

impl Segment {
    /// Returns the first session in ID order from a position on.
    pub(crate) fn session_from(&self, from: Bound<&[u8]>) -> Result<Option<SessionId>> {
        let from = match from {
            Bound::Unbounded => Vec::new(),
            Bound::Included(from) => from.to_vec(),
            // No byte of a session ID is below 1. So this key sorts after all runs of the session
            // and before any longer ID.
            Bound::Excluded(session) => [session, &[0], &[0xFF; 12]].concat(),
        };
        let mut runs = self.info.runs.iter_from(self, &from)?;
        self.session_of(runs.next().transpose()?)
    }

    /// Returns the last session in ID order below a position.
    pub(crate) fn session_below(&self, below: Bound<&[u8]>) -> Result<Option<SessionId>> {
        let below = match below {
            Bound::Unbounded => &[0xFF],
            Bound::Included(below) | Bound::Excluded(below) => below,
        };
        self.session_of(self.info.runs.below(self, below)?)
    }

    /// Returns the sessions by their positions.
    pub(crate) fn positions(&self, position: Position) -> Result<Positions<'_>> {
        match &self.info.directory {
            Some(directory) => {
                let table = match position {
                    Position::Activity => directory.activity,
                    Position::Creation => directory.creation,
                };
                Ok(Positions::Table(self, table))
            }
            None => self.listed_v1(position).map(Positions::List),
        }
    }

    fn session_of(&self, run: Option<TableEntry>) -> Result<Option<SessionId>> {
        let Some((key, _)) = run else { return Ok(None) };
        let name = split_run_key(&key).map(|(name, ..)| Bytes::copy_from_slice(name));
        let session = name.and_then(|name| SessionId::from_stored(&name, &name).ok());
        session.map(Some).ok_or_else(|| self.impossible("session"))
    }

    /// Returns the positions of all sessions of a segment of version 1.
    fn listed_v1(&self, position: Position) -> Result<Arc<[(EventId, SessionId)]>> {
        let mut listed = Vec::new();
        let mut last: Option<(SessionId, EventId)> = None;
        for run in self.runs()? {
            let (key, entry) = run?;
            let session = self.session_of(Some((key, Bytes::new())))?;
            let (Some(session), RunTail::LastId(id)) = (session, entry.tail) else {
                return Err(self.impossible("run"));
            };
            if position == Position::Creation {
                if entry.run.first == FIRST_SEQ {
                    listed.push((self.first_id_of(&session, &entry.run)?, session));
                }
                continue;
            }
            if let Some((of, id)) = last.replace((session.clone(), id))
                && of != session
            {
                listed.push((id, of));
            }
        }
        listed.extend(last.map(|(session, id)| (id, session)));
        listed.sort_unstable();
        Ok(listed.into())
    }
}

impl Positions<'_> {
    /// Returns the last entry below a position.
    pub(crate) fn below(&mut self, id: EventId) -> Result<Option<(EventId, SessionId)>> {
        match self {
            Positions::Table(segment, table) => {
                let found = table.below(*segment, &id.to_u128().to_be_bytes())?;
                found.map(|entry| entry_of(segment, &entry)).transpose()
            }
            Positions::List(list) => {
                let below = list.partition_point(|(at, _)| *at < id);
                Ok(below.checked_sub(1).and_then(|nth| list.get(nth)).cloned())
            }
        }
    }

    /// Returns the first entry above a position.
    pub(crate) fn above(&mut self, id: EventId) -> Result<Option<(EventId, SessionId)>> {
        match self {
            Positions::Table(segment, table) => {
                let mut from = table.iter_from(*segment, &id.plus(1).to_u128().to_be_bytes())?;
                let found = from.next().transpose()?;
                found.map(|entry| entry_of(segment, &entry)).transpose()
            }
            Positions::List(list) => {
                let through = list.partition_point(|(at, _)| *at <= id);
                Ok(list.get(through).cloned())
            }
        }
    }
}

fn entry_of(segment: &Segment, (key, name): &TableEntry) -> Result<(EventId, SessionId)> {
    let id = key.as_ref().try_into().map(u128::from_be_bytes).ok();
    let session = SessionId::from_stored(name, name).ok();
    id.map(EventId::from_u128)
        .zip(session.map(|session| session.detached()))
        .ok_or_else(|| segment.impossible("position"))
}
