//! The end of the journal: gives groups their places, one behind the other, for one write and one
//! barrier each.

use std::sync::Arc;

use crate::codec::{FileHeader, StoreId};
use crate::disk::{BLOCK, BlockBuf, Disk, DiskFile, Mode};
use crate::journal::group::GroupSlot;
use crate::journal::window::ReplayedGroup;
use crate::journal::{GroupBuffer, HEADER_BYTES, Spare, WITNESS_BYTES, blocks, group_bytes};
use crate::manifest::JournalUse;
use crate::model::{EventId, Result};

/// The end of the journal. Whoever holds it decides where the next group goes.
pub(crate) struct JournalWriter {
    store: StoreId,
    active: ActiveFile,
    /// The checksum of the last group header.
    chain: u32,
    /// Where the next group goes.
    end_lsn: u64,
    last_id: EventId,
}

/// The file that groups go to.
pub(crate) struct ActiveFile {
    pub file: Arc<dyn DiskFile>,
    pub number: u32,
    pub bytes: u64,
    pub header: FileHeader,
    /// A fresh file's header is written together with its first group.
    pub header_placed: bool,
}

/// A group's place in the journal.
pub(crate) struct Placed {
    pub lsn: u64,
    /// Where the group behind it begins.
    pub end_lsn: u64,
    /// None for a group that is not written.
    at: Option<(Arc<dyn DiskFile>, u64)>,
}

impl JournalWriter {
    /// Goes on at `end_lsn` in `active`.
    pub(crate) fn new(active: ActiveFile, chain: u32, end_lsn: u64, last_id: EventId) -> Self {
        let store = active.header.store;
        Self {
            store,
            active,
            chain,
            end_lsn,
            last_id,
        }
    }

    /// Says [`Error::Displaced`](crate::Error::Displaced) when the log is no longer where it was
    /// opened.
    pub(crate) fn check_place(&self) -> Result<()> {
        self.active.file.check_place()
    }

    pub(crate) fn end_lsn(&self) -> u64 {
        self.end_lsn
    }

    pub(crate) fn active_use(&self) -> JournalUse {
        JournalUse {
            number: self.active.number,
            incarnation: self.active.header.incarnation,
        }
    }

    pub(crate) fn active_bytes(&self) -> u64 {
        self.active.bytes
    }

    /// Whether no group has its place in the active file.
    pub(crate) fn active_is_empty(&self) -> bool {
        self.end_lsn == self.active.header.start_lsn
    }

    /// Whether a group with so many bytes of records fits the active file, and a witness behind it.
    pub(crate) fn fits(&self, record_bytes: usize) -> bool {
        let used = HEADER_BYTES + self.end_lsn - self.active.header.start_lsn;
        used + (group_bytes(record_bytes) + WITNESS_BYTES) as u64 <= self.active.bytes
    }

    /// Goes on in `spare`, when everything so far is on stable storage. Its header will reach the
    /// disk with the first group.
    pub(crate) fn rotate(&mut self, spare: Spare) {
        let header = FileHeader {
            store: self.store,
            incarnation: self.active.header.incarnation + 1,
            start_lsn: self.end_lsn,
            chain: self.chain,
            blocks: blocks(spare.bytes),
            last_id: self.last_id,
        };
        self.active = ActiveFile {
            file: spare.file,
            number: spare.number,
            bytes: spare.bytes,
            header,
            header_placed: false,
        };
    }

    /// Gives a group the next place, which it fits, and completes it for that; one without records
    /// is a witness. Everything before `durable_lsn` is on stable storage.
    pub(crate) fn place(&mut self, group: &mut GroupBuffer, durable_lsn: u64) -> Placed {
        let header = self.active.header;
        let (lsn, last_id) = (self.end_lsn, group.last_id().unwrap_or(self.last_id));
        let place = GroupSlot {
            incarnation: header.incarnation,
            lsn,
            durable_lsn,
            chain: self.chain,
            last_id,
        };
        let begins_file = !std::mem::replace(&mut self.active.header_placed, true);
        (self.chain, self.last_id) = (group.complete(self.store, place), last_id);
        self.end_lsn = lsn + group.blocks().len() as u64;
        let offset = if begins_file {
            group.put_file_header(&header);
            0
        } else {
            HEADER_BYTES + lsn - header.start_lsn
        };
        Placed {
            lsn,
            end_lsn: self.end_lsn,
            at: Some((Arc::clone(&self.active.file), offset)),
        }
    }

    /// The place of a group that has only answers to give: behind all it may rest on.
    pub(crate) fn place_nothing(&self) -> Placed {
        Placed {
            lsn: self.end_lsn,
            end_lsn: self.end_lsn,
            at: None,
        }
    }
}

impl Placed {
    /// Writes the group that got this place. When this returns `Ok` it is on stable storage; when
    /// it fails, the journal must not be written again. Returns the bytes written.
    pub(crate) fn write(&self, group: &GroupBuffer) -> Result<usize> {
        let Some((file, offset)) = &self.at else {
            return Ok(0);
        };
        // What is written to a file that was removed is gone with it, and a log that was moved away
        // would be missed where it is looked for.
        file.check_place()?;
        let blocks = group.blocks();
        file.write_all_at(blocks, *offset)?;
        Ok(blocks.len())
    }
}

/// Writes a whole journal file, header and groups, and makes it durable; returns the chain value of
/// its end.
pub(crate) fn write_image(
    disk: &dyn Disk,
    spare: &Spare,
    header: &FileHeader,
    groups: &[ReplayedGroup],
) -> Result<u32> {
    let mut image = BlockBuf::with_capacity(2 * BLOCK);
    image.extend(&header.encode());
    image.pad_to_block();
    let mut chain = header.chain;
    let mut buffer = GroupBuffer::default();
    for group in groups {
        buffer.clear();
        group.records.iter().for_each(|record| buffer.put(record));
        chain = buffer.complete(header.store, group.slot_in(header.incarnation, chain));
        image.extend(buffer.blocks());
    }
    let file = disk.open(spare.file.path(), Mode::WriteBlocks)?;
    file.write_all_at(image.as_slice(), 0)?;
    file.sync()?;
    Ok(chain)
}
