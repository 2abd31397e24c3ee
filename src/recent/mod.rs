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

mod backlog;
mod entry;
mod idle;
mod sessions;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::codec::Record;
use crate::manifest::JournalUse;
use crate::model::EventId;
use crate::recent::entry::SessionEntry;
use crate::recent::sessions::Sessions;
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock, WaitList, Waiter};

pub(crate) use backlog::{Bounds, Sealable, Timing};
pub(crate) use entry::SessionState;
pub(crate) use sessions::SessionPin;

pub(crate) struct Recent {
    pub sessions: Arc<Sessions>,
    commits: RwLock<Commits>,
    bounds: Bounds,
    /// All of `commits`, by estimate.
    bytes: AtomicU64,
    /// Of that, what the segment being written holds already.
    written: AtomicU64,
    feeds: Mutex<WaitList>,
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
    groups: Vec<GroupRecords>,
    bytes: u64,
}

/// The records of a commit group. Shared, so that who walks over many holds no lock meanwhile.
type GroupRecords = Arc<[Arc<Record>]>;

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
        Self {
            sessions: Arc::new(Sessions::new(bounds.idle_bytes_max)),
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
        appended: impl Iterator<Item = (&'a SessionEntry, &'a Arc<Record>)>,
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
    pub(crate) fn restore(&self, records: Vec<Record>) -> Result<(), usize> {
        let mut bytes = 0;
        let mut group = Vec::with_capacity(records.len());
        for (at, record) in records.into_iter().enumerate() {
            let record = Arc::new(record);
            let pin = self.sessions.pin_unloaded(&record.session);
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

    /// Lets go of the records that were sealed, those of so many journal files. The segment is
    /// visible to readers by now. IDs rise in commit order, so that they are what each session has
    /// up to the last one's.
    pub(crate) fn release_sealed(&self, files: usize, records: Vec<Arc<Record>>) {
        let through = records.last().expect("something was sealed").last_id();
        let files: Vec<_> = self.commits.write().files.drain(..files).collect();
        self.sessions.release(through);
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
        let groups: Vec<GroupRecords> = commits
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
        waiters.append(&mut self.sessions.take_waiters());
        for waiter in waiters {
            waiter.wake();
        }
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
}

impl Commits {
    /// The groups from the one that may hold `id` on.
    fn groups_from(&self, id: EventId) -> impl Iterator<Item = &GroupRecords> {
        let ends_before =
            move |group: &GroupRecords| group.last().is_some_and(|record| record.last_id() < id);
        self.files.iter().flat_map(move |file| {
            let before = file.groups.partition_point(ends_before);
            file.groups.get(before..).unwrap_or_default()
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Batch;
    use crate::codec::EncodedBatch;
    use crate::model::{NewEvent, Options, SessionId, Stamp};

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
            .sessions
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
        assert_eq!(recent.sessions.find(&id, || Ok(None)).unwrap().1, None);
        for seq in 1..4 {
            recent.restore_file(file(1), 4096, 0);
            recent.restore(vec![record("s", seq)]).unwrap();
            recent.restore_file(file(2), 4096, 4096);
            assert!(recent.sessions.look(&id).is_some(), "it is not idle");
            let sealable = recent.sealable(Timing::Now).unwrap();
            recent.release_sealed(sealable.files.len(), sealable.records);
            assert!(
                recent.sessions.look(&id).is_none(),
                "the session is not let go"
            );
            let (entry, head) = recent.sessions.find(&id, not_again).unwrap();
            assert_eq!(
                (entry.is_none(), head.map(|head| head.last)),
                (true, Some(seq))
            );
            let pin = recent.sessions.pin(&id, not_again).unwrap();
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
