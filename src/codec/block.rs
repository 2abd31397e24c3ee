//! The blocks of a segment: their header, and the compression of their records. This is the only
//! file that names `lz4_flex`.
//!
//! A block is checked before it is decompressed, and no length in it is trusted with memory.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use crate::codec::{ByteReader, Decoded, Fault, Salt};

pub(crate) const BLOCK_HEADER_BYTES: usize = 16;

/// The most bytes of records in a compressed block. It bounds the memory that a block asks for when
/// it is read, and the buffers of the writer, which stores a larger block plain.
const COMPRESSED_RECORDS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One byte of LZ4 stands for at most this number of bytes.
const EXPANSION_MAX: usize = 255;

// `lz4_flex` sums the bytes of a length in a `usize`, which may have 32 bits. Input as short as
// this cannot overflow the sum.
const _: () = assert!(COMPRESSED_RECORDS_BYTES_MAX <= u32::MAX as usize / EXPANSION_MAX);

/// A block is stored compressed if that saves at least this share of its records: an eighth.
const SAVED_SHARE: usize = 8;

/// After this many blocks in a row that compression does not make small enough, most of the next
/// ones are not tried: only one of `TRIED_ONE_IN`. So data that is compressed or encrypted already
/// costs little, and a mix of both kinds is tried block by block.
const PATIENCE: u32 = 4;
const TRIED_ONE_IN: u32 = 8;

const FLAG_LZ4: u32 = 1;

/// The header of a block in a segment, before its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    /// The length of the records before compression.
    pub record_bytes: u32,
    pub records: u32,
    pub coding: Coding,
}

/// How the records of a block are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Plain,
    Lz4,
}

impl BlockHeader {
    /// Returns the header of a block whose stored bytes consist of these parts.
    pub(crate) fn encode<'a>(
        self,
        salt: Salt,
        stored: impl IntoIterator<Item = &'a [u8]>,
    ) -> [u8; BLOCK_HEADER_BYTES] {
        let length = self.record_bytes.to_le_bytes();
        let count = self.records.to_le_bytes();
        let flags = self.coding.flags().to_le_bytes();
        let before = salt.over(&length).over(&count).over(&flags);
        let checksum = stored
            .into_iter()
            .fold(before, Salt::over)
            .value()
            .to_le_bytes();
        let mut out = [0; BLOCK_HEADER_BYTES];
        for (to, from) in out
            .iter_mut()
            .zip(length.iter().chain(&checksum).chain(&count).chain(&flags))
        {
            *to = *from;
        }
        out
    }

    /// Checks a whole block as it is stored, header and records.
    pub(crate) fn decode(salt: Salt, block: &[u8]) -> Decoded<Self> {
        let mut reader = ByteReader::new(block);
        let record_bytes = reader.u32()?;
        let checksum = reader.u32()?;
        let (count, flags) = (reader.array::<4>()?, reader.array::<4>()?);
        let stored = reader.take(reader.left())?;
        let found = salt
            .over(&record_bytes.to_le_bytes())
            .over(&count)
            .over(&flags)
            .checksum(stored);
        if found != checksum {
            return Err(Fault::Damaged {
                at: 4,
                what: "a checksum that does not match",
            });
        }
        let header = Self {
            record_bytes,
            records: u32::from_le_bytes(count),
            coding: Coding::of(u32::from_le_bytes(flags))?,
        };
        header.check_length(stored.len())?;
        Ok(header)
    }

    /// Turns the stored bytes of a block into its header and its plain records.
    ///
    /// It allocates no more than the records take, and nothing if their length is impossible.
    pub(crate) fn decompress(self, block: &mut Vec<u8>) -> Decoded<()> {
        let mut reader = ByteReader::new(block);
        let header = reader.array::<BLOCK_HEADER_BYTES>()?;
        let stored = reader.take(reader.left())?;
        self.check_length(stored.len())?;
        if self.coding == Coding::Plain {
            return Ok(());
        }
        let mut plain = vec![0; BLOCK_HEADER_BYTES + self.record_bytes as usize];
        let (head, records) = plain.split_at_mut(BLOCK_HEADER_BYTES);
        head.copy_from_slice(&header);
        match decompress_into(stored, records) {
            Ok(bytes) if bytes == records.len() => {
                *block = plain;
                Ok(())
            }
            _too_few_or_not_lz4 => Err(Fault::Damaged {
                at: BLOCK_HEADER_BYTES,
                what: "compressed records that do not decompress to their length",
            }),
        }
    }

    /// Checks that `stored` bytes can stand for the records.
    fn check_length(self, stored: usize) -> Decoded<()> {
        let records = self.record_bytes as usize;
        let is_possible = match self.coding {
            Coding::Plain => records == stored,
            Coding::Lz4 => {
                stored < records
                    && records <= COMPRESSED_RECORDS_BYTES_MAX
                    && records <= stored.saturating_mul(EXPANSION_MAX)
            }
        };
        if is_possible {
            Ok(())
        } else {
            Err(Fault::Damaged {
                at: 0,
                what: "an impossible length of a block's records",
            })
        }
    }
}

impl Coding {
    fn flags(self) -> u32 {
        match self {
            Self::Plain => 0,
            Self::Lz4 => FLAG_LZ4,
        }
    }

    fn of(flags: u32) -> Decoded<Self> {
        match flags {
            0 => Ok(Self::Plain),
            FLAG_LZ4 => Ok(Self::Lz4),
            _ => Err(Fault::Unknown {
                what: "block flags",
                found: flags.into(),
                supported: FLAG_LZ4.into(),
            }),
        }
    }
}

/// Compresses one block after the other in the same buffers.
pub(crate) struct BlockCompressor {
    table: CompressTable,
    plain: Vec<u8>,
    compressed: Vec<u8>,
    /// The blocks since the last one that was stored compressed.
    plain_blocks: u32,
}

impl BlockCompressor {
    pub(crate) fn new() -> Self {
        Self {
            table: CompressTable::large(),
            plain: Vec::new(),
            compressed: Vec::new(),
            plain_blocks: 0,
        }
    }

    /// Compresses the records of a block, which consist of these parts.
    ///
    /// Returns `None` if they are to be stored plain.
    pub(crate) fn compress<'a>(
        &mut self,
        record_bytes: usize,
        records: impl IntoIterator<Item = &'a [u8]>,
    ) -> Option<&[u8]> {
        if record_bytes > COMPRESSED_RECORDS_BYTES_MAX {
            return None;
        }
        let is_tried = self
            .plain_blocks
            .checked_sub(PATIENCE)
            .is_none_or(|over| over % TRIED_ONE_IN == TRIED_ONE_IN - 1);
        self.plain_blocks = self.plain_blocks.saturating_add(1);
        if !is_tried {
            return None;
        }
        self.plain.clear();
        self.plain.reserve_exact(record_bytes);
        for part in records {
            self.plain.extend_from_slice(part);
        }
        let room = get_maximum_output_size(self.plain.len());
        if self.compressed.len() < room {
            self.compressed = vec![0; room];
        }
        let bytes = compress_into_with_table(&self.plain, &mut self.compressed, &mut self.table)
            .expect("the buffer has room for the largest output");
        let is_worth_it = bytes <= record_bytes - record_bytes.div_ceil(SAVED_SHARE);
        if is_worth_it {
            self.plain_blocks = 0;
        }
        self.compressed.get(..bytes).filter(|_| is_worth_it)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALT: Salt = Salt::NONE;

    /// Returns the bytes of a block in the file, compressed if that is worth it.
    fn stored(records: &[u8]) -> Vec<u8> {
        let mut compressor = BlockCompressor::new();
        let (first, rest) = records.split_at(records.len() / 3);
        match compressor.compress(records.len(), [first, rest]) {
            Some(compressed) => block(records.len(), Coding::Lz4, compressed),
            None => block(records.len(), Coding::Plain, records),
        }
    }

    #[test]
    fn blocks_that_do_not_compress_are_tried_now_and_then() {
        let mut compressor = BlockCompressor::new();
        let (text, noise) = (vec![7; 4096], noise(4096));
        let mut is_compressed =
            |records: &[u8]| compressor.compress(records.len(), [records]).is_some();
        // Fewer than would lead to blocks that are not tried.
        for _ in 0..3 {
            for _ in 0..PATIENCE - 1 {
                assert!(!is_compressed(&noise));
            }
            assert!(is_compressed(&text));
        }
        (0..PATIENCE).for_each(|_| assert!(!is_compressed(&noise)));
        let untried = (0..100).take_while(|_| !is_compressed(&text)).count();
        assert_eq!(untried, TRIED_ONE_IN as usize - 1);
        assert!(is_compressed(&text), "each is tried again");
    }

    fn block(record_bytes: usize, coding: Coding, stored: &[u8]) -> Vec<u8> {
        let header = BlockHeader {
            record_bytes: u32::try_from(record_bytes).unwrap(),
            records: 2,
            coding,
        };
        let mut block = header.encode(SALT, [stored]).to_vec();
        block.extend_from_slice(stored);
        block
    }

    fn read(block: &[u8]) -> Decoded<(Coding, Vec<u8>)> {
        let header = BlockHeader::decode(SALT, block)?;
        let mut records = block.to_vec();
        header.decompress(&mut records)?;
        assert_eq!(records[..BLOCK_HEADER_BYTES], block[..BLOCK_HEADER_BYTES]);
        assert_eq!(
            records.len() - BLOCK_HEADER_BYTES,
            header.record_bytes as usize
        );
        Ok((header.coding, records.split_off(BLOCK_HEADER_BYTES)))
    }

    fn text(bytes: usize) -> Vec<u8> {
        let lines = (0..).map(|line| format!(r#"{{"line":{line},"text":"some text"}}"#));
        lines.flat_map(String::into_bytes).take(bytes).collect()
    }

    /// Bytes that nothing can compress.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut hashes = blake3::Hasher::new().finalize_xof();
        let mut noise = vec![0; bytes];
        hashes.fill(&mut noise);
        noise
    }

    fn is_damage(read: &Decoded<(Coding, Vec<u8>)>) -> bool {
        matches!(read, Err(Fault::Damaged { .. }))
    }

    proptest! {
        #[test]
        fn a_block_reads_back_as_it_was_written(
            parts in proptest::collection::vec((any::<[u8; 7]>(), 1..200_usize), 0..40),
        ) {
            let records: Vec<u8> = parts
                .iter()
                .flat_map(|(bytes, times)| bytes.repeat(*times))
                .collect();
            let (_, again) = read(&stored(&records)).unwrap();
            prop_assert_eq!(again, records);
        }

        #[test]
        fn bytes_that_are_no_lz4_are_damage_or_have_the_length_they_claim(
            bytes in proptest::collection::vec(any::<u8>(), 1..200),
            record_bytes in 0..2_000_usize,
        ) {
            // Without the checksum, which random bytes would not pass.
            let _damage_or_not = read(&block(record_bytes, Coding::Lz4, &bytes));
        }
    }

    #[test]
    fn a_block_of_each_size_reads_back() {
        let mut compressor = BlockCompressor::new();
        for bytes in [
            0,
            1,
            12,
            13,
            100,
            65_534,
            65_535,
            65_536,
            70_000,
            1 << 20,
            50,
        ] {
            let records = text(bytes);
            assert_eq!(read(&stored(&records)).unwrap().1, records);
            if let Some(compressed) = compressor.compress(bytes, [&*records]) {
                let block = block(bytes, Coding::Lz4, compressed);
                assert_eq!(read(&block).unwrap().1, records, "in a used buffer");
            }
        }
    }

    #[test]
    fn a_block_is_compressed_only_if_that_saves_an_eighth() {
        let coding = |records: &[u8]| read(&stored(records)).unwrap().0;
        assert_eq!(coding(&text(4_000)), Coding::Lz4);
        assert_eq!(coding(&noise(4_000)), Coding::Plain);
        let mixed = |zeroes| [noise(8_000 - zeroes), vec![0; zeroes]].concat();
        assert_eq!(coding(&mixed(900)), Coding::Plain);
        assert_eq!(coding(&mixed(1_100)), Coding::Lz4);
    }

    #[test]
    fn a_block_too_large_to_be_read_back_is_not_compressed() {
        let most = COMPRESSED_RECORDS_BYTES_MAX;
        let mut compressor = BlockCompressor::new();
        assert!(compressor.compress(most, [&*vec![0; most]]).is_some());
        assert!(
            compressor
                .compress(most + 1, [&*vec![0; most + 1]])
                .is_none()
        );
    }

    #[test]
    fn any_flipped_bit_of_a_block_is_refused() {
        for records in [text(300), noise(100)] {
            let block = stored(&records);
            assert!(BlockHeader::decode(SALT.at(65), &block).is_err());
            for bit in 0..block.len() * 8 {
                let mut flipped = block.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(is_damage(&read(&flipped)), "bit {bit}");
            }
            for bytes in 0..block.len() {
                assert!(is_damage(&read(&block[..bytes])), "{bytes} bytes");
            }
        }
    }

    #[test]
    fn damage_under_a_matching_checksum_ends_in_an_error_or_in_the_claimed_length() {
        let records = text(300);
        let mut compressor = BlockCompressor::new();
        let compressed = compressor
            .compress(records.len(), [&*records])
            .unwrap()
            .to_vec();
        for at in 0..compressed.len() {
            for byte in 0..=u8::MAX {
                let mut damaged = compressed.clone();
                damaged[at] = byte;
                let _damage_or_not = read(&block(records.len(), Coding::Lz4, &damaged));
            }
            let cut = read(&block(records.len(), Coding::Lz4, &compressed[..at]));
            assert!(is_damage(&cut), "cut at {at}");
        }
        for lie in [records.len() - 1, records.len() + 1] {
            assert!(
                is_damage(&read(&block(lie, Coding::Lz4, &compressed))),
                "{lie}"
            );
        }
    }

    /// [`BlockHeader::decode`] allocates nothing.
    #[test]
    fn a_length_that_the_stored_bytes_cannot_have_is_refused_before_memory_is_asked_for() {
        let check = |claimed: usize, stored: usize| {
            let block = block(claimed, Coding::Lz4, &vec![0xFF; stored]);
            BlockHeader::decode(SALT, &block)
        };
        assert!(check(EXPANSION_MAX * 1_000, 1_000).is_ok());
        assert!(check(EXPANSION_MAX * 1_000 + 1, 1_000).is_err());
        assert!(check(u32::MAX as usize, 1_000).is_err());
        assert!(check(COMPRESSED_RECORDS_BYTES_MAX, 1 << 20).is_ok());
        assert!(check(COMPRESSED_RECORDS_BYTES_MAX + 1, 1 << 20).is_err());
        assert!(check(1_000, 1_000).is_err(), "nothing is saved");
        assert!(check(0, 0).is_err());
        let plain = |claimed| BlockHeader::decode(SALT, &block(claimed, Coding::Plain, &[7; 9]));
        assert!(plain(9).is_ok());
        assert!(plain(8).is_err() && plain(10).is_err());
    }

    #[test]
    fn an_unknown_flag_is_unsupported() {
        let fields = [9_u32, 0, 1, 2].map(u32::to_le_bytes).concat();
        let [length, _, count, flags] = fields.as_chunks::<4>().0 else {
            panic!("four fields");
        };
        let mut block = fields.clone();
        let checksum = SALT.over(length).over(count).over(flags).checksum(&[7; 9]);
        block[4..8].copy_from_slice(&checksum.to_le_bytes());
        block.extend_from_slice(&[7; 9]);
        let unknown = BlockHeader::decode(SALT, &block);
        assert!(
            matches!(unknown, Err(Fault::Unknown { found: 2, .. })),
            "{unknown:?}"
        );
    }
}
