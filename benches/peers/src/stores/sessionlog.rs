//! The log itself, with its defaults, and the same cache limit as the others.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sessionlog::{
    Batch, EventId, MessageId, NewEvent, Options, PageRequest, SessionId, SessionLog, StartAt,
    Stats, StreamItem,
};

use crate::measure::pause;
use crate::store::{Answer, CACHE_BYTES, Following, Load, Open, See, Seen, Store, session_name};
use crate::turn;

/// Longer than a segment takes, and than a log waits before it merges at rest.
const QUIET: Duration = Duration::from_secs(3);

pub struct Ours {
    log: SessionLog,
    sessions: Vec<SessionId>,
    /// The number of events appended to each.
    appended: Vec<AtomicU64>,
    turns: Vec<OnceLock<MessageId>>,
}

impl Ours {
    pub fn open(open: Open<'_>) -> Self {
        Self::open_with(Options::new(), open)
    }

    pub fn open_unmerged(open: Open<'_>) -> Self {
        Self::open_with(Options::new().merge_fanout(usize::MAX), open)
    }

    pub fn open_with(options: Options, open: Open<'_>) -> Self {
        let log = options
            .cache_bytes_max(CACHE_BYTES)
            .open(open.folder)
            .expect("the log opens");
        Self {
            log,
            sessions: (0..open.sessions)
                .map(|nth| SessionId::new(session_name(nth)).expect("a name"))
                .collect(),
            appended: (0..open.sessions).map(|_| AtomicU64::new(0)).collect(),
            turns: (0..open.sessions).map(|_| OnceLock::new()).collect(),
        }
    }

    pub fn log(&self) -> &SessionLog {
        &self.log
    }

    pub fn append_keyed(&self, session: u32, load: Load, key: &str) {
        let keyed = self.batch(session, load).idempotency_key(key);
        self.log
            .append(self.session(session), keyed)
            .expect("the append succeeds");
    }

    /// Appends to a session that is not one of the numbered ones.
    pub fn begin(&self, name: &str, load: Load) {
        let session = SessionId::new(name).expect("a name");
        self.log
            .append(&session, self.batch(0, load))
            .expect("the append succeeds");
    }

    pub fn session(&self, session: u32) -> &SessionId {
        &self.sessions[session as usize]
    }

    pub fn batch(&self, session: u32, load: Load) -> Batch {
        let events = load.events as u64;
        let appended = self.appended[session as usize].fetch_add(events, Relaxed);
        let event = |nth| {
            let (event_type, data) = load.content.event(session, appended + nth);
            NewEvent::new(event_type, data.into_owned())
        };
        Batch::new().events((1..=events).map(event))
    }
}

impl Store for Ours {
    fn append(&self, session: u32, load: Load) {
        self.log
            .append(self.session(session), self.batch(session, load))
            .expect("the append succeeds");
    }

    fn append_async(&self, session: u32, load: Load) -> Answer<'_> {
        let ack = self
            .log
            .append_async(self.session(session), self.batch(session, load));
        Box::pin(async { drop(ack.await.expect("the append succeeds")) })
    }

    fn page(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        let page = self
            .log
            .list(
                self.session(session),
                PageRequest::new().after(seq).limit(limit),
            )
            .expect("the page is there");
        for event in &page.items {
            see(&event.data);
        }
    }

    fn newest(&self, session: u32, limit: usize, see: See<'_>) {
        let page = self
            .log
            .list(
                self.session(session),
                PageRequest::new().newest_first().limit(limit),
            )
            .expect("the page is there");
        for event in &page.items {
            see(&event.data);
        }
    }

    fn id_at(&self, session: u32, seq: u64) -> u128 {
        let page = self
            .log
            .list(
                self.session(session),
                PageRequest::new().after(seq - 1).limit(1),
            )
            .expect("the event is there");
        page.items[0].id.to_u128()
    }

    fn find(&self, id: u128, see: See<'_>) {
        see(&self
            .log
            .event(EventId::from_u128(id))
            .expect("the event is there")
            .data);
    }

    fn append_turn(&self, session: u32) {
        let id = self.session(session);
        let ack = self
            .log
            .append(id, Batch::new().user_message(turn::ASKED))
            .expect("the append succeeds");
        let message = ack.events[0]
            .message_id
            .expect("a user's message opens a turn");
        let work = turn::work()
            .into_iter()
            .map(|(event_type, data)| NewEvent::new(event_type, data).in_turn(message));
        self.log
            .append(id, Batch::new().events(work))
            .expect("the append succeeds");
        self.turns[session as usize]
            .set(message)
            .expect("a session has one turn");
    }

    fn turn(&self, session: u32, see: See<'_>) {
        let turn = *self.turns[session as usize]
            .get()
            .expect("the session has a turn");
        let message = self.log.message(turn).expect("the turn is there");
        see(message.status.as_str().as_bytes());
    }

    fn settle(&self) -> Instant {
        // An idle log seals full files, merges, and enters merged segments into the index. The rest
        // stays in the journal.
        let done = |stats: &Stats| (stats.batches, stats.seals, stats.merges, stats.refusals);
        let (mut before, mut since) = (self.log.stats(), Instant::now());
        while since.elapsed() < QUIET {
            pause(Duration::from_millis(20));
            let now = self.log.stats();
            if done(&now) != done(&before) || now.index_lag > 0 || now.space.merging_bytes > 0 {
                (before, since) = (now, Instant::now());
            }
        }
        since
    }

    fn follow(&self, session: u32, mut seen: Seen) -> JoinHandle<()> {
        let mut stream = self
            .log
            .stream(self.session(session), StartAt::Creation)
            .expect("the stream opens");
        std::thread::spawn(move || {
            for item in stream.by_ref() {
                if matches!(item.expect("the stream goes on"), StreamItem::Event(_))
                    && seen() == Following::Enough
                {
                    return;
                }
            }
        })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.log.close().expect("the log closes");
    }
}
