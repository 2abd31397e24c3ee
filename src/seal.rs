//! Sealing: the journal's records, in session order, into a segment; then the journal files are free again. In the background.
//!
//! Invariant: a journal file is given back only after its segment, the segment's directory entry and both manifest slots that
//! name it are durable. A failed segment write is done again from the records in memory; a failed manifest write poisons the log.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::StoreId;
use crate::commit::Commit;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::journal::Spares;
use crate::locate::Locator;
use crate::manifest::Manifest;
use crate::recent::{Recent, Sealable, Worth};
use crate::segment::{self, BlockCache, Segment, SegmentInfo, SegmentPlan, write_segment};
use crate::sync::{AtomicBool, Condvar, Deadline, Mutex, Ordering};

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
    work: bool,
}

impl SealSignal {
    /// A journal file is full.
    pub(crate) fn notify(&self) {
        self.state.lock().work = true;
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.notify();
    }

    /// Waits until `condition` holds, looking again whenever a segment was finished. `false` when it did not within `wait`.
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

    /// Waits for work, or for `retry` to pass. `false` when it is time to stop.
    fn wait_for_work(&self, retry: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        if let Some(retry) = retry {
            let deadline = Deadline::after(retry);
            while !self.is_stopped() && deadline.wait(&self.changed, &mut state) {}
            state.work = true;
        }
        while !state.work && !self.is_stopped() {
            self.changed.wait(&mut state);
        }
        state.work = false;
        !self.is_stopped()
    }

    fn finished(&self) {
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
    pub worth: Worth,
}

impl Sealer {
    /// The work of the background thread, until the signal stops.
    pub(crate) fn run(&self) {
        let mut retry = None;
        while self.signal.wait_for_work(retry) {
            retry = match self.seal_all() {
                Ok(()) => None,
                // Either the log is poisoned or closing, which ends the work, or the disk refused for now.
                Err(_refused) if self.commit.check_poison().is_ok() => Some(RETRY_AFTER),
                Err(_for_good) => return,
            };
        }
    }

    fn seal_all(&self) -> Result<()> {
        while let Some(sealable) = self.recent.sealable(self.worth) {
            self.seal(&sealable)?;
        }
        Ok(())
    }

    fn seal(&self, sealable: &Sealable) -> Result<()> {
        let number = self.manifest.lock().segments.last().map_or(0, |newest| newest.number) + 1;
        let plan = SegmentPlan {
            store: self.store,
            number,
            start_lsn: sealable.start_lsn,
            end_lsn: sealable.end_lsn,
            records: sealable.records.clone(),
        };
        let folder = segment::folder(&self.folder);
        let info = write_segment(&*self.disk, &folder, &plan, &self.signal.stop)?;
        self.name_in_manifest(info.clone(), sealable).map_err(|error| self.commit.poison(error))?;
        self.locator.publish(Segment::new(info, self.store, &folder, Arc::clone(&self.disk), Arc::clone(&self.cache)));
        self.recent.release_sealed(sealable);
        self.signal.finished();
        for (file, bytes) in &sealable.files {
            // A file that is not taken back lies idle until the next open finds it.
            let _taken_back = self.spares.give(file.number, *bytes);
        }
        Ok(())
    }

    fn name_in_manifest(&self, info: SegmentInfo, sealable: &Sealable) -> Result<(), Error> {
        let mut manifest = self.manifest.lock();
        manifest.durable_lsn = info.end_lsn;
        manifest.segments.push(info);
        manifest.journal = self.recent.files_from(sealable.end_lsn);
        manifest.incarnation = manifest.journal.last().map_or(manifest.incarnation, |newest| newest.incarnation);
        manifest.store(&*self.disk, &self.folder)
    }
}
