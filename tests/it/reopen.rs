//! The events after a close, after a drop, for a second opener, and for a log opened for reading
//! only.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use std::{env, fs, thread};

use sessionlog::{Batch, Error, EventId, Options, PageRequest, SessionLog, SessionQuery, StartAt};

use crate::support::{
    ListIds, OpenIn, Over, Place, Seen, append_notes, append_some, assert_error, assert_rising,
    block_on, copy_folder, embedded_alone, feed_all, folder, in_one_order, listing, notes,
    of_session, open, paths_below, read_all, seal_once, seen, session, small_files,
};

/// Fails unless the log accepts and shows further appends, and knows the keys of earlier ones.
fn check_goes_on(log: &SessionLog, tag: &str) {
    let id = session("a");
    let newest = feed_all(log).last().unwrap().id;
    assert!(
        log.append(&id, notes(tag, 2).idempotency_key(tag))
            .unwrap()
            .replayed
    );
    let new = append_notes(log, &id, "new", 1).remove(0);
    assert!(new.id > newest, "{new:?} came after {newest}");
    assert_eq!(log.head(&id).unwrap().last_id, Some(new.id));
}

/// Ends the log in some way, again and again, with appends in between; everything must be there
/// each time.
fn check_reopening(
    options: &Options,
    after_round: impl Fn(&Place, &SessionLog),
    end: impl Fn(SessionLog),
) {
    let dir = folder();
    let mut log = options.clone().open_in(&dir).unwrap();
    for round in 0..3 {
        let tag = format!("round{round}");
        append_some(&log, &tag);
        after_round(&dir, &log);
        let before = seen(&log);
        for _ in 0..2 {
            end(log);
            log = options.clone().open_in(&dir).unwrap();
            assert_eq!(seen(&log), before);
        }
        check_goes_on(&log, &tag);
    }
}

fn seal(_dir: &Place, log: &SessionLog) {
    seal_once(log, &session("filler"));
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "a way to end a log, as `drop` is one"
)]
fn close(log: SessionLog) {
    log.close().unwrap();
}

#[test]
fn everything_is_there_after_a_close() {
    check_reopening(&Options::new(), |_, _| {}, close);
}

#[test]
fn everything_is_there_after_a_drop_without_close() {
    check_reopening(&Options::new(), |_, _| {}, drop);
}

#[test]
fn everything_sealed_is_there_after_a_close() {
    check_reopening(&small_files(), seal, close);
}

#[test]
fn everything_sealed_is_there_after_a_drop_without_close() {
    check_reopening(&small_files(), seal, drop);
}

/// The first block after the end shows whether the log continued, also where only the beginning of
/// a group fits it.
#[test]
fn what_came_after_a_close_is_there_also_if_the_manifest_tells_of_the_close_alone() {
    embedded_alone!("there is no manifest");
    for bytes in [1, 100_000] {
        let dir = folder();
        let log = open(&dir);
        let mut events = append_notes(&log, &session("s"), "before", 3);
        close(log);
        let manifest = ["MANIFEST-0", "MANIFEST-1"].map(|name| dir.path().join(name));
        let closed = manifest.each_ref().map(|path| fs::read(path).unwrap());
        let log = open(&dir);
        let note = sessionlog::NewEvent::new("note", vec![7; bytes]);
        events.extend(
            log.append(&session("s"), Batch::new().event(note))
                .unwrap()
                .events,
        );
        drop(log);
        manifest
            .iter()
            .zip(closed)
            .for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        let log = open(&dir);
        assert_eq!(read_all(&log, &session("s")), events);
        assert!(!log.stats().recovery.clean);
    }
}

#[test]
fn a_log_without_events_reopens_empty() {
    let dir = folder();
    for end in [close, drop] {
        for _ in 0..3 {
            let log = open(&dir);
            assert_eq!(
                seen(&log),
                Seen {
                    sessions: vec![],
                    recent: vec![],
                    feed: vec![],
                    events: 0
                }
            );
            assert_error!(log.event(EventId::from_u128(1)), Error::UnknownEvent { .. });
            end(log);
        }
    }
    assert_eq!(append_notes(&open(&dir), &session("s"), "n", 1)[0].seq, 1);
}

#[test]
fn ids_go_on_upwards_over_reopening_whatever_the_clock_says() {
    let dir = folder();
    let id = session("s");
    let start = 1_900_000_000_000;
    let mut all = Vec::new();
    for (n, ms) in [
        start,
        start,
        start - 1,
        1_000,
        0,
        start,
        start + 1,
        start - 86_400_000,
    ]
    .into_iter()
    .enumerate()
    {
        let log = Options::new()
            .clock(move || UNIX_EPOCH + Duration::from_millis(ms))
            .open_in(&dir)
            .unwrap();
        all.extend(log.append(&id, notes(&n.to_string(), 3)).unwrap().events);
        all.extend(append_notes(&log, &session(&format!("s{n}")), "n", 1));
        if n % 2 == 0 { close(log) } else { drop(log) }
    }
    assert_rising(&of_session(&all, &id));
    if in_one_order() {
        assert_rising(&all);
    }
    all.sort_by_key(|event| event.id);
    assert_eq!(feed_all(&open(&dir)), all);
}

#[test]
fn a_second_opener_is_refused_until_the_first_lets_go() {
    embedded_alone!("a folder is one process's, a schema is not");
    let dir = folder();
    let log = open(&dir);
    append_notes(&log, &session("s"), "n", 1);
    #[cfg(unix)]
    let elsewhere = folder();
    let spellings = [
        dir.path().to_owned(),
        dir.path().join("."),
        dir.path().join("..").join(dir.path().file_name().unwrap()),
        #[cfg(unix)]
        {
            let link = elsewhere.path().join("link");
            std::os::unix::fs::symlink(dir.path(), &link).unwrap();
            link
        },
    ];
    for path in &spellings {
        assert_error!(SessionLog::open(path), Error::Locked { .. });
        // A reader is no second writer.
        Options::new().open_read_only(path).unwrap();
    }
    assert_error!(SessionLog::open(dir.path()), Error::Locked { path } if path == dir.path());
    append_notes(&log, &session("s"), "n", 1);
    drop(log);

    for end in [close, drop] {
        let log = open(&dir);
        let clone = log.clone();
        drop(log);
        assert_error!(SessionLog::open(dir.path()), Error::Locked { .. });
        end(clone);
    }
}

#[test]
fn processes_that_are_started_meanwhile_do_not_keep_the_folder_locked() {
    embedded_alone!("a folder is one process's, a schema is not");
    let dir = folder();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = Over(&done);
        // A process that is being started has every open file of this one, the lock's among them,
        // until it runs its program.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                Command::new("true").status().unwrap();
            }
        });
        let refused = (0..25).find_map(|n| match SessionLog::open(dir.path()) {
            Ok(log) if n % 2 == 0 => log.close().err(),
            opened => opened.err(),
        });
        drop(over);
        assert!(refused.is_none(), "{refused:?}");
    });
}

#[test]
fn of_many_that_open_at_once_one_wins() {
    embedded_alone!("a folder is one process's, a schema is not");
    let dir = folder();
    for _ in 0..5 {
        let opened: Vec<_> = thread::scope(|scope| {
            let openers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| SessionLog::open(dir.path())))
                .collect();
            openers
                .into_iter()
                .map(|opener| opener.join().unwrap())
                .collect()
        });
        assert_eq!(
            opened.iter().filter(|opened| opened.is_ok()).count(),
            1,
            "{opened:?}"
        );
        for refused in opened.iter().filter_map(|opened| opened.as_ref().err()) {
            assert!(matches!(refused, Error::Locked { .. }), "{refused:?}");
        }
    }
}

#[test]
fn the_folder_is_free_as_soon_as_the_log_closed_or_was_dropped() {
    let dir = folder();
    let id = session("s");
    for round in 0..8 {
        let log = open(&dir);
        append_notes(&log, &id, "n", 1);
        let (clone, stream) = (log.clone(), log.stream(&id, StartAt::Now).unwrap());
        if round % 2 == 0 {
            log.close().unwrap();
            assert_eq!(open(&dir).head(&id).unwrap().last, round + 1);
            assert_error!(clone.append(&id, notes("late", 1)), Error::Closed);
        }
        drop((log, clone));
        assert_eq!(open(&dir).head(&id).unwrap().last, round + 1);
        drop(stream);
    }
}

/// Set for the process that a test starts: the folder it is to open.
const OTHER_PROCESS: &str = "SESSIONLOG_TEST_OPENS";

/// Runs one test of this binary again in a process of its own, which opens `folder` and reports the
/// result on its error output. It keeps the log open until its input ends.
fn start_opener(test: &str, folder: &Path) -> (Child, String) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(OTHER_PROCESS, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let outcome = lines
        .into_iter()
        .find_map(|line| line.strip_prefix("outcome: ").map(str::to_owned));
    (child, outcome.expect("the other process says how it went"))
}

/// The other process's part: opens the folder, appends once, reports the result, and waits.
fn be_the_opener(folder: PathBuf) {
    let log = SessionLog::open(folder);
    let appended = log
        .as_ref()
        .map(|log| append_notes(log, &session("other process"), "n", 1));
    eprintln!(
        "outcome: {}",
        appended
            .as_ref()
            .map_or_else(|error| error.code(), |_| "open")
    );
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_second_process_is_refused_until_the_first_lets_go() {
    embedded_alone!("a folder is one process's, a schema is not");
    if let Some(folder) = env::var_os(OTHER_PROCESS) {
        return be_the_opener(folder.into());
    }
    let start = |folder: &Path| {
        start_opener(
            "reopen::a_second_process_is_refused_until_the_first_lets_go",
            folder,
        )
    };
    let dir = folder();
    let log = open(&dir);
    let (mut child, outcome) = start(dir.path());
    assert_eq!(outcome, "locked");
    drop(child.stdin.take());
    child.wait().unwrap();
    log.close().unwrap();

    for n in 1..=3 {
        let (mut child, outcome) = start(dir.path());
        assert_eq!(outcome, "open");
        assert_error!(SessionLog::open(dir.path()), Error::Locked { .. });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(open(&dir).head(&session("other process")).unwrap().last, n);
    }
}

/// Opens the folder for reading only; it must show `expected`, refuse to write, and leave every
/// byte alone.
fn check_read_only(folder: &Path, expected: &Seen) {
    let before = listing(folder);
    let log = Options::new().open_read_only(folder).unwrap();
    assert_eq!(seen(&log), *expected);
    let id = session("a");
    assert_error!(log.append(&id, notes("n", 1)), Error::ReadOnly);
    assert_error!(
        block_on(log.append_async(&id, notes("n", 1))),
        Error::ReadOnly
    );
    assert_error!(
        log.list(&session("nobody"), PageRequest::new()),
        Error::UnknownSession { .. }
    );
    assert_error!(log.head(&session("nobody")), Error::UnknownSession { .. });
    assert_eq!(seen(&log), *expected);
    log.close().unwrap();
    assert_eq!(listing(folder), before);
    drop(Options::new().open_read_only(folder).unwrap());
    assert_eq!(listing(folder), before);
}

#[test]
fn a_log_opened_for_reading_only_shows_everything_and_changes_no_byte() {
    embedded_alone!("only a folder is opened for reading only");
    for seals in [false, true] {
        let dir = folder();
        let log = small_files().open_in(&dir).unwrap();
        append_some(&log, "one");
        if seals {
            seal_once(&log, &session("filler"));
            append_some(&log, "two");
        }
        let expected = seen(&log);
        log.close().unwrap();
        check_read_only(dir.path(), &expected);
        drop(open(&dir));
        check_read_only(dir.path(), &expected);
        check_goes_on(&open(&dir), if seals { "two" } else { "one" });
    }
}

#[test]
fn a_log_that_was_not_closed_reads_the_same_with_and_without_writing() {
    embedded_alone!("it copies a folder");
    let dir = folder();
    let log = open(&dir);
    append_some(&log, "one");
    append_some(&log, "two");
    let expected = seen(&log);
    let image = folder();
    copy_folder(dir.path(), image.path());
    check_read_only(image.path(), &expected);
    for _ in 0..2 {
        let reopened = open(&image);
        assert_eq!(seen(&reopened), expected);
        drop(reopened);
    }
    check_read_only(image.path(), &expected);
    check_goes_on(&open(&image), "two");
    assert_eq!(seen(&log), expected);
}

#[test]
fn files_of_others_are_left_alone() {
    embedded_alone!("it looks into files");
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    append_some(&log, "one");
    seal_once(&log, &session("filler"));
    let expected = seen(&log);
    log.close().unwrap();
    let folders = paths_below(dir.path())
        .into_iter()
        .filter(|path| path.is_dir() && path.parent() == Some(dir.path()));
    // The index is rebuilt when in doubt, so its folder must not hold other files.
    let folders = folders
        .filter(|path| !path.ends_with("index"))
        .chain([dir.path().to_owned()]);
    let names = [
        "README.txt",
        "segment",
        "00000001.segment.bak",
        "x.journal.old",
        "1.segment.copy",
    ];
    let files: Vec<_> = folders
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .collect();
    for file in &files {
        fs::write(file, "not ours").unwrap();
    }
    for _ in 0..2 {
        let log = small_files().open_in(&dir).unwrap();
        assert_eq!(seen(&log), expected);
        drop(log);
    }
    for file in &files {
        assert_eq!(fs::read(file).unwrap(), b"not ours", "{}", file.display());
    }
}

#[test]
fn reading_only_makes_no_log_where_there_is_none() {
    embedded_alone!("only a folder is opened for reading only");
    let dir = folder();
    let missing = dir.path().join("missing");
    assert_error!(Options::new().open_read_only(&missing), Error::Io { .. });
    assert!(!missing.exists());
    let file = dir.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    assert_error!(Options::new().open_read_only(&file), Error::Io { .. });
    assert_error!(SessionLog::open(&file), Error::Io { .. });
    assert_eq!(fs::read(&file).unwrap(), b"not a folder");

    let empty = folder();
    if let Ok(log) = Options::new().open_read_only(empty.path()) {
        assert_eq!(
            seen(&log),
            Seen {
                sessions: vec![],
                recent: vec![],
                feed: vec![],
                events: 0
            }
        );
        assert_error!(log.append(&session("s"), notes("n", 1)), Error::ReadOnly);
    }
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn a_closed_log_refuses_every_call_and_may_be_closed_again() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let event = log
        .append(&id, Batch::new().user_message("hello"))
        .unwrap()
        .events
        .remove(0);
    let pending = log.append_async(&id, notes("pending", 1));
    let clone = log.clone();
    log.close().unwrap();
    for log in [log, clone] {
        assert_error!(log.append(&id, notes("n", 1)), Error::Closed);
        assert_error!(
            block_on(log.append_async(&id, notes("n", 1))),
            Error::Closed
        );
        assert_error!(log.list(&id, PageRequest::new()), Error::Closed);
        assert_error!(log.head(&id), Error::Closed);
        assert_error!(log.event(event.id), Error::Closed);
        assert_error!(log.message(event.id.into()), Error::Closed);
        assert_error!(log.messages(&id, PageRequest::new()), Error::Closed);
        assert_error!(
            log.session_ids(SessionQuery::by_id().limit(1)),
            Error::Closed
        );
        assert_error!(log.recent_ids(1), Error::Closed);
        // A second close may be refused or not. It must return and leave the folder alone.
        drop(log.close());
    }
    assert_error!(block_on(pending), Error::Closed);
    assert_eq!(read_all(&open(&dir), &id), [event]);
}

#[test]
fn an_async_append_outlives_its_handle_and_ends() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let append = log.append_async(&id, notes("n", 2));
    drop(log);
    let outcome = block_on(append);
    let found = open(&dir).head(&id);
    match outcome {
        Ok(ack) => assert_eq!(found.unwrap().last_id, Some(ack.events[1].id)),
        Err(Error::Closed) => assert_error!(found, Error::UnknownSession { .. }),
        Err(error) => panic!("{error:?}"),
    }
}
