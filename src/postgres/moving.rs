//! Moves a shard to another database, while appends go on.
//!
//! 1. The row of the shard is given the ID of the move. Nothing of the shard is erased from then
//!    on: it would come back with a copy that was made before.
//! 2. The other database gets a row that is not here, and the sessions and records, in the order of
//!    their IDs. Appends go on, and what they add is copied too.
//! 3. Under the lock on the row the rest is copied, which is little, and committed over there. Then
//!    the row says that the shard has left, and for where.
//! 4. The row over there says that it is here. Each server that
//!    [looks for](crate::postgres::databases) the shard does that too.
//! 5. What it left behind is deleted. Nobody sees it any more.
//!
//! Invariants:
//! * *The copy is whole before the shard leaves.* Both hold under the lock: nothing is committed to
//!   the shard between the last read of the copy and the commit that says that it has left. The
//!   copy is on its own quorum before that.
//! * *A copy is of one move.* Each transaction that writes to it checks the ID of the move on the
//!   row over there, and the last one also on the row that it leaves. So one that was given up
//!   writes nothing to a later one.
//! * *What is copied is on a quorum.* All is read on one connection, and the commit that says that
//!   the shard has left comes after it there.
//! * *Nothing comes back.* While a row has the ID of a move and is here, nobody erases, unless the
//!   mover is gone, which a lock shows that lasts as long as its connection. Then the ID is taken
//!   off the row, and the copy is worth nothing.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::model::{Error, EventId, Moved, Result, fresh_store_number};
use crate::postgres::connect::{LOADED, Link, Site};
use crate::postgres::databases::{Databases, Left};
use crate::postgres::reads::state;
use crate::postgres::rows::{Forks, RecordRows, SessionRows};
use crate::postgres::schema::{FORMAT, check_format};
use crate::postgres::sql::{self, Id};

/// The rows that one transaction copies or deletes, at most.
const ROWS_AT_ONCE: i64 = 1_000;

/// The bytes of records that one transaction copies, about.
const BYTES_AT_ONCE: i64 = 4 * 1024 * 1024;

/// How long one statement may take.
const WITHIN: Duration = Duration::from_secs(30);

/// How long the shard may be locked. The copy then goes on without the lock.
const LOCKED_MAX: Duration = Duration::from_secs(3);

/// How often the shard is locked for what is left to copy.
const ATTEMPTS_MAX: usize = 10;

/// The lock that shows that a mover is there. Its values are the schema and the shard.
macro_rules! mover {
    ($take:literal) => {
        concat!(
            "SELECT ",
            $take,
            "(hashtextextended('sessionlog move:' || $1::text || ':' || $2::int, 0))"
        )
    };
}

/// Takes it for a connection, and for a transaction.
const LOCK: &str = mover!("pg_try_advisory_lock");
pub(super) const TRY_LOCK: &str = mover!("pg_try_advisory_xact_lock");

/// Gives a row the ID of a move, and takes it off.
const BEGIN_COPY: &str = "UPDATE shard SET move = $2 WHERE shard = $1";
pub(super) const END_COPY: &str = "UPDATE shard SET move = NULL WHERE shard = $1 AND here";

/// Makes the row of a shard that arrives.
const ARRIVING: &str = "INSERT INTO shard VALUES ($1, $2, 0, 0, 0, 0, $2, false, $3, false, $4) \
    ON CONFLICT (shard) DO UPDATE SET here = false, move = $4, moved_to = NULL \
    WHERE NOT shard.here";
/// Locks it for what a move writes.
const IS_ARRIVING: &str =
    "SELECT FROM shard WHERE shard = $1 AND move = $2 AND NOT here AND moved_to IS NULL FOR UPDATE";
const FILL: &str = "UPDATE shard SET last_id = $2, sessions = $3, events = $4, removals = $5, \
    erased_through = $6, retains = $7, epoch = $8 WHERE shard = $1";
/// What it is filled with.
const FILLED: &str = "SELECT last_id, sessions, events, removals, erased_through, retains, epoch \
    FROM shard WHERE shard = $1";
const LEAVE: &str = "UPDATE shard SET here = false, moved_to = $2 WHERE shard = $1";

const SESSIONS: &str = "SELECT session, name, active_id, created_id, state FROM session \
    WHERE session > $1 AND session < $2 ORDER BY session LIMIT $3";
const SESSIONS_OF: &str = "SELECT session, name, active_id, created_id, state FROM session \
    WHERE session = ANY($1::bigint[])";
const RECORDS: &str = "SELECT last_id, base_id, session, generation, first_seq, last_seq, key, \
    record FROM (SELECT *, sum(octet_length(record)) OVER (ORDER BY last_id) \
    - octet_length(record) AS before FROM (SELECT * FROM record \
    WHERE (session >> 40, last_id) > ($1::bigint, $2::uuid) \
    AND (session >> 40, last_id) < ($1::bigint + 1, '00000000-0000-0000-0000-000000000000'::uuid) \
    ORDER BY session >> 40, last_id LIMIT $3) s) p WHERE before < $4 ORDER BY last_id";
const PUT_SESSIONS: &str = "INSERT INTO session (session, name, active_id, created_id, state) \
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::uuid[], $4::uuid[], $5::bytea[]) \
    ON CONFLICT (session) DO UPDATE SET active_id = excluded.active_id, \
    created_id = excluded.created_id, state = excluded.state";

/// Deletes rows of a shard. The lowest IDs go first, so what is there of a session is without gaps.
const CLEAR_RECORDS: &str = "DELETE FROM record WHERE last_id = ANY (ARRAY(SELECT last_id FROM record \
    WHERE (session >> 40, last_id) >= ($1::bigint, '00000000-0000-0000-0000-000000000000'::uuid) \
    AND (session >> 40, last_id) < ($1::bigint + 1, '00000000-0000-0000-0000-000000000000'::uuid) \
    ORDER BY session >> 40, last_id LIMIT $2))";
const CLEAR_SESSIONS: &str = "DELETE FROM session WHERE session = ANY (ARRAY(SELECT session \
    FROM session WHERE session > $1::bigint << 40 AND session < ($1::bigint + 1) << 40 LIMIT $2))";
/// Locks a row whose shard has left by a move, or arrives by it.
const IS_AWAY: &str = "SELECT FROM shard WHERE shard = $1 AND move = $2 AND NOT here FOR UPDATE";

/// Those that have to find their rows by an index.
#[cfg(all(test, not(shuttle)))]
pub(super) const TEXTS: &[&str] = &[
    SESSIONS,
    SESSIONS_OF,
    RECORDS,
    CLEAR_RECORDS,
    CLEAR_SESSIONS,
];

/// Spreads the shards of a new log evenly. Another server may do so at the same time. What fails is
/// left where it is: the log is whole without it.
pub(super) fn spread(databases: &Databases) {
    for shard in 0..databases.shards() {
        let to = shard as usize % databases.all().len();
        if let Err(error) = move_shard(databases, shard, to) {
            tracing::warn!(
                target: "sessionlog",
                error = error.with_sources(),
                "shard {shard} is not in the database that it is meant for"
            );
        }
    }
}

/// Moves a shard, and blocks until that is done.
///
/// After an error the shard is where it was, or has moved whole: the same call then tells.
pub(super) fn move_shard(databases: &Databases, shard: u32, to: usize) -> Result<Moved> {
    if shard >= databases.shards() {
        let why = format!("there are {}, and the first is 0", databases.shards());
        return Err(Error::invalid("shard", why));
    }
    if to >= databases.all().len() {
        let why = format!("there are {}, and the first is 0", databases.all().len());
        return Err(Error::invalid("database", why));
    }
    databases.block_on(moved(databases, shard.cast_signed(), to))
}

async fn moved(databases: &Databases, shard: i32, to: usize) -> Result<Moved> {
    databases.look().await?;
    let from = databases.home(shard);
    let mut done = Moved::default();
    if from == to {
        settle(databases, shard, to).await?;
        return Ok(done);
    }
    let mover = Mover::new(databases, shard, from, to).await?;
    mover.begin().await?;
    let mut at = mover.copy(&mut done).await?;
    let mut attempts = 0;
    while !mover.leave(&mut at, &mut done).await? {
        attempts += 1;
        if attempts == ATTEMPTS_MAX {
            let why = "appends to it come faster than they are copied";
            return Err(mover.from.site.io("move a shard of", why));
        }
    }
    // It has left. Should this fail, the next server that needs it looks for it.
    drop(databases.look().await);
    mover.from.clear(shard, mover.id).await?;
    Ok(done)
}

/// Ends what is left of moves of a shard that is in its place: nobody copies it any more, and
/// nothing of it is elsewhere.
async fn settle(databases: &Databases, shard: i32, home: usize) -> Result<()> {
    let at_home = End::new(databases, home).await?;
    at_home.take(shard).await?;
    at_home.execute(END_COPY, &[&shard]).await?;
    for left in databases
        .left()
        .await?
        .iter()
        .filter(|left| left.shard == shard)
    {
        sweep(databases, left).await?;
    }
    Ok(())
}

/// Deletes what a shard left behind in a database, or what a move that was given up brought there.
/// It does nothing to one that is there, or that another move brings.
pub(super) async fn sweep(databases: &Databases, left: &Left) -> Result<()> {
    End::new(databases, left.database)
        .await?
        .clear(left.shard, left.by)
        .await
}

/// The connection to one of the two databases.
struct End<'a> {
    site: &'a Site,
    link: Link,
}

impl<'a> End<'a> {
    /// Connects, and commits once: what is seen is then on a quorum.
    async fn new(databases: &'a Databases, nth: usize) -> Result<Self> {
        let database = databases.all().get(nth).ok_or(Error::Closed)?;
        let site = &*database.site;
        let link = site.connect(|| None).await?;
        link.commit_alone(site, sql::BARRIER).await?;
        Ok(Self { site, link })
    }

    async fn within<T>(
        &self,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        match timeout(WITHIN, asked).await {
            Ok(answer) => answer.map_err(|error| self.site.error("move a shard of", &error)),
            Err(_elapsed) => Err(self.site.io("move a shard of", "the server takes too long")),
        }
    }

    async fn query(&self, text: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.within(self.link.client.query(text, params)).await
    }

    async fn execute(&self, text: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        self.within(self.link.client.execute(text, params)).await
    }

    async fn begin(&self) -> Result<()> {
        // It waits for the other database in between.
        let begin = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '30s'";
        self.within(self.link.client.batch_execute(begin)).await
    }

    /// Commits, and checks that it is kept.
    async fn commit(&self) -> Result<()> {
        self.within(self.link.client.batch_execute("COMMIT"))
            .await?;
        let loaded = self.query(LOADED, &[]).await?;
        self.link
            .check_kept(self.site, loaded.first().ok_or(Error::Closed)?)
    }

    /// Takes the lock that shows that a mover is there. It is held until the connection ends.
    async fn take(&self, shard: i32) -> Result<()> {
        let taken = self.query(LOCK, &[&self.site.schema, &shard]).await?;
        if taken.first().is_some_and(|row| row.get(0)) {
            Ok(())
        } else {
            Err(Error::invalid("shard", "it is being moved already"))
        }
    }

    /// Deletes the rows of a shard that has left, or that arrives by a move, some at a time. Each
    /// time the row of the shard is locked, so nobody else deletes them, and no other move begins.
    async fn clear(&self, shard: i32, id: Id) -> Result<()> {
        for text in [CLEAR_RECORDS, CLEAR_SESSIONS] {
            loop {
                self.begin().await?;
                let rows = self.query(IS_AWAY, &[&shard, &id]).await?;
                let deleted = if rows.is_empty() {
                    0
                } else {
                    self.execute(text, &[&i64::from(shard), &ROWS_AT_ONCE])
                        .await?
                };
                self.commit().await?;
                if deleted == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// A move under way.
struct Mover<'a> {
    shard: i32,
    id: Id,
    from: End<'a>,
    to: End<'a>,
}

/// Sessions, with what says of which they are forks.
#[derive(Default)]
struct Sessions {
    rows: SessionRows,
    forks: Forks,
}

impl<'a> Mover<'a> {
    async fn new(databases: &'a Databases, shard: i32, from: usize, to: usize) -> Result<Self> {
        Ok(Self {
            shard,
            id: Id(EventId::from_u128(fresh_store_number())),
            from: End::new(databases, from).await?,
            to: End::new(databases, to).await?,
        })
    }

    /// Gives both rows the ID of the move, and makes room for the copy.
    async fn begin(&self) -> Result<()> {
        let from = &self.from;
        from.take(self.shard).await?;
        from.begin().await?;
        self.lock().await?;
        from.execute(BEGIN_COPY, &[&self.shard, &self.id]).await?;
        from.commit().await?;
        let to = &self.to;
        let (none, format) = (Id(EventId::from_u128(0)), FORMAT.cast_signed());
        to.begin().await?;
        let row: [&(dyn ToSql + Sync); 4] = [&self.shard, &none, &format, &self.id];
        if to.execute(ARRIVING, &row).await? != 1 {
            return Err(to
                .site
                .lasting("move a shard to", "the shard is there already"));
        }
        to.commit().await?;
        to.clear(self.shard, self.id).await
    }

    /// Locks the row of the shard, which is here. Returns the move that it has.
    async fn lock(&self) -> Result<Option<Id>> {
        let locked = self.from.query(sql::LOCK, &[&self.shard]).await?;
        let row = locked.first().filter(|row| row.get("here"));
        let row = row.ok_or_else(|| self.from.site.moved("move a shard of"))?;
        check_format(self.from.site, row)?;
        Ok(row.get("move"))
    }

    /// Copies all sessions as they are, and all records. Returns the last ID that was copied.
    async fn copy(&self, moved: &mut Moved) -> Result<Id> {
        let (mut after, end) = (i64::from(self.shard) << 40, i64::from(self.shard + 1) << 40);
        loop {
            let rows = self
                .from
                .query(SESSIONS, &[&after, &end, &ROWS_AT_ONCE])
                .await?;
            let Some(last) = rows.last() else { break };
            after = last.get(0);
            let sessions = self.sessions(&rows)?;
            moved.sessions += rows.len() as u64;
            self.put(&sessions, &RecordRows::default()).await?;
        }
        let mut at = Id(EventId::from_u128(0));
        while self.copy_records(&mut at, moved).await? {}
        Ok(at)
    }

    /// Copies the next records after an ID, with their sessions as these are by then. Returns
    /// whether there may be many more.
    ///
    /// A session that changes after it was read has a later record, with which it is read again.
    async fn copy_records(&self, at: &mut Id, moved: &mut Moved) -> Result<bool> {
        let (records, sessions) = self.read(*at).await?;
        let Some(last) = records.last_ids.last() else {
            return Ok(false);
        };
        self.from
            .link
            .commit_alone(self.from.site, sql::BARRIER)
            .await?;
        self.put(&sessions, &records).await?;
        *at = *last;
        let bytes: u64 = records.stored.iter().map(|bytes| bytes.len() as u64).sum();
        let rows = records.last_ids.len() as u64;
        moved.records += rows;
        moved.bytes += bytes;
        let (of_rows, of_bytes) = (ROWS_AT_ONCE.unsigned_abs(), BYTES_AT_ONCE.unsigned_abs());
        Ok(rows == of_rows || bytes >= of_bytes)
    }

    /// Reads the next records after an ID, with their sessions.
    async fn read(&self, at: Id) -> Result<(RecordRows, Sessions)> {
        let shard = i64::from(self.shard);
        let params: [&(dyn ToSql + Sync); 4] = [&shard, &at, &ROWS_AT_ONCE, &BYTES_AT_ONCE];
        let rows = self.from.query(RECORDS, &params).await?;
        let records = records_of(&rows);
        let mut of = records.sessions.clone();
        of.sort_unstable();
        of.dedup();
        let rows = self.from.query(SESSIONS_OF, &[&of]).await?;
        Ok((records, self.sessions(&rows)?))
    }

    fn sessions(&self, rows: &[Row]) -> Result<Sessions> {
        let mut sessions = Sessions::default();
        for row in rows {
            let (name, bytes): (&str, &[u8]) = (row.get(1), row.get(4));
            let into = &mut sessions.rows;
            into.numbers.push(row.get(0));
            into.names.push(name.to_owned());
            into.active.push(row.get(2));
            into.created.push(row.get(3));
            into.states.push(bytes.to_vec());
            let state = state(self.from.site, bytes)?;
            sessions.forks.put(name, state.pieces());
        }
        Ok(sessions)
    }

    /// Writes a part of the copy, in a transaction of its own.
    async fn put(&self, sessions: &Sessions, records: &RecordRows) -> Result<()> {
        self.begin_put().await?;
        self.write(sessions, records).await?;
        self.to.commit().await
    }

    /// Begins a transaction that writes to the copy, if it is still that of this move.
    async fn begin_put(&self) -> Result<()> {
        self.to.begin().await?;
        let of = self.to.query(IS_ARRIVING, &[&self.shard, &self.id]).await?;
        if of.is_empty() {
            return Err(self.given_up());
        }
        Ok(())
    }

    fn given_up(&self) -> Error {
        let why = "the move was given up, and may be begun again";
        self.from.site.io("move a shard of", why)
    }

    async fn write(&self, sessions: &Sessions, records: &RecordRows) -> Result<()> {
        let to = &self.to;
        to.execute(PUT_SESSIONS, &sessions.rows.columns()).await?;
        if let Some(forks) = sessions.forks.columns() {
            to.execute(sql::NEW_FORKS, &forks).await?;
        }
        if !records.last_ids.is_empty() {
            to.execute(sql::NEW_RECORDS, &records.columns()).await?;
        }
        Ok(())
    }

    /// Copies the rest under the lock, and lets the shard leave. Returns whether it has: not if
    /// there was too much to copy.
    async fn leave(&self, at: &mut Id, moved: &mut Moved) -> Result<bool> {
        while self.copy_records(at, moved).await? {}
        let (from, to) = (&self.from, &self.to);
        let began = Instant::now();
        // Nothing has happened until the shard leaves, so it may be given up until then.
        match timeout(2 * LOCKED_MAX, self.copy_rest(*at)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                to.within(to.link.client.batch_execute("ROLLBACK")).await?;
                from.within(from.link.client.batch_execute("ROLLBACK"))
                    .await?;
                return Ok(false);
            }
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => return Err(to.site.io("move a shard to", "it takes too long")),
        }
        from.execute(LEAVE, &[&self.shard, &to.site.database()])
            .await?;
        from.execute(sql::NOTE_MOVE, &[]).await?;
        from.commit().await?;
        moved.locked = began.elapsed();
        Ok(true)
    }

    /// Locks the shard, and copies what is left. Returns whether it was little.
    async fn copy_rest(&self, at: Id) -> Result<bool> {
        let (from, to) = (&self.from, &self.to);
        from.begin().await?;
        if self.lock().await? != Some(self.id) {
            return Err(self.given_up());
        }
        let began = Instant::now();
        self.begin_put().await?;
        let mut at = at;
        loop {
            let (records, sessions) = self.read(at).await?;
            let Some(last) = records.last_ids.last() else {
                break;
            };
            if began.elapsed() > LOCKED_MAX {
                return Ok(false);
            }
            self.write(&sessions, &records).await?;
            at = *last;
        }
        let row = from.query(FILLED, &[&self.shard]).await?;
        let row = row.first().ok_or(Error::Closed)?;
        let fill: [&(dyn ToSql + Sync); 8] = [
            &self.shard,
            &row.get::<_, Id>(0),
            &row.get::<_, i64>(1),
            &row.get::<_, i64>(2),
            &row.get::<_, i64>(3),
            &row.get::<_, Id>(4),
            &row.get::<_, bool>(5),
            &row.get::<_, i64>(6),
        ];
        to.execute(FILL, &fill).await?;
        to.commit().await?;
        Ok(true)
    }
}

/// Returns the columns of records that were read.
fn records_of(rows: &[Row]) -> RecordRows {
    let mut records = RecordRows::default();
    for row in rows {
        records.last_ids.push(row.get(0));
        records.base_ids.push(row.get(1));
        records.sessions.push(row.get(2));
        records.generations.push(row.get(3));
        records.firsts.push(row.get(4));
        records.lasts.push(row.get(5));
        records.keys.push(row.get(6));
        records.stored.push(row.get(7));
    }
    records
}
