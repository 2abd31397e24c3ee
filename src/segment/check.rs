//! Compares everything that a segment says with everything else that it says.
//!
//! Blocks and pages are read one by one, past the cache. One that is damaged is reported, and the
//! next one is read. A table is compared only if all of it, and every block, was read.
//!
//! Records and tables are sorted differently. So a table is compared with the records as a
//! multiset, by the sum of the hashes of its entries.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::codec::{
    BLOCK_HEADER_BYTES, ByteReader, Decoded, Fault, Record, SessionState, put_varint,
};
use crate::disk::BLOCK;
use crate::model::{Error, EventId, Seq, SessionId};
use crate::segment::table::TableRoot;
use crate::segment::whole::Uncached;
use crate::segment::{
    Address, DirectoryRoots, ItemHash, Run, RunEntry, RunTail, Segment, SegmentInfo, filter,
    fork_key, key_hash, run_key, session_hash, split_run_key,
};

/// What was read of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    pub records: u64,
    pub events: u64,
    /// Whether every page of the run table was read.
    pub has_all_runs: bool,
}

impl Segment {
    /// Reads all of the segment and passes each fault to `report`. `progress` is called with the
    /// number of bytes of each block that was read.
    pub(crate) fn check(
        &self,
        report: &mut dyn FnMut(Error),
        progress: &mut dyn FnMut(u64),
    ) -> Checked {
        if let Err(error) = self.uncached() {
            report(error);
        }
        let source = match self.uncached_as_it_is() {
            Ok(source) => source,
            Err(error) => {
                report(error);
                return Checked::default();
            }
        };
        let filter = source.filter().map_err(&mut *report).ok();
        let tables = Tables::read(self, &source, filter.as_ref(), report);
        let mut records = Records::new(self, filter.as_ref(), report);
        records.read(&source, &tables.blocks, progress);
        let Records { is_whole, says, .. } = records;
        if is_whole {
            compare(self, &tables, &says, report);
        }
        tables.compare_directory(self, report);
        Checked {
            records: says.records,
            events: says.events,
            has_all_runs: tables.runs.is_whole,
        }
    }

    fn fault(&self, offset: u64, what: impl Into<String>) -> Error {
        Error::corrupt(self.path(), offset, what)
    }
}

/// Returns every block that a table names, by offset, with its length in the file. Passes pages
/// that cannot be read to `report`.
pub(super) fn blocks_named(
    segment: &Segment,
    source: &Uncached<'_>,
    report: &mut dyn FnMut(Error),
) -> BTreeMap<u64, u32> {
    Tables::read(segment, source, None, report).blocks
}

/// The entries of a table in any order, by number and by the sum of their hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Entries {
    count: u64,
    sum: u128,
}

impl Entries {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(key.len() as u64).to_le_bytes());
        let hash = hasher.update(key).update(value).finalize();
        let hash = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
        self.count += 1;
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(*hash));
    }

    /// Adds an entry with the place of records.
    fn add_at(&mut self, key: &[u8], address: &Address, events: u32) {
        let mut value = Vec::with_capacity(20);
        address.put(&mut value);
        put_varint(&mut value, events.into());
        self.add(key, &value);
    }
}

/// What was found in a table.
#[derive(Debug, Clone, Copy)]
struct Table {
    at: u64,
    entries: Entries,
    /// Whether every page was read.
    is_whole: bool,
}

/// What all tables of a segment hold.
struct Tables {
    runs: Table,
    ids: Table,
    keys: Option<Table>,
    activity: Option<Table>,
    creation: Option<Table>,
    forks: Option<Table>,
    /// What the states in the run table say of the other tables of sessions.
    says: SaidByStates,
    blocks: BTreeMap<u64, u32>,
}

#[derive(Debug, Default)]
struct SaidByStates {
    activity: Entries,
    creation: Entries,
    forks: Entries,
}

impl Tables {
    fn read(
        segment: &Segment,
        source: &Uncached<'_>,
        filter: Option<&Bytes>,
        report: &mut dyn FnMut(Error),
    ) -> Self {
        let info = &segment.info;
        let mut reader = TableReader {
            segment,
            source,
            report,
            blocks: BTreeMap::new(),
        };
        let (runs, says) = reader.runs(filter);
        let addressed = |reader: &mut TableReader<'_>, root: &TableRoot| {
            reader.table(root, |entries, key, value, blocks| {
                let address = Address::read(&mut ByteReader::new(value))?;
                blocks.insert(address.block_offset, address.block_bytes);
                entries.add_at(key, &address, 0);
                Ok(())
            })
        };
        let ids = addressed(&mut reader, &info.ids);
        let keys = info.keys.as_ref().map(|keys| addressed(&mut reader, keys));
        let mut directory = |of: fn(&DirectoryRoots) -> &TableRoot| {
            let root = of(info.directory.as_ref()?);
            Some(reader.table(root, |entries, key, value, _blocks| {
                entries.add(key, value);
                Ok(())
            }))
        };
        let activity = directory(|roots| &roots.activity);
        let creation = directory(|roots| &roots.creation);
        let forks = directory(|roots| &roots.forks);
        if let Some(directory) = &info.directory {
            reader.table(&directory.blocks, |_entries, key, value, blocks| {
                let offset = ByteReader::new(key).array().map(u64::from_be_bytes)?;
                blocks.insert(offset, ByteReader::new(value).varint_u32()?);
                Ok(())
            });
        }
        Self {
            runs,
            ids,
            keys,
            activity,
            creation,
            forks,
            says,
            blocks: reader.blocks,
        }
    }

    /// Compares the tables of sessions with the states in the run table.
    fn compare_directory(&self, segment: &Segment, report: &mut dyn FnMut(Error)) {
        if !self.runs.is_whole {
            return;
        }
        let said = &self.says;
        for (table, says, name) in [
            (&self.activity, said.activity, "table of activity"),
            (&self.creation, said.creation, "table of creation"),
            (&self.forks, said.forks, "table of forks"),
        ] {
            if let Some(table) = table {
                compare_table(segment, table, says, name, report);
            }
        }
    }
}

struct TableReader<'a> {
    segment: &'a Segment,
    source: &'a Uncached<'a>,
    report: &'a mut dyn FnMut(Error),
    blocks: BTreeMap<u64, u32>,
}

impl TableReader<'_> {
    /// Reads a table. `note` adds what an entry says.
    fn table(
        &mut self,
        root: &TableRoot,
        mut note: impl FnMut(&mut Entries, &Bytes, &Bytes, &mut BTreeMap<u64, u32>) -> Decoded<()>,
    ) -> Table {
        let at = root.offset();
        let mut entries = Entries::default();
        let mut before: Option<Bytes> = None;
        let mut fault = None;
        let mut is_whole = true;
        let blocks = &mut self.blocks;
        let visit = |key: &Bytes, value: &Bytes| {
            if before.as_ref().is_some_and(|before| before >= key) {
                fault.get_or_insert(Fault::Damaged {
                    at: 0,
                    what: "keys of a table that do not rise",
                });
            }
            before = Some(key.clone());
            if let Err(wrong) = note(&mut entries, key, value, blocks) {
                fault.get_or_insert(wrong);
            }
        };
        root.visit(self.source, visit, |error| {
            is_whole = false;
            (self.report)(error);
        });
        if let Some(fault) = fault {
            is_whole = false;
            (self.report)(fault.at(self.segment.path(), at));
        }
        Table {
            at,
            entries,
            is_whole,
        }
    }

    /// Reads the run table, and what its states say of other tables.
    fn runs(&mut self, filter: Option<&Bytes>) -> (Table, SaidByStates) {
        let segment = self.segment;
        let info = &segment.info;
        let mut said = SaidByStates::default();
        // The session before, and whether its last run so far ends it.
        let mut before: Option<(Bytes, bool)> = None;
        let table = self.table(&info.runs, |entries, key, value, blocks| {
            let (name, generation, first) = split_run_key(key).ok_or(IMPOSSIBLE_KEY)?;
            let entry = RunEntry::read(info.format, generation, first, value)?;
            let Run {
                address, events, ..
            } = entry.run;
            if events > 0 {
                blocks.insert(address.block_offset, address.block_bytes);
                entries.add_at(key, &address, events);
            }
            let name = key.slice_ref(name);
            let is_new = before.as_ref().is_none_or(|(before, _)| *before != name);
            if before
                .as_ref()
                .is_some_and(|(_, is_ended)| *is_ended != is_new)
            {
                return Err(NO_STATE);
            }
            before = Some((name.clone(), !matches!(entry.tail, RunTail::None)));
            if info.format == 1 {
                before = None;
            }
            if is_new && let Some(filter) = filter {
                check_filter(filter, session_hash(&name))?;
            }
            match entry.tail {
                RunTail::State(state) => {
                    said.add(info, &name, &SessionState::decode(&state)?);
                    Ok(())
                }
                RunTail::None | RunTail::LastId(_) => Ok(()),
            }
        });
        (table, said)
    }
}

const IMPOSSIBLE_KEY: Fault = Fault::Damaged {
    at: 0,
    what: "an impossible run",
};

const NO_STATE: Fault = Fault::Damaged {
    at: 0,
    what: "a session whose last run has no state, or whose earlier run has one",
};

impl SaidByStates {
    fn add(&mut self, info: &SegmentInfo, name: &Bytes, state: &SessionState) {
        if !state.is_there() {
            return;
        }
        let ids = info.first_id()..=info.last_id();
        let key = |id: EventId| id.to_u128().to_be_bytes();
        if ids.contains(&state.active_id) {
            self.activity.add(&key(state.active_id), name);
        }
        if ids.contains(&state.created_id)
            && let Ok(session) = SessionId::from_stored(name, name)
        {
            self.creation.add(&key(state.created_id), name);
            for piece in state.pieces() {
                let key = fork_key(&piece.session, piece.generation, &session);
                self.forks.add(&key, &[]);
            }
        }
    }
}

fn check_filter(filter: &Bytes, item: ItemHash) -> Decoded<()> {
    if filter::may_hold(filter, item) {
        return Ok(());
    }
    Err(Fault::Damaged {
        at: 0,
        what: "the filter does not know a session or a key of the segment",
    })
}

/// Compares the tables with what the records say.
fn compare(segment: &Segment, tables: &Tables, says: &Says, report: &mut dyn FnMut(Error)) {
    compare_table(segment, &tables.runs, says.runs, "run table", report);
    compare_table(segment, &tables.ids, says.ids, "ID table", report);
    match &tables.keys {
        Some(keys) => compare_table(segment, keys, says.keys, "key table", report),
        None if says.keys.count > 0 => report(segment.fault(0, "there is no table of keys")),
        None => {}
    }
    let info = &segment.info;
    let told = (info.records, info.events, info.body_bytes);
    let counted = (says.records, says.events, says.body_bytes);
    if told != counted {
        let at = info.file_bytes - BLOCK as u64;
        let what = format!(
            "the trailer says {told:?} records, events and bytes of bodies, and there are \
             {counted:?}"
        );
        report(segment.fault(at, what));
    }
}

/// Compares a table with what it should hold, if all of it was read.
fn compare_table(
    segment: &Segment,
    table: &Table,
    says: Entries,
    name: &str,
    report: &mut dyn FnMut(Error),
) {
    if !table.is_whole || table.entries == says {
        return;
    }
    let what = if table.entries.count == says.count {
        format!("the {name} has an entry that is not as it should be")
    } else {
        let (is, should_be) = (table.entries.count, says.count);
        format!("the {name} has {is} entries, and {should_be} belong there")
    };
    report(segment.fault(table.at, what));
}

/// What the records say.
#[derive(Debug, Default)]
struct Says {
    runs: Entries,
    ids: Entries,
    keys: Entries,
    records: u64,
    events: u64,
    body_bytes: u64,
}

/// The records of a segment, read block by block.
struct Records<'a> {
    segment: &'a Segment,
    filter: Option<&'a Bytes>,
    report: &'a mut dyn FnMut(Error),
    says: Says,
    /// Whether every block so far was read.
    is_whole: bool,
    /// The run that grows.
    run: Option<(SessionId, Run)>,
    /// The session of the record before, and the place and the ID that the next one comes after.
    before: Option<(SessionId, (u32, Seq), EventId)>,
    ids: RangeInclusive<EventId>,
}

impl<'a> Records<'a> {
    fn new(
        segment: &'a Segment,
        filter: Option<&'a Bytes>,
        report: &'a mut dyn FnMut(Error),
    ) -> Self {
        Self {
            segment,
            filter,
            report,
            says: Says::default(),
            is_whole: true,
            run: None,
            before: None,
            ids: segment.info.first_id()..=segment.info.last_id(),
        }
    }

    fn read(
        &mut self,
        source: &Uncached<'_>,
        blocks: &BTreeMap<u64, u32>,
        progress: &mut dyn FnMut(u64),
    ) {
        let end = self.segment.info.filter.offset;
        let mut next = BLOCK as u64;
        // A table may be damaged so that it names a place that is no block.
        for (&offset, &bytes) in blocks.range(..end) {
            if bytes == 0 {
                continue;
            }
            if offset != next {
                self.note_gap(next, offset);
            }
            next = offset.saturating_add(bytes.into());
            match source.block(offset, bytes) {
                Ok(block) => self.block(&block, offset, bytes),
                Err(error) => {
                    (self.is_whole, self.run) = (false, None);
                    (self.report)(error);
                }
            }
            progress(bytes.into());
        }
        if next != end {
            self.note_gap(next, end);
        }
        self.end_run();
    }

    fn note_gap(&mut self, from: u64, to: u64) {
        (self.is_whole, self.run) = (false, None);
        let what = format!("no table names the bytes from here to {to}, or two blocks overlap");
        (self.report)(self.segment.fault(from, what));
    }

    fn block(&mut self, block: &Bytes, offset: u64, bytes: u32) {
        let mut at = BLOCK_HEADER_BYTES;
        while at < block.len() {
            let address = Address {
                block_offset: offset,
                block_bytes: bytes,
                at: u32::try_from(at - BLOCK_HEADER_BYTES).unwrap_or(u32::MAX),
            };
            let noted = Record::decode_with_end(block, at).and_then(|(record, end)| {
                record.check_events()?;
                at = end;
                self.record(&record, address)
            });
            if let Err(fault) = noted {
                self.is_whole = false;
                (self.report)(fault.at(self.segment.path(), offset));
                return;
            }
        }
    }

    fn record(&mut self, record: &Record, address: Address) -> Decoded<()> {
        let wrong = |what| Err(Fault::Damaged { at: 0, what });
        let says = &mut self.says;
        says.records += 1;
        says.events += u64::from(record.count);
        says.body_bytes += record.body().len() as u64;
        let id = record.base.to_u128().to_be_bytes();
        says.ids.add_at(&id, &address, 0);
        if let Some(key) = &record.key {
            let hash = key_hash(&record.session, &key.text);
            says.keys.add_at(&[hash, id].concat(), &address, 0);
            if let Some(filter) = self.filter {
                check_filter(filter, hash)?;
            }
        }
        let place = (record.generation, record.first);
        let follows = match &self.before {
            Some((session, next, id)) if *session == record.session => {
                *next <= place && *id < record.base
            }
            Some((session, ..)) => *session < record.session,
            None => true,
        };
        if !follows {
            return wrong("a record out of order");
        }
        if !self.ids.contains(&record.base) || !self.ids.contains(&record.last_id()) {
            return wrong("an ID outside of the segment's range");
        }
        let next = (record.generation, record.last() + 1);
        self.before = Some((record.session.detached(), next, record.last_id()));
        self.note_run(record, address);
        Ok(())
    }

    /// Makes a record part of the run before it, or begins a run.
    fn note_run(&mut self, record: &Record, address: Address) {
        if record.count == 0 {
            return;
        }
        if let Some((session, run)) = &mut self.run
            && run.address.block_offset == address.block_offset
            && run.generation == record.generation
            && run.last() + 1 == record.first
            && *session == record.session
        {
            run.events += record.count;
            return;
        }
        self.end_run();
        let run = Run {
            generation: record.generation,
            first: record.first,
            events: record.count,
            address,
        };
        self.run = Some((record.session.detached(), run));
    }

    fn end_run(&mut self) {
        if let Some((session, run)) = self.run.take() {
            let key = run_key(&session, run.generation, run.first);
            self.says.runs.add_at(&key, &run.address, run.events);
        }
    }
}
