//! `cargo campaign`: lists the campaigns, and runs one or all.
//!
//! The campaigns are tests, and `cargo test` makes a few runs of each. This program builds the
//! `cargo test` command for the chosen ones, and sets the variables for the number of runs.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

mod catalog;

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

use catalog::{CAMPAIGNS, Campaign, PLACES, Place};

const HELP: &str = "\
Looks for a way to break what the log promises.

    cargo campaign                  lists the campaigns
    cargo campaign NAME             runs one, with few runs
    cargo campaign quick | full     runs all, with few runs or with all

    --full          all runs of NAME
    --runs N        so many runs
    --seed N        the seed that a run told, to see it again
";

/// The part that the names of all campaigns share, and no other test has.
const ALL: &str = "campaign";

/// What the command line asks for.
#[derive(Default)]
struct Request {
    names: Vec<String>,
    is_full: bool,
    runs: Option<String>,
    seed: Option<String>,
}

fn main() -> ExitCode {
    match Request::parse(env::args().skip(1)).and_then(Request::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

impl Request {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut request = Self::default();
        while let Some(argument) = arguments.next() {
            let number = |value: Option<String>| {
                value
                    .filter(|value| value.parse::<u64>().is_ok())
                    .ok_or_else(|| format!("{argument} takes a number"))
            };
            match argument.as_str() {
                "--full" => request.is_full = true,
                "--runs" => request.runs = Some(number(arguments.next())?),
                "--seed" => request.seed = Some(number(arguments.next())?),
                "--help" => return Ok(Self::default()),
                option if option.starts_with('-') => return Err(HELP.to_owned()),
                _name => request.names.push(argument),
            }
        }
        Ok(request)
    }

    fn run(mut self) -> Result<(), String> {
        match self.names.as_slice() {
            [] => {
                list();
                return Ok(());
            }
            [all] if all == "full" || all == "quick" => {
                self.is_full |= all == "full";
                return self.run_each(PLACES.iter().map(|place| (*place, ALL)));
            }
            _names => {}
        }
        let chosen: Vec<_> = self
            .names
            .iter()
            .map(|name| find(name))
            .collect::<Result<_, _>>()?;
        self.run_each(
            chosen
                .into_iter()
                .map(|campaign| (campaign.place, campaign.tests)),
        )
    }

    /// Runs all of them, also after one has failed.
    fn run_each(&self, wanted: impl Iterator<Item = (Place, &'static str)>) -> Result<(), String> {
        let failed: Vec<_> = wanted
            .filter(|(place, tests)| !self.passes(*place, tests))
            .map(|(place, tests)| format!("{tests} ({place:?})"))
            .collect();
        if failed.is_empty() {
            Ok(())
        } else {
            Err(format!("failed: {}", failed.join(", ")))
        }
    }

    fn passes(&self, place: Place, tests: &str) -> bool {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.arg("test").args(place.target());
        for (variable, value) in [
            ("SESSION_LOG_RUNS", &self.runs),
            ("SESSION_LOG_SEED", &self.seed),
        ] {
            if let Some(value) = value {
                cargo.env(variable, value);
            }
        }
        if self.is_full {
            cargo.arg("--release").env("SESSION_LOG_CAMPAIGN", "full");
        }
        cargo
            .args(["--", tests])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .status()
            .is_ok_and(|status| status.success())
    }
}

fn find(name: &str) -> Result<&'static Campaign, String> {
    let found = CAMPAIGNS.iter().find(|campaign| campaign.name == name);
    found.ok_or_else(|| format!("there is no campaign {name:?}; `cargo campaign` lists them"))
}

fn list() {
    println!("{HELP}\nNAME, and what goes wrong in it:\n");
    for Campaign { name, breaks, .. } in CAMPAIGNS {
        println!("    {name:<20}{breaks}");
    }
}
