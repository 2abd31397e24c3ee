//! Wakes streams and feeds when there is something new, whichever server appended it.
//!
//! Each database of a log has a bell of its own, and a task that listens to it. A server that has
//! committed a group rings the bell: a notification in a transaction of its own, after the commit.
//! Sent within, it would hold a lock of the whole database for as long as the commit takes. A bell
//! may be lost, so each server also looks by itself, every second while anybody streams.
//!
//! Invariants:
//! * A follower has its mark before it reads. News after what it read changes the mark, or wakes
//!   the waiter that was registered with the mark unchanged. So none is slept through.
//! * What is known to have come is read in ID order, which is commit order, from the last ID known;
//!   with several shards in each of them from its own. After a connection was lost, or a shard came
//!   to a database or left it, all marks change, so that everybody reads again.
//! * With several shards the feed has a mark too, since what is new in one may have a lower ID than
//!   what was read of another. A reader of the feed waits only if the last read that began at the
//!   mark came no further than it. If a shard could not be closed for that read, the readers are
//!   woken after a moment.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::types::ToSql;

use crate::model::{EventId, Result, SessionId};
use crate::postgres::connect::{Link, Site, quoted};
use crate::postgres::databases::Databases;
use crate::postgres::group::News;
use crate::postgres::sql::{self, Id};
use crate::sync::{AtomicU64, Instant, Mutex, Ordering, WaitList, Waiter};

/// How old what was read ahead may become while it is not known what was removed.
const UNKNOWN_MAX: Duration = Duration::from_secs(2);

/// How often one looks without a bell.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long one look may take.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// How soon the feed is read again if a shard could not be closed.
const LATE: Duration = Duration::from_millis(5);

/// The records of this server that are remembered as told, at most.
const TOLD_MAX: usize = 10_000;

/// How long news are gathered before the bell is rung.
const RING_EVERY: Duration = Duration::from_micros(300);

/// The waiters, and what they wait for.
pub(super) struct Bell {
    databases: Arc<Databases>,
    waiting: Mutex<Waiting>,
    /// Rises with every removal that is known of.
    removals: AtomicU64,
    signals: Vec<Signals>,
}

/// What wakes the tasks of one database.
#[derive(Default)]
struct Signals {
    /// Somebody rang, or began to wait.
    rung: Arc<Notify>,
    /// News of this server that others do not know of.
    untold: Notify,
}

/// What is known of one database.
#[derive(Default)]
struct Known {
    /// Everything up to this ID was told, of each shard. There is none before the first look.
    through: BTreeMap<i32, EventId>,
    /// The removals as of then.
    removals: i64,
    /// The shards that had come or left.
    moves: i64,
    /// When that was asked for.
    looked_at: Option<Instant>,
}

#[derive(Default)]
struct Waiting {
    /// Of each database.
    known: Vec<Known>,
    /// The last IDs of records after that which this server has told itself.
    told: HashSet<EventId>,
    sessions: HashMap<SessionId, Followed>,
    /// The readers of all sessions.
    feeds: usize,
    feed_waiters: WaitList,
    /// Rises with news of any session.
    feed_mark: u64,
    /// How far the feed of several shards was read, by a read that began at a mark.
    fed: Option<(u64, EventId)>,
    /// Whether a shard could not be closed for it.
    is_late: bool,
}

/// A session that somebody follows.
#[derive(Default)]
struct Followed {
    followers: usize,
    /// Rises with news.
    mark: u64,
    waiters: WaitList,
}

impl Bell {
    pub(super) fn new(databases: &Arc<Databases>) -> Arc<Self> {
        let count = databases.all().len();
        Arc::new(Self {
            databases: Arc::clone(databases),
            waiting: Mutex::new(Waiting {
                known: (0..count).map(|_| Known::default()).collect(),
                ..Waiting::default()
            }),
            removals: AtomicU64::new(0),
            signals: (0..count).map(|_| Signals::default()).collect(),
        })
    }

    /// Begins the tasks that listen to the bells and ring them.
    pub(super) fn begin_tasks(self: &Arc<Self>, runtime: &Handle) -> Vec<AbortHandle> {
        let databases = 0..self.signals.len();
        let tasks = databases.flat_map(|nth| {
            let listening = runtime.spawn(Arc::clone(self).listen(nth));
            let ringing = runtime.spawn(Arc::clone(self).ring(nth));
            [listening.abort_handle(), ringing.abort_handle()]
        });
        tasks.collect()
    }

    pub(super) fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// Whether all removals are known but for those of the last moment, after a read at a time.
    pub(super) fn knows_removals(&self, read_at: Instant) -> bool {
        let is_known = |at: Instant| at.elapsed() < UNKNOWN_MAX;
        let waiting = self.waiting.lock();
        let mut known = waiting.known.iter();
        is_known(read_at) || known.all(|known| known.looked_at.is_some_and(is_known))
    }

    /// Tells what this server has committed, all of it to one database.
    pub(super) fn note(&self, news: &News) {
        if news.removals > 0 {
            self.removals.fetch_add(news.removals, Ordering::Release);
        }
        self.waiting.lock().note_told(&news.ids);
        self.wake(&news.sessions);
        if let Some(session) = news.sessions.first() {
            let signals = self.signals.get(self.databases.place_of(session));
            signals.inspect(|signals| signals.untold.notify_one());
        }
    }

    /// Has the tasks look.
    fn look_now(&self) {
        for signals in &self.signals {
            signals.rung.notify_one();
        }
    }

    /// Begins to follow a session.
    pub(super) fn follow(&self, session: &SessionId) {
        let mut waiting = self.waiting.lock();
        waiting
            .sessions
            .entry(session.detached())
            .or_default()
            .followers += 1;
        drop(waiting);
        self.look_now();
    }

    /// Begins to follow all sessions.
    pub(super) fn follow_all(&self) {
        self.waiting.lock().feeds += 1;
        self.look_now();
    }

    pub(super) fn unfollow_all(&self) {
        self.waiting.lock().feeds -= 1;
    }

    pub(super) fn unfollow(&self, session: &SessionId) {
        let mut waiting = self.waiting.lock();
        if let Some(followed) = waiting.sessions.get_mut(session) {
            followed.followers -= 1;
            if followed.followers == 0 {
                waiting.sessions.remove(session);
            }
        }
    }

    /// Returns the mark of a session that is followed.
    pub(super) fn mark(&self, session: &SessionId) -> u64 {
        let waiting = self.waiting.lock();
        let followed = waiting.sessions.get(session);
        followed.map_or(0, |followed| followed.mark)
    }

    /// Registers a waiter for news of a session after a mark. Returns whether it did.
    pub(super) fn wait(&self, session: &SessionId, mark: u64, waiter: &Arc<Waiter>) -> bool {
        let mut waiting = self.waiting.lock();
        let followed = waiting.sessions.get_mut(session);
        let Some(followed) = followed.filter(|followed| followed.mark == mark) else {
            return false;
        };
        followed.waiters.add(waiter);
        true
    }

    pub(super) fn forget(&self, session: &SessionId, waiter: &Arc<Waiter>) {
        if let Some(followed) = self.waiting.lock().sessions.get_mut(session) {
            followed.waiters.remove(waiter);
        }
    }

    /// Registers a waiter for news of any session after an ID. Returns whether it did.
    pub(super) fn wait_for_any(&self, seen: EventId, waiter: &Arc<Waiter>) -> bool {
        let mut waiting = self.waiting.lock();
        let has_more = if self.databases.shards() > 1 {
            let fed = waiting.fed;
            fed.is_none_or(|(mark, closed)| mark != waiting.feed_mark || closed > seen)
        } else {
            let mut through = waiting
                .known
                .iter()
                .flat_map(|known| known.through.values());
            through.any(|through| *through > seen)
        };
        if has_more {
            return false;
        }
        waiting.feed_waiters.add(waiter);
        true
    }

    /// Returns the mark of the feed. It is taken before the shards are closed for a read.
    pub(super) fn feed_mark(&self) -> u64 {
        self.waiting.lock().feed_mark
    }

    /// Notes that a read that began at a mark came to where the shards are closed.
    pub(super) fn note_closed(&self, mark: u64, closed: EventId) {
        let mut waiting = self.waiting.lock();
        waiting.fed = waiting.fed.max(Some((mark, closed)));
    }

    /// Notes that a shard was not closed up to the newest ID.
    pub(super) fn note_late(&self) {
        self.waiting.lock().is_late = true;
        self.look_now();
    }

    pub(super) fn forget_any(&self, waiter: &Arc<Waiter>) {
        self.waiting.lock().feed_waiters.remove(waiter);
    }

    /// Wakes all waiters. They then read again.
    pub(super) fn wake_all(&self) {
        let mut waiting = self.waiting.lock();
        waiting.feed_mark += 1;
        let mut waiters = waiting.feed_waiters.take();
        for followed in waiting.sessions.values_mut() {
            followed.mark += 1;
            waiters.append(&mut followed.waiters.take());
        }
        drop(waiting);
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Wakes the followers of some sessions, and all feeds.
    fn wake(&self, sessions: &[SessionId]) {
        let mut waiting = self.waiting.lock();
        waiting.feed_mark += 1;
        let mut waiters = waiting.feed_waiters.take();
        for session in sessions {
            if let Some(followed) = waiting.sessions.get_mut(session) {
                followed.mark += 1;
                waiters.append(&mut followed.waiters.take());
            }
        }
        drop(waiting);
        for waiter in waiters {
            waiter.wake();
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.lock().is_idle()
    }

    /// Listens for the bell of a database, and looks by itself, until the task is dropped.
    async fn listen(self: Arc<Self>, nth: usize) {
        let (Some(database), Some(signals)) =
            (self.databases.all().get(nth), self.signals.get(nth))
        else {
            return;
        };
        let site = &database.site;
        loop {
            // Nobody waits, so nothing has to be known.
            while self.is_idle() {
                signals.rung.notified().await;
            }
            if let Ok(Ok(link)) = timeout(LOOK_WITHIN, self.begin(nth, site, &signals.rung)).await {
                // A primary that was replaced may still answer, and has no news.
                while site.is_current(&link)
                    && let Ok(Ok(true)) = timeout(LOOK_WITHIN, self.look(nth, site, &link)).await
                {
                    // Woken by a bell, or by the time.
                    let _by_time = timeout(LOOK_EVERY, signals.rung.notified()).await;
                    if std::mem::take(&mut self.waiting.lock().is_late) {
                        sleep(LATE).await;
                        self.wake(&[]);
                    }
                }
            }
            // Waiters go on waiting: they are woken once there is something to read again.
            sleep(RING_EVERY * 100).await;
        }
    }

    /// Connects, listens, and forgets what was known.
    async fn begin(&self, nth: usize, site: &Site, rung: &Arc<Notify>) -> Result<Link> {
        let link = site
            .connect(|| {
                let rung = Arc::clone(rung);
                Some(Box::new(move |_payload: &str| rung.notify_one()))
            })
            .await?;
        let failed = |error: tokio_postgres::Error| site.error("listen to", &error);
        let began = Instant::now();
        let listen = format!("LISTEN {}", quoted(&channel(site)));
        link.client.batch_execute(&listen).await.map_err(failed)?;
        // The moves before the shards, so that one that comes in between is seen to have come.
        let count = link.client.query_one(sql::REMOVALS, &[]).await;
        let count = count.map_err(failed)?;
        let last_ids = link.client.query(sql::LAST_IDS, &[]).await;
        let last_ids = last_ids.map_err(failed)?;
        let mut waiting = self.waiting.lock();
        if let Some(known) = waiting.known.get_mut(nth) {
            let through = last_ids
                .iter()
                .map(|row| (row.get(0), row.get::<_, Id>(1).0));
            known.through = through.collect();
            known.moves = count.get(1);
        }
        drop(waiting);
        self.note_removals(nth, count.get(0), began);
        // A reader from before does not know what came since.
        self.wake_all();
        Ok(link)
    }

    /// Reads what came since the last time, and wakes the waiters for it. Returns whether it may go
    /// on so: not if a shard came to the database or left it.
    async fn look(&self, nth: usize, site: &Site, link: &Link) -> Result<bool> {
        let failed = |error: tokio_postgres::Error| site.error("look for news in", &error);
        let (client, began) = (&link.client, Instant::now());
        let (mut shards, mut through, mut moves) = (Vec::new(), Vec::new(), 0);
        if let Some(known) = self.waiting.lock().known.get(nth) {
            shards.extend(known.through.keys().copied());
            through.extend(known.through.values().map(|id| Id(*id)));
            moves = known.moves;
        }
        let several: [&(dyn ToSql + Sync); 2] = [&shards, &through];
        // The removals after the records, so that one that was read with its record is told too.
        let news = async {
            match through.as_slice() {
                [one] if site.shards() == 1 => client.query(sql::NEWS, &[one]).await,
                _ => client.query(sql::NEWS_OF_ALL, &several).await,
            }
        };
        let removals = async { client.query_one(sql::REMOVALS, &[]).await };
        let (news, removals) = futures_util::future::join(news, removals).await;
        let (news, removals) = (news.map_err(failed)?, removals.map_err(failed)?);
        self.note_removals(nth, removals.get(0), began);
        if removals.get::<_, i64>(1) != moves {
            return Ok(false);
        }
        if news.is_empty() {
            return Ok(true);
        }
        let mut sessions = Vec::with_capacity(news.len());
        let mut waiting = self.waiting.lock();
        for row in &news {
            let id = row.get::<_, Id>(0).0;
            if !waiting.told.remove(&id) {
                sessions.push(SessionId::new(row.get::<_, &str>(1))?);
            }
            let known = waiting.known.get_mut(nth);
            let through = known.and_then(|known| known.through.get_mut(&row.get(2)));
            if let Some(through) = through {
                *through = id;
            }
        }
        drop(waiting);
        sessions.dedup();
        self.wake(&sessions);
        // There may be more than one read returns.
        if let Some(signals) = self.signals.get(nth) {
            signals.rung.notify_one();
        }
        Ok(true)
    }

    /// Takes over the count of removals of a database, as of a time.
    fn note_removals(&self, nth: usize, count: i64, at: Instant) {
        let mut waiting = self.waiting.lock();
        let Some(known) = waiting.known.get_mut(nth) else {
            return;
        };
        known.looked_at = Some(at);
        if std::mem::replace(&mut known.removals, count) != count {
            self.removals.fetch_add(1, Ordering::Release);
        }
    }

    /// Rings the bell of a database for other servers, until the task is dropped.
    async fn ring(self: Arc<Self>, nth: usize) {
        let (Some(database), Some(signals)) =
            (self.databases.all().get(nth), self.signals.get(nth))
        else {
            return;
        };
        let site = &database.site;
        // A single message, so that it takes little from the group that comes next.
        let notify = format!("NOTIFY {}", quoted(&channel(site)));
        let mut link: Option<Link> = None;
        loop {
            signals.untold.notified().await;
            // Groups that follow each other closely share a bell.
            sleep(RING_EVERY).await;
            let current = match link.take().filter(|link| site.is_current(link)) {
                Some(link) => Some(link),
                None => timeout(LOOK_WITHIN, site.connect(|| None))
                    .await
                    .ok()
                    .and_then(Result::ok),
            };
            // A bell that is not rung is made up for by looking.
            if let Some(current) = current {
                let rung = current.client.batch_execute(&notify);
                if matches!(timeout(LOOK_WITHIN, rung).await, Ok(Ok(()))) {
                    link = Some(current);
                }
            }
        }
    }
}

/// Returns the channel of the bell of a log.
fn channel(site: &Site) -> String {
    let hash = blake3::hash(site.schema.as_bytes()).to_hex();
    format!("sessionlog_{}", hash.get(..32).unwrap_or_default())
}

impl Waiting {
    /// Notes what every waiter was told. While nothing waits, nothing is noted.
    fn note_told(&mut self, ids: &[EventId]) {
        if self.told.len() + ids.len() > TOLD_MAX || self.is_idle() {
            self.told.clear();
        } else {
            self.told.extend(ids);
        }
    }

    fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.feeds == 0
    }
}
