//! Opening: turns the contents of a folder into a log that readers and writers may use.
//!
//! Invariants:
//! * Before `open` returns, everything readable is on stable storage. After an unclean stop the
//!   last journal file is therefore rewritten into another one, under a new incarnation, with a
//!   barrier and then the manifest. A barrier over the old bytes proves nothing: after a failed
//!   sync the page cache may hold bytes that the disk lacks.
//! * Bytes after the end of the log are discarded for good: nothing is ever written after the end
//!   in the old file.
//! * Nothing is released or overwritten before the manifest that it rests on is durable in both
//!   slots. The manifest as found may be only in the device's cache: its writer may have been
//!   killed before its barrier, or between the two slots.
//! * Recovery may be interrupted at any point and then starts over. The old file counts until the
//!   manifest names the new one.

use std::path::Path;
use std::sync::Arc;

use crate::codec::{FileHeader, StoreId};
use crate::disk::{Disk, Hold, Layout, Mode, Refusals, make_root};
use crate::engine::beside::{load_beside, no_log_in};
use crate::engine::restore::{LogEnd, check_begin, restore, split_off_before};
use crate::engine::{Engine, FolderLock, Parts, WriterParts};
use crate::journal::{
    self, ActiveFile, HEADER_BYTES, JournalWriter, Replayed, ReplayedFile, Spares, WITNESS_BYTES,
    replay, write_image,
};
use crate::manifest::{Manifest, ManifestFile};
use crate::model::{EventId, IdClock, Options, Recovery, Result, clock_skew, timestamp};
use crate::recent::{Bounds, Recent};
use crate::sync::Instant;

/// Opens the log in `folder` on `disk`.
pub(crate) fn open(disk: Arc<dyn Disk>, folder: &Path, options: Options) -> Result<Engine> {
    let began = Instant::now();
    let opening = Opening {
        disk,
        layout: Layout::of(folder),
        options,
        refusals: Arc::default(),
    };
    let mut engine = if opening.options.read_only {
        opening.read_only()?
    } else {
        Engine::assemble(opening.writable()?)
    };
    engine.recovery.took = began.elapsed();
    Ok(engine)
}

/// A log that is being opened.
pub(super) struct Opening {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) layout: Layout,
    pub(super) options: Options,
    pub(super) refusals: Arc<Refusals>,
}

impl Opening {
    /// Opens an empty log, and then follows the one in the folder for the first time.
    fn read_only(self) -> Result<Engine> {
        let root = &self.layout.root;
        if !self.disk.exists(root)? {
            return Err(no_log_in(root));
        }
        let lock = self.disk.enter(root, Layout::LOCK, Hold::Nothing)?;
        let store = self.find_store()?;
        let manifest = ManifestFile::new(&self.disk, &self.layout, store);
        let (bounds, nothing) = (Bounds::of(&self.options), EventId::from_u128(0));
        let recent = Arc::new(Recent::new(0, nothing, bounds));
        let mut engine =
            Engine::assemble(self.parts(manifest, recent, Recovery::default(), lock, None));
        engine.recovery = engine.follow()?;
        Ok(engine)
    }

    /// Returns the store in the folder.
    fn find_store(&self) -> Result<StoreId> {
        if let Some(manifest) = load_beside(&self.disk, &self.layout)? {
            return Ok(manifest.store);
        }
        let checked = if self.disk.exists(&self.layout.journal)? {
            self.check_that_nothing_is_lost()
        } else {
            Ok(())
        };
        // A writer may have begun a log meanwhile.
        if let Some(manifest) = load_beside(&self.disk, &self.layout)? {
            return Ok(manifest.store);
        }
        checked?;
        Err(no_log_in(&self.layout.root))
    }

    fn writable(self) -> Result<Parts> {
        make_root(&*self.disk, &self.layout.root)?;
        let lock = self
            .disk
            .enter(&self.layout.root, Layout::LOCK, Hold::Alone)?;
        self.make_folders()?;
        let mut recovery = Recovery::default();
        let mut manifest = match ManifestFile::load(&self.disk, &self.layout)? {
            Some(manifest) => {
                manifest.make_durable()?;
                manifest
            }
            None => self.create()?,
        };
        let leftovers = self.adopt_segments(&mut manifest.value, &mut recovery)?;
        let mut replayed = replay(&*self.disk, &self.layout.journal, &manifest.value)?;
        let end = LogEnd::of(&replayed, &manifest.value);
        self.remove_unfinished()?;
        manifest.put_in_both()?;
        self.remove_leftovers(&leftovers)?;
        let spares = self.spares(&mut replayed)?;
        recovery.clean = manifest.value.is_clean_at(replayed.end_lsn);
        let last = replayed.files.last_mut().expect("the journal has a file");
        let (journal, mut freed) = if recovery.clean {
            self.resume(last)?
        } else {
            self.rewrite(last, &spares, replayed.next_incarnation)?
        };
        let (kept, sealed) = split_off_before(replayed.files, manifest.value.sealed_lsn());
        freed.extend(sealed.iter().map(|file| (file.number, file.bytes)));
        name_in_manifest(&mut manifest, &kept, end.lsn)?;
        freed
            .into_iter()
            .try_for_each(|(number, bytes)| spares.give(number, bytes))?;
        let recent = self.restore(&manifest.value, kept, &end, &mut recovery)?;
        recovery.clock_skew = clock_skew(&self.options.clock, end.last_id);
        if let Some(skew) = recovery.clock_skew {
            let newest = timestamp(end.last_id.timestamp_ms());
            tracing::warn!(
                target: "sessionlog",
                ?skew,
                %newest,
                "the wall clock is far from the time of the newest event: one of the two is wrong"
            );
        }
        spares.prepare_next(journal.active_bytes());
        let writer = WriterParts {
            journal,
            clock: IdClock::new(end.last_id),
            spares,
        };
        Ok(self.parts(manifest, recent, recovery, lock, Some(writer)))
    }

    fn parts(
        self,
        manifest: ManifestFile,
        recent: Arc<Recent>,
        recovery: Recovery,
        lock: FolderLock,
        writer: Option<WriterParts>,
    ) -> Parts {
        Parts {
            disk: self.disk,
            layout: self.layout,
            options: self.options,
            refusals: self.refusals,
            manifest,
            recent,
            recovery,
            lock,
            writer,
        }
    }

    fn spares(&self, replayed: &mut Replayed) -> Result<Spares> {
        let numbers = replayed
            .files
            .iter()
            .map(|file| file.number)
            .chain(replayed.unused.iter().map(|(number, _)| *number));
        let next_number = numbers.max().unwrap_or(0) + 1;
        let bytes_max = self.options.journal_file_bytes_max as u64;
        let (disk, refusals) = (Arc::clone(&self.disk), Arc::clone(&self.refusals));
        let spares = Spares::new(
            disk,
            self.layout.journal.clone(),
            bytes_max,
            next_number,
            refusals,
        );
        for (number, bytes) in replayed.unused.drain(..) {
            // The file was made for a large batch, or a fault made it longer.
            if bytes > bytes_max {
                self.disk
                    .remove(&journal::path(&self.layout.journal, number))?;
            } else {
                spares.give(number, bytes)?;
            }
        }
        Ok(spares)
    }

    /// Resumes the file that the clean stop was recorded in.
    fn resume(&self, last: &ReplayedFile) -> Result<(JournalWriter, Vec<(u32, u64)>)> {
        let path = journal::path(&self.layout.journal, last.number);
        let file = self.disk.open(&path, Mode::WriteThrough)?;
        let active = ActiveFile {
            file,
            number: last.number,
            bytes: last.bytes,
            header: last.header,
            header_placed: true,
        };
        Ok((
            JournalWriter::new(active, last.end_chain, last.end_lsn, last.end_id),
            Vec::new(),
        ))
    }

    /// Rewrites the last file into another one and makes that durable. Groups keep their LSNs.
    /// `last` then describes the new file. Returns the number and the size of the old one.
    fn rewrite(
        &self,
        last: &mut ReplayedFile,
        spares: &Spares,
        incarnation: u64,
    ) -> Result<(JournalWriter, Vec<(u32, u64)>)> {
        let bytes_min =
            HEADER_BYTES + (last.end_lsn - last.header.start_lsn) + WITNESS_BYTES as u64;
        let spare = spares.take_or_make(last.bytes, bytes_min)?;
        let header = FileHeader {
            incarnation,
            blocks: journal::blocks(spare.bytes),
            ..last.header
        };
        let chain = write_image(&*self.disk, &spare, &header, &last.groups)?;
        let old = (last.number, last.bytes);
        (last.number, last.bytes, last.header) = (spare.number, spare.bytes, header);
        let active = ActiveFile {
            file: spare.file,
            number: spare.number,
            bytes: spare.bytes,
            header,
            header_placed: true,
        };
        Ok((
            JournalWriter::new(active, chain, last.end_lsn, last.end_id),
            vec![old],
        ))
    }

    /// Puts the records that no segment holds into memory.
    fn restore(
        &self,
        manifest: &Manifest,
        kept: Vec<ReplayedFile>,
        end: &LogEnd,
        recovery: &mut Recovery,
    ) -> Result<Arc<Recent>> {
        let (journal, sealed_lsn) = (&self.layout.journal, manifest.sealed_lsn());
        check_begin(journal, &kept, sealed_lsn)?;
        let bounds = Bounds::of(&self.options);
        let recent = Arc::new(Recent::new(manifest.sealed_events(), end.last_id, bounds));
        let restored = restore(&recent, journal, kept, sealed_lsn, &mut Vec::new())?;
        recovery.replayed_groups = restored.groups;
        recovery.replayed_events = restored.events;
        Ok(recent)
    }
}

/// Records in the manifest that the log ends at `end_lsn` and is open.
fn name_in_manifest(
    manifest: &mut ManifestFile,
    kept: &[ReplayedFile],
    end_lsn: u64,
) -> Result<()> {
    let value = &mut manifest.value;
    value.journal = kept.iter().map(ReplayedFile::used_as).collect();
    value.durable_lsn = end_lsn;
    if let Some(last) = kept.last() {
        value.incarnation = last.header.incarnation;
    }
    value.clean = false;
    manifest.store()
}
