//! The commit section: gives requests their places in their sessions, one after the other, and says
//! when a group is to be led.
//!
//! What the section does happens under one lock, which every append takes: no I/O, no waiting,
//! nobody woken. A group that was taken from it is answered without that lock.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::codec::{EncodedBatch, Record};
use crate::journal::GroupBuffer;
use crate::model::{Error, Expected, IdClock, Result};
use crate::recent::{EntryState, Pin};
use crate::sync::{Gate, Instant, Waiter};
use crate::write::ticket::{Answer, Joined, Landed};

/// How many groups are written at once. A second keeps the disk busy; more would only make groups
/// smaller.
pub(crate) const IN_FLIGHT_MAX: usize = 2;

/// A group with so many bytes of records is written beside the one before. Below, the barrier costs
/// more than the bytes, so that waiting for company is the better use of the time.
const OVERLAP_BYTES: usize = 128 * 1024;

/// A batch on its way.
pub(crate) struct Request {
    pub batch: EncodedBatch,
    pub expected: Expected,
    /// When it came, by the wall clock.
    pub created_ms: u64,
    pub session: Pin,
    /// For a keyed batch, what the segments say of the key.
    pub sealed: SealedKey,
    pub answer: Answer,
}

/// The answer of the segments for an idempotency key.
#[derive(Default)]
pub(crate) struct SealedKey {
    /// The record that landed under it.
    pub record: Option<Arc<Record>>,
    /// The entry's [`keys_released`](EntryState::keys_released) before they were asked.
    pub as_of: u64,
}

/// What the lock protects. All of a log's appends are decided here.
pub(crate) struct Section {
    clock: IdClock,
    pub open: Group,
    /// Groups that are done, for the buffers they have.
    pub done: Vec<Group>,
    /// Async callers that found the open group full.
    pub room_waiters: Vec<Arc<Waiter>>,
    /// Somebody has the end of the journal, to give a group its place there.
    pub placing: bool,
    /// Groups that have their place and are not answered.
    pub in_flight: usize,
    /// Everything before this is on stable storage and published.
    pub durable_lsn: u64,
    /// When the last group was committed, until a witness is written after it.
    pub unwitnessed: Option<Instant>,
    pub closing: bool,
    pub poison: Option<Arc<Error>>,
}

/// Requests that share a write and a barrier.
#[derive(Default)]
pub(crate) struct Group {
    pub members: VecDeque<Decided>,
    pub buffer: GroupBuffer,
    /// Where the members wait that are threads.
    gate: Arc<Gate>,
}

/// A request whose place in its group is known.
pub(crate) struct Decided {
    pub session: Pin,
    owed: Answer,
    pub outcome: Outcome,
}

pub(crate) enum Outcome {
    /// It becomes this record, once the group is durable.
    Append(Arc<Record>),
    /// It writes nothing, and is told this once the group is durable.
    Tell(Result<Landed>),
}

impl Section {
    /// A section for a log that ends at `durable_lsn`.
    pub(crate) fn new(clock: IdClock, durable_lsn: u64) -> Self {
        Self {
            clock,
            open: Group::default(),
            done: Vec::new(),
            room_waiters: Vec::new(),
            placing: false,
            in_flight: 0,
            durable_lsn,
            unwitnessed: None,
            closing: false,
            poison: None,
        }
    }

    /// Gives a request its place, or decides why it gets none. What is decided counts for the
    /// requests behind it. A request whose key must be looked up again comes back.
    pub(crate) fn join(&mut self, request: Request) -> Option<Request> {
        if request.is_stale() {
            return Some(request);
        }
        let Request {
            batch,
            expected,
            created_ms,
            session,
            sealed,
            answer: owed,
        } = request;
        let mut state = session.lock();
        let outcome = if let Some(answer) = replay(&session, &batch, sealed.record, &state) {
            Outcome::Tell(answer)
        } else if expected.holds(state.assigned) {
            let stamp = self.clock.stamp(batch.count(), created_ms);
            let record = batch.stamped(state.generation(), state.assigned + 1, stamp);
            self.open.buffer.put(&record);
            state.assign(&record);
            Outcome::Append(record)
        } else {
            let (session, actual) = (session.id().clone(), state.assigned);
            Outcome::Tell(Err(Error::ExpectedMismatch {
                session,
                expected,
                actual,
            }))
        };
        drop(state);
        self.open.members.push_back(Decided {
            session,
            owed,
            outcome,
        });
        None
    }

    /// Whether the open group should be given its place now.
    pub(crate) fn wants_leader(&self) -> bool {
        let may_overlap = self.in_flight < IN_FLIGHT_MAX && self.open.is_large();
        !self.placing && !self.open.members.is_empty() && (self.in_flight == 0 || may_overlap)
    }

    /// Takes the open group, to be led.
    pub(crate) fn take_open(&mut self) -> Group {
        let next = self.done.pop().unwrap_or_default();
        std::mem::replace(&mut self.open, next)
    }

    /// Counts everything before `lsn` as durable, of which no witness tells yet. A group that
    /// writes nothing changes nothing, also when it comes late.
    pub(crate) fn reach(&mut self, lsn: u64) {
        if lsn > self.durable_lsn {
            self.durable_lsn = lsn;
            self.unwitnessed = Some(Instant::now());
        }
    }

    /// Whether anybody leads.
    pub(crate) fn is_led(&self) -> bool {
        self.placing || self.in_flight > 0
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closing {
            Err(Error::Closed)
        } else {
            self.check_poison()
        }
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        self.poison.as_ref().map_or(Ok(()), |source| {
            Err(Error::Poisoned {
                source: Arc::clone(source),
            })
        })
    }
}

impl Request {
    /// Whether the key's record may have left memory for a segment since the segments were asked.
    fn is_stale(&self) -> bool {
        let Some(key) = self.batch.key() else {
            return false;
        };
        let state = self.session.lock();
        state.record_of_key(&key.text).is_none() && state.keys_released != self.sealed.as_of
    }
}

impl Group {
    /// Gives each member its answer, and lets the threads among them go on.
    pub(crate) fn answer(&mut self, mut give: impl FnMut(Decided)) {
        while let Some(member) = self.members.pop_front() {
            give(member);
        }
        self.gate.open();
    }

    /// Where a member waits.
    pub(crate) fn joined(&self) -> Joined {
        Joined {
            gate: Arc::clone(&self.gate),
            opening: self.gate.next(),
        }
    }

    fn is_large(&self) -> bool {
        self.buffer.record_bytes() >= OVERLAP_BYTES
    }

    /// Whether there is no room for the request. A group without records takes any.
    pub(crate) fn is_full_for(&self, request: &Request, bytes_max: usize) -> bool {
        self.buffer.records() > 0
            && self.buffer.record_bytes() + request.batch.stored_bytes_max() > bytes_max
    }
}

impl Drop for Group {
    /// Members that are left are told that their answer is lost.
    fn drop(&mut self) {
        self.answer(drop);
    }
}

impl Decided {
    /// Gives the answer that was decided.
    pub(crate) fn answer(self) {
        match self.outcome {
            Outcome::Append(record) => finish(
                self.session,
                self.owed,
                Ok(Landed {
                    record,
                    replayed: false,
                }),
            ),
            Outcome::Tell(answer) => finish(self.session, self.owed, answer),
        }
    }

    /// Gives another answer.
    pub(crate) fn finish(self, answer: Result<Landed>) {
        finish(self.session, self.owed, answer);
    }

    /// Gives back the place in the session, the last one given out.
    pub(crate) fn take_back(&self) {
        if let Outcome::Append(record) = &self.outcome {
            self.session.lock().take_back(record);
        }
    }
}

/// The answer for a key that was used before.
fn replay(
    session: &Pin,
    batch: &EncodedBatch,
    sealed: Option<Arc<Record>>,
    state: &EntryState,
) -> Option<Result<Landed>> {
    let key = batch.key()?;
    let record = match state.record_of_key(&key.text) {
        Some(recent) => Arc::clone(recent),
        None => sealed?,
    };
    if record
        .key
        .as_ref()
        .is_some_and(|stored| stored.fingerprint == key.fingerprint)
    {
        return Some(Ok(Landed {
            record,
            replayed: true,
        }));
    }
    let (session, key) = (session.id().clone(), key.text.to_string());
    Some(Err(Error::IdempotencyConflict {
        session,
        key,
        first_seq: record.first,
    }))
}

/// Answers a request. The session is let go first, so that a caller who has its answer leaves
/// nothing behind.
fn finish(session: Pin, owed: Answer, answer: Result<Landed>) {
    drop(session);
    owed.give(answer);
}
