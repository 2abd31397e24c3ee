//! Campaigns that look for a way to break the promises from inside: on a disk that is simulated
//! behind the I/O seam.
//!
//! What they share with those that work from outside, in `tests/campaigns`, lies there.

#[allow(dead_code, reason = "campaigns from outside use the rest")]
#[path = "../../tests/campaigns/crash_image.rs"]
mod crash_image;
#[cfg(not(shuttle))]
mod damage;
#[allow(dead_code, reason = "campaigns from outside use the rest")]
#[path = "../../tests/campaigns/ledger.rs"]
mod ledger;
#[cfg(not(shuttle))]
mod power_cuts;
#[allow(dead_code, reason = "campaigns from outside use the rest")]
#[path = "../../tests/campaigns/report.rs"]
mod report;
#[cfg(shuttle)]
mod schedules;
#[cfg_attr(shuttle, allow(dead_code, reason = "the power cuts use the rest"))]
mod simulated;
