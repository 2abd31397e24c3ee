//! A log on three nodes while these die, freeze, start again, change places and lose each other,
//! and while servers are killed.
//!
//! The campaign needs the nodes that `tests/postgres/cluster.sh create 3 --netns` makes, and the
//! path of that script in `SESSION_LOG_POSTGRES_CLUSTER`. Without it, it is skipped and says so.
//! Without network namespaces the rounds that need them are.
//!
//! With `SESSION_LOG_POSTGRES_DATABASES=2` and several shards, these move between two databases of
//! the nodes in every round.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

use sessionlog::{Error, Event, EventId, Options, SessionId, SessionLog};

use self::faults::{FAULTS, Fault, Scene};
use self::ledger::{Attempt, Past, Stored, Told, data_of};
use self::mover::move_shards;
use self::nodes::Cluster;
use self::reader::{Ends, Followed, check_shown, look};
use self::writer::{Writer, shared_sessions};
use crate::report::{Dice, Report, Runs, seed};
use crate::support::{
    Place, databases, eventually, folder, note, schema_of, session, shards, spread,
};

mod child;
mod faults;
mod ledger;
mod moments;
mod mover;
mod nodes;
mod reader;
mod writer;

const RUNS: Runs = Runs {
    quick: 3,
    full: 200,
};

const WRITERS: usize = 8;

/// How long appends go on before and after each fault.
const BEFORE: Duration = Duration::from_millis(700);
const AFTER: Duration = Duration::from_secs(1);

/// How long a round may take to come to rest.
const REST: Duration = Duration::from_mins(1);

/// How long an append to the second server waits. It is shorter than some faults, so that callers
/// are told of a stall or of doubt.
const SHORT_WAIT: Duration = Duration::from_secs(3);

#[test]
fn a_failover_loses_nothing_and_doubles_nothing() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let (place, url) = (folder(), cluster.run(&["url"]));
    let mut campaign = Campaign {
        cluster: &cluster,
        schema: schema_of(place.path()),
        servers: [REST, SHORT_WAIT].map(|wait| {
            let options = spread(options(&place, wait), &url);
            options.connect(&url).unwrap()
        }),
        past: Past::default(),
        last_id: None,
    };
    let seed = seed();
    let mut report = Report::new("failover", seed, RUNS.planned());
    let faults = FAULTS
        .iter()
        .filter(|fault| cluster.has_networks || !fault.needs_networks());
    let faults: Vec<_> = faults.copied().collect();
    if faults.len() < FAULTS.len() {
        let why = "for want of network namespaces";
        report.count(
            format!("kinds SKIPPED, {why}"),
            (FAULTS.len() - faults.len()) as u64,
        );
    }
    while !report.is_done() {
        let round = report.runs();
        let nth = seed % FAULTS.len() as u64 + round;
        let fault = faults[usize::try_from(nth).unwrap() % faults.len()];
        let began = Instant::now();
        let met = report.run(
            || format!("round {round}, {fault:?}"),
            || campaign.one_round(round, fault, seed),
        );
        // After a violation the nodes may be in any state.
        let Some(met) = met else { break };
        let (appends, took) = (met.attempts.len(), began.elapsed());
        eprintln!("round {round}, {fault:?}: {appends} appends, {took:.1?}");
        met.tell(fault, &mut report);
    }
    if report.violations() == 0 {
        report.run(
            || "after the last round".to_owned(),
            || {
                if databases() > 1 {
                    mover::settle(&campaign.servers[0]);
                }
                campaign.past.check(&campaign.servers);
            },
        );
    }
    report.end();
}

/// What a round met.
struct Met {
    attempts: Vec<Attempt>,
    landed: u64,
    taken_back: u64,
    figures: Vec<(String, u64)>,
}

impl Met {
    fn tell(&self, fault: Fault, report: &mut Report) {
        let mut count = |figure: &str, more: usize| {
            report.count(format!("{fault:?}: {figure}"), more as u64);
            report.count(figure, more as u64);
        };
        let told =
            |wanted: fn(&Told) -> bool| self.attempts.iter().filter(move |one| wanted(&one.told));
        let acked = || told(|told| matches!(told, Told::Acked(_)));
        count("rounds", 1);
        count("batches acknowledged", acked().count());
        count("events acknowledged", acked().map(|one| one.count).sum());
        count(
            "batches of which nothing was written",
            told(|told| *told == Told::Nothing).count(),
        );
        count(
            "batches in doubt",
            told(|told| *told == Told::InDoubt).count(),
        );
        count(
            "batches in doubt that landed",
            usize::try_from(self.landed).unwrap(),
        );
        if self.taken_back > 0 {
            count(
                "events shown after a wait was cancelled, and taken back",
                usize::try_from(self.taken_back).unwrap(),
            );
        }
        for (figure, more) in &self.figures {
            count(figure, usize::try_from(*more).unwrap());
        }
    }
}

struct Campaign<'a> {
    cluster: &'a Cluster,
    schema: String,
    servers: [SessionLog; 2],
    past: Past,
    /// The last event of the rounds before.
    last_id: Option<EventId>,
}

/// What a round has shown.
struct Observed {
    attempts: Vec<Attempt>,
    /// What lists have shown, by server.
    shown: [HashMap<EventId, Event>; 2],
    came: Vec<(Followed, Vec<Event>)>,
    stored: Stored,
}

impl Campaign<'_> {
    /// Appends, reads and follows while a fault befalls the nodes, and compares all of it.
    fn one_round(&mut self, round: u64, fault: Fault, seed: u64) -> Met {
        self.cluster.rest();
        let seed = Dice(seed ^ round << 32).roll();
        let acked = AtomicU64::new(0);
        let mut scene = Scene {
            cluster: self.cluster,
            schema: &self.schema,
            round,
            dice: Dice(seed),
            acked: &acked,
            of_children: Vec::new(),
            figures: Vec::new(),
        };
        let Observed {
            attempts,
            shown,
            came,
            stored,
        } = self.observe(&mut scene, fault, seed);
        let landed = stored.check(&attempts);
        // A cancelled wait may show what is then taken back. Nobody was told that it is there.
        let may_be_gone = (fault == Fault::Cancel).then(|| data_of_all(&attempts));
        for shown in &shown {
            check_shown(shown, &stored, may_be_gone.as_ref());
        }
        let taken_back = came
            .iter()
            .map(|(followed, came)| followed.check(came, &stored, may_be_gone.as_ref()))
            .sum();
        assert!(attempts.len() > 2 * WRITERS, "hardly anything was appended");
        self.past.add(&stored);
        let last = stored.in_id_order().last().map(|event| event.id);
        self.last_id = last.or(self.last_id);
        Met {
            attempts,
            landed,
            taken_back,
            figures: scene.figures,
        }
    }

    fn observe(&self, scene: &mut Scene<'_>, fault: Fault, seed: u64) -> Observed {
        let (done, ends) = (AtomicBool::new(false), Ends::new());
        let (servers, round, acked) = (&self.servers, scene.round, scene.acked);
        let shared = shared_sessions(round);
        let followed = [
            Followed::Session(shared[0].clone()),
            Followed::Session(shared[1].clone()),
            Followed::All(self.last_id),
        ];
        let mover_dice = Dice(scene.dice.roll());
        let (schema, url) = (self.schema.as_str(), self.cluster.run(&["url"]));
        let (attempts, shown, came, moves) = thread::scope(|scope| {
            let (done, ends, shared, url) = (&done, &ends, &shared, &url);
            let moving = (databases() > 1)
                .then(|| scope.spawn(move || move_shards(url, schema, mover_dice, done)));
            let writers = (0..WRITERS)
                .map(|of| scope.spawn(move || write(servers, (round, of), seed, done, acked)));
            let writers: Vec<_> = writers.collect();
            let readers = servers
                .each_ref()
                .map(|server| scope.spawn(move || look(server, shared, Dice(seed), done)));
            let followers = followed.iter().flat_map(|followed| {
                servers.each_ref().map(|server| {
                    scope.spawn(move || (followed.clone(), followed.follow(server, ends)))
                })
            });
            let followers: Vec<_> = followers.collect();
            let mut attempts = Vec::new();
            let read = catch_unwind(AssertUnwindSafe(|| {
                let befallen = catch_unwind(AssertUnwindSafe(|| {
                    sleep(BEFORE);
                    scene.befall(fault);
                    sleep(AFTER);
                }));
                done.store(true, Ordering::SeqCst);
                attempts.extend(writers.into_iter().flat_map(|writer| joined(writer.join())));
                joined(befallen);
                attempts.append(&mut scene.of_children);
                attempts.extend(fence(servers, round));
                Stored::read(servers, &sessions_of(shared, &attempts))
            }));
            // Whatever failed, all threads are told that it is over.
            let failed = match read {
                Ok(stored) => ends.set(Some(stored)).err().map(|_| unreachable!()),
                Err(panic) => ends.set(None).ok().map(|()| panic),
            };
            let shown = readers.map(ScopedJoinHandle::join);
            let came = followers.into_iter().map(ScopedJoinHandle::join);
            let came: Vec<_> = came.collect();
            if let Some(panic) = failed {
                resume_unwind(panic);
            }
            let came: Vec<_> = came.into_iter().map(joined).collect();
            let moves = moving.map(|moving| joined(moving.join()));
            (attempts, shown.map(joined), came, moves)
        });
        scene.figures.extend(moves.into_iter().flatten());
        Observed {
            attempts,
            shown,
            came,
            stored: ends.into_inner().flatten().unwrap(),
        }
    }
}

/// Returns what a thread returned, or fails as it did.
fn joined<T>(result: thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Calls a server until it has an answer. One that waits for a short time may have none although
/// all nodes are there, because the machine is busy.
fn patiently<T>(call: impl Fn() -> sessionlog::Result<T>) -> sessionlog::Result<T> {
    let until = Instant::now() + REST;
    loop {
        match call() {
            Err(Error::Io { .. } | Error::Stalled { .. }) if Instant::now() < until => {}
            told => return told,
        }
    }
}

/// All sessions of a round.
fn sessions_of(shared: &[SessionId], attempts: &[Attempt]) -> Vec<SessionId> {
    let of_attempts = attempts.iter().map(|attempt| &attempt.session);
    let all: BTreeSet<_> = shared.iter().chain(of_attempts).collect();
    all.into_iter().cloned().collect()
}

/// The data of all events, but of those of which their callers were told that nothing was written.
fn data_of_all(attempts: &[Attempt]) -> HashSet<Vec<u8>> {
    let written = attempts
        .iter()
        .filter(|attempt| attempt.told != Told::Nothing);
    written
        .flat_map(|attempt| {
            let data = |nth| data_of(&attempt.tag, nth, attempt.count).into_bytes();
            (0..attempt.count).map(data)
        })
        .collect()
}

/// Appends once over each server. The lock was then free, so what was in doubt before is decided.
fn fence(servers: &[SessionLog; 2], round: u64) -> Vec<Attempt> {
    let id = session(&format!("r{round}.fence"));
    let of_server = |(nth, server): (usize, &SessionLog)| {
        let tag = format!("{round}.fence.{nth}");
        let batch = || note(data_of(&tag, 0, 1));
        let ack = patiently(|| server.append(&id, batch())).unwrap();
        Attempt {
            told: Told::Acked(vec![(ack.first, ack.events[0].id)]),
            session: id.clone(),
            count: 1,
            tag,
        }
    };
    servers.iter().enumerate().map(of_server).collect()
}

/// Appends one batch after the other until it is over.
fn write(
    servers: &[SessionLog; 2],
    of: (u64, usize),
    seed: u64,
    done: &AtomicBool,
    acked: &AtomicU64,
) -> Vec<Attempt> {
    let mut servers = servers.each_ref();
    servers.rotate_left(of.1 % 2);
    let seed = Dice(seed ^ of.1 as u64).roll();
    let name = format!("{}.{}", of.0, of.1);
    let mut writer = Writer::new(&servers, of.0, name, seed, acked);
    let mut attempts = Vec::new();
    while !done.load(Ordering::SeqCst) {
        attempts.push(writer.append(attempts.len(), |_, _, _| {}));
    }
    attempts
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
                       AND query ~ '^(COMMIT|WITH held)'";
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
        .shards(shards())
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
                      WHERE wait_event = 'SyncRep' AND query ~ '^(COMMIT|WITH held)'";
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
                        AND query ~ '^(COMMIT|WITH held)'";
        eventually("it is released", || {
            cluster.run(&["sql", &primary, released]) == "0"
        });
        set("ALTER SYSTEM RESET synchronous_standby_names");
    });
    assert!(matches!(told, Err(Error::Unconfirmed { .. })), "{told:?}");
}
