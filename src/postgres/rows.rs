//! What a group writes, as the columns of the statements that write it.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::codec::Record;
use crate::model::{EventId, Op, Piece, SessionId};
use crate::postgres::group::{Decided, Session};
use crate::postgres::schema;
use crate::postgres::shards::session_number;
use crate::postgres::sql::{self, Id};

/// The format of the tables, as the shard's row has it.
const FORMAT: i32 = schema::FORMAT.cast_signed();

/// A value of a statement.
type Value<'a> = &'a (dyn ToSql + Sync);

/// The shard's row.
#[derive(Clone, Copy)]
pub(super) struct Shard {
    pub number: i32,
    pub last_id: EventId,
    pub sessions: i64,
    pub events: i64,
    /// The barriers under its lock.
    pub epoch: i64,
    pub now_ms: u64,
}

impl Shard {
    /// Reads its row, as it was locked.
    pub(super) fn of(number: i32, row: &Row) -> Self {
        let now_ms: i64 = row.get(3);
        Self {
            number,
            last_id: row.get::<_, Id>(0).0,
            sessions: row.get(1),
            events: row.get(2),
            epoch: row.get("epoch"),
            now_ms: u64::try_from(now_ms).unwrap_or(0),
        }
    }
}

/// Rows of `session`, column by column.
#[derive(Default)]
pub(super) struct SessionRows {
    pub numbers: Vec<i64>,
    pub names: Vec<String>,
    pub active: Vec<Option<Id>>,
    pub created: Vec<Option<Id>>,
    pub states: Vec<Vec<u8>>,
}

impl SessionRows {
    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    pub(super) fn columns(&self) -> [Value<'_>; 5] {
        [
            &self.numbers,
            &self.names,
            &self.active,
            &self.created,
            &self.states,
        ]
    }
}

/// Rows of `record`, column by column.
#[derive(Default)]
pub(super) struct RecordRows {
    pub last_ids: Vec<Id>,
    pub base_ids: Vec<Id>,
    pub sessions: Vec<i64>,
    pub generations: Vec<i32>,
    pub firsts: Vec<i64>,
    pub lasts: Vec<i64>,
    pub keys: Vec<Option<Vec<u8>>>,
    pub stored: Vec<Vec<u8>>,
}

impl RecordRows {
    pub(super) fn columns(&self) -> [Value<'_>; 8] {
        [
            &self.last_ids,
            &self.base_ids,
            &self.sessions,
            &self.generations,
            &self.firsts,
            &self.lasts,
            &self.keys,
            &self.stored,
        ]
    }
}

/// Keys in sessions, column by column.
#[derive(Default)]
pub(super) struct KeyRows {
    sessions: Vec<i64>,
    hashes: Vec<Vec<u8>>,
}

impl KeyRows {
    pub(super) fn put(&mut self, session: i64, hash: Vec<u8>) {
        self.sessions.push(session);
        self.hashes.push(hash);
    }
}

/// What a group writes, column by column.
pub(super) struct Rows {
    shard: Shard,
    last_id_before: Id,
    last_id: Id,
    now_ms: i64,
    pub new: SessionRows,
    pub moved: SessionRows,
    records: RecordRows,
    forks: Forks,
    removal_names: Vec<String>,
    removal_ids: Vec<Id>,
    removal_times: Vec<i64>,
    removal_events: Vec<i64>,
    removing: i64,
    retains: bool,
}

impl Rows {
    /// The values for new sessions.
    pub(super) fn new_sessions(&self) -> [Value<'_>; 5] {
        self.new.columns()
    }

    /// The values for sessions that were there before.
    pub(super) fn moved_sessions(&self) -> [Value<'_>; 4] {
        let rows = &self.moved;
        [&rows.numbers, &rows.active, &rows.created, &rows.states]
    }

    pub(super) fn records(&self) -> [Value<'_>; 8] {
        self.records.columns()
    }

    pub(super) fn forks(&self) -> Option<[Value<'_>; 3]> {
        self.forks.columns()
    }

    pub(super) fn removals(&self) -> Option<[Value<'_>; 4]> {
        let values: [Value<'_>; 4] = [
            &self.removal_names,
            &self.removal_ids,
            &self.removal_times,
            &self.removal_events,
        ];
        (!self.removal_names.is_empty()).then_some(values)
    }

    /// The values for all of a quick group: the shard's row as it has to be and as it becomes, keys
    /// that must not be there, sessions and records.
    pub(super) fn quick<'a>(&'a self, keys: &'a KeyRows) -> [Value<'a>; 21] {
        let [numbers, active, created, states] = self.moved_sessions();
        let [
            last_ids,
            base_ids,
            sessions,
            generations,
            firsts,
            lasts,
            of_keys,
            records,
        ] = self.records();
        [
            &self.shard.number,
            &self.last_id_before,
            &self.shard.epoch,
            &FORMAT,
            &self.now_ms,
            &self.last_id,
            &self.shard.events,
            &keys.sessions,
            &keys.hashes,
            numbers,
            active,
            created,
            states,
            last_ids,
            base_ids,
            sessions,
            generations,
            firsts,
            lasts,
            of_keys,
            records,
        ]
    }

    pub(super) fn shard(&self) -> [Value<'_>; 6] {
        [
            &self.shard.number,
            &self.last_id,
            &self.shard.sessions,
            &self.shard.events,
            &self.removing,
            &self.retains,
        ]
    }
}

impl Rows {
    pub(super) fn of(
        decided: &Decided,
        sessions: &mut HashMap<SessionId, Session>,
        shard: Shard,
    ) -> Self {
        let removing = decided.records.iter().filter(|record| record.removes());
        let mut rows = Self::new(shard);
        rows.removing = i64::try_from(removing.count()).unwrap_or(i64::MAX);
        rows.retains = decided.records.iter().any(|record| record.retains());
        rows.put_sessions(sessions);
        for record in &decided.records {
            rows.put_record(record, sessions);
        }
        for removal in &decided.removals {
            rows.removal_names.push(removal.session.to_string());
            rows.removal_ids.push(Id(removal.id));
            rows.removal_times.push(removal.at_ms.cast_signed());
            rows.removal_events.push(removal.events.cast_signed());
        }
        rows
    }

    /// Returns no rows.
    pub(super) fn new(shard: Shard) -> Self {
        Self {
            shard,
            last_id_before: Id(shard.last_id),
            last_id: Id(shard.last_id),
            now_ms: shard.now_ms.cast_signed(),
            new: SessionRows::default(),
            moved: SessionRows::default(),
            records: RecordRows::default(),
            forks: Forks::default(),
            removal_names: Vec::new(),
            removal_ids: Vec::new(),
            removal_times: Vec::new(),
            removal_events: Vec::new(),
            removing: 0,
            retains: false,
        }
    }

    /// The shard's row with these rows.
    pub(super) fn written(&self) -> Shard {
        Shard {
            last_id: self.last_id.0,
            ..self.shard
        }
    }

    /// Adds the sessions that have changed. A new one gets its number.
    pub(super) fn put_sessions(&mut self, sessions: &mut HashMap<SessionId, Session>) {
        for (name, session) in sessions {
            if !session.has_changed {
                continue;
            }
            let rows = if session.number.is_some() {
                &mut self.moved
            } else {
                self.shard.sessions += 1;
                session.number = Some(session_number(self.shard.number, self.shard.sessions));
                &mut self.new
            };
            let state = &session.state;
            rows.numbers.push(session.number.unwrap_or_default());
            rows.names.push(name.to_string());
            rows.active
                .push(state.is_there().then_some(Id(state.active_id)));
            rows.created
                .push(state.is_there().then_some(Id(state.created_id)));
            rows.states.push(sql::stored_state(state));
        }
    }

    /// Adds a record of one of the sessions.
    pub(super) fn put_record(&mut self, record: &Record, of: &HashMap<SessionId, Session>) {
        let session = of.get(&record.session).and_then(|session| session.number);
        self.last_id = Id(record.last_id());
        self.shard.events += i64::from(record.count);
        let rows = &mut self.records;
        rows.last_ids.push(Id(record.last_id()));
        rows.base_ids.push(Id(record.base));
        rows.sessions.push(session.unwrap_or_default());
        rows.generations.push(record.generation.cast_signed());
        rows.firsts.push(record.first.cast_signed());
        rows.lasts.push(record.last().cast_signed());
        let key = record.key.as_ref();
        rows.keys.push(key.map(|key| sql::key_hash(&key.text)));
        rows.stored.push(sql::stored(record));
        for op in record.ops() {
            if let Op::Fork(lineage) = op {
                self.put_forks(&record.session, &lineage.pieces);
            }
        }
    }

    /// Adds a fork of what these pieces are of.
    pub(super) fn put_forks(&mut self, child: &SessionId, pieces: &[Piece]) {
        self.forks.put(child.as_str(), pieces);
    }
}

/// Rows of `fork`, column by column.
#[derive(Default)]
pub(super) struct Forks {
    ancestors: Vec<String>,
    generations: Vec<i32>,
    children: Vec<String>,
}

impl Forks {
    /// Adds a fork of what these pieces are of.
    pub(super) fn put(&mut self, child: &str, pieces: &[Piece]) {
        for piece in pieces {
            self.ancestors.push(piece.session.to_string());
            self.generations.push(piece.generation.cast_signed());
            self.children.push(child.to_owned());
        }
    }

    pub(super) fn columns(&self) -> Option<[Value<'_>; 3]> {
        let values: [Value<'_>; 3] = [&self.ancestors, &self.generations, &self.children];
        (!self.ancestors.is_empty()).then_some(values)
    }
}
