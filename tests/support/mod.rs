//! What the campaigns that work from inside, in `src/testing`, share with those that work from
//! outside, in `tests/campaigns`, and with the smoke tests of `fuzz`: what a crash leaves, the
//! ledger of what was acknowledged, and the report.
//!
//! Each of them includes this folder in one place, by `#[path]`, and uses a part of it. It names
//! the crate as those outside do.

pub(crate) mod crash_image;
pub(crate) mod ledger;
pub(crate) mod report;
