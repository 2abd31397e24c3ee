//! redb: a B-tree, copied on write. One transaction a commit.

use redb::{Database, ReadableDatabase, TableDefinition};

use super::{Described, Finds};
use crate::store::{Entry, Ids, KEY_BYTES, Open, Peer, See, key};

pub(super) const DESCRIBED: Described = Described {
    name: "redb",
    form: None,
    groups: false,
    finds: Finds::Ids,
    setting: "`Durability::Immediate` (its default)",
};

const EVENTS: TableDefinition<'_, &[u8; KEY_BYTES], &[u8]> = TableDefinition::new("events");
const IDS: TableDefinition<'_, u128, &[u8; KEY_BYTES]> = TableDefinition::new("ids");

pub(super) struct Redb {
    db: Database,
    ids: Ids,
}

impl Redb {
    pub(super) fn open(open: Open<'_>) -> Self {
        let db = Database::create(open.folder.join("redb")).expect("redb opens");
        let transaction = db.begin_write().expect("a transaction");
        transaction.open_table(EVENTS).expect("a table");
        transaction.open_table(IDS).expect("a table");
        transaction.commit().expect("the commit succeeds");
        Self { db, ids: open.ids }
    }
}

impl Peer for Redb {
    fn commit(&self, entries: &[Entry]) {
        let transaction = self.db.begin_write().expect("a transaction");
        {
            let mut events = transaction.open_table(EVENTS).expect("a table");
            for entry in entries {
                events
                    .insert(&key(entry.session, entry.seq), entry.value.as_slice())
                    .expect("an insert");
            }
            if self.ids == Ids::Found {
                let mut ids = transaction.open_table(IDS).expect("a table");
                for entry in entries {
                    ids.insert(entry.id, &key(entry.session, entry.seq))
                        .expect("an insert");
                }
            }
        }
        transaction.commit().expect("the commit succeeds");
    }

    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        let transaction = self.db.begin_read().expect("a transaction");
        let events = transaction.open_table(EVENTS).expect("a table");
        let range = events
            .range::<&[u8; KEY_BYTES]>(&key(session, seq)..=&key(session, u64::MAX))
            .expect("a range");
        for entry in range.take(limit) {
            see(entry.expect("an entry").1.value());
        }
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        let transaction = self.db.begin_read().expect("a transaction");
        let events = transaction.open_table(EVENTS).expect("a table");
        let range = events
            .range::<&[u8; KEY_BYTES]>(&key(session, 0)..=&key(session, u64::MAX))
            .expect("a range");
        for entry in range.rev().take(limit) {
            see(entry.expect("an entry").1.value());
        }
    }

    fn find(&self, id: u128, see: See<'_>) {
        let transaction = self.db.begin_read().expect("a transaction");
        let ids = transaction.open_table(IDS).expect("a table");
        let key = ids.get(id).expect("a read").expect("the ID is there");
        let events = transaction.open_table(EVENTS).expect("a table");
        see(events
            .get(key.value())
            .expect("a read")
            .expect("the event is there")
            .value());
    }
}
