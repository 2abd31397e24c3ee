//! surrealkv: an LSM tree behind a write-ahead log, on tokio. One transaction a commit.

use std::sync::Arc;

use surrealkv::{Durability, LSMIterator, Mode, Options, Transaction, Tree, TreeBuilder};
use tokio::runtime::Runtime;

use super::{Described, Finds};
use crate::store::{Answer, CACHE_BYTES, Entry, Ids, Open, Peer, See, id_key, key};

pub(super) const DESCRIBED: Described = Described {
    name: "surrealkv",
    form: None,
    groups: true,
    finds: Finds::Ids,
    setting: "`Durability::Immediate`",
};

pub(super) const PREALLOCATED: Described = Described {
    name: "surrealkv, preallocated",
    setting: "`Durability::Immediate`, WAL preallocation",
    ..DESCRIBED
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preallocation {
    Off,
    On,
}

pub(super) struct SurrealKv {
    runtime: Runtime,
    tree: Tree,
    ids: Ids,
}

impl SurrealKv {
    pub(super) fn open(open: Open<'_>, preallocation: Preallocation) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let options = Options::new()
            .with_path(open.folder.to_path_buf())
            .with_wal_preallocation(preallocation == Preallocation::On)
            .with_block_cache_capacity(CACHE_BYTES as u64)
            .with_compression_per_level(Vec::new());
        let tree = runtime
            .block_on(async { TreeBuilder::with_options(options).build() })
            .expect("surrealkv opens");
        Self {
            runtime,
            tree,
            ids: open.ids,
        }
    }

    fn transaction(&self, entries: &[Entry]) -> Transaction {
        let transaction = self
            .tree
            .begin_with_mode(Mode::WriteOnly)
            .expect("a transaction");
        let mut transaction = transaction.with_durability(Durability::Immediate);
        for entry in entries {
            let key = key(entry.session, entry.seq);
            transaction
                .set(&key[..], entry.value.as_slice())
                .expect("an insert");
            if self.ids == Ids::Found {
                transaction
                    .set(&id_key(entry.id)[..], &key[..])
                    .expect("an insert");
            }
        }
        transaction
    }
}

impl Peer for SurrealKv {
    fn commit(&self, entries: &[Entry]) {
        let mut transaction = self.transaction(entries);
        self.runtime
            .handle()
            .block_on(transaction.commit())
            .expect("the commit succeeds");
    }

    fn commit_async(self: Arc<Self>, entries: Vec<Entry>) -> Answer<'static> {
        let mut transaction = self.transaction(&entries);
        Box::pin(async move { transaction.commit().await.expect("the commit succeeds") })
    }

    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        let transaction = self
            .tree
            .begin_with_mode(Mode::ReadOnly)
            .expect("a transaction");
        let mut range = transaction
            .range(&key(session, seq)[..], &key(session, u64::MAX)[..])
            .expect("a range");
        let mut is_there = range.seek_first().expect("an entry");
        for _ in 0..limit {
            if !is_there {
                break;
            }
            see(&range.value_ref().expect("a value"));
            is_there = range.next().expect("an entry");
        }
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        let transaction = self
            .tree
            .begin_with_mode(Mode::ReadOnly)
            .expect("a transaction");
        let mut range = transaction
            .range(&key(session, 0)[..], &key(session, u64::MAX)[..])
            .expect("a range");
        let mut is_there = range.seek_last().expect("an entry");
        for _ in 0..limit {
            if !is_there {
                break;
            }
            see(&range.value_ref().expect("a value"));
            is_there = range.prev().expect("an entry");
        }
    }

    fn find(&self, id: u128, see: See<'_>) {
        let transaction = self
            .tree
            .begin_with_mode(Mode::ReadOnly)
            .expect("a transaction");
        let key = transaction
            .get(&id_key(id)[..])
            .expect("a read")
            .expect("the ID is there");
        see(&transaction
            .get(key)
            .expect("a read")
            .expect("the event is there"));
    }
}

impl Drop for SurrealKv {
    fn drop(&mut self) {
        self.runtime
            .block_on(self.tree.close())
            .expect("surrealkv closes");
    }
}
