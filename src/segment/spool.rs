//! Entries of the tables of a segment that is being written, until they are written in the order of
//! their keys.
//!
//! The entries that exceed the memory go to a file beside the segment, sorted, one part after the
//! other. The parts are merged when a table is written.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::codec::ByteReader;
use crate::disk::{Disk, DiskFile, Mode};
use crate::model::{Error, Result};
use crate::segment::sink::{BlockSink, Sink};
use crate::segment::table::Pair;

/// The size of one read of a part, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// The tables of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Table {
    Runs,
    Ids,
    Keys,
    Activity,
    Creation,
    Forks,
    Blocks,
}

const TABLES: usize = 7;

/// The entries of all tables of a segment.
pub(super) struct Spools<'a> {
    disk: &'a dyn Disk,
    /// The name of the file for what exceeds the memory. It is removed in the end.
    path: PathBuf,
    spilled: Option<BlockSink>,
    tables: [Spool; TABLES],
    memory: usize,
    /// The most memory for the entries of all tables, in bytes.
    memory_max: usize,
}

/// The entries of one table.
#[derive(Default)]
struct Spool {
    /// In the order in which they came.
    memory: Entries,
    /// The parts of the file, each sorted.
    parts: Vec<Part>,
}

/// A stretch of the file.
#[derive(Clone, Copy)]
struct Part {
    offset: u64,
    bytes: u64,
}

impl<'a> Spools<'a> {
    pub(super) fn new(disk: &'a dyn Disk, path: PathBuf, memory_max: usize) -> Self {
        Self {
            disk,
            path,
            spilled: None,
            tables: Default::default(),
            memory: 0,
            memory_max,
        }
    }

    pub(super) fn push(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        let bytes = key.len() + value.len() + size_of::<Entry>();
        if self.memory > 0 && self.memory + bytes > self.memory_max {
            self.spill()?;
        }
        self.memory += bytes;
        self.spool(table).memory.push(key, value);
        Ok(())
    }

    /// Returns whether a table has no entry.
    pub(super) fn is_empty(&mut self, table: Table) -> bool {
        let spool = self.spool(table);
        spool.memory.entries.is_empty() && spool.parts.is_empty()
    }

    /// Takes the entries of a table, in the order of their keys.
    pub(super) fn take(&mut self, table: Table) -> Result<Sorted> {
        let Spool { memory, parts } = std::mem::take(self.spool(table));
        let mut sources: Vec<Source> = vec![Box::new(memory.into_sorted().map(Ok))];
        if !parts.is_empty() {
            let file = self.disk.open(&self.path, Mode::Read)?;
            let read = |part| -> Source { Box::new(PartReader::new(Arc::clone(&file), part)) };
            sources.extend(parts.into_iter().map(read));
        }
        Sorted::new(sources)
    }

    fn spool(&mut self, table: Table) -> &mut Spool {
        self.tables
            .get_mut(table as usize)
            .expect("each table has a spool")
    }

    /// Moves the entries in memory to the file.
    fn spill(&mut self) -> Result<()> {
        let sink = match &mut self.spilled {
            Some(sink) => sink,
            none => {
                let file = self.disk.open(&self.path, Mode::WriteBlocks)?;
                none.insert(BlockSink::new(file))
            }
        };
        for spool in &mut self.tables {
            if spool.memory.entries.is_empty() {
                continue;
            }
            let offset = sink.offset();
            for (key, value) in std::mem::take(&mut spool.memory).into_sorted() {
                for part in [&key, &value] {
                    let length = u32::try_from(part.len()).expect("keys and values are short");
                    sink.put(&length.to_le_bytes())?;
                }
                sink.put(&key)?;
                sink.put(&value)?;
            }
            let bytes = sink.offset() - offset;
            sink.end_part()?;
            spool.parts.push(Part { offset, bytes });
        }
        self.memory = 0;
        Ok(())
    }
}

impl Drop for Spools<'_> {
    fn drop(&mut self) {
        if self.spilled.is_some() {
            // If this fails, the next open removes the file.
            let _removed = self.disk.remove(&self.path);
        }
    }
}

/// Entries in memory.
#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// The place of an entry: its key, then its value.
#[derive(Clone, Copy)]
struct Entry {
    at: usize,
    key_bytes: u32,
    value_bytes: u32,
}

impl Entries {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        let bytes = |part: &[u8]| u32::try_from(part.len()).expect("keys and values are short");
        self.entries.push(Entry {
            at: self.bytes.len(),
            key_bytes: bytes(key),
            value_bytes: bytes(value),
        });
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
    }

    /// Returns the entries in the order of their keys.
    fn into_sorted(self) -> impl Iterator<Item = Pair> {
        let Self { bytes, mut entries } = self;
        let part = |bytes: &[u8], at: usize, length: u32| -> Vec<u8> {
            let part = bytes.get(at..at + length as usize);
            part.expect("an entry lies within the bytes").to_vec()
        };
        entries.sort_unstable_by(|a, b| {
            let key = |entry: &Entry| bytes.get(entry.at..entry.at + entry.key_bytes as usize);
            key(a).cmp(&key(b))
        });
        entries.into_iter().map(move |entry| {
            let key = part(&bytes, entry.at, entry.key_bytes);
            let value_at = entry.at + entry.key_bytes as usize;
            (key, part(&bytes, value_at, entry.value_bytes))
        })
    }
}

/// Sorted entries.
type Source = Box<dyn Iterator<Item = Result<Pair>>>;

/// The entries of several sources, in the order of their keys. A key occurs once.
pub(super) struct Sorted {
    sources: Vec<Source>,
    /// The next entry of each source, with the number of the source.
    next: BinaryHeap<Reverse<(Pair, usize)>>,
}

impl Sorted {
    fn new(sources: Vec<Source>) -> Result<Self> {
        let mut sorted = Self {
            next: BinaryHeap::with_capacity(sources.len()),
            sources,
        };
        (0..sorted.sources.len()).try_for_each(|source| sorted.advance(source))?;
        Ok(sorted)
    }

    fn advance(&mut self, source: usize) -> Result<()> {
        let next = self.sources.get_mut(source).and_then(Iterator::next);
        if let Some(pair) = next.transpose()? {
            self.next.push(Reverse((pair, source)));
        }
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((pair, source)) = self.next.pop()?;
        Some(self.advance(source).map(|()| pair))
    }
}

/// Reads a part of the file from front to back.
struct PartReader {
    file: Arc<dyn DiskFile>,
    /// What was not read yet.
    left: Part,
    buf: Vec<u8>,
    /// The position in `buf`.
    at: usize,
}

impl PartReader {
    fn new(file: Arc<dyn DiskFile>, part: Part) -> Self {
        Self {
            file,
            left: part,
            buf: Vec::new(),
            at: 0,
        }
    }

    fn pair(&mut self) -> Result<Pair> {
        const HEAD_BYTES: usize = 2 * size_of::<u32>();
        self.fill(HEAD_BYTES)?;
        let mut head = ByteReader::new(self.rest());
        let (Ok(key_bytes), Ok(value_bytes)) = (head.u32(), head.u32()) else {
            return Err(self.impossible());
        };
        let (key_bytes, value_bytes) = (key_bytes as usize, value_bytes as usize);
        self.fill(HEAD_BYTES + key_bytes + value_bytes)?;
        let entry = self.rest().get(HEAD_BYTES..);
        let Some((key, rest)) = entry.and_then(|entry| entry.split_at_checked(key_bytes)) else {
            return Err(self.impossible());
        };
        let Some(value) = rest.get(..value_bytes) else {
            return Err(self.impossible());
        };
        let pair = (key.to_vec(), value.to_vec());
        self.at += HEAD_BYTES + key_bytes + value_bytes;
        Ok(pair)
    }

    fn rest(&self) -> &[u8] {
        self.buf.get(self.at..).unwrap_or_default()
    }

    /// Reads on until this many bytes are there, if the part has them.
    fn fill(&mut self, bytes: usize) -> Result<()> {
        let missing = bytes.saturating_sub(self.rest().len());
        if missing == 0 {
            return Ok(());
        }
        self.buf.drain(..self.at);
        self.at = 0;
        let left = usize::try_from(self.left.bytes).unwrap_or(usize::MAX);
        let more = missing.max(READ_BYTES).min(left);
        let before = self.buf.len();
        self.buf.resize(before + more, 0);
        let to = self.buf.get_mut(before..).unwrap_or_default();
        self.file.read_exact_at(to, self.left.offset)?;
        self.left.offset += more as u64;
        self.left.bytes -= more as u64;
        Ok(())
    }

    fn impossible(&self) -> Error {
        let what = "an entry that is not as it was written";
        Error::corrupt(self.file.path(), self.left.offset, what)
    }
}

impl Iterator for PartReader {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        let is_over = self.left.bytes == 0 && self.rest().is_empty();
        (!is_over).then(|| self.pair())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    /// Returns entries that are in no order, some with values longer than one read.
    fn pairs(count: u32) -> Vec<Pair> {
        let pair = |nth: u32| {
            let key = nth.wrapping_mul(0x9E37_79B1).to_be_bytes().to_vec();
            let length = if nth.is_multiple_of(50) {
                READ_BYTES + 7
            } else {
                20
            };
            let value = vec![nth.to_le_bytes()[0]; length];
            (key, value)
        };
        (0..count).map(pair).collect()
    }

    #[test]
    fn what_exceeds_the_memory_comes_back_in_order_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.tmp");
        let disk = RealDisk::default();
        for memory_max in [0, 2_000, 100_000, usize::MAX] {
            let mut spools = Spools::new(&disk, path.clone(), memory_max);
            let mut expected = pairs(400);
            for (key, value) in &expected {
                spools.push(Table::Ids, key, value).unwrap();
                spools
                    .push(Table::Runs, value.get(..4).unwrap(), key)
                    .unwrap_or(());
                if memory_max < usize::MAX {
                    assert!(spools.memory <= memory_max.max(key.len() + READ_BYTES + 64));
                }
            }
            assert_eq!(path.exists(), memory_max < usize::MAX);
            assert!(!spools.is_empty(Table::Ids) && spools.is_empty(Table::Keys));
            expected.sort();
            let sorted: Vec<Pair> = spools
                .take(Table::Ids)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            assert!(sorted == expected, "with {memory_max} bytes of memory");
            assert_eq!(spools.take(Table::Keys).unwrap().count(), 0);
            assert_eq!(spools.take(Table::Runs).unwrap().count(), 400);
            drop(spools);
            assert!(!path.exists());
        }
    }

    #[test]
    fn an_entry_that_is_not_as_it_was_written_is_corruption() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.tmp");
        let disk = RealDisk::default();
        let mut spools = Spools::new(&disk, path.clone(), 0);
        for (key, value) in pairs(3) {
            spools.push(Table::Ids, &key, &value).unwrap();
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 0x80;
        std::fs::write(&path, bytes).unwrap();
        let mut sorted = spools.take(Table::Ids);
        let read = sorted.as_mut().map(|sorted| sorted.find(Result::is_err));
        assert!(
            matches!(
                read,
                Err(Error::Corrupt { .. }) | Ok(Some(Err(Error::Corrupt { .. })))
            ),
            "the length of a key is wrong"
        );
    }
}
