//! Copies of a log that is appended to meanwhile.

use std::fs;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sessionlog::{Compression, Delete, Error, SessionLog};

use crate::support::{
    Over, append_notes, assert_error, embedded_alone, feed_all, folder, open, read_all, seal_once,
    session, small_files,
};

#[test]
fn a_backup_holds_what_was_durable_and_opens() {
    let (dir, copies) = (folder(), folder());
    let log = small_files().open(dir.path()).unwrap();
    seal_once(&log, &session("filler"));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = Over(&ended);
        for writer in 0..3 {
            let (log, ended) = (&log, &ended);
            scope.spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    append_notes(log, &session(&format!("s{writer}")), "n", 2);
                }
            });
        }
        for nth in 0..3 {
            let copy = copies.path().join(nth.to_string());
            let before = feed_all(&log).len();
            log.backup(&copy).unwrap();
            let opened = SessionLog::open(&copy).unwrap();
            let (held, now) = (feed_all(&opened), feed_all(&log));
            assert!(held.len() >= before, "{} of {before} events", held.len());
            assert!(now.starts_with(&held), "the copy holds something else");
            assert!(opened.stats().recovery.clean);
            append_notes(&opened, &session("s0"), "the copy's own", 1);
        }
        drop(over);
    });
    log.close().unwrap();
}

#[test]
fn a_backup_into_the_same_folder_takes_what_is_new() {
    let (dir, copy) = (folder(), folder());
    let plain = small_files().compression(Compression::None);
    let log = plain.open(dir.path()).unwrap();
    let id = session("s");
    for _ in 0..3 {
        seal_once(&log, &session("filler"));
    }
    append_notes(&log, &id, "first", 3);
    let first = log.backup(copy.path()).unwrap();
    assert!(first.linked_bytes + first.copied_bytes > 4 << 20);
    append_notes(&log, &id, "second", 3);
    let second = log.backup(copy.path()).unwrap();
    let new = second.linked_bytes + second.copied_bytes;
    assert!(new < 1 << 20, "{new} bytes were taken again");
    let again = SessionLog::open(copy.path()).unwrap();
    assert_eq!(read_all(&again, &id), read_all(&log, &id));
    assert_error!(log.backup(copy.path()), Error::Locked { .. });
    again.close().unwrap();
    log.delete(&id, Delete::new()).unwrap();
    log.compact(|_| ControlFlow::Continue(())).unwrap();
    log.backup(copy.path()).unwrap();
    let again = SessionLog::open(copy.path()).unwrap();
    assert_error!(again.head(&id), Error::UnknownSession { .. });
    assert_eq!(feed_all(&again), feed_all(&log));
}

#[test]
fn a_backup_does_not_overwrite_another_log() {
    embedded_alone!("it is about a folder");
    let (dir, other) = (folder(), folder());
    let log = open(&dir);
    let kept = append_notes(&open(&other), &session("s"), "kept", 1);
    assert_error!(
        log.backup(other.path()),
        Error::Invalid { what: "folder", .. }
    );
    assert_error!(log.backup(dir.path()), Error::Locked { .. });
    assert_eq!(read_all(&open(&other), &session("s")), kept);
}

/// Nothing in the folder says yet that the log is there.
#[test]
fn a_backup_that_was_not_finished_does_not_open() {
    embedded_alone!("it is about a folder");
    let (dir, copy) = (folder(), folder());
    let log = open(&dir);
    append_notes(&log, &session("s"), "n", 1);
    log.backup(copy.path()).unwrap();
    for slot in ["MANIFEST-0", "MANIFEST-1"] {
        fs::remove_file(copy.path().join(slot)).unwrap();
    }
    assert_error!(SessionLog::open(copy.path()), Error::Corrupt { .. });
    log.backup(copy.path()).unwrap();
    assert_eq!(feed_all(&SessionLog::open(copy.path()).unwrap()).len(), 1);
}

#[test]
fn a_backup_of_an_idle_log_adds_no_segment() {
    embedded_alone!("it is about a folder");
    let (dir, copies) = (folder(), folder());
    let log = open(&dir);
    append_notes(&log, &session("s"), "n", 3);
    let copy = copies.path().join("copy");
    let first = log.backup(&copy).unwrap();
    let segments = log.stats().segments;
    assert_eq!(first.segments, segments);
    let again = log.backup(&copy).unwrap();
    assert_eq!(
        (again.segments, again.copied_bytes + again.linked_bytes),
        (segments, 0)
    );
    log.close().unwrap();
    // As the command does it, which opens the log for the backup alone.
    let log = open(&dir);
    let third = log.backup(copies.path().join("other")).unwrap();
    assert_eq!((third.segments, log.stats().segments), (segments, segments));
    let opened = SessionLog::open(&copy).unwrap();
    assert_eq!(feed_all(&opened), feed_all(&log));
    append_notes(&log, &session("s"), "more", 1);
    drop(opened);
    assert_eq!(log.backup(&copy).unwrap().segments, segments + 1);
}

#[test]
fn a_backup_of_an_empty_log_is_an_empty_log() {
    embedded_alone!("it is about a folder");
    let (dir, copy) = (folder(), folder());
    let log = open(&dir);
    assert_eq!(log.backup(copy.path()).unwrap().segments, 0);
    let opened = SessionLog::open(copy.path()).unwrap();
    assert!(opened.stats().recovery.clean && feed_all(&opened).is_empty());
    append_notes(&opened, &session("s"), "n", 1);
    opened.close().unwrap();
    assert_eq!(feed_all(&SessionLog::open(copy.path()).unwrap()).len(), 1);
}
