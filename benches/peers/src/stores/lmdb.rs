//! LMDB through heed: a B-tree in a memory map. One transaction a commit.

use std::ops::Bound::Included;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions};

use super::{Described, Finds};
use crate::store::{Entry, Ids, Open, Peer, See, id_key, key};

pub(super) const DESCRIBED: Described = Described {
    name: "LMDB (heed)",
    form: None,
    groups: false,
    finds: Finds::Ids,
    setting: "its defaults: neither `NO_SYNC` nor `NO_META_SYNC`",
};

const MAP_BYTES: usize = 64 << 30;

pub(super) struct Lmdb {
    env: Env,
    entries: Database<'static, Bytes, Bytes>,
    ids: Ids,
}

impl Lmdb {
    #[allow(unsafe_code, reason = "nobody else has the file open")]
    pub(super) fn open(open: Open<'_>) -> Self {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_BYTES).max_dbs(1);
        let env = unsafe { options.open(open.folder) }.expect("LMDB opens");
        let transaction = env.write_txn().expect("a transaction");
        let created = env.create_databases_and_commit(transaction, |create, transaction| {
            heed::Result::Ok(CommitOrAbort::<_, ()>::Commit(
                create.create_database(transaction, Some("entries"))?,
            ))
        });
        let entries = created.expect("a database").unwrap_commit();
        Self {
            env,
            entries,
            ids: open.ids,
        }
    }
}

impl Peer for Lmdb {
    fn commit(&self, entries: &[Entry]) {
        let mut transaction = self.env.write_txn().expect("a transaction");
        for entry in entries {
            let key = key(entry.session, entry.seq);
            self.entries
                .put(&mut transaction, &key, &entry.value)
                .expect("an insert");
            if self.ids == Ids::Found {
                self.entries
                    .put(&mut transaction, &id_key(entry.id), &key)
                    .expect("an insert");
            }
        }
        transaction.commit().expect("the commit succeeds");
    }

    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        let transaction = self.env.read_txn().expect("a transaction");
        let range = (
            Included(&key(session, seq)[..]),
            Included(&key(session, u64::MAX)[..]),
        );
        for entry in self
            .entries
            .range(&transaction, &range)
            .expect("a range")
            .take(limit)
        {
            see(entry.expect("an entry").1);
        }
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        let transaction = self.env.read_txn().expect("a transaction");
        let range = (
            Included(&key(session, 0)[..]),
            Included(&key(session, u64::MAX)[..]),
        );
        for entry in self
            .entries
            .rev_range(&transaction, &range)
            .expect("a range")
            .take(limit)
        {
            see(entry.expect("an entry").1);
        }
    }

    fn find(&self, id: u128, see: See<'_>) {
        let transaction = self.env.read_txn().expect("a transaction");
        let key = self
            .entries
            .get(&transaction, &id_key(id))
            .expect("a read")
            .expect("the ID is there");
        see(self
            .entries
            .get(&transaction, key)
            .expect("a read")
            .expect("the event is there"));
    }
}
