//! The processes that campaigns start: this very program, in another role. What they have to say they say a line at a time.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};
use std::{env, thread};

use sessionlog::{Options, SessionLog};

use super::ledger::{LARGE_BATCHES, Ledger, Tag, Works, acknowledged, tried};
use super::report::Dice;

const CHILD: &str = "--child";
const WRITERS: u32 = 3;
/// So that a child that is never killed does not fill the disk.
const APPENDS: u64 = 40;
const LIVES_PER_PROCESS: u32 = 8;

const HOUR_MS: u64 = 3_600_000;
const CLOCK_START_MS: u64 = 1_750_000_000_000;

/// What a process is for.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    /// Opens, appends from several threads and closes, a few times over.
    Write(Writing),
    /// Checks a log against a ledger, twice, and appends to it.
    Check { folder: PathBuf, ledger: PathBuf, seed: u64, life: u32 },
}

#[derive(Debug, Clone)]
pub(crate) struct Writing {
    pub folder: PathBuf,
    pub seed: u64,
    /// The first of its lives.
    pub life: u32,
    pub lives: u32,
    /// Where it tells what it does, in place of its standard output.
    pub tell: Option<PathBuf>,
    pub end: End,
}

/// What the process does when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Exit,
    /// Waits until the one who started it is gone.
    Wait,
}

pub(crate) fn works(seed: u64) -> Works {
    Works { seed, bytes: LARGE_BATCHES }
}

/// The first life of the process with this number.
pub(crate) fn first_life(process: u32) -> u32 {
    process * LIVES_PER_PROCESS
}

/// Opens with small journal files, and every second life with the clock an hour behind.
pub(crate) fn open(folder: &Path, life: u32) -> SessionLog {
    let start_ms = CLOCK_START_MS + u64::from(life) * 1_000 - if life.is_multiple_of(2) { HOUR_MS } else { 0 };
    let begun = Instant::now();
    let options = Options::new()
        .journal_file_bytes_max(4 * 1024 * 1024)
        .clock(move || UNIX_EPOCH + Duration::from_millis(start_ms) + begun.elapsed());
    options.open(folder).unwrap_or_else(|error| panic!("the log does not open in life {life}: {error:?}"))
}

impl Role {
    /// The role that this process was started for, if any.
    pub(crate) fn of_this_process() -> Option<Self> {
        let mut arguments = env::args_os().skip(1);
        if arguments.next()? != CHILD {
            return None;
        }
        let mut next = || arguments.next().expect("who starts a child tells it everything");
        let number = |text: OsString| text.to_str().and_then(|text| text.parse::<u64>().ok()).expect("a number");
        let small = |text| u32::try_from(number(text)).expect("a small number");
        let role = next();
        Some(match role.to_str() {
            Some("write") => Self::Write(Writing {
                folder: next().into(),
                seed: number(next()),
                life: small(next()),
                lives: small(next()),
                end: if next() == "wait" { End::Wait } else { End::Exit },
                tell: Some(PathBuf::from(next())).filter(|path| !path.as_os_str().is_empty()),
            }),
            Some("check") => Self::Check {
                folder: next().into(),
                ledger: next().into(),
                seed: number(next()),
                life: small(next()),
            },
            _ => panic!("no such role: {role:?}"),
        })
    }

    /// The arguments for a program of this role.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let text = |text: &str| OsString::from(text);
        let number = |number: u64| OsString::from(number.to_string());
        match self {
            Self::Write(writing) => {
                let Writing { folder, seed, life, lives, tell, end } = writing.clone();
                let end = text(if end == End::Wait { "wait" } else { "exit" });
                let tell = tell.unwrap_or_default().into();
                vec![text(CHILD), text("write"), folder.into(), number(seed), number(life.into()), number(lives.into()), end, tell]
            }
            Self::Check { folder, ledger, seed, life } => {
                let (folder, ledger) = (folder.into(), ledger.into());
                vec![text(CHILD), text("check"), folder, ledger, number(*seed), number((*life).into())]
            }
        }
    }

    /// A process of this role, to be started.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(this_program());
        command.args(self.arguments()).env("RUST_BACKTRACE", "0");
        command
    }

    pub(crate) fn play(self) -> ! {
        match self {
            Self::Write(writing) => writing.write(),
            Self::Check { folder, ledger, seed, life } => {
                let ledger = Ledger::read_from(works(seed), &ledger).expect("the ledger");
                check(&folder, ledger, works(seed), life);
            }
        }
        std::process::exit(0);
    }
}

pub(crate) fn this_program() -> PathBuf {
    env::current_exe().expect("this program has a path")
}

impl Writing {
    fn write(&self) {
        let teller = Teller::new(self.tell.as_deref());
        for life in self.life..self.life + self.lives {
            let mut dice = Dice(self.seed ^ u64::from(life) << 20);
            if dice.one_in(3) {
                // The index is built again.
                let _was_there = std::fs::remove_dir_all(self.folder.join("index"));
            }
            let log = open(&self.folder, life);
            teller.say("open");
            let appends = u32::try_from(10 + dice.below(APPENDS)).expect("they are few");
            thread::scope(|scope| {
                for writer in 0..WRITERS {
                    let (log, teller) = (log.clone(), teller.clone());
                    scope.spawn(move || self.append(&log, &teller, life, writer, appends));
                }
            });
            if dice.one_in(3) {
                // Sealing begins when a log is idle.
                thread::park_timeout(Duration::from_millis(120 + dice.below(100)));
            }
            if dice.one_in(4) {
                drop(log);
            } else {
                log.close().unwrap_or_else(|error| panic!("the log does not close: {error:?}"));
            }
        }
        if self.end == End::Wait {
            // The one who started this never writes: this ends when it does, and nothing is left running.
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

/// Says what a process does, by one write call a line, so that a line is there wholly or not at all.
#[derive(Clone)]
pub(crate) struct Teller(Arc<File>);

impl Teller {
    pub(crate) fn new(file: Option<&Path>) -> Self {
        let file = match file {
            Some(path) => OpenOptions::new().append(true).create(true).open(path).expect("the file to tell in"),
            None => File::from(io::stdout().as_fd().try_clone_to_owned().expect("the standard output")),
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
            let tag = Tag { life, writer: 0, nth };
            let work = works.of(tag);
            let mut say = |line: String| {
                ledger.note(&line);
                teller.say(&line);
            };
            say(tried(tag));
            let ack = log.append(&work.session, work.batch()).unwrap_or_else(|error| panic!("{tag:?} failed: {error:?}"));
            say(acknowledged(tag, &work, &ack));
        }
        ledger.check(&log);
        if life.is_multiple_of(2) {
            log.close().unwrap_or_else(|error| panic!("the log does not close: {error:?}"));
        }
    }
}
