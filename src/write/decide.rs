//! The decision on a proposal, from what is known of its session. It is a pure function, and every
//! engine decides by it.

use std::sync::Arc;

use crate::codec::{REDACTIONS_MAX, Record, SessionState, Standing};
use crate::model::{
    Error, EventType, Expected, FIRST_SEQ, Limit, Op, Producer, Result, Seq, SessionId, check_limit,
};
use crate::write::proposal::{Proposal, Scanned};
use crate::write::ticket::{Landed, Outcome};

/// What is known of a session when a proposal for it is decided. Proposals that were decided before
/// it count, whether they are durable yet or not.
pub(crate) trait Known {
    fn state(&self) -> &SessionState;

    /// Returns the record that the current generation has under the proposal's key, if it has one
    /// and a record is under it.
    fn record_of_key(&self) -> Option<&Arc<Record>>;

    /// Returns the records of the current generation after a seq, in order. Returns `None` if some
    /// of them are not at hand: then the caller scans again.
    fn records_after(&self, seq: Seq) -> Option<impl Iterator<Item = &Arc<Record>>>;
}

/// The decision on a proposal.
pub(crate) enum Decision {
    /// It gets a place in its session.
    Append,
    /// It writes nothing and gets this answer.
    Tell(Result<Landed>),
}

/// Decides on a proposal.
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
pub(crate) fn decide(proposal: &Proposal, known: &impl Known) -> Decision {
    let decided = decide_or_tell(proposal, known);
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

fn decide_or_tell(proposal: &Proposal, known: &impl Known) -> Result<(), Told> {
    let (session, state) = (proposal.session(), known.state());
    let producer = proposal.batch.producer();
    if let Some(producer) = producer {
        check_replay(session, producer, state)?;
    }
    if let Some(answer) = replay(proposal, known) {
        return Err(Box::new(answer));
    }
    check_standing(proposal, state).map_err(refused)?;
    if let Some(producer) = producer {
        check_gap(session, producer, state).map_err(refused)?;
    }
    check_expected(proposal, known)?;
    let based_on = proposal.based_on.unwrap_or(state.version());
    let tail = proposal.based_on_tail.unwrap_or(state.tail());
    if (based_on, tail) != (state.version(), state.tail()) {
        return Err(answered(Landed::without_record(Outcome::Outdated, state)));
    }
    check_ops(proposal, state)
}

/// Returns the answer for a key that was used before in this generation and whose batch is kept. A
/// trim leaves a batch without events.
fn replay(proposal: &Proposal, known: &impl Known) -> Option<Result<Landed>> {
    let key = proposal.batch.key()?;
    let state = known.state();
    let record = known
        .record_of_key()
        .filter(|record| record.count == 0 || record.first >= state.first)
        .filter(|_| state.is_there())?;
    let stored = record.key.as_ref().map(|stored| stored.fingerprint);
    if stored == Some(key.fingerprint) {
        let outcome = Outcome::Replay(Arc::clone(record));
        return Some(Ok(Landed::without_record(outcome, state)));
    }
    Some(Err(Error::IdempotencyConflict {
        session: proposal.session().clone(),
        key: key.text.to_string(),
        first_seq: record.first,
    }))
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
fn check_standing(proposal: &Proposal, state: &SessionState) -> Result<()> {
    let (session, ops) = (proposal.session(), proposal.batch.ops());
    let creates = ops.iter().any(|op| matches!(op, Op::Create | Op::Fork(_)));
    if creates && state.is_there() {
        let session = Box::new(state.info(session));
        return Err(Error::SessionExists { session });
    }
    // A fork may keep the event when the session itself is gone.
    let is_redaction = ops.iter().any(|op| matches!(op, Op::Redact { .. }));
    let needs_session = !creates && !is_redaction && !proposal.batch.has_events();
    if needs_session && !state.is_there() {
        return Err(Error::UnknownSession {
            session: session.clone(),
        });
    }
    if state.standing == Standing::Closed && proposal.batch.has_events() {
        return Err(Error::SessionClosed {
            session: session.clone(),
            last: state.last,
        });
    }
    Ok(())
}

fn check_expected(proposal: &Proposal, known: &impl Known) -> Result<(), Told> {
    let state = known.state();
    let holds = match &proposal.expected {
        Expected::Any => true,
        Expected::NoSession => state.tail() == 0,
        Expected::Exists => state.tail() > 0,
        Expected::Seq(seq) => state.tail() == *seq,
        Expected::Absent => !state.is_there(),
        Expected::NothingSince { types, .. } => return check_nothing_since(proposal, known, types),
    };
    if holds {
        return Ok(());
    }
    Err(refused(Error::ExpectedMismatch {
        session: proposal.session().clone(),
        expected: proposal.expected.clone(),
        actual: state.tail(),
    }))
}

/// Checks the records that came after the caller's scan.
fn check_nothing_since(
    proposal: &Proposal,
    known: &impl Known,
    types: &[EventType],
) -> Result<(), Told> {
    let state = known.state();
    if !state.is_there() {
        // What a deleted generation had does not count.
        return Ok(());
    }
    let outdated = || Err(answered(Landed::without_record(Outcome::Outdated, state)));
    let failed = |event, seq| {
        Err(refused(Error::ConditionFailed {
            session: proposal.session().clone(),
            event,
            seq,
        }))
    };
    let Some(scanned) = proposal.scanned else {
        return outdated();
    };
    let through = match scanned {
        Scanned::Found { event, seq } => return failed(event, seq),
        Scanned::Nothing { generation, .. } if generation != state.generation => FIRST_SEQ - 1,
        Scanned::Nothing { through, .. } => through,
    };
    let Some(mut records) = known.records_after(through) else {
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

/// Checks what the changes need. A change that is in force already is told as such, unless a key or
/// a producer's number is used up with it, or fences off earlier epochs.
fn check_ops(proposal: &Proposal, state: &SessionState) -> Result<(), Told> {
    let (session, batch) = (proposal.session(), &proposal.batch);
    let notes = |producer: &Producer| {
        let known = state.producer(&producer.id);
        producer.seq.is_some() || known.is_none_or(|known| known.epoch < producer.epoch)
    };
    let mut changes =
        batch.has_events() || batch.key().is_some() || batch.producer().is_some_and(notes);
    // Several patches of one batch come one after the other.
    let mut described = state.clone();
    for op in batch.ops() {
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
