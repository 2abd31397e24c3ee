//! `sessionlog shards`: lists the shards of a log on PostgreSQL, and moves one.

use std::io;

use serde_json::json;
use sessionlog::transfer::Export;
use sessionlog::{EventId, Options, Shard};

use crate::failure::{Failure, Result};
use crate::output::{HEADING, Output};
use crate::postgres;
use crate::text::{bytes, columns, count, latency, number};

/// Lists the shards of a log on PostgreSQL, and the database of each, or moves one.
///
/// The first database is that of URL, and its number is 0. Those of --postgres-database follow.
/// Servers may append to the log meanwhile. The same command again goes on with a move that was
/// cut short.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// URL of the log
    #[arg(value_name = "URL", value_parser = postgres::parse_url)]
    url: String,

    /// Move the shard of this number
    #[arg(long = "move", value_name = "SHARD", requires = "to")]
    shard: Option<u32>,

    /// Move it to the database of this number
    #[arg(long, value_name = "DATABASE", requires = "shard")]
    to: Option<usize>,

    #[command(flatten)]
    of_postgres: postgres::Args,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    check_is_log(args)?;
    let log = args.of_postgres.to(Options::new()).connect(&args.url)?;
    if let Some((shard, to)) = args.shard.zip(args.to) {
        let moved = log.move_shard(shard, to)?;
        let shards = log.shards()?;
        log.close()?;
        if output.is_json() {
            return output.json(
                json!({
                    "shard": shard,
                    "database": to,
                    "sessions": moved.sessions,
                    "records": moved.records,
                    "bytes": moved.bytes,
                    "locked_ms": moved.locked.as_secs_f64() * 1000.0,
                })
                .to_string(),
            );
        }
        let shard = shards.iter().find(|one| one.number == shard);
        return output.line(format!(
            "shard {} is in {}: {} and {} copied, appends waited {}",
            shard.map_or(0, |shard| shard.number),
            shard.map_or("", |shard| &shard.place),
            count(moved.sessions, "session"),
            bytes(moved.bytes),
            latency(moved.locked),
        ));
    }
    let shards = log.shards()?;
    log.close()?;
    if output.is_json() {
        for shard in &shards {
            output.json(line_of(shard))?;
        }
        return Ok(());
    }
    let heading = ["SHARD", "DATABASE", "SESSIONS", "EVENTS", "PLACE"];
    let rows = shards.iter().map(|shard| {
        let place = if shard.is_moving {
            format!("{}, and being copied", shard.place)
        } else {
            shard.place.clone()
        };
        vec![
            shard.number.to_string(),
            shard.database.to_string(),
            number(shard.sessions),
            number(shard.events),
            place,
        ]
    });
    let lines = columns(&heading, rows.collect(), &[0, 1, 2, 3]);
    for (nth, line) in lines.iter().enumerate() {
        if nth == 0 {
            output.line(output.styled(HEADING, line))?;
        } else {
            output.line(line)?;
        }
    }
    Ok(())
}

/// Refuses a database without a log, which would get an empty one.
fn check_is_log(args: &Args) -> Result<()> {
    let nothing = Export::new().after(EventId::from_u128(u128::MAX));
    let options = args.of_postgres.of_first(Options::new());
    match options.export_from(&args.url, io::sink(), &nothing, |_progress| ()) {
        Err(sessionlog::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let what = format!("{} holds no log", postgres::shown(&args.url));
            Err(Failure::new("not_found", what).hint("give the URL of a log that is there"))
        }
        // Its shards may be in the further databases.
        _ => Ok(()),
    }
}

fn line_of(shard: &Shard) -> String {
    json!({
        "shard": shard.number,
        "database": shard.database,
        "place": shard.place,
        "sessions": shard.sessions,
        "events": shard.events,
        "is_moving": shard.is_moving,
    })
    .to_string()
}
