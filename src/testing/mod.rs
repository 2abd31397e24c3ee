//! Tests that need the inside: disks that fail on purpose, and campaigns on a disk that is
//! simulated behind the I/O seam.
//!
//! What they share with the campaigns that work from outside lies in `tests/support`.

#[cfg(not(shuttle))]
mod damage;
mod faults;
#[cfg(not(shuttle))]
mod power_cuts;
#[cfg(shuttle)]
mod schedules;
#[cfg_attr(shuttle, allow(dead_code, reason = "the power cuts use the rest"))]
mod simulated;
#[allow(dead_code, reason = "campaigns from outside use the rest")]
#[path = "../../tests/support/mod.rs"]
mod support;
