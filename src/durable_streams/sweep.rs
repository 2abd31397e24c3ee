//! Looks after streams that nobody asks for any more: removes those that have expired, and those
//! that are gone and have no fork left.
//!
//! No call depends on it, since each looks at the time of its stream. It gives space back.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::durable_streams::stream::{PREFIX, Stream, Streams};
use crate::http::blocking;
use crate::model::{Result, SessionId};
use crate::read::SessionQuery;
use crate::sync::Ordering;

/// The pause between two sweeps, and in multiples of the time that one takes.
const PAUSE: Duration = Duration::from_mins(1);
const PAUSES: u32 = 100;

/// The streams of one step.
const STEP: usize = 256;

/// Begins to sweep in the background, with the first request: only then there is a runtime.
pub(super) fn begin(streams: &Arc<Streams>) {
    if !streams.is_swept.swap(true, Ordering::Relaxed) {
        tokio::spawn(run(Arc::downgrade(streams)));
    }
}

/// Why a sweep ends before it has visited all streams.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The log could not be read.
    ForNow,
    /// The server stops, or the log takes no more changes.
    ForGood,
}

async fn run(streams: Weak<Streams>) {
    loop {
        let began = Instant::now();
        if sweep(&streams).await == Err(Ended::ForGood) {
            return;
        }
        sleep(PAUSE.max(began.elapsed() * PAUSES)).await;
    }
}

/// What a sweep has seen so far.
#[derive(Default)]
pub(super) struct Seen {
    /// The streams that are gone.
    gone: Vec<SessionId>,
    /// The streams that forks keep, each with its generation.
    kept: HashSet<(SessionId, u32)>,
}

/// Visits all streams once.
async fn sweep(streams: &Weak<Streams>) -> Result<(), Ended> {
    let mut query = Some(SessionQuery::by_id().prefix(PREFIX).limit(STEP));
    let mut seen = Seen::default();
    while let Some(next) = query {
        (query, seen) = step(streams, move |live| {
            let page = live.log().sessions(next)?;
            let next = page.next_page();
            for info in page.items {
                live.tend(&Stream::of(info), &mut seen)?;
            }
            Ok((next, seen))
        })
        .await?;
        tokio::task::yield_now().await;
    }
    step(streams, move |live| {
        live.tend_gone(&seen)?;
        live.forget_uses()
    })
    .await
}

/// Does a part of a sweep, unless the server stops.
async fn step<T: Send + 'static>(
    streams: &Weak<Streams>,
    part: impl FnOnce(&Streams) -> Result<T> + Send + 'static,
) -> Result<T, Ended> {
    let live = streams
        .upgrade()
        .filter(|streams| !streams.service.config.stopper().is_stopping())
        .ok_or(Ended::ForGood)?;
    let done = blocking(move || Ok(part(&live))).await;
    match done {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) if !error.needs_reopening() => {
            tracing::warn!(
                target: "sessionlog::durable_streams",
                %error,
                "streams whose time is over stay until the next sweep"
            );
            Err(Ended::ForNow)
        }
        // The calls that need the log report it.
        Ok(Err(_)) | Err(_) => Err(Ended::ForGood),
    }
}

impl Streams {
    /// Removes a stream that has expired, and notes of any other what the sweep has to know.
    pub(super) fn tend(&self, stream: &Stream, seen: &mut Seen) -> Result<()> {
        if let Some((source, generation)) = self.kept_by(stream) {
            seen.kept.insert((source.clone(), generation));
        }
        if stream.settings.gone {
            seen.gone.push(stream.info.id.clone());
        } else if self.is_expired(stream) {
            return pass_over(&stream.info.id, self.expire(stream));
        }
        Ok(())
    }

    /// Removes the streams that are gone and have no fork left, and hides what a crash has left of
    /// the others.
    ///
    /// A fork may have come behind the sweep, before its source was deleted. So each stream is
    /// looked at for forks again before it is removed.
    pub(super) fn tend_gone(&self, seen: &Seen) -> Result<()> {
        for session in &seen.gone {
            pass_over(session, self.tend_gone_one(session, seen))?;
        }
        Ok(())
    }

    fn tend_gone_one(&self, session: &SessionId, seen: &Seen) -> Result<()> {
        let read = Stream::read(self.log(), session)?;
        let Some(stream) = read.filter(|stream| stream.settings.gone) else {
            return Ok(());
        };
        self.hide(&stream.info)?;
        let named = (session.clone(), stream.info.generation);
        if seen.kept.contains(&named) {
            return Ok(());
        }
        self.remove_unneeded(Some(session.clone()))
    }

    /// Forgets the uses of streams that are not there or have no TTL.
    fn forget_uses(&self) -> Result<()> {
        for session in self.uses.sessions() {
            let read = Stream::read(self.log(), &session)?;
            if read.is_none_or(|stream| stream.settings.ttl.is_none()) {
                self.uses.forget(&session);
            }
        }
        Ok(())
    }
}

/// Passes over a stream that cannot be tended now, and not over a log that takes no more changes.
fn pass_over(session: &SessionId, tended: Result<()>) -> Result<()> {
    match tended {
        Err(error) if !error.needs_reopening() => {
            tracing::warn!(
                target: "sessionlog::durable_streams",
                %error,
                stream = %session,
                "a stream whose time is over stays for now"
            );
            Ok(())
        }
        tended => tended,
    }
}
