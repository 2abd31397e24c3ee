//! Erases what was removed, from the rows.
//!
//! A removal at first only changes the state of its session. What it removed is hidden by that, and
//! its rows stay until half of the time has passed that they may.
//!
//! Invariants:
//! * A row goes only under the shard's lock, after the session and its forks were read under it. So
//!   no fork that is made meanwhile shares what goes. Forks in other databases are read after a
//!   commit there, which shows that what is read is what the newest primary has.
//! * In the transaction in which a row goes or loses events, `erased_through` becomes at least its
//!   ID. A group in doubt that is asked for later may have been erased if its ID is not above that.
//! * A removal is forgotten once all was erased in the database that had the shard all the time.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::codec::{Record, SessionState};
use crate::maintain::{Keep, Kept};
use crate::model::{Error, EventId, Result, SessionId};
use crate::postgres::connect::{LOADED, Link, Site};
use crate::postgres::databases::Databases;
use crate::postgres::handle::Core;
use crate::postgres::moving;
use crate::postgres::pins;
use crate::postgres::pool::Ask;
use crate::postgres::reads::{SLICE_BYTES, is_full, record};
use crate::postgres::schema::check_format;
use crate::postgres::sql::{self, Id};

/// The records that one transaction looks at, of few bytes. The shard is locked meanwhile.
const RECORDS_AT_ONCE: i64 = 64;

/// The sessions that one look fails to erase from, at most.
const FAILED_MAX: usize = 64;

/// How long one statement may take.
const WITHIN: Duration = Duration::from_secs(5);

/// How long other databases may take while the shard is locked.
const SETTLED_WITHIN: Duration = Duration::from_secs(1);

/// The time and the session of the last removal that was passed over, in each database.
#[derive(Default)]
pub(super) struct Passed(Vec<(i64, String)>);

/// Erases what was removed by a time, session by session, for as long as `goes_on` says.
///
/// Returns the sessions that could not be erased from, and why. They are passed over. After many of
/// them it ends, and goes on after the last one when it is called again.
pub(super) fn erase(
    core: &Core,
    removed_by_ms: u64,
    passed: &mut Passed,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<BTreeMap<SessionId, Error>> {
    let databases = &core.tables.0.databases;
    let count = databases.all().len();
    passed.0.resize_with(count, Default::default);
    let mut erasing = Erasing {
        core,
        removed_by: i64::try_from(removed_by_ms).unwrap_or(i64::MAX),
        links: (0..count).map(|_| None).collect(),
        failed: BTreeMap::new(),
    };
    let mut unreachable = None;
    for (nth, after) in passed.0.iter_mut().enumerate() {
        match erasing.noted_in(nth, after, goes_on) {
            Ok(true) => {}
            Ok(false) => break,
            // What the others have noted is erased all the same.
            Err(error) => unreachable = Some(error),
        }
    }
    unreachable.map_or(Ok(erasing.failed), Err)
}

/// Erases from one session after the other.
struct Erasing<'a> {
    core: &'a Core,
    removed_by: i64,
    /// The connections that erase, one to a database.
    links: Vec<Option<Link>>,
    failed: BTreeMap<SessionId, Error>,
}

impl Erasing<'_> {
    /// Erases what one database notes as removed, also from sessions of another. Returns whether it
    /// came to the end.
    fn noted_in(
        &mut self,
        nth: usize,
        after: &mut (i64, String),
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool> {
        let databases = &self.core.tables.0.databases;
        let database = databases.all().get(nth).ok_or(Error::Closed)?;
        while self.failed.len() < FAILED_MAX {
            if !goes_on() {
                return Ok(false);
            }
            let params: [&(dyn ToSql + Sync); 3] = [&self.removed_by, &after.0, &after.1];
            let due = database.pool.rows(Ask::Due, &params)?;
            let Some(due) = due.first() else {
                *after = Default::default();
                return Ok(true);
            };
            let session = SessionId::new(due.get::<_, &str>(0))?;
            let (removals, at_ms): (Vec<Id>, i64) = (due.get(1), due.get(2));
            // Of one session there may be several removals.
            let erased = (!self.failed.contains_key(&session))
                .then(|| self.erase_all(nth, &session, &removals, goes_on));
            match erased {
                Some(Ok(true)) => {}
                Some(Ok(false)) => return Ok(false),
                erased => {
                    *after = (at_ms, session.to_string());
                    if let Some(Err(error)) = erased {
                        // After an error the connection is not used again.
                        self.links.fill_with(|| None);
                        self.failed.insert(session, error);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Erases all that is removed by now from a session, and forgets these removals, which the
    /// database at `nth` has noted. Returns whether it came to the end.
    fn erase_all(
        &mut self,
        nth: usize,
        session: &SessionId,
        removals: &[Id],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool> {
        let databases = &self.core.tables.0.databases;
        // It finds the session, if that has moved.
        self.core.turns.store().state(session)?;
        let home = databases.place_of(session);
        if databases.are_several() {
            databases.block_on(pins::settle(databases, session))?;
        }
        let eraser = self.eraser(home, session)?;
        let before = eraser.moves()?;
        if !eraser.erase(goes_on)? {
            return Ok(false);
        }
        if eraser.moves()? != before {
            return Err(eraser.site.moved("erase from"));
        }
        let noted = self.eraser(nth, session)?;
        noted.execute(sql::ERASED, &[&session.as_str(), &removals])?;
        Ok(true)
    }

    /// Returns what erases a session over the connection to a database.
    fn eraser<'a>(&'a mut self, nth: usize, session: &'a SessionId) -> Result<Eraser<'a>> {
        let databases = &self.core.tables.0.databases;
        let database = databases.all().get(nth).ok_or(Error::Closed)?;
        let link = self.links.get_mut(nth).ok_or(Error::Closed)?;
        let link = match link {
            Some(link) => link,
            none => none.insert(databases.block_on(connected(&database.site))?),
        };
        Ok(Eraser {
            core: self.core,
            databases,
            site: &database.site,
            link,
            session,
        })
    }
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
    databases: &'a Databases,
    site: &'a Site,
    link: &'a Link,
    session: &'a SessionId,
}

impl Eraser<'_> {
    /// Returns how many shards came to the database or left it. That of the session is here.
    fn moves(&self) -> Result<i64> {
        let shard = self.site.shard_of(self.session);
        let rows = self.query(sql::HERE, &[&shard])?;
        let here = rows.first().filter(|row| row.get(0));
        let here = here.ok_or_else(|| self.site.moved("erase from"))?;
        Ok(here.get(1))
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
        if self.databases.are_several() {
            let settled = async {
                let settling = pins::settle(self.databases, self.session);
                timeout(SETTLED_WITHIN, settling).await
            };
            let slow = |_| {
                self.site
                    .io("erase from", "another database takes too long")
            };
            self.databases.block_on(settled).map_err(slow)??;
        }
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
        let answer = async { timeout(WITHIN, asked).await };
        match self.databases.block_on(answer) {
            Ok(answer) => answer.map_err(|error| self.site.error("erase from", &error)),
            Err(_elapsed) => Err(self.site.io("erase from", "the server takes too long")),
        }
    }

    fn execute(&self, text: &str, params: &[&(dyn ToSql + Sync)]) -> Result<()> {
        self.query(text, params).map(drop)
    }
}
