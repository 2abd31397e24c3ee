//! Places for open streams and waiting calls, of which there is a limited number.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::error::ApiError;

#[derive(Debug)]
pub(super) struct Places {
    left: Arc<Semaphore>,
    max: usize,
}

/// A place among them. Dropping it returns it.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(max: usize) -> Self {
        Self {
            left: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))),
            max,
        }
    }

    /// Takes a place, or refuses the call. `of` says whose places these are.
    pub(super) fn take(&self, of: &str) -> Result<Place, ApiError> {
        let taken = Arc::clone(&self.left).try_acquire_owned();
        taken
            .map(|permit| Place { _permit: permit })
            .map_err(|_full| ApiError::too_many_streams(of, self.max))
    }
}
