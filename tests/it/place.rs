//! A log keeps to the folder that it has locked, even if names change, and to the process
//! that opened it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sessionlog::{Batch, Error, Options, SessionLog};
use tempfile::TempDir;

use crate::support::{
    Access, append_notes, assert_error, embedded_alone, eventually, folder, in_time, note, notes,
    open, open_for, read_all, seal_once, session, small_files,
};

/// A change of an open log's folder, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Move,
    Remove,
    PutAnotherLogInItsPlace,
    PutAnEarlierCopyInItsPlace,
    PointTheLinkElsewhere,
    MoveTheJournal,
    MoveAJournalFile,
    RemoveAJournalFile,
    CopyAJournalFileOverItself,
}

const ACTS: [Act; 9] = [
    Act::Move,
    Act::Remove,
    Act::PutAnotherLogInItsPlace,
    Act::PutAnEarlierCopyInItsPlace,
    Act::PointTheLinkElsewhere,
    Act::MoveTheJournal,
    Act::MoveAJournalFile,
    Act::RemoveAJournalFile,
    Act::CopyAJournalFileOverItself,
];

/// A log at `data`, which a link leads to as `link`, and another one at `other`.
struct Place {
    root: TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let place = Self { root };
        let other = SessionLog::open(place.at("other")).unwrap();
        append_notes(&other, &session("of the other"), "other", 3);
        other.close().unwrap();
        let early = SessionLog::open(place.at("data")).unwrap();
        append_notes(&early, &session("early"), "early", 1);
        early.close().unwrap();
        copy(&place.at("data"), &place.at("copy"));
        symlink(place.at("data"), place.at("link")).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.at(from), self.at(to)).unwrap();
    }

    /// Returns the journal file that is written to.
    fn journal_file(&self) -> PathBuf {
        let files = fs::read_dir(self.at("data/journal"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        // The one with the most data: a spare one holds zeroes.
        files
            .max_by_key(|path| {
                fs::read(path)
                    .unwrap()
                    .iter()
                    .filter(|byte| **byte != 0)
                    .count()
            })
            .unwrap()
    }

    /// Makes the change, and returns where the log's events are then, unless they are gone.
    fn act(&self, act: Act) -> Option<PathBuf> {
        match act {
            Act::Move => self.rename("data", "elsewhere"),
            // The log may make a file meanwhile, and the folder is then not empty.
            Act::Remove => eventually("the folder is gone", || {
                fs::remove_dir_all(self.at("data")).is_ok()
            }),
            Act::PutAnotherLogInItsPlace | Act::PutAnEarlierCopyInItsPlace => {
                self.rename("data", "elsewhere");
                self.rename(
                    if act == Act::PutAnotherLogInItsPlace {
                        "other"
                    } else {
                        "copy"
                    },
                    "data",
                );
            }
            Act::PointTheLinkElsewhere => {
                fs::remove_file(self.at("link")).unwrap();
                symlink(self.at("other"), self.at("link")).unwrap();
                return Some(self.at("data"));
            }
            Act::MoveTheJournal => {
                self.rename("data/journal", "data/journal.old");
                copy(&self.at("data/journal.old"), &self.at("data/journal"));
                return Some(self.at("data"));
            }
            Act::MoveAJournalFile => {
                let file = self.journal_file();
                fs::rename(&file, file.with_extension("old")).unwrap();
                return None;
            }
            Act::RemoveAJournalFile => {
                fs::remove_file(self.journal_file()).unwrap();
                return None;
            }
            Act::CopyAJournalFileOverItself => {
                let file = self.journal_file();
                fs::copy(&file, self.at("bytes")).unwrap();
                fs::rename(self.at("bytes"), &file).unwrap();
                return Some(self.at("data"));
            }
        }
        (act != Act::Remove).then(|| self.at("elsewhere"))
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// All bytes below a folder, by name.
fn image(folder: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            files.insert(
                entry.path().into_os_string(),
                fs::read(entry.path()).unwrap_or_default(),
            );
        }
    }
    files
}

/// Whether a write found another folder in the place of the log's. In a log that was idle for a
/// while the first such write is its own, of a witness. What is called next is told of that one.
fn is_displaced(error: &Error) -> bool {
    let code = match error {
        Error::Poisoned { source } => source.code(),
        error => error.code(),
    };
    code == "displaced"
}

/// Acknowledged events are in the folder that the log holds, and nothing is written to another
/// one.
#[test]
fn a_log_whose_folder_is_no_longer_in_its_place_says_so_and_writes_nowhere_else() {
    for act in ACTS {
        let place = Place::new();
        let log = SessionLog::open(place.at("link")).unwrap();
        let session = session("s");
        let kept = append_notes(&log, &session, "kept", 5);
        let holds = place.act(act);
        let not_ours = place.at(match act {
            Act::PointTheLinkElsewhere => "other",
            Act::MoveTheJournal => "data/journal",
            Act::MoveAJournalFile | Act::RemoveAJournalFile | Act::CopyAJournalFileOverItself => {
                "copy"
            }
            _ => "data",
        });
        let in_its_place = image(&not_ours);
        let refused = log.append(&session, notes("refused", 1)).unwrap_err();
        assert!(is_displaced(&refused), "{act:?}: {refused:?}");
        assert!(!refused.is_retryable(), "{act:?}");
        for _ in 0..2 {
            assert_error!(
                log.append(&session, notes("refused", 1)),
                Error::Poisoned { .. }
            );
        }
        assert_error!(log.health(), Error::Poisoned { source } if source.code() == "displaced");
        assert_eq!(
            read_all(&log, &session),
            kept,
            "{act:?}: what is durable is still read"
        );
        assert_error!(log.close(), Error::Poisoned { .. });
        assert!(
            image(&not_ours) == in_its_place,
            "{act:?}: something was written beside the log"
        );
        if let Some(holds) = holds {
            let again = SessionLog::open(holds).unwrap();
            assert_eq!(read_all(&again, &session), kept, "{act:?}");
            append_notes(&again, &session, "next", 1);
        }
    }
}

/// `close` too.
#[test]
fn a_log_that_was_moved_is_closed_without_a_record_in_another_folder() {
    for act in [
        Act::Move,
        Act::PutAnotherLogInItsPlace,
        Act::PutAnEarlierCopyInItsPlace,
    ] {
        let place = Place::new();
        let log = SessionLog::open(place.at("data")).unwrap();
        let kept = append_notes(&log, &session("s"), "kept", 5);
        let holds = place.act(act).unwrap();
        let in_its_place = image(&place.at("data"));
        let refused = log.close().unwrap_err();
        assert!(is_displaced(&refused), "{act:?}: {refused:?}");
        assert!(image(&place.at("data")) == in_its_place, "{act:?}");
        assert_eq!(
            read_all(&SessionLog::open(holds).unwrap(), &session("s")),
            kept
        );
    }
}

/// Two logs, one moved away and one begun in its place, each keep what they acknowledged.
#[test]
fn a_log_begun_where_another_was_moved_away_is_a_log_of_its_own() {
    let place = Place::new();
    let first = SessionLog::open(place.at("data")).unwrap();
    let of_first = append_notes(&first, &session("s"), "first", 5);
    place.rename("data", "elsewhere");
    assert_error!(
        SessionLog::open(place.at("elsewhere")),
        Error::Locked { .. }
    );
    let second = SessionLog::open(place.at("data")).unwrap();
    let of_second = append_notes(&second, &session("s"), "second", 5);
    let refused = first.append(&session("s"), notes("late", 1)).unwrap_err();
    assert!(is_displaced(&refused), "{refused:?}");
    second.close().unwrap();
    drop(first);
    assert_eq!(
        read_all(
            &SessionLog::open(place.at("elsewhere")).unwrap(),
            &session("s")
        ),
        of_first
    );
    assert_eq!(
        read_all(&SessionLog::open(place.at("data")).unwrap(), &session("s")),
        of_second
    );
}

/// The folder itself is locked. A removed lock file therefore makes no difference.
#[test]
fn a_log_whose_lock_file_is_removed_is_still_locked() {
    embedded_alone!("it is about a folder");
    let folder = folder();
    let log = open(&folder);
    append_notes(&log, &session("s"), "before", 1);
    for _ in 0..2 {
        fs::remove_file(folder.path().join("LOCK")).unwrap();
        assert_error!(SessionLog::open(folder.path()), Error::Locked { .. });
        append_notes(&log, &session("s"), "after", 1);
        fs::write(folder.path().join("LOCK"), "").unwrap();
        assert_error!(SessionLog::open(folder.path()), Error::Locked { .. });
    }
    log.close().unwrap();
    assert_eq!(read_all(&open(&folder), &session("s")).len(), 3);
}

/// A link in the folder leads out of it, so it is reported as a link and not followed.
#[test]
fn a_symbolic_link_in_a_logs_folder_is_refused_by_its_name() {
    for name in ["LOCK", "MANIFEST-0", "journal", "journal/*", "segments"] {
        let place = Place::new();
        let linked = if name == "journal/*" {
            place.journal_file()
        } else {
            place.at("data").join(name)
        };
        fs::rename(&linked, place.at("moved")).unwrap();
        symlink(place.at("moved"), &linked).unwrap();
        let before = image(&place.at("moved"));
        for access in [Access::Write, Access::ReadOnly] {
            // Of two manifests one is enough to read by, and a reader takes no lock.
            if access == Access::ReadOnly && ["MANIFEST-0", "LOCK"].contains(&name) {
                continue;
            }
            let data = place.at("data");
            let error = open_for(access, Options::new(), &data).unwrap_err();
            let Error::Io { path, source, .. } = &error else {
                panic!("{name}: {error:?}")
            };
            assert!(
                source.to_string().contains("symbolic link"),
                "{name}: {error:?}"
            );
            assert_eq!(*path, linked, "{name}");
        }
        assert!(image(&place.at("moved")) == before, "{name} was followed");
    }
}

/// Links that replace deletable files are not followed either, nor are those files missed.
#[test]
fn a_symbolic_link_in_the_place_of_filters_or_index_is_not_followed() {
    for name in ["filters", "index"] {
        let (folder, elsewhere) = (folder(), folder());
        let log = small_files().open(folder.path()).unwrap();
        let mut kept = seal_once(&log, &session("s"));
        eventually("the index has it", || {
            log.stats().segments > 0 && log.stats().index_lag == 0
        });
        log.close().unwrap();
        let linked = folder.path().join(name);
        if name == "index" {
            fs::rename(&linked, elsewhere.path().join("moved")).unwrap();
        } else {
            // An earlier version had this folder.
            fs::create_dir(elsewhere.path().join("moved")).unwrap();
            fs::write(elsewhere.path().join("moved").join("file"), "kept").unwrap();
        }
        symlink(elsewhere.path().join("moved"), &linked).unwrap();
        let before = image(elsewhere.path());
        let log = small_files().open(folder.path()).unwrap();
        kept.append(&mut seal_once(&log, &session("s")));
        if name == "index" {
            eventually("the link is set aside", || {
                !linked.is_symlink() && log.stats().index_lag == 0
            });
        }
        log.health().unwrap();
        log.close().unwrap();
        assert!(image(elsewhere.path()) == before, "{name} was followed");
        assert_eq!(
            read_all(&SessionLog::open(folder.path()).unwrap(), &session("s")),
            kept
        );
    }
}

#[test]
fn an_empty_path_is_invalid_and_nothing_is_made_for_it() {
    let before = fs::read_dir(".").unwrap().count();
    assert_error!(SessionLog::open(""), Error::Invalid { what: "folder", .. });
    assert_error!(
        Options::new().open_read_only(""),
        Error::Invalid { what: "folder", .. }
    );
    assert_eq!(fs::read_dir(".").unwrap().count(), before);
}

/// Filters and index may be deleted at any time, so an unreadable one does not keep a log from
/// opening.
#[test]
fn filters_and_index_that_cannot_be_read_keep_no_log_from_opening() {
    for name in ["filters", "index"] {
        let place = Place::new();
        let _was_there = fs::remove_dir_all(place.at("data").join(name));
        fs::write(place.at("data").join(name), "no folder").unwrap();
        let log = SessionLog::open(place.at("data")).unwrap();
        assert_eq!(read_all(&log, &session("early")).len(), 1);
        append_notes(&log, &session("s"), "more", 1);
        log.close().unwrap();
        Options::new().open_read_only(place.at("data")).unwrap();
    }
}

/// A reader has no threads, so a copy of its process drops all of it.
#[test]
fn a_forked_copy_of_the_process_leaves_a_reader_what_it_reads() {
    embedded_alone!("it is about a folder");
    let folder = folder();
    let writer = open(&folder);
    append_notes(&writer, &session("s"), "n", 1);
    let reader = Options::new().open_read_only(folder.path()).unwrap();
    match fork::fork().unwrap() {
        fork::Fork::Child => {
            drop(reader);
            std::process::abort();
        }
        fork::Fork::Parent(child) => {
            in_time("the child", move || fork::waitpid(child).map(drop)).unwrap();
        }
    }
    append_notes(&writer, &session("s"), "n", 1);
    reader.refresh().unwrap();
    assert_eq!(read_all(&reader, &session("s")).len(), 2);
    reader.close().unwrap();
}

/// A copy of the process made by `fork` has none of the log's threads. It gets an error, and
/// leaves the log and its lock alone.
#[test]
fn a_forked_copy_of_the_process_is_refused_and_gives_nothing_away() {
    embedded_alone!("it is about a folder");
    let folder = folder();
    let log = open(&folder);
    let kept = append_notes(&log, &session("s"), "kept", 2);
    let mut stream = log.stream(&session("s"), sessionlog::StartAt::Now).unwrap();
    let said = folder.path().join("said");
    match fork::fork().unwrap() {
        fork::Fork::Child => {
            let codes = [
                log.append(&session("s"), notes("child", 1)).map(drop),
                log.list(&session("s"), sessionlog::PageRequest::new())
                    .map(drop),
                stream.next().map_or(Ok(()), |item| item.map(drop)),
                log.health(),
                log.close(),
            ];
            let codes = codes.map(|result| result.map_or_else(|error| error.code(), |()| "ok"));
            let _told = fs::write(said.with_extension("tmp"), codes.join(" "))
                .and_then(|()| fs::rename(said.with_extension("tmp"), &said));
            // Exits as a child process does.
            drop((stream, log));
            std::process::abort();
        }
        fork::Fork::Parent(child) => {
            in_time("the child", move || fork::waitpid(child).map(drop)).unwrap();
            assert_eq!(
                fs::read_to_string(&said).unwrap(),
                "forked forked forked forked forked"
            );
        }
    }
    assert_error!(SessionLog::open(folder.path()), Error::Locked { .. });
    log.append(&session("s"), notes("parent", 1)).unwrap();
    log.close().unwrap();
    assert_eq!(
        read_all(&open(&folder), &session("s")).len(),
        kept.len() + 1
    );
}

/// The clock is called without a lock of the log.
#[test]
fn a_clock_may_call_the_log_it_is_the_clock_of() {
    use std::sync::{Arc, OnceLock};

    let folder = folder();
    let known: Arc<OnceLock<SessionLog>> = Arc::default();
    let of_clock = Arc::clone(&known);
    let clock = move || {
        if let Some(log) = of_clock.get() {
            let _read = (log.head(&session("s")), log.health());
        }
        std::time::SystemTime::now()
    };
    let log = Options::new().clock(clock).open(folder.path()).unwrap();
    append_notes(&log, &session("s"), "before", 1);
    assert!(known.set(log.clone()).is_ok());
    let again = log.clone();
    let ack = in_time("an append", move || {
        again.append(&session("s"), Batch::new().event(note("more")))
    });
    assert_eq!(ack.unwrap().first, 2);
    in_time("the figures", move || log.stats());
}
