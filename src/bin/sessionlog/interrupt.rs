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
                if wait_for_signal(&sender).is_ok() {
                    heard.set();
                }
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

/// Waits for a signal, and says when it would hear one.
fn wait_for_signal(begun: &Sender<()>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(signal(begun))
}

#[cfg(unix)]
async fn signal(begun: &Sender<()>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let _heard = begun.send(());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[cfg(not(unix))]
async fn signal(begun: &Sender<()>) -> std::io::Result<()> {
    // It listens from the first poll on.
    let _heard = begun.send(());
    tokio::signal::ctrl_c().await
}
