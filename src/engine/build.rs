//! Builds a log from the content of another one, segment by segment.
//!
//! Invariants:
//! * Until it is finished the folder holds no manifest, and a file that says so. It does not open
//!   as a log.
//! * A segment that was written stays, so a build that was cut short goes on behind it.

use std::path::Path;
use std::sync::Arc;

use crate::codec::{Salt, StoreId, UNFINISHED, encode_value, open_value};
use crate::disk::{
    BLOCK, BlockBuf, Disk, Hold, Layout, Mode, TEMPORARY, make_root, parent, read_device,
    write_whole,
};
use crate::engine::FolderLock;
use crate::engine::folder::begin_journal;
use crate::manifest::{Manifest, ManifestFile, Mark};
use crate::model::{Error, EventId, Options, Result, fresh_store_number, now_ms};
use crate::segment::{
    self, BlockCache, SegmentFolder, SegmentInfo, SegmentSet, SegmentSpec, SegmentWriter,
    read_info, write_segment,
};

/// A log that is being built.
pub(crate) struct LogBuilder {
    disk: Arc<dyn Disk>,
    layout: Layout,
    options: Options,
    manifest: Manifest,
    /// The segments so far, for looking up states.
    segments: SegmentSet,
    folder: SegmentFolder,
    /// The segments that were there when the build began, and that it has not come to.
    kept: Vec<SegmentInfo>,
    _lock: FolderLock,
}

/// What a segment of the log covers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch {
    pub first_id: EventId,
    pub last_id: EventId,
    pub tier: u8,
    /// The most sessions and keys in it.
    pub items_max: u64,
}

impl LogBuilder {
    /// Begins a log in a folder without one, or goes on with one that was begun from the same
    /// `source`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the folder holds a log, or one that is being built from something
    /// else. Nothing was changed.
    pub(crate) fn begin(
        disk: Arc<dyn Disk>,
        folder: &Path,
        options: Options,
        source: &str,
    ) -> Result<Self> {
        let layout = Layout::of(folder);
        make_root(&*disk, &layout.root)?;
        let lock = disk.enter(&layout.root, Layout::LOCK, Hold::Alone)?;
        if ManifestFile::load(&disk, &layout)?.is_some() {
            return Err(Error::invalid("target folder", "it holds a log already"));
        }
        let store = match read_source(&*disk, &layout)? {
            Some((store, of)) if of == source => store,
            Some((_, of)) => {
                let why = format!("it holds an unfinished copy of something else: {of}");
                return Err(Error::invalid("target folder", why));
            }
            None => begin_folder(&*disk, &layout, source)?,
        };
        let folder = SegmentFolder {
            disk: Arc::clone(&disk),
            path: layout.segments.clone(),
            store,
            cache: Arc::new(BlockCache::new(options.cache_bytes_max)),
        };
        let mut builder = Self {
            disk,
            layout,
            options,
            manifest: Manifest::new(store),
            segments: SegmentSet::new(Vec::new()),
            folder,
            kept: Vec::new(),
            _lock: lock,
        };
        builder.keep_whole_segments()?;
        Ok(builder)
    }

    /// Finds the segments that an earlier build has written, and removes what it has not finished.
    fn keep_whole_segments(&mut self) -> Result<()> {
        let folder = &self.layout.segments;
        for (name, bytes) in self.disk.list(folder)? {
            let path = folder.join(&name);
            let info = segment::number(&name).map(|number| {
                let file = self.disk.open(&path, Mode::Read)?;
                read_info(&*file, number, bytes, self.manifest.store)
            });
            match info {
                Some(info) => self.kept.push(info?),
                None if path.extension().is_some_and(|end| end == TEMPORARY) => {
                    self.disk.remove(&path)?;
                }
                None => {}
            }
        }
        self.kept.sort_unstable_by_key(|info| info.number);
        let follows = |(number, info): (u64, &SegmentInfo)| info.number == number;
        if !(1..).zip(&self.kept).all(follows) {
            let what = "a segment is missing before it";
            let path = segment::path(folder, self.kept.len() as u64);
            return Err(Error::corrupt(path, 0, what));
        }
        Ok(())
    }

    /// Returns whether the next segment was written by an earlier build. Then it is part of this
    /// one, and [`add`](Self::add) is not to be called for it.
    pub(crate) fn has_next(&mut self, stretch: &Stretch) -> Result<bool> {
        let Some(info) = self.kept.get(self.manifest.segments.len()) else {
            return Ok(false);
        };
        if (info.first_id(), info.last_id()) != (stretch.first_id, stretch.last_id) {
            let path = segment::path(&self.layout.segments, info.number);
            let what = "it was made from another stretch of the log";
            return Err(Error::corrupt(path, 0, what));
        }
        let info = info.clone();
        self.note_segment(info);
        Ok(true)
    }

    /// Whether the last segment has so many records and events.
    pub(crate) fn is_last(&self, records: u64, events: u64) -> bool {
        let last = self.manifest.segments.last();
        last.is_some_and(|info| (info.records, info.events) == (records, events))
    }

    /// Adds a segment, to which `fill` passes the sessions.
    pub(crate) fn add<E: From<Error>>(
        &mut self,
        stretch: Stretch,
        fill: impl FnOnce(&mut SegmentWriter<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.manifest.segments.len() as u64;
        // Positions in the journal have no meaning once it is sealed, but for their order.
        let start_lsn = before * BLOCK as u64;
        let spec = SegmentSpec {
            store: self.manifest.store,
            number: before + 1,
            tier: stretch.tier,
            start_lsn,
            end_lsn: start_lsn + BLOCK as u64,
            first_id: stretch.first_id,
            last_id: stretch.last_id,
            compression: self.options.compression,
            items_max: stretch.items_max,
            table_bytes_max: self.options.table_bytes_max,
        };
        let info = write_segment(&*self.disk, &self.layout.segments, spec, fill)?;
        self.note_segment(info);
        Ok(())
    }

    fn note_segment(&mut self, info: SegmentInfo) {
        self.segments = self
            .segments
            .with(Arc::new(self.folder.segment(info.clone())));
        self.manifest.segments.push(info);
    }

    /// Notes that a session has a retention of its own.
    pub(crate) fn note_own_retention(&mut self) {
        self.manifest.has_own_retention = true;
    }

    /// Marks all segments as holding something removed, so that it is erased in the background.
    pub(crate) fn mark_all(&mut self) {
        let removal_ms = now_ms(&self.options.clock);
        let marks = self.manifest.segments.iter().map(|info| Mark {
            segment: info.number,
            events: info.events,
            removal_ms,
        });
        self.manifest.marks = marks.collect();
    }

    /// Returns the segments so far.
    pub(crate) fn segments(&self) -> &SegmentSet {
        &self.segments
    }

    /// Makes the folder a closed log.
    pub(crate) fn finish(self) -> Result<()> {
        let Self {
            disk,
            layout,
            options,
            mut manifest,
            kept,
            ..
        } = self;
        if kept.len() > manifest.segments.len() {
            return Err(Error::invalid(
                "source",
                "it is shorter than what an earlier run has copied of it",
            ));
        }
        // A process that was killed may have given names that are not durable yet.
        disk.sync_dir(&layout.segments)?;
        disk.sync_dir(&layout.root)?;
        disk.sync_dir(parent(&layout.root))?;
        let bytes = options.journal_file_bytes_min as u64;
        begin_journal(&disk, &layout.journal, bytes, &mut manifest)?;
        let mut slots = ManifestFile::new(&disk, &layout, manifest.store);
        slots.replace(manifest);
        slots.store()?;
        disk.remove(&layout.unfinished)?;
        disk.sync_dir(&layout.root)
    }
}

/// Makes the folders, and the file that says what is being built.
fn begin_folder(disk: &dyn Disk, layout: &Layout, source: &str) -> Result<StoreId> {
    for folder in [&layout.journal, &layout.segments] {
        disk.make_dir(folder)?;
        if !disk.list(folder)?.is_empty() {
            return Err(Error::invalid(
                "target folder",
                "it holds files of a log that has lost its manifest",
            ));
        }
        disk.sync_dir(folder)?;
    }
    let store = StoreId(fresh_store_number());
    let mut image = BlockBuf::with_capacity(BLOCK);
    image.extend(&encode_value(UNFINISHED, salt(), &(store, source)));
    image.pad_to_block();
    write_whole(disk, &layout.unfinished, |path| {
        let file = disk.open(path, Mode::WriteBlocks)?;
        file.write_all_at(image.as_slice(), 0)?;
        file.sync()
    })?;
    disk.sync_dir(parent(&layout.root))?;
    Ok(store)
}

/// Returns the store and the source of a log that is being built in the folder.
fn read_source(disk: &dyn Disk, layout: &Layout) -> Result<Option<(StoreId, String)>> {
    let path = &layout.unfinished;
    if !disk.exists(path)? {
        return Ok(None);
    }
    let length = disk.open(path, Mode::Read)?.len()?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let bytes = read_device(disk, path, length.min(16 * BLOCK))?;
    let value = open_value(UNFINISHED, salt(), bytes.as_slice());
    let value = value.and_then(|value| value.decode());
    value.map(Some).map_err(|fault| fault.at(path, 0))
}

fn salt() -> Salt {
    Salt::new(StoreId::default(), *b"bild", 0)
}
