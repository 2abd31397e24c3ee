//! Lists sessions: by ID, by newest activity, or by creation.

use crate::model::Result;
use crate::read::listing::PageBuilder;
use crate::read::query::{SessionPage, SessionQuery};
use crate::read::store::Store;

impl Store {
    /// Returns a page of sessions.
    pub(crate) fn sessions(&self, query: SessionQuery) -> Result<SessionPage> {
        let limit = query.checked_limit(&self.options)?;
        let mut page = PageBuilder::new(query, limit);
        self.records.walk(&mut page)?;
        Ok(page.into_page())
    }
}
