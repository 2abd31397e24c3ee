//! The feed: the records of all sessions in the order of their IDs, over the shards and databases
//! of a log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::Record;
use crate::model::{EventId, Result};
use crate::postgres::databases::Database;
use crate::postgres::pool::{Ask, AtRest};
use crate::postgres::reads::{Tables, record};
use crate::postgres::sql::Id;
use crate::read::{RecordVisitor, fault_in_memory};
use crate::sync::Instant;

/// The bytes of records that one statement reads, about.
const SLICE_BYTES: i64 = 1024 * 1024;

/// How often a server closes shards for its readers of the feed.
const CLOSE_EVERY: Duration = Duration::from_millis(10);

impl Tables {
    /// Visits the records of all sessions from an ID on, up to where all shards are closed. Returns
    /// that place, unless the visit ended before.
    pub(super) fn each_from(
        &self,
        from: EventId,
        visit: &mut RecordVisitor<'_>,
    ) -> Result<Option<EventId>> {
        let mark = self.bell.feed_mark();
        // A read that has begun sees its moment, whatever is closed for it.
        let follows = self.databases.shards() > 1 && !AtRest::has_begun();
        if follows {
            self.close_shards(from)?;
        }
        let mut from = from;
        let end = self.databases.over_all(|| {
            let databases = self.databases.all().iter();
            let mut sources: Vec<_> = databases.map(Source::new).collect();
            loop {
                for source in &mut sources {
                    source.read_on(from)?;
                }
                let closed = sources.iter().filter_map(|source| source.closed).min();
                let closed = closed.unwrap_or(from);
                let nexts = sources.iter().enumerate();
                let nexts = nexts.filter_map(|(nth, source)| Some((source.read.front()?.0, nth)));
                let next = nexts.min().filter(|(id, _)| *id <= closed);
                let source = next.and_then(|(_, nth)| sources.get_mut(nth));
                let Some((id, record)) = source.and_then(|source| source.read.pop_front()) else {
                    let highest = sources.iter().map(|source| source.highest).max();
                    return Ok(Some((closed, highest.unwrap_or(closed))));
                };
                from = id.plus(1);
                if visit(&record, &fault_in_memory)?.is_break() {
                    return Ok(None);
                }
            }
        })?;
        let Some((closed, highest)) = end else {
            return Ok(None);
        };
        if follows {
            self.note_closed(closed);
            self.bell.note_closed(mark, closed);
            if closed < highest {
                self.bell.note_late();
            }
        }
        Ok(Some(closed))
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
        let databases = &self.databases;
        databases.block_on(async {
            let highest = if databases.are_several() {
                databases.last_id_now().await?
            } else {
                // The statement looks for it.
                EventId::from_u128(0)
            };
            for database in databases.all() {
                database.pool.kept(Ask::Close, &[&Id(highest)]).await?;
            }
            Ok(())
        })
    }

    fn note_closed(&self, through: EventId) {
        let mut closed = self.closed.lock();
        closed.through = closed.through.max(through);
    }
}

/// The records of one database, in order.
struct Source<'a> {
    database: &'a Database,
    read: VecDeque<(EventId, Arc<Record>)>,
    /// Its shards are closed up to this ID. There is none if it has no shard.
    closed: Option<EventId>,
    /// The highest ID of its shards.
    highest: EventId,
    is_over: bool,
}

impl<'a> Source<'a> {
    fn new(database: &'a Database) -> Self {
        Self {
            database,
            read: VecDeque::new(),
            closed: None,
            highest: EventId::from_u128(0),
            is_over: false,
        }
    }

    /// Reads from an ID on, once all that was read before was taken.
    fn read_on(&mut self, from: EventId) -> Result<()> {
        if !self.read.is_empty() || self.is_over {
            return Ok(());
        }
        let params: [&(dyn postgres_types::ToSql + Sync); 2] = [&Id(from), &SLICE_BYTES];
        let rows = self.database.pool.rows(Ask::Feed, &params)?;
        self.is_over = true;
        for row in &rows {
            self.closed = Some(row.get::<_, Id>(0).0);
            self.highest = row.get::<_, Id>(3).0;
            if let (Some(id), Some(bytes)) = (row.get::<_, Option<Id>>(1), row.get(2)) {
                let record = record(&self.database.site, bytes)?;
                self.read.push_back((id.0, record));
                self.is_over = false;
            }
        }
        Ok(())
    }
}
