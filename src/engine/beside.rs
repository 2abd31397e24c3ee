//! Reading beside a writer: a reader shows a log that another process may write, and follows it
//! when it is asked to. It takes no lock and writes no byte.
//!
//! Invariants:
//! * Everything shown is on stable storage. A group is shown after a barrier of this reader, which
//!   came after the group was read past the page cache. The writer's own barrier may have to come
//!   yet, or have failed. The groups before it are whole, so a writer that recovers keeps it.
//! * The writer uses a journal file again, and removes a segment, only after both slots of the
//!   manifest are durable that no longer name it. So what was read is what the manifest says if the
//!   manifest, read again afterwards, still names the same journal files. Otherwise, and after any
//!   error beside a manifest that has changed, all of it is read again.
//! * A segment's file is opened while the manifest names it, and stays open while the segment is
//!   listed. So a reader never needs a name that the writer may have removed.
//! * All that can fail comes before the change, and the change comes when no read is under way.
//!   A read sees the log as of one refresh.
//!
//! Segments that the manifest does not name are left alone: the journal still has their records.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, Layout, Mode, io_error};
use crate::engine::Engine;
use crate::engine::restore::{LogEnd, Restored, check_begin, restore, split_off_before};
use crate::journal::{self, Reached, Replayed, follow};
use crate::manifest::{Manifest, ManifestFile};
use crate::model::{Error, EventId, Recovery, Result};
use crate::segment::{SegmentSet, check_files};
use crate::sync::Waiter;

/// How often a reader begins again because the writer changed the files that it was reading.
///
/// Each time the writer has sealed or recovered meanwhile, which takes it longer than the reading.
const ATTEMPTS_MAX: usize = 256;

/// How often a manifest is read that is whole in neither slot. A reader may come upon a slot while
/// it is written, and upon the other one just after.
pub(crate) const LOADS_MAX: usize = 16;

/// The log as it was found.
struct Found {
    manifest: Manifest,
    /// `None` if they are those that are shown already.
    segments: Option<SegmentSet>,
    replayed: Replayed,
    /// Records before this LSN are shown, or in the segments.
    from_lsn: u64,
    /// Whether all that is in memory was sealed, and more that was never there.
    begins_again: bool,
}

impl Found {
    fn has_news(&self) -> bool {
        let groups = self.replayed.files.iter().flat_map(|file| &file.groups);
        let mut new = groups.filter(|group| group.header.lsn >= self.from_lsn);
        self.begins_again || self.segments.is_some() || new.any(|group| !group.records.is_empty())
    }
}

impl Engine {
    /// Shows what has become durable since the last time, on a log that is opened for reading.
    /// Returns the newest event or change.
    pub(crate) fn refresh(&self) -> Result<Option<EventId>> {
        if self.writer.is_none() {
            self.follow()?;
        }
        let last_id = self.recent.last_id();
        Ok((last_id > EventId::from_u128(0)).then_some(last_id))
    }

    /// Follows the log in the folder, and returns what was read of it.
    pub(super) fn follow(&self) -> Result<Recovery> {
        let mut reached = self.reached.lock();
        let found = self.find(*reached)?;
        let clean = found.manifest.is_clean_at(found.replayed.end_lsn);
        let (after, mut to_wake) = (found.replayed.reached(), Vec::new());
        self.note_followed(&found.manifest);
        let restored = if found.has_news() {
            // After a failure within, the next call reads everything again.
            *reached = None;
            self.store.change(|| self.show(found, &mut to_wake))
        } else {
            Ok(Restored::default())
        };
        if restored.is_ok() {
            *reached = after;
        }
        drop(reached);
        // A task may run where it is woken, and read.
        for waiter in to_wake {
            waiter.wake();
        }
        restored.map(|restored| Recovery {
            clean,
            replayed_groups: restored.groups,
            replayed_events: restored.events,
            ..Recovery::default()
        })
    }

    /// Keeps a manifest for the metrics.
    fn note_followed(&self, manifest: &Manifest) {
        let mut followed = self.followed.lock();
        if followed.as_ref().is_none_or(|known| !known.is(manifest)) {
            *followed = Some(manifest.clone());
        }
    }

    /// Reads what the manifest names until the manifest has not changed meanwhile.
    fn find(&self, reached: Option<Reached>) -> Result<Found> {
        let mut failed_before = false;
        for _ in 0..ATTEMPTS_MAX {
            let manifest = self.manifest_beside()?;
            let found = self.read(&manifest, reached);
            let now = self.manifest_beside()?;
            match found {
                Ok(found) if still_names(&now, &found.manifest) => return Ok(found),
                Ok(_outdated) => failed_before = false,
                Err(error) if now.is(&manifest) && failed_before => return Err(error),
                Err(_maybe_a_race) => failed_before = now.is(&manifest),
            }
        }
        let source = std::io::Error::new(ErrorKind::TimedOut, "the writer changed it all the time");
        Err(io_error("read", &self.layout.root)(source))
    }

    fn manifest_beside(&self) -> Result<Manifest> {
        let root = &self.layout.root;
        let manifest = load_beside(&self.segments.disk, &self.layout)?;
        let manifest = manifest.ok_or_else(|| no_log_in(root))?;
        if manifest.store == self.segments.store {
            return Ok(manifest);
        }
        Err(Error::Displaced {
            path: root.clone(),
            what: "it holds another log".to_owned(),
        })
    }

    fn read(&self, manifest: &Manifest, reached: Option<Reached>) -> Result<Found> {
        let segments = self.pin_segments(manifest, reached)?;
        let (disk, journal) = (&*self.segments.disk, &self.layout.journal);
        let sealed_lsn = manifest.sealed_lsn();
        // Records that were sealed before they were read are in the segments alone.
        let reached = reached.filter(|reached| reached.lsn() >= sealed_lsn);
        let mut replayed = follow(disk, journal, manifest, reached)?;
        self.make_durable(&replayed, reached)?;
        let from_lsn = reached.map_or(sealed_lsn, |reached| reached.lsn());
        if replayed.end_lsn < from_lsn {
            let what = format!("the journal ends before LSN {from_lsn}, which was read earlier");
            return Err(Error::corrupt(journal, 0, what));
        }
        (replayed.files, _) = split_off_before(replayed.files, from_lsn);
        let begins = replayed.files.first().map(|file| file.header.start_lsn);
        if reached.is_none() || begins > Some(from_lsn) {
            check_begin(journal, &replayed.files, from_lsn)?;
        }
        Ok(Found {
            manifest: manifest.clone(),
            segments,
            replayed,
            from_lsn,
            begins_again: reached.is_none(),
        })
    }

    /// Opens the segments that are not open yet. Returns `None` if nothing has changed.
    fn pin_segments(
        &self,
        manifest: &Manifest,
        reached: Option<Reached>,
    ) -> Result<Option<SegmentSet>> {
        let open = self.locator.segments();
        if reached.is_some()
            && open
                .iter()
                .map(|segment| &segment.info)
                .eq(&manifest.segments)
        {
            return Ok(None);
        }
        let folder = &self.layout.segments;
        check_files(
            folder,
            &manifest.segments,
            &self.segments.disk.list(folder)?,
        )?;
        let mut segments = Vec::with_capacity(manifest.segments.len());
        for info in &manifest.segments {
            // By all that is known of it: a writer that recovers may use a number again.
            let known = open.by_number(info.number);
            segments.push(match known.filter(|known| known.info == *info) {
                Some(known) => Arc::clone(known),
                None => Arc::new(self.segments.pinned(info.clone())?),
            });
        }
        Ok(Some(SegmentSet::new(segments)))
    }

    /// Makes what was read of the journal durable.
    ///
    /// It was read past the page cache. The barrier flushes the device's own cache. What was read
    /// earlier needs no other one.
    fn make_durable(&self, replayed: &Replayed, reached: Option<Reached>) -> Result<()> {
        for file in &replayed.files {
            let is_new = reached.is_none_or(|reached| file.end_lsn > reached.lsn());
            if !is_new {
                continue;
            }
            let path = journal::path(&self.layout.journal, file.number);
            let barrier = self.segments.disk.open(&path, Mode::ReadDevice)?.sync();
            if let Err(error) = barrier
                && !is_never_written(&error)
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Changes what readers see, and adds the waiters for it to `to_wake`. It fails only if the
    /// journal contradicts itself, and then shows what comes before that.
    fn show(&self, found: Found, to_wake: &mut Vec<Arc<Waiter>>) -> Result<Restored> {
        let (recent, manifest) = (&self.recent, &found.manifest);
        if found.begins_again {
            let last_id = LogEnd::of(&found.replayed, manifest).last_id;
            *to_wake = recent.begin_again(manifest.sealed_events(), last_id);
        }
        if let Some(segments) = found.segments {
            self.locator.publish(|_before| segments);
        }
        let (files, from_lsn) = (found.replayed.files, found.from_lsn);
        let restored = restore(recent, &self.layout.journal, files, from_lsn, to_wake);
        recent.release_before(manifest.sealed_lsn());
        restored
    }
}

/// Loads the manifest while a writer may be storing it.
pub(super) fn load_beside(disk: &Arc<dyn Disk>, layout: &Layout) -> Result<Option<Manifest>> {
    let mut loads = 1;
    loop {
        match ManifestFile::load(disk, layout) {
            Ok(loaded) => return Ok(loaded.map(|manifest| manifest.value)),
            Err(Error::Corrupt { .. }) if loads < LOADS_MAX => loads += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Whether all that was read with the manifest `before` was still in use when `now` was stored.
pub(crate) fn still_names(now: &Manifest, before: &Manifest) -> bool {
    now.sealed_lsn() == before.sealed_lsn() && now.journal.starts_with(&before.journal)
}

/// Whether the file system has no barriers because it takes no writes, as squashfs.
///
/// A file system that reports being read-only is not one. It may have become so after a failed
/// write, and the device may hold data that it will lose.
fn is_never_written(barrier: &Error) -> bool {
    let Error::Io { source, .. } = barrier else {
        return false;
    };
    matches!(
        source.kind(),
        ErrorKind::InvalidInput | ErrorKind::Unsupported
    )
}

/// Returns the error for a folder without a log.
pub(crate) fn no_log_in(folder: &Path) -> Error {
    let source = std::io::Error::new(ErrorKind::NotFound, "there is no log in this folder");
    io_error("open the log in", folder)(source)
}
