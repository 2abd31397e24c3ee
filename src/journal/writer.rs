//! Writes groups: one write and one barrier each.

use std::sync::Arc;

use crate::codec::{FileHeader, Record, StoreId};
use crate::disk::DiskFile;
use crate::error::Result;
use crate::ids::EventId;
use crate::journal::group::GroupPlace;
use crate::journal::{GroupEncoder, HEADER_BYTES, Spare, group_bytes};
use crate::manifest::JournalUse;

/// The end of the journal. Whoever holds it may write the next group.
pub(crate) struct JournalWriter {
    store: StoreId,
    active: ActiveFile,
    encoder: GroupEncoder,
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
        let encoder = GroupEncoder::new(store, active.header.incarnation, chain);
        Self { store, active, encoder, end_lsn, last_id }
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
            chain: self.encoder.chain(),
            last_id: self.last_id,
        };
        self.encoder.enter(self.store, header.incarnation);
        self.active = ActiveFile { file: spare.file, number: spare.number, bytes: spare.bytes, header, header_written: false };
    }

    /// Begins a group.
    pub(crate) fn begin(&mut self) {
        self.encoder.clear();
        if !self.active.header_written {
            self.encoder.put_file_header(&self.active.header);
        }
        self.encoder.begin();
    }

    /// Adds a record to the group that was begun.
    pub(crate) fn put(&mut self, record: &Record) {
        self.encoder.put(record);
        self.last_id = record.last_id();
    }

    /// Writes the group. When this returns `Ok` it is on stable storage; when it fails, the journal must not be written again.
    pub(crate) fn commit(&mut self) -> Result<usize> {
        let lsn = self.end_lsn;
        self.encoder.end(GroupPlace { lsn, durable_lsn: lsn, last_id: self.last_id });
        let group_offset = HEADER_BYTES + lsn - self.active.header.start_lsn;
        let offset = if self.active.header_written { group_offset } else { 0 };
        let bytes = self.encoder.bytes();
        self.active.file.write_all_at(bytes, offset)?;
        self.end_lsn = self.active.header.start_lsn + (offset + bytes.len() as u64 - HEADER_BYTES);
        self.active.header_written = true;
        Ok(bytes.len())
    }
}
