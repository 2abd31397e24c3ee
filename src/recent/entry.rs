//! A session that is in use or has recent records: where it stands, for the commit section and for
//! readers.
//!
//! Its lock is held for moments only and never over I/O. Only the commit section gives out seqs,
//! and only what is durable is published.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytestring::ByteString;

use crate::codec::Record;
use crate::model::{EventId, FIRST_SEQ, Head, Result, Seq, SessionId};
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, WaitList};

/// Memory for a record beside its body: itself, its counters and its places in two lists.
const RECORD_OVERHEAD: usize = size_of::<Record>() + 64;

/// Memory for the key of a keyed record.
const KEY_OVERHEAD: usize = 192;

/// Memory for the entry of a session.
const ENTRY_OVERHEAD: usize = size_of::<SessionEntry>() + 160;

/// A session that is in use or has recent records.
pub(crate) struct SessionEntry {
    id: SessionId,
    /// Whether `state` says where the session stands; set once, under `loading`.
    loaded: AtomicBool,
    loading: Mutex<()>,
    state: Mutex<SessionState>,
}

#[derive(Default)]
pub(crate) struct SessionState {
    /// Where the session stands for readers.
    pub head: Option<Head>,
    /// The last seq given out. Ahead of `head` only while a group is in flight.
    pub assigned: Seq,
    /// Oldest first, without gaps up to the head.
    pub records: VecDeque<Arc<Record>>,
    /// The recent keyed batches. `None` while there is none, which is most of the time.
    #[expect(
        clippy::box_collection,
        reason = "most of a million entries have none, and a pointer is smaller than a map"
    )]
    keys: Option<Box<HashMap<ByteString, Arc<Record>>>>,
    /// How many keys have left `keys` because their records were sealed. What was looked up in the
    /// segments before may be out of date.
    pub keys_released: u64,
    pub waiters: WaitList,
    /// How many hold the entry in memory.
    pub pins: usize,
}

impl SessionEntry {
    /// The entry of a session that stands at `known`. Without, it does not know yet where that is.
    pub(crate) fn new(id: SessionId, known: Option<Head>) -> Self {
        let mut state = SessionState::default();
        state.stand_at(known);
        Self {
            id,
            loaded: AtomicBool::new(known.is_some()),
            loading: Mutex::default(),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn id(&self) -> &SessionId {
        &self.id
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Finds out where the session stands, unless that is known. Who comes second waits for the
    /// first.
    pub(crate) fn load(&self, load: impl FnOnce() -> Result<Option<Head>>) -> Result<()> {
        if self.is_loaded() {
            return Ok(());
        }
        let _alone = self.loading.lock();
        if !self.is_loaded() {
            let head = load()?;
            self.lock().stand_at(head);
            self.loaded.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Takes in a record found in the journal, which says itself where the session stands. Returns
    /// the memory it takes, or `None` when it does not follow the record before it.
    pub(crate) fn restore(&self, record: &Arc<Record>) -> Option<usize> {
        let mut state = self.lock();
        if state.head.is_some_and(|head| head.last + 1 != record.first) {
            return None;
        }
        state.assign(record);
        self.loaded.store(true, Ordering::Release);
        Some(state.publish(Arc::clone(record)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock()
    }
}

impl SessionState {
    /// Begins where the session stands, durably.
    fn stand_at(&mut self, head: Option<Head>) {
        self.assigned = head.map_or(0, |head| head.last);
        self.head = head;
    }

    /// The generation that the next record belongs to.
    pub(crate) fn generation(&self) -> u32 {
        self.head.map_or(1, |head| head.generation)
    }

    /// The recent record that landed under a key.
    pub(crate) fn record_of_key(&self, key: &str) -> Option<&Arc<Record>> {
        self.keys.as_ref()?.get(key)
    }

    /// Counts a record as given out, before it is durable.
    pub(crate) fn assign(&mut self, record: &Arc<Record>) {
        self.assigned = record.last();
        if let Some(key) = &record.key {
            self.keys
                .get_or_insert_default()
                .insert(key.text.clone(), Arc::clone(record));
        }
    }

    /// Takes back what was [assigned](Self::assign) last, and not written.
    pub(crate) fn take_back(&mut self, record: &Record) {
        self.assigned = record.first - 1;
        self.forget_key(record);
    }

    /// The records that overlap the seqs from `from` to `to`, oldest first.
    pub(crate) fn overlapping(&self, from: Seq, to: Seq) -> Vec<Arc<Record>> {
        let first = self.records.partition_point(|record| record.last() < from);
        let end = self.records.partition_point(|record| record.first <= to);
        self.records
            .range(first..end.max(first))
            .map(Arc::clone)
            .collect()
    }

    /// Makes a durable record visible; returns the memory it takes.
    pub(crate) fn publish(&mut self, record: Arc<Record>) -> usize {
        let entry = if self.records.is_empty() {
            ENTRY_OVERHEAD
        } else {
            0
        };
        let key = record.key.as_ref().map_or(0, |_| KEY_OVERHEAD);
        let bytes = RECORD_OVERHEAD + record.body().len() + entry + key;
        self.head = Some(Head {
            generation: record.generation,
            first: FIRST_SEQ,
            last: record.last(),
            last_id: record.last_id(),
        });
        self.records.push_back(record);
        bytes
    }

    /// Lets go of the oldest records up to an ID, which were sealed, and of their keys; of so many
    /// at the most. Returns of how many.
    pub(crate) fn release(&mut self, through: EventId, count_max: usize) -> usize {
        let sealed = self
            .records
            .partition_point(|record| record.last_id() <= through)
            .min(count_max);
        for _ in 0..sealed {
            let record = self.records.pop_front().expect("they were counted");
            self.keys_released += u64::from(record.key.is_some());
            self.forget_key(&record);
        }
        sealed
    }

    /// Whether nobody needs the entry.
    pub(crate) fn is_unused(&self) -> bool {
        self.pins == 0 && self.records.is_empty()
    }

    fn forget_key(&mut self, record: &Record) {
        if let (Some(key), Some(keys)) = (&record.key, &mut self.keys) {
            keys.remove(&key.text);
            if keys.is_empty() {
                self.keys = None;
            }
        }
    }
}
