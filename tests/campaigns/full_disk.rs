//! Disks that fill up at random points: reads continue, and nothing acknowledged is lost. Once
//! there is room again, appends continue too.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sessionlog::{Error, SessionLog};

use super::mounts::{Loop, Mount, make_file_system};
use super::process::{first_life, small_files, works};
use super::support::ledger::{Ledger, Tag, acknowledged, tried};
use super::support::report::{Dice, Report, Runs, seed};

const RUNS: Runs = Runs {
    quick: 4,
    full: 200,
};
const SIZES: u64 = 40;
const MIB: u64 = 1024 * 1024;
/// The least that a log needs to be created and to continue: two journal files and a segment.
const ROOM: u64 = 14 * MIB;
/// Enough to fill the largest disk.
const APPENDS: u32 = 10_000;
const APPENDS_PER_CHANGE: u32 = 10;
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn campaign() {
    let seed = seed();
    let mut report = Report::new("full disks", seed, RUNS.planned());
    let mut dice = Dice(seed);
    while !report.is_done() {
        let kind = if dice.flip() { "tmpfs" } else { "ext4" };
        let bytes = (36 + 4 * dice.below(SIZES)) * MIB;
        let seed = dice.roll();
        let mut met = Vec::new();
        let what = || format!("{kind} of {} MiB with seed {seed}", bytes / MIB);
        let mut figures = Vec::new();
        report.run(what, || {
            Disk::new(kind, bytes).fill(seed, &mut met, &mut figures);
        });
        for what in met {
            report.count(what, 1);
        }
        for (what, many) in figures {
            report.count(what, many);
        }
    }
    let refused = "changes while a merge had no room";
    report.expect_some(RUNS.full, &["delete", "fork", "merged", "erased", refused]);
    report.end();
}

/// A small file system of its own.
struct Disk {
    mount: Mount,
    bytes: u64,
    // Dropped after the mount.
    _device: Option<Loop>,
    _image: tempfile::TempDir,
}

impl Disk {
    fn new(kind: &str, bytes: u64) -> Self {
        let image = tempfile::tempdir().expect("a folder");
        let made = if kind == "tmpfs" {
            let folder = tempfile::tempdir().expect("a folder");
            Mount::new(
                "tmpfs",
                Path::new("tmpfs"),
                &format!("size={bytes}"),
                folder,
            )
            .map(|mount| (mount, None))
        } else {
            let file = image.path().join("image");
            make_file_system(kind, &file, bytes)
                .and_then(|()| Loop::new(&file))
                .and_then(|device| device.mount(kind).map(|mount| (mount, Some(device))))
        };
        let (mount, device) = made.unwrap_or_else(|error| panic!("{error}"));
        Self {
            mount,
            bytes,
            _device: device,
            _image: image,
        }
    }

    /// Fills the disk with a log and other data, checks the log, makes room, and continues.
    fn fill(&self, seed: u64, met: &mut Vec<&'static str>, figures: &mut Vec<(String, u64)>) {
        let mut dice = Dice(seed);
        let ballast = Ballast::new(self.mount.path(), ROOM + dice.below(self.bytes - 2 * ROOM));
        let mut filling = Filling {
            folder: self.mount.path().join("log"),
            seed,
            ledger: Ledger::new(works(seed)),
            met,
        };
        match filling.open() {
            Ok(log) => {
                let refusal = filling.append_until_refused(&log, first_life(1));
                filling.ledger.check(&log);
                filling.ledger.expect_what_was_found();
                if refusal.is_retryable() && dice.flip() {
                    filling
                        .met
                        .push("logs that went on without being opened again");
                    drop(ballast);
                    filling.go_on(&log);
                    drop(log);
                } else {
                    if dice.flip() {
                        // The error depends on whether a clean stop could be recorded.
                        let _closed = log.close();
                    }
                    drop(log);
                    filling.read_only();
                    if dice.flip() {
                        filling.open_while_full();
                    }
                    drop(ballast);
                }
            }
            Err(Error::Io { .. } | Error::NoSpace { .. }) => {
                filling.met.push("disks without room for a log");
                drop(ballast);
            }
            Err(error) => panic!("the log does not open: {error:?}"),
        }
        filling.reopen();
        let done = filling.ledger.changes().figures();
        figures.extend(done.map(|(what, many)| (what.to_owned(), many)));
    }
}

/// What takes the room that the log needs.
struct Ballast(PathBuf);

impl Ballast {
    fn new(folder: &Path, bytes: u64) -> Self {
        let path = folder.join("ballast");
        let file = File::create(&path).expect("a file");
        // As much as there is room for.
        let _allocated =
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
        Self(path)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("remove a file");
    }
}

struct Filling<'a> {
    folder: PathBuf,
    seed: u64,
    ledger: Ledger,
    met: &'a mut Vec<&'static str>,
}

impl Filling<'_> {
    fn open(&self) -> Result<SessionLog, Error> {
        small_files()
            .stall_wait(Duration::from_millis(300))
            .open(&self.folder)
    }

    fn append_until_refused(&mut self, log: &SessionLog, life: u32) -> Error {
        for nth in 0..APPENDS {
            let tag = Tag {
                life,
                writer: 0,
                nth,
            };
            let tried = self.change(log, nth).and_then(|()| self.append(log, tag));
            if let Err(error) = tried {
                self.met.push(if error.is_retryable() {
                    "appends refused for want of room"
                } else {
                    "poisoned logs"
                });
                let expected = error.is_retryable()
                    || matches!(error, Error::Io { .. } | Error::Poisoned { .. });
                assert!(expected, "a full disk is answered by {error:?}");
                return error;
            }
        }
        panic!("the disk does not fill");
    }

    /// Changes a session now and then. A merge that has no room hinders no append.
    fn change(&mut self, log: &SessionLog, nth: u32) -> Result<(), Error> {
        if !nth.is_multiple_of(APPENDS_PER_CHANGE) {
            return Ok(());
        }
        let mut dice = Dice(self.seed ^ u64::from(nth));
        let changed = self.ledger.change(log, &mut dice, 1, &|_line| ());
        let refused = log.stats().refused;
        if refused.iter().all(|refused| refused.work != "merging") {
            return changed;
        }
        self.met.push("changes while a merge had no room");
        match changed {
            Err(error) if error.is_retryable() => Ok(()),
            changed => changed,
        }
    }

    fn append(&mut self, log: &SessionLog, tag: Tag) -> Result<(), Error> {
        let work = works(self.seed).of(tag);
        self.ledger.note(&tried(tag));
        let ack = log.append(&work.session, work.batch())?;
        self.ledger.note(&acknowledged(tag, &work, &ack));
        Ok(())
    }

    /// Appends once there is room again. A log that only lacked room soon accepts appends.
    fn go_on(&mut self, log: &SessionLog) {
        let began = Instant::now();
        for nth in 0.. {
            match self.append(
                log,
                Tag {
                    life: first_life(2),
                    writer: 0,
                    nth,
                },
            ) {
                Ok(()) => break,
                Err(error) => assert!(
                    error.is_retryable() && began.elapsed() < DEADLINE,
                    "no append goes through: {error:?}"
                ),
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        self.change(log, 0).expect("there is room");
        self.ledger.check(log);
    }

    fn read_only(&mut self) {
        self.met.push("full disks read without a write");
        let log = small_files().open_read_only(&self.folder);
        let log = log.unwrap_or_else(|error| {
            panic!("a log on a full disk does not open for reading: {error:?}")
        });
        self.ledger.forget_what_was_checked();
        self.ledger.check(&log);
        self.ledger.expect_what_was_found();
    }

    /// Opens the log. Whether that succeeds or not, nothing is lost.
    fn open_while_full(&mut self) {
        match self.open() {
            Ok(log) => {
                self.met.push("logs opened on a full disk");
                self.ledger.forget_what_was_checked();
                self.ledger.check(&log);
            }
            Err(Error::Io { .. } | Error::NoSpace { .. }) => {
                self.met.push("logs that did not open on a full disk");
            }
            Err(error) => panic!("a full disk is answered by {error:?}"),
        }
        self.read_only();
    }

    fn reopen(&mut self) {
        let log = self
            .open()
            .unwrap_or_else(|error| panic!("the log does not open once there is room: {error:?}"));
        self.ledger.forget_what_was_checked();
        self.ledger.check(&log);
        self.ledger.retry_what_was_not_acknowledged(&log);
        self.append(
            &log,
            Tag {
                life: first_life(3),
                writer: 0,
                nth: 0,
            },
        )
        .expect("there is room");
        self.change(&log, 0).expect("there is room");
        self.ledger.check(&log);
        log.close().expect("close");
    }
}
