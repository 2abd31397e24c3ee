//! The index is a hint. Here it lies in ways that damage does not cause: every entry is whole, and
//! the index claims to have all segments.

use std::path::Path;

use sessionlog::{Compression, Event, Expected, Options, PageRequest, SessionId, Stats};

use crate::list::check_walk;
use crate::support::{
    Place, append_notes, embedded_alone, eventually, feed_all, folder, note, notes, read_all,
    seal_once, session, small_files,
};

const SESSIONS: usize = 6;
/// Two neighbours are merged, so these make several merged segments.
const ROUNDS: usize = 8;
const RUNS_MIN: usize = 3;

/// The keys of entries begin with this byte. The key of what the index covers does not.
const KIND_SESSION: u8 = 4;
const KIND_COVERAGE_BEFORE: u8 = 3;
/// The bytes of a key that are the session's.
const SESSION_BYTES: std::ops::Range<usize> = 1..17;
/// sled opens a folder only with the size that it was made with.
const SLED_SEGMENT_BYTES: usize = 8 * 1024 * 1024;

#[test]
fn an_index_that_has_forgotten_the_last_run_of_each_session_is_found_out() {
    check_lies(|sessions| for_each(sessions, |runs| runs.last_mut().unwrap().1 = None));
}

#[test]
fn an_index_that_has_forgotten_all_but_the_first_run_of_each_session_is_found_out() {
    check_lies(|sessions| {
        for_each(sessions, |runs| {
            for_each(&mut runs[1..], |(_, run)| *run = None);
        });
    });
}

#[test]
fn an_index_that_has_forgotten_a_run_in_the_middle_is_found_out() {
    embedded_alone!("it is about a folder");
    check_lies(|sessions| for_each(sessions, |runs| runs[1].1 = None));
}

#[test]
fn an_index_that_takes_an_earlier_run_for_the_last_is_found_out() {
    check_lies(|sessions| {
        for_each(sessions, |runs| {
            runs.last_mut().unwrap().1 = runs[0].1.clone();
        });
    });
}

#[test]
fn an_index_in_which_runs_have_changed_places_is_found_out() {
    check_lies(|sessions| {
        for_each(sessions, |runs| {
            let (first, last) = runs.split_at_mut(1);
            std::mem::swap(&mut first[0].1, &mut last.last_mut().unwrap().1);
        });
    });
}

#[test]
fn an_index_that_takes_the_last_run_of_another_session_for_a_session_s_own_is_found_out() {
    check_lies(|sessions| {
        let last = |runs: &Runs| runs.last().unwrap().1.clone();
        let other: Vec<_> = sessions
            .iter()
            .cycle()
            .skip(1)
            .take(sessions.len())
            .map(last)
            .collect();
        for (runs, other) in sessions.iter_mut().zip(other) {
            runs.last_mut().unwrap().1 = other;
        }
    });
}

#[test]
fn what_the_index_said_of_a_session_that_grew_since_is_no_limit_and_no_lie() {
    let dir = folder();
    let log = small_files().open(dir.path()).unwrap();
    let (read, filler) = (session("read"), session("filler"));
    let mut events = Vec::new();
    for nth in 0..ROUNDS {
        events.extend(append_notes(&log, &read, &nth.to_string(), 7));
        seal_once(&log, &filler);
        eventually("the index to have all segments", || {
            log.stats().index_lag == 0
        });
        if nth == 0 {
            continue;
        }
        // The index is queried for the end first, and so gives nothing of the events before it.
        assert_eq!(
            log.list(&read, PageRequest::new().newest_first().limit(3))
                .unwrap()
                .items
                .last(),
            events.iter().rev().nth(2)
        );
        for limit in [3, 10, 1_000] {
            check_walk(&log, &read, &events, None, limit);
        }
    }
    assert_eq!(
        log.stats().index_rebuilds,
        0,
        "the index was taken to have said what it never did"
    );
}

/// The entries claim more, and the progress has another key.
#[test]
fn an_index_of_an_earlier_format_is_built_again() {
    let dir = folder();
    let written = write_sealed(&dir);
    let db = sled_in(&dir.path().join("index"));
    let position = db
        .iter()
        .map(Result::unwrap)
        .find(|(key, _)| key[0] != KIND_SESSION)
        .unwrap();
    db.remove(position.0).unwrap();
    db.insert([KIND_COVERAGE_BEFORE], position.1).unwrap();
    db.flush().unwrap();
    drop(db);
    let log = small_files().open(dir.path()).unwrap();
    eventually("the index to be built again", || {
        log.stats().index_rebuilds == 1 && log.stats().index_lag == 0
    });
    for (session, events) in &written {
        assert!(
            &read_all(&log, session) == events,
            "{session} reads otherwise"
        );
    }
    assert_eq!(log.stats().index_rebuilds, 1);
}

#[test]
fn an_index_that_names_segments_that_are_gone_is_found_out() {
    let dir = folder();
    let options = small_files().compression(Compression::None).merge_fanout(2);
    let index = dir.path().join("index");
    let mut written = new_sessions();
    write_rounds(&dir, &options, &mut written, 2, |stats| stats.merges >= 1);
    let before = entries(&sled_in(&index));
    assert!(!before.is_empty());
    // So few that what was merged before is merged again.
    write_rounds(&dir, &options, &mut written, 6, |stats| stats.segments <= 4);
    let db = sled_in(&index);
    let now = entries(&db);
    for (key, run) in &before {
        assert!(
            !now.contains(&(key.clone(), run.clone())),
            "a segment stayed"
        );
        db.insert(key, &**run.as_ref().unwrap()).unwrap();
    }
    db.flush().unwrap();
    drop(db);
    check_found_out(&dir, &options, &written);
}

/// A key of the index, and its value.
type Entry = (Vec<u8>, Option<Vec<u8>>);

/// The entries of one session.
type Runs = Vec<Entry>;

fn for_each<T>(items: &mut [T], change: impl Fn(&mut T)) {
    for item in items {
        change(item);
    }
}

/// Changes the index's entries of the sessions, and opens the log with them. Readers and writers
/// must notice nothing, and the index must be rebuilt.
fn check_lies(lie: impl Fn(&mut [Runs])) {
    let dir = folder();
    let written = write_sealed(&dir);
    change_index(&dir.path().join("index"), lie);
    check_found_out(&dir, &merging(), &written);
}

/// Opens a log whose index lies. Readers and writers must notice nothing, and the index must be
/// rebuilt.
fn check_found_out(dir: &Place, options: &Options, written: &[Written]) {
    let log = options.clone().open(dir.path()).unwrap();
    // The index is not queried before it has been opened.
    eventually("the index to be open and to have all segments", || {
        log.stats().index_lag == 0
    });
    for (session, events) in written {
        let (head, newest) = (log.head(session).unwrap(), events.last().unwrap());
        assert_eq!(
            (head.last, head.last_id),
            (newest.seq, Some(newest.id)),
            "the head of {session}"
        );
        assert!(
            &read_all(&log, session) == events,
            "{session} reads otherwise"
        );
        assert!(
            log.append(session, notes("retry", 1).expected(Expected::NoSession))
                .is_err()
        );
        let ack = log
            .append(
                session,
                notes("next", 1).expected(Expected::Seq(newest.seq)),
            )
            .unwrap();
        assert_eq!(ack.first, newest.seq + 1);
    }
    eventually("the index to be built again", || {
        log.stats().index_rebuilds > 0 && log.stats().index_lag == 0
    });
    let rebuilds = log.stats().index_rebuilds;
    let feed = feed_all(&log);
    for (session, events) in written {
        assert!(
            read_all(&log, session).starts_with(events),
            "{session} reads otherwise from the index that was built again"
        );
        let of_session = feed.iter().filter(|event| event.session_id == *session);
        assert!(
            of_session.take(events.len()).eq(events),
            "the feed has {session} otherwise"
        );
    }
    assert_eq!(
        log.stats().index_rebuilds,
        rebuilds,
        "the index that was built again is blamed for the one before"
    );
}

/// A session and its events.
type Written = (SessionId, Vec<Event>);

fn new_sessions() -> Vec<Written> {
    (0..SESSIONS)
        .map(|nth| (session(&format!("s{nth}")), Vec::new()))
        .collect()
}

/// Returns a closed log with several segments, each with events of each session, and these events.
/// The journal holds none of them.
fn write_sealed(dir: &Place) -> Vec<Written> {
    let mut written = new_sessions();
    write_rounds(dir, &merging(), &mut written, ROUNDS, |stats| {
        stats.merges >= 3
    });
    written
}

/// Opens the log, appends to each session in each round, and closes it once all of it is sealed,
/// merged, and in the index.
fn write_rounds(
    dir: &Place,
    options: &Options,
    written: &mut [Written],
    rounds: usize,
    is_merged: impl Fn(&Stats) -> bool,
) {
    let log = options.clone().open(dir.path()).unwrap();
    for nth in 0..rounds {
        // A number that no other session has in this round, so that no run passes for another
        // session's.
        for (count, (session, events)) in (1..).zip(&mut *written) {
            events.extend(append_notes(&log, session, &nth.to_string(), count));
        }
        seal_once(&log, &session("filler"));
    }
    seal_once(&log, &session("filler"));
    eventually("the index to have all merged segments", || {
        let stats = log.stats();
        is_merged(&stats) && stats.index_lag == 0
    });
    log.close().unwrap();
}

#[test]
fn a_log_at_rest_merges_the_few_segments_that_it_has() {
    let dir = folder();
    let log = small_files()
        .compression(Compression::None)
        .open(dir.path())
        .unwrap();
    let written = session("written");
    log.append(&written, note("first")).unwrap();
    for _ in 0..2 {
        seal_once(&log, &session("filler"));
    }
    eventually("all segments to be one", || {
        let stats = log.stats();
        stats.segments == 1 && stats.merges > 0 && stats.index_lag == 0
    });
    let page = log.list(&written, PageRequest::new()).unwrap();
    assert_eq!(&*page.items[0].data, b"first");
}

fn merging() -> Options {
    // Two segments of a journal file each fit, and no more.
    small_files()
        .compression(Compression::None)
        .merge_fanout(2)
        .tier_bytes_max(14 << 20)
}

fn sled_in(folder: &Path) -> sled::Db {
    sled::Config::new()
        .path(folder)
        .segment_size(SLED_SEGMENT_BYTES)
        .open()
        .unwrap()
}

/// The entries of all sessions.
fn entries(db: &sled::Db) -> Runs {
    db.scan_prefix([KIND_SESSION])
        .map(Result::unwrap)
        .map(|(key, run)| (key.to_vec(), Some(run.to_vec())))
        .collect()
}

fn change_index(folder: &Path, lie: impl Fn(&mut [Runs])) {
    let db = sled_in(folder);
    let entries = entries(&db);
    let mut sessions: Vec<Runs> = entries
        .chunk_by(|(one, _), (other, _)| session_of(one) == session_of(other))
        .map(<[Entry]>::to_vec)
        .collect();
    for runs in &sessions {
        assert!(runs.len() >= RUNS_MIN, "{} runs of a session", runs.len());
    }
    lie(&mut sessions);
    for (key, run) in sessions.into_iter().flatten() {
        match run {
            Some(run) => db.insert(key, run).unwrap(),
            None => db.remove(key).unwrap(),
        };
    }
    db.flush().unwrap();
}

fn session_of(key: &[u8]) -> Option<&[u8]> {
    key.get(SESSION_BYTES)
}
