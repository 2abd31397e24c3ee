//! The public conformance suite of the Durable Streams protocol, against `sessionlog serve`.
//!
//! Needs Node with `npm`, and the packages of `package.json` from its registry.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::missing;
use crate::packages::{Obstacle, can, copy, environment, npm, run};
use crate::process::{Server, command, free_address};
use crate::report::{Runs, tell};

/// The tests of the suite but those of subscriptions. More would be a suite of another version.
const TESTS: u64 = 332;

/// Its properties are tested with other values each time.
const RUNS: Runs = Runs { quick: 2, full: 20 };

/// After each run the server is killed. What a run left behind disturbs the next one as little as
/// the restart does.
pub(crate) fn the_suite_of_the_protocol_passes_before_and_after_a_kill() -> Result<(), Obstacle> {
    missing(&["node", "npm"]).map_or(Ok(()), Err)?;
    let project = environment("durable_streams");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/durable_streams");
    for file in ["package.json", "conformance.test.mjs"] {
        copy(&sources, file, &project);
    }
    can(npm(&project).arg("install"))?;
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    for _run in 0..RUNS.planned() {
        let mut serve = command(&folder.path().join("data"), &address);
        serve.args([
            "--open",
            "--durable-streams",
            "/ds",
            "--long-poll-wait",
            "3s",
        ]);
        let server = Server::of(&mut serve);
        check(&project, &format!("{}/ds", server.url));
        server.kill();
    }
    Ok(())
}

fn check(project: &Path, url: &str) {
    let report = project.join("report.json");
    let mut suite = Command::new("npx");
    suite
        .current_dir(project)
        .args(["vitest", "run", "--reporter=json", "--outputFile"])
        .arg(&report)
        // Tests without a limit of their own get one for a busy machine.
        .arg("--testTimeout=120000")
        .env("STREAMS_URL", url);
    let (_succeeds, said) = run(&mut suite);
    let report = std::fs::read_to_string(&report).unwrap_or_else(|error| {
        panic!("the suite left no report: {error}\n{said}");
    });
    let report: Value = serde_json::from_str(&report).unwrap();
    let tests = report["testResults"][0]["assertionResults"]
        .as_array()
        .unwrap();
    let failures: Vec<String> = tests
        .iter()
        .filter(|test| test["status"] == "failed")
        .map(|test| format!("{}: {}", test["fullName"], test["failureMessages"]))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let passed = tests
        .iter()
        .filter(|test| test["status"] == "passed")
        .count() as u64;
    tell(&format!("{passed} tests of the suite passed\n"));
    assert_eq!(passed, TESTS, "{said}");
}
