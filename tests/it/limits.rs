//! Every limit: a call at the limit passes, and one above it is refused by name and leaves nothing
//! behind.

use serde_json::json;
use sessionlog::{
    Batch, Error, Limit, NewEvent, Options, PageRequest, Result, SessionId, SessionLog,
    SessionQuery, UserMessage,
};

use crate::support::{
    ListIds, OpenIn, assert_error, block_on, embedded_alone, folder, note, notes, open, read_all,
    session, small_files,
};

/// Fails unless the call was refused for this limit with these values.
fn check_refused<T>(result: Result<T>, limit: Limit, actual: u64, max: u64) {
    match result.map(|_| ()) {
        Err(Error::TooLarge {
            limit: l,
            actual: a,
            max: m,
        }) => assert_eq!((l, a, m), (limit, actual, max)),
        outcome => panic!("{limit:?} of {actual} over {max} gave {outcome:?}"),
    }
}

/// Appends a batch that is at a limit, and one that is above it.
fn check_batch(options: Options, limit: Limit, max: usize, of_size: impl Fn(usize) -> Batch) {
    let dir = folder();
    let log = options.open_in(&dir).unwrap();
    let id = session("s");
    let above = max as u64 + 1;
    check_refused(log.append(&id, of_size(max + 1)), limit, above, max as u64);
    check_refused(
        block_on(log.append_async(&id, of_size(max + 1))),
        limit,
        above,
        max as u64,
    );
    assert_error!(log.head(&id), Error::UnknownSession { .. });

    let at_most = log.append(&id, of_size(max)).unwrap();
    assert_eq!(at_most.first, 1);
    check_refused(log.append(&id, of_size(max + 1)), limit, above, max as u64);
    assert_eq!(read_all(&log, &id), at_most.events);
    log.close().unwrap();
    assert_eq!(read_all(&open(&dir), &id), at_most.events);
}

fn of_event_bytes(size: usize) -> Batch {
    notes("before", 1).event(note(vec![b'x'; size]))
}

/// Returns a batch with `size` bytes of data, in events of at most a mebibyte.
fn of_batch_bytes(size: usize) -> Batch {
    let bytes = vec![b'x'; size];
    Batch::new().events(bytes.chunks(1024 * 1024).map(note))
}

fn of_events(size: usize) -> Batch {
    notes("n", size)
}

fn of_type_bytes(size: usize) -> Batch {
    notes("before", 1).event(NewEvent::new("t".repeat(size), "data"))
}

fn of_key_bytes(size: usize) -> Batch {
    notes("keyed", 1).idempotency_key("k".repeat(size))
}

#[test]
fn the_default_limits_of_a_batch_hold_to_the_byte() {
    let mebibyte = 1024 * 1024;
    check_batch(Options::new(), Limit::EventBytes, mebibyte, of_event_bytes);
    check_batch(
        Options::new(),
        Limit::BatchBytes,
        4 * mebibyte,
        of_batch_bytes,
    );
    check_batch(Options::new(), Limit::BatchEvents, 1_000, of_events);
    check_batch(Options::new(), Limit::EventTypeBytes, 128, of_type_bytes);
    check_batch(
        Options::new(),
        Limit::IdempotencyKeyBytes,
        256,
        of_key_bytes,
    );
}

#[test]
fn the_limits_of_a_batch_follow_the_options() {
    check_batch(
        Options::new().event_bytes_max(9),
        Limit::EventBytes,
        9,
        of_event_bytes,
    );
    check_batch(
        Options::new().event_bytes_max(1).batch_bytes_max(9),
        Limit::BatchBytes,
        9,
        |size| Batch::new().events((0..size).map(|_| note("x"))),
    );
    check_batch(
        Options::new().batch_events_max(1),
        Limit::BatchEvents,
        1,
        of_events,
    );
    check_batch(
        Options::new().event_type_bytes_max(6),
        Limit::EventTypeBytes,
        6,
        of_type_bytes,
    );
    check_batch(
        Options::new().idempotency_key_bytes_max(1),
        Limit::IdempotencyKeyBytes,
        1,
        of_key_bytes,
    );
    check_batch(
        Options::new().event_bytes_max(3 << 20),
        Limit::EventBytes,
        3 << 20,
        of_event_bytes,
    );
    check_batch(
        Options::new().batch_events_max(5_000),
        Limit::BatchEvents,
        5_000,
        of_events,
    );
}

#[test]
fn limits_count_bytes_and_not_characters() {
    let dir = folder();
    let log = Options::new()
        .event_type_bytes_max(4)
        .idempotency_key_bytes_max(4)
        .open_in(&dir)
        .unwrap();
    let id = session("s");
    let of_type = |name: &str| Batch::new().event(NewEvent::new(name, "data"));
    check_refused(
        log.append(&id, of_type("\u{e9}\u{e9}\u{e9}")),
        Limit::EventTypeBytes,
        6,
        4,
    );
    check_refused(
        log.append(&id, notes("n", 1).idempotency_key("\u{4e16}\u{4e16}")),
        Limit::IdempotencyKeyBytes,
        6,
        4,
    );
    log.append(&id, of_type("\u{e9}\u{e9}").idempotency_key("\u{1f980}"))
        .unwrap();
    let name = "\u{e9}".repeat(129);
    check_refused(SessionId::new(&name), Limit::SessionIdBytes, 258, 256);
    assert_eq!(
        SessionId::new(&name[2..]).unwrap().as_str().len(),
        SessionId::BYTES_MAX
    );
}

/// Everything at its largest at once, in the smallest journal files.
fn largest() -> Batch {
    let events = (0..1_000_usize).map(|n| {
        let size = if n == 0 {
            (4 << 20) - 999 * 4_000
        } else {
            4_000
        };
        NewEvent::new("t".repeat(128), vec![u8::try_from(n % 256).unwrap(); size])
    });
    Batch::new().events(events).idempotency_key("k".repeat(256))
}

#[test]
fn the_largest_batch_fits_the_smallest_journal() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let ids = ["a", "b", "c"].map(|name| session(&name.repeat(256)));
    let acks = ids.each_ref().map(|id| log.append(id, largest()).unwrap());
    let check = |log: &SessionLog| {
        for (id, ack) in ids.iter().zip(&acks) {
            assert_eq!(read_all(log, id), ack.events);
            assert!(log.append(id, largest()).unwrap().replayed);
        }
    };
    check(&log);
    log.close().unwrap();
    check(&small_files().open_in(&dir).unwrap());
}

#[test]
fn what_no_option_allows_is_invalid() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    for name in ["", "a\0b", "a\n", "\u{7f}", "\u{85}"] {
        let batch = Batch::new().event(NewEvent::new(name, "data"));
        assert_error!(
            log.append(&id, batch),
            Error::Invalid {
                what: "event type",
                ..
            }
        );
    }
    assert_error!(
        log.append(&id, notes("n", 1).idempotency_key("")),
        Error::Invalid {
            what: "idempotency key",
            ..
        }
    );
    assert_error!(
        log.append(&id, Batch::new()),
        Error::Invalid { what: "batch", .. }
    );
    let too_deep = (0..126).fold(json!(null), |value, _| json!([value]));
    let batch =
        notes("n", 1).user_message(UserMessage::text("hi").with_metadata("value", too_deep));
    assert_error!(
        log.append(&id, batch),
        Error::Invalid {
            what: "user message",
            ..
        }
    );
    assert_error!(log.head(&id), Error::UnknownSession { .. });
}

/// Reads pages at the limit, above it, and with a limit of 0.
fn check_pages(options: Options, max: usize) {
    let dir = folder();
    let log = options.open_in(&dir).unwrap();
    let id = session("s");
    log.append(&id, notes("n", 2).user_message("m")).unwrap();
    let above = max as u64 + 1;
    for page in [
        PageRequest::new(),
        PageRequest::new().after(1),
        PageRequest::new().before(2).newest_first(),
        PageRequest::new().types(["note"]),
    ] {
        log.list(&id, page.clone().limit(max)).unwrap();
        log.messages(&id, page.clone().limit(max)).unwrap();
        check_refused(
            log.list(&id, page.clone().limit(max + 1)),
            Limit::PageEvents,
            above,
            max as u64,
        );
        check_refused(
            log.messages(&id, page.clone().limit(max + 1)),
            Limit::PageEvents,
            above,
            max as u64,
        );
        check_refused(
            log.list(&id, page.clone().limit(usize::MAX)),
            Limit::PageEvents,
            usize::MAX as u64,
            max as u64,
        );
        assert_error!(log.list(&id, page.clone().limit(0)), Error::Invalid { .. });
        assert_error!(log.messages(&id, page.limit(0)), Error::Invalid { .. });
    }
    log.session_ids(SessionQuery::by_id().limit(max)).unwrap();
    log.recent_ids(max).unwrap();
    check_refused(
        log.session_ids(SessionQuery::by_id().limit(max + 1)),
        Limit::PageEvents,
        above,
        max as u64,
    );
    check_refused(
        log.recent_ids(max + 1),
        Limit::PageEvents,
        above,
        max as u64,
    );
    assert_error!(
        log.session_ids(SessionQuery::by_id().limit(0)),
        Error::Invalid { .. }
    );
    assert_error!(log.recent_ids(0), Error::Invalid { .. });
}

#[test]
fn a_page_over_the_limit_is_refused_and_not_cut() {
    check_pages(Options::new(), 1_000);
    check_pages(Options::new().page_events_max(100), 100);
    check_pages(Options::new().page_events_max(2_000), 2_000);
}

#[test]
fn a_page_holds_a_hundred_events_unless_told() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    log.append(&id, notes("n", 101)).unwrap();
    let page = log.list(&id, PageRequest::new()).unwrap();
    assert_eq!(
        (page.items.len(), page.has_more, page.last),
        (100, true, 100)
    );
}

#[test]
fn options_that_contradict_are_refused_before_anything_is_made() {
    embedded_alone!("it looks into files");
    let mebibyte = 1024 * 1024;
    let cases = [
        ("event_bytes_max", Options::new().event_bytes_max(0)),
        (
            "event_bytes_max",
            Options::new().event_bytes_max(4 * mebibyte + 1),
        ),
        (
            "event_bytes_max",
            Options::new().batch_bytes_max(mebibyte - 1),
        ),
        ("batch_bytes_max", Options::new().batch_bytes_max(0)),
        (
            "batch_bytes_max",
            Options::new().batch_bytes_max(usize::MAX),
        ),
        ("batch_events_max", Options::new().batch_events_max(0)),
        (
            "batch_events_max",
            Options::new().batch_events_max(usize::MAX),
        ),
        (
            "event_type_bytes_max",
            Options::new().event_type_bytes_max(0),
        ),
        (
            "event_type_bytes_max",
            Options::new().event_type_bytes_max(usize::MAX),
        ),
        (
            "idempotency_key_bytes_max",
            Options::new().idempotency_key_bytes_max(0),
        ),
        (
            "idempotency_key_bytes_max",
            Options::new().idempotency_key_bytes_max(usize::MAX),
        ),
        ("page_events_max", Options::new().page_events_max(0)),
        (
            "journal_file_bytes_max",
            Options::new().journal_file_bytes_max(4 * mebibyte - 1),
        ),
        (
            "journal_file_bytes_max",
            Options::new().journal_file_bytes_max(usize::MAX),
        ),
        ("group_bytes_max", Options::new().group_bytes_max(0)),
        (
            "group_bytes_max",
            Options::new().group_bytes_max(64 * mebibyte + 1),
        ),
        ("scan_bytes_max", Options::new().scan_bytes_max(0)),
    ];
    let dir = folder();
    let path = dir.path().join("log");
    for (name, options) in cases {
        match options.clone().open(&path) {
            Err(Error::Invalid { what, .. }) => assert_eq!(what, name, "{options:?}"),
            Err(error) => panic!("{options:?} gave {error:?}"),
            Ok(_) => panic!("{options:?} was accepted"),
        }
    }
    assert!(!path.exists(), "a refused open made the folder");
}
