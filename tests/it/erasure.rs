//! What was removed leaves every file of the log, and nothing else does.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;
use std::{fs, io, thread};

use sessionlog::{Batch, Compression, Delete, Fork, NewEvent, Options, SessionId, SessionLog};

use crate::report::{Dice, is_full, seed, tell};
use crate::support::{
    Place, append_notes, embedded_alone, eventually, folder, open, paths_below, read_all, session,
    small_files,
};

/// The sessions of a test, each with words that occur nowhere else.
const SESSIONS: usize = 60;

/// Returns those of the test in which several threads append and remove.
fn many_sessions() -> usize {
    if is_full() { 1_000 } else { 200 }
}

const THREADS: usize = 4;
/// The sessions that a thread appends to in turn.
const AT_ONCE: usize = 25;

const EVENTS: usize = 12;

fn word(session: usize, event: usize) -> String {
    format!(
        "canary-{session:04}-{event:03}-{:08x}",
        session * 7919 + event * 104_729
    )
}

fn name(nth: usize) -> SessionId {
    session(&format!("sess_{nth:04}"))
}

/// What became of a session, by its number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Deleted,
    Trimmed,
    Redacted,
}

impl Fate {
    fn of(nth: usize) -> Self {
        [
            Self::Kept,
            Self::Deleted,
            Self::Kept,
            Self::Trimmed,
            Self::Kept,
            Self::Redacted,
        ][nth % 6]
    }

    fn keeps(self, event: usize) -> bool {
        match self {
            Self::Kept => true,
            Self::Deleted => false,
            // Two events a batch: the cut goes through one.
            Self::Trimmed => event >= 5,
            Self::Redacted => event % 4 != 1,
        }
    }

    fn befall(self, log: &SessionLog, nth: usize) {
        let id = name(nth);
        match self {
            Self::Kept => {}
            Self::Deleted => {
                log.delete(&id, Delete::new().reason("a test")).unwrap();
            }
            Self::Trimmed => {
                log.trim(&id, 6).unwrap();
            }
            Self::Redacted => {
                for event in read_all(log, &id) {
                    if !self.keeps(usize::try_from(event.seq).unwrap() - 1) {
                        log.redact(event.id, "a test").unwrap();
                    }
                }
            }
        }
    }
}

fn append_words(log: &SessionLog, nth: usize, events: std::ops::Range<usize>) {
    for pair in events.collect::<Vec<_>>().chunks(2) {
        let events = pair.iter().map(|event| {
            let data = format!(
                "{{\"text\":\"{}\",\"pad\":\"{}\"}}",
                word(nth, *event),
                "p".repeat(99)
            );
            NewEvent::new("note", data)
        });
        let key = format!("key-{nth}-{}", pair[0]);
        log.append(&name(nth), Batch::new().events(events).idempotency_key(key))
            .unwrap();
    }
}

/// Appends so much to another session that segments come to be.
fn fill(log: &SessionLog) {
    let data = vec![b'f'; 512 * 1024];
    for _ in 0..20 {
        log.append(&session("filler"), NewEvent::new("fill", data.clone()))
            .unwrap();
    }
}

/// Returns the files below a folder that hold some of these words.
fn holding(folder: &Path, words: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths_below(folder).iter().filter(|path| path.is_file()) {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        for at in memmem(&bytes, b"canary-") {
            let word = bytes
                .get(at..at + 24)
                .map(|word| String::from_utf8_lossy(word).into_owned());
            if let Some(word) = word.filter(|word| words.contains(word)) {
                found.push(format!("{}: {word} at {at}", path.display()));
            }
        }
    }
    found
}

fn memmem<'a>(bytes: &'a [u8], pattern: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes
        .windows(pattern.len())
        .enumerate()
        .filter_map(move |(at, window)| (window == pattern).then_some(at))
}

fn removed_words(sessions: usize) -> BTreeSet<String> {
    let all = (0..sessions).flat_map(|nth| (0..EVENTS).map(move |event| (nth, event)));
    all.filter(|(nth, event)| !Fate::of(*nth).keeps(*event))
        .map(|(nth, event)| word(nth, event))
        .collect()
}

fn check_kept(log: &SessionLog, sessions: usize) {
    for nth in 0..sessions {
        let fate = Fate::of(nth);
        if fate == Fate::Deleted {
            log.head(&name(nth)).unwrap_err();
            continue;
        }
        let events = read_all(log, &name(nth));
        let expected = (0..EVENTS).filter(|at| fate == Fate::Redacted || fate.keeps(*at));
        assert_eq!(events.len(), expected.count(), "session {nth}");
        for event in events {
            let at = usize::try_from(event.seq).unwrap() - 1;
            let text = String::from_utf8(event.data.to_vec()).unwrap();
            assert_eq!(event.redacted, !fate.keeps(at));
            assert_eq!(text.contains(&word(nth, at)), fate.keeps(at), "{nth} {at}");
        }
    }
}

/// Appends, removes at various moments, and erases with `erase`.
fn check(options: impl Fn() -> Options, erase: impl Fn(&SessionLog)) {
    embedded_alone!("it looks into files");
    let dir = folder();
    let log = options().open(dir.path()).unwrap();
    for nth in 0..SESSIONS {
        append_words(&log, nth, 0..EVENTS / 2);
    }
    fill(&log);
    for nth in 0..SESSIONS {
        append_words(&log, nth, EVENTS / 2..EVENTS);
        if nth % 4 == 1 {
            Fate::of(nth).befall(&log, nth);
        }
    }
    fill(&log);
    for nth in (0..SESSIONS).filter(|nth| nth % 4 != 1) {
        Fate::of(nth).befall(&log, nth);
    }
    check_kept(&log, SESSIONS);
    erase(&log);
    check_erased(&dir, &log, SESSIONS);
}

/// Checks that what was removed is in no byte of the folder, and that all else can be read.
fn check_erased(dir: &Place, log: &SessionLog, sessions: usize) {
    let removed = removed_words(sessions);
    let found = holding(dir.path(), &removed);
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(log.erasure().unwrap().due, None);
    check_kept(log, sessions);
    log.close().unwrap();
    check_kept(&open(dir), sessions);
    assert!(holding(dir.path(), &removed).is_empty());
}

/// Appends to sessions of its own in turn, and removes from them at any moment after that.
fn append_and_remove(log: &SessionLog, thread: usize, mut dice: Dice) {
    let own: Vec<usize> = (thread..many_sessions()).step_by(THREADS).collect();
    let mut appended = Vec::new();
    for some in own.chunks(AT_ONCE) {
        for pair in 0..EVENTS / 2 {
            for nth in some {
                append_words(log, *nth, 2 * pair..2 * pair + 2);
                if dice.one_in(5) && !appended.is_empty() {
                    let nth: usize = appended.swap_remove(dice.index(appended.len()));
                    Fate::of(nth).befall(log, nth);
                }
            }
        }
        appended.extend(some);
        if dice.one_in(3) {
            fill(log);
        }
    }
    for nth in appended {
        Fate::of(nth).befall(log, nth);
    }
}

fn compact(log: &SessionLog) {
    log.compact(|_progress| ControlFlow::Continue(())).unwrap();
}

#[test]
fn no_removed_word_is_in_any_byte_of_the_folder_after_compaction() {
    check(small_files, compact);
}

#[test]
fn nor_without_compression() {
    check(|| small_files().compression(Compression::None), compact);
}

/// Half of the sessions lose something, at random moments. At full length there are a thousand.
#[test]
fn no_removed_word_of_many_sessions_is_left_while_others_append() {
    embedded_alone!("it looks into files");
    let seed = seed();
    tell(&format!("removed words: SESSION_LOG_SEED={seed}\n"));
    let mut dice = Dice(seed);
    let dir = folder();
    // Compressed blocks could hide a word.
    let options = small_files().compression(Compression::None).merge_fanout(4);
    let log = options.open(dir.path()).unwrap();
    thread::scope(|scope| {
        for nth in 0..THREADS {
            let (log, dice) = (&log, Dice(dice.roll()));
            scope.spawn(move || append_and_remove(log, nth, dice));
        }
        // Erases while the others append and remove.
        compact(&log);
    });
    let removed = removed_words(many_sessions());
    let stored = holding(dir.path(), &removed);
    assert!(!stored.is_empty(), "the search finds nothing");
    compact(&log);
    check_erased(&dir, &log, many_sessions());
}

#[test]
fn removed_words_leave_the_folder_in_time_by_themselves() {
    let options = || small_files().erase_within(Duration::from_secs(1));
    check(options, |log| {
        eventually("all is erased", || log.erasure().unwrap().due.is_none());
    });
}

#[test]
fn what_a_fork_shares_is_erased_with_the_last_that_keeps_it() {
    embedded_alone!("it looks into files");
    let dir = folder();
    let log = small_files().open(dir.path()).unwrap();
    append_words(&log, 0, 0..EVENTS);
    let (parent, child) = (name(0), session("child"));
    log.fork(Fork::new(&parent).at(4), &child).unwrap();
    fill(&log);
    log.delete(&parent, Delete::new()).unwrap();
    compact(&log);
    let words = |events: std::ops::Range<usize>| events.map(|at| word(0, at)).collect();
    let found = holding(dir.path(), &words(4..EVENTS));
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(read_all(&log, &child).len(), 4);
    log.close().unwrap();
    let log = small_files().open(dir.path()).unwrap();
    assert_eq!(read_all(&log, &child).len(), 4);
    log.delete(&child, Delete::new()).unwrap();
    compact(&log);
    let found = holding(dir.path(), &words(0..EVENTS));
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn erasing_an_idle_log_again_and_again_changes_nothing() {
    embedded_alone!("it counts segments");
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let events = append_notes(&log, &id, "n", 3);
    for _ in 0..12 {
        compact(&log);
        assert_eq!(read_all(&log, &id), events);
    }
    log.close().unwrap();
    let log = open(&dir);
    assert_eq!(read_all(&log, &id), events);
    assert!(log.stats().segments < 12);
}
