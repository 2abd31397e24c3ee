//! Decodes the groups of a journal file, which is read from front to back, for replay.

use std::path::Path;

use bytes::Bytes;

use crate::codec::{
    Decoded, Fault, FileHeader, GROUP_HEADER_BYTES, GroupHeader, RawRecord, Record, Salt, StoreId,
};
use crate::disk::{BLOCK, Disk, Window};
use crate::journal::GroupSlot;
use crate::model::{EventId, Result};

/// The most that is read of a journal file at once, unless a group is larger.
const WINDOW_BYTES_MAX: usize = 1024 * 1024;

/// Opens the first `length` bytes of a journal file. A window is a quarter of them, so that a small
/// file takes several windows as a large one does.
pub(super) fn open_window(disk: &dyn Disk, path: &Path, length: usize) -> Result<Window> {
    let bytes = (length / 4).clamp(2 * BLOCK, WINDOW_BYTES_MAX);
    Window::open(disk, path, length, bytes)
}

pub(crate) struct ReplayedGroup {
    pub header: GroupHeader,
    pub records: Vec<Record>,
}

impl ReplayedGroup {
    /// Returns the same place in another incarnation of the file.
    pub(crate) fn slot_in(&self, incarnation: u64, chain: u32) -> GroupSlot {
        let GroupHeader {
            lsn,
            durable_lsn,
            last_id,
            ..
        } = self.header;
        GroupSlot {
            incarnation,
            lsn,
            durable_lsn,
            chain,
            last_id,
        }
    }
}

/// The end of the chain so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) lsn: u64,
    pub(super) chain: u32,
    pub(super) incarnation: u64,
    pub(super) last_id: EventId,
}

impl End {
    pub(super) fn is_continued_by(&self, header: &FileHeader) -> bool {
        header.incarnation > self.incarnation
            && header.start_lsn == self.lsn
            && header.chain == self.chain
    }

    pub(super) fn is_continued_by_group(&self, header: &GroupHeader) -> bool {
        (header.incarnation, header.lsn, header.chain) == (self.incarnation, self.lsn, self.chain)
    }
}

/// Returns the group at `at` and its header's checksum, if it is whole and continues the chain.
pub(super) fn group_at(
    store: StoreId,
    window: &mut Window,
    at: usize,
    end: &End,
) -> Result<Option<(ReplayedGroup, u32)>> {
    let Some((header, checksum)) = GroupHeader::decode(store, window.from(at, GROUP_HEADER_BYTES)?)
    else {
        return Ok(None);
    };
    if !end.is_continued_by_group(&header) {
        return Ok(None);
    }
    let record_bytes = header.record_bytes as usize;
    let records = window.from(at + GROUP_HEADER_BYTES, record_bytes)?;
    let Some(records) = records.get(..record_bytes) else {
        return Ok(None);
    };
    if !is_whole(&header, records) {
        return Ok(None);
    }
    let records =
        decode_records(records, end.last_id).map_err(|fault| fault.moved(GROUP_HEADER_BYTES));
    let records = records.map_err(|fault| fault.at(window.path(), at as u64))?;
    Ok(Some((ReplayedGroup { header, records }, checksum)))
}

pub(super) fn is_whole(header: &GroupHeader, bytes: &[u8]) -> bool {
    let mut heads = Salt::NONE;
    let mut at = 0;
    for _ in 0..header.records {
        let Ok(record) = RawRecord::split(bytes, at) else {
            return false;
        };
        if !record.body_matches() {
            return false;
        }
        heads = heads.over(record.head);
        at = record.end;
    }
    at == bytes.len() && heads.value() == header.heads_checksum
}

/// Decodes records whose checksums match, each into memory of its own.
pub(super) fn decode_records(bytes: &[u8], mut last_id: EventId) -> Decoded<Vec<Record>> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = RawRecord::split(bytes, at)?.end;
        let stored =
            Bytes::copy_from_slice(bytes.get(at..end).expect("a record lies within its group"));
        let record = Record::decode(&stored, 0).map_err(|fault| fault.moved(at))?;
        record.check_events().map_err(|fault| fault.moved(at))?;
        if record.base <= last_id {
            return Err(Fault::Damaged {
                at,
                what: "an event ID that does not rise",
            });
        }
        last_id = record.last_id();
        records.push(record);
        at = end;
    }
    Ok(records)
}
