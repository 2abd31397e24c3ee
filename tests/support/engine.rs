//! Which engine the tests of the public API run over: files, or with `SESSION_LOG_ENGINE=postgres`
//! the server at `SESSION_LOG_POSTGRES_URL`, in as many shards as `SESSION_LOG_POSTGRES_SHARDS`
//! says. With `SESSION_LOG_POSTGRES_DATABASES=2` these are spread over two databases of the server.

#[cfg(feature = "postgres")]
#[path = "further.rs"]
mod further;

#[cfg(feature = "postgres")]
use std::fs;
use std::path::Path;

use sessionlog::{Options, Result, SessionLog};

#[cfg(feature = "postgres")]
pub(crate) use further::further;

/// Whether the tests run over PostgreSQL.
pub(crate) fn on_postgres() -> bool {
    let engine = std::env::var("SESSION_LOG_ENGINE").unwrap_or_default();
    match engine.as_str() {
        "" | "embedded" => false,
        "postgres" => true,
        other => panic!("SESSION_LOG_ENGINE is {other}, and not embedded or postgres"),
    }
}

/// The schema of a place. No other place has it, also not one of an earlier run.
#[cfg(feature = "postgres")]
pub(crate) fn schema_of(folder: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let made = fs::metadata(folder).unwrap();
    let name = folder.file_name().unwrap().to_string_lossy();
    format!("{name}_{}_{}", made.ino(), made.ctime_nsec())
}

/// The shards of the logs of the tests.
#[cfg(feature = "postgres")]
pub(crate) fn shards() -> u32 {
    let shards = std::env::var("SESSION_LOG_POSTGRES_SHARDS");
    shards.map_or(1, |shards| shards.parse().unwrap())
}

/// Spreads the logs of the tests over several databases, if that is asked for.
#[cfg(feature = "postgres")]
pub(crate) fn spread(options: Options, url: &str) -> Options {
    if databases() == 2 {
        options.and_database(further(url))
    } else {
        options
    }
}

/// The databases of the logs of the tests.
#[cfg(feature = "postgres")]
pub(crate) fn databases() -> usize {
    let databases = std::env::var("SESSION_LOG_POSTGRES_DATABASES");
    databases.map_or(1, |databases| databases.parse().unwrap())
}

/// Opens the log that a folder stands for, whatever the engine.
#[cfg(feature = "postgres")]
pub(crate) fn open_at(options: Options, folder: &Path) -> Result<SessionLog> {
    if !on_postgres() {
        return options.open(folder);
    }
    let url = std::env::var("SESSION_LOG_POSTGRES_URL");
    let url = url.unwrap_or("postgres://postgres@127.0.0.1:5541/postgres".to_owned());
    spread(options, &url)
        .schema(schema_of(folder))
        .shards(shards())
        .durability(sessionlog::Durability::OneNode)
        .connect(&url)
}

/// Opens the log that a folder stands for.
#[cfg(not(feature = "postgres"))]
pub(crate) fn open_at(options: Options, folder: &Path) -> Result<SessionLog> {
    assert!(!on_postgres(), "the tests were built without `postgres`");
    options.open(folder)
}
