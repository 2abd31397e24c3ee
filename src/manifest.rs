//! The manifest: which files count. Two slots, written one after the other, so that one is whole at any moment.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::codec::{MANIFEST, Salt, StoreId, decode_list, decode_value, encode_value};
use crate::disk::{BLOCK, BlockBuf, Disk, Mode, read_device};
use crate::error::{Error, Result};
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
    /// The journal files in use when this was written, in commit order. Later ones are found by following the chain.
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
}

/// One use of one journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalUse {
    pub number: u32,
    pub incarnation: u64,
}

impl Manifest {
    pub(crate) fn new(store: StoreId) -> Self {
        let (segments, journal) = (Vec::new(), Vec::new());
        Self { sequence: 0, store, segments, journal, durable_lsn: 0, incarnation: 0, clean: false, slot: 1 }
    }

    /// Where the segments end and the journal begins.
    pub(crate) fn sealed_lsn(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.end_lsn)
    }

    /// The manifest of the log in `folder`; `None` where neither slot exists, and where the first was begun and the second does not
    /// exist: then the log itself was being begun, or has lost its manifest, which the caller tells apart.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when both slots exist and none is valid, [`Error::Unsupported`] when one is of a later version.
    pub(crate) fn load(disk: &dyn Disk, folder: &Path) -> Result<Option<Self>> {
        let mut newest: Option<Self> = None;
        let mut refused = Vec::new();
        for (slot, path) in slots(folder).into_iter().enumerate() {
            if !disk.exists(&path)? {
                continue;
            }
            match Self::read(disk, &path) {
                Ok(found) if newest.as_ref().is_none_or(|newest| newest.sequence < found.sequence) => {
                    newest = Some(Self { slot, ..found });
                }
                Ok(_older) => {}
                // Nothing is given up before both slots name what takes its place, so the other will do.
                Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => refused.push(error),
                Err(error) => return Err(error),
            }
        }
        match refused.pop() {
            Some(error) if newest.is_none() && !refused.is_empty() => Err(error),
            _ => Ok(newest),
        }
    }

    /// Makes this the manifest: when it returns both slots are on stable storage. The slot that counts so far is written last, so that
    /// a crash leaves either it or the other.
    pub(crate) fn store(&mut self, disk: &dyn Disk, folder: &Path) -> Result<()> {
        let [first, second] = slots(folder);
        let order = if self.slot == 0 { [second, first] } else { [first, second] };
        for path in order {
            self.sequence += 1;
            let is_new = !disk.exists(&path)?;
            self.write(disk, &path)?;
            if is_new {
                disk.sync_dir(folder)?;
            }
        }
        Ok(())
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

    /// Makes the slot that was loaded durable: its writer may have been killed before its barrier. To be called before anything is given
    /// up that only the other slot names, and before that is written. The bytes are the same, so a torn write changes nothing.
    pub(crate) fn made_durable(self, disk: &dyn Disk, folder: &Path) -> Result<Self> {
        let slots = slots(folder);
        let slot = slots.get(self.slot).expect("a manifest that was loaded has a slot");
        self.write(disk, slot)?;
        Ok(self)
    }

    fn write(&self, disk: &dyn Disk, slot: &Path) -> Result<()> {
        let file = disk.open(slot, Mode::WriteBlocks)?;
        let mut image = BlockBuf::with_capacity(BLOCK);
        image.extend(&encode_value(MANIFEST, salt(), self));
        image.pad_to_block();
        file.write_all_at(image.as_slice(), 0)?;
        file.sync()
    }

    /// What the device holds in a slot: should its barrier have failed, the page cache may hold what is not durable, and writing the other
    /// slot would then give up the last one that is.
    fn read(disk: &dyn Disk, path: &Path) -> Result<Self> {
        let length = disk.open(path, Mode::Read)?.len()?;
        let length = usize::try_from(length).map_err(|_too_long| Error::corrupt(path, 0, "an impossible length"))?;
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
