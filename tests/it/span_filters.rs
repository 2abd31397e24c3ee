//! Filters over many segments: their answers are right even when their files are lost or damaged,
//! and they are rebuilt.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sessionlog::{Batch, Error, Expected, Options, SessionLog};

use crate::support::{assert_error, eventually, folder, note, notes, segments, session};

/// The number of segments under the narrowest such filter.
const SPAN: usize = 16;

/// Options under which every few appends make a segment.
fn sealing() -> Options {
    Options::new().recent_bytes_max(0)
}

/// Appends keyed batches, each to a session of its own, until there are `segments` segments.
/// Returns the number of batches.
fn fill(log: &SessionLog, folder: &Path, from: usize, segments_min: usize) -> usize {
    let mut next = from;
    while segments(folder) < segments_min {
        assert!(
            !log.append(&session(&format!("s{next}")), keyed(next))
                .unwrap()
                .replayed
        );
        next += 1;
    }
    next
}

fn keyed(n: usize) -> Batch {
    notes(&format!("{n}"), 1).idempotency_key("key")
}

/// The filters over spans of segments, by name.
fn filters(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder.join("filters"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|end| end == "filter"))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

/// Retries everything that was appended, and appends to sessions that do not exist.
fn check(log: &SessionLog, appended: usize, new: usize) {
    for n in 0..appended {
        let there = session(&format!("s{n}"));
        assert_error!(
            log.append(&there, notes("other", 1).expected(Expected::NoSession)),
            Error::ExpectedMismatch { .. }
        );
        let ack = log.append(&there, keyed(n)).unwrap();
        assert!(ack.replayed && ack.first == 1, "batch {n} landed again");
    }
    for n in 0..50 {
        let fresh = session(&format!("new {new} {n}"));
        let ack = log
            .append(&fresh, keyed(n).expected(Expected::NoSession))
            .unwrap();
        assert!(!ack.replayed && ack.first == 1);
    }
}

#[test]
fn a_retry_lands_once_and_a_session_begins_once_whatever_becomes_of_the_merged_filters() {
    let dir = folder();
    let log = sealing().open(dir.path()).unwrap();
    let appended = fill(&log, dir.path(), 0, 2 * SPAN + 1);
    eventually("two filters", || filters(dir.path()).len() == 2);
    check(&log, appended, 0);
    log.close().unwrap();
    let before = filters(dir.path());
    let (one, other) = (
        before.keys().next().unwrap(),
        before.keys().next_back().unwrap(),
    );
    let changes: [(&str, &dyn Fn()); 7] = [
        ("as they were", &|| {}),
        ("deleted", &|| {
            fs::remove_dir_all(dir.path().join("filters")).unwrap();
        }),
        ("one missing", &|| fs::remove_file(one).unwrap()),
        ("swapped", &|| {
            fs::write(one, &before[other]).unwrap();
            fs::write(other, &before[one]).unwrap();
        }),
        ("all zero", &|| {
            for (path, bytes) in &before {
                fs::write(path, vec![0; bytes.len()]).unwrap();
            }
        }),
        ("cut short", &|| {
            for (path, bytes) in &before {
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            }
        }),
        ("empty, and one that is not finished", &|| {
            fs::write(one, []).unwrap();
            fs::write(other.with_extension("tmp"), "half").unwrap();
        }),
    ];
    for (nth, (what, change)) in changes.iter().enumerate() {
        for (path, bytes) in &before {
            fs::write(path, bytes).unwrap();
        }
        change();
        // Otherwise the index answers for sessions.
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        let log = sealing().open(dir.path()).unwrap();
        println!("{what}");
        check(&log, appended, 1 + nth);
        log.close().unwrap();
        assert!(
            !other.with_extension("tmp").exists(),
            "what was not finished is still there"
        );
    }
}

#[test]
fn a_merged_filter_that_is_damaged_or_gone_is_made_again() {
    let dir = folder();
    let log = sealing().open(dir.path()).unwrap();
    let mut appended = fill(&log, dir.path(), 0, SPAN);
    eventually("a filter", || filters(dir.path()).len() == 1);
    log.close().unwrap();
    let before = filters(dir.path());
    let (path, bytes) = before.first_key_value().unwrap();
    let flipped: Vec<u8> = bytes.iter().map(|byte| byte ^ 1).collect();
    for damage in [Some(&flipped), None] {
        match damage {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let log = sealing().open(dir.path()).unwrap();
        eventually("it is as it was", || {
            // A query finds that it is damaged, and the next segment makes it anew.
            appended = fill(&log, dir.path(), appended, segments(dir.path()) + 1);
            filters(dir.path()).get(path) == Some(bytes)
        });
        log.append(&session("s0"), Batch::new().event(note("more")))
            .unwrap();
        log.close().unwrap();
    }
}
