//! The commit section: gives requests their places in their sessions, one after the other, and says
//! when a group is to be led.
//!
//! What the section does happens under one lock, which every append takes: no I/O, no waiting,
//! nobody woken. A group that was taken from it is answered without that lock.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::codec::Record;
use crate::journal::GroupBuffer;
use crate::model::{Error, IdClock, Result};
use crate::recent::SessionPin;
use crate::sync::{Deadline, Gate, Instant, Waiter};
use crate::write::request::Request;
use crate::write::ticket::{Answer, Joined, Landed};

/// How many groups are written at once. A second keeps the disk busy; more would only make groups
/// smaller.
pub(crate) const IN_FLIGHT_MAX: usize = 2;

/// A group with so many bytes of records is written beside the one before. Below, the barrier costs
/// more than the bytes, so that waiting for company is the better use of the time.
const OVERLAP_BYTES: usize = 128 * 1024;

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
    /// When the last group was committed, until a witness is written after it.
    pub unwitnessed: Option<Instant>,
    pub closing: bool,
}

/// Requests that share a write and a barrier.
pub(crate) struct Group {
    pub members: VecDeque<Decided>,
    pub buffer: GroupBuffer,
    /// How long it may wait for room: as long as the batch that has waited longest.
    pub deadline: Deadline,
    /// Where the members wait that are threads.
    gate: Arc<Gate>,
}

/// A request whose place in its group is known.
pub(crate) struct Decided {
    pub session: SessionPin,
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
    pub(crate) fn new(clock: IdClock) -> Self {
        Self {
            clock,
            open: Group::default(),
            done: Vec::new(),
            room_waiters: Vec::new(),
            placing: false,
            in_flight: 0,
            unwitnessed: None,
            closing: false,
        }
    }

    /// Gives a request its place, or decides why it gets none. What is decided counts for the
    /// requests behind it. A request whose key must be looked up again comes back.
    pub(crate) fn join(&mut self, request: Request) -> Option<Request> {
        if request.is_stale() {
            return Some(request);
        }
        let mut state = request.session.lock();
        let outcome = if let Some(answer) = request.replay(&state) {
            Outcome::Tell(answer)
        } else if request.expected.holds(state.assigned) {
            let stamp = self.clock.stamp(request.batch.count(), request.created_ms);
            let record = request
                .batch
                .stamped(state.generation(), state.assigned + 1, stamp);
            self.open.put(&record, request.deadline);
            state.assign(&record);
            Outcome::Append(record)
        } else {
            Outcome::Tell(Err(Error::ExpectedMismatch {
                session: request.session.id().clone(),
                expected: request.expected,
                actual: state.assigned,
            }))
        };
        drop(state);
        let Request {
            session,
            answer: owed,
            ..
        } = request;
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

    /// Whether anybody leads.
    pub(crate) fn is_led(&self) -> bool {
        self.placing || self.in_flight > 0
    }
}

impl Default for Group {
    fn default() -> Self {
        Self {
            members: VecDeque::new(),
            buffer: GroupBuffer::default(),
            deadline: Deadline::NEVER,
            gate: Arc::default(),
        }
    }
}

impl Group {
    fn put(&mut self, record: &Record, deadline: Deadline) {
        if self.buffer.records() == 0 {
            self.deadline = deadline;
        }
        self.buffer.put(record);
    }

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

/// Answers a request. The session is let go first, so that a caller who has its answer leaves
/// nothing behind.
fn finish(session: SessionPin, owed: Answer, answer: Result<Landed>) {
    drop(session);
    owed.give(answer);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::recent::tests::record;

    #[test]
    fn a_group_waits_for_room_no_longer_than_its_first_batch() {
        let mut group = Group::default();
        let wait = |seconds| Deadline::after(Duration::from_secs(seconds));
        let (first, second) = (wait(10), wait(1));
        group.put(&record("s", 1), first);
        group.put(&record("s", 2), second);
        assert_eq!(group.deadline, first);
        group.buffer.clear();
        group.put(&record("s", 3), second);
        assert_eq!(group.deadline, second);
    }
}
