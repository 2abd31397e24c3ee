//! Folders that change their names under open logs: moved, removed, replaced, mounted over.
//!
//! This happens at random moments of appending, rotating, sealing, closing and recovery, while a
//! second process opens the same path. Everything acknowledged to a process is in the folder that
//! its log was opened in, and in no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use sessionlog::{Batch, NewEvent, PageRequest, SessionId, SessionLog, SessionQuery};

use super::mounts;
use super::process::{Role, Teller, small_files};
use super::support::report::{Dice, Report, Runs, seed};

const ROUNDS: Runs = Runs {
    quick: 16,
    full: 500,
};
/// How long the processes of a round may take.
const DEADLINE: Duration = Duration::from_mins(1);
/// What the logs hold before the processes open them.
const EARLY: u64 = 5;
/// Appends of a process after it was told of the change of its folder.
const AFTERWARDS: usize = 3;

/// What happens to the folder `data`, which the processes open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Move,
    Remove,
    ReplaceByAnEarlierCopy,
    SwapWithAnother,
    MountAnotherOverIt,
    RemoveItsLock,
    ChangeTheWorkingDirectory,
    PointTheLinkElsewhere,
}

const ACTS: [Act; 8] = [
    Act::Move,
    Act::Remove,
    Act::ReplaceByAnEarlierCopy,
    Act::SwapWithAnother,
    Act::MountAnotherOverIt,
    Act::RemoveItsLock,
    Act::ChangeTheWorkingDirectory,
    Act::PointTheLinkElsewhere,
];

pub(crate) fn campaign() {
    let seed = seed();
    let mut report = Report::new("displaced folders", seed, ROUNDS.planned());
    let mut dice = Dice(seed);
    let cannot_mount = mounts::obstacle();
    while !report.is_done() {
        for act in ACTS {
            if act == Act::MountAnotherOverIt
                && let Some(why) = &cannot_mount
            {
                report.skip(1, why.clone());
                continue;
            }
            let round = dice.roll();
            let Some(outcome) = report.run(
                || format!("{act:?} with seed {round}"),
                || Round::new(act, round).carry_out(),
            ) else {
                continue;
            };
            report.count("lives", outcome.lives);
            report.count("appends acknowledged", outcome.acknowledged);
            report.count("logs that found themselves displaced", outcome.displaced);
            report.count("logs that went on", outcome.went_on);
            if report.is_done() {
                break;
            }
        }
    }
    report.end();
}

#[derive(Default)]
struct Seen {
    lives: u64,
    acknowledged: u64,
    displaced: u64,
    went_on: u64,
}

struct Round {
    act: Act,
    root: tempfile::TempDir,
    dice: Dice,
    is_mounted: bool,
}

/// What a process reported of one time that it had a log open.
#[derive(Debug, Default)]
struct Life {
    acknowledged: u64,
    /// Whether its life began before the folder was touched.
    begun_before: bool,
    /// Whether the log was open by then, so that it must notice.
    opened_before: bool,
    /// The results of the appends after that.
    afterwards: Vec<String>,
    is_over: bool,
}

impl Round {
    fn new(act: Act, seed: u64) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let round = Self {
            act,
            root,
            dice: Dice(seed),
            is_mounted: false,
        };
        for name in ["data", "other", "elsewhere/data"] {
            fs::create_dir_all(round.at(name)).expect("a folder");
            let log = small_files().open(round.at(name)).expect("a new log");
            for nth in 0..EARLY {
                append(&log, &format!("early in {name}"), nth, 100).expect("append");
            }
            log.close().expect("close");
        }
        copy(&round.at("data"), &round.at("copy"));
        symlink(round.at("data"), round.at("link")).expect("a link");
        round
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn carry_out(mut self) -> Seen {
        let opened = if self.act == Act::PointTheLinkElsewhere {
            "link"
        } else {
            "data"
        };
        let mut processes = [self.start("first", opened), self.start("second", opened)];
        let mut lives = BTreeMap::new();
        let until = Instant::now() + Duration::from_millis(self.dice.below(250));
        for process in &mut processes {
            process.listen(Some(until), &mut lives);
        }
        for life in lives.values_mut() {
            let life: &mut Life = life;
            (life.begun_before, life.opened_before) = (true, !life.is_over);
        }
        self.act(&mut processes);
        for process in &mut processes {
            process.tell("done");
        }
        for process in &mut processes {
            process.listen(None, &mut lives);
            assert!(
                process.child.wait().expect("the process").success(),
                "a process failed"
            );
        }
        self.unmount();
        self.check(&lives)
    }

    fn start(&mut self, who: &str, opened: &str) -> Process {
        let is_relative = self.act == Act::ChangeTheWorkingDirectory || self.dice.flip();
        let folder = if is_relative {
            PathBuf::from(opened)
        } else {
            self.at(opened)
        };
        let role = Role::Stay(Staying {
            folder,
            who: who.to_owned(),
            seed: self.dice.roll(),
        });
        let mut command = role.command();
        command
            .current_dir(self.root.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the process");
        let stdin = child.stdin.take();
        let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            while said.read_line(&mut line).is_ok_and(|read| read > 0) {
                if sender
                    .send(std::mem::take(&mut line).trim_end().to_owned())
                    .is_err()
                {
                    break;
                }
            }
        });
        Process {
            child,
            stdin,
            lines,
        }
    }

    fn act(&mut self, processes: &mut [Process]) {
        match self.act {
            Act::Move => rename(&self.at("data"), &self.at("moved")),
            Act::Remove => {
                // New files may appear while the old ones are removed.
                while let Err(error) = fs::remove_dir_all(self.at("data")) {
                    if error.kind() == io::ErrorKind::NotFound {
                        break;
                    }
                }
            }
            Act::ReplaceByAnEarlierCopy => {
                rename(&self.at("data"), &self.at("moved"));
                // Another process may have created a log there in between.
                if fs::rename(self.at("copy"), self.at("data")).is_err() {
                    rename(&self.at("data"), &self.at("begun in between"));
                    let _there_again = fs::rename(self.at("copy"), self.at("data"));
                }
            }
            Act::SwapWithAnother => {
                let (data, other) = (self.at("data"), self.at("other"));
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &data, rustix::fs::CWD, &other, flags)
                    .expect("swap");
            }
            Act::MountAnotherOverIt => {
                let paths = [self.at("other"), self.at("data")]
                    .map(|path| path.to_str().expect("text").to_owned());
                mounts::run("mount", &["--bind", &paths[0], &paths[1]]).expect("mount");
                self.is_mounted = true;
            }
            Act::RemoveItsLock => drop(fs::remove_file(self.at("data/LOCK"))),
            Act::ChangeTheWorkingDirectory => {
                let elsewhere = self.at("elsewhere");
                for process in processes {
                    process.tell(&format!("chdir {}", elsewhere.display()));
                }
            }
            Act::PointTheLinkElsewhere => {
                symlink(self.at("other"), self.at("link.new")).expect("a link");
                rename(&self.at("link.new"), &self.at("link"));
            }
        }
    }

    fn unmount(&mut self) {
        if std::mem::take(&mut self.is_mounted) {
            let data = self.at("data");
            mounts::run("umount", &[data.to_str().expect("text")]).expect("unmount");
        }
    }

    /// Opens all folders that exist, and looks for what was acknowledged.
    fn check(&self, lives: &BTreeMap<String, Life>) -> Seen {
        let mut seen = Seen {
            lives: lives.len() as u64,
            ..Seen::default()
        };
        let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut identities = BTreeSet::new();
        for name in [
            "data",
            "moved",
            "copy",
            "other",
            "elsewhere/data",
            "begun in between",
        ] {
            let folder = self.at(name);
            if !folder.exists() || !identities.insert(identity(&folder)) {
                continue;
            }
            let log = small_files()
                .open(&folder)
                .unwrap_or_else(|error| panic!("{name} does not open: {error:?}"));
            for (session, events) in contents(&log) {
                found.entry(session).or_default().push(events);
            }
        }
        let is_removed = self.act == Act::Remove;
        for (name, life) in lives {
            let held = found.get(name).cloned().unwrap_or_default();
            seen.acknowledged += life.acknowledged;
            assert!(held.len() <= 1, "{name} is in several folders: {held:?}");
            // Appends from before the removal are gone with the folder.
            let may_be_gone = is_removed
                && (life.begun_before || !life.afterwards.iter().any(|said| said == "ok"));
            if !may_be_gone {
                let held = held.first().copied().unwrap_or(0);
                assert!(
                    held >= life.acknowledged,
                    "{name} was acknowledged {} and {held} are there",
                    life.acknowledged
                );
            }
            self.check_afterwards(name, life, &mut seen);
        }
        let early = |name: &str| {
            found
                .get(&format!("early in {name}"))
                .map_or(0, |events| events.iter().copied().max().unwrap_or(0))
        };
        assert_eq!(early("other"), EARLY, "the other log lost its events");
        assert_eq!(
            early("elsewhere/data"),
            EARLY,
            "the log elsewhere lost its events"
        );
        assert!(
            early("data") == EARLY || self.act == Act::Remove,
            "the log lost what it had"
        );
        seen
    }

    /// A process that had the log open notices, or continues where that is right.
    fn check_afterwards(&self, name: &str, life: &Life, seen: &mut Seen) {
        let goes_on = matches!(
            self.act,
            Act::RemoveItsLock | Act::ChangeTheWorkingDirectory
        );
        for said in life.afterwards.iter().filter(|_| life.opened_before) {
            let is_right = if goes_on {
                said == "ok"
            } else {
                said == "displaced" || said == "poisoned"
            };
            assert!(is_right, "{name} said {said} after {:?}", self.act);
        }
        if life.opened_before && !life.afterwards.is_empty() {
            *(if goes_on {
                &mut seen.went_on
            } else {
                &mut seen.displaced
            }) += 1;
        }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if self.is_mounted {
            let data = self.at("data");
            let _detached = mounts::run("umount", &["--lazy", data.to_str().unwrap_or_default()]);
        }
    }
}

struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    /// Records the lines of the process, until `until` or until it ends.
    fn listen(&mut self, until: Option<Instant>, lives: &mut BTreeMap<String, Life>) {
        let deadline = until.unwrap_or_else(|| Instant::now() + DEADLINE);
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => take_in(&line, lives),
                Err(RecvTimeoutError::Timeout) if until.is_some() => return,
                Err(RecvTimeoutError::Timeout) => panic!("a process is stuck"),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tell(&mut self, line: &str) {
        let told = self
            .stdin
            .as_mut()
            .map(|stdin| writeln!(stdin, "{line}").and_then(|()| stdin.flush()));
        assert!(
            told.is_some_and(|told| told.is_ok()),
            "a process ended by itself"
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn take_in(line: &str, known: &mut BTreeMap<String, Life>) {
    let (what, rest) = line.split_once(' ').expect("a word and what it is about");
    let (name, said) = rest.split_once(' ').unwrap_or((rest, ""));
    let told_of = known.entry(name.to_owned()).or_default();
    match what {
        "open" => {}
        "acknowledged" => told_of.acknowledged += 1,
        "afterwards" => told_of.afterwards.push(said.to_owned()),
        "over" => told_of.is_over = true,
        other => panic!("a process said {other}"),
    }
}

/// A process that opens a log, appends, closes it and opens it again, until it is told to end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Staying {
    folder: PathBuf,
    who: String,
    seed: u64,
}

/// Set when the folder was touched.
static TOLD: AtomicBool = AtomicBool::new(false);

impl Staying {
    pub(crate) fn stay(&self) {
        thread::spawn(|| {
            for line in io::stdin().lines().map_while(Result::ok) {
                match line.strip_prefix("chdir ") {
                    Some(folder) => {
                        std::env::set_current_dir(folder).expect("change the working directory");
                    }
                    None => TOLD.store(true, Ordering::SeqCst),
                }
            }
        });
        let teller = Teller::new(None);
        let mut dice = Dice(self.seed);
        let mut life = 0;
        let mut after_told = 0;
        // One life more after the signal, for the folder that is at the path by then.
        while after_told < 2 {
            after_told += u32::from(TOLD.load(Ordering::SeqCst));
            let Ok(log) = small_files()
                .stall_wait(Duration::from_secs(5))
                .open(&self.folder)
            else {
                // Another process has it, or it is being moved.
                thread::park_timeout(Duration::from_millis(3));
                continue;
            };
            life += 1;
            live(&log, &format!("{}-{life}", self.who), &mut dice, &teller);
        }
    }
}

fn live(log: &SessionLog, name: &str, dice: &mut Dice, teller: &Teller) {
    teller.say(&format!("open {name}"));
    let appends = 5 + dice.below(60);
    let mut afterwards = 0;
    for nth in 0..appends {
        let was_told = TOLD.load(Ordering::SeqCst);
        let bytes_max = if dice.one_in(3) { 600_000 } else { 2_000 };
        let bytes = dice.below(bytes_max);
        let answer = append(log, name, nth, bytes);
        if answer.is_ok() {
            teller.say(&format!("acknowledged {name}"));
        }
        if was_told {
            teller.say(&format!(
                "afterwards {name} {}",
                answer
                    .as_ref()
                    .map_or_else(sessionlog::Error::code, |()| "ok")
            ));
            afterwards += 1;
        }
        if answer.is_err() || afterwards == AFTERWARDS {
            break;
        }
    }
    if dice.one_in(4) {
        // A log seals when it is idle.
        thread::park_timeout(Duration::from_millis(110 + dice.below(50)));
    }
    if !dice.one_in(3) {
        // A displaced log reports that.
        let _closed = log.close();
    }
    teller.say(&format!("over {name}"));
}

fn append(log: &SessionLog, name: &str, nth: u64, bytes: u64) -> sessionlog::Result<()> {
    let mut data = nth.to_le_bytes().to_vec();
    data.resize(8 + usize::try_from(bytes).expect("few"), b'.');
    let session = SessionId::new(name)?;
    let ack = log.append(&session, Batch::new().event(NewEvent::new("note", data)))?;
    assert_eq!(ack.first, nth + 1, "an event of {name} is in another place");
    Ok(())
}

/// Returns the sessions of a log, and how many events of each are as they were appended.
fn contents(log: &SessionLog) -> Vec<(String, u64)> {
    let sessions = log
        .sessions(SessionQuery::by_id().limit(1_000))
        .expect("the sessions")
        .items
        .into_iter()
        .map(|session| session.id);
    let count = |session: &SessionId| {
        let (mut nth, mut page) = (
            0_u64,
            log.list(session, PageRequest::new()).expect("a page"),
        );
        loop {
            for event in &page.items {
                assert_eq!(
                    event.data[..8],
                    nth.to_le_bytes(),
                    "an event of {session} is not what was appended"
                );
                nth += 1;
            }
            if !page.has_more {
                return nth;
            }
            page = log
                .list(session, PageRequest::new().after(page.last))
                .expect("a page");
        }
    };
    sessions
        .map(|session| (session.to_string(), count(&session)))
        .collect()
}

fn identity(folder: &Path) -> (u64, u64) {
    let found = fs::metadata(folder).expect("a folder");
    (found.dev(), found.ino())
}

fn rename(from: &Path, to: &Path) {
    fs::rename(from, to)
        .unwrap_or_else(|error| panic!("{} to {}: {error}", from.display(), to.display()));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copy a file");
        }
    }
}
