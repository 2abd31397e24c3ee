//! `sessionlog salvage`: makes a log out of what is left of a damaged one.

use std::path::{Path, PathBuf};

use serde_json::json;
use sessionlog::Options;
use sessionlog::repair::{self, Loss, Salvaged, Told};

use crate::failure::{Failure, Result};
use crate::folder::{Kind, check_is_log};
use crate::holder::Holder;
use crate::output::{GOOD, Output, WARNING};
use crate::progress::Progress;
use crate::text::{count, escaped};
use crate::verify;

/// Makes a log that opens out of everything in a damaged log that is sound.
///
/// The damaged log stays as it is. In the new one every event that was saved has its seq and its
/// ID. A redacted event of type sessionlog.lost stands in the place of each lost one. Standard
/// output lists each fault, and what is missing, session by session. No server may have the damaged
/// log open. After a run that was cut short, the same command goes on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the damaged log
    dir: PathBuf,

    /// Folder of the new log: missing or empty
    new: PathBuf,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let Args { dir, new } = &args;
    check_is_log(dir)?;
    if let Some(holder) = Holder::of(dir) {
        let message = format!("{} is in use by {holder}", dir.display());
        return Err(Failure::new("locked", message).hint("stop that process first"));
    }
    check_target(new)?;
    let progress = Progress::of_bytes(output, 0, "salvaging");
    let mut shown = Ok(());
    let salvaged = repair::salvage(dir, new, Options::new(), |told| {
        let written = match told {
            Told::Finding(finding) => progress.aside(|| verify::show(&finding, output)),
            Told::Loss(loss) => progress.aside(|| show(&loss, output)),
            Told::Progress { bytes, of } => {
                progress.at(bytes, of);
                Ok(())
            }
            _ => Ok(()),
        };
        shown = std::mem::replace(&mut shown, Ok(())).and(written);
    });
    drop(progress);
    shown?;
    summary(&args, &salvaged?, output)
}

/// Fails if the folder holds files of others. Whether it holds a log, the library sees: an earlier
/// run may have begun one.
pub(crate) fn check_target(folder: &Path) -> Result<()> {
    if Kind::of(folder)? != Kind::Foreign {
        return Ok(());
    }
    let message = format!("{} holds other files", folder.display());
    Err(Failure::new("not_empty", message).hint("give an empty folder, or a new one"))
}

fn show(loss: &Loss, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.json(json!({ "loss": loss }).to_string());
    }
    let Loss {
        session,
        first,
        last,
        ..
    } = loss;
    let session = output.styled(WARNING, escaped(session.as_str()));
    output.line(if first == last {
        format!("{session}: event {first} is lost")
    } else {
        format!("{session}: events {first} to {last} are lost")
    })
}

fn summary(args: &Args, salvaged: &Salvaged, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.json(json!({ "salvaged": salvaged }).to_string());
    }
    output.line(format!(
        "{} holds {} in {}",
        args.new.display(),
        count(salvaged.events, "event"),
        count(salvaged.sessions, "session"),
    ))?;
    if salvaged.events_lost == 0 {
        return output.line(output.styled(GOOD, "no event is known to be lost"));
    }
    let damaged = count(salvaged.sessions_damaged, "session");
    let lost = format!(
        "{} of {damaged} are lost",
        count(salvaged.events_lost, "event")
    );
    output.line(output.styled(WARNING, lost))
}
