//! The metrics count what happened, and the open report lists what was found.

use std::fs;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use sessionlog::{Delete, Options, PageRequest, SessionLog, StartAt};

use crate::support::{
    Access, Over, append_notes, copy_folder, embedded_alone, eventually, folder, notes, open,
    open_for, paths_below, seal_once, segments, session, small_files, take_events,
};

#[test]
fn the_figures_count_what_was_appended_and_no_replay() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let zero = log.stats();
    assert_eq!(
        (zero.events, zero.batches, zero.groups, zero.journal_bytes),
        (0, 0, 0, 0)
    );
    for n in 0..5 {
        log.append(&id, notes(&n.to_string(), 3).idempotency_key(n.to_string()))
            .unwrap();
    }
    assert!(
        log.append(&id, notes("4", 3).idempotency_key("4"))
            .unwrap()
            .replayed
    );
    let stats = log.stats();
    assert_eq!(
        (stats.events, stats.batches, stats.groups),
        (15, 5, 5),
        "one writer's batches are a group each"
    );
    assert!(stats.journal_bytes >= 5 * 3 * 3, "{stats:?}");
    assert!(
        stats.barrier_time >= stats.barrier_time_max && stats.barrier_time_max > Duration::ZERO,
        "{stats:?}"
    );
    log.close().unwrap();
    let stats = open(&dir).stats();
    assert_eq!((stats.events, stats.batches, stats.groups), (15, 0, 0));
}

#[test]
fn the_space_is_that_of_the_files_and_shows_what_erasing_gives_back() {
    let dir = folder();
    let log = small_files().open(dir.path()).unwrap();
    let (kept, removed) = (session("kept"), session("removed"));
    assert_eq!(log.stats().space.oldest, None);
    // It seals the journal, which is empty.
    let copy = folder();
    log.backup(copy.path()).unwrap();
    assert_eq!(log.stats().space.oldest, None);
    append_notes(&log, &kept, "a", 1);
    let first = log.list(&kept, PageRequest::new()).unwrap().items[0].id;
    seal_once(&log, &removed);
    let before = log.stats().space;
    assert_eq!(before.dead_bytes, 0);
    assert_eq!(
        before.oldest.map(jiff::Timestamp::as_millisecond),
        Some(i64::try_from(first.timestamp_ms()).unwrap())
    );
    assert!(before.growth_bytes_a_day >= before.live_bytes, "{before:?}");
    log.delete(&removed, Delete::new()).unwrap();
    seal_once(&log, &kept);
    let space = log.stats().space;
    assert!(space.dead_bytes >= before.live_bytes / 2, "{space:?}");
    let compacted = log.compact(|_progress| ControlFlow::Continue(())).unwrap();
    let after = log.stats().space;
    assert_eq!((after.dead_bytes, after.merging_bytes), (0, 0));
    assert_eq!(after.live_bytes, compacted.bytes_after);
    let bytes_in = |folder: &str| -> u64 {
        let files = fs::read_dir(dir.path().join(folder)).unwrap();
        files
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum()
    };
    assert_eq!(after.live_bytes, bytes_in("segments"));
    assert_eq!(after.total_bytes, after.live_bytes + after.journal_bytes);
    // A spare file may be made at any moment.
    eventually("the bytes of the journal's files", || {
        log.stats().space.journal_bytes == bytes_in("journal")
    });
}

/// An event being sealed is in memory and in its segment for a moment.
#[test]
fn the_count_of_events_lies_between_acknowledged_and_appended_and_never_goes_down() {
    const SEGMENTS: u64 = 150;
    let dir = folder();
    let log = Options::new().recent_bytes_max(0).open(dir.path()).unwrap();
    let (appended, acknowledged, ended) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let over = Over(&ended);
        for writer in 0..4_u64 {
            let (log, appended, acknowledged, ended) = (&log, &appended, &acknowledged, &ended);
            scope.spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    appended.fetch_add(3, Ordering::SeqCst);
                    log.append(&session(&format!("s{writer}")), notes("n", 3))
                        .unwrap();
                    acknowledged.fetch_add(3, Ordering::SeqCst);
                }
            });
        }
        let mut before = 0;
        let seen = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let least = acknowledged.load(Ordering::SeqCst).max(before);
                let stats = log.stats();
                let most = appended.load(Ordering::SeqCst);
                assert!(
                    (least..=most).contains(&stats.events),
                    "{} events, and there are {least} to {most}",
                    stats.events
                );
                assert!(
                    stats.batches_per_group() == 0.0 || stats.batches_per_group() >= 1.0,
                    "{stats:?}"
                );
                assert!(
                    stats.index_lag <= stats.segments
                        && stats.barrier_time >= stats.barrier_time_max,
                    "{stats:?}"
                );
                before = stats.events;
                if stats.seals >= SEGMENTS {
                    break;
                }
            }
        }));
        drop(over);
        seen.unwrap_or_else(|failed| resume_unwind(failed));
    });
    let events = acknowledged.load(Ordering::SeqCst);
    assert_eq!(log.stats().events, events);
    log.close().unwrap();
    for access in [Access::ReadOnly, Access::Write] {
        assert_eq!(
            open_for(access, Options::new(), dir.path())
                .unwrap()
                .stats()
                .events,
            events
        );
    }
}

#[test]
fn a_dropped_stream_is_gone() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "n", 1);
    let mut streams: Vec<_> = (0..10)
        .map(|_| log.stream(&id, StartAt::Beginning).unwrap())
        .collect();
    streams.push(log.feed().unwrap());
    for stream in &mut streams {
        take_events(stream, 1);
    }
    let last = streams.pop().unwrap().into_async();
    assert_eq!(log.stats().streams, 11);
    drop(streams);
    assert_eq!(log.stats().streams, 1);
    drop(last);
    assert_eq!(log.stats().streams, 0);
}

#[test]
fn the_figures_show_segments_and_an_index_that_catches_up() {
    let dir = folder();
    let log = small_files().open(dir.path()).unwrap();
    assert_eq!((log.stats().segments, log.stats().segment_bytes), (0, 0));
    let filled = seal_once(&log, &session("s"));
    let caught_up = |log: &SessionLog| {
        eventually("the index to cover every segment", || {
            let stats = log.stats();
            stats.index_lag == 0 && stats.segments == segments(dir.path()) as u64
        });
    };
    caught_up(&log);
    assert_eq!(log.stats().events, filled.len() as u64);
    let on_disk = paths_below(&dir.path().join("segments"))
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .sum::<u64>();
    assert_eq!(log.stats().segment_bytes, on_disk);
    log.close().unwrap();
    let log = small_files().open(dir.path()).unwrap();
    caught_up(&log);
    assert_eq!(
        (log.stats().events, log.stats().index_rebuilds),
        (filled.len() as u64, 0)
    );
}

#[test]
fn the_figures_say_which_store_it_is_and_what_is_newest_in_it() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    let log = open(&dir);
    let empty = log.stats();
    assert_eq!(
        (empty.store_id.len(), empty.format, empty.last_id),
        (32, 2, None)
    );
    let event = append_notes(&log, &session("s"), "n", 2).pop().unwrap();
    assert_eq!(log.stats().last_id, Some(event.id));
    log.close_session(&session("s")).unwrap();
    let last_id = log.stats().last_id;
    assert!(last_id > Some(event.id), "a change counts too");
    let (copy, other) = (folder(), folder());
    log.backup(copy.path()).unwrap();
    let reader = Options::new().open_read_only(copy.path()).unwrap().stats();
    assert_eq!(
        (reader.store_id, reader.last_id),
        (empty.store_id.clone(), last_id)
    );
    assert_ne!(open(&other).stats().store_id, empty.store_id);
}

#[test]
fn a_log_of_the_first_version_says_so_until_it_is_opened_for_writing() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/closed");
    copy_folder(&old, dir.path());
    let format = || {
        Options::new()
            .open_read_only(dir.path())
            .unwrap()
            .stats()
            .format
    };
    assert_eq!(format(), 1);
    open(&dir).close().unwrap();
    assert_eq!(format(), 2);
}

#[test]
fn a_reader_knows_tiers_dead_bytes_and_what_is_to_be_erased() {
    let dir = folder();
    let log = small_files().open(dir.path()).unwrap();
    let reader = Options::new().open_read_only(dir.path()).unwrap();
    assert_eq!(reader.stats().tiers, []);
    let (kept, removed) = (session("kept"), session("removed"));
    append_notes(&log, &kept, "a", 1);
    seal_once(&log, &removed);
    reader.refresh().unwrap();
    assert_eq!(reader.erasure().unwrap().due, None);
    log.delete(&removed, Delete::new()).unwrap();
    reader.refresh().unwrap();
    assert_eq!(reader.erasure().unwrap().due, log.erasure().unwrap().due);
    seal_once(&log, &kept);
    eventually("the reader knows of the dead bytes", || {
        reader.refresh().unwrap();
        let (stats, of_writer) = (reader.stats(), log.stats());
        stats.space.dead_bytes > 0
            && (stats.space.dead_bytes, &stats.tiers)
                == (of_writer.space.dead_bytes, &of_writer.tiers)
    });
    let stats = log.stats();
    let (segments, bytes) = stats.tiers.iter().fold((0, 0), |(segments, bytes), tier| {
        (segments + tier.segments, bytes + tier.bytes)
    });
    assert_eq!((segments, bytes), (stats.segments, stats.segment_bytes));
    assert!(stats.space.journal_files >= 1);
    assert_eq!(
        stats.space.files,
        stats.segments + stats.space.journal_files
    );
    log.compact(|_progress| ControlFlow::Continue(())).unwrap();
    reader.refresh().unwrap();
    assert_eq!(reader.erasure().unwrap().due, None);
    assert_eq!(reader.stats().space.dead_bytes, 0);
}

#[test]
fn the_open_report_tells_a_clean_stop_from_any_other() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    let log = open(&dir);
    assert_eq!(log.stats().recovery.replayed_events, 0);
    append_notes(&log, &session("s"), "n", 7);
    let image = folder();
    copy_folder(dir.path(), image.path());
    log.close().unwrap();
    assert!(open(&dir).stats().recovery.clean);
    let recovery = open(&image).stats().recovery;
    assert!(!recovery.clean);
    assert_eq!(
        (
            recovery.replayed_events,
            recovery.replayed_groups,
            recovery.adopted_segments
        ),
        (7, 7, 0)
    );
}

#[test]
fn a_clock_more_than_a_day_away_is_reported() {
    const START: u64 = 1_900_000_000;
    const DAY: u64 = 24 * 60 * 60;
    let dir = folder();
    let at = |seconds: u64| {
        Options::new()
            .clock(move || UNIX_EPOCH + Duration::from_secs(seconds))
            .open(dir.path())
            .unwrap()
    };
    let log = at(START);
    append_notes(&log, &session("s"), "n", 1);
    assert_eq!(
        (log.stats().clock_skew, log.stats().recovery.clock_skew),
        (None, None)
    );
    drop(log);
    for (now, apart) in [
        (START - 2 * DAY, Some(2 * DAY)),
        (START + 3 * DAY, Some(3 * DAY)),
        (START - DAY / 2, None),
    ] {
        let stats = at(now).stats();
        let apart = apart.map(Duration::from_secs);
        assert_eq!(
            (stats.clock_skew, stats.recovery.clock_skew),
            (apart, apart),
            "at {now}"
        );
    }
}
