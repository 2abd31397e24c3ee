//! Sessions are separate under any names, and are listed in order.

use std::fs;

use sessionlog::{
    Batch, Error, Limit, PageRequest, Seq, SessionId, SessionLog, SessionQuery, StartAt,
};

use crate::support::{
    ListIds, OpenIn, append_notes, assert_dense, assert_error, drain, embedded_alone, feed_all,
    folder, note, of_session, open, paths_below, read_all, seal_once, session, small_files,
    take_events,
};

/// Names that would collide in a folder, in a key without lengths, or after folding case or Unicode
/// forms.
fn awkward_names() -> Vec<String> {
    let short = [
        ".",
        "..",
        "../..",
        "a/../b",
        "a",
        "b",
        "a/b",
        "a/",
        "/a",
        "/",
        "a\\b",
        "aa",
        "ab",
        "abc",
        "a b",
        " a",
        "a ",
        " ",
        "A",
        "\u{e9}",
        "e\u{301}",
        "\u{df}",
        "ss",
        "\u{202e}a",
        "\u{fffd}",
        "\u{10ffff}",
        "\u{1f980}",
        "LOCK",
        "MANIFEST",
        "con",
        "../MANIFEST",
        "segments/x.segment",
        "a:b",
        "a,b",
        "0",
        "00",
        "1",
        "sess_1",
        "sess_10",
        "%2e%2e",
        "~",
        "-rf",
        "*",
        "a'\"b",
    ];
    let long = [1, 254, 255, 256].map(|length| "x".repeat(length));
    let last_differs = ["y", "z"].map(|end| "x".repeat(255) + end);
    let first_differs = ["y", "z"].map(|start| start.to_owned() + &"x".repeat(255));
    let wide = ["\u{e9}".repeat(128), "\u{10ffff}".repeat(64)];
    short
        .map(str::to_owned)
        .into_iter()
        .chain(long)
        .chain(last_differs)
        .chain(first_differs)
        .chain(wide)
        .collect()
}

/// Returns the data of the session's event at `seq`, which no other session and no other seq has.
fn data_of(session: &SessionId, seq: Seq) -> String {
    format!("{session:?}#{seq}")
}

fn append_next(log: &SessionLog, sessions: &[SessionId], seq: Seq) {
    for id in sessions {
        log.append(id, Batch::new().event(note(data_of(id, seq))))
            .unwrap();
    }
}

/// Fails unless each session holds exactly the notes that were appended under its name.
fn check_apart(log: &SessionLog, sessions: &[SessionId], each: usize) {
    for id in sessions {
        let events = read_all(log, id);
        assert_dense(&events, 1..=each as u64);
        let strange: Vec<_> = events
            .iter()
            .filter(|event| event.session_id != *id)
            .collect();
        assert!(strange.is_empty(), "{id:?} holds {strange:?}");
        for event in &events {
            assert_eq!(event.data, data_of(id, event.seq));
            assert_eq!(log.event(event.id).unwrap(), *event);
        }
        assert_eq!(
            drain(&mut log.stream(id, StartAt::Beginning).unwrap().until_tail()),
            events
        );
        let head = log.head(id).unwrap();
        assert_eq!(
            (head.first, head.last, head.last_id),
            (1, each as u64, Some(events.last().unwrap().id))
        );
    }
    let mut sorted = sessions.to_vec();
    sorted.sort_by(|a, b| a.as_str().as_bytes().cmp(b.as_str().as_bytes()));
    assert_eq!(
        log.session_ids(SessionQuery::by_id().limit(1_000)).unwrap(),
        sorted
    );
}

#[test]
fn sessions_with_awkward_names_never_meet() {
    let dir = folder();
    let sessions: Vec<_> = awkward_names().iter().map(|name| session(name)).collect();
    let mut log = small_files().open_in(&dir).unwrap();
    append_next(&log, &sessions, 1);
    append_next(&log, &sessions, 2);
    check_apart(&log, &sessions, 2);
    log.close().unwrap();
    log = small_files().open_in(&dir).unwrap();
    check_apart(&log, &sessions, 2);

    // From here on they are in a segment, together with one more that fills it.
    let filler = session("filler");
    seal_once(&log, &filler);
    append_next(&log, &sessions, 3);
    for id in &sessions {
        let data: Vec<_> = read_all(&log, id)
            .into_iter()
            .map(|event| event.data)
            .collect();
        assert_eq!(data, [1, 2, 3].map(|seq| data_of(id, seq)), "{id:?}");
    }
    assert_eq!(
        log.session_ids(SessionQuery::by_id().limit(1_000))
            .unwrap()
            .len(),
        sessions.len() + 1
    );
}

#[test]
fn no_file_is_ever_named_after_a_session() {
    embedded_alone!("it looks into files");
    let outer = folder();
    let dir = tempfile::tempdir_in(outer.path()).unwrap();
    let path = dir.path().to_owned();
    let log = small_files().open(&path).unwrap();
    for name in awkward_names() {
        append_notes(&log, &session(&name), "n", 1);
    }
    seal_once(&log, &session("a/../../filler"));
    log.close().unwrap();

    let inside_only: Vec<_> = fs::read_dir(outer.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(inside_only, std::slice::from_ref(&path));
    let long_enough = |name: &String| name.len() > 2 || !name.is_ascii();
    let names: Vec<_> = awkward_names()
        .into_iter()
        .filter(long_enough)
        .filter(|name| name != "LOCK" && name != "MANIFEST")
        .collect();
    for found in paths_below(&path) {
        let file = found
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a file name of ours is text");
        assert!(file.is_ascii(), "{}", found.display());
        assert!(
            !names.iter().any(|name| name == file),
            "{}",
            found.display()
        );
    }
}

#[test]
fn a_name_that_breaks_the_rules_is_refused() {
    for name in [
        "",
        "\0",
        "a\0b",
        "a\n",
        "\r",
        "\t",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{80}",
        "a\u{9f}",
    ] {
        assert_error!(
            SessionId::new(name),
            Error::Invalid {
                what: "session ID",
                ..
            }
        );
        assert_error!(
            name.parse::<SessionId>(),
            Error::Invalid {
                what: "session ID",
                ..
            }
        );
    }
    for (name, actual) in [
        ("x".repeat(257), 257),
        ("\u{e9}".repeat(129), 258),
        ("x".repeat(100_000), 100_000),
    ] {
        assert_error!(
            SessionId::new(&name),
            Error::TooLarge { limit: Limit::SessionIdBytes, max: 256, actual: a }
                if *a == actual
        );
    }
    for name in awkward_names() {
        let id = SessionId::new(&name).unwrap();
        assert_eq!((id.as_str(), id.to_string()), (name.as_str(), name.clone()));
    }
}

/// Walks the listing in pages of each size, from before the first to past the last.
fn check_listing(log: &SessionLog, sorted: &[SessionId]) {
    for limit in [
        1,
        2,
        3,
        sorted.len() - 1,
        sorted.len(),
        sorted.len() + 1,
        1_000,
    ] {
        let mut walked: Vec<SessionId> = Vec::new();
        loop {
            let page = match walked.last() {
                Some(last) => log
                    .session_ids(SessionQuery::by_id().after(last).limit(limit))
                    .unwrap(),
                None => log.session_ids(SessionQuery::by_id().limit(limit)).unwrap(),
            };
            assert_eq!(page.len(), limit.min(sorted.len() - walked.len()));
            if page.is_empty() {
                break;
            }
            walked.extend(page);
        }
        assert_eq!(walked, sorted);
    }
    // A cursor need not be a session that exists.
    for name in ["!", "a0", "m", "~", &"z".repeat(256)] {
        let cursor = session(name);
        let expected: Vec<_> = sorted
            .iter()
            .filter(|id| id.as_str() > name)
            .cloned()
            .collect();
        assert_eq!(
            log.session_ids(SessionQuery::by_id().after(&cursor).limit(1_000))
                .unwrap(),
            expected,
            "after {name:?}"
        );
    }
}

#[test]
fn sessions_are_listed_by_their_bytes_wherever_they_lie() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let names = [
        "b", "aa", "a", "ab", "B", "\u{e9}", "a\u{e9}", "zz", "z", "10", "9", "aaa",
    ];
    let mut sorted: Vec<_> = names.map(session).to_vec();
    sorted.push(session("filler"));
    sorted.push(session("later"));
    sorted.sort();
    assert_eq!(
        log.session_ids(SessionQuery::by_id().limit(10)).unwrap(),
        []
    );
    let (early, late) = names.split_at(6);
    for name in early {
        append_notes(&log, &session(name), "early", 2);
    }
    seal_once(&log, &session("filler"));
    for name in late.iter().chain(early.first()).chain([&"later"]) {
        append_notes(&log, &session(name), "late", 1);
    }
    check_listing(&log, &sorted);
    log.close().unwrap();
    let log = small_files().open_in(&dir).unwrap();
    check_listing(&log, &sorted);
    seal_once(&log, &session("filler"));
    check_listing(&log, &sorted);
}

#[test]
fn recent_sessions_come_newest_first_and_once() {
    let dir = folder();
    let mut log = small_files().open_in(&dir).unwrap();
    assert_eq!(log.recent_ids(10).unwrap(), []);
    let mut order: Vec<SessionId> = Vec::new();
    let mut touch = |log: &SessionLog, name: &str| {
        let id = session(name);
        append_notes(log, &id, "n", 1);
        order.retain(|other| *other != id);
        order.insert(0, id);
        for limit in [1, 2, 3, 100] {
            assert_eq!(
                log.recent_ids(limit).unwrap(),
                order[..limit.min(order.len())],
                "the newest {limit}"
            );
        }
    };
    for name in ["a", "b", "c", "a", "d", "a", "b"] {
        touch(&log, name);
    }
    seal_once(&log, &session("filler"));
    touch(&log, "filler");
    touch(&log, "e");
    touch(&log, "c");
    log.close().unwrap();
    log = small_files().open_in(&dir).unwrap();
    touch(&log, "a");
    touch(&log, "f");
}

#[test]
fn a_session_without_events_is_unknown_until_its_first() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &session("other"), "n", 1);
    let check_unknown = |log: &SessionLog| {
        assert_error!(
            log.list(&id, PageRequest::new()),
            Error::UnknownSession { session } if *session == id
        );
        assert_error!(
            log.list(&id, PageRequest::new().newest_first()),
            Error::UnknownSession { .. }
        );
        assert_error!(
            log.list(&id, PageRequest::new().after(0)),
            Error::UnknownSession { .. }
        );
        assert_error!(
            log.messages(&id, PageRequest::new()),
            Error::UnknownSession { session } if *session == id
        );
        assert_error!(log.head(&id), Error::UnknownSession { session } if *session == id);
        assert_error!(
            log.stream(&id, StartAt::Beginning),
            Error::UnknownSession { session } if *session == id
        );
        assert_error!(log.stream(&id, StartAt::Now), Error::UnknownSession { .. });
    };
    check_unknown(&log);
    let mut waiting = log.stream(&id, StartAt::Creation).unwrap();
    check_unknown(&log);
    log.close().unwrap();
    assert_eq!(drain(&mut waiting), []);

    let log = open(&dir);
    check_unknown(&log);
    let mut waiting = log.stream(&id, StartAt::Creation).unwrap();
    let events = append_notes(&log, &id, "n", 2);
    assert_eq!(take_events(&mut waiting, 2), events);
    assert_eq!(read_all(&log, &id), events);
    assert_eq!(of_session(&feed_all(&log), &id), events);
}
