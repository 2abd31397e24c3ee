//! The threads of an open log: when they start, and the order in which they end.

use std::sync::Arc;

use crate::disk::io_error;
use crate::engine::Engine;
use crate::maintain::{merge, retain, seal};
use crate::model::Result;
use crate::sync::{JoinHandle, give_way, spawn};
use crate::write::IN_FLIGHT_MAX;

/// The running threads of a log.
#[derive(Default)]
pub(crate) struct Threads {
    commit: Vec<JoinHandle<()>>,
    background: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts the threads of a log that is not read-only. After a failure some are running and must
    /// be [stopped](Self::stop).
    pub(crate) fn start(&mut self, engine: &Arc<Engine>) -> Result<()> {
        if engine.writer.is_none() {
            return Ok(());
        }
        let start = |name: &str, run: fn(&Engine)| {
            let (shared, root) = (Arc::clone(engine), &engine.layout.root);
            spawn(name, move || run(&shared)).map_err(io_error("start a thread for", root))
        };
        for _ in 0..IN_FLIGHT_MAX {
            self.commit.push(start("log-commit", run_commit)?);
        }
        self.background.push(start("log-spares", run_spares)?);
        self.background.push(start("log-seal", seal::run)?);
        self.background.push(start("log-index", run_index)?);
        self.background.push(start("log-merge", run_merge)?);
        self.background.push(start("log-retain", retain::run)?);
        Ok(())
    }

    /// Stops all threads. The commit threads end first, once all requests that joined a group are
    /// answered.
    pub(crate) fn stop(&mut self, engine: &Engine) {
        let Some(writer) = &engine.writer else {
            return;
        };
        writer.commit.stop();
        self.commit.drain(..).for_each(join);
        writer.shared.seal.stop();
        writer.shared.spares.stop();
        engine.index.stop();
        writer.recycled.stop();
        writer.merge.stop();
        writer.shared.retain.stop();
        self.background.drain(..).for_each(join);
    }
}

fn run_commit(engine: &Engine) {
    if let Some(writer) = &engine.writer {
        writer.commit.run();
    }
}

fn run_spares(engine: &Engine) {
    if let Some(writer) = &engine.writer {
        writer.shared.spares.run();
    }
}

fn run_merge(engine: &Engine) {
    give_way();
    merge::run(engine);
}

fn run_index(engine: &Engine) {
    engine.index.run(|| engine.locator.segments());
}

/// A thread that panicked has already reported it on stderr. The next open checks what it worked
/// on.
fn join(thread: JoinHandle<()>) {
    drop(thread.join());
}
