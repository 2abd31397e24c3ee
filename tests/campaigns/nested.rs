//! Campaigns that need a build of their own: `cargo` builds and runs it, and its output is passed
//! on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::root;

const FUZZ: &str = "fuzz";

/// Returns why the decoders cannot be reached, if so: a packaged crate has no fuzz package beside
/// it.
pub(crate) fn no_fuzz_package() -> Option<String> {
    (!folder(FUZZ).is_dir()).then(|| "the fuzz package is not here".to_owned())
}

/// The schedules of the commit path, explored with simulated locks and threads instead of the real
/// ones.
pub(crate) fn schedules() {
    run(Command::new(unit_tests_for_schedules(&root())).arg("campaign_schedules"));
}

/// Builds the unit tests of the package in `folder` for exploring schedules. Returns the program.
pub(crate) fn unit_tests_for_schedules(folder: &Path) -> PathBuf {
    let mut cargo = cargo(folder);
    let built = cargo
        .args(["test", "--quiet", "--package", "sessionlog", "--lib"])
        .args(["--no-run", "--message-format", "json"])
        .env("RUSTFLAGS", "--cfg shuttle")
        // The scheduler takes most of the time, and building takes longer than running.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo");
    assert!(built.status.success(), "{cargo:?}: {}", built.status);
    let said = String::from_utf8(built.stdout).expect("JSON is text");
    let mut messages = said
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let program = messages.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.expect("unit tests are a program")
}

/// Hostile bytes, for decoders that are no part of the API.
pub(crate) fn hostile_bytes() {
    run(cargo(&folder(FUZZ)).args(["test", "campaign_hostile_bytes"]));
}

fn folder(name: impl AsRef<Path>) -> PathBuf {
    root().join(name)
}

fn cargo(within: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(within);
    cargo
}

fn run(tests: &mut Command) {
    let status = tests
        .arg("--quiet")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("a process");
    assert!(status.success(), "{tests:?}: {status}");
}
