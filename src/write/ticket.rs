//! The answer to an append on its way back. The commit section owes it, and the caller waits for it
//! as a thread or as a task.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::codec::{Record, SessionState};
use crate::model::{Error, Result, Seq};
use crate::sync::{Gate, Mutex, Opening, wake_task};

/// Owes an answer to the holder of the ticket. If it is dropped unanswered, because a thread
/// panicked, the answer is an error.
pub(crate) struct Answer(Option<Arc<Ticket>>);

impl Answer {
    pub(crate) fn owed_to(ticket: &Arc<Ticket>) -> Self {
        Self(Some(Arc::clone(ticket)))
    }

    pub(crate) fn give(mut self, answer: Result<Landed>) {
        if let Some(ticket) = self.0.take() {
            ticket.complete(answer);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(ticket) = self.0.take() {
            ticket.complete(Err(lost()));
        }
    }
}

/// The result of a request: what became of it, and the state of its session then.
#[derive(Debug, Clone)]
pub(crate) struct Landed {
    pub outcome: Outcome,
    /// The events and bytes of the session before the request.
    pub before: (u64, u64),
    pub state: SessionState,
}

/// The outcome of a request.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// It became this record.
    Stored(Arc<Record>),
    /// It had become this record before.
    Replay(Arc<Record>),
    /// It had become the record with these seqs before. There are none if it is not known which.
    ReplayOf((Seq, Seq)),
    /// Nothing: the change is in force already.
    Unchanged,
    /// The session has changed since the request was made. It has to be made again.
    Outdated,
}

impl Landed {
    /// Whether the request became a record.
    #[cfg(feature = "postgres")]
    pub(crate) fn is_stored(&self) -> bool {
        matches!(self.outcome, Outcome::Stored(_))
    }

    /// Returns the result of a request that writes nothing.
    pub(crate) fn without_record(outcome: Outcome, state: &SessionState) -> Self {
        Self {
            outcome,
            before: state.extent(),
            state: state.clone(),
        }
    }
}

/// The place where the caller finds the answer.
#[derive(Default)]
pub(crate) struct Ticket {
    given: Mutex<Given>,
}

#[derive(Default)]
struct Given {
    answer: Option<Result<Landed>>,
    /// The task that waits for the answer. Threads wait at the [gate](Joined) of their group.
    waker: Option<Waker>,
}

/// A member's place in its group.
pub(crate) struct Joined {
    /// Opens when all members of the group are answered.
    pub gate: Arc<Gate>,
    pub opening: Opening,
}

impl Ticket {
    /// Waits for the answer on a thread.
    pub(crate) fn wait(&self, joined: &Joined) -> Result<Landed> {
        loop {
            if let Some(answer) = self.given.lock().answer.take() {
                return answer;
            }
            joined.gate.wait(joined.opening);
        }
    }

    /// Waits for the answer as a task.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Result<Landed>> {
        let mut given = self.given.lock();
        if let Some(answer) = given.answer.take() {
            return Poll::Ready(answer);
        }
        let before = given.waker.replace(context.waker().clone());
        // Dropping the old waker may run code that takes the lock.
        drop(given);
        drop(before);
        Poll::Pending
    }

    fn complete(&self, answer: Result<Landed>) {
        let mut given = self.given.lock();
        given.answer = Some(answer);
        let waker = given.waker.take();
        drop(given);
        if let Some(waker) = waker {
            wake_task(waker);
        }
    }
}

/// The error for a batch whose leader panicked.
pub(crate) fn lost() -> Error {
    let source = std::io::Error::other("the thread that wrote it panicked");
    crate::disk::io_error("commit a batch to", "the journal".as_ref())(source)
}
