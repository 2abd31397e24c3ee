//! The decoders and the reader of JSON for the fuzz targets. Built under `cfg(fuzzing)` alone, so
//! not part of the API.

use bytes::Bytes;
use serde_json::Value;

use crate::codec::{
    self, BlockHeader, FileHeader, GroupHeader, MANIFEST, RawRecord, Record, Salt, SegmentHeader,
    StoreId, TRAILER,
};
use crate::index::IndexEntry;
use crate::manifest::Manifest;
use crate::segment::{self, SegmentInfo};
use crate::turn::lenient;

/// Reads `bytes` as each structure that the log reads from a disk.
///
/// Each decoder refuses or accepts any bytes. None panics, and none allocates more than a small
/// multiple of its input.
pub fn decode(bytes: &[u8]) {
    let shared = Bytes::copy_from_slice(bytes);
    let mut at = 0;
    while let Ok(raw) = RawRecord::split(bytes, at) {
        if let Ok(record) = Record::decode(&shared, at) {
            let _refused_or_not = (record.check_events(), raw.body_matches());
            put_back(&record, raw.head);
        }
        at = raw.end;
    }
    let _refused_or_not = (
        FileHeader::decode(bytes),
        SegmentHeader::decode(bytes),
        BlockHeader::decode(Salt::NONE, bytes),
    );
    let _refused_or_not = GroupHeader::decode(StoreId::default(), bytes);
    let _refused_or_not = (
        codec::open_value(MANIFEST, Salt::NONE, bytes).is_ok(),
        codec::open_value(TRAILER, Salt::NONE, bytes).is_ok(),
    );
    // Skips the checksums, which random bytes do not pass.
    let _refused_or_not = (
        codec::decode_bare::<Manifest>(bytes),
        codec::decode_bare::<SegmentInfo>(bytes),
        codec::SessionState::decode(bytes),
    );
    let (key, value) = bytes.split_at(bytes.len() / 2);
    let _refused_or_not = IndexEntry::read(key, value);
    segment::decode_parts(&shared);
}

/// Reads `bytes` as event data.
///
/// # Panics
///
/// Panics if `serde_json` refuses repaired data, if the repair refuses or changes data that can be
/// read, or if a second repair changes it.
pub fn read_json(bytes: &[u8]) {
    let read = lenient::from_slice::<Value>(bytes).ok();
    let Some(repaired) = lenient::repaired(bytes) else {
        return assert_eq!(read, None, "it was read, and cannot be repaired");
    };
    assert_eq!(
        read,
        serde_json::from_str(&repaired.text).ok(),
        "a repair changed what it says"
    );
    assert!(read.is_some(), "a repair left what cannot be read");
    let again = lenient::repaired(repaired.text.as_bytes()).map(|again| again.text);
    assert_eq!(again, Some(repaired.text), "a repaired text was repaired");
}

/// Checks that a record is written back as it was read, so that sealing and recovery change
/// nothing. A varint may be read in a longer form than the one written.
fn put_back(record: &Record, head: &[u8]) {
    let mut again = Vec::new();
    record.put_head(&mut again);
    assert!(
        again.len() <= head.len(),
        "a head grew from {} to {} bytes",
        head.len(),
        again.len()
    );
}
