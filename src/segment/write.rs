//! Writes a segment: records in session order, then the filter, the tables and the trailer. The
//! file gets its name after all of it is durable.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::codec::{
    BLOCK_HEADER_BYTES, BlockHeader, Record, Salt, SegmentHeader, StoreId, TRAILER, encode_value,
};
use crate::disk::{BLOCK, BlockBuf, Disk, DiskFile, Mode, write_whole};
use crate::model::{Error, Result};
use crate::segment::filter::FilterBuilder;
use crate::segment::table::{Sink, write_table};
use crate::segment::{
    self, Address, FilterRoot, Run, RunEntry, SegmentInfo, key_hash, run_key, session_hash,
};

/// A block is closed before its records exceed this size, in bytes. A single larger record is a
/// block of its own.
const BLOCK_RECORDS_BYTES: usize = 64 * 1024;

/// A block of this size, in bytes, is closed at the end of a session's records. A block is read
/// whole, so a reader of one session reads the others in the block for nothing.
const BLOCK_OF_SESSIONS_BYTES: usize = 4 * 1024;

/// The size of one write, in bytes.
const WRITE_BYTES: usize = 256 * 1024;

/// The content of a segment that is to be written.
pub(crate) struct SegmentPlan {
    pub store: StoreId,
    pub number: u64,
    pub start_lsn: u64,
    pub end_lsn: u64,
    /// The records in commit order. There is at least one.
    pub records: Vec<Arc<Record>>,
}

/// Writes the segment and makes it durable.
///
/// `on_progress` is called with the number of records written as the segment grows, and may end the
/// write with an error. A failure leaves no segment, and the caller may try again.
pub(crate) fn write_segment<E: From<Error>>(
    disk: &dyn Disk,
    folder: &Path,
    plan: &SegmentPlan,
    on_progress: impl Fn(usize) -> Result<(), E>,
) -> Result<SegmentInfo, E> {
    write_whole(disk, &segment::path(folder, plan.number), |unfinished| {
        let file = disk.open(unfinished, Mode::WriteBlocks)?;
        SegmentWriter::new(file, plan)?.write(plan, on_progress)
    })
}

struct SegmentWriter {
    sink: BlockSink,
    salt: Salt,
    runs: Vec<(usize, RunEntry)>,
    /// The places of the records, by position in the plan.
    addresses: Vec<Address>,
}

impl SegmentWriter {
    fn new(file: Arc<dyn DiskFile>, plan: &SegmentPlan) -> Result<Self> {
        let mut sink = BlockSink::new(file);
        let SegmentPlan {
            store,
            number,
            start_lsn,
            end_lsn,
            ..
        } = *plan;
        sink.put(
            &SegmentHeader {
                store,
                number,
                start_lsn,
                end_lsn,
            }
            .encode(),
        )?;
        sink.buf.pad_to_block();
        let nowhere = Address {
            block_offset: 0,
            block_bytes: 0,
            at: 0,
        };
        let addresses = vec![nowhere; plan.records.len()];
        Ok(Self {
            sink,
            salt: segment::salt(store, number),
            runs: Vec::new(),
            addresses,
        })
    }

    fn write<E: From<Error>>(
        mut self,
        plan: &SegmentPlan,
        on_progress: impl Fn(usize) -> Result<(), E>,
    ) -> Result<SegmentInfo, E> {
        self.write_blocks(&plan.records, on_progress)?;
        let records = &plan.records;
        let mut hashes: Vec<_> = (0..)
            .zip(records)
            .filter_map(|(at, record)| hash_of_key(record, at))
            .collect();
        hashes.sort_unstable();
        let filter = self.write_filter(records, &hashes)?;
        let (sink, salt, addresses) = (&mut self.sink, self.salt, &self.addresses);
        let runs = self.runs.iter().map(|(at, entry)| {
            let record = record_at(records, *at);
            (
                run_key(&record.session, entry.run.generation, entry.run.first),
                encoded(|out| entry.put(out)),
            )
        });
        let runs = write_table(sink, salt, runs)?;
        let address = |at: usize| {
            encoded(|out| {
                addresses
                    .get(at)
                    .expect("every record got an address")
                    .put(out);
            })
        };
        let ids = records
            .iter()
            .enumerate()
            .map(|(at, record)| (record.base.to_u128().to_be_bytes().to_vec(), address(at)));
        let ids = write_table(sink, salt, ids)?;
        let keys = hashes.iter().map(|(key, at)| (key.to_vec(), address(*at)));
        let keys = if hashes.is_empty() {
            None
        } else {
            Some(write_table(sink, salt, keys)?)
        };
        let (first, last) = (record_at(records, 0), record_at(records, records.len() - 1));
        sink.buf.pad_to_block();
        let info = SegmentInfo {
            number: plan.number,
            start_lsn: plan.start_lsn,
            end_lsn: plan.end_lsn,
            first_id: first.base.to_u128(),
            last_id: last.last_id().to_u128(),
            file_bytes: sink.offset() + BLOCK as u64,
            records: records.len() as u64,
            events: records.iter().map(|record| u64::from(record.count)).sum(),
            body_bytes: records
                .iter()
                .map(|record| record.body().len() as u64)
                .sum(),
            runs,
            ids,
            keys,
            filter,
        };
        sink.finish(&encode_value(
            TRAILER,
            trailer_salt(plan.store, plan.number),
            &info,
        ))?;
        Ok(info)
    }

    /// Writes the records in session order and notes the place of each.
    fn write_blocks<E: From<Error>>(
        &mut self,
        records: &[Arc<Record>],
        on_progress: impl Fn(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut block = Block::default();
        let mut head = Vec::new();
        let mut reported = 0;
        for (written, at) in in_session_order(records).flatten().enumerate() {
            let record = record_at(records, at);
            record.put_head(&mut head);
            if block.is_full_before(record, head.len(), records) {
                self.write_block(&mut block, records)?;
                if self.sink.written > reported {
                    reported = self.sink.written;
                    on_progress(written)?;
                }
            }
            block.put(at, &head, record.body().len());
        }
        Ok(self.write_block(&mut block, records)?)
    }

    fn write_block(&mut self, block: &mut Block, records: &[Arc<Record>]) -> Result<()> {
        let block_offset = self.sink.offset();
        let record_bytes = u32::try_from(block.bytes).expect("the caps on a batch fit 32 bits");
        let header = BlockHeader {
            record_bytes,
            records: u32::try_from(block.members.len()).expect("records have bytes"),
        };
        let block_bytes =
            record_bytes + u32::try_from(BLOCK_HEADER_BYTES).expect("a small constant");
        for &Member { record, at, .. } in &block.members {
            let address = Address {
                block_offset,
                block_bytes,
                at,
            };
            *self
                .addresses
                .get_mut(record)
                .expect("every record has an address") = address;
            self.note_run(records, record, address);
        }
        self.sink
            .put(&header.encode(self.salt.at(block_offset), block.parts(records)))?;
        block
            .parts(records)
            .try_for_each(|part| self.sink.put(part))?;
        block.clear();
        Ok(())
    }

    /// Makes the record part of the run before it, or begins a run.
    fn note_run(&mut self, records: &[Arc<Record>], member: usize, address: Address) {
        let record = record_at(records, member);
        let last_id = record.last_id();
        if let Some((
            at,
            RunEntry {
                run,
                last_id: run_last_id,
            },
        )) = self.runs.last_mut()
        {
            let same_block = run.address.block_offset == address.block_offset;
            let continues = run.generation == record.generation && run.last() + 1 == record.first;
            if same_block && continues && record_at(records, *at).session == record.session {
                run.events += record.count;
                *run_last_id = last_id;
                return;
            }
        }
        let run = Run {
            generation: record.generation,
            first: record.first,
            events: record.count,
            address,
        };
        self.runs.push((member, RunEntry { run, last_id }));
    }

    fn write_filter(
        &mut self,
        records: &[Arc<Record>],
        keys: &[([u8; 32], usize)],
    ) -> Result<FilterRoot> {
        let mut builder = FilterBuilder::new((self.runs.len() + keys.len()) as u64);
        for (at, _) in &self.runs {
            builder.insert(session_hash(record_at(records, *at).session.as_bytes()));
        }
        for (key, _) in keys {
            builder.insert(*key.first_chunk().expect("a key begins with its hash"));
        }
        let offset = self.sink.offset();
        let bytes = builder.encode(self.salt.at(offset));
        self.sink.put(&bytes)?;
        Ok(FilterRoot {
            offset,
            bytes: u32::try_from(bytes.len()).expect("a filter of 4 GiB is out of reach"),
        })
    }
}

/// The records of the next block. Their bodies are copied only once, to the write buffer.
#[derive(Default)]
struct Block {
    members: Vec<Member>,
    heads: Vec<u8>,
    bytes: usize,
}

/// A record of a block, by its position in the plan.
struct Member {
    record: usize,
    /// Its offset among the block's records.
    at: u32,
    head_bytes: usize,
}

impl Block {
    /// Returns whether the block should be closed before `record` is added.
    fn is_full_before(&self, record: &Record, head_bytes: usize, records: &[Arc<Record>]) -> bool {
        let Some(last) = self.members.last() else {
            return false;
        };
        self.bytes + head_bytes + record.body().len() > BLOCK_RECORDS_BYTES
            || self.bytes >= BLOCK_OF_SESSIONS_BYTES
                && record_at(records, last.record).session != record.session
    }

    fn put(&mut self, record: usize, head: &[u8], body_bytes: usize) {
        let at = u32::try_from(self.bytes).expect("a block is small until its last record");
        self.members.push(Member {
            record,
            at,
            head_bytes: head.len(),
        });
        self.heads.extend_from_slice(head);
        self.bytes += head.len() + body_bytes;
    }

    /// Returns heads and bodies alternately, in the order of the file.
    fn parts<'a>(&'a self, records: &'a [Arc<Record>]) -> impl Iterator<Item = &'a [u8]> {
        let mut heads = self.heads.as_slice();
        self.members.iter().flat_map(move |member| {
            let (head, behind) = heads.split_at(member.head_bytes);
            heads = behind;
            [head, record_at(records, member.record).body()]
        })
    }

    fn clear(&mut self) {
        self.members.clear();
        self.heads.clear();
        self.bytes = 0;
    }
}

/// Returns the record's key in the key table, and its position; `None` if it is not keyed.
fn hash_of_key(record: &Record, at: usize) -> Option<([u8; 32], usize)> {
    let key = record.key.as_ref()?;
    let mut out = [0; 32];
    let (hash, id) = out.split_at_mut(16);
    hash.copy_from_slice(&key_hash(&record.session, &key.text));
    id.copy_from_slice(&record.base.to_u128().to_be_bytes());
    Some((out, at))
}

pub(crate) fn trailer_salt(store: StoreId, number: u64) -> Salt {
    Salt::new(store, *b"trlr", number)
}

/// Returns the positions of each session's records, in the order of sessions.
///
/// The records are given in commit order. So a session's records are in order already, and only the
/// sessions are sorted.
fn in_session_order(records: &[Arc<Record>]) -> impl Iterator<Item = Vec<usize>> {
    let mut sessions: HashMap<(&[u8], u32), Vec<usize>> = HashMap::new();
    for (at, record) in records.iter().enumerate() {
        sessions
            .entry((record.session.as_bytes(), record.generation))
            .or_default()
            .push(at);
    }
    let mut sessions: Vec<_> = sessions.into_iter().collect();
    sessions.sort_unstable_by_key(|(session, _)| *session);
    sessions.into_iter().map(|(_, members)| members)
}

fn record_at(records: &[Arc<Record>], at: usize) -> &Record {
    records.get(at).expect("positions come from the same list")
}

fn encoded(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    put(&mut out);
    out
}

/// A sink that turns parts of any length into large writes of whole blocks.
pub(super) struct BlockSink {
    file: Arc<dyn DiskFile>,
    written: u64,
    buf: BlockBuf,
}

impl Sink for BlockSink {
    fn offset(&self) -> u64 {
        self.written + self.buf.len() as u64
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.buf.len()));
            self.buf.extend(now);
            bytes = later;
            if self.buf.len() == WRITE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }
}

impl BlockSink {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self {
            file,
            written: 0,
            buf: BlockBuf::with_capacity(WRITE_BYTES),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all_at(self.buf.as_slice(), self.written)?;
        self.written += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }

    /// Writes the last block and makes the file durable.
    pub(super) fn finish(&mut self, trailer: &[u8]) -> Result<()> {
        const {
            assert!(
                WRITE_BYTES.is_multiple_of(BLOCK),
                "a full buffer is whole blocks"
            );
        };
        self.buf.extend(trailer);
        self.buf.pad_to_block();
        self.flush()?;
        self.file.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::EncodedBatch;
    use crate::disk::RealDisk;
    use crate::model::{Batch, EventId, NewEvent, SessionId, Stamp};
    use crate::segment::{BlockCache, Segment};

    const DATA_BYTES: usize = 1024;

    /// Returns records of one event, of `sessions` sessions with `each` records. The sessions
    /// alternate.
    fn records(sessions: u64, each: u64) -> Vec<Arc<Record>> {
        let in_turns = (1..=each).flat_map(|seq| (0..sessions).map(move |session| (session, seq)));
        let stamped = in_turns.enumerate().map(|(at, (session, seq))| {
            let session = SessionId::new(format!("{session:04}")).unwrap();
            let batch = Batch::new().event(NewEvent::new("note", vec![0; DATA_BYTES]));
            let stamp = Stamp {
                base: EventId::from_u128(1 + at as u128),
                created_ms: 0,
            };
            EncodedBatch::new(&session, batch).stamped(1, seq, stamp)
        });
        stamped.collect()
    }

    fn runs(records: Vec<Arc<Record>>) -> Vec<Run> {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::default());
        let store = StoreId::default();
        let plan = SegmentPlan {
            store,
            number: 1,
            start_lsn: 0,
            end_lsn: 1,
            records,
        };
        let info = write_segment::<Error>(&*disk, folder.path(), &plan, |_written| Ok(())).unwrap();
        let segment = Segment::new(
            info,
            store,
            folder.path(),
            disk,
            Arc::new(BlockCache::new(1 << 20)),
        );
        segment
            .runs()
            .unwrap()
            .map(|entry| entry.unwrap().1.run)
            .collect()
    }

    #[test]
    fn who_reads_a_short_session_reads_little_beside_it() {
        let runs = runs(records(50, 3));
        assert_eq!(runs.len(), 50, "no session is parted");
        let most = BLOCK_OF_SESSIONS_BYTES + 3 * (DATA_BYTES + 100);
        assert!(
            runs.iter()
                .all(|run| (run.address.block_bytes as usize) < most),
            "{runs:?}"
        );
    }

    #[test]
    fn a_long_session_lies_in_blocks_that_are_worth_a_read() {
        let runs = runs(records(2, 200));
        let most = BLOCK_RECORDS_BYTES + DATA_BYTES;
        assert!(
            runs.iter()
                .all(|run| (run.address.block_bytes as usize) < most),
            "{runs:?}"
        );
        assert_eq!(runs.len(), 8, "200 records of 1 KiB take four blocks");
    }
}
