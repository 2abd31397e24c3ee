//! fjall: an LSM tree behind a journal. One batch a commit.

use fjall::config::{BlockSizePolicy, CompressionPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Described, Finds};
use crate::store::{CACHE_BYTES, Entry, Ids, Open, Peer, See, key};

pub(super) const DESCRIBED: Described = Described {
    name: "fjall",
    form: None,
    groups: false,
    finds: Finds::Ids,
    setting: "`PersistMode::SyncData` on each batch",
};

pub(super) struct Fjall {
    db: Database,
    events: Keyspace,
    by_id: Keyspace,
    ids: Ids,
}

impl Fjall {
    pub(super) fn open(open: Open<'_>) -> Self {
        let db = Database::builder(open.folder)
            .cache_size(CACHE_BYTES as u64)
            .journal_compression(CompressionType::None)
            .open();
        let db = db.expect("fjall opens");
        let options = || {
            KeyspaceCreateOptions::default()
                .data_block_size_policy(BlockSizePolicy::all(4096))
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::None))
        };
        let events = db.keyspace("events", options).expect("a keyspace");
        let by_id = db.keyspace("ids", options).expect("a keyspace");
        Self {
            db,
            events,
            by_id,
            ids: open.ids,
        }
    }
}

impl Peer for Fjall {
    fn commit(&self, entries: &[Entry]) {
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        for entry in entries {
            let key = key(entry.session, entry.seq);
            batch.insert(&self.events, key, entry.value.as_slice());
            if self.ids == Ids::Found {
                batch.insert(&self.by_id, entry.id.to_be_bytes(), key);
            }
        }
        batch.commit().expect("the commit succeeds");
    }

    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        for entry in self
            .events
            .range(key(session, seq)..key(session, u64::MAX))
            .take(limit)
        {
            see(&entry.value().expect("an entry"));
        }
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        for entry in self
            .events
            .range(key(session, 0)..key(session, u64::MAX))
            .rev()
            .take(limit)
        {
            see(&entry.value().expect("an entry"));
        }
    }

    fn find(&self, id: u128, see: See<'_>) {
        let key = self
            .by_id
            .get(id.to_be_bytes())
            .expect("a read")
            .expect("the ID is there");
        see(&self
            .events
            .get(key)
            .expect("a read")
            .expect("the event is there"));
    }
}
