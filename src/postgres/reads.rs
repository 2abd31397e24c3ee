//! Reads records and states out of the tables.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::codec::{Fault, Record, SessionState};
use crate::model::{Error, EventId, Options, Result, Seq, SessionId};
use crate::postgres::connect::Site;
use crate::postgres::news::Bell;
use crate::postgres::pool::{Ask, Pool, Snapshots};
use crate::postgres::sql::{self, Id};
use crate::read::{
    Direction, Follower, PageBuilder, Piece, RecordSlice, RecordVisitor, Records, SessionCursor,
    SessionOrder, fault_in_memory,
};
use crate::sync::{Instant, Mutex, Waiter};

/// The threads of the runtime. They encode, decode and drive connections.
const RUNTIME_THREADS: usize = 2;

/// The threads for reads that tasks wait for, at most.
const BLOCKING_THREADS: usize = 16;

/// The bytes of records that one statement reads, about.
pub(super) const SLICE_BYTES: i64 = 1024 * 1024;

/// How often a server closes shards for its readers of the feed.
const CLOSE_EVERY: Duration = Duration::from_millis(10);

/// The sessions that one statement lists.
const LISTED_AT_ONCE: i64 = 256;

/// Whether there may be more after these rows, of records that end at a number or at
/// [`SLICE_BYTES`].
pub(super) fn is_full(rows: &[Row], at_once: i64) -> bool {
    let bytes = rows.iter().map(|row| row.get::<_, &[u8]>("record").len());
    let bytes: usize = bytes.sum();
    rows.len() as u64 >= at_once.unsigned_abs() || bytes as u64 >= SLICE_BYTES.unsigned_abs()
}

/// What is stored, as readers see it.
pub(super) struct Tables {
    pub site: Arc<Site>,
    pub pool: Pool,
    pub bell: Arc<Bell>,
    pub runtime: OwnRuntime,
    closed: Mutex<Closed>,
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
struct Closed {
    /// All of them are closed up to this ID.
    through: EventId,
    /// When it closed those at rest.
    asked: Option<Instant>,
}

/// The shard's row, as readers see it.
pub(super) struct ShardRow {
    pub last_id: EventId,
    pub events: u64,
    pub retains: bool,
}

impl Tables {
    /// Makes what reads the tables at a URL. It connects when it is asked something.
    pub(super) fn new(url: &str, options: &Options, snapshots: Snapshots) -> Result<Self> {
        let site = Site::new(url, options.schema.clone(), options.durability)?;
        let site = Arc::new(site);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("log-postgres")
            .enable_all()
            .build()
            .map_err(|error| site.io("start a runtime for", error.to_string()))?;
        let runtime = OwnRuntime::new(runtime);
        Ok(Self {
            pool: Pool::new(&site, runtime.handle.clone(), options.stall_wait, snapshots)?,
            bell: Bell::new(&site),
            site,
            runtime,
            closed: Mutex::new(Closed {
                through: EventId::from_u128(0),
                asked: None,
            }),
            has_own_clock: options.has_own_clock,
        })
    }

    pub(super) fn shard(&self) -> Result<Option<ShardRow>> {
        let rows = self.pool.rows(Ask::Shard, &[])?;
        Ok(rows.first().map(|row| ShardRow {
            last_id: row.get::<_, Id>(0).0,
            events: row.get::<_, i64>(1).unsigned_abs(),
            retains: row.get(4),
        }))
    }

    /// Closes the shards at rest for a read of the feed from an ID on, unless there is more to read
    /// already. It takes their locks for as long as a commit takes, so it is done once in a while.
    fn close_shards(&self, from: EventId) -> Result<()> {
        let mut closed = self.closed.lock();
        let is_soon = closed.asked.is_some_and(|at| at.elapsed() < CLOSE_EVERY);
        if from <= closed.through || is_soon {
            return Ok(());
        }
        closed.asked = Some(Instant::now());
        drop(closed);
        self.pool.close_shards()
    }

    fn note_closed(&self, through: EventId) {
        let mut closed = self.closed.lock();
        closed.through = closed.through.max(through);
    }

    pub(super) fn fault(&self, fault: Fault) -> Error {
        fault.at(&self.site.place, 0)
    }

    pub(super) fn record(&self, bytes: &[u8]) -> Result<Arc<Record>> {
        let record = sql::record(bytes).map_err(|fault| self.fault(fault))?;
        Ok(Arc::new(record))
    }

    pub(super) fn listed(&self, row: &Row) -> Result<(SessionId, SessionState)> {
        let session = SessionId::new(row.get::<_, &str>(0))?;
        let state = SessionState::decode(row.get(1)).map_err(|fault| self.fault(fault))?;
        Ok((session, state))
    }

    /// Visits sessions in one order, `next` being the statement for what comes after a place.
    fn walk_by_place(&self, page: &mut PageBuilder) -> Result<()> {
        let (order, direction) = (page.query().order(), page.query().direction());
        let ask = match (order, direction) {
            (SessionOrder::Activity, Direction::Ascending) => Ask::ByActivityUp,
            (SessionOrder::Activity, Direction::Descending) => Ask::ByActivityDown,
            (_, Direction::Ascending) => Ask::ByCreationUp,
            (_, Direction::Descending) => Ask::ByCreationDown,
        };
        let mut at = match (page.query().cursor(), direction) {
            (Some(SessionCursor::At(id)), _) => *id,
            (_, Direction::Ascending) => EventId::from_u128(0),
            (_, Direction::Descending) => EventId::from_u128(u128::MAX),
        };
        loop {
            let rows = self.pool.rows(ask, &[&Id(at), &LISTED_AT_ONCE])?;
            for row in &rows {
                let (session, state) = self.listed(row)?;
                at = match order {
                    SessionOrder::Activity => state.active_id,
                    _ => state.created_id,
                };
                if page.visit(&session, &state, SessionCursor::At(at)) {
                    return Ok(());
                }
            }
            if (rows.len() as u64) < LISTED_AT_ONCE.unsigned_abs() {
                return Ok(());
            }
        }
    }

    fn walk_by_id(&self, page: &mut PageBuilder) -> Result<()> {
        let query = page.query().clone();
        let prefix = query.prefix_text();
        let after = match query.cursor() {
            Some(SessionCursor::Id(id)) => Some(id.as_str().to_owned()),
            _ => None,
        };
        let (mut ask, mut at) = match query.direction() {
            Direction::Ascending => match after.filter(|after| after.as_str() >= prefix) {
                Some(after) => (Ask::ByIdUp, after),
                None => (Ask::ByIdFrom, prefix.to_owned()),
            },
            // The last character of all, as often as an ID has room for it, comes after every ID
            // with the prefix.
            Direction::Descending => {
                let last = char::MAX.to_string();
                let end = format!(
                    "{prefix}{}",
                    last.repeat(SessionId::BYTES_MAX / last.len() + 1)
                );
                (
                    Ask::ByIdDown,
                    after.map_or(end.clone(), |after| after.min(end)),
                )
            }
        };
        loop {
            let rows = self.pool.rows(ask, &[&at, &LISTED_AT_ONCE])?;
            for row in &rows {
                let (session, state) = self.listed(row)?;
                if !session.as_str().starts_with(prefix) {
                    return Ok(());
                }
                at = session.to_string();
                if page.visit(&session, &state, SessionCursor::Id(session.clone())) {
                    return Ok(());
                }
            }
            if (rows.len() as u64) < LISTED_AT_ONCE.unsigned_abs() {
                return Ok(());
            }
            if query.direction() == Direction::Ascending {
                ask = Ask::ByIdUp;
            }
        }
    }
}

/// What the reading half of the engine is shared as.
#[derive(Clone)]
pub(super) struct Shared(pub Arc<Tables>);

impl Records for Shared {
    fn last_id(&self) -> Result<EventId> {
        let rows = self.0.pool.rows(Ask::Shard, &[])?;
        let last = rows.first().map(|row| row.get::<_, Id>(0).0);
        Ok(last.unwrap_or(EventId::from_u128(0)))
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
        let rows = self.0.pool.rows(Ask::Shard, &[])?;
        Ok(rows.first().map(|row| row.get::<_, i64>(5).unsigned_abs()))
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
        let rows = self.0.pool.rows(Ask::State, &[&session.as_str()])?;
        match rows.first() {
            Some(row) => SessionState::decode(row.get(0)).map_err(|fault| self.0.fault(fault)),
            None => Ok(SessionState::default()),
        }
    }

    fn piece<'a>(&'a self, session: &SessionId, generation: u32) -> Box<dyn Piece + 'a> {
        Box::new(TablePiece {
            tables: &self.0,
            session: session.clone(),
            generation: generation.cast_signed(),
        })
    }

    fn record_of(&self, id: EventId) -> Result<Option<RecordSlice>> {
        let rows = self.0.pool.rows(Ask::AtOrAfter, &[&Id(id)])?;
        let bytes = rows.first().map(|row| row.get::<_, &[u8]>(1));
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let record = self.0.record(bytes)?;
        let has_it = record.seq_of(id).is_some();
        Ok(has_it.then(|| RecordSlice::Recent(vec![record])))
    }

    fn each_from(&self, from: EventId, visit: &mut RecordVisitor<'_>) -> Result<Option<EventId>> {
        let mut from = from;
        let mark = self.0.bell.feed_mark();
        // A read that has begun sees its moment, whatever is closed for it.
        let follows = self.0.site.shards() > 1 && !Pool::has_begun();
        if follows {
            self.0.close_shards(from)?;
        }
        loop {
            let rows = self.0.pool.rows(Ask::Feed, &[&Id(from), &SLICE_BYTES])?;
            for row in &rows {
                let (Some(id), Some(record)) = (row.get::<_, Option<Id>>(1), row.get(2)) else {
                    let closed = row.get::<_, Id>(0).0;
                    if follows {
                        self.0.note_closed(closed);
                        let is_late = closed < row.get::<_, Id>(3).0;
                        self.0.bell.note_closed(mark, closed);
                        if is_late {
                            self.0.bell.note_late();
                        }
                    }
                    return Ok(Some(closed));
                };
                from = id.0.plus(1);
                if visit(&*self.0.record(record)?, &fault_in_memory)?.is_break() {
                    return Ok(None);
                }
            }
        }
    }

    fn forks(&self, session: &SessionId, generation: u32) -> Result<Vec<SessionId>> {
        let params: [&(dyn ToSql + Sync); 2] = [&session.as_str(), &generation.cast_signed()];
        let rows = self.0.pool.rows(Ask::Forks, &params)?;
        rows.iter()
            .map(|row| SessionId::new(row.get::<_, &str>(0)))
            .collect()
    }

    fn was_committed(&self, id: EventId) -> Result<bool> {
        let rows = self.0.pool.rows(Ask::AtOrAfter, &[&Id(id)])?;
        if rows.first().is_some_and(|row| row.get::<_, Id>(0).0 <= id) {
            return Ok(true);
        }
        // The IDs of what was erased are not known any more.
        let rows = self.0.pool.rows(Ask::Shard, &[])?;
        let none = EventId::from_u128(0);
        Ok(rows
            .first()
            .is_some_and(|row| id > none && id <= row.get::<_, Id>(3).0))
    }

    fn walk(&self, page: &mut PageBuilder) -> Result<()> {
        match page.query().order() {
            SessionOrder::Id => self.0.walk_by_id(page),
            _ => self.0.walk_by_place(page),
        }
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
        self.0.pool.at_rest(read);
    }

    fn reads_block(&self) -> bool {
        true
    }

    fn aside(&self, read: Box<dyn FnOnce() + Send>) {
        self.0.runtime.handle.spawn_blocking(read);
    }
}

struct TablePiece<'a> {
    tables: &'a Tables,
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
        let rows = self.tables.pool.rows(ask, &params)?;
        let mut records = Vec::with_capacity(rows.len());
        for row in &rows {
            records.push(self.tables.record(row.get(0))?);
        }
        if matches!(ask, Ask::Down) {
            records.reverse();
        }
        if records
            .iter()
            .any(|record| (record.first..=record.last()).contains(&seq))
        {
            return Ok(RecordSlice::Recent(records));
        }
        let what = format!("session {} has no event at seq {seq}", self.session);
        Err(Error::corrupt(self.tables.site.place.clone(), 0, what))
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
