//! The state that the write path shares with the threads that make room for it.

use std::sync::Arc;

use crate::disk::Refusals;
use crate::index::Locator;
use crate::journal::Spares;
use crate::model::Counters;
use crate::recent::Recent;
use crate::sync::Mailbox;
use crate::write::signal::{RetainOrders, SealSignal};
use crate::write::state::LogState;

/// The parts of a log that requests, commit groups and sealing work on.
pub(crate) struct Shared {
    pub state: LogState,
    pub recent: Arc<Recent>,
    pub locator: Arc<Locator>,
    pub spares: Spares,
    pub seal: SealSignal,
    /// The retaining thread's mailbox.
    pub retain: Mailbox<RetainOrders>,
    pub counters: Arc<Counters>,
    pub refusals: Arc<Refusals>,
}
