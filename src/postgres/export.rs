//! Writes a log as lines, as of one moment.
//!
//! All of it is one part: the tables know the state of a session as it is, and not as it was.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

use crate::codec::{Record, SessionState};
use crate::maintain::{Keep, put_kept};
use crate::model::{Error, EventId, Options, Result, SessionId};
use crate::postgres::connect::{Link, Site};
use crate::postgres::databases::{Database, Databases};
use crate::postgres::lists::Merged;
use crate::postgres::pool::{Ask, Snapshots};
use crate::postgres::reads::{SLICE_BYTES, Shared, Tables, is_full, record};
use crate::postgres::schema::found;
use crate::postgres::sql::{self, Id};
use crate::read::Store;
use crate::transfer::{Export, Exported, Exporter, PartLine, Progress};

/// The records that one statement reads. Each may be as large as a batch.
const RECORDS_AT_ONCE: i64 = 32;

/// Exports the log at a URL. Nothing is written to it.
pub(crate) fn export(
    url: &str,
    options: Options,
    out: impl Write,
    what: &Export,
    progress: impl FnMut(Progress),
) -> Result<Exported> {
    options.check()?;
    let wait = options.stall_wait;
    let tables = Shared(Arc::new(Tables::new(url, &options, Snapshots::Long)?));
    let databases = &tables.0.databases;
    let id = databases.block_on(async {
        let mut id = None;
        for database in databases.all() {
            let site = &database.site;
            let of = site.retried(wait, || found(site)).await?;
            if *id.get_or_insert(of) != of {
                let why = format!("{} is another log", site.place.display());
                return Err(Error::invalid("database", why));
            }
        }
        databases.look().await?;
        id.ok_or(Error::Closed)
    })?;
    let store = Store::new(Arc::new(tables.clone()), Arc::default(), options);
    let locks = databases.block_on(Locks::take(databases))?;
    store.at_rest(|| {
        let events = tables.0.shard()?.events;
        databases.block_on(locks.end())?;
        let exporter = Exporter::begin((&store, id), events, what, out, progress)?;
        let mut writing = Writing {
            tables: &tables.0,
            store: &store,
            after: what.begins_after().unwrap_or(EventId::from_u128(0)),
            exporter,
        };
        let last_id = writing.all()?;
        writing.exporter.end(last_id)
    })
}

/// The locks of several shards, while the moment of an export is fixed. All of them are closed up
/// to its last ID, so what comes later has a higher one, and an export that goes on finds it. Nor
/// does one of them move meanwhile.
struct Locks<'a>(Vec<(&'a Site, Link)>);

impl<'a> Locks<'a> {
    async fn take(databases: &'a Databases) -> Result<Self> {
        let mut locks = Vec::new();
        if databases.shards() == 1 {
            return Ok(Self(locks));
        }
        let failed =
            |site: &Site, error: &tokio_postgres::Error| site.error("close the shards of", error);
        for database in databases.all() {
            let site = &*database.site;
            let link = site.connect(|| None).await?;
            let lock = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '10s'; \
                        SELECT FROM shard ORDER BY shard FOR UPDATE";
            let locked = link.client.batch_execute(lock).await;
            locked.map_err(|error| failed(site, &error))?;
            locks.push((site, link));
        }
        let highest = Id(databases.last_id_now().await?);
        for (site, link) in &locks {
            let closed = link.client.execute(sql::CLOSE_ALL, &[&highest]).await;
            closed.map_err(|error| failed(site, &error))?;
        }
        Ok(Self(locks))
    }

    async fn end(self) -> Result<()> {
        for (site, link) in self.0 {
            link.commit_alone(site, "COMMIT").await?;
        }
        Ok(())
    }
}

struct Writing<'a, W, P> {
    tables: &'a Tables,
    store: &'a Store,
    after: EventId,
    exporter: Exporter<W, P>,
}

impl<W: Write, P: FnMut(Progress)> Writing<'_, W, P> {
    /// Writes the part. Returns the last ID of the log.
    fn all(&mut self) -> Result<Option<EventId>> {
        let none = EventId::from_u128(0);
        let last_id = self.tables.shard()?.last_id;
        if last_id == none {
            return Ok(None);
        }
        if last_id > self.after {
            let oldest = self.tables.at_or_after(none)?;
            let oldest = oldest.iter().map(|record| record.base).min();
            self.exporter.begin_part(&PartLine {
                first_id: oldest.unwrap_or(last_id),
                last_id,
                tier: 0,
                items_max: self.items()?,
                resumed: false,
            })?;
            self.sessions()?;
            self.exporter.end_part(last_id)?;
        }
        Ok(Some(last_id))
    }

    /// Returns the number of sessions and keys, or more.
    fn items(&self) -> Result<u64> {
        let mut items = 0;
        for database in self.tables.databases.all() {
            let rows = database.pool.rows(Ask::Items, &[])?;
            let of = rows.first().map_or(0, |row| row.get::<_, i64>(0));
            items += of.unsigned_abs();
        }
        Ok(items)
    }

    fn sessions(&mut self) -> Result<()> {
        let mut sessions = Merged::of_all(self.tables.databases.all());
        while let Some((database, session, state)) = sessions.next()? {
            if self.exporter.is_wanted(&session) && state.through > self.after {
                self.session(database, &session, &state)?;
            }
        }
        Ok(())
    }

    /// Writes what is kept of a session. Its records with events and those without are stored
    /// apart.
    fn session(
        &mut self,
        database: &Database,
        session: &SessionId,
        state: &SessionState,
    ) -> Result<()> {
        use crate::maintain::SessionSink as _;

        let run = |with_events| Run {
            database,
            session,
            with_events,
            read: VecDeque::new(),
            last: None,
            is_over: false,
        };
        let (mut events, mut changes) = (run(true), run(false));
        let mut keep = Keep::of(self.store, session)?;
        loop {
            let is_before = match (events.peek()?, changes.peek()?) {
                (Some(event), Some(change)) => event.base < change.base,
                (event, None) if event.is_none() => break,
                (event, _) => event.is_some(),
            };
            let next = if is_before { &mut events } else { &mut changes };
            let Some(record) = next.read.pop_front() else {
                break;
            };
            put_kept(&mut keep, self.store, &record, &mut self.exporter)?
                .map_err(|fault| fault.at(&database.site.place, 0))?;
        }
        self.exporter.end_session(session, state)
    }
}

/// The records of a session that have events, or those that have none, in commit order.
struct Run<'a> {
    database: &'a Database,
    session: &'a SessionId,
    with_events: bool,
    read: VecDeque<Arc<Record>>,
    /// The place of the record that was read last: its generation, seq and ID.
    last: Option<(i32, i64, Id)>,
    is_over: bool,
}

impl Run<'_> {
    /// Returns the next record.
    fn peek(&mut self) -> Result<Option<&Record>> {
        if self.read.is_empty() && !self.is_over {
            self.read_on()?;
        }
        Ok(self.read.front().map(|record| &**record))
    }

    fn read_on(&mut self) -> Result<()> {
        let (name, pool) = (self.session.as_str(), &self.database.pool);
        let none = Id(EventId::from_u128(0));
        let (generation, seq, id) = self.last.unwrap_or((0, 0, none));
        let (end, at_once, bytes) = (i32::MAX, RECORDS_AT_ONCE, SLICE_BYTES);
        let rows = if self.with_events {
            pool.rows(
                Ask::Erasable,
                &[&name, &generation, &seq, &end, &0_i64, &at_once, &bytes],
            )?
        } else {
            pool.rows(Ask::ErasableChanges, &[&name, &id, &end, &at_once, &bytes])?
        };
        for row in &rows {
            let record = record(&self.database.site, row.get(1))?;
            self.last = Some((
                record.generation.cast_signed(),
                record.first.cast_signed(),
                row.get(0),
            ));
            self.read.push_back(record);
        }
        self.is_over = !is_full(&rows, RECORDS_AT_ONCE);
        Ok(())
    }
}
