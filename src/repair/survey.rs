//! What lies in the folder of a log, sound or not.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::codec::{Record, SegmentHeader, StoreId};
use crate::disk::{BLOCK, Disk, Hold, Layout, Mode, io_error};
use crate::engine::{FolderLock, LOADS_MAX, no_log_in, still_names};
use crate::journal::{Replayed, follow, scan};
use crate::manifest::{Manifest, ManifestFile};
use crate::model::{Error, Result};
use crate::segment::{self, BlockCache, Segment, SegmentFolder, SegmentInfo, read_info, unnamed};

/// How often a folder is looked at again because a writer changed it.
const ATTEMPTS_MAX: usize = 256;

/// The memory for blocks that are read more than once.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

pub(super) struct Survey {
    pub disk: Arc<dyn Disk>,
    pub layout: Layout,
    pub store: StoreId,
    /// `None` if both slots are lost.
    pub manifest: Option<Manifest>,
    /// The segments whose files are there, in commit order. They stay readable if a writer beside
    /// removes them.
    pub segments: Vec<Arc<Segment>>,
    /// Whether the file of a segment is missing.
    pub is_incomplete: bool,
    /// The records that are in no segment, in commit order.
    pub journal: Vec<Record>,
    /// Whether the journal is sound. Otherwise its records are those that are left.
    pub is_journal_sound: bool,
    /// What is missing or cannot be read.
    pub faults: Vec<Error>,
    entered: FolderLock,
}

impl Survey {
    /// Looks at a folder. Blocks and tables of segments are not read.
    pub(super) fn of(disk: &Arc<dyn Disk>, folder: &Path) -> Result<Self> {
        let layout = Layout::of(folder);
        if !disk.exists(&layout.root)? {
            return Err(no_log_in(&layout.root));
        }
        let mut entered = disk.enter(&layout.root, Layout::LOCK, Hold::Nothing)?;
        for _ in 0..ATTEMPTS_MAX {
            let survey = Self::once(disk, &layout, entered)?;
            if !survey.was_changed()? {
                return Ok(survey);
            }
            entered = survey.entered;
        }
        let why = std::io::Error::new(ErrorKind::TimedOut, "the writer changed it all the time");
        Err(io_error("read", &layout.root)(why))
    }

    fn once(disk: &Arc<dyn Disk>, layout: &Layout, entered: FolderLock) -> Result<Self> {
        let (manifest, mut faults) = read_manifest(&**disk, layout)?;
        let mut found = Found::default();
        let store = match &manifest {
            Some(manifest) => found.named(disk, layout, manifest)?,
            None => found.by_name(disk, layout)?,
        };
        faults.append(&mut found.faults);
        let mut survey = Self {
            disk: Arc::clone(disk),
            layout: layout.clone(),
            store,
            manifest,
            segments: found.segments,
            is_incomplete: found.is_incomplete,
            journal: Vec::new(),
            is_journal_sound: true,
            faults,
            entered,
        };
        survey.read_journal()?;
        Ok(survey)
    }

    fn read_journal(&mut self) -> Result<()> {
        let sealed_lsn = self.sealed_lsn();
        let mut fault = None;
        if let Some(manifest) = &self.manifest {
            match follow(&*self.disk, &self.layout.journal, manifest, None) {
                Ok(found) => {
                    self.journal = records_from(found, sealed_lsn);
                    return Ok(());
                }
                Err(error) => fault = Some(error),
            }
        }
        self.is_journal_sound = false;
        self.faults.extend(fault.clone());
        let (folder, store) = (&self.layout.journal, self.store);
        let groups = scan(&*self.disk, folder, store, sealed_lsn, &mut self.faults)?;
        let mut end_lsn = sealed_lsn;
        for group in groups {
            let is_told = |error: &Error| {
                matches!(error, Error::Corrupt { file, offset, .. }
                    if *file == group.path && *offset <= group.offset)
            };
            if group.lsn > end_lsn && !fault.as_ref().is_some_and(is_told) {
                let lost = group.lsn - end_lsn;
                let what = format!("{lost} bytes of batches are missing before this group");
                self.faults
                    .push(Error::corrupt(&*group.path, group.offset, what));
            }
            fault = None;
            end_lsn = group.end_lsn;
            self.journal.extend(group.records);
        }
        Ok(())
    }

    /// Whether a writer has changed the files meanwhile that this was read from.
    fn was_changed(&self) -> Result<bool> {
        let Some(before) = &self.manifest else {
            return Ok(false);
        };
        let now = read_manifest(&*self.disk, &self.layout)?.0;
        Ok(now.is_some_and(|now| {
            let segments = |manifest: &Manifest| manifest.segments.clone();
            let is_same = still_names(&now, before);
            !is_same || (self.is_incomplete && segments(&now) != segments(before))
        }))
    }

    /// Whether a writer names other segments by now.
    pub(super) fn has_other_segments(&self) -> Result<bool> {
        let now = read_manifest(&*self.disk, &self.layout)?.0;
        let named = |manifest: &Option<Manifest>| {
            manifest.as_ref().map(|manifest| manifest.segments.clone())
        };
        Ok(named(&now) != named(&self.manifest))
    }

    /// Returns the LSN where the journal begins.
    fn sealed_lsn(&self) -> u64 {
        let named = self.manifest.as_ref().map_or(0, Manifest::sealed_lsn);
        let found = self.segments.last().map_or(0, |last| last.info.end_lsn);
        named.max(found)
    }

    /// Returns the size of the files of the segments.
    pub(super) fn segment_bytes(&self) -> u64 {
        let bytes = self.segments.iter().map(|segment| segment.info.file_bytes);
        bytes.sum()
    }
}

fn records_from(found: Replayed, sealed_lsn: u64) -> Vec<Record> {
    let groups = found.files.into_iter().flat_map(|file| file.groups);
    groups
        .filter(|group| group.header.lsn >= sealed_lsn)
        .flat_map(|group| group.records)
        .collect()
}

/// Returns the manifest that counts, and why slots cannot be read.
fn read_manifest(disk: &dyn Disk, layout: &Layout) -> Result<(Option<Manifest>, Vec<Error>)> {
    let mut tries = 1;
    loop {
        let (mut found, refused) = ManifestFile::slots(disk, layout)?;
        // A writer beside may have been about to write the slot.
        if !refused.is_empty() && tries < LOADS_MAX {
            tries += 1;
            continue;
        }
        return Ok((found.pop().map(|(_slot, manifest)| manifest), refused));
    }
}

#[derive(Default)]
struct Found {
    segments: Vec<Arc<Segment>>,
    faults: Vec<Error>,
    is_incomplete: bool,
}

impl Found {
    /// Opens the segments that a manifest names, and those that it will come to name.
    fn named(
        &mut self,
        disk: &Arc<dyn Disk>,
        layout: &Layout,
        manifest: &Manifest,
    ) -> Result<StoreId> {
        let files = disk.list(&layout.segments)?;
        let lengths: HashMap<u64, u64> = files
            .iter()
            .filter_map(|(name, bytes)| Some((segment::number(name)?, *bytes)))
            .collect();
        let mut infos = manifest.segments.clone();
        match unnamed(&**disk, &layout.segments, manifest.store, &infos, &files) {
            Ok(others) => infos.extend(others.adopted),
            Err(error) => self.faults.push(error),
        }
        for info in infos {
            let path = segment::path(&layout.segments, info.number);
            match lengths.get(&info.number) {
                Some(bytes) if *bytes != info.file_bytes => {
                    let what = format!("the file should have {} bytes", info.file_bytes);
                    self.faults.push(Error::corrupt(path, *bytes, what));
                }
                Some(_) => {}
                None => {
                    self.is_incomplete = true;
                    self.faults
                        .push(Error::corrupt(path, 0, "the segment is missing"));
                    continue;
                }
            }
            self.open(disk, layout, manifest.store, info)?;
        }
        Ok(manifest.store)
    }

    fn open(
        &mut self,
        disk: &Arc<dyn Disk>,
        layout: &Layout,
        store: StoreId,
        info: SegmentInfo,
    ) -> Result<()> {
        let folder = SegmentFolder {
            disk: Arc::clone(disk),
            path: layout.segments.clone(),
            store,
            cache: Arc::new(BlockCache::new(CACHE_BYTES)),
        };
        match folder.pinned(info) {
            Ok(segment) => {
                self.segments.push(Arc::new(segment));
                Ok(())
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                self.is_incomplete = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the segments that are there, without a manifest that says which of them count.
    fn by_name(&mut self, disk: &Arc<dyn Disk>, layout: &Layout) -> Result<StoreId> {
        let is_log = disk.exists(&layout.segments)? && disk.exists(&layout.journal)?;
        if !is_log {
            return Err(no_log_in(&layout.root));
        }
        let [slot, _] = layout.manifest_slots();
        let what = "no slot of the manifest can be read";
        self.faults.push(Error::corrupt(slot, 0, what));
        let mut store = None;
        let mut infos = Vec::new();
        for (name, bytes) in disk.list(&layout.segments)? {
            let Some(number) = segment::number(&name) else {
                continue;
            };
            let path = layout.segments.join(&name);
            match read_unnamed(&**disk, &path, (number, bytes)) {
                Ok((of, info)) if store.is_none_or(|store| store == of) => {
                    store = Some(of);
                    infos.push(info);
                }
                Ok(_) => self
                    .faults
                    .push(Error::corrupt(path, 16, "a segment of another store")),
                Err(error) => self.faults.push(error),
            }
        }
        // A merged segment covers its inputs, which may not be removed yet.
        infos.sort_by_key(|info| (info.start_lsn, Reverse(info.end_lsn)));
        let mut end_lsn = 0;
        infos.retain(|info| {
            let is_covered = info.end_lsn <= end_lsn;
            end_lsn = end_lsn.max(info.end_lsn);
            !is_covered
        });
        let store = match store {
            Some(store) => store,
            None => store_of_journal(&**disk, layout)?,
        };
        for info in infos {
            self.open(disk, layout, store, info)?;
        }
        Ok(store)
    }
}

fn read_unnamed(
    disk: &dyn Disk,
    path: &Path,
    (number, bytes): (u64, u64),
) -> Result<(StoreId, SegmentInfo)> {
    let file = disk.open(path, Mode::Read)?;
    let mut block = vec![0; BLOCK];
    if bytes < 2 * BLOCK as u64 {
        return Err(Error::corrupt(path, 0, "too short for a segment"));
    }
    file.read_exact_at(&mut block, 0)?;
    let header = SegmentHeader::decode(&block).map_err(|fault| fault.at(path, 0))?;
    Ok((
        header.store,
        read_info(&*file, number, bytes, header.store)?,
    ))
}

/// Returns the store in the header of a journal file.
fn store_of_journal(disk: &dyn Disk, layout: &Layout) -> Result<StoreId> {
    for (name, _) in disk.list(&layout.journal)? {
        if crate::journal::number(&name).is_some()
            && let Some(store) = crate::journal::store_of(disk, &layout.journal.join(name))?
        {
            return Ok(store);
        }
    }
    Err(no_log_in(&layout.root))
}
