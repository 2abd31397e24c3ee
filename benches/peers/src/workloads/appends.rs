//! Durable appends, from threads or from tasks: for some seconds, or in bursts with pauses between.
//! After the log's own runs the floor is measured, with the same bytes per barrier.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use sessionlog::Stats;

use super::Task;
use crate::measure::{Figures, Usage, micros, pause, percentile};
use crate::store::{Ids, Load, Open, Store};
use crate::stores::Contender;
use crate::support::Floor;

/// The fraction of the measured time that the warm-up takes.
const WARM: f64 = 0.25;

/// A burst fits the journal. Background work then has a pause before the next burst.
const BURST_BYTES: usize = 96 << 20;
const BURSTS: u32 = 5;
const REST: Duration = Duration::from_secs(1);

/// The duration of each append, in microseconds, and of all together.
struct Round {
    acks: Vec<f64>,
    took: Duration,
}

pub fn blocking(task: Task<'_>, writers: u32, load: Load) -> Figures {
    measured(task, writers, load, |store, time| {
        let began = Instant::now();
        from_threads(&**store, writers, load, &|| began.elapsed() < time)
    })
}

pub fn bursts(task: Task<'_>, writers: u32, load: Load) -> Figures {
    let burst = |store: &dyn Store| {
        let left = AtomicUsize::new(BURST_BYTES / batch_bytes(load) as usize);
        let take = |left: usize| left.checked_sub(1);
        let burst = from_threads(store, writers, load, &|| {
            left.fetch_update(Relaxed, Relaxed, take).is_ok()
        });
        store.settle();
        pause(REST);
        burst
    };
    // Two bursts warm up: until then a journal may have to grow.
    measured(task, writers, load, |store, time| {
        let bursts = if time < Duration::from_secs_f64(task.seconds) {
            2
        } else {
            BURSTS
        };
        let bursts: Vec<Round> = (0..bursts).map(|_| burst(&**store)).collect();
        let took = bursts.iter().map(|burst| burst.took).sum();
        Round {
            acks: bursts.into_iter().flat_map(|burst| burst.acks).collect(),
            took,
        }
    })
}

pub fn asynchronous(task: Task<'_>, writers: u32, load: Load) -> Figures {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    measured(task, writers, load, |store, time| {
        runtime.block_on(from_tasks(store, writers, load, time))
    })
}

fn measured(
    task: Task<'_>,
    writers: u32,
    load: Load,
    run: impl Fn(&Arc<dyn Store>, Duration) -> Round,
) -> Figures {
    let open = Open {
        folder: task.folder,
        sessions: writers,
        ids: Ids::Unused,
    };
    let ours = (task.contender == Contender::SessionLog)
        .then(|| Arc::new(crate::stores::sessionlog::Ours::open(open)));
    let store: Arc<dyn Store> = match &ours {
        Some(ours) => Arc::clone(ours) as Arc<dyn Store>,
        None => Arc::from(task.contender.open(open)),
    };
    run(&store, Duration::from_secs_f64(task.seconds * WARM));
    let (usage, before) = (Usage::now(), ours.as_ref().map(|ours| ours.log().stats()));
    let mut round = run(&store, Duration::from_secs_f64(task.seconds));
    let mut figures = Figures::new();
    let (batches, seconds) = (round.acks.len() as f64, round.took.as_secs_f64());
    let (events, bytes) = (
        batches * load.events as f64,
        batches * batch_bytes(load) as f64,
    );
    usage.add_since(&mut figures, events, bytes);
    figures.insert("appends/s".into(), batches / seconds);
    figures.insert("MB/s".into(), bytes / 1e6 / seconds);
    figures.insert("p50 us".into(), percentile(&mut round.acks, 0.5));
    figures.insert("p99 us".into(), percentile(&mut round.acks, 0.99));
    if let (Some(ours), Some(before)) = (ours, before) {
        add_floor(
            &mut figures,
            task.folder,
            &before,
            &ours.log().stats(),
            bytes,
        );
    }
    figures
}

/// Writes the same groups without a log.
fn add_floor(figures: &mut Figures, folder: &Path, before: &Stats, after: &Stats, bytes: f64) {
    let groups = after.groups - before.groups;
    let group_bytes = usize::try_from((after.journal_bytes - before.journal_bytes) / groups)
        .expect("a group fits memory");
    let mut floor = Floor::new(folder, 64 << 20, group_bytes);
    let mut writes: Vec<f64> = (0..groups)
        .map(|_| micros(floor.write(group_bytes)))
        .collect();
    let seconds = writes.iter().sum::<f64>() / 1e6;
    figures.insert(
        "floor appends/s".into(),
        (after.batches - before.batches) as f64 / seconds,
    );
    figures.insert("floor MB/s".into(), bytes / 1e6 / seconds);
    figures.insert("floor p50 us".into(), percentile(&mut writes, 0.5));
    figures.insert(
        "batches a group".into(),
        (after.batches - before.batches) as f64 / groups as f64,
    );
}

fn from_threads(
    store: &dyn Store,
    writers: u32,
    load: Load,
    goes_on: &(dyn Fn() -> bool + Sync),
) -> Round {
    let began = Instant::now();
    let write = |session| {
        let mut acks = Vec::new();
        while goes_on() {
            let asked = Instant::now();
            store.append(session, load);
            acks.push(micros(asked.elapsed()));
        }
        acks
    };
    let acks = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..writers)
            .map(|session| scope.spawn(move || write(session)))
            .collect();
        writers
            .into_iter()
            .flat_map(|writer| writer.join().expect("a writer ends"))
            .collect()
    });
    Round {
        acks,
        took: began.elapsed(),
    }
}

async fn from_tasks(store: &Arc<dyn Store>, writers: u32, load: Load, time: Duration) -> Round {
    let began = Instant::now();
    let writers: Vec<_> = (0..writers)
        .map(|session| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut acks = Vec::new();
                while began.elapsed() < time {
                    let asked = Instant::now();
                    store.append_async(session, load).await;
                    acks.push(micros(asked.elapsed()));
                }
                acks
            })
        })
        .collect();
    let mut acks = Vec::new();
    for writer in writers {
        acks.extend(writer.await.expect("a writer ends"));
    }
    Round {
        acks,
        took: began.elapsed(),
    }
}

/// The bytes of a batch of noise.
fn batch_bytes(load: Load) -> u64 {
    load.content.bytes_of(0, load.events as u64)
}
