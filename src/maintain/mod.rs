//! Background work that keeps the journal short and lookups cheap. No caller waits for it, except a
//! writer that outruns it.

mod filters;
mod seal;
mod threads;

pub(crate) use threads::Threads;
