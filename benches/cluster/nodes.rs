//! The nodes that are measured.

#[path = "../../tests/support/further.rs"]
mod further;

use std::path::PathBuf;
use std::process::{Command, Output};

use further::further;

/// Makes the nodes, and lets them fail.
const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/postgres/cluster.sh"
);

/// How the script says that PostgreSQL is not installed.
const NOT_INSTALLED: i32 = 69;

/// A server that was named, or nodes that are made here and destroyed at the end.
pub(crate) struct Nodes {
    pub(crate) url: String,
    are_own: bool,
}

impl Nodes {
    /// Returns the server at `SESSION_LOG_POSTGRES_URL`, or a primary and two standbys. `None` if
    /// there is no PostgreSQL to make them with.
    pub(crate) fn get() -> Option<Self> {
        if let Ok(url) = std::env::var("SESSION_LOG_POSTGRES_URL") {
            let are_own = false;
            return Some(Self { url, are_own });
        }
        let created = script(&["create", "3"]);
        if created.status.code() == Some(NOT_INSTALLED) {
            return None;
        }
        let mut nodes = Self {
            url: String::new(),
            are_own: true,
        };
        said(&["create", "3"], created);
        nodes.url = nodes.run(&["url"]);
        Some(nodes)
    }

    /// Returns the URL of a second database, which the script makes.
    pub(crate) fn further(&self) -> Option<String> {
        self.are_own.then(|| further(&self.url))
    }

    /// Whether its nodes may be killed.
    pub(crate) fn may_fail(&self) -> bool {
        self.are_own
    }

    pub(crate) fn run(&self, words: &[&str]) -> String {
        assert!(self.are_own, "no nodes of this benchmark");
        said(words, script(words))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if self.are_own {
            drop(script(&["destroy"]));
        }
    }
}

fn script(words: &[&str]) -> Output {
    let mut command = Command::new("bash");
    command.arg(SCRIPT).args(words);
    // Nodes of a run that was killed are in its place, and are replaced by the next. Those of
    // tests are elsewhere.
    if std::env::var_os("SESSIONLOG_PG_ROOT").is_none() {
        let folder = std::env::var_os("SESSION_LOG_BENCH_DIR")
            .map_or_else(std::env::temp_dir, PathBuf::from);
        command
            .env(
                "SESSIONLOG_PG_ROOT",
                folder.join("sessionlog-cluster-bench"),
            )
            .env("SESSIONLOG_PG_PORT", "5641");
    }
    command.output().unwrap()
}

fn said(words: &[&str], output: Output) -> String {
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {why}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
