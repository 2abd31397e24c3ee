//! Every form of a page against a model that is a slice, wherever the events lie.

use sessionlog::{
    Batch, Cursor, CursorProblem, Error, Event, EventId, NewEvent, Options, Page, PageRequest, Seq,
    SessionId, SessionLog, StartAt,
};

use crate::support::{
    OpenIn, append_notes, assert_dense, assert_error, folder, notes, open, seal_once, seqs,
    session, small_files,
};

/// The bounds and the order of a page, in seqs.
#[derive(Debug, Clone, Copy)]
struct Form {
    after: Option<Seq>,
    before: Option<Seq>,
    newest_first: bool,
    limit: usize,
}

/// Turns a seq into a cursor: itself, or the ID of the event that has it.
type ToCursor<'a> = &'a dyn Fn(Seq) -> Option<Cursor>;

impl Form {
    /// Returns the request for this page, if its bounds can be given as such cursors.
    fn page(self, to_cursor: ToCursor<'_>) -> Option<PageRequest> {
        let page = match (self.after, self.before) {
            (None, None) => PageRequest::new(),
            (Some(after), None) => PageRequest::new().after(to_cursor(after)?),
            (None, Some(before)) => PageRequest::new().before(to_cursor(before)?),
            (Some(after), Some(before)) if after % 2 == 0 => PageRequest::new()
                .after(to_cursor(after)?)
                .before(to_cursor(before)?),
            (Some(after), Some(before)) => PageRequest::new()
                .before(to_cursor(before)?)
                .after(to_cursor(after)?),
        };
        let page = page.limit(self.limit);
        Some(if self.newest_first {
            page.newest_first()
        } else {
            page
        })
    }

    fn holds(self, seq: Seq) -> bool {
        self.after.is_none_or(|after| seq > after) && self.before.is_none_or(|before| seq < before)
    }

    /// The events in range, in the order of the page.
    fn range(self, all: &[Event]) -> Vec<Event> {
        let mut range: Vec<_> = all
            .iter()
            .filter(|event| self.holds(event.seq))
            .cloned()
            .collect();
        if self.newest_first {
            range.reverse();
        }
        range
    }
}

/// Every combination of bounds at and around `places`, in both orders, with each limit.
fn forms(places: &[Seq], tail: Seq, limits: &[usize]) -> Vec<Form> {
    let after = || {
        places
            .iter()
            .map(|seq| Some(*seq))
            .filter(|seq| seq.is_none_or(|seq| seq <= tail))
            .chain([None])
    };
    let before = || {
        places
            .iter()
            .map(|seq| Some(*seq))
            .chain([Some(tail + 1), None])
    };
    let mut forms = Vec::new();
    for after in after() {
        for before in before().filter(
            |before| !matches!((after, before), (Some(after), Some(before)) if *before <= after),
        ) {
            for &limit in limits {
                forms.extend([false, true].map(|newest_first| Form {
                    after,
                    before,
                    newest_first,
                    limit,
                }));
            }
        }
    }
    forms
}

fn check_page(page: &Page<Event>, form: Form, all: &[Event]) {
    let range = form.range(all);
    let expected = &range[..form.limit.min(range.len())];
    assert_eq!(seqs(&page.items), seqs(expected), "{form:?}");
    assert_eq!(page.items, expected, "{form:?}");
    assert_eq!(page.has_more, range.len() > form.limit, "{form:?}");
    assert_eq!(page.tail, all.len() as Seq, "{form:?}");
    assert_eq!(page.tail_id, all.last().map(|event| event.id), "{form:?}");
    match (seqs(expected).iter().min(), seqs(expected).iter().max()) {
        (Some(first), Some(last)) => {
            assert_eq!((page.first, page.last), (*first, *last), "{form:?}");
        }
        _ => assert_eq!(page.first, page.last + 1, "{form:?}"),
    }
}

/// Reads the session in every form of page, with both kinds of cursor.
fn check_forms(log: &SessionLog, session: &SessionId, all: &[Event], places: &[Seq]) {
    let by_seq: ToCursor<'_> = &|seq| Some(Cursor::Seq(seq));
    let index = |seq: Seq| usize::try_from(seq).unwrap().checked_sub(1);
    let by_id: ToCursor<'_> = &|seq| all.get(index(seq)?).map(|event| Cursor::Event(event.id));
    for form in forms(places, all.len() as Seq, &[1, 2, 7, 1_000]) {
        for page in [by_seq, by_id]
            .into_iter()
            .filter_map(|to_cursor| form.page(to_cursor))
        {
            check_page(&log.list(session, page).unwrap(), form, all);
        }
    }
}

/// A page covers each of its events.
fn check_covered(page: &Page<Event>) {
    let covered = page.first..=page.last;
    let is_covered = |event: &Event| covered.contains(&event.seq);
    assert!(page.items.iter().all(is_covered), "{page:?}");
}

/// Walks from page to page, in both orders, over the events of some types or of all.
pub(crate) fn check_walk(
    log: &SessionLog,
    session: &SessionId,
    all: &[Event],
    types: Option<&[&str]>,
    limit: usize,
) {
    let start = || match types {
        Some(types) => PageRequest::new().types(types).limit(limit),
        None => PageRequest::new().limit(limit),
    };
    let mut wanted: Vec<_> = all
        .iter()
        .filter(|event| types.is_none_or(|types| types.contains(&event.event_type.as_str())))
        .collect();
    let mut walked: Vec<Event> = Vec::new();
    let (mut page, mut covered) = (log.list(session, start()).unwrap(), 0);
    loop {
        assert_eq!(
            page.first,
            covered + 1,
            "a page begins where the one before it ended"
        );
        assert!(page.items.len() <= limit);
        check_covered(&page);
        covered = page.last;
        walked.extend(page.items);
        if !page.has_more {
            break;
        }
        assert!(
            page.last >= page.first,
            "a page that says there is more must move on"
        );
        page = log.list(session, start().after(page.last)).unwrap();
    }
    assert_eq!(covered, all.len() as Seq);
    assert_eq!(
        walked.iter().collect::<Vec<_>>(),
        wanted,
        "{types:?} in pages of {limit}"
    );

    walked.clear();
    page = log.list(session, start().newest_first()).unwrap();
    covered = all.len() as Seq + 1;
    loop {
        assert_eq!(
            page.last + 1,
            covered,
            "a page ends where the one before it began"
        );
        check_covered(&page);
        covered = page.first;
        walked.extend(page.items);
        if !page.has_more {
            break;
        }
        page = log
            .list(session, start().newest_first().before(covered))
            .unwrap();
    }
    assert_eq!(covered, 1);
    wanted.reverse();
    assert_eq!(
        walked.iter().collect::<Vec<_>>(),
        wanted,
        "{types:?} newest first in pages of {limit}"
    );
}

fn check_walks(log: &SessionLog, session: &SessionId, all: &[Event]) {
    let filters: [&[&str]; 7] = [
        &["a"],
        &["b", "a"],
        &["rare"],
        &["first"],
        &["last"],
        &["missing"],
        &["aa", "A"],
    ];
    for limit in [1, 3, 10, 1_000] {
        check_walk(log, session, all, None, limit);
        for types in filters {
            check_walk(log, session, all, Some(types), limit);
        }
    }
}

/// A batch of events whose types differ in how often they come.
fn mixed(round: usize, count: usize, bytes: usize) -> Batch {
    let event_type = |n: usize| match (round, n) {
        (0, 0) => "first",
        (1, 3) => "rare",
        _ if n.is_multiple_of(3) => "b",
        _ => "a",
    };
    Batch::new().events(
        (0..count)
            .map(|n| NewEvent::new(event_type(n), vec![u8::try_from(n % 251).unwrap(); bytes])),
    )
}

/// Appends to a session in every shape of batch and ends it with an event of type `last`.
fn fill(log: &SessionLog, session: &SessionId) -> Vec<Event> {
    let batches = [
        mixed(0, 1, 10),
        mixed(1, 5, 0),
        mixed(2, 1, 100),
        mixed(3, 17, 1_000),
        mixed(4, 2, 10),
    ];
    let batches = batches
        .into_iter()
        .chain([Batch::new().event(NewEvent::new("last", ""))]);
    batches
        .flat_map(|batch| log.append(session, batch).unwrap().events)
        .collect()
}

#[test]
fn pages_from_memory_match_the_model() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &session("r"), "neighbour", 3);
    let all = fill(&log, &id);
    append_notes(&log, &session("t"), "neighbour", 3);
    assert_dense(&all, 1..=27);
    let every_place: Vec<_> = (0..=27).collect();
    check_forms(&log, &id, &all, &every_place);
    check_walks(&log, &id, &all);
}

#[test]
fn pages_of_a_session_with_one_event_match_the_model() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let all = append_notes(&log, &id, "only", 1);
    check_forms(&log, &id, &all, &[0, 1]);
    check_walk(&log, &id, &all, Some(&["other"]), 1);
}

#[test]
fn pages_over_segments_and_memory_match_the_model() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let (id, filler) = (session("s"), session("filler"));
    let mut all = Vec::new();
    let mut places = vec![0, 1, 2];
    for round in 0..4 {
        all.extend(log.append(&id, mixed(round, 1, 10)).unwrap().events);
        all.extend(log.append(&id, mixed(round, 12, 20_000)).unwrap().events);
        let end = all.len() as Seq;
        places.extend([end - 1, end, end + 1]);
        if round < 3 {
            seal_once(&log, &filler);
        }
    }
    all.extend(
        log.append(&id, Batch::new().event(NewEvent::new("last", "")))
            .unwrap()
            .events,
    );
    assert_dense(&all, 1..=53);
    let check = |log: &SessionLog| {
        check_forms(log, &id, &all, &places);
        check_walks(log, &id, &all);
    };
    check(&log);
    log.close().unwrap();
    let log = small_files().open_in(&dir).unwrap();
    check(&log);
    seal_once(&log, &filler);
    check(&log);
}

#[test]
fn a_session_larger_than_a_segment_reads_back_whole() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let id = session("s");
    let mut all = log.append(&id, mixed(0, 3, 10)).unwrap().events;
    for _ in 0..3 {
        all.extend(seal_once(&log, &id));
    }
    let tail = all.len() as Seq;
    let check = |log: &SessionLog| {
        check_walk(log, &id, &all, None, 7);
        check_walk(log, &id, &all, Some(&["first"]), 7);
        check_forms(log, &id, &all, &[0, 4, 19, 20, tail - 1]);
    };
    check(&log);
    log.close().unwrap();
    check(&small_files().open_in(&dir).unwrap());
}

#[test]
fn a_filtered_page_scans_no_further_than_told_and_says_where_to_go_on() {
    for scan_bytes in [1, 1_000, 5_000] {
        let dir = folder();
        let log = sessionlog::Options::new()
            .scan_bytes_max(scan_bytes)
            .open_in(&dir)
            .unwrap();
        let id = session("s");
        let all: Vec<_> = (0..40)
            .flat_map(|round| log.append(&id, mixed(round, 5, 500)).unwrap().events)
            .collect();
        let page = log
            .list(&id, PageRequest::new().types(["missing"]))
            .unwrap();
        assert!(
            page.has_more,
            "100,000 bytes were scanned where {scan_bytes} are allowed: {page:?}"
        );
        assert_eq!((page.items.len(), page.first, page.tail), (0, 1, 200));
        for types in [&["missing"][..], &["rare"], &["b"]] {
            check_walk(&log, &id, &all, Some(types), 10);
        }
    }
}

#[test]
fn a_filtered_page_counts_events_without_data() {
    let dir = folder();
    let log = Options::new().scan_bytes_max(10_000).open_in(&dir).unwrap();
    let id = session("s");
    for _ in 0..4 {
        log.append(
            &id,
            Batch::new().events((0..1_000).map(|_| NewEvent::new("note", ""))),
        )
        .unwrap();
    }
    let page = log.list(&id, PageRequest::new().types(["other"])).unwrap();
    assert!(
        page.items.is_empty() && page.has_more && page.last < 1_000,
        "{} of 4,000 were read",
        page.last
    );
}

#[test]
fn a_cursor_holds_when_the_filter_changes() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let all: Vec<_> = (0..10)
        .flat_map(|round| log.append(&id, mixed(round, 6, 10)).unwrap().events)
        .collect();
    let rare = log
        .list(&id, PageRequest::new().types(["rare"]))
        .unwrap()
        .items[0]
        .clone();
    for cursor in [Cursor::from(rare.seq), Cursor::from(rare.id)] {
        let page = log
            .list(&id, PageRequest::new().after(cursor).types(["b"]).limit(2))
            .unwrap();
        let wanted: Vec<_> = all
            .iter()
            .filter(|event| event.seq > rare.seq && event.event_type == "b")
            .take(2)
            .cloned()
            .collect();
        assert_eq!(page.items, wanted);
        let page = log
            .list(
                &id,
                PageRequest::new().before(cursor).newest_first().limit(2),
            )
            .unwrap();
        assert_eq!(seqs(&page.items), [rare.seq - 1, rare.seq - 2]);
    }
}

#[test]
fn a_page_after_the_tail_is_empty_and_finds_what_comes_next() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "n", 3);
    let page = log.list(&id, PageRequest::new().after(3)).unwrap();
    assert_eq!(
        (
            page.items.len(),
            page.has_more,
            page.first,
            page.last,
            page.tail
        ),
        (0, false, 4, 3, 3)
    );
    let next = append_notes(&log, &id, "next", 2);
    assert_eq!(
        log.list(&id, PageRequest::new().after(page.last))
            .unwrap()
            .items,
        next
    );
}

/// Reads in every call that takes an exclusive lower bound, none of which may accept this one.
fn check_bad_after(log: &SessionLog, session: &SessionId, cursor: Cursor, expected: CursorProblem) {
    let after = PageRequest::new().after(cursor);
    for page in [
        after.clone(),
        after.clone().newest_first(),
        after.types(["note"]),
        PageRequest::new().before(1).after(cursor),
    ] {
        check_refused(log, session, page, expected);
    }
    assert_error!(
        log.stream(session, StartAt::After(cursor)),
        Error::Cursor { session: of, problem } if of == session && *problem == expected
    );
}

/// The same for an upper bound.
fn check_bad_before(
    log: &SessionLog,
    session: &SessionId,
    cursor: Cursor,
    expected: CursorProblem,
) {
    let before = PageRequest::new().before(cursor);
    for page in [
        before.clone(),
        before.clone().newest_first(),
        before.types(["note"]),
        PageRequest::new().after(1).before(cursor),
    ] {
        check_refused(log, session, page, expected);
    }
}

fn check_refused(
    log: &SessionLog,
    session: &SessionId,
    page: PageRequest,
    expected: CursorProblem,
) {
    assert_error!(
        log.list(session, page.clone()),
        Error::Cursor { session: of, problem } if of == session && *problem == expected
    );
    assert_error!(
        log.messages(session, page),
        Error::Cursor { problem, .. } if *problem == expected
    );
}

#[test]
fn a_cursor_that_does_not_fit_is_named() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let (id, other) = (session("s"), session("other"));
    let first = append_notes(&log, &id, "n", 3);
    let theirs = append_notes(&log, &other, "n", 2);
    let check = |log: &SessionLog| {
        let last = log
            .list(&id, PageRequest::new().newest_first().limit(1))
            .unwrap()
            .items[0]
            .clone();
        for beyond in [last.seq + 2, last.seq + 3, Seq::MAX - 1, Seq::MAX] {
            let problem = CursorProblem::BeyondTail {
                seq: beyond,
                tail: last.seq,
            };
            check_bad_after(log, &id, beyond.into(), problem);
            check_bad_before(log, &id, beyond.into(), problem);
        }
        let just_beyond = CursorProblem::BeyondTail {
            seq: last.seq + 1,
            tail: last.seq,
        };
        check_bad_after(log, &id, (last.seq + 1).into(), just_beyond);
        for event in &theirs {
            check_bad_after(
                log,
                &id,
                event.id.into(),
                CursorProblem::OtherSession(event.id),
            );
            check_bad_before(
                log,
                &id,
                event.id.into(),
                CursorProblem::OtherSession(event.id),
            );
        }
        let between = first[0].id.to_u128() + 1;
        let never = [0, 1, first[0].id.to_u128() - 1, between, u128::MAX].map(EventId::from_u128);
        for unknown in never.into_iter().filter(|id| *id != first[1].id) {
            check_bad_after(log, &id, unknown.into(), CursorProblem::Unknown(unknown));
            check_bad_before(log, &id, unknown.into(), CursorProblem::Unknown(unknown));
            assert_error!(log.event(unknown), Error::UnknownEvent { id } if *id == unknown);
        }
    };
    check(&log);
    seal_once(&log, &session("filler"));
    check(&log);
    append_notes(&log, &id, "more", 2);
    check(&log);
    log.close().unwrap();
    check(&small_files().open_in(&dir).unwrap());
}

#[test]
fn pages_under_a_growing_session_are_gapless() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "first", 1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (0..100).for_each(|n| drop(log.append(&id, notes(&n.to_string(), 3)).unwrap()));
        });
        let (mut at, mut seen) = (0, Vec::new());
        while at < 301 {
            let finished = writer.is_finished();
            let page = log
                .list(&id, PageRequest::new().after(at).limit(5))
                .unwrap();
            assert!(
                !finished || !page.items.is_empty(),
                "the walk stopped at {at}: {page:?}"
            );
            assert!(page.tail >= page.last, "{page:?}");
            at = page.last;
            seen.extend(page.items);
        }
        assert_dense(&seen, 1..=301);
    });
}
