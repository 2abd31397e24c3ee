//! Reads one segment through the cache. Every part is checked when it is read from the disk.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{
    BLOCK_HEADER_BYTES, BlockHeader, ByteReader, Decoded, Fault, RawRecord, Record, RecordFrame,
    Salt, SegmentHeader, SessionState, StoreId, TRAILER, open_value,
};
use crate::disk::{BLOCK, Disk, DiskFile};
use crate::model::{Error, EventId, Result, Seq, SessionId};
use crate::segment::parts::Parts;
use crate::segment::table::{PageAddress, Pages, TableIter, admit_page};
use crate::segment::write::trailer_salt;
use crate::segment::{
    self, Address, BlockCache, ItemHash, Run, RunEntry, SegmentInfo, SegmentInfoV1, filter,
    fork_prefix, run_key, session_hash, split_run_key,
};

/// A segment of the store.
pub(crate) struct Segment {
    pub info: SegmentInfo,
    store: StoreId,
    pub(super) parts: Parts,
}

impl Segment {
    pub(crate) fn new(
        info: SegmentInfo,
        store: StoreId,
        folder: &Path,
        disk: Arc<dyn Disk>,
        cache: Arc<BlockCache>,
    ) -> Self {
        let (path, salt) = (
            segment::path(folder, info.number),
            segment::salt(store, info.number),
        );
        let parts = Parts {
            key: cache.new_key(),
            path,
            file_bytes: info.file_bytes,
            salt,
            disk,
            cache,
            pinned: None,
        };
        Self { info, store, parts }
    }

    /// Keeps the file open, so that the segment stays readable when a writer beside removes it.
    pub(crate) fn pin(&mut self) -> Result<()> {
        self.parts.pin()
    }

    /// Closes the file, which will be removed.
    pub(crate) fn close_file(&self) {
        self.parts.close();
    }

    pub(crate) fn path(&self) -> &Path {
        &self.parts.path
    }

    /// Returns the error for a record of this segment whose events do not decode.
    pub(crate) fn fault_in_records(&self, fault: Fault) -> Error {
        fault.at(self.path(), 0)
    }

    /// Returns the last run of `session` that begins at or before `seq` of `generation`.
    pub(crate) fn floor_run(
        &self,
        session: &SessionId,
        generation: u32,
        seq: Seq,
    ) -> Result<Option<RunEntry>> {
        let found = self
            .info
            .runs
            .floor(self, &run_key(session, generation, seq))?;
        let Some((key, value)) = found else {
            return Ok(None);
        };
        match split_run_key(&key) {
            Some((name, generation, first)) if name == session.as_bytes() => {
                RunEntry::read(self.info.format, generation, first, &value)
                    .map(Some)
                    .map_err(|fault| fault.at(self.path(), 0))
            }
            _ => Ok(None),
        }
    }

    /// Returns whether the segment may hold a session or an idempotency key. Never `false` if it
    /// does.
    pub(crate) fn may_hold(&self, item: ItemHash) -> Result<bool> {
        Ok(filter::may_hold(&self.filter()?, item))
    }

    /// Returns an upper bound of the number of items in the filter.
    pub(crate) fn filter_items(&self) -> u64 {
        filter::items_in(self.info.filter.bytes.into())
    }

    /// Appends the sessions that share events with a generation of this one, and that were forked
    /// within the segment.
    pub(super) fn collect_forks(
        &self,
        ancestor: &SessionId,
        generation: u32,
        forks: &mut Vec<SessionId>,
    ) -> Result<()> {
        let Some(directory) = &self.info.directory else {
            return Ok(());
        };
        let prefix = fork_prefix(ancestor, generation);
        for entry in directory.forks.iter_from(self, &prefix)? {
            let (key, _) = entry?;
            let Some(fork) = key.strip_prefix(&*prefix) else {
                break;
            };
            let fork = SessionId::from_stored(fork, &key);
            forks.push(fork.map_err(|_error| self.impossible("fork"))?);
        }
        Ok(())
    }

    /// Returns the record that holds the event with this ID.
    pub(crate) fn record_of(&self, id: EventId) -> Result<Option<Record>> {
        let Some((_, address)) = self.info.ids.floor(self, &id.to_u128().to_be_bytes())? else {
            return Ok(None);
        };
        let record = self.record_at(self.address(&address)?)?;
        Ok(record.seq_of(id).is_some().then_some(record))
    }

    /// Returns the newest record appended under an idempotency key in this generation of the
    /// session. An older one may be here too, whose events were trimmed and which forks keep.
    ///
    /// The caller passes the key's hash too.
    pub(crate) fn record_of_key(
        &self,
        session: &SessionId,
        generation: u32,
        (key, hash): (&str, ItemHash),
    ) -> Result<Option<Record>> {
        let Some(keys) = &self.info.keys else {
            return Ok(None);
        };
        // Entries of one key are in the order of their records.
        let mut addresses = Vec::new();
        for entry in keys.iter_from(self, &hash)? {
            let (found, address) = entry?;
            if !found.starts_with(&hash) {
                break;
            }
            addresses.push(address);
        }
        for address in addresses.iter().rev() {
            let record = self.record_at(self.address(address)?)?;
            let same_key = record.key.as_ref().is_some_and(|stored| stored.text == key);
            if same_key && record.session == *session && record.generation == generation {
                record
                    .check_events()
                    .map_err(|fault| fault.at(self.path(), 0))?;
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Returns the records in commit order, from the one that may hold `id` on.
    pub(crate) fn records_from(&self, id: EventId) -> Result<impl Iterator<Item = Result<Record>>> {
        let from = self
            .info
            .ids
            .floor(self, &id.to_u128().to_be_bytes())?
            .map(|(key, _)| key)
            .unwrap_or_default();
        let ids = self.info.ids.iter_from(self, &from)?;
        Ok(ids.map(|entry| entry.and_then(|(_, address)| self.record_at(self.address(&address)?))))
    }

    /// Returns the ID of the first event of a run.
    pub(super) fn first_id_of(&self, session: &SessionId, run: &Run) -> Result<EventId> {
        let first = self
            .run_records(session, run, &(run.first..=run.first))?
            .next();
        let first = first.transpose()?;
        first
            .map(|record| record.base)
            .ok_or_else(|| self.impossible("run"))
    }

    /// Returns the number of a session's events before a generation and a seq in it. Returns `None`
    /// if the segment has nothing of the session before that.
    pub(crate) fn events_before(
        &self,
        session: &SessionId,
        (generation, seq): (u32, Seq),
    ) -> Result<Option<u64>> {
        if !self.may_hold(session_hash(session.as_bytes()))? {
            return Ok(None);
        }
        let mut events = None;
        for entry in self.info.runs.iter_from(self, &run_key(session, 0, 0))? {
            let (key, value) = entry?;
            let Some((name, of, first)) = split_run_key(&key) else {
                return Err(self.impossible("run"));
            };
            if name != session.as_bytes() || (of, first) >= (generation, seq) {
                break;
            }
            let run = RunEntry::read(self.info.format, of, first, &value)
                .map_err(|fault| fault.at(self.path(), 0))?
                .run;
            let before = if of == generation {
                u64::from(run.events).min(seq - first)
            } else {
                run.events.into()
            };
            *events.get_or_insert(0) += before;
        }
        Ok(events)
    }

    /// Returns all runs with their keys, in order.
    pub(crate) fn runs(&self) -> Result<impl Iterator<Item = Result<(Bytes, RunEntry)>>> {
        let runs: TableIter<'_, Self> = self.info.runs.iter_from(self, &[])?;
        Ok(runs.map(|entry| {
            let (key, value) = entry?;
            let (_, generation, first) =
                split_run_key(&key).ok_or_else(|| self.impossible("run"))?;
            let run = RunEntry::read(self.info.format, generation, first, &value)
                .map_err(|fault| fault.at(self.path(), 0))?;
            Ok((key, run))
        }))
    }

    /// Returns the runs of a generation of a session, in order.
    pub(crate) fn runs_of(&self, session: &SessionId, generation: u32) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for entry in self
            .info
            .runs
            .iter_from(self, &run_key(session, generation, 0))?
        {
            let (key, value) = entry?;
            let Some((name, of, first)) = split_run_key(&key) else {
                return Err(self.impossible("run"));
            };
            if name != session.as_bytes() || of != generation {
                break;
            }
            let entry = RunEntry::read(self.info.format, of, first, &value)
                .map_err(|fault| fault.at(self.path(), 0))?;
            runs.push(entry.run);
        }
        Ok(runs)
    }

    /// Returns the records of a run that overlap the seqs, in order.
    ///
    /// The iterator decodes them on demand. A run that does not match its entry is damage.
    pub(crate) fn run_records<'a>(
        &'a self,
        session: &'a SessionId,
        run: &Run,
        seqs: &RangeInclusive<Seq>,
    ) -> Result<RunRecords<'a>> {
        let block = self.block(run.address)?;
        let at = BLOCK_HEADER_BYTES + run.address.at as usize;
        let (from, to) = (*seqs.start(), run.last().min(*seqs.end()));
        Ok(RunRecords {
            segment: self,
            session,
            run: *run,
            block,
            at,
            next: run.first,
            from,
            to,
        })
    }

    /// Whether the block with a run's first records is cached.
    pub(crate) fn is_cached(&self, run: &Run) -> bool {
        self.parts.is_cached(run.address.block_offset)
    }

    /// Lets the disk prefetch the block of a run that will be read soon.
    pub(crate) fn prefetch(&self, run: &Run) {
        let Address {
            block_offset,
            block_bytes,
            ..
        } = run.address;
        if self.parts.has(block_offset, block_bytes)
            && !self.is_cached(run)
            // The read itself reports a file that cannot be opened.
            && let Ok(file) = self.file()
        {
            file.will_read(block_offset, block_bytes.into());
        }
    }

    /// Returns the record at a place.
    pub(crate) fn record_at(&self, address: Address) -> Result<Record> {
        let block = self.block(address)?;
        let at = BLOCK_HEADER_BYTES + address.at as usize;
        Record::decode(&block, at).map_err(|fault| fault.at(self.path(), address.block_offset))
    }

    fn address(&self, value: &[u8]) -> Result<Address> {
        Address::read(&mut ByteReader::new(value)).map_err(|fault| fault.at(self.path(), 0))
    }

    /// Returns the header of a block, followed by its records as they were before compression.
    fn block(&self, address: Address) -> Result<Bytes> {
        self.part(address.block_offset, address.block_bytes, admit_block)
    }

    /// Decodes the state in the entry of a run.
    pub(crate) fn decode_state(&self, state: &[u8]) -> Result<SessionState> {
        SessionState::decode(state).map_err(|fault| fault.at(self.path(), 0))
    }

    /// Returns the error for a table entry that this version would not have written.
    pub(crate) fn impossible(&self, what: &str) -> Error {
        Error::corrupt(self.path(), 0, format!("an impossible {what}"))
    }

    fn filter(&self) -> Result<Bytes> {
        self.part(
            self.info.filter.offset,
            self.info.filter.bytes,
            |salt, filter| filter::check(salt, filter),
        )
    }

    /// Returns a part of the file. On a cache miss it is read, and `admit` checks it.
    fn part(
        &self,
        offset: u64,
        bytes: u32,
        admit: impl FnOnce(Salt, &mut Vec<u8>) -> Decoded<()>,
    ) -> Result<Bytes> {
        self.parts.part(offset, bytes, || self.file(), admit)
    }

    pub(super) fn file(&self) -> Result<Arc<dyn DiskFile>> {
        self.parts.file(|file| {
            if read_info(file, self.info.number, self.info.file_bytes, self.store)? == self.info {
                return Ok(());
            }
            Err(Error::corrupt(
                self.path(),
                0,
                "not the segment that the manifest names",
            ))
        })
    }
}

impl Pages for Segment {
    fn page(&self, address: PageAddress) -> Result<Bytes> {
        self.part(address.offset, address.bytes, admit_page)
    }

    fn fault(&self, address: PageAddress, fault: Fault) -> Error {
        fault.at(self.path(), address.offset)
    }
}

/// Checks a block as it is read, and leaves its header and its plain records.
pub(super) fn admit_block(salt: Salt, bytes: &mut Vec<u8>) -> Decoded<()> {
    let header = BlockHeader::decode(salt, bytes)?;
    header.decompress(bytes)?;
    check_bodies(header, bytes)
}

/// Checks each record's body against the checksum made on its caller's thread.
fn check_bodies(header: BlockHeader, block: &[u8]) -> Decoded<()> {
    let mut at = BLOCK_HEADER_BYTES;
    for _ in 0..header.records {
        let record = RawRecord::split(block, at)?;
        if !record.body_matches() {
            return Err(Fault::Damaged {
                at,
                what: "the body of a record does not match its checksum",
            });
        }
        at = record.end;
    }
    if at == block.len() {
        Ok(())
    } else {
        Err(Fault::Damaged {
            at,
            what: "bytes behind the last record",
        })
    }
}

/// The records of a run, in order.
pub(crate) struct RunRecords<'a> {
    segment: &'a Segment,
    session: &'a SessionId,
    run: Run,
    block: Bytes,
    at: usize,
    next: Seq,
    /// Records that end before this are skipped.
    from: Seq,
    /// Records that begin after this are not decoded.
    to: Seq,
}

impl RunRecords<'_> {
    fn fault(&self, fault: Fault) -> Error {
        fault.at(self.segment.path(), self.run.address.block_offset)
    }

    /// Decodes the next record; `None` if it is skipped.
    fn record(&mut self) -> Result<Option<Record>> {
        let frame = RecordFrame::decode(&self.block, self.at).map_err(|fault| self.fault(fault))?;
        let expected = frame.session == self.session.as_bytes()
            && frame.generation() == self.run.generation
            && frame.first() == self.next
            && frame.last() <= self.run.last();
        if !expected {
            return Err(self.fault(Fault::Damaged {
                at: self.at,
                what: "a record that is not of its run",
            }));
        }
        (self.at, self.next) = (frame.end(), frame.last() + 1);
        if self.next <= self.from {
            return Ok(None);
        }
        frame
            .record(self.session.clone(), &self.block)
            .map(Some)
            .map_err(|fault| self.fault(fault))
    }
}

impl Iterator for RunRecords<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next <= self.to {
            let record = self.record();
            if record.is_err() {
                self.next = Seq::MAX;
            }
            if let Some(record) = record.transpose() {
                return Some(record);
            }
        }
        None
    }
}

fn decode_trailer(store: StoreId, number: u64, block: &[u8]) -> Decoded<SegmentInfo> {
    let value = open_value(TRAILER, trailer_salt(store, number), block)?;
    if value.version == 1 {
        value.decode::<SegmentInfoV1>().map(SegmentInfo::from)
    } else {
        value.decode()
    }
}

/// Reads a segment's header and trailer, which must agree.
pub(crate) fn read_info(
    file: &dyn DiskFile,
    number: u64,
    file_bytes: u64,
    store: StoreId,
) -> Result<SegmentInfo> {
    let path = file.path();
    if file_bytes < 2 * BLOCK as u64 {
        return Err(Error::corrupt(path, 0, "too short for a segment"));
    }
    let mut block = vec![0; BLOCK];
    file.read_exact_at(&mut block, 0)?;
    let header = SegmentHeader::decode(&block).map_err(|fault| fault.at(path, 0))?;
    let trailer_at = file_bytes - BLOCK as u64;
    file.read_exact_at(&mut block, trailer_at)?;
    let info = decode_trailer(store, number, &block).map_err(|fault| fault.at(path, trailer_at))?;
    let said = (
        header.store,
        header.number,
        header.start_lsn,
        header.end_lsn,
    );
    if said != (store, number, info.start_lsn, info.end_lsn)
        || info.number != number
        || info.file_bytes != file_bytes
    {
        return Err(Error::corrupt(
            path,
            trailer_at,
            "header and trailer do not agree",
        ));
    }
    Ok(info)
}
