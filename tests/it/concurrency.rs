//! Many writers, readers and streams at once, and a close in the middle of it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use sessionlog::{
    Ack, Error, Event, EventId, NewEvent, Options, PageRequest, Result, Seq, SessionId, SessionLog,
    SessionQuery, StartAt,
};

use crate::support::{
    ListIds, OpenIn, Over, assert_ack_fits, assert_dense, assert_rising, block_on, drain,
    eventually, eventually_in_files, feed_all, folder, in_time, notes, of_session, on_tokio, open,
    poll_once, read_all, segments, session, small_files, take_events, threads,
};

const WRITERS: usize = 16;
const BATCHES: usize = 40;

/// The greatest ID that any writer was given.
struct Acked(Mutex<EventId>);

impl Acked {
    fn new() -> Self {
        Self(Mutex::new(EventId::from_u128(0)))
    }

    /// Appends, and fails unless the ack's IDs are greater than all that were acknowledged before
    /// the call.
    fn append(&self, append: impl FnOnce() -> Result<Ack>) -> Ack {
        let before = *self.0.lock().unwrap();
        let ack = append().unwrap();
        assert!(
            ack.events[0].id > before,
            "{ack:?} was acknowledged after {before}"
        );
        let mut newest = self.0.lock().unwrap();
        *newest = (*newest).max(ack.events.last().unwrap().id);
        ack
    }
}

/// Reads an acknowledged batch in every way there is.
fn check_readable(log: &SessionLog, ack: &Ack) {
    let id = &ack.events[0].session_id;
    assert!(log.head(id).unwrap().last >= ack.last);
    let page = PageRequest::new()
        .after(ack.first - 1)
        .limit(ack.events.len());
    assert_eq!(log.list(id, page).unwrap().items, ack.events);
    assert_eq!(log.event(ack.events[0].id).unwrap(), ack.events[0]);
    let mut stream = log
        .stream(id, StartAt::After((ack.first - 1).into()))
        .unwrap();
    assert_eq!(take_events(&mut stream, ack.events.len()), ack.events);
    assert!(
        log.session_ids(SessionQuery::by_id().limit(1_000))
            .unwrap()
            .contains(id)
    );
}

/// Fails unless acks, pages, streams and the feed agree.
fn check_one_story(log: &SessionLog, sessions: &[SessionId], acks: &[Ack]) {
    let feed = feed_all(log);
    assert_rising(&feed);
    for id in sessions {
        let mut acked: Vec<Event> = acks
            .iter()
            .flat_map(|ack| of_session(&ack.events, id))
            .collect();
        acked.sort_by_key(|event| event.seq);
        assert_dense(&acked, 1..=acked.len() as Seq);
        assert_eq!(read_all(log, id), acked);
        assert_eq!(
            drain(&mut log.stream(id, StartAt::Beginning).unwrap().until_tail()),
            acked
        );
        assert_eq!(of_session(&feed, id), acked);
    }
    assert_eq!(
        feed.len(),
        acks.iter().map(|ack| ack.events.len()).sum::<usize>()
    );
}

fn check_crowd(options: Options) {
    let dir = folder();
    let log = options.open_in(&dir).unwrap();
    let sessions: Vec<_> = (0..4).map(|n| session(&format!("s{n}"))).collect();
    let acked = Acked::new();
    let (tell, told) = mpsc::channel::<Ack>();
    let acks = thread::scope(|scope| {
        let (log, sessions, acked) = (&log, &sessions, &acked);
        let streams: Vec<_> = (0..WRITERS / 2)
            .map(|n| log.stream(&sessions[n % 4], StartAt::Creation).unwrap())
            .map(|mut stream| {
                scope.spawn(move || take_events(&mut stream, WRITERS / 4 * BATCHES * 3))
            })
            .collect();
        let mut feed = log.feed().unwrap();
        let feed = scope.spawn(move || take_events(&mut feed, WRITERS * BATCHES * 3));
        for writer in 0..WRITERS {
            let tell = tell.clone();
            scope.spawn(move || {
                let id = &sessions[writer % 4];
                let mut last = 0;
                for n in 0..BATCHES {
                    let batch = notes(&format!("{writer}.{n}"), 3);
                    let is_async = (writer / 4) % 2 == 0;
                    let ack = acked.append(|| {
                        if is_async {
                            block_on(log.append_async(id, batch))
                        } else {
                            log.append(id, batch)
                        }
                    });
                    assert_ack_fits(&ack, id);
                    assert!(ack.first > last, "{ack:?} came after seq {last}");
                    last = ack.last;
                    tell.send(ack).unwrap();
                }
            });
        }
        drop(tell);
        let mut acks = Vec::new();
        for ack in told {
            check_readable(log, &ack);
            acks.push(ack);
        }
        assert_eq!(feed.join().unwrap(), feed_all(log));
        for (n, stream) in streams.into_iter().enumerate() {
            assert_eq!(stream.join().unwrap(), read_all(log, &sessions[n % 4]));
        }
        acks
    });
    assert_eq!(acks.len(), WRITERS * BATCHES);
    check_one_story(&log, &sessions, &acks);
    log.close().unwrap();
    check_one_story(&open(&dir), &sessions, &acks);
}

#[test]
fn acks_pages_streams_and_the_feed_agree_under_a_crowd() {
    check_crowd(Options::new());
}

#[test]
fn a_queue_and_groups_of_one_batch_only_make_a_crowd_wait() {
    check_crowd(small_files().group_bytes_max(1));
}

/// Appends until the log is closed, and returns the acks; any other refusal fails.
fn append_until_closed(
    log: &SessionLog,
    id: &SessionId,
    tag: &str,
    acked: &AtomicUsize,
) -> Vec<Ack> {
    let mut acks = Vec::new();
    for n in 0.. {
        let batch = notes(&format!("{tag}.{n}"), 2);
        let outcome = if n % 2 == 0 {
            log.append(id, batch)
        } else {
            block_on(log.append_async(id, batch))
        };
        match outcome {
            Ok(ack) => acks.push(ack),
            Err(Error::Closed) => break,
            Err(error) => panic!("{error:?}"),
        }
        acked.fetch_add(1, Ordering::Relaxed);
    }
    acks
}

#[test]
fn an_append_that_meets_a_close_either_stays_or_is_refused_as_closed() {
    for round in 0..5 {
        let dir = folder();
        let log = open(&dir);
        let sessions: Vec<_> = (0..2).map(|n| session(&format!("s{n}"))).collect();
        let acked = AtomicUsize::new(0);
        let first: Vec<Ack> = sessions
            .iter()
            .map(|id| log.append(id, notes("first", 1)).unwrap())
            .collect();
        let racing: Vec<Ack> = thread::scope(|scope| {
            let (log, sessions, acked) = (&log, &sessions, &acked);
            let writers: Vec<_> = (0..8)
                .map(|n| {
                    scope.spawn(move || {
                        append_until_closed(log, &sessions[n % 2], &n.to_string(), acked)
                    })
                })
                .collect();
            eventually("some acks", || {
                acked.load(Ordering::Relaxed) >= 20 + round * 10
            });
            let closing = log.clone();
            in_time("close", move || closing.close().unwrap());
            writers
                .into_iter()
                .flat_map(|writer| writer.join().unwrap())
                .collect()
        });
        check_one_story(&open(&dir), &sessions, &[first, racing].concat());
    }
}

#[test]
fn an_event_that_a_reader_has_is_found_by_its_id_at_once() {
    let dir = folder();
    let log = open(&dir);
    let ids: Vec<SessionId> = (0..8).map(|n| session(&n.to_string())).collect();
    thread::scope(|scope| {
        for id in &ids {
            let (log, mut stream) = (&log, log.stream(id, StartAt::Creation).unwrap());
            scope.spawn(move || {
                (0..300).for_each(|n| drop(log.append(id, notes(&n.to_string(), 3)).unwrap()));
            });
            scope.spawn(move || {
                for event in take_events(&mut stream, 900) {
                    assert_eq!(log.event(event.id).unwrap(), event);
                }
            });
        }
    });
}

#[test]
fn closing_from_many_threads_closes_once_and_lets_all_return() {
    let dir = folder();
    for round in 1..=5 {
        let log = open(&dir);
        log.append(&session("s"), notes("n", 1)).unwrap();
        let closing = (0..8).map(|_| log.clone()).collect::<Vec<_>>();
        in_time("close", move || {
            thread::scope(|scope| {
                let closers: Vec<_> = closing
                    .iter()
                    .map(|log| scope.spawn(|| log.close()))
                    .collect();
                for closer in closers {
                    closer.join().unwrap().unwrap();
                }
            });
        });
        assert_eq!(open(&dir).head(&session("s")).unwrap().last, round);
    }
}

/// Returns the acks of appends that were all polled once, with the result of that first poll.
fn outcomes<F: Future<Output = Result<Ack>>>(
    appends: Vec<Pin<Box<F>>>,
    early: Vec<Poll<Result<Ack>>>,
) -> Vec<Ack> {
    let outcome = |(append, early)| match early {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => block_on(append),
    };
    appends
        .into_iter()
        .zip(early)
        .map(outcome)
        .map(Result::unwrap)
        .collect()
}

#[test]
fn a_close_waits_for_what_is_queued() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let mut appends: Vec<_> = (0..100)
        .map(|n| Box::pin(log.append_async(&id, notes(&n.to_string(), 1))))
        .collect();
    let early = appends
        .iter_mut()
        .map(|append| poll_once(append.as_mut()))
        .collect();
    log.close().unwrap();
    let acks = outcomes(appends, early);
    check_one_story(&open(&dir), &[id], &acks);
}

#[test]
fn readers_see_one_story_while_segments_are_made() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let sessions = ["a", "b"].map(session);
    let acked: Vec<Ack> = sessions
        .iter()
        .map(|id| log.append(id, notes("first", 3)).unwrap())
        .collect();
    let acked = Mutex::new(acked);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = Over(&done);
        for reader in 0..3 {
            let (log, acked, done) = (&log, &acked, &done);
            scope.spawn(move || {
                for n in (reader..).step_by(7) {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let acks = acked.lock().unwrap();
                    let ack = acks[n % acks.len()].clone();
                    drop(acks);
                    check_readable(log, &ack);
                }
            });
        }
        for n in 0..400 {
            let large = NewEvent::new("large", vec![u8::try_from(n % 256).unwrap(); 60_000]);
            let ack = log
                .append(&sessions[n % 2], notes(&n.to_string(), 2).event(large))
                .unwrap();
            acked.lock().unwrap().push(ack);
        }
        drop(over);
    });
    eventually_in_files("a segment", || segments(dir.path()) > 0);
    check_one_story(&log, &sessions, &acked.into_inner().unwrap());
}

/// Starts async appends and drops their futures after some polls, from several threads at once.
fn check_dropped_futures(options: Options) {
    let dir = folder();
    let log = options.open_in(&dir).unwrap();
    let id = session("s");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (log, id, stop) = (&log, &id, &stop);
        for dropper in 0..4 {
            scope.spawn(move || {
                let _over = Over(stop);
                for n in 0..100 {
                    let mut append =
                        Box::pin(log.append_async(id, notes(&format!("{dropper}.{n}"), 3)));
                    for _ in 0..n % 4 {
                        if poll_once(append.as_mut()).is_ready() {
                            break;
                        }
                        thread::yield_now();
                    }
                }
            });
        }
        while !stop.load(Ordering::Relaxed) {
            log.append(id, notes("blocking", 3)).unwrap();
            block_on(log.append_async(id, notes("async", 3))).unwrap();
        }
    });
    let last = log.append(&id, notes("last", 3)).unwrap();
    in_time("close", move || log.close().unwrap());
    let all = read_all(&open(&dir), &id);
    assert_dense(&all, 1..=all.len() as Seq);
    assert_eq!(
        all[usize::try_from(last.first).unwrap() - 1..][..3],
        last.events
    );
    for batch in all.chunks(3) {
        let tags: Vec<_> = batch
            .iter()
            .map(|event| {
                event
                    .data
                    .rsplit(|byte| *byte == b'/')
                    .nth(1)
                    .map(<[u8]>::to_vec)
            })
            .collect();
        assert!(
            tags.iter().all(|tag| *tag == tags[0]),
            "{batch:?} is no batch"
        );
    }
}

#[test]
fn dropped_async_appends_hold_nothing_up() {
    check_dropped_futures(Options::new());
}

#[test]
fn dropped_async_appends_give_back_their_room_in_a_full_queue() {
    check_dropped_futures(Options::new().group_bytes_max(1));
}

#[test]
fn tasks_that_are_aborted_midway_hold_nothing_up() {
    let dir = folder();
    let log = Options::new().group_bytes_max(4_096).open_in(&dir).unwrap();
    let id = session("s");
    on_tokio(async {
        for round in 0..10 {
            let tasks: Vec<_> = (0..32)
                .map(|n| tokio::spawn(log.append_async(&id, notes(&format!("{round}.{n}"), 2))))
                .collect();
            for (n, task) in tasks.into_iter().enumerate() {
                if n % 3 == 0 {
                    task.await.unwrap().unwrap();
                } else {
                    task.abort();
                }
            }
        }
    });
    in_time("close", move || log.close().unwrap());
    let all = read_all(&open(&dir), &id);
    assert_dense(&all, 1..=all.len() as Seq);
    assert_eq!(all.len() % 2, 0);
    assert!(all.len() >= 10 * 11 * 2, "{} events", all.len());
}

#[test]
fn appends_that_wait_together_share_commit_groups() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let before = log.stats().groups;
    let mut appends: Vec<_> = (0..500)
        .map(|n| Box::pin(log.append_async(&id, notes(&n.to_string(), 1))))
        .collect();
    let early = appends
        .iter_mut()
        .map(|append| poll_once(append.as_mut()))
        .collect();
    let acks = outcomes(appends, early);
    let groups = log.stats().groups - before;
    assert!(
        (1..500).contains(&groups),
        "{groups} groups for 500 appends"
    );
    check_one_story(&log, &[id], &acks);
}

#[test]
fn thousands_of_waiting_async_appends_hold_no_thread() {
    const APPENDS: usize = 2_000;
    let dir = folder();
    let options = Options::new().group_bytes_max(1);
    let log = options
        .stall_wait(Duration::from_mins(1))
        .open_in(&dir)
        .unwrap();
    let id = session("s");
    let before = threads();
    let mut appends: Vec<_> = (0..APPENDS)
        .map(|n| Box::pin(log.append_async(&id, notes(&n.to_string(), 1))))
        .collect();
    for append in &mut appends {
        let _ = poll_once(append.as_mut());
    }
    // Other tests run in parallel and have threads of their own, but fewer than there are appends.
    let grown = threads().saturating_sub(before);
    assert!(
        grown < APPENDS / 10,
        "{grown} more threads for {APPENDS} appends"
    );
    drop(appends);
    log.append(&id, notes("after", 1)).unwrap();
    in_time("close", move || log.close().unwrap());
}

#[test]
fn readers_of_a_growing_log_never_see_anything_go_back() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let done = AtomicBool::new(false);
    log.append(&id, notes("first", 1)).unwrap();
    thread::scope(|scope| {
        let over = Over(&done);
        let (log, id, done) = (&log, &id, &done);
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(move || {
                    let mut seen: Vec<Event> = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        let head = log.head(id).unwrap();
                        let all = read_all(log, id);
                        assert!(all.len() >= seen.len().max(usize::try_from(head.last).unwrap()));
                        assert_eq!(all[..seen.len()], seen);
                        assert_eq!(
                            Some(all[usize::try_from(head.last).unwrap() - 1].id),
                            head.last_id
                        );
                        assert!(log.stats().events >= head.last);
                        seen = all;
                    }
                })
            })
            .collect();
        for n in 0..100 {
            log.append(id, notes(&n.to_string(), 2)).unwrap();
        }
        drop(over);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
