//! raft-engine: the log of TiKV's Raft groups. A session is a region, its events are the region's
//! entries.

use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use super::{Described, Finds};
use crate::store::{Entry, Open, Peer, See};

pub(super) const DESCRIBED: Described = Described {
    name: "raft-engine",
    form: None,
    groups: true,
    finds: Finds::Sessions,
    setting: "`write(_, sync: true)`, files prefilled and recycled, no compression",
};

/// Written with zeros on every open; more than the appends of a round take.
const PREFILLED: ReadableSize = ReadableSize::mb(512);
const FILE: ReadableSize = ReadableSize::mb(128);
/// All events are kept.
const PURGE_THRESHOLD: ReadableSize = ReadableSize::gb(1_000);

pub(super) struct RaftEngine {
    engine: Engine,
}

#[derive(Clone)]
struct Message;

/// The index comes first.
const INDEX_BYTES: usize = 8;

impl MessageExt for Message {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        u64::from_be_bytes(*entry.value.first_chunk().expect("an entry has an index"))
    }
}

impl RaftEngine {
    pub(super) fn open(open: Open<'_>) -> Self {
        let config = Config {
            dir: open.folder.to_string_lossy().into_owned(),
            batch_compression_threshold: ReadableSize(0),
            target_file_size: FILE,
            purge_threshold: PURGE_THRESHOLD,
            enable_log_recycle: true,
            prefill_for_recycle: true,
            prefill_limit: Some(PREFILLED),
            ..Config::default()
        };
        let engine = Engine::open(config).expect("raft-engine opens");
        // It leaves prefilled zeroes to the page cache.
        rustix::fs::sync();
        Self { engine }
    }

    fn fetch(&self, session: u32, from: u64, to: u64) -> Vec<BytesValue> {
        let mut entries = Vec::new();
        self.engine
            .fetch_entries_to::<Message>(region(session), from, to, None, &mut entries)
            .expect("the entries are there");
        entries
    }

    fn end(&self, session: u32) -> u64 {
        self.engine
            .last_index(region(session))
            .map_or(1, |last| last + 1)
    }
}

fn region(session: u32) -> u64 {
    u64::from(session) + 1
}

impl Peer for RaftEngine {
    fn commit(&self, entries: &[Entry]) {
        let mut batch = LogBatch::with_capacity(entries.len());
        for of_session in entries.chunk_by(|one, other| one.session == other.session) {
            let messages: Vec<BytesValue> = of_session.iter().map(message).collect();
            batch
                .add_entries::<Message>(region(of_session[0].session), &messages)
                .expect("the entries fit");
        }
        self.engine
            .write(&mut batch, true)
            .expect("the commit succeeds");
    }

    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        for entry in self.fetch(session, seq, self.end(session).min(seq + limit as u64)) {
            see(&entry.value[INDEX_BYTES..]);
        }
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        let end = self.end(session);
        for entry in self
            .fetch(session, end.saturating_sub(limit as u64).max(1), end)
            .iter()
            .rev()
        {
            see(&entry.value[INDEX_BYTES..]);
        }
    }
}

fn message(entry: &Entry) -> BytesValue {
    let mut message = BytesValue::new();
    message.value.reserve_exact(INDEX_BYTES + entry.value.len());
    message.value.extend_from_slice(&entry.seq.to_be_bytes());
    message.value.extend_from_slice(&entry.value);
    message
}
