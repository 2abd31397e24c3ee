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

use std::sync::Arc;
use std::time::Duration;

use crate::codec::{Fault, Record};
use crate::disk::{Halt, Work};
use crate::engine::{Engine, Writer};
use crate::maintain::gather::{by_session, put_kept};
use crate::maintain::keep::Keep;
use crate::maintain::marks::NewMarks;
use crate::maintain::name::{name_segments, reserve};
use crate::model::{EventId, Result, SessionId};
use crate::recent::{Sealable, Timing};
use crate::segment::{SegmentSpec, SegmentWriter, write_segment};
use crate::sync::Ordering;

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
    let signal = &writer.shared.seal;
    while let Ok(timing) = signal.wait_for_work() {
        match sealer.seal_all(timing) {
            Ok(()) => engine.refusals.note(Work::Sealing, None),
            // A poisoned log seals no more. Any other refusal of the disk is taken as temporary.
            Err(Halt::Failed(refused)) if writer.shared.state.check_poison().is_ok() => {
                engine.refusals.note(Work::Sealing, Some(&refused));
                if signal.pause_before_retry(timing, RETRY_AFTER).is_err() {
                    return;
                }
            }
            Err(_for_good) => {
                signal.note_progress();
                return;
            }
        }
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
            locator,
            segments,
            refusals,
            ..
        } = self.engine;
        // Reserved first, so that no segment is written that the manifest cannot name.
        let slots = reserve(self.writer)?;
        let set = locator.segments();
        // A stretch without records has no ID of its own. It ends where the one before it does, so
        // that it is not taken for the one that holds what came after it.
        let before = set.iter().next_back();
        let before = before.map_or(EventId::from_u128(0), |segment| segment.info.last_id());
        let first_id = records.first().map_or(before, |first| first.base);
        let last_id = records.last().map_or(before, |last| last.last_id());
        let keys = records.iter().filter(|record| record.key.is_some()).count();
        let by_session = by_session(&records);
        let spec = SegmentSpec {
            store: segments.store,
            number: self.writer.next_segment(),
            tier: 0,
            start_lsn,
            end_lsn,
            first_id,
            last_id,
            compression: store.options.compression,
            items_max: (by_session.len() + keys) as u64,
            table_bytes_max: store.options.table_bytes_max,
        };
        let record_memory = memory / (records.len() as u64).max(1);
        let marks = NewMarks::of(store, &set, &records)?;
        let info = write_segment(&*segments.disk, &segments.path, spec, |out| {
            self.write_sessions(out, by_session, record_memory)
        })?;
        name_segments(self.writer, &slots, |manifest| {
            manifest.segments.push(info.clone());
            marks.put(manifest);
        })?;
        let segment = Arc::new(segments.segment(info));
        locator.publish(|set| set.with(segment));
        store.counters.seals.fetch_add(1, Ordering::Relaxed);
        self.writer.merge.update(|orders| orders.changed = true);
        self.writer
            .shared
            .recent
            .release_sealed(files.len(), records);
        for (file, bytes) in &files {
            // A file that cannot be opened is removed. The next open finds a file that cannot be
            // removed.
            if let Err(refused) = self.writer.shared.spares.give(file.number, *bytes) {
                refusals.note(Work::JournalFiles, Some(&refused));
            }
        }
        self.writer.recycled.update(|lsn| *lsn = end_lsn);
        Ok(())
    }

    /// Writes each session's records, and its state after them.
    fn write_sessions(
        &self,
        out: &mut SegmentWriter<'_>,
        sessions: Vec<(SessionId, Vec<Arc<Record>>)>,
        record_memory: u64,
    ) -> Result<(), Halt> {
        let Engine {
            store,
            recent,
            locator,
            ..
        } = self.engine;
        let (mut done, mut reported) = (0, 0);
        for (session, records) in sessions {
            let pin = recent.sessions.pin(&session, || locator.state(&session))?;
            let mut state = pin.lock().sealed();
            let mut keep = Keep::of(store, &session)?;
            for record in &records {
                state.apply(record);
                put_kept(&mut keep, store, record, out)?.map_err(Fault::in_memory)?;
                done += 1;
                if out.written() > reported {
                    reported = out.written();
                    self.on_progress(record_memory * done)?;
                }
            }
            out.end_session(&session, &state)?;
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
        let is_named = {
            let manifest = self.writer.manifest.lock();
            let sealed_lsn = manifest.value.sealed_lsn();
            manifest.value.journal == self.writer.shared.recent.files_in_use(sealed_lsn)
        };
        if is_named {
            return Ok(());
        }
        let slots = reserve(self.writer)?;
        name_segments(self.writer, &slots, |_manifest| {})
    }
}
