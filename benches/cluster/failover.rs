//! Appends while the primary is killed and a standby takes its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sessionlog::SessionLog;
use support::{percentile, session};

use crate::nodes::Nodes;
use crate::{Case, PLAIN, SESSIONS, batch_of, options, support};

const APPENDERS: usize = 64;

/// What an append waits for, at most.
const STALL_WAIT: Duration = Duration::from_mins(1);

/// An append of one event without a key: it has to land once.
const CASE: Case = Case {
    appenders: APPENDERS,
    servers: 2,
    ..PLAIN
};

/// What the appenders have in common.
struct Shared {
    servers: Vec<SessionLog>,
    is_over: AtomicBool,
    acked: AtomicU64,
    failed: AtomicU64,
}

/// Kills the primary under load, and prints how long appends waited. `seconds` go by before it and
/// after appends have come back.
pub(crate) fn measure(nodes: &Nodes, runtime: &tokio::runtime::Runtime, seconds: f64) {
    let schema = "sessionlog_bench_failover";
    let open = |_| {
        options(schema)
            .stall_wait(STALL_WAIT)
            .connect(&nodes.url)
            .unwrap()
    };
    let shared = Arc::new(Shared {
        servers: (0..CASE.servers).map(open).collect(),
        is_over: AtomicBool::new(false),
        acked: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    let appenders: Vec<_> = (0..APPENDERS)
        .map(|appender| runtime.spawn(append(Arc::clone(&shared), appender)))
        .collect();
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let killed = Instant::now();
    nodes.run(&["kill", "1"]);
    let dead = shared.acked.load(Ordering::SeqCst);
    let primary = nodes.run(&["promote", "1"]);
    let promoted = killed.elapsed();
    while shared.acked.load(Ordering::SeqCst) == dead && killed.elapsed() < STALL_WAIT {
        std::thread::sleep(Duration::from_millis(1));
    }
    let back = killed.elapsed();
    std::thread::sleep(Duration::from_secs_f64(seconds));
    shared.is_over.store(true, Ordering::SeqCst);
    let mut waits = Vec::new();
    for appender in appenders {
        waits.extend(runtime.block_on(appender).unwrap());
    }
    let over_it = |took: &Duration| *took > promoted / 2;
    let mut waited: Vec<Duration> = waits.into_iter().filter(over_it).collect();
    let acked = shared.acked.load(Ordering::SeqCst);
    let failed = shared.failed.load(Ordering::SeqCst);
    let log = &shared.servers[0];
    let stored: u64 = (0..SESSIONS)
        .map(|nth| log.head(&session(nth)).map_or(0, |head| head.last))
        .sum();
    println!(
        "failover with {APPENDERS} appenders: node {primary} was the primary after {:.2} s, \
         and the first append landed after {:.2} s.\n{} appends waited: p50 {:.2} s, longest \
         {:.2} s. {acked} were acknowledged, {stored} are stored, {failed} errors.\n",
        promoted.as_secs_f64(),
        back.as_secs_f64(),
        waited.len(),
        percentile(&mut waited, 0.5).as_secs_f64(),
        percentile(&mut waited, 1.0).as_secs_f64(),
    );
    assert_eq!(
        (acked, failed),
        (stored, 0),
        "an append was lost or doubled"
    );
    for server in &shared.servers {
        server.close().unwrap();
    }
}

/// Appends until it is over. Returns how long each append took.
async fn append(shared: Arc<Shared>, appender: usize) -> Vec<Duration> {
    let mut waits = Vec::new();
    let log = &shared.servers[appender % shared.servers.len()];
    for nth in 0.. {
        if shared.is_over.load(Ordering::SeqCst) {
            break;
        }
        let id = session((appender + nth * APPENDERS) % SESSIONS);
        let began = Instant::now();
        match log.append_async(&id, batch_of(CASE, nth as u64)).await {
            Ok(_) => shared.acked.fetch_add(1, Ordering::SeqCst),
            Err(error) => {
                eprintln!("an append: {error:?}");
                shared.failed.fetch_add(1, Ordering::SeqCst)
            }
        };
        waits.push(began.elapsed());
    }
    waits
}
