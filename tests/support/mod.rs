//! Code shared by the campaigns inside the crate (`src/testing`), the campaigns outside
//! (`tests/campaigns`) and the smoke tests of `fuzz`.
//!
//! It has the images that a crash leaves, the ledger of what was acknowledged with the changes of
//! sessions, and the report. Each
//! user includes this folder in one place, by `#[path]`, and uses a part of it. The code names the
//! crate as an outside user does.

pub(crate) mod changes;
pub(crate) mod crash_image;
pub(crate) mod ledger;
pub(crate) mod report;
