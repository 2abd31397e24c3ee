//! Reads a segment from front to back, past the cache.

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{BLOCK_HEADER_BYTES, ByteReader, Decoded, Fault, Record, Salt};
use crate::disk::{BLOCK, DiskFile, Mode, Window};
use crate::model::{Error, Result, SessionId};
use crate::segment::open::admit_block;
use crate::segment::parts::Parts;
use crate::segment::table::{PageAddress, Pages, TableIter, admit_page};
use crate::segment::{FilterRoot, RunEntry, RunTail, Segment, filter, split_run_key};

/// A segment whose parts are read past the cache.
pub(crate) struct Uncached<'a> {
    segment: &'a Segment,
    file: Arc<dyn DiskFile>,
}

impl Segment {
    /// Returns the segment for reading all of it.
    pub(crate) fn uncached(&self) -> Result<Uncached<'_>> {
        Ok(Uncached {
            segment: self,
            file: self.file()?,
        })
    }

    /// As [`uncached`](Self::uncached), also if the file's header or trailer is damaged.
    pub(super) fn uncached_as_it_is(&self) -> Result<Uncached<'_>> {
        let Parts {
            disk, path, pinned, ..
        } = &self.parts;
        let file = match pinned {
            Some(pinned) => Arc::clone(&pinned.file),
            None => disk.open(path, Mode::Read)?,
        };
        Ok(Uncached {
            segment: self,
            file,
        })
    }
}

impl Uncached<'_> {
    fn part(
        &self,
        address: PageAddress,
        admit: impl FnOnce(Salt, &mut Vec<u8>) -> Decoded<()>,
    ) -> Result<Bytes> {
        self.segment
            .parts
            .read(address.offset, address.bytes, &self.file, admit)
    }

    /// Returns a block: its header, followed by its records as they were before compression.
    pub(super) fn block(&self, offset: u64, bytes: u32) -> Result<Bytes> {
        self.part(PageAddress { offset, bytes }, admit_block)
    }

    /// Returns the filter.
    pub(super) fn filter(&self) -> Result<Bytes> {
        let FilterRoot { offset, bytes } = self.segment.info.filter;
        self.part(PageAddress { offset, bytes }, |salt, filter| {
            filter::check(salt, filter)
        })
    }

    /// Returns the sessions that the segment holds anything of, in order, each with what its last
    /// run says.
    pub(crate) fn sessions(&self) -> Result<Sessions<'_>> {
        let mut runs = self.segment.info.runs.iter_from(self, &[])?;
        let ahead = runs.next().transpose()?;
        Ok(Sessions {
            segment: self.segment,
            runs,
            ahead,
        })
    }

    /// Returns all records in the order of sessions, generations and seqs.
    pub(crate) fn records(&self) -> Result<Records<'_>> {
        let directory = self.segment.info.directory.as_ref();
        let blocks = directory.map(|directory| directory.blocks.iter_from(self, &[]));
        Ok(Records {
            source: self,
            window: self.segment.parts.window(self.segment.info.filter.offset)?,
            blocks: match blocks.transpose()? {
                Some(table) => Blocks::Listed(table),
                None => Blocks::Walked(BLOCK as u64),
            },
            block: Bytes::new(),
            block_offset: 0,
            at: 0,
        })
    }
}

impl Pages for Uncached<'_> {
    fn page(&self, address: PageAddress) -> Result<Bytes> {
        self.part(address, admit_page)
    }

    fn fault(&self, address: PageAddress, fault: Fault) -> Error {
        fault.at(self.segment.path(), address.offset)
    }
}

/// The sessions of a segment, in order.
pub(crate) struct Sessions<'a> {
    segment: &'a Segment,
    runs: TableIter<'a, Uncached<'a>>,
    ahead: Option<(Bytes, Bytes)>,
}

impl Sessions<'_> {
    fn session(&mut self, key: &Bytes, mut value: Bytes) -> Result<(SessionId, RunTail)> {
        let (name, mut generation, mut first) =
            split_run_key(key).ok_or_else(|| self.segment.impossible("run"))?;
        loop {
            self.ahead = self.runs.next().transpose()?;
            let next = self
                .ahead
                .as_ref()
                .and_then(|(key, value)| Some((split_run_key(key)?, value)));
            match next {
                Some(((next, of, from), later)) if next == name => {
                    (generation, first, value) = (of, from, later.clone());
                }
                _ => break,
            }
        }
        let session = SessionId::from_stored(name, key);
        let session = session.map_err(|_error| self.segment.impossible("session"))?;
        let entry = RunEntry::read(self.segment.info.format, generation, first, &value)
            .map_err(|fault| fault.at(self.segment.path(), 0))?;
        Ok((session.detached(), entry.tail))
    }
}

impl Iterator for Sessions<'_> {
    type Item = Result<(SessionId, RunTail)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.ahead.take()?;
        Some(self.session(&key, value))
    }
}

/// The records of a segment, in order.
pub(crate) struct Records<'a> {
    source: &'a Uncached<'a>,
    /// Blocks pass every cache by: a merge would leave nothing else in it.
    window: Window,
    blocks: Blocks<'a>,
    block: Bytes,
    block_offset: u64,
    at: usize,
}

/// The source of the next block's place.
enum Blocks<'a> {
    Listed(TableIter<'a, Uncached<'a>>),
    /// The offset of the next block. Version 1 has no list, and stores blocks plain.
    Walked(u64),
}

impl Records<'_> {
    /// Reads the next block. Returns `false` after the last one.
    fn next_block(&mut self) -> Result<bool> {
        let segment = self.source.segment;
        let address = match &mut self.blocks {
            Blocks::Listed(table) => {
                let Some((key, value)) = table.next().transpose()? else {
                    return Ok(false);
                };
                let offset = key.as_ref().try_into().map(u64::from_be_bytes);
                let bytes = ByteReader::new(&value).varint_u32();
                let (Ok(offset), Ok(bytes)) = (offset, bytes) else {
                    return Err(segment.impossible("block"));
                };
                PageAddress { offset, bytes }
            }
            Blocks::Walked(offset) => {
                let from = *offset;
                if from >= segment.info.filter.offset {
                    return Ok(false);
                }
                let mut length = [0; 4];
                self.source.file.read_exact_at(&mut length, from)?;
                let header = u32::try_from(BLOCK_HEADER_BYTES).expect("a small constant");
                let bytes = u32::from_le_bytes(length).checked_add(header);
                let bytes = bytes.ok_or_else(|| segment.impossible("block"))?;
                *offset += u64::from(bytes);
                PageAddress {
                    offset: from,
                    bytes,
                }
            }
        };
        let place = (address.offset, address.bytes);
        let (window, file) = (&mut self.window, &self.source.file);
        self.block = segment.parts.read_in(window, file, place, admit_block)?;
        (self.block_offset, self.at) = (address.offset, BLOCK_HEADER_BYTES);
        Ok(true)
    }

    fn record(&mut self) -> Result<Option<Record>> {
        while self.at >= self.block.len() {
            if !self.next_block()? {
                return Ok(None);
            }
        }
        let (record, end) = Record::decode_with_end(&self.block, self.at)
            .map_err(|fault| fault.at(self.source.segment.path(), self.block_offset))?;
        self.at = end;
        Ok(Some(record))
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.record().transpose()
    }
}
