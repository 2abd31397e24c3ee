//! Makes a log from lines, in one transaction.
//!
//! Other servers that open the same schema wait for its end. They find the whole log, or none.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::{BoxFuture, try_join_all};
use tokio_postgres::Transaction;
use tokio_postgres::types::ToSql;

use crate::codec::{Record, SessionState};
use crate::model::{Error, EventId, Options, Result, SessionId};
use crate::postgres::connect::{LOADED, Link, Site};
use crate::postgres::databases::Database;
use crate::postgres::group::Session;
use crate::postgres::pool::{Pool, Snapshots};
use crate::postgres::reads::Tables;
use crate::postgres::rows::{Rows, Shard};
use crate::postgres::schema::{Made, make_if_missing, store};
use crate::postgres::sql::{self, Id};
use crate::transfer::{Imported, Input, Item, PartLine, Progress, Reading, Target, read_export};

/// The records that are written at once: so many, or so many bytes.
const RECORDS_AT_ONCE: usize = 2000;
const BYTES_AT_ONCE: usize = 4 * 1024 * 1024;

/// Makes a log of an export, where none is yet.
pub(crate) fn import(
    input: impl BufRead,
    name: &Path,
    url: &str,
    options: &Options,
    progress: impl FnMut(Progress),
) -> Result<Imported> {
    options.check()?;
    if !options.databases.is_empty() {
        let why = "a log is imported into one, and its shards are moved to others then";
        return Err(Error::invalid("database", why));
    }
    let tables = Tables::new(url, options, Snapshots::Short)?;
    let Database { site, pool } = tables.databases.first();
    let mut link = pool.block_on(site.retried(options.stall_wait, || site.connect(|| None)))?;
    let (load, imported) = read_export(
        Input::new(input, name),
        |_source| Load::begin(site, options.shards, pool, &mut link),
        progress,
    )?;
    load.finish()?;
    let loaded = pool.block_on(link.client.query_one(LOADED, &[]));
    link.check_kept(
        site,
        &loaded.map_err(|error| site.error("import into", &error))?,
    )?;
    Ok(imported)
}

/// A log that is being made.
struct Load<'a> {
    site: &'a Site,
    pool: &'a Pool,
    work: Transaction<'a>,
    shards: Vec<Shard>,
    /// Sessions and records that are not written yet. A session without a state has one that was
    /// written, or comes with a later record of it.
    sessions: HashMap<SessionId, Option<SessionState>>,
    records: Vec<Arc<Record>>,
    bytes: usize,
    last_id: EventId,
    erased_through: EventId,
    is_resumed: bool,
    retains: bool,
}

impl<'a> Load<'a> {
    /// Begins the transaction, unless there is a log already.
    fn begin(site: &'a Site, shards: u32, pool: &'a Pool, link: &'a mut Link) -> Result<Self> {
        let failed = |error: tokio_postgres::Error| site.error("import into", &error);
        let (work, shards) = pool.block_on(async {
            let work = link.client.transaction().await.map_err(failed)?;
            // It waits for the lines, and holds the lock meanwhile.
            let set = "SET LOCAL idle_in_transaction_session_timeout = 0";
            work.batch_execute(set).await.map_err(failed)?;
            make_if_missing(site, Made::Alone(shards), &work).await?;
            store(site, work.client()).await?;
            let all: Vec<i32> = (0..site.shards().cast_signed()).collect();
            let rows = work.query(sql::LOCK_ALL, &[&all]).await.map_err(failed)?;
            let here = rows.iter().filter(|row| row.get("here"));
            if here.count() != all.len() {
                let why = format!("{} is one of several of a log", site.place.display());
                return Err(Error::invalid("target schema", why));
            }
            let shards = rows.iter().map(|row| Shard::of(row.get("shard"), row));
            let shards: Vec<Shard> = shards.collect();
            Ok::<_, Error>((work, shards))
        })?;
        let none = EventId::from_u128(0);
        if shards.iter().any(|shard| shard.last_id != none) {
            let why = format!("{} holds a log already", site.place.display());
            return Err(Error::invalid("target schema", why));
        }
        Ok(Self {
            site,
            pool,
            work,
            shards,
            sessions: HashMap::new(),
            records: Vec::new(),
            bytes: 0,
            last_id: none,
            erased_through: none,
            is_resumed: false,
            retains: false,
        })
    }

    fn take(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Record(record) => {
                self.sessions.entry(record.session.detached()).or_default();
                self.bytes += record.body().len();
                self.records.push(Arc::new(*record));
            }
            Item::State(session, state) => {
                self.sessions.insert(session, Some(*state));
            }
        }
        if self.records.len() + self.sessions.len() >= RECORDS_AT_ONCE
            || self.bytes >= BYTES_AT_ONCE
        {
            self.write()?;
        }
        Ok(())
    }

    /// Writes what was gathered.
    fn write(&mut self) -> Result<()> {
        let sessions = self.pool.block_on(self.numbered())?;
        let records = std::mem::take(&mut self.records);
        let mut by_shard: HashMap<i32, (HashMap<_, _>, Vec<Arc<Record>>)> = HashMap::new();
        for (name, session) in sessions {
            let (of, _) = by_shard.entry(self.site.shard_of(&name)).or_default();
            of.insert(name, session);
        }
        for record in records {
            let (_, of) = by_shard
                .entry(self.site.shard_of(&record.session))
                .or_default();
            of.push(record);
        }
        for (shard, (mut sessions, records)) in by_shard {
            let place = usize::try_from(shard).unwrap_or(usize::MAX);
            let Some(shard) = self.shards.get(place) else {
                continue;
            };
            let mut rows = Rows::new(*shard);
            rows.put_sessions(&mut sessions);
            for record in &records {
                rows.put_record(record, &sessions);
            }
            for (name, session) in &sessions {
                rows.put_forks(name, session.state.pieces());
            }
            self.pool.block_on(self.put(&rows))?;
            if let Some(shard) = self.shards.get_mut(place) {
                *shard = rows.written();
            }
        }
        self.sessions.clear();
        self.bytes = 0;
        Ok(())
    }

    /// Returns the sessions to write, with the numbers of those that were written before.
    async fn numbered(&self) -> Result<HashMap<SessionId, Session>> {
        let names: Vec<&str> = self.sessions.keys().map(SessionId::as_str).collect();
        let rows = self.work.query(sql::HEADS, &[&names]).await;
        let rows = rows.map_err(|error| self.error(&error))?;
        let mut sessions: HashMap<_, _> = self
            .sessions
            .iter()
            .map(|(name, state)| {
                let session = Session {
                    number: None,
                    state: state.clone().unwrap_or_default(),
                    added: Vec::new(),
                    has_changed: true,
                };
                (name.clone(), session)
            })
            .collect();
        for row in &rows {
            let name = SessionId::new(row.get::<_, &str>(0))?;
            if let Some(session) = sessions.get_mut(&name) {
                session.number = Some(row.get(1));
                session.has_changed = self.sessions.get(&name).is_some_and(Option::is_some);
            }
        }
        Ok(sessions)
    }

    async fn put(&self, rows: &Rows) -> Result<()> {
        let (new, moved) = (rows.new_sessions(), rows.moved_sessions());
        let (records, forks) = (rows.records(), rows.forks());
        let mut steps: Vec<BoxFuture<'_, _>> = Vec::new();
        if !rows.new.is_empty() {
            steps.push(Box::pin(self.work.execute(sql::NEW_SESSIONS, &new)));
        }
        if !rows.moved.is_empty() {
            steps.push(Box::pin(self.work.execute(sql::MOVE_SESSIONS, &moved)));
        }
        steps.push(Box::pin(self.work.execute(sql::NEW_RECORDS, &records)));
        if let Some(forks) = &forks {
            steps.push(Box::pin(self.work.execute(sql::NEW_FORKS, forks)));
        }
        let written = try_join_all(steps).await;
        written.map(drop).map_err(|error| self.error(&error))
    }

    /// Commits the log.
    fn finish(mut self) -> Result<()> {
        self.write()?;
        let last_id = Id(self.last_id);
        let erased_through = Id(self.erased_through);
        let shards = self.shards;
        let (site, pool) = (self.site, self.pool);
        let failed = |error: tokio_postgres::Error| site.error("import into", &error);
        pool.block_on(async move {
            let work = self.work;
            if self.is_resumed {
                let marked = work.execute(sql::ERASE_ALL, &[&last_id]).await;
                marked.map_err(failed)?;
            }
            for shard in &shards {
                let row: [&(dyn ToSql + Sync); 6] = [
                    &shard.number,
                    &last_id,
                    &shard.sessions,
                    &shard.events,
                    &erased_through,
                    &self.retains,
                ];
                work.execute(sql::SET_SHARD, &row).await.map_err(failed)?;
            }
            work.commit().await.map_err(failed)
        })
    }

    fn error(&self, error: &tokio_postgres::Error) -> Error {
        self.site.error("import into", error)
    }
}

impl Target for Load<'_> {
    fn add(&mut self, part: &PartLine, read: Reading<'_>) -> Result<()> {
        let dropped = read(&mut |item| self.take(item))?;
        if dropped > 0 {
            self.erased_through = part.last_id;
        }
        self.last_id = part.last_id;
        Ok(())
    }

    fn note_resumed(&mut self) {
        self.is_resumed = true;
    }

    fn note_own_retention(&mut self) {
        self.retains = true;
    }
}
