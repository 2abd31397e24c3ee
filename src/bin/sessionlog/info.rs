//! `sessionlog info`: what a folder or a server holds. It never writes a byte.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sessionlog::Recovery;

use crate::failure::{Failure, Result};
use crate::holder::Holder;
use crate::output::{BAD, GOOD, HEADING, Output, WARNING};
use crate::source::{Folder, Place, Server, ServerArgs, Shaped, Source, Stats};
use crate::text::{ago, bytes, count, escaped, number, time};

/// Says what a log holds, and how it is.
///
/// It opens the folder for reading alone, beside a server that has it open, and writes nothing.
/// With --url it asks the server, which takes the key of a worker.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log
    dir: Option<PathBuf>,

    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    match args.server.place(args.dir.as_deref())? {
        Place::Folder(folder) => of_folder(&folder, output),
        Place::Server(server) => of_server(&server, output),
    }
}

/// What the files of a log take, as the system has it.
#[derive(Debug, Default)]
struct Files {
    /// The number of journal files, and their bytes.
    journal: (u64, u64),
    /// The bytes of the index. `None` without one.
    index: Option<u64>,
    total: u64,
    /// What is left on the disk. `None` where the system does not say.
    free: Option<u64>,
}

fn of_folder(folder: &Path, output: &Output) -> Result<()> {
    let source = Folder::to_read(folder)?;
    let found = Found {
        folder,
        recovery: source.log().stats().recovery,
        stats: source.stats()?,
        sessions: source.session_count()?,
        files: files_of(folder)?,
        // Looked at last: the command waits for nobody.
        holder: Holder::of(folder),
    };
    if output.is_json() {
        output.json(found.json()?)
    } else {
        found.show(output)
    }
}

/// What is found in a folder.
struct Found<'a> {
    folder: &'a Path,
    recovery: Recovery,
    stats: Shaped<Stats>,
    sessions: u64,
    files: Files,
    holder: Option<Holder>,
}

impl Found<'_> {
    fn json(&self) -> Result<String> {
        let Self {
            recovery, files, ..
        } = self;
        let process = self
            .holder
            .as_ref()
            .and_then(|holder| holder.process.as_ref());
        let json = json!({
            "folder": self.folder.to_string_lossy(),
            "in_use": self.holder.is_some(),
            "in_use_by": process.map(|(pid, command)| json!({"pid": pid, "command": command})),
            "sessions": self.sessions,
            "closed_cleanly": recovery.clean,
            "unsealed_events": recovery.replayed_events,
            "unsealed_groups": recovery.replayed_groups,
            "journal_files": files.journal.0,
            "journal_bytes": files.journal.1,
            "index_bytes": files.index,
            "total_bytes": files.total,
            "free_bytes": files.free,
            "stats": stats_of(&self.stats)?,
        });
        Ok(json.to_string())
    }

    fn show(&self, output: &Output) -> Result<()> {
        let Self {
            recovery, files, ..
        } = self;
        let shown = |name: &str, text: &str| show(output, name, text);
        shown("folder", &escaped(&self.folder.to_string_lossy()))?;
        shown("state", &self.state(output))?;
        show_log(output, &self.stats.value, self.sessions)?;
        let unsealed = count(recovery.replayed_events, "event");
        let (many, size) = (count(files.journal.0, "file"), bytes(files.journal.1));
        shown(
            "journal",
            &format!("{size} in {many}, {unsealed} not in a segment yet"),
        )?;
        let none = || "none; the next open for writing makes it".to_owned();
        shown("index", &files.index.map_or_else(none, bytes))?;
        let free = files.free.map(|free| format!(", {} free", bytes(free)));
        let total = bytes(files.total);
        shown(
            "on the disk",
            &format!("{total}{}", free.unwrap_or_default()),
        )
    }

    fn state(&self, output: &Output) -> String {
        if let Some(holder) = &self.holder {
            let used = format!("in use by {holder}; the figures are as of now");
            return output.styled(WARNING, escaped(&used));
        }
        if self.recovery.clean {
            return output.styled(GOOD, "closed cleanly: nothing to recover");
        }
        let recovered = format!(
            "not closed: the next open recovers {} of {} from the journal",
            count(self.recovery.replayed_events, "event"),
            count(self.recovery.replayed_groups, "commit group"),
        );
        output.styled(WARNING, recovered)
    }
}

fn of_server(server: &Server, output: &Output) -> Result<()> {
    let (stats, sessions) = (server.stats()?, server.session_count()?);
    let trouble = server.trouble()?;
    if output.is_json() {
        let health = trouble.as_ref().map_or("ok", |trouble| &trouble.code);
        let json = json!({
            "url": server.url(),
            "health": health,
            "sessions": sessions,
            "stats": stats_of(&stats)?,
        });
        return output.json(json.to_string());
    }
    let value = &stats.value;
    show(output, "server", &escaped(server.url()))?;
    let standing = if let Some(trouble) = trouble {
        let text = format!("out of service, {}: {}", trouble.code, trouble.message);
        output.styled(BAD, escaped(&text))
    } else {
        let streams = count(value.streams, "open stream");
        output.styled(GOOD, format!("running, with {streams}"))
    };
    show(output, "state", &standing)?;
    show_log(output, value, sessions)?;
    let space = &value.space;
    let (size, many) = (
        bytes(space.journal_bytes),
        count(space.journal_files, "file"),
    );
    let recent = bytes(value.recent_bytes);
    show(
        output,
        "journal",
        &format!("{size} in {many}, {recent} in memory"),
    )?;
    let lag = match value.index_lag {
        0 => "covers every merged segment".to_owned(),
        lag => format!("{} to cover yet", count(lag, "segment")),
    };
    show(output, "index", &lag)
}

/// Shows what is the same of a folder and of a server.
fn show_log(output: &Output, stats: &Stats, sessions: u64) -> Result<()> {
    let shown = |name: &str, text: &str| show(output, name, text);
    let (format, store) = (stats.format, escaped(&stats.store_id));
    shown("log", &format!("format {format}, store {store}"))?;
    shown("sessions", &number(sessions))?;
    shown("events", &number(stats.events))?;
    let newest = stats.last_id.as_deref();
    let newest = newest.map_or_else(
        || "none".to_owned(),
        |id| match time_of(id) {
            Some(at) => format!("{} ({}), {}", time(&at), ago(&at), escaped(id)),
            None => escaped(id).into_owned(),
        },
    );
    shown("newest", &newest)?;
    if let Some(oldest) = &stats.space.oldest {
        shown("oldest", &format!("{} ({})", time(oldest), ago(oldest)))?;
    }
    let tiers = stats.tiers.iter().map(|tier| {
        format!(
            "tier {}: {} of {}",
            tier.number,
            number(tier.segments),
            bytes(tier.bytes)
        )
    });
    let tiers: Vec<String> = tiers.collect();
    let tiers = if tiers.is_empty() {
        String::new()
    } else {
        format!(" ({})", tiers.join(", "))
    };
    let size = bytes(stats.segment_bytes);
    shown(
        "segments",
        &format!("{} of {size}{tiers}", number(stats.segments)),
    )?;
    let (live, dead) = (bytes(stats.space.live_bytes), bytes(stats.space.dead_bytes));
    let growth = bytes(stats.space.growth_bytes_a_day);
    shown(
        "space",
        &format!("{live} live, {dead} dead, {growth} came in a day"),
    )?;
    shown("erasure", &erasure(output, stats))?;
    for refusal in &stats.refused {
        let text = format!("{} is refused: {}", refusal.work, refusal.error);
        shown("trouble", &output.styled(BAD, escaped(&text)))?;
    }
    Ok(())
}

fn erasure(output: &Output, stats: &Stats) -> String {
    let erasure = &stats.erasure;
    let Some(due) = &erasure.due else {
        return "nothing to erase".to_owned();
    };
    let (events, due) = (count(erasure.events, "removed event"), time(due));
    if erasure.overdue {
        let text = format!("OVERDUE since {due}, with {events}: run `sessionlog compact`");
        output.styled(BAD, text)
    } else {
        format!("due by {due}, with {events}")
    }
}

fn show(output: &Output, name: &str, text: &str) -> Result<()> {
    let name = format!("{name:<12}");
    output.line(format!("{} {text}", output.styled(HEADING, name)))
}

/// The figures as they came, fields that this version does not know included.
fn stats_of(stats: &Shaped<Stats>) -> Result<Value> {
    serde_json::from_str(&stats.json)
        .map_err(|error| Failure::new("unknown_answer", error.to_string()))
}

/// The time in an ID.
fn time_of(id: &str) -> Option<String> {
    let id: sessionlog::EventId = id.parse().ok()?;
    let millis = i64::try_from(id.timestamp_ms()).ok()?;
    Some(jiff::Timestamp::from_millisecond(millis).ok()?.to_string())
}

fn files_of(folder: &Path) -> Result<Files> {
    let size = |name: &str| {
        let path = folder.join(name);
        below(&path).map_err(|error| Failure::of_file("look at", &path, &error))
    };
    let has_index = folder.join("index").exists();
    Ok(Files {
        journal: size("journal")?,
        index: if has_index {
            Some(size("index")?.1)
        } else {
            None
        },
        total: size("")?.1,
        free: free_of(folder),
    })
}

/// Counts the files below a path, and their bytes. A file that is removed meanwhile counts nothing.
fn below(path: &Path) -> io::Result<(u64, u64)> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        found => found?,
    };
    if !found.is_dir() {
        return Ok((1, found.len()));
    }
    let mut sum = (0, 0);
    for entry in fs::read_dir(path)? {
        let (files, bytes) = below(&entry?.path())?;
        sum = (sum.0 + files, sum.1 + bytes);
    }
    Ok(sum)
}

#[cfg(unix)]
fn free_of(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free_of(_folder: &Path) -> Option<u64> {
    None
}
