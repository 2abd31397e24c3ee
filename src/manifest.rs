//! The manifest: which files count. Two slots, written one after the other, so that one is whole at
//! any moment.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::{
    FRAMED_BYTES_MAX, MANIFEST, Salt, StoreId, decode_list, decode_value, encode_value,
};
use crate::disk::{BLOCK, BlockBuf, Disk, DiskFile, Mode, read_device};
use crate::model::{Error, Result};
use crate::segment::SegmentInfo;

const SLOTS: [&str; 2] = ["MANIFEST-0", "MANIFEST-1"];

/// What the store consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Rises with every write; the valid slot with the higher one counts.
    sequence: u64,
    pub store: StoreId,
    /// In commit order.
    #[serde(deserialize_with = "decode_list")]
    pub segments: Vec<SegmentInfo>,
    /// The journal files in use when this was written, in commit order. Later ones are found by
    /// following the chain.
    #[serde(deserialize_with = "decode_list")]
    pub journal: Vec<JournalUse>,
    /// Everything before this was on stable storage when this was written.
    pub durable_lsn: u64,
    /// The highest incarnation that any journal file ever had.
    pub incarnation: u64,
    /// Whether the log was closed and `durable_lsn` is its very end.
    pub clean: bool,
    /// The slot that holds it.
    #[serde(skip)]
    slot: usize,
    /// Whether the other one held the same when this was loaded or made.
    #[serde(skip)]
    pub is_in_both: bool,
}

/// The slots that the next manifest goes to, in that order.
pub(crate) struct Reserved([Arc<dyn DiskFile>; 2]);

/// One use of one journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalUse {
    pub number: u32,
    pub incarnation: u64,
}

impl Manifest {
    pub(crate) fn new(store: StoreId) -> Self {
        let (segments, journal) = (Vec::new(), Vec::new());
        Self {
            sequence: 0,
            store,
            segments,
            journal,
            durable_lsn: 0,
            incarnation: 0,
            clean: false,
            slot: 1,
            is_in_both: false,
        }
    }

    /// All events in segments.
    pub(crate) fn sealed_events(&self) -> u64 {
        self.segments.iter().map(|segment| segment.events).sum()
    }

    /// Where the segments end and the journal begins.
    pub(crate) fn sealed_lsn(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.end_lsn)
    }

    /// The manifest of the log in `folder`; `None` where neither slot exists, and where the first
    /// was begun and the second does not exist: then the log itself was being begun, or has lost
    /// its manifest, which the caller tells apart.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when both slots exist and none is valid, [`Error::Unsupported`] when one
    /// is of a later version.
    pub(crate) fn load(disk: &dyn Disk, folder: &Path) -> Result<Option<Self>> {
        let mut found = Vec::new();
        let mut refused = Vec::new();
        for (slot, path) in slots(folder).into_iter().enumerate() {
            if !disk.exists(&path)? {
                continue;
            }
            match Self::read(disk, &path) {
                Ok(manifest) => found.push(Self { slot, ..manifest }),
                // Nothing is given up before both slots name what takes its place, so the other
                // will do.
                Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => refused.push(error),
                Err(error) => return Err(error),
            }
        }
        found.sort_unstable_by_key(|manifest| manifest.sequence);
        if let (None, [_, error]) = (found.last(), &*refused) {
            return Err(error.clone());
        }
        let Some(newest) = found.pop() else {
            return Ok(None);
        };
        let same = found.pop().map(|other| Self {
            sequence: newest.sequence,
            ..other
        });
        let is_in_both =
            same.is_some_and(|same| same.image().as_slice() == newest.image().as_slice());
        Ok(Some(Self {
            is_in_both,
            ..newest
        }))
    }

    /// Makes this the manifest: when it returns both slots are on stable storage. The slot that
    /// counts so far is written last, so that a crash leaves either it or the other.
    pub(crate) fn store(&mut self, disk: &dyn Disk, folder: &Path) -> Result<()> {
        self.slots_to_write(folder)
            .iter()
            .try_for_each(|slot| self.write_next(disk, folder, slot))?;
        self.is_in_both = true;
        Ok(())
    }

    /// The slots of a manifest that was stored before, open and with room for this one with a
    /// segment and some files more, so that [`store_in`](Self::store_in) fails only if the disk
    /// does, or wants room to write over what is there. A failure changes nothing.
    pub(crate) fn reserve(&self, disk: &dyn Disk, folder: &Path) -> Result<Reserved> {
        let image_bytes = self.image().len() as u64;
        let open = |path: PathBuf| {
            let slot = disk.open(&path, Mode::WriteBlocks)?;
            slot.check_place()?;
            slot.allocate(image_bytes + BLOCK as u64)?;
            Ok(slot)
        };
        let [next, counts] = self.slots_to_write(folder);
        Ok(Reserved([open(next)?, open(counts)?]))
    }

    /// As [`store`](Self::store).
    pub(crate) fn store_in(&mut self, slots: &Reserved) -> Result<()> {
        slots.0.iter().try_for_each(|slot| {
            self.sequence += 1;
            self.write(&**slot)
        })
    }

    /// Takes away, durably, what there is of a manifest that does not count.
    pub(crate) fn remove(disk: &dyn Disk, folder: &Path) -> Result<()> {
        for path in slots(folder) {
            if disk.exists(&path)? {
                disk.remove(&path)?;
            }
        }
        disk.sync_dir(folder)
    }

    /// Makes the slot that was loaded durable: its writer may have been killed before its barrier.
    /// To be called before the other is written. The bytes are the same, so a torn write changes
    /// nothing.
    pub(crate) fn made_durable(self, disk: &dyn Disk, folder: &Path) -> Result<Self> {
        let [_other, counts] = self.slots_to_write(folder);
        self.write(&*disk.open(&counts, Mode::WriteBlocks)?)?;
        Ok(self)
    }

    /// Makes the other slot say what the one that counts says: their writer may have been killed
    /// between the two. To be called before anything is given up that only the other names.
    pub(crate) fn put_in_both(&mut self, disk: &dyn Disk, folder: &Path) -> Result<()> {
        if !self.is_in_both {
            let [other, _counts] = self.slots_to_write(folder);
            self.write_next(disk, folder, &other)?;
            (self.slot, self.is_in_both) = (1 - self.slot, true);
        }
        Ok(())
    }

    fn write_next(&mut self, disk: &dyn Disk, folder: &Path, slot: &Path) -> Result<()> {
        self.sequence += 1;
        let is_new = !disk.exists(slot)?;
        self.write(&*disk.open(slot, Mode::WriteBlocks)?)?;
        if is_new {
            disk.sync_dir(folder)
        } else {
            Ok(())
        }
    }

    fn slots_to_write(&self, folder: &Path) -> [PathBuf; 2] {
        let [first, second] = slots(folder);
        if self.slot == 0 {
            [second, first]
        } else {
            [first, second]
        }
    }

    fn image(&self) -> BlockBuf {
        let mut image = BlockBuf::with_capacity(BLOCK);
        image.extend(&encode_value(MANIFEST, salt(), self));
        image.pad_to_block();
        image
    }

    fn write(&self, slot: &dyn DiskFile) -> Result<()> {
        slot.write_all_at(self.image().as_slice(), 0)?;
        slot.sync()
    }

    /// What the device holds in a slot: should its barrier have failed, the page cache may hold
    /// what is not durable, and writing the other slot would then give up the last one that is.
    fn read(disk: &dyn Disk, path: &Path) -> Result<Self> {
        let length = disk.open(path, Mode::Read)?.len()?;
        // What lies behind the longest manifest is none.
        let length = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(FRAMED_BYTES_MAX.next_multiple_of(BLOCK));
        let bytes = read_device(disk, path, length)?;
        decode_value(MANIFEST, salt(), bytes.as_slice()).map_err(|fault| fault.at(path, 0))
    }
}

fn salt() -> Salt {
    Salt::new(StoreId::default(), *b"mani", 0)
}

fn slots(folder: &Path) -> [PathBuf; 2] {
    SLOTS.map(|name| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_manifest_that_got_to_one_slot_alone_is_put_in_both() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), RealDisk::default());
        let load = || Manifest::load(&disk, folder.path()).unwrap().unwrap();
        let damage =
            |slot: usize| std::fs::write(&slots(folder.path())[slot], "no manifest").unwrap();
        let mut manifest = Manifest::new(StoreId::default());
        manifest.store(&disk, folder.path()).unwrap();
        for durable_lsn in [4096, 8192] {
            // Killed between the two slots.
            let mut cut_short = load();
            assert!(cut_short.is_in_both);
            cut_short.durable_lsn = durable_lsn;
            let [first, _second] = cut_short.slots_to_write(folder.path());
            cut_short.write_next(&disk, folder.path(), &first).unwrap();
            let mut found = load();
            assert!(!found.is_in_both);
            found.put_in_both(&disk, folder.path()).unwrap();
            assert!(load().is_in_both);
            damage(load().slot);
            assert_eq!(load().durable_lsn, durable_lsn, "the other slot has it too");
            load().put_in_both(&disk, folder.path()).unwrap();
        }
    }
}
