//! The commit group: callers join the open group, and whoever leads gives it one write and one barrier while the next one fills.
//!
//! A lone caller leads its own group, so that nothing is handed from thread to thread. As soon as the next group has members when one is
//! done, the commit thread leads, until it finds none.
//!
//! Invariants:
//! * IDs and seqs are given out in the *section*, under its lock, in the order in which requests join; groups are written in the
//!   order in which they were open. So ID order is commit order is the order that readers see.
//! * One leader at a time holds the journal, and one group at a time is being written.
//! * Every answer, also a replay, a conflict or a mismatch, is given after the barrier of the group it was decided in, and so of all
//!   before it: it never rests on something that a crash could take back.
//! * After a failed write nothing is written again: the log is poisoned, and records of the failed group reach no reader. A group that
//!   could not be written for lack of room takes back what it was given, and so does the open group, which rests on it.
//! * The section does no I/O and its lock is not held over any.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::codec::{EncodedBatch, Record};
use crate::entry::EntryState;
use crate::error::{Error, Result};
use crate::event::Expected;
use crate::ids::IdClock;
use crate::journal::{GroupBuffer, HEADER_BYTES, JournalWriter, Spares, group_bytes};
use crate::options::Options;
use crate::recent::{Pin, Recent};
use crate::seal::SealSignal;
use crate::stats::Counters;
use crate::sync::{Condvar, Deadline, Instant, Mutex, MutexGuard};
use crate::ticket::{Answer, Landed, lost};
use crate::watermark::Waiter;

/// How long the log is without appends before the durable LSN is recorded in a witness.
const WITNESS_AFTER: Duration = Duration::from_millis(100);

/// The active journal file is ended early when it accounts for this share of the memory for recent records.
pub(crate) const ACTIVE_SHARE: u64 = 3;

/// A batch on its way.
pub(crate) struct Request {
    pub batch: EncodedBatch,
    pub expected: Expected,
    pub session: Pin,
    /// The sealed record that landed under the batch's key, looked up under the pin.
    pub sealed: Option<Record>,
    pub answer: Answer,
}

/// The open group, and what writes groups.
pub(crate) struct Commit {
    section: Mutex<Section>,
    /// For the commit thread: there is work, or an end to it.
    work: Condvar,
    /// For callers: there is room in the open group, or an end to waiting.
    room: Condvar,
    journal: Mutex<JournalWriter>,
    recent: Arc<Recent>,
    spares: Arc<Spares>,
    seal: Arc<SealSignal>,
    counters: Arc<Counters>,
    group_bytes_max: usize,
    recent_bytes_max: u64,
    stall_wait: Duration,
}

struct Section {
    clock: IdClock,
    open: Group,
    /// The buffers of the last group, for the next one.
    spare: Option<Group>,
    /// Async callers that found the open group full.
    room_waiters: Vec<Arc<Waiter>>,
    /// Somebody has the journal.
    led: bool,
    /// When the last group was committed, until a witness is written after it.
    unwitnessed: Option<Instant>,
    closing: bool,
    poison: Option<Arc<Error>>,
}

/// Requests that share a write and a barrier.
#[derive(Default)]
struct Group {
    members: Vec<Decided>,
    buffer: GroupBuffer,
}

/// A request whose place in its group is known.
struct Decided {
    session: Pin,
    owed: Answer,
    outcome: Outcome,
}

enum Outcome {
    /// It becomes this record, once the group is durable.
    Append(Arc<Record>),
    /// It writes nothing, and is told this once the group is durable.
    Tell(Result<Landed>),
}

impl Commit {
    pub(crate) fn new(
        journal: JournalWriter,
        clock: IdClock,
        recent: Arc<Recent>,
        spares: Arc<Spares>,
        seal: Arc<SealSignal>,
        counters: Arc<Counters>,
        options: &Options,
    ) -> Self {
        let section = Section {
            clock,
            open: Group::default(),
            spare: None,
            room_waiters: Vec::new(),
            led: false,
            unwitnessed: None,
            closing: false,
            poison: None,
        };
        Self {
            section: Mutex::new(section),
            work: Condvar::new(),
            room: Condvar::new(),
            journal: Mutex::new(journal),
            recent,
            spares,
            seal,
            counters,
            group_bytes_max: options.group_bytes_max,
            recent_bytes_max: options.recent_bytes_max as u64,
            stall_wait: options.stall_wait,
        }
    }

    /// Puts the request into the open group, waiting for room, and writes that here and now if nobody else leads.
    pub(crate) fn append(&self, request: Request) -> Result<()> {
        let deadline = Deadline::after(self.stall_wait);
        let mut section = self.section.lock();
        section.check_open()?;
        while section.open.is_full_for(&request, self.group_bytes_max) {
            if !deadline.wait(&self.room, &mut section) {
                return Err(Error::Stalled { waited: self.stall_wait });
            }
            section.check_open()?;
        }
        section.join(request);
        if !section.led {
            self.lead_one_group(section);
        }
        Ok(())
    }

    /// Puts the request into the open group and leaves the writing to the commit thread. Where there is no room the request comes
    /// back, and `waiter` is woken once there is some.
    pub(crate) fn submit(&self, request: Request, waiter: &Arc<Waiter>) -> Result<Option<Request>> {
        let mut section = self.section.lock();
        section.check_open()?;
        if section.open.is_full_for(&request, self.group_bytes_max) {
            section.room_waiters.push(Arc::clone(waiter));
            return Ok(Some(request));
        }
        section.join(request);
        if !section.led {
            self.work.notify_one();
        }
        Ok(None)
    }

    /// The work of the commit thread, until [`stop`](Commit::stop).
    pub(crate) fn run(&self) {
        let mut section = self.section.lock();
        loop {
            if section.led && section.unwitnessed.is_some() {
                // A caller who leads alone does not wake this thread, so it looks for itself when the witness is due.
                self.work.wait_for(&mut section, WITNESS_AFTER);
            } else if section.led {
                self.work.wait(&mut section);
            } else if !section.open.members.is_empty() {
                self.lead_group(&mut section);
            } else if section.closing {
                return;
            } else if let Some(committed) = section.unwitnessed {
                let due = committed + WITNESS_AFTER;
                if Instant::now() < due {
                    self.work.wait_until(&mut section, due);
                    continue;
                }
                section.unwitnessed = None;
                // A failure has poisoned the log, which is all there is to do about it.
                self.lead(&mut section, || drop(self.write_witness()));
            } else {
                self.work.wait(&mut section);
            }
        }
    }

    /// Takes no more requests. The commit thread ends once it has answered those that have joined.
    pub(crate) fn stop(&self) {
        let mut section = self.section.lock();
        section.closing = true;
        self.work.notify_all();
        self.wake_for_room(&mut section);
    }

    /// Records the durable LSN. Errors poison the log.
    pub(crate) fn write_witness(&self) -> Result<()> {
        self.check_poison()?;
        let mut journal = self.journal.lock();
        if !journal.fits(0) {
            // A full file is followed by the header of the next, which records the same.
            return Ok(());
        }
        journal.commit(&mut GroupBuffer::default()).map(|_bytes| ()).map_err(|error| self.poison(error))
    }

    /// Everything before this is on stable storage.
    pub(crate) fn durable_lsn(&self) -> u64 {
        self.journal.lock().durable_lsn()
    }

    /// Lets nothing more be written, because a write failed. Returns the error.
    pub(crate) fn poison(&self, error: Error) -> Error {
        self.section.lock().poison.get_or_insert_with(|| Arc::new(error.clone()));
        error
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        self.section.lock().check_poison()
    }

    /// Writes the open group on this thread and leaves the next to the commit thread.
    fn lead_one_group(&self, mut section: MutexGuard<'_, Section>) {
        let was_witnessed = section.unwitnessed.is_none();
        self.lead_group(&mut section);
        // The commit thread has nothing to do but to see to the next group, the next witness, or the end.
        let is_due = was_witnessed && section.unwitnessed.is_some();
        if !section.open.members.is_empty() || is_due || section.closing {
            self.work.notify_one();
        }
    }

    /// Writes the open group while the next one fills.
    fn lead_group(&self, section: &mut MutexGuard<'_, Section>) {
        let next = section.spare.take().unwrap_or_default();
        let mut group = std::mem::replace(&mut section.open, next);
        self.wake_for_room(section);
        let writes = group.buffer.records() > 0;
        self.lead(section, || self.commit(&mut group));
        group.buffer.clear();
        section.spare = Some(group);
        if writes {
            section.unwitnessed = Some(Instant::now());
        }
    }

    /// Writes and publishes a group, and answers its members, whom it no longer has then.
    fn commit(&self, group: &mut Group) {
        let mut journal = self.journal.lock();
        let ready = self.check_poison().and_then(|()| self.make_room(&mut journal, &group.buffer));
        if let Err(error) = ready {
            return self.take_back(group, &error);
        }
        match self.write(&mut journal, &mut group.buffer) {
            Ok(()) => self.publish(&mut group.members),
            Err(error) => group.members.drain(..).for_each(|member| member.finish(Err(error.clone()))),
        }
    }

    /// Sees to it that the group fits the active journal file and that memory for its records is left. A group that writes nothing needs
    /// neither.
    fn make_room(&self, journal: &mut JournalWriter, group: &GroupBuffer) -> Result<()> {
        if group.records() == 0 {
            return Ok(());
        }
        let has_room = || self.recent.bytes() <= self.recent_bytes_max || !self.recent.has_full_file();
        if !self.seal.wait_until(self.stall_wait, has_room) {
            return Err(Error::Stalled { waited: self.stall_wait });
        }
        let is_large = self.recent.active_bytes() > self.recent_bytes_max / ACTIVE_SHARE && !journal.active_is_empty();
        if journal.fits(group.record_bytes()) && !is_large {
            return Ok(());
        }
        let bytes_min = HEADER_BYTES + group_bytes(group.record_bytes()) as u64;
        journal.rotate(self.spares.take(bytes_min, self.stall_wait)?);
        self.recent.begin_file(journal.active_use(), journal.active_bytes(), journal.durable_lsn());
        self.spares.prepare_next(journal.active_bytes());
        Ok(())
    }

    fn write(&self, journal: &mut JournalWriter, group: &mut GroupBuffer) -> Result<()> {
        if group.records() == 0 {
            return Ok(());
        }
        let began = Instant::now();
        let bytes = journal.commit(group).map_err(|error| self.poison(error))?;
        self.counters.note_group(group.records(), bytes, began.elapsed());
        Ok(())
    }

    /// Lets readers see the group, and then answers those who wait for it.
    fn publish(&self, members: &mut Vec<Decided>) {
        let appended = members.iter().filter_map(|member| match &member.outcome {
            Outcome::Append(record) => Some((&*member.session, record)),
            Outcome::Tell(_) => None,
        });
        let published = self.recent.publish(appended);
        members.drain(..).for_each(Decided::answer);
        for waiter in published.to_wake {
            waiter.wake();
        }
        if published.began_file {
            self.seal.notify();
        }
    }

    /// Tells all members of a group that was not written, and those of the open group, which may rest on it, and gives back their places.
    fn take_back(&self, group: &mut Group, error: &Error) {
        let mut section = self.section.lock();
        let behind = self.abandon_open_group(&mut section);
        group.members.iter().chain(&behind).rev().for_each(Decided::take_back);
        drop(section);
        group.members.drain(..).chain(behind).for_each(|member| member.finish(Err(error.clone())));
    }

    /// Empties the open group, which makes room; returns its members.
    fn abandon_open_group(&self, section: &mut Section) -> Vec<Decided> {
        section.open.buffer.clear();
        self.wake_for_room(section);
        std::mem::take(&mut section.open.members)
    }

    /// Leads for as long as `act` takes, without the section's lock.
    fn lead<T>(&self, section: &mut MutexGuard<'_, Section>, act: impl FnOnce() -> T) -> T {
        section.led = true;
        let acted = MutexGuard::unlocked(section, || catch_unwind(AssertUnwindSafe(act)));
        section.led = false;
        acted.unwrap_or_else(|panic| {
            // What was going on is unknown, so nothing more is written; those who wait are told when their requests are dropped.
            section.poison.get_or_insert_with(|| Arc::new(lost()));
            drop(self.abandon_open_group(section));
            resume_unwind(panic)
        })
    }

    fn wake_for_room(&self, section: &mut Section) {
        self.room.notify_all();
        for waiter in section.room_waiters.drain(..) {
            waiter.wake();
        }
    }
}

impl Section {
    /// Gives a request its place, or says why it gets none. What is decided counts for the requests behind it.
    fn join(&mut self, request: Request) {
        let Request { batch, expected, session, sealed, answer: owed } = request;
        let mut state = session.lock();
        let outcome = if let Some(answer) = replay(&session, &batch, sealed, &state) {
            Outcome::Tell(answer)
        } else if expected.holds(state.assigned) {
            let stamp = self.clock.stamp(batch.count);
            let record = Arc::new(batch.stamped(state.generation(), state.assigned + 1, stamp));
            self.open.buffer.put(&record);
            state.assign(&record);
            Outcome::Append(record)
        } else {
            let (session, actual) = (session.id().clone(), state.assigned);
            Outcome::Tell(Err(Error::ExpectedMismatch { session, expected, actual }))
        };
        drop(state);
        self.open.members.push(Decided { session, owed, outcome });
    }

    fn check_open(&self) -> Result<()> {
        if self.closing { Err(Error::Closed) } else { self.check_poison() }
    }

    fn check_poison(&self) -> Result<()> {
        self.poison.as_ref().map_or(Ok(()), |source| Err(Error::Poisoned { source: Arc::clone(source) }))
    }
}

impl Group {
    /// Whether there is no room for the request. A group without records takes any.
    fn is_full_for(&self, request: &Request, bytes_max: usize) -> bool {
        self.buffer.records() > 0 && self.buffer.record_bytes() + request.batch.stored_bytes_max() > bytes_max
    }
}

impl Decided {
    /// Gives the answer that was decided.
    fn answer(self) {
        match self.outcome {
            Outcome::Append(record) => finish(self.session, self.owed, Ok(Landed { record, replayed: false })),
            Outcome::Tell(answer) => finish(self.session, self.owed, answer),
        }
    }

    /// Gives another answer.
    fn finish(self, answer: Result<Landed>) {
        finish(self.session, self.owed, answer);
    }

    /// Gives back the place in the session, the last one given out.
    fn take_back(&self) {
        if let Outcome::Append(record) = &self.outcome {
            self.session.lock().take_back(record);
        }
    }
}

/// The answer for a key that was used before.
fn replay(session: &Pin, batch: &EncodedBatch, sealed: Option<Record>, state: &EntryState) -> Option<Result<Landed>> {
    let key = batch.key.as_ref()?;
    let record = match state.record_of_key(&key.text) {
        Some(recent) => Arc::clone(recent),
        None => Arc::new(sealed?),
    };
    if record.key.as_ref().is_some_and(|stored| stored.fingerprint == key.fingerprint) {
        return Some(Ok(Landed { record, replayed: true }));
    }
    let (session, key) = (session.id().clone(), key.text.to_string());
    Some(Err(Error::IdempotencyConflict { session, key, first_seq: record.first }))
}

/// Answers a request. The session is let go first, so that a caller who has its answer leaves nothing behind.
fn finish(session: Pin, owed: Answer, answer: Result<Landed>) {
    drop(session);
    owed.give(answer);
}
