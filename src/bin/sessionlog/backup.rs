//! `sessionlog backup`: a copy of a log that no process has open.

use std::path::PathBuf;

use serde_json::json;

use crate::failure::{Failure, Result};
use crate::folder::{Kind, open_to_write};
use crate::output::Output;
use crate::progress::Progress;
use crate::text::{bytes, count};

/// Makes a folder a copy of a log.
///
/// Segments are linked where both folders are on one file system, and copied otherwise. A folder
/// that holds an earlier backup gets what is new alone. No server may have the log open: stop it,
/// take a snapshot of the file system (LVM, ZFS, btrfs) and back that up, or let the program that
/// has it open call `SessionLog::backup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log
    dir: PathBuf,

    /// Folder of the backup: missing, empty, or with an earlier backup of this log
    to: PathBuf,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let Args { dir, to } = &args;
    // Before the log is opened, which may recover it.
    if Kind::of(to)? == Kind::Foreign {
        let message = format!("{} holds other files, and no backup", to.display());
        return Err(Failure::new("not_empty", message).hint("give an empty folder, or a new one"));
    }
    let log = open_to_write(dir).map_err(of_used)?;
    let progress = Progress::new(output, "backing up");
    let done = log.backup(to);
    drop(progress);
    let report = done.map_err(|error| of_target(error.into()))?;
    log.close()?;
    if output.is_json() {
        return output.json(
            json!({
                "folder": to.to_string_lossy(),
                "segments": report.segments,
                "linked_bytes": report.linked_bytes,
                "copied_bytes": report.copied_bytes,
            })
            .to_string(),
        );
    }
    output.line(format!(
        "{} is a backup of {}: {}, {} linked and {} copied",
        to.display(),
        dir.display(),
        count(report.segments, "segment"),
        bytes(report.linked_bytes),
        bytes(report.copied_bytes),
    ))
}

fn of_target(failure: Failure) -> Failure {
    match failure.code.as_str() {
        "invalid" => failure.hint("give a new folder, or that of an earlier backup of this log"),
        "locked" => failure.hint("the backup is open: stop that process first"),
        _ => failure,
    }
}

fn of_used(failure: Failure) -> Failure {
    if failure.code != "locked" {
        return failure;
    }
    failure.hint(
        "stop that process first; or take a snapshot of the file system (LVM, ZFS, btrfs) and back \
         that up; or let the program that has it open call SessionLog::backup",
    )
}
