//! Sealing: writes the journal's records, in session order, into a segment, and frees the journal
//! files.
//!
//! Sealing waits until the log is idle or another half file has been written, so a burst of appends
//! has the disk to itself. Writers that outrun sealing are throttled as the segment grows, rather
//! than stopped until it is done.
//!
//! Invariant: a journal file is released only after its segment, the segment's directory entry and
//! both manifest slots that name it are durable. A failed segment write is retried from the records
//! in memory. A segment that the manifest has no room for is not begun. A failed manifest write
//! poisons the log.

use std::time::Duration;

use crate::disk::{Halt, Work};
use crate::engine::{Engine, Writer};
use crate::manifest::{ManifestFile, Reserved};
use crate::model::{Error, Result};
use crate::recent::{Sealable, Timing};
use crate::segment::{SegmentInfo, SegmentPlan, write_segment};

/// How long to wait after a failure before sealing again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The log that sealing works on.
struct Sealer<'a> {
    engine: &'a Engine,
    writer: &'a Writer,
}

/// Runs the background thread until the log stops.
pub(crate) fn run(engine: &Engine) {
    let Some(writer) = &engine.writer else {
        return;
    };
    let sealer = Sealer { engine, writer };
    let mut retry = None;
    while let Ok(timing) = writer.shared.seal.wait_for_work(retry) {
        retry = match sealer.seal_all(timing) {
            Ok(()) => {
                engine.refusals.note(Work::Sealing, None);
                None
            }
            // A poisoned log seals no more. Any other refusal of the disk is taken as temporary.
            Err(Halt::Failed(refused)) if writer.shared.state.check_poison().is_ok() => {
                engine.refusals.note(Work::Sealing, Some(&refused));
                Some(RETRY_AFTER)
            }
            Err(_for_good) => return,
        };
    }
}

impl Sealer<'_> {
    fn seal_all(&self, timing: Timing) -> Result<(), Halt> {
        let sealed = self
            .name_new_files()
            .map_err(Halt::from)
            .and_then(|()| self.seal_ready(timing));
        let trimmed = if timing == Timing::Now {
            self.writer.shared.spares.trim()
        } else {
            Ok(())
        };
        sealed.and(trimmed.map_err(Halt::from))
    }

    fn seal_ready(&self, timing: Timing) -> Result<(), Halt> {
        let recent = &self.writer.shared.recent;
        while let Some(sealable) = recent.sealable(timing) {
            let sealed = self.seal(sealable);
            recent.note_written(0);
            self.writer.shared.seal.note_progress();
            sealed?;
        }
        Ok(())
    }

    fn seal(&self, sealable: Sealable) -> Result<(), Halt> {
        let Sealable {
            records,
            memory,
            start_lsn,
            end_lsn,
            files,
        } = sealable;
        let Engine {
            store,
            filter_dir,
            layout,
            refusals,
            ..
        } = self.engine;
        let manifest = self.writer.manifest.lock();
        let segments = &manifest.value.segments;
        let number = segments.last().map_or(0, |newest| newest.number) + 1;
        // Reserved first, so that no segment is written that the manifest cannot name.
        let slots = self.reserve(&manifest)?;
        drop(manifest);
        let plan = SegmentPlan {
            store: filter_dir.store,
            number,
            start_lsn,
            end_lsn,
            records,
        };
        let record_memory = memory / plan.records.len() as u64;
        let info = write_segment(&*filter_dir.disk, &layout.segments, &plan, |written| {
            self.on_progress(record_memory * written as u64)
        })?;
        let mut manifest = self.writer.manifest.lock();
        self.store_manifest(&mut manifest, &slots, files.len(), Some(info.clone()))?;
        drop(manifest);
        store.locator.publish(self.engine.segment(info));
        self.writer.new_segment.update(|is_new| *is_new = true);
        self.writer
            .shared
            .recent
            .release_sealed(files.len(), plan.records);
        for (file, bytes) in &files {
            // A file that cannot be opened is removed. The next open finds a file that cannot be
            // removed.
            if let Err(refused) = self.writer.shared.spares.give(file.number, *bytes) {
                refusals.note(Work::JournalFiles, Some(&refused));
            }
        }
        Ok(())
    }

    /// Makes room for writers in proportion to the segment's growth.
    fn on_progress(&self, memory_written: u64) -> Result<(), Halt> {
        self.writer.shared.seal.check_stop()?;
        self.writer.shared.recent.note_written(memory_written);
        self.writer.shared.seal.note_progress();
        Ok(())
    }

    /// Names in the manifest the journal files begun since it was written. Replay finds them even
    /// if they are not named, but notices a lost file only if it is.
    fn name_new_files(&self) -> Result<()> {
        let mut manifest = self.writer.manifest.lock();
        if manifest.value.journal == self.writer.shared.recent.files_in_use(0) {
            return Ok(());
        }
        let slots = self.reserve(&manifest)?;
        self.store_manifest(&mut manifest, &slots, 0, None)
    }

    /// Returns the slots of the next manifest. Poisons the log if its folder was moved or replaced.
    fn reserve(&self, manifest: &ManifestFile) -> Result<Reserved> {
        manifest.reserve().map_err(|error| match error {
            Error::Displaced { .. } => self.writer.shared.state.poison(error),
            other => other,
        })
    }

    /// Writes the current state to the manifest: the `new` segment, and all journal files in use
    /// except the first `sealed`. A failure poisons the log.
    fn store_manifest(
        &self,
        manifest: &mut ManifestFile,
        slots: &Reserved,
        sealed: usize,
        new: Option<SegmentInfo>,
    ) -> Result<()> {
        let state = &self.writer.shared.state;
        let value = &mut manifest.value;
        value.segments.extend(new);
        value.journal = self.writer.shared.recent.files_in_use(sealed);
        value.durable_lsn = state.durable_lsn();
        if let Some(newest) = value.journal.last() {
            value.incarnation = newest.incarnation;
        }
        manifest
            .store_in(slots)
            .map_err(|error| state.poison(error))
    }
}
