//! Calls that change a session: each is made into a batch, from the session as it is.
//!
//! A session may change between the making of a batch and its decision. The section then tells that
//! the batch is outdated, and it is made again.

use std::future::poll_fn;
use std::sync::Arc;

use jiff::Timestamp;

use crate::codec::{EventFrame, SessionState};
use crate::engine::Engine;
#[cfg(feature = "durable-streams")]
use crate::model::SessionInfo;
use crate::model::{
    Ack, Batch, Cursor, CursorProblem, Delete, Error, Event, EventId, Expected, FIRST_SEQ, Fork,
    ForkPoint, Lineage, NewSession, Op, Piece, Removed, Result, Seq, SessionId, SessionPatch,
    now_ms, timestamp,
};
use crate::sync::Deadline;
use crate::write::{Landed, Outcome, Parent, Prepared, Request, Scanned, Submitted, Ticket};

/// A batch for a session, with what its decision needs.
pub(crate) struct Made {
    session: SessionId,
    batch: Batch,
    parent: Option<Parent>,
}

impl Made {
    fn new(session: &SessionId, batch: Batch) -> Self {
        Self {
            session: session.clone(),
            batch,
            parent: None,
        }
    }

    /// Makes it for a session as it was read: it is outdated if the session has changed since.
    #[cfg(feature = "durable-streams")]
    pub(crate) fn for_session_as_read(mut self, read: &SessionInfo) -> Self {
        self.batch.based_on = Some((read.generation, read.revision));
        self
    }

    /// Makes a fork for its parent as it was read: it is outdated if the parent has changed since.
    #[cfg(feature = "durable-streams")]
    pub(crate) fn for_parent_as_read(mut self, read: &SessionInfo) -> Self {
        if let Some(parent) = &mut self.parent {
            parent.version = (read.generation, read.revision);
        }
        self
    }

    /// Makes it for this end of its session too: it is outdated if an event has come since.
    #[cfg(feature = "durable-streams")]
    pub(crate) fn at(mut self, last: Seq) -> Self {
        self.batch.based_on_tail = Some(last);
        self
    }
}

/// A call that makes its batch from the session as it is.
pub(crate) type Call = Box<dyn FnMut(&Engine) -> Result<Made> + Send>;

impl Engine {
    /// Submits calls together and waits until all are decided. A call that is refused, or whose
    /// session has changed meanwhile, is passed over.
    ///
    /// # Errors
    ///
    /// The first error that is none of a single session: the log takes no more batches.
    pub(crate) fn call_all(&self, calls: Vec<Call>) -> Result<()> {
        let commit = &self.writer()?.commit;
        let mut last = None;
        for mut call in calls {
            let ticket: Arc<Ticket> = Arc::default();
            let made = call(self).and_then(|made| self.request(made, &ticket));
            let Some(mut request) = passing_over(made)? else {
                continue;
            };
            let joined = loop {
                match commit.submit(request)? {
                    Submitted::Joined(joined) => break joined,
                    Submitted::NoRoom(full, room) => {
                        room.wait(Deadline::NEVER);
                        request = full;
                    }
                }
            };
            last = Some((ticket, joined));
        }
        // Groups are answered in the order in which requests joined.
        match last {
            Some((ticket, joined)) => passing_over(ticket.wait(&joined)).map(drop),
            None => Ok(()),
        }
    }

    /// Submits what `make` makes, and waits on this thread until it is durable.
    pub(crate) fn call(&self, mut make: impl FnMut(&Self) -> Result<Made>) -> Result<Landed> {
        loop {
            let landed = self.call_once(make(self)?)?;
            if !matches!(landed.outcome, Outcome::Outdated) {
                return Ok(landed);
            }
        }
    }

    /// Submits what was made, and waits on this thread until it is decided. It may be outdated.
    pub(crate) fn call_once(&self, made: Made) -> Result<Landed> {
        let ticket: Arc<Ticket> = Arc::default();
        let request = self.request(made, &ticket)?;
        let joined = self.writer()?.commit.append(request)?;
        ticket.wait(&joined)
    }

    /// Submits what `make` makes, and waits as a task until it is durable.
    pub(crate) async fn call_async(
        &self,
        mut make: impl FnMut(&Self) -> Result<Made>,
    ) -> Result<Landed> {
        loop {
            let landed = self.call_once_async(make(self)?).await?;
            if !matches!(landed.outcome, Outcome::Outdated) {
                return Ok(landed);
            }
        }
    }

    /// Submits what was made, and waits as a task until it is decided. It may be outdated.
    pub(crate) async fn call_once_async(&self, made: Made) -> Result<Landed> {
        let ticket: Arc<Ticket> = Arc::default();
        let commit = &self.writer()?.commit;
        let mut request = self.request(made, &ticket)?;
        while let Submitted::NoRoom(full, room) = commit.submit(request)? {
            poll_fn(|context| room.poll(context)).await;
            request = full;
        }
        poll_fn(|context| ticket.poll(context)).await
    }

    /// Checks and encodes a batch, and loads the state that the commit section decides by.
    pub(crate) fn request(&self, made: Made, ticket: &Arc<Ticket>) -> Result<Request> {
        let shared = &self.writer()?.shared;
        self.store.check_open()?;
        let scanned = match &made.batch.expected {
            Expected::NothingSince { seq, .. } => self.scan(&made, *seq)?,
            _ => None,
        };
        let prepared = Prepared {
            scanned,
            parent: made.parent,
        };
        Request::new(
            shared,
            &self.store.options,
            &made.session,
            made.batch,
            prepared,
            ticket,
        )
    }

    /// Looks for an event that the batch excludes.
    fn scan(&self, made: &Made, seq: Seq) -> Result<Option<Scanned>> {
        let Expected::NothingSince { types, .. } = &made.batch.expected else {
            return Ok(None);
        };
        let state = self
            .store
            .state(&made.session)
            .map_err(Error::before_append)?;
        let mut through = seq.max(state.first.saturating_sub(1));
        while state.is_there() && through < state.last {
            let request = crate::read::PageRequest::new()
                .after(through)
                .types(types)
                .limit(1);
            let page = self.store.list(&made.session, request);
            let page = page.map_err(Error::before_append)?;
            if let Some(event) = page.items.first() {
                return Ok(Some(Scanned::Found {
                    event: event.id,
                    seq: event.seq,
                }));
            }
            through = page.last;
        }
        Ok(Some(Scanned::Nothing {
            generation: state.generation,
            through,
        }))
    }

    /// Returns what makes the batch of an append. Only a batch that may be outdated is kept.
    pub(crate) fn append_of(
        session: &SessionId,
        batch: Batch,
    ) -> impl FnMut(&Self) -> Result<Made> + Send + use<> {
        let session = session.clone();
        let mut next = Some(batch);
        move |_engine| {
            let batch = match &next {
                Some(batch) if matches!(batch.expected, Expected::NothingSince { .. }) => {
                    batch.clone()
                }
                _ => next.take().ok_or(Error::Closed)?,
            };
            Ok(Made::new(&session, batch))
        }
    }

    pub(crate) fn create_of(
        session: &SessionId,
        new: NewSession,
    ) -> impl FnMut(&Self) -> Result<Made> + Send + use<> {
        let session = session.clone();
        move |_engine| {
            let mut batch = Batch::of_op(Op::Create);
            if !new.patch.is_empty() {
                batch.ops.push(Op::Describe(new.patch.clone()));
            }
            Ok(Made::new(&session, batch))
        }
    }

    /// Returns what makes a batch of one change without an event.
    pub(crate) fn change_of(
        session: &SessionId,
        op: Op,
        expected: Expected,
    ) -> impl FnMut(&Self) -> Result<Made> + Send + use<> {
        let session = session.clone();
        move |_engine| {
            let batch = Batch::of_op(op.clone()).expected(expected.clone());
            Ok(Made::new(&session, batch))
        }
    }

    pub(crate) fn delete_of(
        session: &SessionId,
        delete: Delete,
    ) -> impl FnMut(&Self) -> Result<Made> + Send + use<> {
        let session = session.clone();
        move |engine| {
            let state = engine.store.known_state(&session)?;
            let pieces = state.pieces().iter();
            let op = Op::Delete {
                reason: delete.reason.clone(),
                ancestors: pieces.map(|piece| piece.session.clone()).collect(),
            };
            let mut batch = Batch::of_op(op).expected(delete.expected.clone());
            if state.lineage().is_some() {
                batch.based_on = Some(state.version());
            }
            if delete.unless_open {
                if let Some(message) = engine.turns.newest_open(&session)? {
                    return Err(Error::TurnOpen {
                        session: session.clone(),
                        message,
                    });
                }
                batch.based_on = Some(state.version());
                batch.based_on_tail = Some(state.last);
            }
            Ok(Made::new(&session, batch))
        }
    }

    pub(crate) fn trim_of(
        session: &SessionId,
        before: Cursor,
    ) -> impl FnMut(&Self) -> Result<Made> + Send + use<> {
        let session = session.clone();
        move |engine| {
            let store = &engine.store;
            let state = store.known_state(&session)?;
            let first = match store.seq_of(&session, &state, before) {
                Ok(seq) => seq.max(state.first),
                // It was trimmed before.
                Err(Error::Cursor {
                    problem: CursorProblem::Trimmed { first },
                    ..
                }) => first,
                Err(error) => return Err(error),
            };
            if first > state.last + 1 {
                return Err(Error::Cursor {
                    session: session.clone(),
                    problem: CursorProblem::BeyondTail {
                        seq: first,
                        tail: state.last,
                    },
                });
            }
            let bytes = engine.bytes_before(&session, &state, first)?;
            let mut batch = Batch::of_op(Op::Trim { first, bytes });
            batch.based_on = Some(state.version());
            Ok(Made::new(&session, batch))
        }
    }

    pub(crate) fn redact_of(
        event: EventId,
        reason: Option<String>,
    ) -> impl FnMut(&Self) -> Result<Made> + Send + use<> {
        move |engine| {
            // The session that the event was appended to keeps the redaction for all forks.
            let (owner, bytes) = engine
                .store
                .owner_of(event)?
                .ok_or(Error::UnknownEvent { id: event })?;
            let reason = reason.clone();
            let op = Op::Redact {
                event,
                bytes,
                reason,
            };
            Ok(Made::new(&owner, Batch::of_op(op)))
        }
    }

    pub(crate) fn fork_of(
        fork: Fork,
        child: &SessionId,
    ) -> impl FnMut(&Self) -> Result<Made> + Send + use<> {
        let child = child.clone();
        move |engine| engine.make_fork(&fork, &child)
    }

    fn make_fork(&self, fork: &Fork, child: &SessionId) -> Result<Made> {
        // What it says is checked by itself: merged into what is inherited it would look fit.
        Op::Describe(fork.patch.clone()).check()?;
        let store = &self.store;
        let parent = &fork.parent;
        let state = store.known_state(parent)?;
        if child == parent {
            let session = Box::new(state.info(parent));
            return Err(Error::SessionExists { session });
        }
        let at = match fork.at {
            None => state.last,
            Some(ForkPoint::At(cursor)) => store.seq_of(parent, &state, cursor)?,
            Some(ForkPoint::Before(cursor)) => store
                .seq_of(parent, &state, cursor)?
                .checked_sub(1)
                .ok_or_else(|| Error::invalid("fork point", "there is nothing before seq 0"))?,
        };
        crate::read::Store::check_cursor(parent, at, state.last, &state)?;
        let last_id = if at >= state.first {
            self.id_at(parent, &state, at)?
        } else {
            EventId::from_u128(0)
        };
        let lineage = Lineage {
            parent: parent.clone(),
            parent_generation: state.generation,
            first: state.first,
            pieces: pieces_through(parent, &state, at),
            at,
            last_id,
            bytes: self.bytes_before(parent, &state, at + 1)?,
        };
        lineage.check()?;
        let mut batch = Batch::of_op(Op::Fork(Box::new(lineage)));
        let inherited = state.as_patch();
        let patch = inherited.then(&fork.patch);
        if !patch.is_empty() {
            batch.ops.push(Op::Describe(patch));
        }
        batch.events.clone_from(&fork.first.events);
        batch.ops.extend_from_slice(&fork.first.ops);
        let pin = store
            .recent
            .sessions
            .pin(parent, || store.locator.state(parent))?;
        Ok(Made {
            session: child.clone(),
            batch,
            parent: Some(Parent {
                session: pin,
                version: state.version(),
            }),
        })
    }

    fn id_at(&self, session: &SessionId, state: &SessionState, seq: Seq) -> Result<EventId> {
        if seq == state.last {
            return Ok(state.last_id);
        }
        let page = crate::read::PageRequest::new().after(seq - 1).limit(1);
        let page = self.store.list(session, page)?;
        page.items
            .first()
            .map(|event| event.id)
            .ok_or_else(|| Error::UnknownSession {
                session: session.clone(),
            })
    }

    /// Returns the bytes of the kept events before `seq`. It reads these, or the rest if there are
    /// fewer.
    fn bytes_before(&self, session: &SessionId, state: &SessionState, seq: Seq) -> Result<u64> {
        let (before, from) = (seq.saturating_sub(state.first), seq.max(state.first));
        let behind = (state.last + 1).saturating_sub(from);
        if before == 0 {
            return Ok(0);
        }
        if before <= behind {
            return self.store.bytes_of(session, state, state.first..=seq - 1);
        }
        let rest = self.store.bytes_of(session, state, from..=state.last)?;
        Ok(state.bytes.saturating_sub(rest))
    }

    /// Returns what a removal took, given the session before it.
    pub(crate) fn removed(&self, landed: &Landed) -> Removed {
        let (events, bytes) = landed.before;
        let is_gone = !landed.state.is_there();
        let after = if is_gone { 0 } else { landed.state.events() };
        let erase_within = self.store.options.erase_within;
        let now = now_ms(&self.store.options.clock);
        let within = u64::try_from(erase_within.as_millis()).unwrap_or(u64::MAX);
        let erased_by: Timestamp = timestamp(now.saturating_add(within));
        Removed {
            events: events.saturating_sub(after),
            bytes: bytes.saturating_sub(landed.state.bytes),
            erased_by,
        }
    }

    /// Returns the answer to an append.
    pub(crate) fn ack(&self, session: &SessionId, landed: &Landed) -> Result<Ack> {
        let state = &landed.state;
        let (record, replayed) = match &landed.outcome {
            Outcome::Stored(record) => (record, false),
            Outcome::Replay(record) => (record, true),
            Outcome::ReplayOf((first, last)) => {
                let events = self.stored_events(session, *first, *last)?;
                return Ok(Ack {
                    events,
                    first: *first,
                    last: *last,
                    replayed: true,
                });
            }
            Outcome::Unchanged | Outcome::Outdated => {
                return Ok(Ack {
                    events: Vec::new(),
                    first: state.last + 1,
                    last: state.last,
                    replayed: false,
                });
            }
        };
        let whole = "the record was encoded here, or checked when it was read";
        let show = |frame: EventFrame<'_>| {
            if state.redacted().binary_search(&frame.view.id).is_ok() {
                frame.redacted().event()
            } else {
                frame.event()
            }
        };
        let events = record.events().map(|frame| show(frame.expect(whole)));
        Ok(Ack {
            events: events.collect(),
            first: record.first,
            last: record.last(),
            replayed,
        })
    }

    /// Returns the events of an earlier batch that are still kept.
    fn stored_events(&self, session: &SessionId, first: Seq, last: Seq) -> Result<Vec<Event>> {
        let state = self.store.known_state(session)?;
        let range = first.max(state.first)..=last;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.store.all_events(session, &state, range)
    }
}

/// Passes over an error of a single session.
fn passing_over<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(
            Error::UnknownSession { .. }
            | Error::Held { .. }
            | Error::ExpectedMismatch { .. }
            | Error::Cursor { .. },
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the pieces of a session up to a seq: what it shares itself, and then its own.
fn pieces_through(session: &SessionId, state: &SessionState, at: Seq) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut before = FIRST_SEQ - 1;
    for piece in state.pieces() {
        if before < at && piece.through >= state.first {
            pieces.push(Piece {
                through: piece.through.min(at),
                ..piece.clone()
            });
        }
        before = piece.through;
    }
    if before < at && at >= state.first {
        pieces.push(Piece {
            session: session.clone(),
            generation: state.generation,
            through: at,
        });
    }
    pieces
}

impl SessionPatch {
    /// Returns one patch that does what this one and then another do.
    fn then(mut self, later: &Self) -> Self {
        if later.title.is_some() {
            self.title.clone_from(&later.title);
        }
        if let Some(serde_json::Value::Object(later)) = &later.metadata {
            let mut merged = match self.metadata.take() {
                Some(serde_json::Value::Object(metadata)) => metadata,
                _ => crate::model::Metadata::new(),
            };
            crate::model::merge(&mut merged, later);
            self.metadata = Some(serde_json::Value::Object(merged));
        }
        self
    }
}
