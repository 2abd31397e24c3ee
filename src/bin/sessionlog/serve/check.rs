//! `serve --check`: looks at all that a server needs, and starts none.

use std::error::Error;
use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::{fs, io};

use super::args::Args;
use super::listen::cannot_listen;
use super::plan::Plan;
use super::{folder_error, logging};

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
    match Plan::of(args, address) {
        Ok(plan) => {
            for warning in &plan.warnings {
                println!("warning: {warning}");
            }
            report.note("admits", Ok::<_, String>(&plan.admits));
            let tls = match &args.tls.tls_cert {
                Some(cert) => format!("the certificate in {} and its key", cert.display()),
                None => "none, plain HTTP".to_owned(),
            };
            report.note("TLS", Ok::<_, String>(tls));
            let free = address_is_free(address, passed);
            report.note(
                "listens",
                free.map(|how| format!("{}{how}", plan.url(address))),
            );
        }
        Err(problem) => report.note("keys and TLS", Err::<String, _>(problem)),
    }
    report.note("log lines", logging::filter());
    report.note("folder", folder(args));
    report.note("removes", Ok::<_, String>(removed(args)));
    match report.problems {
        0 => Ok(()),
        problems => Err(format!("{problems} problems: correct what is marked ERROR above").into()),
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

/// Reads the log as it is. A server may have it open meanwhile.
fn folder(args: &Args) -> Result<String, String> {
    let folder = &args.data;
    let shown = folder.display();
    match args.options().open_read_only(folder) {
        Ok(log) => {
            let events = log.stats().events;
            log.close().map_err(|error| error.to_string())?;
            check_writable(folder)?;
            Ok(format!("{shown} holds a log with {events} events"))
        }
        Err(error @ sessionlog::Error::Io { .. }) if is_new(folder) => {
            drop(error);
            check_creatable(folder)?;
            Ok(format!("{shown} is new, and gets an empty log"))
        }
        Err(error) => Err(folder_error(&error)),
    }
}

/// Whether the folder is missing or empty.
fn is_new(folder: &Path) -> bool {
    match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
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
