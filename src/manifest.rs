//! The manifest records which files count. It has two slots, written one after the other, so that
//! one of them is whole at any moment.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::{Decoded, FRAMED_BYTES_MAX, MANIFEST, Salt, StoreId, encode_value, open_value};
use crate::disk::{BLOCK, BlockBuf, Disk, DiskFile, Layout, Mode, read_device};
use crate::model::{Error, Result, read_list};
use crate::segment::{SegmentInfo, SegmentInfoV1};

/// The files that the store consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Rises with every write. The valid slot with the higher sequence counts.
    sequence: u64,
    pub store: StoreId,
    /// In commit order.
    #[serde(deserialize_with = "read_list")]
    pub segments: Vec<SegmentInfo>,
    /// The journal files in use when this was written, in commit order. Replay finds later ones by
    /// following the chain.
    #[serde(deserialize_with = "read_list")]
    pub journal: Vec<JournalUse>,
    /// Everything before this LSN was on stable storage when this was written.
    pub durable_lsn: u64,
    /// The highest incarnation that any journal file ever had.
    pub incarnation: u64,
    /// Whether the log was closed with its end at `durable_lsn`.
    pub clean: bool,
    /// The segments that may hold something removed.
    #[serde(deserialize_with = "read_list")]
    pub marks: Vec<Mark>,
    /// When the first removal was committed whose bytes journal files may still hold. Files that
    /// are not in use count too.
    pub journal_removal_ms: Option<u64>,
    /// Whether a session was ever given a retention of its own.
    pub has_own_retention: bool,
    /// The numbers of adopted segments whose removals have put no marks yet.
    #[serde(deserialize_with = "read_list")]
    pub unmarked: Vec<u64>,
    /// The version that it was read in. It is always stored in the newest.
    #[serde(skip)]
    pub read_in: u32,
}

/// A mark on a segment that may hold something removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub segment: u64,
    /// The number of removed events, by estimate.
    pub events: u64,
    /// When the first of them was removed, by the wall clock.
    pub removal_ms: u64,
}

/// A [`Manifest`] as version 1 stores it.
#[derive(Deserialize)]
struct ManifestV1 {
    sequence: u64,
    store: StoreId,
    #[serde(deserialize_with = "read_list")]
    segments: Vec<SegmentInfoV1>,
    #[serde(deserialize_with = "read_list")]
    journal: Vec<JournalUse>,
    durable_lsn: u64,
    incarnation: u64,
    clean: bool,
}

impl From<ManifestV1> for Manifest {
    fn from(manifest: ManifestV1) -> Self {
        let segments = manifest.segments.into_iter().map(SegmentInfo::from);
        Self {
            sequence: manifest.sequence,
            store: manifest.store,
            segments: segments.collect(),
            journal: manifest.journal,
            durable_lsn: manifest.durable_lsn,
            incarnation: manifest.incarnation,
            clean: manifest.clean,
            marks: Vec::new(),
            journal_removal_ms: None,
            has_own_retention: false,
            unmarked: Vec::new(),
            read_in: 0,
        }
    }
}

/// The manifest and the two slots on the disk that hold it.
pub(crate) struct ManifestFile {
    pub value: Manifest,
    /// The slot that counts.
    slot: usize,
    /// Whether the other slot held the same value when this one was loaded or stored.
    is_in_both: bool,
    disk: Arc<dyn Disk>,
    layout: Layout,
}

/// A manifest and the slot that holds it.
type InSlot = (usize, Manifest);

/// The two slots for the next manifest, in the order in which they are written.
pub(crate) struct Reserved([Arc<dyn DiskFile>; 2]);

/// One use of one journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalUse {
    pub number: u32,
    pub incarnation: u64,
}

impl Manifest {
    /// Returns the manifest of a store without a file.
    pub(crate) fn new(store: StoreId) -> Self {
        Self {
            sequence: 0,
            store,
            segments: Vec::new(),
            journal: Vec::new(),
            durable_lsn: 0,
            incarnation: 0,
            clean: false,
            marks: Vec::new(),
            journal_removal_ms: None,
            has_own_retention: false,
            unmarked: Vec::new(),
            read_in: 0,
        }
    }

    /// Returns the number of events in segments.
    pub(crate) fn sealed_events(&self) -> u64 {
        self.segments.iter().map(|segment| segment.events).sum()
    }

    /// Returns the marked segments, each with the bytes that its removed events take, by estimate.
    pub(crate) fn dead_bytes(&self) -> impl Iterator<Item = (&SegmentInfo, u64)> {
        self.marks.iter().filter_map(|mark| {
            let mut segments = self.segments.iter();
            let info = segments.find(|info| info.number == mark.segment)?;
            let events = info.events.max(1);
            Some((info, info.file_bytes * mark.events.min(events) / events))
        })
    }

    /// Returns the LSN where the segments end and the journal begins.
    pub(crate) fn sealed_lsn(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.end_lsn)
    }

    /// Returns whether this is the manifest of a log that was closed with its end at `end_lsn`.
    pub(crate) fn is_clean_at(&self, end_lsn: u64) -> bool {
        self.clean && self.durable_lsn == end_lsn
    }

    /// Whether this is what a writer stored when it stored `other`.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (self.store, self.sequence) == (other.store, other.sequence)
    }

    fn image(&self) -> BlockBuf {
        let mut image = BlockBuf::with_capacity(BLOCK);
        image.extend(&encode_value(MANIFEST, salt(), self));
        image.pad_to_block();
        image
    }

    /// Reads what the device holds in a slot.
    ///
    /// The page cache may hold what is not durable if the slot's barrier failed. Writing the other
    /// slot would then overwrite the last durable manifest.
    fn read(disk: &dyn Disk, slot: &Path) -> Result<Self> {
        let length = disk.open(slot, Mode::Read)?.len()?;
        // Bytes after the longest possible manifest are not part of one.
        let length = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(FRAMED_BYTES_MAX.next_multiple_of(BLOCK));
        let bytes = read_device(disk, slot, length)?;
        Self::decode(bytes.as_slice()).map_err(|fault| fault.at(slot, 0))
    }

    fn decode(bytes: &[u8]) -> Decoded<Self> {
        let value = open_value(MANIFEST, salt(), bytes)?;
        let manifest = if value.version == 1 {
            value.decode::<ManifestV1>().map(Self::from)?
        } else {
            value.decode()?
        };
        Ok(Self {
            read_in: value.version,
            ..manifest
        })
    }
}

impl ManifestFile {
    /// Returns the manifest of a new store; nothing of it is stored yet.
    pub(crate) fn new(disk: &Arc<dyn Disk>, layout: &Layout, store: StoreId) -> Self {
        Self {
            value: Manifest::new(store),
            slot: 1,
            is_in_both: false,
            disk: Arc::clone(disk),
            layout: layout.clone(),
        }
    }

    /// Loads the manifest of a log.
    ///
    /// Returns `None` if neither slot exists, or if there is only one and it is not valid. Then the
    /// log itself was not finished, or has lost its manifest. The caller tells the two cases apart.
    ///
    /// # Errors
    ///
    /// * [`Error::Corrupt`] or [`Error::Io`] if both slots exist and none can be read as a
    ///   manifest.
    /// * [`Error::Unsupported`] if one is of a later version.
    pub(crate) fn load(disk: &Arc<dyn Disk>, layout: &Layout) -> Result<Option<Self>> {
        let (mut found, refused) = Self::slots(&**disk, layout)?;
        if let (None, [_, error]) = (found.last(), &*refused) {
            return Err(error.clone());
        }
        let Some((slot, value)) = found.pop() else {
            return Ok(None);
        };
        let is_in_both = found.pop().is_some_and(|(_slot, other)| {
            let other = Manifest {
                sequence: value.sequence,
                ..other
            };
            other.image().as_slice() == value.image().as_slice()
        });
        Ok(Some(Self {
            value,
            slot,
            is_in_both,
            disk: Arc::clone(disk),
            layout: layout.clone(),
        }))
    }

    /// Returns the manifests in the slots, the one that counts last, and why others cannot be read.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if one is of a later version.
    pub(crate) fn slots(disk: &dyn Disk, layout: &Layout) -> Result<(Vec<InSlot>, Vec<Error>)> {
        let (mut found, mut refused) = (Vec::new(), Vec::new());
        for (slot, path) in layout.manifest_slots().iter().enumerate() {
            if !disk.exists(path)? {
                continue;
            }
            match Manifest::read(disk, path) {
                Ok(value) => found.push((slot, value)),
                // The other slot will do: no file is removed before both slots name its
                // replacement.
                Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => refused.push(error),
                Err(error) => return Err(error),
            }
        }
        found.sort_unstable_by_key(|(_slot, value)| value.sequence);
        Ok((found, refused))
    }

    /// Takes another value. It is the manifest once it is [stored](Self::store).
    pub(crate) fn replace(&mut self, value: Manifest) {
        let sequence = self.value.sequence.max(value.sequence);
        self.value = Manifest { sequence, ..value };
    }

    /// Makes the value the manifest.
    ///
    /// When this returns `Ok`, both slots are on stable storage. The slot that counts so far is
    /// written last, so that a crash leaves one of them whole.
    pub(crate) fn store(&mut self) -> Result<()> {
        for slot in self.slots_to_write() {
            self.write_next(slot)?;
        }
        self.is_in_both = true;
        Ok(())
    }

    /// Opens the slots and reserves room in them, for a manifest that was stored before.
    ///
    /// The room is for this manifest with one more segment and some more files. So
    /// [`store_in`](Self::store_in) fails only if the disk fails, or if the file system needs room
    /// to overwrite existing blocks. A failure changes nothing.
    pub(crate) fn reserve(&self) -> Result<Reserved> {
        let image_bytes = self.value.image().len() as u64;
        let open = |slot: usize| {
            let slot = self.open(slot)?;
            slot.check_place()?;
            slot.allocate(image_bytes + BLOCK as u64)?;
            Ok(slot)
        };
        let [next, counts] = self.slots_to_write();
        Ok(Reserved([open(next)?, open(counts)?]))
    }

    /// Stores the value like [`store`](Self::store), in slots that were reserved.
    pub(crate) fn store_in(&mut self, slots: &Reserved) -> Result<()> {
        slots.0.iter().try_for_each(|slot| {
            self.value.sequence += 1;
            self.write(&**slot)
        })
    }

    /// Removes, durably, the slots of a manifest that does not count.
    pub(crate) fn remove(disk: &dyn Disk, layout: &Layout) -> Result<()> {
        for slot in layout.manifest_slots() {
            if disk.exists(&slot)? {
                disk.remove(&slot)?;
            }
        }
        disk.sync_dir(&layout.root)
    }

    /// Makes the loaded slot durable, since its writer may have been killed before its barrier.
    ///
    /// This must be called before the other slot is written. The bytes stay the same, so a torn
    /// write changes nothing.
    pub(crate) fn make_durable(&self) -> Result<()> {
        self.write(&*self.open(self.slot)?)
    }

    /// Copies the slot that counts to the other one, since their writer may have been killed
    /// between the two.
    ///
    /// This must be called before anything is removed that only the other slot names.
    pub(crate) fn put_in_both(&mut self) -> Result<()> {
        if !self.is_in_both {
            let [other, _counts] = self.slots_to_write();
            self.write_next(other)?;
            (self.slot, self.is_in_both) = (other, true);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn is_in_both(&self) -> bool {
        self.is_in_both
    }

    fn write_next(&mut self, slot: usize) -> Result<()> {
        self.value.sequence += 1;
        let is_new = !self.disk.exists(&self.path(slot))?;
        self.write(&*self.open(slot)?)?;
        if is_new {
            self.disk.sync_dir(&self.layout.root)
        } else {
            Ok(())
        }
    }

    fn slots_to_write(&self) -> [usize; 2] {
        [1 - self.slot, self.slot]
    }

    fn path(&self, slot: usize) -> PathBuf {
        let [first, second] = self.layout.manifest_slots();
        if slot == 0 { first } else { second }
    }

    fn open(&self, slot: usize) -> Result<Arc<dyn DiskFile>> {
        self.disk.open(&self.path(slot), Mode::WriteBlocks)
    }

    fn write(&self, slot: &dyn DiskFile) -> Result<()> {
        slot.write_all_at(self.value.image().as_slice(), 0)?;
        slot.sync()
    }
}

fn salt() -> Salt {
    Salt::new(StoreId::default(), *b"mani", 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_manifest_that_got_to_one_slot_alone_is_put_in_both() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::of(folder.path());
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
        let load = || ManifestFile::load(&disk, &layout).unwrap().unwrap();
        let damage =
            |slot: usize| std::fs::write(&layout.manifest_slots()[slot], "no manifest").unwrap();
        let mut manifest = ManifestFile::new(&disk, &layout, StoreId::default());
        manifest.store().unwrap();
        for durable_lsn in [4096, 8192] {
            // Killed between the two slots.
            let mut cut_short = load();
            assert!(cut_short.is_in_both);
            cut_short.value.durable_lsn = durable_lsn;
            let [first, _second] = cut_short.slots_to_write();
            cut_short.write_next(first).unwrap();
            let mut found = load();
            assert!(!found.is_in_both);
            found.put_in_both().unwrap();
            assert!(load().is_in_both);
            damage(load().slot);
            let kept = load().value.durable_lsn;
            assert_eq!(kept, durable_lsn, "the other slot has it too");
            load().put_in_both().unwrap();
        }
    }
}
