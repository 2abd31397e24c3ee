//! Campaigns that look for a way to break the promises, each in its own way. What they have in
//! common is the [ledger](support::ledger::Ledger): what was acknowledged must be there.
//!
//! `cargo test` runs a quick tier of each; with `SESSION_LOG_CAMPAIGN=full` all their runs are
//! made. Each tells its runs, violations, what it skipped and why, and its seed. A campaign that
//! this machine cannot run is ignored, and says so.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::missing_errors_doc,
    reason = "all of this program is a test, which the lints do not know"
)]

mod block_device;
mod displaced;
mod failing_calls;
mod full_disk;
mod history;
mod kill;
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

use std::path::{Path, PathBuf};

use libtest_mimic::{Arguments, Trial};

use support::report;

/// A campaign, and why it cannot be run here, if so.
struct Campaign {
    name: &'static str,
    run: fn(),
    obstacle: Option<String>,
}

fn main() {
    if let Some(role) = process::Role::of_this_process() {
        role.play();
    }
    let (strace, mounts, fuse) = (
        system_calls::obstacle,
        mounts::obstacle,
        block_device::obstacle,
    );
    let campaigns = [
        // First, since they build for a while.
        Campaign::new("campaign_schedules", nested::schedules, never),
        Campaign::new(
            "campaign_hostile_bytes",
            nested::hostile_bytes,
            nested::no_fuzz_package,
        ),
        Campaign::new("campaign_kill", kill::campaign, never),
        Campaign::new("campaign_power_cuts_in_a_trace", trace::campaign, strace),
        Campaign::new(
            "campaign_power_cuts_in_a_trace_notice_a_void_barrier",
            trace::campaign_without_barriers,
            strace,
        ),
        Campaign::new(
            "campaign_power_cuts_on_sled",
            trace::campaign_on_sled,
            strace,
        ),
        Campaign::new(
            "campaign_power_cuts_on_file_systems",
            block_device::campaign,
            fuse,
        ),
        Campaign::new("campaign_failing_calls", failing_calls::campaign, strace),
        Campaign::new("campaign_displaced_folders", displaced::campaign, never),
        Campaign::new("campaign_full_disks", full_disk::campaign, mounts),
        Campaign::new("campaign_concurrent_openers", openers::campaign, never),
        Campaign::new("campaign_histories", history::campaign, never),
        Campaign::new("campaign_soak", soak::campaign, never),
        Campaign::new("campaign_mutants", mutants::campaign, full_tier_only),
        Campaign::new(
            "campaign_mutants_can_be_made",
            mutants::campaign_of_edits,
            never,
        ),
    ];
    let mut arguments = Arguments::from_args();
    // They wait for disks more than they compute.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    libtest_mimic::run(
        &arguments,
        campaigns.into_iter().map(Campaign::into_trial).collect(),
    )
    .exit();
}

/// For what builds the crate many times over, or runs for long.
fn full_tier_only() -> Option<String> {
    (!report::is_full()).then(|| "it runs with SESSION_LOG_CAMPAIGN=full alone".to_owned())
}

fn never() -> Option<String> {
    None
}

/// The folder of the log's own package, around which the workspace is.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Campaign {
    fn new(name: &'static str, run: fn(), obstacle: fn() -> Option<String>) -> Self {
        Self {
            name,
            run,
            obstacle: obstacle(),
        }
    }

    fn into_trial(self) -> Trial {
        if let Some(why) = &self.obstacle {
            report::tell(&format!("{}: SKIPPED, {why}\n", self.name));
        }
        let run = self.run;
        let trial = Trial::test(self.name, move || {
            run();
            Ok(())
        });
        trial.with_ignored_flag(self.obstacle.is_some())
    }
}
