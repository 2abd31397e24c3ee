//! Writes a log as lines, as of one moment.
//!
//! All of it is one part: the tables know the state of a session as it is, and not as it was.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

use crate::codec::{Record, SessionState};
use crate::maintain::{Keep, put_kept};
use crate::model::{EventId, Options, Result, SessionId};
use crate::postgres::connect::{Link, Site};
use crate::postgres::pool::{Ask, Snapshots};
use crate::postgres::reads::{SLICE_BYTES, Shared, Tables, is_full};
use crate::postgres::schema::found;
use crate::postgres::sql::{self, Id};
use crate::read::Store;
use crate::transfer::{Export, Exported, Exporter, PartLine, Progress};

/// The sessions that one statement reads.
const SESSIONS_AT_ONCE: i64 = 256;

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
    let site = &tables.0.site;
    let id = tables.0.pool.block_on(site.retried(wait, || found(site)))?;
    let store = Store::new(Arc::new(tables.clone()), Arc::default(), options);
    let pool = &tables.0.pool;
    let locks = pool.block_on(Locks::take(site))?;
    store.at_rest(|| {
        let events = tables.0.shard()?.map_or(0, |shard| shard.events);
        pool.block_on(locks.end(site))?;
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
/// to its last ID, so what comes later has a higher one, and an export that goes on finds it.
struct Locks(Option<Link>);

impl Locks {
    async fn take(site: &Site) -> Result<Self> {
        if site.shards() == 1 {
            return Ok(Self(None));
        }
        let link = site.connect(|| None).await?;
        let failed = |error: tokio_postgres::Error| site.error("close the shards of", &error);
        let lock = "BEGIN; SELECT FROM shard ORDER BY shard FOR UPDATE";
        link.client.batch_execute(lock).await.map_err(failed)?;
        let closed = link.client.batch_execute(sql::CLOSE_ALL).await;
        closed.map_err(failed)?;
        Ok(Self(Some(link)))
    }

    async fn end(self, site: &Site) -> Result<()> {
        match self.0 {
            Some(link) => link.commit_alone(site, "COMMIT").await,
            None => Ok(()),
        }
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
        let last_id = self.tables.shard()?.map_or(none, |shard| shard.last_id);
        if last_id == none {
            return Ok(None);
        }
        if last_id > self.after {
            let pool = &self.tables.pool;
            let oldest = pool.rows(Ask::AtOrAfter, &[&Id(none)])?;
            let items = pool.rows(Ask::Items, &[])?;
            let items = items.first().map_or(0, |row| row.get::<_, i64>(0));
            self.exporter.begin_part(&PartLine {
                first_id: oldest.first().map_or(last_id, |row| row.get::<_, Id>(0).0),
                last_id,
                tier: 0,
                items_max: items.unsigned_abs(),
                resumed: false,
            })?;
            self.sessions()?;
            self.exporter.end_part(last_id)?;
        }
        Ok(Some(last_id))
    }

    fn sessions(&mut self) -> Result<()> {
        let (mut ask, mut at) = (Ask::ByIdFrom, Some(String::new()));
        loop {
            let rows = self.tables.pool.rows(ask, &[&at, &SESSIONS_AT_ONCE])?;
            for row in &rows {
                let (session, state) = self.tables.listed(row)?;
                if self.exporter.is_wanted(&session) && state.through > self.after {
                    self.session(&session, &state)?;
                }
                at = Some(session.to_string());
            }
            if (rows.len() as u64) < SESSIONS_AT_ONCE.unsigned_abs() {
                return Ok(());
            }
            ask = Ask::ByIdUp;
        }
    }

    /// Writes what is kept of a session. Its records with events and those without are stored
    /// apart.
    fn session(&mut self, session: &SessionId, state: &SessionState) -> Result<()> {
        use crate::maintain::SessionSink as _;

        let run = |with_events| Run {
            tables: self.tables,
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
                .map_err(|fault| self.tables.fault(fault))?;
        }
        self.exporter.end_session(session, state)
    }
}

/// The records of a session that have events, or those that have none, in commit order.
struct Run<'a> {
    tables: &'a Tables,
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
        let (name, pool) = (self.session.as_str(), &self.tables.pool);
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
            let record = self.tables.record(row.get(1))?;
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
