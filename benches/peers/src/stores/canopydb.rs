//! canopydb: a B-tree behind a write-ahead log. One transaction a commit.

use canopydb::{Database, DbOptions, EnvOptions, Environment, Tree, TreeOptions};

use super::{Described, Finds};
use crate::store::{CACHE_BYTES, Entry, Ids, Open, Peer, See, key};

pub(super) const DESCRIBED: Described = Described {
    name: "canopydb",
    form: None,
    groups: false,
    finds: Finds::Ids,
    setting: "`commit_with(sync: true)`",
};

const EVENTS: &[u8] = b"events";
const IDS: &[u8] = b"ids";

pub(super) struct Canopydb {
    db: Database,
    _environment: Environment,
    ids: Ids,
}

impl Canopydb {
    pub(super) fn open(open: Open<'_>) -> Self {
        let mut options = EnvOptions::new(open.folder);
        options.disable_fsync = false;
        options.page_cache_size = CACHE_BYTES;
        let environment = Environment::with_options(options).expect("canopydb opens");
        let mut options = DbOptions::default();
        options.default_commit_sync = true;
        let db = environment
            .get_or_create_database_with("log", options)
            .expect("a database");
        Self {
            db,
            _environment: environment,
            ids: open.ids,
        }
    }

    fn read<T>(&self, tree: &[u8], read: impl FnOnce(&Tree<'_>) -> T) -> T {
        let transaction = self.db.begin_read().expect("a transaction");
        let tree = transaction
            .get_tree(tree)
            .expect("a tree")
            .expect("the tree is there");
        read(&tree)
    }
}

fn options() -> TreeOptions {
    let mut options = TreeOptions::default();
    options.compress_overflow_values = None;
    options
}

impl Peer for Canopydb {
    fn commit(&self, entries: &[Entry]) {
        let transaction = self.db.begin_write().expect("a transaction");
        {
            let mut events = transaction
                .get_or_create_tree_with(EVENTS, options())
                .expect("a tree");
            for entry in entries {
                events
                    .insert(&key(entry.session, entry.seq), &entry.value)
                    .expect("an insert");
            }
        }
        if self.ids == Ids::Found {
            let mut ids = transaction
                .get_or_create_tree_with(IDS, options())
                .expect("a tree");
            for entry in entries {
                ids.insert(&entry.id.to_be_bytes(), &key(entry.session, entry.seq))
                    .expect("an insert");
            }
        }
        transaction.commit_with(true).expect("the commit succeeds");
    }

    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        self.read(EVENTS, |events| {
            for entry in events
                .range(key(session, seq)..key(session, u64::MAX))
                .expect("a range")
                .take(limit)
            {
                see(&entry.expect("an entry").1);
            }
        });
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        self.read(EVENTS, |events| {
            for entry in events
                .range(key(session, 0)..key(session, u64::MAX))
                .expect("a range")
                .rev()
                .take(limit)
            {
                see(&entry.expect("an entry").1);
            }
        });
    }

    fn find(&self, id: u128, see: See<'_>) {
        let key = self.read(IDS, |ids| {
            ids.get(&id.to_be_bytes())
                .expect("a read")
                .expect("the ID is there")
        });
        self.read(EVENTS, |events| {
            see(&events
                .get(&key)
                .expect("a read")
                .expect("the event is there"))
        });
    }
}
