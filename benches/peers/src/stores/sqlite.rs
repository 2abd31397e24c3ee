//! SQLite: one table, clustered by session and seq. One writer's connection, a connection for each
//! reading thread.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::{Connection, params};
use thread_local::ThreadLocal;

use super::{Described, Finds};
use crate::store::{CACHE_BYTES, Entry, Ids, Open, Peer, See};

pub(super) const DESCRIBED: Described = Described {
    name: "SQLite (rusqlite)",
    form: None,
    groups: false,
    finds: Finds::Ids,
    setting: "`journal_mode = WAL`, `synchronous = FULL`",
};

pub(super) struct Sqlite {
    file: PathBuf,
    writer: Mutex<Connection>,
    readers: ThreadLocal<Connection>,
}

impl Sqlite {
    pub(super) fn open(open: Open<'_>) -> Self {
        let file = open.folder.join("sqlite");
        let writer = connect(&file);
        let table = "CREATE TABLE IF NOT EXISTS events \
                     (session INTEGER, seq INTEGER, id BLOB, value BLOB, \
                     PRIMARY KEY (session, seq)) WITHOUT ROWID";
        writer.execute_batch(table).expect("a table");
        if open.ids == Ids::Found {
            writer
                .execute_batch("CREATE UNIQUE INDEX IF NOT EXISTS ids ON events (id)")
                .expect("an index");
        }
        Self {
            file,
            writer: Mutex::new(writer),
            readers: ThreadLocal::new(),
        }
    }

    fn query(&self, sql: &str, parameters: impl rusqlite::Params, see: See<'_>) {
        let connection = self.readers.get_or(|| connect(&self.file));
        let mut statement = connection.prepare_cached(sql).expect("a statement");
        let mut rows = statement.query(parameters).expect("a query");
        while let Some(row) = rows.next().expect("a row") {
            see(row.get_ref(0).expect("a column").as_blob().expect("a blob"));
        }
    }
}

fn connect(file: &Path) -> Connection {
    let connection = Connection::open(file).expect("SQLite opens");
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .expect("a setting");
    connection
        .pragma_update(None, "synchronous", "FULL")
        .expect("a setting");
    connection
        .pragma_update(None, "mmap_size", 1_i64 << 36)
        .expect("a setting");
    connection
        .pragma_update(None, "cache_size", -(CACHE_BYTES as i64 / 1024))
        .expect("a setting");
    connection
}

impl Peer for Sqlite {
    fn commit(&self, entries: &[Entry]) {
        let mut writer = self.writer.lock();
        let transaction = writer.transaction().expect("a transaction");
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3, ?4)")
                .expect("a statement");
            for entry in entries {
                let seq = i64::try_from(entry.seq).expect("a small seq");
                insert
                    .execute(params![
                        entry.session,
                        seq,
                        entry.id.to_be_bytes(),
                        entry.value
                    ])
                    .expect("an insert");
            }
        }
        transaction.commit().expect("the commit succeeds");
    }

    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        let sql = "SELECT value FROM events WHERE session = ?1 AND seq >= ?2 ORDER BY seq LIMIT ?3";
        self.query(
            sql,
            params![
                session,
                i64::try_from(seq).expect("a small seq"),
                i64::try_from(limit).expect("a small page")
            ],
            see,
        );
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        let sql = "SELECT value FROM events WHERE session = ?1 ORDER BY seq DESC LIMIT ?2";
        self.query(
            sql,
            params![session, i64::try_from(limit).expect("a small page")],
            see,
        );
    }

    fn find(&self, id: u128, see: See<'_>) {
        self.query(
            "SELECT value FROM events WHERE id = ?1",
            params![id.to_be_bytes()],
            see,
        );
    }
}
