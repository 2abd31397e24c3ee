//! A page of sessions while it is made.

use crate::codec::SessionState;
use crate::model::SessionId;
use crate::read::query::{SessionCursor, SessionPage, SessionQuery};

/// The sessions that a page looks at, at most, beside those that it lists.
const LOOKED_AT_MAX: usize = 10_000;

/// Takes the sessions of a page one by one, in the order of its query.
#[derive(Clone)]
pub(crate) struct PageBuilder {
    limit: usize,
    looked_at: usize,
    page: SessionPage,
}

impl PageBuilder {
    /// A page for a query that was checked. It lists up to `limit` sessions.
    pub(super) fn new(query: SessionQuery, limit: usize) -> Self {
        Self {
            limit,
            looked_at: 0,
            page: SessionPage {
                items: Vec::new(),
                has_more: false,
                first: None,
                last: query.after.clone(),
                query,
            },
        }
    }

    pub(crate) fn query(&self) -> &SessionQuery {
        &self.page.query
    }

    pub(crate) fn is_full(&self) -> bool {
        self.page.has_more
    }

    /// Takes a session unless the query leaves it out. Returns whether the page is full.
    pub(crate) fn visit(
        &mut self,
        session: &SessionId,
        state: &SessionState,
        at: SessionCursor,
    ) -> bool {
        let page = &mut self.page;
        if page.query.takes(session, state) {
            if page.items.len() == self.limit {
                page.has_more = true;
                return true;
            }
            page.items.push(state.info(session));
            page.first.get_or_insert_with(|| at.clone());
        }
        self.pass(at)
    }

    /// Passes over a session that was looked at. Returns whether the page has looked at enough.
    pub(crate) fn pass(&mut self, at: SessionCursor) -> bool {
        self.page.last = Some(at);
        self.looked_at += 1;
        let is_enough = self.looked_at >= LOOKED_AT_MAX + self.limit;
        self.page.has_more |= is_enough;
        is_enough
    }

    pub(super) fn into_page(self) -> SessionPage {
        self.page
    }
}
