//! Reads from a million events in ten thousand sessions, a hundred each: once read before, and once
//! with every cache empty.

use std::time::Instant;

use super::Task;
use super::stores::spread;
use crate::measure::{Figures, drop_caches, micros, percentile};
use crate::store::{Ids, Load, Open, Store};
use crate::stores::Finds;

const SESSIONS: u32 = 10_000;
const WRITERS: u32 = 16;
const BATCHES: u32 = 10;
const BATCH: Load = Load::noise(10, 256);
const SCATTERED_WRITERS: u32 = 64;
const SCATTERED_BATCHES: u32 = 200;
const SCATTERED: Load = Load::noise(1, 1_024);

const PAGE: usize = 100;
const NEWEST: usize = 20;
const READS: u32 = 5_000;
const COLD_READS: u32 = 200;

/// No common factor with the number of sessions, so that neighbours are far apart.
const STRIDE: u32 = 7_919;

pub fn reads(task: Task<'_>) -> Figures {
    let sessions = task.scaled(SESSIONS).max(WRITERS);
    // After these sessions come others, one for each ten, that have a turn.
    let turns = sessions.div_ceil(10);
    let open = Open {
        folder: task.folder,
        sessions: sessions + turns,
        ids: Ids::Found,
    };
    let store = task.contender.open(open);
    spread(&*store, sessions, WRITERS, sessions * BATCHES, BATCH);
    (sessions..sessions + turns).for_each(|session| store.append_turn(session));
    store.settle();
    let nth = |nth: u32| nth * STRIDE % sessions;
    let mut figures = Figures::new();
    let page =
        |store: &dyn Store, session: u32| count(PAGE, |see| store.page(session, 0, PAGE, see));
    // Some have in memory what they wrote, others read it from the disk the first time.
    (0..sessions).for_each(|session| page(&*store, session));
    figures.insert("warm us".into(), time(READS, |at| page(&*store, nth(at))));
    figures.insert(
        "newest us".into(),
        time(READS, |at| {
            count(NEWEST, |see| store.newest(nth(at), NEWEST, see))
        }),
    );
    if task.contender.finds() == Finds::Ids {
        let ids: Vec<u128> = (0..sessions.min(1_000))
            .map(|at| store.id_at(nth(at), 50))
            .collect();
        figures.insert(
            "find us".into(),
            time(READS, |at| {
                count(1, |see| store.find(ids[at as usize % ids.len()], see))
            }),
        );
    }
    figures.insert(
        "turn us".into(),
        time(READS, |at| {
            count(1, |see| store.turn(sessions + nth(at) % turns, see))
        }),
    );
    drop(store);
    if drop_caches() {
        let store = task.contender.open(open);
        store.settle();
        drop_caches();
        figures.insert(
            "cold us".into(),
            time(COLD_READS, |at| page(&*store, nth(at))),
        );
    }
    figures
}

/// Pages of sessions whose events came one by one, with those of all other sessions in between.
pub fn scattered(task: Task<'_>) -> Figures {
    let sessions = task.scaled(SESSIONS).max(SCATTERED_WRITERS);
    let open = Open {
        folder: task.folder,
        sessions,
        ids: Ids::Unused,
    };
    let store = task.contender.open(open);
    let batches = sessions * SCATTERED_BATCHES;
    spread(&*store, sessions, SCATTERED_WRITERS, batches, SCATTERED);
    store.settle();
    drop(store);
    let store = task.contender.open(open);
    store.settle();
    let mut figures = Figures::new();
    let page = |at: u32| {
        count(PAGE, |see| {
            store.page(at * STRIDE % sessions, 50, PAGE, see)
        })
    };
    if drop_caches() {
        figures.insert("cold us".into(), time(COLD_READS, page));
    }
    figures.insert("warm us".into(), time(COLD_READS, page));
    figures
}

/// Fails unless this many events are shown.
fn count(expected: usize, read: impl FnOnce(&mut dyn FnMut(&[u8]))) {
    let (mut events, mut bytes) = (0, 0);
    read(&mut |data| {
        events += 1;
        bytes += data.len();
    });
    assert!(
        events == expected && bytes > 0,
        "{events} events of {expected}, with {bytes} bytes"
    );
}

/// The median, in microseconds.
fn time(reads: u32, read: impl Fn(u32)) -> f64 {
    let mut took: Vec<f64> = (0..reads)
        .map(|at| {
            let began = Instant::now();
            read(at);
            micros(began.elapsed())
        })
        .collect();
    percentile(&mut took, 0.5)
}
