//! The commit group: callers queue, whoever leads takes all that is queued and gives it one write and one barrier.
//!
//! A lone caller leads its own group, so that nothing is handed from thread to thread. As soon as more is queued when a group is
//! done, the commit thread leads, until the queue is empty again.
//!
//! Invariants:
//! * One leader at a time holds the [`Committer`], and with it the only right to give out IDs and seqs and to write the journal. So ID
//!   order is commit order is the order that readers see.
//! * Every answer, also a replay, a conflict or a mismatch, is given after the barrier of the group it was decided in, so it
//!   never rests on something that a crash could take back.
//! * After a failed write nothing is written again: the log is poisoned, and records of the failed group reach no reader.
//! * The leader does no I/O but the journal's, and takes no lock that is held over I/O.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::codec::{EncodedBatch, Record};
use crate::entry::EntryState;
use crate::error::{Error, Result};
use crate::event::Expected;
use crate::ids::IdClock;
use crate::journal::{JournalWriter, Spares, group_bytes};
use crate::options::Options;
use crate::recent::{Pin, Recent};
use crate::seal::SealSignal;
use crate::stats::Counters;
use crate::sync::{Condvar, Deadline, Instant, Mutex, MutexGuard};
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

/// Owes an answer to whoever holds the ticket. Should it be lost on the way, because a thread panicked, that is the answer.
pub(crate) struct Answer(Arc<Ticket>);

impl Answer {
    pub(crate) fn owed_to(ticket: &Arc<Ticket>) -> Self {
        Self(Arc::clone(ticket))
    }

    fn give(self, answer: Result<Landed>) {
        self.0.complete(answer);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.complete(Err(lost()));
    }
}

/// What an append came to: the record, and whether it had been there.
#[derive(Debug, Clone)]
pub(crate) struct Landed {
    pub record: Arc<Record>,
    pub replayed: bool,
}

/// Where the caller finds the answer.
#[derive(Default)]
pub(crate) struct Ticket {
    given: Mutex<Given>,
    waiter: Waiter,
}

#[derive(Default)]
struct Given {
    answer: Option<Result<Landed>>,
    done: bool,
}

impl Ticket {
    pub(crate) fn wait(&self) -> Result<Landed> {
        loop {
            if let Some(answer) = self.given.lock().answer.take() {
                return answer;
            }
            self.waiter.wait(Deadline::NEVER);
        }
    }

    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Result<Landed>> {
        // The waker is left first, so that an answer that comes in between wakes it.
        let _woken = self.waiter.poll(context);
        self.given.lock().answer.take().map_or(Poll::Pending, Poll::Ready)
    }

    /// The first answer counts.
    fn complete(&self, answer: Result<Landed>) {
        let mut given = self.given.lock();
        if !std::mem::replace(&mut given.done, true) {
            given.answer = Some(answer);
            drop(given);
            self.waiter.wake();
        }
    }
}

/// The queue and what leads it.
pub(crate) struct Commit {
    queue: Mutex<Queue>,
    /// For the commit thread: there is work, or an end to it.
    work: Condvar,
    /// For callers: there is room in the queue, or an end to waiting.
    room: Condvar,
    committer: Mutex<Committer>,
    recent: Arc<Recent>,
    spares: Arc<Spares>,
    seal: Arc<SealSignal>,
    counters: Arc<Counters>,
    group_bytes_max: usize,
    queue_bytes_max: usize,
    recent_bytes_max: u64,
    stall_wait: Duration,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    bytes: usize,
    /// Async callers that found the queue full.
    room_waiters: Vec<Arc<Waiter>>,
    /// Somebody has the committer.
    led: bool,
    /// When the last group was committed, until a witness is written after it.
    unwitnessed: Option<Instant>,
    closing: bool,
    poison: Option<Arc<Error>>,
}

/// What the leader holds.
pub(crate) struct Committer {
    pub journal: JournalWriter,
    pub clock: IdClock,
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

impl Decided {
    /// Gives the answer that was decided.
    fn answer(self) {
        let answer = match self.outcome {
            Outcome::Append(record) => Ok(Landed { record, replayed: false }),
            Outcome::Tell(answer) => answer,
        };
        finish(self.session, self.owed, answer);
    }
}

impl Commit {
    pub(crate) fn new(
        committer: Committer,
        recent: Arc<Recent>,
        spares: Arc<Spares>,
        seal: Arc<SealSignal>,
        counters: Arc<Counters>,
        options: &Options,
    ) -> Self {
        Self {
            queue: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            committer: Mutex::new(committer),
            recent,
            spares,
            seal,
            counters,
            group_bytes_max: options.group_bytes_max,
            queue_bytes_max: options.queue_bytes_max,
            recent_bytes_max: options.recent_bytes_max as u64,
            stall_wait: options.stall_wait,
        }
    }

    /// Queues the request, waiting for room, and commits it here and now if nobody else leads.
    pub(crate) fn append(&self, request: Request) -> Result<()> {
        let deadline = Deadline::after(self.stall_wait);
        let mut queue = self.queue.lock();
        while queue.is_full(&request, self.queue_bytes_max) {
            queue.check_open()?;
            if !deadline.wait(&self.room, &mut queue) {
                return Err(Error::Stalled { waited: self.stall_wait });
            }
        }
        queue.check_open()?;
        queue.push(request);
        if !queue.led {
            self.lead_one_group(queue);
        }
        Ok(())
    }

    /// Queues the request for the commit thread. Where the queue is full the request comes back, and `waiter` is woken once
    /// there is room.
    pub(crate) fn submit(&self, request: Request, waiter: &Arc<Waiter>) -> Result<Option<Request>> {
        let mut queue = self.queue.lock();
        queue.check_open()?;
        if queue.is_full(&request, self.queue_bytes_max) {
            queue.room_waiters.push(Arc::clone(waiter));
            return Ok(Some(request));
        }
        queue.push(request);
        if !queue.led {
            self.work.notify_one();
        }
        Ok(None)
    }

    /// The work of the commit thread, until [`stop`](Commit::stop).
    pub(crate) fn run(&self) {
        let mut queue = self.queue.lock();
        loop {
            if queue.led {
                self.work.wait(&mut queue);
            } else if !queue.requests.is_empty() {
                self.lead_group(&mut queue);
            } else if queue.closing {
                return;
            } else if let Some(committed) = queue.unwitnessed {
                let due = committed + WITNESS_AFTER;
                if Instant::now() < due {
                    self.work.wait_until(&mut queue, due);
                    continue;
                }
                // A failure has poisoned the log, which is all there is to do about it.
                lead(&mut queue, |queue| queue.unwitnessed = None, |()| drop(self.write_witness()));
            } else {
                self.work.wait(&mut queue);
            }
        }
    }

    /// Takes no more requests. The commit thread ends once it has answered those that are queued.
    pub(crate) fn stop(&self) {
        let mut queue = self.queue.lock();
        queue.closing = true;
        self.work.notify_all();
        self.wake_for_room(&mut queue);
    }

    /// Records the durable LSN. Errors poison the log.
    pub(crate) fn write_witness(&self) -> Result<()> {
        self.check_poison()?;
        let mut committer = self.committer.lock();
        if !committer.journal.fits(0) {
            // A full file is followed by the header of the next, which records the same.
            return Ok(());
        }
        committer.journal.begin();
        committer.journal.commit().map(|_bytes| ()).map_err(|error| self.poison(error))
    }

    pub(crate) fn committer(&self) -> MutexGuard<'_, Committer> {
        self.committer.lock()
    }

    /// Lets nothing more be written, because a write failed. Returns the error.
    pub(crate) fn poison(&self, error: Error) -> Error {
        self.queue.lock().poison.get_or_insert_with(|| Arc::new(error.clone()));
        error
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        self.queue.lock().check_poison()
    }

    /// Takes a group from the queue, which is not empty, commits it on this thread, and leaves the rest to the commit thread.
    fn lead_one_group(&self, mut queue: MutexGuard<'_, Queue>) {
        let was_witnessed = queue.unwitnessed.is_none();
        self.lead_group(&mut queue);
        // The commit thread has nothing to do but to see to the next group, the next witness, or the end.
        if !queue.requests.is_empty() || was_witnessed || queue.closing {
            self.work.notify_one();
        }
    }

    /// Takes a group from the queue, which is not empty, and commits it.
    fn lead_group(&self, queue: &mut MutexGuard<'_, Queue>) {
        lead(queue, |queue| queue.take_group(self.group_bytes_max), |group| self.commit(group));
        queue.unwitnessed = Some(Instant::now());
        self.wake_for_room(queue);
    }

    /// Decides, writes, publishes and answers a group.
    fn commit(&self, group: Vec<Request>) {
        let mut committer = self.committer.lock();
        let ready = self.check_poison().and_then(|()| self.make_room(&mut committer, &group));
        match ready {
            Ok(()) => self.commit_in_place(&mut committer, group),
            Err(error) => group.into_iter().for_each(|request| finish(request.session, request.answer, Err(error.clone()))),
        }
    }

    /// Commits a group for which there is room.
    fn commit_in_place(&self, committer: &mut Committer, group: Vec<Request>) {
        let Committer { journal, clock } = committer;
        journal.begin();
        let decided: Vec<Decided> = group.into_iter().map(|request| decide(request, journal, clock)).collect();
        match self.write(journal, &decided) {
            Ok(()) => self.publish(decided),
            Err(error) => decided.into_iter().for_each(|decided| finish(decided.session, decided.owed, Err(error.clone()))),
        }
    }

    /// Sees to it that the group fits the active journal file and that memory for its records is left.
    fn make_room(&self, committer: &mut Committer, group: &[Request]) -> Result<()> {
        let has_room = || self.recent.bytes() <= self.recent_bytes_max || !self.recent.has_full_file();
        if !self.seal.wait_until(self.stall_wait, has_room) {
            return Err(Error::Stalled { waited: self.stall_wait });
        }
        let record_bytes = group.iter().map(|request| request.batch.stored_bytes_max()).sum();
        let journal = &mut committer.journal;
        let is_large = self.recent.active_bytes() > self.recent_bytes_max / ACTIVE_SHARE && !journal.active_is_empty();
        if journal.fits(record_bytes) && !is_large {
            return Ok(());
        }
        let bytes_min = crate::journal::HEADER_BYTES + group_bytes(record_bytes) as u64;
        journal.rotate(self.spares.take(bytes_min, self.stall_wait)?);
        self.recent.begin_file(journal.active_use(), journal.active_bytes(), journal.durable_lsn());
        self.spares.prepare_next(journal.active_bytes());
        Ok(())
    }

    fn write(&self, journal: &mut JournalWriter, decided: &[Decided]) -> Result<()> {
        let appended = decided.iter().filter(|decided| matches!(decided.outcome, Outcome::Append(_))).count();
        if appended == 0 {
            return Ok(());
        }
        let began = Instant::now();
        let bytes = journal.commit().map_err(|error| self.poison(error))?;
        self.counters.note_group(appended, bytes, began.elapsed());
        Ok(())
    }

    /// Lets readers see the group, and then answers those who wait for it.
    fn publish(&self, decided: Vec<Decided>) {
        let appended = decided.iter().filter_map(|decided| match &decided.outcome {
            Outcome::Append(record) => Some((&*decided.session, record)),
            Outcome::Tell(_) => None,
        });
        let published = self.recent.publish(appended);
        decided.into_iter().for_each(Decided::answer);
        for waiter in published.to_wake {
            waiter.wake();
        }
        if published.began_file {
            self.seal.notify();
        }
    }

    fn wake_for_room(&self, queue: &mut Queue) {
        self.room.notify_all();
        for waiter in queue.room_waiters.drain(..) {
            waiter.wake();
        }
    }
}

impl Queue {
    /// Whether there is no room for the request. An empty queue takes any.
    fn is_full(&self, request: &Request, bytes_max: usize) -> bool {
        !self.requests.is_empty() && self.bytes + request.batch.stored_bytes_max() > bytes_max
    }

    fn push(&mut self, request: Request) {
        self.bytes += request.batch.stored_bytes_max();
        self.requests.push_back(request);
    }

    /// The oldest requests, up to a number of bytes, but one at least.
    fn take_group(&mut self, bytes_max: usize) -> Vec<Request> {
        let mut bytes = 0;
        let fitting = self.requests.iter().take_while(|request| {
            bytes += request.batch.stored_bytes_max();
            bytes <= bytes_max
        });
        let count = fitting.count().max(1).min(self.requests.len());
        let group: Vec<Request> = self.requests.drain(..count).collect();
        self.bytes -= group.iter().map(|request| request.batch.stored_bytes_max()).sum::<usize>();
        group
    }

    fn check_open(&self) -> Result<()> {
        if self.closing { Err(Error::Closed) } else { self.check_poison() }
    }

    fn check_poison(&self) -> Result<()> {
        self.poison.as_ref().map_or(Ok(()), |source| Err(Error::Poisoned { source: Arc::clone(source) }))
    }
}

/// Leads for as long as `act` takes, with what `take` took from the queue and without its lock.
fn lead<T>(queue: &mut MutexGuard<'_, Queue>, take: impl FnOnce(&mut Queue) -> T, act: impl FnOnce(T)) {
    queue.led = true;
    let taken = take(queue);
    let acted = MutexGuard::unlocked(queue, || catch_unwind(AssertUnwindSafe(|| act(taken))));
    queue.led = false;
    if let Err(panic) = acted {
        // What was going on is unknown, so nothing more is written; those who wait are told when their requests are dropped.
        queue.poison.get_or_insert_with(|| Arc::new(lost()));
        queue.requests.clear();
        resume_unwind(panic);
    }
}

/// What is said of a batch whose leader panicked.
fn lost() -> Error {
    let source = std::io::Error::other("the thread that wrote it panicked");
    crate::disk::io_error("commit a batch to", "the journal".as_ref())(source)
}

/// Gives a request its place, or says why it gets none. What is decided counts for the requests behind it.
fn decide(request: Request, journal: &mut JournalWriter, clock: &mut IdClock) -> Decided {
    let Request { batch, expected, session, sealed, answer: owed } = request;
    let mut state = session.lock();
    let outcome = if let Some(answer) = replay(&session, &batch, sealed, &state) {
        Outcome::Tell(answer)
    } else if expected.holds(state.assigned) {
        let stamp = clock.stamp(batch.count);
        let record = Arc::new(batch.stamped(state.generation(), state.assigned + 1, stamp));
        state.assign(&record);
        journal.put(&record);
        Outcome::Append(record)
    } else {
        let (session, actual) = (session.id().clone(), state.assigned);
        Outcome::Tell(Err(Error::ExpectedMismatch { session, expected, actual }))
    };
    drop(state);
    Decided { session, owed, outcome }
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
