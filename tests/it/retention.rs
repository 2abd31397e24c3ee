//! Sessions and events that are removed by themselves, by the clock that is given.

use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use sessionlog::{
    Change, Delete, Error, Fork, NewSession, Options, PageRequest, Retention, SessionId,
    SessionLog, SessionPatch, StreamItem,
};

use crate::support::{
    OpenIn, append_notes, assert_error, embedded_alone, eventually, folder, note, notes,
    on_postgres, open, paths_below, read_all, seal_once, seqs, session, small_files,
};

const SECOND: u64 = 1_000;

/// A clock that a test moves.
#[derive(Clone)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_800_000_000_000)))
    }

    fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }

    fn options(&self) -> Options {
        let ms = Arc::clone(&self.0);
        let now = move || UNIX_EPOCH + Duration::from_millis(ms.load(Ordering::Relaxed));
        Options::new().clock(now)
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn is_there(log: &SessionLog, id: &SessionId) -> bool {
    log.head(id).is_ok()
}

fn first(log: &SessionLog, id: &SessionId) -> u64 {
    log.head(id).unwrap().first
}

#[test]
fn an_idle_session_is_deleted_and_an_active_or_held_one_is_not() {
    let (dir, clock) = (folder(), Clock::new());
    // The clock stands, so that only the test decides when a session is idle. How often it is
    // looked at depends on real time.
    let options = || clock.options().retention(Retention::new().idle(seconds(1)));
    let log = options().open_in(&dir).unwrap();
    let (idle, active, held) = (session("idle"), session("active"), session("held"));
    for id in [&idle, &active, &held] {
        append_notes(&log, id, "n", 2);
    }
    log.set_metadata(&held, SessionPatch::new().hold()).unwrap();
    clock.advance(SECOND);
    append_notes(&log, &active, "n", 1);
    clock.advance(1);
    eventually("the idle session is deleted", || !is_there(&log, &idle));
    assert!(is_there(&log, &active) && is_there(&log, &held));
    let reason = log
        .feed()
        .unwrap()
        .until_tail()
        .find_map(|item| match item.unwrap() {
            StreamItem::Change(change) => match change.change {
                Change::Deleted { reason } => reason,
                _ => None,
            },
            _ => None,
        });
    assert_eq!(reason.as_deref(), Some("retention"));
    log.close().unwrap();
    clock.advance(SECOND);
    let log = options().open_in(&dir).unwrap();
    eventually("also after it was opened again", || {
        !is_there(&log, &active)
    });
    assert!(is_there(&log, &held));
    log.set_metadata(&held, SessionPatch::new().release())
        .unwrap();
    eventually("a session that is released is deleted", || {
        !is_there(&log, &held)
    });
}

#[test]
fn events_that_are_too_old_are_trimmed() {
    let (dir, clock) = (folder(), Clock::new());
    let log = clock
        .options()
        .retention(Retention::new().max_age(seconds(1)))
        .open_in(&dir)
        .unwrap();
    let id = session("s");
    for nth in 0..10 {
        append_notes(&log, &id, &nth.to_string(), 1);
        clock.advance(100);
    }
    assert_eq!(first(&log, &id), 1);
    clock.advance(250);
    eventually("three are gone", || first(&log, &id) == 4);
    assert_eq!(seqs(&read_all(&log, &id)), [4, 5, 6, 7, 8, 9, 10]);
    clock.advance(10 * SECOND);
    eventually("all are gone", || first(&log, &id) == 11);
    assert!(read_all(&log, &id).is_empty());
    assert_eq!(append_notes(&log, &id, "n", 1)[0].seq, 11);
}

#[test]
fn a_session_keeps_so_many_events_and_bytes() {
    let (dir, clock) = (folder(), Clock::new());
    let log = clock.options().open_in(&dir).unwrap();
    let (some, few) = (session("some"), session("few"));
    for id in [&some, &few] {
        for nth in 0..10 {
            append_notes(&log, id, &nth.to_string(), 1);
        }
    }
    let each = log.session(&few).unwrap().bytes / 10;
    let own = |retention| SessionPatch::new().retention(retention);
    log.set_metadata(&some, own(Retention::new().max_events(4)))
        .unwrap();
    log.set_metadata(&few, own(Retention::new().max_bytes(each * 2 + 1)))
        .unwrap();
    eventually("both are trimmed", || {
        first(&log, &some) == 7 && first(&log, &few) == 9
    });
    assert_error!(
        log.set_metadata(&few, own(Retention::new().max_events(0))),
        Error::Invalid { .. }
    );
}

#[test]
fn a_plan_says_what_would_go_and_removes_nothing() {
    let (dir, clock) = (folder(), Clock::new());
    let log = clock.options().open_in(&dir).unwrap();
    for nth in 0..5 {
        append_notes(&log, &session(&nth.to_string()), "n", 3);
        clock.advance(SECOND);
    }
    let plan = log.plan(Retention::new().idle(seconds(3))).unwrap();
    assert_eq!((plan.sessions_deleted, plan.events), (2, 6));
    let plan = log.plan(Retention::new().max_events(1)).unwrap();
    assert_eq!((plan.sessions_trimmed, plan.events), (5, 10));
    assert!((0..5).all(|nth| first(&log, &session(&nth.to_string())) == 1));
    assert_error!(
        log.plan(Retention::new().max_events(0)),
        Error::Invalid { .. }
    );
}

#[test]
fn many_idle_sessions_are_deleted_while_others_are_appended_to() {
    let (dir, clock) = (folder(), Clock::new());
    let log = clock
        .options()
        .retention(Retention::new().idle(seconds(1)))
        .open_in(&dir)
        .unwrap();
    // Over a network each takes as long as a hundred in memory.
    let count = if on_postgres() { 300 } else { 2_000 };
    let names: Vec<SessionId> = (0..count).map(|nth| session(&format!("s{nth}"))).collect();
    for id in &names {
        log.append(id, note("n")).unwrap();
    }
    clock.advance(2 * SECOND);
    let busy = session("busy");
    let mut appended = 0;
    eventually("all are deleted", || {
        append_notes(&log, &busy, "n", 1);
        appended += 1;
        names.iter().all(|id| !is_there(&log, id))
    });
    assert_eq!(log.head(&busy).unwrap().last, appended);
}

/// Whole segments go without a look at what they held, so it does not even have to be readable.
#[test]
fn the_events_of_a_segment_whose_sessions_are_all_gone_are_not_read() {
    embedded_alone!("it damages a file");
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let (gone, also_gone, kept) = (session("a"), session("b"), session("c"));
    log.create(&also_gone, NewSession::new().title("b"))
        .unwrap();
    seal_once(&log, &gone);
    let segment = paths_below(&dir.path().join("segments")).pop().unwrap();
    append_notes(&log, &kept, "kept", 3);
    log.delete(&gone, Delete::new()).unwrap();
    log.delete(&also_gone, Delete::new()).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[4096..16_384].fill(0xFF);
    fs::write(&segment, bytes).unwrap();
    let done = log.compact(|_progress| ControlFlow::Continue(())).unwrap();
    assert!(done.bytes_after < done.bytes_before, "{done:?}");
    assert!(!segment.exists());
    log.close().unwrap();
    let log = open(&dir);
    assert_eq!(log.head(&kept).unwrap().last, 3);
    let again = log.append(&gone, notes("again", 1)).unwrap();
    assert_eq!(
        (again.events[0].seq, log.session(&gone).unwrap().generation),
        (1, 2)
    );
}

/// A fork keeps what it shares, though the session that it was appended to is gone.
#[test]
fn the_events_of_a_segment_that_a_fork_shares_are_kept() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let (parent, child) = (session("a"), session("b"));
    let events = seal_once(&log, &parent);
    log.fork(Fork::new(&parent).at(2), &child).unwrap();
    log.delete(&parent, Delete::new()).unwrap();
    log.compact(|_progress| ControlFlow::Continue(())).unwrap();
    let shared = log.list(&child, PageRequest::new()).unwrap().items;
    for (shared, event) in shared.iter().zip(&events) {
        assert_eq!((shared.seq, &shared.data), (event.seq, &event.data));
    }
    assert_eq!(shared.len(), 2);
}
