//! The engine on PostgreSQL: a log that outgrew one process.
//!
//! Any number of servers append to one log and read it. What replicates, fails over and fences is
//! PostgreSQL, with what its operators run already. No server owns anything, so there is no lease
//! here, and no state beside the tables.
//!
//! * [`schema`] makes the tables and migrates them.
//! * [`connect`] finds the primary, checks what it promises, and looks at its notices. [`tls`]
//!   makes its connections secure.
//! * [`lane`] gathers proposals into groups, and [`commit`] commits a group in one transaction of
//!   two flights, under the lock on the shard's row, or [`quick`] in one. [`asks`] holds what is
//!   read, [`group`] decides in between, without I/O, and [`rows`] holds what is written.
//! * [`shards`] says which sequencer a session is under, and what holds over all of them.
//!   [`databases`] finds the one that has a shard, [`moving`] moves a shard to another, and
//!   [`pins`] hold what a fork shares with sessions of another.
//! * [`pool`] and [`reads`] answer reads, with [`feed`] and [`lists`] over all sessions. [`news`]
//!   wakes waiters.
//! * [`export`](mod@export) and [`import`](mod@import) move a log out and in.
//! * [`upkeep`] removes what retention says, and [`erase`](mod@erase) erases what was removed.
//!
//! A batch is one row, as the journal stores it, and a session is one row with its state, as
//! segments store it. So everything above the seam finds what it finds in the embedded engine.
//!
//! It runs on a small runtime of its own. Calls work on any thread and on any runtime.

mod asks;
mod commit;
mod connect;
mod databases;
mod erase;
mod export;
mod feed;
#[cfg(all(test, not(shuttle)))]
mod flights;
mod group;
mod handle;
mod import;
mod lane;
mod lists;
mod moving;
mod news;
mod pins;
#[cfg(all(test, not(shuttle)))]
mod plans;
mod pool;
mod quick;
mod reads;
mod rows;
mod schema;
mod shards;
mod sql;
mod tls;
mod upkeep;

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tokio::task::AbortHandle;

use crate::backend::{Backend, Landing};
use crate::codec::StoreId;
use crate::disk::{Disk, io_error};
use crate::model::{
    BackupReport, CompactProgress, Compacted, Counters, Erasure, Error, EventId, Moved, Options,
    Result, SessionId, Shard, Space, Stats, clock_skew, timestamp,
};
use crate::postgres::commit::Committer;
use crate::postgres::connect::Site;
use crate::postgres::databases::Databases;
use crate::postgres::erase::{Passed, erase};
use crate::postgres::handle::{Core, Room};
use crate::postgres::lane::Lanes;
use crate::postgres::pool::{Ask, Snapshots};
use crate::postgres::reads::{Shared, Tables};
use crate::postgres::schema::Made;
use crate::read::{Records, Store};
use crate::sync::{AtomicU64, JoinHandle, Mutex, Ordering, spawn};
use crate::turn::TurnReader;
use crate::write::{Landed, Proposal, Ticket};

pub(crate) use export::export;
pub(crate) use import::import;

/// A log on PostgreSQL.
pub(crate) struct Postgres {
    core: Arc<Core>,
    lanes: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    upkeep: Mutex<Option<JoinHandle<()>>>,
    /// The tasks that wake waiters.
    bells: Vec<AbortHandle>,
}

impl Postgres {
    /// Connects to a log, and makes its tables if there are none. Its shards are then spread over
    /// the databases.
    pub(crate) fn connect(url: &str, options: Options) -> Result<Self> {
        options.check()?;
        let tables = Shared(Arc::new(Tables::new(url, &options, Snapshots::Short)?));
        let Tables {
            databases,
            bell,
            runtime,
            ..
        } = &*tables.0;
        let site = &databases.first().site;
        let (store, committer, is_new) = databases.block_on(open(databases, &options))?;
        let bells = bell.begin_tasks(&runtime.handle);
        let counters: Arc<Counters> = Arc::default();
        let rooms = Room::of_lanes(site.lanes(), options.group_bytes_max);
        let records: Arc<dyn Records> = Arc::new(tables.clone());
        let reader = Arc::new(Store::new(records, Arc::clone(&counters), options));
        let core = Arc::new(Core {
            turns: TurnReader::new(reader),
            tables,
            counters,
            store,
            requests: Mutex::default(),
            signal: Arc::default(),
            rooms,
        });
        let options = &core.turns.store().options;
        let (tables, signal) = (&core.tables.0, &core.signal);
        let lanes = Lanes::new(tables, &core.counters, signal, options, committer);
        let (requests, lanes) = lanes.begin(&tables.runtime.handle);
        *core.requests.lock() = requests;
        let log = Self {
            core: Arc::clone(&core),
            lanes: Mutex::new(lanes),
            upkeep: Mutex::default(),
            bells,
        };
        if is_new && tables.databases.are_several() {
            moving::spread(&tables.databases);
        }
        let place = log.core.tables.0.databases.first().site.place.clone();
        let upkeep = spawn("log-upkeep", move || upkeep::run(&core))
            .map_err(io_error("start a thread for", &place))?;
        *log.upkeep.lock() = Some(upkeep);
        Ok(log)
    }

    /// Ends the log. What has joined a group is answered first.
    fn stop(&self) -> Result<()> {
        let core = &self.core;
        core.turns.store().check_process()?;
        core.turns.store().close();
        core.signal.stop();
        core.requests.lock().clear();
        // A second call waits for the first.
        let mut lanes = self.lanes.lock();
        for lane in lanes.drain(..) {
            drop(core.tables.0.databases.block_on(lane));
        }
        if let Some(upkeep) = self.upkeep.lock().take() {
            drop(upkeep.join());
        }
        for bell in &self.bells {
            bell.abort();
        }
        core.tables.0.bell.wake_all();
        Ok(())
    }
}

/// Makes the tables, and the first connection that commits, and finds the shards. Returns the
/// store's ID, and whether the log is new.
async fn open(databases: &Databases, options: &Options) -> Result<(StoreId, Committer, bool)> {
    let wait = options.stall_wait;
    let mut sites: Vec<_> = databases
        .all()
        .iter()
        .map(|database| &database.site)
        .collect();
    // Servers that make a log at the same time begin at the same database.
    sites.sort_by_key(|site| &site.place);
    let mut log = None;
    if databases.are_several() {
        // What is there already, so that a wrong URL is not made a log of its own.
        for site in &sites {
            let found = site.retried(wait, || schema::find(site)).await?;
            log = log.or(found.map(|store| (store, site.shards())));
        }
    }
    let is_new = log.is_none();
    let mut seen = Vec::new();
    for site in sites {
        let made = match log {
            Some((store, shards)) => Made::Further(store, shards),
            None => Made::Alone(options.shards),
        };
        let store = site.retried(wait, || migrated(site, made)).await?;
        let (expected, shards) = *log.get_or_insert((store, site.shards()));
        let is_of_it = store == expected && site.shards() == shards;
        if !is_of_it || seen.contains(&site.database()) {
            let what = if is_of_it {
                "named twice"
            } else {
                "another log"
            };
            return Err(Error::invalid(
                "database",
                format!("{} is {what}", site.place.display()),
            ));
        }
        seen.push(site.database());
        if seen.len() > shards as usize {
            let why = format!("a log of {shards} shards has no use for more databases");
            return Err(Error::invalid("database", why));
        }
    }
    let first = &databases.first().site;
    let committer = first.retried(wait, || Committer::open(first)).await?;
    first.retried(wait, || databases.look()).await?;
    let (store, _) = log.ok_or(Error::Closed)?;
    Ok((store, committer, is_new))
}

async fn migrated(site: &Site, made: Made) -> Result<StoreId> {
    let mut link = site.connect(|| None).await?;
    schema::migrate(site, made, &mut link).await
}

impl Backend for Postgres {
    fn turns(&self) -> &TurnReader {
        &self.core.turns
    }

    fn check_writable(&self) -> Result<()> {
        Ok(())
    }

    fn append(&self, proposal: Proposal) -> Result<Landed> {
        let ticket: Arc<Ticket> = Arc::default();
        let submitted = self.core.submit(proposal, &ticket);
        let joined = self.core.tables.0.databases.block_on(submitted)?;
        ticket.wait(&joined)
    }

    fn append_async(&self, proposal: Proposal) -> Landing<'_> {
        Box::pin(async move {
            let ticket: Arc<Ticket> = Arc::default();
            self.core.submit(proposal, &ticket).await?;
            poll_fn(|context| ticket.poll(context)).await
        })
    }

    #[cfg(all(test, feature = "http"))]
    fn is_at_rest(&self) -> bool {
        true
    }

    /// What another server has committed is shown at once.
    fn refresh(&self) -> Result<Option<EventId>> {
        let last_id = self.core.tables.last_id()?;
        Ok((last_id > EventId::from_u128(0)).then_some(last_id))
    }

    /// It commits: there has to be a primary, and a quorum.
    fn health(&self) -> Result<()> {
        self.check_usable()?;
        let mut databases = self.core.tables.0.databases.all().iter();
        databases.try_for_each(|database| database.pool.check_commits())
    }

    fn check_usable(&self) -> Result<()> {
        let has_panicked = |lane: &tokio::task::JoinHandle<()>| lane.is_finished();
        if self.lanes.lock().iter().any(has_panicked) {
            let site = &self.core.tables.0.databases.first().site;
            let lost = site.lasting("append to", "a task that appends has panicked");
            return Err(Error::Poisoned {
                source: Arc::new(lost),
            });
        }
        Ok(())
    }

    fn stats(&self) -> Stats {
        let counters = &self.core.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (barrier_time, barrier_time_max) = counters.barrier_time();
        // What cannot be asked for counts as nothing: metrics have to work in a failover too.
        let shard = self.core.shard().unwrap_or_default();
        let last_id = shard.last_id;
        Stats {
            store_id: format!("{:032x}", self.core.store.0),
            format: schema::FORMAT,
            last_id: (last_id > EventId::from_u128(0)).then_some(last_id),
            events: shard.events,
            batches: count(&counters.batches),
            groups: counters.groups(),
            journal_bytes: count(&counters.journal_bytes),
            barrier_time,
            barrier_time_max,
            streams: count(&counters.streams),
            space: Space {
                total_bytes: self.core.size().unwrap_or_default(),
                ..Space::default()
            },
            clock_skew: clock_skew(&self.core.turns.store().options.clock, last_id),
            ..Stats::default()
        }
    }

    /// It is done on the thread of the caller, session by session. The pages are vacuumed at the
    /// end, which PostgreSQL does by itself later.
    fn compact(
        &self,
        progress: &mut dyn FnMut(CompactProgress) -> ControlFlow<()>,
    ) -> Result<Compacted> {
        let core = &self.core;
        let bytes_before = core.size()?;
        let mut goes_on = || {
            let is_open = core.signal.check_stop().is_ok();
            is_open && progress(CompactProgress::default()).is_continue()
        };
        let after = &mut Passed::default();
        let mut failed = erase(core, u64::MAX, after, &mut goes_on)?;
        upkeep::vacuum(core)?;
        if let Some((_session, error)) = failed.pop_first() {
            return Err(error);
        }
        Ok(Compacted {
            bytes_before,
            bytes_after: core.size()?,
            ..Compacted::default()
        })
    }

    fn backup(&self, _disk: Arc<dyn Disk>, _folder: &Path) -> Result<BackupReport> {
        let why = "a log on PostgreSQL is backed up by what its operators use for it";
        Err(Error::invalid("backup", why))
    }

    fn erasure(&self) -> Result<Erasure> {
        let (mut oldest, mut events) = (None, 0);
        for database in self.core.tables.0.databases.all() {
            let rows = database.pool.rows(Ask::Removed, &[])?;
            let Some(row) = rows.first() else { continue };
            let removed: Option<i64> = row.get(0);
            oldest = [oldest, removed].into_iter().flatten().min();
            events += row.get::<_, i64>(1).unsigned_abs();
        }
        let store = self.core.turns.store();
        let (options, now) = (&store.options, store.now_ms()?);
        let within = u64::try_from(options.erase_within.as_millis()).unwrap_or(u64::MAX);
        let due_ms = oldest.map(|removed| removed.cast_unsigned().saturating_add(within));
        Ok(Erasure {
            due: due_ms.map(timestamp),
            overdue: due_ms.is_some_and(|due| due < now),
            events,
        })
    }

    fn shards(&self) -> Result<Vec<Shard>> {
        self.core.turns.store().check_open()?;
        self.core.tables.0.databases.list()
    }

    fn shard_of(&self, session: &SessionId) -> Result<u32> {
        let site = &self.core.tables.0.databases.first().site;
        Ok(site.shard_of(session).cast_unsigned())
    }

    fn move_shard(&self, shard: u32, database: usize) -> Result<Moved> {
        self.core.turns.store().check_open()?;
        moving::move_shard(&self.core.tables.0.databases, shard, database)
    }

    fn close(&self) -> Result<()> {
        self.stop()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.stop());
    }
}
