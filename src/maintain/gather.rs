//! Reads neighbouring segments session by session, without what was removed.

use std::collections::HashMap;
use std::sync::Arc;

use crate::codec::{Decoded, Fault, Record, SessionState};
use crate::maintain::keep::{Keep, Kept};
use crate::model::{Error, Result, SessionId};
use crate::read::Store;
use crate::segment::{Records, RunTail, Segment, SegmentSet, SegmentWriter, Sessions, Uncached};

/// What is given sessions in the order of their IDs: the records of each, then its state.
pub(crate) trait SessionSink {
    /// Adds a record. It comes after all records of its session so far.
    fn put(&mut self, record: &Record) -> Result<()>;
    /// Ends a session, of which there may be no record, with its state.
    fn end_session(&mut self, session: &SessionId, state: &SessionState) -> Result<()>;
    /// Counts records that are left out because they were removed, or of which some events are.
    fn note_dropped(&mut self, records: u64);
}

impl SessionSink for SegmentWriter<'_> {
    fn put(&mut self, record: &Record) -> Result<()> {
        self.put(record)
    }

    fn end_session(&mut self, session: &SessionId, state: &SessionState) -> Result<()> {
        self.end_session(session, state)
    }

    fn note_dropped(&mut self, records: u64) {
        self.note_dropped(records);
    }
}

/// Passes on the sessions of neighbouring segments, each with what is kept of its records.
///
/// `check_on` is called before each session, and may end the work with an error.
pub(crate) fn gather<E: From<Error>>(
    store: &Store,
    set: &SegmentSet,
    inputs: &[Arc<Segment>],
    out: &mut impl SessionSink,
    check_on: impl Fn() -> Result<(), E>,
) -> Result<(), E> {
    let sources = inputs
        .iter()
        .map(|segment| segment.uncached())
        .collect::<Result<Vec<_>>>()?;
    let mut cursors = inputs
        .iter()
        .zip(&sources)
        .map(|(segment, source)| Input::new(store, segment, source))
        .collect::<Result<Vec<_>>>()?;
    for input in cursors.iter().filter(|input| input.records.is_none()) {
        out.note_dropped(input.segment.info.records);
    }
    while let Some(session) = next_session(&cursors) {
        check_on()?;
        let mut keep = Keep::of(store, &session)?;
        let mut state = None;
        for input in &mut cursors {
            let Some(tail) = input.enter(&session)? else {
                continue;
            };
            if matches!(tail, RunTail::LastId(_)) && state.is_none() {
                state = Some(set.state_before(&session, input.segment)?);
            }
            while let Some(record) = input.record_of(&session)? {
                if let (RunTail::LastId(_), Some(state)) = (&tail, &mut state) {
                    SessionState::apply(state, &record);
                }
                put_kept(&mut keep, store, &record, out)?
                    .map_err(|fault| input.segment.fault_in_records(fault))?;
            }
            if let RunTail::State(tail) = &tail {
                state = Some(input.segment.decode_state(tail)?);
            }
        }
        let state = state.ok_or_else(|| out_of_order(inputs, &session))?;
        out.end_session(&session, &state)?;
    }
    Ok(())
}

/// Passes on the sessions of records that no segment of `set` holds, given in commit order, each
/// with what is kept of them.
pub(crate) fn gather_recent<E: From<Error>>(
    store: &Store,
    set: &SegmentSet,
    records: &[Arc<Record>],
    out: &mut impl SessionSink,
    check_on: impl Fn() -> Result<(), E>,
) -> Result<(), E> {
    for (session, records) in by_session(records) {
        check_on()?;
        let mut state = set.newest_state(&session)?;
        let mut keep = Keep::of(store, &session)?;
        for record in &records {
            state.apply(record);
            put_kept(&mut keep, store, record, out)?.map_err(Fault::in_memory)?;
        }
        out.end_session(&session, &state)?;
    }
    Ok(())
}

/// Passes on what is kept of a record.
pub(crate) fn put_kept(
    keep: &mut Keep,
    store: &Store,
    record: &Record,
    out: &mut impl SessionSink,
) -> Result<Decoded<()>> {
    match keep.record(store, record)? {
        Ok(Kept::Whole) => out.put(record)?,
        Ok(Kept::Part(part)) => {
            // A record that lost the data of events alone has all their IDs.
            if part.count < record.count {
                out.note_dropped(1);
            }
            out.put(&part)?;
        }
        Ok(Kept::Nothing) => out.note_dropped(1),
        Err(fault) => return Ok(Err(fault)),
    }
    Ok(Ok(()))
}

/// Returns each session's records in commit order, in the order of sessions.
pub(super) fn by_session(records: &[Arc<Record>]) -> Vec<(SessionId, Vec<Arc<Record>>)> {
    let mut sessions: HashMap<&SessionId, Vec<Arc<Record>>> = HashMap::new();
    for record in records {
        sessions
            .entry(&record.session)
            .or_default()
            .push(Arc::clone(record));
    }
    let mut sessions: Vec<_> = sessions
        .into_iter()
        .map(|(session, records)| (session.clone(), records))
        .collect();
    sessions.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    sessions
}

/// One segment that is read, from front to back.
struct Input<'a> {
    segment: &'a Segment,
    sessions: Sessions<'a>,
    /// The next session that the segment holds anything of.
    next: Option<(SessionId, RunTail)>,
    /// `None` if nothing is kept of the segment's records, which then are not read.
    records: Option<Records<'a>>,
    record: Option<Record>,
}

impl<'a> Input<'a> {
    fn new(store: &Store, segment: &'a Segment, source: &'a Uncached<'a>) -> Result<Self> {
        let mut sessions = source.sessions()?;
        let mut input = Self {
            segment,
            next: sessions.next().transpose()?,
            sessions,
            records: None,
            record: None,
        };
        if !is_gone(store, segment, source)? {
            input.records = Some(source.records()?);
            input.record = input.next_record()?;
        }
        Ok(input)
    }

    fn next_record(&mut self) -> Result<Option<Record>> {
        self.records.as_mut().and_then(Iterator::next).transpose()
    }

    /// Moves past a session if it is the next. Returns what the segment says of its state.
    fn enter(&mut self, session: &SessionId) -> Result<Option<RunTail>> {
        if self.next.as_ref().is_none_or(|(next, _)| next != session) {
            return Ok(None);
        }
        let after = self.sessions.next().transpose()?;
        let entered = std::mem::replace(&mut self.next, after);
        Ok(entered.map(|(_, tail)| tail))
    }

    /// Returns the next record if it is of this session.
    fn record_of(&mut self, session: &SessionId) -> Result<Option<Record>> {
        if self
            .record
            .as_ref()
            .is_none_or(|record| record.session != *session)
        {
            return Ok(None);
        }
        let after = self.next_record()?;
        Ok(std::mem::replace(&mut self.record, after))
    }
}

/// Whether nothing is kept of a segment's records. Only what the segment says of sessions is read,
/// up to the first one that is there.
fn is_gone(store: &Store, segment: &Segment, source: &Uncached<'_>) -> Result<bool> {
    // Without states in a segment they are made from its records.
    if segment.info.format == 1 || segment.info.deletions > 0 {
        return Ok(false);
    }
    for session in source.sessions()? {
        let (session, _) = session?;
        if !Keep::of(store, &session)?.is_gone(store, &session)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the first session of those that come next.
fn next_session(inputs: &[Input<'_>]) -> Option<SessionId> {
    let next = inputs
        .iter()
        .filter_map(|input| input.next.as_ref())
        .map(|(session, _)| session);
    next.min().cloned()
}

fn out_of_order(inputs: &[Arc<Segment>], session: &SessionId) -> Error {
    let path = inputs.first().map(|segment| segment.path().to_path_buf());
    let what = format!("session {session} has no state");
    Error::corrupt(path.unwrap_or_default(), 0, what)
}
