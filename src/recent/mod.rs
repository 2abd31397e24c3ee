//! What is durable but not yet in a segment, in memory: by session, and in commit order. And where
//! each session in use stands.
//!
//! Invariants:
//! * A record gets here after its group's barrier, so whatever a reader finds here survives a
//!   crash.
//! * A record leaves only after the segment that holds it was published, so a reader that looks
//!   here first, and then at the segments, misses nothing.
//! * While anybody holds a [`Pin`] on a session, its entry stays. Who proved a key absent from the
//!   segments under a pin finds a later use of it in the entry, or finds there that keys have left
//!   it since and that the proof has to be made again.
//! * An entry that nobody pins and that has no records is dropped: memory does not grow with the
//!   number of sessions. It leaves its head among the [idle ones](crate::recent::idle), under the lock that
//!   the next entry of the session is made with.

mod entry;
mod idle;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::ops::{ControlFlow, Deref};
use std::sync::Arc;

use quick_cache::DefaultHashBuilder;

pub(crate) use entry::EntryState;

use crate::codec::Record;
use crate::manifest::JournalUse;
use crate::model::{EventId, Head, Options, Result, SessionId};
use crate::recent::entry::Entry;
use crate::recent::idle::IdleHeads;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, RwLock, WaitList, Waiter};

/// Locks that sessions are spread over.
const SHARDS: usize = 64;

/// So many records are released before others get a session's lock, which every append to it takes.
const RELEASED_AT_ONCE: usize = 256;

pub(crate) struct Recent {
    shards: Vec<Mutex<Shard>>,
    hasher: DefaultHashBuilder,
    commits: RwLock<Commits>,
    bounds: Bounds,
    /// All of `commits`, by estimate.
    bytes: AtomicU64,
    /// Of that, what the segment being written holds already.
    written: AtomicU64,
    feeds: Mutex<WaitList>,
}

/// Some of the sessions.
struct Shard {
    entries: HashMap<SessionId, Arc<Entry>, DefaultHashBuilder>,
    /// What entries left behind. It counts for sessions that have none.
    idle: IdleHeads,
}

/// The records in commit order, by journal file.
struct Commits {
    files: VecDeque<RecentFile>,
    /// All durable events of the store, sealed ones among them: one number, which no step of
    /// sealing changes.
    events: u64,
    /// The newest durable event of the store.
    last_id: EventId,
}

/// What one journal file holds.
struct RecentFile {
    file: JournalUse,
    file_bytes: u64,
    start_lsn: u64,
    /// The file's header is on stable storage, so that the manifest may name it.
    begun: bool,
    groups: Vec<Group>,
    bytes: u64,
}

/// The records of a commit group. Shared, so that who walks over many holds no lock meanwhile.
type Group = Arc<[Arc<Record>]>;

/// How much may be recent, in bytes of memory unless said otherwise, and what follows before it is
/// that much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Nobody appends while there is more.
    bytes_max: u64,
    /// Nor while there is more that the segment being written does not hold yet. It leaves room for
    /// that segment, so that writers are held back as it grows, and not until it is done.
    unsealed_bytes_max: u64,
    /// A full journal file is left alone while there is less, unless the log is idle.
    seal_from_bytes: u64,
    /// Full journal files are worth a segment once they take this much on the disk, so that a young
    /// log does not leave many small ones,
    worth_file_bytes: u64,
    /// or this much in memory. An active file that takes more is ended, and a segment takes in no
    /// further file then.
    worth_bytes: u64,
    /// For where sessions stand of which nothing is recent.
    idle_bytes_max: usize,
}

impl Bounds {
    pub(crate) fn of(options: &Options) -> Self {
        let (bytes_max, file_bytes) = (
            options.recent_bytes_max as u64,
            options.journal_file_bytes_max as u64,
        );
        Self {
            bytes_max,
            unsealed_bytes_max: bytes_max / 3 * 2,
            seal_from_bytes: (bytes_max / 2).min(file_bytes + file_bytes / 2),
            worth_file_bytes: file_bytes,
            worth_bytes: bytes_max / 3,
            idle_bytes_max: options.head_cache_bytes_max,
        }
    }
}

/// How soon full journal files are to be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timing {
    /// When room is needed. Until then the disk is left to those who append.
    Needed,
    /// Now: nobody appends, or it was time before and failed.
    Now,
}

/// What is ready to be sealed: the oldest of the full journal files.
pub(crate) struct Sealable {
    pub records: Vec<Arc<Record>>,
    /// What they take.
    pub memory: u64,
    pub start_lsn: u64,
    pub end_lsn: u64,
    /// The journal files and their sizes.
    pub files: Vec<(JournalUse, u64)>,
}

/// What follows from publishing a group.
pub(crate) struct Published {
    /// Who waited for its events.
    pub(crate) to_wake: Vec<Arc<Waiter>>,
    /// It is the first of its journal file, so the files before can be sealed, or it made what is
    /// recent enough for that.
    pub(crate) seal_due: bool,
}

impl Recent {
    /// Nothing, in a store with so many sealed events, whose newest durable event is `last_id`.
    pub(crate) fn new(sealed_events: u64, last_id: EventId, bounds: Bounds) -> Self {
        let shard = |_| Shard {
            entries: HashMap::default(),
            idle: IdleHeads::new(bounds.idle_bytes_max / SHARDS),
        };
        Self {
            shards: (0..SHARDS).map(shard).map(Mutex::new).collect(),
            hasher: DefaultHashBuilder::default(),
            commits: RwLock::new(Commits {
                files: VecDeque::new(),
                events: sealed_events,
                last_id,
            }),
            bounds,
            bytes: AtomicU64::new(0),
            written: AtomicU64::new(0),
            feeds: Mutex::default(),
        }
    }

    /// Keeps the session's entry in memory for as long as the pin lives. `load` finds out where a
    /// session stands that has no entry yet; it may read from the disk, and no lock that a commit
    /// takes is held meanwhile.
    pub(crate) fn pin(
        self: &Arc<Self>,
        id: &SessionId,
        load: impl FnOnce() -> Result<Option<Head>>,
    ) -> Result<Pin> {
        let pin = self.pin_unloaded(id);
        pin.load(load)?;
        Ok(pin)
    }

    /// The session's entry if there is one that knows where the session stands. Where there is
    /// none, the segments have all of it.
    pub(crate) fn look(self: &Arc<Self>, id: &SessionId) -> Option<Pin> {
        let shard = self.shard(id).lock();
        let entry = shard.entries.get(id).filter(|entry| entry.is_loaded())?;
        Some(Pin::new(self, entry))
    }

    /// Where a session stands. Without an entry, the segments have all of it; `load` finds out what
    /// is not known, as for [`pin`](Self::pin).
    pub(crate) fn find(
        self: &Arc<Self>,
        id: &SessionId,
        load: impl FnOnce() -> Result<Option<Head>>,
    ) -> Result<(Option<Pin>, Option<Head>)> {
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

    fn pin_unloaded(self: &Arc<Self>, id: &SessionId) -> Pin {
        let mut shard = self.shard(id).lock();
        if let Some(entry) = shard.entries.get(id) {
            return Pin::new(self, entry);
        }
        let entry = Arc::new(Entry::new(id.detached(), shard.idle.get(id)));
        shard.entries.insert(entry.id().clone(), Arc::clone(&entry));
        Pin::new(self, &entry)
    }

    /// Begins the file that the next groups belong to. Its header will be durable with the first of
    /// them.
    pub(crate) fn begin_file(&self, file: JournalUse, file_bytes: u64, start_lsn: u64) {
        let file = RecentFile {
            file,
            file_bytes,
            start_lsn,
            begun: false,
            groups: Vec::new(),
            bytes: 0,
        };
        self.commits.write().files.push_back(file);
    }

    /// As [`begin_file`](Recent::begin_file), for a file whose header is durable.
    pub(crate) fn restore_file(&self, file: JournalUse, file_bytes: u64, start_lsn: u64) {
        let file = RecentFile {
            file,
            file_bytes,
            start_lsn,
            begun: true,
            groups: Vec::new(),
            bytes: 0,
        };
        self.commits.write().files.push_back(file);
    }

    /// Lets readers see a group that is on stable storage. Returns what follows from it.
    pub(crate) fn publish<'a>(
        &self,
        appended: impl Iterator<Item = (&'a Entry, &'a Arc<Record>)>,
    ) -> Published {
        let mut to_wake = Vec::new();
        let mut bytes = 0;
        let mut group = Vec::with_capacity(appended.size_hint().1.unwrap_or(0));
        // Held from the first to the last, so that who has an event from its session finds it by
        // its ID too.
        let mut commits = self.commits.write();
        for (entry, record) in appended {
            let mut state = entry.lock();
            bytes += state.publish(Arc::clone(record));
            to_wake.append(&mut state.waiters.take());
            group.push(Arc::clone(record));
        }
        let seal_due = self.push_group(&mut commits, group, bytes as u64);
        drop(commits);
        to_wake.append(&mut self.feeds.lock().take());
        Published { to_wake, seal_due }
    }

    /// Takes in a group found in the journal. A record says itself where its session stands, so
    /// nothing is looked up.
    ///
    /// # Errors
    ///
    /// The position in the group of a record that does not follow the one before it in its session.
    pub(crate) fn restore(self: &Arc<Self>, records: Vec<Record>) -> Result<(), usize> {
        let mut bytes = 0;
        let mut group = Vec::with_capacity(records.len());
        for (at, record) in records.into_iter().enumerate() {
            let record = Arc::new(record);
            let pin = self.pin_unloaded(&record.session);
            bytes += pin.restore(&record).ok_or(at)?;
            group.push(record);
        }
        self.push_group(&mut self.commits.write(), group, bytes as u64);
        Ok(())
    }

    /// Memory for what is here, by estimate.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether another group may come. Without a full journal file nothing can be sealed, and
    /// waiting would help nobody.
    pub(crate) fn has_room(&self) -> bool {
        let (bytes, unsealed) = (self.bytes(), self.unsealed_bytes());
        (bytes <= self.bounds.bytes_max && unsealed <= self.bounds.unsealed_bytes_max)
            || !self.has_full_file()
    }

    /// Whether the active file takes so much that it should be ended.
    pub(crate) fn active_is_large(&self) -> bool {
        self.commits
            .read()
            .files
            .back()
            .is_some_and(|file| file.bytes > self.bounds.worth_bytes)
    }

    /// How much of what is recent the segment being written holds.
    pub(crate) fn note_written(&self, bytes: u64) {
        self.written.store(bytes, Ordering::Relaxed);
    }

    fn unsealed_bytes(&self) -> u64 {
        self.bytes()
            .saturating_sub(self.written.load(Ordering::Relaxed))
    }

    fn has_full_file(&self) -> bool {
        let commits = self.commits.read();
        commits
            .files
            .iter()
            .rev()
            .skip(1)
            .any(|file| !file.groups.is_empty())
    }

    /// All durable events of the store. It never goes down, and counts an event before its append
    /// is answered.
    pub(crate) fn events(&self) -> u64 {
        self.commits.read().events
    }

    /// The journal files with a durable header, in commit order, but for the first `sealed`.
    pub(crate) fn files_in_use(&self, sealed: usize) -> Vec<JournalUse> {
        let commits = self.commits.read();
        commits
            .files
            .iter()
            .skip(sealed)
            .filter(|file| file.begun)
            .map(|file| file.file)
            .collect()
    }

    /// The oldest full journal files, once they are worth a segment and it is time for one. That
    /// waits for the file behind them to be begun, since the manifest must name a file that the
    /// next records are in.
    pub(crate) fn sealable(&self, timing: Timing) -> Option<Sealable> {
        let Bounds {
            worth_file_bytes,
            worth_bytes,
            seal_from_bytes,
            unsealed_bytes_max,
            ..
        } = self.bounds;
        let commits = self.commits.read();
        let active = commits.files.back().filter(|file| file.begun)?;
        let full = commits.files.range(..commits.files.len() - 1);
        let (file_bytes, memory) = full.clone().fold((0, 0), |(disk, memory), file| {
            (disk + file.file_bytes, memory + file.bytes)
        });
        let is_worth_it = file_bytes >= worth_file_bytes || memory >= worth_bytes;
        let is_time = timing == Timing::Now || self.bytes() > seal_from_bytes;
        if !(is_worth_it && is_time) && self.unsealed_bytes() <= unsealed_bytes_max {
            return None;
        }
        let mut memory = 0;
        let taken: Vec<_> = full
            .take_while(|file| {
                let is_first = memory == 0;
                memory += file.bytes;
                is_first || memory <= worth_bytes
            })
            .collect();
        let groups: Vec<Group> = taken
            .iter()
            .flat_map(|file| &file.groups)
            .map(Arc::clone)
            .collect();
        let mut sealable = Sealable {
            records: Vec::new(),
            memory: taken.iter().map(|file| file.bytes).sum(),
            start_lsn: commits.files.front().unwrap_or(active).start_lsn,
            end_lsn: commits.files.get(taken.len()).unwrap_or(active).start_lsn,
            files: taken
                .iter()
                .map(|file| (file.file, file.file_bytes))
                .collect(),
        };
        drop(commits);
        sealable.records = groups
            .iter()
            .flat_map(|group| group.iter().map(Arc::clone))
            .collect();
        (!sealable.records.is_empty()).then_some(sealable)
    }

    /// Lets go of the records that were sealed, those of so many journal files. The segment is
    /// visible to readers by now. IDs rise in commit order, so that they are what each session has
    /// up to the last one's.
    pub(crate) fn release_sealed(&self, files: usize, records: Vec<Arc<Record>>) {
        let through = records.last().expect("something was sealed").last_id();
        let files: Vec<_> = self.commits.write().files.drain(..files).collect();
        for shard in &self.shards {
            let entries: Vec<_> = shard.lock().entries.values().map(Arc::clone).collect();
            for entry in entries {
                while self.release_some(&entry, through) == RELEASED_AT_ONCE {}
            }
        }
        let bytes = files.iter().map(|file| file.bytes).sum();
        // Freed here, with no lock held, and in the order in which it was allocated: session by
        // session the memory would come back in pieces, and appends pay for that.
        drop((files, records));
        // Counted down last, so that the bound holds for what is really in memory.
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The record that holds the event with this ID.
    pub(crate) fn record_of(&self, id: EventId) -> Option<Arc<Record>> {
        let commits = self.commits.read();
        let record = commits
            .groups_from(id)
            .next()?
            .iter()
            .find(|record| record.last_id() >= id)?;
        record.seq_of(id).is_some().then(|| Arc::clone(record))
    }

    /// At most `count` records in commit order, beginning with the one that holds `id` or else the
    /// first behind it.
    pub(crate) fn records_from(&self, id: EventId, count: usize) -> Vec<Arc<Record>> {
        let commits = self.commits.read();
        let records = commits
            .groups_from(id)
            .flat_map(|group| group.iter())
            .filter(|record| record.last_id() >= id);
        records.take(count).map(Arc::clone).collect()
    }

    /// Shows the records to `visit`, newest first, until it has enough.
    pub(crate) fn visit_newest(
        &self,
        mut visit: impl FnMut(&Record) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let commits = self.commits.read();
        let groups: Vec<Group> = commits
            .files
            .iter()
            .rev()
            .flat_map(|file| file.groups.iter().rev().map(Arc::clone))
            .collect();
        drop(commits);
        groups
            .iter()
            .flat_map(|group| group.iter().rev())
            .try_for_each(|record| visit(record))
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

    /// The newest durable event of the store; a nil ID before the first.
    pub(crate) fn last_id(&self) -> EventId {
        self.commits.read().last_id
    }

    /// Registers a waiter for the next event of any session, unless there is one behind `seen`
    /// already.
    pub(crate) fn wait_for_any(&self, seen: EventId, waiter: &Arc<Waiter>) -> bool {
        let mut feeds = self.feeds.lock();
        feeds.add(waiter);
        let commits = self.commits.read();
        let waits = commits.last_id <= seen;
        drop(commits);
        if !waits {
            feeds.remove(waiter);
        }
        waits
    }

    pub(crate) fn forget_feed(&self, waiter: &Arc<Waiter>) {
        self.feeds.lock().remove(waiter);
    }

    /// Wakes everybody who waits for an event.
    pub(crate) fn wake_all(&self) {
        let mut waiters = self.feeds.lock().take();
        for shard in &self.shards {
            shard
                .lock()
                .entries
                .values()
                .for_each(|entry| waiters.append(&mut entry.lock().waiters.take()));
        }
        waiters.iter().for_each(|waiter| waiter.wake());
    }

    /// Whether sealing has become due.
    fn push_group(&self, commits: &mut Commits, group: Vec<Arc<Record>>, bytes: u64) -> bool {
        let Some(last) = group.last() else {
            return false;
        };
        let last_id = last.last_id();
        let events = group
            .iter()
            .map(|record| u64::from(record.count))
            .sum::<u64>();
        commits.events += events;
        commits.last_id = last_id;
        let file = commits
            .files
            .back_mut()
            .expect("a file is begun before its first group");
        let began_file = !std::mem::replace(&mut file.begun, true);
        file.groups.push(group.into());
        file.bytes += bytes;
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        began_file || (before..before + bytes).contains(&self.bounds.seal_from_bytes)
    }

    /// Releases so many of an entry's records at the most.
    fn release_some(&self, entry: &Entry, through: EventId) -> usize {
        let mut state = entry.lock();
        let released = state.release(through, RELEASED_AT_ONCE);
        self.unlock(entry, state);
        released
    }

    fn unpin(&self, entry: &Entry) {
        let mut state = entry.lock();
        state.pins -= 1;
        self.unlock(entry, state);
    }

    /// Gives an entry's lock back, and drops the entry if nobody needs it any more.
    fn unlock(&self, entry: &Entry, state: MutexGuard<'_, EntryState>) {
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

impl Commits {
    /// The groups from the one that may hold `id` on.
    fn groups_from(&self, id: EventId) -> impl Iterator<Item = &Group> {
        let ends_before =
            move |group: &Group| group.last().is_some_and(|record| record.last_id() < id);
        self.files.iter().flat_map(move |file| {
            let before = file.groups.partition_point(ends_before);
            file.groups.get(before..).unwrap_or_default()
        })
    }
}

/// Holds a session's entry in memory.
pub(crate) struct Pin {
    recent: Arc<Recent>,
    entry: Arc<Entry>,
}

impl Pin {
    /// Called with the shard's lock held, so that nobody drops the entry meanwhile.
    fn new(recent: &Arc<Recent>, entry: &Arc<Entry>) -> Self {
        entry.lock().pins += 1;
        Self {
            recent: Arc::clone(recent),
            entry: Arc::clone(entry),
        }
    }
}

impl Deref for Pin {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.recent.unpin(&self.entry);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Batch;
    use crate::codec::EncodedBatch;
    use crate::model::{NewEvent, Stamp};

    /// A record as it would stand in the journal.
    pub(crate) fn record(session: &str, seq: u64) -> Record {
        let batch = Batch::new()
            .event(NewEvent::new("note", vec![7; 100]))
            .idempotency_key(seq.to_string());
        let encoded = EncodedBatch::new(&SessionId::new(session).unwrap(), batch);
        let stamp = Stamp {
            base: EventId::from_u128(1_000 + u128::from(seq)),
            created_ms: 0,
        };
        Arc::unwrap_or_clone(encoded.stamped(1, seq, stamp))
    }

    pub(crate) fn recent() -> Arc<Recent> {
        Arc::new(Recent::new(
            0,
            EventId::from_u128(0),
            Bounds::of(&Options::new().recent_bytes_max(0)),
        ))
    }

    pub(crate) fn file(number: u32) -> JournalUse {
        JournalUse {
            number,
            incarnation: number.into(),
        }
    }

    #[test]
    fn a_sealed_key_leaves_memory_also_while_somebody_holds_the_session() {
        let recent = recent();
        let pin = recent
            .pin(&SessionId::new("s").unwrap(), || Ok(None))
            .unwrap();
        recent.restore_file(file(1), 4096, 0);
        recent.restore(vec![record("s", 1)]).unwrap();
        recent.restore_file(file(2), 4096, 4096);
        assert!(pin.lock().record_of_key("1").is_some());
        let sealable = recent.sealable(Timing::Now).unwrap();
        recent.release_sealed(sealable.files.len(), sealable.records);
        let state = pin.lock();
        assert!(state.record_of_key("1").is_none() && state.records.is_empty());
        assert_eq!(
            state.keys_released, 1,
            "who looked the key up before has to do so again"
        );
    }

    #[test]
    fn where_an_idle_session_stands_is_remembered_and_never_less_than_that() {
        let recent = recent();
        let id = SessionId::new("s").unwrap();
        let not_again = || panic!("it was looked up again");
        assert_eq!(recent.find(&id, || Ok(None)).unwrap().1, None);
        for seq in 1..4 {
            recent.restore_file(file(1), 4096, 0);
            recent.restore(vec![record("s", seq)]).unwrap();
            recent.restore_file(file(2), 4096, 4096);
            assert!(recent.look(&id).is_some(), "it is not idle");
            let sealable = recent.sealable(Timing::Now).unwrap();
            recent.release_sealed(sealable.files.len(), sealable.records);
            assert!(recent.look(&id).is_none(), "the session is not let go");
            let (entry, head) = recent.find(&id, not_again).unwrap();
            assert_eq!(
                (entry.is_none(), head.map(|head| head.last)),
                (true, Some(seq))
            );
            let pin = recent.pin(&id, not_again).unwrap();
            let state = pin.lock();
            assert_eq!(
                (state.head.map(|head| head.last), state.assigned),
                (Some(seq), seq)
            );
        }
    }

    #[test]
    fn a_file_that_is_given_back_is_not_in_use_also_where_it_held_nothing() {
        let recent = recent();
        recent.restore_file(file(1), 4096, 0);
        recent.restore(vec![record("s", 1)]).unwrap();
        recent.restore_file(file(2), 4096, 4096);
        recent.restore_file(file(3), 4096, 4096);
        recent.restore(vec![record("s", 2)]).unwrap();
        let sealable = recent.sealable(Timing::Now).unwrap();
        let sealed: Vec<JournalUse> = sealable.files.iter().map(|(file, _)| *file).collect();
        let in_use = recent.files_in_use(sealable.files.len());
        assert!(
            sealed.iter().all(|file| !in_use.contains(file)),
            "{sealed:?} and {in_use:?}"
        );
        assert_eq!(in_use.last(), Some(&file(3)));
    }
}
