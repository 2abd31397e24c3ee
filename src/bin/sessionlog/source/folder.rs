//! A log in a folder: open for reading beside its writer, or open for writing.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use sessionlog::http::json;
use sessionlog::{
    Ack, Batch, Cursor, EventId, EventStream, Expected, NewEvent, PageRequest, RecvTimeout,
    SessionId, SessionLog, SessionQuery, StartAt, StreamItem,
};

use crate::failure::{Failure, Result};
use crate::folder::{open_to_read, open_to_write};
use crate::source::{
    AfterIt, Appended, Direction, Each, EachItem, End, Event, Follow, Item, Message, Order,
    Position, Range, Sent, Session, SessionList, Shaped, Source, Standing, Stats,
};

/// The most items of a page.
const PAGE: usize = 1_000;

/// How often a reader looks for what another process has appended. Each look reads two small
/// files and the end of the journal.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) struct Folder {
    log: SessionLog,
}

impl Folder {
    pub(crate) fn to_read(folder: &Path) -> Result<Self> {
        open_to_read(folder).map(|log| Self { log })
    }

    pub(crate) fn to_write(folder: &Path) -> Result<Self> {
        open_to_write(folder).map(|log| Self { log })
    }

    /// Begins a log in a folder that is missing or empty.
    pub(crate) fn created(folder: &Path) -> Result<Self> {
        Ok(Self {
            log: SessionLog::open(folder)?,
        })
    }

    pub(crate) fn log(&self) -> &SessionLog {
        &self.log
    }

    fn stream(&self, what: &Follow<'_>) -> Result<EventStream> {
        let after = what.after.map(str::parse::<EventId>).transpose()?;
        Ok(match (what.session, after) {
            (Some(session), None) => self.log.stream(&session.parse()?, StartAt::Beginning)?,
            (Some(session), Some(id)) => self.log.stream(&session.parse()?, StartAt::after(id))?,
            (None, None) => self.log.feed()?,
            (None, Some(id)) => self.log.feed_after(id)?,
        })
    }
}

impl Source for Folder {
    fn stats(&self) -> Result<Shaped<Stats>> {
        Shaped::new(json::stats(&self.log)?)
    }

    fn session_count(&self) -> Result<u64> {
        let (mut many, mut next) = (0, Some(SessionQuery::by_id().limit(PAGE)));
        while let Some(query) = next {
            let page = self.log.sessions(query)?;
            many += page.items.len() as u64;
            next = page.next_page();
        }
        Ok(many)
    }

    fn session(&self, session: &str) -> Result<Shaped<Session>> {
        Shaped::new(json::session(&self.log.session(&session.parse()?)?))
    }

    fn sessions(&self, query: &SessionList, each: Each<'_, Session>) -> Result<()> {
        let mut next = Some(query_of(query));
        while let Some(query) = next {
            let page = self.log.sessions(query)?;
            for session in &page.items {
                if each(Shaped::new(json::session(session))?)?.is_break() {
                    return Ok(());
                }
            }
            next = page.next_page();
        }
        Ok(())
    }

    fn events(&self, session: &str, range: &Range, each: Each<'_, Event>) -> Result<()> {
        let session: SessionId = session.parse()?;
        let mut next = Some(page_of(range)?);
        while let Some(request) = next {
            let page = self.log.list(&session, request)?;
            for event in &page.items {
                if each(Shaped::new(json::event(event))?)?.is_break() {
                    return Ok(());
                }
            }
            next = page.next_page();
        }
        Ok(())
    }

    fn message(&self, id: &str) -> Result<Shaped<Message>> {
        Shaped::new(json::message(&self.log, id.parse()?)?)
    }

    fn event(&self, id: &str) -> Result<Shaped<Event>> {
        Shaped::new(json::event(&self.log.event(id.parse()?)?))
    }

    fn append(&self, session: &str, sent: &Sent<'_>) -> Result<Appended> {
        let ack = self.log.append(&session.parse()?, batch_of(sent)?)?;
        let Ack {
            events, replayed, ..
        } = ack;
        let events = events.iter().map(|event| Shaped::new(json::event(event)));
        Ok(Appended {
            events: events.collect::<Result<_>>()?,
            replayed,
        })
    }

    fn follow(&self, what: &Follow<'_>, each: EachItem<'_>) -> Result<End> {
        let mut stream = self.stream(what)?;
        loop {
            while let ControlFlow::Continue(item) = next_now(&mut stream)? {
                match item {
                    StreamItem::Event(event) => {
                        each(Item::Event(Shaped::new(json::event(&event))?))?;
                    }
                    StreamItem::Change(change) => {
                        each(Item::Change(Shaped::new(json::change(&change))?))?;
                    }
                    StreamItem::CaughtUp => each(Item::CaughtUp)?,
                    StreamItem::Closed => return Ok(End::Closed),
                    StreamItem::Deleted => return Ok(End::Deleted),
                    _ => {}
                }
                if what.interrupt.is_set() {
                    return Ok(End::Interrupted);
                }
            }
            if what.interrupt.wait(LOOK_EVERY) {
                return Ok(End::Interrupted);
            }
            self.log.refresh()?;
        }
    }

    fn close(&self) -> Result<()> {
        Ok(self.log.close()?)
    }
}

/// Returns the next item that is there, or breaks.
fn next_now(stream: &mut EventStream) -> Result<ControlFlow<(), StreamItem>> {
    match stream.next_timeout(Duration::ZERO) {
        Ok(item) => Ok(ControlFlow::Continue(item)),
        Err(RecvTimeout::Failed(error)) => Err(error.into()),
        Err(_nothing) => Ok(ControlFlow::Break(())),
    }
}

fn query_of(list: &SessionList) -> SessionQuery {
    let mut query = match list.order {
        Order::Recent => SessionQuery::by_activity(),
        Order::Id => SessionQuery::by_id(),
        Order::Created => SessionQuery::by_creation(),
    };
    query = match list.standing {
        Standing::Any => query,
        Standing::Open => query.open(),
        Standing::Closed => query.closed(),
    };
    if list.direction == Direction::Reverse {
        query = query.reversed();
    }
    if let Some(prefix) = &list.prefix {
        query = query.prefix(prefix);
    }
    if let Some(time) = list.active_since {
        query = query.active_since(time);
    }
    for (name, value) in &list.metadata {
        query = query.metadata(name, value);
    }
    query.limit(page_limit(list.limit))
}

fn page_of(range: &Range) -> Result<PageRequest> {
    let mut page = PageRequest::new().limit(page_limit(range.limit));
    if let Some(after) = &range.after {
        page = page.after(cursor_of(after)?);
    }
    if let Some(before) = &range.before {
        page = page.before(cursor_of(before)?);
    }
    if !range.types.is_empty() {
        page = page.types(&range.types);
    }
    Ok(match range.direction {
        Direction::Forward => page,
        Direction::Reverse => page.newest_first(),
    })
}

/// The limit of a page, of which so many items are wanted.
pub(super) fn page_limit(wanted: Option<usize>) -> usize {
    wanted.unwrap_or(PAGE).clamp(1, PAGE)
}

fn cursor_of(position: &Position) -> Result<Cursor> {
    Ok(match position {
        Position::Seq(seq) => Cursor::Seq(*seq),
        Position::Event(id) => Cursor::Event(id.parse::<EventId>()?),
    })
}

fn batch_of(sent: &Sent<'_>) -> Result<Batch, Failure> {
    let events = sent.events.iter().map(|event| json::new_event(event));
    let events = events.collect::<Result<Vec<NewEvent>, sessionlog::Error>>()?;
    let mut batch = Batch::new().events(events);
    if let Some(key) = sent.key {
        batch = batch.idempotency_key(key);
    }
    if let Some(seq) = sent.expected {
        batch = batch.expected(Expected::Seq(seq));
    }
    Ok(match sent.end {
        AfterIt::StaysOpen => batch,
        AfterIt::Closes => batch.closing(),
    })
}
