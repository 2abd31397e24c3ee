//! kill -9 at random moments: a process appends, rotates, seals, indexes, closes and opens until it
//! is killed. Everything it acknowledged through a pipe must be there. Nothing here waits for a
//! fixed time, except for the kill.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::process::{Changing, End, Role, Writing, first_life, open, small_files, works};
use super::support::ledger::Ledger;
use super::support::report::{Dice, Report, Runs, seed};

const KILLS: Runs = Runs {
    quick: 100,
    full: 1_000,
};
/// The kills after which a new log is created, so that young ones are killed too.
const KILLS_PER_LOG: u32 = 50;
const LIVES: u32 = 6;
/// What the kills have to meet, all of them together.
const EXPECTED: [&str; 5] = ["delete", "trim", "redact", "fork", "merged"];
/// The changes of sessions in each life.
const CHANGES: u64 = 12;
/// The extension of the folder that the log is backed up into.
const BACKUP: &str = "backup";
/// How long a process may take to open the log.
const OPEN_DEADLINE: Duration = Duration::from_mins(1);

pub(crate) fn campaign() {
    let seed = seed();
    let mut report = Report::new("kill -9", seed, KILLS.planned());
    let mut dice = Dice(seed);
    while !report.has_met(&EXPECTED) {
        grow_and_kill(dice.roll(), &mut report);
    }
    assert!(
        report.figure("segments") > 0,
        "nothing was sealed, so no kill met it"
    );
    report.expect_some(KILLS.quick, &EXPECTED);
    report.expect_some(KILLS.full, &["erased", "backups"]);
    report.end();
}

/// One log, grown and killed `KILLS_PER_LOG` times, or until the first violation, which every later
/// check would find again.
fn grow_and_kill(seed: u64, report: &mut Report) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = &folder.path().join("log");
    let mut dice = Dice(seed);
    let mut ledger = Ledger::new(works(seed));
    let mut segments = 0;
    for process in 1..=KILLS_PER_LOG {
        let what = || format!("kill {process} of the log with seed {seed}");
        let is_last = process == KILLS_PER_LOG;
        let checked = report.run(what, || {
            let kill = Kill {
                folder,
                seed,
                process,
            };
            kill.carry_out(&mut dice, &mut ledger);
            // A process that opens what the previous one left meets the crash itself, and may be
            // killed while it recovers.
            (is_last || !dice.one_in(3)).then(|| check(folder, process, &mut dice, &mut ledger))
        });
        match checked {
            None => return,
            Some(found) => segments = found.unwrap_or(segments),
        }
        if report.has_met(&EXPECTED) {
            break;
        }
    }
    for (what, many) in ledger.changes().figures() {
        report.count(what, many);
    }
    report.count("segments", segments);
    report.count("appends acknowledged", ledger.due() as u64);
}

fn check(folder: &Path, process: u32, dice: &mut Dice, ledger: &mut Ledger) -> u64 {
    if ledger.has_backup() {
        ledger.check_backup(small_files().open_read_only(folder.with_extension(BACKUP)));
    }
    let log = open(folder, first_life(process));
    if process == KILLS_PER_LOG || dice.one_in(15) {
        ledger.forget_what_was_checked();
    }
    ledger.check(&log);
    ledger.expect_what_was_found();
    ledger.retry_what_was_not_acknowledged(&log);
    ledger.check(&log);
    let segments = log.stats().segments;
    if dice.flip() {
        log.close().expect("close");
    }
    segments
}

/// A process that is to be killed.
struct Kill<'a> {
    folder: &'a Path,
    seed: u64,
    process: u32,
}

impl Kill<'_> {
    fn carry_out(&self, dice: &mut Dice, ledger: &mut Ledger) {
        let longest = if dice.one_in(5) { 500_000 } else { 60_000 };
        let delay = Duration::from_micros(1_000 + dice.below(longest));
        let counts_opening = dice.one_in(3);
        let mut child = self.start(ledger);
        let lines = lines_of(&mut child);
        let mut deadline = Instant::now() + if counts_opening { delay } else { OPEN_DEADLINE };
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line == "open" => {
                    if !counts_opening {
                        deadline = deadline.min(Instant::now() + delay);
                    }
                }
                Ok(line) => ledger.note(&line),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the process ended by itself: {:?}", child.wait())
                }
            }
        }
        child.kill().expect("kill the process");
        let status = child.wait().expect("wait for the process");
        assert_eq!(
            status.signal(),
            Some(9),
            "the process ended by itself: {status}"
        );
        for line in lines {
            ledger.note(&line);
        }
    }

    fn start(&self, ledger: &Ledger) -> Child {
        let known = self.folder.with_extension("changes");
        ledger
            .changes()
            .write_to(&known)
            .expect("write the changes");
        let writing = Writing {
            folder: self.folder.to_path_buf(),
            seed: self.seed,
            life: first_life(self.process),
            lives: LIVES,
            tell: None,
            end: End::Wait,
            changing: Changing {
                changes: CHANGES,
                known: Some(known),
                backup: Some(self.folder.with_extension(BACKUP)),
            },
        };
        Role::Write(writing)
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the process")
    }
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let mut pipe = BufReader::new(child.stdout.take().expect("the child's pipe"));
    let (sender, lines) = channel();
    thread::spawn(move || {
        let mut line = String::new();
        while pipe.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
            if sender
                .send(std::mem::take(&mut line).trim_end().to_owned())
                .is_err()
            {
                break;
            }
        }
    });
    lines
}
