//! A mixed load for a long time, killed every minute: nothing is lost, and memory, descriptors and
//! disk use stay flat.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sessionlog::{
    Batch, MessageStatus, NewEvent, PageRequest, SessionId, SessionLog, SessionQuery, StreamItem,
};

use super::process::{Changing, Role, Teller, first_life, open};
use super::support::changes::Changes;
use super::support::ledger::{Ledger, Tag, Works, acknowledged, tried};
use super::support::report::{Dice, Report, Runs, is_full, seed, tell};

/// The number of kills.
const ROUNDS: Runs = Runs { quick: 1, full: 20 };
const WRITERS: u32 = 3;
/// Small events, as agents write them.
const BATCHES: &[u64] = &[60, 200, 600, 600, 2_000, 8_000];
/// The pause between two calls of a thread, so that the store grows by a few megabytes a second.
const PAUSE: Duration = Duration::from_millis(1);

/// The limits of the options add up to 288 MiB: recent events, the caches, and the index. sled uses
/// more than its limit.
const RSS_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// A log keeps at most 256 segments open.
const DESCRIPTORS_MAX: u64 = 300;
/// The journal's files, the index and the events to be sealed, which are stored beside the
/// segments.
const DISK_BYTES_MORE: u64 = 256 * 1024 * 1024;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Soaking {
    folder: PathBuf,
    seed: u64,
    life: u32,
    changing: Changing,
}

/// The resources that a process uses.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    rss_bytes: u64,
    descriptors: u64,
}

pub(crate) fn campaign() {
    let seed = seed();
    let round = Duration::from_secs(if is_full() { 60 } else { 4 });
    let mut report = Report::new("soak", seed, ROUNDS.planned());
    let folder = tempfile::tempdir().expect("a folder");
    let changes = tempfile::tempdir().expect("a folder");
    let known = changes.path().join("changes");
    let mut ledger = Ledger::new(works(seed));
    for nth in 1..=ROUNDS.planned() {
        let life = first_life(u32::try_from(nth).expect("few"));
        let passed = report.run(
            || format!("round {nth}"),
            || {
                ledger
                    .changes()
                    .write_to(&known)
                    .expect("write the changes");
                let usage = live(
                    &Soaking {
                        folder: folder.path().to_path_buf(),
                        seed,
                        life,
                        changing: Changing {
                            changes: 1,
                            known: Some(known.clone()),
                            backup: None,
                        },
                    },
                    round,
                    &mut ledger,
                );
                let log = open(folder.path(), life);
                ledger.check(&log);
                ledger.expect_what_was_found();
                if nth % 2 == 0 {
                    log.close().expect("close");
                }
                usage.tell_and_check(nth, disk_bytes(folder.path()), &ledger);
            },
        );
        if passed.is_none() {
            break;
        }
    }
    for (what, many) in ledger.changes().figures() {
        report.count(what, many);
    }
    report.expect_some(
        ROUNDS.full,
        &["delete", "trim", "redact", "fork", "merged", "erased"],
    );
    report.count("appends acknowledged", ledger.due() as u64);
    report.end();
}

fn works(seed: u64) -> Works {
    Works {
        seed,
        bytes: BATCHES,
    }
}

/// Runs a process for a while, and kills it. Returns the resources it used by then.
fn live(soaking: &Soaking, round: Duration, ledger: &mut Ledger) -> Usage {
    let role = Role::Soak(soaking.clone());
    let mut child = role
        .command()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start a process");
    let (sender, lines) = channel();
    let pipe = BufReader::new(child.stdout.take().expect("a pipe"));
    let reader = thread::spawn(move || {
        // The kill may have interrupted the last line.
        pipe.lines()
            .map_while(Result::ok)
            .for_each(|line| drop(sender.send(line)));
    });
    let end = Instant::now() + round;
    while let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
        ledger.note(&line);
    }
    let usage = usage_of(&child);
    child.kill().expect("kill the process");
    let status = child.wait().expect("wait for the process");
    assert!(
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(9),
        "the process ended by itself: {status}"
    );
    reader.join().expect("a thread");
    for line in lines.try_iter() {
        ledger.note(&line);
    }
    usage
}

impl Usage {
    fn tell_and_check(self, round: u64, disk: u64, ledger: &Ledger) {
        let (
            payload,
            Self {
                rss_bytes,
                descriptors,
            },
        ) = (ledger.payload_bytes(), self);
        let [rss, disk_mib, payload_mib] =
            [rss_bytes, disk, payload].map(|bytes| bytes / (1024 * 1024));
        let appends = ledger.due();
        tell(&format!(
            "  round {round}: RSS {rss} MiB, {descriptors} descriptors, {disk_mib} MiB on disk \
             for {payload_mib} MiB of data, {appends} appends\n"
        ));
        assert!(rss_bytes <= RSS_BYTES_MAX, "{rss_bytes} bytes of memory");
        assert!(descriptors <= DESCRIPTORS_MAX, "{descriptors} descriptors");
        assert!(
            disk <= payload * 5 / 4 + DISK_BYTES_MORE,
            "{disk} bytes on disk for {payload} of data"
        );
    }
}

fn usage_of(child: &Child) -> Usage {
    let folder = PathBuf::from(format!("/proc/{}", child.id()));
    let status = std::fs::read_to_string(folder.join("status")).expect("the process is there");
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a process has memory");
    let kib: u64 = rss
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number");
    let descriptors = std::fs::read_dir(folder.join("fd"))
        .expect("the process is there")
        .count() as u64;
    Usage {
        rss_bytes: kib * 1024,
        descriptors,
    }
}

fn disk_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_gone) => 0,
    });
    bytes.sum()
}

impl Soaking {
    /// Works until it is killed.
    pub(crate) fn soak(&self) {
        let log = open(&self.folder, self.life);
        let teller = Teller::new(None);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (log, teller) = (&log, &teller);
                scope.spawn(move || self.append(log, teller, writer));
            }
            scope.spawn(|| self.take_turns(&log));
            scope.spawn(|| self.change(&log, &teller));
            scope.spawn(|| list(&log, Dice(self.seed)));
            scope.spawn(|| follow(&log));
        });
    }

    fn append(&self, log: &SessionLog, teller: &Teller, writer: u32) {
        for nth in 0.. {
            let tag = Tag {
                life: self.life,
                writer,
                nth,
            };
            let work = works(self.seed).of(tag);
            teller.say(&tried(tag));
            let ack = log
                .append(&work.session, work.batch())
                .unwrap_or_else(|error| panic!("{tag:?} failed: {error:?}"));
            teller.say(&acknowledged(tag, &work, &ack));
            thread::park_timeout(PAUSE);
        }
    }

    /// Changes sessions in every way.
    fn change(&self, log: &SessionLog, teller: &Teller) {
        let mut changes = self.changing.begin();
        changes.look(log, teller);
        let mut dice = Dice(self.seed ^ u64::from(self.life));
        loop {
            changes
                .change(log, teller, &mut dice)
                .unwrap_or_else(|error| panic!("a change failed: {error:?}"));
            thread::park_timeout(PAUSE * 20);
        }
    }

    /// Appends an agent's turns, and reads each back as a message.
    fn take_turns(&self, log: &SessionLog) {
        let session = SessionId::new(format!("turns {}", self.life)).expect("a name");
        for nth in 0.. {
            let asked = log
                .append(
                    &session,
                    Batch::new().user_message(format!("question {nth}")),
                )
                .expect("a turn begins");
            let turn = asked.events[0].message_id.expect("a turn has an ID");
            assert_eq!(
                log.message(turn).expect("the message").status,
                MessageStatus::Queued
            );
            let progress = (0..5)
                .map(|n| NewEvent::new("tool.progress", format!("{{\"step\":{n}}}")).in_turn(turn));
            log.append(&session, Batch::new().events(progress))
                .expect("the turn goes on");
            log.message(turn).expect("the message");
            thread::park_timeout(PAUSE * 10);
        }
    }
}

fn list(log: &SessionLog, mut dice: Dice) {
    loop {
        for session in log
            .sessions(SessionQuery::by_id().limit(100))
            .expect("the sessions")
            .items
        {
            let session = session.id;
            if Changes::are_of(&session) {
                continue;
            }
            let tail = log.head(&session).expect("a session has a head").last;
            let page = log
                .list(
                    &session,
                    PageRequest::new().after(dice.below(tail)).limit(50),
                )
                .expect("a page");
            assert!(
                page.items
                    .windows(2)
                    .all(|two| two[0].seq + 1 == two[1].seq),
                "a page has a gap"
            );
        }
        thread::park_timeout(PAUSE * 5);
    }
}

/// Follows the feed, whose IDs must rise.
fn follow(log: &SessionLog) {
    let mut last = None;
    for item in log.feed().expect("the feed") {
        if let StreamItem::Event(event) = item.expect("an event") {
            assert!(last < Some(event.id), "the feed goes back");
            last = Some(event.id);
        }
    }
}
