//! `sessionlog import`: a log from lines of JSON.

mod transcript;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::json;
use sessionlog::Options;
use sessionlog::transfer;
use zstd::stream::read::Decoder;

use crate::failure::{Exit, Failure, Result};
use crate::output::Output;
use crate::postgres;
use crate::progress::Progress;
use crate::salvage::check_target;
use crate::text::count;

/// The first bytes of what zstd has compressed.
const MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// How the first line of an export begins.
const EXPORT: &[u8] = br#"{"sessionlog_export""#;

/// Makes a log from an export, or appends the transcripts of agents to a log.
///
/// From an export, DIR must be missing or empty, and becomes a log with the same IDs, seqs, times,
/// keys and states. After a run that was cut short, the same command goes on. With --to the log is
/// made on PostgreSQL, wholly or not at all.
///
/// From a transcript, one JSON object a line, each line is appended as an event. The options say
/// where in an object its session, type and data are: a path such as message.role, where a number
/// counts in a list from 0. A line is stored under a key made of the name of the file, its
/// number and its text. So the command can be repeated, also with a file that has grown.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log; leave it out with --to
    #[arg(required_unless_present = "to")]
    dir: Option<PathBuf>,

    /// File to read, compressed with zstd or not; standard input by default
    file: Option<PathBuf>,

    /// URL of the log on PostgreSQL that is made of an export
    #[arg(long, value_name = "URL", value_parser = postgres::parse_url)]
    to: Option<String>,

    #[command(flatten)]
    mapping: transcript::Mapping,

    #[command(flatten)]
    postgres: postgres::Args,
}

/// Where a log is made.
enum Place<'a> {
    Folder(&'a Path),
    Postgres(&'a str),
}

impl Args {
    /// Returns where the log is made, and the file. With `--to` the one path is the file.
    fn places(&self) -> Result<(Place<'_>, Option<&Path>)> {
        match (&self.to, &self.dir, &self.file) {
            (None, Some(dir), file) => {
                let place = match postgres::url(dir) {
                    Some(url) => Place::Postgres(url),
                    None => Place::Folder(dir),
                };
                Ok((place, file.as_deref()))
            }
            (Some(url), file, None) => Ok((Place::Postgres(url), file.as_deref())),
            _ => Err(Failure::usage("give either a folder or --to".to_owned())),
        }
    }
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    let (place, file) = args.places()?;
    let file = file.filter(|file| *file != Path::new("-"));
    let name = file.unwrap_or(Path::new("standard input"));
    let of_file = |error: io::Error| Failure::of_file("read", name, &error);
    let mut raw: Box<dyn BufRead> = match file {
        Some(file) => Box::new(BufReader::new(File::open(file).map_err(of_file)?)),
        None => Box::new(BufReader::new(io::stdin())),
    };
    let mut input: Box<dyn BufRead> = if raw.fill_buf().map_err(of_file)?.starts_with(MAGIC) {
        let decoder = Decoder::with_buffer(raw).map_err(of_file)?;
        Box::new(BufReader::new(decoder))
    } else {
        raw
    };
    let first = input.fill_buf();
    let first = first.map_err(|error| of_input(of_file(error)))?;
    let is_export = first.starts_with(EXPORT);
    if is_export && args.mapping.is_given() {
        return Err(Failure::usage(format!(
            "{} is an export, which takes no options of a transcript",
            name.display()
        )));
    }
    if is_export {
        return from_export(args, &place, input, name, output);
    }
    if args.mapping.is_given() {
        let Place::Folder(dir) = place else {
            let message = "a transcript is imported into a folder alone".to_owned();
            let hint = "import it there, and move the log with `sessionlog export`";
            return Err(Failure::new("invalid", message).hint(hint));
        };
        transcript::import(dir, input, name, &args.mapping, output)
    } else {
        let message = format!("{} is no export of sessionlog", name.display());
        Err(Failure::new("invalid", message).hint(
            "for a transcript say where its session and type are, \
             such as --session-at sessionId --type-at type",
        ))
    }
}

fn from_export(
    args: &Args,
    place: &Place<'_>,
    input: Box<dyn BufRead>,
    name: &Path,
    output: &Output,
) -> Result<()> {
    if let Place::Folder(dir) = place {
        check_target(dir)?;
    }
    let progress = Progress::new(output, "importing");
    let say = |now: transfer::Progress| {
        progress.say(format!("importing: {}", count(now.events, "event")));
    };
    let (imported, shown) = match place {
        Place::Folder(dir) => (
            transfer::import(input, name, dir, Options::new(), say),
            dir.to_string_lossy().into_owned(),
        ),
        Place::Postgres(url) => {
            let options = args.postgres.to(Options::new());
            (
                options.import_to(url, input, name, say),
                postgres::shown(url),
            )
        }
    };
    drop(progress);
    let imported = imported.map_err(|error| of_export(error, name))?;
    if output.is_json() {
        let json = json!({"folder": shown, "records": imported.records,
            "events": imported.events, "parts": imported.parts, "parts_kept": imported.parts_kept});
        return output.json(json.to_string());
    }
    output.line(format!(
        "{shown} holds {} of {}",
        count(imported.events, "event"),
        name.display()
    ))
}

/// Damage of an export is no damage of a log.
fn of_export(error: sessionlog::Error, name: &Path) -> Failure {
    use sessionlog::Error;

    let is_of_input = match &error {
        Error::Corrupt { file, .. } => file == name,
        // What was compressed and cut cannot be decompressed.
        Error::Io { path, .. } => path == name,
        _ => false,
    };
    let failure = Failure::from(error);
    if is_of_input {
        of_input(failure)
    } else {
        failure
    }
}

/// The failure of an export that is not whole.
fn of_input(failure: Failure) -> Failure {
    Failure {
        exit: Exit::Failed,
        code: "invalid".to_owned(),
        hint: Some(
            "get the file again, or finish it with `sessionlog export`; then repeat the command, \
             which goes on behind what it has written"
                .to_owned(),
        ),
        ..failure
    }
}
