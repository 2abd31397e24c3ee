//! One commit group: a transaction of two flights on a connection of its own.
//!
//! The first flight takes the lock on the shard's row, or those of [all](crate::postgres::shards)
//! that a fork rests on, and reads what the group is decided by. The second writes and commits.
//! Both are pipelined: a flight costs one round trip. A [quick](crate::postgres::quick) group takes
//! one.
//!
//! Invariants:
//! * What is read is read after the lock, each statement on its own snapshot. So it is what the
//!   holder before left. A transaction that holds the lock has its commit on the quorum before it
//!   releases it, also if it has written nothing but the lock.
//! * Nothing is told before the commit returned, and nothing if a wait for the quorum was cancelled
//!   on the connection, or if its settings are not those that were checked.
//! * The commit is not sent if a statement before it could not be.
//! * Once the second flight is sent, its outcome is known from the answer to the commit alone. If
//!   that came, an error of a statement before it says that the server has rolled back. If it did
//!   not, that error may be of the connection, and says nothing. A quick group is a commit by
//!   itself: an error says so if what was asked behind it was answered.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::{BoxFuture, join, join_all};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::codec::{Fault, Record, SessionState};
use crate::model::{Error, Result, SessionId, in_one_line};
use crate::postgres::asks::Asks;
use crate::postgres::connect::{LOADED, Link, Site};
use crate::postgres::group::{News, Pins, Read, Session, decide_all};
use crate::postgres::quick::{Memory, Quick};
use crate::postgres::rows::{KeyRows, Rows, Shard};
use crate::postgres::schema::check_format;
use crate::postgres::shards::{barrier_of, close_of};
use crate::postgres::sql::{self, Id};
use crate::sync::{AtomicBool, Ordering};
use crate::write::{Landed, Proposal};

/// Its statements, in the order of the fields of [`Committer`].
pub(super) const TEXTS: [&str; 12] = [
    sql::LOCK,
    sql::HEADS,
    sql::KEYS,
    sql::SINCE,
    sql::NEW_SESSIONS,
    sql::MOVE_SESSIONS,
    sql::NEW_RECORDS,
    sql::NEW_FORKS,
    sql::NEW_REMOVALS,
    sql::MOVE_SHARD,
    sql::QUICK,
    LOADED,
];

/// A connection that commits groups.
pub(super) struct Committer {
    pub site: Arc<Site>,
    pub link: Link,
    pub lock: Statement,
    heads: Statement,
    keys: Statement,
    since: Statement,
    new_sessions: Statement,
    move_sessions: Statement,
    new_records: Statement,
    new_forks: Statement,
    new_removals: Statement,
    move_shard: Statement,
    quick: Statement,
    loaded: Statement,
}

/// A group whose commit was sent.
pub(super) struct Sent {
    /// Its first record. A group without one was committed.
    pub first: Option<Arc<Record>>,
    pub answers: Vec<Result<Landed>>,
    pub news: News,
}

/// What became of a group that was in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    /// Nothing was written, and nothing will be.
    Nothing,
    /// It may have been committed, and erased since.
    MayBeErased,
}

/// A member of a group, as its decision needs it.
pub(super) struct Member<'a> {
    pub proposal: &'a Proposal,
    /// The time of its batch, unless the database's clock gives it.
    pub created_ms: Option<u64>,
    /// What holds the events of other databases that it shares. Its group is it alone.
    pub pins: Option<&'a Pins>,
}

impl Committer {
    /// Connects, and commits once.
    ///
    /// Since the commits of a primary form one sequence, all that is seen here is then on a quorum,
    /// also what a primary recovered that came back from a crash.
    pub(super) async fn open(site: &Arc<Site>) -> Result<Self> {
        let link = site.connect(|| None).await?;
        link.commit_alone(site, &site.barrier()).await?;
        let client = &link.client;
        let failed = |error: tokio_postgres::Error| site.error("prepare to append to", &error);
        let prepared = join_all(TEXTS.map(|text| client.prepare(text))).await;
        let prepared = prepared.into_iter().collect::<Result<Vec<_>, _>>();
        let mut prepared = prepared.map_err(failed)?.into_iter();
        let mut next = || prepared.next().expect("as many as were asked for");
        Ok(Self {
            site: Arc::clone(site),
            lock: next(),
            heads: next(),
            keys: next(),
            since: next(),
            new_sessions: next(),
            move_sessions: next(),
            new_records: next(),
            new_forks: next(),
            new_removals: next(),
            move_shard: next(),
            quick: next(),
            loaded: next(),
            link,
        })
    }

    /// Whether it leads to the primary of this site.
    pub(super) fn leads_to(&self, site: &Arc<Site>) -> bool {
        Arc::ptr_eq(&self.site, site) && site.is_current(&self.link)
    }

    /// Whether a group whose commit was sent on an earlier connection was committed. The answer is
    /// durable, and holds for good: the lock shows that the transaction is over, or that it finds
    /// another epoch of the shard if it has not begun.
    ///
    /// The record is compared as a whole: should another have its ID, it is not taken for it.
    pub(super) async fn was_committed(&self, first: &Record) -> Result<Outcome> {
        let failed = |error: tokio_postgres::Error| self.error(&error);
        let client = &self.link.client;
        let opening = async { client.batch_execute("BEGIN").await };
        let shard = self.site.shard_of(&first.session);
        let lock = async { client.query(&self.lock, &[&shard]).await };
        let (begun, locked) = join(opening, lock).await;
        begun.map_err(failed)?;
        // One that has moved took along what was committed before.
        self.check_here(&locked.map_err(failed)?, 1)?;
        let last_id = first.last_id();
        let row = client
            .query_one(sql::HOLDS, &[&Id(last_id), &sql::stored(first), &shard])
            .await
            .map_err(failed)?;
        let outcome = if row.get(0) {
            Outcome::Committed
        } else if last_id <= row.get::<_, Id>(1).0 {
            Outcome::MayBeErased
        } else {
            Outcome::Nothing
        };
        let barrier = client.batch_execute(&barrier_of(shard)).await;
        barrier.map_err(failed)?;
        self.end("COMMIT").await?;
        Ok(outcome)
    }

    /// Commits what was done under the lock, and checks that it is kept.
    pub(super) async fn end(&self, commit: &str) -> Result<()> {
        let client = &self.link.client;
        let commit = async { client.batch_execute(commit).await };
        let loaded = async { client.query_one(&self.loaded, &[]).await };
        let (committed, loaded) = join(commit, loaded).await;
        committed.map_err(|error| self.error(&error))?;
        let loaded = loaded.map_err(|error| self.error(&error))?;
        self.link.check_kept(&self.site, &loaded)
    }

    /// Commits a group of one shard. `sent` is set before the commit is sent. While it is unset
    /// nothing was committed, and after an error with it set that is in doubt.
    pub(super) async fn commit(
        &self,
        members: &[Member<'_>],
        memory: &mut Memory,
        sent: &mut Option<Sent>,
    ) -> Result<()> {
        let seen = memory.take();
        let proposals = members.iter().map(|member| member.proposal);
        let shard = self.shard_of(members);
        let quick = seen
            .as_ref()
            .and_then(|seen| memory.quick(seen, shard, proposals));
        if let (
            Some(seen),
            Some(Quick {
                shard,
                mut read,
                keys,
            }),
        ) = (&seen, quick)
        {
            let (rows, group) = self.decide(members, &mut read, shard);
            if let Some(rows) = rows {
                *sent = Some(group);
                if let Some(now_ms) = self.write_quickly(&rows, &keys, sent).await? {
                    memory.note_quick(seen, rows.written(), now_ms, read.sessions);
                    return Ok(());
                }
                memory.note_missed();
            }
        }
        let (shard, mut read) = self.lock_and_read(members).await?;
        let read_at = Instant::now();
        memory.note_locked(seen.as_ref(), &shard);
        let pins = members.iter().find_map(|member| member.pins);
        if let Some(pins) = pins {
            read.apart = self.hold(pins).await?;
        }
        let ticket = pins.map(|pins| pins.ticket);
        let (rows, group) = self.decide(members, &mut read, shard);
        let shard = if let Some(rows) = rows {
            *sent = Some(group);
            self.write(&rows, ticket, sent).await?;
            rows.written()
        } else {
            // Committed all the same: what the answers rest on is then on a quorum.
            let close = (self.site.shards() > 1).then(|| close_of(&self.locks(members)));
            let close = close.map(|close| format!("{close}; COMMIT"));
            self.end(close.as_deref().unwrap_or("COMMIT")).await?;
            *sent = Some(group);
            shard
        };
        memory.note_committed(shard, read_at, read.sessions);
        Ok(())
    }

    /// Decides the members of a group. Returns what has to be written, if anything.
    pub(super) fn decide(
        &self,
        members: &[Member<'_>],
        read: &mut Read,
        shard: Shard,
    ) -> (Option<Rows>, Sent) {
        let mut clock = self.site.ids_after(shard.last_id);
        let timed = members
            .iter()
            .map(|member| (member.proposal, member.created_ms.unwrap_or(shard.now_ms)));
        let decided = decide_all(timed, read, &mut clock);
        let news = News::of(&decided);
        let first = decided.records.first().map(Arc::clone);
        let rows = first
            .as_ref()
            .map(|_| Rows::of(&decided, &mut read.sessions, shard));
        let sent = Sent {
            first,
            answers: decided.answers,
            news,
        };
        (rows, sent)
    }

    /// Writes and commits a quick group. Returns the database's time, or nothing if nothing was
    /// written.
    pub(super) async fn write_quickly(
        &self,
        rows: &Rows,
        keys: &KeyRows,
        sent: &mut Option<Sent>,
    ) -> Result<Option<u64>> {
        let client = &self.link.client;
        let values = rows.quick(keys);
        let written = async { client.query_opt(&self.quick, &values).await };
        let loaded = async { client.query_one(&self.loaded, &[]).await };
        let (written, loaded) = join(written, loaded).await;
        match written {
            Ok(Some(row)) => {
                let loaded = loaded.map_err(|error| self.error(&error))?;
                self.link.check_kept(&self.site, &loaded)?;
                Ok(Some(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0)))
            }
            Ok(None) => {
                *sent = None;
                loaded.map_err(|error| self.error(&error))?;
                Ok(None)
            }
            Err(error) => {
                // What came next was answered. So if this was refused, it was rolled back.
                if error.as_db_error().is_some() && loaded.is_ok() {
                    *sent = None;
                }
                Err(self.error(&error))
            }
        }
    }

    async fn lock_and_read(&self, members: &[Member<'_>]) -> Result<(Shard, Read)> {
        let client = &self.link.client;
        let asks = Asks::of(members.iter().map(|member| member.proposal));
        let locks = self.locks(members);
        // Prepared before, so that nothing that is read overtakes it.
        let lock_all = if locks.len() > 1 {
            let prepared = client.prepare(sql::LOCK_ALL).await;
            Some(prepared.map_err(|error| self.error(&error))?)
        } else {
            None
        };
        let first = locks.first().copied().unwrap_or_default();
        let (lock, lock_each): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 1]) =
            ([&first], [&locks]);
        let heads: [&(dyn ToSql + Sync); 1] = [&asks.names];
        let (keys, since) = (asks.keys(), asks.since());
        // A wait for one of several locks holds up the shards that are locked already.
        let opening = if lock_all.is_some() {
            "BEGIN; SET LOCAL lock_timeout = '100ms'"
        } else {
            "BEGIN"
        };
        let opening = async { client.batch_execute(opening).await };
        let mut asked: Vec<BoxFuture<'_, _>> = vec![
            match &lock_all {
                Some(all) => Box::pin(client.query(all, &lock_each)),
                None => Box::pin(client.query(&self.lock, &lock)),
            },
            Box::pin(client.query(&self.heads, &heads)),
        ];
        if let Some(keys) = &keys {
            asked.push(Box::pin(client.query(&self.keys, keys)));
        }
        if let Some(since) = &since {
            asked.push(Box::pin(client.query(&self.since, since)));
        }
        let (begun, answers) = join(opening, join_all(asked)).await;
        begun.map_err(|error| self.error(&error))?;
        let answers = answers.into_iter().collect::<Result<Vec<_>, _>>();
        let mut answers = answers.map_err(|error| self.error(&error))?.into_iter();
        let mut next = || answers.next().unwrap_or_default();
        let shard = self.locked(members, &locks, &next())?;
        let mut read = Read {
            sessions: self.sessions(&next())?,
            ..Read::default()
        };
        if keys.is_some() {
            read.keys = self.records(&next())?;
        }
        if since.is_some() {
            read.since = self.records(&next())?;
        }
        Ok((shard, read))
    }

    /// Returns the row of the shard of a group, of all that it has locked.
    fn locked(&self, members: &[Member<'_>], locks: &[i32], rows: &[Row]) -> Result<Shard> {
        let shard = self.shard_of(members);
        let place = locks.iter().position(|lock| *lock == shard);
        let row = place.and_then(|place| rows.get(place));
        self.check_here(rows, locks.len())?;
        let row = row.ok_or_else(|| self.damaged("no row of its shard"))?;
        check_format(&self.site, row)?;
        Ok(Shard::of(shard, row))
    }

    /// Checks that so many shards are here. `rows` are theirs, under their locks.
    pub(super) fn check_here(&self, rows: &[Row], count: usize) -> Result<()> {
        if rows.len() == count && rows.iter().all(|row| row.get("here")) {
            Ok(())
        } else {
            Err(self.site.moved("commit a group to"))
        }
    }

    /// Returns the shard of a group.
    fn shard_of(&self, members: &[Member<'_>]) -> i32 {
        let first = members.first().map(|member| member.proposal.session());
        first.map_or(0, |session| self.site.shard_of(session))
    }

    /// Returns the shards that a group locks.
    fn locks(&self, members: &[Member<'_>]) -> Vec<i32> {
        let locks = members.iter().map(|member| match member.pins {
            Some(pins) => pins.locks.clone(),
            None => self.site.locks(member.proposal),
        });
        let mut locks: Vec<i32> = locks.flatten().collect();
        locks.sort_unstable();
        locks.dedup();
        locks
    }

    pub(super) fn sessions(&self, rows: &[Row]) -> Result<HashMap<SessionId, Session>> {
        rows.iter()
            .map(|row| {
                let name = SessionId::new(row.get::<_, &str>(0))?;
                let state = SessionState::decode(row.get(2)).map_err(|fault| self.fault(fault))?;
                let session = Session {
                    number: Some(row.get(1)),
                    state,
                    added: Vec::new(),
                    has_changed: false,
                };
                Ok((name, session))
            })
            .collect()
    }

    /// Returns the records of rows, by the member that asked for them.
    fn records(&self, rows: &[Row]) -> Result<HashMap<usize, Vec<Arc<Record>>>> {
        let mut records = HashMap::<usize, Vec<_>>::new();
        for row in rows {
            let (nth, bytes): (i32, &[u8]) = (row.get(0), row.get(1));
            let record = sql::record(bytes).map_err(|fault| self.fault(fault))?;
            let nth = usize::try_from(nth).unwrap_or_default();
            records.entry(nth).or_default().push(Arc::new(record));
        }
        Ok(records)
    }

    /// Writes the rows of a group and commits them.
    async fn write(&self, rows: &Rows, ticket: Option<Id>, sent: &mut Option<Sent>) -> Result<()> {
        let client = &self.link.client;
        let ticket: Option<[&(dyn ToSql + Sync); 1]> = ticket.as_ref().map(|ticket| [ticket as _]);
        let (new, moved) = (rows.new_sessions(), rows.moved_sessions());
        let (records, forks) = (rows.records(), rows.forks());
        let (removals, shard) = (rows.removals(), rows.shard());
        let mut steps: Vec<BoxFuture<'_, _>> = Vec::new();
        if !rows.new.is_empty() {
            steps.push(Box::pin(client.execute(&self.new_sessions, &new)));
        }
        if !rows.moved.is_empty() {
            steps.push(Box::pin(client.execute(&self.move_sessions, &moved)));
        }
        steps.push(Box::pin(client.execute(&self.new_records, &records)));
        if let Some(forks) = &forks {
            steps.push(Box::pin(client.execute(&self.new_forks, forks)));
        }
        if let Some(removals) = &removals {
            steps.push(Box::pin(client.execute(&self.new_removals, removals)));
        }
        if let Some(ticket) = &ticket {
            steps.push(Box::pin(client.execute(sql::USE, ticket)));
        }
        steps.push(Box::pin(client.execute(&self.move_shard, &shard)));
        self.send(steps, sent).await
    }

    /// Sends the steps of a group, its commit, and the question whether that is kept.
    async fn send(
        &self,
        steps: Vec<BoxFuture<'_, Result<u64, tokio_postgres::Error>>>,
        sent: &mut Option<Sent>,
    ) -> Result<()> {
        let is_whole = AtomicBool::new(true);
        let steps = steps.into_iter().map(|step| async {
            let done = step.await;
            is_whole.fetch_and(done.is_ok(), Ordering::SeqCst);
            done
        });
        // The steps are polled first, and a step that cannot be sent fails at its first poll.
        let end = async {
            if is_whole.load(Ordering::SeqCst) {
                Some(self.end("COMMIT").await)
            } else {
                None
            }
        };
        let (written, ended) = join(join_all(steps), end).await;
        let failed = written.into_iter().find_map(Result::err);
        match (failed, ended) {
            (None, Some(ended)) => ended,
            (Some(error), Some(Ok(()))) => {
                // The commit was answered. So if this one was refused, all was rolled back.
                if error.as_db_error().is_some() {
                    *sent = None;
                }
                Err(self.error(&error))
            }
            (_, Some(Err(error))) => Err(error),
            (error, None) => {
                *sent = None;
                Err(match error {
                    Some(error) if error.is_closed() => self.error(&error),
                    error => self.site.lasting(
                        "commit a group to",
                        error
                            .as_ref()
                            .map(|error| in_one_line(error))
                            .unwrap_or_default(),
                    ),
                })
            }
        }
    }

    pub(super) fn error(&self, error: &tokio_postgres::Error) -> Error {
        self.site.error("commit a group to", error)
    }

    fn damaged(&self, what: &'static str) -> Error {
        self.fault(Fault::Damaged { at: 0, what })
    }

    fn fault(&self, fault: Fault) -> Error {
        fault.at(&self.site.place, 0)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::model::{Batch, Durability, NewEvent, Options};

    /// The other statements would be carried out, and the shard would count what is not there.
    #[test]
    fn a_group_with_a_statement_that_cannot_be_sent_is_not_committed() {
        let Ok(url) = std::env::var("SESSION_LOG_POSTGRES_URL") else {
            eprintln!("skipped: SESSION_LOG_POSTGRES_URL names no server");
            return;
        };
        let schema = format!("torn_{:032x}", crate::model::fresh_store_number());
        let options = Options::new().schema(schema.as_str());
        let log = options.durability(Durability::OneNode).connect(&url);
        let log = log.unwrap();
        let id = SessionId::new("s").unwrap();
        let site = Arc::new(Site::new(&url, schema, Durability::OneNode).unwrap());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut committer = Committer::open(&site).await.unwrap();
            // It has numbers where a record has IDs.
            let other = (1..=8).map(|nth| format!("${nth}::int[]"));
            let other = format!("SELECT {}", other.collect::<Vec<_>>().join(", "));
            committer.new_records = committer.link.client.prepare(&other).await.unwrap();
            let batch = Batch::from(NewEvent::new("note", "n"));
            let proposal = Proposal::new(&Options::new().limits, &id, batch).unwrap();
            let member = Member {
                proposal: &proposal,
                created_ms: None,
                pins: None,
            };
            let mut sent = None;
            let error = committer
                .commit(&[member], &mut Memory::of_lanes(1), &mut sent)
                .await
                .unwrap_err();
            assert!(!Site::may_pass(&error), "{error:?}");
            assert!(sent.is_none());
        });
        assert!(log.head(&id).is_err());
        assert_eq!(log.stats().events, 0);
        let ack = log.append(&id, NewEvent::new("note", "n")).unwrap();
        assert_eq!(ack.first, 1);
    }
}
