//! The databases of a log: which of them has each shard, and reads over all of them.
//!
//! A log has one database or several. Each shard is in one of them, with its sequencer, its
//! sessions and its records, and [moves](crate::postgres::moving) to another while appends go on.
//! The row of the shard says in each database whether it is *here*. So no database keeps a map of
//! the others. What a server knows of the homes of shards is a guess, which it mends when it finds
//! a shard gone.
//!
//! Invariants:
//! * *A shard is here in one database at most.* It is made to be here in a second one only after
//!   the row of the first says, on a quorum, that it has left for that one by that move.
//! * *A shard that has left has arrived whole.* So anybody who finds it on its way may say that it
//!   is here, and no server has to be waited for.
//! * *What is not here is not shown.* A database keeps rows of what left and has rows of what
//!   arrives. A read of a session is answered by a statement that also finds its shard here. A read
//!   over all sessions passes over rows of other shards, and it takes a snapshot of each database
//!   in which every shard is here once.
//!
//! A read of one session sees one moment. If it shares events with sessions of another database,
//! their moment is a little later. What is erased in between was removed longer before than any
//! read takes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::model::{Error, EventId, Options, Result, SessionId, Shard};
use crate::postgres::connect::Site;
use crate::postgres::pool::{Ask, AtRest, Pool, Snapshots};
use crate::postgres::sql::Id;
use crate::sync::{Deadline, Mutex};

/// The pause before shards are looked for again.
const PAUSE: Duration = Duration::from_millis(20);

/// One database of a log.
pub(super) struct Database {
    pub site: Arc<Site>,
    pub pool: Pool,
}

/// All of them.
pub(super) struct Databases {
    all: Vec<Database>,
    /// The database in which each shard was found last.
    homes: Mutex<Vec<usize>>,
    wait: Duration,
}

/// Where a shard is, as one database has it.
pub(super) struct Place {
    pub shard: i32,
    pub here: bool,
    pub by: Option<Id>,
    pub moved_to: Option<Id>,
}

impl Place {
    fn of(row: &Row) -> Self {
        Self {
            shard: row.get(0),
            here: row.get(1),
            by: row.get(2),
            moved_to: row.get(3),
        }
    }

    /// Whether this one has left by the move by which the other arrives.
    fn leads_to(&self, other: &Self, of: Option<Id>) -> bool {
        let is_open = !self.here && !other.here && other.moved_to.is_none();
        is_open && self.moved_to.is_some() && self.moved_to == of && self.by == other.by
    }
}

impl Databases {
    pub(super) fn new(
        urls: &[String],
        options: &Options,
        runtime: &Handle,
        snapshots: Snapshots,
    ) -> Result<Self> {
        let all = urls.iter().enumerate().map(|(nth, url)| {
            let site = Site::new(url, options.schema.clone(), options.durability)?;
            let site = Arc::new(site);
            let (runtime, wait) = (runtime.clone(), options.stall_wait);
            let pool = Pool::new(nth, &site, runtime, wait, snapshots)?;
            Ok(Database { site, pool })
        });
        let all = all.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            all,
            homes: Mutex::default(),
            wait: options.stall_wait,
        })
    }

    /// The one that the log was made in.
    pub(super) fn first(&self) -> &Database {
        self.all.first().expect("there is one")
    }

    pub(super) fn all(&self) -> &[Database] {
        &self.all
    }

    /// Waits for a future on this thread, also on one of another runtime.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.first().pool.block_on(future)
    }

    pub(super) fn are_several(&self) -> bool {
        self.all.len() > 1
    }

    pub(super) fn shards(&self) -> u32 {
        self.first().site.shards()
    }

    /// Returns when a shard is no longer looked for.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.wait)
    }

    /// Returns the place among them of the one that has a shard, as far as is known.
    pub(super) fn home(&self, shard: i32) -> usize {
        let shard = usize::try_from(shard).unwrap_or(usize::MAX);
        self.homes.lock().get(shard).copied().unwrap_or(0)
    }

    /// Returns the place of the one that has a session, as far as is known.
    pub(super) fn place_of(&self, session: &SessionId) -> usize {
        self.home(self.first().site.shard_of(session))
    }

    /// Returns the one that has a session, as far as is known.
    pub(super) fn of(&self, session: &SessionId) -> &Database {
        let home = self.all.get(self.place_of(session));
        home.unwrap_or_else(|| self.first())
    }

    /// Looks where the shards are. One that is on its way is then here.
    ///
    /// It fails if one is not found. What was found is known then all the same.
    pub(super) async fn look(&self) -> Result<()> {
        let asked = self.all.iter().map(|database| async {
            let rows = database.pool.now(Ask::Places, &[]).await?;
            Ok::<Vec<_>, Error>(rows.iter().map(Place::of).collect())
        });
        let (mut places, mut failed) = (Vec::new(), None);
        for (nth, found) in join_all(asked).await.into_iter().enumerate() {
            match found {
                Ok(found) => places.extend(found.into_iter().map(|place| (nth, place))),
                Err(error) => failed = Some(error),
            }
        }
        let mut missing = None;
        let mut homes = self.homes.lock().clone();
        homes.resize(self.shards() as usize, 0);
        for (shard, home) in (0..self.shards().cast_signed()).zip(&mut homes) {
            let of: Vec<_> = places
                .iter()
                .filter(|(_, place)| place.shard == shard)
                .collect();
            let found = match of.iter().find(|(_, place)| place.here) {
                Some((nth, _)) => Some(*nth),
                None => self.arrive(&of).await?,
            };
            match found {
                Some(nth) => *home = nth,
                None => missing = Some(shard),
            }
        }
        *self.homes.lock() = homes;
        match (missing, failed) {
            (None, _) => Ok(()),
            (Some(_), Some(error)) => Err(error),
            (Some(shard), None) => {
                let why = format!(
                    "shard {shard} is in none of the {} databases",
                    self.all.len()
                );
                Err(self.first().site.io("find a shard of", why))
            }
        }
    }

    /// Has a shard that is on its way be here. Returns the place of the database that it is in.
    async fn arrive(&self, places: &[&(usize, Place)]) -> Result<Option<usize>> {
        let arriving = places.iter().find(|(nth, place)| {
            let of = self
                .all
                .get(*nth)
                .and_then(|database| database.site.database());
            places.iter().any(|(_, left)| left.leads_to(place, of))
        });
        let Some((nth, place)) = arriving else {
            return Ok(None);
        };
        if let Some(database) = self.all.get(*nth) {
            let params: [&(dyn ToSql + Sync); 2] = [&place.shard, &place.by];
            database.pool.kept(Ask::Arrive, &params).await?;
        }
        Ok(Some(*nth))
    }

    /// Returns rows of the database that has a session, which `is_here` says of them.
    ///
    /// If the session's shard has moved, it is looked for.
    pub(super) fn rows_of(
        &self,
        session: &SessionId,
        ask: Ask,
        params: &[&(dyn ToSql + Sync)],
        is_here: impl Fn(&[Row]) -> Result<bool>,
    ) -> Result<Vec<Row>> {
        let (deadline, is_fixed) = (self.deadline(), AtRest::has_begun());
        let mut has_looked = false;
        loop {
            let database = self.of(session);
            let rows = database.pool.rows(ask, params)?;
            if !self.are_several() || is_here(&rows)? {
                return Ok(rows);
            }
            // What has seen a moment already may not see another, and at that one of its new home
            // the shard may not have been there yet.
            if has_looked && is_fixed || deadline.has_passed() {
                return Err(database.site.moved("read from"));
            }
            if !is_fixed {
                self.begin_again();
            }
            has_looked = true;
            self.block_on(async {
                self.look().await?;
                sleep(PAUSE).await;
                Ok::<_, Error>(())
            })?;
        }
    }

    /// Returns the shards that have left a database, with the moves that took them.
    pub(super) fn left(&self, nth: usize) -> Result<Vec<(i32, Id)>> {
        let Some(database) = self.all.get(nth) else {
            return Ok(Vec::new());
        };
        let rows = database.pool.rows(Ask::Places, &[])?;
        let left = rows.iter().map(Place::of).filter_map(|place| {
            place.moved_to.filter(|_| !place.here)?;
            Some((place.shard, place.by?))
        });
        Ok(left.collect())
    }

    /// Returns the shards, with what the rows of each count.
    pub(super) fn list(&self) -> Result<Vec<Shard>> {
        self.block_on(self.look())?;
        let mut shards = Vec::new();
        for (nth, database) in self.all.iter().enumerate() {
            for row in &database.pool.rows(Ask::Counts, &[])? {
                shards.push(Shard {
                    number: row.get::<_, i32>(0).cast_unsigned(),
                    database: nth,
                    place: database.site.place.display().to_string(),
                    sessions: row.get::<_, i64>(1).unsigned_abs(),
                    events: row.get::<_, i64>(2).unsigned_abs(),
                    is_moving: row.get(3),
                });
            }
        }
        shards.sort_unstable_by_key(|shard| shard.number);
        Ok(shards)
    }

    /// Whether the shard of a session is in the database that is known to have it.
    pub(super) fn has(&self, session: &SessionId) -> Result<bool> {
        let database = self.of(session);
        let shard = database.site.shard_of(session);
        let rows = database.pool.rows(Ask::Places, &[])?;
        let place = rows
            .iter()
            .map(Place::of)
            .find(|place| place.shard == shard);
        Ok(place.is_some_and(|place| place.here))
    }

    /// Runs a read over all sessions. Each database is seen as of one moment, and each shard is in
    /// one of them.
    pub(super) fn over_all<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.are_several() {
            return read();
        }
        let outer = AtRest::is_set();
        let _own = (!outer).then(|| self.at_rest());
        let is_fixed = AtRest::has_begun();
        let deadline = self.deadline();
        while !self.has_each_once()? {
            if is_fixed || deadline.has_passed() {
                return Err(self
                    .first()
                    .site
                    .io("read from", "a shard has moved meanwhile"));
            }
            self.begin_again();
            self.block_on(async {
                self.look().await?;
                sleep(PAUSE).await;
                Ok::<_, Error>(())
            })?;
        }
        read()
    }

    /// Whether each shard is here in one of the databases, as of the read at rest.
    fn has_each_once(&self) -> Result<bool> {
        let mut here: Vec<i32> = Vec::new();
        for database in &self.all {
            let rows = database.pool.rows(Ask::Places, &[])?;
            let places = rows.iter().map(Place::of).filter(|place| place.here);
            here.extend(places.map(|place| place.shard));
        }
        here.sort_unstable();
        Ok(here.into_iter().eq(0..self.shards().cast_signed()))
    }

    /// Has the statements of each database see one moment on this thread, until it is dropped.
    pub(super) fn at_rest(&self) -> Resting<'_> {
        AtRest::begin();
        Resting(self)
    }

    /// Has the read at rest on this thread, if there is one, see a later moment.
    fn begin_again(&self) {
        if AtRest::is_set() {
            self.end_snapshots();
            AtRest::begin();
        }
    }

    fn end_snapshots(&self) {
        for (nth, reader) in AtRest::end() {
            if let Some(database) = self.all.get(nth) {
                database.pool.end(reader);
            }
        }
    }

    /// Returns the highest ID of all, as it is now.
    pub(super) async fn last_id_now(&self) -> Result<EventId> {
        let asked = self
            .all
            .iter()
            .map(|database| database.pool.now(Ask::Shard, &[]));
        let mut highest = EventId::from_u128(0);
        for rows in join_all(asked).await {
            let last_id = rows?.first().map(|row| row.get::<_, Id>(0).0);
            highest = highest.max(last_id.unwrap_or(highest));
        }
        Ok(highest)
    }
}

/// A read at rest, also when it panics.
pub(super) struct Resting<'a>(&'a Databases);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.end_snapshots();
    }
}
