//! Runs the same few calls under thousands of schedules, random ones and ones that prefer some
//! threads over others.
//!
//! A run in which a thread waits for ever ends as a deadlock, so a lost wake-up is found at once.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, MaxSteps, Runner};

use super::simulated::{Fault, Faulty, SimulatedDisk};
use super::support::crash_image::{Durability, Image, Left, NamesLeft, Step};
use super::support::ledger::{Ledger, Tag, Works, acknowledged, tried};
use super::support::report::{Dice, Report, Runs, seed};
use crate::codec::SessionState;
use crate::journal::{Spare, Spares};
use crate::model::Error;
use crate::recent::Timing;
use crate::recent::tests::{batch, file, recent, record};
use crate::sync::{Deadline, Mutex, Tally, scope, spawn};
use crate::write::{SealSignal, lands_again};
use crate::{Batch, EventId, NewEvent, Options, SessionLog};

/// The total over the scenarios and the kinds of schedules.
const SCHEDULES: Runs = Runs {
    quick: 200,
    full: 10_000,
};
const NO_INDEX: &str = "/dev/null/log";
/// Small batches, and some large enough to put two groups in flight.
const BATCHES: &[u64] = &[40, 40, 270_000];
const KIB: usize = 1024;
const PREFERENCES: usize = 4;
/// Power cuts that a run with two groups in flight is checked with beside the one of every run.
const CUTS_AT_OVERLAPS: usize = 4;
/// The type and the session of the event that ends a run.
const LAST: &str = "last";

/// The calls that are made under a schedule, for a seed.
type Scenario = fn(u64);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Random,
    /// Threads have priorities, which change a few times.
    Preferring,
}

#[test]
fn campaign_schedules() {
    let seed = seed();
    let mut report = Report::new("schedules", seed, SCHEDULES.planned());
    let scenarios: [(&str, Scenario); 9] = [
        ("appends and a stream", appends_and_a_stream),
        ("a barrier that fails", a_write_that_fails),
        (
            "a manifest that cannot be written",
            a_manifest_that_cannot_be_written,
        ),
        ("async appends", async_appends),
        ("a close among appends", a_close_among_appends),
        ("a session found as it begins", a_session_found_as_it_begins),
        (
            "a retry as its first batch is sealed",
            a_retry_as_its_first_batch_is_sealed,
        ),
        (
            "an order to seal as a file begins",
            an_order_to_seal_as_a_file_begins,
        ),
        (
            "a clean file as spare ones are trimmed",
            a_clean_file_as_spare_ones_are_trimmed,
        ),
    ];
    let mut dice = Dice(seed);
    while !report.is_done() {
        for (name, scenario) in scenarios {
            for kind in [Kind::Random, Kind::Preferring] {
                let seed = dice.roll();
                report.run(
                    || format!("{name}, {kind:?}, seed {seed}"),
                    || explore(scenario, seed, kind),
                );
                report.count(format!("schedules of {name}"), 1);
            }
        }
    }
    report.count("schedules with two groups in flight", OVERLAPPED.so_far());
    assert!(OVERLAPPED.so_far() > 0, "no two groups were in flight");
    report.end();
}

/// Makes one run under one schedule, both of which follow from the seed.
fn explore(scenario: Scenario, seed: u64, kind: Kind) {
    let mut config = Config::new();
    config.stack_size = 1024 * KIB;
    config.max_steps = MaxSteps::FailAfter(2_000_000);
    let run = move || scenario(seed);
    match kind {
        Kind::Random => Runner::new(RandomScheduler::new_from_seed(seed, 1), config).run(run),
        Kind::Preferring => {
            Runner::new(PctScheduler::new_from_seed(seed, PREFERENCES, 1), config).run(run)
        }
    };
}

/// The number of runs in which two groups were in flight.
static OVERLAPPED: Tally = Tally::new();

/// The numbers of steps after which two groups were in flight.
fn overlaps(steps: &[Step]) -> Vec<usize> {
    let mut durability = Durability::default();
    let are_two = |(end, step): (usize, &Step)| {
        durability.step(step);
        (durability.written_through() > 1).then_some(end)
    };
    (1..).zip(steps).filter_map(are_two).collect()
}

struct Scene {
    disk: SimulatedDisk,
    works: Works,
    ledger: Mutex<Ledger>,
}

impl Scene {
    fn new(seed: u64) -> Arc<Self> {
        Self::of(seed, BATCHES)
    }

    fn of(seed: u64, bytes: &'static [u64]) -> Arc<Self> {
        let works = Works { seed, bytes };
        let disk = SimulatedDisk::of(Path::new(NO_INDEX), &Image::default());
        Arc::new(Self {
            disk,
            works,
            ledger: Mutex::new(Ledger::new(works)),
        })
    }

    fn open(&self) -> SessionLog {
        open(&self.disk)
    }

    fn say(&self, line: String) {
        let mut ledger = self.ledger.lock();
        ledger.note(&line);
        self.disk.say(line);
    }

    /// Appends as one of several writers until an append fails, which must be with an `expected`
    /// error.
    fn append(&self, log: &SessionLog, writer: u32, appends: u32, expected: fn(&Error) -> bool) {
        for nth in 0..appends {
            let tag = Tag {
                life: 1,
                writer,
                nth,
            };
            let work = self.works.of(tag);
            self.say(tried(tag));
            match log.append(&work.session, work.batch()) {
                Ok(ack) => self.say(acknowledged(tag, &work, &ack)),
                Err(Error::Stalled { .. }) => {}
                Err(error) => {
                    assert!(expected(&error), "an append failed: {error:?}");
                    return;
                }
            }
        }
    }

    /// Checks that everything acknowledged is there after a power cut: at any moment, and at some
    /// moments with two groups in flight or just after.
    fn check(&self, seed: u64) {
        let (steps, mut dice) = (self.disk.steps(), Dice(seed));
        self.check_cut(&steps, 1 + dice.index(steps.len()), &mut dice);
        let overlaps = overlaps(&steps);
        if overlaps.is_empty() {
            return;
        }
        OVERLAPPED.count();
        for after in 0..CUTS_AT_OVERLAPS {
            let end = overlaps[dice.index(overlaps.len())] + after % 2;
            self.check_cut(&steps, end.min(steps.len()), &mut dice);
        }
    }

    fn check_cut(&self, steps: &[Step], end: usize, dice: &mut Dice) {
        let mut durability = Durability::default();
        let mut ledger = Ledger::new(self.works);
        for step in &steps[..end] {
            durability.step(step);
            if let Some(line) = Step::said(step) {
                ledger.note(line);
            }
        }
        let image = durability.cut(Left::Nothing, NamesLeft::Synced, dice);
        let log = open(&SimulatedDisk::of(Path::new(NO_INDEX), &image));
        ledger.check(&log);
    }
}

fn open(disk: &SimulatedDisk) -> SessionLog {
    open_with(disk, 4096 * KIB)
}

fn open_with(disk: &SimulatedDisk, recent_bytes_max: usize) -> SessionLog {
    let mut options = Options::new()
        .journal_file_bytes_max(384 * KIB)
        .group_bytes_max(384 * KIB)
        .recent_bytes_max(recent_bytes_max)
        .clock(|| UNIX_EPOCH + Duration::from_secs(1_750_000_000));
    options.journal_file_bytes_min = 384 * KIB;
    options
        .open_on(disk.handle(), Path::new(NO_INDEX))
        .unwrap_or_else(|error| panic!("the log does not open: {error:?}"))
}

fn appends_and_a_stream(seed: u64) {
    let scene = Scene::new(seed);
    let log = scene.open();
    let feed = log.feed().expect("the feed");
    let shown: Arc<Mutex<Vec<EventId>>> = Arc::default();
    let reader = {
        let shown = Arc::clone(&shown);
        spawn("reader", move || {
            // A feed that misses an event, or is not woken for it, waits for the last one for ever.
            for event in feed.events() {
                let event = event.expect("an event");
                shown.lock().push(event.id);
                if event.event_type.as_str() == LAST {
                    return;
                }
            }
        })
    };
    scope(|threads| {
        for writer in 0..3 {
            let (scene, log) = (&*scene, &log);
            threads.spawn(move || scene.append(log, writer, 3, |_| false));
        }
    });
    let last = || Batch::new().event(NewEvent::new(LAST, "the last"));
    while let Err(error) = log.append(&LAST.parse().expect("a name"), last()) {
        assert!(
            matches!(error, Error::Stalled { .. }),
            "an append failed: {error:?}"
        );
    }
    reader.expect("a thread").join().expect("the reader");
    let stored = log
        .feed()
        .expect("the feed")
        .until_tail()
        .events()
        .map(|event| event.expect("an event").id);
    assert_eq!(
        *shown.lock(),
        stored.collect::<Vec<_>>(),
        "a stream has missed an event, or shown one twice"
    );
    scene.ledger.lock().check(&log);
    log.close().expect("close");
    scene.check(seed);
}

fn a_write_that_fails(seed: u64) {
    let scene = Scene::new(seed);
    let log = scene.open();
    scene.disk.fail(Fault {
        of: Faulty::WriteThrough,
        after: seed % 4,
    });
    scope(|threads| {
        for writer in 0..4 {
            let (scene, log) = (&*scene, &log);
            threads.spawn(move || {
                scene.append(log, writer, 3, |error| {
                    matches!(error, Error::Io { .. } | Error::Poisoned { .. })
                })
            });
        }
    });
    scene.ledger.lock().check(&log);
    // Close reports that the log is poisoned, if an append met the failure.
    let _closed = log.close();
    scene.check(seed);
}

/// The log fails in the background, while appends wait for room that sealing would make.
fn a_manifest_that_cannot_be_written(seed: u64) {
    let scene = Scene::of(seed, &[270_000]);
    let log = open_with(&scene.disk, 512 * KIB);
    scene.disk.fail(Fault {
        of: Faulty::ManifestBarrier,
        after: 0,
    });
    scope(|threads| {
        for writer in 0..3 {
            let (scene, log) = (&*scene, &log);
            threads.spawn(move || {
                scene.append(log, writer, 3, |error| {
                    matches!(error, Error::Poisoned { .. })
                })
            });
        }
    });
    scene.ledger.lock().check(&log);
    let _closed = log.close();
    scene.check(seed);
}

fn async_appends(seed: u64) {
    let scene = Scene::new(seed);
    let log = scene.open();
    scope(|threads| {
        for writer in 0..3 {
            let (scene, log) = (&*scene, &log);
            threads.spawn(move || {
                for nth in 0..2 {
                    let tag = Tag {
                        life: 1,
                        writer,
                        nth,
                    };
                    let work = scene.works.of(tag);
                    scene.say(tried(tag));
                    match shuttle::future::block_on(log.append_async(&work.session, work.batch())) {
                        Ok(ack) => scene.say(acknowledged(tag, &work, &ack)),
                        Err(Error::Stalled { .. }) => {}
                        Err(error) => panic!("an append failed: {error:?}"),
                    }
                }
            });
        }
        threads.spawn(|| scene.append(&log, 3, 2, |_| false));
    });
    scene.ledger.lock().check(&log);
    log.close().expect("close");
    scene.check(seed);
}

/// A reader that finds a session without its entry takes all of it for sealed.
fn a_session_found_as_it_begins(_seed: u64) {
    let recent = recent();
    recent.restore_file(file(1), 4096, 0);
    scope(|threads| {
        threads.spawn(|| {
            recent
                .restore(vec![record("s", 1)])
                .expect("the session's first record")
        });
        threads.spawn(|| {
            let (entry, head) = recent
                .sessions
                .find(
                    &"s".parse().expect("a name"),
                    || Ok(SessionState::default()),
                )
                .expect("nothing is read");
            assert!(
                entry.is_some() || !head.is_there(),
                "what is recent is taken for sealed"
            );
        });
    });
}

/// Sealing releases the batch between any two steps of one of the retries.
fn a_retry_as_its_first_batch_is_sealed(_seed: u64) {
    let recent = recent();
    let pin = || {
        let absent = || Ok(SessionState::default());
        let pin = recent.sessions.pin(&"s".parse().expect("a name"), absent);
        pin.expect("nothing is read")
    };
    let _held = pin();
    recent.restore_file(file(1), 4096, 0);
    recent.restore(vec![record("s", 1)]).expect("a record");
    recent.restore_file(file(2), 4096, 4096);
    let sealable = recent.sealable(Timing::Now).expect("a full file");
    scope(|threads| {
        threads.spawn(|| recent.release_sealed(sealable.files.len(), sealable.records));
        threads.spawn(|| {
            for _ in 0..50 {
                let again = lands_again(pin(), batch(1));
                assert!(!again, "the batch is stored twice");
            }
        });
    });
}

/// Sealing takes an order once. One that finds nothing to seal is lost.
fn an_order_to_seal_as_a_file_begins(_seed: u64) {
    let (recent, signal) = (recent(), SealSignal::default());
    recent.restore_file(file(1), 4096, 0);
    recent.restore(vec![record("s", 1)]).expect("a record");
    recent.restore_file(file(2), 4096, 4096);
    scope(|threads| {
        threads.spawn(|| {
            recent.begin_file(file(3), 4096, 8192);
            recent.note_begun();
        });
        threads.spawn(|| signal.notify_everything());
        threads.spawn(|| {
            let timing = signal.wait_for_work().expect("an order");
            let sealable = recent.sealable(timing).expect("the order was lost");
            assert!(sealable.end_lsn >= 4096, "a part of it was lost");
        });
    });
}

/// The file that is made for a thread is smaller than the spare ones that an idle log keeps.
fn a_clean_file_as_spare_ones_are_trimmed(_seed: u64) {
    let bytes = (4 * KIB) as u64;
    let disk = SimulatedDisk::of(Path::new(NO_INDEX), &Image::default());
    let folder = Path::new(NO_INDEX).to_path_buf();
    let spares = Spares::new(disk.handle(), folder, 2 * bytes, 1, Arc::default());
    let used = [2 * bytes; 2].map(|bytes| spares.make_now(bytes).expect("a file"));
    for Spare { number, bytes, .. } in used {
        spares.give(number, bytes).expect("it is recycled");
    }
    scope(|threads| {
        threads.spawn(|| spares.run());
        threads.spawn(|| (0..20).for_each(|_| spares.trim().expect("it trims")));
        threads.spawn(|| {
            let taken = spares.take_clean(bytes, Deadline::NEVER);
            assert!(taken.is_ok_and(|file| file.is_some()), "no clean file");
            spares.stop();
        });
    });
}

fn a_close_among_appends(seed: u64) {
    let scene = Scene::new(seed);
    let log = scene.open();
    scope(|threads| {
        for writer in 0..3 {
            let (scene, log) = (&*scene, &log);
            threads.spawn(move || {
                scene.append(log, writer, 3, |error| matches!(error, Error::Closed))
            });
        }
        let log = &log;
        threads.spawn(move || log.close().expect("close"));
    });
    let next = scene.open_next();
    scene.ledger.lock().check(&next);
    scene.check(seed);
}

impl Scene {
    /// Returns the log as the next open finds it.
    fn open_next(&self) -> SessionLog {
        let steps = self.disk.steps();
        let mut durability = Durability::default();
        for step in &steps {
            durability.step(step);
        }
        let image = durability.cut(Left::Everything, NamesLeft::InOrder, &mut Dice(0));
        open(&SimulatedDisk::of(Path::new(NO_INDEX), &image))
    }
}
