//! Writes a log as lines.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;

use crate::codec::{Record, SessionState, StoreId};
use crate::disk::{Disk, RealDisk, io_error};
use crate::engine::{Engine, open};
use crate::maintain::{SessionSink, gather, gather_recent};
use crate::model::{Error, EventId, Options, Result, SessionId};
use crate::read::{SessionQuery, Store};
use crate::segment::Segment;
use crate::transfer::Progress;
use crate::transfer::lines::{ExportEnd, Header, Line, PartEnd, PartLine, VERSION};
use crate::transfer::record::RecordLine;
use crate::transfer::state::StateLine;

/// What of a log is exported. By default: everything.
#[derive(Debug, Clone, Default)]
#[must_use = "nothing is exported until it is passed to `export`"]
pub struct Export {
    prefix: Option<String>,
    sessions: Vec<SessionId>,
    after: Option<EventId>,
}

impl Export {
    /// Exports everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Exports only sessions whose ID begins so, and the sessions that these were forked from.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Exports this session, and the sessions that it was forked from. It may be called for several
    /// sessions.
    pub fn session(mut self, session: SessionId) -> Self {
        self.sessions.push(session);
        self
    }

    /// Goes on with an export that is complete up to this ID, as
    /// [`last_complete`] finds it. There is no first line then.
    pub fn after(mut self, id: EventId) -> Self {
        self.after = Some(id);
        self
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn begins_after(&self) -> Option<EventId> {
        self.after
    }
}

/// What was exported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// The number of batches.
    pub records: u64,
    /// The number of events.
    pub events: u64,
    /// The number of states of sessions. A session has one in each part that has something of it.
    pub states: u64,
    /// The number of parts.
    pub parts: u64,
}

/// Writes the log in a folder to `out` as [lines](super), as of one moment.
///
/// It opens the log read-only, so a server may write it meanwhile. It reads every segment once,
/// from front to back, and keeps little in memory. `out` is flushed behind the first line and at
/// the end of each part, where an export that is cut short can be [continued](Export::after).
///
/// # Errors
///
/// Those of opening a log read-only, and of reading it: damage ends the export. [`Error::Io`] if
/// `out` fails. [`Error::Invalid`] for a log with segments of version 1: open it for writing and
/// call [`compact`](crate::SessionLog::compact), which converts it.
pub fn export(
    folder: impl AsRef<Path>,
    out: impl Write,
    what: &Export,
    progress: impl FnMut(Progress),
) -> Result<Exported> {
    let folder = folder.as_ref();
    let folder = std::path::absolute(folder).map_err(io_error("find", folder))?;
    let mut options = Options::new();
    options.read_only = true;
    export_from(
        Arc::new(RealDisk::default()),
        &folder,
        options,
        out,
        what,
        progress,
    )
}

/// As [`export`], from a disk that a test may own.
pub(crate) fn export_from(
    disk: Arc<dyn Disk>,
    folder: &Path,
    options: Options,
    out: impl Write,
    what: &Export,
    progress: impl FnMut(Progress),
) -> Result<Exported> {
    let engine = open(disk, folder, options)?;
    let (id, total) = (engine.segments.store, engine.stats().events);
    let mut exporter = Exporter::begin((&engine.store, id), total, what, out, progress)?;
    let last_id = exporter.all(&engine)?;
    exporter.end(last_id)
}

/// Returns the sessions to export; `None` for all.
fn wanted(store: &Store, what: &Export) -> Result<Option<BTreeSet<SessionId>>> {
    if what.prefix.is_none() && what.sessions.is_empty() {
        return Ok(None);
    }
    let mut wanted = BTreeSet::new();
    for session in &what.sessions {
        // An unknown one is an error, before anything is written.
        store.known_state(session)?;
        wanted.insert(session.clone());
    }
    if let Some(prefix) = &what.prefix {
        let query = SessionQuery::by_id().prefix(prefix.clone());
        let mut page = store.sessions(query)?;
        loop {
            wanted.extend(page.items.iter().map(|info| info.id.clone()));
            let Some(next) = page.next_page() else { break };
            page = store.sessions(next)?;
        }
    }
    // An ancestor may have been deleted, and be a fork itself by now.
    let mut left: Vec<SessionId> = wanted.iter().cloned().collect();
    while let Some(session) = left.pop() {
        for piece in store.state(&session)?.pieces() {
            if wanted.insert(piece.session.clone()) {
                left.push(piece.session.clone());
            }
        }
    }
    Ok(Some(wanted))
}

/// Writes parts, of whatever engine.
pub(crate) struct Exporter<W, P> {
    wanted: Option<BTreeSet<SessionId>>,
    after: Option<EventId>,
    out: W,
    /// The part that is being written.
    part: Option<PartEnd>,
    exported: Exported,
    progress: P,
    total: u64,
}

impl<W: Write, P: FnMut(Progress)> Exporter<W, P> {
    /// Begins the export of a log with this ID and about so many events, unless it goes on.
    pub(crate) fn begin(
        (store, id): (&Store, StoreId),
        total: u64,
        what: &Export,
        out: W,
        progress: P,
    ) -> Result<Self> {
        let mut exporter = Self {
            wanted: wanted(store, what)?,
            after: what.after,
            out,
            part: None,
            exported: Exported::default(),
            progress,
            total,
        };
        if what.after.is_none() {
            let store = format!("{:032x}", id.0);
            let selected = exporter.wanted.is_some();
            exporter.put(&Line::SessionlogExport(Header {
                version: VERSION,
                store: store.into(),
                selected,
            }))?;
            exporter.flush()?;
        }
        Ok(exporter)
    }

    /// Ends the export of a log whose last event or change is this one.
    pub(crate) fn end(mut self, last_id: Option<EventId>) -> Result<Exported> {
        self.put(&Line::ExportEnd(ExportEnd { last_id }))?;
        self.flush()?;
        Ok(self.exported)
    }

    /// Writes all parts. Returns the last ID.
    fn all(&mut self, engine: &Engine) -> Result<Option<EventId>> {
        let store = &engine.store;
        // Both as of one refresh: nobody refreshes this log.
        let set = engine.locator.segments();
        if let Some(old) = set.iter().find(|segment| segment.info.format == 1) {
            let path = old.path().display();
            let why =
                format!("{path} has format version 1: open the log for writing and compact it");
            return Err(Error::invalid("log", why));
        }
        let none = EventId::from_u128(0);
        let mut last_id = none;
        for segment in set.iter() {
            last_id = last_id.max(segment.info.last_id());
            if self
                .after
                .is_some_and(|after| segment.info.last_id() <= after)
            {
                continue;
            }
            self.begin_part(&part_of(segment))?;
            self.note_dropped(segment.info.dropped);
            gather(store, &set, std::slice::from_ref(segment), self, || {
                Ok::<_, Error>(())
            })?;
            self.end_part(segment.info.last_id())?;
        }
        let recent = engine.recent.records_from(none, usize::MAX);
        let new: Vec<_> = recent
            .into_iter()
            .filter(|record| record.base > last_id)
            .collect();
        let new_last = new.last().map(|record| record.last_id());
        if let (Some(first), Some(last)) = (new.first(), new_last)
            && self.after.is_none_or(|after| last > after)
        {
            self.begin_part(&PartLine {
                first_id: first.base,
                last_id: last,
                tier: 0,
                items_max: 2 * new.len() as u64,
                resumed: false,
            })?;
            gather_recent(store, &set, &new, self, || Ok::<_, Error>(()))?;
            self.end_part(last)?;
        }
        let last_id = new_last.unwrap_or(last_id);
        Ok((last_id > none).then_some(last_id))
    }

    pub(crate) fn begin_part(&mut self, part: &PartLine) -> Result<()> {
        self.part = Some(PartEnd::default());
        let resumed = self.exported.parts == 0 && self.after.is_some();
        // Segments may have been merged since the earlier run.
        let after = self.after.map_or(part.first_id, |after| after.plus(1));
        self.put(&Line::Part(PartLine {
            first_id: part.first_id.max(after),
            resumed,
            ..*part
        }))
    }

    pub(crate) fn end_part(&mut self, last_id: EventId) -> Result<()> {
        let part = self.part.take().unwrap_or_default();
        self.put(&Line::PartEnd(PartEnd {
            last_id: Some(last_id),
            ..part
        }))?;
        self.flush()?;
        self.exported.parts += 1;
        self.show_progress();
        Ok(())
    }

    fn show_progress(&mut self) {
        (self.progress)(Progress {
            events: self.exported.events,
            events_total: Some(self.total),
            parts: self.exported.parts,
        });
    }

    /// Whether a session is exported.
    pub(crate) fn is_wanted(&self, session: &SessionId) -> bool {
        self.wanted
            .as_ref()
            .is_none_or(|wanted| wanted.contains(session))
    }

    fn put(&mut self, line: &Line<'_>) -> Result<()> {
        let mut text = serde_json::to_vec(line).expect("a line holds JSON values alone");
        text.push(b'\n');
        self.out
            .write_all(&text)
            .map_err(io_error("write", Path::new("the export")))
    }

    fn flush(&mut self) -> Result<()> {
        self.out
            .flush()
            .map_err(io_error("write", Path::new("the export")))
    }
}

impl<W: Write, P: FnMut(Progress)> SessionSink for Exporter<W, P> {
    fn put(&mut self, record: &Record) -> Result<()> {
        let is_old = self.after.is_some_and(|after| record.last_id() <= after);
        if is_old || !self.is_wanted(&record.session) {
            return Ok(());
        }
        let line = RecordLine::of(record).map_err(crate::codec::Fault::in_memory)?;
        Exporter::put(self, &Line::Record(Box::new(line)))?;
        let part = self.part.get_or_insert_default();
        part.records += 1;
        self.exported.records += 1;
        self.exported.events += u64::from(record.count);
        if self.exported.records.is_multiple_of(1024) {
            self.show_progress();
        }
        Ok(())
    }

    fn end_session(&mut self, session: &SessionId, state: &SessionState) -> Result<()> {
        if !self.is_wanted(session) {
            return Ok(());
        }
        if let Some(line) = StateLine::of(session, state) {
            Exporter::put(self, &Line::State(Box::new(line)))?;
            let part = self.part.get_or_insert_default();
            part.states += 1;
            self.exported.states += 1;
        }
        Ok(())
    }

    fn note_dropped(&mut self, records: u64) {
        self.part.get_or_insert_default().dropped += records;
    }
}

fn part_of(segment: &Segment) -> PartLine {
    PartLine {
        first_id: segment.info.first_id(),
        last_id: segment.info.last_id(),
        tier: segment.info.tier,
        items_max: segment.filter_items(),
        resumed: false,
    }
}

/// The complete parts at the beginning of an export that was cut short.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Complete {
    /// The store that was exported, in hexadecimal digits, if the first line was read.
    pub store: Option<String>,
    /// The last ID in the complete parts: where to go [on](Export::after).
    pub last_id: Option<EventId>,
    /// The number of bytes up to the end of the last complete part.
    pub bytes: u64,
    /// Whether the export is complete.
    pub is_whole: bool,
    /// Whether it is of some sessions alone. Such an export does not go on.
    pub is_selected: bool,
}

/// Reads the text of an export, and finds how much of it is complete.
///
/// # Errors
///
/// Those of reading `input`.
pub fn last_complete(mut input: impl BufRead) -> std::io::Result<Complete> {
    let mut complete = Complete {
        store: None,
        last_id: None,
        bytes: 0,
        is_whole: false,
        is_selected: false,
    };
    let (mut at, mut text) = (0, Vec::new());
    loop {
        text.clear();
        input.read_until(b'\n', &mut text)?;
        if !text.ends_with(b"\n") {
            return Ok(complete);
        }
        at += text.len() as u64;
        let is_small = !text.starts_with(br#"{"record""#) && !text.starts_with(br#"{"state""#);
        if !is_small {
            continue;
        }
        match serde_json::from_slice(&text) {
            Ok(Line::SessionlogExport(header)) => {
                complete.store = Some(header.store.into_owned());
                complete.is_selected = header.selected;
            }
            Ok(Line::PartEnd(end)) => (complete.last_id, complete.bytes) = (end.last_id, at),
            Ok(Line::ExportEnd(_)) => (complete.is_whole, complete.bytes) = (true, at),
            Ok(_) => {}
            // It was cut in the middle of a line.
            Err(_cut) => return Ok(complete),
        }
    }
}
