//! A session that is in use or has recent records, with its head for the commit section and for
//! readers.
//!
//! Its lock is held only for moments and never during I/O. Only the commit section assigns seqs,
//! and only durable records are published.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytestring::ByteString;

use crate::codec::Record;
use crate::model::{EventId, FIRST_SEQ, Head, Result, Seq, SessionId};
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, WaitList};

/// The memory for a record besides its body, in bytes: itself, its counters and its places in two
/// lists.
const RECORD_OVERHEAD: usize = size_of::<Record>() + 64;

/// The memory for the key of a keyed record, in bytes.
const KEY_OVERHEAD: usize = 192;

/// The memory for the entry of a session, in bytes.
const ENTRY_OVERHEAD: usize = size_of::<SessionEntry>() + 160;

/// A session that is in use or has recent records.
pub(crate) struct SessionEntry {
    id: SessionId,
    /// Whether `state` holds the session's head. It is set once, under `loading`.
    loaded: AtomicBool,
    loading: Mutex<()>,
    state: Mutex<SessionState>,
}

#[derive(Default)]
pub(crate) struct SessionState {
    /// The head of the session for readers.
    pub head: Option<Head>,
    /// The last assigned seq. It is ahead of `head` only while a group is in flight.
    pub assigned: Seq,
    /// The recent records, oldest first, without gaps up to the head.
    pub records: VecDeque<Arc<Record>>,
    /// The recent keyed batches. `None` while there is none, which is most of the time.
    #[expect(
        clippy::box_collection,
        reason = "most of a million entries have none, and a pointer is smaller than a map"
    )]
    keys: Option<Box<HashMap<ByteString, Arc<Record>>>>,
    /// The number of keys that left `keys` because their records were sealed. If it changed, an
    /// earlier lookup in the segments may be out of date.
    pub keys_released: u64,
    pub waiters: WaitList,
    /// The number of pins that hold the entry in memory.
    pub pins: usize,
}

impl SessionEntry {
    /// Returns the entry of a session with the head `known`. Without one, the entry is not loaded.
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

    /// Loads the head of the session unless it is known. A second caller waits for the first.
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

    /// Adopts a record found in the journal, which gives the session's head itself.
    ///
    /// Returns the memory that it takes, or `None` if it does not follow the record before it.
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
    /// Begins at the durable head of the session.
    fn stand_at(&mut self, head: Option<Head>) {
        self.assigned = head.map_or(0, |head| head.last);
        self.head = head;
    }

    /// Returns the generation of the next record.
    pub(crate) fn generation(&self) -> u32 {
        self.head.map_or(1, |head| head.generation)
    }

    /// Returns the recent record that was appended under a key.
    pub(crate) fn record_of_key(&self, key: &str) -> Option<&Arc<Record>> {
        self.keys.as_ref()?.get(key)
    }

    /// Counts a record's seqs as assigned, before the record is durable.
    pub(crate) fn assign(&mut self, record: &Arc<Record>) {
        self.assigned = record.last();
        if let Some(key) = &record.key {
            self.keys
                .get_or_insert_default()
                .insert(key.text.clone(), Arc::clone(record));
        }
    }

    /// Reverts the last [assigned](Self::assign) record, which was not written.
    pub(crate) fn take_back(&mut self, record: &Record) {
        self.assigned = record.first - 1;
        self.forget_key(record);
    }

    /// Returns the records that overlap the seqs from `from` to `to`, oldest first.
    pub(crate) fn overlapping(&self, from: Seq, to: Seq) -> Vec<Arc<Record>> {
        let first = self.records.partition_point(|record| record.last() < from);
        let end = self.records.partition_point(|record| record.first <= to);
        self.records
            .range(first..end.max(first))
            .map(Arc::clone)
            .collect()
    }

    /// Makes a durable record visible. Returns the memory that it takes.
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

    /// Releases the oldest records up to an ID, which were sealed, and their keys.
    ///
    /// Releases at most `count_max` records and returns their number.
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

    /// Returns whether nothing needs the entry.
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
