//! The latency from an append's call to its delivery on a stream that follows the session, with one
//! and with a thousand streams open.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Task;
use crate::measure::{Figures, micros, percentile};
use crate::store::{Following, Ids, Load, Open};

const LOAD: Load = Load::noise(1, 256);
const OTHERS: u32 = 999;

pub fn live(task: Task<'_>) -> Figures {
    let mut figures = Figures::new();
    for (others, suffix) in [(0, ""), (OTHERS, " of 1000")] {
        let folder = task.folder.join(others.to_string());
        std::fs::create_dir_all(&folder).expect("a folder");
        let store = task.contender.open(Open {
            folder: &folder,
            sessions: 1 + others,
            ids: Ids::Unused,
        });
        // They follow sessions of their own, until each of these gets its only event.
        let idle: Vec<_> = (1..=others)
            .map(|other| store.follow(other, Box::new(|| Following::Enough)))
            .collect();
        let (seen, is_seen) = mpsc::channel();
        let following = store.follow(
            0,
            Box::new(move || {
                let told = seen.send(Instant::now());
                if told.is_ok() {
                    Following::On
                } else {
                    Following::Enough
                }
            }),
        );
        let (mut acks, mut deliveries) = (Vec::new(), Vec::new());
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs_f64(task.seconds) {
            let asked = Instant::now();
            store.append(0, LOAD);
            acks.push(micros(asked.elapsed()));
            let delivered = is_seen.recv().expect("the event is delivered");
            deliveries.push(micros(delivered.duration_since(asked)));
        }
        drop(is_seen);
        (0..=others).for_each(|session| store.append(session, LOAD));
        for following in idle.into_iter().chain([following]) {
            following.join().expect("a stream ends");
        }
        let (ack, delivery) = (percentile(&mut acks, 0.5), percentile(&mut deliveries, 0.5));
        figures.insert(format!("p50 us{suffix}"), delivery);
        figures.insert(format!("p99 us{suffix}"), percentile(&mut deliveries, 0.99));
        figures.insert(format!("ack p50 us{suffix}"), ack);
        figures.insert(format!("over ack us{suffix}"), delivery - ack);
    }
    figures
}
