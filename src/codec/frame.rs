//! The fixed headers of journal files, groups, segments and pages.

use crate::codec::{ByteReader, Decoded, FORMAT_VERSION, Fault, Salt, StoreId, check_version};
use crate::model::EventId;

const JOURNAL_MAGIC: [u8; 8] = *b"slogjrnl";
const SEGMENT_MAGIC: [u8; 8] = *b"slogsegm";
const GROUP_MAGIC: [u8; 4] = *b"sgrp";

/// The offset of the checksummed part of a file header.
const FILE_CHECKED_FROM: usize = 16;
const JOURNAL_HEADER_BYTES: usize = 72;
const SEGMENT_HEADER_BYTES: usize = 64;
pub(crate) const GROUP_HEADER_BYTES: usize = 64;
pub(crate) const PAGE_HEADER_BYTES: usize = 9;

/// The header of a journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub store: StoreId,
    pub incarnation: u64,
    pub start_lsn: u64,
    /// The chain value of the last group before this file.
    pub chain: u32,
    /// The length of the file, which never changes.
    pub blocks: u32,
    pub last_id: EventId,
}

impl FileHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut checked = Vec::with_capacity(JOURNAL_HEADER_BYTES);
        checked.extend_from_slice(&self.store.0.to_le_bytes());
        checked.extend_from_slice(&self.incarnation.to_le_bytes());
        checked.extend_from_slice(&self.start_lsn.to_le_bytes());
        checked.extend_from_slice(&self.chain.to_le_bytes());
        checked.extend_from_slice(&self.blocks.to_le_bytes());
        checked.extend_from_slice(&self.last_id.to_u128().to_le_bytes());
        file_header(JOURNAL_MAGIC, Salt::new(self.store, *b"jfil", 0), &checked)
    }

    /// Decodes a file header; `None` if the file was never used. Such a file still has the zeroes
    /// it was prepared with.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Option<Self>> {
        if bytes
            .get(..JOURNAL_HEADER_BYTES)
            .is_some_and(|header| header.iter().all(|&byte| byte == 0))
        {
            return Ok(None);
        }
        let (checksum, checked) = open_file_header(JOURNAL_MAGIC, JOURNAL_HEADER_BYTES, bytes)?;
        let mut reader = ByteReader::new(checked);
        let store = StoreId(reader.u128()?);
        if Salt::new(store, *b"jfil", 0).checksum(checked) != checksum {
            return Err(Fault::Damaged {
                at: 12,
                what: "a checksum that does not match",
            });
        }
        let (incarnation, start_lsn, chain, blocks) =
            (reader.u64()?, reader.u64()?, reader.u32()?, reader.u32()?);
        Ok(Some(Self {
            store,
            incarnation,
            start_lsn,
            chain,
            blocks,
            last_id: EventId::from_u128(reader.u128()?),
        }))
    }
}

/// The header of a segment. The trailer holds the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub store: StoreId,
    pub number: u64,
    pub start_lsn: u64,
    pub end_lsn: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut checked = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        checked.extend_from_slice(&self.store.0.to_le_bytes());
        for field in [self.number, self.start_lsn, self.end_lsn, 0] {
            checked.extend_from_slice(&field.to_le_bytes());
        }
        file_header(
            SEGMENT_MAGIC,
            Salt::new(self.store, *b"sfil", self.number),
            &checked,
        )
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let (checksum, checked) = open_file_header(SEGMENT_MAGIC, SEGMENT_HEADER_BYTES, bytes)?;
        let mut reader = ByteReader::new(checked);
        let store = StoreId(reader.u128()?);
        let header = Self {
            store,
            number: reader.u64()?,
            start_lsn: reader.u64()?,
            end_lsn: reader.u64()?,
        };
        if Salt::new(store, *b"sfil", header.number).checksum(checked) != checksum {
            return Err(Fault::Damaged {
                at: 12,
                what: "a checksum that does not match",
            });
        }
        if reader.array()? != [0; 8] {
            return Err(Fault::Damaged {
                at: 56,
                what: "reserved bytes that are not zero",
            });
        }
        Ok(header)
    }
}

fn file_header(magic: [u8; 8], salt: Salt, checked: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FILE_CHECKED_FROM + checked.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&salt.checksum(checked).to_le_bytes());
    out.extend_from_slice(checked);
    out
}

fn open_file_header(magic: [u8; 8], length: usize, bytes: &[u8]) -> Decoded<(u32, &[u8])> {
    let mut reader = ByteReader::new(bytes);
    if reader.array()? != magic {
        return Err(Fault::Damaged {
            at: 0,
            what: "wrong magic bytes",
        });
    }
    check_version(reader.u32()?, 8)?;
    Ok((reader.u32()?, reader.take(length - FILE_CHECKED_FROM)?))
}

/// The header of one commit group, before its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub incarnation: u64,
    pub lsn: u64,
    pub durable_lsn: u64,
    pub chain: u32,
    pub record_bytes: u32,
    pub records: u32,
    pub heads_checksum: u32,
    pub last_id: EventId,
}

impl GroupHeader {
    pub(crate) fn salt(store: StoreId, incarnation: u64) -> Salt {
        Salt::new(store, *b"grup", incarnation)
    }

    /// Returns the header's bytes and its checksum, which is the next group's chain value.
    pub(crate) fn encode(&self, salt: Salt) -> ([u8; GROUP_HEADER_BYTES], u32) {
        let mut checked = Vec::with_capacity(GROUP_HEADER_BYTES);
        for field in [self.incarnation, self.lsn, self.durable_lsn] {
            checked.extend_from_slice(&field.to_le_bytes());
        }
        for field in [
            self.chain,
            self.record_bytes,
            self.records,
            self.heads_checksum,
        ] {
            checked.extend_from_slice(&field.to_le_bytes());
        }
        checked.extend_from_slice(&self.last_id.to_u128().to_le_bytes());
        let checksum = salt.checksum(&checked);
        let mut out = [0; GROUP_HEADER_BYTES];
        for (to, from) in out.iter_mut().zip(
            GROUP_MAGIC
                .iter()
                .chain(&checksum.to_le_bytes())
                .chain(&checked),
        ) {
            *to = *from;
        }
        (out, checksum)
    }

    /// Decodes a header of the store, of any incarnation, and returns it with its checksum.
    ///
    /// Returns `None` if the bytes are not such a header.
    pub(crate) fn decode(store: StoreId, bytes: &[u8]) -> Option<(Self, u32)> {
        let mut reader = ByteReader::new(bytes);
        if reader.array().ok()? != GROUP_MAGIC {
            return None;
        }
        let checksum = reader.u32().ok()?;
        let checked = reader.take(GROUP_HEADER_BYTES - 8).ok()?;
        let header = Self::decode_fields(ByteReader::new(checked)).ok()?;
        (Self::salt(store, header.incarnation).checksum(checked) == checksum)
            .then_some((header, checksum))
    }

    /// Returns whether the bytes begin like a header, of any store.
    pub(crate) fn is_begun(bytes: &[u8]) -> bool {
        bytes.starts_with(&GROUP_MAGIC)
    }

    fn decode_fields(mut reader: ByteReader<'_>) -> Decoded<Self> {
        Ok(Self {
            incarnation: reader.u64()?,
            lsn: reader.u64()?,
            durable_lsn: reader.u64()?,
            chain: reader.u32()?,
            record_bytes: reader.u32()?,
            records: reader.u32()?,
            heads_checksum: reader.u32()?,
            last_id: EventId::from_u128(reader.u128()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: StoreId = StoreId(77);

    fn every_flip(bytes: &[u8], check: impl Fn(usize, &[u8])) {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            check(bit, &flipped);
        }
    }

    #[test]
    fn a_journal_header_reads_back_and_any_flipped_bit_is_refused() {
        let header = FileHeader {
            store: STORE,
            incarnation: 3,
            start_lsn: 8192,
            chain: 5,
            blocks: 1024,
            last_id: EventId::from_u128(9),
        };
        let bytes = header.encode();
        assert_eq!(FileHeader::decode(&bytes), Ok(Some(header)));
        assert_eq!(FileHeader::decode(&[0; JOURNAL_HEADER_BYTES]), Ok(None));
        every_flip(&bytes, |bit, flipped| {
            assert!(FileHeader::decode(flipped).is_err(), "bit {bit}");
        });
    }

    #[test]
    fn a_segment_header_reads_back_and_any_flipped_bit_is_refused() {
        let header = SegmentHeader {
            store: STORE,
            number: 3,
            start_lsn: 1,
            end_lsn: 8192,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        every_flip(&bytes, |bit, flipped| {
            assert!(SegmentHeader::decode(flipped).is_err(), "bit {bit}");
        });
    }

    #[test]
    fn a_segment_header_whose_reserved_bytes_are_not_zero_is_damage() {
        let fields = [STORE.0.to_le_bytes(), 3_u128.to_le_bytes(), [0; 16]].concat();
        let salt = Salt::new(STORE, *b"sfil", 3);
        for at in 40..48 {
            let mut checked = fields.clone();
            assert!(SegmentHeader::decode(&file_header(SEGMENT_MAGIC, salt, &checked)).is_ok());
            checked[at] = 1;
            let refused = SegmentHeader::decode(&file_header(SEGMENT_MAGIC, salt, &checked));
            assert!(
                matches!(refused, Err(Fault::Damaged { at: 56, .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_group_header_reads_back_in_its_store_only_and_any_flipped_bit_is_refused() {
        let header = GroupHeader {
            incarnation: 4,
            lsn: 4096,
            durable_lsn: 4095,
            chain: 1,
            record_bytes: 100,
            records: 2,
            heads_checksum: 6,
            last_id: EventId::from_u128(10),
        };
        let (bytes, checksum) = header.encode(GroupHeader::salt(STORE, header.incarnation));
        assert_eq!(GroupHeader::decode(STORE, &bytes), Some((header, checksum)));
        assert_eq!(GroupHeader::decode(StoreId(78), &bytes), None);
        every_flip(&bytes, |bit, flipped| {
            assert_eq!(GroupHeader::decode(STORE, flipped), None, "bit {bit}");
        });
    }
}
