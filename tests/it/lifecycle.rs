//! A session's life besides appends: create, describe, close, fork, trim, redact, delete.

use std::ops::ControlFlow;

use serde_json::json;
use sessionlog::{
    Batch, Change, CursorProblem, Delete, Error, Event, EventStream, Expected, Fork, Head,
    MessageStatus, NewEvent, NewSession, Options, PageRequest, Producer, SessionId, SessionLog,
    SessionPatch, SessionQuery, StartAt, StreamItem,
};

use crate::support::{
    OpenIn, append_notes, assert_error, eventually, eventually_in_files, folder, note, notes,
    on_postgres, open, read_all, seqs, session, small_files,
};

/// Runs a check on a log, again after it was sealed, again after all was merged, and again after
/// it was opened anew.
fn at_every_place(prepare: impl Fn(&SessionLog), check: impl Fn(&SessionLog)) {
    let dir = folder();
    let log = open(&dir);
    prepare(&log);
    check(&log);
    log.close().unwrap();
    let log = open(&dir);
    check(&log);
    drop(log);
    let log = small_files().open_in(&dir).unwrap();
    fill(&log);
    check(&log);
    log.close().unwrap();
    let log = open(&dir);
    check(&log);
}

/// Appends to another session until all that was there is in a segment.
fn fill(log: &SessionLog) {
    if on_postgres() {
        return;
    }
    let filler = session("zz-filler");
    let before = log.stats().segments;
    let data = vec![b'x'; 256 * 1024];
    while log.stats().segments < before + 9 {
        log.append(&filler, NewEvent::new("fill", data.clone()))
            .unwrap();
        if log.stats().merges > 0 {
            break;
        }
    }
    eventually("the segments are merged", || log.stats().merges > 0);
}

fn unknown(log: &SessionLog, id: &SessionId) {
    assert_error!(log.head(id), Error::UnknownSession { .. });
    assert_error!(log.session(id), Error::UnknownSession { .. });
    assert_error!(
        log.list(id, PageRequest::new()),
        Error::UnknownSession { .. }
    );
    assert_error!(
        log.stream(id, StartAt::Beginning).map(|_| ()),
        Error::UnknownSession { .. }
    );
}

#[test]
fn a_created_session_is_empty_and_stays_so() {
    let id = session("s");
    at_every_place(
        |log| {
            let new = NewSession::new().title("T").metadata(json!({"a": "b"}));
            log.create(&id, new).unwrap();
        },
        |log| {
            let info = log.session(&id).unwrap();
            assert_eq!(
                (info.first, info.last, info.events, info.bytes),
                (1, 0, 0, 0)
            );
            assert_eq!(info.title.as_deref(), Some("T"));
            assert_eq!(json!(info.metadata), json!({"a": "b"}));
            let head: Head = log.head(&id).unwrap();
            assert_eq!((head.last, head.last_id), (0, None));
            let page = log.list(&id, PageRequest::new()).unwrap();
            assert!(page.items.is_empty() && !page.has_more);
            let mut stream = log.stream(&id, StartAt::Beginning).unwrap();
            assert_eq!(stream.next().unwrap().unwrap(), StreamItem::CaughtUp);
            assert_error!(
                log.create(&id, NewSession::new()),
                Error::SessionExists { session } if session.id == id
            );
            let listed = log.sessions(SessionQuery::by_activity()).unwrap();
            assert!(listed.items.contains(&info));
        },
    );
}

#[test]
fn an_empty_session_has_no_event_and_is_not_absent() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    log.create(&id, NewSession::new()).unwrap();
    assert_error!(
        log.append(&id, note_if(Expected::Absent)),
        Error::ExpectedMismatch { .. }
    );
    log.append(&id, note_if(Expected::NoSession)).unwrap();
    log.append(&session("t"), note_if(Expected::Absent))
        .unwrap();
}

fn note_if(expected: Expected) -> Batch {
    notes("n", 1).expected(expected)
}

#[test]
fn metadata_is_merged_and_read_back() {
    let id = session("s");
    at_every_place(
        |log| {
            log.append(
                &id,
                notes("n", 1)
                    .title("First")
                    .metadata(json!({"a": 1, "b": {"c": 2}})),
            )
            .unwrap();
            log.set_metadata(&id, json!({"a": null, "b": {"d": 3}}))
                .unwrap();
            log.set_metadata(&id, SessionPatch::new().title("Second"))
                .unwrap();
        },
        |log| {
            let info = log.session(&id).unwrap();
            assert_eq!(info.title.as_deref(), Some("Second"));
            assert_eq!(json!(info.metadata), json!({"b": {"c": 2, "d": 3}}));
            assert_eq!(info.events, 1);
            let query = |agent: &str| SessionQuery::by_id().metadata("agent", agent);
            assert!(log.sessions(query("a1")).unwrap().items.is_empty());
        },
    );
}

#[test]
fn metadata_that_is_too_large_changes_nothing() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    assert_error!(
        log.set_metadata(&id, json!({})),
        Error::UnknownSession { .. }
    );
    log.create(&id, NewSession::new()).unwrap();
    let half = "x".repeat(9_000);
    let before = log.set_metadata(&id, json!({"a": half})).unwrap();
    assert_error!(
        log.set_metadata(&id, json!({"b": half})),
        Error::TooLarge { .. }
    );
    assert_error!(log.set_metadata(&id, json!([1])), Error::Invalid { .. });
    assert_eq!(log.session(&id).unwrap(), before);
    // The same patch again changes nothing.
    assert_eq!(log.set_metadata(&id, json!({"a": half})).unwrap(), before);
}

#[test]
fn a_closed_session_takes_no_event_and_replays_what_it_took() {
    let id = session("s");
    let keyed = || notes("k", 2).idempotency_key("k1");
    at_every_place(
        |log| {
            log.append(&id, keyed()).unwrap();
            let made = notes("p", 1).producer(Producer::new("w").seq(0));
            log.append(&id, made).unwrap();
            let ack = log.append(&id, Batch::new().closing()).unwrap();
            assert!(ack.events.is_empty());
        },
        |log| {
            assert!(log.session(&id).unwrap().closed);
            assert_error!(
                log.append(&id, note("n")),
                Error::SessionClosed { last: 3, .. }
            );
            let again = log.append(&id, keyed()).unwrap();
            assert!(again.replayed && seqs(&again.events) == [1, 2]);
            let again = log
                .append(&id, notes("p", 1).producer(Producer::new("w").seq(0)))
                .unwrap();
            assert!(again.replayed && seqs(&again.events) == [3]);
            log.close_session(&id).unwrap();
            let items: Vec<_> = log.stream(&id, StartAt::Beginning).unwrap().collect();
            assert!(matches!(items.last(), Some(Ok(StreamItem::Closed))));
            assert_eq!(items.len(), 5);
        },
    );
}

#[test]
fn a_reopened_session_takes_events_again() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "a", 1);
    let mut stream = log.stream(&id, StartAt::Now).unwrap();
    assert_eq!(stream.next().unwrap().unwrap(), StreamItem::CaughtUp);
    log.close_session(&id).unwrap();
    assert_eq!(stream.next().unwrap().unwrap(), StreamItem::Closed);
    assert!(stream.next().is_none());
    assert!(!log.reopen(&id).unwrap().closed);
    assert_eq!(append_notes(&log, &id, "b", 1)[0].seq, 2);
}

#[test]
fn a_deleted_session_is_unknown_and_begins_anew() {
    let id = session("s");
    let first = std::cell::RefCell::new(Vec::<Event>::new());
    at_every_place(
        |log| {
            let ack = log
                .append(&id, Batch::new().user_message("hello").idempotency_key("k"))
                .unwrap();
            first.borrow_mut().extend(ack.events);
            let removed = log.delete(&id, Delete::new().reason("asked")).unwrap();
            assert_eq!(removed.events, 1);
        },
        |log| {
            unknown(log, &id);
            let old = &first.borrow()[0];
            assert_error!(log.event(old.id), Error::UnknownEvent { .. });
            assert_error!(
                log.message(old.message_id.unwrap()),
                Error::UnknownMessage { .. }
            );
            assert_error!(log.delete(&id, Delete::new()), Error::UnknownSession { .. });
            let all: Vec<_> = log
                .feed()
                .unwrap()
                .until_tail()
                .map(Result::unwrap)
                .collect();
            assert!(all.iter().all(|item| match item {
                StreamItem::Event(event) => event.session_id != id,
                StreamItem::Change(change) =>
                    change.session_id != id || matches!(change.change, Change::Deleted { .. }),
                _ => true,
            }));
            assert!(all.iter().any(|item| matches!(
                item,
                StreamItem::Change(change) if matches!(
                    &change.change,
                    Change::Deleted { reason: Some(reason) } if reason == "asked"
                )
            )));
            let listed = log.sessions(SessionQuery::by_id()).unwrap().items;
            assert!(listed.iter().all(|listed| listed.id != id));
        },
    );
}

#[test]
fn the_next_generation_has_seqs_and_keys_of_its_own() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let keyed = || notes("k", 1).idempotency_key("k");
    let first = log.append(&id, keyed()).unwrap();
    let mut stream = log.stream(&id, StartAt::Beginning).unwrap();
    assert!(matches!(stream.next(), Some(Ok(StreamItem::Event(_)))));
    log.delete(&id, Delete::new()).unwrap();
    let second = log.append(&id, keyed()).unwrap();
    assert!(!second.replayed && second.first == 1);
    assert!(second.events[0].id > first.events[0].id);
    assert_eq!(log.session(&id).unwrap().generation, 2);
    assert_eq!(read_all(&log, &id), second.events);
    let rest: Vec<_> = stream.map(Result::unwrap).collect();
    assert_eq!(rest.last(), Some(&StreamItem::Deleted));
}

#[test]
fn a_session_on_hold_is_not_deleted() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "a", 1);
    log.set_metadata(&id, SessionPatch::new().hold()).unwrap();
    assert_error!(log.delete(&id, Delete::new()), Error::Held { .. });
    log.set_metadata(&id, SessionPatch::new().release())
        .unwrap();
    log.delete(&id, Delete::new()).unwrap();
}

#[test]
fn a_session_with_an_open_turn_is_deleted_only_without_the_condition() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let turn = log
        .append(&id, Batch::new().user_message("?"))
        .unwrap()
        .events[0]
        .message_id
        .unwrap();
    assert_error!(
        log.delete(&id, Delete::new().unless_open()),
        Error::TurnOpen { message, .. } if *message == turn
    );
    let done = NewEvent::new("message.status_changed", r#"{"status":"completed"}"#);
    log.append(&id, done.in_turn(turn)).unwrap();
    log.delete(&id, Delete::new().unless_open()).unwrap();
}

#[test]
fn a_trimmed_session_begins_later() {
    let id = session("s");
    at_every_place(
        |log| {
            for nth in 0..10 {
                let key = format!("k{nth}");
                log.append(&id, notes(&key, 3).idempotency_key(&key))
                    .unwrap();
            }
            let removed = log.trim(&id, 12).unwrap();
            assert_eq!(removed.events, 11);
            assert!(removed.bytes > 0);
            assert_eq!(log.trim(&id, 5).unwrap().events, 0);
        },
        |log| {
            let head = log.head(&id).unwrap();
            assert_eq!((head.first, head.last), (12, 30));
            let expected: Vec<u64> = (12..=30).collect();
            assert_eq!(seqs(&read_all(log, &id)), expected);
            let trimmed = |after| log.list(&id, PageRequest::new().after(after)).map(|_| ());
            trimmed(11).unwrap();
            assert_error!(
                trimmed(10),
                Error::Cursor {
                    problem: CursorProblem::Trimmed { first: 12 },
                    ..
                }
            );
            let info = log.session(&id).unwrap();
            assert_eq!(info.events, 19);
            let all = log.list(&id, PageRequest::new()).unwrap().items;
            assert_eq!(seqs(&all), expected);
            // The key of a batch of which a part was trimmed is forgotten.
            let ack = log
                .append(&id, notes("k5", 3).idempotency_key("k5"))
                .unwrap();
            assert!(ack.replayed && ack.first == 16);
        },
    );
}

/// The batch that had the key before is not gone: a fork keeps it.
#[test]
fn a_key_that_was_trimmed_and_used_again_is_known_again() {
    let (id, fork) = (session("s"), session("fork"));
    let keyed = || notes("k", 1).idempotency_key("k");
    at_every_place(
        |log| {
            assert_eq!(log.append(&id, keyed()).unwrap().first, 1);
            log.append(&id, notes("other", 1)).unwrap();
            log.fork(Fork::new(&id).at(2), &fork).unwrap();
            log.trim(&id, 2).unwrap();
            let again = log.append(&id, keyed()).unwrap();
            assert!(!again.replayed && again.first == 3);
        },
        |log| {
            let retry = log.append(&id, keyed()).unwrap();
            assert!(retry.replayed && retry.first == 3, "{retry:?}");
            assert_eq!(seqs(&read_all(log, &fork)), [1, 2]);
        },
    );
}

/// Many use it at once, so that some of them share a group.
#[test]
fn a_key_that_was_trimmed_is_used_again_by_one_alone() {
    let dir = folder();
    let log = open(&dir);
    for round in 0..20 {
        let id = session(&format!("s{round}"));
        let keyed = || notes("k", 1).idempotency_key("k");
        log.append(&id, keyed()).unwrap();
        log.append(&id, notes("other", 1)).unwrap();
        log.trim(&id, 2).unwrap();
        let stored = std::thread::scope(|threads| {
            let append = || log.append(&id, keyed()).unwrap();
            let acks: Vec<_> = (0..8).map(|_| threads.spawn(append)).collect();
            let acks = acks.into_iter().map(|ack| ack.join().unwrap());
            acks.filter(|ack| !ack.replayed).count()
        });
        assert_eq!((stored, log.head(&id).unwrap().last), (1, 3));
    }
}

#[test]
fn all_events_of_a_session_can_be_trimmed() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let events = append_notes(&log, &id, "a", 3);
    assert_error!(log.trim(&id, 5), Error::Cursor { .. });
    log.trim(&id, 4).unwrap();
    let info = log.session(&id).unwrap();
    assert_eq!(
        (info.first, info.last, info.events, info.bytes),
        (4, 3, 0, 0)
    );
    assert!(read_all(&log, &id).is_empty());
    assert_eq!(log.trim(&id, events[1].id).unwrap().events, 0);
    assert_eq!(append_notes(&log, &id, "b", 1)[0].seq, 4);
}

#[test]
fn a_redacted_event_keeps_its_place() {
    let id = session("s");
    let kept = std::cell::RefCell::new(Vec::<Event>::new());
    at_every_place(
        |log| {
            let ack = log
                .append(&id, notes("n", 2).event(NewEvent::new("secret", "a word")))
                .unwrap();
            let shown = log.redact(ack.events[2].id, "gdpr").unwrap();
            assert!(shown.redacted && shown.data.is_empty());
            log.redact(ack.events[2].id, "again").unwrap();
            kept.borrow_mut().extend(ack.events);
        },
        |log| {
            let given = kept.borrow();
            let read = read_all(log, &id);
            assert_eq!(read[..2], given[..2]);
            let (shown, was) = (&read[2], &given[2]);
            assert!(shown.redacted && shown.data.is_empty());
            assert_eq!(
                (shown.id, shown.seq, shown.created_at),
                (was.id, was.seq, was.created_at)
            );
            assert_eq!(shown.event_type, was.event_type);
            assert_eq!(log.event(was.id).unwrap(), *shown);
            let fed = log
                .feed()
                .unwrap()
                .until_tail()
                .events()
                .map(Result::unwrap);
            assert!(fed.into_iter().any(|event| event == *shown));
        },
    );
}

#[test]
fn a_fork_shares_what_came_before_it() {
    let (parent, child, grandchild) = (session("p"), session("c"), session("g"));
    at_every_place(
        |log| {
            append_notes(log, &parent, "p", 5);
            log.set_metadata(&parent, json!({"a": "b"})).unwrap();
            let info = log.fork(Fork::new(&parent).at(3), &child).unwrap();
            assert_eq!((info.first, info.last), (1, 3));
            append_notes(log, &child, "c", 2);
            log.fork(Fork::new(&child).before(5).title("G"), &grandchild)
                .unwrap();
            append_notes(log, &grandchild, "g", 2);
            append_notes(log, &parent, "later", 2);
        },
        |log| {
            let of = |id: &SessionId| -> Vec<(u64, String)> {
                let text = |event: Event| String::from_utf8(event.data.to_vec()).unwrap();
                let events = read_all(log, id).into_iter();
                events.map(|event| (event.seq, text(event))).collect()
            };
            let (p, c, g) = (of(&parent), of(&child), of(&grandchild));
            assert_eq!((p.len(), c.len(), g.len()), (7, 5, 6));
            assert_eq!(c[..3], p[..3]);
            assert_eq!(g[..4], c[..4]);
            assert_ne!(c[3], p[3]);
            let ids = |id: &SessionId| read_all(log, id).iter().map(|e| e.id).collect::<Vec<_>>();
            assert_eq!(ids(&grandchild)[..3], ids(&parent)[..3]);
            assert!(
                read_all(log, &child)
                    .iter()
                    .all(|event| event.session_id == child)
            );
            assert_eq!(
                json!(log.session(&child).unwrap().metadata),
                json!({"a": "b"})
            );
            assert_eq!(
                log.session(&grandchild).unwrap().title.as_deref(),
                Some("G")
            );
            let forks = log.forks(&parent).unwrap();
            assert_eq!(forks.len(), 2, "the child and its child share events");
            // A cursor of a shared event fits.
            let third = ids(&parent)[2];
            let page = log
                .list(&grandchild, PageRequest::new().after(third))
                .unwrap();
            assert_eq!(seqs(&page.items), [4, 5, 6]);
        },
    );
}

#[test]
fn a_fork_keeps_what_its_parent_loses() {
    let (parent, child, trimmed) = (session("p"), session("c"), session("t"));
    let events = std::cell::RefCell::new(Vec::<Event>::new());
    at_every_place(
        |log| {
            events
                .borrow_mut()
                .extend(append_notes(log, &parent, "p", 6));
            log.fork(Fork::new(&parent).at(3), &child).unwrap();
            append_notes(log, &child, "c", 1);
            log.fork(Fork::new(&parent).at(6), &trimmed).unwrap();
            log.trim(&trimmed, 5).unwrap();
            log.delete(&parent, Delete::new()).unwrap();
            // What was shared can be redacted yet.
            log.redact(events.borrow()[1].id, "asked").unwrap();
        },
        |log| {
            unknown(log, &parent);
            let given = events.borrow();
            let read = read_all(log, &child);
            assert_eq!(read.len(), 4);
            assert_eq!(read[0].data, given[0].data);
            assert!(read[1].redacted && read[1].data.is_empty());
            assert_eq!(log.event(given[0].id).unwrap().session_id, child);
            // Nobody keeps the fourth event.
            assert_error!(log.event(given[3].id), Error::UnknownEvent { .. });
            assert_eq!(log.event(given[4].id).unwrap().session_id, trimmed);
            assert_eq!(seqs(&read_all(log, &trimmed)), [5, 6]);
        },
    );
}

#[test]
fn a_fork_that_does_not_fit_is_refused() {
    let dir = folder();
    let log = open(&dir);
    let (parent, child) = (session("p"), session("c"));
    assert_error!(
        log.fork(Fork::new(&parent), &child),
        Error::UnknownSession { .. }
    );
    append_notes(&log, &parent, "p", 6);
    assert_error!(
        log.fork(Fork::new(&parent).at(7), &child),
        Error::Cursor {
            problem: CursorProblem::BeyondTail { .. },
            ..
        }
    );
    log.trim(&parent, 4).unwrap();
    assert_error!(
        log.fork(Fork::new(&parent).at(2), &child),
        Error::Cursor {
            problem: CursorProblem::Trimmed { .. },
            ..
        }
    );
    assert_error!(
        log.fork(Fork::new(&parent), &parent),
        Error::SessionExists { .. }
    );
    unknown(&log, &child);
    log.fork(Fork::new(&parent), &child).unwrap();
    assert_error!(
        log.fork(Fork::new(&parent), &child),
        Error::SessionExists { .. }
    );
    assert_eq!(seqs(&read_all(&log, &child)), [4, 5, 6]);
}

#[test]
fn a_producer_lands_each_number_once_and_a_stale_one_is_fenced() {
    let id = session("s");
    let made = |epoch, seq| {
        notes(&format!("{epoch}-{seq}"), 1).producer(Producer::new("w").epoch(epoch).seq(seq))
    };
    at_every_place(
        |log| {
            assert_error!(
                log.append(&id, made(0, 1)),
                Error::ProducerGap {
                    expected: 0,
                    received: 1,
                    ..
                }
            );
            unknown(log, &id);
            for seq in 0..3 {
                assert!(!log.append(&id, made(0, seq)).unwrap().replayed);
            }
        },
        |log| {
            assert!(log.append(&id, made(0, 2)).unwrap().replayed);
            let early = log.append(&id, made(0, 0)).unwrap();
            assert!(early.replayed && early.events.is_empty());
            assert_error!(
                log.append(&id, made(0, 4)),
                Error::ProducerGap {
                    expected: 3,
                    received: 4,
                    ..
                }
            );
            assert_eq!(log.head(&id).unwrap().last, 3);
        },
    );
    let dir = folder();
    let log = open(&dir);
    log.append(&id, made(0, 0)).unwrap();
    let fence = Producer::new("w").epoch(2);
    log.append(&id, notes("f", 1).producer(fence)).unwrap();
    assert_error!(
        log.append(&id, made(0, 1)),
        Error::Fenced { current: 2, .. }
    );
    assert_error!(
        log.append(&id, made(3, 1)),
        Error::ProducerGap { expected: 0, .. }
    );
    log.append(&id, made(3, 0)).unwrap();
}

#[test]
fn a_batch_lands_only_if_nothing_excluded_came_in_between() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let call = |seq| {
        Batch::from(NewEvent::new("tool.call_requested", "{}")).expected(Expected::nothing_since(
            seq,
            ["user.interrupt", "user.message"],
        ))
    };
    log.append(&id, call(0)).unwrap();
    let interrupt = log
        .append(&id, NewEvent::new("user.interrupt", "{}"))
        .unwrap();
    append_notes(&log, &id, "n", 1);
    assert_error!(
        log.append(&id, call(1)),
        Error::ConditionFailed { seq: 2, event, .. } if *event == interrupt.events[0].id
    );
    log.append(&id, call(2)).unwrap();
    assert_eq!(log.head(&id).unwrap().last, 4);
    log.close().unwrap();
    let log = open(&dir);
    assert_error!(
        log.append(&id, call(1)),
        Error::ConditionFailed { seq: 2, .. }
    );
    log.append(&id, call(4)).unwrap();
}

#[test]
fn the_feed_yields_changes_in_commit_order() {
    let dir = folder();
    let log = open(&dir);
    let (s, f) = (session("s"), session("f"));
    log.create(&s, NewSession::new().title("T")).unwrap();
    let ack = log.append(&s, notes("n", 2).title("U")).unwrap();
    log.fork(Fork::new(&s).at(1), &f).unwrap();
    log.redact(ack.events[1].id, "r").unwrap();
    log.trim(&s, 2).unwrap();
    log.close_session(&s).unwrap();
    log.reopen(&s).unwrap();
    log.delete(&f, Delete::new()).unwrap();
    let items = log.feed().unwrap().until_tail();
    let names: Vec<String> = items
        .filter_map(|item| match item.unwrap() {
            StreamItem::Event(event) => Some(format!("{}", event.seq)),
            StreamItem::Change(change) => {
                let json = serde_json::to_value(&change.change).unwrap();
                Some(json["type"].as_str().unwrap().to_owned())
            }
            _ => None,
        })
        .collect();
    let expected = [
        "created",
        "described",
        "2",
        "described",
        "redacted",
        "trimmed",
        "closed",
        "reopened",
        "deleted",
    ];
    assert_eq!(names, expected);
}

/// Compacts, so that all so far is sealed and what was removed is gone.
fn compact(log: &SessionLog) {
    log.compact(|_| ControlFlow::Continue(())).unwrap();
}

#[test]
fn a_session_that_only_changed_keeps_its_place_by_activity() {
    let dir = folder();
    let log = open(&dir);
    let (older, newer) = (session("a"), session("b"));
    append_notes(&log, &older, "a", 1);
    append_notes(&log, &newer, "b", 1);
    compact(&log);
    // The next segment holds the change of the older session, and nothing of the newer.
    log.close_session(&older).unwrap();
    compact(&log);
    let listed = |query| -> Vec<SessionId> {
        let page = log.sessions(query).unwrap();
        page.items.into_iter().map(|info| info.id).collect()
    };
    let query = SessionQuery::by_activity();
    assert_eq!(listed(query.clone()), [newer.clone(), older.clone()]);
    assert_eq!(listed(query.reversed()), [older, newer]);
}

#[test]
fn a_fork_keeps_its_events_when_an_earlier_generation_is_sealed() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let (parent, child) = (session("p"), session("c"));
    let shared = append_notes(&log, &parent, "p", 2);
    append_notes(&log, &child, "c", 1);
    log.delete(&child, Delete::new()).unwrap();
    // The next events are in another journal file, which is sealed later.
    let (filler, data) = (session("zz-filler"), vec![b'x'; 1024 * 1024]);
    for _ in 0..4 {
        log.append(&filler, NewEvent::new("fill", data.clone()))
            .unwrap();
    }
    log.fork(Fork::new(&parent), &child).unwrap();
    log.delete(&parent, Delete::new()).unwrap();
    eventually_in_files("the first file is sealed", || log.stats().segments > 0);
    assert_eq!(log.event(shared[0].id).unwrap().session_id, child);
    compact(&log);
    assert_eq!(seqs(&read_all(&log, &child)), [1, 2]);
    assert_eq!(log.event(shared[1].id).unwrap().data, shared[1].data);
}

#[test]
fn a_fork_into_a_session_that_was_deleted_is_found_after_a_crash() {
    let dir = folder();
    let log = open(&dir);
    let (parent, child) = (session("p"), session("c"));
    append_notes(&log, &parent, "p", 3);
    append_notes(&log, &child, "c", 1);
    log.delete(&child, Delete::new()).unwrap();
    log.fork(Fork::new(&parent).at(2), &child).unwrap();
    append_notes(&log, &child, "d", 1);
    drop(log);
    let log = open(&dir);
    assert_eq!(seqs(&read_all(&log, &child)), [1, 2, 3]);
    assert_eq!(log.session(&child).unwrap().generation, 2);
}

#[test]
fn an_open_turn_is_found_behind_many_bytes_without_one() {
    let dir = folder();
    let log = Options::new()
        .event_bytes_max(64 * 1024)
        .scan_bytes_max(64 * 1024)
        .open_in(&dir)
        .unwrap();
    let id = session("s");
    log.append(&id, Batch::new().user_message("?")).unwrap();
    for _ in 0..4 {
        let large = NewEvent::new("note", vec![b'x'; 64 * 1024]);
        log.append(&id, large).unwrap();
    }
    assert_error!(
        log.delete(&id, Delete::new().unless_open()),
        Error::TurnOpen { .. }
    );
}

#[test]
fn the_metadata_of_a_fork_is_an_object() {
    let dir = folder();
    let log = open(&dir);
    let (parent, child) = (session("p"), session("c"));
    append_notes(&log, &parent, "p", 1);
    assert_error!(
        log.fork(Fork::new(&parent).metadata(json!([1])), &child),
        Error::Invalid { .. }
    );
    unknown(&log, &child);
}

#[test]
fn nothing_has_come_since_in_a_session_that_was_deleted() {
    let id = session("s");
    let since =
        || Batch::from(NewEvent::new("note", "x")).expected(Expected::nothing_since(0, ["note"]));
    let dir = folder();
    let log = open(&dir);
    append_notes(&log, &id, "a", 3);
    log.delete(&id, Delete::new()).unwrap();
    assert_eq!(log.append(&id, since()).unwrap().first, 1);
    log.delete(&id, Delete::new()).unwrap();
    compact(&log);
    assert_eq!(log.append(&id, since()).unwrap().first, 1);
    assert_error!(
        log.append(&id, since()),
        Error::ConditionFailed { seq: 1, .. }
    );
}

#[test]
fn a_patch_that_changes_nothing_is_no_change() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "a", 1);
    let before = log.session(&id).unwrap();
    let patches = [
        SessionPatch::from(json!({})),
        json!({"never": null}).into(),
        SessionPatch::new().without_title(),
        SessionPatch::new().release(),
    ];
    for patch in patches {
        assert_eq!(log.set_metadata(&id, patch).unwrap(), before);
    }
    assert_eq!(log.feed().unwrap().until_tail().count(), 2);
}

#[test]
fn a_session_without_a_kept_event_has_no_last_id() {
    let dir = folder();
    let log = open(&dir);
    let (parent, child) = (session("p"), session("c"));
    append_notes(&log, &parent, "p", 3);
    log.trim(&parent, 4).unwrap();
    let info = log.fork(Fork::new(&parent), &child).unwrap();
    assert_eq!((info.first, info.last, info.last_id), (4, 3, None));
    assert_eq!(log.head(&child).unwrap().last_id, None);
    let page = log.list(&child, PageRequest::new()).unwrap();
    assert_eq!(page.tail_id, None);
}

#[test]
fn a_cursor_fits_the_generation_that_is_read() {
    let dir = folder();
    let log = open(&dir);
    let (parent, child) = (session("p"), session("c"));
    let first = append_notes(&log, &parent, "first", 3);
    log.fork(Fork::new(&parent).at(2), &child).unwrap();
    log.delete(&parent, Delete::new()).unwrap();
    let second = append_notes(&log, &parent, "second", 2);
    let after = |id: &SessionId, event: &Event| {
        let page = log.list(id, PageRequest::new().after(event.id))?;
        Ok::<_, Error>(seqs(&page.items))
    };
    assert_eq!(after(&child, &first[0]).unwrap(), [2]);
    let other = |got| {
        assert_error!(
            got,
            Error::Cursor {
                problem: CursorProblem::OtherSession(_),
                ..
            }
        );
    };
    // The same seq and parent, and another generation of it.
    other(after(&child, &second[0]));
    other(after(&parent, &first[0]));
    // Nobody keeps it.
    for id in [&parent, &child, &session("zz")] {
        if id.as_str() == "zz" {
            append_notes(&log, id, "z", 1);
        }
        assert_error!(
            after(id, &first[2]),
            Error::Cursor {
                problem: CursorProblem::Unknown(_),
                ..
            }
        );
    }
}

#[test]
fn the_bytes_of_a_session_leave_out_what_was_redacted() {
    let dir = folder();
    let log = open(&dir);
    let (id, child) = (session("s"), session("c"));
    let large = NewEvent::new("note", vec![b'x'; 10_000]);
    let ack = log.append(&id, notes("n", 2).event(large)).unwrap();
    log.redact(ack.events[2].id, "asked").unwrap();
    let bytes = log.session(&id).unwrap().bytes;
    assert!(bytes < 200, "{bytes}");
    let forked = log.fork(Fork::new(&id), &child).unwrap();
    assert!(forked.bytes < 200, "{}", forked.bytes);
    append_notes(&log, &id, "m", 5);
    let before = log.session(&id).unwrap().bytes;
    let removed = log.trim(&id, 4).unwrap();
    assert!(removed.bytes < 200, "{}", removed.bytes);
    let left = log.session(&id).unwrap().bytes;
    assert_eq!(before - left, removed.bytes);
    assert!(left > 0);
}

#[test]
fn a_change_outlives_the_events_that_it_came_with() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    log.append(&id, notes("a", 2).title("T").idempotency_key("k"))
        .unwrap();
    append_notes(&log, &id, "b", 1);
    log.trim(&id, 3).unwrap();
    let fed = || -> Vec<StreamItem> {
        let items = log.feed().unwrap().until_tail();
        items.map(Result::unwrap).collect()
    };
    let before = fed();
    compact(&log);
    assert_eq!(fed(), before);
    assert_eq!(before.len(), 4, "described, 3, trimmed, and the mark");
    append_notes(&log, &id, "c", 1);
    compact(&log);
    assert_eq!(seqs(&read_all(&log, &id)), [3, 4]);
}

#[test]
fn what_a_stream_has_read_ahead_is_not_shown_once_it_is_removed() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let next = |stream: &mut EventStream| stream.next().unwrap();
    let seq = |item| match item {
        Ok(StreamItem::Event(event)) => (event.seq, event.redacted),
        other => panic!("{other:?}"),
    };
    let events = append_notes(&log, &id, "a", 6);
    let mut stream = log.stream(&id, StartAt::Beginning).unwrap();
    let mut feed = log.feed().unwrap();
    assert_eq!(seq(next(&mut stream)), (1, false));
    assert_eq!(seq(next(&mut feed)), (1, false));
    log.redact(events[1].id, "asked").unwrap();
    assert_eq!(seq(next(&mut stream)), (2, true));
    assert_eq!(seq(next(&mut feed)), (2, true));
    log.trim(&id, 4).unwrap();
    assert_eq!(seq(next(&mut feed)), (4, false));
    assert_error!(
        next(&mut stream),
        Error::Cursor {
            problem: CursorProblem::Trimmed { first: 4 },
            ..
        }
    );
    let mut stream = log.stream(&id, StartAt::Beginning).unwrap();
    assert_eq!(seq(next(&mut stream)), (4, false));
    log.delete(&id, Delete::new()).unwrap();
    assert_eq!(next(&mut stream).unwrap(), StreamItem::Deleted);
    assert!(matches!(
        next(&mut feed),
        Ok(StreamItem::Change(change)) if matches!(change.change, Change::Deleted { .. })
    ));
}

/// Many events, so that a turn before them is remembered as it was read.
fn append_many(log: &SessionLog, id: &SessionId) {
    for _ in 0..12 {
        append_notes(log, id, "m", 100);
    }
}

#[test]
fn a_turn_that_was_read_before_does_not_show_what_was_redacted() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let ack = log
        .append(&id, Batch::new().user_message("secret"))
        .unwrap();
    let turn = ack.events[0].message_id.unwrap();
    append_many(&log, &id);
    let before = log.message(turn).unwrap();
    assert_eq!((before.content.len(), before.redacted), (1, false));
    log.redact(ack.events[0].id, "asked").unwrap();
    let page = log.messages(&id, PageRequest::new()).unwrap();
    for message in [log.message(turn).unwrap(), page.items[0].clone()] {
        assert!(message.content.is_empty() && message.redacted);
    }
}

#[test]
fn a_fork_goes_on_with_a_turn_by_itself() {
    let dir = folder();
    let log = open(&dir);
    let (parent, child) = (session("p"), session("c"));
    let ack = log.append(&parent, Batch::new().user_message("?")).unwrap();
    let turn = ack.events[0].message_id.unwrap();
    log.fork(Fork::new(&parent), &child).unwrap();
    let running = NewEvent::new("message.status_changed", r#"{"status":"running"}"#);
    log.append(&parent, running.in_turn(turn)).unwrap();
    append_many(&log, &parent);
    append_many(&log, &child);
    append_notes(&log, &child, "n", 10);
    for _ in 0..2 {
        for (id, status) in [
            (&parent, MessageStatus::Running),
            (&child, MessageStatus::Queued),
        ] {
            let page = log.messages(id, PageRequest::new()).unwrap();
            let message = &page.items[0];
            assert_eq!((&message.session_id, message.status), (id, status));
        }
    }
}

#[test]
fn an_event_is_found_behind_a_stretch_without_records() {
    let dir = folder();
    let id = session("s");
    let mut events = Vec::new();
    for _ in 0..3 {
        let log = small_files().open_in(&dir).unwrap();
        compact(&log);
        drop(log);
        // The empty file is sealed when there are newer events.
        let log = small_files().open_in(&dir).unwrap();
        let sealed = log.stats().segments;
        for _ in 0..9 {
            let large = NewEvent::new("note", vec![b'x'; 1024 * 1024]);
            events.extend(log.append(&id, large).unwrap().events);
        }
        eventually_in_files("a file is sealed", || log.stats().segments > sealed);
        compact(&log);
        for event in &events {
            assert_eq!(log.event(event.id).unwrap().seq, event.seq);
        }
    }
}
