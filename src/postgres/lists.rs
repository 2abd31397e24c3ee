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
            let mut sessions = Merged::new(self.databases.all(), &start);
            while let Some((_, session, state)) = sessions.next()? {
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
            Ok(())
        })
    }
}

/// The sessions of all databases, in one order.
pub(super) struct Merged<'a> {
    lists: Vec<List<'a>>,
    is_up: bool,
}

impl<'a> Merged<'a> {
    fn new(databases: &'a [Database], start: &Start) -> Self {
        let is_up = start.is_up;
        let lists = databases.iter().map(|database| List {
            database,
            start: start.clone(),
            read: VecDeque::new(),
            is_over: false,
        });
        Self {
            lists: lists.collect(),
            is_up,
        }
    }

    /// All of them, by their IDs.
    pub(super) fn of_all(databases: &'a [Database]) -> Self {
        let start = Start {
            order: SessionOrder::Id,
            is_up: true,
            first: Ask::ByIdFrom,
            then: Ask::ByIdUp,
            at: Key::Name(String::new()),
        };
        Self::new(databases, &start)
    }

    /// Returns the next session, with the database that has it.
    pub(super) fn next(&mut self) -> Result<Option<(&'a Database, SessionId, SessionState)>> {
        let mut next: Option<(usize, Key)> = None;
        for (nth, list) in self.lists.iter_mut().enumerate() {
            let Some(key) = list.peek()? else { continue };
            let mut best = next.iter().map(|(_, best)| best);
            if best.all(|best| (key < *best) == self.is_up) {
                next = Some((nth, key));
            }
        }
        let list = next.and_then(|(nth, _)| self.lists.get_mut(nth));
        Ok(list.and_then(|list| {
            let (session, state) = list.read.pop_front()?;
            Some((list.database, session, state))
        }))
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
    order: SessionOrder,
    is_up: bool,
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
            order: query.order(),
            is_up: query.direction() == Direction::Ascending,
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
            order: SessionOrder::Id,
            is_up: query.direction() == Direction::Ascending,
            first,
            then,
            at: Key::Name(at),
        }
    }
}

/// The list of one database.
struct List<'a> {
    database: &'a Database,
    start: Start,
    read: VecDeque<(SessionId, SessionState)>,
    is_over: bool,
}

impl List<'_> {
    /// Returns what the next session is sorted by.
    fn peek(&mut self) -> Result<Option<Key>> {
        self.read_on()?;
        let next = self.read.front();
        Ok(next.map(|(session, state)| self.key(session, state)))
    }

    fn key(&self, session: &SessionId, state: &SessionState) -> Key {
        match self.start.order {
            SessionOrder::Id => Key::Name(session.to_string()),
            SessionOrder::Activity => Key::At(state.active_id),
            SessionOrder::Creation => Key::At(state.created_id),
        }
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
