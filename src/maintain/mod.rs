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

#[cfg(feature = "postgres")]
pub(crate) use gather::put_kept;
pub(crate) use gather::{SessionSink, gather, gather_recent};
#[cfg(feature = "postgres")]
pub(crate) use keep::{Keep, Kept};
#[cfg(feature = "postgres")]
pub(crate) use retain::look_every;
pub(crate) use retain::plan;
#[cfg(any(feature = "postgres", all(test, not(shuttle))))]
pub(crate) use retain::{Own, remove_due};
pub(crate) use threads::Threads;
