//! `sessionlog compact`: erases everything that was removed.

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::json;

use crate::failure::{Failure, Result};
use crate::folder::open_to_write;
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress::Progress;
use crate::text::{bytes, count};

/// Erases everything that was removed, and gives its space back.
///
/// No server may have the log open; a running one does the same on POST /v1/compact. It may be
/// ended with Ctrl-C: what is left is erased when the log is open again, in time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log
    dir: PathBuf,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let log = open_to_write(&args.dir).map_err(of_used)?;
    let interrupt = Interrupt::watch();
    let progress = Progress::new(output, "compacting");
    let done = log.compact(|so_far| {
        let (written, left) = (so_far.segments, so_far.segments_left);
        progress.say(format!(
            "compacting: {written} segments written, about {left} left"
        ));
        if interrupt.is_set() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    drop(progress);
    let compacted = done?;
    let is_cut_short = interrupt.is_set();
    log.close()?;
    if is_cut_short {
        return Err(
            Failure::new("interrupted", "it was ended before all was erased")
                .hint("nothing is lost: repeat the command to go on"),
        );
    }
    if output.is_json() {
        return output.json(
            json!({
                "segments": compacted.segments,
                "bytes_before": compacted.bytes_before,
                "bytes_after": compacted.bytes_after,
            })
            .to_string(),
        );
    }
    output.line(format!(
        "everything removed is erased: {} written anew, {} before and {} after",
        count(compacted.segments, "segment"),
        bytes(compacted.bytes_before),
        bytes(compacted.bytes_after),
    ))
}

fn of_used(failure: Failure) -> Failure {
    if failure.code != "locked" {
        return failure;
    }
    failure.hint(
        "ask the server instead: curl -X POST http://HOST:PORT/v1/compact with the key of a \
         worker; or stop that process first",
    )
}
