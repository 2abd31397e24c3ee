//! The commit section: assigns requests their places in their sessions, one after the other, and
//! decides when a group needs a leader.
//!
//! The section works under one lock, which every append takes. Under it there is no I/O, no waiting
//! and no waking. A group taken from the section is answered without the lock.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::codec::Record;
use crate::journal::GroupBuffer;
use crate::model::{IdClock, Result};
use crate::recent::SessionPin;
use crate::sync::{Deadline, Gate, Instant, Waiter};
use crate::write::decide::{Decision, decide};
use crate::write::request::{InMemory, Request};
use crate::write::ticket::{self, Answer, Joined, Landed};

/// The most groups that are written at once. A second keeps the disk busy. More would only make
/// groups smaller.
pub(crate) const IN_FLIGHT_MAX: usize = 2;

/// The bytes of records from which a group is written alongside the group before it. Below this the
/// barrier costs more than the bytes, and waiting for more members is the better use of the time.
const OVERLAP_BYTES: usize = 128 * 1024;

/// The state under the lock. All appends of a log are decided here.
pub(crate) struct Section {
    clock: IdClock,
    pub open: Group,
    /// Committed groups, kept for their buffers.
    pub done: Vec<Group>,
    /// Async callers that found the open group full.
    pub room_waiters: Vec<Arc<Waiter>>,
    /// Whether a leader holds the end of the journal, to place its group there.
    pub placing: bool,
    /// The number of groups that have a place and are not answered.
    pub in_flight: usize,
    /// When the last group was committed. `None` once a witness is written after it.
    pub unwitnessed: Option<Instant>,
    pub closing: bool,
}

/// Requests that share a write and a barrier.
pub(crate) struct Group {
    pub members: VecDeque<Decided>,
    pub buffer: GroupBuffer,
    /// How long the group may wait for room: until the deadline of its first batch.
    pub deadline: Deadline,
    /// The gate at which member threads wait.
    gate: Arc<Gate>,
}

/// A request with its place in the group.
pub(crate) struct Decided {
    pub session: SessionPin,
    owed: Answer,
    pub outcome: Outcome,
}

pub(crate) enum Outcome {
    /// The request becomes this record once the group is durable, and gets this answer.
    Append {
        record: Arc<Record>,
        landed: Box<Landed>,
    },
    /// The request writes nothing and gets this answer once the group is durable.
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

    /// Assigns a request its place, or decides why it gets none. The decision holds for the
    /// requests after it. Returns a request whose key must be looked up again.
    pub(crate) fn join(&mut self, request: Request) -> Option<Request> {
        let mut state = request.session.lock();
        if request.is_stale(&state) {
            drop(state);
            return Some(request);
        }
        let known = InMemory {
            request: &request,
            entry: &state,
        };
        let decision = match decide(&request.proposal, &known) {
            Decision::Append if request.parent_has_changed() => Decision::Tell(Ok(
                Landed::without_record(ticket::Outcome::Outdated, state.assigned()),
            )),
            decision => decision,
        };
        let outcome = match decision {
            Decision::Tell(answer) => Outcome::Tell(answer),
            Decision::Append => {
                let batch = request.proposal.batch;
                let stamp = self.clock.stamp(batch.ids(), request.created_ms);
                let assigned = state.assigned();
                let before = assigned.extent();
                let (generation, first) = batch.place_in(assigned);
                let record = batch.stamped(generation, first, stamp);
                self.open.put(&record, request.deadline);
                state.assign(&record);
                let landed = Box::new(Landed {
                    outcome: ticket::Outcome::Stored(Arc::clone(&record)),
                    before,
                    state: state.assigned().clone(),
                });
                Outcome::Append { record, landed }
            }
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

    /// Whether the open group should be placed in the journal now.
    pub(crate) fn wants_leader(&self) -> bool {
        let may_overlap = self.in_flight < IN_FLIGHT_MAX && self.open.is_large();
        !self.placing && !self.open.members.is_empty() && (self.in_flight == 0 || may_overlap)
    }

    /// Takes the open group in order to lead it.
    pub(crate) fn take_open(&mut self) -> Group {
        let next = self.done.pop().unwrap_or_default();
        std::mem::replace(&mut self.open, next)
    }

    /// Whether any group is being led.
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

    /// Answers each member with `give` and releases the member threads.
    pub(crate) fn answer(&mut self, mut give: impl FnMut(Decided)) {
        while let Some(member) = self.members.pop_front() {
            give(member);
        }
        self.gate.open();
    }

    /// Returns the place where a member waits.
    pub(crate) fn joined(&self) -> Joined {
        Joined {
            gate: Arc::clone(&self.gate),
            opening: self.gate.next(),
        }
    }

    fn is_large(&self) -> bool {
        self.buffer.record_bytes() >= OVERLAP_BYTES
    }

    /// Whether the group has no room for the request. A group without records accepts any.
    pub(crate) fn is_full_for(&self, request: &Request, bytes_max: usize) -> bool {
        self.buffer.records() > 0
            && self.buffer.record_bytes() + request.proposal.batch.stored_bytes_max() > bytes_max
    }
}

impl Drop for Group {
    /// Answers the remaining members: their batch was lost.
    fn drop(&mut self) {
        self.answer(drop);
    }
}

impl Decided {
    /// Answers with the outcome that was decided.
    pub(crate) fn answer(self) {
        match self.outcome {
            Outcome::Append { landed, .. } => finish(self.session, self.owed, Ok(*landed)),
            Outcome::Tell(answer) => finish(self.session, self.owed, answer),
        }
    }

    /// Answers with `answer` instead of the outcome.
    pub(crate) fn finish(self, answer: Result<Landed>) {
        finish(self.session, self.owed, answer);
    }

    /// Undoes the assignment in the session, which must be its last.
    pub(crate) fn take_back(&self) {
        if let Outcome::Append { record, .. } = &self.outcome {
            self.session.lock().take_back(record);
        }
    }
}

/// Answers a request. The session is unpinned first, so that nothing is left behind once the caller
/// has its answer.
fn finish(session: SessionPin, owed: Answer, answer: Result<Landed>) {
    drop(session);
    owed.give(answer);
}

/// Returns whether a retry lands again that found its first batch in memory.
#[cfg(all(test, shuttle))]
pub(crate) fn lands_again(session: SessionPin, batch: crate::model::Batch) -> bool {
    let mut section = Section::new(IdClock::new(crate::model::EventId::from_u128(1)));
    let is_stale = section.join(Request::found_in_memory(session, batch));
    let joined = section.open.members.back();
    is_stale.is_none()
        && joined.is_some_and(|joined| matches!(joined.outcome, Outcome::Append { .. }))
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
