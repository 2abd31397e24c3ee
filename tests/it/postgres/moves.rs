//! Logs over several databases, and shards that move from one to another.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sessionlog::transfer::Export;
use sessionlog::{
    Delete, Durability, Error, Event, EventStream, Fork, Options, RecvTimeout, SessionId,
    SessionLog, SessionQuery, StartAt, StreamItem,
};

use super::{Schema, schema};
use crate::support::{
    Over, append_notes, assert_dense, assert_error, assert_rising, eventually, feed_all, folder,
    further, notes, of_session, read_all, session, take_events,
};

const SHARDS: u32 = 4;

/// How long a test moves shards to and fro.
const FOR: Duration = Duration::from_secs(3);

/// A schema of a test in two databases of a server.
struct Spread {
    schema: Schema,
    further: String,
}

/// Returns one that nothing else has, or `None` without a server.
fn spread() -> Option<Spread> {
    let schema = schema()?;
    let further = further(&schema.url);
    Some(Spread { schema, further })
}

impl Spread {
    fn options(&self) -> Options {
        let options = Options::new().schema(self.schema.name.as_str());
        let options = options.shards(SHARDS).durability(Durability::OneNode);
        options.stall_wait(Duration::from_mins(1))
    }

    fn open(&self) -> SessionLog {
        let options = self.options().and_database(&self.further);
        options.connect(&self.schema.url).unwrap()
    }

    /// Opens it so that its background work looks often for what moves have left.
    fn open_sweeping(&self) -> SessionLog {
        let options = self.options().and_database(&self.further);
        let options = options.erase_within(Duration::from_secs(1));
        options.connect(&self.schema.url).unwrap()
    }

    /// Opens it with the databases in the other order.
    fn open_reversed(&self) -> SessionLog {
        let options = self.options().and_database(&self.schema.url);
        options.connect(&self.further).unwrap()
    }

    fn ask(&self, database: usize, statement: &str) -> Vec<String> {
        let url = [&self.schema.url, &self.further][database];
        self.schema.ask_at(url, statement)
    }

    /// Counts rows in both databases.
    fn count(&self, table: &str) -> usize {
        let statement = format!("SELECT count(*) FROM {table}");
        let counts = [0, 1].map(|database| self.ask(database, &statement).remove(0));
        counts
            .iter()
            .map(|count| count.parse::<usize>().unwrap())
            .sum()
    }

    /// Cuts all connections of the log.
    fn cut(&self) {
        let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE application_name = left('sessionlog ' || current_schema, 63)";
        self.ask(0, all);
    }
}

/// What holds the table over there holds up a copy, after its first part was read.
const HOLDS_COPIES: &str = "BEGIN; LOCK TABLE record IN SHARE MODE; SELECT pg_sleep(2); COMMIT";

impl Spread {
    fn a_copy_waits(&self) {
        let waits = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation \
                     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = 'record' \
                     AND n.nspname = current_schema AND NOT l.granted";
        eventually("the copy waits", || self.ask(1, waits) != ["0"]);
    }
}

impl Drop for Spread {
    fn drop(&mut self) {
        if !thread::panicking() {
            let drop = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.schema.name);
            self.ask(1, &drop);
        }
    }
}

/// Returns the shard of each of some sessions.
fn shards_of(log: &SessionLog, spread: &Spread) -> BTreeMap<u32, Vec<SessionId>> {
    let mut of: BTreeMap<u32, Vec<SessionId>> = BTreeMap::new();
    for nth in 0..24 {
        let id = session(&format!("of {nth}"));
        append_notes(log, &id, "n", 1);
        let shard = format!("SELECT session >> 40 FROM session WHERE name = '{id}'");
        let found = [0, 1].map(|database| spread.ask(database, &shard));
        let shard = found.concat().remove(0).parse().unwrap();
        assert_eq!(log.shard_of(&id).unwrap(), shard);
        of.entry(shard).or_default().push(id);
    }
    assert_eq!(of.len(), SHARDS as usize);
    of
}

#[test]
fn a_log_in_a_folder_has_no_shards() {
    let dir = folder();
    let log = Options::new().open(dir.path()).unwrap();
    assert_error!(log.shards(), Error::Invalid { .. });
    assert_error!(log.shard_of(&session("s")), Error::Invalid { .. });
    assert_error!(log.move_shard(0, 0), Error::Invalid { .. });
}

/// Returns the database of each shard.
fn homes(log: &SessionLog) -> Vec<usize> {
    let shards = log.shards().unwrap();
    assert!(shards.iter().map(|shard| shard.number).eq(0..SHARDS));
    shards.iter().map(|shard| shard.database).collect()
}

/// Returns all sessions by pages of a few, in an order.
fn listed(log: &SessionLog, query: SessionQuery) -> Vec<SessionId> {
    let mut ids = Vec::new();
    let mut next = Some(query.limit(5));
    while let Some(query) = next {
        let page = log.sessions(query).unwrap();
        ids.extend(page.items.iter().map(|info| info.id.clone()));
        next = page.next_page();
    }
    ids
}

#[test]
fn a_log_is_spread_over_its_databases() {
    let Some(spread) = spread() else { return };
    let log = spread.open();
    assert_eq!(homes(&log), [0, 1, 0, 1]);
    let of = shards_of(&log, &spread);
    for database in [0, 1] {
        let found = spread.ask(
            database,
            "SELECT DISTINCT session >> 40 FROM record ORDER BY 1",
        );
        assert_eq!(found, [["0", "2"], ["1", "3"]][database]);
    }
    let other = spread.open_reversed();
    assert_eq!(homes(&other), [1, 0, 1, 0]);
    let feed = feed_all(&log);
    assert_eq!(feed.len(), 24);
    assert_rising(&feed);
    assert_eq!(feed_all(&other), feed);
    let mut by_id: Vec<_> = of.values().flatten().cloned().collect();
    by_id.sort_unstable();
    let mut by_creation: Vec<_> = feed.iter().map(|event| event.session_id.clone()).collect();
    assert_eq!(listed(&other, SessionQuery::by_id()), by_id);
    let by_id_down: Vec<_> = by_id.iter().rev().cloned().collect();
    assert_eq!(listed(&other, SessionQuery::by_id().reversed()), by_id_down);
    by_creation.reverse();
    assert_eq!(listed(&other, SessionQuery::by_activity()), by_creation);
    let with_prefix: Vec<_> = by_id
        .iter()
        .filter(|id| id.as_str().starts_with("of 1"))
        .cloned()
        .collect();
    assert_eq!(
        listed(&log, SessionQuery::by_id().prefix("of 1")),
        with_prefix
    );
    for event in &feed {
        assert_eq!(other.event(event.id).unwrap(), *event);
    }
    let stats = other.stats();
    assert_eq!(
        (stats.events, stats.last_id),
        (24, feed.last().map(|event| event.id))
    );
}

#[test]
fn a_log_in_several_databases_is_exported_as_one() {
    let Some(spread) = spread() else { return };
    let log = spread.open();
    shards_of(&log, &spread);
    let feed = feed_all(&log);
    let mut lines = Vec::new();
    let exported = spread.options().and_database(&spread.further).export_from(
        &spread.schema.url,
        &mut lines,
        &Export::new(),
        |_| {},
    );
    assert_eq!(exported.unwrap().events, 24);
    let into = spread
        .options()
        .schema(format!("{}.copy", spread.schema.name));
    let imported = into
        .clone()
        .import_to(&spread.schema.url, &*lines, "lines", |_| {});
    assert_eq!(imported.unwrap().events, 24);
    assert_eq!(feed_all(&into.connect(&spread.schema.url).unwrap()), feed);
    spread.ask(
        0,
        &format!("DROP SCHEMA \"{}.copy\" CASCADE", spread.schema.name),
    );
    // Into one of several nothing is imported: the lines have sessions of the others too.
    let one = spread
        .options()
        .import_to(&spread.further, &*lines, "lines", |_| {});
    assert_error!(
        one,
        Error::Invalid {
            what: "target schema",
            ..
        }
    );
}

#[test]
fn databases_that_are_not_all_of_one_log_are_refused() {
    let Some(spread) = spread() else { return };
    let alone = spread.options().shards(1).and_database(&spread.further);
    assert_error!(
        alone.connect(&spread.schema.url),
        Error::Invalid {
            what: "database",
            ..
        }
    );
    spread.ask(
        0,
        &format!("DROP SCHEMA \"{}\" CASCADE", spread.schema.name),
    );
    spread.ask(
        1,
        &format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", spread.schema.name),
    );
    spread.open().close().unwrap();
    let twice = spread.options().and_database(&spread.schema.url);
    assert_error!(
        twice.connect(&spread.schema.url),
        Error::Invalid {
            what: "database",
            ..
        }
    );
    let short = || spread.options().stall_wait(Duration::from_millis(100));
    for url in [&spread.schema.url, &spread.further] {
        let missing = short().connect(url);
        assert_error!(missing, Error::Io { source, .. } if source.to_string().contains("in none of"));
    }
    // A log of its own, in the same schema of the other database.
    spread.ask(
        1,
        &format!("DROP SCHEMA \"{}\" CASCADE", spread.schema.name),
    );
    short().connect(&spread.further).unwrap();
    let another = short()
        .and_database(&spread.further)
        .connect(&spread.schema.url);
    assert_error!(another, Error::Invalid { what: "database", why } if why.contains("another log"));
}

/// Appends to all sessions while shards move, and what was acknowledged.
fn append_while(
    servers: &[SessionLog],
    done: &AtomicBool,
    each: impl Fn(&SessionLog, &SessionId, String) -> Vec<Event> + Sync,
) -> Vec<Event> {
    thread::scope(|scope| {
        let each = &each;
        let writers: Vec<_> = (0..6_usize)
            .map(|of| {
                let server = &servers[of % servers.len()];
                scope.spawn(move || {
                    let mut acked = Vec::new();
                    let mut nth = 0;
                    while !done.load(Ordering::SeqCst) {
                        nth += 1;
                        let id = session(&format!("s{}", (of * 5 + nth * 3) % 24));
                        acked.extend(each(server, &id, format!("{of}.{nth}")));
                    }
                    acked
                })
            })
            .collect();
        let acked = writers.into_iter().map(|writer| writer.join().unwrap());
        acked.flatten().collect()
    })
}

/// Checks that all servers show what was acknowledged, once and in order, and nothing else.
fn check(servers: &[SessionLog], mut acked: Vec<Event>) {
    acked.sort_by_key(|event| event.id);
    for server in servers {
        let feed = feed_all(server);
        assert_rising(&feed);
        assert!(
            feed == acked,
            "the feed has {} of {}",
            feed.len(),
            acked.len()
        );
        let ids: BTreeSet<_> = acked.iter().map(|event| event.session_id.clone()).collect();
        for id in &ids {
            let events = read_all(server, id);
            assert_dense(&events, 1..=events.len() as u64);
            assert_eq!(events, of_session(&acked, id));
        }
        let shown = listed(server, SessionQuery::by_activity());
        assert_eq!(shown.len(), ids.len());
        assert_eq!(shown.into_iter().collect::<BTreeSet<_>>(), ids);
        assert_eq!(server.stats().events, acked.len() as u64);
    }
}

/// Two servers append, one follows, and a third moves shards.
#[test]
fn shards_move_while_servers_append_and_follow() {
    let Some(spread) = spread() else { return };
    let servers = [spread.open_sweeping(), spread.open_reversed()];
    let (mover, follower) = (spread.open(), spread.open());
    let (done, read) = (AtomicBool::new(false), AtomicBool::new(false));
    let streamed = session("s1");
    append_notes(&servers[0], &streamed, "first", 1);
    let (acked, fed, stream) = thread::scope(|scope| {
        let (over, is_read) = (Over(&done), Over(&read));
        let feed = scope.spawn(|| follow(follower.feed().unwrap(), &read));
        let stream = follower.stream(&streamed, StartAt::Beginning).unwrap();
        let stream = scope.spawn(|| follow(stream, &read));
        let appended = scope.spawn(|| {
            append_while(&servers, &done, |server, id, tag| {
                let batch = || notes(&tag, 2).idempotency_key(tag.as_str());
                let ack = server.append(id, batch()).unwrap();
                assert!(server.append(id, batch()).unwrap().replayed);
                ack.events
            })
        });
        let began = Instant::now();
        let mut count = 0_usize;
        while began.elapsed() < FOR {
            let (shard, to) = (
                u32::try_from(count).unwrap() % SHARDS,
                count / SHARDS as usize % 2,
            );
            mover.move_shard(shard, to).unwrap();
            count += 1;
        }
        drop(over);
        let mut acked = appended.join().unwrap();
        acked.extend(read_all(&servers[0], &streamed).into_iter().take(1));
        drop(is_read);
        (acked, feed.join().unwrap(), stream.join().unwrap())
    });
    assert_eq!(stream, read_all(&servers[1], &streamed));
    assert_rising(&fed);
    assert_eq!(fed.len(), acked.len());
    check(&servers, acked);
    check_at_rest(&spread, &mover);
}

/// Follows until there is nothing more once `read` is set.
fn follow(mut stream: EventStream, read: &AtomicBool) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let is_over = read.load(Ordering::SeqCst);
        match stream.next_timeout(Duration::from_secs(2)) {
            Ok(item) => events.extend(item.into_event()),
            Err(RecvTimeout::Failed(error)) => panic!("{error:?}"),
            Err(_) if is_over => return events,
            Err(_) => {}
        }
    }
}

/// Checks that each row is in the database of its shard alone.
fn check_at_rest(spread: &Spread, log: &SessionLog) {
    for shard in log.shards().unwrap() {
        assert!(!shard.is_moving, "{shard:?}");
        log.move_shard(shard.number, shard.database).unwrap();
    }
    for table in ["session", "record"] {
        let astray = "WHERE session >> 40 NOT IN (SELECT shard FROM shard WHERE here)";
        assert_eq!(spread.count(&format!("{table} {astray}")), 0, "{table}");
    }
}

/// Nothing else of the server that follows has to do with the shard, and the one that appends does
/// not know that it has moved.
#[test]
fn a_stream_goes_on_where_its_session_has_moved() {
    let Some(spread) = spread() else { return };
    let [log, stale, follower] = [spread.open(), spread.open(), spread.open()];
    let of = shards_of(&log, &spread);
    let id = &of[&0][0];
    let mut stream = follower.stream(id, StartAt::Beginning).unwrap();
    assert_eq!(take_events(&mut stream, 1).len(), 1);
    for (nth, to) in [1, 0, 1].into_iter().enumerate() {
        assert!(matches!(
            stream.next_timeout(Duration::from_millis(50)),
            Ok(StreamItem::CaughtUp) | Err(RecvTimeout::Elapsed)
        ));
        log.move_shard(0, to).unwrap();
        let event = append_notes(&stale, id, &format!("after {nth}"), 1);
        assert_eq!(take_events(&mut stream, 1), event);
        assert_eq!(read_all(&log, id).last(), event.first());
    }
}

/// Connections are lost at any moment of a move, and the mover with them. The same call goes on.
#[test]
fn a_move_that_is_cut_short_is_done_again() {
    let Some(spread) = spread() else { return };
    let servers = [spread.open_sweeping(), spread.open_reversed()];
    let mover = spread.open();
    let done = AtomicBool::new(false);
    let (acked, cut_short) = thread::scope(|scope| {
        let over = Over(&done);
        let appended = scope.spawn(|| {
            append_while(&servers, &done, |server, id, tag| {
                server.append(id, notes(&tag, 1)).unwrap().events
            })
        });
        scope.spawn(|| {
            for nth in 0_u64.. {
                thread::park_timeout(Duration::from_millis(20 + nth * 37 % 90));
                if done.load(Ordering::SeqCst) {
                    return;
                }
                spread.cut();
            }
        });
        let began = Instant::now();
        let (mut nth, mut cut_short) = (0_usize, 0);
        while began.elapsed() < FOR || cut_short < 5 {
            let (shard, to) = (
                u32::try_from(nth).unwrap() % SHARDS,
                nth / SHARDS as usize % 2,
            );
            match mover.move_shard(shard, to) {
                Ok(_) => nth += 1,
                Err(Error::Io { .. } | Error::Invalid { .. }) => cut_short += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        drop(over);
        (appended.join().unwrap(), cut_short)
    });
    assert!(cut_short > 0);
    check(&servers, acked);
    eventually("what movers have held is free", || {
        (0..SHARDS).all(|shard| mover.move_shard(shard, 1).is_ok())
    });
    check_at_rest(&spread, &mover);
    check(&servers, feed_all(&mover));
}

/// A shard that has left has arrived whole, whether its mover says so or is gone.
#[test]
fn a_shard_on_its_way_is_found_by_whom_needs_it() {
    let Some(spread) = spread() else { return };
    let log = spread.open();
    let of = shards_of(&log, &spread);
    let id = &of[&0][0];
    log.move_shard(0, 1).unwrap();
    let lose = || {
        let by = spread
            .ask(0, "SELECT move FROM shard WHERE shard = 0")
            .remove(0);
        let lost = format!("UPDATE shard SET here = false, move = '{by}' WHERE shard = 0");
        spread.ask(1, &lost);
    };
    lose();
    assert_dense(&read_all(&log, id), 1..=1);
    assert_eq!(homes(&log), [1, 1, 0, 1]);
    lose();
    append_notes(&log, id, "after", 1);
    lose();
    assert_eq!(feed_all(&log).len(), 25);
    lose();
    assert_eq!(listed(&log, SessionQuery::by_id()).len(), 24);
    lose();
    let other = spread.open();
    assert_dense(&read_all(&other, id), 1..=2);
    // One that arrives, and of which nothing says that it has left, is not there.
    spread.ask(
        1,
        "UPDATE shard SET here = false, move = gen_random_uuid() WHERE shard = 0",
    );
    let short = spread.options().stall_wait(Duration::from_millis(300));
    let short = short
        .and_database(&spread.further)
        .connect(&spread.schema.url);
    assert_error!(short, Error::Io { .. });
}

#[test]
fn what_is_removed_while_its_shard_moves_is_erased() {
    let Some(spread) = spread() else { return };
    let log = spread.open();
    let of = shards_of(&log, &spread);
    let [deleted, trimmed] = [&of[&0][0], &of[&0][1]];
    append_notes(&log, trimmed, "secret", 4);
    append_notes(&log, deleted, "secret", 4);
    let stored = || spread.count("record WHERE position('secret'::bytea in record) > 0");
    let compact = || log.compact(|_| ControlFlow::Continue(()));
    assert_eq!(stored(), 8);
    thread::scope(|scope| {
        let held = scope.spawn(|| spread.ask(1, HOLDS_COPIES));
        let moving = scope.spawn(|| log.move_shard(0, 1).unwrap());
        spread.a_copy_waits();
        log.delete(deleted, Delete::new()).unwrap();
        log.trim(trimmed, 4).unwrap();
        assert_error!(compact(), Error::Io { source, .. } if source.to_string().contains("moved"));
        held.join().unwrap();
        let moved = moving.join().unwrap();
        assert!(moved.records > 0 && moved.sessions > 0, "{moved:?}");
    });
    compact().unwrap();
    assert_eq!(stored(), 2);
    assert_eq!(spread.count("removal"), 0);
    assert_dense(&read_all(&log, trimmed), 4..=5);
    // A mover that is gone holds up nothing.
    spread.ask(
        1,
        "UPDATE shard SET move = gen_random_uuid() WHERE shard = 0",
    );
    log.delete(trimmed, Delete::new()).unwrap();
    compact().unwrap();
    assert_eq!(stored(), 0);
    assert!(log.shards().unwrap().iter().all(|shard| !shard.is_moving));
}

/// A session of each database, and one more of the first.
fn apart(of: &BTreeMap<u32, Vec<SessionId>>) -> [&SessionId; 3] {
    [&of[&0][0], &of[&1][0], &of[&2][0]]
}

/// What a fork under way needs is not erased before it is known that the fork will never be there.
#[test]
fn a_fork_that_never_comes_holds_up_no_erasing() {
    let Some(spread) = spread() else { return };
    let log = spread.open();
    let of = shards_of(&log, &spread);
    let [parent, other, _] = apart(&of);
    append_notes(&log, parent, "secret", 4);
    // A server that dies after it has pinned what it shares.
    spread.ask(
        1,
        "INSERT INTO ticket VALUES ('00000000-0000-0000-0000-000000000001')",
    );
    let pin =
        format!("INSERT INTO pin VALUES ('00000000-0000-0000-0000-000000000001', '{parent}')");
    spread.ask(0, &pin);
    let child = session(&format!("{other} child"));
    log.fork(Fork::new(parent).at(3), &child).unwrap();
    log.delete(parent, Delete::new()).unwrap();
    log.compact(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!((spread.count("ticket"), spread.count("pin")), (0, 0));
    assert_dense(&read_all(&log, &child), 1..=3);
    assert_eq!(
        spread.count("record WHERE position('secret'::bytea in record) > 0"),
        2
    );
}

/// What is erased before the fork is committed is not shared by it.
#[test]
fn a_fork_whose_ticket_was_taken_is_not_committed() {
    let Some(spread) = spread() else { return };
    let log = spread.open();
    let of = shards_of(&log, &spread);
    let parent = &of[&0][0];
    append_notes(&log, parent, "secret", 4);
    // A session of the other database, whose shards are held.
    let child = of[&1].iter().chain(&of[&3]).next().unwrap();
    log.delete(child, Delete::new()).unwrap();
    let lock = "BEGIN; SELECT 1 FROM shard FOR UPDATE; SELECT pg_sleep(3); ROLLBACK";
    thread::scope(|scope| {
        let held = scope.spawn(|| spread.ask(1, lock));
        eventually("the shards are held", || {
            let free = "SELECT count(*) FROM (SELECT FROM shard FOR UPDATE SKIP LOCKED) s";
            spread.ask(1, free) == ["0"]
        });
        let fork = scope.spawn(|| log.fork(Fork::new(parent).at(4), child));
        eventually("its events are pinned", || spread.count("pin") == 1);
        log.delete(parent, Delete::new()).unwrap();
        log.compact(|_| ControlFlow::Continue(())).unwrap();
        assert_eq!((spread.count("pin"), spread.count("ticket")), (0, 0));
        held.join().unwrap();
        assert_error!(fork.join().unwrap(), Error::UnknownSession { .. });
    });
    assert_eq!(
        spread.count("record WHERE position('secret'::bytea in record) > 0"),
        0
    );
}

/// A copy of which somebody has said that it is worth nothing does not become the shard.
#[test]
fn a_move_that_was_given_up_does_not_end() {
    let Some(spread) = spread() else { return };
    let log = spread.open();
    let of = shards_of(&log, &spread);
    let at_home = "UPDATE shard SET move = NULL WHERE shard = 0";
    let there = "UPDATE shard SET move = gen_random_uuid() WHERE shard = 0";
    for (database, give_up) in [at_home, there].into_iter().enumerate() {
        let spread = &spread;
        thread::scope(|scope| {
            let held = scope.spawn(|| spread.ask(1, HOLDS_COPIES));
            let moving = scope.spawn(|| log.move_shard(0, 1));
            spread.a_copy_waits();
            let given_up = scope.spawn(move || spread.ask(database, give_up));
            held.join().unwrap();
            let told = moving.join().unwrap();
            assert!(
                matches!(&told, Err(Error::Io { .. })),
                "{give_up}: {told:?}"
            );
            given_up.join().unwrap();
        });
        assert_eq!(homes(&log), [0, 1, 0, 1], "{give_up}");
        assert_dense(&read_all(&log, &of[&0][0]), 1..=1);
    }
    log.move_shard(0, 1).unwrap();
    check_at_rest(&spread, &log);
}

/// Parents are deleted and erased while they are forked into another database. A fork that is
/// there has all of its events.
#[test]
fn forks_into_another_database_race_with_what_erases_their_events() {
    let Some(spread) = spread() else { return };
    let servers = [spread.open(), spread.open_reversed()];
    let (mut forked, mut refused) = (0, 0);
    for nth in 0..40_u64 {
        let parent = session(&format!("parent {nth}"));
        append_notes(&servers[0], &parent, "shared", 4);
        let children: Vec<_> = (0..4)
            .map(|of| session(&format!("child {nth} {of}")))
            .collect();
        let ended = AtomicU64::new(0);
        let made: Vec<bool> = thread::scope(|scope| {
            let forks: Vec<_> = children
                .iter()
                .map(|child| {
                    let (server, parent, ended) = (&servers[0], &parent, &ended);
                    scope.spawn(move || {
                        let told = server.fork(Fork::new(parent).at(4), child);
                        ended.fetch_add(1, Ordering::Relaxed);
                        match told {
                            Ok(_) => true,
                            Err(Error::UnknownSession { .. }) => false,
                            Err(error) => panic!("{error:?}"),
                        }
                    })
                })
                .collect();
            // Some of the forks come before it, and the others race with it.
            eventually("a part of the forks ended", || {
                ended.load(Ordering::Relaxed) >= nth % 4
            });
            servers[1].delete(&parent, Delete::new()).unwrap();
            servers[1].compact(|_| ControlFlow::Continue(())).unwrap();
            forks.into_iter().map(|fork| fork.join().unwrap()).collect()
        });
        for (child, is_made) in children.iter().zip(made) {
            if is_made {
                assert_dense(&read_all(&servers[1], child), 1..=4);
                servers[0].delete(child, Delete::new()).unwrap();
                forked += 1;
            } else {
                refused += 1;
            }
        }
    }
    assert_ne!(refused, 0, "of {forked} that were made");
    servers[0].compact(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(
        spread.count("record WHERE position('shared'::bytea in record) > 0"),
        0
    );
    eventually("what was pinned is released", || {
        (spread.count("ticket"), spread.count("pin")) == (0, 0)
    });
}

/// A fork and what it shares are in one database, and then in two.
#[test]
fn what_a_fork_shares_may_move_away_from_it() {
    let Some(spread) = spread() else { return };
    let log = spread.open();
    let of = shards_of(&log, &spread);
    let [parent, _, near] = apart(&of);
    append_notes(&log, parent, "shared", 4);
    let child = session(&format!("{near} child"));
    let all = read_all(&log, parent);
    log.fork(Fork::new(parent).at(4), &child).unwrap();
    let is_whole = || {
        let events = read_all(&log, &child);
        assert_dense(&events, 1..=4);
        assert!(
            events
                .iter()
                .map(|event| event.id)
                .eq(all.iter().take(4).map(|event| event.id))
        );
    };
    is_whole();
    for (shard, to) in [(0, 1), (1, 0), (2, 1), (0, 0), (3, 0), (2, 0)] {
        log.move_shard(shard, to).unwrap();
        is_whole();
    }
    // Each takes along that it is a fork: nothing else of the database that it left is needed.
    log.move_shard(2, 1).unwrap();
    spread.ask(0, "DELETE FROM fork");
    log.move_shard(0, 1).unwrap();
    log.delete(parent, Delete::new()).unwrap();
    let compact = || log.compact(|_| ControlFlow::Continue(())).unwrap();
    let stored = || spread.count("record WHERE position('shared'::bytea in record) > 0");
    compact();
    assert_eq!(stored(), 3);
    is_whole();
    log.delete(&child, Delete::new()).unwrap();
    compact();
    assert_eq!(stored(), 0);
}
