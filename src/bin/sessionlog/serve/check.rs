//! `serve --check`: looks at all that a server needs, and starts none.

use std::error::Error;
use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use sessionlog::EventId;
use sessionlog::http::Tls;
use sessionlog::transfer::Export;

use super::args::Args;
use super::listen::cannot_listen;
use super::plan::{self, Admission, counted};
use super::{logging, of_folder};
use crate::postgres;

/// How long a server is tried to be reached.
const CHECK_WAIT: Duration = Duration::from_secs(5);

/// What was found so far.
#[derive(Default)]
struct Report {
    problems: usize,
}

impl Report {
    fn note(&mut self, what: &str, found: Result<impl Display, impl Display>) {
        match found {
            Ok(found) => println!("{what}: {found}"),
            Err(problem) => {
                self.problems += 1;
                println!("{what}: ERROR: {problem}");
            }
        }
    }
}

/// Prints what is found, good and bad.
///
/// # Errors
///
/// When a server would not start.
pub(super) fn run(args: &Args, passed: Option<&TcpListener>) -> Result<(), Box<dyn Error>> {
    let mut report = Report::default();
    let address = match passed {
        Some(passed) => passed.local_addr()?,
        None => args.listen,
    };
    match Admission::of(args, address) {
        Ok(admission) => {
            for warning in &admission.warnings {
                println!("warning: {warning}");
            }
            report.note("admits", Ok::<_, String>(admission.shown));
        }
        Err(problem) => report.note("admits", Err::<String, _>(problem)),
    }
    let tls = plan::tls(args);
    let free = address_is_free(address, passed);
    let url = plan::url(tls.as_ref().unwrap_or(&None).as_ref(), address);
    report.note("listens", free.map(|how| format!("{url}{how}")));
    let certificate = |tls: Option<Tls>| match (tls, &args.tls.tls_cert) {
        (Some(_), Some(cert)) => format!("with the certificate in {}", cert.display()),
        _ => "none, plain HTTP".to_owned(),
    };
    report.note("TLS", tls.map(certificate));
    report.note(
        "log",
        logging::check().map(|filter| format!("lines of {filter}")),
    );
    match &args.postgres {
        Some(url) => report.note("PostgreSQL", connected(args, url)),
        None => report.note("folder", folder(args)),
    }
    let streams = args.durable_streams.as_deref().unwrap_or("none");
    report.note("durable streams", Ok::<_, String>(streams));
    report.note("removes", Ok::<_, String>(removed(args)));
    match report.problems {
        0 => Ok(()),
        problems => {
            let counted = counted(problems, "problem", "found");
            Err(format!("{counted}: correct what is marked ERROR above").into())
        }
    }
}

fn address_is_free(
    address: SocketAddr,
    passed: Option<&TcpListener>,
) -> Result<&'static str, String> {
    if passed.is_some() {
        return Ok(", on the socket that was passed");
    }
    match TcpListener::bind(address) {
        Ok(_free) => Ok(""),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Ok(", which is in use: a server runs there, or another program")
        }
        Err(error) => Err(cannot_listen(address, &error)),
    }
}

/// Reads the log at a URL, if there is one.
fn connected(args: &Args, url: &str) -> Result<String, String> {
    let shown = postgres::shown(url);
    let nothing = Export::new().after(EventId::from_u128(u128::MAX));
    let options = args.options().stall_wait(CHECK_WAIT);
    match options.export_from(url, io::sink(), &nothing, |_progress| ()) {
        Ok(_exported) => Ok(format!("{shown} holds a log")),
        Err(sessionlog::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(format!("{shown} is reached, and gets an empty log"))
        }
        Err(error) => Err(of_folder(error).to_string()),
    }
}

/// Reads the log as it is. A server may have it open meanwhile.
fn folder(args: &Args) -> Result<String, String> {
    let folder = &args.data;
    let shown = folder.display();
    args.check_exists().map_err(|failure| failure.to_string())?;
    if folder.exists() {
        check_writable(folder)?;
    }
    match args.options().open_read_only(folder) {
        Ok(log) => {
            let events = usize::try_from(log.stats().events).unwrap_or(usize::MAX);
            log.close().map_err(|error| error.to_string())?;
            let events = counted(events, "event", "in it");
            Ok(format!("{shown} holds a log with {events}"))
        }
        Err(sessionlog::Error::Io { .. }) if is_new(folder) => {
            check_creatable(folder)?;
            Ok(format!("{shown} is new, and gets an empty log"))
        }
        Err(error) => Err(of_folder(error).to_string()),
    }
}

/// Whether the folder is missing or empty.
fn is_new(folder: &Path) -> bool {
    match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_missing) => !folder.exists(),
    }
}

fn check_creatable(folder: &Path) -> Result<(), String> {
    let there = folder
        .ancestors()
        .map(|parent| {
            if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            }
        })
        .find(|parent| parent.exists());
    there.map_or(Ok(()), check_writable)
}

#[cfg(unix)]
fn check_writable(folder: &Path) -> Result<(), String> {
    use rustix::fs::{Access, access};

    let shown = folder.display();
    if !folder.is_dir() {
        return Err(format!("{shown} is no folder: give --data another path"));
    }
    access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        format!("{shown} cannot be written: {error}: give this user its ownership, or mount it so")
    })
}

#[cfg(not(unix))]
fn check_writable(folder: &Path) -> Result<(), String> {
    if folder.is_dir() {
        return Ok(());
    }
    let shown = folder.display();
    Err(format!("{shown} is no folder: give --data another path"))
}

fn removed(args: &Args) -> String {
    let retention = args.retention();
    let time = |what: &str, time: Option<std::time::Duration>| {
        time.map(|time| format!("{what} {}", humantime::format_duration(time)))
    };
    let parts = [
        time("events older than", retention.max_age),
        time("sessions without an event for", retention.idle),
        retention
            .max_events
            .map(|events| format!("all but the newest {events} events")),
        retention.max_bytes.map(|bytes| {
            format!(
                "all but the newest {} of a session",
                bytesize::ByteSize(bytes)
            )
        }),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "nothing by itself".to_owned()
    } else {
        parts.join(", ")
    }
}
