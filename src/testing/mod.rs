//! Tests that use the crate's internals: disks that fail on purpose, and campaigns on a disk that
//! is simulated behind the I/O seam.
//!
//! The code shared with the campaigns outside the crate is in `tests/support`.

#[cfg(not(shuttle))]
mod beside;
#[cfg(not(shuttle))]
mod damage;
mod faults;
#[cfg(not(shuttle))]
mod lives;
mod moves;
#[cfg(not(shuttle))]
mod power_cuts;
#[cfg(not(shuttle))]
mod retention;
#[cfg(shuttle)]
mod schedules;
#[cfg_attr(shuttle, allow(dead_code, reason = "the power cuts use the rest"))]
mod simulated;
#[allow(dead_code, reason = "campaigns from outside use the rest")]
#[path = "../../tests/support/mod.rs"]
mod support;
