//! Tasks whose commit panics, and tasks on executors that panic.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use futures_core::Stream;

use super::{Scene, eventually};
use crate::model::Error;
use crate::sync::{AtomicBool, Mutex, Ordering, scope};
use crate::{Batch, NewEvent, SessionId, SessionLog, StartAt};

/// A task that is woken by a failure and tries again at once.
struct Retry {
    log: SessionLog,
    session: SessionId,
    answer: Mutex<Option<Poll<Error>>>,
}

impl Wake for Retry {
    fn wake(self: Arc<Self>) {
        let again = self.log.append_async(
            &self.session,
            Batch::new().event(NewEvent::new("note", "again")),
        );
        let answer = pin!(again).poll(&mut Context::from_waker(Waker::noop()));
        *self.answer.lock() = Some(answer.map(|answer| answer.expect_err("the write panicked")));
    }
}

#[test]
fn whoever_is_told_of_a_panic_finds_the_log_poisoned() {
    let (scene, log) = Scene::new();
    let kept = scene.append(&log, b"kept").unwrap();
    let retry = Arc::new(Retry {
        log: log.clone(),
        session: scene.session.clone(),
        answer: Mutex::default(),
    });
    scene.plan.panics.store(true, Ordering::SeqCst);
    let mut lost = pin!(log.append_async(
        &scene.session,
        Batch::new().event(NewEvent::new("note", "lost"))
    ));
    let waker = Waker::from(Arc::clone(&retry));
    // The write panics only once the task waits, or there would be no waiter to wake.
    scene.plan.hold();
    assert!(
        lost.as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    scene.plan.release();
    eventually("the task was woken", || retry.answer.lock().is_some());
    let answer = retry.answer.lock().take();
    assert!(
        matches!(answer, Some(Poll::Ready(Error::Poisoned { .. }))),
        "{answer:?}"
    );
    assert!(matches!(
        lost.poll(&mut Context::from_waker(&waker)),
        Poll::Ready(Err(Error::Io { .. }))
    ));
    assert_eq!(scene.events(&log), kept);
    drop((retry, waker));
    assert!(matches!(log.close(), Err(Error::Poisoned { .. })));
    assert_eq!(scene.events(&scene.open()), kept);
}

/// A waker that panics, as that of an executor being torn down may.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a panic, as the test wants it");
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn an_executor_that_panics_keeps_nobody_else_from_an_answer() {
    let (scene, log) = Scene::new();
    scene.append(&log, b"first").unwrap();
    let woken = Arc::new(Woken::default());
    let mut stream = log
        .stream(&scene.session, StartAt::Now)
        .unwrap()
        .into_async();
    let mut next = || {
        Pin::new(&mut stream).poll_next(&mut Context::from_waker(&Waker::from(Arc::clone(&woken))))
    };
    while next().is_ready() {}
    let waker = Waker::from(Arc::new(Panics));
    let batch = |text: &'static str| Batch::new().event(NewEvent::new("note", text));
    scene.plan.hold();
    scope(|scope| {
        let first = scope.spawn(|| scene.append(&log, b"held back").unwrap());
        eventually("a group is being written", || {
            scene.plan.under_way.load(Ordering::SeqCst) == 1
        });
        let mut appends: Vec<_> = ["a", "b"]
            .map(|text| Box::pin(log.append_async(&scene.session, batch(text))))
            .into();
        for append in &mut appends {
            assert!(
                append
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            );
        }
        let beside = scope.spawn(|| scene.append(&log, b"beside").unwrap());
        scene.plan.release();
        for append in [first, beside] {
            append.join().unwrap();
        }
        for append in &mut appends {
            // It joined before the task that has its answer.
            let answer = append
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(answer, Poll::Ready(Ok(_))), "{answer:?}");
        }
    });
    eventually("the stream was woken", || woken.0.load(Ordering::SeqCst));
    log.health().unwrap();
    log.close().unwrap();
    assert_eq!(scene.events(&scene.open()).len(), 5);
}
