//! Work in the background that keeps the journal short and lookups cheap. No caller waits for it,
//! except a writer that outruns it.

mod filters;
mod seal;

pub(crate) use filters::{MergeSignal, Merger};
pub(crate) use seal::{SealSignal, Sealer, Timing};
