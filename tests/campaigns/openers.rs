//! Many processes and threads that open one log at once, by several paths. One wins. When it is
//! gone, however it went, the next open succeeds at once.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use sessionlog::{Error, SessionQuery};

use super::process::{Role, small_files};
use super::support::report::{Dice, Report, Runs, seed};

const ROUNDS: Runs = Runs { quick: 4, full: 50 };
const PROCESSES: usize = 8;
/// The number of threads in each process.
pub(crate) const THREADS: usize = 2;

pub(crate) fn campaign() {
    let seed = seed();
    let mut report = Report::new("concurrent openers", seed, ROUNDS.planned());
    let mut dice = Dice(seed);
    while !report.is_done() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = ["log", "another name", "a third/log"].map(|path| folder.path().join(path));
        std::os::unix::fs::symlink(&paths[0], &paths[1]).expect("a symbolic link");
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a third"))
            .expect("a symbolic link");
        // A link whose target does not exist cannot be opened, so the folder exists and the log
        // does not.
        std::fs::create_dir(&paths[0]).expect("a folder");
        let mut sessions = 0;
        for round in 0..10 {
            let end = if dice.flip() {
                Holder::IsKilled
            } else {
                Holder::IsTold
            };
            if report
                .run(
                    || format!("round {round}"),
                    || contend(&paths, end, &mut sessions),
                )
                .is_none()
            {
                break;
            }
            report.count(
                "holders that were killed",
                u64::from(end == Holder::IsKilled),
            );
            if report.is_done() {
                break;
            }
        }
    }
    report.end();
}

/// How the process that has the log open goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    IsTold,
    IsKilled,
}

struct Opener {
    child: Child,
    tell: ChildStdin,
    said: BufReader<ChildStdout>,
}

/// All try at once. The winner stays until it is told to go, or killed. Then this process opens.
fn contend(paths: &[PathBuf], end: Holder, sessions: &mut usize) {
    let mut openers: Vec<Opener> = (0..PROCESSES)
        .map(|nth| Opener::start(&paths[nth % paths.len()]))
        .collect();
    for opener in &mut openers {
        assert_eq!(opener.hear(), "ready");
    }
    for opener in &mut openers {
        opener.say("go");
    }
    let mut winner = None;
    for (nth, opener) in openers.iter_mut().enumerate() {
        for _ in 0..THREADS {
            match opener.hear().as_str() {
                "won" => assert_eq!(winner.replace(nth), None, "two have the log open"),
                "locked" => {}
                other => panic!("an open failed: {other}"),
            }
        }
    }
    let winner = &mut openers[winner.expect("somebody wins")];
    assert!(
        matches!(small_files().open(&paths[0]), Err(Error::Locked { .. })),
        "the log opens while another has it"
    );
    if end == Holder::IsKilled {
        winner.child.kill().expect("kill the holder");
    } else {
        winner.say("go");
    }
    winner.child.wait().expect("the holder ends");
    *sessions += 1;
    let log = small_files()
        .open(&paths[1])
        .unwrap_or_else(|error| panic!("the next open fails: {error:?}"));
    let known = log
        .sessions(SessionQuery::by_id().limit(1_000))
        .expect("the sessions")
        .items;
    assert_eq!(known.len(), *sessions, "each holder's append is there");
    drop(log);
    for mut opener in openers {
        let _gone = opener.child.kill();
        opener.child.wait().expect("the process ends");
    }
}

impl Opener {
    fn start(path: &Path) -> Self {
        let role = Role::Open(path.to_path_buf());
        let mut child = role
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a process");
        let (tell, said) = (
            child.stdin.take().expect("a pipe"),
            child.stdout.take().expect("a pipe"),
        );
        Self {
            child,
            tell,
            said: BufReader::new(said),
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.tell, "{line}").expect("tell the process");
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.said
            .read_line(&mut line)
            .expect("hear from the process");
        line.trim_end().to_owned()
    }
}
