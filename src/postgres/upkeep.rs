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

use std::collections::HashSet;
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
use crate::postgres::databases::Databases;
use crate::postgres::handle::Core;
use crate::postgres::moving;
use crate::postgres::pins;
use crate::postgres::pool::Ask;
use crate::postgres::reads::record;
use crate::postgres::schema::check_format;
use crate::postgres::sql::{self, Id};
use crate::sync::Deadline;

/// The records that one transaction looks at. The shard is locked meanwhile.
const RECORDS_AT_ONCE: u32 = 64;

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
    let mut swept = HashSet::new();
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
        drop(now.and_then(|now| {
            let goes_on = &mut || signal.pause(ERASE_PAUSE, |_orders| false).is_ok();
            erase(core, now.saturating_sub(half), goes_on)
        }));
        drop(sweep(core, &mut swept));
    }
}

/// Deletes what shards left behind that have moved. `swept` has those of which nothing is left.
fn sweep(core: &Core, swept: &mut HashSet<(usize, i32, u128)>) -> Result<()> {
    let databases = &core.tables.0.databases;
    if !databases.are_several() {
        return Ok(());
    }
    for nth in 0..databases.all().len() {
        for (shard, by) in databases.left(nth)? {
            let left = (nth, shard, by.0.to_u128());
            if !swept.contains(&left) {
                databases.block_on(moving::sweep(databases, nth, shard))?;
                swept.insert(left);
            }
        }
    }
    Ok(())
}

/// Removes what retention says. Returns how often to do so.
fn retain(core: &Core) -> Result<Option<Duration>, Halt> {
    let store = core.turns.store();
    let own = Own::from(core.shard()?.retains);
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

/// Erases what was removed by a time, session by session, for as long as `goes_on` says.
///
/// What is removed is noted where it was removed. The session may be in another database.
pub(super) fn erase(
    core: &Core,
    removed_by_ms: u64,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<()> {
    let removed_by = i64::try_from(removed_by_ms).unwrap_or(i64::MAX);
    let databases = &core.tables.0.databases;
    let mut links = Links(databases.all().iter().map(|_| None).collect());
    for nth in 0..databases.all().len() {
        erase_noted_in(core, nth, &mut links, removed_by, goes_on)?;
    }
    Ok(())
}

/// Erases what one database notes as removed.
fn erase_noted_in(
    core: &Core,
    nth: usize,
    links: &mut Links,
    removed_by: i64,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<()> {
    let databases = &core.tables.0.databases;
    let Some(database) = databases.all().get(nth) else {
        return Ok(());
    };
    while goes_on() {
        let due = database.pool.rows(Ask::Due, &[&removed_by])?;
        let Some(due) = due.first() else {
            return Ok(());
        };
        let session = SessionId::new(due.get::<_, &str>(0))?;
        let removals: Vec<Id> = due.get(1);
        let eraser = Eraser {
            core,
            site: &databases.of(&session).site,
            link: links.to(databases, databases.place_of(&session))?,
            session: &session,
        };
        if !eraser.erase(goes_on)? {
            return Ok(());
        }
        let noted = Eraser {
            core,
            site: &database.site,
            link: links.to(databases, nth)?,
            session: &session,
        };
        noted.execute(sql::ERASED, &[&session.as_str(), &removals])?;
    }
    Ok(())
}

/// The connections that erase, one to a database.
struct Links(Vec<Option<Link>>);

impl Links {
    fn to(&mut self, databases: &Databases, nth: usize) -> Result<&Link> {
        let (Some(link), Some(database)) = (self.0.get_mut(nth), databases.all().get(nth)) else {
            return Err(Error::Closed);
        };
        match link {
            Some(link) => Ok(link),
            none => Ok(none.insert(databases.block_on(connected(&database.site))?)),
        }
    }
}

/// Makes room of what was erased.
pub(super) fn vacuum(core: &Core) -> Result<()> {
    let databases = &core.tables.0.databases;
    databases.block_on(async {
        for database in databases.all() {
            let site = &database.site;
            let link = site.connect(|| None).await?;
            let vacuumed = link.client.batch_execute(sql::VACUUM).await;
            vacuumed.map_err(|error| site.error("vacuum", &error))?;
        }
        Ok(())
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
    site: &'a Site,
    link: &'a Link,
    session: &'a SessionId,
}

impl Eraser<'_> {
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
        // After an error the connection is not used again.
        let next = self.erase_locked(part)?;
        self.batch("COMMIT")?;
        let loaded = self.query(LOADED, &[])?;
        let loaded = loaded.first().ok_or(Error::Closed)?;
        self.link.check_kept(self.site, loaded)?;
        Ok(next)
    }

    fn erase_locked(&self, part: Part) -> Result<Option<Part>> {
        let shard = self.site.shard_of(self.session);
        let locked = self.query(sql::LOCK, &[&shard])?;
        let locked = locked.first().filter(|row| row.get("here"));
        let locked = locked.ok_or_else(|| self.site.moved("erase from"))?;
        check_format(self.site, locked)?;
        if locked.get::<_, Option<Id>>("move").is_some() {
            self.end_move(shard)?;
        }
        let databases = &self.core.tables.0.databases;
        databases.block_on(pins::settle(databases, self.session))?;
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

    /// Ends the move that copies the shard, if nobody is at it any more. What is erased while it is
    /// copied would come back with the copy.
    fn end_move(&self, shard: i32) -> Result<()> {
        let free = self.query(moving::TRY_LOCK, &[&self.site.schema, &shard])?;
        if !free.first().is_some_and(|row| row.get(0)) {
            return Err(self.site.io("erase from", "the shard is being moved"));
        }
        self.execute(moving::END_COPY, &[&shard])
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
            let record = record(self.site, row.get(1))?;
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
            match kept.map_err(|fault| fault.at(&self.site.place, 0))? {
                Kept::Whole => {}
                Kept::Nothing => found.gone.push(id),
                Kept::Part(part) => found.parts.push((id, part)),
            }
        }
        if matches!(part, Part::Event(_)) || rows.len() < RECORDS_AT_ONCE as usize {
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
                    &i64::from(RECORDS_AT_ONCE),
                ],
            ),
            Part::Changes(after) => self.query(
                sql::ERASABLE_CHANGES,
                &[&name, &after, &generation, &i64::from(RECORDS_AT_ONCE)],
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
        let answer = async { timeout(WITHIN, asked).await };
        match self.core.tables.0.databases.block_on(answer) {
            Ok(answer) => answer.map_err(|error| self.site.error("erase from", &error)),
            Err(_elapsed) => Err(self.site.io("erase from", "the server takes too long")),
        }
    }

    fn execute(&self, text: &str, params: &[&(dyn ToSql + Sync)]) -> Result<()> {
        self.query(text, params).map(drop)
    }
}
