//! Campaigns that look for a way to break the promises, each in its own way. What they have in common is the
//! [ledger](ledger::Ledger): what was acknowledged must be there.
//!
//! `cargo test` runs a quick tier of each; with `SESSION_LOG_CAMPAIGN=full` all their runs are made. Each tells its runs, violations,
//! what it skipped and why, and its seed. A campaign that this machine cannot run is ignored, and says so.

mod block_device;
#[allow(dead_code, reason = "campaigns from inside use the rest")]
mod crash_image;
mod failing_calls;
mod full_disk;
mod history;
mod kill;
#[allow(dead_code, reason = "campaigns from inside use the rest")]
mod ledger;
mod mounts;
mod openers;
mod process;
#[allow(dead_code, reason = "campaigns from inside use the rest")]
mod report;
mod system_calls;
mod trace;

use libtest_mimic::{Arguments, Trial};

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
    let campaigns = [
        Campaign { name: "campaign_kill", run: kill::campaign, obstacle: None },
        Campaign { name: "campaign_power_cuts_in_a_trace", run: trace::campaign, obstacle: system_calls::obstacle() },
        Campaign { name: "campaign_power_cuts_on_file_systems", run: block_device::campaign, obstacle: block_device::obstacle() },
        Campaign { name: "campaign_full_disks", run: full_disk::campaign, obstacle: mounts::obstacle() },
        Campaign { name: "campaign_concurrent_openers", run: openers::campaign, obstacle: None },
        Campaign { name: "campaign_histories", run: history::campaign, obstacle: None },
        Campaign { name: "campaign_failing_calls", run: failing_calls::campaign, obstacle: system_calls::obstacle() },
    ];
    let mut arguments = Arguments::from_args();
    // They wait for disks more than they compute.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    libtest_mimic::run(&arguments, campaigns.into_iter().map(Campaign::into_trial).collect()).exit();
}

impl Campaign {
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
