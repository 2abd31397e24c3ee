//! Reads one segment through the cache. Every part is checked when it is read from the disk.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::codec::{
    BLOCK_HEADER_BYTES, BlockHeader, ByteReader, Decoded, Fault, RawRecord, Record, RecordFrame,
    Salt, SegmentHeader, StoreId, TRAILER, decode_value,
};
use crate::disk::{BLOCK, Disk, DiskFile};
use crate::model::{Error, EventId, Result, Seq, SessionId};
use crate::segment::cache::FileKey;
use crate::segment::filter::FilterBuilder;
use crate::segment::parts::Parts;
use crate::segment::table::{PageAddress, Pages, TableIter, admit_page};
use crate::segment::write::trailer_salt;
use crate::segment::{
    self, Address, BlockCache, ItemHash, Run, RunEntry, SegmentInfo, filter, run_key, session_hash,
    session_key, split_run_key,
};

/// A segment of the store.
pub(crate) struct Segment {
    pub info: SegmentInfo,
    store: StoreId,
    parts: Parts,
    filter_identity: OnceLock<[u8; 8]>,
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
            key: FileKey::Segment(info.number),
            path,
            file_bytes: info.file_bytes,
            salt,
            disk,
            cache,
        };
        Self {
            info,
            store,
            parts,
            filter_identity: OnceLock::new(),
        }
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
                RunEntry::read(generation, first, &value)
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
    pub(super) fn filter_items(&self) -> u64 {
        filter::items_in(self.info.filter.bytes.into())
    }

    /// Returns the bytes that identify this filter: its size and the checksum of its words.
    ///
    /// The words are not checked against the checksum. The bytes are read once.
    pub(super) fn filter_identity(&self) -> Result<[u8; 8]> {
        if let Some(identity) = self.filter_identity.get() {
            return Ok(*identity);
        }
        let mut identity = [0; 8];
        self.file()?
            .read_exact_at(&mut identity, self.info.filter.offset)?;
        Ok(*self.filter_identity.get_or_init(|| identity))
    }

    /// Calls `visit` with every item in the filter.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if a filter of the tables' items differs from the segment's. Errors of
    /// reads and of `visit` are passed on.
    pub(super) fn for_each_item<E: From<Error>>(
        &self,
        mut visit: impl FnMut(ItemHash) -> Result<(), E>,
    ) -> Result<(), E> {
        let filter = self.filter()?;
        let mut again = FilterBuilder::as_large_as(&filter);
        for item in self.items()? {
            let item = item?;
            again.insert(item);
            visit(item)?;
        }
        let is_same = again.encode(self.parts.salt.at(self.info.filter.offset)) == filter;
        if is_same {
            Ok(())
        } else {
            Err(self.impossible("filter").into())
        }
    }

    fn items(&self) -> Result<impl Iterator<Item = Result<ItemHash>>> {
        let mut session = Bytes::new();
        let sessions = self.runs()?.filter_map(move |run| {
            let begun = run.and_then(|(key, _)| {
                let (name, ..) = split_run_key(&key).ok_or_else(|| self.impossible("run"))?;
                let is_next = name != session;
                session = key.slice(..name.len());
                Ok(is_next.then(|| session_hash(&session)))
            });
            begun.transpose()
        });
        let keys = self.info.keys.iter().map(|keys| keys.iter_from(self, &[]));
        let keys = keys
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .map(|entry| {
                let (key, _) = entry?;
                key.first_chunk()
                    .copied()
                    .ok_or_else(|| self.impossible("key"))
            });
        Ok(sessions.chain(keys))
    }

    /// Returns the record that holds the event with this ID.
    pub(crate) fn record_of(&self, id: EventId) -> Result<Option<Record>> {
        let Some((_, address)) = self.info.ids.floor(self, &id.to_u128().to_be_bytes())? else {
            return Ok(None);
        };
        let record = self.record_at(self.address(&address)?)?;
        Ok(record.seq_of(id).is_some().then_some(record))
    }

    /// Returns the record appended under an idempotency key in this generation of the session.
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
        for entry in keys.iter_from(self, &hash)? {
            let (found, address) = entry?;
            if !found.starts_with(&hash) {
                break;
            }
            let record = self.record_at(self.address(&address)?)?;
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

    /// Returns the last record in commit order that begins before `id`.
    pub(crate) fn record_before(&self, id: EventId) -> Result<Option<Record>> {
        let Some(below) = id.to_u128().checked_sub(1) else {
            return Ok(None);
        };
        let found = self.info.ids.floor(self, &below.to_be_bytes())?;
        found
            .map(|(_, address)| self.record_at(self.address(&address)?))
            .transpose()
    }

    /// Returns the first session in ID order that comes after `session`.
    pub(crate) fn session_after(&self, session: Option<&SessionId>) -> Result<Option<SessionId>> {
        // No byte of a session ID is below 1. So this key sorts after all runs of `session` and
        // before any longer ID.
        let from = session.map(|session| {
            let mut key = session_key(session);
            key.extend_from_slice(&[0xFF; 13]);
            key
        });
        let mut runs = self.info.runs.iter_from(self, &from.unwrap_or_default())?;
        let Some(run) = runs.next() else {
            return Ok(None);
        };
        let (key, _) = run?;
        let name = split_run_key(&key).map(|(name, ..)| Bytes::copy_from_slice(name));
        let session = name.and_then(|name| SessionId::from_stored(&name, &name).ok());
        session.map(Some).ok_or_else(|| self.impossible("session"))
    }

    /// Returns all runs with their keys, in order.
    pub(crate) fn runs(&self) -> Result<impl Iterator<Item = Result<(Bytes, RunEntry)>>> {
        let runs: TableIter<'_, Self> = self.info.runs.iter_from(self, &[])?;
        Ok(runs.map(|entry| {
            let (key, value) = entry?;
            let (_, generation, first) =
                split_run_key(&key).ok_or_else(|| self.impossible("run"))?;
            let run = RunEntry::read(generation, first, &value)
                .map_err(|fault| fault.at(self.path(), 0))?;
            Ok((key, run))
        }))
    }

    /// Returns the records of a run that overlap the seqs, in order.
    ///
    /// The iterator decodes them on demand. `before_read` is called before a read from the disk, if
    /// one is needed. A run that does not match its entry is damage.
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

    fn record_at(&self, address: Address) -> Result<Record> {
        let block = self.block(address)?;
        let at = BLOCK_HEADER_BYTES + address.at as usize;
        Record::decode(&block, at).map_err(|fault| fault.at(self.path(), address.block_offset))
    }

    fn address(&self, value: &[u8]) -> Result<Address> {
        Address::read(&mut ByteReader::new(value)).map_err(|fault| fault.at(self.path(), 0))
    }

    fn block(&self, address: Address) -> Result<Bytes> {
        self.part(address.block_offset, address.block_bytes, |salt, bytes| {
            let header = BlockHeader::decode(salt, bytes)?;
            check_bodies(header, bytes)
        })
    }

    /// Returns the error for a table entry that this version would not have written.
    fn impossible(&self, what: &str) -> Error {
        Error::corrupt(self.path(), 0, format!("an impossible {what}"))
    }

    fn filter(&self) -> Result<Bytes> {
        self.part(
            self.info.filter.offset,
            self.info.filter.bytes,
            |salt, filter| filter::check(salt, filter),
        )
    }

    /// Returns a part of the file. On a cache miss, `before_read` is called before the read and
    /// `admit` checks the part after it.
    fn part(
        &self,
        offset: u64,
        bytes: u32,
        admit: impl FnOnce(Salt, &mut Vec<u8>) -> Decoded<()>,
    ) -> Result<Bytes> {
        self.parts.part(offset, bytes, || self.file(), admit)
    }

    fn file(&self) -> Result<Arc<dyn DiskFile>> {
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
    let info: SegmentInfo = decode_value(TRAILER, trailer_salt(store, number), &block)
        .map_err(|fault| fault.at(path, trailer_at))?;
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
