//! Writes a segment: records in session order, then the filter, the tables and the trailer. The
//! file gets its name after all of it is durable.
//!
//! The writer is given records one by one, in the order of sessions, generations and seqs, and the
//! state of each session behind its records. In memory it keeps the records of one block, a filter
//! with two bytes for each session and key, and a bounded part of the tables' entries.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{
    BlockCompressor, BlockHeader, Coding, FORMAT_VERSION, Record, Salt, SegmentHeader,
    SessionState, StoreId, TRAILER, encode_value, put_varint,
};
use crate::disk::{BLOCK, Disk, DiskFile, Mode, write_whole};
use crate::model::{Compression, Error, EventId, Result, Seq, SessionId};
use crate::segment::filter::FilterBuilder;
use crate::segment::sink::{BlockSink, Sink};
use crate::segment::spool::{Spools, Table};
use crate::segment::table::write_table;
use crate::segment::{
    self, Address, DirectoryRoots, FilterRoot, ItemHash, Run, RunEntry, RunTail, SegmentInfo,
    fork_key, key_hash, run_key, session_hash,
};

/// A block is closed before its records exceed this size, in bytes. A single larger record is a
/// block of its own.
const BLOCK_RECORDS_BYTES: usize = 64 * 1024;

/// A block of this size, in bytes, is closed at the end of a session's records. A block is read
/// whole, so a reader of one session reads the others in the block for nothing. A smaller block
/// compresses worse, because what its sessions have in common is repeated in the next one.
const BLOCK_OF_SESSIONS_BYTES: usize = 16 * 1024;

/// The end of the name of the file for entries of tables that exceed the memory.
const SPOOLED: &str = "tables.tmp";

/// The properties of a segment, apart from its records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentSpec {
    pub store: StoreId,
    pub number: u64,
    pub tier: u8,
    pub start_lsn: u64,
    pub end_lsn: u64,
    /// The range of IDs that the segment covers. It may have fewer, as records are dropped.
    pub first_id: EventId,
    pub last_id: EventId,
    pub compression: Compression,
    /// The most sessions and keys that it will hold.
    pub items_max: u64,
    /// The memory for entries of tables, in bytes. The rest goes to a file.
    pub table_bytes_max: usize,
}

/// Writes a segment and makes it durable. `fill` passes it the records.
///
/// A failure, of `fill` too, leaves no segment, and the caller may try again.
pub(crate) fn write_segment<E: From<Error>>(
    disk: &dyn Disk,
    folder: &Path,
    spec: SegmentSpec,
    fill: impl FnOnce(&mut SegmentWriter<'_>) -> Result<(), E>,
) -> Result<SegmentInfo, E> {
    write_whole(disk, &segment::path(folder, spec.number), |unfinished| {
        let spools = Spools::new(
            disk,
            unfinished.with_extension(SPOOLED),
            spec.table_bytes_max,
        );
        let mut writer =
            SegmentWriter::new(disk.open(unfinished, Mode::WriteBlocks)?, spools, spec)?;
        fill(&mut writer)?;
        Ok(writer.finish()?)
    })
}

/// Writes one segment.
pub(crate) struct SegmentWriter<'a> {
    spec: SegmentSpec,
    sink: BlockSink,
    salt: Salt,
    /// `None` if all blocks are stored plain.
    compressor: Option<BlockCompressor>,
    block: Block,
    /// The last run, and its session. It is not spooled yet, since it may grow, or be the last of
    /// its session.
    run: Option<(SessionId, RunEntry)>,
    filter: FilterBuilder,
    spools: Spools<'a>,
    records: u64,
    events: u64,
    body_bytes: u64,
    dropped: u64,
    deletions: u64,
}

impl<'a> SegmentWriter<'a> {
    fn new(file: Arc<dyn DiskFile>, spools: Spools<'a>, spec: SegmentSpec) -> Result<Self> {
        let mut sink = BlockSink::new(file);
        let SegmentSpec {
            store,
            number,
            start_lsn,
            end_lsn,
            ..
        } = spec;
        sink.put(
            &SegmentHeader {
                store,
                number,
                start_lsn,
                end_lsn,
            }
            .encode(),
        )?;
        sink.pad_to_block();
        Ok(Self {
            spec,
            sink,
            salt: segment::salt(store, number),
            compressor: match spec.compression {
                Compression::Lz4 => Some(BlockCompressor::new()),
                Compression::None => None,
            },
            block: Block::default(),
            run: None,
            filter: FilterBuilder::new(spec.items_max),
            spools,
            records: 0,
            events: 0,
            body_bytes: 0,
            dropped: 0,
            deletions: 0,
        })
    }

    /// Adds a record. It comes after all records of its session so far.
    pub(crate) fn put(&mut self, record: &Record) -> Result<()> {
        if self.block.is_full_before(record) {
            self.write_block()?;
        }
        self.block.put(record);
        self.records += 1;
        self.events += u64::from(record.count);
        self.deletions += u64::from(record.deletes());
        self.body_bytes += record.body().len() as u64;
        Ok(())
    }

    /// Ends a session, of which there may be no record, with its state as of the segment's end.
    pub(crate) fn end_session(&mut self, session: &SessionId, state: &SessionState) -> Result<()> {
        self.filter.insert(session_hash(session.as_bytes()));
        if state.is_there() {
            let name = session.as_bytes();
            let key = |id: EventId| id.to_u128().to_be_bytes();
            let ids = self.spec.first_id..=self.spec.last_id;
            // A walk goes through one segment after the other, so each lists its own positions
            // alone. What a change left as it was is listed where it was reached.
            if ids.contains(&state.active_id) {
                self.spools
                    .push(Table::Activity, &key(state.active_id), name)?;
            }
            if ids.contains(&state.created_id) {
                self.spools
                    .push(Table::Creation, &key(state.created_id), name)?;
                for piece in state.pieces() {
                    let key = fork_key(&piece.session, piece.generation, session);
                    self.spools.push(Table::Forks, &key, &[])?;
                }
            }
        }
        let mut encoded = Vec::with_capacity(48);
        state.put(&mut encoded);
        self.block.members.push(Member::End {
            session: session.clone(),
            generation: state.generation,
            next: state.last + 1,
            state: encoded.into(),
        });
        Ok(())
    }

    /// Counts records that are left out because they were removed.
    pub(crate) fn note_dropped(&mut self, records: u64) {
        self.dropped += records;
    }

    /// Returns the number of bytes written to the file so far.
    pub(crate) fn written(&self) -> u64 {
        self.sink.written()
    }

    /// Writes the last block, the filter, the tables and the trailer.
    fn finish(mut self) -> Result<SegmentInfo> {
        self.write_block()?;
        let filter = self.write_filter()?;
        let (sink, spools, salt) = (&mut self.sink, &mut self.spools, self.salt);
        let has_keys = !spools.is_empty(Table::Keys);
        let mut table = |table| write_table(sink, salt, spools.take(table)?);
        let runs = table(Table::Runs)?;
        let ids = table(Table::Ids)?;
        let keys = has_keys.then(|| table(Table::Keys)).transpose()?;
        let directory = DirectoryRoots {
            activity: table(Table::Activity)?,
            creation: table(Table::Creation)?,
            forks: table(Table::Forks)?,
            blocks: table(Table::Blocks)?,
        };
        self.sink.pad_to_block();
        let spec = self.spec;
        let info = SegmentInfo {
            number: spec.number,
            format: FORMAT_VERSION,
            tier: spec.tier,
            start_lsn: spec.start_lsn,
            end_lsn: spec.end_lsn,
            first_id: spec.first_id.to_u128(),
            last_id: spec.last_id.to_u128(),
            file_bytes: self.sink.offset() + BLOCK as u64,
            records: self.records,
            events: self.events,
            body_bytes: self.body_bytes,
            runs,
            ids,
            keys,
            filter,
            dropped: self.dropped,
            deletions: self.deletions,
            directory: Some(directory),
        };
        self.sink.finish(&encode_value(
            TRAILER,
            trailer_salt(spec.store, spec.number),
            &info,
        ))?;
        Ok(info)
    }

    /// Writes the block, unless it has no record, and notes what is where.
    fn write_block(&mut self) -> Result<()> {
        let block_offset = self.sink.offset();
        let mut block = std::mem::take(&mut self.block);
        if block.records > 0 {
            let salt = self.salt.at(block_offset);
            let mut header = BlockHeader {
                record_bytes: u32::try_from(block.bytes).expect("the caps on a batch fit 32 bits"),
                records: block.records,
                coding: Coding::Plain,
            };
            let compressed = self
                .compressor
                .as_mut()
                .and_then(|compressor| compressor.compress(block.bytes, block.parts()));
            if let Some(compressed) = compressed {
                header.coding = Coding::Lz4;
                self.sink.put(&header.encode(salt, [compressed]))?;
                self.sink.put(compressed)?;
            } else {
                self.sink.put(&header.encode(salt, block.parts()))?;
                block.parts().try_for_each(|part| self.sink.put(part))?;
            }
        }
        let block_bytes = u32::try_from(self.sink.offset() - block_offset)
            .expect("the caps on a batch fit 32 bits");
        if block.records > 0 {
            let mut length = Vec::with_capacity(5);
            put_varint(&mut length, block_bytes.into());
            self.spools
                .push(Table::Blocks, &block_offset.to_be_bytes(), &length)?;
        }
        let nowhere = Address {
            block_offset,
            block_bytes,
            at: 0,
        };
        for member in block.members.drain(..) {
            match member {
                Member::Record(record) => self.note_record(&record, nowhere)?,
                Member::End {
                    session,
                    generation,
                    next,
                    state,
                } => self.note_end(&session, (generation, next), state, nowhere)?,
            }
        }
        block.clear();
        self.block = block;
        Ok(())
    }

    /// Enters a record in the tables, and makes it part of the run before it or begins a run.
    fn note_record(&mut self, record: &PlacedRecord, block: Address) -> Result<()> {
        let address = Address {
            at: record.at,
            ..block
        };
        let mut encoded = Vec::with_capacity(16);
        address.put(&mut encoded);
        let id = record.base.to_u128().to_be_bytes();
        self.spools.push(Table::Ids, &id, &encoded)?;
        if let Some(hash) = record.key {
            self.filter.insert(hash);
            let mut key = [0; 32];
            let (to_hash, to_id) = key.split_at_mut(16);
            to_hash.copy_from_slice(&hash);
            to_id.copy_from_slice(&id);
            self.spools.push(Table::Keys, &key, &encoded)?;
        }
        if record.count == 0 {
            return Ok(());
        }
        if let Some((session, RunEntry { run, .. })) = &mut self.run {
            let is_here = run.address.block_offset == address.block_offset;
            let continues = run.generation == record.generation && run.last() + 1 == record.first;
            if is_here && continues && *session == record.session {
                run.events += record.count;
                return Ok(());
            }
        }
        let run = Run {
            generation: record.generation,
            first: record.first,
            events: record.count,
            address,
        };
        self.begin_run(&record.session, run)
    }

    /// Gives the last run of a session its state. A session without a run gets one without events.
    fn note_end(
        &mut self,
        session: &SessionId,
        (generation, next): (u32, Seq),
        state: Bytes,
        nowhere: Address,
    ) -> Result<()> {
        if self.run.as_ref().is_none_or(|(last, _)| last != session) {
            let run = Run {
                generation,
                first: next,
                events: 0,
                address: nowhere,
            };
            self.begin_run(session, run)?;
        }
        if let Some((_, entry)) = &mut self.run {
            entry.tail = RunTail::State(state);
        }
        self.spool_run()
    }

    fn begin_run(&mut self, session: &SessionId, run: Run) -> Result<()> {
        self.spool_run()?;
        let tail = RunTail::None;
        self.run = Some((session.detached(), RunEntry { run, tail }));
        Ok(())
    }

    fn spool_run(&mut self) -> Result<()> {
        if let Some((session, entry)) = self.run.take() {
            let key = run_key(&session, entry.run.generation, entry.run.first);
            let mut value = Vec::with_capacity(64);
            entry.put(&mut value);
            self.spools.push(Table::Runs, &key, &value)?;
        }
        Ok(())
    }

    fn write_filter(&mut self) -> Result<FilterRoot> {
        let offset = self.sink.offset();
        self.filter.write(self.salt.at(offset), &mut self.sink)?;
        let bytes = self.sink.offset() - offset;
        Ok(FilterRoot {
            offset,
            bytes: u32::try_from(bytes).expect("a filter of 4 GiB is out of reach"),
        })
    }
}

/// The records of the next block. Their bodies are copied only once, to the write buffer.
#[derive(Default)]
struct Block {
    members: Vec<Member>,
    heads: Vec<u8>,
    bytes: usize,
    records: u32,
    /// For encoding a head.
    head: Vec<u8>,
}

enum Member {
    Record(PlacedRecord),
    /// The end of a session, with its encoded state.
    End {
        session: SessionId,
        generation: u32,
        next: Seq,
        state: Bytes,
    },
}

/// A record of a block, with what the tables say of it.
struct PlacedRecord {
    session: SessionId,
    generation: u32,
    first: Seq,
    count: u32,
    base: EventId,
    key: Option<ItemHash>,
    /// Its offset among the block's records.
    at: u32,
    head_bytes: usize,
    body: Bytes,
}

impl Block {
    /// Returns whether the block should be closed before `record` is added.
    fn is_full_before(&self, record: &Record) -> bool {
        if self.records == 0 {
            return false;
        }
        let continues = match self.members.last() {
            Some(Member::Record(last)) => last.session == record.session,
            Some(Member::End { session, .. }) => *session == record.session,
            None => false,
        };
        self.bytes + record.stored_bytes_max() > BLOCK_RECORDS_BYTES
            || self.bytes >= BLOCK_OF_SESSIONS_BYTES && !continues
    }

    fn put(&mut self, record: &Record) {
        record.put_head(&mut self.head);
        let at = u32::try_from(self.bytes).expect("a block is small until its last record");
        self.members.push(Member::Record(PlacedRecord {
            session: record.session.clone(),
            generation: record.generation,
            first: record.first,
            count: record.count,
            base: record.base,
            key: record
                .key
                .as_ref()
                .map(|key| key_hash(&record.session, &key.text)),
            at,
            head_bytes: self.head.len(),
            body: record.body().clone(),
        }));
        self.heads.extend_from_slice(&self.head);
        self.bytes += self.head.len() + record.body().len();
        self.records += 1;
    }

    /// Returns heads and bodies alternately, in the order of the file.
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut heads = self.heads.as_slice();
        let records = self.members.iter().filter_map(|member| match member {
            Member::Record(record) => Some(record),
            Member::End { .. } => None,
        });
        records.flat_map(move |record| {
            let (head, behind) = heads.split_at(record.head_bytes);
            heads = behind;
            [head, &*record.body]
        })
    }

    fn clear(&mut self) {
        self.members.clear();
        self.heads.clear();
        (self.bytes, self.records) = (0, 0);
    }
}

pub(crate) fn trailer_salt(store: StoreId, number: u64) -> Salt {
    Salt::new(store, *b"trlr", number)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::codec::EncodedBatch;
    use crate::disk::RealDisk;
    use crate::model::{Batch, Compression, EventId, NewEvent, SessionId, Stamp};
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

    /// Writes a segment of these records, which are all that their sessions have so far, or follow
    /// what segments before it have.
    pub(in crate::segment) fn write_records(
        folder: &Path,
        number: u64,
        mut records: Vec<Arc<Record>>,
        compression: Compression,
    ) -> SegmentInfo {
        let spec = SegmentSpec {
            store: StoreId::default(),
            number,
            tier: 0,
            start_lsn: number - 1,
            end_lsn: number,
            first_id: records.first().unwrap().base,
            last_id: records.last().unwrap().last_id(),
            compression,
            items_max: records.len() as u64,
            table_bytes_max: 4_096,
        };
        records.sort_by(|a, b| a.session.cmp(&b.session));
        write_segment::<Error>(&RealDisk::default(), folder, spec, |out| {
            for of_session in records.chunk_by(|a, b| a.session == b.session) {
                let mut state = SessionState::default();
                for record in of_session {
                    state.apply(record);
                    out.put(record)?;
                }
                out.end_session(&of_session[0].session, &state)?;
            }
            Ok(())
        })
        .unwrap()
    }

    /// Writes a segment in a folder of its own.
    struct Scene {
        folder: tempfile::TempDir,
        info: SegmentInfo,
    }

    impl Scene {
        fn new(records: Vec<Arc<Record>>, compression: Compression) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let info = write_records(folder.path(), 1, records, compression);
            Self { folder, info }
        }

        /// Returns the segment with nothing cached.
        fn segment(&self) -> Segment {
            Segment::new(
                self.info.clone(),
                StoreId::default(),
                self.folder.path(),
                Arc::new(RealDisk::default()),
                Arc::new(BlockCache::new(1 << 20)),
            )
        }

        fn bodies(&self) -> Result<Vec<Vec<u8>>> {
            let segment = self.segment();
            let records = segment.records_from(EventId::from_u128(0))?;
            records
                .map(|record| record.map(|record| record.body().to_vec()))
                .collect()
        }
    }

    fn runs(records: Vec<Arc<Record>>) -> Vec<Run> {
        let scene = Scene::new(records, Compression::None);
        scene
            .segment()
            .runs()
            .unwrap()
            .map(|entry| entry.unwrap().1.run)
            .collect()
    }

    #[test]
    fn a_compressed_segment_is_smaller_and_reads_the_same() {
        let records = records(20, 40);
        let bodies: Vec<Vec<u8>> = records
            .iter()
            .map(|record| record.body().to_vec())
            .collect();
        let [plain, compressed] = [Compression::None, Compression::Lz4].map(|compression| {
            let scene = Scene::new(records.clone(), compression);
            assert_eq!(scene.bodies().unwrap(), bodies);
            scene.info.file_bytes
        });
        assert!(compressed < plain / 4, "{compressed} and {plain} bytes");
    }

    #[test]
    fn a_flipped_byte_of_a_compressed_block_is_corruption() {
        let scene = Scene::new(records(1, 2), Compression::Lz4);
        let path = segment::path(scene.folder.path(), 1);
        let whole = std::fs::read(&path).unwrap();
        let (from, to) = (BLOCK, usize::try_from(scene.info.filter.offset).unwrap());
        assert!(to - from < DATA_BYTES, "one small block");
        for at in from..to {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            std::fs::write(&path, flipped).unwrap();
            let read = scene.bodies();
            assert!(
                matches!(read, Err(Error::Corrupt { .. })),
                "byte {at}: {read:?}"
            );
        }
        std::fs::write(&path, whole).unwrap();
        assert_eq!(scene.bodies().unwrap().len(), 2);
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
