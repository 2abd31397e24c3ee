//! Appends by threads that wait for each, and reads.

use std::time::{Duration, Instant};

use sessionlog::{NewEvent, PageRequest, SessionId, SessionLog, SessionQuery};

use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;

/// The size of an event's data, in bytes.
const EVENT_BYTES: usize = 256;

const PAGE: usize = 1_000;

/// What appenders took together.
pub(super) struct Measured {
    pub(super) appenders: usize,
    /// What each append took, in order.
    pub(super) latencies: Vec<Duration>,
    pub(super) took: Duration,
    pub(super) batches_per_group: f64,
}

impl Measured {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate is shown with a few digits"
    )]
    pub(super) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// Appends for so long, by threads with a session each.
pub(super) fn append(
    log: &SessionLog,
    appenders: usize,
    seconds: Duration,
    interrupt: &Interrupt,
) -> Result<Measured> {
    let before = log.stats();
    let began = Instant::now();
    let latencies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..appenders)
            .map(|appender| {
                scope.spawn(move || append_alone(log, appender, began, seconds, interrupt))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| {
            let ended = || Failure::new("failed", "an appender has ended before its time");
            thread.join().map_err(|_panicked| ended())?
        });
        joined.collect::<Result<Vec<_>>>()
    })?;
    let (took, after) = (began.elapsed(), log.stats());
    let mut latencies: Vec<Duration> = latencies.into_iter().flatten().collect();
    latencies.sort_unstable();
    let groups = (after.groups - before.groups).max(1);
    #[expect(
        clippy::cast_precision_loss,
        reason = "a mean is shown with a few digits"
    )]
    let batches_per_group = (after.batches - before.batches) as f64 / groups as f64;
    Ok(Measured {
        appenders,
        latencies,
        took,
        batches_per_group,
    })
}

fn append_alone(
    log: &SessionLog,
    appender: usize,
    began: Instant,
    seconds: Duration,
    interrupt: &Interrupt,
) -> Result<Vec<Duration>> {
    let session: SessionId = format!("bench-{appender:04}").parse()?;
    let event = NewEvent::new("bench.event", vec![b'x'; EVENT_BYTES]);
    let mut latencies = Vec::new();
    while began.elapsed() < seconds && !interrupt.is_set() {
        let sent = Instant::now();
        log.append(&session, event.clone())?;
        latencies.push(sent.elapsed());
    }
    Ok(latencies)
}

/// Reads all events, and returns how many a second. It fails unless all are there.
pub(super) fn read_back(log: &SessionLog, appended: u64) -> Result<f64> {
    let (began, mut read) = (Instant::now(), 0_u64);
    let sessions = log.sessions(SessionQuery::by_id().limit(PAGE))?;
    for session in sessions.items {
        let mut next = Some(PageRequest::new().limit(PAGE));
        while let Some(request) = next {
            let page = log.list(&session.id, request)?;
            read += page.items.len() as u64;
            next = page.next_page();
        }
    }
    if read != appended {
        let message = format!("{appended} events were appended, and {read} are read back");
        return Err(Failure::new("failed", message).hint("report this as a bug of sessionlog"));
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate is shown with a few digits"
    )]
    let rate = read as f64 / began.elapsed().as_secs_f64().max(f64::EPSILON);
    Ok(rate)
}

/// Returns the value below which `share` of sorted values are.
pub(super) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a position in a list"
    )]
    let at = ((sorted.len() as f64 - 1.0) * share) as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// The rate of calls one after the other.
#[expect(
    clippy::cast_precision_loss,
    reason = "a rate is shown with a few digits"
)]
pub(super) fn rate(calls: &[Duration]) -> f64 {
    let took: Duration = calls.iter().sum();
    calls.len() as f64 / took.as_secs_f64().max(f64::EPSILON)
}
