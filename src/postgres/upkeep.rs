//! Background work: removes what retention says, and erases what was removed.
//!
//! A removal at first only changes the state of its session. What it removed is hidden by that, and
//! its rows stay until half of the time has passed that they may. Every server does this work. What
//! one has done, another finds done.
//!
//! Invariants:
//! * A row goes only under the shard's lock, after the session and its forks were read under it. So
//!   no fork that is made meanwhile shares what goes.
//! * In the transaction in which a row goes or loses events, `erased_through` becomes at least its
//!   ID. A group in doubt that is asked for later may have been erased if its ID is not above that.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::codec::{Record, SessionState};
use crate::disk::Halt;
use crate::maintain::{Keep, Kept, Own, look_every, remove_due};
use crate::model::{Error, EventId, Result, SessionId};
use crate::postgres::connect::{LOADED, Link, Site};
use crate::postgres::handle::Core;
use crate::postgres::pool::Ask;
use crate::postgres::reads::{SLICE_BYTES, is_full};
use crate::postgres::schema::check_format;
use crate::postgres::sql::{self, Id};
use crate::sync::Deadline;

/// The records that one transaction looks at, of few bytes. The shard is locked meanwhile.
const RECORDS_AT_ONCE: i64 = 64;

/// The sessions that one look fails to erase from, at most.
const FAILED_MAX: usize = 64;

/// How long one statement may take.
const WITHIN: Duration = Duration::from_secs(5);

/// The bounds of the time between two looks for something to erase.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(20);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(10);

/// The pause before each transaction that erases, for the appends that wait for the lock.
const ERASE_PAUSE: Duration = Duration::from_millis(5);

/// Runs the background thread until the log stops.
pub(super) fn run(core: &Core) {
    let options = &core.turns.store().options;
    let erase_every = (options.erase_within / 32).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
    let mut retained = Deadline::after(Duration::ZERO);
    // Each session is told of once.
    let (mut after, mut told) = (Place::default(), BTreeSet::new());
    loop {
        let signal = &core.signal;
        if signal.pause(erase_every, |orders| orders.look).is_err() {
            return;
        }
        let asked = signal.with(|orders| std::mem::take(&mut orders.look));
        // What fails is tried again at the next look. The work of callers reports it.
        if asked || retained.has_passed() {
            match retain(core) {
                Err(Halt::Stopped) => return,
                done => {
                    let every = done.ok().flatten().unwrap_or(LOOK_EVERY_MAX);
                    retained = Deadline::after(every);
                }
            }
        }
        let half = u64::try_from(options.erase_within.as_millis() / 2).unwrap_or(u64::MAX);
        let now = core.turns.store().now_ms();
        let failed = now.and_then(|now| {
            let goes_on = &mut || signal.pause(ERASE_PAUSE, |_orders| false).is_ok();
            erase(core, now.saturating_sub(half), &mut after, goes_on)
        });
        for (session, error) in failed.into_iter().flatten() {
            if !Site::may_pass(&error) && told.insert(session.clone()) {
                tracing::warn!(
                    target: "sessionlog",
                    %session,
                    error = error.with_sources(),
                    "what was removed from a session cannot be erased"
                );
            }
        }
    }
}

/// Removes what retention says. Returns how often to do so.
fn retain(core: &Core) -> Result<Option<Duration>, Halt> {
    let store = core.turns.store();
    let own = Own::from(core.shard()?.is_some_and(|shard| shard.retains));
    let Some(every) = look_every(store.options.retention, own) else {
        return Ok(None);
    };
    remove_due(
        store,
        own,
        |calls| core.call_all(calls),
        |time| core.signal.pause(time, |_orders| false),
    )?;
    Ok(Some(every))
}

/// The time and the session of a removal that was passed over.
pub(super) type Place = (i64, String);

/// Erases what was removed by a time, session by session, for as long as `goes_on` says.
///
/// Returns the sessions that could not be erased from, and why. They are passed over. After many of
/// them it ends, and goes on after the last one when it is called again.
pub(super) fn erase(
    core: &Core,
    removed_by_ms: u64,
    after: &mut Place,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<BTreeMap<SessionId, Error>> {
    let removed_by = i64::try_from(removed_by_ms).unwrap_or(i64::MAX);
    let (tables, mut failed, mut link) = (&core.tables.0, BTreeMap::new(), None);
    while failed.len() < FAILED_MAX && goes_on() {
        let params: [&(dyn ToSql + Sync); 3] = [&removed_by, &after.0, &after.1];
        let due = tables.pool.rows(Ask::Due, &params)?;
        let Some(due) = due.first() else {
            *after = Place::default();
            break;
        };
        let session = SessionId::new(due.get::<_, &str>(0))?;
        let (removals, at_ms): (Vec<Id>, i64) = (due.get(1), due.get(2));
        // Of one session there may be several removals.
        let erased = if failed.contains_key(&session) {
            None
        } else {
            let link = match &mut link {
                Some(link) => link,
                none => none.insert(tables.pool.block_on(connected(&tables.site))?),
            };
            let eraser = Eraser {
                core,
                link,
                session: &session,
            };
            Some(eraser.erase_all(&removals, goes_on))
        };
        match erased {
            Some(Ok(true)) => {}
            Some(Ok(false)) => break,
            erased => {
                *after = (at_ms, session.to_string());
                if let Some(Err(error)) = erased {
                    // After an error the connection is not used again.
                    link = None;
                    failed.insert(session, error);
                }
            }
        }
    }
    Ok(failed)
}

/// Makes room of what was erased.
pub(super) fn vacuum(core: &Core) -> Result<()> {
    let tables = &core.tables.0;
    tables.pool.block_on(async {
        let link = tables.site.connect(|| None).await?;
        let vacuumed = link.client.batch_execute(sql::VACUUM).await;
        vacuumed.map_err(|error| tables.site.error("vacuum", &error))
    })
}

/// Connects, and commits once: what is seen is then on a quorum.
async fn connected(site: &Arc<Site>) -> Result<Link> {
    let link = site.connect(|| None).await?;
    link.commit_alone(site, &site.barrier()).await?;
    Ok(link)
}

/// The rows of a session that a transaction looks at.
#[derive(Clone, Copy)]
enum Part {
    /// Those with events, from a generation and a seq on.
    Events(i32, i64),
    /// Those without events, after an ID.
    Changes(Id),
    /// The one that holds an event, which was redacted.
    Event(Id),
}

/// What has to go of some records.
#[derive(Default)]
struct Found {
    gone: Vec<Id>,
    /// What is kept of the others.
    parts: Vec<(Id, Box<Record>)>,
    /// Where to look next.
    next: Option<Part>,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.parts.is_empty()
    }
}

/// Erases what was removed from one session.
struct Eraser<'a> {
    core: &'a Core,
    link: &'a Link,
    session: &'a SessionId,
}

impl Eraser<'_> {
    /// Erases all that is removed by now, and forgets these removals. Returns whether it came to
    /// the end.
    fn erase_all(&self, removals: &[Id], goes_on: &mut dyn FnMut() -> bool) -> Result<bool> {
        let is_over = self.erase(goes_on)?;
        if is_over {
            self.execute(sql::ERASED, &[&self.session.as_str(), &removals])?;
        }
        Ok(is_over)
    }

    /// Erases all that is removed by now. Returns whether it came to the end.
    fn erase(&self, goes_on: &mut dyn FnMut() -> bool) -> Result<bool> {
        let state = self.core.turns.store().state(self.session)?;
        let none = Id(EventId::from_u128(0));
        let mut parts = vec![Part::Changes(none), Part::Events(0, 0)];
        parts.extend(state.redacted().iter().map(|id| Part::Event(Id(*id))));
        while let Some(part) = parts.pop() {
            if !goes_on() {
                return Ok(false);
            }
            parts.extend(self.erase_part(part)?);
        }
        Ok(true)
    }

    /// Erases what has to go of some records, in one transaction. Returns where it goes on.
    ///
    /// The first look is without the lock. Most find nothing to do, such as what was erased before.
    fn erase_part(&self, part: Part) -> Result<Option<Part>> {
        let found = self.look(part)?;
        if found.is_empty() {
            return Ok(found.next);
        }
        self.batch("BEGIN")?;
        let next = self.erase_locked(part)?;
        self.batch("COMMIT")?;
        let loaded = self.query(LOADED, &[])?;
        let loaded = loaded.first().ok_or(Error::Closed)?;
        self.link.check_kept(&self.core.tables.0.site, loaded)?;
        Ok(next)
    }

    fn erase_locked(&self, part: Part) -> Result<Option<Part>> {
        let shard = self.core.tables.0.site.shard_of(self.session);
        let locked = self.query(sql::LOCK, &[&shard])?;
        let locked = locked.first().ok_or(Error::Closed)?;
        check_format(&self.core.tables.0.site, locked)?;
        let found = self.look(part)?;
        let parts = found.parts.iter().map(|(id, _)| id.0);
        let erased = found.gone.iter().map(|id| id.0).chain(parts).max();
        if !found.gone.is_empty() {
            self.execute(sql::ERASE, &[&found.gone])?;
        }
        for (id, kept) in &found.parts {
            self.put(*id, kept)?;
        }
        if let Some(erased) = erased {
            self.execute(sql::NOTE_ERASED, &[&shard, &Id(erased)])?;
        }
        Ok(found.next)
    }

    /// Looks what has to go of some records.
    fn look(&self, part: Part) -> Result<Found> {
        let store = self.core.turns.store();
        let state = store.state(self.session)?;
        let rows = self.rows(part, &state)?;
        let mut keep = Keep::of(store, self.session)?;
        let mut found = Found::default();
        for row in &rows {
            let id: Id = row.get(0);
            let record = self.core.tables.0.record(row.get(1))?;
            if record.session != *self.session {
                // The event was erased, and this is what came after it.
                continue;
            }
            found.next = Some(match part {
                Part::Events(..) => {
                    Part::Events(record.generation.cast_signed(), record.first.cast_signed())
                }
                _ => Part::Changes(id),
            });
            let kept = keep.record(store, &record)?;
            match kept.map_err(|fault| self.core.tables.0.fault(fault))? {
                Kept::Whole => {}
                Kept::Nothing => found.gone.push(id),
                Kept::Part(part) => found.parts.push((id, part)),
            }
        }
        if matches!(part, Part::Event(_)) || !is_full(&rows, RECORDS_AT_ONCE) {
            found.next = None;
        }
        Ok(found)
    }

    /// Returns rows of which something may have to go.
    fn rows(&self, part: Part, state: &SessionState) -> Result<Vec<Row>> {
        let name = self.session.as_str();
        // Of a session that is there, what comes before this place.
        let (generation, first) = if state.is_there() {
            (state.generation.cast_signed(), state.first.cast_signed())
        } else {
            (i32::MAX, 0)
        };
        match part {
            Part::Events(from, after) => self.query(
                sql::ERASABLE,
                &[
                    &name,
                    &from,
                    &after,
                    &generation,
                    &first,
                    &RECORDS_AT_ONCE,
                    &SLICE_BYTES,
                ],
            ),
            Part::Changes(after) => self.query(
                sql::ERASABLE_CHANGES,
                &[&name, &after, &generation, &RECORDS_AT_ONCE, &SLICE_BYTES],
            ),
            Part::Event(id) => self.query(sql::AT_OR_AFTER_WITH_ID, &[&id]),
        }
    }

    /// Replaces a record by what is kept of it.
    fn put(&self, id: Id, record: &Record) -> Result<()> {
        let key = record.key.as_ref().map(|key| sql::key_hash(&key.text));
        self.execute(
            sql::REPLACE,
            &[
                &id,
                &Id(record.last_id()),
                &Id(record.base),
                &record.first.cast_signed(),
                &record.last().cast_signed(),
                &key,
                &sql::stored(record),
            ],
        )
    }

    fn batch(&self, text: &str) -> Result<()> {
        self.within(self.link.client.batch_execute(text))
    }

    fn query(&self, text: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.within(self.link.client.query(text, params))
    }

    fn within<T>(
        &self,
        asked: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        let tables = &self.core.tables.0;
        let answer = async { timeout(WITHIN, asked).await };
        match tables.pool.block_on(answer) {
            Ok(answer) => answer.map_err(|error| tables.site.error("erase from", &error)),
            Err(_elapsed) => Err(tables.site.io("erase from", "the server takes too long")),
        }
    }

    fn execute(&self, text: &str, params: &[&(dyn ToSql + Sync)]) -> Result<()> {
        self.query(text, params).map(drop)
    }
}
