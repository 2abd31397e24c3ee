//! Groups in doubt, groups with a batch that cannot be stored, and outages.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, SystemTime};

use sessionlog::{Delete, Error};

use super::proxy::{Fault, Proxy};
use super::{Schema, schema};
use crate::support::{
    Over, append_notes, assert_dense, assert_error, eventually, in_time, note, notes, read_all,
    session,
};

/// A backend that dies once when it commits a record with the word `doubt`.
pub(super) const DIES_AT_COMMIT: &str = "CREATE SEQUENCE deaths; \
    CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    IF position('doubt'::bytea IN NEW.record) > 0 AND nextval('deaths') = 1 THEN \
    PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); END IF; \
    RETURN NULL; END $$; \
    CREATE CONSTRAINT TRIGGER die AFTER INSERT ON record DEFERRABLE INITIALLY DEFERRED \
    FOR EACH ROW EXECUTE FUNCTION die()";

impl Schema {
    fn lock_shard_for_a_second(&self) {
        self.ask("BEGIN; SELECT 1 FROM shard FOR UPDATE; SELECT pg_sleep(1); ROLLBACK");
    }

    fn await_lock(&self) {
        eventually("the shard is locked", || {
            let free = "SELECT count(*) FROM (SELECT FROM shard FOR UPDATE SKIP LOCKED) s";
            self.ask(free) == ["0"]
        });
    }
}

/// The clocks stand still, so the IDs of both servers count on from the same one.
#[test]
fn a_group_in_doubt_is_not_taken_for_one_of_another_server() {
    let Some(schema) = schema() else { return };
    let now = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
    let open = || {
        let wait = Duration::from_mins(1);
        let options = schema.options().clock(move || now).stall_wait(wait);
        options.connect(&schema.url).unwrap()
    };
    let (one, two) = (open(), open());
    append_notes(&one, &session("before"), "n", 1);
    schema.ask(DIES_AT_COMMIT);
    let done = AtomicBool::new(false);
    let ack = thread::scope(|scope| {
        let over = Over(&done);
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                append_notes(&two, &session("two"), "n", 1);
            }
        });
        let ack = one.append(&session("one"), note("doubt"));
        drop(over);
        ack.unwrap()
    });
    assert_eq!(schema.ask("SELECT last_value FROM deaths"), ["2"]);
    assert_eq!(read_all(&two, &session("one")), ack.events);
    let id = ack.events[0].id;
    assert_eq!(two.event(id).unwrap(), ack.events[0]);
}

/// A pooler gives such an error to the first request, whatever the server did.
#[test]
fn an_error_that_ends_a_connection_says_nothing_of_a_commit() {
    let Some(schema) = schema() else { return };
    let proxy = Proxy::new(&schema.url);
    let options = schema.options().stall_wait(Duration::from_mins(1));
    let log = options.connect(&proxy.url(&schema.url)).unwrap();
    let id = session("s");
    let mut all = append_notes(&log, &id, "before", 1);
    proxy.set(Fault::Verdict("doubt"));
    all.extend(log.append(&id, note("doubt")).unwrap().events);
    assert_eq!(proxy.lost(), 1);
    assert_eq!(read_all(&log, &id), all);
}

/// The row of the first batch is still there, and is not in the way.
#[test]
fn the_key_of_a_trimmed_batch_can_be_used_again() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let id = session("s");
    let keyed = |tag: &str| log.append(&id, notes(tag, 1).idempotency_key("k"));
    keyed("first").unwrap();
    append_notes(&log, &id, "between", 3);
    log.trim(&id, 3).unwrap();
    let again = keyed("again").unwrap();
    assert!(!again.replayed);
    assert_eq!(again.first, 5);
    assert!(keyed("again").unwrap().replayed);
    assert_error!(
        keyed("other"),
        Error::IdempotencyConflict { first_seq: 5, .. }
    );
    // The same of a key of a generation before.
    log.delete(&id, Delete::new()).unwrap();
    assert!(!keyed("fresh").unwrap().replayed);
    assert!(keyed("fresh").unwrap().replayed);
}

/// A task that was dropped while it waits for room leaves nothing behind.
#[test]
fn no_more_waits_for_its_turn_than_a_few_groups() {
    let Some(schema) = schema() else { return };
    let options = schema.options().stall_wait(Duration::from_mins(1));
    let log = options
        .group_bytes_max(64 * 1024)
        .connect(&schema.url)
        .unwrap();
    append_notes(&log, &session("before"), "n", 1);
    let id = session("s");
    thread::scope(|scope| {
        scope.spawn(|| schema.lock_shard_for_a_second());
        schema.await_lock();
        let context = &mut Context::from_waker(Waker::noop());
        for _ in 0..200 {
            let append = pin!(log.append_async(&id, note("x".repeat(16 * 1024))));
            assert!(append.poll(context).is_pending());
        }
    });
    append_notes(&log, &id, "after", 1);
    let landed = read_all(&log, &id).len();
    assert!((1..40).contains(&landed), "{landed} of 200");
}

#[test]
fn health_tells_that_no_commit_can_land() {
    let Some(schema) = schema() else { return };
    let proxy = Proxy::new(&schema.url);
    let log = schema.options().connect(&proxy.url(&schema.url)).unwrap();
    log.health().unwrap();
    proxy.set(Fault::Silent);
    let (log, told) = in_time("health", move || {
        let told = log.health();
        (log, told)
    });
    assert_error!(told, Error::Stalled { .. });
    proxy.set(Fault::None);
    eventually("health comes back", || log.health().is_ok());
}

/// Those who share a group with it are not told of its error.
#[test]
fn a_batch_that_cannot_be_stored_fails_alone() {
    let Some(schema) = schema() else { return };
    let log = schema
        .options()
        .stall_wait(Duration::from_mins(1))
        .connect(&schema.url)
        .unwrap();
    let id = session("s");
    append_notes(&log, &id, "before", 1);
    schema.ask(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF position('poison'::bytea IN NEW.record) > 0 THEN \
         RAISE 'not this one' USING ERRCODE = '22023'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON record \
         FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let told: Vec<_> = thread::scope(|scope| {
        // While the shard is locked, all that comes forms one group behind the first.
        scope.spawn(|| schema.lock_shard_for_a_second());
        schema.await_lock();
        let appends: Vec<_> = (0..9)
            .map(|nth| {
                let data = if nth == 4 {
                    "poison".to_owned()
                } else {
                    format!("{nth}")
                };
                let (log, id) = (&log, &id);
                scope.spawn(move || log.append(id, note(data)))
            })
            .collect();
        appends
            .into_iter()
            .map(|append| append.join().unwrap())
            .collect()
    });
    for (nth, told) in told.into_iter().enumerate() {
        if nth == 4 {
            assert_error!(told, Error::Refused { .. });
        } else {
            assert_eq!(told.unwrap().events.len(), 1, "the {nth}th");
        }
    }
    let all = read_all(&log, &id);
    assert_dense(&all, 1..=9);
    assert!(all.iter().all(|event| *event.data != b"poison"[..]));
    // What lasts is told at once, also to one that is alone.
    assert_error!(log.append(&id, note("poison")), Error::Refused { .. });
}

#[test]
fn appends_come_back_after_an_outage_longer_than_they_wait() {
    let Some(schema) = schema() else { return };
    let proxy = Proxy::new(&schema.url);
    let options = schema.options().stall_wait(Duration::from_millis(300));
    let log = options.connect(&proxy.url(&schema.url)).unwrap();
    append_notes(&log, &session("s"), "before", 1);
    let [landed, failed] = [(), ()].map(|()| Arc::new(AtomicU64::new(0)));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // They come at their own pace, whatever becomes of those before.
    runtime.spawn({
        let (log, landed, failed) = (log.clone(), Arc::clone(&landed), Arc::clone(&failed));
        async move {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            for nth in 0_u64.. {
                tick.tick().await;
                let (log, landed, failed) = (log.clone(), Arc::clone(&landed), Arc::clone(&failed));
                tokio::spawn(async move {
                    let id = session(&format!("s{}", nth % 50));
                    let appended = log.append_async(&id, note(format!("{nth}"))).await;
                    let count = if appended.is_ok() { landed } else { failed };
                    count.fetch_add(1, Ordering::SeqCst);
                });
            }
        }
    });
    let count = |of: &AtomicU64| of.load(Ordering::SeqCst);
    eventually("appends land", || count(&landed) > 10);
    proxy.set(Fault::Away);
    let before = count(&failed);
    eventually("appends fail", || count(&failed) > before + 200);
    proxy.set(Fault::None);
    let before = count(&landed);
    eventually("appends land again", || count(&landed) > before + 10);
    runtime.shutdown_background();
}

/// The connections stay, and nothing comes over them.
#[test]
fn a_primary_that_hangs_is_not_waited_for_longer_than_said() {
    let Some(schema) = schema() else { return };
    let proxy = Proxy::new(&schema.url);
    let options = schema.options().stall_wait(Duration::from_secs(1));
    let log = options.connect(&proxy.url(&schema.url)).unwrap();
    let id = session("s");
    append_notes(&log, &id, "before", 1);
    // A connection that reads is there too.
    log.head(&id).unwrap();
    proxy.set(Fault::Silent);
    let (log, told) = in_time("an append and a read", move || {
        let append = log.append(&session("s"), note("n"));
        let read = log.head(&session("s"));
        (log, (append, read))
    });
    assert_error!(told.0, Error::Stalled { .. } | Error::Unconfirmed { .. });
    assert_error!(told.1, Error::Io { .. });
    proxy.set(Fault::None);
    eventually("appends land again", || log.append(&id, note("n")).is_ok());
}
