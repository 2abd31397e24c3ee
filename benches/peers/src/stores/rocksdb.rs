//! RocksDB: an LSM tree behind a write-ahead log. One write batch a commit.

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::{Described, Finds};
use crate::store::{CACHE_BYTES, Entry, Ids, Open, Peer, See, id_key, key};

pub(super) const DESCRIBED: Described = Described {
    name: "rocksdb",
    form: None,
    groups: true,
    finds: Finds::Ids,
    setting: "`sync = true`, no compression",
};

pub(super) const RECYCLING: Described = Described {
    name: "rocksdb, recycling",
    setting: "`sync = true`, no compression, `recycle_log_file_num`, `enable_pipelined_write`",
    ..DESCRIBED
};

/// What happens to its write-ahead logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logs {
    Deleted,
    Recycled,
}

/// Small enough that logs are used again soon.
const WRITE_BUFFER_BYTES: usize = 32 << 20;

pub(super) struct RocksDb {
    db: DB,
    ids: Ids,
}

impl RocksDb {
    pub(super) fn open(open: Open<'_>, logs: Logs) -> Self {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        blocks.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::None);
        options.set_max_background_jobs(2);
        options.set_block_based_table_factory(&blocks);
        if logs == Logs::Recycled {
            options.set_write_buffer_size(WRITE_BUFFER_BYTES);
            options.set_recycle_log_file_num(4);
            options.set_enable_pipelined_write(true);
        }
        Self {
            db: DB::open(&options, open.folder).expect("RocksDB opens"),
            ids: open.ids,
        }
    }

    fn read(&self, value: &[u8], see: See<'_>) {
        see(&self
            .db
            .get_pinned(value)
            .expect("a read")
            .expect("the event is there"));
    }
}

/// Of one session, from `seq` on.
fn range(session: u32, seq: u64) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(key(session, seq));
    options.set_iterate_upper_bound(key(session, u64::MAX));
    options
}

impl Peer for RocksDb {
    fn commit(&self, entries: &[Entry]) {
        let mut batch = WriteBatch::default();
        for entry in entries {
            let key = key(entry.session, entry.seq);
            batch.put(key, &entry.value);
            if self.ids == Ids::Found {
                batch.put(id_key(entry.id), key);
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db
            .write_opt(batch, &options)
            .expect("the commit succeeds");
    }

    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        let mut entries = self.db.raw_iterator_opt(range(session, seq));
        entries.seek_to_first();
        for _ in 0..limit {
            let Some(value) = entries.value() else { break };
            see(value);
            entries.next();
        }
        entries.status().expect("a read");
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        let mut entries = self.db.raw_iterator_opt(range(session, 0));
        entries.seek_to_last();
        for _ in 0..limit {
            let Some(value) = entries.value() else { break };
            see(value);
            entries.prev();
        }
        entries.status().expect("a read");
    }

    fn find(&self, id: u128, see: See<'_>) {
        let key = self
            .db
            .get_pinned(id_key(id))
            .expect("a read")
            .expect("the ID is there");
        self.read(&key, see);
    }
}
