//! Reads a journal file from front to back and decodes the groups in it, for replay.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{
    Decoded, Fault, FileHeader, GROUP_HEADER_BYTES, GroupHeader, RawRecord, Record, Salt, StoreId,
};
use crate::disk::{BLOCK, BlockBuf, Disk, DiskFile, Mode};
use crate::journal::GroupSlot;
use crate::model::{EventId, Result};

/// The most that is read of a journal file at once, unless a group is larger.
const WINDOW_BYTES_MAX: usize = 1024 * 1024;

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

/// A journal file as the device holds it, read from front to back.
///
/// It holds as little of the file at once as groups allow. So groups are decoded from the CPU's
/// cache, and the buffer is reused.
pub(super) struct Window {
    file: Arc<dyn DiskFile>,
    /// The length of the part of the file that is read.
    length: usize,
    buf: BlockBuf,
    /// The range of the file that is at the start of the buffer.
    held: Range<usize>,
}

impl Window {
    /// Opens the first `length` bytes of a file, rounded down to whole blocks.
    pub(super) fn open(disk: &dyn Disk, path: &Path, length: usize) -> Result<Self> {
        let file = disk.open(path, Mode::ReadDevice)?;
        Ok(Self {
            file,
            length: length - length % BLOCK,
            buf: BlockBuf::zeroed(0),
            held: 0..0,
        })
    }

    /// A quarter of the file, so that a small file takes several windows as a large one does.
    fn window_bytes(&self) -> usize {
        (self.length / 4).clamp(2 * BLOCK, WINDOW_BYTES_MAX)
    }

    /// Returns the bytes from `at` on, at least `count` unless the file ends before.
    ///
    /// A later call must not pass a lower `at`.
    pub(super) fn from(&mut self, at: usize, count: usize) -> Result<&[u8]> {
        let end = at.saturating_add(count).min(self.length);
        if at < end && end > self.held.end {
            self.advance(at - at % BLOCK, end)?;
        }
        let held = self
            .buf
            .as_slice()
            .get(..self.held.len())
            .unwrap_or_default();
        Ok(held.get(at - self.held.start..).unwrap_or_default())
    }

    /// Releases the bytes before `start` and reads at least up to `end`.
    pub(super) fn advance(&mut self, start: usize, end: usize) -> Result<()> {
        let end = end
            .max(start + self.window_bytes())
            .next_multiple_of(BLOCK)
            .min(self.length);
        let (bytes, kept) = (end - start, self.held.end.saturating_sub(start));
        if self.buf.len() < bytes {
            self.buf.pad(bytes - self.buf.len());
        }
        let buf = self.buf.as_mut_slice();
        buf.copy_within(self.held.len() - kept..self.held.len(), 0);
        self.held = start..start + kept;
        let unread = buf.get_mut(kept..bytes).expect("it has room for all");
        self.file.read_exact_at(unread, self.held.end as u64)?;
        self.held.end = end;
        Ok(())
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
    let records = records.map_err(|fault| fault.at(window.file.path(), at as u64))?;
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
