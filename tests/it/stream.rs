//! Streams: replay, then live, without a gap and without a duplicate, until the log closes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_core::Stream;
use sessionlog::{
    AsyncEventStream, Cursor, Error, Event, EventStream, RecvTimeout, Seq, SessionId, SessionLog,
    StartAt, StreamItem,
};

use crate::support::{
    DEADLINE, OpenIn, SILENCE, append_notes, assert_dense, assert_error, block_on, drain,
    eventually, feed_all, folder, in_time, next_item, notes, on_postgres, on_tokio, open, read_all,
    seal_once, session, small_files, take_events, take_events_async, threads,
};

fn next(stream: &mut EventStream) -> StreamItem {
    stream.next_timeout(DEADLINE).expect("an item")
}

/// Fails unless the stream reports once that it has caught up, and then nothing.
fn check_caught_up(stream: &mut EventStream) {
    assert_eq!(next(stream), StreamItem::CaughtUp);
    check_silent(stream);
}

fn check_silent(stream: &mut EventStream) {
    match stream.next_timeout(SILENCE) {
        Err(RecvTimeout::Elapsed) => assert!(!stream.is_ended()),
        other => panic!("the stream gave {other:?}"),
    }
}

#[test]
fn a_stream_replays_says_that_it_caught_up_and_goes_on_live() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let before = append_notes(&log, &id, "before", 10);
    let mut stream = log.stream(&id, StartAt::Beginning).unwrap();
    for event in &before {
        assert_eq!(next(&mut stream), StreamItem::Event(event.clone()));
    }
    check_caught_up(&mut stream);
    for round in 0..3 {
        append_notes(&log, &session("other"), "elsewhere", 1);
        check_silent(&mut stream);
        for event in log
            .append(&id, notes(&round.to_string(), 3))
            .unwrap()
            .events
        {
            assert_eq!(next(&mut stream), StreamItem::Event(event));
        }
        check_caught_up(&mut stream);
    }
}

/// Fails unless a stream from here gives the existing events after `after`, and then the next one.
fn check_from(log: &SessionLog, session: &SessionId, from: StartAt, after: Seq) {
    let mut stream = log.stream(session, from).unwrap();
    let tail = log.head(session).unwrap().last;
    let next = append_notes(log, session, "next", 1);
    let events = take_events(&mut stream, usize::try_from(tail - after).unwrap() + 1);
    assert_dense(&events, after + 1..=tail + 1);
    assert_eq!(events.last(), next.last());
}

#[test]
fn a_stream_begins_where_it_was_asked_to() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let events = append_notes(&log, &id, "before", 5);
    check_from(&log, &id, StartAt::Beginning, 0);
    check_from(&log, &id, StartAt::Creation, 0);
    for after in [0, 1, 4, 5] {
        check_from(&log, &id, StartAt::After(Cursor::Seq(after)), after);
    }
    for event in &events {
        check_from(
            &log,
            &id,
            StartAt::After(Cursor::Event(event.id)),
            event.seq,
        );
    }
    let tail = log.head(&id).unwrap();
    check_from(
        &log,
        &id,
        StartAt::After(tail.last_id.unwrap().into()),
        tail.last,
    );
    check_from(&log, &id, StartAt::Now, tail.last + 1);
}

#[test]
fn a_stream_from_creation_waits_for_the_first_append() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    assert_error!(
        log.stream(&id, StartAt::Beginning),
        Error::UnknownSession { session } if *session == id
    );
    let mut streams: Vec<_> = (0..3)
        .map(|_| log.stream(&id, StartAt::Creation).unwrap())
        .collect();
    append_notes(&log, &session("other"), "elsewhere", 1);
    let events = log.append(&id, notes("n", 2)).unwrap().events;
    for stream in &mut streams {
        assert_eq!(take_events(stream, 2), events);
    }
}

#[test]
fn a_stream_until_the_tail_ends_there() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let before = append_notes(&log, &id, "before", 5);
    let starts = [
        (StartAt::Beginning, 0),
        (StartAt::After(Cursor::Seq(3)), 3),
        (StartAt::After(Cursor::Seq(5)), 5),
        (StartAt::Now, 5),
    ];
    for (from, after) in starts {
        let mut stream = log.stream(&id, from).unwrap().until_tail();
        append_notes(&log, &session("other"), "elsewhere", 1);
        assert_eq!(drain(&mut stream), before[after..]);
        assert!(stream.next().is_none());
    }
    let stream = log.stream(&id, StartAt::Beginning).unwrap().until_tail();
    let mut late = log.stream(&id, StartAt::Beginning).unwrap();
    let after = append_notes(&log, &id, "after", 1);
    assert_eq!(take_events(&mut late, 6).last(), after.last());
    assert!(
        late.until_tail().events().next().is_none(),
        "it goes on, though it is beyond the tail that it was opened at"
    );
    let events: Vec<_> = stream.events().map(Result::unwrap).collect();
    assert_eq!(events, before);
    assert_eq!(
        drain(
            &mut log
                .stream(&id, StartAt::After(Cursor::Seq(5)))
                .unwrap()
                .until_tail()
        ),
        after
    );
}

#[test]
fn streams_are_gapless_under_concurrent_writers() {
    const WRITERS: usize = 4;
    const BATCHES: usize = 50;
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "first", 1);
    let tail = (1 + WRITERS * BATCHES * 2) as Seq;
    let read_to_tail = |from: StartAt| {
        let mut stream = log.stream(&id, from).unwrap();
        let mut events: Vec<Event> = Vec::new();
        while events.last().is_none_or(|event| event.seq < tail) {
            events.extend(next(&mut stream).into_event());
        }
        events
    };
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (log, id) = (&log, &id);
            scope.spawn(move || {
                (0..BATCHES).for_each(|n| {
                    drop(log.append(id, notes(&format!("{writer}.{n}"), 2)).unwrap());
                });
            });
        }
        let readers: Vec<_> = [
            StartAt::Beginning,
            StartAt::Creation,
            StartAt::After(Cursor::Seq(1)),
            StartAt::Beginning,
        ]
        .map(|from| scope.spawn(move || read_to_tail(from)))
        .into_iter()
        .collect();
        let late: Vec<_> = (0..20)
            .map(|_| log.head(&id).unwrap().last.min(tail - 1))
            .map(|after| (after, read_to_tail(StartAt::After(Cursor::Seq(after)))))
            .collect();
        for reader in readers {
            let events = reader.join().unwrap();
            assert_dense(&events, events[0].seq..=tail);
            assert!(events[0].seq <= 2);
        }
        for (after, events) in late {
            assert_dense(&events, after + 1..=tail);
        }
    });
    assert_eq!(read_to_tail(StartAt::Beginning), read_all(&log, &id));
}

#[test]
fn a_stream_from_now_gives_every_append_that_began_after_it() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "first", 1);
    thread::scope(|scope| {
        scope.spawn(|| append_notes(&log, &id, "meanwhile", 200));
        for round in 0..20 {
            let mut stream = log.stream(&id, StartAt::Now).unwrap();
            let wanted = log
                .append(&id, notes(&format!("mine{round}"), 1))
                .unwrap()
                .events
                .remove(0);
            let mut last = None;
            while last.as_ref() != Some(&wanted) {
                let event = take_events(&mut stream, 1).remove(0);
                assert!(event.seq <= wanted.seq, "{wanted:?} was left out");
                assert!(
                    last.is_none_or(|last: Event| last.seq + 1 == event.seq),
                    "a gap before {event:?}"
                );
                last = Some(event);
            }
        }
    });
}

#[test]
fn a_stream_that_lags_behind_sealing_misses_nothing() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let (id, filler) = (session("s"), session("filler"));
    let mut all = append_notes(&log, &id, "before", 5);
    let mut by_one = log.stream(&id, StartAt::Beginning).unwrap();
    let mut untouched = log.stream(&id, StartAt::Beginning).unwrap();
    let mut feed = log.feed().unwrap();
    assert_eq!(take_events(&mut by_one, 1), all[..1]);
    assert_eq!(take_events(&mut feed, 1), all[..1]);
    for round in 0..3 {
        seal_once(&log, &filler);
        all.extend(append_notes(&log, &id, &round.to_string(), 5));
        let at = 1 + round * 4;
        assert_eq!(take_events(&mut by_one, 4), all[at..at + 4]);
    }
    all.extend(seal_once(&log, &id));
    assert_eq!(take_events(&mut by_one, all.len() - 13), all[13..]);
    assert_eq!(take_events(&mut untouched, all.len()), all);
    let rest = feed_all(&log).split_off(1);
    assert_eq!(take_events(&mut feed, rest.len()), rest);
    let live = append_notes(&log, &id, "live", 1);
    for stream in [&mut by_one, &mut untouched, &mut feed] {
        assert_eq!(take_events(stream, 1), live);
    }
}

#[test]
fn a_reader_that_stops_reading_stops_no_writer() {
    let dir = folder();
    let log = small_files()
        .group_bytes_max(64 * 1024)
        .open_in(&dir)
        .unwrap();
    let id = session("s");
    let mut all = append_notes(&log, &id, "first", 1);
    let mut stalled: Vec<_> = (0..8)
        .map(|_| log.stream(&id, StartAt::Beginning).unwrap())
        .collect();
    let mut feed = log.feed().unwrap();
    for stream in stalled.iter_mut().step_by(2) {
        assert_eq!(next(stream), StreamItem::Event(all[0].clone()));
    }
    all.extend(append_notes(&log, &id, "n", 500));
    all.extend(seal_once(&log, &id));
    all.extend(append_notes(&log, &id, "m", 500));
    for (n, stream) in stalled.iter_mut().enumerate() {
        let from = usize::from(n % 2 == 0);
        assert_eq!(take_events(stream, all.len() - from), all[from..]);
    }
    assert_eq!(take_events(&mut feed, all.len()), all);
}

/// Blocks in `next` on one thread while `end` is called on another, after which every stream must
/// have ended.
fn check_ends(end: impl FnOnce(SessionLog) + Send + 'static) {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "n", 3);
    let streams = [
        log.stream(&id, StartAt::Beginning).unwrap(),
        log.stream(&id, StartAt::Now).unwrap(),
        log.stream(&session("not yet"), StartAt::Creation).unwrap(),
        log.feed().unwrap(),
    ];
    let blocked: Vec<_> = streams
        .map(|stream| thread::spawn(move || stream.map(Result::unwrap).count()))
        .into_iter()
        .collect();
    let mut unread = log.stream(&id, StartAt::Now).unwrap();
    let mut caught_up = log.stream(&id, StartAt::Beginning).unwrap();
    take_events(&mut caught_up, 3);
    check_caught_up(&mut caught_up);
    end(log);
    in_time("a stream of a log that ended", move || {
        for thread in blocked {
            thread.join().unwrap();
        }
    });
    for stream in [&mut unread, &mut caught_up] {
        assert_eq!(drain(stream), []);
        assert!(stream.next().is_none());
        assert!(stream.is_ended());
    }
}

#[test]
fn a_stream_ends_when_the_log_closes() {
    check_ends(|log| log.close().unwrap());
}

#[test]
fn a_stream_ends_when_the_last_handle_is_dropped() {
    check_ends(drop);
}

#[test]
fn a_clone_of_the_handle_keeps_streams_alive() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "n", 1);
    let mut stream = log.stream(&id, StartAt::Now).unwrap();
    let clone = log.clone();
    drop(log);
    let events = append_notes(&clone, &id, "m", 1);
    assert_eq!(take_events(&mut stream, 1), events);
}

#[test]
fn a_closed_log_gives_no_stream() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "n", 1);
    log.close().unwrap();
    for from in [
        StartAt::Beginning,
        StartAt::Now,
        StartAt::Creation,
        StartAt::After(Cursor::Seq(1)),
    ] {
        assert_error!(log.stream(&id, from), Error::Closed);
    }
    assert_error!(log.feed(), Error::Closed);
}

#[test]
fn thousands_of_idle_streams_hold_no_thread_and_all_wake() {
    const SESSIONS: usize = 100;
    const EACH: usize = 40;
    let dir = folder();
    let log = open(&dir);
    let sessions: Vec<_> = (0..SESSIONS).map(|n| session(&format!("s{n}"))).collect();
    let before = threads();
    let stream = |id: &SessionId| log.stream(id, StartAt::Creation).unwrap();
    let mut blocking: Vec<_> = (0..SESSIONS * EACH / 2)
        .map(|n| stream(&sessions[n % SESSIONS]))
        .collect();
    let mut polled: Vec<_> = (0..SESSIONS * EACH / 2)
        .map(|n| stream(&sessions[n % SESSIONS]).into_async())
        .collect();
    // Other tests run in parallel and have threads of their own, but fewer than there are streams.
    let grown = threads().saturating_sub(before);
    assert!(
        grown < SESSIONS * EACH / 20,
        "{grown} more threads for {} streams",
        SESSIONS * EACH
    );

    let events: Vec<_> = sessions
        .iter()
        .map(|id| append_notes(&log, id, "n", 1))
        .collect();
    for (n, stream) in blocking.iter_mut().enumerate() {
        assert_eq!(take_events(stream, 1), events[n % SESSIONS]);
    }
    for (n, stream) in polled.iter_mut().enumerate() {
        let came = block_on(take_events_async(stream, 1));
        assert_eq!(came, events[n % SESSIONS]);
    }
    drop((blocking, polled));
    let events = append_notes(&log, &sessions[0], "after", 1);
    assert_eq!(read_all(&log, &sessions[0]).last(), events.last());
}

#[test]
fn an_async_stream_replays_wakes_for_what_comes_and_ends() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let before = append_notes(&log, &id, "before", 3);
    let (log, mut after) = on_tokio(async move {
        let mut stream = log.stream(&id, StartAt::Beginning).unwrap().into_async();
        assert_eq!(take_events_async(&mut stream, 3).await, before);
        assert!(matches!(
            next_item(&mut stream).await,
            Some(Ok(StreamItem::CaughtUp))
        ));
        let reader =
            tokio::spawn(async move { (take_events_async(&mut stream, 20).await, stream) });
        let mut live = Vec::new();
        for n in 0..10 {
            live.extend(
                log.append_async(&id, notes(&n.to_string(), 2))
                    .await
                    .unwrap()
                    .events,
            );
        }
        let (events, stream) = reader.await.unwrap();
        assert_eq!(events, live);
        (log, stream)
    });
    on_tokio(async move {
        let reader = tokio::spawn(async move {
            while let Some(item) = next_item(&mut after).await {
                assert_eq!(item.unwrap(), StreamItem::CaughtUp);
            }
        });
        log.close().unwrap();
        reader.await.unwrap();
    });
}

/// Counts how often it was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

/// How long a read over a network may take.
const READ: Duration = Duration::from_millis(500);

impl Wakes {
    fn comes_within(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while self.0.load(Ordering::SeqCst) == 0 {
            if Instant::now() > deadline {
                return false;
            }
            thread::yield_now();
        }
        true
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Polls until the stream waits, and returns the events before that.
fn poll_until_pending(stream: &mut AsyncEventStream, wakes: &Arc<Wakes>) -> Vec<Event> {
    let counted = Waker::from(Arc::clone(wakes));
    let mut events = Vec::new();
    loop {
        while let Poll::Ready(item) =
            Pin::new(&mut *stream).poll_next(&mut Context::from_waker(&counted))
        {
            events.extend(item.expect("a stream that goes on").unwrap().into_event());
        }
        // Over a network it is woken when it has read, and then looks again.
        if !on_postgres() || !wakes.comes_within(READ) {
            return events;
        }
        wakes.0.store(0, Ordering::SeqCst);
    }
}

#[test]
fn a_waiting_async_stream_is_woken_by_its_own_events_and_by_nothing_else() {
    let dir = folder();
    let log = open(&dir);
    let (id, other) = (session("s"), session("other"));
    append_notes(&log, &id, "before", 2);
    let stream = |from| {
        (
            log.stream(&id, from).unwrap().into_async(),
            Arc::new(Wakes::default()),
        )
    };
    let mut streams = [stream(StartAt::Beginning), stream(StartAt::Now)];
    for (stream, wakes) in &mut streams {
        poll_until_pending(stream, wakes);
    }
    for round in 0..5 {
        append_notes(&log, &other, "elsewhere", 3);
        let woken = |streams: &[(_, Arc<Wakes>)]| {
            [0, 1].map(|n: usize| streams[n].1.0.swap(0, Ordering::SeqCst) > 0)
        };
        // A new connection to PostgreSQL wakes all, since what came before it is not known.
        assert!(
            on_postgres() || woken(&streams) == [false, false],
            "an append to another session woke a stream"
        );
        let events = append_notes(&log, &id, &round.to_string(), 1);
        for (stream, wakes) in &mut streams {
            eventually("a wake", || wakes.0.load(Ordering::SeqCst) > 0);
            assert_eq!(poll_until_pending(stream, wakes), events);
            wakes.0.store(0, Ordering::SeqCst);
        }
    }
    log.close().unwrap();
    for (stream, wakes) in &mut streams {
        eventually("a wake", || wakes.0.load(Ordering::SeqCst) > 0);
        assert!(block_on(next_item(stream)).is_none());
    }
}

#[test]
fn a_stream_that_changes_its_task_wakes_the_new_one() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "before", 1);
    let mut stream = log.stream(&id, StartAt::Now).unwrap().into_async();
    let (old, new) = (Arc::default(), Arc::default());
    poll_until_pending(&mut stream, &old);
    poll_until_pending(&mut stream, &new);
    let events = append_notes(&log, &id, "live", 1);
    eventually("a wake", || new.0.load(Ordering::SeqCst) > 0);
    assert_eq!(poll_until_pending(&mut stream, &new), events);
}

#[test]
fn a_stream_that_waits_for_no_time_gives_what_is_there() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let events = append_notes(&log, &id, "n", 3);
    let mut stream = log.stream(&id, StartAt::Beginning).unwrap();
    let items: Vec<_> = std::iter::from_fn(|| stream.next_timeout(Duration::ZERO).ok()).collect();
    let expected: Vec<_> = events
        .into_iter()
        .map(StreamItem::Event)
        .chain([StreamItem::CaughtUp])
        .collect();
    assert_eq!(items, expected);
    assert!(!stream.is_ended());
}

#[test]
fn a_stream_goes_on_as_async_where_it_was_as_an_iterator() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let events = append_notes(&log, &id, "n", 10);
    let mut stream = log.stream(&id, StartAt::Beginning).unwrap();
    assert_eq!(take_events(&mut stream, 4), events[..4]);
    assert_eq!(
        block_on(take_events_async(&mut stream.into_async(), 6)),
        events[4..]
    );

    let mut waiting = log.stream(&id, StartAt::Now).unwrap();
    check_caught_up(&mut waiting);
    let mut waiting = waiting.into_async();
    let wakes = Arc::default();
    assert_eq!(poll_until_pending(&mut waiting, &wakes), []);
    let live = append_notes(&log, &id, "live", 1);
    eventually("a wake", || wakes.0.load(Ordering::SeqCst) > 0);
    assert_eq!(poll_until_pending(&mut waiting, &wakes), live);
}
