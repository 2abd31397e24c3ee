//! The statements, and how IDs and records stand in columns.

use bytes::{BufMut, Bytes, BytesMut};
use postgres_types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::codec::{Decoded, Fault, RawRecord, Record, SessionState};
use crate::model::EventId;

/// Shows, once it is committed, that what is seen is on a quorum. It waits for no shard.
pub(super) const BARRIER: &str = "UPDATE meta SET barriers = barriers + 1";
pub(super) const LOCK: &str = "SELECT last_id, sessions, events, \
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint, format, epoch, here, move FROM shard \
    WHERE shard = $1 FOR UPDATE";
/// The same of several shards, in their order, in which each is locked.
pub(super) const LOCK_ALL: &str = "SELECT last_id, sessions, events, \
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint, format, epoch, here, shard FROM shard \
    WHERE shard = ANY($1::int[]) ORDER BY shard FOR UPDATE";
pub(super) const HEADS: &str =
    "SELECT name, session, state FROM session WHERE name = ANY($1::text[])";
/// The newest record under each key. Older ones were trimmed, or are of an earlier generation.
pub(super) const KEYS: &str = "SELECT q.i, r.record \
    FROM unnest($1::int[], $2::text[], $3::bytea[]) q(i, name, key) \
    CROSS JOIN LATERAL (SELECT record FROM record WHERE session = (SELECT session FROM session \
    WHERE name = q.name) AND key = q.key ORDER BY last_id DESC LIMIT 1) r";
/// The records with events after a seq. `OFFSET` keeps it a search of its own for each member.
pub(super) const SINCE: &str = "SELECT q.i, r.record \
    FROM unnest($1::int[], $2::text[], $3::int[], $4::bigint[]) q(i, name, generation, through) \
    CROSS JOIN LATERAL (SELECT first_seq, record FROM record WHERE session = (SELECT session \
    FROM session WHERE name = q.name) AND generation = q.generation AND first_seq > q.through \
    AND last_seq >= first_seq OFFSET 0) r ORDER BY q.i, r.first_seq";
pub(super) const NEW_SESSIONS: &str = "INSERT INTO session (session, name, active_id, created_id, \
    state) SELECT * FROM unnest($1::bigint[], $2::text[], $3::uuid[], $4::uuid[], $5::bytea[])";
pub(super) const MOVE_SESSIONS: &str = "UPDATE session s SET active_id = u.active_id, \
    created_id = u.created_id, state = u.state \
    FROM unnest($1::bigint[], $2::uuid[], $3::uuid[], $4::bytea[]) \
    u(session, active_id, created_id, state) WHERE s.session = u.session";
pub(super) const NEW_RECORDS: &str = "INSERT INTO record (last_id, base_id, session, generation, \
    first_seq, last_seq, key, record) SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], \
    $4::int[], $5::bigint[], $6::bigint[], $7::bytea[], $8::bytea[])";
pub(super) const NEW_FORKS: &str = "INSERT INTO fork (ancestor, generation, child) \
    SELECT * FROM unnest($1::text[], $2::int[], $3::text[]) ON CONFLICT DO NOTHING";
pub(super) const NEW_REMOVALS: &str = "INSERT INTO removal (name, id, at_ms, events) \
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::bigint[])";
pub(super) const MOVE_SHARD: &str = "UPDATE shard SET last_id = $2, sessions = $3, events = $4, \
    removals = removals + $5, retains = retains OR $6 WHERE shard = $1";
/// All of a group in one statement, if the shard's row is as it was left and none of the keys is
/// there. The time of the group may be a little behind the database's clock, and hardly before it.
pub(super) const QUICK: &str = "WITH held AS (UPDATE shard SET last_id = $6, events = $7 \
    WHERE shard = $1 AND last_id = $2 AND epoch = $3 AND format = $4 AND here \
    AND (extract(epoch FROM clock_timestamp()) * 1000)::bigint BETWEEN $5::bigint - 10 \
    AND $5::bigint + 10000 AND NOT EXISTS (SELECT FROM unnest($8::bigint[], $9::bytea[]) \
    k(session, key) \
    JOIN record r ON r.session = k.session AND r.key = k.key) RETURNING shard), \
    moved AS (UPDATE session s SET active_id = u.active_id, created_id = u.created_id, \
    state = u.state FROM unnest($10::bigint[], $11::uuid[], $12::uuid[], $13::bytea[]) \
    u(session, active_id, created_id, state) WHERE s.session = u.session \
    AND EXISTS (SELECT FROM held)), \
    added AS (INSERT INTO record (last_id, base_id, session, generation, first_seq, last_seq, key, \
    record) SELECT * FROM unnest($14::uuid[], $15::uuid[], $16::bigint[], $17::int[], \
    $18::bigint[], $19::bigint[], $20::bytea[], $21::bytea[]) WHERE EXISTS (SELECT FROM held)) \
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM held";
/// Whether a record is there, to the byte, and the last ID that was erased.
pub(super) const HOLDS: &str = "SELECT EXISTS (SELECT FROM record WHERE last_id = $1 \
    AND record = $2), erased_through FROM shard WHERE shard = $3";

/// The state of a session, and whether its shard is here.
pub(super) const STATE: &str = "SELECT state, $2::int IS NOT NULL FROM (SELECT) one \
    LEFT JOIN session ON name = $1";
/// The same of several shards. There is none of a shard that never was there.
pub(super) const STATE_IN: &str = "SELECT state, here FROM shard LEFT JOIN session ON name = $1 \
    WHERE shard = $2";
/// The records from the one that holds a seq upwards, until they reach some bytes.
pub(super) const UP: &str = "SELECT record FROM (SELECT record, \
    sum(octet_length(record)) OVER (ORDER BY first_seq) - octet_length(record) AS before \
    FROM (SELECT first_seq, record FROM record WHERE session = (SELECT session FROM session \
    WHERE name = $1) AND generation = $2 AND last_seq >= first_seq AND first_seq >= (SELECT \
    max(first_seq) FROM record WHERE session = (SELECT session FROM session WHERE name = $1) \
    AND generation = $2 AND last_seq >= first_seq AND first_seq <= $3) AND first_seq <= $4 \
    ORDER BY first_seq) s) p WHERE before < $5";
/// The same downwards, the highest first.
pub(super) const DOWN: &str = "SELECT record FROM (SELECT record, \
    sum(octet_length(record)) OVER (ORDER BY first_seq DESC) - octet_length(record) AS before \
    FROM (SELECT first_seq, record FROM record WHERE session = (SELECT session FROM session \
    WHERE name = $1) AND generation = $2 AND last_seq >= first_seq AND first_seq <= $4 \
    AND last_seq >= $3 AND first_seq >= (SELECT coalesce(max(first_seq), 0) FROM record \
    WHERE session = (SELECT session FROM session WHERE name = $1) AND generation = $2 \
    AND last_seq >= first_seq AND first_seq <= $3) ORDER BY first_seq DESC) s) p \
    WHERE before < $5";
pub(super) const AT_OR_AFTER: &str =
    "SELECT base_id, record FROM record WHERE last_id >= $1 ORDER BY last_id LIMIT 1";
/// The same of several shards. It looks in each that is here, so it passes over none of the rows
/// that arrive.
pub(super) const AT_OR_AFTER_IN: &str = "SELECT base_id, record FROM shard CROSS JOIN LATERAL \
    (SELECT last_id, base_id, record FROM record WHERE (session >> 40, last_id) \
    >= (shard.shard::bigint, $1) AND (session >> 40, last_id) \
    < (shard.shard::bigint + 1, '00000000-0000-0000-0000-000000000000'::uuid) \
    ORDER BY session >> 40, last_id LIMIT 1) r WHERE shard.here ORDER BY r.last_id LIMIT 1";
/// The records from an ID on, and with each the last ID of the shard. Without any it comes alone.
pub(super) const FEED: &str = "SELECT shard.last_id, p.last_id, p.record, shard.last_id \
    FROM shard LEFT JOIN \
    (SELECT last_id, record, \
    sum(octet_length(record)) OVER (ORDER BY last_id) - octet_length(record) AS before \
    FROM (SELECT last_id, record FROM record WHERE last_id >= $1 ORDER BY last_id LIMIT 256) s) p \
    ON p.before < $2 WHERE shard.shard = 0 ORDER BY p.last_id";
/// The same of several shards, up to the ID to which all of them are closed. The last column is the
/// highest ID of all.
pub(super) const FEED_OF_ALL: &str = "SELECT closed.last_id, p.last_id, p.record, \
    (SELECT last_id FROM shard WHERE here ORDER BY last_id DESC LIMIT 1) \
    FROM (SELECT last_id FROM shard WHERE here ORDER BY last_id LIMIT 1) closed LEFT JOIN LATERAL \
    (SELECT last_id, record, \
    sum(octet_length(record)) OVER (ORDER BY last_id) - octet_length(record) AS before \
    FROM (SELECT last_id, record FROM record WHERE last_id >= $1 AND last_id <= closed.last_id \
    AND session >> 40 = ANY (ARRAY(SELECT shard::bigint FROM shard WHERE here)) \
    ORDER BY last_id LIMIT 256) s) p ON p.before < $2 ORDER BY p.last_id";
/// One shard is closed as it is.
pub(super) const CLOSE_NOTHING: &str = "SELECT $1::uuid";
/// Closes the shards at rest up to the highest ID of all, or to another. What holds the lock of one
/// goes on.
pub(super) const CLOSE: &str = "UPDATE shard SET last_id = greatest(shard.last_id, newest.last_id) \
    FROM (SELECT greatest($1::uuid, (SELECT last_id FROM shard WHERE here \
    ORDER BY last_id DESC LIMIT 1)) AS last_id) newest \
    WHERE shard.last_id < newest.last_id AND shard.shard IN (SELECT shard FROM shard s \
    WHERE s.here AND s.last_id < greatest($1::uuid, (SELECT last_id FROM shard WHERE here \
    ORDER BY last_id DESC LIMIT 1)) FOR UPDATE SKIP LOCKED)";
/// Closes what the locks are held of, once it is said which shards these are.
pub(super) const CLOSE_LOCKED: &str = "UPDATE shard SET last_id = newest.last_id \
    FROM (SELECT last_id FROM shard WHERE here ORDER BY last_id DESC LIMIT 1) newest \
    WHERE shard.last_id < newest.last_id";
/// Closes all of them, and waits for what holds a lock. The locks are kept.
pub(super) const CLOSE_ALL: &str = "UPDATE shard SET last_id = greatest(last_id, $1) WHERE here";
pub(super) const FORKS: &str = "SELECT child FROM fork WHERE ancestor = $1 AND generation = $2";
pub(super) const SHARD: &str = "SELECT last_id, events, removals, erased_through, retains, \
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM shard WHERE shard = 0";
/// The same over several shards.
pub(super) const SHARDS: &str = "SELECT (SELECT last_id FROM shard WHERE here \
    ORDER BY last_id DESC LIMIT 1), sum(events)::bigint, sum(removals)::bigint, \
    (SELECT erased_through FROM shard WHERE here ORDER BY erased_through DESC LIMIT 1), \
    bool_or(retains), (extract(epoch FROM clock_timestamp()) * 1000)::bigint \
    FROM shard WHERE here HAVING count(*) > 0";
/// Which shards are here, came or left.
pub(super) const PLACES: &str = "SELECT shard, here, move, moved_to FROM shard";
/// Whether a shard is here, and how many came or left.
pub(super) const HERE: &str = "SELECT here, (SELECT moves FROM meta) FROM shard WHERE shard = $1";
/// What is counted of each shard that is here.
pub(super) const COUNTS: &str =
    "SELECT shard, sessions, events, move IS NOT NULL FROM shard WHERE here ORDER BY shard";
/// Counts a shard that leaves.
pub(super) const NOTE_MOVE: &str = "UPDATE meta SET moves = moves + 1";
/// Makes a shard at home that has arrived. The database that it left says that it is whole.
pub(super) const ARRIVE: &str = "WITH here AS (UPDATE shard SET here = true, move = NULL \
    WHERE shard = $1 AND move = $2 AND NOT here AND moved_to IS NULL RETURNING shard) \
    UPDATE meta SET moves = moves + 1 WHERE EXISTS (SELECT FROM here)";
/// The forks under way that share events of a session from another database.
pub(super) const PINS: &str = "SELECT ticket FROM pin WHERE ancestor = $1";
pub(super) const PIN: &str =
    "INSERT INTO pin (ticket, ancestor) SELECT $1, * FROM unnest($2::text[])";
pub(super) const UNPIN: &str = "DELETE FROM pin WHERE ticket = $1";
/// Takes a ticket away. It waits for a commit that uses it, and commits something in any case.
pub(super) const REVOKE: &str = "WITH gone AS (DELETE FROM ticket WHERE ticket = $1) \
    UPDATE meta SET barriers = barriers + 1";
/// Uses a ticket.
pub(super) const USE: &str = "DELETE FROM ticket WHERE ticket = $1";
/// Holds a ticket until the end of the transaction.
pub(super) const HOLD: &str = "SELECT ticket FROM ticket WHERE ticket = $1 FOR UPDATE";
pub(super) const REMOVED: &str = "SELECT min(at_ms), coalesce(sum(events), 0)::bigint FROM removal";
/// The session of the oldest removal after a place, with its removals, if the oldest is due. It may
/// be of another shard than the sessions that were removed from, so their IDs are in no order of
/// commits.
pub(super) const DUE: &str = "SELECT name, ARRAY(SELECT id FROM removal WHERE name = due.name \
    ORDER BY id LIMIT 1000), at_ms FROM (SELECT name, at_ms FROM removal WHERE at_ms <= $1 \
    AND (at_ms, name) > ($2::bigint, $3::text) ORDER BY at_ms, name LIMIT 1) due";
/// The number of sessions and keys.
pub(super) const ITEMS: &str = "SELECT (SELECT count(*) FROM session) \
    + (SELECT count(*) FROM record WHERE key IS NOT NULL)";
pub(super) const SIZE: &str =
    "SELECT pg_total_relation_size('record') + pg_total_relation_size('session')";

/// The records with events of a session after a place, before another, until they reach some bytes.
pub(super) const ERASABLE: &str = "SELECT last_id, record FROM (SELECT last_id, record, \
    generation, first_seq, sum(octet_length(record)) OVER (ORDER BY generation, first_seq) \
    - octet_length(record) AS before FROM (SELECT last_id, record, generation, first_seq \
    FROM record WHERE session = (SELECT session FROM session WHERE name = $1) \
    AND last_seq >= first_seq AND (generation, first_seq) > ($2::int, $3::bigint) \
    AND (generation, first_seq) < ($4::int, $5::bigint) \
    ORDER BY generation, first_seq LIMIT $6) s) p WHERE before < $7 \
    ORDER BY generation, first_seq";
/// The same of records without events, of a generation before one.
pub(super) const ERASABLE_CHANGES: &str = "SELECT last_id, record FROM (SELECT last_id, record, \
    generation, sum(octet_length(record)) OVER (ORDER BY generation, last_id) \
    - octet_length(record) AS before FROM (SELECT last_id, record, generation FROM record \
    WHERE session = (SELECT session FROM session WHERE name = $1) AND last_seq < first_seq \
    AND last_id > $2 AND generation < $3::int ORDER BY generation, last_id LIMIT $4) s) p \
    WHERE before < $5 ORDER BY generation, last_id";
pub(super) const AT_OR_AFTER_WITH_ID: &str =
    "SELECT last_id, record FROM record WHERE last_id >= $1 ORDER BY last_id LIMIT 1";
pub(super) const ERASE: &str = "DELETE FROM record WHERE last_id = ANY($1::uuid[])";
pub(super) const REPLACE: &str = "UPDATE record SET last_id = $2, base_id = $3, first_seq = $4, \
    last_seq = $5, key = $6, record = $7 WHERE last_id = $1";
pub(super) const NOTE_ERASED: &str =
    "UPDATE shard SET erased_through = greatest(erased_through, $2) WHERE shard = $1";
pub(super) const VACUUM: &str = "VACUUM record";
pub(super) const ERASED: &str = "DELETE FROM removal WHERE name = $1 AND id = ANY($2::uuid[])";

/// The lists of sessions, in each order and direction, after a position. Of several shards, what
/// another database has is left out: it is on its way here, or it has left.
macro_rules! sessions_where {
    ($($name:ident $in_name:ident $place:literal $order:literal,)*) => {
        $(
            pub(super) const $name: &str = concat!(
                "SELECT name, state FROM session WHERE ", $place, " ORDER BY ", $order, " LIMIT $2"
            );
            pub(super) const $in_name: &str = concat!(
                "SELECT name, state FROM session WHERE ", $place, " AND session >> 40 = ANY \
                (ARRAY(SELECT shard::bigint FROM shard WHERE here)) ORDER BY ", $order, " LIMIT $2"
            );
        )*
    };
}

sessions_where! {
    BY_ID_UP BY_ID_UP_IN "name > $1" "name",
    BY_ID_FROM BY_ID_FROM_IN "name >= $1" "name",
    BY_ID_DOWN BY_ID_DOWN_IN "name < $1" "name DESC",
    BY_ACTIVITY_UP BY_ACTIVITY_UP_IN "active_id > $1" "active_id",
    BY_ACTIVITY_DOWN BY_ACTIVITY_DOWN_IN "active_id < $1" "active_id DESC",
    BY_CREATION_UP BY_CREATION_UP_IN "created_id > $1" "created_id",
    BY_CREATION_DOWN BY_CREATION_DOWN_IN "created_id < $1" "created_id DESC",
}

/// Makes the shard's row that of a log that was imported.
pub(super) const SET_SHARD: &str = "UPDATE shard SET last_id = $2, sessions = $3, events = $4, \
    erased_through = $5, retains = $6 WHERE shard = $1";
/// Has every session looked through for what is removed, as something that is long due.
pub(super) const ERASE_ALL: &str = "INSERT INTO removal (name, id, at_ms, events) \
    SELECT name, $1, 0, 0 FROM session";

/// The sessions of the records after an ID.
pub(super) const NEWS: &str = "SELECT r.last_id, s.name, 0 FROM record r \
    JOIN session s ON s.session = r.session WHERE r.last_id > $1 ORDER BY r.last_id LIMIT 1000";
/// The same of each shard after an ID of its own, with the shard. It compares whole rows of the
/// index of shards: a search by the ID alone would pass over all that is new in the other shards.
pub(super) const NEWS_OF_ALL: &str = "SELECT r.last_id, s.name, q.shard \
    FROM unnest($1::int[], $2::uuid[]) q(shard, through) \
    CROSS JOIN LATERAL (SELECT last_id, session FROM record \
    WHERE (session >> 40, last_id) > (q.shard::bigint, q.through) AND (session >> 40, last_id) \
    < (q.shard::bigint + 1, '00000000-0000-0000-0000-000000000000'::uuid) \
    ORDER BY session >> 40, last_id LIMIT 1000) r \
    JOIN session s ON s.session = r.session ORDER BY q.shard, r.last_id";
/// The number of batches that removed something, and that of shards that came or left.
pub(super) const REMOVALS: &str =
    "SELECT coalesce(sum(removals), 0)::bigint, (SELECT moves FROM meta) FROM shard";
/// The last ID of each shard.
pub(super) const LAST_IDS: &str = "SELECT shard, last_id FROM shard WHERE here ORDER BY shard";

/// The statements that are not prepared before they are needed.
#[cfg(all(test, not(shuttle)))]
pub(super) const OTHERS: &[&str] = &[
    LOCK_ALL,
    HERE,
    HOLD,
    USE,
    HOLDS,
    ERASABLE,
    ERASABLE_CHANGES,
    AT_OR_AFTER_WITH_ID,
    ERASE,
    REPLACE,
    NOTE_ERASED,
    ERASED,
    NEWS,
    LAST_IDS,
    REMOVALS,
];

/// The statements of a log of several shards, which has an index more.
#[cfg(all(test, not(shuttle)))]
pub(super) const OF_SEVERAL: &[&str] = &[CLOSE_LOCKED, CLOSE_ALL, NEWS_OF_ALL];

/// An ID, which is a UUID in a column. Both compare as their bytes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(pub EventId);

impl ToSql for Id {
    fn to_sql(
        &self,
        _of: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_u128(self.0.to_u128());
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::UUID
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Id {
    fn from_sql(
        _of: &Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(EventId::from_u128(u128::from_be_bytes(
            raw.try_into()?,
        ))))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::UUID
    }
}

/// Returns a record as its column holds it.
pub(super) fn stored(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(record.stored_bytes_max());
    record.put_head(&mut bytes);
    bytes.extend_from_slice(record.body());
    bytes
}

/// Reads a record out of its column, with every check that reading from a file makes.
pub(super) fn record(bytes: &[u8]) -> Decoded<Record> {
    let bytes = Bytes::copy_from_slice(bytes);
    if !RawRecord::split(&bytes, 0)?.body_matches() {
        return Err(Fault::Damaged {
            at: 0,
            what: "a checksum that does not match",
        });
    }
    let record = Record::decode(&bytes, 0)?;
    record.check_events()?;
    Ok(record)
}

/// Returns the state of a session as its column holds it.
pub(super) fn stored_state(state: &SessionState) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.put(&mut bytes);
    bytes
}

/// Returns what finds an idempotency key in its column. A text of any length is too long for an
/// index.
pub(super) fn key_hash(key: &str) -> Vec<u8> {
    let hash = blake3::hash(key.as_bytes());
    hash.as_bytes().iter().take(16).copied().collect()
}
