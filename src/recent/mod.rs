//! Records that are durable but not yet in a segment, in memory, by session and in commit order.
//! Also the states of the sessions in use.
//!
//! Invariants:
//! * A record gets here after its group's barrier. So a record that a reader finds here survives a
//!   crash.
//! * A record leaves only after its segment was published. So a reader that looks here first, and
//!   then in the segments, misses nothing.
//! * While a [`SessionPin`] on a session exists, its entry stays. A thread that holds one may prove
//!   a key absent from the segments. It then finds a later use of the key in the entry. Or it finds
//!   there that keys have left the entry since, and that it must prove the absence again.
//! * An entry without pins and records is dropped, so memory does not grow with the number of
//!   sessions. Its state goes to the [idle states](crate::recent::idle), under the lock that also
//!   covers the making of the session's next entry.

mod backlog;
mod entry;
mod follow;
mod idle;
mod sessions;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::codec::Record;
use crate::manifest::JournalUse;
use crate::model::{EventId, Op, SessionId};
use crate::recent::entry::SessionEntry;
use crate::recent::sessions::Sessions;
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock, WaitList, Waiter};

pub(crate) use backlog::{Bounds, Sealable, Timing};
pub(crate) use entry::EntryState;
pub(crate) use sessions::SessionPin;

pub(crate) struct Recent {
    pub sessions: Arc<Sessions>,
    commits: RwLock<Commits>,
    bounds: Bounds,
    /// The estimated memory of all records in `commits`, in bytes.
    bytes: AtomicU64,
    /// The part of `bytes` that the segment being written already holds.
    written: AtomicU64,
    /// The number of removals that were published since the log was opened.
    removals: AtomicU64,
    feeds: Mutex<WaitList>,
    forks: Mutex<RecentForks>,
}

/// The sessions that share events with another, whose forks are recent: by that one and its
/// generation.
#[derive(Default)]
struct RecentForks {
    /// The last is the generation of the fork.
    by_ancestor: BTreeSet<(SessionId, u32, SessionId, u32)>,
    /// The number of forks that were published since the log was opened.
    published: u64,
}

/// The records in commit order, by journal file.
struct Commits {
    files: VecDeque<RecentFile>,
    /// The number of durable events of the store, sealed ones included. It is one number, which no
    /// step of sealing changes.
    events: u64,
    /// The newest durable event of the store.
    last_id: EventId,
}

/// The records of one journal file.
struct RecentFile {
    file: JournalUse,
    file_bytes: u64,
    start_lsn: u64,
    /// Whether the file's header is on stable storage, so that the manifest may name it.
    begun: bool,
    groups: Vec<GroupRecords>,
    bytes: u64,
    /// When the first removal among the records was committed, by the wall clock.
    removal_ms: Option<u64>,
}

/// The records of a commit group. They are shared, so that a walk over many groups holds no lock.
type GroupRecords = Arc<[Arc<Record>]>;

/// The work that follows from publishing a group.
pub(crate) struct Published {
    /// The waiters for the group's events.
    pub(crate) to_wake: Vec<Arc<Waiter>>,
    /// Whether sealing is due. It is if the group is the first of its journal file, so that the
    /// files before can be sealed. It also is if the group raised the recent bytes to the
    /// threshold.
    pub(crate) seal_due: bool,
}

impl Recent {
    /// Returns an empty set for a store with `sealed_events`, whose newest durable event is
    /// `last_id`.
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
            removals: AtomicU64::new(0),
            feeds: Mutex::default(),
            forks: Mutex::default(),
        }
    }

    /// Begins the file of the next groups. Its header becomes durable with the first of them.
    pub(crate) fn begin_file(&self, file: JournalUse, file_bytes: u64, start_lsn: u64) {
        let file = RecentFile {
            file,
            file_bytes,
            start_lsn,
            begun: false,
            groups: Vec::new(),
            bytes: 0,
            removal_ms: None,
        };
        self.commits.write().files.push_back(file);
    }

    /// Begins a file like [`begin_file`](Recent::begin_file), but its header is durable.
    ///
    /// Goes on in the last file if it is that one, or if a writer that recovered wrote it again.
    pub(crate) fn restore_file(&self, file: JournalUse, file_bytes: u64, start_lsn: u64) {
        let mut commits = self.commits.write();
        if let Some(last) = commits.files.back_mut()
            && (last.file == file || (last.start_lsn == start_lsn && !last.groups.is_empty()))
        {
            (last.file, last.file_bytes) = (file, file_bytes);
            return;
        }
        let file = RecentFile {
            file,
            file_bytes,
            start_lsn,
            begun: true,
            groups: Vec::new(),
            bytes: 0,
            removal_ms: None,
        };
        commits.files.push_back(file);
    }

    /// Makes a group on stable storage visible to readers. Returns the work that follows.
    pub(crate) fn publish<'a>(
        &self,
        appended: impl Iterator<Item = (&'a SessionEntry, &'a Arc<Record>)> + Clone,
    ) -> Published {
        let mut to_wake = Vec::new();
        let mut bytes = 0;
        let mut group = Vec::with_capacity(appended.size_hint().1.unwrap_or(0));
        // The lock is held from the first record to the last. So a reader that has an event from
        // its session finds it by its ID too.
        let mut commits = self.commits.write();
        // A fork is known before the deletion of its parent is seen. So a merge keeps what it
        // shares.
        self.note_forks(appended.clone().map(|(_entry, record)| record));
        for (entry, record) in appended {
            let mut state = entry.lock();
            bytes += state.publish(Arc::clone(record));
            to_wake.append(&mut state.waiters.take());
            group.push(Arc::clone(record));
        }
        self.note_removals(&group);
        let seal_due = self.push_group(&mut commits, group, bytes as u64);
        drop(commits);
        to_wake.append(&mut self.feeds.lock().take());
        Published { to_wake, seal_due }
    }

    /// Adopts a group found in the journal, and returns the waiters for its events. Nothing is
    /// looked up: a session's sealed state is loaded when it is needed.
    ///
    /// # Errors
    ///
    /// The position in the group of a record that does not follow the one before it in its session.
    pub(crate) fn restore(&self, records: Vec<Record>) -> Result<Vec<Arc<Waiter>>, usize> {
        let mut to_wake = Vec::new();
        let mut bytes = 0;
        let mut group = Vec::with_capacity(records.len());
        for (at, record) in records.into_iter().enumerate() {
            let record = Arc::new(record);
            let pin = self.sessions.pin_unloaded(&record.session);
            bytes += pin.restore(&record).ok_or(at)?;
            to_wake.append(&mut pin.lock().waiters.take());
            group.push(record);
        }
        self.note_forks(group.iter());
        self.note_removals(&group);
        self.push_group(&mut self.commits.write(), group, bytes as u64);
        to_wake.append(&mut self.feeds.lock().take());
        Ok(to_wake)
    }

    fn note_removals(&self, group: &[Arc<Record>]) {
        let removals = group.iter().filter(|record| record.removes()).count();
        self.removals.fetch_add(removals as u64, Ordering::Release);
    }

    /// Returns the sessions that share events with a generation of this one, and whose forks are
    /// recent. They may have been deleted since.
    pub(crate) fn forks_of(&self, session: &SessionId, generation: u32) -> Vec<SessionId> {
        let forks = self.forks.lock();
        let nothing = SessionId::lowest();
        let from = (session.clone(), generation, nothing, 0);
        forks
            .by_ancestor
            .range(from..)
            .take_while(|(ancestor, of, ..)| ancestor == session && *of == generation)
            .map(|(_, _, fork, _)| fork.clone())
            .collect()
    }

    /// Returns the number of forks that were published since the log was opened. If it has not
    /// changed, there was none meanwhile.
    pub(crate) fn forks_published(&self) -> u64 {
        self.forks.lock().published
    }

    /// Forgets the forks of sealed records, which the segments have now.
    fn forget_forks(&self, records: &[Arc<Record>]) {
        let is_fork = |record: &&Arc<Record>| {
            let mut ops = record.ops().iter();
            ops.any(|op| matches!(op, Op::Fork(_)))
        };
        for record in records.iter().filter(is_fork) {
            // A later generation of the session may be a fork too, and not be sealed.
            let sealed = (&record.session, record.generation);
            let mut forks = self.forks.lock();
            forks
                .by_ancestor
                .retain(|(_, _, fork, generation)| (fork, *generation) != sealed);
        }
    }

    fn note_forks<'a>(&self, records: impl Iterator<Item = &'a Arc<Record>>) {
        for record in records {
            for op in record.ops() {
                if let Op::Fork(lineage) = op {
                    let mut forks = self.forks.lock();
                    forks.published += 1;
                    let of = lineage.pieces.iter().map(|piece| {
                        let (ancestor, fork) = (piece.session.clone(), record.session.detached());
                        (ancestor, piece.generation, fork, record.generation)
                    });
                    forks.by_ancestor.extend(of);
                }
            }
        }
    }

    /// Returns the estimated memory of all recent records, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of durable events of the store.
    ///
    /// It never decreases, and counts an event before its append is answered.
    pub(crate) fn events(&self) -> u64 {
        self.commits.read().events
    }

    /// Notes that the header of the last file is durable, without a group in it.
    pub(crate) fn note_begun(&self) {
        if let Some(file) = self.commits.write().files.back_mut() {
            file.begun = true;
        }
    }

    /// Whether a recent record gives a session a retention of its own.
    pub(crate) fn has_own_retention(&self) -> bool {
        let commits = self.commits.read();
        let groups = commits.files.iter().flat_map(|file| &file.groups);
        groups
            .flat_map(|group| group.iter())
            .any(|record| record.retains())
    }

    /// Returns the number of removals that were published since the log was opened. What was read
    /// before it changed may have been removed.
    pub(crate) fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// Returns when the first removal was committed that is not sealed yet.
    pub(crate) fn oldest_removal_ms(&self) -> Option<u64> {
        let commits = self.commits.read();
        let files = commits.files.iter();
        files.filter_map(|file| file.removal_ms).min()
    }

    /// Returns the number of journal files with records in memory, and their bytes.
    pub(crate) fn journal(&self) -> (u64, u64) {
        let commits = self.commits.read();
        let bytes = commits.files.iter().map(|file| file.file_bytes).sum();
        (commits.files.len() as u64, bytes)
    }

    /// Returns the journal files with a durable header, in commit order, from the first that no
    /// segment holds: segments end at `sealed_lsn`.
    ///
    /// Files are sealed whole. They stay here until their records are released, a little longer.
    pub(crate) fn files_in_use(&self, sealed_lsn: u64) -> Vec<JournalUse> {
        let commits = self.commits.read();
        let next = commits.files.iter().skip(1).map(Some).chain([None]);
        let is_sealed = |next: Option<&RecentFile>| {
            next.is_some_and(|next| next.begun && next.start_lsn <= sealed_lsn)
        };
        let files = commits.files.iter().zip(next);
        files
            .filter(|(file, next)| file.begun && !is_sealed(*next))
            .map(|(file, _)| file.file)
            .collect()
    }

    /// Releases the sealed `records`, which are those of the first `files` journal files.
    ///
    /// The segment must be visible to readers already. IDs rise in commit order. So each session
    /// releases its records up to the last ID.
    pub(crate) fn release_sealed(&self, files: usize, records: Vec<Arc<Record>>) {
        let files: Vec<_> = self.commits.write().files.drain(..files).collect();
        if let Some(last) = records.last() {
            self.forget_forks(&records);
            self.sessions.release(last.last_id());
        }
        let bytes = files.iter().map(|file| file.bytes).sum();
        // The records are freed here, with no lock held, in the order of their allocation. Freed
        // session by session, the memory would return in pieces, which slows appends.
        drop((files, records));
        // The count decreases last, so that the bound holds for the memory in use.
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns the record that holds the event with this ID.
    pub(crate) fn record_of(&self, id: EventId) -> Option<Arc<Record>> {
        let commits = self.commits.read();
        let record = commits
            .groups_from(id)
            .next()?
            .iter()
            .find(|record| record.last_id() >= id)?;
        record.seq_of(id).is_some().then(|| Arc::clone(record))
    }

    /// Returns at most `count` records in commit order.
    ///
    /// They begin with the record that holds `id`, or else with the first after it.
    pub(crate) fn records_from(&self, id: EventId, count: usize) -> Vec<Arc<Record>> {
        let commits = self.commits.read();
        let records = commits
            .groups_from(id)
            .flat_map(|group| group.iter())
            .filter(|record| record.last_id() >= id);
        records.take(count).map(Arc::clone).collect()
    }

    /// Returns at most `count` records that begin before `id`, newest first.
    pub(crate) fn records_below(&self, id: EventId, count: usize) -> Vec<Arc<Record>> {
        let commits = self.commits.read();
        let begins_before =
            |group: &GroupRecords| group.first().is_some_and(|record| record.base < id);
        let groups = commits.files.iter().rev().flat_map(|file| {
            let before = file.groups.partition_point(begins_before);
            file.groups.get(..before).unwrap_or_default().iter().rev()
        });
        let records = groups
            .flat_map(|group| group.iter().rev())
            .filter(|record| record.base < id);
        records.take(count).map(Arc::clone).collect()
    }

    /// Returns the newest durable event of the store; a nil ID before the first.
    pub(crate) fn last_id(&self) -> EventId {
        self.commits.read().last_id
    }

    /// Registers a waiter for the next event of any session. Returns `false` without registering it
    /// if there already is an event after `seen`.
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

    /// Wakes all waiters for an event.
    pub(crate) fn wake_all(&self) {
        let mut waiters = self.feeds.lock().take();
        waiters.append(&mut self.sessions.take_waiters());
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Appends a group and returns whether sealing has become due.
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
        let removals = group.iter().filter(|record| record.removes());
        let removal_ms = removals.map(|record| record.created_ms).min();
        file.removal_ms = file.removal_ms.into_iter().chain(removal_ms).min();
        let began_file = !std::mem::replace(&mut file.begun, true);
        file.groups.push(group.into());
        file.bytes += bytes;
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        began_file || (before..before + bytes).contains(&self.bounds.seal_from_bytes)
    }
}

impl Commits {
    /// Returns the groups from the one that may hold `id` on.
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
    use crate::codec::SessionState;
    use crate::model::{NewEvent, Options, SessionId, Stamp};

    /// Returns a record of a session's first generation as it would be in the journal.
    pub(crate) fn record(session: &str, seq: u64) -> Record {
        record_of(session, 1, seq)
    }

    /// Returns the batch of the record with a seq.
    pub(crate) fn batch(seq: u64) -> Batch {
        Batch::new()
            .event(NewEvent::new("note", vec![7; 100]))
            .idempotency_key(seq.to_string())
    }

    fn record_of(session: &str, generation: u32, seq: u64) -> Record {
        let encoded = EncodedBatch::new(&SessionId::new(session).unwrap(), batch(seq));
        let stamp = Stamp {
            base: EventId::from_u128(1_000 * u128::from(generation) + u128::from(seq)),
            created_ms: 0,
        };
        Arc::unwrap_or_clone(encoded.stamped(generation, seq, stamp))
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
            .pin(
                &SessionId::new("s").unwrap(),
                || Ok(SessionState::default()),
            )
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
    fn who_used_a_key_before_has_it_again_if_its_next_use_is_not_written() {
        let recent = recent();
        let absent = || Ok(SessionState::default());
        let pin = recent
            .sessions
            .pin(&SessionId::new("s").unwrap(), absent)
            .unwrap();
        recent.restore_file(file(1), 4096, 0);
        recent
            .restore(vec![record("s", 1), record("s", 2)])
            .unwrap();
        // The session was deleted meanwhile, and begins again with the same keys.
        let again = Arc::new(record_of("s", 2, 1));
        let mut state = pin.lock();
        state.assign(&again);
        assert_eq!(state.record_of_key("1").unwrap().generation, 2);
        state.take_back(&again);
        assert_eq!(state.record_of_key("1").unwrap().generation, 1);
        assert_eq!(state.record_of_key("2").unwrap().first, 2);
        assert_eq!(
            state.keys_released, 1,
            "who saw the key in memory has to look it up"
        );
    }

    #[test]
    fn where_an_idle_session_stands_is_remembered_and_never_less_than_that() {
        let recent = recent();
        let id = SessionId::new("s").unwrap();
        let not_again = || panic!("it was looked up again");
        let absent = || Ok(SessionState::default());
        assert!(!recent.sessions.find(&id, absent).unwrap().1.is_there());
        for seq in 1..4 {
            recent.restore_file(file(1), 4096, 0);
            recent.restore(vec![record("s", seq)]).unwrap();
            recent.restore_file(file(2), 4096, 4096);
            let sealed = || panic!("a state in memory is known");
            let pin = if seq == 1 {
                recent.sessions.pin(&id, absent)
            } else {
                recent.sessions.pin(&id, sealed)
            };
            drop(pin.unwrap());
            assert!(recent.sessions.look(&id).is_some(), "it is not idle");
            let sealable = recent.sealable(Timing::Now).unwrap();
            recent.release_sealed(sealable.files.len(), sealable.records);
            assert!(
                recent.sessions.look(&id).is_none(),
                "the session is not let go"
            );
            let (entry, head) = recent.sessions.find(&id, not_again).unwrap();
            assert_eq!((entry.is_none(), head.last), (true, seq));
            let pin = recent.sessions.pin(&id, not_again).unwrap();
            let state = pin.lock();
            assert_eq!((state.durable.last, state.assigned().last), (seq, seq));
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
        let in_use = recent.files_in_use(sealable.end_lsn);
        assert!(
            sealed.iter().all(|file| !in_use.contains(file)),
            "{sealed:?} and {in_use:?}"
        );
        assert_eq!(in_use.last(), Some(&file(3)));
    }

    #[test]
    fn what_was_full_before_is_sealed_also_while_the_next_file_is_being_begun() {
        let recent = recent();
        recent.restore_file(file(1), 4096, 0);
        recent.restore(vec![record("s", 1)]).unwrap();
        recent.restore_file(file(2), 4096, 4096);
        recent.begin_file(file(3), 4096, 8192);
        let sealable = recent.sealable(Timing::All).expect("the order was lost");
        let files: Vec<JournalUse> = sealable.files.iter().map(|(file, _)| *file).collect();
        assert_eq!((files, sealable.end_lsn), (vec![file(1)], 4096));
    }
}
