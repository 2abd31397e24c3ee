//! Reads records and states out of the tables, each from the database that has the session.

use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::runtime::{Handle, Runtime};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::codec::{Record, SessionState};
use crate::model::{Error, EventId, Options, Result, Seq, SessionId};
use crate::postgres::connect::Site;
use crate::postgres::databases::Databases;
use crate::postgres::news::Bell;
use crate::postgres::pool::{Ask, Snapshots};
use crate::postgres::sql::{self, Id};
use crate::read::{Follower, PageBuilder, Piece, RecordSlice, RecordVisitor, Records};
use crate::sync::{Instant, Mutex, Waiter};

/// The threads of the runtime. They encode, decode and drive connections.
const RUNTIME_THREADS: usize = 2;

/// The threads for reads that tasks wait for, at most.
const BLOCKING_THREADS: usize = 16;

/// The bytes of records that one statement reads, about.
pub(super) const SLICE_BYTES: i64 = 1024 * 1024;

/// Whether there may be more after these rows, of records that end at a number or at
/// [`SLICE_BYTES`].
pub(super) fn is_full(rows: &[Row], at_once: i64) -> bool {
    let bytes = rows.iter().map(|row| row.get::<_, &[u8]>("record").len());
    let bytes: usize = bytes.sum();
    rows.len() as u64 >= at_once.unsigned_abs() || bytes as u64 >= SLICE_BYTES.unsigned_abs()
}

/// What is stored, as readers see it.
pub(super) struct Tables {
    pub databases: Arc<Databases>,
    pub bell: Arc<Bell>,
    pub runtime: OwnRuntime,
    pub closed: Mutex<Closed>,
    /// Whether the options have a clock, which then stands in for the database's.
    pub has_own_clock: bool,
}

/// The runtime of a log. It outlives the log for as long as anything still reads.
pub(super) struct OwnRuntime {
    pub handle: Handle,
    /// `None` once it is dropped.
    runtime: Option<Runtime>,
}

impl OwnRuntime {
    fn new(runtime: Runtime) -> Self {
        Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        }
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropped as usual it would wait, which a task of another runtime must not.
            runtime.shutdown_background();
        }
    }
}

/// What this server knows of where the shards are closed.
pub(super) struct Closed {
    /// All of them are closed up to this ID.
    pub through: EventId,
    /// When it closed those at rest.
    pub asked: Option<Instant>,
}

impl Closed {
    fn nowhere() -> Self {
        Self {
            through: EventId::from_u128(0),
            asked: None,
        }
    }
}

/// What the rows of all shards come to, as readers see them.
pub(super) struct ShardRow {
    pub last_id: EventId,
    pub events: u64,
    pub erased_through: EventId,
    pub retains: bool,
    /// The time by the clock of the database, in milliseconds since 1970.
    pub now_ms: u64,
}

impl Default for ShardRow {
    fn default() -> Self {
        let none = EventId::from_u128(0);
        Self {
            last_id: none,
            events: 0,
            erased_through: none,
            retains: false,
            now_ms: 0,
        }
    }
}

impl Tables {
    /// Makes what reads the tables at a URL, and in the further databases of the options. It
    /// connects when it is asked something.
    pub(super) fn new(url: &str, options: &Options, snapshots: Snapshots) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("log-postgres")
            .enable_all()
            .build()
            .map_err(|error| Error::Io {
                doing: "start a runtime for",
                path: "a log on PostgreSQL".into(),
                source: Arc::new(error),
            })?;
        let runtime = OwnRuntime::new(runtime);
        let databases = Databases::new(&options.urls(url), options, &runtime.handle, snapshots)?;
        let databases = Arc::new(databases);
        Ok(Self {
            bell: Bell::new(&databases),
            databases,
            runtime,
            closed: Mutex::new(Closed::nowhere()),
            has_own_clock: options.has_own_clock,
        })
    }

    /// Returns what the rows of all shards come to.
    pub(super) fn shard(&self) -> Result<ShardRow> {
        self.databases.over_all(|| {
            let mut all = ShardRow::default();
            for database in self.databases.all() {
                let rows = database.pool.rows(Ask::Shard, &[])?;
                // There is none where there is no shard.
                let Some(row) = rows.first() else { continue };
                all.last_id = all.last_id.max(row.get::<_, Id>(0).0);
                all.events += row.get::<_, i64>(1).unsigned_abs();
                all.erased_through = all.erased_through.max(row.get::<_, Id>(3).0);
                all.retains |= row.get::<_, bool>(4);
                all.now_ms = all.now_ms.max(row.get::<_, i64>(5).unsigned_abs());
            }
            Ok(all)
        })
    }

    /// Returns the record with the lowest last ID that is at least this one, of each database.
    pub(super) fn at_or_after(&self, id: EventId) -> Result<Vec<Arc<Record>>> {
        let databases = self.databases.all().iter();
        let found = databases.map(|database| {
            let rows = database.pool.rows(Ask::AtOrAfter, &[&Id(id)])?;
            let bytes = rows.first().map(|row| row.get(1));
            bytes.map(|bytes| record(&database.site, bytes)).transpose()
        });
        found.filter_map(Result::transpose).collect()
    }
}

pub(super) fn record(site: &Site, bytes: &[u8]) -> Result<Arc<Record>> {
    let record = sql::record(bytes).map_err(|fault| fault.at(&site.place, 0))?;
    Ok(Arc::new(record))
}

pub(super) fn state(site: &Site, bytes: &[u8]) -> Result<SessionState> {
    SessionState::decode(bytes).map_err(|fault| fault.at(&site.place, 0))
}

/// What the reading half of the engine is shared as.
#[derive(Clone)]
pub(super) struct Shared(pub Arc<Tables>);

impl Records for Shared {
    fn last_id(&self) -> Result<EventId> {
        Ok(self.0.shard()?.last_id)
    }

    fn removals(&self) -> u64 {
        self.0.bell.removals()
    }

    fn knows_removals(&self, read_at: Instant) -> bool {
        self.0.bell.knows_removals(read_at)
    }

    fn now_ms(&self) -> Result<Option<u64>> {
        if self.0.has_own_clock {
            return Ok(None);
        }
        Ok(Some(self.0.shard()?.now_ms))
    }

    /// What is erased is decided under the lock under which forks are made, so none is missed.
    fn forks_published(&self) -> u64 {
        0
    }

    fn state(
        &self,
        session: &SessionId,
        _ahead: Option<RangeInclusive<Seq>>,
    ) -> Result<SessionState> {
        let databases = &self.0.databases;
        let shard = databases.first().site.shard_of(session);
        let params: [&(dyn ToSql + Sync); 2] = [&session.as_str(), &shard];
        let found = databases.read_of(session, Ask::State, &params, |site, rows| {
            let row = rows.first().filter(|row| row.get(1));
            row.map(|row| {
                let bytes = row.get::<_, Option<&[u8]>>(0);
                bytes.map_or_else(|| Ok(SessionState::default()), |bytes| state(site, bytes))
            })
            .transpose()
        })?;
        found.ok_or_else(|| databases.of(session).site.moved("read from"))
    }

    fn piece<'a>(&'a self, session: &SessionId, generation: u32) -> Box<dyn Piece + 'a> {
        Box::new(TablePiece {
            databases: &self.0.databases,
            session: session.clone(),
            generation: generation.cast_signed(),
        })
    }

    fn record_of(&self, id: EventId) -> Result<Option<RecordSlice>> {
        let found = self.0.databases.over_all(|| {
            let mut records = self.0.at_or_after(id)?.into_iter();
            Ok(records.find(|record| record.seq_of(id).is_some()))
        })?;
        Ok(found.map(|record| RecordSlice::Recent(vec![record])))
    }

    fn each_from(&self, from: EventId, visit: &mut RecordVisitor<'_>) -> Result<Option<EventId>> {
        self.0.each_from(from, visit)
    }

    /// A fork is noted where it was made and wherever it was since.
    fn forks(&self, session: &SessionId, generation: u32) -> Result<Vec<SessionId>> {
        let params: [&(dyn ToSql + Sync); 2] = [&session.as_str(), &generation.cast_signed()];
        let mut forks = Vec::new();
        for database in self.0.databases.all() {
            for row in &database.pool.rows(Ask::Forks, &params)? {
                forks.push(SessionId::new(row.get::<_, &str>(0))?);
            }
        }
        forks.sort_unstable();
        forks.dedup();
        Ok(forks)
    }

    fn was_committed(&self, id: EventId) -> Result<bool> {
        self.0.databases.over_all(|| {
            if self
                .0
                .at_or_after(id)?
                .iter()
                .any(|record| record.base <= id)
            {
                return Ok(true);
            }
            // The IDs of what was erased are not known any more.
            let none = EventId::from_u128(0);
            Ok(id > none && id <= self.0.shard()?.erased_through)
        })
    }

    fn walk(&self, page: &mut PageBuilder) -> Result<()> {
        self.0.walk(page)
    }

    fn follow(&self, session: &SessionId) -> Result<Box<dyn Follower>> {
        self.0.bell.follow(session);
        Ok(Box::new(TableFollower {
            tables: self.clone(),
            session: session.clone(),
            mark: 0,
        }))
    }

    fn follow_all(&self) {
        self.0.bell.follow_all();
    }

    fn unfollow_all(&self) {
        self.0.bell.unfollow_all();
    }

    fn wait_for_any(&self, seen: EventId, waiter: &Arc<Waiter>) -> bool {
        self.0.bell.wait_for_any(seen, waiter)
    }

    fn forget_any(&self, waiter: &Arc<Waiter>) {
        self.0.bell.forget_any(waiter);
    }

    fn at_rest(&self, read: &mut dyn FnMut()) {
        let _resting = self.0.databases.at_rest();
        read();
    }

    fn reads_block(&self) -> bool {
        true
    }

    fn aside(&self, read: Box<dyn FnOnce() + Send>) {
        self.0.runtime.handle.spawn_blocking(read);
    }
}

struct TablePiece<'a> {
    databases: &'a Databases,
    session: SessionId,
    generation: i32,
}

impl Piece for TablePiece<'_> {
    fn slice(&mut self, seq: Seq, range: &RangeInclusive<Seq>) -> Result<RecordSlice> {
        // The end of the range from which it is read tells the direction.
        let ask = if seq == *range.start() {
            Ask::Up
        } else {
            Ask::Down
        };
        let (from, to) = (range.start().cast_signed(), range.end().cast_signed());
        let params: [&(dyn ToSql + Sync); 5] = [
            &self.session.as_str(),
            &self.generation,
            &from,
            &to,
            &SLICE_BYTES,
        ];
        let databases = self.databases;
        let found = databases.read_of(&self.session, ask, &params, |site, rows| {
            let mut records = Vec::new();
            for row in rows {
                records.push(record(site, row.get(0))?);
            }
            if matches!(ask, Ask::Down) {
                records.reverse();
            }
            let mut places = records.iter().map(|record| record.first..=record.last());
            let has_it = places.any(|place| place.contains(&seq));
            Ok(has_it.then_some(records))
        })?;
        found.map(RecordSlice::Recent).ok_or_else(|| {
            let what = format!("session {} has no event at seq {seq}", self.session);
            let site = &databases.of(&self.session).site;
            if databases.are_several() {
                // It may have been erased since the state was read in another database.
                site.io("read from", what)
            } else {
                Error::corrupt(site.place.clone(), 0, what)
            }
        })
    }
}

struct TableFollower {
    tables: Shared,
    session: SessionId,
    /// The mark of the session before its state was read last.
    mark: u64,
}

impl Follower for TableFollower {
    fn session(&self) -> &SessionId {
        &self.session
    }

    fn state(&mut self) -> Result<SessionState> {
        self.mark = self.tables.0.bell.mark(&self.session);
        self.tables.state(&self.session, None)
    }

    fn wait(&self, waiter: &Arc<Waiter>, _is_at_the_end: &dyn Fn(&SessionState) -> bool) -> bool {
        self.tables.0.bell.wait(&self.session, self.mark, waiter)
    }

    fn forget(&self, waiter: &Arc<Waiter>) {
        self.tables.0.bell.forget(&self.session, waiter);
    }
}

impl Drop for TableFollower {
    fn drop(&mut self) {
        self.tables.0.bell.unfollow(&self.session);
    }
}
