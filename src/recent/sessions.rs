//! The sessions in use: finds the entry of each, keeps it in memory as long as it is needed, and
//! remembers where idle ones end.
//!
//! Invariants:
//! * While anybody holds a [`SessionPin`], the session's entry stays.
//! * An entry that nobody pins and that has no records is dropped: memory does not grow with the
//!   number of sessions. It leaves its head among the [idle ones](crate::recent::idle), under the
//!   lock that the next entry of the session is made with.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::ops::Deref;
use std::sync::Arc;

use quick_cache::DefaultHashBuilder;

use crate::model::{EventId, Head, Result, SessionId};
use crate::recent::entry::{SessionEntry, SessionState};
use crate::recent::idle::IdleHeads;
use crate::sync::{Mutex, MutexGuard, Waiter};

/// Locks that sessions are spread over.
const SHARDS: usize = 64;

/// So many records are released before others get a session's lock, which every append to it takes.
const RELEASED_AT_ONCE: usize = 256;

/// The sessions that are in use or have recent records.
pub(crate) struct Sessions {
    shards: Vec<Mutex<Shard>>,
    hasher: DefaultHashBuilder,
}

/// Some of the sessions.
struct Shard {
    entries: HashMap<SessionId, Arc<SessionEntry>, DefaultHashBuilder>,
    /// What entries left behind. It counts for sessions that have none.
    idle: IdleHeads,
}

impl Sessions {
    /// None yet, with so much memory for the heads of idle ones.
    pub(super) fn new(idle_bytes_max: usize) -> Self {
        let shard = |_| Shard {
            entries: HashMap::default(),
            idle: IdleHeads::new(idle_bytes_max / SHARDS),
        };
        Self {
            shards: (0..SHARDS).map(shard).map(Mutex::new).collect(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Keeps the session's entry in memory for as long as the pin lives. `load` finds out where a
    /// session stands that has no entry yet; it may read from the disk, and no lock that a commit
    /// takes is held meanwhile.
    pub(crate) fn pin(
        self: &Arc<Self>,
        id: &SessionId,
        load: impl FnOnce() -> Result<Option<Head>>,
    ) -> Result<SessionPin> {
        let pin = self.pin_unloaded(id);
        pin.load(load)?;
        Ok(pin)
    }

    /// The session's entry if there is one that knows where the session stands. Where there is
    /// none, the segments have all of it.
    pub(crate) fn look(self: &Arc<Self>, id: &SessionId) -> Option<SessionPin> {
        let shard = self.shard(id).lock();
        let entry = shard.entries.get(id).filter(|entry| entry.is_loaded())?;
        Some(SessionPin::new(self, entry))
    }

    /// Where a session stands. Without an entry, the segments have all of it; `load` finds out what
    /// is not known, as for [`pin`](Self::pin).
    pub(crate) fn find(
        self: &Arc<Self>,
        id: &SessionId,
        load: impl FnOnce() -> Result<Option<Head>>,
    ) -> Result<(Option<SessionPin>, Option<Head>)> {
        let shard = self.shard(id).lock();
        let idle = if shard.entries.contains_key(id) {
            None
        } else {
            shard.idle.get(id)
        };
        drop(shard);
        if idle.is_some() {
            return Ok((None, idle));
        }
        // By way of an entry, so that nobody appends between the finding and the remembering. It is
        // kept for what has come meanwhile.
        let pin = self.pin(id, load)?;
        let head = pin.lock().head;
        Ok((Some(pin), head))
    }

    pub(super) fn pin_unloaded(self: &Arc<Self>, id: &SessionId) -> SessionPin {
        let mut shard = self.shard(id).lock();
        if let Some(entry) = shard.entries.get(id) {
            return SessionPin::new(self, entry);
        }
        let entry = Arc::new(SessionEntry::new(id.detached(), shard.idle.get(id)));
        shard.entries.insert(entry.id().clone(), Arc::clone(&entry));
        SessionPin::new(self, &entry)
    }

    /// The sessions with recent records whose IDs come after `after`, in no order.
    pub(crate) fn sessions_after(&self, after: Option<&SessionId>) -> Vec<SessionId> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let later = shard
                .entries
                .values()
                .filter(|entry| after.is_none_or(|after| entry.id() > after));
            found.extend(
                later
                    .filter(|entry| entry.lock().head.is_some())
                    .map(|entry| entry.id().clone()),
            );
        }
        found
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

    /// Those who wait for an event of a session.
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

    /// Releases so many of an entry's records at the most.
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

    /// Gives an entry's lock back, and drops the entry if nobody needs it any more.
    fn unlock(&self, entry: &SessionEntry, state: MutexGuard<'_, SessionState>) {
        let may_be_unused = state.is_unused();
        drop(state);
        if !may_be_unused {
            return;
        }
        let mut shard = self.shard(entry.id()).lock();
        let Shard { entries, idle } = &mut *shard;
        // Pins are made under this lock. Another entry may have taken the place of this one by now;
        // the same holds for it.
        let state = entries.get(entry.id()).map(|entry| entry.lock());
        let Some(head) = state
            .filter(|state| state.is_unused())
            .map(|state| state.head)
        else {
            return;
        };
        if let (Some((id, _entry)), Some(head)) = (entries.remove_entry(entry.id()), head) {
            idle.put(id, head);
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
    /// Called with the shard's lock held, so that nobody drops the entry meanwhile.
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
