//! Opening: from whatever is in the folder to a log that readers and writers may use.
//!
//! Invariants:
//! * Before anybody is let in, everything that can be read is on stable storage. After a stop that
//!   was not clean the last journal file is therefore written again into another one, under a new
//!   incarnation, with a barrier and then the manifest: a barrier over the old bytes proves
//!   nothing, since after a failed sync the page cache may hold what the disk lacks.
//! * Whatever lies behind the end of the log is discarded for good: nothing is ever written behind
//!   it in the old file.
//! * Nothing is given up or written over before the manifest that it rests on is durable, in both
//!   slots: the one that was found may be in the device's cache alone, left there by a process that
//!   was killed before its barrier, or between the two.
//! * Recovery may be cut short at any point and begins anew: until the manifest names the new file,
//!   the old one counts.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::codec::{FileHeader, StoreId};
use crate::disk::{BLOCK, BlockBuf, Disk, Hold, Mode, Refusals, TEMPORARY, Work};
use crate::engine::{Engine, Writer};
use crate::index::{Index, Locator};
use crate::journal::{
    self, ActiveFile, GroupBuffer, HEADER_BYTES, JournalWriter, Replayed, ReplayedFile, Spare,
    Spares, WITNESS_BYTES, replay,
};
use crate::maintain::SealSignal;
use crate::manifest::{JournalUse, Manifest};
use crate::model::{
    Counters, Error, EventId, IdClock, Options, Recovery, Result, clock_skew, fresh_store_number,
    timestamp,
};
use crate::read::Store;
use crate::recent::{Bounds, Recent};
use crate::segment::{
    self, BlockCache, MergedPlace, Segment, SegmentInfo, SegmentSet, merged_folder,
};
use crate::sync::{Instant, Mutex};
use crate::turn::RememberedTurns;
use crate::write::Commit;

const LOCK: &str = "LOCK";

/// One in so many bytes that the index may keep in memory is for what it said lately, and the rest
/// is sled's.
const RUNS_SHARE: usize = 4;

/// Opens the log in `folder` on `disk`.
pub(crate) fn open(disk: Arc<dyn Disk>, folder: &Path, options: Options) -> Result<Engine> {
    let began = Instant::now();
    let opening = Opening {
        disk,
        folder,
        options,
        refusals: Arc::default(),
    };
    let mut engine = if opening.options.read_only {
        opening.read_only()?
    } else {
        opening.writable()?
    };
    engine.recovery.took = began.elapsed();
    Ok(engine)
}

struct Opening<'a> {
    disk: Arc<dyn Disk>,
    folder: &'a Path,
    options: Options,
    refusals: Arc<Refusals>,
}

impl Opening<'_> {
    fn read_only(self) -> Result<Engine> {
        if !self.disk.exists(self.folder)? {
            return Err(no_log_in(self.folder));
        }
        let held = self.disk.enter(self.folder, LOCK, Hold::WithReaders)?;
        let Some(mut manifest) = Manifest::load(&*self.disk, self.folder)? else {
            if self.disk.exists(&journal::folder(self.folder))? {
                self.check_that_nothing_is_lost()?;
            }
            return Err(no_log_in(self.folder));
        };
        let mut recovery = Recovery::default();
        self.take_in_segments(&mut manifest, &mut recovery)?;
        let journal = journal::folder(self.folder);
        let replayed = replay(&*self.disk, &journal, &manifest)?;
        for file in &replayed.files {
            // What was read came past the page cache; this empties the device's own.
            let barrier = self
                .disk
                .open(&journal::path(&journal, file.number), Mode::ReadDevice)?
                .sync();
            if let Err(error) = barrier
                && !is_never_written(&error)
            {
                return Err(error);
            }
        }
        recovery.clean = manifest.clean && manifest.durable_lsn == replayed.end_lsn;
        let last_id = Ends::of(&replayed, &manifest).last_id;
        let recent = Arc::new(Recent::new(
            manifest.sealed_events(),
            last_id,
            Bounds::of(&self.options),
        ));
        let (kept, _sealed) = split_off_sealed(replayed.files, manifest.sealed_lsn());
        self.restore(&manifest, kept, &recent, &mut recovery)?;
        let engine = self.engine(&manifest, recent, None, recovery);
        *engine.lock.lock() = Some(held);
        Ok(engine)
    }

    fn writable(self) -> Result<Engine> {
        let disk = &*self.disk;
        self.make_folder()?;
        let held = disk.enter(self.folder, LOCK, Hold::Alone)?;
        self.make_folders()?;
        let mut recovery = Recovery::default();
        let mut manifest = match Manifest::load(disk, self.folder)? {
            Some(manifest) => manifest.made_durable(disk, self.folder)?,
            None => self.create()?,
        };
        self.take_in_segments(&mut manifest, &mut recovery)?;
        let mut replayed = replay(disk, &journal::folder(self.folder), &manifest)?;
        let ends = Ends::of(&replayed, &manifest);
        self.remove_unfinished()?;
        manifest.put_in_both(disk, self.folder)?;
        let spares = self.spares(&mut replayed)?;
        recovery.clean = manifest.clean && manifest.durable_lsn == replayed.end_lsn;
        let last = replayed.files.last_mut().expect("the journal has a file");
        let (writer, mut freed) = if recovery.clean {
            self.go_on(last)?
        } else {
            self.rewrite(last, &spares, replayed.next_incarnation)?
        };
        let (kept, sealed) = split_off_sealed(replayed.files, manifest.sealed_lsn());
        freed.extend(sealed.iter().map(|file| (file.number, file.bytes)));
        self.name_in_manifest(&mut manifest, &kept, ends.lsn)?;
        freed
            .into_iter()
            .try_for_each(|(number, bytes)| spares.give(number, bytes))?;
        let recent = Arc::new(Recent::new(
            manifest.sealed_events(),
            ends.last_id,
            Bounds::of(&self.options),
        ));
        self.restore(&manifest, kept, &recent, &mut recovery)?;
        let clock = IdClock::new(ends.last_id);
        recovery.clock_skew = clock_skew(&self.options.clock, ends.last_id);
        if let Some(skew) = recovery.clock_skew {
            let newest = timestamp(ends.last_id.timestamp_ms());
            tracing::warn!(target: "sessionlog", ?skew, %newest, "the wall clock is far from the time of the newest event: one of the two is wrong");
        }
        spares.prepare_next(writer.active_bytes());
        let (seal, counters) = (
            Arc::new(SealSignal::default()),
            Arc::new(Counters::default()),
        );
        seal.notify_idle();
        let commit = Commit::new(
            writer,
            clock,
            Arc::clone(&recent),
            Arc::clone(&spares),
            Arc::clone(&seal),
            Arc::clone(&counters),
            &self.options,
        );
        let writer = Writer {
            disk: Arc::clone(&self.disk),
            folder: self.folder.to_path_buf(),
            store_id: manifest.store,
            commit: Arc::new(commit),
            spares,
            seal,
            manifest: Arc::new(Mutex::new(manifest.clone())),
        };
        let engine = self.engine(&manifest, recent, Some((writer, counters)), recovery);
        *engine.lock.lock() = Some(held);
        Ok(engine)
    }

    /// Takes away what was not finished when the log stopped. After the log was found to be sound:
    /// a failed open changes nothing.
    fn remove_unfinished(&self) -> Result<()> {
        self.remove_unfinished_in(&journal::folder(self.folder))?;
        self.remove_unfinished_in(&segment::folder(self.folder))?;
        self.refusals.note(
            Work::Filters,
            &self.remove_unfinished_in(&merged_folder(self.folder)),
        );
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

    /// Makes the log's folder where there is none, and what is missing above it, each name durable.
    fn make_folder(&self) -> Result<()> {
        let mut missing = Vec::new();
        for folder in self
            .folder
            .ancestors()
            .take_while(|folder| !folder.as_os_str().is_empty())
        {
            if self.disk.exists(folder)? {
                break;
            }
            missing.push(folder);
        }
        self.disk.make_dir(self.folder)?;
        missing
            .into_iter()
            .try_for_each(|folder| self.disk.sync_dir(parent(folder)))
    }

    /// Makes the folders in the log's, durably, and with them every name in them: a crash may have
    /// come between a file's rename and the barrier for its folder, and what is found now will be
    /// relied on.
    fn make_folders(&self) -> Result<()> {
        for folder in [journal::folder(self.folder), segment::folder(self.folder)] {
            self.disk.make_dir(&folder)?;
            self.disk.sync_dir(&folder)?;
        }
        // What is in this one may be lost, and so may the folder.
        self.refusals.note(
            Work::Filters,
            &self.disk.make_dir(&merged_folder(self.folder)),
        );
        self.disk.sync_dir(self.folder)?;
        self.disk.sync_dir(parent(self.folder))
    }

    /// Where there is no manifest there was no log, or it was lost: then something else of it is
    /// there.
    fn check_that_nothing_is_lost(&self) -> Result<()> {
        let (journal, segments) = (journal::folder(self.folder), segment::folder(self.folder));
        for (name, _) in self.disk.list(&segments)? {
            let path = segments.join(name);
            if path
                .extension()
                .is_none_or(|extension| extension != TEMPORARY)
            {
                return Err(Error::corrupt(path, 0, "a segment without a manifest"));
            }
        }
        for (name, bytes) in self.disk.list(&journal)? {
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

    /// Begins a log where there is none. An earlier attempt may have left a journal file without
    /// groups.
    fn create(&self) -> Result<Manifest> {
        self.check_that_nothing_is_lost()?;
        // What was begun of a manifest may still be on its way to the disk, and would then stand
        // beside files of another store.
        Manifest::remove(&*self.disk, self.folder)?;
        let journal = journal::folder(self.folder);
        let files = self.disk.list(&journal)?;
        for (name, _) in files
            .iter()
            .filter(|(name, _)| journal::number(name).is_some())
        {
            // It was just found to hold no group; its header, if it has one, is of a store that
            // never came to be.
            self.disk.remove(&journal.join(name))?;
        }
        let next_number = 1;
        let store = StoreId(fresh_store_number());
        let mut manifest = Manifest::new(store);
        let bytes = self.options.journal_file_bytes_min as u64;
        let spares = Spares::new(
            Arc::clone(&self.disk),
            journal,
            bytes,
            next_number,
            Arc::clone(&self.refusals),
        );
        let first = spares.make_now(bytes)?;
        let header = FileHeader {
            store,
            incarnation: 1,
            start_lsn: 0,
            chain: 0,
            blocks: journal::blocks(first.bytes),
            last_id: EventId::from_u128(0),
        };
        write_image(&*self.disk, &first, &header, &[])?;
        manifest.journal.push(JournalUse {
            number: first.number,
            incarnation: header.incarnation,
        });
        manifest.incarnation = header.incarnation;
        manifest.clean = true;
        manifest.store(&*self.disk, self.folder)?;
        Ok(manifest)
    }

    /// Checks the segments, and adds to the manifest those that a crash kept out of it.
    fn take_in_segments(&self, manifest: &mut Manifest, recovery: &mut Recovery) -> Result<()> {
        let folder = segment::folder(self.folder);
        let files = self.disk.list(&folder)?;
        segment::check_files(&folder, &manifest.segments, &files)?;
        let adopted = segment::adopt(
            &*self.disk,
            &folder,
            manifest.store,
            &manifest.segments,
            &files,
        )?;
        recovery.adopted_segments = adopted.len() as u64;
        manifest.segments.extend(adopted);
        Ok(())
    }

    fn spares(&self, replayed: &mut Replayed) -> Result<Arc<Spares>> {
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
            journal::folder(self.folder),
            bytes_max,
            next_number,
            refusals,
        );
        for (number, bytes) in replayed.unused.drain(..) {
            // Made for a large batch, or longer by a fault.
            if bytes > bytes_max {
                self.disk
                    .remove(&journal::path(&journal::folder(self.folder), number))?;
            } else {
                spares.give(number, bytes)?;
            }
        }
        Ok(Arc::new(spares))
    }

    /// Goes on in the file where the clean stop was recorded.
    fn go_on(&self, last: &ReplayedFile) -> Result<(JournalWriter, Vec<(u32, u64)>)> {
        let path = journal::path(&journal::folder(self.folder), last.number);
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

    /// Writes the last file again into another one and makes it durable; it then stands in the
    /// place of the old one, whose number and size are returned. Groups keep their LSNs.
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

    fn name_in_manifest(
        &self,
        manifest: &mut Manifest,
        kept: &[ReplayedFile],
        end_lsn: u64,
    ) -> Result<()> {
        manifest.journal = kept.iter().map(ReplayedFile::used_as).collect();
        manifest.durable_lsn = end_lsn;
        manifest.incarnation = kept
            .last()
            .map_or(manifest.incarnation, |file| file.header.incarnation);
        manifest.clean = false;
        manifest.store(&*self.disk, self.folder)
    }

    /// Puts into memory what no segment holds.
    fn restore(
        &self,
        manifest: &Manifest,
        kept: Vec<ReplayedFile>,
        recent: &Arc<Recent>,
        recovery: &mut Recovery,
    ) -> Result<()> {
        let (journal, sealed_lsn) = (journal::folder(self.folder), manifest.sealed_lsn());
        let begins = kept.first().map_or(0, |file| file.header.start_lsn);
        if begins != sealed_lsn {
            let what =
                format!("the journal begins at LSN {begins}, and the segments end at {sealed_lsn}");
            return Err(Error::corrupt(journal, 0, what));
        }
        for file in kept {
            recent.restore_file(file.used_as(), file.bytes, file.header.start_lsn);
            for group in file.groups {
                // A witness has none.
                recovery.replayed_groups += u64::from(!group.records.is_empty());
                recovery.replayed_events += group
                    .records
                    .iter()
                    .map(|record| u64::from(record.count))
                    .sum::<u64>();
                let offset = HEADER_BYTES + group.header.lsn - file.header.start_lsn;
                recent.restore(group.records).map_err(|_position| {
                    let what = "a record that does not follow the one before it in its session";
                    Error::corrupt(journal::path(&journal, file.number), offset, what)
                })?;
            }
        }
        Ok(())
    }

    fn engine(
        self,
        manifest: &Manifest,
        recent: Arc<Recent>,
        writer: Option<(Writer, Arc<Counters>)>,
        recovery: Recovery,
    ) -> Engine {
        let folder = segment::folder(self.folder);
        let cache = Arc::new(BlockCache::new(self.options.cache_bytes_max));
        let segment = |info: &SegmentInfo| {
            let (disk, cache) = (Arc::clone(&self.disk), Arc::clone(&cache));
            Arc::new(Segment::new(
                info.clone(),
                manifest.store,
                &folder,
                disk,
                cache,
            ))
        };
        let segments = SegmentSet::new(manifest.segments.iter().map(segment).collect());
        let index_bytes_max = self.options.index_cache_bytes_max;
        let runs_bytes_max = index_bytes_max / RUNS_SHARE;
        let (disk, refusals) = (Arc::clone(&self.disk), Arc::clone(&self.refusals));
        let index = Index::new(
            disk,
            self.folder,
            manifest.store,
            index_bytes_max - runs_bytes_max,
            refusals,
        );
        let index = Arc::new(index);
        index.note_segment(segments.newest_number());
        let locator = Arc::new(Locator::new(segments, Arc::clone(&index), runs_bytes_max));
        if writer.is_none() {
            let (disk, folder, cache) = (
                Arc::clone(&self.disk),
                merged_folder(self.folder),
                Arc::clone(&cache),
            );
            locator.take_in_later(MergedPlace {
                disk,
                folder,
                store: manifest.store,
                cache,
            });
        }
        let store = Store {
            recent,
            locator,
            cache,
            turns: RememberedTurns::default(),
            options: self.options,
        };
        let (writer, counters) = writer.map_or((None, Arc::default()), |(writer, counters)| {
            (Some(writer), counters)
        });
        Engine::new(store, index, counters, writer, recovery, self.refusals)
    }
}

fn parent(folder: &Path) -> &Path {
    folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Where the log ends.
struct Ends {
    lsn: u64,
    last_id: EventId,
}

impl Ends {
    fn of(replayed: &Replayed, manifest: &Manifest) -> Self {
        let sealed = manifest
            .segments
            .last()
            .map_or(EventId::from_u128(0), SegmentInfo::last_id);
        Self {
            lsn: replayed.end_lsn,
            last_id: replayed.last_id.max(sealed),
        }
    }
}

/// Tells the files that hold what no segment holds from those that can be used again. The last file
/// is kept also when it is empty.
fn split_off_sealed(
    files: Vec<ReplayedFile>,
    sealed_lsn: u64,
) -> (Vec<ReplayedFile>, Vec<ReplayedFile>) {
    let last = files.last().map(|file| file.number);
    files
        .into_iter()
        .partition(|file| file.end_lsn > sealed_lsn || Some(file.number) == last)
}

/// Writes a whole journal file, header and groups, and makes it durable; returns the chain value of
/// its end.
fn write_image(
    disk: &dyn Disk,
    spare: &Spare,
    header: &FileHeader,
    groups: &[journal::ReplayedGroup],
) -> Result<u32> {
    let mut image = BlockBuf::with_capacity(2 * BLOCK);
    image.extend(&header.encode());
    image.pad_to_block();
    let mut chain = header.chain;
    let mut buffer = GroupBuffer::default();
    for group in groups {
        buffer.clear();
        group.records.iter().for_each(|record| buffer.put(record));
        chain = buffer.complete(header.store, group.place_in(header.incarnation, chain));
        image.extend(buffer.blocks());
    }
    let file = disk.open(spare.file.path(), Mode::WriteBlocks)?;
    file.write_all_at(image.as_slice(), 0)?;
    file.sync()?;
    Ok(chain)
}

/// Whether the file system has no barriers since it takes no writes, as squashfs. One that says
/// that it is for reading only may have become so when a write failed, and the device may hold what
/// it will lose.
fn is_never_written(barrier: &Error) -> bool {
    let Error::Io { source, .. } = barrier else {
        return false;
    };
    matches!(
        source.kind(),
        ErrorKind::InvalidInput | ErrorKind::Unsupported
    )
}

fn no_log_in(folder: &Path) -> Error {
    let source = std::io::Error::new(ErrorKind::NotFound, "there is no log in this folder");
    crate::disk::io_error("open the log in", folder)(source)
}
