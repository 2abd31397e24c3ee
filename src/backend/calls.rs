//! Calls that change a session: each is made into a batch, from the session as it is.
//!
//! A session may change between the making of a batch and its decision. The decision then tells
//! that the batch is outdated, and it is made again.

use std::future::poll_fn;
use std::sync::Arc;

use crate::backend::Backend;
use crate::codec::SessionState;
#[cfg(feature = "durable-streams")]
use crate::model::SessionInfo;
use crate::model::{
    Batch, Cursor, CursorProblem, Delete, Error, EventId, Expected, FIRST_SEQ, Fork, ForkPoint,
    Lineage, NewSession, Op, Piece, Result, Seq, SessionId, SessionPatch,
};
use crate::read::{PageRequest, Store};
use crate::sync::{Mutex, Waiter};
use crate::turn::TurnReader;
use crate::write::{Landed, Outcome, Parent, Proposal, Scanned};

/// A batch for a session, with what its decision needs.
pub(crate) struct Made {
    session: SessionId,
    pub(super) batch: Batch,
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
pub(crate) type Call = Box<dyn FnMut(&TurnReader) -> Result<Made> + Send>;

/// Passes over an error of a single session.
pub(crate) fn passing_over<T>(result: Result<T>) -> Result<Option<T>> {
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

/// Whether the making of a batch may read from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    Nothing,
    Sessions,
}

impl Reads {
    /// What the making of an append reads.
    pub(crate) fn of_append(batch: &Batch) -> Self {
        match batch.expected {
            Expected::NothingSince { .. } => Self::Sessions,
            _ => Self::Nothing,
        }
    }
}

/// Commits what `make` makes, and waits on this thread until it is durable.
pub(crate) fn call(
    engine: &dyn Backend,
    mut make: impl FnMut(&TurnReader) -> Result<Made>,
) -> Result<Landed> {
    loop {
        let landed = call_once(engine, &mut make)?;
        if !matches!(landed.outcome, Outcome::Outdated) {
            return Ok(landed);
        }
    }
}

/// Does the same, but a batch that is outdated is not made again.
pub(crate) fn call_once(
    engine: &dyn Backend,
    make: &mut impl FnMut(&TurnReader) -> Result<Made>,
) -> Result<Landed> {
    engine.check_writable()?;
    engine.append(proposal(engine.turns(), make)?)
}

/// Commits what `make` makes, and waits as a task until it is durable.
pub(crate) async fn call_async(
    engine: Arc<dyn Backend>,
    mut make: impl FnMut(&TurnReader) -> Result<Made> + Send + 'static,
    reads: Reads,
) -> Result<Landed> {
    loop {
        let landed;
        (make, landed) = call_once_async(&engine, make, reads).await;
        let landed = landed?;
        if !matches!(landed.outcome, Outcome::Outdated) {
            return Ok(landed);
        }
    }
}

/// Does the same, but a batch that is outdated is not made again. Returns `make` too.
pub(crate) async fn call_once_async<M>(
    engine: &Arc<dyn Backend>,
    mut make: M,
    reads: Reads,
) -> (M, Result<Landed>)
where
    M: FnMut(&TurnReader) -> Result<Made> + Send + 'static,
{
    if let Err(error) = engine.check_writable() {
        return (make, Err(error));
    }
    let proposed;
    if reads == Reads::Sessions && engine.turns().store().records.reads_block() {
        let reading = Arc::clone(engine);
        (make, proposed) = aside(engine.turns().store(), move || {
            let proposed = proposal(reading.turns(), &mut make);
            (make, proposed)
        })
        .await;
    } else {
        proposed = proposal(engine.turns(), &mut make);
    }
    let landed = match proposed {
        Ok(proposal) => engine.append_async(proposal).await,
        Err(error) => Err(error),
    };
    (make, landed)
}

/// Runs a read that may block on a thread of the engine, and waits for it as a task.
pub(crate) async fn aside<T: Send + 'static>(
    store: &Store,
    read: impl FnOnce() -> T + Send + 'static,
) -> T {
    let back = Arc::new((Mutex::new(None), Waiter::default()));
    let there = Arc::clone(&back);
    store.records.aside(Box::new(move || {
        let result = read();
        *there.0.lock() = Some(result);
        there.1.wake();
    }));
    loop {
        poll_fn(|context| back.1.poll(context)).await;
        if let Some(result) = back.0.lock().take() {
            return result;
        }
    }
}

/// Makes, checks and encodes a batch, and looks up what its decision needs.
pub(crate) fn proposal(
    turns: &TurnReader,
    make: &mut impl FnMut(&TurnReader) -> Result<Made>,
) -> Result<Proposal> {
    let store = turns.store();
    store.at_rest(|| {
        let call = make(turns)?;
        store.check_open()?;
        let scanned = match &call.batch.expected {
            Expected::NothingSince { seq, .. } => scan(store, &call, *seq)?,
            _ => None,
        };
        let proposal = Proposal::new(&store.options.limits, &call.session, call.batch)?;
        Ok(Proposal {
            scanned,
            parent: call.parent,
            ..proposal
        })
    })
}

/// Looks for an event that the batch excludes.
fn scan(store: &Store, made: &Made, seq: Seq) -> Result<Option<Scanned>> {
    let Expected::NothingSince { types, .. } = &made.batch.expected else {
        return Ok(None);
    };
    let state = store.state(&made.session).map_err(Error::before_append)?;
    let mut through = seq.max(state.first.saturating_sub(1));
    while state.is_there() && through < state.last {
        let request = PageRequest::new().after(through).types(types).limit(1);
        let page = store.list(&made.session, request);
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
) -> impl FnMut(&TurnReader) -> Result<Made> + Send + use<> {
    let session = session.clone();
    let mut next = Some(batch);
    move |_turns| {
        let batch = match &next {
            Some(batch) if matches!(batch.expected, Expected::NothingSince { .. }) => batch.clone(),
            _ => next.take().ok_or(Error::Closed)?,
        };
        Ok(Made::new(&session, batch))
    }
}

pub(crate) fn create_of(
    session: &SessionId,
    new: NewSession,
) -> impl FnMut(&TurnReader) -> Result<Made> + Send + use<> {
    let session = session.clone();
    move |_turns| {
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
) -> impl FnMut(&TurnReader) -> Result<Made> + Send + use<> {
    let session = session.clone();
    move |_turns| {
        let batch = Batch::of_op(op.clone()).expected(expected.clone());
        Ok(Made::new(&session, batch))
    }
}

pub(crate) fn delete_of(
    session: &SessionId,
    delete: Delete,
) -> impl FnMut(&TurnReader) -> Result<Made> + Send + use<> {
    let session = session.clone();
    move |turns| {
        let state = turns.store().known_state(&session)?;
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
            if let Some(message) = turns.newest_open(&session)? {
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
) -> impl FnMut(&TurnReader) -> Result<Made> + Send + use<> {
    let session = session.clone();
    move |turns| {
        let store = turns.store();
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
        let bytes = bytes_before(store, &session, &state, first)?;
        let mut batch = Batch::of_op(Op::Trim { first, bytes });
        batch.based_on = Some(state.version());
        Ok(Made::new(&session, batch))
    }
}

pub(crate) fn redact_of(
    event: EventId,
    reason: Option<String>,
) -> impl FnMut(&TurnReader) -> Result<Made> + Send + use<> {
    move |turns| {
        // The session that the event was appended to keeps the redaction for all forks.
        let (owner, bytes) = turns
            .store()
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
) -> impl FnMut(&TurnReader) -> Result<Made> + Send + use<> {
    let child = child.clone();
    move |turns| make_fork(turns.store(), &fork, &child)
}

fn make_fork(store: &Store, fork: &Fork, child: &SessionId) -> Result<Made> {
    // What it says is checked by itself: merged into what is inherited it would look fit.
    Op::Describe(fork.patch.clone()).check()?;
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
    Store::check_cursor(parent, at, state.last, &state)?;
    let last_id = if at >= state.first {
        id_at(store, parent, &state, at)?
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
        bytes: bytes_before(store, parent, &state, at + 1)?,
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
    Ok(Made {
        session: child.clone(),
        batch,
        parent: Some(Parent {
            session: parent.clone(),
            version: state.version(),
        }),
    })
}

fn id_at(store: &Store, session: &SessionId, state: &SessionState, seq: Seq) -> Result<EventId> {
    if seq == state.last {
        return Ok(state.last_id);
    }
    let page = PageRequest::new().after(seq - 1).limit(1);
    let page = store.list(session, page)?;
    page.items
        .first()
        .map(|event| event.id)
        .ok_or_else(|| Error::UnknownSession {
            session: session.clone(),
        })
}

/// Returns the bytes of the kept events before `seq`. It reads these, or the rest if there are
/// fewer.
fn bytes_before(store: &Store, session: &SessionId, state: &SessionState, seq: Seq) -> Result<u64> {
    let (before, from) = (seq.saturating_sub(state.first), seq.max(state.first));
    let behind = (state.last + 1).saturating_sub(from);
    if before == 0 {
        return Ok(0);
    }
    if before <= behind {
        return store.bytes_of(session, state, state.first..=seq - 1);
    }
    let rest = store.bytes_of(session, state, from..=state.last)?;
    Ok(state.bytes.saturating_sub(rest))
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
