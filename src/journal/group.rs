//! Lays a group out: header, records, zeroes up to the block boundary.
//!
//! Records are put in as they are decided, while the group before is still being written. What the
//! header says of its place is known only when it is this group's turn, so that comes last.

use crate::codec::{FileHeader, GROUP_HEADER_BYTES, GroupHeader, Record, Salt, StoreId};
use crate::disk::{BLOCK, BlockBuf};
use crate::model::EventId;

/// Where the records begin: room is left for the header of a file that begins with this group, and
/// for the group's own.
const RECORDS_AT: usize = BLOCK + GROUP_HEADER_BYTES;

/// A buffer that is larger than this is not kept for the next group. Room for the groups of a burst
/// of large batches: new memory for each of them costs a sixth of the processor time of such a
/// burst.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a group with `record_bytes` of records takes in the journal.
pub(crate) fn group_bytes(record_bytes: usize) -> usize {
    (GROUP_HEADER_BYTES + record_bytes).next_multiple_of(BLOCK)
}

/// The records of a group, laid out for direct I/O.
pub(crate) struct GroupBuffer {
    buf: BlockBuf,
    heads: Salt,
    records: u32,
    last_id: Option<EventId>,
    /// Where what is to be written begins: at the file header, where there is one.
    from: usize,
    head: Vec<u8>,
}

/// Where a group goes, and what follows from that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupSlot {
    pub incarnation: u64,
    pub lsn: u64,
    pub durable_lsn: u64,
    /// The checksum of the group header before.
    pub chain: u32,
    /// The highest event ID given out before, or within, the group.
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
    /// Makes it the buffer of a group without records.
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

    /// The ID of the last event in the group.
    pub(crate) fn last_id(&self) -> Option<EventId> {
        self.last_id
    }

    /// Completes the group at its place. Returns its header's checksum, which the next group is
    /// chained to.
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

    /// Puts the header of a file that begins with this group before it.
    pub(crate) fn put_file_header(&mut self, header: &FileHeader) {
        self.put_at(0, &header.encode());
        self.from = 0;
    }

    /// The blocks of the group, which is complete, behind that of the file header, if it got one.
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
