//! How many appends a second so many shards and servers take. It prints a table and checks nothing:
//!
//! ```sh
//! SESSION_LOG_POSTGRES_URL=... cargo test --release --features postgres --test it -- \
//!     --ignored --nocapture postgres::rates
//! ```

#![allow(clippy::cast_precision_loss, reason = "the figures are small")]

use std::time::{Duration, Instant};

use sessionlog::{Batch, NewEvent, SessionLog};

use super::schema;
use crate::support::session;

/// The appenders, each of which waits for its answer.
const APPENDERS: usize = 64;

const SESSIONS: usize = 4096;

const EVENT_BYTES: usize = 512;

const WARM: Duration = Duration::from_millis(1500);
const MEASURED: Duration = Duration::from_secs(4);

#[test]
#[ignore = "it measures"]
fn appends_by_shards_and_servers() {
    eprintln!("servers  shards  where        appends/s  groups/s  size   p50 ms   p99 ms");
    for servers in [1, 4] {
        for shards in [1, 4, 16] {
            measure(servers, shards, Balancer::Any);
            if servers > 1 {
                measure(servers, shards, Balancer::BySession);
            }
        }
    }
}

/// Which server an append comes to.
#[derive(Clone, Copy)]
enum Balancer {
    Any,
    /// The one that the session hashes to.
    BySession,
}

fn measure(servers: usize, shards: u32, balancer: Balancer) {
    let Some(schema) = schema() else { return };
    let options = schema.options().shards(shards);
    let logs: Vec<SessionLog> = (0..servers)
        .map(|_| options.clone().connect(&schema.url).unwrap())
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let began = Instant::now();
    let appenders: Vec<_> = (0..APPENDERS)
        .map(|of| {
            let logs = logs.clone();
            runtime.spawn(async move {
                let mut times = Vec::new();
                let mut nth = of;
                while began.elapsed() < WARM + MEASURED {
                    let id = session(&format!("session {}", nth % SESSIONS));
                    let server = match balancer {
                        Balancer::Any => nth / 7,
                        Balancer::BySession => nth % SESSIONS,
                    };
                    let batch = Batch::from(NewEvent::new("note", vec![b'x'; EVENT_BYTES]));
                    let at = Instant::now();
                    let log = &logs[server % logs.len()];
                    log.append_async(&id, batch).await.unwrap();
                    if began.elapsed() > WARM {
                        times.push(at.elapsed());
                    }
                    nth += APPENDERS + 1;
                }
                times
            })
        })
        .collect();
    let groups = |logs: &[SessionLog]| logs.iter().map(|log| log.stats().groups).sum::<u64>();
    std::thread::park_timeout(WARM);
    let before = groups(&logs);
    let since = Instant::now();
    let mut times: Vec<Duration> = runtime.block_on(async {
        let mut all = Vec::new();
        for appender in appenders {
            all.extend(appender.await.unwrap());
        }
        all
    });
    let made = groups(&logs) - before;
    let took = since.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e3;
    let place = match balancer {
        Balancer::Any => "anywhere",
        Balancer::BySession => "by session",
    };
    eprintln!(
        "{servers:7}  {shards:6}  {place:11}  {:9.0}  {:8.0}  {:4.1}  {:7.1}  {:7.1}",
        times.len() as f64 / MEASURED.as_secs_f64(),
        made as f64 / took,
        times.len() as f64 / made as f64,
        at(50),
        at(99)
    );
}

/// What a session and an event take on the disk, and what an append takes of the WAL.
#[test]
#[ignore = "it measures"]
fn bytes_of_sessions_and_events() {
    const MANY: usize = 20_000;
    let Some(schema) = schema() else { return };
    let log = schema.options().shards(16).connect(&schema.url).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let number = |statement: &str| -> f64 { schema.ask(statement).remove(0).parse().unwrap() };
    let wal = || number("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')");
    let mut before = wal();
    for round in ["the first event", "the second"] {
        runtime.block_on(async {
            let appenders = (0..256).map(|of| {
                let log = log.clone();
                tokio::spawn(async move {
                    for nth in (of..MANY).step_by(256) {
                        let id = session(&format!("user-{nth:09}/conversation"));
                        let batch = Batch::from(NewEvent::new("note", vec![b'x'; EVENT_BYTES]));
                        log.append_async(&id, batch).await.unwrap();
                    }
                })
            });
            for appender in appenders.collect::<Vec<_>>() {
                appender.await.unwrap();
            }
        });
        let after = wal();
        let of = |table: &str| {
            let total = number(&format!("SELECT pg_total_relation_size('{table}')"));
            total / number(&format!("SELECT count(*) FROM {table}"))
        };
        eprintln!(
            "{round}: {:.0} bytes a session, {:.0} bytes a record, {:.0} bytes of WAL an append",
            of("session"),
            of("record"),
            (after - before) / MANY as f64
        );
        before = after;
    }
}
