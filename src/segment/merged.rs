//! Merged filters: one filter over sixteen segments, over sixteen times sixteen, and so on, so that a session or an idempotency key that is
//! nowhere is found to be nowhere in about as many reads as the number of segments has digits.
//!
//! They are derived from the segments' tables and can be deleted at any time; but where one says that an item is in none of its segments, that
//! is believed. Invariant: the checksums of its pages start from what its segments are, from its length and from the place in it, so that bytes
//! that belong to anything else never pass, and what does not pass rules nothing out.
//!
//! A page is a filter like a segment's, of one block; an item's hash says on which page to look.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{Salt, StoreId};
use crate::disk::{BLOCK, Disk, Mode, TEMPORARY, publish};
use crate::error::Result;
use crate::segment::cache::FileKey;
use crate::segment::filter::{self, FilterBuilder, HEADER_BYTES};
use crate::segment::parts::Parts;
use crate::segment::table::Sink;
use crate::segment::write::BlockSink;
use crate::segment::{BlockCache, ItemHash, Segment, SegmentSet};
use crate::sync::{AtomicBool, Ordering};

/// So many segments, or filters of the level below, go into one.
const FANOUT: u64 = 16;

/// The widest filters are over `FANOUT` to this power of segments.
const LEVELS: u8 = 3;

/// None is made that would take more, since it is made in memory. This is 16 million sessions and keys.
const FILTER_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A page is a block, and such a filter.
const PAGE_BYTES: u32 = 4096;

const PAGE_ITEMS: u64 = filter::items_in(PAGE_BYTES as u64 - HEADER_BYTES as u64);

const _: () = assert!(PAGE_BYTES as usize == BLOCK, "pages are written as blocks");

const EXTENSION: &str = "filter";

/// The folder of the merged filters.
pub(crate) fn merged_folder(log: &Path) -> PathBuf {
    log.join("filters")
}

/// The segments that a merged filter is over: `FANOUT` to the power of the level, up to the last, whose number is a multiple of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Span {
    level: u8,
    pub last: u64,
}

impl Span {
    /// All that end with segment `last`, the widest first.
    pub(super) fn ending_with(last: u64) -> impl Iterator<Item = Self> {
        let spans = (1..=LEVELS).rev().map(move |level| Self { level, last });
        spans.filter(|span| span.last > 0 && span.last.is_multiple_of(span.segments()))
    }

    /// All among the segments up to `newest`, in no order that matters.
    pub(crate) fn up_to(newest: u64) -> impl Iterator<Item = Self> {
        (1..=newest / FANOUT).flat_map(|last| Self::ending_with(last * FANOUT))
    }

    pub(super) fn segments(self) -> u64 {
        FANOUT.pow(self.level.into())
    }

    /// The number of the segment before the first.
    pub(super) fn before(self) -> u64 {
        self.last - self.segments()
    }

    fn path(self, folder: &Path) -> PathBuf {
        folder.join(format!("{:016}-{}.{EXTENSION}", self.last, self.level))
    }

    /// The span in a file's name.
    fn of_name(name: &str) -> Option<Self> {
        let (last, level) = name.strip_suffix(EXTENSION)?.strip_suffix('.')?.split_once('-')?;
        let (last, level) = (last.parse().ok()?, level.parse().ok()?);
        let span = Self { level, last };
        let is_ours = Self::ending_with(last).any(|possible| possible == span) && span.path(Path::new("")) == Path::new(name);
        is_ours.then_some(span)
    }
}

/// A filter over a span of segments.
pub(crate) struct MergedFilter {
    pub span: Span,
    pages: u64,
    parts: Parts,
    /// Something of it could not be read.
    broken: AtomicBool,
}

/// Where a store's merged filters are.
pub(crate) struct MergedPlace {
    pub disk: Arc<dyn Disk>,
    pub folder: PathBuf,
    pub store: StoreId,
    pub cache: Arc<BlockCache>,
}

impl MergedFilter {
    /// Those in the folder that are over segments of the set. Nothing is read of them yet.
    pub(crate) fn list(place: &MergedPlace, set: &SegmentSet) -> Result<Vec<Self>> {
        let found = place.disk.list(&place.folder)?.into_iter().filter_map(|(name, bytes)| {
            let span = Span::of_name(&name)?;
            Self::new(place, span, set.of_span(span)?, bytes)
        });
        Ok(found.collect())
    }

    /// The filter in a file of so many bytes, over these segments; `None` when no filter is as long. Nothing is read yet.
    fn new(place: &MergedPlace, span: Span, segments: &[Arc<Segment>], file_bytes: u64) -> Option<Self> {
        let is_whole = file_bytes > 0 && file_bytes.is_multiple_of(PAGE_BYTES.into());
        let salt = salt(place.store, span, segments, file_bytes);
        let parts = Parts {
            key: FileKey::Merged(span),
            path: span.path(&place.folder),
            file_bytes,
            salt,
            disk: Arc::clone(&place.disk),
            cache: Arc::clone(&place.cache),
        };
        is_whole.then(|| Self { span, pages: file_bytes / u64::from(PAGE_BYTES), parts, broken: AtomicBool::new(false) })
    }

    /// Makes the filter over these segments and writes it; `None` when it would be too large. Now and then `go_on` may end it. A failure
    /// leaves no filter and may be tried again.
    pub(crate) fn make(
        place: &MergedPlace,
        span: Span,
        segments: &[Arc<Segment>],
        go_on: impl Fn() -> Result<()>,
    ) -> Result<Option<Self>> {
        let items = segments.iter().map(|segment| segment.filter_items()).sum::<u64>();
        let pages = items.div_ceil(PAGE_ITEMS).max(1);
        let Some(filter) = Self::new(place, span, segments, pages * u64::from(PAGE_BYTES)) else { return Ok(None) };
        if filter.parts.file_bytes > FILTER_BYTES_MAX {
            return Ok(None);
        }
        let mut builders: Vec<_> = (0..pages).map(|_page| FilterBuilder::new(PAGE_ITEMS)).collect();
        for segment in segments {
            for (nth, item) in (0_u64..).zip(segment.items()?) {
                let item = item?;
                if nth.is_multiple_of(PAGE_ITEMS) {
                    go_on()?;
                }
                builders.get_mut(filter.page_of(item)).expect("an item's page is below their number").insert(item);
            }
        }
        filter.write(&builders)?;
        Ok(Some(filter))
    }

    fn write(&self, pages: &[FilterBuilder]) -> Result<()> {
        let Parts { disk, path, .. } = &self.parts;
        let unfinished = path.with_extension(TEMPORARY);
        let write = || {
            let mut sink = BlockSink::new(disk.open(&unfinished, Mode::WriteBlocks)?);
            pages.iter().try_for_each(|page| sink.put(&page.encode(self.parts.salt.at(sink.offset()))))?;
            sink.finish(&[])?;
            publish(&**disk, &unfinished, path)
        };
        let written = write();
        if written.is_err() {
            // What failed is the write; on a full disk the space is given back at once.
            let _removed = disk.remove(&unfinished);
        }
        // One that was broken may still be open.
        self.parts.cache.close(self.parts.key);
        written
    }

    /// Whether none of its segments has the item. What cannot be read rules out nothing, and is not tried again.
    pub(super) fn rules_out(&self, item: ItemHash) -> bool {
        if self.is_broken() {
            return false;
        }
        match self.page(item) {
            Ok(page) => !filter::may_hold(&page, item),
            Err(_unreadable) => {
                self.broken.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    /// Whether it is of no use, until it is made again.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn page(&self, item: ItemHash) -> Result<Bytes> {
        let offset = self.page_of(item) as u64 * u64::from(PAGE_BYTES);
        self.parts.part(offset, PAGE_BYTES, || self.parts.file(|_file| Ok(())), filter::check)
    }

    /// By the hash's high half, taken as a fraction of all pages.
    fn page_of(&self, item: ItemHash) -> usize {
        let high = u128::from_le_bytes(item) >> 64;
        usize::try_from((high * u128::from(self.pages)) >> 64).expect("as many pages as fit memory")
    }
}

/// What the checksums of a filter's pages start from.
fn salt(store: StoreId, span: Span, segments: &[Arc<Segment>], file_bytes: u64) -> Salt {
    let salt = Salt::new(store, *b"mflt", span.last).over(&[span.level]).over(&file_bytes.to_le_bytes());
    segments.iter().fold(salt, |salt, segment| {
        let info = &segment.info;
        salt.over(&info.end_lsn.to_le_bytes()).over(&info.last_id().to_u128().to_le_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::EncodedBatch;
    use crate::disk::RealDisk;
    use crate::event::{Batch, NewEvent};
    use crate::ids::{EventId, Stamp};
    use crate::segment::{self, SegmentInfo, SegmentPlan, write_segment};
    use crate::session::SessionId;

    /// Small segments on a disk, each with a session and a key of its own.
    struct Scene {
        folder: tempfile::TempDir,
        disk: Arc<dyn Disk>,
        store: StoreId,
        infos: Vec<SegmentInfo>,
    }

    /// A scene as it is seen after opening, with nothing in a cache.
    struct Opened<'a> {
        scene: &'a Scene,
        cache: Arc<BlockCache>,
        set: SegmentSet,
    }

    fn session(number: u64) -> SessionId {
        SessionId::new(format!("session-{number}")).unwrap()
    }

    fn hash(session: &SessionId) -> ItemHash {
        segment::session_hash(session.as_str().as_bytes())
    }

    impl Scene {
        fn new(store: StoreId, segments: u64) -> Self {
            let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::new(RealDisk::default()));
            for folder in [segment::folder(folder.path()), merged_folder(folder.path())] {
                disk.make_dir(&folder).unwrap();
            }
            let mut scene = Self { folder, disk, store, infos: Vec::new() };
            (1..=segments).for_each(|number| scene.write_segment(number, number.into()));
            scene
        }

        /// Writes a segment with one record.
        fn write_segment(&mut self, number: u64, id: u128) {
            let batch = Batch::new().event(NewEvent::new("note", "x")).idempotency_key("key");
            let stamp = Stamp { base: EventId::from_u128(id), created_ms: 0 };
            let records = vec![EncodedBatch::new(&session(number), batch).stamped(1, 1, stamp)];
            let plan = SegmentPlan { store: self.store, number, start_lsn: number - 1, end_lsn: number, records };
            let folder = segment::folder(self.folder.path());
            self.infos.push(write_segment(&*self.disk, &folder, &plan, |_written| Ok(())).unwrap());
        }

        fn opened(&self) -> Opened<'_> {
            let cache = Arc::new(BlockCache::new(1 << 24));
            let folder = segment::folder(self.folder.path());
            let set = self.infos.iter().fold(SegmentSet::default(), |set, info| {
                let (disk, cache) = (Arc::clone(&self.disk), Arc::clone(&cache));
                set.with(Arc::new(Segment::new(info.clone(), self.store, &folder, disk, cache)))
            });
            Opened { scene: self, cache, set }
        }

        fn newest(&self) -> u64 {
            self.infos.len() as u64
        }

        fn make_all(&self) {
            let opened = self.opened();
            Span::up_to(self.newest()).for_each(|span| drop(opened.make(span)));
        }
    }

    impl Opened<'_> {
        fn make(&self, span: Span) -> MergedFilter {
            let segments = self.set.of_span(span).unwrap();
            self.in_place(|place| MergedFilter::make(place, span, segments, || Ok(())).unwrap().unwrap())
        }

        fn there(&self, span: Span) -> MergedFilter {
            let segments = self.set.of_span(span).unwrap();
            let file = self.scene.disk.open(&self.path(span), Mode::Read).unwrap();
            self.in_place(|place| MergedFilter::new(place, span, segments, file.len().unwrap()).unwrap())
        }

        fn path(&self, span: Span) -> PathBuf {
            span.path(&merged_folder(self.scene.folder.path()))
        }

        fn in_place<T>(&self, work: impl FnOnce(&MergedPlace) -> T) -> T {
            let Scene { folder, disk, store, .. } = self.scene;
            let (disk, cache, folder) = (Arc::clone(disk), Arc::clone(&self.cache), merged_folder(folder.path()));
            work(&MergedPlace { disk, folder, store: *store, cache })
        }
    }

    #[test]
    fn what_is_nowhere_is_found_to_be_nowhere_without_a_look_into_most_segments() {
        let scene = Scene::new(StoreId(1), 16 * 16 + 16 + 3);
        scene.make_all();
        let folder = segment::folder(scene.folder.path());
        (1..=scene.newest() - 3).for_each(|number| scene.disk.remove(&segment::path(&folder, number)).unwrap());
        // Only the widest are needed.
        (1..=16).for_each(|n| scene.disk.remove(&scene.opened().path(Span { level: 1, last: 16 * n })).unwrap());
        let opened = scene.opened();
        let set = opened.set.with_merged([(2, 256), (1, 272)].map(|(level, last)| opened.there(Span { level, last })));
        for number in 1_000..1_200 {
            assert!(set.last_run(&session(number), 0).unwrap().is_none());
            assert!(set.record_of_key(&session(number), 1, "key").unwrap().is_none());
        }
        assert!(set.last_run(&session(7), 0).is_err(), "its segment was not looked for");
        assert!(set.last_run(&session(7), 256).unwrap().is_none(), "it was looked for where it was not asked for");
    }

    #[test]
    fn what_is_in_a_segment_is_never_ruled_out() {
        let scene = Scene::new(StoreId(1), 2 * 256 + 40);
        scene.make_all();
        let opened = scene.opened();
        let set = opened.set.with_merged(Span::up_to(scene.newest()).map(|span| opened.there(span)));
        for number in 1..=scene.newest() {
            let (found, run) = set.last_run(&session(number), 0).unwrap().unwrap();
            assert_eq!((found.info.number, run.last()), (number, 1));
            assert!(set.record_of_key(&session(number), 1, "key").unwrap().is_some());
            assert!(set.last_run(&session(number), number).unwrap().is_none());
        }
    }

    #[test]
    fn bytes_that_belong_to_anything_else_rule_nothing_out() {
        let span = Span { level: 1, last: 32 };
        let scene = Scene::new(StoreId(1), 48);
        scene.make_all();
        let path = scene.opened().path(span);
        let bytes_of = |scene: &Scene, span| {
            let file = scene.disk.open(&scene.opened().path(span), Mode::Read).unwrap();
            let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let right = bytes_of(&scene, span);
        let check = |what: &str, bytes: &[u8]| {
            scene.disk.remove(&path).unwrap();
            scene.disk.open(&path, Mode::Write).unwrap().write_all_at(bytes, 0).unwrap();
            let opened = scene.opened();
            for number in 0..20 {
                // Each time anew, since one that is known to be broken is not asked.
                let filter = opened.there(span);
                assert!(!filter.rules_out(hash(&session(number))), "{what} was believed");
                assert!(filter.is_broken(), "{what} was not noticed");
            }
        };
        let other_store = Scene::new(StoreId(2), 48);
        other_store.make_all();
        check("a filter of another store", &bytes_of(&other_store, span));
        check("a filter over other segments", &bytes_of(&scene, Span { last: 48, ..span }));
        let mut other_past = Scene::new(StoreId(1), 31);
        other_past.write_segment(32, 33);
        other_past.make_all();
        check("a filter over segments that were others then", &bytes_of(&other_past, span));
        check("a longer filter", &[right.clone(), right.clone()].concat());
        for bit in (0..right.len() * 8).step_by(97) {
            let mut flipped = right.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            check("a flipped bit", &flipped);
        }
    }

    #[test]
    fn a_filter_that_is_broken_is_made_again() {
        let span = Span { level: 1, last: 16 };
        let scene = Scene::new(StoreId(1), 16);
        let opened = scene.opened();
        drop(opened.make(span));
        scene.disk.open(&opened.path(span), Mode::Write).unwrap().write_all_at(&[1], 100).unwrap();
        let broken = opened.set.with_merged([opened.there(span)]);
        assert!(broken.is_merged(span), "it is not known yet");
        assert!(broken.last_run(&session(99), 0).unwrap().is_none());
        assert!(!broken.is_merged(span));
        let mended = broken.with_merged([opened.make(span)]);
        assert!(mended.last_run(&session(99), 0).unwrap().is_none());
        assert!(mended.is_merged(span), "what was written in its place is not what is read");
    }

    #[test]
    fn a_span_is_known_by_its_files_name_and_no_other_file_is_taken_for_one() {
        for span in Span::up_to(5_000) {
            assert_eq!(Span::of_name(span.path(Path::new("")).to_str().unwrap()), Some(span));
        }
        let others = ["0000000000000016-2.filter", "0000000000000017-1.filter", "16-1.filter", "0000000000000000-1.filter"];
        let more =
            ["0000000000000016-0.filter", "0000000000000016-4.filter", "0000000000000016-1.tmp", "0000000000000016.segment", ""];
        assert!(others.iter().chain(&more).all(|name| Span::of_name(name).is_none()));
    }
}
