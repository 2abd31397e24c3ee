//! The writing end of the journal. It gives groups consecutive places, for one write and one
//! barrier each.

use std::sync::Arc;

use crate::codec::{FileHeader, StoreId};
use crate::disk::{BLOCK, BlockBuf, Disk, DiskFile, Mode};
use crate::journal::group::GroupSlot;
use crate::journal::window::ReplayedGroup;
use crate::journal::{GroupBuffer, HEADER_BYTES, Spare, WITNESS_BYTES, blocks, group_bytes};
use crate::manifest::JournalUse;
use crate::model::{EventId, Result};

/// The end of the journal. The thread that holds it decides where the next group goes.
pub(crate) struct JournalWriter {
    store: StoreId,
    active: ActiveFile,
    /// The checksum of the last group header.
    chain: u32,
    /// The LSN of the next group.
    end_lsn: u64,
    last_id: EventId,
}

/// The file that groups go to.
pub(crate) struct ActiveFile {
    pub file: Arc<dyn DiskFile>,
    pub number: u32,
    pub bytes: u64,
    pub header: FileHeader,
    /// Whether the header has its place. A fresh file's header is written together with its first
    /// group.
    pub header_placed: bool,
}

/// A group's place in the journal.
pub(crate) struct Placed {
    pub lsn: u64,
    /// The LSN of the next group.
    pub end_lsn: u64,
    /// `None` for a group that is not written.
    at: Option<(Arc<dyn DiskFile>, u64)>,
}

impl JournalWriter {
    /// Continues at `end_lsn` in `active`.
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

    /// Checks that the log's files are still where they were opened.
    ///
    /// # Errors
    ///
    /// [`Error::Displaced`](crate::Error::Displaced) if they are not.
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

    /// Returns whether no group has its place in the active file.
    pub(crate) fn active_is_empty(&self) -> bool {
        self.end_lsn == self.active.header.start_lsn
    }

    /// Returns whether a group with `record_bytes` of records fits into the active file, with a
    /// witness after it.
    pub(crate) fn fits(&self, record_bytes: usize) -> bool {
        let used = HEADER_BYTES + self.end_lsn - self.active.header.start_lsn;
        used + (group_bytes(record_bytes) + WITNESS_BYTES) as u64 <= self.active.bytes
    }

    /// Continues in `spare`. Everything so far must be on stable storage.
    ///
    /// The header of the new file reaches the disk with the first group.
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

    /// Gives a group the next place and completes it for that place.
    ///
    /// The group must [fit](Self::fits). A group without records is a witness. Everything before
    /// `durable_lsn` must be on stable storage.
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

    /// Returns the place of a group that has only answers to give: after everything they may depend
    /// on.
    pub(crate) fn place_nothing(&self) -> Placed {
        Placed {
            lsn: self.end_lsn,
            end_lsn: self.end_lsn,
            at: None,
        }
    }
}

impl Placed {
    /// Writes the group that got this place, and returns the bytes written.
    ///
    /// When this returns `Ok`, the group is on stable storage. After a failure the journal must not
    /// be written again.
    pub(crate) fn write(&self, group: &GroupBuffer) -> Result<usize> {
        let Some((file, offset)) = &self.at else {
            return Ok(0);
        };
        // Bytes written to a removed file are lost with it. Bytes written to a log that was moved
        // away would be missing from the log at its path.
        file.check_place()?;
        let blocks = group.blocks();
        file.write_all_at(blocks, *offset)?;
        Ok(blocks.len())
    }
}

/// Writes a whole journal file, header and groups, and makes it durable.
///
/// Returns the chain value of its end.
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
