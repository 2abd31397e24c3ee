//! sled with a key per event, as an application would lay a log out on it. Its own `flush` reaches
//! no stable storage, so its file is synced afterwards.

use std::fs::File;

use parking_lot::Mutex;
use sled::{Batch, Db};

use super::{Described, Finds};
use crate::store::{CACHE_BYTES, Entry, Ids, Open, Peer, See, id_key, key};

pub(super) const DESCRIBED: Described = Described {
    name: "sled",
    form: None,
    groups: false,
    finds: Finds::Ids,
    setting: "`flush`, then `fdatasync` of its file by the application",
};

pub(super) struct Sled {
    db: Db,
    /// The file of the log, through a descriptor of our own.
    file: Mutex<File>,
    ids: Ids,
}

impl Sled {
    pub(super) fn open(open: Open<'_>) -> Self {
        let db = sled::Config::new()
            .path(open.folder)
            .cache_capacity(CACHE_BYTES as u64)
            .flush_every_ms(None)
            .open()
            .expect("sled opens");
        let file = Mutex::new(File::open(open.folder.join("db")).expect("sled has a file"));
        Self {
            db,
            file,
            ids: open.ids,
        }
    }
}

impl Peer for Sled {
    fn commit(&self, entries: &[Entry]) {
        let mut batch = Batch::default();
        for entry in entries {
            let key = key(entry.session, entry.seq);
            batch.insert(&key, entry.value.as_slice());
            if self.ids == Ids::Found {
                batch.insert(&id_key(entry.id), &key);
            }
        }
        self.db.apply_batch(batch).expect("the commit succeeds");
        self.db.flush().expect("the flush succeeds");
        self.file.lock().sync_data().expect("the barrier succeeds");
    }

    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        for entry in self
            .db
            .range(key(session, seq)..key(session, u64::MAX))
            .take(limit)
        {
            see(&entry.expect("an entry").1);
        }
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        for entry in self
            .db
            .range(key(session, 0)..key(session, u64::MAX))
            .rev()
            .take(limit)
        {
            see(&entry.expect("an entry").1);
        }
    }

    fn find(&self, id: u128, see: See<'_>) {
        let key = self
            .db
            .get(id_key(id))
            .expect("a read")
            .expect("the ID is there");
        see(&self
            .db
            .get(key)
            .expect("a read")
            .expect("the event is there"));
    }
}
