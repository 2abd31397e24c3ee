//! A session that is in use or has recent records, with its state for the commit section and for
//! readers.
//!
//! Its lock is held only for moments and never during I/O. Only the commit section assigns seqs,
//! and only durable records are published.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytestring::ByteString;

use crate::codec::{Record, SessionState};
use crate::model::{EventId, FIRST_SEQ, Op, Result, Seq, SessionId};
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, WaitList, Waiter};

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
    /// Whether the sealed state is known. It is set once, under `loading`.
    loaded: AtomicBool,
    loading: Mutex<()>,
    state: Mutex<EntryState>,
}

#[derive(Default)]
pub(crate) struct EntryState {
    /// The state of the session before the first of `records`, as segments have it. `None` while
    /// no segment has any of the session.
    sealed: Option<Box<SessionState>>,
    /// The state of the session for readers. It includes all of `records`.
    pub durable: SessionState,
    /// The state of the session for the next request. `None` while nothing is in flight: then it
    /// is the durable one.
    assigned: Option<Box<SessionState>>,
    /// The recent records, oldest first, without gaps up to the durable state.
    pub records: VecDeque<Arc<Record>>,
    /// The records that have a place and are not durable.
    in_flight: VecDeque<Arc<Record>>,
    /// The newest recent batch under each key. `None` while there is none, which is most of the
    /// time.
    #[expect(
        clippy::box_collection,
        reason = "most of a million entries have none, and a pointer is smaller than a map"
    )]
    keys: Option<Box<HashMap<ByteString, Arc<Record>>>>,
    /// The number of keys that left `keys`, since their records were sealed or not written. If it
    /// changed, an earlier lookup in the segments may be out of date, or was left out for a record
    /// that is gone.
    pub keys_released: u64,
    pub waiters: WaitList,
    /// The number of pins that hold the entry in memory.
    pub pins: usize,
}

impl SessionEntry {
    /// Returns the entry of a session whose sealed state is `known`. Without one, the entry is not
    /// loaded.
    pub(crate) fn new(id: SessionId, known: Option<SessionState>) -> Self {
        let mut state = EntryState::default();
        let loaded = AtomicBool::new(known.is_some());
        if let Some(sealed) = known {
            state.stand_on(sealed);
        }
        Self {
            id,
            loaded,
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

    /// Loads the sealed state of the session unless it is known. A second caller waits for the
    /// first.
    pub(crate) fn load(&self, load: impl FnOnce() -> Result<SessionState>) -> Result<()> {
        if self.is_loaded() {
            return Ok(());
        }
        let _alone = self.loading.lock();
        if !self.is_loaded() {
            let sealed = load()?;
            self.lock().stand_on(sealed);
            self.loaded.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Adopts a record found in the journal. The sealed state is loaded when it is needed.
    ///
    /// Returns the memory that it takes, or `None` if it does not follow the record before it.
    pub(crate) fn restore(&self, record: &Arc<Record>) -> Option<usize> {
        let mut state = self.lock();
        if let Some(before) = state.records.back() {
            let next = if record.generation == before.generation {
                before.last() + 1
            } else {
                first_of_generation(record)
            };
            if record.first != next || record.generation < before.generation {
                return None;
            }
        }
        state.note_key(record);
        // An entry that is not loaded includes it when it is.
        if self.is_loaded() {
            state.durable.apply(record);
        }
        Some(state.keep(Arc::clone(record)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, EntryState> {
        self.state.lock()
    }

    /// Forgets the session's records and its state, which is loaded again when it is needed.
    /// Returns the waiters, and whether nothing needs the entry.
    pub(super) fn outdate(&self) -> (Vec<Arc<Waiter>>, bool) {
        let mut state = self.lock();
        let (waiters, pins) = (state.waiters.take(), state.pins);
        *state = EntryState {
            pins,
            ..EntryState::default()
        };
        // Under the lock, so that nobody waits for an event after a state that is outdated.
        self.loaded.store(false, Ordering::Release);
        (waiters, pins == 0)
    }
}

/// Returns the seq that a generation begins with, if a record is its first.
fn first_of_generation(record: &Record) -> Seq {
    let forked_at = record.ops().iter().find_map(|op| match op {
        Op::Fork(lineage) => Some(lineage.at),
        _ => None,
    });
    forked_at.map_or(FIRST_SEQ, |at| at + 1)
}

impl EntryState {
    /// Begins with the sealed state of the session.
    fn stand_on(&mut self, sealed: SessionState) {
        self.durable = sealed.clone();
        for record in &self.records {
            self.durable.apply(record);
        }
        self.sealed = (sealed.generation > 0).then(|| Box::new(sealed));
    }

    /// Returns the state that the next request is decided by.
    pub(crate) fn assigned(&self) -> &SessionState {
        self.assigned.as_deref().unwrap_or(&self.durable)
    }

    /// Returns the state as of the last record in a segment.
    pub(crate) fn sealed(&self) -> SessionState {
        self.sealed.as_deref().cloned().unwrap_or_default()
    }

    /// Returns the newest recent record that was appended under a key.
    pub(crate) fn record_of_key(&self, key: &str) -> Option<&Arc<Record>> {
        self.keys.as_ref()?.get(key)
    }

    /// Includes a record in the assigned state, before it is durable.
    pub(crate) fn assign(&mut self, record: &Arc<Record>) {
        self.assigned
            .get_or_insert_with(|| Box::new(self.durable.clone()))
            .apply(record);
        self.in_flight.push_back(Arc::clone(record));
        self.note_key(record);
    }

    /// Reverts the last [assigned](Self::assign) record, which was not written.
    pub(crate) fn take_back(&mut self, record: &Record) {
        let begins_at = |state: &SessionState| (state.generation, state.first);
        let may_reuse_key = begins_at(self.assigned()) != begins_at(&self.durable);
        self.in_flight.pop_back();
        self.assigned = None;
        if !self.in_flight.is_empty() {
            let mut assigned = Box::new(self.durable.clone());
            for record in &self.in_flight {
                assigned.apply(record);
            }
            self.assigned = Some(assigned);
        }
        self.keys_released += u64::from(record.key.is_some());
        self.forget_key(record);
        // What made the key free, a trim or a deletion, may be taken back too.
        if may_reuse_key && let Some(before) = self.newest_with_key_of(record) {
            self.note_key(&before);
        }
    }

    /// Returns the records of a generation that overlap the seqs from `from` to `to`, oldest first.
    pub(crate) fn overlapping(&self, generation: u32, from: Seq, to: Seq) -> Vec<Arc<Record>> {
        let first = self
            .records
            .partition_point(|record| (record.generation, record.last()) < (generation, from));
        let end = self
            .records
            .partition_point(|record| (record.generation, record.first) <= (generation, to));
        self.records
            .range(first..end.max(first))
            .map(Arc::clone)
            .collect()
    }

    /// Returns the first seq of a generation that is in memory.
    pub(crate) fn oldest(&self, generation: u32) -> Option<Seq> {
        let first = self
            .records
            .partition_point(|record| record.generation < generation);
        let record = self.records.get(first)?;
        (record.generation == generation).then_some(record.first)
    }

    /// Returns the records after `seq` of the current generation that are assigned, in order.
    /// Returns `None` if some of them are no longer in memory.
    pub(crate) fn assigned_after(&self, seq: Seq) -> Option<impl Iterator<Item = &Arc<Record>>> {
        let generation = self.assigned().generation;
        let all = || self.records.iter().chain(&self.in_flight);
        let oldest = all().find(|record| record.generation == generation);
        let is_whole = oldest.map_or(self.assigned().last, |record| record.first - 1) <= seq;
        is_whole.then(|| {
            all().filter(move |record| record.generation == generation && record.last() > seq)
        })
    }

    /// Makes a durable record visible. Returns the memory that it takes.
    pub(crate) fn publish(&mut self, record: Arc<Record>) -> usize {
        self.in_flight.pop_front();
        if self.in_flight.is_empty() {
            self.assigned = None;
        }
        self.durable.apply(&record);
        self.keep(record)
    }

    /// Keeps a durable record. Returns the memory that it takes.
    fn keep(&mut self, record: Arc<Record>) -> usize {
        let entry = if self.records.is_empty() {
            ENTRY_OVERHEAD
        } else {
            0
        };
        let key = record.key.as_ref().map_or(0, |_| KEY_OVERHEAD);
        let bytes = RECORD_OVERHEAD + record.body().len() + entry + key;
        self.records.push_back(record);
        bytes
    }

    /// Releases the oldest records up to an ID, which were sealed, and their keys.
    ///
    /// Releases at most `count_max` records and returns their number.
    pub(crate) fn release(&mut self, through: EventId, count_max: usize) -> usize {
        let released = self
            .records
            .partition_point(|record| record.last_id() <= through)
            .min(count_max);
        for _ in 0..released {
            let record = self.records.pop_front().expect("they were counted");
            self.sealed.get_or_insert_default().apply(&record);
            self.keys_released += u64::from(record.key.is_some());
            self.forget_key(&record);
        }
        released
    }

    /// Returns whether nothing needs the entry.
    pub(crate) fn is_unused(&self) -> bool {
        self.pins == 0 && self.records.is_empty()
    }

    fn newest_with_key_of(&self, record: &Record) -> Option<Arc<Record>> {
        let key = record.key.as_ref()?;
        let all = self.records.iter().chain(&self.in_flight);
        let has_key = |used: &&Arc<Record>| {
            let used = used.key.as_ref();
            used.is_some_and(|used| used.text == key.text)
        };
        all.rev().find(has_key).map(Arc::clone)
    }

    fn note_key(&mut self, record: &Arc<Record>) {
        if let Some(key) = &record.key {
            self.keys
                .get_or_insert_default()
                .insert(key.text.clone(), Arc::clone(record));
        }
    }

    fn forget_key(&mut self, record: &Record) {
        let (Some(key), Some(keys)) = (&record.key, &mut self.keys) else {
            return;
        };
        // A later batch may have used the key again.
        let is_it = keys
            .get(&key.text)
            .is_some_and(|kept| kept.base == record.base);
        if is_it {
            keys.remove(&key.text);
        }
        if keys.is_empty() {
            self.keys = None;
        }
    }
}
