//! `sessionlog verify`: reads everything that a log stores.

use std::path::PathBuf;

use serde_json::json;
use sessionlog::repair::{self, Finding, IndexCheck, Told, Verified};

use crate::failure::{Exit, Failure, Result};
use crate::folder::check_is_log;
use crate::output::{BAD, GOOD, Output};
use crate::progress::Progress;
use crate::text::{bytes, count, escaped};

/// Reads everything that a log stores, and lists every fault.
///
/// It checks every checksum, that seqs have no holes and IDs rise, the tables of each segment
/// against its records, the states of sessions, what forks share, the journal, the manifest, and
/// the index against the segments. It writes nothing to the folder, and a server may have the log
/// open. A fault is a line with the file, the offset in it, and what is wrong. With --json each is
/// an object, and the last line is a summary. The exit code is 3 if there is a fault.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log
    dir: PathBuf,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let dir = &args.dir;
    check_is_log(dir)?;
    let progress = Progress::of_bytes(output, 0, "verifying");
    let mut shown = Ok(());
    let verified = repair::verify(dir, |told| match told {
        Told::Finding(finding) => {
            let written = progress.aside(|| show(&finding, output));
            shown = std::mem::replace(&mut shown, Ok(())).and(written);
        }
        Told::Progress { bytes, of } => progress.at(bytes, of),
        _ => {}
    });
    drop(progress);
    shown?;
    let verified = verified?;
    summary(&verified, output)?;
    if verified.findings == 0 {
        return Ok(());
    }
    let failure = Failure::new(
        "corrupt",
        format!("{} in {}", count(verified.findings, "fault"), dir.display()),
    );
    Err(Failure {
        exit: Exit::Damage,
        ..failure.hint(format!(
            "keep this folder as it is; restore a backup, or run `sessionlog salvage {} NEW`, \
             which makes a log of what is sound",
            dir.display()
        ))
    })
}

/// Shows a fault.
pub(crate) fn show(finding: &Finding, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.json(json!({ "finding": finding }).to_string());
    }
    let place = format!("{}:{}:", finding.file.display(), finding.offset);
    let place = output.styled(BAD, escaped(&place));
    output.line(format!("{place} {}", escaped(&finding.what)))
}

fn summary(verified: &Verified, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.json(json!({ "verified": verified }).to_string());
    }
    let sessions = match verified.sessions {
        Some(sessions) => count(sessions, "session"),
        None => "sessions that could not be compared".to_owned(),
    };
    output.line(format!(
        "read {} of {}, with {} in {}",
        count(verified.segments, "segment"),
        bytes(verified.segment_bytes),
        count(verified.events, "event"),
        sessions,
    ))?;
    output.line(match verified.index {
        IndexCheck::Compared(entries) => {
            format!(
                "compared {} of the index with the segments",
                entry_count(entries)
            )
        }
        IndexCheck::NotCopied => {
            "the index was not compared: there is no room for a copy in TMPDIR".to_owned()
        }
        IndexCheck::InUse => "the index was not compared, because the log is in use".to_owned(),
        _ => "there is no index; the next open builds it".to_owned(),
    })?;
    if verified.findings == 0 {
        output.line(output.styled(GOOD, "no fault"))?;
    }
    Ok(())
}

fn entry_count(entries: u64) -> String {
    if entries == 1 {
        "1 entry".to_owned()
    } else {
        format!("{} entries", crate::text::number(entries))
    }
}
