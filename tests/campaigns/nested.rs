//! Campaigns that need a build of their own: `cargo` makes and runs it, and what it tells comes through.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const FUZZ: &str = "fuzz";

/// Why the decoders cannot be reached, if so: a packaged crate has no fuzz package beside it.
pub(crate) fn no_fuzz_package() -> Option<String> {
    (!folder(FUZZ).is_dir()).then(|| "the fuzz package is not here".to_owned())
}

/// The schedules of the commit path, explored with other locks and threads in place of the real ones.
pub(crate) fn schedules() {
    let mut cargo = cargo(Path::new(""));
    cargo.args(["test", "--lib", "campaign_schedules", "--target-dir"]).arg(folder("target/schedules"));
    run(cargo.env("RUSTFLAGS", "--cfg shuttle"));
}

/// Hostile bytes, for decoders that are no part of the API.
pub(crate) fn hostile_bytes() {
    run(cargo(Path::new(FUZZ)).args(["test", "campaign_hostile_bytes"]));
}

fn folder(name: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn cargo(within: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(folder(within));
    cargo
}

fn run(cargo: &mut Command) {
    let status = cargo.arg("--quiet").stdin(Stdio::null()).stdout(Stdio::null()).status().expect("cargo");
    assert!(status.success(), "{cargo:?}: {status}");
}
