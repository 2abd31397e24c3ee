//! Appends to a log on PostgreSQL with two standbys, of which one has to have a commit. Beside
//! them, in slices that alternate, the same appends by hand, and bare commits of one connection.
//! Then appends to logs of several shards, and shards that move.
//!
//! ```text
//! cargo bench -p sessionlog-cluster-bench [-- SECONDS ROUNDS [APPENDERS]]
//! ```
//!
//! It makes three nodes on this machine and destroys them, or measures the server at
//! `SESSION_LOG_POSTGRES_URL`, without a failover. Without PostgreSQL it is skipped and says so.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a benchmark prints its figures, and stops where something is wrong"
)]

mod by_hand;
mod failover;
mod nodes;
mod shards;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use by_hand::{Bare, ByHand};
use nodes::Nodes;
use sessionlog::{Batch, Durability, NewEvent, Options, SessionLog};
use support::{Table, is_test, percentile, session};
use tokio::runtime::Runtime;

const EVENT_BYTES: usize = 512;

/// All of them are there before anything is measured. Appends go to them in no order.
const SESSIONS: usize = 1_000;

const SCHEMA: &str = "sessionlog_bench";

const APPENDERS: &[usize] = &[1, 16, 64, 256];
const APPENDERS_IN_TESTS: &[usize] = &[1, 16];
const SERVERS: usize = 4;

/// A way of appending.
#[derive(Debug, Clone, Copy)]
struct Case {
    appenders: usize,
    servers: usize,
    keyed: bool,
    events: usize,
    /// Whether the appends to a shard all go to one server.
    by_shard: bool,
}

const PLAIN: Case = Case {
    appenders: 1,
    servers: 1,
    keyed: false,
    events: 1,
    by_shard: false,
};

impl Case {
    fn name(self) -> String {
        let key = if self.keyed { ", keyed" } else { "" };
        let events = match self.events {
            1 => String::new(),
            events => format!(", batches of {events}"),
        };
        let servers = match self.servers {
            1 => String::new(),
            servers => format!(", {servers} servers"),
        };
        format!("{}{key}{events}{servers}", self.appenders)
    }
}

fn main() {
    let numbers: Vec<f64> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .map(|argument| argument.parse().unwrap())
        .collect();
    let (seconds, rounds) = if is_test() { (0.05, 1.0) } else { (1.0, 5.0) };
    let seconds = numbers.first().copied().unwrap_or(seconds);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small number"
    )]
    let (rounds, only) = (
        numbers.get(1).copied().unwrap_or(rounds) as usize,
        numbers.get(2).map(|appenders| *appenders as usize),
    );
    let Some(nodes) = Nodes::get() else {
        println!("skipped: PostgreSQL is not installed");
        return;
    };
    let runtime = Runtime::new().unwrap();
    measure(&nodes, &runtime, seconds, rounds, only);
    if only.is_none() {
        shards::measure(&nodes, &runtime, seconds, rounds);
    }
    if nodes.may_fail() {
        failover::measure(&nodes, &runtime, (2.0 * seconds).min(2.0));
    } else {
        println!("no failover: the server is not one of this benchmark's own");
    }
}

fn measure(nodes: &Nodes, runtime: &Runtime, seconds: f64, rounds: usize, only: Option<usize>) {
    let contest = Contest::open(nodes, runtime);
    let mut table = Table::new(&[
        "appenders",
        "appends/s",
        "p50 ms",
        "p99 ms",
        "batches a group",
        "by hand appends/s",
        "p50 ms",
        "p99 ms",
        "x by hand",
        "bare INSERT/s",
        "p50 ms",
        "rate x bare",
        "p50 x bare",
    ]);
    let kinds = [
        PLAIN,
        Case {
            keyed: true,
            ..PLAIN
        },
        Case {
            events: 16,
            ..PLAIN
        },
        Case {
            servers: SERVERS,
            ..PLAIN
        },
    ];
    for kind in kinds {
        for &appenders in appenders() {
            if only.is_some_and(|only| only != appenders) {
                continue;
            }
            let case = Case { appenders, ..kind };
            let row = contest.row(runtime, case, seconds, rounds);
            eprintln!("{}", row.join(" | "));
            table.row(&row);
        }
    }
    table.print();
    contest.close(nodes, runtime);
}

fn appenders() -> &'static [usize] {
    if is_test() {
        APPENDERS_IN_TESTS
    } else {
        APPENDERS
    }
}

fn options(schema: &str) -> Options {
    // Whatever the server that was named keeps.
    let durability = match std::env::var_os("SESSION_LOG_POSTGRES_URL") {
        Some(_) => Durability::OneNode,
        None => Durability::Replicated,
    };
    Options::new().schema(schema).durability(durability)
}

/// Data that does not compress, another for each event.
fn data(append: u64, event: usize, bytes: usize) -> &'static [u8] {
    static NOISE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        (0..1 << 20)
            .map(|at| {
                b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-"[mixed(at) % 64]
            })
            .collect()
    });
    let start = mixed(append + ((event as u64) << 40)) % (NOISE.len() - bytes);
    &NOISE[start..start + bytes]
}

/// A number that shows nothing of what it is made from.
fn mixed(number: u64) -> usize {
    let mut number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    for factor in [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB] {
        number = (number ^ (number >> 30)).wrapping_mul(factor);
    }
    usize::try_from(number >> 33).unwrap()
}

fn batch_of(case: Case, nth: u64) -> Batch {
    let event = |event| NewEvent::new("bench.event", data(nth, event, EVENT_BYTES));
    let batch = Batch::new().events((0..case.events).map(event));
    if case.keyed {
        batch.idempotency_key(nth.to_string())
    } else {
        batch
    }
}

/// What is compared.
enum Way {
    Log(Vec<SessionLog>),
    ByHand(ByHand),
    Bare(Bare),
}

impl Way {
    /// The `nth` append of all, which no other has.
    async fn append(&self, case: Case, appender: usize, nth: u64) {
        let to = mixed(nth) % SESSIONS;
        match self {
            Self::Log(servers) => {
                let (to, batch) = (session(to), batch_of(case, nth));
                let server = if case.by_shard {
                    servers[0].shard_of(&to).unwrap() as usize
                } else {
                    appender
                };
                let log = &servers[server % case.servers];
                log.append_async(&to, batch).await.unwrap();
            }
            Self::ByHand(connections) => connections.append(case, appender, to, nth).await,
            Self::Bare(connection) => connection.append(case, nth).await,
        }
    }

    /// The batches and groups of all servers of the log.
    fn counts(&self) -> (u64, u64) {
        let Self::Log(servers) = self else {
            unreachable!("it is the log");
        };
        let stats = servers.iter().map(SessionLog::stats);
        stats.fold((0, 0), |(batches, groups), stats| {
            (batches + stats.batches, groups + stats.groups)
        })
    }
}

/// Appends per second, and their latencies in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Slice {
    rate: f64,
    p50: f64,
    p99: f64,
}

/// Appends from so many tasks for so long.
async fn slice(way: &Arc<Way>, case: Case, seconds: f64) -> Slice {
    static NTH: AtomicU64 = AtomicU64::new(1 << 32);
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(seconds);
    let appenders: Vec<_> = (0..case.appenders)
        .map(|appender| {
            let way = Arc::clone(way);
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    let nth = NTH.fetch_add(1, Ordering::Relaxed);
                    let began = Instant::now();
                    way.append(case, appender, nth).await;
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for appender in appenders {
        times.extend(appender.await.unwrap());
    }
    let took = began.elapsed().as_secs_f64();
    let rate = times.len() as f64 / took;
    let mut ms = |share| percentile(&mut times, share).as_secs_f64() * 1e3;
    Slice {
        rate,
        p50: ms(0.5),
        p99: ms(0.99),
    }
}

/// All ways, open.
struct Contest {
    log: Arc<Way>,
    by_hand: Arc<Way>,
    bare: Arc<Way>,
}

impl Contest {
    fn open(nodes: &Nodes, runtime: &Runtime) -> Self {
        let servers: Vec<_> = runtime.block_on(async {
            let client = by_hand::connect(&nodes.url).await;
            client.batch_execute(&drop_schemas()).await.unwrap();
            by_hand::make_tables(&client).await;
            (0..SERVERS).map(|_| options(SCHEMA)).collect()
        });
        let connect = |options: Options| options.connect(&nodes.url).unwrap();
        let servers: Vec<_> = servers.into_iter().map(connect).collect();
        runtime.block_on(async {
            let appends: Vec<_> = (0..SESSIONS)
                .map(|nth| {
                    let log = servers[0].clone();
                    tokio::spawn(async move {
                        let batch = batch_of(PLAIN, nth as u64);
                        log.append_async(&session(nth), batch).await.unwrap();
                    })
                })
                .collect();
            for append in appends {
                append.await.unwrap();
            }
            let appenders = appenders().iter().copied().max().unwrap();
            Self {
                log: Arc::new(Way::Log(servers)),
                by_hand: Arc::new(Way::ByHand(ByHand::open(&nodes.url, appenders).await)),
                bare: Arc::new(Way::Bare(Bare::open(&nodes.url).await)),
            }
        })
    }

    /// Measures the ways in turn, and compares those of one round.
    fn row(&self, runtime: &Runtime, case: Case, seconds: f64, rounds: usize) -> Vec<String> {
        let one = Case {
            appenders: 1,
            ..case
        };
        let (mut log, mut by_hand, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        let before = self.log.counts();
        for _round in 0..rounds {
            log.push(runtime.block_on(slice(&self.log, case, seconds)));
            by_hand.push(runtime.block_on(slice(&self.by_hand, case, seconds)));
            bare.push(runtime.block_on(slice(&self.bare, one, seconds)));
        }
        let after = self.log.counts();
        let of = |slices: &[Slice], figure: fn(&Slice) -> f64| {
            median(slices.iter().map(figure).collect())
        };
        let beside = |others: &[Slice], figure: fn(&Slice) -> f64| {
            let pairs = log.iter().zip(others);
            let ratios = pairs.map(|(ours, other)| figure(ours) / figure(other));
            format!("{:.2}", median(ratios.collect()))
        };
        let group = (after.0 - before.0) as f64 / (after.1 - before.1) as f64;
        let rate = |slices| format!("{:.0}", of(slices, |slice| slice.rate));
        let p50 = |slices| format!("{:.2}", of(slices, |slice| slice.p50));
        let p99 = |slices| format!("{:.2}", of(slices, |slice| slice.p99));
        vec![
            case.name(),
            rate(&log),
            p50(&log),
            p99(&log),
            format!("{group:.1}"),
            rate(&by_hand),
            p50(&by_hand),
            p99(&by_hand),
            beside(&by_hand, |slice| slice.rate),
            rate(&bare),
            p50(&bare),
            beside(&bare, |slice| slice.rate),
            beside(&bare, |slice| slice.p50),
        ]
    }

    fn close(self, nodes: &Nodes, runtime: &Runtime) {
        let Self { log, by_hand, bare } = self;
        drop((log, by_hand, bare));
        runtime.block_on(async {
            let client = by_hand::connect(&nodes.url).await;
            client.batch_execute(&drop_schemas()).await.unwrap();
        });
    }
}

fn drop_schemas() -> String {
    format!(
        "DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; DROP SCHEMA IF EXISTS {} CASCADE",
        by_hand::SCHEMA
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
