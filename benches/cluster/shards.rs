//! Logs of several shards: how many appends they take, what sessions and events take on the disk,
//! and how fast a shard moves to another database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sessionlog::{Options, SessionId, SessionLog};
use support::{Table, is_test, session};
use tokio::runtime::Runtime;

use crate::nodes::Nodes;
use crate::{
    Case, PLAIN, SESSIONS, Slice, Way, batch_of, by_hand, median, options, slice, support,
};

const APPENDERS: usize = 64;

/// Servers, and whether each shard has one of them to itself.
const SERVERS: &[(usize, bool)] = &[(1, false), (4, false), (4, true)];

/// Shards, and the databases that they are spread over. Ratios are to the first.
const LAYOUTS: &[(u32, usize)] = &[(1, 1), (4, 1), (16, 1), (16, 2)];

/// Measures all of it.
pub(crate) fn measure(nodes: &Nodes, runtime: &Runtime, seconds: f64, rounds: usize) {
    rates(nodes, runtime, seconds, rounds);
    sizes(nodes, runtime);
    if nodes.further().is_some() {
        moves(nodes, runtime, seconds);
    } else {
        println!("no moves: the server is not one of this benchmark's own");
    }
}

/// A log of its own in a schema.
struct Own<'a> {
    nodes: &'a Nodes,
    runtime: &'a Runtime,
    schema: String,
}

impl<'a> Own<'a> {
    /// Returns one that is not there yet.
    fn new(nodes: &'a Nodes, runtime: &'a Runtime, name: &str) -> Self {
        let schema = format!("sessionlog_bench_{name}");
        let own = Self {
            nodes,
            runtime,
            schema,
        };
        own.drop_it();
        own
    }

    fn urls(&self) -> impl Iterator<Item = String> {
        let further = self.nodes.further();
        std::iter::once(self.nodes.url.clone()).chain(further)
    }

    /// Opens it, in one database or in all.
    fn open(&self, shards: u32, databases: usize) -> SessionLog {
        let options = options(&self.schema).shards(shards);
        let further = self.urls().skip(1).take(databases - 1);
        let options = further.fold(options, Options::and_database);
        options.connect(&self.nodes.url).unwrap()
    }

    fn number(&self, statement: &str) -> f64 {
        self.runtime.block_on(async {
            let client = by_hand::connect(&self.nodes.url).await;
            let set = format!("SET search_path TO {}", self.schema);
            client.batch_execute(&set).await.unwrap();
            let statement = format!("SELECT ({statement})::float8");
            client.query_one(&statement, &[]).await.unwrap().get(0)
        })
    }

    fn drop_it(&self) {
        let drop = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema);
        for url in self.urls() {
            let client = self.runtime.block_on(by_hand::connect(&url));
            self.runtime.block_on(client.batch_execute(&drop)).unwrap();
        }
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.drop_it();
    }
}

/// Appends to logs of several shards, in slices that alternate with those to a log of one.
fn rates(nodes: &Nodes, runtime: &Runtime, seconds: f64, rounds: usize) {
    let mut table = Table::new(&[
        "servers",
        "shards",
        "databases",
        "appends/s",
        "p50 ms",
        "p99 ms",
        "batches a group",
        "x one shard",
    ]);
    let is_there = |databases| databases == 1 || nodes.further().is_some();
    let layouts = LAYOUTS.iter().filter(|(_, databases)| is_there(*databases));
    let layouts: Vec<_> = layouts.copied().collect();
    for &(servers, by_shard) in SERVERS {
        let case = Case {
            appenders: APPENDERS,
            servers,
            by_shard,
            ..PLAIN
        };
        let names = layouts
            .iter()
            .map(|(shards, databases)| format!("{shards}_{databases}"));
        let own: Vec<_> = names.map(|name| Own::new(nodes, runtime, &name)).collect();
        let logs = own.iter().zip(&layouts).map(|(own, &(shards, databases))| {
            let servers = (0..servers).map(|_| own.open(shards, databases));
            Arc::new(Way::Log(servers.collect()))
        });
        let logs: Vec<_> = logs.collect();
        let mut slices: Vec<Vec<Slice>> = vec![Vec::new(); logs.len()];
        // Sessions begin in a round that is not counted.
        for _round in 0..=rounds {
            for (log, slices) in logs.iter().zip(&mut slices) {
                slices.push(runtime.block_on(slice(log, case, seconds)));
            }
        }
        for (nth, &(shards, databases)) in layouts.iter().enumerate() {
            let of = |figure: fn(&Slice) -> f64| {
                median(slices[nth].iter().skip(1).map(figure).collect())
            };
            let pairs = slices[nth].iter().zip(&slices[0]).skip(1);
            let (batches, groups) = logs[nth].counts();
            table.row(&[
                format!("{servers}{}", if by_shard { ", by shard" } else { "" }),
                shards.to_string(),
                databases.to_string(),
                format!("{:.0}", of(|slice| slice.rate)),
                format!("{:.2}", of(|slice| slice.p50)),
                format!("{:.2}", of(|slice| slice.p99)),
                format!("{:.1}", batches as f64 / groups as f64),
                format!(
                    "{:.2}",
                    median(pairs.map(|(ours, one)| ours.rate / one.rate).collect())
                ),
            ]);
        }
    }
    table.print();
}

/// What a session and an event take on the disk, and an append of the write-ahead log.
fn sizes(nodes: &Nodes, runtime: &Runtime) {
    let sessions = if is_test() { 256 } else { 20_000 };
    let own = Own::new(nodes, runtime, "sizes");
    let log = own.open(16, 1);
    let wal = || own.number("pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')");
    let mut before = wal();
    let mut table = Table::new(&[
        "with",
        "bytes a session",
        "bytes a record",
        "bytes of WAL an append",
    ]);
    for round in ["one event", "two events"] {
        let name = |nth| SessionId::new(format!("user-{nth:09}/conversation")).unwrap();
        runtime.block_on(append_all(&log, sessions, name));
        let after = wal();
        let of = |table: &str| {
            let all = format!(
                "pg_total_relation_size('{table}')::float8 / (SELECT count(*) FROM {table})"
            );
            format!("{:.0}", own.number(&all))
        };
        let wal_of_one = (after - before) / sessions as f64;
        table.row(&[
            round.to_owned(),
            of("session"),
            of("record"),
            format!("{wal_of_one:.0}"),
        ]);
        before = after;
    }
    table.print();
}

/// Makes so many appends, many at a time.
async fn append_all(log: &SessionLog, count: usize, of: fn(usize) -> SessionId) {
    let appenders: Vec<_> = (0..APPENDERS)
        .map(|appender| {
            let log = log.clone();
            tokio::spawn(async move {
                for nth in (appender..count).step_by(APPENDERS) {
                    let batch = batch_of(PLAIN, nth as u64);
                    log.append_async(&of(nth), batch).await.unwrap();
                }
            })
        })
        .collect();
    for appender in appenders {
        appender.await.unwrap();
    }
}

/// Moves a shard to a second database and back, alone and while appends go on.
fn moves(nodes: &Nodes, runtime: &Runtime, seconds: f64) {
    let own = Own::new(nodes, runtime, "moves");
    let log = own.open(4, 2);
    let batches = if is_test() { 256 } else { 160_000 };
    let filled = append_all(&log, batches, |nth| session(nth % SESSIONS));
    runtime.block_on(filled);
    let way = Arc::new(Way::Log(vec![log.clone()]));
    let case = Case {
        appenders: APPENDERS,
        ..PLAIN
    };
    let alone = runtime.block_on(slice(&way, case, seconds)).rate;
    let mut table = Table::new(&[
        "appenders",
        "records",
        "MB",
        "s",
        "MB/s",
        "ms locked",
        "appends/s meanwhile",
        "x without a move",
    ]);
    for appenders in [0, APPENDERS] {
        let is_over = Arc::new(AtomicBool::new(false));
        let appending: Vec<_> = (0..appenders)
            .map(|appender| {
                runtime.spawn(append_until(
                    Arc::clone(&way),
                    appender,
                    Arc::clone(&is_over),
                ))
            })
            .collect();
        let home = log.shards().unwrap()[0].database;
        let began = Instant::now();
        let moved = log.move_shard(0, 1 - home).unwrap();
        let took = began.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        let appended = appending
            .into_iter()
            .map(|task| runtime.block_on(task).unwrap());
        let rate = appended.sum::<u64>() as f64 / took;
        let mb = moved.bytes as f64 / 1e6;
        table.row(&[
            appenders.to_string(),
            moved.records.to_string(),
            format!("{mb:.0}"),
            format!("{took:.2}"),
            format!("{:.1}", mb / took),
            format!("{:.0}", moved.locked.as_secs_f64() * 1e3),
            format!("{rate:.0}"),
            format!("{:.2}", rate / alone),
        ]);
    }
    table.print();
}

/// Appends until it is over. Returns how many appends it made.
async fn append_until(way: Arc<Way>, appender: usize, is_over: Arc<AtomicBool>) -> u64 {
    let mut made = 0;
    while !is_over.load(Ordering::Relaxed) {
        let nth = made << 16 | appender as u64;
        way.append(PLAIN, appender, nth).await;
        made += 1;
    }
    made
}
