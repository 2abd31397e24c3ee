//! Tests that need the inside: disks that fail on purpose, and campaigns on a disk that is
//! simulated behind the I/O seam.
//!
//! What they share with the campaigns that work from outside, in `tests/campaigns`, lies there.

#[cfg(test)]
#[allow(dead_code, reason = "campaigns from outside use the rest")]
#[path = "../../tests/campaigns/crash_image.rs"]
mod crash_image;
#[cfg(all(test, not(shuttle)))]
mod damage;
#[cfg(test)]
mod faults;
#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(test)]
#[allow(dead_code, reason = "campaigns from outside use the rest")]
#[path = "../../tests/campaigns/ledger.rs"]
mod ledger;
#[cfg(all(test, not(shuttle)))]
mod power_cuts;
#[cfg(test)]
#[allow(dead_code, reason = "campaigns from outside use the rest")]
#[path = "../../tests/campaigns/report.rs"]
mod report;
#[cfg(all(test, shuttle))]
mod schedules;
#[cfg(test)]
#[cfg_attr(shuttle, allow(dead_code, reason = "the power cuts use the rest"))]
mod simulated;
