//! Framed values. This is the only file that names bincode.
//!
//! A length is checked against the bytes that are present before anything is decoded.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{ByteReader, Decoded, FORMAT_VERSION, Fault, Salt, check_version};

/// The kind of a framed value, by its magic bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ValueKind {
    magic: [u8; 8],
}

pub(crate) const TRAILER: ValueKind = ValueKind {
    magic: *b"slogtrlr",
};
pub(crate) const MANIFEST: ValueKind = ValueKind {
    magic: *b"slogmani",
};

pub(crate) const UNFINISHED: ValueKind = ValueKind {
    magic: *b"slogbild",
};

const HEADER_BYTES: usize = 24;

/// The largest value, in bytes: room for a manifest of a million segments.
const VALUE_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The largest framed value, in bytes.
pub(crate) const FRAMED_BYTES_MAX: usize = HEADER_BYTES + VALUE_BYTES_MAX;

/// The same in every format version: little-endian, variable-length integers.
const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<VALUE_BYTES_MAX>,
> = bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();

/// Frames `value`.
pub(crate) fn encode_value(kind: ValueKind, salt: Salt, value: &impl Serialize) -> Vec<u8> {
    let value = encode_bare(value);
    let length = u32::try_from(value.len()).expect("the cap on values fits 32 bits");
    let mut out = Vec::with_capacity(HEADER_BYTES + value.len());
    out.extend_from_slice(&kind.magic);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(
        &salt
            .over(&length.to_le_bytes())
            .checksum(&value)
            .to_le_bytes(),
    );
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&value);
    out
}

/// A framed value whose checksum matches.
pub(crate) struct OpenValue<'a> {
    /// The version of the format that it was written with.
    pub version: u32,
    value: &'a [u8],
}

impl OpenValue<'_> {
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Decoded<T> {
        decode_bare(self.value).ok_or(Fault::Damaged {
            at: HEADER_BYTES,
            what: "a value that does not decode",
        })
    }
}

/// Checks the frame of a value at the start of `bytes`, which may continue after it.
pub(crate) fn open_value(kind: ValueKind, salt: Salt, bytes: &[u8]) -> Decoded<OpenValue<'_>> {
    let mut reader = ByteReader::new(bytes);
    if reader.array()? != kind.magic {
        return Err(Fault::Damaged {
            at: 0,
            what: "wrong magic bytes",
        });
    }
    let version = reader.u32()?;
    check_version(version, 8)?;
    let checksum = reader.u32()?;
    let length = reader.u32()?;
    if reader.array()? != [0; 4] {
        return Err(Fault::Damaged {
            at: 20,
            what: "reserved bytes that are not zero",
        });
    }
    let value = reader.take(length as usize)?;
    if value.len() > VALUE_BYTES_MAX || salt.over(&length.to_le_bytes()).checksum(value) != checksum
    {
        return Err(Fault::Damaged {
            at: 12,
            what: "a checksum that does not match",
        });
    }
    Ok(OpenValue { version, value })
}

/// Encodes a value without a frame, for an entry of the index.
pub(crate) fn encode_bare(value: &impl Serialize) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, CONFIG)
        .expect("values hold plain numbers and lists within the cap")
}

/// Decodes bytes written by [`encode_bare`]; `None` if they were not.
///
/// Texts are borrowed from `bytes`, so that their length is checked before any is allocated.
pub(crate) fn decode_bare<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (value, used) = bincode::serde::borrow_decode_from_slice(bytes, CONFIG).ok()?;
    (used == bytes.len()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_reads_back_and_any_flipped_bit_is_refused() {
        let value = (7_u64, vec![1_u32, 2, 3], Some(String::from("x")));
        let salt = Salt::NONE.at(3);
        let bytes = encode_value(MANIFEST, salt, &value);
        assert_eq!(
            open_value(MANIFEST, salt, &bytes).and_then(|value| value.decode()),
            Ok(value)
        );
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read: Decoded<(u64, Vec<u32>, Option<String>)> =
                open_value(MANIFEST, salt, &flipped).and_then(|value| value.decode());
            assert!(read.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_value_of_a_later_version_is_unsupported_not_damaged() {
        let mut bytes = encode_value(TRAILER, Salt::NONE, &1_u64);
        bytes[8] = 9;
        let read: Decoded<u64> =
            open_value(TRAILER, Salt::NONE, &bytes).and_then(|value| value.decode());
        assert_eq!(
            read,
            Err(Fault::Unknown {
                what: "format version",
                found: 9,
                supported: FORMAT_VERSION.into()
            })
        );
    }
}
