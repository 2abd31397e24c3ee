//! Makes a log from lines.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{Record, SessionState};
use crate::disk::{Disk, RealDisk, io_error};
use crate::engine::{LogBuilder, Stretch};
use crate::model::{Error, EventId, Options, Result, Seq, SessionId};
use crate::segment::SegmentWriter;
use crate::transfer::Progress;
use crate::transfer::lines::{Line, PartEnd, PartLine, VERSION};

/// The most sessions and keys of a part. The filter takes two bytes for each.
const ITEMS_MAX: u64 = 1 << 27;

/// The longest line, in bytes: room for the largest batch that the options allow, as text.
const LINE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// What was imported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The number of batches.
    pub records: u64,
    /// The number of events.
    pub events: u64,
    /// The number of parts that were written.
    pub parts: u64,
    /// The number of parts that an earlier run had written.
    pub parts_kept: u64,
}

/// Makes a log in `folder` from the [lines](super) of an export, which `name` names in errors.
///
/// The folder must be missing or empty. When this returns `Ok`, it holds a closed log, which is on
/// stable storage. Until then it does not open as a log. After an import that was cut short, the
/// same call goes on behind the last part that was written.
///
/// # Errors
///
/// [`Error::Corrupt`] with the offset in the text, for a line that is none of an export, or that
/// contradicts those before it. [`Error::Unsupported`] for a later version of the lines.
/// [`Error::Invalid`] if the folder holds a log. [`Error::Io`] if a read or a write failed.
pub fn import(
    input: impl BufRead,
    name: impl AsRef<Path>,
    folder: impl AsRef<Path>,
    options: Options,
    progress: impl FnMut(Progress),
) -> Result<Imported> {
    let folder = folder.as_ref();
    let folder = std::path::absolute(folder).map_err(io_error("find", folder))?;
    let disk = Arc::new(RealDisk::default());
    import_to(
        disk,
        &folder,
        options,
        Input::new(input, name.as_ref()),
        progress,
    )
}

/// As [`import`], to a disk that a test may own.
pub(crate) fn import_to<R: BufRead>(
    disk: Arc<dyn Disk>,
    folder: &Path,
    options: Options,
    input: Input<R>,
    progress: impl FnMut(Progress),
) -> Result<Imported> {
    let begin = |source: &str| LogBuilder::begin(disk, folder, options, source);
    let (builder, imported) = read_export(input, begin, progress)?;
    builder.finish()?;
    Ok(imported)
}

/// What the parts of an export go to.
pub(crate) trait Target {
    /// Whether an earlier run has written a part.
    fn has(&mut self, _part: &PartLine) -> Result<bool> {
        Ok(false)
    }

    /// Whether the part that an earlier run has written has so many records and events.
    fn is_last(&self, _records: u64, _events: u64) -> bool {
        true
    }

    /// Adds a part, whose content is read into the function that `read` is given.
    fn add(&mut self, part: &PartLine, read: Reading<'_>) -> Result<()>;

    /// Notes that what came before may have what is removed by now.
    fn note_resumed(&mut self);

    /// Notes that a session has a retention of its own.
    fn note_own_retention(&mut self);
}

/// Reads the content of a part into a function. Returns the number of records that were dropped.
pub(crate) type Reading<'a> = &'a mut dyn FnMut(&mut dyn FnMut(Item) -> Result<()>) -> Result<u64>;

impl Target for LogBuilder {
    fn has(&mut self, part: &PartLine) -> Result<bool> {
        self.has_next(&stretch_of(part))
    }

    fn is_last(&self, records: u64, events: u64) -> bool {
        LogBuilder::is_last(self, records, events)
    }

    fn add(&mut self, part: &PartLine, read: Reading<'_>) -> Result<()> {
        LogBuilder::add(self, stretch_of(part), |out: &mut SegmentWriter<'_>| {
            let dropped = read(&mut |item| match item {
                Item::Record(record) => out.put(&record),
                Item::State(session, state) => out.end_session(&session, &state),
            })?;
            out.note_dropped(dropped);
            Ok::<_, Error>(())
        })
    }

    fn note_resumed(&mut self) {
        self.mark_all();
    }

    fn note_own_retention(&mut self) {
        LogBuilder::note_own_retention(self);
    }
}

fn stretch_of(part: &PartLine) -> Stretch {
    Stretch {
        first_id: part.first_id,
        last_id: part.last_id,
        tier: part.tier,
        items_max: part.items_max,
    }
}

/// Reads an export into what `begin` makes of the name of its source.
pub(crate) fn read_export<R: BufRead, T: Target>(
    mut input: Input<R>,
    begin: impl FnOnce(&str) -> Result<T>,
    mut progress: impl FnMut(Progress),
) -> Result<(T, Imported)> {
    let header = match input.next()? {
        Some(Line::SessionlogExport(header)) => (header.version, header.store.into_owned()),
        _ => return Err(input.damage("it does not begin with the first line of an export")),
    };
    let (version, store) = header;
    if version != VERSION {
        return Err(Error::Unsupported {
            file: input.name,
            what: "the version of the export",
            found: version.into(),
            supported: VERSION.into(),
        });
    }
    let mut target = begin(&format!("the export of store {store}"))?;
    let mut imported = Imported::default();
    let mut last_id = EventId::from_u128(0);
    loop {
        let part = match input.next()? {
            Some(Line::Part(part)) => part,
            Some(Line::ExportEnd(end)) => {
                let none = EventId::from_u128(0);
                if end.last_id.unwrap_or(none) != last_id {
                    return Err(input.damage("the export lacks parts"));
                }
                return Ok((target, imported));
            }
            Some(_) => return Err(input.damage("a line outside of any part")),
            None => return Err(input.damage("the export was cut short")),
        };
        // A part without records has the last ID of the one before it.
        if part.items_max > ITEMS_MAX {
            return Err(input.damage("a part with too many sessions"));
        }
        if part.last_id < part.first_id || part.first_id < last_id {
            return Err(input.damage("a part that does not follow the one before it"));
        }
        if part.resumed {
            target.note_resumed();
        }
        add_part(&mut target, &mut input, (last_id, part), &mut imported)?;
        last_id = part.last_id;
        progress(Progress {
            events: imported.events,
            events_total: None,
            parts: imported.parts + imported.parts_kept,
        });
    }
}

fn add_part<R: BufRead>(
    target: &mut impl Target,
    input: &mut Input<R>,
    (above, part): (EventId, PartLine),
    imported: &mut Imported,
) -> Result<()> {
    let is_kept = target.has(&part)?;
    let mut content = Content {
        above,
        last_id: part.last_id,
        session: None,
        next: None,
        seen: PartEnd::default(),
        events: 0,
        has_own_retention: false,
    };
    if is_kept {
        content.read(input, |_item| Ok(()))?;
        // An earlier run may have read an export of other sessions, or of another time.
        if !target.is_last(content.seen.records, content.events) {
            return Err(Error::invalid(
                "target folder",
                "an earlier run has copied something else",
            ));
        }
        imported.parts_kept += 1;
    } else {
        target.add(&part, &mut |take| {
            content.read(input, take)?;
            Ok(content.seen.dropped)
        })?;
        imported.parts += 1;
    }
    if content.has_own_retention {
        target.note_own_retention();
    }
    imported.records += content.seen.records;
    imported.events += content.events;
    Ok(())
}

/// A record or a state of a part.
pub(crate) enum Item {
    Record(Box<Record>),
    State(SessionId, Box<SessionState>),
}

/// What was read of a part. It checks that the lines are in order.
struct Content {
    /// The last ID of the part before.
    above: EventId,
    last_id: EventId,
    /// The session that ended last.
    session: Option<SessionId>,
    /// The session whose records are being read, and where the next one may begin.
    next: Option<(SessionId, u32, Seq)>,
    seen: PartEnd,
    events: u64,
    has_own_retention: bool,
}

impl Content {
    fn read<R: BufRead>(
        &mut self,
        input: &mut Input<R>,
        mut take: impl FnMut(Item) -> Result<()>,
    ) -> Result<()> {
        loop {
            let read = match input.next()? {
                Some(Line::Record(line)) => line.record().map(|record| Item::Record(record.into())),
                Some(Line::State(line)) => line
                    .state()
                    .map(|(session, state)| Item::State(session, state.into())),
                Some(Line::PartEnd(end)) => {
                    let counts = (end.records, end.states);
                    if counts == (self.seen.records, self.seen.states) && self.next.is_none() {
                        self.seen.dropped = end.dropped;
                        return Ok(());
                    }
                    return Err(input.damage("the part lacks lines"));
                }
                Some(_) => return Err(input.damage("a line that does not belong in a part")),
                None => return Err(input.damage("the export was cut short")),
            };
            let item = read.and_then(|item| self.check(&item).map(|()| item));
            take(item.map_err(|why| input.damage(why))?)?;
        }
    }

    /// Checks that an item follows what was read before, and notes it.
    fn check(&mut self, item: &Item) -> Result<(), String> {
        match item {
            Item::Record(record) => self.check_record(record),
            Item::State(session, state) => {
                self.enter(session)?;
                (self.session, self.next) = (Some(session.clone()), None);
                self.seen.states += 1;
                self.has_own_retention |= state.retention().is_some();
                Ok(())
            }
        }
    }

    fn check_record(&mut self, record: &Record) -> Result<(), String> {
        self.enter(&record.session)?;
        let place = (record.generation, record.first);
        let next = self
            .next
            .as_ref()
            .map(|(_, generation, seq)| (*generation, *seq));
        if next.is_some_and(|next| place < next) {
            return Err("a batch that does not follow the one before it".to_owned());
        }
        if record.base <= self.above || record.last_id() > self.last_id {
            return Err("a batch with IDs outside of its part".to_owned());
        }
        self.next = Some((record.session.clone(), record.generation, record.last() + 1));
        self.seen.records += 1;
        self.events += u64::from(record.count);
        Ok(())
    }

    /// Checks that a line may be of this session.
    fn enter(&self, session: &SessionId) -> Result<(), String> {
        match (&self.next, &self.session) {
            (Some((open, ..)), _) if open == session => Ok(()),
            (Some((open, ..)), _) => Err(format!("session {open} has no state")),
            (None, Some(before)) if before >= session => {
                Err(format!("session {session} comes after session {before}"))
            }
            (None, _) => Ok(()),
        }
    }
}

/// The lines of an export.
pub(crate) struct Input<R> {
    lines: R,
    name: PathBuf,
    text: Vec<u8>,
    /// The offset of the line that was read last.
    offset: u64,
    number: u64,
}

impl<R: BufRead> Input<R> {
    pub(crate) fn new(lines: R, name: &Path) -> Self {
        Self {
            lines,
            name: name.to_path_buf(),
            text: Vec::new(),
            offset: 0,
            number: 0,
        }
    }

    /// Reads the next line; `None` at the end.
    fn next(&mut self) -> Result<Option<Line<'_>>> {
        self.offset += self.text.len() as u64;
        self.text.clear();
        let mut line = (&mut self.lines).take(LINE_BYTES_MAX);
        let read = line.read_until(b'\n', &mut self.text);
        if read.map_err(io_error("read", &self.name))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        match serde_json::from_slice(&self.text) {
            Ok(line) => Ok(Some(line)),
            Err(error) => Err(damage(
                &self.name,
                self.offset,
                self.number,
                &error.to_string(),
            )),
        }
    }

    fn damage(&self, why: impl AsRef<str>) -> Error {
        damage(&self.name, self.offset, self.number, why.as_ref())
    }
}

fn damage(name: &Path, offset: u64, number: u64, why: &str) -> Error {
    Error::corrupt(name, offset, format!("line {number}: {why}"))
}
