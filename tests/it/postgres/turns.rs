//! Servers that append to one shard in turns. Each of them remembers what it left, and has to see
//! what the other did since.

use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use sessionlog::{Delete, Error, Expected, Fork, SessionLog};

use super::schema;
use crate::support::{
    append_notes, assert_dense, assert_error, assert_rising, feed_all, notes, read_all, seqs,
    session,
};

#[test]
fn servers_that_take_turns_append_as_one() {
    let Some(schema) = schema() else { return };
    let servers = [schema.open(), schema.open()];
    let (id, other) = (session("s"), session("other"));
    let keyed = |log: &SessionLog, nth: u64| {
        let batch = notes(&format!("keyed.{nth}"), 1);
        log.append(&id, batch.idempotency_key(format!("k{nth}")))
    };
    let mut last = 0;
    // So many groups in a row that the next ones take one flight, also after one that failed.
    for turn in 0..12 {
        let log = &servers[turn % 2];
        for _group in 0..=(turn % 4) {
            append_notes(log, &other, "n", 1);
            let expected = notes("n", 1).expected(Expected::Seq(last));
            last = log.append(&id, expected).unwrap().last;
            let ack = keyed(log, last).unwrap();
            assert!(!ack.replayed);
            last = ack.last;
        }
        let log = &servers[(turn + 1) % 2];
        // What the other server has used is used.
        assert!(keyed(log, last - 1).unwrap().replayed);
        assert!(keyed(log, last - 1).unwrap().replayed);
        let stale = notes("n", 1).expected(Expected::Seq(last - 1));
        assert_error!(
            log.append(&id, stale),
            Error::ExpectedMismatch { actual, .. } if *actual == last
        );
    }
    let all = read_all(&servers[0], &id);
    assert_dense(&all, 1..=last);
    assert_eq!(read_all(&servers[1], &id), all);
}

/// All of these change what the next append is decided by.
#[test]
fn what_another_server_changes_counts_for_the_next_append() {
    let Some(schema) = schema() else { return };
    let (one, two) = (schema.open(), schema.open());
    let id = session("s");
    let keyed = |log: &SessionLog| log.append(&id, notes("keyed", 1).idempotency_key("k"));
    assert_eq!(keyed(&one).unwrap().first, 1);
    append_notes(&one, &id, "n", 2);
    two.trim(&id, 3).unwrap();
    // Its row is still there, and then it is gone.
    assert_eq!(keyed(&one).unwrap().first, 4);
    two.trim(&id, 5).unwrap();
    two.compact(|_progress| ControlFlow::Continue(())).unwrap();
    assert_eq!(keyed(&one).unwrap().first, 5);
    assert!(keyed(&one).unwrap().replayed);
    two.close_session(&id).unwrap();
    assert_error!(
        one.append(&id, notes("n", 1)),
        Error::SessionClosed { last: 5, .. }
    );
    two.reopen(&id).unwrap();
    append_notes(&one, &id, "n", 1);
    two.delete(&id, Delete::new()).unwrap();
    let first = one.append(&id, notes("n", 1)).unwrap().first;
    let fork = session("fork");
    two.fork(Fork::new(&id), &fork).unwrap();
    append_notes(&one, &id, "n", 1);
    append_notes(&one, &fork, "n", 1);
    for id in [&id, &fork] {
        assert_eq!(seqs(&read_all(&two, id)), [first, first + 1]);
    }
}

/// The next ID is above all that were given, also by a server whose clock is ahead.
#[test]
fn ids_rise_over_servers_whose_clocks_differ() {
    let Some(schema) = schema() else { return };
    let ahead = || SystemTime::now() + Duration::from_hours(1);
    let (one, two) = (schema.open(), schema.options().clock(ahead));
    let two = two.connect(&schema.url).unwrap();
    let mut events = Vec::new();
    for turn in 0..4 {
        for _group in 0..=turn {
            events.extend(append_notes(&one, &session("a"), "n", 1));
        }
        events.extend(append_notes(&two, &session("b"), "n", 1));
    }
    assert_rising(&events);
    assert_eq!(feed_all(&two), events);
}
