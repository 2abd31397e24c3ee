//! Signals: the first one to stop ends the server in order, and the second one at once.

use std::io;

use sessionlog::http::Tls;
use tokio::sync::watch;

/// Says when the first signal to stop has come.
#[derive(Clone)]
pub(super) struct Stop(watch::Receiver<bool>);

impl Stop {
    pub(super) async fn asked(mut self) {
        // The task that sends lives as long as the process.
        let _asked = self.0.wait_for(|asked| *asked).await;
    }
}

/// Watches the signals from now on.
pub(super) fn watch() -> io::Result<Stop> {
    let mut signals = Signals::new()?;
    let (asked, stop) = watch::channel(false);
    tokio::spawn(async move {
        signals.next().await;
        asked.send_replace(true);
        signals.next().await;
        tracing::warn!("asked to stop again, the server ends at once");
        std::process::exit(1);
    });
    Ok(Stop(stop))
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "it fails on unix")]
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        // Without the signal there is nothing else to wait for.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Reads the certificate again on each SIGHUP.
#[cfg(unix)]
pub(super) fn reload_on_hangup(tls: Option<Tls>) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            super::systemd::reloading();
            match tls.as_ref().map(Tls::reload) {
                Some(Ok(())) => tracing::info!(
                    "the certificate was read again; keys and options change with a restart"
                ),
                Some(Err(error)) => tracing::error!(
                    %error,
                    "the certificate was not read again, and the one in use stays"
                ),
                None => tracing::warn!(
                    "there is no certificate to read again; keys and options change with a restart"
                ),
            }
            super::systemd::reloaded();
        }
    });
    Ok(())
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "it fails on unix")]
pub(super) fn reload_on_hangup(_tls: Option<Tls>) -> io::Result<()> {
    Ok(())
}
