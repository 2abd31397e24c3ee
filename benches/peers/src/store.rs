//! The store that a workload needs, and the few lines of an application that make one of a peer.

use std::borrow::Cow;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::content::Content;
use crate::turn;

/// The limit of the cache, for every store that has its own.
pub const CACHE_BYTES: usize = 256 << 20;

pub type Answer<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Called with the data of an event.
pub type See<'a> = &'a mut dyn FnMut(&[u8]);

/// A batch of events.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub events: usize,
    pub content: Content,
}

impl Load {
    /// Events with `bytes` bytes each of data that does not compress.
    pub const fn noise(events: usize, bytes: usize) -> Self {
        Self {
            events,
            content: Content::Noise(bytes),
        }
    }

    /// The next events of agent sessions.
    pub const fn agent(events: usize) -> Self {
        Self {
            events,
            content: Content::Agent,
        }
    }
}

/// An event log. Anything that fails ends the run.
pub trait Store: Send + Sync {
    /// Appends a batch of events to a session, and returns when it is durable. At most one caller
    /// appends to a session at a time.
    fn append(&self, session: u32, load: Load);

    /// Does the same for callers that hold no thread.
    fn append_async(&self, session: u32, load: Load) -> Answer<'_>;

    /// Shows up to `limit` events of a session after `seq`, which counts from 1.
    fn page(&self, session: u32, seq: u64, limit: usize, see: See<'_>);

    /// Shows up to `limit` events of a session, the newest first.
    fn newest(&self, session: u32, limit: usize, see: See<'_>);

    /// The ID of the event that a session has at `seq`.
    fn id_at(&self, session: u32, seq: u64) -> u128;

    /// Shows the event with this ID.
    fn find(&self, id: u128, see: See<'_>);

    /// Appends a turn of twenty events to a session that has none.
    fn append_turn(&self, session: u32);

    /// Reads that turn back, folded into one message, and shows its status.
    fn turn(&self, session: u32, see: See<'_>);

    /// Waits until no background work is left. Returns the time at which it ended.
    fn settle(&self) -> Instant;

    /// Follows a session from now on. Calls `seen` for every delivered event, until it returns
    /// [`Following::Enough`].
    fn follow(&self, session: u32, seen: Seen) -> JoinHandle<()>;
}

/// Called for every event that a stream delivers.
pub type Seen = Box<dyn FnMut() -> Following + Send>;

/// Whether the follower wants more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Following {
    On,
    Enough,
}

/// How a store is opened.
#[derive(Debug, Clone, Copy)]
pub struct Open<'a> {
    pub folder: &'a Path,
    /// The number of sessions, whose numbers are below it.
    pub sessions: u32,
    /// Whether events are found by their ID, for which peers need another entry.
    pub ids: Ids,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    Found,
    Unused,
}

/// An event as it is handed to a peer.
#[derive(Debug)]
pub struct Entry {
    pub session: u32,
    pub seq: u64,
    pub id: u128,
    /// The ID, the type, the data.
    pub value: Vec<u8>,
}

/// The operations of an ordered store. An application on top makes a log of it.
pub trait Peer: Send + Sync + 'static {
    /// Commits all or none, and returns when the commit would outlive a power cut.
    fn commit(&self, entries: &[Entry]);

    /// Does the same for callers that hold no thread. Runs on a thread of the runtime's blocking
    /// pool, unless the peer overrides it.
    fn commit_async(self: Arc<Self>, entries: Vec<Entry>) -> Answer<'static> {
        let commit = tokio::task::spawn_blocking(move || self.commit(&entries));
        Box::pin(async { commit.await.expect("the commit succeeds") })
    }

    /// Values of a session from `seq` on.
    fn scan(&self, _session: u32, _seq: u64, _limit: usize, _see: See<'_>) {
        unreachable!("who cannot read is not asked to")
    }

    /// Values of a session from its end.
    fn scan_back(&self, _session: u32, _limit: usize, _see: See<'_>) {
        unreachable!("who cannot read is not asked to")
    }

    /// The value of the event with this ID.
    fn find(&self, _id: u128, _see: See<'_>) {
        unreachable!("who knows no IDs is not asked for one")
    }

    fn settle(&self) -> Instant {
        Instant::now()
    }

    /// Works as [`Store::follow`].
    fn follow(&self, _session: u32, _seen: Seen) -> JoinHandle<()> {
        unreachable!("who has no live streams is not asked for one")
    }
}

/// How an application hands batches to its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committing {
    /// Each caller commits its own batch.
    Direct,
    /// One thread commits the batches that arrived meanwhile.
    Grouped,
}

/// A log on top of a peer.
pub struct Application<P> {
    peer: Arc<P>,
    /// The last seq of each session.
    last: Vec<AtomicU64>,
    last_id: AtomicU64,
    began_ms: u64,
    group: Option<mpsc::Sender<Pending>>,
    committer: Option<JoinHandle<()>>,
}

struct Pending {
    entries: Vec<Entry>,
    done: oneshot::Sender<()>,
}

/// The most that the log itself writes at once.
const GROUP_BYTES_MAX: usize = 4 << 20;

impl<P: Peer> Application<P> {
    pub fn new(peer: P, committing: Committing, open: Open<'_>) -> Self {
        let peer = Arc::new(peer);
        let (group, pending) = mpsc::channel();
        let committer = (committing == Committing::Grouped).then(|| {
            let peer = Arc::clone(&peer);
            std::thread::spawn(move || commit_groups(&*peer, &pending))
        });
        Self {
            peer,
            last: (0..open.sessions).map(|_| AtomicU64::new(0)).collect(),
            last_id: AtomicU64::new(0),
            began_ms: rustix::time::clock_gettime(rustix::time::ClockId::Realtime)
                .tv_sec
                .unsigned_abs()
                * 1_000,
            group: committer.is_some().then_some(group),
            committer,
        }
    }

    fn entries(&self, session: u32, load: Load) -> Vec<Entry> {
        let entry = |_nth| self.entry(session, |seq| load.content.event(session, seq));
        (0..load.events).map(entry).collect()
    }

    /// Returns the next event of a session, with the type and the data for its seq.
    fn entry<'a>(
        &self,
        session: u32,
        event: impl FnOnce(u64) -> (&'a str, Cow<'a, [u8]>),
    ) -> Entry {
        let seq = self.last[session as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let id = u128::from(self.began_ms) << 80
            | u128::from(self.last_id.fetch_add(1, Ordering::Relaxed));
        let (event_type, data) = event(seq);
        Entry {
            session,
            seq,
            id,
            value: value_of(id, event_type, &data),
        }
    }

    fn commit(&self, entries: Vec<Entry>) {
        match &self.group {
            Some(group) => self
                .hand_over(group, entries)
                .blocking_recv()
                .expect("the commit succeeds"),
            None => self.peer.commit(&entries),
        }
    }

    fn hand_over(
        &self,
        group: &mpsc::Sender<Pending>,
        entries: Vec<Entry>,
    ) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        group
            .send(Pending { entries, done })
            .expect("the committer runs");
        is_done
    }
}

impl<P: Peer> Store for Application<P> {
    fn append(&self, session: u32, load: Load) {
        self.commit(self.entries(session, load));
    }

    fn append_async(&self, session: u32, load: Load) -> Answer<'_> {
        let entries = self.entries(session, load);
        match &self.group {
            Some(group) => {
                let is_done = self.hand_over(group, entries);
                Box::pin(async { is_done.await.expect("the commit succeeds") })
            }
            None => Arc::clone(&self.peer).commit_async(entries),
        }
    }

    fn page(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        self.peer
            .scan(session, seq + 1, limit, &mut |value| see(data_of(value)));
    }

    fn newest(&self, session: u32, limit: usize, see: See<'_>) {
        self.peer
            .scan_back(session, limit, &mut |value| see(data_of(value)));
    }

    fn id_at(&self, session: u32, seq: u64) -> u128 {
        let mut id = None;
        self.peer.scan(session, seq, 1, &mut |value| {
            id = value.first_chunk().map(|id| u128::from_be_bytes(*id))
        });
        id.expect("the event is there")
    }

    fn find(&self, id: u128, see: See<'_>) {
        self.peer.find(id, &mut |value| see(data_of(value)));
    }

    fn append_turn(&self, session: u32) {
        let entry = |(event_type, data): (&str, String)| {
            self.entry(session, |_seq| (event_type, data.as_bytes().into()))
        };
        self.commit(turn::events().into_iter().map(entry).collect());
    }

    fn turn(&self, session: u32, see: See<'_>) {
        let mut fold = turn::Fold::default();
        self.peer.scan(session, 1, turn::EVENTS, &mut |value| {
            let (event_type, data) = event_of(value);
            fold.apply(
                std::str::from_utf8(event_type).expect("a type is text"),
                data,
            );
        });
        see(fold.status().as_bytes());
    }

    fn settle(&self) -> Instant {
        self.peer.settle()
    }

    fn follow(&self, session: u32, seen: Seen) -> JoinHandle<()> {
        self.peer.follow(session, seen)
    }
}

impl<P> Drop for Application<P> {
    fn drop(&mut self) {
        self.group = None;
        if let Some(committer) = self.committer.take() {
            committer.join().expect("the committer ends");
        }
    }
}

fn commit_groups(peer: &impl Peer, pending: &mpsc::Receiver<Pending>) {
    while let Ok(first) = pending.recv() {
        let (mut entries, mut waiting) = (first.entries, vec![first.done]);
        let mut bytes = 0;
        while bytes < GROUP_BYTES_MAX
            && let Ok(next) = pending.try_recv()
        {
            bytes += next
                .entries
                .iter()
                .map(|entry| entry.value.len())
                .sum::<usize>();
            entries.extend(next.entries);
            waiting.push(next.done);
        }
        peer.commit(&entries);
        for done in waiting {
            // A caller that stopped waiting needs no answer.
            let _told = done.send(());
        }
    }
}

fn value_of(id: u128, event_type: &str, data: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(17 + event_type.len() + data.len());
    value.extend_from_slice(&id.to_be_bytes());
    value.push(u8::try_from(event_type.len()).expect("a short name"));
    value.extend_from_slice(event_type.as_bytes());
    value.extend_from_slice(data);
    value
}

/// The type and the data.
fn event_of(value: &[u8]) -> (&[u8], &[u8]) {
    value[17..].split_at(usize::from(value[16]))
}

fn data_of(value: &[u8]) -> &[u8] {
    event_of(value).1
}

/// The ID of a session.
pub fn session_name(session: u32) -> String {
    format!("session-{session:07}")
}

pub const KEY_BYTES: usize = 24;

/// The key of an event: the session ID, a NUL, the seq. They sort as the events do.
pub fn key(session: u32, seq: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..15].copy_from_slice(session_name(session).as_bytes());
    key[16..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// The key that maps the event's ID to that key, where there is one keyspace only.
#[allow(dead_code, reason = "the light peers have a keyspace for it")]
pub fn id_key(id: u128) -> [u8; 19] {
    let mut key = *b"id:................";
    key[3..].copy_from_slice(&id.to_be_bytes());
    key
}
