//! Tests that need the inside: disks that fail on purpose, and campaigns on a disk that is
//! simulated behind the I/O seam.
//!
//! What they share with the campaigns that work from outside lies in `tests/support`.

#[cfg(all(test, not(shuttle)))]
mod damage;
#[cfg(test)]
mod faults;
#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(all(test, not(shuttle)))]
mod power_cuts;
#[cfg(all(test, shuttle))]
mod schedules;
#[cfg(test)]
#[cfg_attr(shuttle, allow(dead_code, reason = "the power cuts use the rest"))]
mod simulated;
#[cfg(test)]
#[allow(dead_code, reason = "campaigns from outside use the rest")]
#[path = "../../tests/support/mod.rs"]
mod support;
