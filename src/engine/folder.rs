//! The files and folders of a log that is being opened.
//!
//! Opening makes missing ones, removes unfinished ones, and refuses a folder that has lost
//! something.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{FileHeader, StoreId};
use crate::disk::{Disk, Refusals, TEMPORARY, Work, parent};
use crate::engine::open::Opening;
use crate::journal::{self, HEADER_BYTES, Spares, write_image};
use crate::manifest::{JournalUse, Manifest, ManifestFile};
use crate::model::{Error, EventId, Recovery, Result, fresh_store_number};
use crate::segment::{self, SegmentInfo};

impl Opening {
    /// Removes files that were unfinished when the log stopped. To be called once the log is known
    /// to be sound: a failed open changes nothing.
    pub(super) fn remove_unfinished(&self) -> Result<()> {
        self.remove_unfinished_in(&self.layout.journal)?;
        self.remove_unfinished_in(&self.layout.segments)?;
        // The manifest is there, so the log is complete.
        if self.disk.exists(&self.layout.unfinished)? {
            self.disk.remove(&self.layout.unfinished)?;
        }
        // Version 1 kept filters in a folder of their own.
        if self.disk.exists(&self.layout.filters)? {
            let removed = self.disk.remove_tree(&self.layout.filters);
            self.refusals.note(Work::Merging, removed.as_ref().err());
        }
        Ok(())
    }

    fn remove_unfinished_in(&self, folder: &Path) -> Result<()> {
        for (name, _) in self.disk.list(folder)? {
            let path = folder.join(name);
            if path
                .extension()
                .is_some_and(|extension| extension == TEMPORARY)
            {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    /// Makes the folders in the log's folder, and makes every name in them durable.
    ///
    /// A crash may have come between a file's rename and the barrier for its folder, and recovery
    /// relies on the names it finds.
    pub(super) fn make_folders(&self) -> Result<()> {
        for folder in [&self.layout.journal, &self.layout.segments] {
            self.disk.make_dir(folder)?;
            self.disk.sync_dir(folder)?;
        }
        self.disk.sync_dir(&self.layout.root)?;
        self.disk.sync_dir(parent(&self.layout.root))
    }

    /// Fails if the folder holds parts of a log. Without a manifest there was no log, or its
    /// manifest was lost.
    pub(super) fn check_that_nothing_is_lost(&self) -> Result<()> {
        let (journal, segments) = (&self.layout.journal, &self.layout.segments);
        if self.disk.exists(&self.layout.unfinished)? {
            let what = "it is being made from another log and is not complete: run that again";
            return Err(Error::corrupt(&*self.layout.unfinished, 0, what));
        }
        for (name, _) in self.disk.list(segments)? {
            let path = segments.join(name);
            if path
                .extension()
                .is_none_or(|extension| extension != TEMPORARY)
            {
                return Err(Error::corrupt(path, 0, "a segment without a manifest"));
            }
        }
        for (name, bytes) in self.disk.list(journal)? {
            let path = journal.join(&name);
            if journal::number(&name).is_some()
                && bytes > HEADER_BYTES
                && journal::holds_group(&*self.disk, &path)?
            {
                return Err(Error::corrupt(
                    path,
                    HEADER_BYTES,
                    "a group of a log without a manifest",
                ));
            }
        }
        Ok(())
    }

    /// Begins a log in a folder without one. An earlier attempt may have left a journal file
    /// without groups.
    pub(super) fn create(&self) -> Result<ManifestFile> {
        self.check_that_nothing_is_lost()?;
        // An unfinished manifest may still be on its way to the disk. It would then be found beside
        // files of another store.
        ManifestFile::remove(&*self.disk, &self.layout)?;
        let journal = &self.layout.journal;
        let files = self.disk.list(journal)?;
        for (name, _) in files
            .iter()
            .filter(|(name, _)| journal::number(name).is_some())
        {
            // The file holds no group, as checked above. Its header, if any, is of a store that was
            // never completed.
            self.disk.remove(&journal.join(name))?;
        }
        let store = StoreId(fresh_store_number());
        let mut manifest = ManifestFile::new(&self.disk, &self.layout, store);
        let bytes = self.options.journal_file_bytes_min as u64;
        begin_journal(&self.disk, journal, bytes, &mut manifest.value)?;
        manifest.store()?;
        Ok(manifest)
    }

    /// Checks the segments, and adds segments to the manifest that a crash kept out of it. Returns
    /// the files that are left over from merges.
    pub(super) fn adopt_segments(
        &self,
        manifest: &mut Manifest,
        recovery: &mut Recovery,
    ) -> Result<Vec<PathBuf>> {
        let folder = &self.layout.segments;
        let files = self.disk.list(folder)?;
        segment::check_files(folder, &manifest.segments, &files)?;
        let (store, known) = (manifest.store, &manifest.segments);
        let found = segment::unnamed(&*self.disk, folder, store, known, &files)?;
        recovery.adopted_segments = found.adopted.len() as u64;
        let adopted = found.adopted.iter().map(|info| info.number);
        manifest.unmarked.extend(adopted);
        manifest.segments.extend(found.adopted);
        Ok(found.leftovers)
    }

    /// Removes files that are left over from merges. To be called once both slots name what
    /// replaced them.
    pub(super) fn remove_leftovers(&self, leftovers: &[PathBuf]) -> Result<()> {
        leftovers
            .iter()
            .try_for_each(|leftover| self.disk.remove(leftover))?;
        if leftovers.is_empty() {
            Ok(())
        } else {
            self.disk.sync_dir(&self.layout.segments)
        }
    }
}

/// Makes an empty journal file that continues the segments of a manifest, and names it there as the
/// only one. The manifest is then that of a closed log.
pub(super) fn begin_journal(
    disk: &Arc<dyn Disk>,
    journal: &Path,
    bytes: u64,
    manifest: &mut Manifest,
) -> Result<()> {
    let files = disk.list(journal)?;
    let numbers = files.iter().filter_map(|(name, _)| journal::number(name));
    let spares = Spares::new(
        Arc::clone(disk),
        journal.to_path_buf(),
        bytes,
        numbers.max().unwrap_or(0) + 1,
        Arc::<Refusals>::default(),
    );
    let file = spares.make_now(bytes)?;
    let last = manifest.segments.last();
    let header = FileHeader {
        store: manifest.store,
        incarnation: manifest.incarnation + 1,
        start_lsn: manifest.sealed_lsn(),
        chain: 0,
        blocks: journal::blocks(file.bytes),
        last_id: last.map_or(EventId::from_u128(0), SegmentInfo::last_id),
    };
    write_image(&**disk, &file, &header, &[])?;
    disk.sync_dir(journal)?;
    manifest.journal = vec![JournalUse {
        number: file.number,
        incarnation: header.incarnation,
    }];
    manifest.incarnation = header.incarnation;
    manifest.durable_lsn = manifest.sealed_lsn();
    manifest.clean = true;
    Ok(())
}
