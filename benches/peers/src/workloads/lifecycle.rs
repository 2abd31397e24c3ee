//! What comes after the appends, of the log alone: calls that change a session, deletion of many
//! sessions, the list of sessions, and retention.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use sessionlog::{Delete, Options, Retention, SessionQuery};

use super::Task;
use super::stores::spread;
use crate::measure::{Figures, disk_bytes, micros, pause, peak_rss_mb, percentile};
use crate::store::{Ids, Load, Open, Store};
use crate::stores::sessionlog::Ours;

const WRITERS: u32 = 64;
const POLL: Duration = Duration::from_millis(200);

const CHANGED: u32 = 2_000;

const MANY: u32 = 1_000_000;
const SMALL: Load = Load::noise(1, 256);
/// Half of the sessions have to be worth much more than the dead bytes that merging leaves.
const DELETED: Load = Load::noise(4, 512);

/// How long appends are measured alone, in seconds: long enough that segments are written and
/// merged as they are later on.
const LOADED: f64 = 20.0;

/// Appends go on until this share of what was deleted is back, or nothing was merged for so long.
const BACK: f64 = 0.9;
const GIVEN_UP: Duration = Duration::from_secs(10);

const PAGE: usize = 100;
const PAGES: u32 = 2_000;
const IDLE: Duration = Duration::from_hours(1);

/// The latency of each call, beside that of an append of the same round.
pub fn calls(task: Task<'_>) -> Figures {
    let ours = Ours::open(open(task, CHANGED));
    let log = ours.log();
    spread(&ours, CHANGED, 16, CHANGED, Load::noise(10, 256));
    let mut took: [Vec<f64>; 4] = Default::default();
    for nth in 0..CHANGED {
        let session = ours.session(nth);
        let patch = serde_json::json!({"agent": "a1", "step": nth});
        let batch = ours.batch(nth, SMALL);
        let [append, describe, close, delete] = &mut took;
        append.push(time(|| {
            drop(log.append(session, batch).expect("an append"))
        }));
        describe.push(time(|| {
            drop(log.set_metadata(session, patch).expect("a patch"));
        }));
        close.push(time(|| drop(log.close_session(session).expect("a close"))));
        delete.push(time(|| {
            log.delete(session, Delete::new()).expect("a deletion");
        }));
    }
    let mut figures = Figures::new();
    let [append, describe, close, delete] = took.each_mut().map(|took| percentile(took, 0.5));
    figures.insert("append us".into(), append);
    for (name, took) in [
        ("set_metadata", describe),
        ("close", close),
        ("delete", delete),
    ] {
        figures.insert(format!("{name} us"), took);
        figures.insert(format!("{name}/append"), took / append);
    }
    figures
}

/// Half of a million sessions are deleted, and their space comes back while appends go on.
pub fn deletes(task: Task<'_>) -> Figures {
    let sessions = task.scaled(MANY).max(2 * WRITERS);
    // After the sessions come those that appends go on to.
    let ours = Ours::open(open(task, sessions + WRITERS));
    spread(&ours, sessions, WRITERS, sessions, DELETED);
    ours.settle();
    let filled = ours.log().stats().space.total_bytes - ours.log().stats().space.journal_bytes;
    let busy = Busy::of(&ours, sessions);
    let mut figures = Figures::new();
    let quiet = busy.rate(task.seconds.max(LOADED));
    // All sessions are of one size. What was appended since has no dead bytes.
    let deleted = filled as f64 / 2.0;
    let given_back = || 1.0 - ours.log().stats().space.dead_bytes as f64 / deleted;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let ours = &ours;
            scope.spawn(move || {
                for session in (writer..sessions / 2).step_by(WRITERS as usize) {
                    let session = ours.session(2 * session);
                    ours.log()
                        .delete(session, Delete::new())
                        .expect("a deletion");
                }
            });
        }
    });
    let rate = f64::from(sessions / 2) / began.elapsed().as_secs_f64();
    figures.insert("deletes/s".into(), rate);
    let began = Instant::now();
    let before = busy.appended();
    let stop = AtomicBool::new(false);
    let is_back = || given_back() >= BACK;
    std::thread::scope(|scope| {
        let appends = scope.spawn(|| busy.until(|| stop.load(Relaxed)));
        let mut merged_at = Instant::now();
        while !is_back() && merged_at.elapsed() < GIVEN_UP {
            pause(POLL);
            if ours.log().stats().space.merging_bytes > 0 {
                merged_at = Instant::now();
            }
        }
        let back = began.elapsed();
        stop.store(true, Relaxed);
        appends.join().expect("the appends end");
        figures.insert("back s".into(), back.as_secs_f64());
    });
    let meanwhile = busy.appended() - before;
    let busy_rate = meanwhile as f64 / began.elapsed().as_secs_f64();
    figures.insert("appends/s".into(), busy_rate);
    figures.insert("appends/s alone".into(), quiet);
    figures.insert("kept rate".into(), busy_rate / quiet);
    ours.settle();
    figures.insert("given back".into(), given_back());
    figures.insert("rss MB".into(), peak_rss_mb());
    figures
}

/// Pages of a million sessions, and their end by retention.
pub fn directory(task: Task<'_>) -> Figures {
    let sessions = task.scaled(MANY).max(WRITERS);
    let ahead = Arc::new(AtomicU64::new(0));
    let clock = {
        let ahead = Arc::clone(&ahead);
        move || SystemTime::now() + Duration::from_secs(ahead.load(Relaxed))
    };
    let options = Options::new()
        .retention(Retention::new().idle(IDLE))
        .clock(clock);
    let ours = Ours::open_with(options, open(task, sessions + WRITERS));
    spread(&ours, sessions, WRITERS, sessions, SMALL);
    ours.settle();
    let log = ours.log();
    let mut figures = Figures::new();
    let orders = [
        ("by activity us", SessionQuery::by_activity()),
        ("by ID us", SessionQuery::by_id()),
        ("by creation us", SessionQuery::by_creation()),
    ];
    for (name, query) in orders {
        let mut next = query.limit(PAGE);
        let mut took = Vec::new();
        for _ in 0..PAGES.min(sessions / PAGE as u32) {
            let began = Instant::now();
            let page = log.sessions(next).expect("a page");
            took.push(micros(began.elapsed()));
            assert_eq!(page.items.len(), PAGE, "a page is full");
            match page.next_page() {
                Some(after) => next = after,
                None => break,
            }
        }
        figures.insert(name.into(), percentile(&mut took, 0.5));
    }
    figures.insert("rss MB of pages".into(), peak_rss_mb());
    expire(&ours, sessions, &ahead, task, &mut figures);
    figures
}

fn expire(ours: &Ours, sessions: u32, ahead: &AtomicU64, task: Task<'_>, figures: &mut Figures) {
    let log = ours.log();
    let busy = Busy::of(ours, sessions);
    let quiet = busy.rate(task.seconds.max(LOADED));
    ahead.store(2 * IDLE.as_secs(), Relaxed);
    // Sessions are looked at once a minute.
    while log.session(ours.session(0)).is_ok() {
        pause(POLL);
    }
    let (began, before) = (Instant::now(), busy.appended());
    let stop = AtomicBool::new(false);
    let mut expired = Duration::ZERO;
    std::thread::scope(|scope| {
        let appends = scope.spawn(|| busy.until(|| stop.load(Relaxed)));
        // Each is looked at until it is gone.
        for session in 0..sessions {
            while log.session(ours.session(session)).is_ok() {
                pause(POLL);
            }
        }
        expired = began.elapsed();
        stop.store(true, Relaxed);
        appends.join().expect("the appends end");
    });
    let rate = (busy.appended() - before) as f64 / expired.as_secs_f64();
    figures.insert(
        "expired/s".into(),
        f64::from(sessions) / expired.as_secs_f64(),
    );
    figures.insert("kept rate".into(), rate / quiet);
    figures.insert("rss MB".into(), peak_rss_mb());
    let disk = disk_bytes(task.folder);
    ours.settle();
    log.compact(|_progress| std::ops::ControlFlow::Continue(()))
        .expect("erasing ends");
    figures.insert("disk MB".into(), disk / 1e6);
    figures.insert("disk MB after".into(), disk_bytes(task.folder) / 1e6);
}

/// Appends to sessions of their own, by as many threads.
struct Busy<'a> {
    ours: &'a Ours,
    /// The first of the sessions.
    from: u32,
    appended: AtomicU64,
}

impl<'a> Busy<'a> {
    fn of(ours: &'a Ours, from: u32) -> Self {
        Self {
            ours,
            from,
            appended: AtomicU64::new(0),
        }
    }

    fn appended(&self) -> u64 {
        self.appended.load(Relaxed)
    }

    fn until(&self, is_over: impl Fn() -> bool + Sync) {
        std::thread::scope(|scope| {
            for session in self.from..self.from + WRITERS {
                let is_over = &is_over;
                scope.spawn(move || {
                    while !is_over() {
                        self.ours.append(session, SMALL);
                        self.appended.fetch_add(1, Relaxed);
                    }
                });
            }
        });
    }

    /// Appends for some time. Returns the appends per second.
    fn rate(&self, seconds: f64) -> f64 {
        let (began, before) = (Instant::now(), self.appended());
        self.until(|| began.elapsed().as_secs_f64() >= seconds);
        (self.appended() - before) as f64 / began.elapsed().as_secs_f64()
    }
}

fn open(task: Task<'_>, sessions: u32) -> Open<'_> {
    Open {
        folder: task.folder,
        sessions,
        ids: Ids::Unused,
    }
}

fn time(what: impl FnOnce()) -> f64 {
    let began = Instant::now();
    what();
    micros(began.elapsed())
}
