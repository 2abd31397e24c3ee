//! Logs of several shards: one feed over all of them, forks between them, and one that is held up.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use sessionlog::transfer::Export;
use sessionlog::{
    Delete, Error, Event, EventStream, Fork, NewEvent, Options, RecvTimeout, SessionId, SessionLog,
    SessionQuery, StartAt, StreamItem,
};

use super::{Schema, schema};
use crate::support::{
    Over, append_notes, assert_dense, assert_error, assert_rising, feed_all, in_time, note, notes,
    of_session, read_all, session, take_events,
};

const SHARDS: u32 = 4;

/// How long a test waits for what comes in milliseconds.
const SOON: Duration = Duration::from_secs(20);

/// How long a stream may take to find that there is nothing.
const QUIET: Duration = Duration::from_millis(200);

impl Schema {
    fn sharded(&self) -> Options {
        self.options().shards(SHARDS)
    }

    fn open_sharded(&self) -> SessionLog {
        let options = self.sharded().stall_wait(Duration::from_mins(1));
        options.connect(&self.url).unwrap()
    }

    /// Returns a session of each shard. Each has an event.
    fn one_of_each(&self, log: &SessionLog) -> Vec<SessionId> {
        let mut of: BTreeMap<String, SessionId> = BTreeMap::new();
        for nth in 0.. {
            let id = session(&format!("one of {nth}"));
            append_notes(log, &id, "n", 1);
            let shard = format!("SELECT session >> 40 FROM session WHERE name = '{id}'");
            of.entry(self.ask_all(&shard).remove(0)).or_insert(id);
            if of.len() == SHARDS as usize {
                break;
            }
        }
        of.into_values().collect()
    }
}

#[test]
fn the_number_of_shards_is_fixed_when_a_log_is_made() {
    let Some(schema) = schema() else { return };
    for wrong in [0, 1025] {
        let options = schema.options().shards(wrong);
        assert_error!(
            options.connect(&schema.url),
            Error::Invalid { what: "shards", .. }
        );
    }
    schema.sharded().connect(&schema.url).unwrap();
    let log = schema.options().shards(7).connect(&schema.url).unwrap();
    schema.one_of_each(&log);
    assert_eq!(schema.ask("SELECT shards FROM meta"), ["4"]);
    assert_eq!(schema.count("shard"), 4);
    schema.ask("UPDATE meta SET shards = 0");
    assert_error!(
        schema.options().connect(&schema.url),
        Error::Unsupported { found: 0, .. }
    );
}

/// A follower sees everything once and in the order of IDs, while two servers append.
#[test]
fn the_feed_over_shards_is_whole_and_in_order() {
    let Some(schema) = schema() else { return };
    let servers = [schema.open_sharded(), schema.open_sharded()];
    let follower = schema.open_sharded();
    let done = AtomicBool::new(false);
    let (mut acked, shown) = thread::scope(|scope| {
        let over = Over(&done);
        let follow = scope.spawn(|| {
            let mut feed = follower.feed().unwrap();
            let mut events: Vec<Event> = Vec::new();
            loop {
                let is_over = done.load(Ordering::SeqCst);
                match feed.next_timeout(Duration::from_millis(500)) {
                    Ok(item) => events.extend(item.into_event()),
                    Err(_) if is_over => return events,
                    Err(_) => {}
                }
            }
        });
        let writers: Vec<_> = (0..8)
            .map(|of: usize| {
                let server = &servers[of % 2];
                scope.spawn(move || {
                    let mut acked = Vec::new();
                    for nth in 0..60 {
                        let id = session(&format!("s{}", (of * 7 + nth * 3) % 40));
                        let ack = server.append(&id, notes(&format!("{of}.{nth}"), 1 + nth % 3));
                        acked.extend(ack.unwrap().events);
                    }
                    acked
                })
            })
            .collect();
        let acked: Vec<Event> = writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect();
        drop(over);
        (acked, follow.join().unwrap())
    });
    acked.sort_by_key(|event| event.id);
    assert_rising(&shown);
    assert_eq!(shown.len(), acked.len());
    assert!(shown == acked, "the feed has other events");
    assert!(feed_all(&servers[0]) == acked);
    let stats = servers[1].stats();
    assert_eq!(stats.events, acked.len() as u64);
    assert_eq!(stats.last_id, acked.last().map(|event| event.id));
    for nth in 0..40 {
        let id = session(&format!("s{nth}"));
        let events = read_all(&follower, &id);
        assert_dense(&events, 1..=events.len() as u64);
        assert_eq!(events, of_session(&acked, &id));
    }
    // Each has all of its kind on all pages, and begins where the one before ended.
    for from in [acked.len() / 3, acked.len() - 1] {
        let mut rest = follower.feed_after(acked[from].id).unwrap();
        assert!(take_events(&mut rest, acked.len() - from - 1) == acked[from + 1..]);
    }
    assert!(
        schema
            .ask("SELECT DISTINCT session >> 40 FROM record")
            .len()
            == SHARDS as usize
    );
}

#[test]
fn what_one_server_appends_to_the_shards_in_turn_has_rising_ids() {
    let Some(schema) = schema() else { return };
    let log = schema.open_sharded();
    let ids = schema.one_of_each(&log);
    let of = |nth: usize| append_notes(&log, &ids[nth % ids.len()], "n", 1);
    assert_rising(&(0..200).flat_map(of).collect::<Vec<_>>());
}

/// What a clock that runs ahead has made the highest ID is no end of the feed for the others.
#[test]
fn streams_and_the_feed_wake_for_ids_below_those_of_another_shard() {
    let Some(schema) = schema() else { return };
    let log = schema.open_sharded();
    let ids = schema.one_of_each(&log);
    let ahead = SystemTime::now() + Duration::from_hours(24);
    let ahead = schema.sharded().clock(move || ahead);
    let ahead = ahead.connect(&schema.url).unwrap();
    let reader = schema.open_sharded();
    let mut streams: Vec<_> = ids
        .iter()
        .map(|id| reader.stream(id, StartAt::Now).unwrap())
        .collect();
    // All are read to their ends, and wait.
    for stream in &mut streams {
        assert_eq!(stream.next_timeout(SOON).unwrap(), StreamItem::CaughtUp);
    }
    let far = wakes(&mut [&mut streams[0]], || {
        append_notes(&ahead, &ids[0], "far", 1)
    });
    for (id, stream) in ids.iter().zip(&mut streams).skip(1) {
        let near = wakes(&mut [stream], || append_notes(&log, id, "near", 1));
        assert!(near.id < far.id, "nothing has closed the shard");
    }
    // A reader of the feed closes all shards, and what comes then is behind it.
    let mut feed = reader.feed().unwrap();
    let count = schema.count("record");
    assert_eq!(take_events(&mut feed, count).last(), Some(&far));
    for (id, stream) in ids.iter().zip(&mut streams).skip(1) {
        let next = wakes(&mut [stream, &mut feed], || {
            append_notes(&log, id, "next", 1)
        });
        assert!(next.id > far.id);
    }
}

/// Appends while streams wait, and checks that they have it. Returns the event.
pub(super) fn wakes(
    streams: &mut [&mut EventStream],
    append: impl FnOnce() -> Vec<Event>,
) -> Event {
    thread::scope(|scope| {
        let waiting: Vec<_> = streams
            .iter_mut()
            .map(|stream| scope.spawn(|| take_events(stream, 1)))
            .collect();
        // Without it a stream that has not yet come to wait finds the event by itself.
        thread::park_timeout(QUIET);
        let event = append().remove(0);
        for stream in waiting {
            assert_eq!(stream.join().unwrap(), std::slice::from_ref(&event));
        }
        event
    })
}

#[test]
fn forks_and_what_they_share_may_be_of_several_shards() {
    let Some(schema) = schema() else { return };
    let servers = [schema.open_sharded(), schema.open_sharded()];
    let parents = schema.one_of_each(&servers[0]);
    for parent in &parents {
        append_notes(&servers[0], parent, "shared", 4);
    }
    // From each shard to each, at the same time and in both directions.
    thread::scope(|scope| {
        for (of, server) in servers.iter().enumerate() {
            for parent in &parents {
                scope.spawn(move || {
                    for nth in 0..4 {
                        let child = session(&format!("{parent} child {of} {nth}"));
                        server.fork(Fork::new(parent).at(3), &child).unwrap();
                        append_notes(server, &child, "own", 1);
                        append_notes(server, parent, "more", 1);
                    }
                });
            }
        }
    });
    let stored = |word: &str| {
        let with = format!("record WHERE position('{word}'::bytea in record) > 0");
        schema.count(&with)
    };
    let compact = || servers[1].compact(|_| ControlFlow::Continue(())).unwrap();
    let child = |parent: &SessionId, of, nth| session(&format!("{parent} child {of} {nth}"));
    for parent in &parents {
        let all = read_all(&servers[1], parent);
        assert_dense(&all, 1..=1 + 4 + 8);
        // A fork of a fork, which shares with the first.
        let second = session(&format!("{parent} second"));
        let first = child(parent, 0, 0);
        servers[1].fork(Fork::new(&first).at(2), &second).unwrap();
        servers[0].delete(parent, Delete::new()).unwrap();
        for of in 0..2 {
            for nth in 0..4 {
                let child = child(parent, of, nth);
                let events = read_all(&servers[0], &child);
                assert_dense(&events, 1..=4);
                let shared: Vec<_> = events.iter().take(3).map(|event| event.id).collect();
                assert_eq!(
                    shared,
                    all.iter().take(3).map(|event| event.id).collect::<Vec<_>>()
                );
                if (of, nth) != (1, 3) {
                    servers[1].delete(&child, Delete::new()).unwrap();
                }
            }
        }
    }
    compact();
    // Of each parent the last child keeps two of the four events, and the first as well.
    assert_eq!(stored("more"), 0);
    assert_eq!(stored("shared"), 2 * parents.len());
    for parent in &parents {
        assert_dense(&read_all(&servers[0], &child(parent, 1, 3)), 1..=4);
        servers[0]
            .delete(&child(parent, 1, 3), Delete::new())
            .unwrap();
    }
    compact();
    assert_eq!(stored("shared"), parents.len());
    for parent in &parents {
        let second = session(&format!("{parent} second"));
        assert_eq!(read_all(&servers[1], &second).len(), 2);
        servers[0].delete(&second, Delete::new()).unwrap();
    }
    compact();
    assert_eq!(stored("shared"), 0);
    assert_eq!(schema.count("removal"), 0);
}

/// A transaction that never ends holds one row. The others are appended to, read and listed.
#[test]
fn a_shard_that_is_held_up_holds_up_its_own_sessions_alone() {
    for shard in [0, SHARDS - 1] {
        check_with_one_held_up(shard);
    }
}

fn check_with_one_held_up(shard: u32) {
    let Some(schema) = schema() else { return };
    let log = schema.open_sharded();
    let mut free = schema.one_of_each(&log);
    let held = &free.remove(shard as usize);
    let other = schema
        .sharded()
        .stall_wait(Duration::from_millis(300))
        .connect(&schema.url)
        .unwrap();
    let lock = Held::new(&schema, shard);
    thread::scope(|scope| {
        let waits = scope.spawn(|| log.append(held, note("waits")).unwrap());
        let mut feed = log.feed().unwrap();
        for nth in 0..5 {
            for id in &free {
                append_notes(&log, id, &format!("free {nth}"), 1);
                append_notes(&other, id, &format!("free {nth} too"), 1);
            }
        }
        assert_error!(other.append(held, note("late")), Error::Stalled { .. });
        // Forks of its session wait too, and hold up nobody, whatever shards they are of.
        let forks = scope.spawn(|| {
            for nth in 0..6 {
                let child = session(&format!("of the held one {nth}"));
                log.fork(Fork::new(held), &child).unwrap();
            }
        });
        for _ in 0..4 {
            for id in &free {
                append_notes(&other, id, "behind the fork", 1);
            }
        }
        let page = log
            .sessions(SessionQuery::by_activity().limit(100))
            .unwrap();
        assert!(page.items.iter().any(|info| info.id == *held));
        // A feed up to the tail waits for what it has to show, and ends.
        let whole = scope.spawn(|| feed_all(&log));
        // The feed shows nothing above what is on its way.
        let shown = take_until_silent(&mut feed);
        let held_at: Vec<_> = read_all(&log, held).iter().map(|event| event.id).collect();
        lock.end();
        let whole = whole.join().unwrap();
        for id in &free {
            assert_eq!(of_session(&whole, id), read_all(&log, id));
        }
        let event = waits.join().unwrap().events.remove(0);
        assert!(shown.iter().all(|shown| shown.id < event.id), "{shown:?}");
        assert!(held_at.iter().all(|id| *id < event.id));
        forks.join().unwrap();
        let rest = take_until_silent(&mut feed);
        let mut all = shown;
        all.extend(rest);
        assert_rising(&all);
        assert_eq!(all, feed_all(&other));
        assert!(all.contains(&event));
    });
}

/// It was opened for what it cannot show yet.
#[test]
fn a_feed_up_to_the_tail_waits_for_a_shard_no_longer_than_said() {
    let Some(schema) = schema() else { return };
    let log = schema.open_sharded();
    let ids = schema.one_of_each(&log);
    let lock = Held::new(&schema, 1);
    let last = append_notes(&log, &ids[0], "last", 1).remove(0);
    let mut feed = log.feed().unwrap().until_tail();
    let (shown, told, feed) = in_time("a wait for the next event", move || {
        let mut shown = Vec::new();
        loop {
            match feed.next_timeout(QUIET) {
                Ok(item) => shown.extend(item.into_event()),
                Err(why) => return (shown, why, feed),
            }
        }
    });
    assert!(matches!(told, RecvTimeout::Elapsed), "{told:?}");
    assert!(!shown.contains(&last));
    lock.end();
    let rest: Vec<_> = feed.events().map(Result::unwrap).collect();
    assert_eq!(rest.last(), Some(&last));
    assert_eq!([shown, rest].concat(), feed_all(&log));
}

/// It holds the lock, so nobody else can close its shard meanwhile.
#[test]
fn a_group_that_writes_nothing_closes_its_shard() {
    let Some(schema) = schema() else { return };
    let log = schema.open_sharded();
    let ids = schema.one_of_each(&log);
    let keyed = || notes("n", 1).idempotency_key("k");
    log.append(&ids[1], keyed()).unwrap();
    append_notes(&log, &ids[0], "newest", 1);
    let behind = "SELECT shard FROM shard WHERE last_id < (SELECT last_id FROM shard \
                  ORDER BY last_id DESC LIMIT 1) ORDER BY shard";
    assert_eq!(schema.ask(behind), ["1", "2", "3"]);
    assert!(log.append(&ids[1], keyed()).unwrap().replayed);
    assert_eq!(schema.ask(behind), ["2", "3"]);
}

/// What shares events is decided under the locks of all whose events it shares.
#[test]
fn a_fork_waits_for_the_shards_of_all_that_it_shares_events_with() {
    let Some(schema) = schema() else { return };
    let log = schema.open_sharded();
    let ids = schema.one_of_each(&log);
    // The second shares with the first, in another shard.
    let in_shard = |shard: usize| {
        let names = (0..).map(|nth| session(&format!("free {nth}")));
        names.into_iter().find(|id| {
            log.append(id, note("n")).unwrap();
            let of = format!("SELECT session >> 40 FROM session WHERE name = '{id}'");
            log.delete(id, Delete::new()).unwrap();
            schema.ask(&of) == [shard.to_string()]
        })
    };
    let second = in_shard(1).unwrap();
    log.fork(Fork::new(&ids[0]), &second).unwrap();
    let third = in_shard(2).unwrap();
    let impatient = schema.sharded().stall_wait(Duration::from_millis(300));
    let impatient = impatient.connect(&schema.url).unwrap();
    for (held, waits) in [(0, true), (1, true), (2, true), (3, false)] {
        let lock = Held::new(&schema, held);
        let fork = impatient.fork(Fork::new(&second), &third);
        if waits {
            assert_error!(fork, Error::Stalled { .. });
            lock.end();
        } else {
            fork.unwrap();
        }
    }
    assert_eq!(
        read_all(&log, &third)[0].data,
        read_all(&log, &ids[0])[0].data
    );
}

/// The removals of one session come from several shards, so a later one may have a lower ID.
#[test]
fn a_removal_that_comes_while_a_session_is_erased_from_is_not_lost() {
    let Some(schema) = schema() else { return };
    let log = schema.open_sharded();
    let ids = schema.one_of_each(&log);
    let (parent, child) = (&ids[0], session("child"));
    append_notes(&log, parent, "shared", 2);
    let mut nth = 0;
    // A child in another shard, whose IDs are not pushed ahead below.
    let child = loop {
        nth += 1;
        let child = session(&format!("{child} {nth}"));
        log.fork(Fork::new(parent), &child).unwrap();
        let of = format!("SELECT session >> 40 FROM session WHERE name = '{child}'");
        if schema.ask(&of) != ["0"] {
            break child;
        }
        log.delete(&child, Delete::new()).unwrap();
    };
    log.compact(|_| ControlFlow::Continue(())).unwrap();
    let ahead = SystemTime::now() + Duration::from_hours(24);
    let ahead = schema.sharded().clock(move || ahead);
    let ahead = ahead.connect(&schema.url).unwrap();
    ahead.delete(parent, Delete::new()).unwrap();
    let mut looks = 0;
    log.compact(|_| {
        looks += 1;
        // The events were looked at, and kept for the child.
        if looks == 3 {
            log.delete(&child, Delete::new()).unwrap();
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(looks > 3);
    let shared = "record WHERE position('shared'::bytea in record) > 0";
    assert_eq!(schema.count(shared), 0);
    assert_eq!(schema.count("removal"), 0);
}

/// A transaction that holds the lock of a shard.
struct Held {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Held {
    fn new(schema: &Schema, shard: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let lock = format!(
            "BEGIN; SELECT FROM \"{}\".shard WHERE shard = {shard} FOR UPDATE",
            schema.name
        );
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&schema.url, tokio_postgres::NoTls)
                .await
                .unwrap();
            tokio::spawn(connection);
            client.batch_execute(&lock).await.unwrap();
            client
        });
        Self { runtime, client }
    }

    fn end(self) {
        let ended = self.client.batch_execute("ROLLBACK");
        self.runtime.block_on(ended).unwrap();
    }
}

fn take_until_silent(feed: &mut EventStream) -> Vec<Event> {
    let mut events = Vec::new();
    while let Ok(item) = feed.next_timeout(Duration::from_millis(300)) {
        events.extend(item.into_event());
    }
    events
}

/// The lists and the feed of a log stay what they are when it moves to another number of shards.
#[test]
fn a_log_moves_to_another_number_of_shards() {
    let (Some(from), Some(to)) = (schema(), schema()) else {
        return;
    };
    let log = from.open_sharded();
    let ids = from.one_of_each(&log);
    for nth in 0..30 {
        let id = session(&format!("s{nth}"));
        log.append(&id, notes("n", 3).idempotency_key("k")).unwrap();
    }
    log.fork(Fork::new(&ids[0]), &session("fork")).unwrap();
    log.trim(&session("s3"), 3).unwrap();
    log.delete(&session("s4"), Delete::new()).unwrap();
    // The other shards are far behind this one.
    let ahead = SystemTime::now() + Duration::from_hours(24);
    let ahead = from.sharded().clock(move || ahead).connect(&from.url);
    append_notes(&ahead.unwrap(), &ids[0], "far", 1);
    let events = log.stats().events;
    let mut lines = Vec::new();
    let export = from.sharded();
    export
        .export_from(&from.url, &mut lines, &Export::new(), |_| {})
        .unwrap();
    // What is appended afterwards is above all that was exported, in whatever shard.
    let end = log.stats().last_id.unwrap();
    for id in &ids {
        assert!(append_notes(&log, id, "later", 1)[0].id > end);
    }
    let import = to.options().shards(3);
    import
        .import_to(&to.url, lines.as_slice(), "the export", |_| {})
        .unwrap();
    let moved = to.open();
    assert_eq!(to.ask("SELECT shards FROM meta"), ["3"]);
    // Without those of the session that was deleted, and the two that were trimmed.
    assert_eq!(moved.stats().events + 3 + 2, events);
    for nth in 0..12 {
        let fresh = session(&format!("fresh {nth}"));
        assert!(append_notes(&moved, &fresh, "n", 1)[0].id > end);
        moved.delete(&fresh, Delete::new()).unwrap();
    }
    let before: Vec<_> = feed_all(&log)
        .into_iter()
        .filter(|event| event.id <= end)
        .collect();
    assert_eq!(feed_all(&moved), before);
    for nth in 0..30 {
        let id = session(&format!("s{nth}"));
        if nth == 4 {
            assert_error!(moved.head(&id), Error::UnknownSession { .. });
            continue;
        }
        assert_eq!(read_all(&moved, &id), read_all(&log, &id));
        if nth != 3 {
            let again = notes("n", 3).idempotency_key("k");
            assert!(moved.append(&id, again).unwrap().replayed);
        }
        let event = moved.append(&id, NewEvent::new("note", "after")).unwrap();
        assert!(event.events[0].id > end);
    }
    assert_eq!(read_all(&moved, &session("fork")).len(), 1);
    for query in [
        SessionQuery::by_id(),
        SessionQuery::by_activity(),
        SessionQuery::by_creation().reversed(),
    ] {
        let mut page = moved.sessions(query.limit(7)).unwrap();
        let mut listed = page.items.len();
        while let Some(next) = page.next_page() {
            page = moved.sessions(next).unwrap();
            listed += page.items.len();
        }
        assert_eq!(listed, ids.len().max(from.count("session") - 1));
    }
}

/// The server dies at the commit of a group. Its shard is asked for it.
#[test]
fn a_group_in_doubt_is_asked_for_in_its_shard() {
    let Some(schema) = schema() else { return };
    let log = schema.open_sharded();
    let ids = schema.one_of_each(&log);
    schema.ask(super::commits::DIES_AT_COMMIT);
    let last = ids.last().unwrap().clone();
    let ack = in_time("an append", move || {
        let ack = log.append(&last, note("doubt")).unwrap();
        assert_eq!(read_all(&log, &last).last(), Some(&ack.events[0]));
        ack
    });
    assert_eq!(ack.first, 2);
    assert_eq!(schema.ask("SELECT last_value FROM deaths"), ["2"]);
}
