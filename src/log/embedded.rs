//! The embedded engine behind the seam: one process and one folder.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, Landing};
use crate::disk::Disk;
use crate::engine::{Engine, MergeOrders, open};
use crate::maintain::Threads;
use crate::model::{
    BackupReport, CompactProgress, Compacted, Erasure, Error, EventId, Options, Result, Stats,
};
use crate::sync::{Deadline, Mutex, Stopped};
use crate::turn::TurnReader;
use crate::write::{Landed, Proposal, Submitted, Ticket};

/// How often a caller of `compact` is told how far it has come.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// An open folder with its threads. It ends when it is dropped.
pub(super) struct Embedded {
    engine: Arc<Engine>,
    threads: Mutex<Threads>,
}

impl Embedded {
    pub(super) fn open(disk: Arc<dyn Disk>, folder: &Path, options: Options) -> Result<Self> {
        let embedded = Self {
            engine: Arc::new(open(disk, folder, options)?),
            threads: Mutex::default(),
        };
        embedded.threads.lock().start(&embedded.engine)?;
        Ok(embedded)
    }
}

impl Backend for Embedded {
    fn turns(&self) -> &TurnReader {
        &self.engine.turns
    }

    fn check_writable(&self) -> Result<()> {
        self.engine.writer().map(drop)
    }

    fn append(&self, proposal: Proposal) -> Result<Landed> {
        let ticket: Arc<Ticket> = Arc::default();
        let request = self.engine.request(proposal, &ticket)?;
        let joined = self.engine.writer()?.commit.append(request)?;
        ticket.wait(&joined)
    }

    fn append_async(&self, proposal: Proposal) -> Landing<'_> {
        Box::pin(async move {
            let ticket: Arc<Ticket> = Arc::default();
            let commit = &self.engine.writer()?.commit;
            let mut request = self.engine.request(proposal, &ticket)?;
            while let Submitted::NoRoom(full, room) = commit.submit(request)? {
                poll_fn(|context| room.poll(context)).await;
                request = *full;
            }
            poll_fn(|context| ticket.poll(context)).await
        })
    }

    #[cfg(all(test, feature = "http"))]
    fn is_at_rest(&self) -> bool {
        let writer = self.engine.writer();
        writer.is_ok_and(|writer| writer.commit.is_at_rest())
    }

    fn refresh(&self) -> Result<Option<EventId>> {
        self.engine.refresh()
    }

    fn health(&self) -> Result<()> {
        let Some(writer) = &self.engine.writer else {
            return Ok(());
        };
        writer.shared.state.check_poison()?;
        self.engine
            .refusals
            .check(self.engine.store.options.stall_wait)
    }

    fn stats(&self) -> Stats {
        self.engine.stats()
    }

    fn compact(
        &self,
        progress: &mut dyn FnMut(CompactProgress) -> ControlFlow<()>,
    ) -> Result<Compacted> {
        let writer = self.engine.writer()?;
        writer.shared.state.check_poison()?;
        let request = writer.merge.update(MergeOrders::ask);
        let result = loop {
            let answer = writer
                .merge
                .wait_until(Deadline::after(PROGRESS_EVERY), |orders| {
                    (orders.answered >= request).then(|| orders.answer.clone())
                });
            match answer {
                Ok(Some(answer)) => break answer.unwrap_or(Err(Error::Closed)),
                Err(Stopped) => break Err(Error::Closed),
                Ok(None) => {}
            }
            if progress(writer.merge.with(|orders| orders.progress)).is_break() {
                break Ok(Compacted::default());
            }
        };
        writer.merge.with(|orders| orders.waiting -= 1);
        result
    }

    fn backup(&self, disk: Arc<dyn Disk>, folder: &Path) -> Result<BackupReport> {
        self.engine.backup(disk, folder)
    }

    fn erasure(&self) -> Result<Erasure> {
        Ok(self.engine.erasure())
    }

    fn close(&self) -> Result<()> {
        self.stop(Stop::Clean)
    }
}

/// How a log ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// With a record of it.
    Clean,
    /// As fast as it can be: the next open replays the journal.
    Dropped,
}

impl Embedded {
    /// Stops everything; a second call waits for the first and does nothing.
    fn stop(&self, how: Stop) -> Result<()> {
        let engine = &self.engine;
        engine.store.check_process()?;
        let mut threads = self.threads.lock();
        let mut result = Ok(());
        if engine.store.close() {
            threads.stop(engine);
            if let (Some(writer), Stop::Clean) = (&engine.writer, how) {
                result = writer
                    .record_clean_stop()
                    .and_then(|()| writer.shared.spares.trim());
            }
        }
        engine.recent.wake_all();
        engine.unlock();
        result
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Errors come out of `close`; a log that is only dropped is recovered when it is opened.
        drop(self.stop(Stop::Dropped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{ack, append_of, call, delete_of, proposal};
    use crate::codec::SessionState;
    use crate::disk::RealDisk;
    use crate::model::{Batch, Delete, NewEvent, SessionId};
    use crate::sync::yield_now;
    use crate::write::{Landed, Outcome};

    /// The race of a retry with the sealing of what it retries.
    #[test]
    fn a_key_that_is_sealed_while_it_is_looked_up_still_lands_once() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options::new().recent_bytes_max(0);
        let disk = Arc::new(RealDisk::default());
        let log = Embedded::open(disk, folder.path(), options).unwrap();
        let session = SessionId::new("s").unwrap();
        let append = |batch: Batch| {
            let landed = call(&log, append_of(&session, batch)).unwrap();
            ack(log.turns().store(), &session, &landed).unwrap()
        };
        let keyed = || {
            Batch::new()
                .event(NewEvent::new("note", "once"))
                .idempotency_key("key")
        };
        let engine = &log.engine;
        let _held = engine
            .recent
            .sessions
            .pin(&session, || Ok(SessionState::default()))
            .unwrap();
        append(Batch::new().event(NewEvent::new("note", "first")));
        let ticket: Arc<Ticket> = Arc::default();
        let late = proposal(log.turns(), &mut append_of(&session, keyed())).unwrap();
        let late = engine.request(late, &ticket).unwrap();
        let first = append(keyed());
        while log.stats().segments < 2 {
            append(Batch::new().event(NewEvent::new("note", "more")));
            yield_now();
        }
        let is_stale = late.is_stale(&late.session.lock());
        assert!(is_stale, "the key has to be looked up again");
        let joined = engine.writer().unwrap().commit.append(late).unwrap();
        let found = ticket.wait(&joined).unwrap();
        let Outcome::Replay(found) = found.outcome else {
            panic!("it landed again: {found:?}");
        };
        assert_eq!((found.first, found.last()), (first.first, first.last));
        assert!(append(keyed()).replayed);
    }

    /// They may share a group: then all of it is done before the first of it is answered.
    #[test]
    fn a_batch_is_not_answered_with_the_events_of_the_next_generation() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::default());
        let log = Embedded::open(disk, folder.path(), Options::new()).unwrap();
        let session = SessionId::new("s").unwrap();
        let land = |events: u32| {
            let batch = (0..events).fold(Batch::new(), |batch, nth| {
                batch.event(NewEvent::new("note", nth.to_string()))
            });
            call(&log, append_of(&session, batch)).unwrap()
        };
        let state = land(5).state;
        let replay = Landed::without_record(Outcome::ReplayOf((1, 5)), &state);
        let answer = || ack(log.turns().store(), &session, &replay).unwrap();
        assert_eq!(answer().events.len(), 5);
        call(&log, delete_of(&session, Delete::new())).unwrap();
        let is_without_events = || {
            let answer = answer();
            answer.replayed && (answer.first, answer.last) == (1, 5) && answer.events.is_empty()
        };
        assert!(is_without_events());
        for events in [1, 9] {
            land(events);
            assert!(is_without_events());
        }
    }
}
