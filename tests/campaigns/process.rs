//! The processes that campaigns start: this same program, in another role. They report a line at a
//! time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, UNIX_EPOCH};
use std::{env, thread};

use serde::{Deserialize, Serialize};
use sessionlog::{
    Batch, Error, NewEvent, Options, PageRequest, SessionId, SessionLog, SessionQuery,
};

use super::displaced::Staying;
use super::openers::THREADS;
use super::soak::Soaking;
use super::support::changes::{Changer, Changes};
use super::support::ledger::{LARGE_BATCHES, Ledger, Tag, Works, acknowledged, tried};
use super::support::report::Dice;

const CHILD: &str = "--child";
const WRITERS: u32 = 3;
/// A limit, so that a child that is never killed does not fill the disk.
const APPENDS: u64 = 40;
const LIVES_PER_PROCESS: u32 = 8;
/// The changes of a process that opens a log and checks it.
const LAST_CHANGES: u64 = 2;

const HOUR_MS: u64 = 3_600_000;
const CLOCK_START_MS: u64 = 1_750_000_000_000;

/// The role of a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Opens, appends from several threads and closes, a few times.
    Write(Writing),
    /// Checks a log against a ledger, twice, and appends to it.
    Check {
        folder: PathBuf,
        ledger: PathBuf,
        seed: u64,
        life: u32,
    },
    /// Works on a disk whose calls fail.
    Endure(Enduring),
    /// Opens a log at the same time as others.
    Open(PathBuf),
    /// Works on a log in every way until it is killed.
    Soak(Soaking),
    /// Works on a log whose folder is moved, removed or replaced.
    Stay(Staying),
    /// Appends to a log that is nothing but a sled database with its own `flush`.
    WriteSled { folder: PathBuf, appends: u32 },
    /// Reports how many of the appends to that are there.
    CheckSled { folder: PathBuf, appends: u32 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Writing {
    pub folder: PathBuf,
    pub seed: u64,
    /// The number of its first life.
    pub life: u32,
    pub lives: u32,
    /// The file that it reports to, instead of its standard output.
    pub tell: Option<PathBuf>,
    pub end: End,
    pub changing: Changing,
}

/// How a process changes sessions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Changing {
    /// The changes in each life.
    pub changes: u64,
    /// The file with the changes of earlier processes, if there were any.
    pub known: Option<PathBuf>,
    /// The folder that it backs the log up into now and then.
    pub backup: Option<PathBuf>,
}

/// What the process does when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Exit,
    /// Waits until the process that started it is gone.
    Wait,
}

pub(crate) fn works(seed: u64) -> Works {
    Works {
        seed,
        bytes: LARGE_BATCHES,
    }
}

/// Returns the first life of the process with this number.
pub(crate) fn first_life(process: u32) -> u32 {
    process * LIVES_PER_PROCESS
}

/// Opens with small journal files, and every second life with the clock an hour behind.
pub(crate) fn open(folder: &Path, life: u32) -> SessionLog {
    let start_ms =
        CLOCK_START_MS + u64::from(life) * 1_000 - if life.is_multiple_of(2) { HOUR_MS } else { 0 };
    let begun = Instant::now();
    let clock = move || UNIX_EPOCH + Duration::from_millis(start_ms) + begun.elapsed();
    let opened = small_files().clock(clock).open(folder);
    opened.unwrap_or_else(|error| panic!("the log does not open in life {life}: {error:?}"))
}

/// Returns options whose journal files stay at their smallest, and whose segments are merged soon.
pub(crate) fn small_files() -> Options {
    Options::new()
        .journal_file_bytes_max(4 * 1024 * 1024)
        .merge_fanout(2)
}

impl Role {
    /// Returns the role that this process was started for, if any.
    pub(crate) fn of_this_process() -> Option<Self> {
        let mut arguments = env::args().skip(1);
        let is_child = arguments.next()? == CHILD;
        is_child.then(|| {
            serde_json::from_str(&arguments.next().expect("a child has a role")).expect("a role")
        })
    }

    /// Returns the command for a process of this role.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env::current_exe().expect("this program has a path"));
        let role = serde_json::to_string(self).expect("a role can be told");
        command.args([CHILD, &role]).env("RUST_BACKTRACE", "0");
        command
    }

    pub(crate) fn play(self) -> ! {
        match self {
            Self::Write(writing) => writing.write(),
            Self::Endure(enduring) => enduring.endure(),
            Self::Open(folder) => contend(&folder),
            Self::Soak(soaking) => soaking.soak(),
            Self::Stay(staying) => staying.stay(),
            Self::WriteSled { folder, appends } => write_sled(&folder, appends).expect("sled"),
            Self::CheckSled { folder, appends } => {
                println!("{}", check_sled(&folder, appends).expect("sled"));
            }
            Self::Check {
                folder,
                ledger,
                seed,
                life,
            } => {
                let ledger = Ledger::read_from(works(seed), &ledger).expect("the ledger");
                check(&folder, ledger, works(seed), life);
            }
        }
        std::process::exit(0);
    }
}

impl Writing {
    fn write(&self) {
        let teller = Teller::new(self.tell.as_deref());
        let mut changer = self.changing.begin();
        for life in self.life..self.life + self.lives {
            let mut dice = Dice(self.seed ^ u64::from(life) << 20);
            if dice.one_in(3) {
                // The index is built again.
                let _was_there = std::fs::remove_dir_all(self.folder.join("index"));
            }
            let log = open(&self.folder, life);
            changer.look(&log, &teller);
            teller.say("open");
            let appends = u32::try_from(10 + dice.below(APPENDS)).expect("they are few");
            thread::scope(|scope| {
                for writer in 0..WRITERS {
                    let (log, teller) = (log.clone(), teller.clone());
                    scope.spawn(move || self.append(&log, &teller, life, writer, appends));
                }
                changer
                    .change(&log, &teller, &mut dice)
                    .unwrap_or_else(|error| panic!("a change failed: {error:?}"));
            });
            if dice.one_in(3) {
                // A log seals when it is idle.
                thread::park_timeout(Duration::from_millis(120 + dice.below(100)));
            }
            if dice.one_in(4) {
                drop(log);
            } else {
                log.close()
                    .unwrap_or_else(|error| panic!("the log does not close: {error:?}"));
            }
        }
        if self.end == End::Wait {
            // The process that started this one never writes, so the read ends with that process,
            // and nothing keeps running.
            let _ended = io::stdin().read_to_end(&mut Vec::new());
        }
    }

    fn append(&self, log: &SessionLog, teller: &Teller, life: u32, writer: u32, appends: u32) {
        for nth in 0..appends {
            let tag = Tag { life, writer, nth };
            let work = works(self.seed).of(tag);
            teller.say(&tried(tag));
            match log.append(&work.session, work.batch()) {
                Ok(ack) => teller.say(&acknowledged(tag, &work, &ack)),
                Err(error) => panic!("an append failed: {error:?}"),
            }
        }
    }
}

impl Changing {
    pub(crate) fn begin(&self) -> KnownChanges {
        let known = self.known.as_deref();
        let changes = known.map_or_else(Changes::default, |file| {
            Changes::read_from(file).expect("the changes")
        });
        KnownChanges {
            changing: self.clone(),
            changes,
        }
    }
}

/// The changes that a process knows of.
pub(crate) struct KnownChanges {
    changing: Changing,
    changes: Changes,
}

impl KnownChanges {
    /// Checks the sessions of a log that was opened.
    pub(crate) fn look(&mut self, log: &SessionLog, teller: &Teller) {
        self.changes.check(log);
        if let Some(line) = self.changes.shown() {
            self.changes.note(&line.split(' ').collect::<Vec<_>>());
            teller.say(&line);
        }
    }

    pub(crate) fn change(
        &mut self,
        log: &SessionLog,
        teller: &Teller,
        dice: &mut Dice,
    ) -> Result<(), Error> {
        let folder = self.changing.backup.as_deref();
        let back_up = |log: &SessionLog| match folder {
            Some(folder) => log.backup(folder).map(drop),
            None => Ok(()),
        };
        let say = |line: String| teller.say(&line);
        let mut changer = Changer {
            changes: std::mem::take(&mut self.changes),
            say: &say,
            backup: folder.map(|_| &back_up as _),
        };
        let done = changer.change(log, dice, self.changing.changes);
        self.changes = changer.changes;
        done
    }
}

/// A process whose system calls fail.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Enduring {
    pub folder: PathBuf,
    pub seed: u64,
    pub life: u32,
    pub appends: u32,
    /// Whether calls that read may fail too.
    pub reads: Reads,
    pub changing: Changing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reads {
    Succeed,
    MayFail,
}

impl Enduring {
    fn endure(&self) {
        let teller = Teller::new(None);
        let log = match small_files()
            .stall_wait(Duration::from_secs(1))
            .open(&self.folder)
        {
            Ok(log) => log,
            Err(error @ (Error::Io { .. } | Error::NoSpace { .. })) => {
                return teller.say(&format!("not opened: {error:?}"));
            }
            Err(error) => panic!("the log does not open: {error:?}"),
        };
        let poisoned = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (log, teller, poisoned) = (&log, &teller, &poisoned);
                scope.spawn(move || self.append(log, teller, writer, poisoned));
            }
            self.change(&log, &teller);
        });
        // A log seals when it is idle.
        thread::park_timeout(Duration::from_millis(150));
        if self.reads == Reads::Succeed {
            let sessions = log
                .sessions(SessionQuery::by_id().limit(100))
                .expect("sessions are listed");
            for session in sessions.items {
                let session = session.id;
                log.list(&session, PageRequest::new())
                    .expect("what is durable can be read");
            }
        }
        let closed = log.close();
        let is_poisoned = poisoned.load(Ordering::SeqCst);
        assert!(
            !is_poisoned || matches!(closed, Err(Error::Poisoned { .. })),
            "a poisoned log closed with {closed:?}"
        );
        assert!(
            matches!(
                closed,
                Ok(()) | Err(Error::Poisoned { .. } | Error::Io { .. })
            ),
            "close said {closed:?}"
        );
    }

    /// Changes sessions until a call fails.
    fn change(&self, log: &SessionLog, teller: &Teller) {
        let mut changer = self.changing.begin();
        match changer.change(log, teller, &mut Dice(self.seed)) {
            Ok(()) => {}
            Err(error) if is_of_the_disk(&error) => teller.say(&format!("refused: {error:?}")),
            Err(error) => panic!("a change failed: {error:?}"),
        }
    }

    fn append(&self, log: &SessionLog, teller: &Teller, writer: u32, poisoned: &AtomicBool) {
        for nth in 0..self.appends {
            let tag = Tag {
                life: self.life,
                writer,
                nth,
            };
            let work = works(self.seed).of(tag);
            let was_poisoned = poisoned.load(Ordering::SeqCst);
            teller.say(&tried(tag));
            let answer = log.append(&work.session, work.batch());
            assert!(
                !was_poisoned || matches!(answer, Err(Error::Poisoned { .. })),
                "a poisoned log answered {answer:?}"
            );
            match answer {
                Ok(ack) => teller.say(&acknowledged(tag, &work, &ack)),
                Err(error @ (Error::Io { .. } | Error::Poisoned { .. })) => {
                    poisoned.store(true, Ordering::SeqCst);
                    teller.say(&format!("poisoned: {error:?}"));
                }
                Err(error) if is_of_the_disk(&error) => {
                    teller.say(&format!("refused: {error:?}"));
                }
                Err(error) => panic!("an append failed: {error:?}"),
            }
        }
    }
}

/// Whether a call may fail so where calls to the disk fail.
fn is_of_the_disk(error: &Error) -> bool {
    error.is_retryable()
        || matches!(
            error,
            Error::Io { .. }
                | Error::Poisoned { .. }
                | Error::Refused { .. }
                | Error::LookupFailed { .. }
        )
}

/// Prints a line in one write call, so that a line is there wholly or not at all.
#[derive(Clone)]
pub(crate) struct Teller(Arc<File>);

impl Teller {
    pub(crate) fn new(file: Option<&Path>) -> Self {
        let file = match file {
            Some(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .expect("the file to tell in"),
            None => File::from(
                io::stdout()
                    .as_fd()
                    .try_clone_to_owned()
                    .expect("the standard output"),
            ),
        };
        Self(Arc::new(file))
    }

    pub(crate) fn say(&self, line: &str) {
        let line = format!("{line}\n");
        if !matches!((&*self.0).write(line.as_bytes()), Ok(written) if written == line.len()) {
            std::process::exit(1);
        }
    }
}

/// Opens the log, checks it, appends to it as `life`, and does that again.
fn check(folder: &Path, mut ledger: Ledger, works: Works, life: u32) {
    let teller = Teller::new(None);
    for life in [life, life + 1] {
        let log = open(folder, life);
        ledger.forget_what_was_checked();
        ledger.check(&log);
        for line in ledger.shown() {
            ledger.note(&line);
            teller.say(&line);
        }
        ledger.retry_what_was_not_acknowledged(&log);
        for nth in 0..3 {
            let tag = Tag {
                life,
                writer: 0,
                nth,
            };
            let work = works.of(tag);
            let mut say = |line: String| {
                ledger.note(&line);
                teller.say(&line);
            };
            say(tried(tag));
            let ack = log
                .append(&work.session, work.batch())
                .unwrap_or_else(|error| panic!("{tag:?} failed: {error:?}"));
            say(acknowledged(tag, &work, &ack));
        }
        let mut dice = Dice(u64::from(life));
        ledger
            .change(&log, &mut dice, LAST_CHANGES, &|line| teller.say(line))
            .unwrap_or_else(|error| panic!("a change failed: {error:?}"));
        ledger.check(&log);
        if life.is_multiple_of(2) {
            log.close()
                .unwrap_or_else(|error| panic!("the log does not close: {error:?}"));
        }
    }
}

/// Opens the log from several threads at once on a signal, and prints the results. The thread that
/// has it appends, and keeps it until told to go.
fn contend(folder: &Path) {
    let teller = Teller::new(None);
    let mut lines = io::stdin().lines();
    teller.say("ready");
    let _told = lines.next();
    let barrier = Barrier::new(THREADS);
    let won: Vec<SessionLog> = thread::scope(|scope| {
        let open = || {
            barrier.wait();
            match small_files().open(folder) {
                Ok(log) => {
                    let session =
                        SessionId::new(format!("process {}", std::process::id())).expect("a name");
                    log.append(&session, Batch::new().event(NewEvent::new("note", "here")))
                        .expect("append");
                    teller.say("won");
                    Some(log)
                }
                Err(Error::Locked { .. }) => {
                    teller.say("locked");
                    None
                }
                Err(error) => {
                    teller.say(&format!("{error:?}"));
                    None
                }
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(open)).collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().expect("a thread"))
            .collect()
    });
    let _told = lines.next();
    drop(won);
}

/// A log as an application would write it on sled in twenty lines: a key per event, and an answer
/// when `flush` has returned.
fn write_sled(folder: &Path, appends: u32) -> sled::Result<()> {
    let teller = Teller::new(None);
    let db = sled::open(folder)?;
    for nth in 0..appends {
        db.insert(nth.to_be_bytes(), sled_event(nth))?;
        db.flush()?;
        teller.say(&format!("acknowledged {nth}"));
    }
    Ok(())
}

fn check_sled(folder: &Path, appends: u32) -> sled::Result<usize> {
    let db = sled::open(folder)?;
    let is_there = |nth: u32| {
        Ok(db
            .get(nth.to_be_bytes())?
            .is_some_and(|value| value == sled_event(nth)))
    };
    (0..appends)
        .map(is_there)
        .filter(|there| !matches!(there, Ok(false)))
        .collect::<sled::Result<Vec<bool>>>()
        .map(|there| there.len())
}

fn sled_event(nth: u32) -> Vec<u8> {
    vec![nth.to_le_bytes()[0]; 200 + nth as usize % 3_000]
}
