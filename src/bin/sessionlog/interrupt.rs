//! Ctrl-C as a state that a command looks at, so that it ends in order.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Whether the user has asked the command to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt(Arc<(Mutex<bool>, Condvar)>);

impl Interrupt {
    /// Watches for Ctrl-C and SIGTERM from here on.
    pub(crate) fn watch() -> Self {
        let interrupt = Self::default();
        let (heard, (sender, begun)) = (interrupt.clone(), channel());
        // Without this thread a signal ends the process at once, as it does by default.
        let _watching = thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                // What cannot be watched keeps its default.
                let _watched = watch_signals(&sender, &heard);
            });
        // The channel is closed if the thread cannot watch.
        let _watches = begun.recv();
        interrupt
    }

    fn set(&self) {
        let (state, changed) = &*self.0;
        *state.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for so long, or until the user asks. Returns whether the user did.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let (state, changed) = &*self.0;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(state, at_most, |is_set| !*is_set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The exit code of a command that was ended by force.
const FORCED: i32 = 130;

/// Passes the first signal on. The second one ends the process.
fn watch_signals(begun: &Sender<()>, heard: &Interrupt) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let _told = begun.send(());
        signals.next().await;
        heard.set();
        signals.next().await;
        std::process::exit(FORCED)
    })
}

#[cfg(unix)]
struct Signals([tokio::signal::unix::Signal; 2]);

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self([interrupt, signal(SignalKind::terminate())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "it fails on unix")]
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        // Without the signal there is nothing else to wait for.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
