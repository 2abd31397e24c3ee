//! Requests generated from the document by [schemathesis](https://schemathesis.io), against a
//! server, with the key of a client and with that of a worker. Runs with
//! `SESSION_LOG_CAMPAIGN=full` only, and installs the program with `pip` where it is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{KEY, Server, command};

const SECONDS: &str = "300";
const WORKER_KEY: &str = "the key of a worker";

pub(crate) fn campaign() {
    for key in [KEY, WORKER_KEY] {
        check_as(key);
    }
}

/// Makes each call with a key.
fn check_as(key: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut program = command(folder.path(), "127.0.0.1:0");
    program
        .env("SESSIONLOG_API_KEY", KEY)
        .env("SESSIONLOG_WORKER_KEY", WORKER_KEY);
    let server = Server::of(&mut program);
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/schemathesis.toml");
    let mut run = Command::new(schemathesis());
    run.current_dir(folder.path())
        .arg("--config-file")
        .arg(config)
        .arg("run")
        .arg(format!("{}/openapi.json", server.url));
    run.args([
        "--checks",
        "all",
        "--max-time",
        SECONDS,
        "--header",
        &format!("Authorization: Bearer {key}"),
    ]);
    assert!(
        run.status().unwrap().success(),
        "it says above what it found with {key:?}"
    );
}

/// The program, in an environment of its own below the target folder.
fn schemathesis() -> PathBuf {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("schemathesis");
    let program = environment.join("bin").join("schemathesis");
    if !program.exists() {
        assert!(
            Command::new("python3")
                .args(["-m", "venv"])
                .arg(&environment)
                .status()
                .unwrap()
                .success()
        );
        let mut install = Command::new(environment.join("bin").join("pip"));
        assert!(
            install
                .args(["install", "--quiet", "schemathesis"])
                .status()
                .unwrap()
                .success()
        );
    }
    program
}
