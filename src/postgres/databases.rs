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
//! * *A shard that has left has arrived whole.* So a server that finds it on its way may say that
//!   it is here, and no other has to be waited for.
//! * *What is not here is not shown.* A database keeps rows of what left and has rows of what
//!   arrives. A read of a session is answered by a statement that also finds its shard here. A read
//!   over all sessions passes over rows of other shards, and it takes a snapshot of each database
//!   in which every shard is here once.
//! * *A row that says so is on a quorum.* Before a shard is made to be here, the database that it
//!   has left commits once more, and says again that it has left.
//!
//! A read of one session sees one moment. If it shares events with sessions of another database,
//! their moment is another one. What is erased in between is missed by it, which is an error that
//! passes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::model::{Error, EventId, Options, Result, SessionId, Shard};
use crate::postgres::connect::Site;
use crate::postgres::pool::{Ask, AtRest, Pool, Snapshots};
use crate::postgres::sql::Id;
use crate::sync::{Deadline, Instant, Mutex};

/// The pause before shards are looked for.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a database may take to say which shards it has.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// How long it may take to fix the moments of all databases. The first one waits meanwhile, in a
/// transaction that the server ends after two seconds.
const SNAPSHOTS_WITHIN: Duration = Duration::from_secs(1);

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

/// Rows of a shard that has left a database, or that came by a move that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    pub database: usize,
    pub shard: i32,
    pub by: Id,
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

impl Database {
    /// Whether the shard of a session is here.
    fn has(&self, session: &SessionId) -> Result<bool> {
        let shard = self.site.shard_of(session);
        let rows = self.pool.rows(Ask::Places, &[])?;
        let mut places = rows.iter().map(Place::of);
        Ok(places.any(|place| place.shard == shard && place.here))
    }
}

impl Databases {
    pub(super) fn new(
        urls: &[String],
        options: &Options,
        runtime: &Handle,
        snapshots: Snapshots,
    ) -> Result<Self> {
        let told = Arc::new(Mutex::new(EventId::from_u128(0)));
        let all = urls.iter().enumerate().map(|(nth, url)| {
            let mut site = Site::new(url, options.schema.clone(), options.durability)?;
            site.told = Arc::clone(&told);
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

    /// The one that is named first.
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

    /// Returns the place of the database in which a shard was found last.
    pub(super) fn home(&self, shard: i32) -> usize {
        let shard = usize::try_from(shard).unwrap_or(usize::MAX);
        self.homes.lock().get(shard).copied().unwrap_or(0)
    }

    /// Returns the place of the database in which a session was found last.
    pub(super) fn place_of(&self, session: &SessionId) -> usize {
        self.home(self.first().site.shard_of(session))
    }

    /// Returns the database in which a session was found last.
    pub(super) fn of(&self, session: &SessionId) -> &Database {
        let home = self.all.get(self.place_of(session));
        home.unwrap_or_else(|| self.first())
    }

    /// Looks where all shards are. One that is on its way is then here.
    ///
    /// It fails if one is not found. What was found is known then all the same.
    pub(super) async fn look(&self) -> Result<()> {
        let shards = 0..self.shards().cast_signed();
        self.look_for(|shard| shards.contains(&shard)).await
    }

    /// Looks where all shards are, and fails if the one of a session is not found.
    pub(super) async fn look_for_session(&self, session: &SessionId) -> Result<()> {
        let wanted = self.first().site.shard_of(session);
        self.look_for(|shard| shard == wanted).await
    }

    /// A database that does not answer keeps nobody waiting for what is in the others.
    async fn look_for(&self, is_wanted: impl Fn(i32) -> bool) -> Result<()> {
        let (places, mut failed) = self.places().await;
        let mut missing = None;
        for shard in 0..self.shards().cast_signed() {
            let of = places.iter().filter(|(_, place)| place.shard == shard);
            let of: Vec<_> = of.collect();
            let found = match of.iter().find(|(_, place)| place.here) {
                Some((nth, _)) => Ok(Some(*nth)),
                None if is_wanted(shard) => self.arrive(&of).await,
                None => Ok(None),
            };
            match found {
                Ok(Some(nth)) => self.note_home(shard, nth),
                Ok(None) if is_wanted(shard) => missing = Some(shard),
                Ok(None) => {}
                Err(error) => (missing, failed) = (Some(shard), Some(error)),
            }
        }
        let Some(shard) = missing else {
            return Ok(());
        };
        Err(failed.unwrap_or_else(|| {
            let count = self.all.len();
            let why = format!("shard {shard} is in none of the {count} databases");
            self.first().site.io("find a shard of", why)
        }))
    }

    /// Returns what the databases say of where the shards are, and why one of them says nothing.
    async fn places(&self) -> (Vec<(usize, Place)>, Option<Error>) {
        let asked = self.all.iter().map(|database| async {
            let rows = timeout(LOOK_WITHIN, database.pool.now(Ask::Places, &[])).await;
            rows.unwrap_or_else(|_elapsed| Err(database.site.io("read from", "it is silent")))
        });
        let (mut places, mut failed) = (Vec::new(), None);
        for (nth, found) in join_all(asked).await.into_iter().enumerate() {
            match found {
                Ok(rows) => places.extend(rows.iter().map(|row| (nth, Place::of(row)))),
                Err(error) => failed = Some(error),
            }
        }
        (places, failed)
    }

    fn note_home(&self, shard: i32, nth: usize) {
        let (mut homes, shard) = (self.homes.lock(), shard.unsigned_abs() as usize);
        if homes.len() <= shard {
            homes.resize(shard + 1, 0);
        }
        if let Some(home) = homes.get_mut(shard) {
            *home = nth;
        }
    }

    /// Has a shard that is on its way be here. Returns the place of the database that it is in.
    async fn arrive(&self, places: &[&(usize, Place)]) -> Result<Option<usize>> {
        let on_its_way = places.iter().find_map(|(to, place)| {
            let of = self
                .all
                .get(*to)
                .and_then(|database| database.site.database());
            let mut left = places.iter().filter(|(_, left)| left.leads_to(place, of));
            left.next().map(|(from, _)| (*from, *to, place))
        });
        let Some((from, to, place)) = on_its_way else {
            return Ok(None);
        };
        let (Some(from), Some(there)) = (self.all.get(from), self.all.get(to)) else {
            return Ok(None);
        };
        // A row that nobody else has may be taken back.
        from.pool.kept(Ask::Barrier, &[]).await?;
        let rows = from.pool.now(Ask::Places, &[]).await?;
        let mut left = rows
            .iter()
            .map(Place::of)
            .filter(|left| left.shard == place.shard);
        if !left.any(|left| left.leads_to(place, there.site.database())) {
            return Ok(None);
        }
        let params: [&(dyn ToSql + Sync); 2] = [&place.shard, &place.by];
        there.pool.kept(Ask::Arrive, &params).await?;
        Ok(Some(to))
    }

    /// Returns what `read` makes of the rows of the database that has a session. It returns nothing
    /// for those of another.
    ///
    /// If the session's shard has moved, it is looked for. Nothing is returned if the database that
    /// has it has nothing.
    pub(super) fn read_of<T>(
        &self,
        session: &SessionId,
        ask: Ask,
        params: &[&(dyn ToSql + Sync)],
        read: impl Fn(&Site, &[Row]) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let read_at = |database: &Database| {
            let rows = database.pool.rows(ask, params)?;
            read(&database.site, &rows)
        };
        if !self.are_several() {
            return read_at(self.first());
        }
        let (deadline, is_fixed) = (self.deadline(), AtRest::has_begun());
        loop {
            let nth = self.place_of(session);
            let asked = self.all.get(nth).unwrap_or_else(|| self.first());
            let found = read_at(asked);
            match found {
                Ok(Some(found)) => return Ok(Some(found)),
                Err(error) if !Site::may_pass(&error) => return Err(error),
                // At the moment that is seen it may have been in another than it is now.
                _ if is_fixed => {
                    for database in &self.all {
                        if database.has(session)? {
                            return read_at(database);
                        }
                    }
                    return Err(asked.site.moved("read from"));
                }
                Ok(None) if asked.has(session)? => return Ok(None),
                _ => {}
            }
            self.begin_again();
            let looked = self.block_on(async {
                sleep(PAUSE).await;
                self.look_for_session(session).await
            });
            if deadline.has_passed() {
                let failed = found.err().or(looked.err());
                return Err(failed.unwrap_or_else(|| asked.site.moved("read from")));
            }
        }
    }

    /// Runs a read over all sessions. Each database is seen as of one moment, and each shard is in
    /// one of them.
    pub(super) fn over_all<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.are_several() {
            return read();
        }
        let _own = (!AtRest::is_set()).then(|| self.at_rest());
        let is_fixed = AtRest::has_begun();
        let deadline = self.deadline();
        loop {
            let began = Instant::now();
            let found = self.has_each_once();
            // A moment that was fixed long ago is soon lost.
            let is_fresh = began.elapsed() < SNAPSHOTS_WITHIN;
            match found {
                Ok(true) if is_fixed || is_fresh => return read(),
                Ok(_) if is_fixed || deadline.has_passed() => {
                    return Err(self.first().site.moved("read from"));
                }
                Err(error) if is_fixed || deadline.has_passed() => return Err(error),
                _ => {}
            }
            self.begin_again();
            // What is not found is looked for again.
            drop(self.block_on(async {
                sleep(PAUSE).await;
                self.look().await
            }));
        }
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

    /// Returns what shards have left behind, or what was copied by a move that was given up.
    ///
    /// The row that a move begins at has its ID before the one that it leads to. So a move is given
    /// up if the first, read after the second, has another ID. It never gets this one again.
    pub(super) async fn left(&self) -> Result<Vec<Left>> {
        let places = self.all_places().await?;
        let home_of = |places: &[(usize, Place)], shard| {
            let mut homes = places.iter().map(|(_, place)| place);
            let home = homes.find(|place| place.shard == shard && place.here);
            home.map(|home| home.by)
        };
        let mut left = Vec::new();
        let mut arriving = Vec::new();
        for (nth, place) in places.iter().filter(|(_, place)| !place.here) {
            let Some(by) = place.by else { continue };
            let rows = Left {
                database: *nth,
                shard: place.shard,
                by,
            };
            if place.moved_to.is_some() {
                left.push(rows);
            } else if home_of(&places, place.shard) != Some(Some(by)) {
                arriving.push(rows);
            }
        }
        if !arriving.is_empty() {
            // A primary that was replaced does not know of moves that began since.
            for database in &self.all {
                database.pool.kept(Ask::Barrier, &[]).await?;
            }
            let places = self.all_places().await?;
            let is_given_up =
                |rows: &Left| home_of(&places, rows.shard).is_some_and(|by| by != Some(rows.by));
            left.extend(arriving.into_iter().filter(is_given_up));
        }
        Ok(left)
    }

    /// Returns what the databases say of where the shards are, if all of them do.
    async fn all_places(&self) -> Result<Vec<(usize, Place)>> {
        let (places, failed) = self.places().await;
        failed.map_or(Ok(places), Err)
    }

    /// Returns the shards, with what the rows of each count.
    pub(super) fn list(&self) -> Result<Vec<Shard>> {
        let mut shards = self.over_all(|| {
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
            Ok(shards)
        })?;
        shards.sort_unstable_by_key(|shard| shard.number);
        Ok(shards)
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
