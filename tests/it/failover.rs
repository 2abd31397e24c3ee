//! A log on three nodes while these die, freeze, start again and change places.
//!
//! The campaign needs the nodes that `tests/postgres/cluster.sh create 3` makes, and the path of
//! that script in `SESSION_LOG_POSTGRES_CLUSTER`. Without it, it is skipped and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use sessionlog::{
    Batch, Error, Event, EventId, Options, RecvTimeout, SessionId, SessionLog, StartAt,
};

use crate::report::{Report, Runs, seed};
use crate::support::{
    Place, assert_dense, eventually, feed_all, folder, note, read_all, schema_of, session,
};

mod moments;

const RUNS: Runs = Runs {
    quick: 5,
    full: 200,
};

const SESSIONS: usize = 4;
const WRITERS: usize = 8;

/// How long appends go on before and after each fault.
const BEFORE: Duration = Duration::from_millis(700);
const AFTER: Duration = Duration::from_secs(1);

/// How long a round may take to come to rest.
const REST: Duration = Duration::from_mins(1);

/// What befalls the nodes.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The primary dies, and the better of the others takes its place.
    Kill,
    /// The primary freezes, another takes its place, and it comes back.
    Freeze,
    /// The primary dies and starts again.
    Restart,
    /// A standby dies. The other is a quorum.
    Standby,
    /// Both standbys freeze: nothing is acknowledged until one is back.
    NoQuorum,
}

const FAULTS: [Fault; 5] = [
    Fault::Kill,
    Fault::Freeze,
    Fault::Restart,
    Fault::Standby,
    Fault::NoQuorum,
];

/// The nodes, by the script that runs them. One test at a time has them.
struct Cluster(
    String,
    #[allow(dead_code, reason = "held")] MutexGuard<'static, ()>,
);

impl Cluster {
    /// The nodes, or `None` without a script.
    fn get() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let Ok(script) = std::env::var("SESSION_LOG_POSTGRES_CLUSTER") else {
            eprintln!("skipped: SESSION_LOG_POSTGRES_CLUSTER names no script of a cluster");
            return None;
        };
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = Self(script, alone);
        cluster.rest();
        Some(cluster)
    }

    fn run(&self, words: &[&str]) -> String {
        let output = Command::new("bash").arg(&self.0).args(words).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn primary(&self) -> String {
        let status = self.run(&["status"]);
        let line = status.lines().find(|line| line.contains(": primary"));
        let line = line.unwrap_or_else(|| panic!("no primary: {status}"));
        line[1..2].to_owned()
    }

    fn standbys(&self) -> Vec<String> {
        let primary = self.primary();
        let nodes = ["1", "2", "3"].map(str::to_owned);
        nodes.into_iter().filter(|node| *node != primary).collect()
    }

    /// Waits until both standbys follow.
    fn rest(&self) {
        let primary = self.primary();
        let both = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let until = Instant::now() + REST;
        while self.run(&["sql", &primary, both]) != "2" {
            assert!(Instant::now() < until, "{}", self.run(&["status"]));
            sleep(Duration::from_millis(100));
        }
    }

    /// Lets a fault befall the nodes, and brings all of them back. `acked` counts appends.
    fn befall(&self, fault: Fault, acked: &AtomicU64) {
        let primary = self.primary();
        match fault {
            Fault::Kill => {
                self.run(&["kill", &primary]);
                let next = self.run(&["promote", &primary]);
                sleep(AFTER);
                self.run(&["rejoin", &primary, &next]);
            }
            Fault::Freeze => {
                self.run(&["freeze", &primary]);
                let next = self.run(&["promote", &primary]);
                sleep(AFTER);
                self.run(&["thaw", &primary]);
                sleep(AFTER);
                self.run(&["kill", &primary]);
                self.run(&["rejoin", &primary, &next]);
            }
            Fault::Restart => {
                self.run(&["kill", &primary]);
                self.run(&["start", &primary]);
            }
            Fault::Standby => {
                let standby = &self.standbys()[0];
                self.run(&["kill", standby]);
                sleep(AFTER);
                self.run(&["start", standby]);
            }
            Fault::NoQuorum => {
                let standbys = self.standbys();
                for standby in &standbys {
                    self.run(&["freeze", standby]);
                }
                // What was on its way to a standby may still be acknowledged.
                sleep(AFTER / 2);
                let before = acked.load(Ordering::SeqCst);
                sleep(AFTER);
                let meanwhile = acked.load(Ordering::SeqCst) - before;
                for standby in &standbys {
                    self.run(&["thaw", standby]);
                }
                assert_eq!(meanwhile, 0, "acknowledged without a quorum");
            }
        }
    }
}

/// What the callers were told.
#[derive(Default)]
struct Told {
    acked: Vec<Event>,
    /// The data of appends of which it is not known whether they landed.
    unconfirmed: BTreeSet<Vec<u8>>,
}

#[test]
fn a_failover_loses_nothing_and_doubles_nothing() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let place = folder();
    let url = cluster.run(&["url"]);
    let servers = [0, 1].map(|_| options(&place, REST).connect(&url).unwrap());
    let mut report = Report::new("failover", seed(), RUNS.planned());
    let mut all = Told::default();
    while !report.is_done() {
        let round = report.runs();
        let fault = FAULTS[usize::try_from(round).unwrap() % FAULTS.len()];
        let told = report.run(
            || format!("round {round}, {fault:?}"),
            || {
                let told = one_round(&cluster, &servers, round, fault);
                let counts = (told.acked.len(), told.unconfirmed.len());
                all.acked.extend(told.acked);
                all.unconfirmed.extend(told.unconfirmed);
                check(&servers[0], &all);
                counts
            },
        );
        // After a violation the nodes may be in any state.
        let Some((acked, unconfirmed)) = told else {
            break;
        };
        report.count("appends acknowledged", acked as u64);
        report.count("appends left in doubt", unconfirmed as u64);
        report.count(format!("{fault:?}"), 1);
    }
    report.end();
}

/// Without the standbys an append waits. Returns what it is told after `meanwhile`, which comes
/// while it waits, and brings the standbys back.
fn append_without_standbys(
    cluster: &Cluster,
    log: &SessionLog,
    meanwhile: impl FnOnce(&dyn Fn(&str) -> String),
) -> sessionlog::Result<Event> {
    let id = session("s");
    let primary = cluster.primary();
    let standbys = cluster.standbys();
    log.append(&id, note("before")).unwrap();
    for standby in &standbys {
        cluster.run(&["freeze", standby]);
    }
    let told = thread::scope(|scope| {
        let append = scope.spawn(|| log.append(&id, note("waits")));
        let ask = |text: &str| cluster.run(&["sql", &primary, text]);
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
                       AND query = 'COMMIT'";
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("it waits", || ask(waiting) == "1");
            meanwhile(&ask);
        }));
        let told = append.join().unwrap();
        for standby in &standbys {
            cluster.run(&["thaw", standby]);
        }
        failed.unwrap();
        told
    });
    // Once a quorum is back, so are appends. What was in doubt is there, or is not.
    eventually("appends land", || log.append(&id, note("after")).is_ok());
    told.map(|mut ack| ack.events.remove(0))
}

fn options(place: &Place, stall_wait: Duration) -> Options {
    Options::new()
        .schema(schema_of(place.path()))
        .stall_wait(stall_wait)
}

/// The server says so in a warning alone, which a role may be set not to get.
#[test]
fn an_append_whose_wait_for_the_standbys_is_cancelled_is_not_acknowledged() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let place = folder();
    let role = format!("quiet_{}", std::process::id());
    let primary = cluster.primary();
    let make = format!(
        "CREATE ROLE {role} SUPERUSER LOGIN; ALTER ROLE {role} SET client_min_messages = error"
    );
    cluster.run(&["sql", &primary, &make]);
    let url = cluster
        .run(&["url"])
        .replace("postgres@", &format!("{role}@"));
    let log = options(&place, Duration::from_secs(3))
        .connect(&url)
        .unwrap();
    let told = append_without_standbys(&cluster, &log, |ask| {
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                      WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
        assert_eq!(ask(cancel), "t");
    });
    assert!(matches!(told, Err(Error::Unconfirmed { .. })), "{told:?}");
}

/// A tool that prefers appends to what they promise empties the setting while standbys are away.
#[test]
fn an_append_is_not_acknowledged_when_no_standby_is_asked_for_any_more() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let place = folder();
    let url = cluster.run(&["url"]);
    let primary = cluster.primary();
    let set = |statement: &str| {
        cluster.run(&["sql", &primary, statement]);
        cluster.run(&["sql", &primary, "SELECT pg_reload_conf()"]);
    };
    let log = options(&place, Duration::from_secs(3))
        .connect(&url)
        .unwrap();
    let told = append_without_standbys(&cluster, &log, |_ask| {
        set("ALTER SYSTEM SET synchronous_standby_names = ''");
        let released = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
                        AND query = 'COMMIT'";
        eventually("it is released", || {
            cluster.run(&["sql", &primary, released]) == "0"
        });
        set("ALTER SYSTEM RESET synchronous_standby_names");
    });
    assert!(matches!(told, Err(Error::Unconfirmed { .. })), "{told:?}");
}

/// Appends and follows while a fault befalls the nodes.
fn one_round(cluster: &Cluster, servers: &[SessionLog; 2], round: u64, fault: Fault) -> Told {
    cluster.rest();
    let (done, acked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|of| {
                let (done, acked) = (&done, &acked);
                let server = &servers[of % 2];
                scope.spawn(move || write(server, (round, of), done, acked))
            })
            .collect();
        let follower = {
            let done = &done;
            scope.spawn(move || follow(&servers[1], &session("s0"), done))
        };
        sleep(BEFORE);
        let befallen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cluster.befall(fault, &acked);
        }));
        sleep(AFTER);
        done.store(true, Ordering::SeqCst);
        let mut told = Told::default();
        for writer in writers {
            let of_writer = writer.join().unwrap();
            told.acked.extend(of_writer.acked);
            told.unconfirmed.extend(of_writer.unconfirmed);
        }
        let (after, came) = follower.join().unwrap();
        if let Err(panic) = befallen {
            std::panic::resume_unwind(panic);
        }
        // A stream has shown everything in order, and nothing that is gone now.
        let stored = read_all(&servers[0], &session("s0"));
        let last = came.last().map_or(after, |event| event.seq);
        let between: Vec<_> = stored
            .into_iter()
            .filter(|event| event.seq > after && event.seq <= last)
            .collect();
        assert_eq!(came, between, "the stream");
        assert!(told.acked.len() > WRITERS, "hardly anything was appended");
        told
    })
}

/// Appends one event after the other, some of them under a key, and again if need be.
fn write(server: &SessionLog, of: (u64, usize), done: &AtomicBool, acked: &AtomicU64) -> Told {
    let id = session(&format!("s{}", of.1 % SESSIONS));
    let mut told = Told::default();
    for nth in 0.. {
        if done.load(Ordering::SeqCst) {
            break;
        }
        let data = format!("{}.{}.{nth}", of.0, of.1);
        let batch = || Batch::from(note(&data));
        let appended = if nth % 3 == 0 {
            let keyed = || server.append(&id, batch().idempotency_key(&data));
            let first = keyed();
            let again = keyed().unwrap();
            assert!(again.replayed || first.is_err());
            Ok(again)
        } else {
            server.append(&id, batch())
        };
        match appended {
            Ok(ack) => {
                acked.fetch_add(1, Ordering::SeqCst);
                told.acked.extend(ack.events);
            }
            Err(Error::Unconfirmed { .. }) => {
                told.unconfirmed.insert(data.into_bytes());
            }
            Err(error) => panic!("an append: {error:?}"),
        }
    }
    told
}

/// Follows a session until nothing more comes. Returns where it began, and what came.
fn follow(server: &SessionLog, id: &SessionId, done: &AtomicBool) -> (u64, Vec<Event>) {
    let after = server.head(id).map_or(0, |head| head.last);
    let from = if after == 0 {
        StartAt::Creation
    } else {
        StartAt::After(after.into())
    };
    let mut stream = server.stream(id, from).unwrap();
    let mut events = Vec::new();
    let until = Instant::now() + 4 * REST;
    while Instant::now() < until {
        let was_done = done.load(Ordering::SeqCst);
        match stream.next_timeout(Duration::from_millis(300)) {
            Ok(item) => events.extend(item.into_event()),
            Err(RecvTimeout::Elapsed) if was_done => break,
            Err(RecvTimeout::Ended) => panic!("the stream has ended"),
            // A read that a failover broke is made again.
            Err(_) => {}
        }
    }
    (after, events)
}

/// Compares all that is stored with what callers were told.
fn check(server: &SessionLog, told: &Told) {
    let acked: BTreeMap<_, _> = told.acked.iter().map(|event| (event.id, event)).collect();
    assert_eq!(acked.len(), told.acked.len(), "an ID was given twice");
    let mut stored = BTreeMap::<EventId, Event>::new();
    let mut data = BTreeSet::new();
    for of in 0..SESSIONS {
        let events = read_all(server, &session(&format!("s{of}")));
        assert_dense(&events, 1..=events.len() as u64);
        for event in events {
            assert!(data.insert(event.data.to_vec()), "doubled: {event:?}");
            let known = acked.get(&event.id);
            assert!(
                known == Some(&&event) || told.unconfirmed.contains(&*event.data),
                "{event:?} is stored, and {known:?} was told"
            );
            stored.insert(event.id, event);
        }
    }
    for (id, event) in acked {
        assert_eq!(stored.get(&id), Some(event), "lost");
    }
    let feed = feed_all(server);
    assert!(feed.is_sorted_by_key(|event| event.id), "the feed's order");
    assert_eq!(feed.len(), stored.len(), "the feed");
}
