//! Stores that grow: sustained load, many sessions, opening a large one.

use std::process::{Command, Stdio};
use std::time::Instant;

use super::Task;
use crate::measure::{Figures, Usage, disk_bytes, drop_caches, micros, peak_rss_mb, percentile};
use crate::store::{Ids, Load, Open, Store};

const SUSTAINED_SESSIONS: u32 = 10_000;
const SUSTAINED_WRITERS: u32 = 16;
const SUSTAINED: Load = Load::noise(4, 1024);
const SUSTAINED_BATCHES: u32 = 1024 * 1024;
const SUSTAINED_AGENT: Load = Load::agent(4);

const SESSIONS: u32 = 1_000_000;
const SESSIONS_WRITERS: u32 = 64;
const SESSION_EVENT_BYTES: usize = 256;

const REOPENED: Load = Load::noise(16, 1_000);
const REOPENED_BATCHES: u32 = 625_000;

/// Appends `batches` batches, each writer alternating between sessions of its own. Returns the
/// duration of each append, in microseconds.
pub(super) fn spread(
    store: &dyn Store,
    sessions: u32,
    writers: u32,
    batches: u32,
    load: Load,
) -> Vec<f64> {
    let write = |writer: u32| {
        let mut acks = Vec::new();
        let mut session = writer;
        for _ in 0..batches / writers + u32::from(writer < batches % writers) {
            let asked = Instant::now();
            store.append(session, load);
            acks.push(micros(asked.elapsed()));
            session = if session + writers < sessions {
                session + writers
            } else {
                writer
            };
        }
        acks
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..writers)
            .map(|writer| scope.spawn(move || write(writer)))
            .collect();
        writers
            .into_iter()
            .flat_map(|writer| writer.join().expect("a writer ends"))
            .collect()
    })
}

/// Returns the bytes of data that [`spread`] appends.
fn spread_bytes(sessions: u32, writers: u32, batches: u32, load: Load) -> f64 {
    let of_writer = |writer: u32| {
        let appends = batches / writers + u32::from(writer < batches % writers);
        let own = (sessions - writer).div_ceil(writers);
        let of_session = |nth: u32| {
            let appends = appends / own + u32::from(nth < appends % own);
            let events = u64::from(appends) * load.events as u64;
            load.content.bytes_of(writer + nth * writers, events)
        };
        (0..own).map(of_session).sum::<u64>()
    };
    (0..writers).map(of_writer).sum::<u64>() as f64
}

pub fn sustained(task: Task<'_>) -> Figures {
    sustained_with(task, SUSTAINED)
}

pub fn sustained_agent(task: Task<'_>) -> Figures {
    sustained_with(task, SUSTAINED_AGENT)
}

fn sustained_with(task: Task<'_>, load: Load) -> Figures {
    let (sessions, batches) = (
        task.scaled(SUSTAINED_SESSIONS).max(SUSTAINED_WRITERS),
        task.scaled(SUSTAINED_BATCHES),
    );
    let store = task.contender.open(Open {
        folder: task.folder,
        sessions,
        ids: Ids::Unused,
    });
    let (usage, began) = (Usage::now(), Instant::now());
    let mut acks = spread(&*store, sessions, SUSTAINED_WRITERS, batches, load);
    let appended = began.elapsed();
    let settled = store.settle() - began;
    let mut figures = Figures::new();
    let bytes = spread_bytes(sessions, SUSTAINED_WRITERS, batches, load);
    usage.add_since(&mut figures, f64::from(batches) * load.events as f64, bytes);
    figures.insert("MB/s".into(), bytes / 1e6 / settled.as_secs_f64());
    figures.insert(
        "MB/s of appends alone".into(),
        bytes / 1e6 / appended.as_secs_f64(),
    );
    figures.insert("p99 us".into(), percentile(&mut acks, 0.99));
    figures.insert("max ms".into(), percentile(&mut acks, 1.0) / 1e3);
    figures.insert("rss MB".into(), peak_rss_mb());
    figures.insert("disk/byte".into(), disk_bytes(task.folder) / bytes);
    figures
}

pub fn sessions(task: Task<'_>) -> Figures {
    let sessions = task.scaled(SESSIONS).max(SESSIONS_WRITERS);
    let store = task.contender.open(Open {
        folder: task.folder,
        sessions,
        ids: Ids::Unused,
    });
    let load = Load::noise(1, SESSION_EVENT_BYTES);
    let usage = Usage::now();
    let mut rates = [0.0; 2];
    for rate in &mut rates {
        let began = Instant::now();
        spread(&*store, sessions, SESSIONS_WRITERS, sessions, load);
        *rate = f64::from(sessions) / began.elapsed().as_secs_f64();
    }
    let mut figures = Figures::new();
    let events = f64::from(sessions) * 2.0;
    usage.add_since(&mut figures, events, events * SESSION_EVENT_BYTES as f64);
    figures.insert("first/s".into(), rates[0]);
    figures.insert("second/s".into(), rates[1]);
    figures.insert("first/second".into(), rates[0] / rates[1]);
    figures.insert("rss MB".into(), peak_rss_mb());
    figures
}

/// Fills a store in a process that is killed, then opens, closes and opens it.
pub fn reopen(task: Task<'_>, sessions: u32) -> Figures {
    let open = Open {
        folder: task.folder,
        sessions,
        ids: Ids::Unused,
    };
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if std::env::var_os(FILL).is_some() {
        let store = task.contender.open(open);
        spread(
            &*store,
            sessions,
            SUSTAINED_WRITERS,
            task.scaled(REOPENED_BATCHES),
            REOPENED,
        );
        // Nothing is closed.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .expect("a process may kill itself");
    }
    let program = std::env::current_exe().expect("a program");
    let filled = Command::new(program)
        .args(arguments)
        .env(FILL, "1")
        .stdout(Stdio::null())
        .status()
        .expect("a process");
    assert!(
        filled.code().is_none(),
        "it was not killed but ended with {filled}"
    );
    let mut figures = Figures::new();
    for name in ["killed s", "clean s"] {
        drop_caches();
        let began = Instant::now();
        let store = task.contender.open(open);
        // A store that reads lazily has opened nothing before the first read.
        let mut events = 0;
        store.newest(0, 1, &mut |_| events += 1);
        figures.insert(name.into(), began.elapsed().as_secs_f64());
        store.settle();
        drop(store);
    }
    figures.insert("rss MB".into(), peak_rss_mb());
    figures
}

const FILL: &str = "PEERS_FILL";
