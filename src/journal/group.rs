//! Lays out a group: header, records, zeroes up to the block boundary.
//!
//! Records are added as they are accepted, while the group before is still being written. The
//! header is filled in last, because its place is known only when the group is next to be written.

use crate::codec::{FileHeader, GROUP_HEADER_BYTES, GroupHeader, Record, Salt, StoreId};
use crate::disk::{BLOCK, BlockBuf};
use crate::model::EventId;

/// The offset of the records in the buffer. Before them is room for the group's header, and for the
/// header of a file that begins with this group.
const RECORDS_AT: usize = BLOCK + GROUP_HEADER_BYTES;

/// The largest buffer that is kept for the next group, in bytes. It has room for the groups of a
/// burst of large batches: allocating each of them anew costs a sixth of the CPU time of such a
/// burst.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Returns the bytes that a group with `record_bytes` of records takes in the journal.
pub(crate) fn group_bytes(record_bytes: usize) -> usize {
    (GROUP_HEADER_BYTES + record_bytes).next_multiple_of(BLOCK)
}

/// The records of a group, laid out for direct I/O.
pub(crate) struct GroupBuffer {
    buf: BlockBuf,
    heads: Salt,
    records: u32,
    last_id: Option<EventId>,
    /// The offset where writing begins: at the file header if there is one.
    from: usize,
    head: Vec<u8>,
}

/// The place of a group in the journal, and the header fields that depend on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupSlot {
    pub incarnation: u64,
    pub lsn: u64,
    pub durable_lsn: u64,
    /// The checksum of the group header before.
    pub chain: u32,
    /// The highest event ID assigned before or within the group.
    pub last_id: EventId,
}

impl Default for GroupBuffer {
    fn default() -> Self {
        let buf = BlockBuf::with_capacity(16 * BLOCK);
        let mut buffer = Self {
            buf,
            heads: Salt::NONE,
            records: 0,
            last_id: None,
            from: BLOCK,
            head: Vec::new(),
        };
        buffer.clear();
        buffer
    }
}

impl GroupBuffer {
    /// Resets the buffer to a group without records.
    pub(crate) fn clear(&mut self) {
        if self.buf.len() > KEPT_BYTES_MAX {
            self.buf = BlockBuf::with_capacity(16 * BLOCK);
        }
        self.buf.clear();
        self.buf.pad(RECORDS_AT);
        (self.heads, self.records, self.last_id, self.from) = (Salt::NONE, 0, None, BLOCK);
    }

    pub(crate) fn put(&mut self, record: &Record) {
        record.put_head(&mut self.head);
        self.heads = self.heads.over(&self.head);
        self.records += 1;
        self.last_id = Some(record.last_id());
        self.buf.extend(&self.head);
        self.buf.extend(record.body());
    }

    pub(crate) fn records(&self) -> u32 {
        self.records
    }

    pub(crate) fn record_bytes(&self) -> usize {
        self.buf.len() - RECORDS_AT
    }

    /// Returns the ID of the last event in the group.
    pub(crate) fn last_id(&self) -> Option<EventId> {
        self.last_id
    }

    /// Completes the group for its place. Returns its header's checksum, which is the next group's
    /// chain value.
    pub(crate) fn complete(&mut self, store: StoreId, place: GroupSlot) -> u32 {
        let header = GroupHeader {
            incarnation: place.incarnation,
            lsn: place.lsn,
            durable_lsn: place.durable_lsn,
            chain: place.chain,
            record_bytes: u32::try_from(self.record_bytes())
                .expect("a journal file's size fits 32 bits"),
            records: self.records,
            heads_checksum: self.heads.value(),
            last_id: place.last_id,
        };
        let (bytes, checksum) = header.encode(GroupHeader::salt(store, place.incarnation));
        self.put_at(BLOCK, &bytes);
        self.buf.pad_to_block();
        checksum
    }

    /// Puts the file header before the group that begins the file.
    pub(crate) fn put_file_header(&mut self, header: &FileHeader) {
        self.put_at(0, &header.encode());
        self.from = 0;
    }

    /// Returns the blocks of a complete group, after the block of the file header if it has one.
    pub(crate) fn blocks(&self) -> &[u8] {
        self.buf
            .as_slice()
            .get(self.from..)
            .expect("room was left for a file header")
    }

    fn put_at(&mut self, at: usize, bytes: &[u8]) {
        let place = self.buf.as_mut_slice().get_mut(at..at + bytes.len());
        place
            .expect("room was left for the headers")
            .copy_from_slice(bytes);
    }
}
