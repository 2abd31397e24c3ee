//! What callers are told of what was committed.

use std::ops::RangeInclusive;
use std::sync::Arc;

use jiff::Timestamp;

use crate::backend::Backend;
use crate::backend::calls::aside;
use crate::codec::EventFrame;
use crate::model::{Ack, Event, Removed, Result, Seq, SessionId, now_ms, timestamp};
use crate::read::Store;
use crate::write::{Landed, Outcome};

/// Returns what a removal took, given the session before it.
pub(crate) fn removed(store: &Store, landed: &Landed) -> Removed {
    let (events, bytes) = landed.before;
    let is_gone = !landed.state.is_there();
    let after = if is_gone { 0 } else { landed.state.events() };
    let erase_within = store.options.erase_within;
    let removed_at = match &landed.outcome {
        Outcome::Stored(record) => record.created_ms,
        _ => now_ms(&store.options.clock),
    };
    let within = u64::try_from(erase_within.as_millis()).unwrap_or(u64::MAX);
    let erased_by: Timestamp = timestamp(removed_at.saturating_add(within));
    Removed {
        events: events.saturating_sub(after),
        bytes: bytes.saturating_sub(landed.state.bytes),
        erased_by,
    }
}

/// Returns the answer to an append.
pub(crate) fn ack(store: &Store, session: &SessionId, landed: &Landed) -> Result<Ack> {
    let state = &landed.state;
    let (record, replayed) = match &landed.outcome {
        Outcome::Stored(record) => (record, false),
        Outcome::Replay(record) => (record, true),
        Outcome::ReplayOf((first, last)) => {
            let events = stored_events(store, session, state.generation, *first..=*last)?;
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

/// As [`ack`], as a task.
pub(crate) async fn ack_async(
    engine: Arc<dyn Backend>,
    session: SessionId,
    landed: Landed,
) -> Result<Ack> {
    let store = engine.turns().store();
    let reads = matches!(landed.outcome, Outcome::ReplayOf(_));
    if reads && store.records.reads_block() {
        let reading = Arc::clone(store);
        return aside(store, move || ack(&reading, &session, &landed)).await;
    }
    ack(store, &session, &landed)
}

/// Returns the events of an earlier batch that are still kept. Since that was decided, the session
/// may have been trimmed, or been deleted and have begun again.
fn stored_events(
    store: &Store,
    session: &SessionId,
    generation: u32,
    seqs: RangeInclusive<Seq>,
) -> Result<Vec<Event>> {
    store.at_rest(|| {
        let state = store.state(session)?;
        let kept = state.first.max(*seqs.start())..=*seqs.end();
        if !state.is_there() || state.generation != generation || kept.is_empty() {
            return Ok(Vec::new());
        }
        store.all_events(session, &state, kept)
    })
}
