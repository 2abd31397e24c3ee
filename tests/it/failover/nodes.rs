//! The nodes of the campaign, by the script that runs them.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::REST;

/// The nodes. One test at a time has them.
pub(super) struct Cluster {
    script: String,
    /// Whether each node has a network of its own, so that it can be cut off.
    pub has_networks: bool,
    #[allow(dead_code, reason = "held")]
    alone: MutexGuard<'static, ()>,
}

impl Cluster {
    /// The nodes, or `None` without a script.
    pub(super) fn get() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let Ok(script) = std::env::var("SESSION_LOG_POSTGRES_CLUSTER") else {
            eprintln!("skipped: SESSION_LOG_POSTGRES_CLUSTER names no script of a cluster");
            return None;
        };
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cluster = Self {
            script,
            has_networks: false,
            alone,
        };
        cluster.has_networks = cluster.run(&["netns"]) == "yes";
        cluster.rest();
        Some(cluster)
    }

    pub(super) fn run(&self, words: &[&str]) -> String {
        let output = Command::new("bash").arg(&self.script).args(words).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(super) fn primary(&self) -> String {
        let status = self.run(&["status"]);
        let line = status.lines().find(|line| line.contains(": primary"));
        let line = line.unwrap_or_else(|| panic!("no primary: {status}"));
        line[1..2].to_owned()
    }

    pub(super) fn standbys(&self) -> Vec<String> {
        let primary = self.primary();
        let nodes = ["1", "2", "3"].map(str::to_owned);
        nodes.into_iter().filter(|node| *node != primary).collect()
    }

    /// Waits until both standbys follow.
    pub(super) fn rest(&self) {
        let primary = self.primary();
        let both = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let until = Instant::now() + REST;
        while self.run(&["sql", &primary, both]) != "2" {
            assert!(Instant::now() < until, "{}", self.run(&["status"]));
            sleep(Duration::from_millis(100));
        }
    }
}
