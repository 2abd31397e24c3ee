//! The lane of a shard: gathers proposals into groups, and sees each group through.
//!
//! Each shard has a lane, which commits one group after the other. With several shards one more
//! lane takes what needs the locks of more than one, each by itself: a shard that is held up then
//! holds up no group of another. The lanes share their connections, of which there are a few. A
//! group is gathered once there is one for it.
//!
//! Invariants:
//! * A group whose commit was sent, and whose outcome is not known, is never committed again before
//!   the database was asked for its first record. The question is asked under the shard's lock, so
//!   the answer holds for good.
//! * A caller hears that nothing was written only if that is so. A member that was told anything is
//!   left out when its group is committed again.
//! * No connection is used again after a time-out. It is dropped, and no cancel request is sent: a
//!   wait for the quorum that was cancelled would show what a failover takes back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::codec::SessionState;
use crate::model::{Counters, Error, Options, Result, now_ms};
use crate::postgres::commit::{Committer, Member, Outcome, Sent};
use crate::postgres::connect::Site;
use crate::postgres::databases::Databases;
use crate::postgres::group::{News, Pins};
use crate::postgres::news::Bell;
use crate::postgres::pins::{are_needed, new_ticket, pin, release};
use crate::postgres::quick::Memory;
use crate::postgres::reads::Tables;
use crate::postgres::sql::Id;
use crate::sync::{Gate, Mailbox, Mutex};
use crate::write::{self, Answer, Landed, Proposal};

/// How long one attempt may take. A primary that takes longer has lost its quorum, and another may
/// have its place by now.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

const TOO_SLOW: &str = "the server takes too long";

/// The connections of one server that commit to a database, at most.
const CONNECTIONS_MAX: usize = 8;

/// The pause after an attempt that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// Orders for the background work.
#[derive(Default)]
pub(super) struct Orders {
    /// Retention is to be looked after now.
    pub look: bool,
}

pub(super) type Sender = mpsc::UnboundedSender<Request>;

pub(super) type Signal = Mailbox<Orders>;

/// A proposal on its way.
pub(super) struct Request {
    pub proposal: Proposal,
    /// The time by the caller's own clock, if it has one.
    pub created_ms: Option<u64>,
    pub deadline: Instant,
    pub answer: Option<Answer>,
    pub gate: Arc<Gate>,
    /// Its part of the room for what waits.
    pub _room: OwnedSemaphorePermit,
}

impl Request {
    /// Gives the answer, and opens the gate after it. A caller that was told before hears nothing.
    fn give(&mut self, answer: Result<Landed>) {
        if let Some(owed) = self.answer.take() {
            owed.give(answer);
            self.gate.open();
        }
    }

    fn is_owed(&self) -> bool {
        self.answer.is_some()
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
pub(super) fn own_time(options: &Options) -> Option<u64> {
    options.has_own_clock.then(|| now_ms(&options.clock))
}

/// What the lanes of a server share.
pub(super) struct Lanes {
    pub databases: Arc<Databases>,
    pub bell: Arc<Bell>,
    pub counters: Arc<Counters>,
    pub signal: Arc<Signal>,
    pub group_bytes_max: usize,
    pub stall_wait: Duration,
    /// A permit for each group that is being committed, of each database. So one that does not
    /// answer holds up none of another.
    free: Vec<Semaphore>,
    /// Connections that no group uses.
    idle: Mutex<Vec<Committer>>,
}

impl Lanes {
    pub(super) fn new(
        tables: &Tables,
        counters: &Arc<Counters>,
        signal: &Arc<Signal>,
        options: &Options,
        committer: Committer,
    ) -> Arc<Self> {
        let databases = tables.databases.all().iter();
        Arc::new(Self {
            databases: Arc::clone(&tables.databases),
            bell: Arc::clone(&tables.bell),
            counters: Arc::clone(counters),
            signal: Arc::clone(signal),
            group_bytes_max: options.group_bytes_max,
            stall_wait: options.stall_wait,
            free: databases.map(|_| Semaphore::new(CONNECTIONS_MAX)).collect(),
            idle: Mutex::new(vec![committer]),
        })
    }

    /// Returns a connection to a site that no group uses.
    fn idle_at(&self, site: &Arc<Site>) -> Option<Committer> {
        let mut idle = self.idle.lock();
        idle.retain(|committer| committer.site.is_current(&committer.link));
        let place = idle
            .iter()
            .rposition(|committer| committer.leads_to(site))?;
        Some(idle.remove(place))
    }

    /// Begins the lanes. Each ends once its sender is gone.
    pub(super) fn begin(self: &Arc<Self>, runtime: &Handle) -> (Vec<Sender>, Vec<JoinHandle<()>>) {
        let begun = (0..self.databases.first().site.lanes()).map(|nth| {
            let (sender, requests) = mpsc::unbounded_channel();
            let is_alone = nth > 0 && nth == self.databases.shards() as usize;
            let lane = Lane {
                lanes: Arc::clone(self),
                is_alone,
                requests,
                connection: Connection::Lost,
                memory: Memory::of_lanes(self.databases.first().site.lanes()),
                held: None,
                apart: VecDeque::new(),
            };
            (sender, runtime.spawn(lane.run()))
        });
        begun.unzip()
    }
}

/// Commits what comes in, until the last sender is gone.
pub(super) struct Lane {
    lanes: Arc<Lanes>,
    /// Whether each request is a group of its own.
    is_alone: bool,
    requests: mpsc::UnboundedReceiver<Request>,
    connection: Connection,
    memory: Memory,
    /// The request that had no room in the last group.
    held: Option<Request>,
    /// The members of a group that was refused as a whole. Each is a group of its own now.
    apart: VecDeque<Request>,
}

/// The connection that commits.
enum Connection {
    Open(Box<Committer>),
    /// A task makes it, so that nobody's deadline cuts it short. However little time each group
    /// has, one of them finds it open.
    Opening(Arc<Site>, JoinHandle<Result<Committer>>),
    Lost,
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
    /// Nothing was committed: what it rests on is not so any more.
    Outdated,
    /// Nothing was committed, and there is no connection that could.
    Unreachable(Error),
    /// Nothing was committed, and one of the members is why.
    Refused(Error),
}

/// What holds the events of other databases for a group.
enum Pinned {
    NotNeeded,
    By(Pins),
    /// The session that is forked has changed.
    Outdated,
}

impl Lane {
    async fn run(mut self) {
        let lanes = Arc::clone(&self.lanes);
        while let Some((mut first, is_apart)) = self.next().await {
            let nth = lanes.databases.place_of(first.proposal.session());
            let Some(free) = lanes.free.get(nth) else {
                return;
            };
            let _permit = match timeout_at(first.deadline, free.acquire()).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_closed)) => return,
                Err(_elapsed) => {
                    first.give(Err(self.stalled(None)));
                    continue;
                }
            };
            let group = if is_apart || self.is_alone {
                vec![first]
            } else {
                self.gather(first).await
            };
            self.see_through(group).await;
            match std::mem::replace(&mut self.connection, Connection::Lost) {
                Connection::Open(committer) => {
                    let mut idle = lanes.idle.lock();
                    let to_it = |other: &&Committer| Arc::ptr_eq(&other.site, &committer.site);
                    if idle.iter().filter(to_it).count() < CONNECTIONS_MAX {
                        idle.push(*committer);
                    }
                }
                other => self.connection = other,
            }
        }
    }

    /// Returns the first request of the next group, and whether it is a group by itself.
    async fn next(&mut self) -> Option<(Request, bool)> {
        if let Some(alone) = self.apart.pop_front() {
            return Some((alone, true));
        }
        let first = match self.held.take() {
            Some(first) => first,
            None => self.requests.recv().await?,
        };
        Some((first, false))
    }

    /// Returns the next group: all that waits, up to the bytes of a group.
    async fn gather(&mut self, first: Request) -> Vec<Request> {
        // Callers that were answered together come back together.
        tokio::task::yield_now().await;
        let mut bytes = first.proposal.batch.stored_bytes_max();
        let mut group = vec![first];
        while let Ok(next) = self.requests.try_recv() {
            bytes += next.proposal.batch.stored_bytes_max();
            if bytes > self.lanes.group_bytes_max {
                self.held = Some(next);
                break;
            }
            group.push(next);
        }
        group
    }

    /// Commits a group, however often it takes, and answers its members.
    async fn see_through(&mut self, group: Vec<Request>) {
        let mut tickets = Vec::new();
        if self.see_to_end(group, &mut tickets).await && !tickets.is_empty() {
            let databases = Arc::clone(&self.lanes.databases);
            tokio::spawn(async move { release(&databases, tickets).await });
        }
    }

    /// Does so, and notes the tickets that it made. Returns whether it is known what became of the
    /// group.
    async fn see_to_end(&mut self, mut group: Vec<Request>, tickets: &mut Vec<Id>) -> bool {
        let mut in_doubt: Option<Sent> = None;
        let mut last: Option<Error> = None;
        loop {
            self.tell_late(&mut group, in_doubt.as_ref(), last.as_ref());
            if in_doubt.is_none() {
                group.retain(Request::is_owed);
            }
            let owed = || group.iter().filter(|request| request.is_owed());
            let deadlines = owed().map(|request| request.deadline);
            let Some((first, last_of_all)) = deadlines.clone().min().zip(deadlines.max()) else {
                return in_doubt.is_none();
            };
            let opened = self.open(&group, first).await;
            let until = last_of_all.min(Instant::now() + ATTEMPT_MAX);
            let began = Instant::now();
            let attempt = match (opened, in_doubt.take()) {
                (Ok(None), doubt) => {
                    // Somebody's time is up, and the connection is still being made.
                    in_doubt = doubt;
                    last.get_or_insert_with(|| self.too_slow());
                    continue;
                }
                (Ok(Some(committer)), doubt) => {
                    self.attempt(*committer, &group, doubt, until, tickets)
                        .await
                }
                (Err(error), Some(sent)) => Attempt::InDoubt(sent, error),
                (Err(error), None) if Site::may_pass(&error) => Attempt::Again(error),
                (Err(error), None) => Attempt::Unreachable(error),
            };
            match attempt {
                Attempt::Done(sent) => return self.answer(group, sent, began.elapsed()),
                Attempt::Outdated => {
                    let nothing = SessionState::default();
                    let outdated = Landed::without_record(write::Outcome::Outdated, &nothing);
                    return give_all(&mut group, &Ok(outdated));
                }
                Attempt::Again(error) => {
                    self.follow(&group).await;
                    last = Some(error);
                }
                Attempt::InDoubt(sent, error) => {
                    self.follow(&group).await;
                    tracing::warn!(
                        target: "sessionlog",
                        error = error.with_sources(),
                        "it is not known whether a group of {} batches was committed",
                        group.len()
                    );
                    (in_doubt, last) = (Some(sent), Some(error));
                }
                Attempt::Unknown(sent) => {
                    for (nth, request) in group.iter_mut().enumerate() {
                        request.give(Err(self.in_doubt(&sent, nth, last.as_ref())));
                    }
                    return false;
                }
                Attempt::Refused(_) if group.len() > 1 => {
                    self.apart.extend(group);
                    return true;
                }
                Attempt::Unreachable(error) | Attempt::Refused(error) => {
                    return give_all(&mut group, &Err(refusal(&error)));
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Looks for the shard of a group that was not committed. It may have moved, and its old
    /// database may be gone.
    async fn follow(&self, group: &[Request]) {
        let databases = &self.lanes.databases;
        if let Some(request) = group.first().filter(|_| databases.are_several()) {
            let looking = databases.look_for_session(request.proposal.session());
            drop(timeout(ATTEMPT_MAX, looking).await);
        }
    }

    /// Returns a connection, or nothing if there is none by a deadline.
    async fn open(
        &mut self,
        group: &[Request],
        deadline: Instant,
    ) -> Result<Option<Box<Committer>>> {
        let databases = &self.lanes.databases;
        let first = group.first().map(|request| request.proposal.session());
        let home = first.map_or_else(|| databases.first(), |session| databases.of(session));
        let site = Arc::clone(&home.site);
        let mut opening = match std::mem::replace(&mut self.connection, Connection::Lost) {
            Connection::Open(committer) if committer.leads_to(&site) => {
                return Ok(Some(committer));
            }
            Connection::Opening(at, opening) if Arc::ptr_eq(&at, &site) => opening,
            Connection::Open(_) | Connection::Opening(..) | Connection::Lost => {
                if let Some(committer) = self.lanes.idle_at(&site) {
                    return Ok(Some(Box::new(committer)));
                }
                let site = Arc::clone(&site);
                tokio::spawn(async move {
                    timeout(ATTEMPT_MAX, Committer::open(&site))
                        .await
                        .unwrap_or_else(|_elapsed| Err(site.io("connect to", TOO_SLOW)))
                })
            }
        };
        match timeout_at(deadline, &mut opening).await {
            Ok(opened) => {
                let opened = opened.map_err(|error| site.io("connect to", error.to_string()))?;
                Ok(Some(Box::new(opened?)))
            }
            Err(_elapsed) => {
                self.connection = Connection::Opening(site, opening);
                Ok(None)
            }
        }
    }

    /// Tries once, on a connection that is kept only if all went well.
    async fn attempt(
        &mut self,
        committer: Committer,
        group: &[Request],
        in_doubt: Option<Sent>,
        until: Instant,
        tickets: &mut Vec<Id>,
    ) -> Attempt {
        if let Some(sent) = in_doubt {
            let Some(first) = &sent.first else {
                return Attempt::Done(sent);
            };
            match timeout_at(until, committer.was_committed(first)).await {
                Ok(Ok(Outcome::Committed)) => {
                    self.connection = Connection::Open(Box::new(committer));
                    return Attempt::Done(sent);
                }
                Ok(Ok(Outcome::Nothing)) => {
                    let rolled_back = committer.site.io("commit to", "it was rolled back");
                    self.connection = Connection::Open(Box::new(committer));
                    return Attempt::Again(rolled_back);
                }
                Ok(Ok(Outcome::MayBeErased)) => return Attempt::Unknown(sent),
                Ok(Err(error)) => return Attempt::InDoubt(sent, error),
                Err(_elapsed) => return Attempt::InDoubt(sent, self.too_slow()),
            }
        }
        let pins = match self.pin(&committer, group, until, tickets).await {
            Ok(Pinned::NotNeeded) => None,
            Ok(Pinned::By(pins)) => Some(pins),
            Ok(Pinned::Outdated) => return Attempt::Outdated,
            Err(error) if Site::may_pass(&error) => return Attempt::Again(error),
            Err(error) => return Attempt::Refused(error),
        };
        let members: Vec<_> = group
            .iter()
            .map(|request| Member {
                proposal: &request.proposal,
                created_ms: request.created_ms,
                pins: pins.as_ref(),
            })
            .collect();
        let mut sent = None;
        let done = committer.commit(&members, &mut self.memory, &mut sent);
        let done = timeout_at(until, done).await;
        let error = match (done, sent) {
            (Ok(Ok(())), Some(sent)) => {
                self.connection = Connection::Open(Box::new(committer));
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

    /// Pins what a fork shares with sessions of other databases. It is a group by itself.
    async fn pin(
        &self,
        committer: &Committer,
        group: &[Request],
        until: Instant,
        tickets: &mut Vec<Id>,
    ) -> Result<Pinned> {
        let databases = &self.lanes.databases;
        let fork = group
            .first()
            .filter(|_| self.is_alone)
            .map(|request| &request.proposal);
        let Some(fork) = fork.filter(|fork| are_needed(databases, fork)) else {
            return Ok(Pinned::NotNeeded);
        };
        let ticket = new_ticket();
        tickets.push(ticket);
        let pinning = pin(databases, fork, committer, ticket);
        match timeout_at(until, pinning).await {
            Ok(pins) => Ok(pins?.map_or(Pinned::Outdated, Pinned::By)),
            Err(_elapsed) => Err(committer.site.io("commit to", TOO_SLOW)),
        }
    }

    /// Answers the members of a group that is durable, of which it is known.
    fn answer(&self, group: Vec<Request>, sent: Sent, took: Duration) -> bool {
        let Sent { answers, news, .. } = sent;
        if news.records > 0 {
            let records = u32::try_from(news.records).unwrap_or(u32::MAX);
            let bytes = usize::try_from(news.bytes).unwrap_or(usize::MAX);
            self.lanes.counters.note_group(records, bytes, took);
        }
        self.note(&news);
        for (mut request, answer) in group.into_iter().zip(answers) {
            request.give(answer);
        }
        true
    }

    /// Tells the waiters, before any caller has its answer.
    fn note(&self, news: &News) {
        if news.retains {
            self.lanes.signal.update(|orders| orders.look = true);
        }
        if !news.ids.is_empty() {
            self.lanes.databases.first().site.note_told(&news.ids);
            self.lanes.bell.note(news);
        }
    }

    /// Answers the members whose time is up.
    fn tell_late(&self, group: &mut [Request], in_doubt: Option<&Sent>, last: Option<&Error>) {
        let now = Instant::now();
        for (nth, request) in group.iter_mut().enumerate() {
            if request.deadline <= now {
                request.give(Err(match in_doubt {
                    Some(sent) => self.in_doubt(sent, nth, last),
                    None => self.stalled(last),
                }));
            }
        }
    }

    /// Returns what a member hears of a group that may have been committed.
    fn in_doubt(&self, sent: &Sent, nth: usize, last: Option<&Error>) -> Error {
        let answer = sent.answers.get(nth);
        let is_stored = answer.is_some_and(|answer| answer.as_ref().is_ok_and(Landed::is_stored));
        if is_stored {
            Error::Unconfirmed {
                waited: self.lanes.stall_wait,
                source: last.cloned().map(Arc::new),
            }
        } else {
            self.stalled(last)
        }
    }

    fn stalled(&self, last: Option<&Error>) -> Error {
        Error::Stalled {
            waited: self.lanes.stall_wait,
            source: last.cloned().map(Arc::new),
        }
    }

    fn too_slow(&self) -> Error {
        self.lanes.databases.first().site.io("commit to", TOO_SLOW)
    }
}

/// Gives an answer to all members of a group, of which it is known.
fn give_all(group: &mut [Request], answer: &Result<Landed>) -> bool {
    for request in group {
        request.give(answer.clone());
    }
    true
}

/// Returns what callers hear of an error that does not pass.
fn refusal(error: &Error) -> Error {
    match error {
        Error::Io { .. } => Error::Refused {
            source: Arc::new(error.clone()),
        },
        told => told.clone(),
    }
}
