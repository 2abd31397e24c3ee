//! Looks after streams that nobody asks for any more: removes those that have expired, and those
//! that are gone and have no fork left.
//!
//! No call depends on it, since each looks at the time of its stream. It gives space back.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::durable_streams::remove::hide;
use crate::durable_streams::stream::{PREFIX, Stream, Streams};
use crate::http::blocking;
use crate::model::{Delete, Error, Result};
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

async fn run(streams: Weak<Streams>) {
    loop {
        let began = Instant::now();
        if sweep(&streams).await.is_none() {
            return;
        }
        sleep(PAUSE.max(began.elapsed() * PAUSES)).await;
    }
}

/// Visits all streams once. `None` when there are no more sweeps.
async fn sweep(streams: &Weak<Streams>) -> Option<()> {
    let mut query = Some(SessionQuery::by_id().prefix(PREFIX).limit(STEP));
    while let Some(next) = query {
        let live = streams
            .upgrade()
            .filter(|streams| !streams.service.config.stopper().is_stopping())?;
        let step = blocking(move || {
            let page = live.log().sessions(next)?;
            for info in &page.items {
                let stream = Stream::of(info.clone());
                if stream.settings.may_end()
                    && let Err(error) = live.tend(&stream)
                {
                    tracing::warn!(
                        target: "sessionlog::durable_streams",
                        %error,
                        stream = %info.id,
                        "a stream whose time is over stays for now"
                    );
                }
            }
            Ok(page.next_page())
        });
        // The log is closed, or refuses: any failure but this is reported by the work that it
        // stops.
        query = step.await.ok()?;
        tokio::task::yield_now().await;
    }
    let live = streams.upgrade()?;
    blocking(move || {
        for session in live.uses.sessions() {
            let read = Stream::read(live.log(), &session)?;
            if read.is_none_or(|stream| stream.settings.ttl.is_none()) {
                live.uses.forget(&session);
            }
        }
        Ok(())
    })
    .await
    .ok()
}

impl Streams {
    /// Does what is due for a stream.
    pub(super) fn tend(&self, stream: &Stream) -> Result<()> {
        let session = &stream.info.id;
        if !stream.settings.gone {
            return if self.is_expired(stream) {
                self.expire(stream)
            } else {
                Ok(())
            };
        }
        if self.has_forks(stream)? {
            return hide(self.log(), session);
        }
        match self.remove(stream, Delete::new()) {
            Err(Error::UnknownSession { .. }) => Ok(()),
            removed => removed.map(drop),
        }
    }
}
