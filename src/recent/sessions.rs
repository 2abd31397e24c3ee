//! The sessions in use. Finds the entry of each, keeps it in memory while it is needed, and
//! remembers the states of idle sessions.
//!
//! Invariants:
//! * While a [`SessionPin`] on a session exists, the session's entry stays.
//! * An entry without pins and records is dropped, so memory does not grow with the number of
//!   sessions. Its state goes to the [idle states](crate::recent::idle), under the lock that also
//!   covers the making of the session's next entry.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use quick_cache::DefaultHashBuilder;

use crate::codec::SessionState;
use crate::model::{EventId, Result, SessionId};
use crate::recent::entry::{EntryState, SessionEntry};
use crate::recent::idle::IdleStates;
use crate::sync::{Mutex, MutexGuard, Waiter};

/// The number of locks that sessions are spread over.
const SHARDS: usize = 64;

/// The number of records that are released under a session's lock at once. Every append to the
/// session takes that lock.
const RELEASED_AT_ONCE: usize = 256;

/// The sessions that are in use or have recent records.
pub(crate) struct Sessions {
    shards: Vec<Mutex<Shard>>,
    hasher: DefaultHashBuilder,
}

/// Some of the sessions.
struct Shard {
    entries: HashMap<SessionId, Arc<SessionEntry>, DefaultHashBuilder>,
    /// The IDs of all entries, for listing them in order.
    ids: BTreeSet<SessionId>,
    /// The states that entries left behind. A state counts only if its session has no entry.
    idle: IdleStates,
}

impl Sessions {
    /// Returns an empty set, with `idle_bytes_max` of memory for idle states.
    pub(super) fn new(idle_bytes_max: usize) -> Self {
        let shard = |_| Shard {
            entries: HashMap::default(),
            ids: BTreeSet::new(),
            idle: IdleStates::new(idle_bytes_max / SHARDS),
        };
        Self {
            shards: (0..SHARDS).map(shard).map(Mutex::new).collect(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Pins the session: its entry stays in memory for as long as the pin lives.
    ///
    /// `load` finds the sealed state of a session that is not in memory. It may read from the disk,
    /// and no lock that a commit takes is held meanwhile.
    pub(crate) fn pin(
        self: &Arc<Self>,
        id: &SessionId,
        load: impl FnOnce() -> Result<SessionState>,
    ) -> Result<SessionPin> {
        let pin = self.pin_unloaded(id);
        pin.load(load)?;
        Ok(pin)
    }

    /// Pins the session's entry if it exists and is loaded. Without an entry, the segments have all
    /// of the session.
    pub(crate) fn look(self: &Arc<Self>, id: &SessionId) -> Option<SessionPin> {
        let shard = self.shard(id).lock();
        let entry = shard.entries.get(id).filter(|entry| entry.is_loaded())?;
        Some(SessionPin::new(self, entry))
    }

    /// Returns the durable state of a session, and a pin if it has an entry.
    ///
    /// Without an entry, the segments have all of the session. `load` finds an unknown state, as
    /// for [`pin`](Self::pin).
    pub(crate) fn find(
        self: &Arc<Self>,
        id: &SessionId,
        load: impl FnOnce() -> Result<SessionState>,
    ) -> Result<(Option<SessionPin>, SessionState)> {
        let shard = self.shard(id).lock();
        let idle = if shard.entries.contains_key(id) {
            None
        } else {
            shard.idle.get(id)
        };
        drop(shard);
        if let Some(idle) = idle {
            return Ok((None, idle));
        }
        // The entry makes sure that no append comes between finding the state and remembering it.
        // It is returned because records may have been added in the meantime.
        let pin = self.pin(id, load)?;
        let state = pin.lock().durable.clone();
        Ok((Some(pin), state))
    }

    pub(super) fn pin_unloaded(self: &Arc<Self>, id: &SessionId) -> SessionPin {
        let mut shard = self.shard(id).lock();
        if let Some(entry) = shard.entries.get(id) {
            return SessionPin::new(self, entry);
        }
        let entry = Arc::new(SessionEntry::new(id.detached(), shard.idle.get(id)));
        shard.entries.insert(entry.id().clone(), Arc::clone(&entry));
        shard.ids.insert(entry.id().clone());
        SessionPin::new(self, &entry)
    }

    /// Returns the number of shards that sessions are listed from.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Returns the first session of a shard from a position on. It may not exist.
    pub(crate) fn next_in(&self, shard: usize, from: Bound<&[u8]>) -> Option<SessionId> {
        let shard = self.shards.get(shard)?.lock();
        let mut ids = shard.ids.range::<[u8], _>((from, Bound::Unbounded));
        ids.next().cloned()
    }

    /// Returns the last session of a shard below a position. It may not exist.
    pub(crate) fn previous_in(&self, shard: usize, below: Bound<&[u8]>) -> Option<SessionId> {
        let shard = self.shards.get(shard)?.lock();
        let mut ids = shard.ids.range::<[u8], _>((Bound::Unbounded, below));
        ids.next_back().cloned()
    }

    /// Releases the records of all sessions up to an ID.
    pub(super) fn release(&self, through: EventId) {
        for shard in &self.shards {
            let entries: Vec<_> = shard.lock().entries.values().map(Arc::clone).collect();
            for entry in entries {
                while self.release_some(&entry, through) == RELEASED_AT_ONCE {}
            }
        }
    }

    /// Forgets all states and records, and returns all waiters. Entries with pins stay.
    pub(super) fn outdate(&self) -> Vec<Arc<Waiter>> {
        let mut to_wake = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let Shard { entries, ids, idle } = &mut *shard;
            idle.clear();
            entries.retain(|id, entry| {
                let (mut waiters, is_unused) = entry.outdate();
                to_wake.append(&mut waiters);
                if is_unused {
                    ids.remove(id);
                }
                !is_unused
            });
        }
        to_wake
    }

    /// Takes the waiters for an event of any session.
    pub(super) fn take_waiters(&self) -> Vec<Arc<Waiter>> {
        let mut waiters = Vec::new();
        for shard in &self.shards {
            shard
                .lock()
                .entries
                .values()
                .for_each(|entry| waiters.append(&mut entry.lock().waiters.take()));
        }
        waiters
    }

    /// Releases at most [`RELEASED_AT_ONCE`] of an entry's records, and returns their number.
    fn release_some(&self, entry: &SessionEntry, through: EventId) -> usize {
        let mut state = entry.lock();
        let released = state.release(through, RELEASED_AT_ONCE);
        self.unlock(entry, state);
        released
    }

    fn unpin(&self, entry: &SessionEntry) {
        let mut state = entry.lock();
        state.pins -= 1;
        self.unlock(entry, state);
    }

    /// Releases an entry's lock, and drops the entry if nothing needs it any more.
    fn unlock(&self, entry: &SessionEntry, state: MutexGuard<'_, EntryState>) {
        let may_be_unused = state.is_unused();
        drop(state);
        if !may_be_unused {
            return;
        }
        let mut shard = self.shard(entry.id()).lock();
        let Shard { entries, ids, idle } = &mut *shard;
        // Pins are made under this lock. Another entry may have replaced this one by now. The same
        // check holds for it.
        let state = entries.get(entry.id()).map(|entry| entry.lock());
        let Some(state) = state.filter(|state| state.is_unused()) else {
            return;
        };
        // The state of an entry that was never loaded is not known.
        let known = (state.durable.generation > 0).then(|| state.durable.clone());
        drop(state);
        ids.remove(entry.id());
        if let (Some((id, _entry)), Some(known)) = (entries.remove_entry(entry.id()), known) {
            idle.put(id, known);
        }
    }

    fn shard(&self, id: &SessionId) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one(id);
        let at = usize::try_from(hash % SHARDS as u64).expect("a shard's number is small");
        self.shards
            .get(at)
            .expect("the remainder is below the number of shards")
    }
}

/// Holds a session's entry in memory.
pub(crate) struct SessionPin {
    sessions: Arc<Sessions>,
    entry: Arc<SessionEntry>,
}

impl SessionPin {
    /// Makes a pin. The caller holds the shard's lock, so that no thread drops the entry meanwhile.
    fn new(sessions: &Arc<Sessions>, entry: &Arc<SessionEntry>) -> Self {
        entry.lock().pins += 1;
        Self {
            sessions: Arc::clone(sessions),
            entry: Arc::clone(entry),
        }
    }
}

impl Deref for SessionPin {
    type Target = SessionEntry;

    fn deref(&self) -> &SessionEntry {
        &self.entry
    }
}

impl Drop for SessionPin {
    fn drop(&mut self) {
        self.sessions.unpin(&self.entry);
    }
}
