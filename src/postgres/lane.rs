//! The lane of a shard: gathers proposals into groups, and sees each group through.
//!
//! Invariants:
//! * A group whose commit was sent, and whose outcome is not known, is never committed again before
//!   the database was asked for it by the first ID of its first record. The question is asked under
//!   the shard's lock, so the answer holds for good.
//! * A caller hears that nothing was written only if that is so.
//! * No connection is used again after a time-out. It is dropped, and no cancel request is sent: a
//!   wait for the quorum that was cancelled would show what a failover takes back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::model::{Counters, Error, Options, Result, now_ms};
use crate::postgres::commit::{Committer, Member, News, Outcome, Sent};
use crate::postgres::connect::{Site, deadline_after};
use crate::postgres::news::Bell;
use crate::postgres::reads::Tables;
use crate::sync::{Gate, Mailbox};
use crate::write::{Answer, Landed, Proposal};

/// How long one attempt may take. A primary that takes longer has lost its quorum, and another may
/// have its place by now.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// The pause after an attempt that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// Orders for the background work.
#[derive(Default)]
pub(super) struct Orders {
    /// Retention is to be looked after now.
    pub look: bool,
}

pub(super) type Signal = Mailbox<Orders>;

/// A proposal on its way.
pub(super) struct Request {
    pub proposal: Proposal,
    /// The time by the caller's own clock, if it has one.
    pub created_ms: Option<u64>,
    pub deadline: Instant,
    answer: Option<Answer>,
    gate: Arc<Gate>,
}

impl Request {
    pub(super) fn new(
        proposal: Proposal,
        options: &Options,
        answer: Answer,
        gate: &Arc<Gate>,
    ) -> Self {
        Self {
            proposal,
            created_ms: own_time(options),
            deadline: deadline_after(options.stall_wait),
            answer: Some(answer),
            gate: Arc::clone(gate),
        }
    }

    fn give(mut self, answer: Result<Landed>) {
        if let Some(owed) = self.answer.take() {
            owed.give(answer);
        }
    }
}

impl Drop for Request {
    /// The gate opens after the answer, in any case.
    fn drop(&mut self) {
        drop(self.answer.take());
        self.gate.open();
    }
}

/// Returns the time by the clock of the options. `None` for the system's clock: the database's
/// stands in for it, so that no server with a wrong clock pushes the IDs ahead.
fn own_time(options: &Options) -> Option<u64> {
    options.has_own_clock.then(|| now_ms(&options.clock))
}

/// Commits what comes in, until the last sender is gone.
pub(super) struct Lane {
    pub site: Arc<Site>,
    pub bell: Arc<Bell>,
    pub counters: Arc<Counters>,
    pub signal: Arc<Signal>,
    pub group_bytes_max: usize,
    pub stall_wait: Duration,
    pub requests: mpsc::UnboundedReceiver<Request>,
    committer: Option<Committer>,
    /// The request that had no room in the last group.
    held: Option<Request>,
}

/// What an attempt came to.
enum Attempt {
    Done(Sent),
    /// Nothing was committed, and nothing is known against another attempt.
    Again(Error),
    /// It is not known yet.
    InDoubt(Sent, Error),
    /// It will never be known.
    Unknown(Sent),
    /// Nothing was committed, and nothing will be.
    Refused(Error),
}

impl Lane {
    pub(super) fn new(
        tables: &Tables,
        counters: &Arc<Counters>,
        signal: &Arc<Signal>,
        options: &Options,
        requests: mpsc::UnboundedReceiver<Request>,
        committer: Committer,
    ) -> Self {
        Self {
            site: Arc::clone(&tables.site),
            bell: Arc::clone(&tables.bell),
            counters: Arc::clone(counters),
            signal: Arc::clone(signal),
            group_bytes_max: options.group_bytes_max,
            stall_wait: options.stall_wait,
            requests,
            committer: Some(committer),
            held: None,
        }
    }

    pub(super) async fn run(mut self) {
        while let Some(group) = self.gather().await {
            self.see_through(group).await;
        }
    }

    /// Returns the next group: all that waits, up to the bytes of a group.
    async fn gather(&mut self) -> Option<Vec<Request>> {
        let first = match self.held.take() {
            Some(first) => first,
            None => self.requests.recv().await?,
        };
        // Callers that were answered together come back together.
        tokio::task::yield_now().await;
        let mut bytes = first.proposal.batch.stored_bytes_max();
        let mut group = vec![first];
        while let Ok(next) = self.requests.try_recv() {
            bytes += next.proposal.batch.stored_bytes_max();
            if bytes > self.group_bytes_max {
                self.held = Some(next);
                break;
            }
            group.push(next);
        }
        Some(group)
    }

    /// Commits a group, however often it takes, and answers its members.
    async fn see_through(&mut self, mut group: Vec<Request>) {
        let mut in_doubt: Option<Sent> = None;
        let mut last: Option<Error> = None;
        loop {
            if in_doubt.is_none() {
                group = self.give_up_late(group, last.as_ref());
            }
            let Some(deadline) = group.iter().map(|request| request.deadline).min() else {
                return;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(sent) = in_doubt.take_if(|_| left.is_zero()) {
                return self.leave_in_doubt(group, sent, last);
            }
            let limit = left.min(ATTEMPT_MAX).max(Duration::from_millis(1));
            let began = Instant::now();
            match self.attempt(&group, in_doubt.take(), limit).await {
                Attempt::Done(sent) => return self.answer(group, sent, began.elapsed()),
                Attempt::Again(error) => last = Some(error),
                Attempt::InDoubt(sent, error) => {
                    tracing::warn!(
                        target: "sessionlog",
                        error = error.with_sources(),
                        "it is not known whether a group of {} batches was committed",
                        group.len()
                    );
                    (in_doubt, last) = (Some(sent), Some(error));
                }
                Attempt::Unknown(sent) => return self.leave_in_doubt(group, sent, last),
                Attempt::Refused(error) => {
                    for request in group {
                        request.give(Err(error.clone()));
                    }
                    self.committer = None;
                    return;
                }
            }
            self.committer = None;
            sleep(PAUSE).await;
        }
    }

    async fn attempt(
        &mut self,
        group: &[Request],
        in_doubt: Option<Sent>,
        limit: Duration,
    ) -> Attempt {
        let usable = |committer: &Committer| self.site.is_current(&committer.link);
        let committer = match self.committer.take().filter(usable) {
            Some(committer) => committer,
            None => match timeout(limit, Committer::open(&self.site)).await {
                Ok(Ok(committer)) => committer,
                failed => {
                    let error = failed.map_or_else(
                        |_elapsed| self.too_slow(),
                        |opened| opened.err().unwrap_or(Error::Closed),
                    );
                    return match in_doubt {
                        Some(sent) => Attempt::InDoubt(sent, error),
                        None if Site::may_pass(&error) => Attempt::Again(error),
                        None => Attempt::Refused(error),
                    };
                }
            },
        };
        if let Some(sent) = in_doubt {
            match timeout(limit, committer.was_committed(sent.base)).await {
                Ok(Ok(Outcome::Committed)) => {
                    self.committer = Some(committer);
                    return Attempt::Done(sent);
                }
                Ok(Ok(Outcome::Nothing)) => {}
                Ok(Ok(Outcome::MayBeErased)) => return Attempt::Unknown(sent),
                Ok(Err(error)) => return Attempt::InDoubt(sent, error),
                Err(_elapsed) => return Attempt::InDoubt(sent, self.too_slow()),
            }
        }
        let members: Vec<_> = group
            .iter()
            .map(|request| Member {
                proposal: &request.proposal,
                created_ms: request.created_ms,
            })
            .collect();
        let mut sent = None;
        let done = timeout(limit, committer.commit(&members, &mut sent)).await;
        let error = match (done, sent) {
            (Ok(Ok(())), Some(sent)) => {
                self.committer = Some(committer);
                return Attempt::Done(sent);
            }
            (Ok(Ok(())), None) => self.too_slow(),
            (Ok(Err(error)), Some(sent)) => return Attempt::InDoubt(sent, error),
            (Err(_elapsed), Some(sent)) => return Attempt::InDoubt(sent, self.too_slow()),
            (Ok(Err(error)), None) => error,
            (Err(_elapsed), None) => self.too_slow(),
        };
        if Site::may_pass(&error) {
            Attempt::Again(error)
        } else {
            Attempt::Refused(error)
        }
    }

    /// Answers the members of a group that is durable.
    fn answer(&self, group: Vec<Request>, sent: Sent, took: Duration) {
        let Sent { answers, news, .. } = sent;
        if news.records > 0 {
            let records = u32::try_from(news.records).unwrap_or(u32::MAX);
            let bytes = usize::try_from(news.bytes).unwrap_or(usize::MAX);
            self.counters.note_group(records, bytes, took);
        }
        self.note(&news);
        for (request, answer) in group.into_iter().zip(answers) {
            request.give(answer);
        }
    }

    /// Tells the waiters, before any caller has its answer.
    fn note(&self, news: &News) {
        if news.retains {
            self.signal.update(|orders| orders.look = true);
        }
        if !news.ids.is_empty() {
            self.bell.note(news);
        }
    }

    /// Answers the members whose time is up, of a group that was not committed.
    fn give_up_late(&self, group: Vec<Request>, last: Option<&Error>) -> Vec<Request> {
        let now = Instant::now();
        let (late, rest): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|request| request.deadline <= now);
        for request in late {
            request.give(Err(Error::Stalled {
                waited: self.stall_wait,
                source: last.cloned().map(Arc::new),
            }));
        }
        rest
    }

    /// Answers the members of a group that may have been committed.
    fn leave_in_doubt(&self, group: Vec<Request>, sent: Sent, last: Option<Error>) {
        let source = last.map(Arc::new);
        for (request, answer) in group.into_iter().zip(sent.answers) {
            let waited = self.stall_wait;
            let source = source.clone();
            let stored = answer.is_ok_and(|landed| landed.is_stored());
            request.give(Err(if stored {
                Error::Unconfirmed { waited, source }
            } else {
                Error::Stalled { waited, source }
            }));
        }
    }

    fn too_slow(&self) -> Error {
        self.site.io("commit to", "the server takes too long")
    }
}
