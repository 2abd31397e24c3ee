//! The decision on a request, from the state that its session is assigned. It is a pure function.

use std::sync::Arc;

use crate::codec::{REDACTIONS_MAX, Record, SessionState, Standing};
use crate::model::{
    Error, EventType, Expected, FIRST_SEQ, Limit, Op, Producer, Result, Seq, SessionId, check_limit,
};
use crate::recent::EntryState;
use crate::write::request::{Request, Scanned};
use crate::write::ticket::{Landed, Outcome};

/// The decision on a request.
pub(crate) enum Decision {
    /// It gets a place in its session.
    Append,
    /// It writes nothing and gets this answer.
    Tell(Result<Landed>),
}

/// Decides on a request.
///
/// The order is:
///
/// 1. the fence of a producer's epoch,
/// 2. replays by producer and by key,
/// 3. whether the session exists and is open,
/// 4. a gap in a producer's numbers,
/// 5. the condition of the batch,
/// 6. whether the session is as it was when the changes were made,
/// 7. the needs of the changes.
pub(crate) fn decide(request: &Request, entry: &EntryState) -> Decision {
    let decided = decide_or_tell(request, entry);
    decided.map_or_else(|told| Decision::Tell(*told), |()| Decision::Append)
}

/// The answer or the error that is told instead of an append.
///
/// Boxed, as it is passed up through several calls.
type Told = Box<Result<Landed>>;

fn refused(error: Error) -> Told {
    Box::new(Err(error))
}

fn answered(landed: Landed) -> Told {
    Box::new(Ok(landed))
}

fn decide_or_tell(request: &Request, entry: &EntryState) -> Result<(), Told> {
    let (session, state) = (request.session.id(), entry.assigned());
    let producer = request.batch.producer();
    if let Some(producer) = producer {
        check_replay(session, producer, state)?;
    }
    if let Some(answer) = request.replay(entry) {
        return Err(Box::new(answer));
    }
    check_standing(request, state).map_err(refused)?;
    if let Some(producer) = producer {
        check_gap(session, producer, state).map_err(refused)?;
    }
    check_expected(request, entry)?;
    let based_on = request.based_on.unwrap_or(state.version());
    let tail = request.based_on_tail.unwrap_or(state.tail());
    if (based_on, tail) != (state.version(), state.tail()) {
        return Err(answered(Landed::without_record(Outcome::Outdated, state)));
    }
    check_ops(request, state)
}

fn check_replay(
    session: &SessionId,
    producer: &Producer,
    state: &SessionState,
) -> Result<(), Told> {
    let Some(known) = state.producer(&producer.id).filter(|_| state.is_there()) else {
        return Ok(());
    };
    if producer.epoch < known.epoch {
        return Err(refused(Error::Fenced {
            session: session.clone(),
            producer: producer.id.clone(),
            current: known.epoch,
        }));
    }
    if producer.epoch > known.epoch || producer.seq.is_none() || producer.seq > known.seq {
        return Ok(());
    }
    let stored = if producer.seq == known.seq {
        (known.first, known.last)
    } else {
        // Where an earlier batch is stored is not known any more.
        (state.last + 1, state.last)
    };
    Err(answered(Landed::without_record(
        Outcome::ReplayOf(stored),
        state,
    )))
}

fn check_gap(session: &SessionId, producer: &Producer, state: &SessionState) -> Result<()> {
    let Some(received) = producer.seq else {
        return Ok(());
    };
    let known = state
        .producer(&producer.id)
        .filter(|known| state.is_there() && known.epoch == producer.epoch);
    let expected = known.and_then(|known| known.seq).map_or(0, |seq| seq + 1);
    if received == expected {
        return Ok(());
    }
    Err(Error::ProducerGap {
        session: session.clone(),
        producer: producer.id.clone(),
        expected,
        received,
    })
}

/// Checks that the session exists, or does not, and that it is open for what the request does.
fn check_standing(request: &Request, state: &SessionState) -> Result<()> {
    let (session, ops) = (request.session.id(), request.batch.ops());
    let creates = ops.iter().any(|op| matches!(op, Op::Create | Op::Fork(_)));
    if creates && state.is_there() {
        let session = Box::new(state.info(session));
        return Err(Error::SessionExists { session });
    }
    // A fork may keep the event when the session itself is gone.
    let is_redaction = ops.iter().any(|op| matches!(op, Op::Redact { .. }));
    let needs_session = !creates && !is_redaction && !request.batch.has_events();
    if needs_session && !state.is_there() {
        return Err(Error::UnknownSession {
            session: session.clone(),
        });
    }
    if state.standing == Standing::Closed && request.batch.has_events() {
        return Err(Error::SessionClosed {
            session: session.clone(),
            last: state.last,
        });
    }
    Ok(())
}

fn check_expected(request: &Request, entry: &EntryState) -> Result<(), Told> {
    let state = entry.assigned();
    let holds = match &request.expected {
        Expected::Any => true,
        Expected::NoSession => state.tail() == 0,
        Expected::Exists => state.tail() > 0,
        Expected::Seq(seq) => state.tail() == *seq,
        Expected::Absent => !state.is_there(),
        Expected::NothingSince { types, .. } => return check_nothing_since(request, entry, types),
    };
    if holds {
        return Ok(());
    }
    Err(refused(Error::ExpectedMismatch {
        session: request.session.id().clone(),
        expected: request.expected.clone(),
        actual: state.tail(),
    }))
}

/// Checks the records that came after the caller's scan.
fn check_nothing_since(
    request: &Request,
    entry: &EntryState,
    types: &[EventType],
) -> Result<(), Told> {
    let state = entry.assigned();
    if !state.is_there() {
        // What a deleted generation had does not count.
        return Ok(());
    }
    let outdated = || Err(answered(Landed::without_record(Outcome::Outdated, state)));
    let failed = |event, seq| {
        Err(refused(Error::ConditionFailed {
            session: request.session.id().clone(),
            event,
            seq,
        }))
    };
    let Some(scanned) = request.scanned else {
        return outdated();
    };
    let through = match scanned {
        Scanned::Found { event, seq } => return failed(event, seq),
        Scanned::Nothing { generation, .. } if generation != state.generation => FIRST_SEQ - 1,
        Scanned::Nothing { through, .. } => through,
    };
    let Some(mut records) = entry.assigned_after(through) else {
        return outdated();
    };
    match records.find_map(|record| first_of(record, through, types)) {
        Some((event, seq)) => failed(event, seq),
        None => Ok(()),
    }
}

/// Returns the first event of these types after `seq`.
fn first_of(
    record: &Arc<Record>,
    seq: Seq,
    types: &[EventType],
) -> Option<(crate::model::EventId, Seq)> {
    record
        .events_in(&(seq + 1..=record.last()))
        .flatten()
        .find(|frame| types.iter().any(|wanted| wanted == frame.view.event_type))
        .map(|frame| (frame.view.id, frame.view.seq))
}

/// Checks what the changes need. A change that is in force already is told as such.
fn check_ops(request: &Request, state: &SessionState) -> Result<(), Told> {
    let session = request.session.id();
    let mut changes = request.batch.has_events();
    // Several patches of one batch come one after the other.
    let mut described = state.clone();
    for op in request.batch.ops() {
        changes |= match op {
            Op::Close => state.standing != Standing::Closed,
            Op::Reopen => state.standing == Standing::Closed,
            Op::Trim { first, .. } => *first > state.first,
            Op::Redact { event, .. } => {
                let redacted = state.redacted();
                let is_new = redacted.binary_search(event).is_err();
                let count = redacted.len() + usize::from(is_new);
                check_limit(Limit::Redactions, count, REDACTIONS_MAX).map_err(refused)?;
                is_new
            }
            Op::Delete { .. } if state.is_held() => {
                return Err(refused(Error::Held {
                    session: session.clone(),
                }));
            }
            Op::Create | Op::Fork(_) | Op::Delete { .. } => true,
            Op::Describe(patch) => {
                let before = described.clone();
                described = before.described(patch);
                let (bytes, max) = described.metadata_bytes();
                check_limit(Limit::MetadataBytes, bytes, max).map_err(refused)?;
                // A patch that leaves all as it was may yet make room for it.
                described.details.clone().unwrap_or_default() != before.details.unwrap_or_default()
            }
        };
    }
    if changes {
        Ok(())
    } else {
        Err(answered(Landed::without_record(Outcome::Unchanged, state)))
    }
}
