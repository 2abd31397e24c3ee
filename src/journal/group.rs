//! Lays groups out: header, records, zeroes up to the block boundary.

use crate::codec::{FileHeader, GROUP_HEADER_BYTES, GroupHeader, Record, Salt, StoreId};
use crate::disk::{BLOCK, BlockBuf};
use crate::ids::EventId;

/// What a group with `record_bytes` of records takes in the journal.
pub(crate) fn group_bytes(record_bytes: usize) -> usize {
    (GROUP_HEADER_BYTES + record_bytes).next_multiple_of(BLOCK)
}

/// Encodes groups one after the other into a buffer fit for direct I/O, in one incarnation of one file.
pub(crate) struct GroupEncoder {
    salt: Salt,
    incarnation: u64,
    /// The checksum of the last group header.
    chain: u32,
    buf: BlockBuf,
    group_at: usize,
    heads: Salt,
    records: u32,
    head: Vec<u8>,
}

/// What is said of a group beside its records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupPlace {
    pub lsn: u64,
    pub durable_lsn: u64,
    pub last_id: EventId,
}

impl GroupEncoder {
    pub(crate) fn new(store: StoreId, incarnation: u64, chain: u32) -> Self {
        let salt = GroupHeader::salt(store, incarnation);
        let buf = BlockBuf::with_capacity(16 * BLOCK);
        Self { salt, incarnation, chain, buf, group_at: 0, heads: salt, records: 0, head: Vec::new() }
    }

    /// Goes on in another file, keeping the buffer.
    pub(crate) fn enter(&mut self, store: StoreId, incarnation: u64) {
        self.salt = GroupHeader::salt(store, incarnation);
        self.incarnation = incarnation;
    }

    pub(crate) fn chain(&self) -> u32 {
        self.chain
    }

    pub(crate) fn clear(&mut self) {
        self.buf.clear();
    }

    pub(crate) fn put_file_header(&mut self, header: &FileHeader) {
        self.buf.extend(&header.encode());
        self.buf.pad_to_block();
    }

    pub(crate) fn begin(&mut self) {
        self.group_at = self.buf.len();
        self.heads = self.salt;
        self.records = 0;
        self.buf.pad(GROUP_HEADER_BYTES);
    }

    pub(crate) fn put(&mut self, record: &Record) {
        record.put_head(&mut self.head);
        self.heads = self.heads.over(&self.head);
        self.records += 1;
        self.buf.extend(&self.head);
        self.buf.extend(record.body());
    }

    /// Completes the group. What the buffer then holds is whole blocks.
    pub(crate) fn end(&mut self, place: GroupPlace) {
        let record_bytes = self.buf.len() - self.group_at - GROUP_HEADER_BYTES;
        let header = GroupHeader {
            incarnation: self.incarnation,
            lsn: place.lsn,
            durable_lsn: place.durable_lsn,
            chain: self.chain,
            record_bytes: u32::try_from(record_bytes).expect("a journal file's size fits 32 bits"),
            records: self.records,
            heads_checksum: self.heads.value(),
            last_id: place.last_id,
        };
        let (bytes, checksum) = header.encode(self.salt);
        let at = self.group_at..self.group_at + GROUP_HEADER_BYTES;
        self.buf.as_mut_slice().get_mut(at).expect("begin left room for the header").copy_from_slice(&bytes);
        self.chain = checksum;
        self.buf.pad_to_block();
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.buf.as_slice()
    }
}
