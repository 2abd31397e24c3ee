//! When streams with a TTL were used last, apart from writes.

use std::collections::HashMap;

use crate::model::SessionId;
use crate::sync::Mutex;

/// The last uses of streams with a TTL that the log knows nothing of. A write renews a TTL in the
/// log too, by the time of its event.
pub(super) struct Uses {
    /// When the router was made: a restart begins every TTL anew, in milliseconds.
    began_ms: u64,
    pub of: Mutex<HashMap<SessionId, Use>>,
}

#[derive(Default)]
pub(super) struct Use {
    pub last_ms: u64,
    pub readers: usize,
}

impl Uses {
    pub(super) fn new(began_ms: u64) -> Self {
        Self {
            began_ms,
            of: Mutex::new(HashMap::new()),
        }
    }

    /// The streams that were used.
    pub(super) fn sessions(&self) -> Vec<SessionId> {
        self.of.lock().keys().cloned().collect()
    }

    /// Forgets the uses of a stream that has no TTL any more.
    pub(super) fn forget(&self, session: &SessionId) {
        let mut of = self.of.lock();
        if of.get(session).is_some_and(|used| used.readers == 0) {
            of.remove(session);
        }
    }

    /// Returns when a stream was used last, or `None` while it is read.
    pub(super) fn last_ms(&self, session: &SessionId) -> Option<u64> {
        match self.of.lock().get(session) {
            Some(used) if used.readers > 0 => None,
            Some(used) => Some(used.last_ms.max(self.began_ms)),
            None => Some(self.began_ms),
        }
    }
}
