//! What only a log on PostgreSQL has: several servers, lost connections, settings that are refused.
//!
//! The tests need a server at `SESSION_LOG_POSTGRES_URL`. Without it they say so and check nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sessionlog::{
    Batch, Delete, Durability, Error, Event, Expected, NewEvent, Options, PageRequest, Retention,
    SessionId, SessionLog, StartAt,
};

use crate::support::{
    Over, append_notes, assert_dense, assert_error, databases, drain, eventually, feed_all, folder,
    further, note, notes, read_all, schema_of, seqs, session, shards, spread, take_events,
};

mod commits;
mod erasing;
mod moves;
mod proxy;
mod readers;
mod settings;
mod shards;
mod turns;

/// The certificate of the nodes of `cluster.sh`, and one that they do not have.
const ITS_CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tls/first.pem");
const ANOTHER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tls/second.pem");

/// A schema of a test on a server.
struct Schema {
    url: String,
    name: String,
}

/// Returns a schema that nothing else has, or `None` without a server.
fn schema() -> Option<Schema> {
    let Ok(url) = std::env::var("SESSION_LOG_POSTGRES_URL") else {
        eprintln!("skipped: SESSION_LOG_POSTGRES_URL names no server");
        return None;
    };
    let name = schema_of(folder().path());
    Some(Schema { url, name })
}

impl Schema {
    fn options(&self) -> Options {
        spread(Options::new(), &self.url)
            .schema(self.name.as_str())
            .shards(shards())
            .durability(Durability::OneNode)
    }

    fn open(&self) -> SessionLog {
        self.options().connect(&self.url).unwrap()
    }

    /// Runs a statement past the log, on a connection of its own. Returns the first column.
    fn ask(&self, statement: &str) -> Vec<String> {
        self.ask_at(&self.url, statement)
    }

    /// Does so in another database.
    fn ask_at(&self, url: &str, statement: &str) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
                .await
                .unwrap();
            let driver = tokio::spawn(connection);
            let set = format!("SET search_path TO \"{}\"", self.name);
            client.batch_execute(&set).await.unwrap();
            let answer = client.simple_query(statement).await.unwrap();
            driver.abort();
            answer
                .iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                })
                .map(str::to_owned)
                .collect()
        })
    }

    /// Cuts all connections of the log.
    fn cut(&self) {
        let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE application_name = left('sessionlog ' || current_schema, 63)";
        self.ask(all);
    }

    /// Runs a statement in each database of the log. Returns the first columns of all.
    fn ask_all(&self, statement: &str) -> Vec<String> {
        let further = (databases() == 2).then(|| further(&self.url));
        let urls = std::iter::once(&self.url).chain(&further);
        urls.flat_map(|url| self.ask_at(url, statement)).collect()
    }

    fn count(&self, table: &str) -> usize {
        let counts = self.ask_all(&format!("SELECT count(*) FROM {table}"));
        counts
            .iter()
            .map(|count| count.parse::<usize>().unwrap())
            .sum()
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.ask_all(&format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.name));
        }
    }
}

#[test]
fn several_servers_are_one_log() {
    let Some(schema) = schema() else { return };
    let servers = [schema.open(), schema.open(), schema.open()];
    let id = session("s");
    let keyed = |nth: usize| notes(&format!("keyed.{nth}"), 2).idempotency_key(format!("k{nth}"));
    thread::scope(|scope| {
        for (of, server) in servers.iter().enumerate() {
            let (id, keyed) = (&id, &keyed);
            scope.spawn(move || {
                for nth in 0..20 {
                    append_notes(server, id, &format!("{of}.{nth}"), 1);
                    append_notes(server, &session(&format!("own{of}")), "n", 1);
                    // Each server sends the same: one lands, and the others get its events.
                    server.append(id, keyed(nth)).unwrap();
                }
            });
        }
    });
    let all = read_all(&servers[0], &id);
    assert_dense(&all, 1..=3 * 20 + 2 * 20);
    for server in &servers {
        assert_eq!(read_all(server, &id), all);
        assert_eq!(feed_all(server), feed_all(&servers[0]));
        for nth in 0..20 {
            assert!(server.append(&id, keyed(nth)).unwrap().replayed);
        }
    }
    let feed = feed_all(&servers[0]);
    assert_eq!(feed.len(), 3 * 20 + 2 * 20 + 3 * 20);
    assert!(feed.is_sorted_by_key(|event| event.id));
}

#[test]
fn of_servers_that_expect_the_same_seq_one_appends() {
    let Some(schema) = schema() else { return };
    let servers = [schema.open(), schema.open()];
    let id = session("s");
    for last in 0..10 {
        let landed: Vec<bool> = thread::scope(|scope| {
            let appends = servers.each_ref().map(|server| {
                let batch = Batch::from(note("n")).expected(Expected::Seq(last));
                let id = &id;
                scope.spawn(move || match server.append(id, batch) {
                    Ok(_) => true,
                    Err(Error::ExpectedMismatch { actual, .. }) => {
                        assert_eq!(actual, last + 1);
                        false
                    }
                    Err(error) => panic!("{error:?}"),
                })
            });
            appends.map(|append| append.join().unwrap()).into()
        });
        assert_eq!(landed.iter().filter(|landed| **landed).count(), 1);
    }
}

#[test]
fn what_one_server_appends_the_streams_of_another_yield() {
    let Some(schema) = schema() else { return };
    let (one, two) = (schema.open(), schema.open());
    let (id, later) = (session("s"), session("later"));
    let mut all = append_notes(&one, &id, "before", 3);
    let mut stream = two.stream(&id, StartAt::Beginning).unwrap();
    let mut created = two.stream(&later, StartAt::Creation).unwrap();
    let mut feed = two.feed().unwrap();
    assert_eq!(take_events(&mut stream, 3), all);
    assert_eq!(take_events(&mut feed, 3), all);
    for nth in 0..10 {
        let live = append_notes(&one, &id, &format!("live.{nth}"), 2);
        assert_eq!(take_events(&mut stream, 2), live);
        assert_eq!(take_events(&mut feed, 2), live);
        all.extend(live);
    }
    let first = append_notes(&one, &later, "first", 1);
    assert_eq!(take_events(&mut created, 1), first);
    one.close_session(&id).unwrap();
    assert!(drain(&mut stream).is_empty());
    // The connection that listens may be lost, and with it what came meanwhile.
    schema.cut();
    let live = append_notes(&one, &later, "after", 2);
    assert_eq!(take_events(&mut created, 2), live);
    assert_eq!(read_all(&two, &id), all);
}

/// The outcome of a commit whose connection was lost is asked for. So even without a key nothing is
/// doubled, and nothing that was acknowledged is missing.
#[test]
fn appends_go_on_when_connections_are_cut() {
    let Some(schema) = schema() else { return };
    let options = || schema.options().stall_wait(Duration::from_mins(1));
    // Each commit takes a while, so that most connections are lost in one: it is committed, and its
    // answer does not come.
    let slowly = "options=-c%20commit_delay%3D20000%20-c%20commit_siblings%3D0";
    let url = format!("{}?{slowly}", schema.url);
    let servers = [0, 1].map(|_| options().connect(&url).unwrap());
    let done = AtomicBool::new(false);
    let acked: Vec<(SessionId, Event)> = thread::scope(|scope| {
        let over = Over(&done);
        let writers: Vec<_> = (0..6)
            .map(|of: usize| {
                let (server, done) = (&servers[of % 2], &done);
                scope.spawn(move || {
                    let mut acked = Vec::new();
                    let id = session(&format!("s{}", of % 3));
                    let mut nth = 0;
                    while !done.load(Ordering::SeqCst) {
                        nth += 1;
                        let ack = server.append(&id, note(format!("{of}.{nth}"))).unwrap();
                        acked.extend(ack.events.into_iter().map(|event| (id.clone(), event)));
                    }
                    acked
                })
            })
            .collect();
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            schema.cut();
            thread::sleep(Duration::from_millis(100));
        }
        drop(over);
        let acked = writers.into_iter().map(|writer| writer.join().unwrap());
        acked.flatten().collect()
    });
    let mut seen = BTreeMap::new();
    for id in (0..3).map(|of| session(&format!("s{of}"))) {
        let events = read_all(&servers[0], &id);
        assert_dense(&events, 1..=events.len() as u64);
        for event in events {
            let again = seen.insert(event.data.clone(), event);
            assert!(again.is_none(), "doubled: {again:?}");
        }
    }
    assert_eq!(seen.len(), acked.len(), "there is what nobody was told of");
    for (_, event) in acked {
        assert_eq!(seen.get(&event.data), Some(&event));
    }
}

#[test]
fn an_append_that_gets_no_turn_in_time_has_written_nothing() {
    let Some(schema) = schema() else { return };
    let log = schema
        .options()
        .stall_wait(Duration::from_millis(300))
        .connect(&schema.url)
        .unwrap();
    let id = session("s");
    append_notes(&schema.open(), &id, "before", 1);
    thread::scope(|scope| {
        // Another server that holds the shard and does not come to its end.
        scope.spawn(|| {
            schema.ask("BEGIN; SELECT 1 FROM shard FOR UPDATE; SELECT pg_sleep(1.5); ROLLBACK");
        });
        eventually("the shard is locked", || {
            let free = "SELECT count(*) FROM (SELECT FROM shard FOR UPDATE SKIP LOCKED) s";
            schema.ask(free) == ["0"]
        });
        assert_error!(log.append(&id, note("late")), Error::Stalled { .. });
        // Reads do not wait for it.
        assert_eq!(seqs(&read_all(&log, &id)), [1]);
    });
    let after = || log.append(&id, note("after")).ok();
    eventually("it has a turn", || {
        after().is_some_and(|ack| ack.first == 2)
    });
}

#[test]
fn a_server_that_does_not_keep_what_it_acknowledges_is_refused() {
    let Some(schema) = schema() else { return };
    if schema.ask("SHOW synchronous_standby_names") != [""] {
        eprintln!("skipped: the server has standbys");
        return;
    }
    let options = schema.options().durability(Durability::Replicated);
    assert_error!(
        options.connect(&schema.url),
        Error::Invalid { why, .. } if why.contains("synchronous_standby_names")
    );
    let exists = format!(
        "SELECT count(*) FROM pg_namespace WHERE nspname = '{}'",
        schema.name
    );
    assert_eq!(
        schema.ask(&exists),
        ["0"],
        "it was refused after it had made tables"
    );
}

#[test]
fn tables_of_a_later_format_are_refused_and_left_alone() {
    let Some(schema) = schema() else { return };
    schema.open().close().unwrap();
    schema.ask("UPDATE meta SET format = 99");
    assert_error!(
        schema.options().connect(&schema.url),
        Error::Unsupported { found: 99, .. }
    );
    assert_eq!(schema.ask("SELECT format FROM meta"), ["99"]);
}

#[test]
fn a_server_that_is_not_there_is_an_error_in_time() {
    let options = Options::new().stall_wait(Duration::from_millis(300));
    let none = "postgres://nobody@127.0.0.1:1/none";
    assert_error!(options.clone().connect(none), Error::Io { .. });
    assert_error!(options.connect("no url"), Error::Invalid { .. });
}

#[test]
fn a_connection_is_encrypted_to_the_server_whose_certificate_is_trusted_and_to_no_other() {
    let Some(schema) = schema() else { return };
    if schema.ask("SHOW ssl") != ["on"] {
        eprintln!("skipped: the server has no TLS");
        return;
    }
    let connect = |parameters: &str| {
        let url = format!("{}?{parameters}", schema.url);
        schema.options().connect(&url)
    };
    let encrypted = || {
        schema.ask(
            "SELECT count(*) FILTER (WHERE ssl) > 1 AND bool_and(ssl) \
             FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE application_name = left('sessionlog ' || current_schema, 63)",
        )
    };
    for mode in ["require", "verify-full"] {
        let trusting = format!("sslmode={mode}&sslrootcert={ITS_CERTIFICATE}");
        let log = connect(&trusting).unwrap();
        append_notes(&log, &session("s"), mode, 3);
        read_all(&log, &session("s"));
        assert_eq!(encrypted(), ["t"], "{mode}");
        log.close().unwrap();
    }
    let plain = connect("sslmode=prefer").unwrap();
    assert_eq!(read_all(&plain, &session("s")).len(), 6);
    let another = format!("sslmode=require&sslrootcert={ANOTHER}");
    for untrusting in [
        another.as_str(),
        "sslmode=require",
        "sslmode=require&sslrootcert=system",
    ] {
        assert_error!(
            connect(untrusting),
            Error::Invalid {
                what: "certificate of the server",
                ..
            }
        );
    }
    // The nodes of `cluster.sh` answer at an address that their certificate does not name.
    let elsewhere = schema.url.replace("127.0.0.1", "127.0.0.2");
    let url = format!("{elsewhere}?sslmode=require&sslrootcert={ITS_CERTIFICATE}");
    assert_error!(
        schema.options().connect(&url),
        Error::Invalid {
            what: "certificate of the server",
            ..
        }
    );
}

#[test]
fn certificates_to_trust_that_are_none_are_refused() {
    let connect = |parameters: &str| {
        let options = Options::new().stall_wait(Duration::from_millis(300));
        options.connect(&format!("postgres://nobody@127.0.0.1:1/none?{parameters}"))
    };
    let this = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let trusting = |file: &str| format!("sslmode=require&sslrootcert={file}");
    assert_error!(connect(&trusting(this)), Error::Invalid { what: "URL", .. });
    assert_error!(
        connect(&trusting("/nowhere.pem")),
        Error::Io { doing: "read", .. }
    );
    // Without the mode the file would promise what is not done.
    let alone = format!("sslrootcert={ITS_CERTIFICATE}");
    assert_error!(connect(&alone), Error::Invalid { what: "URL", .. });
    assert_error!(connect(&trusting(ITS_CERTIFICATE)), Error::Io { .. });
}

#[test]
fn removed_events_leave_the_tables_and_what_forks_share_stays() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let (parent, child, trimmed) = (session("p"), session("c"), session("t"));
    let shared = append_notes(&log, &parent, "shared", 3);
    append_notes(&log, &parent, "alone", 3);
    log.fork(sessionlog::Fork::new(&parent).at(3), &child)
        .unwrap();
    log.append(&trimmed, notes("trimmed", 4)).unwrap();
    let redacted = append_notes(&log, &trimmed, "redacted", 1).remove(0);
    log.redact(redacted.id, "a test").unwrap();
    log.trim(&trimmed, 3).unwrap();
    log.delete(&parent, Delete::new()).unwrap();
    let stored = |word: &str| {
        let with = format!("record WHERE position('{word}'::bytea in record) > 0");
        schema.count(&with)
    };
    assert_eq!((stored("alone"), stored("shared")), (3, 3));
    assert!(log.erasure().unwrap().due.is_some());
    log.compact(|_| std::ops::ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(log.erasure().unwrap().due, None);
    assert_eq!((stored("alone"), stored("shared")), (0, 3));
    assert_eq!((stored("trimmed/0"), stored("trimmed/2")), (0, 1));
    assert_eq!(stored("redacted"), 0);
    let seen: Vec<_> = read_all(&log, &child)
        .into_iter()
        .map(|event| event.id)
        .collect();
    assert_eq!(
        seen,
        shared.iter().map(|event| event.id).collect::<Vec<_>>()
    );
    assert_eq!(seqs(&read_all(&log, &trimmed)), [3, 4, 5]);
    log.delete(&child, Delete::new()).unwrap();
    log.compact(|_| std::ops::ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(stored("shared"), 0);
}

/// Any server may do the work of the others.
#[test]
fn what_retention_removes_is_erased_by_itself() {
    let Some(schema) = schema() else { return };
    let keep = Retention::new().max_events(2);
    let options = || {
        let within = Duration::from_millis(40);
        schema.options().retention(keep).erase_within(within)
    };
    let servers = [0, 1].map(|_| options().connect(&schema.url).unwrap());
    let id = session("s");
    servers[0]
        .append(&id, NewEvent::new("note", "first"))
        .unwrap();
    append_notes(&servers[0], &id, "n", 9);
    // Retention is looked after when a session is given its own, and every minute.
    let patch = sessionlog::SessionPatch::new().retention(keep);
    servers[1].set_metadata(&id, patch).unwrap();
    let with_events = "record WHERE last_seq >= first_seq";
    eventually("the rows are gone", || schema.count(with_events) == 2);
    for server in &servers {
        assert_eq!(seqs(&read_all(server, &id)), [9, 10]);
        let page = server.list(&id, PageRequest::new().newest_first().limit(1));
        assert_eq!(page.unwrap().items[0].seq, 10);
    }
}
