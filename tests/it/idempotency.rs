//! The promise of an idempotency key: its batch lands once, and a retry gets the events that
//! landed.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::thread;

use sessionlog::{
    Ack, Batch, Error, Event, EventId, Expected, MessageId, NewEvent, Producer, Result, SessionId,
    SessionLog,
};

use crate::support::{
    OpenIn, append_notes, assert_ack_fits, assert_error, block_on, eventually_in_files, feed_all,
    folder, note, notes, open, read_all, seal_once, segments, session, small_files,
};

fn keyed() -> Batch {
    notes("keyed", 3).idempotency_key("k")
}

/// Appends the batch again, which must return `original` and add nothing.
fn check_replay(log: &SessionLog, session: &SessionId, retry: Batch, original: &[Event]) {
    let before = log.head(session).unwrap();
    for ack in [
        log.append(session, retry.clone()).unwrap(),
        block_on(log.append_async(session, retry)).unwrap(),
    ] {
        assert_ack_fits(&ack, session);
        assert!(ack.replayed, "{ack:?}");
        assert_eq!(ack.events, original);
    }
    assert_eq!(log.head(session).unwrap(), before);
}

/// Appends another batch under the key of the one at `first_seq`, which must be refused and add
/// nothing.
fn check_conflict(log: &SessionLog, session: &SessionId, other: &Batch, first: u64) {
    let before = log.head(session).unwrap();
    match log.append(session, other.clone()) {
        Err(Error::IdempotencyConflict {
            session: of,
            key,
            first_seq,
        }) => {
            assert_eq!(
                (&of, key.as_str(), first_seq),
                (session, "k", first),
                "{other:?}"
            );
        }
        outcome => panic!("{other:?} gave {outcome:?}"),
    }
    assert_error!(
        block_on(log.append_async(session, other.clone())),
        Error::IdempotencyConflict { .. }
    );
    assert_eq!(log.head(session).unwrap(), before);
}

#[test]
fn a_retry_gets_the_events_that_landed_and_is_marked() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "before", 2);
    let ack = log.append(&id, keyed()).unwrap();
    assert!(!ack.replayed);
    check_replay(&log, &id, keyed(), &ack.events);
    append_notes(&log, &id, "after", 2);
    check_replay(&log, &id, keyed(), &ack.events);
    assert_eq!(append_notes(&log, &id, "next", 1)[0].seq, 8);
}

#[test]
fn the_same_batch_without_a_key_lands_again() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    log.append(&id, keyed()).unwrap();
    for first in [4, 7] {
        let ack = log.append(&id, notes("keyed", 3)).unwrap();
        assert_eq!((ack.first, ack.replayed), (first, false));
    }
}

#[test]
fn any_other_content_under_a_used_key_is_a_conflict() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let turn = |n| MessageId::from(EventId::from_u128(n));
    let event = |event_type: &str, data: &str| NewEvent::new(event_type, data.to_owned());
    let original = [
        event("a", "bc"),
        event("d", "ef").in_turn(turn(1)),
        event("g", ""),
    ];
    let with = |n: usize, other: NewEvent| {
        let mut events = original.clone();
        events[n] = other;
        events.to_vec()
    };
    let [first, second, third] = original.clone();
    let others = [
        with(0, event("a", "bd")),
        with(0, event("a", "bc ")),
        with(0, event("b", "bc")),
        with(0, event("ab", "c")),
        with(0, event("abc", "")),
        with(0, event("a", "bc").in_turn(turn(1))),
        with(1, event("d", "ef").in_turn(turn(2))),
        with(1, event("d", "ef")),
        with(2, event("g", "\0")),
        vec![second.clone(), first.clone(), third.clone()],
        vec![first.clone(), second.clone()],
        vec![first.clone(), second.clone(), third.clone(), third.clone()],
        vec![first.clone(), event("d", "efg"), third],
    ];
    append_notes(&log, &id, "before", 1);
    log.append(
        &id,
        Batch::new().events(original.clone()).idempotency_key("k"),
    )
    .unwrap();
    for events in others {
        check_conflict(
            &log,
            &id,
            &Batch::new().events(events).idempotency_key("k"),
            2,
        );
    }
    let message = |text: &str| Batch::new().user_message(text).idempotency_key("m");
    let ack = log.append(&id, message("hello")).unwrap();
    check_replay(&log, &id, message("hello"), &ack.events);
    assert_error!(
        log.append(&id, message("hallo")),
        Error::IdempotencyConflict { .. }
    );
}

#[test]
fn the_key_is_looked_at_before_the_expected_seq() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let ack = log
        .append(&id, keyed().expected(Expected::NoSession))
        .unwrap();
    for expected in [
        Expected::NoSession,
        Expected::Seq(0),
        Expected::Seq(9),
        Expected::Exists,
        Expected::Any,
    ] {
        check_replay(&log, &id, keyed().expected(expected.clone()), &ack.events);
        check_conflict(
            &log,
            &id,
            &notes("other", 1).idempotency_key("k").expected(expected),
            1,
        );
    }
}

#[test]
fn a_refused_append_does_not_use_its_key_up() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let refused = notes("other content", 1)
        .idempotency_key("k")
        .expected(Expected::Exists);
    assert_error!(
        log.append(&id, refused),
        Error::ExpectedMismatch { actual: 0, .. }
    );
    let ack = log.append(&id, keyed()).unwrap();
    assert_eq!((ack.first, ack.replayed), (1, false));
}

#[test]
fn a_trim_leaves_the_key_of_a_change_without_events() {
    let dir = folder();
    let log = open(&dir);
    let s = session("s");
    append_notes(&log, &s, "a", 3);
    let closing = || Batch::new().closing().idempotency_key("k");
    let closed = log.append(&s, closing()).unwrap();
    log.reopen(&s).unwrap();
    append_notes(&log, &s, "b", 2);
    log.trim(&s, 5).unwrap();
    check_replay(&log, &s, closing(), &closed.events);
    assert!(!log.session(&s).unwrap().closed);
}

/// Else a retry might undo what came after it.
#[test]
fn a_change_that_is_in_force_already_uses_its_key_up() {
    let dir = folder();
    let log = open(&dir);
    let s = session("s");
    let title = |title: &str| Batch::new().title(title);
    log.append(&s, notes("first", 1).title("old")).unwrap();
    let landed = log.append(&s, title("old").idempotency_key("k")).unwrap();
    assert!(!landed.replayed && landed.events.is_empty());
    log.append(&s, title("new")).unwrap();
    check_replay(&log, &s, title("old").idempotency_key("k"), &[]);
    let title = log.session(&s).unwrap().title;
    assert_eq!(title.as_deref(), Some("new"));
    let other = notes("other", 1).idempotency_key("k");
    assert_error!(log.append(&s, other), Error::IdempotencyConflict { .. });
}

#[test]
fn a_change_that_is_in_force_already_uses_its_number_up() {
    let dir = folder();
    let log = open(&dir);
    let s = session("s");
    let of = |number| Producer::new("p").epoch(1).seq(number);
    for number in 0..3 {
        let batch = notes("n", 1).title("the same").producer(of(number));
        let change = Batch::new().title("the same").producer(of(number));
        let batch = if number == 1 { change } else { batch };
        assert!(!log.append(&s, batch).unwrap().replayed);
    }
    assert_eq!(log.head(&s).unwrap().last, 2);
}

#[test]
fn a_key_belongs_to_its_session_and_to_no_other_spelling() {
    let dir = folder();
    let log = open(&dir);
    let wide = "x".repeat(255);
    let names = ["a", "ab", "abc", "A", &wide];
    let keys = [
        "bc",
        "c",
        "k",
        "K",
        "k ",
        " k",
        "\u{e9}",
        "e\u{301}",
        "k\0",
        &format!("{wide}1"),
        &format!("{wide}2"),
    ];
    let pairs: Vec<_> = names
        .iter()
        .flat_map(|name| keys.iter().map(move |key| (session(name), *key)))
        .collect();
    let batch = |n: usize, key: &str| notes(&n.to_string(), 1).idempotency_key(key);
    let acks: Vec<Ack> = pairs
        .iter()
        .enumerate()
        .map(|(n, (id, key))| log.append(id, batch(n, key)).unwrap())
        .collect();
    assert!(acks.iter().all(|ack| !ack.replayed), "{acks:?}");
    for (n, (id, key)) in pairs.iter().enumerate() {
        check_replay(&log, id, batch(n, key), &acks[n].events);
    }
}

#[test]
fn a_key_holds_in_memory_in_segments_and_over_reopening() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let (id, filler) = (session("s"), session("filler"));
    append_notes(&log, &id, "before", 1);
    let original = log.append(&id, keyed()).unwrap().events;
    let check = |log: &SessionLog| {
        check_replay(log, &id, keyed(), &original);
        check_replay(log, &id, keyed().expected(Expected::NoSession), &original);
        check_conflict(log, &id, &notes("other", 3).idempotency_key("k"), 2);
    };
    check(&log);
    drop(log);
    let log = small_files().open_in(&dir).unwrap();
    check(&log);
    seal_once(&log, &filler);
    check(&log);
    seal_once(&log, &filler);
    check(&log);
    log.close().unwrap();
    let log = small_files().open_in(&dir).unwrap();
    check(&log);
    assert_eq!(
        log.append(&id, notes("fresh", 1).idempotency_key("fresh"))
            .unwrap()
            .first,
        5
    );
}

#[test]
fn sixteen_concurrent_duplicates_land_once() {
    let dir = folder();
    let log = open(&dir);
    for round in 0..10 {
        let id = session(&format!("s{round}"));
        let acks: Vec<Ack> = thread::scope(|scope| {
            let append = |n: usize| {
                let (log, id) = (&log, &id);
                move || {
                    if n.is_multiple_of(2) {
                        log.append(id, keyed())
                    } else {
                        block_on(log.append_async(id, keyed()))
                    }
                }
            };
            let threads: Vec<_> = (0..16).map(|n| scope.spawn(append(n))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap().unwrap())
                .collect()
        });
        assert_eq!(
            acks.iter().filter(|ack| !ack.replayed).count(),
            1,
            "{acks:?}"
        );
        assert!(
            acks.iter().all(|ack| ack.events == acks[0].events),
            "{acks:?}"
        );
        assert_eq!(read_all(&log, &id), acks[0].events);
    }
    assert_eq!(feed_all(&log).len(), 30);
}

#[test]
fn of_concurrent_batches_under_one_key_one_lands_and_the_others_conflict() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let outcomes: Vec<Result<Ack>> = thread::scope(|scope| {
        let append = |n: usize| {
            let (log, id) = (&log, &id);
            move || log.append(id, notes(&n.to_string(), 1).idempotency_key("k"))
        };
        let threads: Vec<_> = (0..16).map(|n| scope.spawn(append(n))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let landed: Vec<_> = outcomes.iter().flatten().collect();
    assert_eq!(landed.len(), 1, "{outcomes:?}");
    assert_eq!(read_all(&log, &id), landed[0].events);
    for refused in outcomes.into_iter().filter(Result::is_err) {
        assert_error!(refused, Error::IdempotencyConflict { first_seq: 1, .. });
    }
}

#[test]
fn a_key_lands_once_while_segments_are_made() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let id = session("s");
    let batch = |n: usize| {
        Batch::new()
            .event(note(vec![u8::try_from(n).unwrap(); 100_000]))
            .idempotency_key(n.to_string())
    };
    let mut landed: Vec<Vec<Event>> = Vec::new();
    for n in 0..200 {
        let acks: Vec<Ack> = thread::scope(|scope| {
            let twice: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| log.append(&id, batch(n)).unwrap()))
                .collect();
            twice
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(
            acks.iter().filter(|ack| ack.replayed).count(),
            1,
            "{:?}",
            acks.iter().map(|ack| ack.first).collect::<Vec<_>>()
        );
        landed.push(acks[0].events.clone());
        for earlier in [0, n / 2, n.saturating_sub(30), n.saturating_sub(1)] {
            let ack = log.append(&id, batch(earlier)).unwrap();
            assert!(
                ack.replayed && ack.events == landed[earlier],
                "the key of batch {earlier} after batch {n}"
            );
        }
    }
    eventually_in_files("a segment", || segments(dir.path()) > 0);
    assert_eq!(read_all(&log, &id), landed.concat());
}

/// Retries a batch that the journal file has no room for, so that the next one begins in the next
/// file, and ends the log.
fn check_retry_at_the_end_of_a_file(appends_after: usize, end: impl Fn(SessionLog)) {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let id = session("s");
    let large = || {
        Batch::new()
            .events((0..3).map(|n| note(vec![n; 1 << 20])))
            .idempotency_key("k")
    };
    let mut all = log.append(&id, large()).unwrap().events;
    check_replay(&log, &id, large(), &all);
    all.extend(append_notes(&log, &id, "after", appends_after));
    assert_eq!(read_all(&log, &id), all);
    end(log);
    for _ in 0..3 {
        let log = small_files().open_in(&dir).unwrap();
        assert_eq!(read_all(&log, &id), all);
        check_replay(&log, &id, large(), &all[..3]);
        all.extend(append_notes(&log, &id, "more", 1));
        log.close().unwrap();
    }
    assert_eq!(read_all(&open(&dir), &id), all);
}

#[test]
fn a_retry_that_meets_the_end_of_a_journal_file_harms_nothing() {
    for appends_after in [0, 1, 5] {
        check_retry_at_the_end_of_a_file(appends_after, |log| log.close().unwrap());
        check_retry_at_the_end_of_a_file(appends_after, drop);
    }
}

#[test]
fn retries_write_nothing_and_keep_nothing_from_being_sealed() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let id = session("s");
    let large = || {
        Batch::new()
            .events((0..3).map(|n| note(vec![n; 1 << 20])))
            .idempotency_key("k")
    };
    let events = log.append(&id, large()).unwrap().events;
    let before = log.stats().journal_bytes;
    for _ in 0..20 {
        assert_eq!(log.append(&id, large()).unwrap().events, events);
    }
    assert_eq!(log.stats().journal_bytes, before);
    // More than is left of the first journal file, and less than a second one holds.
    for n in 0..2 {
        log.append(&id, Batch::new().event(note(vec![n; 1 << 20])))
            .unwrap();
    }
    eventually_in_files("the segment of the first journal file", || {
        segments(dir.path()) > 0
    });
}

/// Polls every future to its end from one task, so that all are queued before the first answer.
async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *output = Some(value);
            }
        }
        if outputs.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[test]
fn a_key_holds_for_batches_that_share_a_commit_group_with_it() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "before", 1);
    // The appends that queue up after the first one become one group.
    let ahead = (0..20).map(|n| notes(&format!("ahead/{n}"), 1));
    let batches = ahead.chain([
        keyed(),
        keyed(),
        Batch::new().event(note("free")),
        keyed(),
        keyed(),
    ]);
    let acks = block_on(join_all(batches.map(|batch| log.append_async(&id, batch))));
    let acks: Vec<Ack> = acks.into_iter().map(Result::unwrap).collect();
    let duplicates = [20, 21, 23, 24].map(|n: usize| &acks[n]);
    assert_eq!(
        duplicates.iter().filter(|ack| !ack.replayed).count(),
        1,
        "{duplicates:?}"
    );
    for ack in duplicates {
        assert_ack_fits(ack, &id);
        assert_eq!(ack.events, duplicates[0].events);
    }
    assert_eq!(log.head(&id).unwrap().last, 1 + 20 + 3 + 1);
}
