//! Reading a log that another handle, or another process, writes meanwhile.

use std::io::{self, BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, fs, thread};

use sessionlog::{
    CursorProblem, Delete, Error, Event, EventId, NewEvent, Options, PageRequest, SessionId,
    SessionLog, StartAt, StreamItem,
};

use crate::support::{
    DEADLINE, Over, Place, SILENCE, Seen, append_notes, append_some, assert_dense, assert_error,
    assert_rising, block_on, copy_folder, embedded_alone, eventually, feed_all, folder, listing,
    next_item, notes, of_session, open, read_all, seal_once, seen, segments, session, small_files,
    take_events, take_events_async,
};

fn beside(dir: &Place) -> SessionLog {
    Options::new().open_read_only(dir.path()).unwrap()
}

/// Returns what a log shows, without the count of events: after removals it depends on what was
/// erased when the log was opened.
fn shown(log: &SessionLog) -> Seen {
    Seen {
        events: 0,
        ..seen(log)
    }
}

/// Fails unless a reader that refreshes, and one that is opened now, show what the writer shows.
fn check_follows(dir: &Place, writer: &SessionLog, reader: &SessionLog) {
    let newest = reader.refresh().unwrap();
    let expected = shown(writer);
    assert_eq!(newest, writer.refresh().unwrap());
    assert_eq!(shown(reader), expected);
    assert_eq!(shown(&beside(dir)), expected);
}

#[test]
fn a_reader_shows_the_log_as_of_its_last_refresh() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    let writer = open(&dir);
    assert_eq!(beside(&dir).refresh().unwrap(), None);
    append_some(&writer, "one");
    let expected = seen(&writer);
    let reader = beside(&dir);
    assert_eq!(seen(&reader), expected);
    append_some(&writer, "two");
    assert_eq!(seen(&reader), expected);
    check_follows(&dir, &writer, &reader);
    assert_eq!(seen(&reader), seen(&writer));
    assert_error!(reader.append(&session("a"), notes("n", 1)), Error::ReadOnly);
    reader.close().unwrap();
    assert_error!(reader.refresh(), Error::Closed);
    append_some(&writer, "three");
}

#[test]
fn every_append_that_returned_is_shown_by_the_next_refresh() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    let writer = open(&dir);
    let reader = beside(&dir);
    for nth in 0..200 {
        let id = session(&format!("s{}", nth % 7));
        let event = append_notes(&writer, &id, "n", 1).remove(0);
        assert_eq!(reader.refresh().unwrap(), Some(event.id));
        assert_eq!(reader.event(event.id).unwrap(), event);
        assert_eq!(reader.head(&id).unwrap().last_id, Some(event.id));
    }
    assert_eq!(writer.refresh().unwrap(), reader.refresh().unwrap());
}

#[test]
fn readers_neither_keep_writers_out_nor_notice_whether_there_is_one() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    let writer = open(&dir);
    append_some(&writer, "one");
    writer.close().unwrap();
    let readers = [beside(&dir), beside(&dir)];
    for (nth, tag) in ["two", "three", "four"].into_iter().enumerate() {
        let writer = open(&dir);
        assert_error!(SessionLog::open(dir.path()), Error::Locked { .. });
        append_some(&writer, tag);
        check_follows(&dir, &writer, &readers[0]);
        let expected = shown(&writer);
        if nth % 2 == 0 {
            writer.close().unwrap();
        } else {
            drop(writer);
        }
        for reader in &readers {
            reader.refresh().unwrap();
            assert_eq!(shown(reader), expected);
        }
    }
    drop(readers);
    open(&dir).close().unwrap();
}

#[test]
fn a_refresh_changes_no_byte() {
    let dir = folder();
    let writer = small_files().open(dir.path()).unwrap();
    append_some(&writer, "one");
    seal_once(&writer, &session("filler"));
    for _ in 0..2 {
        let reader = beside(&dir);
        let expected = shown(&reader);
        // The second time the log was not closed, and nothing recovers it.
        let image = folder();
        copy_folder(dir.path(), image.path());
        let of_image = beside(&image);
        let before = listing(image.path());
        for _ in 0..3 {
            of_image.refresh().unwrap();
            assert_eq!(shown(&of_image), expected);
        }
        of_image.close().unwrap();
        assert_eq!(listing(image.path()), before);
        append_some(&writer, "two");
    }
}

#[test]
fn streams_and_feeds_go_on_at_a_refresh() {
    let dir = folder();
    let writer = small_files().open(dir.path()).unwrap();
    let (id, new) = (session("s"), session("new"));
    let mut expected = append_notes(&writer, &id, "n", 3);
    let reader = beside(&dir);
    let mut stream = reader.stream(&id, StartAt::Beginning).unwrap();
    let mut waiting = reader.stream(&new, StartAt::Creation).unwrap();
    let mut feed = reader.feed().unwrap();
    let mut tasks = reader.stream(&id, StartAt::Now).unwrap().into_async();
    assert_eq!(take_events(&mut stream, 3), expected);
    assert_eq!(take_events(&mut feed, 3), expected);
    for round in 0..5 {
        expected = append_notes(&writer, &id, &format!("round{round}"), 4);
        for stream in [&mut stream, &mut feed] {
            while let Ok(item) = stream.next_timeout(SILENCE) {
                assert!(
                    matches!(item, StreamItem::CaughtUp),
                    "{item:?} is not shown yet"
                );
            }
        }
        // The last round seals everything, so nothing of it is read from the journal.
        if round == 4 {
            let filler = seal_once(&writer, &session("filler"));
            expected.extend(filler);
        }
        let of_session = of_session(&expected, &id);
        let (got, of_feed, awaited) = thread::scope(|scope| {
            let got = scope.spawn(|| take_events(&mut stream, of_session.len()));
            let of_feed = scope.spawn(|| take_events(&mut feed, expected.len()));
            let awaited = scope.spawn(|| block_on(take_events_async(&mut tasks, of_session.len())));
            reader.refresh().unwrap();
            (
                got.join().unwrap(),
                of_feed.join().unwrap(),
                awaited.join().unwrap(),
            )
        });
        assert_eq!((&got, &awaited), (&of_session, &of_session));
        assert_eq!(of_feed, expected);
    }
    let first = append_notes(&writer, &new, "n", 1);
    reader.refresh().unwrap();
    assert_eq!(take_events(&mut waiting, 1), first);
    reader.close().unwrap();
    assert!(waiting.next().is_none() && block_on(next_item(&mut tasks)).is_none());
}

/// Whether the records of a change reach the reader through the journal or in segments alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Journal,
    Segments,
}

#[test]
fn removals_are_shown_by_the_next_refresh() {
    for way in [Way::Journal, Way::Segments] {
        let dir = folder();
        let writer = small_files().open(dir.path()).unwrap();
        let ids = ["deleted", "again", "trimmed", "redacted", "kept"].map(session);
        let events: Vec<Vec<Event>> = ids
            .iter()
            .map(|id| append_notes(&writer, id, "n", 6))
            .collect();
        let reader = beside(&dir);
        let mut streams: Vec<_> = ids
            .iter()
            .map(|id| reader.stream(id, StartAt::Beginning).unwrap())
            .collect();
        // They have read ahead.
        for (stream, events) in streams.iter_mut().zip(&events) {
            assert_eq!(take_events(stream, 1), events[..1]);
        }
        for id in &ids[..2] {
            writer.delete(id, Delete::new()).unwrap();
        }
        append_notes(&writer, &ids[1], "next", 1);
        writer.trim(&ids[2], 4).unwrap();
        writer.redact(events[3][2].id, "a test").unwrap();
        if way == Way::Segments {
            compact(&writer);
        }
        check_follows(&dir, &writer, &reader);
        assert_error!(reader.head(&ids[0]), Error::UnknownSession { .. });
        assert_error!(reader.event(events[0][0].id), Error::UnknownEvent { .. });
        assert_eq!(reader.head(&ids[1]).unwrap().last, 1);
        assert_eq!(read_all(&reader, &ids[2]), events[2][3..]);
        assert!(reader.event(events[3][2].id).unwrap().redacted);
        assert_eq!(read_all(&reader, &ids[4]), events[4]);
        for stream in &mut streams[..2] {
            let item = stream.next_timeout(DEADLINE).unwrap();
            assert!(matches!(item, StreamItem::Deleted), "{item:?}");
        }
        assert_error!(
            streams[2].next().unwrap(),
            Error::Cursor {
                problem: CursorProblem::Trimmed { first: 4 },
                ..
            }
        );
        let rest = take_events(&mut streams[3], 5);
        assert!(rest[1].redacted && rest[1].data.is_empty());
        assert_eq!(take_events(&mut streams[4], 5), events[4][1..]);
        // What comes after is shown as well, also of sessions that were begun again.
        append_notes(&writer, &ids[1], "more", 2);
        append_notes(&writer, &ids[4], "more", 2);
        check_follows(&dir, &writer, &reader);
        assert_eq!(take_events(&mut streams[4], 2).len(), 2);
    }
}

fn compact(log: &SessionLog) {
    log.compact(|_progress| ControlFlow::Continue(())).unwrap();
}

#[test]
fn a_reader_pages_through_segments_that_the_writer_has_merged_and_removed() {
    let dir = folder();
    let writer = small_files().merge_fanout(4).open(dir.path()).unwrap();
    let (id, gone) = (session("s"), session("gone"));
    for _ in 0..3 {
        append_notes(&writer, &id, "n", 5);
        append_notes(&writer, &gone, "n", 5);
        seal_once(&writer, &session("filler"));
    }
    // Nothing is cached, so every page is read from the files.
    let reader = Options::new()
        .cache_bytes_max(0)
        .open_read_only(dir.path())
        .unwrap();
    let expected = shown(&reader);
    let names = || {
        let listed = fs::read_dir(dir.path().join("segments")).unwrap();
        let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let mut page = reader.list(&id, PageRequest::new().limit(1)).unwrap();
    let mut paged = std::mem::take(&mut page.items);
    writer.delete(&gone, Delete::new()).unwrap();
    for _ in 0..3 {
        seal_once(&writer, &session("filler"));
    }
    compact(&writer);
    eventually("all that the reader has open is merged and removed", || {
        !before.iter().any(|name| names().contains(name))
    });
    while let Some(next) = page.next_page() {
        page = reader.list(&id, next.limit(1)).unwrap();
        paged.append(&mut page.items);
    }
    assert_dense(&paged, 1..=15);
    assert_eq!(shown(&reader), expected);
    assert_eq!(read_all(&reader, &gone).len(), 15);
    reader.refresh().unwrap();
    assert_eq!(shown(&reader), shown(&writer));
    assert_error!(reader.head(&gone), Error::UnknownSession { .. });
}

/// A reader may come so late that the journal files have been used again.
#[test]
fn a_reader_follows_over_any_number_of_journal_files() {
    let dir = folder();
    let writer = small_files().open(dir.path()).unwrap();
    let id = session("s");
    append_notes(&writer, &id, "first", 3);
    let (often, seldom) = (beside(&dir), beside(&dir));
    let mut stream = seldom.stream(&id, StartAt::Beginning).unwrap();
    assert_eq!(take_events(&mut stream, 3).len(), 3);
    for round in 0..6 {
        append_notes(&writer, &id, &format!("round{round}"), 3);
        seal_once(&writer, &session("filler"));
        append_notes(&writer, &session("other"), "n", 2);
        check_follows(&dir, &writer, &often);
        if round % 3 == 2 {
            seldom.refresh().unwrap();
            assert_eq!(shown(&seldom), shown(&writer));
            assert_dense(&take_events(&mut stream, 9), 3 * round - 2..=3 * round + 6);
        }
    }
    assert!(segments(dir.path()) > 1, "nothing was sealed");
    // What was sealed has left the memory of a reader that read it from the journal before.
    let before = writer.stats().seals;
    for nth in 0..40 {
        let filler = NewEvent::new("filler", vec![nth; 256 * 1024]);
        let event = writer.append(&id, filler).unwrap().events.remove(0);
        assert_eq!(often.refresh().unwrap(), Some(event.id));
    }
    eventually("more segments", || writer.stats().seals > before);
    seldom.refresh().unwrap();
    check_follows(&dir, &writer, &often);
    for reader in [&often, &seldom] {
        let (theirs, own) = (reader.stats().recent_bytes, writer.stats().recent_bytes);
        assert!(
            theirs.abs_diff(own) < 10_000,
            "{theirs} bytes, and the writer has {own}"
        );
    }
}

/// Set for the process that a test starts: the folder that it is to write.
const WRITES: &str = "SESSIONLOG_TEST_WRITES";

/// The other process's part: appends until it is killed, and reports each event's ID.
fn be_the_writer(folder: &Path) -> ! {
    let log = small_files().open(folder).unwrap();
    for nth in 0.. {
        let id = session(&format!("s{}", nth % 5));
        let event = append_notes(&log, &id, &format!("{nth}"), 1).remove(0);
        // In one write, so that a kill leaves the line whole or not there.
        let line = format!("acked: {}\n", event.id);
        io::stderr().write_all(line.as_bytes()).unwrap();
        if nth % 50 == 0 {
            log.append(&session("large"), notes(&"x".repeat(100_000), 2))
                .unwrap();
        }
    }
    unreachable!("it is killed before");
}

fn start_writer(test: &str, folder: &Path) -> (Child, impl Iterator<Item = EventId> + use<>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(WRITES, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let acked = lines
        .map_while(Result::ok)
        .filter_map(|line| Some(line.strip_prefix("acked: ")?.parse().unwrap()));
    (child, acked)
}

#[test]
fn a_reader_goes_on_when_the_writing_process_is_killed_and_another_recovers() {
    embedded_alone!("it is about a folder");
    if let Some(folder) = env::var_os(WRITES) {
        be_the_writer(Path::new(&folder));
    }
    let test = "beside::a_reader_goes_on_when_the_writing_process_is_killed_and_another_recovers";
    let dir = folder();
    open(&dir).close().unwrap();
    let reader = beside(&dir);
    let mut feed = reader.feed().unwrap();
    let mut followed = Vec::new();
    for _ in 0..4 {
        let (mut child, mut acked) = start_writer(test, dir.path());
        for _ in 0..20 {
            let id = acked.by_ref().take(10).last().expect("the writer appends");
            assert!(reader.refresh().unwrap() >= Some(id));
            assert_eq!(reader.event(id).unwrap().id, id);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let last = acked.last().expect("the rest of its output");
        let end = reader.refresh().unwrap();
        assert!(end >= Some(last));
        let before = shown(&reader);
        assert_eq!(shown(&beside(&dir)), before);
        while followed.last().map(|event: &Event| event.id) < end {
            followed.extend(take_events(&mut feed, 1));
        }
        assert_eq!(followed, before.feed);
        // A writer recovers: it writes the last journal file again.
        let writer = small_files().open(dir.path()).unwrap();
        assert_eq!(shown(&writer), before, "what was shown stays");
        append_notes(&writer, &session("recovered"), "n", 1);
        check_follows(&dir, &writer, &reader);
        drop(writer);
    }
}

/// Overwrites bytes of the journal file that holds `text`, there and after it.
fn damage_journal(dir: &Place, text: &str) {
    for entry in fs::read_dir(dir.path().join("journal")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let found = bytes
            .windows(text.len())
            .position(|part| part == text.as_bytes());
        if let Some(at) = found {
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
            return;
        }
    }
    panic!("{text} is in no journal file");
}

#[test]
fn damage_is_reported_beside_a_writer_too() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    let writer = open(&dir);
    let id = session("s");
    append_notes(&writer, &id, "kept", 1);
    let reader = beside(&dir);
    let expected = shown(&reader);
    append_notes(&writer, &id, "damaged", 1);
    append_notes(&writer, &id, "after", 1);
    damage_journal(&dir, "damaged.0/0");
    for _ in 0..2 {
        assert_error!(reader.refresh(), Error::Corrupt { .. });
        assert_error!(
            Options::new().open_read_only(dir.path()),
            Error::Corrupt { .. }
        );
        assert_eq!(shown(&reader), expected, "what is shown stays");
    }
    damage_journal(&dir, &damaged("damaged.0/0"));
    check_follows(&dir, &writer, &reader);
}

/// Returns a text with its first byte changed as [`damage_journal`] changes it.
fn damaged(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes[0] ^= 1;
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_segment_that_is_missing_is_reported_beside_a_writer_too() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    let writer = small_files().open(dir.path()).unwrap();
    let reader = beside(&dir);
    seal_once(&writer, &session("filler"));
    let file = fs::read_dir(dir.path().join("segments"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let elsewhere = dir.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    assert_error!(reader.refresh(), Error::Corrupt { file: named, .. } if *named == file);
    assert_error!(
        Options::new().open_read_only(dir.path()),
        Error::Corrupt { .. }
    );
    fs::rename(&elsewhere, &file).unwrap();
    check_follows(&dir, &writer, &reader);
}

#[test]
fn a_folder_that_comes_to_hold_another_log_is_not_followed() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    let writer = open(&dir);
    append_some(&writer, "one");
    writer.close().unwrap();
    let reader = beside(&dir);
    let expected = shown(&reader);
    for name in ["MANIFEST-0", "MANIFEST-1", "journal", "segments"] {
        let path = dir.path().join(name);
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        } else {
            fs::remove_file(path).unwrap();
        }
    }
    assert_error!(reader.refresh(), Error::Io { .. });
    append_some(&open(&dir), "two");
    assert_error!(reader.refresh(), Error::Displaced { .. });
    assert_eq!(shown(&reader), expected);
}

#[test]
fn a_log_that_is_begun_while_it_is_opened_for_reading_is_no_damage() {
    embedded_alone!("it is about a folder");
    for _ in 0..20 {
        let dir = folder();
        thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let log = open(&dir);
                append_notes(&log, &session("s"), "n", 3);
                log
            });
            while !writing.is_finished() {
                match Options::new().open_read_only(dir.path()) {
                    Ok(reader) => assert!(feed_all(&reader).len() <= 3),
                    Err(error) => assert!(matches!(error, Error::Io { .. }), "{error:?}"),
                }
            }
            check_follows(&dir, &writing.join().unwrap(), &beside(&dir));
        });
    }
}

/// Refreshes and reads on several threads at once, while the writer appends.
#[test]
fn reads_of_one_reader_agree_with_each_other_while_it_refreshes() {
    let dir = folder();
    let writer = small_files().open(dir.path()).unwrap();
    let ids: Vec<SessionId> = (0..4).map(|nth| session(&format!("s{nth}"))).collect();
    for id in &ids {
        append_notes(&writer, id, "n", 1);
    }
    let (reader, done) = (beside(&dir), AtomicBool::new(false));
    let write = || {
        let _over = Over(&done);
        for round in 0..60 {
            for id in &ids {
                append_notes(&writer, id, &format!("{round}"), 1);
            }
            if round % 20 == 19 {
                seal_once(&writer, &session("filler"));
            }
        }
    };
    thread::scope(|scope| {
        let _over = Over(&done);
        let writing = scope.spawn(write);
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    reader.refresh().unwrap();
                }
            });
        }
        while !writing.is_finished() {
            for id in &ids {
                let head = reader.head(id).unwrap();
                let events = read_all(&reader, id);
                assert!(events.len() as u64 >= head.last);
                assert_dense(&events, 1..=events.len() as u64);
            }
            assert_rising(&feed_all(&reader));
        }
    });
    check_follows(&dir, &writer, &reader);
}
