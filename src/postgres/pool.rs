//! Connections for reads, and reads that see one moment.
//!
//! Each connection commits once before it is used: what is seen on it is then on a quorum. A read
//! [at rest](crate::read::Store::at_rest) takes one connection and one snapshot of a database for
//! all of its statements. So what is erased meanwhile is not missed by it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
use futures_util::future::{join, join_all};
use tokio::runtime::Handle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::model::{Error, Result};
use crate::postgres::connect::{LOADED, Link, Site, deadline_after};
use crate::postgres::sql;
use crate::sync::{Deadline, Waiter};

/// The connections for reads of one process, at most.
const CONNECTIONS_MAX: usize = 16;

/// How long a statement may take, at most.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// How long a read may wait for a connection and for rows, at least. Less is too little to make a
/// connection in.
const WAIT_MIN: Duration = Duration::from_secs(2);

/// How long a commit may take that shows whether appends can land.
const COMMIT_WITHIN: Duration = Duration::from_secs(2);

/// The pause after a connection failed.
const PAUSE: Duration = Duration::from_millis(50);

/// What a log of several shards asks by another statement.
pub(super) const ASKED_OTHERWISE: [(Ask, &str); 12] = [
    (Ask::State, sql::STATE_IN),
    (Ask::AtOrAfter, sql::AT_OR_AFTER_IN),
    (Ask::Feed, sql::FEED_OF_ALL),
    (Ask::Shard, sql::SHARDS),
    (Ask::Close, sql::CLOSE),
    (Ask::ByIdUp, sql::BY_ID_UP_IN),
    (Ask::ByIdFrom, sql::BY_ID_FROM_IN),
    (Ask::ByIdDown, sql::BY_ID_DOWN_IN),
    (Ask::ByActivityUp, sql::BY_ACTIVITY_UP_IN),
    (Ask::ByActivityDown, sql::BY_ACTIVITY_DOWN_IN),
    (Ask::ByCreationUp, sql::BY_CREATION_UP_IN),
    (Ask::ByCreationDown, sql::BY_CREATION_DOWN_IN),
];

/// How long reads at rest take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Snapshots {
    /// As long as the statements of a call.
    Short,
    /// As long as somebody takes to receive a whole log.
    Long,
}

impl Snapshots {
    fn begin(self) -> &'static str {
        match self {
            Snapshots::Short => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Snapshots::Long => {
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                 SET LOCAL idle_in_transaction_session_timeout = 0"
            }
        }
    }
}

macro_rules! statements {
    ($($name:ident $text:ident,)*) => {
        /// A statement that reads.
        #[derive(Debug, Clone, Copy)]
        pub(super) enum Ask {
            $($name,)*
        }

        pub(super) const TEXTS: &[&str] = &[$(sql::$text,)*];

        const ASKS: &[Ask] = &[$(Ask::$name,)*];
    };
}

statements! {
    State STATE,
    Up UP,
    Down DOWN,
    AtOrAfter AT_OR_AFTER,
    Feed FEED,
    Forks FORKS,
    Shard SHARD,
    Close CLOSE_NOTHING,
    Places PLACES,
    Counts COUNTS,
    Arrive ARRIVE,
    Pins PINS,
    Barrier BARRIER,
    Unpin UNPIN,
    Revoke REVOKE,
    Removed REMOVED,
    Due DUE,
    Size SIZE,
    Items ITEMS,
    Erasable ERASABLE,
    ErasableChanges ERASABLE_CHANGES,
    ByIdUp BY_ID_UP,
    ByIdFrom BY_ID_FROM,
    ByIdDown BY_ID_DOWN,
    ByActivityUp BY_ACTIVITY_UP,
    ByActivityDown BY_ACTIVITY_DOWN,
    ByCreationUp BY_CREATION_UP,
    ByCreationDown BY_CREATION_DOWN,
}

impl Ask {
    fn text(self, shards: u32) -> &'static str {
        let of_several = ASKED_OTHERWISE.iter().filter(|_| shards > 1);
        let mut of_several = of_several.filter(|(ask, _)| *ask as usize == self as usize);
        let text = of_several.next().map(|(_, text)| *text);
        text.unwrap_or_else(|| TEXTS.get(self as usize).copied().unwrap_or_default())
    }
}

/// A connection with its statements.
pub(super) struct Reader {
    link: Link,
    statements: Vec<Statement>,
}

pub(super) struct Readers {
    site: Arc<Site>,
}

impl managed::Manager for Readers {
    type Type = Reader;
    type Error = Error;

    async fn create(&self) -> Result<Reader> {
        let link = self.site.connect(|| None).await?;
        let failed = |error: tokio_postgres::Error| self.site.error("prepare to read", &error);
        link.commit_alone(&self.site, sql::BARRIER).await?;
        let texts = ASKS.iter().map(|ask| ask.text(self.site.shards()));
        let prepared = join_all(texts.map(|text| link.client.prepare(text))).await;
        let statements = prepared.into_iter().collect::<Result<Vec<_>, _>>();
        let statements = statements.map_err(failed)?;
        Ok(Reader { link, statements })
    }

    async fn recycle(&self, reader: &mut Reader, _: &Metrics) -> RecycleResult<Error> {
        if self.site.is_current(&reader.link) {
            Ok(())
        } else {
            Err(RecycleError::message("it leads to no primary"))
        }
    }
}

/// What a statement sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    Now,
    /// What it commits itself.
    Kept,
    /// What the later statements of its read see too.
    AtRest,
}

/// Reads one database, on threads that may block.
pub(super) struct Pool {
    /// Its place among the databases of the log.
    nth: usize,
    site: Arc<Site>,
    readers: managed::Pool<Readers>,
    runtime: Handle,
    wait: Duration,
    snapshots: Snapshots,
    /// The connection that shows whether appends can land. Reads need none of it.
    checks: tokio::sync::Mutex<Option<Link>>,
}

thread_local! {
    /// The snapshots of the read at rest on this thread, by the place of the database.
    static AT_REST: RefCell<Option<HashMap<usize, Snapshot>>> = const { RefCell::new(None) };
}

/// A read at rest in one database.
#[derive(Default)]
enum Snapshot {
    /// It takes a connection when it reads first.
    #[default]
    Fresh,
    Open(Object<Readers>),
    /// Its connection was lost, and with it the moment that it saw. So it reads no more: each
    /// further statement fails as the one did that lost it.
    Broken(Error),
}

/// The read at rest on this thread.
pub(super) struct AtRest;

impl AtRest {
    pub(super) fn begin() {
        AT_REST.set(Some(HashMap::new()));
    }

    pub(super) fn is_set() -> bool {
        AT_REST.with_borrow(Option::is_some)
    }

    /// Whether it has fixed the moment that it sees of a database.
    pub(super) fn has_begun() -> bool {
        let is_fixed = |snapshot: &Snapshot| !matches!(snapshot, Snapshot::Fresh);
        AT_REST.with_borrow(|all| all.iter().flat_map(HashMap::values).any(is_fixed))
    }

    /// Ends it. Returns its connections, which have to be given back.
    pub(super) fn end() -> Vec<(usize, Object<Readers>)> {
        let ended = AT_REST.with_borrow_mut(Option::take).unwrap_or_default();
        let open = ended
            .into_iter()
            .filter_map(|(nth, snapshot)| match snapshot {
                Snapshot::Open(reader) => Some((nth, reader)),
                _ => None,
            });
        open.collect()
    }

    fn take(nth: usize) -> Option<Snapshot> {
        AT_REST.with_borrow_mut(|all| Some(all.as_mut()?.remove(&nth).unwrap_or_default()))
    }

    fn put(nth: usize, snapshot: Snapshot) {
        AT_REST.with_borrow_mut(|all| {
            if let Some(all) = all {
                all.insert(nth, snapshot);
            }
        });
    }
}

impl Pool {
    pub(super) fn new(
        nth: usize,
        site: &Arc<Site>,
        runtime: Handle,
        wait: Duration,
        snapshots: Snapshots,
    ) -> Result<Self> {
        let readers = Readers {
            site: Arc::clone(site),
        };
        let readers = managed::Pool::builder(readers)
            .max_size(CONNECTIONS_MAX)
            .build()
            .map_err(|error| site.io("prepare to read", error.to_string()))?;
        Ok(Self {
            nth,
            site: Arc::clone(site),
            readers,
            runtime,
            wait: wait.max(WAIT_MIN),
            snapshots,
            checks: tokio::sync::Mutex::default(),
        })
    }

    /// Gives back the connection of a snapshot, without waiting for its end.
    pub(super) fn end(&self, reader: Object<Readers>) {
        self.runtime.spawn(async move {
            let ended = timeout(READ_WITHIN, reader.link.client.batch_execute("COMMIT"));
            if !matches!(ended.await, Ok(Ok(()))) {
                drop(Object::take(reader));
            }
        });
    }

    /// Returns the rows of a statement.
    pub(super) fn rows(&self, ask: Ask, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        match AtRest::take(self.nth) {
            Some(mut snapshot) => {
                let rows = self.block_on(self.rows_of(&mut snapshot, ask, params));
                AtRest::put(self.nth, snapshot);
                rows
            }
            None => self.block_on(self.now(ask, params)),
        }
    }

    /// Returns the rows of a statement as they are now, also within a read at rest.
    pub(super) async fn now(&self, ask: Ask, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let (reader, rows) = self.first(ask, params, Sight::Now).await?;
        drop(reader);
        Ok(rows)
    }

    /// Commits a statement, and checks that it is kept.
    pub(super) async fn kept(&self, ask: Ask, params: &[&(dyn ToSql + Sync)]) -> Result<()> {
        let (reader, _none) = self.first(ask, params, Sight::Kept).await?;
        drop(reader);
        Ok(())
    }

    async fn rows_of(
        &self,
        snapshot: &mut Snapshot,
        ask: Ask,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        match snapshot {
            Snapshot::Fresh => {
                let (reader, rows) = self.first(ask, params, Sight::AtRest).await?;
                *snapshot = Snapshot::Open(reader);
                Ok(rows)
            }
            Snapshot::Open(reader) => {
                let limit = Instant::now() + self.limit();
                let rows = self.within(limit, reader.ask(ask, params)).await;
                if let Err(error) = &rows {
                    let broken = Snapshot::Broken(error.clone());
                    if let Snapshot::Open(reader) = std::mem::replace(snapshot, broken) {
                        drop(Object::take(reader));
                    }
                }
                rows
            }
            Snapshot::Broken(error) => Err(error.clone()),
        }
    }

    /// Runs the first statement of a read. Nothing was read yet, so it is tried again after a
    /// failover.
    async fn first(
        &self,
        ask: Ask,
        params: &[&(dyn ToSql + Sync)],
        sight: Sight,
    ) -> Result<(Object<Readers>, Vec<Row>)> {
        let deadline = deadline_after(self.wait);
        loop {
            let error = match self.try_first(ask, params, sight, deadline).await {
                Ok(read) => return Ok(read),
                Err(error) => error,
            };
            if !Site::may_pass(&error) || Instant::now() > deadline {
                return Err(error);
            }
            sleep(PAUSE).await;
        }
    }

    async fn try_first(
        &self,
        ask: Ask,
        params: &[&(dyn ToSql + Sync)],
        sight: Sight,
        deadline: Instant,
    ) -> Result<(Object<Readers>, Vec<Row>)> {
        let taken = timeout_at(deadline, self.readers.get()).await;
        let reader = match taken {
            Ok(Ok(reader)) => reader,
            Ok(Err(managed::PoolError::Backend(error))) => return Err(error),
            Ok(Err(error)) => return Err(self.site.io("read from", error.to_string())),
            Err(_elapsed) => return Err(self.site.io("read from", "no connection is free")),
        };
        let limit = deadline.min(Instant::now() + READ_WITHIN);
        if sight == Sight::Kept {
            return match timeout_at(limit, reader.commit(&self.site, ask, params)).await {
                Ok(Ok(rows)) => Ok((reader, rows)),
                Ok(Err(error)) => {
                    drop(Object::take(reader));
                    Err(error)
                }
                Err(_elapsed) => {
                    drop(Object::take(reader));
                    Err(self.site.io("read from", "the server takes too long"))
                }
            };
        }
        let read = self.within(limit, async {
            if sight == Sight::Now {
                return reader.ask(ask, params).await;
            }
            let text = self.snapshots.begin();
            let opening = async { reader.link.client.batch_execute(text).await };
            let (begun, rows) = join(opening, reader.ask(ask, params)).await;
            begun.and(rows)
        });
        match read.await {
            Ok(rows) => Ok((reader, rows)),
            Err(error) => {
                drop(Object::take(reader));
                Err(error)
            }
        }
    }

    /// Makes a commit, and checks that it is kept.
    pub(super) fn check_commits(&self) -> Result<()> {
        let source = match self.block_on(self.commit_once()) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if !Site::may_pass(&error) => return Err(error),
            Ok(Err(error)) => Some(Arc::new(error)),
            Err(_elapsed) => None,
        };
        Err(Error::Stalled {
            waited: COMMIT_WITHIN,
            source,
        })
    }

    async fn commit_once(&self) -> Result<Result<()>, Elapsed> {
        timeout(COMMIT_WITHIN, async {
            // One at a time. After the time, or an error, the connection is not used again.
            let mut kept = self.checks.lock().await;
            let link = match kept.take() {
                Some(link) if self.site.is_current(&link) => link,
                _ => self.site.connect(|| None).await?,
            };
            link.commit_alone(&self.site, sql::BARRIER).await?;
            *kept = Some(link);
            Ok(())
        })
        .await
    }

    /// How long a later statement of a read may take.
    fn limit(&self) -> Duration {
        self.wait.min(READ_WITHIN)
    }

    async fn within(
        &self,
        limit: Instant,
        read: impl Future<Output = Result<Vec<Row>, tokio_postgres::Error>>,
    ) -> Result<Vec<Row>> {
        match timeout_at(limit, read).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(self.site.error("read from", &error)),
            Err(_elapsed) => Err(self.site.io("read from", "the server takes too long")),
        }
    }

    /// Waits for a future on this thread, also on one of another runtime.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        struct Thread(Waiter);
        impl Wake for Thread {
            fn wake(self: Arc<Self>) {
                self.0.wake();
            }
        }
        // For timers and new connections.
        let _entered = self.runtime.enter();
        let thread = Arc::new(Thread(Waiter::default()));
        let waker = Waker::from(Arc::clone(&thread));
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            thread.0.wait(Deadline::NEVER);
        }
    }
}

impl Reader {
    /// Commits a statement, and checks that it is kept.
    async fn commit(
        &self,
        site: &Site,
        ask: Ask,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let loaded = async { self.link.client.query_one(LOADED, &[]).await };
        let (committed, loaded) = join(self.ask(ask, params), loaded).await;
        let failed = |error: tokio_postgres::Error| site.error("commit to", &error);
        let rows = committed.map_err(failed)?;
        self.link.check_kept(site, &loaded.map_err(failed)?)?;
        Ok(rows)
    }

    async fn ask(
        &self,
        ask: Ask,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let statement = self
            .statements
            .get(ask as usize)
            .expect("each is prepared when the connection is made");
        self.link.client.query(statement, params).await
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::model::{Durability, Options};

    #[test]
    fn a_read_whose_connection_is_lost_sees_no_other_moment() {
        let Ok(url) = std::env::var("SESSION_LOG_POSTGRES_URL") else {
            eprintln!("skipped: SESSION_LOG_POSTGRES_URL names no server");
            return;
        };
        let schema = format!("moment_{:032x}", crate::model::fresh_store_number());
        let options = Options::new().schema(schema.as_str());
        let log = options.durability(Durability::OneNode).connect(&url);
        log.unwrap().close().unwrap();
        let site = Arc::new(Site::new(&url, schema, Durability::OneNode).unwrap());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let handle = runtime.handle().clone();
        let pool = Pool::new(0, &site, handle, Duration::from_secs(10), Snapshots::Short).unwrap();
        let reads = || pool.rows(Ask::Shard, &[]);
        AtRest::begin();
        {
            assert!(reads().is_ok());
            pool.block_on(async {
                let other = site.connect(|| None).await.unwrap();
                let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE application_name = current_setting('application_name') \
                           AND pid <> pg_backend_pid()";
                other.client.batch_execute(cut).await.unwrap();
            });
            // The second of these would begin anew.
            assert!(reads().is_err());
            assert!(reads().is_err());
        }
        assert!(AtRest::end().is_empty());
        assert!(reads().is_ok());
    }
}
