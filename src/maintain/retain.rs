//! Retention: removes sessions and events that are older, or more, than is to be kept.
//!
//! It walks the sessions page by page and removes like any caller does, in groups that an append
//! does not wait for longer than for any other. So memory is bounded, and a crash in between leaves
//! nothing half done.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::backend::{self, Call};
use crate::codec::SessionState;
use crate::disk::Halt;
use crate::engine::Engine;
use crate::model::{Delete, Error, Result, Retention, RetentionPlan, Seq, SessionId, timestamp};
use crate::read::{SessionPage, SessionQuery, Store};
use crate::sync::{Instant, Stopped};

/// The reason that the feed gives for a session that was deleted by retention.
const REASON: &str = "retention";

/// How often sessions are looked at: this often in the shortest time that is kept.
const LOOKS: u32 = 16;

/// The bounds of the time between two looks.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(20);
const LOOK_EVERY_MAX: Duration = Duration::from_mins(1);

/// The sessions of one step.
const STEP: usize = 256;

/// The pause after each step, in multiples of the time that the step took. Appends have the log to
/// themselves in the pause.
const PAUSES: u32 = 2;

/// What is due of a session.
#[derive(Clone, Copy)]
enum Due {
    Nothing,
    Deletion,
    /// The events before this seq.
    Trim(Seq),
}

/// Whether a session was ever given a retention of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    Never,
    Perhaps,
}

impl From<bool> for Own {
    fn from(has_own: bool) -> Self {
        if has_own { Self::Perhaps } else { Self::Never }
    }
}

/// Runs the background thread until the log stops.
pub(crate) fn run(engine: &Engine) {
    let Some(writer) = &engine.writer else {
        return;
    };
    let signal = &writer.shared.retain;
    loop {
        let for_all = engine.store.options.retention;
        let waited = match look_every(for_all, Own::from(signal.with(|orders| orders.has_own))) {
            Some(every) => signal.pause(every, |orders| orders.look),
            None => signal.wait_for(|orders| orders.has_own.then_some(())),
        };
        if waited.is_err() {
            return;
        }
        let own = Own::from(signal.with(|orders| {
            orders.look = false;
            orders.has_own
        }));
        // Any failure but these, such as a full disk, is reported by the work that it stops. The
        // next look tries again.
        let looked = remove_due(
            &engine.store,
            own,
            |calls| engine.call_all(calls),
            |time| signal.pause(time, |_orders| false),
        );
        if matches!(looked, Err(Halt::Stopped)) || writer.shared.state.check_poison().is_err() {
            return;
        }
    }
}

/// Returns how often to look, or `None` if nothing is removed by itself.
pub(crate) fn look_every(retention: Retention, own: Own) -> Option<Duration> {
    if retention.is_empty() && own == Own::Never {
        return None;
    }
    let times = [retention.idle, retention.max_age];
    let shortest = times.into_iter().flatten().min();
    let every = shortest.map_or(LOOK_EVERY_MAX, |time| time / LOOKS);
    Some(every.clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX))
}

/// Removes what is due of all sessions: `call_all` makes the calls of a step, and `pause` comes
/// between steps.
pub(crate) fn remove_due(
    store: &Store,
    own: Own,
    mut call_all: impl FnMut(Vec<Call>) -> Result<()>,
    mut pause: impl FnMut(Duration) -> Result<(), Stopped>,
) -> Result<(), Halt> {
    let for_all = store.options.retention;
    let is_by_idleness = own == Own::Never
        && for_all
            == Retention {
                idle: for_all.idle,
                ..Retention::new()
            };
    walk(store, |page| {
        let began = Instant::now();
        let mut calls: Vec<Call> = Vec::new();
        let mut is_over = false;
        let now = store.now_ms()?;
        for session in &page.items {
            let state = store.state(&session.id)?;
            match due(store, &session.id, &state, (for_all, now))? {
                // Sessions come in the order of their activity, so no later one is idle for longer.
                // One that was active or removed since the page was read says nothing of that.
                Due::Nothing => {
                    let is_as_listed = timestamp(state.active_ms) == session.active_at;
                    is_over |=
                        is_by_idleness && state.is_there() && !state.is_held() && is_as_listed;
                }
                Due::Deletion => {
                    let delete = backend::delete_of(&session.id, Delete::new().reason(REASON));
                    let of = backend::Judged::whole(&state);
                    calls.push(Box::new(backend::only_if(of, delete)));
                }
                Due::Trim(first) => {
                    let trim = backend::trim_of(&session.id, first.into());
                    let of = backend::Judged::but_for_new_events(&state);
                    calls.push(Box::new(backend::only_if(of, trim)));
                }
            }
        }
        call_all(calls)?;
        pause(began.elapsed() * PAUSES)?;
        Ok(if is_over {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })
}

/// Returns what a retention for all sessions would remove now.
pub(crate) fn plan(store: &Store, retention: Retention) -> Result<RetentionPlan> {
    retention.check()?;
    let mut plan = RetentionPlan::default();
    walk(store, |page| {
        let now = store.now_ms()?;
        for session in &page.items {
            let (state, due) = store.at_rest(|| {
                let state = store.state(&session.id)?;
                let due = due(store, &session.id, &state, (retention, now))?;
                Result::<_, Error>::Ok((state, due))
            })?;
            match due {
                Due::Nothing => {}
                Due::Deletion => {
                    plan.sessions_deleted += 1;
                    plan.events += state.events();
                    plan.bytes += state.bytes;
                }
                Due::Trim(first) => {
                    let events = first - state.first;
                    plan.sessions_trimmed += 1;
                    plan.events += events;
                    plan.bytes += state.bytes * events / state.events().max(1);
                }
            }
        }
        Result::<_, Error>::Ok(ControlFlow::Continue(()))
    })?;
    Ok(plan)
}

/// Visits all sessions page by page, those that were idle for longest first.
fn walk<E: From<Error>>(
    store: &Store,
    mut visit: impl FnMut(&SessionPage) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    let mut query = Some(SessionQuery::by_activity().reversed().limit(STEP));
    while let Some(next) = query {
        store.check_open()?;
        let page = store.at_rest(|| store.sessions(next))?;
        query = page.next_page();
        if visit(&page)?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// Returns what is due of a session now. Its own retention stands in for the one for all.
fn due(
    store: &Store,
    session: &SessionId,
    state: &SessionState,
    (for_all, now): (Retention, u64),
) -> Result<Due> {
    let retention = state.retention().unwrap_or(for_all);
    if state.is_held() || !state.is_there() || retention.is_empty() {
        return Ok(Due::Nothing);
    }
    let before =
        |time: Duration| now.saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    if retention
        .idle
        .is_some_and(|idle| state.active_ms < before(idle))
    {
        return Ok(Due::Deletion);
    }
    let mut first = state.first;
    if let Some(max) = retention.max_events {
        first = first.max((state.last + 1).saturating_sub(max));
    }
    if let Some(age) = retention
        .max_age
        .filter(|age| state.created_ms < before(*age))
    {
        first = first.max(store.first_since(session, state, before(age))?);
    }
    if let Some(max) = retention.max_bytes.filter(|max| state.bytes > *max) {
        first = first.max(store.first_within(session, state, max)?);
    }
    Ok(if first > state.first {
        Due::Trim(first)
    } else {
        Due::Nothing
    })
}
