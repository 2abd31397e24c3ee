//! The feed: every session's events in commit order, from any event on, live.

use std::thread;

use sessionlog::{Error, Event, EventId, PageRequest, SessionLog, StartAt, StreamItem};

use crate::support::{
    DEADLINE, OpenIn, append_notes, assert_dense, assert_error, assert_rising, copy_folder, drain,
    embedded_alone, feed_all, folder, notes, of_session, on_postgres, open, read_all, seal_once,
    session, small_files, take_events,
};

#[test]
fn the_feed_gives_every_session_in_commit_order_from_any_event() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let sessions = ["c", "a", "b"].map(session);
    let mut all = Vec::new();
    let append = |log: &SessionLog, all: &mut Vec<Event>| {
        all.extend((0..12).flat_map(|n| {
            log.append(&sessions[n * 5 % 3], notes(&n.to_string(), n % 3 + 1))
                .unwrap()
                .events
        }));
    };
    let check = |log: &SessionLog, all: &[Event]| {
        assert_rising(all);
        assert_eq!(feed_all(log), all);
        for n in (0..all.len()).step_by(7).chain([all.len() - 1]) {
            let mut rest = log.feed_after(all[n].id).unwrap().until_tail();
            assert_eq!(drain(&mut rest), all[n + 1..]);
        }
        for id in &sessions {
            assert_eq!(of_session(all, id), read_all(log, id));
        }
    };
    append(&log, &mut all);
    check(&log, &all);
    for _ in 0..2 {
        all.extend(seal_once(&log, &session("filler")));
        append(&log, &mut all);
        check(&log, &all);
    }
    log.close().unwrap();
    let log = small_files().open_in(&dir).unwrap();
    check(&log, &all);
    let mut live = log.feed_after(all.last().unwrap().id).unwrap();
    let at = all.len();
    append(&log, &mut all);
    assert_eq!(take_events(&mut live, all.len() - at), all[at..]);
}

#[test]
fn the_feed_of_an_empty_log_waits_and_is_gapless_under_concurrent_writers() {
    let dir = folder();
    let log = open(&dir);
    let mut feed = log.feed().unwrap();
    thread::scope(|scope| {
        for writer in 0..4 {
            let log = &log;
            scope.spawn(move || {
                append_notes(
                    log,
                    &session(&format!("s{}", writer % 2)),
                    &writer.to_string(),
                    50,
                )
            });
        }
        let events = take_events(&mut feed, 200);
        assert_rising(&events);
        for id in ["s0", "s1"].map(session) {
            assert_dense(&of_session(&events, &id), 1..=100);
        }
    });
    assert_eq!(feed.next_timeout(DEADLINE).unwrap(), StreamItem::CaughtUp);
}

/// An ID that the store does not have, such as one that was seen before a restore.
#[test]
fn the_feed_goes_on_behind_each_event_and_refuses_an_id_that_no_event_has() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let nil = EventId::from_u128(0);
    assert_error!(log.feed_after(nil), Error::UnknownEvent { id } if *id == nil);
    let mut all = log.append(&session("a"), notes("n", 5)).unwrap().events;
    check_places(&log, &all);
    all.extend(seal_once(&log, &session("b")));
    all.extend(log.append(&session("a"), notes("m", 5)).unwrap().events);
    check_places(&log, &all);
    log.close().unwrap();
    check_places(&small_files().open_in(&dir).unwrap(), &all);
    if !on_postgres() {
        check_places(&small_files().open_read_only(dir.path()).unwrap(), &all);
    }
}

/// Reads on after every event, also in the middle of a batch and at the end of the store, and from
/// the IDs next to each.
fn check_places(log: &SessionLog, all: &[Event]) {
    for (nth, event) in all.iter().enumerate() {
        assert_eq!(
            drain(&mut log.feed_after(event.id).unwrap().until_tail()),
            all[nth + 1..],
            "after {}",
            event.id
        );
    }
    let beside = all
        .iter()
        .flat_map(|event| [event.id.to_u128() - 1, event.id.to_u128() + 1])
        .map(EventId::from_u128);
    let unknown = beside.filter(|id| all.iter().all(|event| event.id != *id));
    for place in unknown.chain([0, u128::MAX].map(EventId::from_u128)) {
        assert_error!(log.feed_after(place), Error::UnknownEvent { id } if *id == place);
    }
}

#[test]
fn after_a_restore_from_an_older_copy_every_reader_that_saw_more_is_refused() {
    embedded_alone!("it copies a folder");
    let (dir, copy) = (folder(), folder());
    let log = open(&dir);
    let id = session("s");
    let kept = append_notes(&log, &id, "kept", 3);
    log.close().unwrap();
    copy_folder(dir.path(), copy.path());
    let seen = append_notes(&open(&dir), &id, "lost", 3).pop().unwrap();
    let restored = open(&copy);
    let other = append_notes(&restored, &id, "other", 3);
    assert_error!(restored.feed_after(seen.id), Error::UnknownEvent { id } if *id == seen.id);
    assert_error!(
        restored.list(&id, PageRequest::new().after(seen.id)),
        Error::Cursor { .. }
    );
    assert_error!(
        restored.stream(&id, StartAt::After(seen.id.into())),
        Error::Cursor { .. }
    );
    let place = kept.last().unwrap().id;
    assert_eq!(
        drain(&mut restored.feed_after(place).unwrap().until_tail()),
        other
    );
}
