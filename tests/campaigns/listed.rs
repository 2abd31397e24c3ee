//! `cargo campaign` lists exactly the campaigns that exist.

use std::fs;
use std::path::Path;

use super::catalog::{CAMPAIGNS, Campaign};
use super::root;

/// The files and folders that have campaigns.
const PLACES: &[&str] = &[
    "src/testing",
    "tests/campaigns/main.rs",
    "tests/server",
    "fuzz/tests",
];

pub(crate) fn every_campaign_is_listed() {
    let mut names = Vec::new();
    for place in PLACES {
        collect(&root().join(place), &mut names);
    }
    for name in &names {
        assert!(
            CAMPAIGNS.iter().any(|campaign| is_part(campaign, name)),
            "`cargo campaign` does not know {name}"
        );
    }
    for campaign in CAMPAIGNS {
        assert!(
            names.iter().any(|name| is_part(campaign, name)),
            "there is no campaign {}",
            campaign.name
        );
    }
}

fn is_part(campaign: &Campaign, test: &str) -> bool {
    let name = campaign.tests.rsplit("::").next().unwrap_or_default();
    test.starts_with(name)
}

/// Returns the names of tests, which are functions or string literals.
fn collect(place: &Path, names: &mut Vec<String>) {
    if place.is_dir() {
        for entry in fs::read_dir(place).expect("a folder") {
            collect(&entry.expect("an entry").path(), names);
        }
    } else if place.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(place).expect("a source file");
        for before in ["fn ", "\""] {
            names.extend(text.split(before).skip(1).filter_map(name));
        }
    }
}

fn name(text: &str) -> Option<String> {
    let ends = |letter: char| letter != '_' && !letter.is_ascii_lowercase();
    let name = text.split(ends).next()?;
    name.starts_with("campaign_").then(|| name.to_owned())
}
