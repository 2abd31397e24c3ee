//! An accepted option works, also at its extremes, and also on a log written under other options.

use std::time::Duration;

use sessionlog::{Compression, Error, Event, Options, PageRequest, SessionLog};

use crate::support::{
    OpenIn, Place, append_notes, assert_error, embedded_alone, eventually, feed_all, folder, note,
    notes, open, read_all, seal_once, seqs, session, small_files,
};

/// Appends enough to seal, reads it back, and does both again after reopening. Options may be
/// refused as invalid, but not later.
fn check_works(options: &Options) {
    let dir = folder();
    let id = session("s");
    let mut all: Vec<Event> = Vec::new();
    for round in 0..2 {
        let log = match options.clone().open_in(&dir) {
            Err(Error::Invalid { .. }) if round == 0 => return,
            opened => opened.unwrap(),
        };
        all.extend(append_notes(&log, &id, &round.to_string(), 3));
        all.extend(seal_once(&log, &id));
        all.extend(append_notes(&log, &id, &round.to_string(), 3));
        for _ in 0..2 {
            assert_eq!(read_all(&log, &id), all, "{options:?}");
            assert_eq!(feed_all(&log), all, "{options:?}");
        }
        log.close().unwrap();
    }
}

#[test]
fn the_smallest_sizes_only_slow_a_log_down() {
    check_works(&small_files().group_bytes_max(1));
    check_works(&small_files().cache_bytes_max(0));
    check_works(&small_files().index_cache_bytes_max(0));
    check_works(&small_files().head_cache_bytes_max(0));
    check_works(&small_files().scan_bytes_max(1));
}

#[test]
fn journal_files_of_any_size_are_used() {
    let dir = folder();
    let log = Options::new()
        .journal_file_bytes_max(5_000_001)
        .open_in(&dir)
        .unwrap();
    let id = session("s");
    // The first file has its own size; three more are needed.
    let all: Vec<Event> = (0..70)
        .flat_map(|n| {
            log.append(&id, notes("n", 1).event(note(vec![n; 250_000])))
                .unwrap()
                .events
        })
        .collect();
    assert_eq!(read_all(&log, &id), all);
    drop(log);
    assert_eq!(read_all(&open(&dir), &id), all);
}

#[test]
fn an_index_that_is_given_no_cache_still_comes_to_hold_everything() {
    embedded_alone!("there is no index beside the log");
    let dir = folder();
    let log = small_files()
        .index_cache_bytes_max(0)
        .open_in(&dir)
        .unwrap();
    seal_once(&log, &session("s"));
    eventually("the index has caught up", || log.stats().index_lag == 0);
    assert_eq!(log.stats().index_rebuilds, 0);
}

#[test]
fn a_batch_larger_than_the_bound_on_memory_stalls_nobody() {
    for bytes in [0, 1, 100 * 1024, 1024 * 1024] {
        check_works(&small_files().recent_bytes_max(bytes));
    }
}

#[test]
fn the_largest_sizes_ask_for_nothing_in_advance() {
    check_works(&small_files().recent_bytes_max(usize::MAX));
    check_works(&small_files().cache_bytes_max(usize::MAX));
    check_works(&small_files().index_cache_bytes_max(usize::MAX));
    check_works(&small_files().head_cache_bytes_max(usize::MAX));
    check_works(&small_files().scan_bytes_max(usize::MAX));
}

#[test]
fn a_writer_may_wait_for_room_without_end() {
    check_works(&small_files().stall_wait(Duration::MAX));
}

#[test]
fn a_log_reads_segments_of_either_compression() {
    embedded_alone!("there are no segments");
    let dir = folder();
    let (mut all, mut sizes) = (Vec::new(), Vec::new());
    for compression in [Compression::None, Compression::Lz4, Compression::None] {
        let log = small_files()
            .compression(compression)
            .open_in(&dir)
            .unwrap();
        let before = log.stats().segment_bytes;
        all.extend(seal_once(&log, &session("s")));
        eventually("the segment is in use", || {
            log.stats().segment_bytes > before
        });
        sizes.push(log.stats().segment_bytes - before);
        assert_eq!(read_all(&log, &session("s")), all, "{compression:?}");
        assert_eq!(feed_all(&log), all, "{compression:?}");
        log.close().unwrap();
    }
    assert!(sizes[1] < sizes[0] / 10, "{sizes:?}");
    for compression in [Compression::None, Compression::Lz4] {
        let log = Options::new()
            .compression(compression)
            .open_in(&dir)
            .unwrap();
        assert_eq!(read_all(&log, &session("s")), all, "{compression:?}");
    }
}

/// A log with a turn, large and small batches, and a key, in more than one of the smallest journal
/// files.
fn written(dir: &Place, options: &Options) -> Vec<Event> {
    let log = options.clone().open_in(dir).unwrap();
    let id = session("s");
    let mut all = log
        .append(
            &id,
            notes("keyed", 50)
                .user_message("hello")
                .idempotency_key("a long key"),
        )
        .unwrap()
        .events;
    for n in 0..12 {
        all.extend(
            log.append(&id, notes("n", 50).event(note(vec![n; 500_000])))
                .unwrap()
                .events,
        );
    }
    log.close().unwrap();
    all
}

#[test]
fn lower_limits_hide_nothing_that_is_stored() {
    let dir = folder();
    let all = written(&dir, &small_files());
    let strict = Options::new()
        .event_bytes_max(6)
        .batch_bytes_max(6)
        .batch_events_max(1)
        .event_type_bytes_max(4);
    let log = strict
        .idempotency_key_bytes_max(1)
        .page_events_max(7)
        .open_in(&dir)
        .unwrap();
    let id = session("s");
    let mut walked: Vec<Event> = Vec::new();
    while walked.len() < all.len() {
        let page = log
            .list(&id, PageRequest::new().after(walked.len() as u64).limit(7))
            .unwrap();
        assert!(!page.items.is_empty(), "{page:?}");
        walked.extend(page.items);
    }
    assert_eq!(walked, all);
    assert_eq!(feed_all(&log), all);
    assert_eq!(
        seqs(&log.list(&id, PageRequest::new()).unwrap().items),
        [1, 2, 3, 4, 5, 6, 7]
    );
    assert_eq!(
        log.messages(&id, PageRequest::new()).unwrap().items.len(),
        1
    );
    assert_error!(log.append(&id, notes("n", 2)), Error::TooLarge { .. });
    assert_eq!(
        log.append(&id, notes("n", 1)).unwrap().first,
        all.len() as u64 + 1
    );
}

#[test]
fn a_log_goes_on_under_other_sizes_of_journal_files() {
    let dir = folder();
    let large = Options::new()
        .journal_file_bytes_max(4096 << 20)
        .group_bytes_max(4096 << 20);
    let mut all = written(&dir, &large);
    let id = session("s");
    let check = |log: &SessionLog, all: &mut Vec<Event>| {
        assert_eq!(read_all(log, &id), *all);
        assert!(
            log.append(
                &id,
                notes("keyed", 50)
                    .user_message("hello")
                    .idempotency_key("a long key")
            )
            .unwrap()
            .replayed
        );
        all.extend(append_notes(log, &id, "more", 2));
        assert_eq!(read_all(log, &id), *all);
    };
    for options in [small_files(), large, small_files()] {
        let log = options.open_in(&dir).unwrap();
        check(&log, &mut all);
        // More than the files of the options before hold, so that each of them comes to its end.
        for _ in 0..4 {
            all.extend((0..20).flat_map(|_| {
                log.append(&id, notes("n", 1).event(note(vec![7; 200_000])))
                    .unwrap()
                    .events
            }));
        }
        check(&log, &mut all);
    }
    check(&open(&dir), &mut all);
}
