//! What a supervisor is told, by the protocol of `NOTIFY_SOCKET`. Without that variable nothing is
//! sent.

use sessionlog::SessionLog;

#[cfg(unix)]
pub(super) use told::{opening, ready, reloaded, reloading, stopping, watch};

#[cfg(not(unix))]
pub(super) use untold::{opening, ready, stopping, watch};

#[cfg(unix)]
mod told {
    use std::thread;
    use std::time::Duration;

    use sd_notify::NotifyState::{
        self, ExtendTimeoutUsec, Ready, Reloading, Status, Stopping, Watchdog,
    };

    use super::SessionLog;

    /// How much longer the start may take, each time that it is told to go on.
    const MORE_TIME: Duration = Duration::from_secs(30);

    fn tell(states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            tracing::warn!(%error, "the supervisor was not told");
        }
    }

    /// Tells that the start goes on. A long replay takes longer than supervisors wait.
    pub(in super::super) fn opening() {
        let more = u32::try_from(MORE_TIME.as_micros()).unwrap_or(u32::MAX);
        tell(&[Status("opening the log"), ExtendTimeoutUsec(more)]);
    }

    pub(in super::super) fn ready(url: &str) {
        tell(&[Ready, Status(&format!("listening on {url}"))]);
    }

    pub(in super::super) fn stopping() {
        tell(&[Stopping, Status("waiting for requests in progress")]);
    }

    pub(in super::super) fn reloading() {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[Reloading, now]),
            Err(_no_clock) => tell(&[Reloading]),
        }
    }

    pub(in super::super) fn reloaded() {
        tell(&[Ready]);
    }

    /// Pings the watchdog, where there is one, for as long as a restart would not help. It has a
    /// thread of its own, since a ping waits for a supervisor that takes none.
    pub(in super::super) fn watch(log: SessionLog) {
        let Some(within) = sd_notify::watchdog_enabled() else {
            return;
        };
        let pause = (within / 2).max(Duration::from_millis(1));
        thread::spawn(move || {
            loop {
                match log.health() {
                    Err(error) if error.needs_reopening() => {
                        tracing::error!(%error, "no ping for the watchdog: the log is out of service");
                    }
                    _ => tell(&[Watchdog]),
                }
                thread::park_timeout(pause);
            }
        });
    }
}

#[cfg(not(unix))]
mod untold {
    use super::SessionLog;

    pub(in super::super) fn opening() {}

    pub(in super::super) fn ready(_url: &str) {}

    pub(in super::super) fn stopping() {}

    pub(in super::super) fn watch(_log: SessionLog) {}
}
