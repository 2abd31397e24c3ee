//! A server in a process of its own: this program again, in another role. It reports a line before
//! each append and a line after it, and is killed.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use sessionlog::{Options, SessionLog};

use super::REST;
use super::ledger::{Attempt, Told};
use super::writer::Writer;
use crate::support::{session, spread};

/// Set for the process: the URL, the schema, and its name, a line each.
const SERVES: &str = "SESSION_LOG_FAILOVER_SERVER";
const WRITERS: usize = 4;

pub(super) struct Child {
    process: std::process::Child,
    /// What it said, in the order in which it did.
    lines: Arc<Mutex<Vec<String>>>,
    acknowledged: Receiver<()>,
    reader: thread::JoinHandle<()>,
}

impl Child {
    /// `name` begins with the round.
    pub(super) fn start(url: &str, schema: &str, name: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "failover::child::serves_until_it_is_killed",
                "--nocapture",
            ])
            .env(SERVES, format!("{url}\n{schema}\n{name}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stderr.take().unwrap()).lines();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let (sender, acknowledged) = channel();
        let kept = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in said.map_while(Result::ok) {
                if line.starts_with("acked ") {
                    let _ = sender.send(());
                }
                kept.lock().unwrap().push(line);
            }
        });
        Self {
            process,
            lines,
            acknowledged,
            reader,
        }
    }

    /// Waits until it has acknowledged something.
    pub(super) fn has_acknowledged(&self) {
        let waited = self.acknowledged.recv_timeout(REST);
        assert!(waited.is_ok(), "{:?}", self.lines.lock().unwrap());
    }

    pub(super) fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status();
        assert!(sent.unwrap().success(), "{:?}", self.lines.lock().unwrap());
    }

    /// Kills it, and returns what it had appended.
    pub(super) fn kill(mut self) -> Vec<Attempt> {
        let ended = self.process.try_wait().unwrap();
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.reader.join().unwrap();
        let lines = self.lines.lock().unwrap();
        assert!(
            ended.is_none(),
            "it has ended by itself: {ended:?}, {lines:?}"
        );
        read(&lines)
    }
}

/// Returns what lines say of appends.
fn read(lines: &[String]) -> Vec<Attempt> {
    let mut attempts = Vec::<Attempt>::new();
    for line in lines {
        match *line.split(' ').collect::<Vec<_>>() {
            ["tried", tag, id, count] => attempts.push(Attempt {
                tag: tag.to_owned(),
                session: session(id),
                count: count.parse().unwrap(),
                told: Told::InDoubt,
            }),
            ["acked", tag, first, ref ids @ ..] => {
                let first: u64 = first.parse().unwrap();
                let ids = ids.iter().map(|id| id.parse().unwrap());
                let tried = attempts.iter_mut().rev().find(|tried| tried.tag == tag);
                tried.unwrap().told = Told::Acked((first..).zip(ids).collect());
            }
            ["nothing", tag] => {
                let tried = attempts.iter_mut().rev().find(|tried| tried.tag == tag);
                tried.unwrap().told = Told::Nothing;
            }
            _ => {}
        }
    }
    attempts
}

/// Says a line in one write, so that a kill leaves it whole or not there.
fn say(line: &str) {
    io::stderr()
        .write_all(format!("{line}\n").as_bytes())
        .unwrap();
}

#[test]
fn serves_until_it_is_killed() {
    let Ok(role) = std::env::var(SERVES) else {
        return;
    };
    let mut role = role.lines();
    let mut next = || role.next().unwrap();
    let (url, schema, name) = (next(), next(), next());
    let options = spread(Options::new(), url).schema(schema).stall_wait(REST);
    let log: SessionLog = options.connect(url).unwrap();
    let round = name.split('.').next().unwrap().parse().unwrap();
    thread::scope(|scope| {
        for of in 0..WRITERS {
            let log = &log;
            scope.spawn(move || write(log, round, format!("{name}.{of}")));
        }
    });
}

fn write(log: &SessionLog, round: u64, name: String) {
    let seed = u64::from_le_bytes(
        *blake3::hash(name.as_bytes())
            .as_bytes()
            .first_chunk()
            .unwrap(),
    );
    let servers = [log];
    let acked = AtomicU64::new(0);
    let mut writer = Writer::new(&servers, round, name, seed, &acked);
    for nth in 0.. {
        let attempt = writer.append(nth, |tag, id, count| {
            say(&format!("tried {tag} {id} {count}"));
        });
        let tag = &attempt.tag;
        match &attempt.told {
            Told::Acked(at) => {
                let ids: Vec<_> = at.iter().map(|(_, id)| id.to_string()).collect();
                say(&format!("acked {tag} {} {}", at[0].0, ids.join(" ")));
            }
            Told::Nothing => say(&format!("nothing {tag}")),
            Told::InDoubt => {}
        }
    }
}
