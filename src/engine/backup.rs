//! Backup: a copy of the log as of one durable position, while appends go on.
//!
//! What the journal holds is sealed first, so the copy consists of segments alone, with an empty
//! journal.
//! Segments are immutable, and a link to one is as good as a copy.
//!
//! Invariants:
//! * Until the copy's manifest names a file, the copy is what it was before: the last whole backup,
//!   or a folder that does not open.
//! * Nothing that the copy's manifest names is removed before both of its slots are durable that no
//!   longer name it.
//! * The name of the copy's folder is durable before its manifest names a file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::{BLOCK, BlockBuf, Disk, Hold, Layout, Mode, make_root, parent, write_whole};
use crate::engine::folder::begin_journal;
use crate::engine::{Engine, Writer};
use crate::journal;
use crate::manifest::{JournalUse, Manifest, ManifestFile};
use crate::model::{BackupReport, Error, Result};
use crate::segment::{Segment, SegmentSet, read_info};
use crate::sync::{Deadline, Stopped};

/// How often a wait for sealing looks after the log.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// The size of one read and write of a copy, in bytes.
const COPY_BYTES: usize = 1024 * 1024;

/// A folder that a log is backed up into.
struct Target {
    disk: Arc<dyn Disk>,
    layout: Layout,
}

impl Engine {
    /// Makes the log in `folder` on `disk` a copy of this one.
    pub(crate) fn backup(&self, disk: Arc<dyn Disk>, folder: &Path) -> Result<BackupReport> {
        let writer = self.writer()?;
        let layout = Layout::of(folder);
        make_root(&*disk, &layout.root)?;
        let lock = disk.enter(&layout.root, Layout::LOCK, Hold::Alone)?;
        let target = Target { disk, layout };
        let result = self.copy_to(writer, &target);
        drop(lock);
        result
    }

    fn copy_to(&self, writer: &Writer, target: &Target) -> Result<BackupReport> {
        let Target { disk, layout } = target;
        let before = ManifestFile::load(disk, layout)?;
        let store = self.segments.store;
        if before
            .as_ref()
            .is_some_and(|before| before.value.store != store)
        {
            return Err(Error::invalid("folder", "it holds another log"));
        }
        for folder in [&layout.journal, &layout.segments] {
            disk.make_dir(folder)?;
        }
        disk.sync_dir(&layout.root)?;
        // A crash may have come between the making of the folder and the barrier for its name.
        disk.sync_dir(parent(&layout.root))?;
        // Even without records, the end of the journal would get a segment of its own.
        if self.recent.has_unsealed() {
            writer.seal_everything::<Error>(|| Ok(()))?;
        }
        // Held until the end, so that no segment of it is removed.
        let (set, mut manifest) = self.snapshot(writer)?;
        let mut report = BackupReport::default();
        let files = disk.list(&layout.segments)?;
        for segment in set.iter() {
            self.copy_segment(target, segment, &files, &mut report)?;
        }
        disk.sync_dir(&layout.segments)?;
        let is_held = |number: u64| set.by_number(number).is_some();
        let bytes = self.store.options.journal_file_bytes_min as u64;
        begin_journal(disk, &layout.journal, bytes, &mut manifest)?;
        let mut slots = match before {
            Some(before) => before,
            None => ManifestFile::new(disk, layout, store),
        };
        let journal = manifest.journal.clone();
        slots.replace(manifest);
        slots.store()?;
        target.remove_others(is_held, &journal)?;
        report.segments = set.iter().count() as u64;
        Ok(report)
    }

    /// Returns the segments and a manifest that names these.
    fn snapshot(&self, writer: &Writer) -> Result<(Arc<SegmentSet>, Manifest)> {
        loop {
            let set = self.locator.segments();
            let manifest = writer.manifest.lock().value.clone();
            let named = manifest.segments.iter().map(|info| info.number);
            if named.eq(set.iter().map(|segment| segment.info.number)) {
                return Ok((set, manifest));
            }
            // A segment is named just before it is published. It is never published if the manifest
            // could not be written, which poisons the log.
            writer.shared.state.check_poison()?;
            if let Err(Stopped) = writer.recycled.pause(CHECK_EVERY, |_lsn| false) {
                return Err(Error::Closed);
            }
        }
    }

    /// Links or copies a segment, unless the target has it.
    fn copy_segment(
        &self,
        target: &Target,
        segment: &Segment,
        files: &[(String, u64)],
        report: &mut BackupReport,
    ) -> Result<()> {
        let Some(name) = segment.path().file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        let bytes = segment.info.file_bytes;
        if files.iter().any(|file| *file == (name.to_owned(), bytes)) {
            return Ok(());
        }
        let to = target.layout.segments.join(name);
        let is_linked = write_whole(&*target.disk, &to, |unfinished| {
            let from = self.segments.disk.path_for_others(segment.path())?;
            if target.disk.link(&from, unfinished).is_ok() {
                return Ok(true);
            }
            copy(
                &*self.segments.disk,
                segment.path(),
                &*target.disk,
                unfinished,
            )?;
            Result::<_, Error>::Ok(false)
        })?;
        // A link by a path may lead to another file if the log's folder was moved meanwhile.
        let found = read_info(
            &*target.disk.open(&to, Mode::Read)?,
            segment.info.number,
            bytes,
            self.segments.store,
        )?;
        if found != segment.info {
            return Err(Error::corrupt(to, 0, "not the segment that was copied"));
        }
        if is_linked {
            report.linked_bytes += bytes;
        } else {
            report.copied_bytes += bytes;
        }
        Ok(())
    }
}

impl Target {
    /// Removes segments and journal files of earlier backups that the manifest does not name.
    fn remove_others(&self, is_held: impl Fn(u64) -> bool, journal: &[JournalUse]) -> Result<()> {
        for (name, _) in self.disk.list(&self.layout.segments)? {
            let number = crate::segment::number(&name);
            if number.is_none_or(|number| !is_held(number)) {
                self.disk.remove(&self.layout.segments.join(name))?;
            }
        }
        for (name, _) in self.disk.list(&self.layout.journal)? {
            let number = journal::number(&name);
            let is_named = journal.iter().any(|file| Some(file.number) == number);
            if !is_named {
                self.disk.remove(&self.layout.journal.join(name))?;
            }
        }
        self.disk.sync_dir(&self.layout.segments)?;
        self.disk.sync_dir(&self.layout.journal)
    }
}

impl Writer {
    /// Seals all records so far, and waits until their journal files were given back or removed.
    /// Returns the LSN that they end before.
    ///
    /// `check_on` is called now and then, and may end the wait with an error.
    pub(crate) fn seal_everything<E: From<Error>>(
        &self,
        check_on: impl Fn() -> Result<(), E>,
    ) -> Result<u64, E> {
        let start_lsn = self.commit.roll()?;
        self.shared.seal.notify_everything();
        loop {
            let is_done = |lsn: &mut u64| (*lsn >= start_lsn).then_some(());
            match self
                .recycled
                .wait_until(Deadline::after(CHECK_EVERY), is_done)
            {
                Ok(Some(())) => return Ok(start_lsn),
                Ok(None) => {}
                Err(Stopped) => return Err(Error::Closed.into()),
            }
            check_on()?;
            self.shared.state.check_poison()?;
            if let Some(refused) = self.shared.refusals.of_sealing() {
                return Err(refused.into());
            }
        }
    }
}

/// Copies a file and makes it durable.
fn copy(from_disk: &dyn Disk, from: &Path, to_disk: &dyn Disk, to: &Path) -> Result<()> {
    let from = from_disk.open(from, Mode::Read)?;
    let to = to_disk.open(to, Mode::WriteBlocks)?;
    let length = from.len()?;
    let mut at = 0;
    while at < length {
        let left = usize::try_from(length - at).unwrap_or(COPY_BYTES);
        let mut bytes = vec![0; left.min(COPY_BYTES)];
        from.read_exact_at(&mut bytes, at)?;
        let mut block = BlockBuf::with_capacity(bytes.len().next_multiple_of(BLOCK));
        block.extend(&bytes);
        block.pad_to_block();
        to.write_all_at(block.as_slice(), at)?;
        at += bytes.len() as u64;
    }
    to.sync()
}
