//! System calls that fail: each one that the log makes on its folder, at its first time, its second
//! and so on, once or from then on.
//!
//! A call that fails never reaches the kernel, so this does not show what a disk loses in a failed
//! barrier. The simulated disk covers that.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::process::{Changing, Enduring, Reads, Role, first_life, open, works};
use super::support::crash_image::{Call, Image, Step};
use super::support::ledger::{Ledger, Tag, acknowledged, tried};
use super::support::report::{Dice, Report, Runs, is_full, seed};
use super::system_calls::{read, under_strace};

const RUNS: Runs = Runs {
    quick: 20,
    full: 1_500,
};
const APPENDS: u32 = 25;
/// The changes of sessions in each process.
const CHANGES: u64 = 10;
/// The time after which a process counts as stuck.
const WATCHDOG: Duration = Duration::from_mins(1);

const CALLS: [&str; 11] = [
    "write",
    "pwrite64",
    "fdatasync",
    "fsync",
    "fallocate",
    "ftruncate",
    "openat",
    "rename",
    "unlink",
    "mkdir",
    "pread64",
];
const ERRORS: [&str; 3] = ["EIO", "ENOSPC", "EMFILE"];

/// Which calls fail, and how.
#[derive(Debug, Clone, Copy)]
struct Failure {
    call: &'static str,
    error: &'static str,
    /// Each thread counts for itself.
    nth: u64,
    lasts: Lasts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    Once,
    ForGood,
}

pub(crate) fn campaign() {
    let seed = seed();
    let mut dice = Dice(seed);
    let paths = paths_of_a_log(dice.roll());
    let mut report = Report::new("failing calls", seed, RUNS.planned());
    let kinds: Vec<Failure> = CALLS
        .into_iter()
        .flat_map(|call| ERRORS.map(|error| (call, error)))
        .flat_map(|(call, error)| {
            [Lasts::Once, Lasts::ForGood].map(|lasts| Failure {
                call,
                error,
                nth: 1,
                lasts,
            })
        })
        .collect();
    let mut met = BTreeSet::new();
    while !report.is_done() {
        if is_full() {
            // Every call that is made, one after the other.
            for kind in &kinds {
                let mut nth = 1;
                while report.attempt(Failure { nth, ..*kind }, dice.roll(), &paths, &mut met) {
                    nth += 1;
                }
            }
        } else {
            let kind = dice.one_of(&kinds);
            report.attempt(
                Failure {
                    nth: 1 + dice.below(10),
                    ..kind
                },
                dice.roll(),
                &paths,
                &mut met,
            );
        }
    }
    for call in CALLS
        .iter()
        .filter(|call| !met.contains(*call) && is_full())
    {
        report.skip(1, format!("the log makes no call of {call}"));
    }
    report.end();
}

impl Report {
    /// Makes a run with this failure. Returns whether any call failed.
    fn attempt(
        &mut self,
        failure: Failure,
        seed: u64,
        paths: &BTreeSet<PathBuf>,
        met: &mut BTreeSet<&'static str>,
    ) -> bool {
        let has_failed = self.run(
            || format!("{failure:?} with seed {seed}"),
            || {
                Run {
                    failure,
                    seed,
                    paths,
                }
                .carry_out()
            },
        );
        if has_failed == Some(true) {
            self.count("runs in which a call failed", 1);
            met.insert(failure.call);
        }
        has_failed == Some(true)
    }
}

/// Returns the paths that a log of this kind has or had at some time.
fn paths_of_a_log(seed: u64) -> BTreeSet<PathBuf> {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    std::fs::create_dir(&log).expect("a folder");
    let role = Role::Endure(Enduring {
        folder: log.clone(),
        seed,
        life: 1,
        appends: APPENDS,
        reads: Reads::Succeed,
        changing: Changing {
            changes: CHANGES,
            known: None,
            backup: None,
        },
    });
    let output = folder.path().join("trace");
    let run = under_strace(&role.command(), &output)
        .stdin(Stdio::null())
        .output()
        .expect("start strace");
    assert!(run.status.success(), "{run:?}");
    let image = Image::default();
    let steps = read(&output, &log, &image.names, 0);
    let mut paths = BTreeSet::from([PathBuf::new()]);
    for step in steps {
        if let Step::Begin(
            Call::MakeDir(path) | Call::Create { path, .. } | Call::Rename { to: path, .. },
        ) = step
        {
            paths.insert(path);
        }
    }
    paths
}

struct Run<'a> {
    failure: Failure,
    seed: u64,
    paths: &'a BTreeSet<PathBuf>,
}

impl Run<'_> {
    /// Runs a process whose calls fail, and checks what it leaves. Returns whether any call failed.
    fn carry_out(&self) -> bool {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        std::fs::create_dir(&log).expect("a folder");
        let mut ledger = Ledger::new(works(self.seed));
        if self.seed.is_multiple_of(2) {
            // The log was created and not closed, so that recovery makes calls too.
            self.begin(&log, &mut ledger);
        }
        let trace = folder.path().join("trace");
        let known = folder.path().join("changes");
        ledger
            .changes()
            .write_to(&known)
            .expect("write the changes");
        let said = self.endure(&log, &trace, known);
        said.lines().for_each(|line| ledger.note(line));
        let reopened = open(&log, first_life(3));
        ledger.forget_what_was_checked();
        ledger.check(&reopened);
        ledger.expect_what_was_found();
        ledger.retry_what_was_not_acknowledged(&reopened);
        ledger.check(&reopened);
        let trace = std::fs::read_to_string(&trace).expect("the trace");
        trace.contains("(INJECTED)")
    }

    fn begin(&self, folder: &Path, ledger: &mut Ledger) {
        let life = first_life(1);
        let log = open(folder, life);
        for nth in 0..5 {
            let tag = Tag {
                life,
                writer: 0,
                nth,
            };
            let work = works(self.seed).of(tag);
            ledger.note(&tried(tag));
            let ack = log
                .append(&work.session, work.batch())
                .expect("nothing fails yet");
            ledger.note(&acknowledged(tag, &work, &ack));
        }
        ledger
            .change(&log, &mut Dice(self.seed), CHANGES, &|_line| ())
            .expect("nothing fails yet");
        // The log is dropped, which records no clean stop.
    }

    /// Runs the process to its end, and returns its output.
    fn endure(&self, log: &Path, trace: &Path, known: PathBuf) -> String {
        let Failure {
            call,
            error,
            nth,
            lasts,
        } = self.failure;
        let reads = if matches!(call, "pread64" | "openat") {
            Reads::MayFail
        } else {
            Reads::Succeed
        };
        let (folder, seed) = (log.to_path_buf(), self.seed);
        let role = Role::Endure(Enduring {
            folder,
            seed,
            life: first_life(2),
            appends: APPENDS,
            reads,
            changing: Changing {
                changes: CHANGES,
                known: Some(known),
                backup: None,
            },
        });
        let when = if lasts == Lasts::ForGood {
            format!("{nth}+")
        } else {
            nth.to_string()
        };
        let mut strace = Command::new("strace");
        strace.args([
            "-f",
            "-qq",
            "-s",
            "16",
            "-e",
            &format!("trace={call}"),
            "-e",
            "signal=none",
        ]);
        strace
            .args([
                "-e",
                &format!("inject={call}:error={error}:when={when}"),
                "-o",
            ])
            .arg(trace);
        for path in self.paths {
            strace.arg("-P").arg(log.join(path));
        }
        let command = role.command();
        strace
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args())
            .env("RUST_BACKTRACE", "0");
        let (status, said, complained) = run_to_end(&mut strace);
        assert!(
            status.success(),
            "the process ended with {status}: {complained}"
        );
        // sled may panic in threads of its own, which the log contains.
        let ours = complained
            .lines()
            .filter(|line| line.contains("panicked at") && !line.contains("/sled-"));
        assert_eq!(ours.count(), 0, "{complained}");
        said
    }
}

fn text_of(pipe: &mut impl Read) -> String {
    let mut text = Vec::new();
    pipe.read_to_end(&mut text).expect("read a pipe");
    String::from_utf8_lossy(&text).into_owned()
}

/// Runs a process that must not get stuck. Returns how it ended and what it wrote to both outputs.
fn run_to_end(command: &mut Command) -> (ExitStatus, String, String) {
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start strace");
    let (mut out, mut err) = (
        process.stdout.take().expect("a pipe"),
        process.stderr.take().expect("a pipe"),
    );
    let began = Instant::now();
    let (said, complained) = std::thread::scope(|scope| {
        let said = scope.spawn(move || text_of(&mut out));
        let complained = scope.spawn(move || text_of(&mut err));
        while process.try_wait().expect("a process").is_none() {
            if began.elapsed() > WATCHDOG {
                let _killed = process.kill();
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        (
            said.join().expect("a reader"),
            complained.join().expect("a reader"),
        )
    });
    let status = process.wait().expect("a process");
    assert!(
        began.elapsed() <= WATCHDOG,
        "the process is stuck; it said: {said}"
    );
    (status, said, complained)
}
