//! What the handles of a log, its streams and its background threads share: everything that is
//! open, and the checks that each call begins with.

mod open;

pub(crate) use open::open;

use std::path::PathBuf;
use std::sync::Arc;

use crate::codec::{EncodedBatch, StoreId};
use crate::disk::{Disk, Refusals};
use crate::index::Index;
use crate::journal::Spares;
use crate::maintain::SealSignal;
use crate::manifest::Manifest;
use crate::model::{
    Batch, Counters, Error, Recovery, Result, SessionId, Stats, clock_skew, now_ms,
};
use crate::read::Store;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::write::{Answer, Commit, Request, SealedKey, Ticket};

/// What handles, streams and background threads share.
pub(crate) struct Engine {
    pub store: Store,
    pub counters: Arc<Counters>,
    pub writer: Option<Writer>,
    pub index: Arc<Index>,
    pub recovery: Recovery,
    pub refusals: Arc<Refusals>,
    /// Given back on close.
    pub lock: Mutex<Option<Box<dyn Send + Sync>>>,
    closed: AtomicBool,
    /// The process that opened it. In a copy of it, made with `fork`, the log's threads are
    /// missing, and what they held stays locked.
    opened_by: u32,
}

/// What only a log that is not read-only has.
pub(crate) struct Writer {
    pub disk: Arc<dyn Disk>,
    pub folder: PathBuf,
    pub store_id: StoreId,
    pub commit: Arc<Commit>,
    pub spares: Arc<Spares>,
    pub seal: Arc<SealSignal>,
    pub manifest: Arc<Mutex<Manifest>>,
}

impl Engine {
    pub(crate) fn new(
        store: Store,
        index: Arc<Index>,
        counters: Arc<Counters>,
        writer: Option<Writer>,
        recovery: Recovery,
        refusals: Arc<Refusals>,
    ) -> Self {
        let (lock, closed, opened_by) =
            (Mutex::new(None), AtomicBool::new(false), std::process::id());
        Self {
            store,
            counters,
            writer,
            index,
            recovery,
            refusals,
            lock,
            closed,
            opened_by,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Marks it as closed; says whether it was open.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::SeqCst)
    }

    /// Refuses to work in a copy of the process that opened the log.
    pub(crate) fn check_process(&self) -> Result<()> {
        if std::process::id() == self.opened_by {
            Ok(())
        } else {
            Err(Error::Forked {
                opened_by: self.opened_by,
            })
        }
    }

    pub(crate) fn open_store(&self) -> Result<&Store> {
        self.check_process()?;
        if self.is_closed() {
            Err(Error::Closed)
        } else {
            Ok(&self.store)
        }
    }

    pub(crate) fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or(Error::ReadOnly)
    }

    /// Checks and encodes a batch, and loads what the commit section will decide by.
    pub(crate) fn request(
        &self,
        session: &SessionId,
        batch: Batch,
        ticket: &Arc<Ticket>,
    ) -> Result<Request> {
        self.writer()?;
        let store = self.open_store()?;
        batch.check(&store.options.limits)?;
        let expected = batch.expected;
        let batch = EncodedBatch::new(session, batch);
        let entry = store
            .recent
            .pin(session, || store.locator.head(session))
            .map_err(Error::before_append)?;
        self.look_up_key(Request {
            batch,
            expected,
            created_ms: now_ms(&store.options.clock),
            session: entry,
            sealed: SealedKey::default(),
            answer: Answer::owed_to(ticket),
        })
    }

    /// Asks the segments for the batch's key, if it has one that memory does not know.
    pub(crate) fn look_up_key(&self, mut request: Request) -> Result<Request> {
        let Some(key) = request.batch.key() else {
            return Ok(request);
        };
        let state = request.session.lock();
        let (head, is_recent, as_of) = (
            state.head,
            state.record_of_key(&key.text).is_some(),
            state.keys_released,
        );
        drop(state);
        let session = request.session.id();
        let record = match head {
            Some(head) if !is_recent => self
                .store
                .locator
                .record_of_key(session, head.generation, &key.text)
                .map_err(Error::before_append)?,
            _ => None,
        };
        request.sealed = SealedKey {
            record: record.map(Arc::new),
            as_of,
        };
        Ok(request)
    }

    pub(crate) fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let recent = &self.store.recent;
        let segments = self.store.locator.segments();
        // Once, so that all segments are compared with the same.
        let indexed = self.index.through();
        let groups = self.counters.groups();
        let (barrier_time, barrier_time_max) = self.counters.barrier_time();
        Stats {
            events: recent.events(),
            batches: count(&self.counters.batches),
            groups,
            journal_bytes: count(&self.counters.journal_bytes),
            barrier_time,
            barrier_time_max,
            segments: segments.iter().count() as u64,
            segment_bytes: segments.iter().map(|segment| segment.info.file_bytes).sum(),
            recent_bytes: recent.bytes(),
            index_lag: segments
                .iter()
                .filter(|segment| segment.info.number > indexed)
                .count() as u64,
            index_rebuilds: self.index.rebuilds(),
            streams: count(&self.counters.streams),
            refusals: self.refusals.count(),
            refused: self.refusals.standing(),
            clock_skew: clock_skew(&self.store.options.clock, recent.last_id()),
            recovery: self.recovery.clone(),
        }
    }
}

impl Writer {
    pub(crate) fn record_clean_stop(&self, store: &Store) -> Result<()> {
        self.commit.check_place()?;
        let durable_lsn = self.commit.write_witness()?;
        let mut manifest = self.manifest.lock();
        manifest.journal = store.recent.files_in_use(0);
        manifest.durable_lsn = durable_lsn;
        manifest.clean = true;
        manifest.store(&*self.disk, &self.folder)
    }
}
