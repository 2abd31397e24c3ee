//! Lists of sessions, merged over the databases of a log.

use std::collections::VecDeque;

use crate::codec::SessionState;
use crate::model::{EventId, Result, SessionId};
use crate::postgres::databases::Database;
use crate::postgres::pool::Ask;
use crate::postgres::reads::{Tables, state};
use crate::postgres::sql::Id;
use crate::read::{Direction, PageBuilder, SessionCursor, SessionOrder};

/// The sessions that one statement lists.
const LISTED_AT_ONCE: i64 = 256;

impl Tables {
    /// Visits the sessions of a query in its order, until the page is full.
    pub(super) fn walk(&self, page: &mut PageBuilder) -> Result<()> {
        self.databases.over_all(|| {
            let query = page.query().clone();
            let (start, prefix) = (Start::of(page), query.prefix_text());
            let databases = self.databases.all().iter();
            let lists = databases.map(|database| List::new(database, query.order(), start.clone()));
            let mut lists: Vec<_> = lists.collect();
            let is_up = query.direction() == Direction::Ascending;
            loop {
                let mut next: Option<(usize, Key)> = None;
                for (nth, list) in lists.iter_mut().enumerate() {
                    let Some(key) = list.peek()? else { continue };
                    let is_first = next.as_ref().is_none_or(|(_, best)| (key < *best) == is_up);
                    if is_first {
                        next = Some((nth, key));
                    }
                }
                let list = next.and_then(|(nth, _)| lists.get_mut(nth));
                let Some((session, state)) = list.and_then(List::pop) else {
                    return Ok(());
                };
                if query.order() == SessionOrder::Id && !session.as_str().starts_with(prefix) {
                    return Ok(());
                }
                let cursor = match query.order() {
                    SessionOrder::Id => SessionCursor::Id(session.clone()),
                    SessionOrder::Activity => SessionCursor::At(state.active_id),
                    SessionOrder::Creation => SessionCursor::At(state.created_id),
                };
                if page.visit(&session, &state, cursor) {
                    return Ok(());
                }
            }
        })
    }
}

/// What sessions are sorted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Name(String),
    At(EventId),
}

/// Where a list begins: the first statement, and what comes after it, with the place.
#[derive(Clone)]
struct Start {
    first: Ask,
    then: Ask,
    at: Key,
}

impl Start {
    fn of(page: &PageBuilder) -> Self {
        let query = page.query();
        if query.order() == SessionOrder::Id {
            return Self::by_id(page);
        }
        let ask = match (query.order(), query.direction()) {
            (SessionOrder::Activity, Direction::Ascending) => Ask::ByActivityUp,
            (SessionOrder::Activity, Direction::Descending) => Ask::ByActivityDown,
            (_, Direction::Ascending) => Ask::ByCreationUp,
            (_, Direction::Descending) => Ask::ByCreationDown,
        };
        let at = match (query.cursor(), query.direction()) {
            (Some(SessionCursor::At(id)), _) => *id,
            (_, Direction::Ascending) => EventId::from_u128(0),
            (_, Direction::Descending) => EventId::from_u128(u128::MAX),
        };
        Self {
            first: ask,
            then: ask,
            at: Key::At(at),
        }
    }

    fn by_id(page: &PageBuilder) -> Self {
        let query = page.query();
        let prefix = query.prefix_text();
        let after = match query.cursor() {
            Some(SessionCursor::Id(id)) => Some(id.as_str().to_owned()),
            _ => None,
        };
        let (first, then, at) = match query.direction() {
            Direction::Ascending => match after.filter(|after| after.as_str() >= prefix) {
                Some(after) => (Ask::ByIdUp, Ask::ByIdUp, after),
                None => (Ask::ByIdFrom, Ask::ByIdUp, prefix.to_owned()),
            },
            // The last character of all, as often as an ID has room for it, comes after every ID
            // with the prefix.
            Direction::Descending => {
                let last = char::MAX.to_string();
                let times = SessionId::BYTES_MAX / last.len() + 1;
                let end = format!("{prefix}{}", last.repeat(times));
                let at = after.map_or(end.clone(), |after| after.min(end));
                (Ask::ByIdDown, Ask::ByIdDown, at)
            }
        };
        Self {
            first,
            then,
            at: Key::Name(at),
        }
    }
}

/// The list of one database.
pub(super) struct List<'a> {
    database: &'a Database,
    order: SessionOrder,
    start: Start,
    read: VecDeque<(SessionId, SessionState)>,
    is_over: bool,
}

impl<'a> List<'a> {
    fn new(database: &'a Database, order: SessionOrder, start: Start) -> Self {
        Self {
            database,
            order,
            start,
            read: VecDeque::new(),
            is_over: false,
        }
    }

    /// All sessions of a database, by their IDs.
    pub(super) fn of_all(database: &'a Database) -> Self {
        let start = Start {
            first: Ask::ByIdFrom,
            then: Ask::ByIdUp,
            at: Key::Name(String::new()),
        };
        Self::new(database, SessionOrder::Id, start)
    }

    /// Returns what the next session is sorted by.
    fn peek(&mut self) -> Result<Option<Key>> {
        self.read_on()?;
        let next = self.read.front();
        Ok(next.map(|(session, state)| self.key(session, state)))
    }

    fn key(&self, session: &SessionId, state: &SessionState) -> Key {
        match self.order {
            SessionOrder::Id => Key::Name(session.to_string()),
            SessionOrder::Activity => Key::At(state.active_id),
            SessionOrder::Creation => Key::At(state.created_id),
        }
    }

    fn pop(&mut self) -> Option<(SessionId, SessionState)> {
        self.read.pop_front()
    }

    /// Returns the next session.
    pub(super) fn next(&mut self) -> Result<Option<(SessionId, SessionState)>> {
        self.read_on()?;
        Ok(self.pop())
    }

    fn read_on(&mut self) -> Result<()> {
        if !self.read.is_empty() || self.is_over {
            return Ok(());
        }
        let pool = &self.database.pool;
        let rows = match &self.start.at {
            Key::Name(name) => pool.rows(self.start.first, &[name, &LISTED_AT_ONCE])?,
            Key::At(id) => pool.rows(self.start.first, &[&Id(*id), &LISTED_AT_ONCE])?,
        };
        for row in &rows {
            let session = SessionId::new(row.get::<_, &str>(0))?;
            let state = state(&self.database.site, row.get(1))?;
            self.start.at = self.key(&session, &state);
            self.read.push_back((session, state));
        }
        self.start.first = self.start.then;
        self.is_over = (rows.len() as u64) < LISTED_AT_ONCE.unsigned_abs();
        Ok(())
    }
}
