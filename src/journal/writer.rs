//! Writes groups: one write and one barrier each.

use std::sync::Arc;

use crate::codec::{FileHeader, StoreId};
use crate::disk::DiskFile;
use crate::error::Result;
use crate::ids::EventId;
use crate::journal::group::GroupPlace;
use crate::journal::{GroupBuffer, HEADER_BYTES, Spare, group_bytes};
use crate::manifest::JournalUse;

/// The end of the journal. Whoever holds it may write the next group.
pub(crate) struct JournalWriter {
    store: StoreId,
    active: ActiveFile,
    /// The checksum of the last group header.
    chain: u32,
    /// Where the next group goes. Everything before it is on stable storage.
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
    pub header_written: bool,
}

impl JournalWriter {
    /// Goes on at `end_lsn` in `active`.
    pub(crate) fn new(active: ActiveFile, chain: u32, end_lsn: u64, last_id: EventId) -> Self {
        let store = active.header.store;
        Self { store, active, chain, end_lsn, last_id }
    }

    /// Everything before this is on stable storage.
    pub(crate) fn durable_lsn(&self) -> u64 {
        self.end_lsn
    }

    pub(crate) fn active_use(&self) -> JournalUse {
        JournalUse { number: self.active.number, incarnation: self.active.header.incarnation }
    }

    pub(crate) fn active_bytes(&self) -> u64 {
        self.active.bytes
    }

    /// Whether no group was written to the active file.
    pub(crate) fn active_is_empty(&self) -> bool {
        self.end_lsn == self.active.header.start_lsn
    }

    /// Whether a group with so many bytes of records fits the active file.
    pub(crate) fn fits(&self, record_bytes: usize) -> bool {
        let used = HEADER_BYTES + self.end_lsn - self.active.header.start_lsn;
        used + group_bytes(record_bytes) as u64 <= self.active.bytes
    }

    /// Goes on in `spare`. Its header will reach the disk with the first group.
    pub(crate) fn rotate(&mut self, spare: Spare) {
        let header = FileHeader {
            store: self.store,
            incarnation: self.active.header.incarnation + 1,
            start_lsn: self.end_lsn,
            chain: self.chain,
            last_id: self.last_id,
        };
        self.active = ActiveFile { file: spare.file, number: spare.number, bytes: spare.bytes, header, header_written: false };
    }

    /// Writes a group; one without records is a witness. When this returns `Ok` it is on stable storage; when it fails, the journal must
    /// not be written again. Returns the bytes written.
    pub(crate) fn commit(&mut self, group: &mut GroupBuffer) -> Result<usize> {
        let header = self.active.header;
        let last_id = group.last_id().unwrap_or(self.last_id);
        let (incarnation, lsn) = (header.incarnation, self.end_lsn);
        let place = GroupPlace { incarnation, lsn, durable_lsn: lsn, chain: self.chain, last_id };
        let (blocks, chain) = group.complete(self.store, place);
        let end_lsn = lsn + blocks.len() as u64;
        let (bytes, offset) = if self.active.header_written {
            (blocks, HEADER_BYTES + lsn - header.start_lsn)
        } else {
            (group.behind_file_header(&header), 0)
        };
        self.active.file.write_all_at(bytes, offset)?;
        let written = bytes.len();
        self.active.header_written = true;
        (self.end_lsn, self.chain, self.last_id) = (end_lsn, chain, last_id);
        Ok(written)
    }
}
