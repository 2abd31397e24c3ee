//! The lines of an export that are not records or states.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::model::EventId;
use crate::transfer::omit::is_false;
use crate::transfer::record::RecordLine;
use crate::transfer::state::StateLine;

/// The version of the form of the lines.
pub(super) const VERSION: u32 = 1;

/// A line: an object whose one member says what it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line<'a> {
    SessionlogExport(#[serde(borrow)] Header<'a>),
    Part(PartLine),
    Record(#[serde(borrow)] Box<RecordLine<'a>>),
    State(#[serde(borrow)] Box<StateLine<'a>>),
    PartEnd(PartEnd),
    ExportEnd(ExportEnd),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header<'a> {
    pub version: u32,
    /// The ID of the store, in hexadecimal digits.
    #[serde(borrow)]
    pub store: Cow<'a, str>,
    /// Whether it has some sessions alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub selected: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartLine {
    pub first_id: EventId,
    pub last_id: EventId,
    /// How often its records were merged.
    #[serde(default)]
    pub tier: u8,
    /// The number of sessions and keys at most. It sizes the filter.
    pub items_max: u64,
    /// Whether parts before it were exported by an earlier run. These still have what was removed
    /// between the two.
    #[serde(default, skip_serializing_if = "is_false")]
    pub resumed: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartEnd {
    pub records: u64,
    pub states: u64,
    /// The number of records that were left out because they had been removed, or of which some
    /// events were.
    #[serde(default)]
    pub dropped: u64,
    /// The last ID of the part.
    pub last_id: Option<EventId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExportEnd {
    pub last_id: Option<EventId>,
}
