//! Sealing: the journal's records, in session order, into a segment; then the journal files are
//! free again. In the background.
//!
//! A burst is left the disk to itself: sealing waits until the log is idle, or until half a file
//! more has been written. Who writes faster than that can be sealed is held back step by step, as
//! the segment grows, and not for all of a segment at once.
//!
//! Invariant: a journal file is given back only after its segment, the segment's directory entry
//! and both manifest slots that name it are durable. A failed segment write is done again from the
//! records in memory, and one that the manifest has no room for is not begun; a failed manifest
//! write poisons the log.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::StoreId;
use crate::disk::{Disk, Refusals, Work};
use crate::index::Locator;
use crate::journal::Spares;
use crate::manifest::{Manifest, Reserved};
use crate::model::{Error, Result};
use crate::recent::{Recent, Sealable};
use crate::segment::{self, BlockCache, Segment, SegmentInfo, SegmentPlan, write_segment};
use crate::sync::{AtomicBool, Condvar, Deadline, Mutex, Ordering};
use crate::write::Commit;

/// How long to wait before a segment is written again after a failure.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Between those who fill the journal and the one who empties it.
#[derive(Default)]
pub(crate) struct SealSignal {
    state: Mutex<SignalState>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct SignalState {
    work: Option<Timing>,
}

/// How soon full journal files are to be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timing {
    /// When room is needed. Until then the disk is left to those who append.
    Needed,
    /// Now: nobody appends, or it was time before and failed.
    Now,
}

impl SealSignal {
    /// A journal file is full, or what is recent has become much.
    pub(crate) fn notify(&self) {
        self.ask(Timing::Needed);
    }

    /// Nobody has appended for a while.
    pub(crate) fn notify_idle(&self) {
        self.ask(Timing::Now);
    }

    fn ask(&self, timing: Timing) {
        let mut state = self.state.lock();
        state.work = state.work.max(Some(timing));
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.notify();
    }

    /// Waits until `condition` holds, looking again whenever a segment has grown. `false` when it
    /// did not within `wait`.
    pub(crate) fn wait_until(&self, wait: Duration, condition: impl Fn() -> bool) -> bool {
        if condition() {
            return true;
        }
        self.notify();
        let deadline = Deadline::after(wait);
        let mut state = self.state.lock();
        while !condition() {
            if !deadline.wait(&self.changed, &mut state) {
                return condition();
            }
        }
        true
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for work, or for `retry` to pass. `None` when it is time to stop.
    fn wait_for_work(&self, retry: Option<Duration>) -> Option<Timing> {
        let mut state = self.state.lock();
        if let Some(retry) = retry {
            let deadline = Deadline::after(retry);
            while !self.is_stopped() && deadline.wait(&self.changed, &mut state) {}
            state.work = Some(Timing::Now);
        }
        while state.work.is_none() && !self.is_stopped() {
            self.changed.wait(&mut state);
        }
        state.work.take().filter(|_| !self.is_stopped())
    }

    fn progressed(&self) {
        // Under the lock, so that nobody checks the condition before and waits after.
        let _state = self.state.lock();
        self.changed.notify_all();
    }
}

/// What sealing works on.
pub(crate) struct Sealer {
    pub disk: Arc<dyn Disk>,
    pub folder: PathBuf,
    pub store: StoreId,
    pub signal: Arc<SealSignal>,
    pub recent: Arc<Recent>,
    pub commit: Arc<Commit>,
    pub manifest: Arc<Mutex<Manifest>>,
    pub locator: Arc<Locator>,
    pub cache: Arc<BlockCache>,
    pub spares: Arc<Spares>,
    pub refusals: Arc<Refusals>,
}

impl Sealer {
    /// The work of the background thread, until the signal stops.
    pub(crate) fn run(&self) {
        let mut retry = None;
        while let Some(timing) = self.signal.wait_for_work(retry) {
            let sealed = self.seal_all(timing);
            retry = match sealed {
                Ok(()) => None,
                // Either the log is poisoned or closing, which ends the work, or the disk refused
                // for now.
                Err(_) if self.commit.check_poison().is_ok() => Some(RETRY_AFTER),
                Err(_for_good) => return,
            };
            self.refusals.note(Work::Sealing, &sealed);
        }
    }

    fn seal_all(&self, timing: Timing) -> Result<()> {
        let sealed = self.name_new_files().and_then(|()| self.seal_ready(timing));
        let trimmed = if timing == Timing::Now {
            self.spares.trim()
        } else {
            Ok(())
        };
        sealed.and(trimmed)
    }

    fn seal_ready(&self, timing: Timing) -> Result<()> {
        while let Some(sealable) = self.recent.sealable(timing) {
            let sealed = self.seal(sealable);
            self.recent.note_written(0);
            self.signal.progressed();
            sealed?;
        }
        Ok(())
    }

    fn seal(&self, sealable: Sealable) -> Result<()> {
        let Sealable {
            records,
            memory,
            start_lsn,
            end_lsn,
            files,
        } = sealable;
        let manifest = self.manifest.lock();
        let number = manifest.segments.last().map_or(0, |newest| newest.number) + 1;
        // First, so that no segment is written that cannot be named.
        let slots = self.reserve(&manifest)?;
        drop(manifest);
        let plan = SegmentPlan {
            store: self.store,
            number,
            start_lsn,
            end_lsn,
            records,
        };
        let record_memory = memory / plan.records.len() as u64;
        let folder = segment::folder(&self.folder);
        let info = write_segment(&*self.disk, &folder, &plan, |written| {
            self.go_on(record_memory * written as u64)
        })?;
        self.store_manifest(
            &mut self.manifest.lock(),
            &slots,
            files.len(),
            Some(info.clone()),
        )?;
        self.locator.publish(Segment::new(
            info,
            self.store,
            &folder,
            Arc::clone(&self.disk),
            Arc::clone(&self.cache),
        ));
        self.recent.release_sealed(files.len(), plan.records);
        for (file, bytes) in &files {
            // One that cannot be opened is removed, and one that cannot be removed is found by the
            // next open.
            if let Err(refused) = self.spares.give(file.number, *bytes) {
                self.refusals.note::<()>(Work::JournalFiles, &Err(refused));
            }
        }
        Ok(())
    }

    /// Lets writers go on as far as the segment has grown. Says [`Error::Closed`] when it is time
    /// to stop.
    fn go_on(&self, memory_written: u64) -> Result<()> {
        if self.signal.is_stopped() {
            return Err(Error::Closed);
        }
        self.recent.note_written(memory_written);
        self.signal.progressed();
        Ok(())
    }

    /// Names the journal files that were begun since the manifest was written. Replay would find
    /// them without; one that is gone is missed only if it was named.
    fn name_new_files(&self) -> Result<()> {
        let mut manifest = self.manifest.lock();
        if manifest.journal == self.recent.files_in_use(0) {
            return Ok(());
        }
        let slots = self.reserve(&manifest)?;
        self.store_manifest(&mut manifest, &slots, 0, None)
    }

    /// The slots of the next manifest. A log that is no longer where it was opened is poisoned.
    fn reserve(&self, manifest: &Manifest) -> Result<Reserved> {
        let reserved = manifest.reserve(&*self.disk, &self.folder);
        reserved.map_err(|error| {
            if matches!(error, Error::Displaced { .. }) {
                self.commit.poison(error)
            } else {
                error
            }
        })
    }

    /// Writes down what counts now: the `new` segment, and all journal files in use but the first
    /// `sealed`. A failure poisons the log.
    fn store_manifest(
        &self,
        manifest: &mut Manifest,
        slots: &Reserved,
        sealed: usize,
        new: Option<SegmentInfo>,
    ) -> Result<()> {
        manifest.segments.extend(new);
        manifest.journal = self.recent.files_in_use(sealed);
        manifest.durable_lsn = self.commit.durable_lsn();
        manifest.incarnation = manifest
            .journal
            .last()
            .map_or(manifest.incarnation, |newest| newest.incarnation);
        manifest
            .store_in(slots)
            .map_err(|error| self.commit.poison(error))
    }
}
