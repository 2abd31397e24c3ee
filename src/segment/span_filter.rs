//! Span filters: one filter over each 16, 256 and 4,096 segments, unless it would be too large for
//! memory. They show that a session or an idempotency key is nowhere without a probe of each
//! segment.
//!
//! They are derived from the segments' tables and can be deleted at any time. A reader does not
//! check their answer that an item is in none of their segments. Invariants:
//! * The salt of a filter's pages covers the identity of its segments' filters and its length, and
//!   each checksum the page's place in it. So other bytes do not pass, and bytes that do not pass
//!   rule nothing out.
//! * A filter is over the items found in the tables. These are checked, bit for bit, against the
//!   segments' own filters.
//!
//! A page is a filter like a segment's, of one block. An item's hash selects its page.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{Salt, StoreId};
use crate::disk::{BLOCK, Disk, Mode, write_whole};
use crate::model::{Error, Result};
use crate::segment::cache::FileKey;
use crate::segment::filter::{self, FilterBuilder, HEADER_BYTES};
use crate::segment::parts::Parts;
use crate::segment::table::Sink;
use crate::segment::write::BlockSink;
use crate::segment::{BlockCache, ItemHash, Segment, SegmentSet};
use crate::sync::{AtomicBool, Ordering};

/// The number of segments, or of filters of the level below, that one filter is over.
const FANOUT: u64 = 16;

/// The number of levels. The widest filters are over `FANOUT` to this power of segments.
const LEVELS: u8 = 3;

/// The largest filter, in bytes, since a filter is made in memory.
///
/// This is enough for 16 million sessions and keys. If segments hold more, the filters of the level
/// below are used.
const FILTER_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// The size of a page, in bytes. A page is a block that holds one filter.
const PAGE_BYTES: u32 = 4096;

const PAGE_ITEMS: u64 = filter::items_in(PAGE_BYTES as u64 - HEADER_BYTES as u64);

const _: () = assert!(PAGE_BYTES as usize == BLOCK, "pages are written as blocks");

const EXTENSION: &str = "filter";

/// The segments of a span filter: `FANOUT` to the power of the level, up to the last. The number of
/// the last is a multiple of that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Span {
    level: u8,
    pub last: u64,
}

impl Span {
    /// Returns all spans that end with segment `last`, the widest first.
    pub(super) fn ending_with(last: u64) -> impl Iterator<Item = Self> {
        let spans = (1..=LEVELS).rev().map(move |level| Self { level, last });
        spans.filter(|span| span.last > 0 && span.last.is_multiple_of(span.segments()))
    }

    /// Returns all spans among the segments up to `newest`, the narrowest first.
    pub(crate) fn up_to(newest: u64) -> impl Iterator<Item = Self> {
        (1..=LEVELS).flat_map(move |level| {
            let segments = FANOUT.pow(level.into());
            (1..=newest / segments).map(move |nth| Self {
                level,
                last: nth * segments,
            })
        })
    }

    /// Returns the number of segments in the span.
    pub(crate) fn segments(self) -> u64 {
        FANOUT.pow(self.level.into())
    }

    /// Returns the number of the segment before the first.
    pub(super) fn before(self) -> u64 {
        self.last - self.segments()
    }

    fn path(self, folder: &Path) -> PathBuf {
        folder.join(format!("{:016}-{}.{EXTENSION}", self.last, self.level))
    }

    /// Returns the span in a file's name.
    fn of_name(name: &str) -> Option<Self> {
        let (last, level) = name
            .strip_suffix(EXTENSION)?
            .strip_suffix('.')?
            .split_once('-')?;
        let (last, level) = (last.parse().ok()?, level.parse().ok()?);
        let span = Self { level, last };
        let is_ours = Self::ending_with(last).any(|possible| possible == span)
            && span.path(Path::new("")) == Path::new(name);
        is_ours.then_some(span)
    }
}

/// A filter over a span of segments.
pub(crate) struct SpanFilter {
    pub span: Span,
    pages: u64,
    parts: Parts,
    /// Whether some of it is damaged or missing.
    broken: AtomicBool,
}

/// The folder of a store's span filters, with the means to read them.
#[derive(Clone)]
pub(crate) struct FilterDir {
    pub disk: Arc<dyn Disk>,
    pub folder: PathBuf,
    pub store: StoreId,
    pub cache: Arc<BlockCache>,
}

impl SpanFilter {
    /// Lists the filters in the folder that are over segments of the set.
    ///
    /// It reads only the identity of their segments' filters. `check_stop` is called before each
    /// filter, and may end the listing with an error.
    pub(crate) fn list<E: From<Error>>(
        dir: &FilterDir,
        set: &SegmentSet,
        check_stop: impl Fn() -> Result<(), E>,
    ) -> Result<Vec<Self>, E> {
        let mut filters = Vec::new();
        for (name, bytes) in dir.disk.list(&dir.folder)? {
            let of_segments =
                Span::of_name(&name).and_then(|span| Some((span, set.of_span(span)?)));
            let Some((span, segments)) = of_segments else {
                continue;
            };
            check_stop()?;
            // If a segment cannot be read, its own filter cannot either.
            filters.extend(Self::new(dir, span, segments, bytes).ok().flatten());
        }
        Ok(filters)
    }

    /// Returns the filter in a file of `file_bytes` over these segments; `None` if no filter has
    /// that length.
    fn new(
        dir: &FilterDir,
        span: Span,
        segments: &[Arc<Segment>],
        file_bytes: u64,
    ) -> Result<Option<Self>> {
        if !(1..=FILTER_BYTES_MAX).contains(&file_bytes)
            || !file_bytes.is_multiple_of(PAGE_BYTES.into())
        {
            return Ok(None);
        }
        let salt = salt(dir.store, span, segments, file_bytes)?;
        let parts = Parts {
            key: FileKey::SpanFilter(span, file_bytes),
            path: span.path(&dir.folder),
            file_bytes,
            salt,
            disk: Arc::clone(&dir.disk),
            cache: Arc::clone(&dir.cache),
        };
        Ok(Some(Self {
            span,
            pages: file_bytes / u64::from(PAGE_BYTES),
            parts,
            broken: AtomicBool::new(false),
        }))
    }

    /// Makes the filter over these segments and writes it; `None` if it would be too large.
    ///
    /// `check_stop` is called now and then, and may end the work with an error. A failure leaves no
    /// filter, and the caller may try again.
    pub(crate) fn make<E: From<Error>>(
        dir: &FilterDir,
        span: Span,
        segments: &[Arc<Segment>],
        check_stop: impl Fn() -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        let items = segments
            .iter()
            .map(|segment| segment.filter_items())
            .sum::<u64>();
        let pages = items.div_ceil(PAGE_ITEMS).max(1);
        let Some(filter) = Self::new(dir, span, segments, pages * u64::from(PAGE_BYTES))? else {
            return Ok(None);
        };
        let mut builders: Vec<_> = (0..pages)
            .map(|_page| FilterBuilder::new(PAGE_ITEMS))
            .collect();
        let mut visited = 0;
        for segment in segments {
            check_stop()?;
            segment.for_each_item(|item| {
                visited += 1;
                builders
                    .get_mut(filter.page_of(item))
                    .expect("an item's page is below their number")
                    .insert(item);
                if visited % PAGE_ITEMS == 0 {
                    check_stop()
                } else {
                    Ok(())
                }
            })?;
        }
        filter.write(&builders)?;
        Ok(Some(filter))
    }

    fn write(&self, pages: &[FilterBuilder]) -> Result<()> {
        let Parts { disk, path, .. } = &self.parts;
        let written = write_whole(&**disk, path, |unfinished| {
            let mut sink = BlockSink::new(disk.open(unfinished, Mode::WriteBlocks)?);
            pages
                .iter()
                .try_for_each(|page| sink.put(&page.encode(self.parts.salt.at(sink.offset()))))?;
            sink.finish(&[])
        });
        // The broken file that this one replaces may still be open.
        self.parts.cache.close(self.parts.key);
        written
    }

    /// Returns whether none of the filter's segments has the item.
    ///
    /// A page that cannot be read rules nothing out. A filter that is damaged or missing is not
    /// read again.
    pub(super) fn rules_out(&self, item: ItemHash) -> bool {
        if self.is_broken() {
            return false;
        }
        match self.page(item) {
            Ok(page) => !filter::may_hold(&page, item),
            Err(Error::Io { source, .. }) if source.kind() != std::io::ErrorKind::NotFound => false,
            Err(_damaged_or_gone) => {
                self.broken.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    /// Returns whether the filter is unusable until it is made again.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn page(&self, item: ItemHash) -> Result<Bytes> {
        let offset = self.page_of(item) as u64 * u64::from(PAGE_BYTES);
        self.parts.part(
            offset,
            PAGE_BYTES,
            || self.parts.file(|_file| Ok(())),
            |salt, page| filter::check(salt, page),
        )
    }

    /// Returns the page of an item: the hash's high half, taken as a fraction of all pages.
    fn page_of(&self, item: ItemHash) -> usize {
        let high = u128::from_le_bytes(item) >> 64;
        usize::try_from((high * u128::from(self.pages)) >> 64).expect("as many pages as fit memory")
    }
}

/// Returns the salt of a filter's pages.
fn salt(store: StoreId, span: Span, segments: &[Arc<Segment>], file_bytes: u64) -> Result<Salt> {
    let salt = Salt::new(store, *b"mflt", span.last)
        .over(&[span.level])
        .over(&file_bytes.to_le_bytes());
    segments.iter().try_fold(salt, |salt, segment| {
        Ok(salt.over(&segment.filter_identity()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::EncodedBatch;
    use crate::disk::{Layout, RealDisk};
    use crate::model::{Batch, EventId, NewEvent, SessionId, Stamp};
    use crate::segment::{self, SegmentInfo, SegmentPlan, write_segment};

    /// Small segments on a disk, each with a session and a key of its own.
    struct Scene {
        folder: tempfile::TempDir,
        disk: Arc<dyn Disk>,
        store: StoreId,
        infos: Vec<SegmentInfo>,
    }

    /// A scene after it was opened, with nothing cached.
    struct Opened<'a> {
        scene: &'a Scene,
        cache: Arc<BlockCache>,
        set: SegmentSet,
    }

    fn session(number: u64) -> SessionId {
        SessionId::new(format!("session-{number}")).unwrap()
    }

    fn hash(session: &SessionId) -> ItemHash {
        segment::session_hash(session.as_bytes())
    }

    impl Scene {
        fn new(store: StoreId, segments: u64) -> Self {
            let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::new(RealDisk::default()));
            for folder in [
                Layout::of(folder.path()).segments,
                Layout::of(folder.path()).filters,
            ] {
                disk.make_dir(&folder).unwrap();
            }
            let mut scene = Self {
                folder,
                disk,
                store,
                infos: Vec::new(),
            };
            (1..=segments).for_each(|number| scene.write_segment(number, &session(number)));
            scene
        }

        /// Writes a segment with one record.
        fn write_segment(&mut self, number: u64, session: &SessionId) {
            let batch = Batch::new()
                .event(NewEvent::new("note", "x"))
                .idempotency_key("key");
            let stamp = Stamp {
                base: EventId::from_u128(number.into()),
                created_ms: 0,
            };
            let records = vec![EncodedBatch::new(session, batch).stamped(1, 1, stamp)];
            let plan = SegmentPlan {
                store: self.store,
                number,
                start_lsn: number - 1,
                end_lsn: number,
                records,
            };
            let folder = Layout::of(self.folder.path()).segments;
            self.infos.push(
                write_segment::<Error>(&*self.disk, &folder, &plan, |_written| Ok(())).unwrap(),
            );
        }

        fn opened(&self) -> Opened<'_> {
            let cache = Arc::new(BlockCache::new(1 << 24));
            let folder = Layout::of(self.folder.path()).segments;
            let segment = |info: &SegmentInfo| {
                let (disk, cache) = (Arc::clone(&self.disk), Arc::clone(&cache));
                Arc::new(Segment::new(info.clone(), self.store, &folder, disk, cache))
            };
            let set = SegmentSet::new(self.infos.iter().map(segment).collect());
            Opened {
                scene: self,
                cache,
                set,
            }
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
        fn make(&self, span: Span) -> SpanFilter {
            let segments = self.set.of_span(span).unwrap();
            self.in_dir(|dir| {
                SpanFilter::make::<Error>(dir, span, segments, || Ok(()))
                    .unwrap()
                    .unwrap()
            })
        }

        fn there(&self, span: Span) -> SpanFilter {
            let segments = self.set.of_span(span).unwrap();
            let file = self.scene.disk.open(&self.path(span), Mode::Read).unwrap();
            self.in_dir(|dir| {
                SpanFilter::new(dir, span, segments, file.len().unwrap())
                    .unwrap()
                    .unwrap()
            })
        }

        fn path(&self, span: Span) -> PathBuf {
            span.path(&Layout::of(self.scene.folder.path()).filters)
        }

        fn in_dir<T>(&self, work: impl FnOnce(&FilterDir) -> T) -> T {
            let Scene {
                folder,
                disk,
                store,
                ..
            } = self.scene;
            let (disk, cache, folder) = (
                Arc::clone(disk),
                Arc::clone(&self.cache),
                Layout::of(folder.path()).filters,
            );
            work(&FilterDir {
                disk,
                folder,
                store: *store,
                cache,
            })
        }
    }

    #[test]
    fn what_is_nowhere_is_found_to_be_nowhere_without_a_look_into_most_segments() {
        let scene = Scene::new(StoreId(1), 16 * 16 + 16 + 3);
        scene.make_all();
        let opened = scene.opened();
        let set = opened.set.with_filters(
            [(2, 256), (1, 272)].map(|(level, last)| opened.there(Span { level, last })),
        );
        for info in &scene.infos[..272] {
            let path = segment::path(&Layout::of(scene.folder.path()).segments, info.number);
            std::fs::write(path, vec![0xFF; usize::try_from(info.file_bytes).unwrap()]).unwrap();
        }
        for number in 1_000..1_200 {
            assert!(set.last_run(&session(number)).unwrap().is_none());
            assert!(
                set.run_at(&session(number), (1, 1), None)
                    .unwrap()
                    .is_none()
            );
            assert!(
                set.record_of_key(&session(number), 1, "key")
                    .unwrap()
                    .is_none()
            );
        }
        assert!(
            set.last_run(&session(7)).is_err(),
            "its segment was not looked for"
        );
        assert!(
            set.run_at(&session(7), (1, 1), None).is_err(),
            "its segment was not looked for"
        );
    }

    #[test]
    fn what_is_in_a_segment_is_never_ruled_out() {
        let scene = Scene::new(StoreId(1), 2 * 256 + 40);
        scene.make_all();
        let opened = scene.opened();
        let set = opened
            .set
            .with_filters(Span::up_to(scene.newest()).map(|span| opened.there(span)));
        for number in 1..=scene.newest() {
            let (found, entry) = set.last_run(&session(number)).unwrap().unwrap();
            assert_eq!((found.info.number, entry.run.last()), (number, 1));
            let (found, _) = set.run_at(&session(number), (1, 1), None).unwrap().unwrap();
            assert_eq!(found.info.number, number);
            assert!(
                set.record_of_key(&session(number), 1, "key")
                    .unwrap()
                    .is_some()
            );
        }
    }

    #[test]
    fn bytes_that_belong_to_anything_else_rule_nothing_out() {
        let span = Span { level: 1, last: 32 };
        let scene = Scene::new(StoreId(1), 48);
        scene.make_all();
        let path = scene.opened().path(span);
        let bytes_of = |scene: &Scene, span| {
            let file = scene
                .disk
                .open(&scene.opened().path(span), Mode::Read)
                .unwrap();
            let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let right = bytes_of(&scene, span);
        let check = |what: &str, bytes: &[u8]| {
            scene.disk.remove(&path).unwrap();
            scene
                .disk
                .open(&path, Mode::Write)
                .unwrap()
                .write_all_at(bytes, 0)
                .unwrap();
            let opened = scene.opened();
            for number in 0..20 {
                // A new filter each time, since one that is known to be broken is not probed.
                let filter = opened.there(span);
                assert!(
                    !filter.rules_out(hash(&session(number))),
                    "{what} was believed"
                );
                assert!(filter.is_broken(), "{what} was not noticed");
            }
        };
        let other_store = Scene::new(StoreId(2), 48);
        other_store.make_all();
        check("a filter of another store", &bytes_of(&other_store, span));
        check(
            "a filter over other segments",
            &bytes_of(&scene, Span { last: 48, ..span }),
        );
        // This is the case after everything but the filters is restored from a backup, and the log
        // continued with IDs that were counted up.
        let mut other_past = Scene::new(StoreId(1), 31);
        other_past.write_segment(32, &session(77));
        other_past.make_all();
        assert_eq!(
            other_past.infos,
            scene.infos[..32],
            "the segments tell of themselves that they are others"
        );
        check(
            "a filter over segments that held something else then",
            &bytes_of(&other_past, span),
        );
        check("a longer filter", &[right.clone(), right.clone()].concat());
        for bit in (0..right.len() * 8).step_by(97) {
            let mut flipped = right.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            check("a flipped bit", &flipped);
        }
    }

    #[test]
    fn no_filter_is_made_or_read_that_does_not_fit_memory() {
        let (span, scene) = (Span { level: 1, last: 16 }, Scene::new(StoreId(1), 16));
        let opened = scene.opened();
        let segments = opened.set.of_span(span).unwrap();
        for (bytes, is_possible) in [
            (FILTER_BYTES_MAX, true),
            (FILTER_BYTES_MAX + u64::from(PAGE_BYTES), false),
            (0, false),
            (100, false),
        ] {
            let filter = opened.in_dir(|dir| SpanFilter::new(dir, span, segments, bytes).unwrap());
            assert_eq!(filter.is_some(), is_possible, "{bytes} bytes");
        }
    }

    #[test]
    fn a_filter_that_is_not_finished_or_not_over_all_that_is_there_is_not_made() {
        let (span, scene) = (Span { level: 1, last: 16 }, Scene::new(StoreId(1), 16));
        let made = |opened: &Opened<'_>, check_stop: &dyn Fn() -> Result<()>| {
            let segments = opened.set.of_span(span).unwrap();
            opened.in_dir(|dir| SpanFilter::make(dir, span, segments, check_stop))
        };
        assert!(matches!(
            made(&scene.opened(), &|| Err(Error::Closed)),
            Err(Error::Closed)
        ));
        // One segment's own filter comes from another segment.
        let mut other = Scene::new(StoreId(1), 0);
        other.write_segment(1, &SessionId::new("session-x").unwrap());
        let [own, others] = [&scene, &other]
            .map(|scene| segment::path(&Layout::of(scene.folder.path()).segments, 1));
        let (opened, kept) = (scene.opened(), std::fs::read(&own).unwrap());
        std::fs::write(&own, std::fs::read(others).unwrap()).unwrap();
        assert!(
            !opened
                .set
                .iter()
                .next()
                .unwrap()
                .may_hold(hash(&session(1)))
                .unwrap(),
            "it is in the cache now"
        );
        std::fs::write(&own, kept).unwrap();
        assert!(matches!(
            made(&opened, &|| Ok(())),
            Err(Error::Corrupt { .. })
        ));
        assert!(
            scene
                .disk
                .list(&Layout::of(scene.folder.path()).filters)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_filter_that_is_broken_is_made_again() {
        let span = Span { level: 1, last: 16 };
        let scene = Scene::new(StoreId(1), 16);
        let opened = scene.opened();
        drop(opened.make(span));
        scene
            .disk
            .open(&opened.path(span), Mode::Write)
            .unwrap()
            .write_all_at(&[1], 100)
            .unwrap();
        let broken = opened.set.with_filters([opened.there(span)]);
        assert!(broken.has_filter(span), "it is not known yet");
        assert!(broken.last_run(&session(99)).unwrap().is_none());
        assert!(!broken.has_filter(span));
        let mended = broken.with_filters([opened.make(span)]);
        assert!(mended.last_run(&session(99)).unwrap().is_none());
        assert!(
            mended.has_filter(span),
            "what was written in its place is not what is read"
        );
    }

    #[test]
    fn a_span_is_known_by_its_files_name_and_no_other_file_is_taken_for_one() {
        for span in Span::up_to(5_000) {
            assert_eq!(
                Span::of_name(span.path(Path::new("")).to_str().unwrap()),
                Some(span)
            );
        }
        let others = [
            "0000000000000016-2.filter",
            "0000000000000017-1.filter",
            "16-1.filter",
            "0000000000000000-1.filter",
        ];
        let more = [
            "0000000000000016-0.filter",
            "0000000000000016-4.filter",
            "0000000000000016-1.tmp",
            "0000000000000016.segment",
            "",
        ];
        assert!(
            others
                .iter()
                .chain(&more)
                .all(|name| Span::of_name(name).is_none())
        );
    }
}
