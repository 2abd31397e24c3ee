//! Background work: seals, merges and erases. No caller waits for it, except a writer that outruns
//! it and a call of `compact`.

mod erase;
mod gather;
mod keep;
mod marks;
mod merge;
mod name;
mod retain;
mod seal;
mod threads;

pub(crate) use gather::{SessionSink, gather, gather_recent};
pub(crate) use retain::plan;
pub(crate) use threads::Threads;
