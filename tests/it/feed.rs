//! The feed: every session's events in commit order, from any event on, live.

use std::thread;

use sessionlog::{After, Event, EventId, SessionLog, StreamItem};

use crate::support::{
    DEADLINE, append_notes, assert_dense, assert_rising, drain, feed_all, folder, notes, of_session, open, read_all, seal_once,
    session, small_files, take_events,
};

#[test]
fn the_feed_gives_every_session_in_commit_order_from_any_event() {
    let dir = folder();
    let log = small_files().open(dir.path()).unwrap();
    let sessions = ["c", "a", "b"].map(session);
    let mut all = Vec::new();
    let append = |log: &SessionLog, all: &mut Vec<Event>| {
        all.extend((0..12).flat_map(|n| log.append(&sessions[n * 5 % 3], notes(&n.to_string(), n % 3 + 1)).unwrap().events));
    };
    let check = |log: &SessionLog, all: &[Event]| {
        assert_rising(all);
        assert_eq!(feed_all(log), all);
        for n in (0..all.len()).step_by(7).chain([all.len() - 1]) {
            let mut rest = log.feed(After(all[n].id)).unwrap().until_tail();
            assert_eq!(drain(&mut rest), all[n + 1..]);
        }
        for id in &sessions {
            assert_eq!(of_session(all, id), read_all(log, id));
        }
    };
    append(&log, &mut all);
    check(&log, &all);
    for _ in 0..2 {
        all.extend(seal_once(&dir, &log, &session("filler")));
        append(&log, &mut all);
        check(&log, &all);
    }
    log.close().unwrap();
    let log = small_files().open(dir.path()).unwrap();
    check(&log, &all);
    let mut live = log.feed(After(all.last().unwrap().id)).unwrap();
    let at = all.len();
    append(&log, &mut all);
    assert_eq!(take_events(&mut live, all.len() - at), all[at..]);
}

#[test]
fn the_feed_of_an_empty_log_waits_and_is_gapless_under_concurrent_writers() {
    let dir = folder();
    let log = open(&dir);
    let mut feed = log.feed(None).unwrap();
    thread::scope(|scope| {
        for writer in 0..4 {
            let log = &log;
            scope.spawn(move || append_notes(log, &session(&format!("s{}", writer % 2)), &writer.to_string(), 50));
        }
        let events = take_events(&mut feed, 200);
        assert_rising(&events);
        for id in ["s0", "s1"].map(session) {
            assert_dense(&of_session(&events, &id), 1..=100);
        }
    });
    assert_eq!(feed.next_timeout(DEADLINE).unwrap().unwrap(), StreamItem::CaughtUp);
}

#[test]
fn the_feed_goes_on_behind_any_place_whether_or_not_an_event_is_there() {
    let dir = folder();
    let log = small_files().open(dir.path()).unwrap();
    let mut all = append_notes(&log, &session("a"), "n", 5);
    all.extend(seal_once(&dir, &log, &session("b")));
    all.extend(append_notes(&log, &session("a"), "m", 5));
    let places = all.iter().flat_map(|event| [event.id.to_u128() - 1, event.id.to_u128(), event.id.to_u128() + 1]);
    for place in places.chain([0, u128::MAX]).map(EventId::from_u128) {
        let expected: Vec<_> = all.iter().filter(|event| event.id > place).cloned().collect();
        assert_eq!(drain(&mut log.feed(After(place)).unwrap().until_tail()), expected, "after {place}");
    }
}
