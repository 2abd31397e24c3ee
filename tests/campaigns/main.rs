//! Campaigns that look for a way to break the log's promises.
//!
//! All compare the log with the [ledger](support::ledger::Ledger): what was acknowledged must be
//! there.
//!
//! `cargo test` makes a few runs of each, `cargo campaign full` makes all of them, and `cargo
//! campaign` lists the campaigns. Each reports its runs, its violations, what it skipped and why,
//! and its seed. A campaign that this machine cannot run is ignored, and the report has the reason.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::missing_errors_doc,
    reason = "all of this program is a test, which the lints do not know"
)]

mod block_device;
#[allow(dead_code, reason = "`cargo campaign` uses the rest")]
mod catalog;
mod displaced;
mod failing_calls;
mod full_disk;
mod history;
mod kill;
mod listed;
mod mounts;
mod mutants;
mod nested;
mod openers;
mod process;
mod soak;
#[allow(dead_code, reason = "campaigns from inside use the rest")]
#[path = "../support/mod.rs"]
mod support;
mod system_calls;
mod trace;
#[path = "../support/trial.rs"]
mod trial;

use std::path::{Path, PathBuf};

use libtest_mimic::Arguments;

use support::report;
use trial::{full_tier_only, trial};

fn main() {
    if let Some(role) = process::Role::of_this_process() {
        role.play();
    }
    let (strace, mounts, fuse) = (
        system_calls::obstacle(),
        mounts::obstacle(),
        block_device::obstacle(),
    );
    let campaigns = vec![
        // First, since they build for a while.
        trial("campaign_schedules", nested::schedules, None),
        trial(
            "campaign_hostile_bytes",
            nested::hostile_bytes,
            nested::no_fuzz_package(),
        ),
        trial("campaign_kill", kill::campaign, None),
        trial(
            "campaign_power_cuts_in_a_trace",
            trace::campaign,
            strace.clone(),
        ),
        trial(
            "campaign_power_cuts_in_a_trace_notice_a_void_barrier",
            trace::campaign_without_barriers,
            strace.clone(),
        ),
        trial(
            "campaign_power_cuts_on_sled",
            trace::campaign_on_sled,
            strace.clone(),
        ),
        trial(
            "campaign_power_cuts_on_file_systems",
            block_device::campaign,
            fuse,
        ),
        trial("campaign_failing_calls", failing_calls::campaign, strace),
        trial("campaign_displaced_folders", displaced::campaign, None),
        trial("campaign_full_disks", full_disk::campaign, mounts),
        trial("campaign_concurrent_openers", openers::campaign, None),
        trial("campaign_histories", history::campaign, None),
        trial("campaign_soak", soak::campaign, None),
        trial("campaign_mutants", mutants::campaign, full_tier_only()),
        trial(
            "campaign_mutants_on_postgres",
            mutants::campaign_on_postgres,
            full_tier_only().or_else(mutants::obstacle_on_postgres),
        ),
        trial(
            "campaign_mutants_can_be_made",
            mutants::campaign_of_edits,
            None,
        ),
        trial(
            "every_campaign_is_listed",
            listed::every_campaign_is_listed,
            None,
        ),
    ];
    let mut arguments = Arguments::from_args();
    // They wait for disks more than they compute.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    libtest_mimic::run(&arguments, campaigns).exit();
}

/// Returns the folder of the log's own package, which is the root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
