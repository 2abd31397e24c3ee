//! The state of the write path that the rest of the log needs: the durable position, and whether
//! the log still writes.
//!
//! Reading this state takes no lock.

use std::sync::{Arc, OnceLock};

use crate::model::{Error, Result};
use crate::sync::{AtomicU64, Ordering};

/// The durable position of a log and the failure that ended its writing, if any.
pub(crate) struct LogState {
    durable_lsn: AtomicU64,
    poison: OnceLock<Arc<Error>>,
}

impl LogState {
    /// Makes the state of a log that ends at `durable_lsn`.
    pub(crate) fn new(durable_lsn: u64) -> Self {
        Self {
            durable_lsn: AtomicU64::new(durable_lsn),
            poison: OnceLock::new(),
        }
    }

    /// Returns the LSN before which everything is on stable storage.
    pub(crate) fn durable_lsn(&self) -> u64 {
        self.durable_lsn.load(Ordering::Acquire)
    }

    /// Sets the durable LSN. Only the thread whose barrier made everything before `lsn` durable may
    /// call it.
    pub(crate) fn set_durable_lsn(&self, lsn: u64) {
        self.durable_lsn.store(lsn, Ordering::Release);
    }

    /// Stops all further writes after a failed one, and returns the error. The first error is kept.
    pub(crate) fn poison(&self, error: Error) -> Error {
        self.poison.get_or_init(|| {
            tracing::error!(
                target: "sessionlog",
                error = error.with_sources(),
                "the log takes no more appends until it is opened again"
            );
            Arc::new(error.clone())
        });
        error
    }

    /// Returns the failure that poisoned the log.
    pub(crate) fn failure(&self) -> Option<&Error> {
        self.poison.get().map(|failure| &**failure)
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        self.poison.get().map_or(Ok(()), |source| {
            Err(Error::Poisoned {
                source: Arc::clone(source),
            })
        })
    }
}
