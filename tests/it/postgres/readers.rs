//! Streams and feeds beside other servers that remove, and reads that lose their connection.

use std::ops::ControlFlow;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sessionlog::{Delete, Fork, RecvTimeout, StartAt, StreamItem};

use super::proxy::{Fault, Proxy};
use super::schema;
use super::shards::wakes;
use crate::support::{DEADLINE, append_notes, eventually, in_time, session, take_events};

/// What was read ahead does not outlive a removal by another server for long. A feed that replays
/// waits for nothing, and is told all the same.
#[test]
fn what_another_server_removes_no_feed_goes_on_showing() {
    let Some(schema) = schema() else { return };
    let (one, two) = (schema.open(), schema.open());
    let id = session("s");
    let events = append_notes(&one, &id, "secret", 10);
    // Of each, one event is taken, and the rest is read ahead. Each is looked at once.
    let mut feeds: Vec<_> = (0..100).map(|_| two.feed().unwrap()).collect();
    for feed in &mut feeds {
        take_events(feed, 1);
    }
    one.redact(events[5].id, "it is a secret").unwrap();
    one.trim(&id, 5).unwrap();
    eventually("feeds hide what was removed", || {
        thread::park_timeout(Duration::from_millis(100));
        let feed = feeds.pop().expect("it takes less than all");
        let rest: Vec<_> = feed.until_tail().events().map(Result::unwrap).collect();
        rest.len() == 6 && rest[1].redacted
    });
}

#[test]
fn a_feed_waits_at_an_end_that_was_erased() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let (parent, child) = (session("parent"), session("child"));
    let events = append_notes(&log, &parent, "n", 2);
    log.fork(Fork::new(&parent), &child).unwrap();
    log.delete(&parent, Delete::new()).unwrap();
    // Of a session that is gone no change is kept, and this one is the newest of all.
    log.redact(events[0].id, "it is a secret").unwrap();
    log.compact(|_| ControlFlow::Continue(())).unwrap();
    let newest = "SELECT max(last_id::text) < (SELECT max(last_id::text) FROM shard) FROM record";
    assert_eq!(schema.ask(newest), ["t"]);
    let mut feed = log.feed().unwrap();
    let (told, mut feed) = in_time("a wait for the next event", move || {
        loop {
            match feed.next_timeout(Duration::from_millis(300)) {
                Ok(_) => {}
                Err(why) => return (why, feed),
            }
        }
    });
    assert!(matches!(told, RecvTimeout::Elapsed), "{told:?}");
    let next = append_notes(&log, &child, "next", 1);
    assert_eq!(take_events(&mut feed, 1), next);
}

/// Each server looks for news by itself, too.
#[test]
fn news_come_also_if_the_bell_for_them_is_lost() {
    let Some(schema) = schema() else { return };
    let proxy = Proxy::new(&schema.url);
    let url = proxy.url(&schema.url);
    let (one, two) = (schema.options().connect(&url).unwrap(), schema.open());
    let id = session("s");
    let before = append_notes(&one, &id, "before", 1);
    let mut stream = two.stream(&id, StartAt::Beginning).unwrap();
    let mut feed = two.feed().unwrap();
    assert_eq!(take_events(&mut stream, 1), before);
    assert_eq!(take_events(&mut feed, 1), before);
    // Bells for what was before may come late, and find the first.
    proxy.set(Fault::Lost("NOTIFY"));
    for _ in 0..3 {
        wakes(&mut [&mut stream, &mut feed], || {
            append_notes(&one, &id, "news", 1)
        });
    }
}

/// Nobody reads for a stream while there is nothing to read from.
#[test]
fn a_stream_that_waits_hears_nothing_of_an_outage() {
    let Some(schema) = schema() else { return };
    let proxy = Proxy::new(&schema.url);
    let options = schema.options().stall_wait(Duration::from_millis(300));
    let (log, beside) = (
        options.connect(&proxy.url(&schema.url)).unwrap(),
        schema.open(),
    );
    let id = session("s");
    let before = append_notes(&beside, &id, "before", 1);
    let stream = log.stream(&id, StartAt::Beginning).unwrap();
    let (tell, told) = mpsc::channel();
    let follower = thread::spawn(move || {
        for item in stream {
            // Nobody listens any more once the test is over.
            if tell.send(item).is_err() {
                return;
            }
        }
    });
    let next = || told.recv_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!(next().into_event(), before.first().cloned());
    assert!(matches!(next(), StreamItem::CaughtUp));
    // It looks once more before it waits.
    thread::park_timeout(Duration::from_millis(500));
    proxy.set(Fault::Away);
    eventually("the one that listens has often tried again", || {
        proxy.lost() > 40
    });
    let meanwhile = told.try_recv();
    assert!(meanwhile.is_err(), "{meanwhile:?}");
    proxy.set(Fault::None);
    let after = append_notes(&beside, &id, "after", 1);
    assert_eq!(next().into_event(), after.first().cloned());
    drop(told);
    log.close().unwrap();
    follower.join().unwrap();
}
