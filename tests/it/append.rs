//! The promises of an append: its ack, seqs without holes, rising IDs, all or nothing, and the
//! expected tail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use sessionlog::{
    Batch, Error, EventId, Expected, MessageId, NewEvent, Options, PageRequest, Seq, SessionQuery,
};

use crate::support::{
    ListIds, OpenIn, Over, append_notes, assert_ack_fits, assert_dense, assert_error,
    assert_rising, block_on, folder, given, note, notes, open, poll_once, read_all, session,
};

#[test]
fn an_ack_holds_the_events_as_every_reader_will_see_them() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    log.append(&id, notes("before", 2)).unwrap();
    let turn = MessageId::from(EventId::from_u128(7));
    let batch = Batch::new()
        .event(NewEvent::new("a", "one"))
        .event(NewEvent::new("b", "two").in_turn(turn));
    let ack = log.append(&id, batch).unwrap();

    assert_ack_fits(&ack, &id);
    assert_eq!((ack.first, ack.last, ack.replayed), (3, 4, false));
    assert_eq!(
        ack.events.iter().map(given).collect::<Vec<_>>(),
        [("a", &b"one"[..]), ("b", b"two")]
    );
    assert_eq!(
        ack.events
            .iter()
            .map(|event| event.message_id)
            .collect::<Vec<_>>(),
        [None, Some(turn)]
    );
    assert_eq!(
        log.list(&id, PageRequest::new().after(2)).unwrap().items,
        ack.events
    );
    for event in &ack.events {
        assert_eq!(log.event(event.id).unwrap(), *event);
    }
    let head = log.head(&id).unwrap();
    assert_eq!(
        (head.generation, head.first, head.last, head.last_id),
        (1, 1, 4, Some(ack.events[1].id))
    );
}

#[test]
fn an_async_append_gives_the_same_ack_and_starts_with_its_first_poll() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let never_polled = log.append_async(&id, notes("never", 1));
    let ack = block_on(log.append_async(&id, notes("polled", 3))).unwrap();
    drop(never_polled);

    assert_ack_fits(&ack, &id);
    assert_eq!((ack.first, ack.last, ack.replayed), (1, 3, false));
    assert_eq!(read_all(&log, &id), ack.events);
}

#[test]
fn seqs_are_dense_from_one_whatever_the_batches() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let mut all = Vec::new();
    for (n, size) in [1, 3, 1, 1_000, 2, 64].into_iter().enumerate() {
        let ack = log.append(&id, notes(&n.to_string(), size)).unwrap();
        assert_ack_fits(&ack, &id);
        assert_eq!((ack.first, ack.events.len()), (all.len() as Seq + 1, size));
        all.extend(ack.events);
    }
    assert_dense(&all, 1..=1_071);
    assert_eq!(read_all(&log, &id), all);
}

#[test]
fn ids_rise_over_all_sessions_in_the_order_of_their_acks() {
    let dir = folder();
    let log = open(&dir);
    let sessions = ["a", "b", "c", "d", "e"].map(session);
    let acked: Vec<_> = (0..50)
        .flat_map(|n| {
            log.append(&sessions[n * 3 % 5], notes(&n.to_string(), n % 4 + 1))
                .unwrap()
                .events
        })
        .collect();
    assert_rising(&acked);
}

#[test]
fn ids_rise_and_times_are_the_clocks_own_whatever_the_clock_does() {
    let dir = folder();
    let now = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&now);
    let options = Options::new()
        .clock(move || UNIX_EPOCH + Duration::from_millis(clock.load(Ordering::Relaxed)));
    let log = options.open_in(&dir).unwrap();
    let id = session("s");
    let start = 1_900_000_000_000;
    let times = [
        start,
        start,
        start + 1,
        start - 86_400_000,
        0,
        1,
        start,
        start + 1,
        start + 2,
    ];
    for (n, ms) in times.into_iter().enumerate() {
        now.store(ms, Ordering::Relaxed);
        log.append(&id, notes(&n.to_string(), 2)).unwrap();
    }

    let check = |log: &sessionlog::SessionLog| {
        let all = read_all(log, &id);
        assert_dense(&all, 1..=18);
        let stored: Vec<_> = all
            .iter()
            .map(|event| u64::try_from(event.created_at.as_millisecond()).unwrap())
            .collect();
        assert_eq!(stored, times.map(|ms| [ms, ms]).concat());
        assert_eq!(all[0].id.timestamp_ms(), start);
        assert_eq!(all.last().unwrap().id.timestamp_ms(), start + 2);
    };
    check(&log);
    log.close().unwrap();
    check(&open(&dir));
}

#[test]
fn a_clock_from_beyond_the_calendar_breaks_nothing() {
    let dir = folder();
    let id = session("s");
    let mut all = Vec::new();
    let times = [
        UNIX_EPOCH - Duration::from_secs(1),
        UNIX_EPOCH + Duration::from_secs(1 << 44),
        UNIX_EPOCH,
    ];
    for time in times {
        let log = Options::new().clock(move || time).open_in(&dir).unwrap();
        all.extend(log.append(&id, notes("n", 3)).unwrap().events);
        all.extend(append_notes(&log, &id, "m", 3));
        assert_eq!(read_all(&log, &id), all);
        log.close().unwrap();
    }
    assert_eq!(read_all(&open(&dir), &id), all);
    assert_dense(&all, 1..=18);
}

#[test]
fn a_type_and_its_data_come_back_byte_for_byte() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let every_byte: Vec<u8> = (0..=255).collect();
    let cases: [(&str, &[u8]); 8] = [
        ("empty", b""),
        ("a", b"\0"),
        ("not utf-8", b"\xff\xfe\xc3\x28"),
        ("json", br#"{"text":"a \"quoted\" word"}"#),
        ("every byte", &every_byte),
        ("zeros", &[0; 10_000]),
        ("ein_typ_\u{fc}\u{4e16}\u{1f980}", b"unicode type"),
        ("../../type", b"evt_01JQ3W8K5T0000000000000001"),
    ];
    let batch = Batch::new()
        .events(cases.map(|(event_type, data)| NewEvent::new(event_type, data.to_vec())));
    log.append(&id, batch).unwrap();

    assert_eq!(
        read_all(&log, &id).iter().map(given).collect::<Vec<_>>(),
        cases
    );
    log.close().unwrap();
    assert_eq!(
        read_all(&open(&dir), &id)
            .iter()
            .map(given)
            .collect::<Vec<_>>(),
        cases
    );
}

#[test]
fn a_user_message_gets_the_message_id_of_its_own_event() {
    let dir = folder();
    let log = open(&dir);
    let other = MessageId::from(EventId::from_u128(1));
    let batch = notes("before", 1)
        .user_message("first")
        .event(note("between"))
        .user_message("second");
    let batch = batch.event(NewEvent::new("user.message", r#"{"content":[]}"#).in_turn(other));
    let events = log.append(&session("s"), batch).unwrap().events;
    let of = |n: usize| Some(MessageId::from(events[n].id));
    assert_eq!(
        events
            .iter()
            .map(|event| event.message_id)
            .collect::<Vec<_>>(),
        [None, of(1), None, of(3), of(4)]
    );
}

#[test]
fn a_refused_batch_leaves_nothing_behind() {
    let dir = folder();
    let log = Options::new().event_bytes_max(100).open_in(&dir).unwrap();
    let (kept, fresh) = (session("kept"), session("fresh"));
    let first = log
        .append(&kept, notes("first", 1).idempotency_key("used"))
        .unwrap();
    let refused = [
        Batch::new(),
        Batch::new().idempotency_key("k"),
        notes("a", 2).event(note([0; 101])).event(note("b")),
        notes("a", 2).event(NewEvent::new("", "an empty type")),
        notes("a", 2).expected(Expected::Seq(9)),
        notes("a", 2).idempotency_key(""),
    ];
    for batch in refused {
        for id in [&kept, &fresh] {
            assert!(log.append(id, batch.clone()).is_err(), "{batch:?}");
            assert!(
                block_on(log.append_async(id, batch.clone())).is_err(),
                "{batch:?}"
            );
        }
    }
    assert_error!(
        log.append(&kept, notes("another", 1).idempotency_key("used")),
        Error::IdempotencyConflict { .. }
    );

    let check = |log: &sessionlog::SessionLog| {
        assert_eq!(read_all(log, &kept), first.events);
        assert_error!(log.head(&fresh), Error::UnknownSession { .. });
        assert_eq!(
            log.session_ids(SessionQuery::by_id().limit(10)).unwrap(),
            std::slice::from_ref(&kept)
        );
        assert_eq!(log.stats().events, 1);
    };
    check(&log);
    log.close().unwrap();
    let log = open(&dir);
    check(&log);
    assert_eq!(log.append(&kept, notes("next", 1)).unwrap().first, 2);
    assert_eq!(log.append(&fresh, notes("next", 1)).unwrap().first, 1);
}

#[test]
fn an_empty_batch_is_invalid() {
    let dir = folder();
    let log = open(&dir);
    assert_error!(
        log.append(&session("s"), Batch::new()),
        Error::Invalid { what: "batch", .. }
    );
    assert_error!(
        block_on(log.append_async(&session("s"), Batch::new())),
        Error::Invalid { what: "batch", .. }
    );
}

/// Appends two notes to a session that already holds `held`, and says whether they landed.
fn lands(held: Seq, expected: &Expected) -> bool {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "held", usize::try_from(held).unwrap());
    match log.append(&id, notes("new", 2).expected(expected.clone())) {
        Ok(ack) => {
            assert_eq!((ack.first, ack.last), (held + 1, held + 2));
            true
        }
        Err(Error::ExpectedMismatch {
            session: of,
            expected: asked,
            actual,
        }) => {
            assert_eq!((of, asked, actual), (id.clone(), expected.clone(), held));
            assert_eq!(append_notes(&log, &id, "after", 1)[0].seq, held + 1);
            false
        }
        Err(error) => panic!("{expected:?} at seq {held}: {error:?}"),
    }
}

#[test]
fn a_batch_lands_only_where_it_was_expected() {
    for held in [0, 1, 3] {
        assert!(lands(held, &Expected::Any), "after seq {held}");
        assert_eq!(
            lands(held, &Expected::NoSession),
            held == 0,
            "after seq {held}"
        );
        assert_eq!(lands(held, &Expected::Exists), held > 0, "after seq {held}");
        for seq in [0, 1, 2, 3, 4, Seq::MAX] {
            assert_eq!(
                lands(held, &Expected::Seq(seq)),
                held == seq,
                "seq {seq} after seq {held}"
            );
        }
    }
}

#[test]
fn an_expectation_is_about_its_own_session_and_holds_after_reopening() {
    let dir = folder();
    let log = open(&dir);
    let (a, b) = (session("a"), session("b"));
    append_notes(&log, &a, "a", 3);
    log.append(&b, notes("b", 1).expected(Expected::NoSession))
        .unwrap();
    log.close().unwrap();
    let log = open(&dir);
    assert_error!(
        log.append(&b, notes("b", 1).expected(Expected::Seq(3))),
        Error::ExpectedMismatch { actual: 1, .. }
    );
    assert_error!(
        log.append(&a, notes("a", 1).expected(Expected::NoSession)),
        Error::ExpectedMismatch { actual: 3, .. }
    );
    assert_eq!(
        log.append(&a, notes("a", 1).expected(Expected::Seq(3)))
            .unwrap()
            .first,
        4
    );
    assert_eq!(
        log.append(&b, notes("b", 1).expected(Expected::Exists))
            .unwrap()
            .first,
        2
    );
}

#[test]
fn of_many_that_expect_the_same_seq_one_lands() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    for round in 0..10 {
        let batch = |n: usize| notes(&format!("{round}/{n}"), 1).expected(Expected::Seq(round));
        let outcomes: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    scope.spawn({
                        let (log, id) = (&log, &id);
                        move || log.append(id, batch(n))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(
            outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
            1,
            "{outcomes:?}"
        );
        for refused in outcomes.into_iter().filter(Result::is_err) {
            assert_error!(refused, Error::ExpectedMismatch { actual, .. } if *actual == round + 1);
        }
    }
    assert_dense(&read_all(&log, &id), 1..=10);
}

#[test]
fn batches_stay_whole_and_next_to_each_other_under_concurrent_writers() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = Over(&done);
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) {
                if let Ok(page) = log.list(&id, PageRequest::new().newest_first().limit(1)) {
                    assert_eq!(page.tail % 7, 0, "a reader saw part of a batch");
                    assert_eq!(page.items[0].seq, page.tail);
                    assert!(
                        page.tail >= seen,
                        "the tail went back from {seen} to {}",
                        page.tail
                    );
                    seen = page.tail;
                }
            }
        });
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (log, id) = (&log, &id);
                scope.spawn(move || {
                    for n in 0..20 {
                        log.append(id, notes(&format!("{writer}.{n}"), 7)).unwrap();
                    }
                })
            })
            .collect();
        let failed = writers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .filter(Result::is_err)
            .count();
        drop(over);
        reader.join().unwrap();
        assert_eq!(failed, 0);
    });

    let all = read_all(&log, &id);
    assert_dense(&all, 1..=8 * 20 * 7);
    for batch in all.chunks(7) {
        let tag = |data: &[u8]| {
            String::from_utf8(data.to_vec())
                .unwrap()
                .split_once('/')
                .map(|(tag, n)| (tag.to_owned(), n.to_owned()))
        };
        let (first, _) = tag(&batch[0].data).unwrap();
        for (n, event) in batch.iter().enumerate() {
            assert_eq!(tag(&event.data).unwrap(), (first.clone(), n.to_string()));
        }
    }
}

#[test]
fn an_async_append_that_is_dropped_lands_whole_or_not_at_all() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    for n in 0..50 {
        let mut append = Box::pin(log.append_async(&id, notes(&n.to_string(), 3)));
        let _ = poll_once(append.as_mut());
    }
    log.append(&id, notes("last", 3)).unwrap();
    log.close().unwrap();
    let all = read_all(&open(&dir), &id);
    assert_dense(&all, 1..=all.len() as Seq);
    assert_eq!(all.len() % 3, 0);
    assert_eq!(given(&all[all.len() - 1]), ("note", &b"last/2"[..]));
}
