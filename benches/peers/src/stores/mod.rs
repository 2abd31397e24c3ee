//! The contenders and their settings.

#[cfg(feature = "canopydb")]
mod canopydb;
#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "lmdb")]
mod lmdb;
#[cfg(feature = "okaywal")]
mod okaywal;
#[cfg(feature = "raft-engine")]
mod raft_engine;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
pub mod sessionlog;
#[cfg(feature = "sled")]
mod sled;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "surrealkv")]
mod surrealkv;
#[cfg(feature = "tephra")]
mod tephra;

use std::fmt;

use crate::store::{Application, Committing, Open, Peer, Store};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    SessionLog,
    /// The log without merging, to show what merging costs.
    Unmerged,
    #[cfg(feature = "raft-engine")]
    RaftEngine(Form),
    #[cfg(feature = "tephra")]
    Tephra(Form),
    #[cfg(feature = "surrealkv")]
    SurrealKv(Form),
    #[cfg(feature = "surrealkv")]
    SurrealKvPreallocated(Form),
    #[cfg(feature = "rocksdb")]
    RocksDb(Form),
    #[cfg(feature = "rocksdb")]
    RocksDbRecycling(Form),
    #[cfg(feature = "okaywal")]
    OkayWal(Form),
    #[cfg(feature = "fjall")]
    Fjall(Form),
    #[cfg(feature = "redb")]
    Redb(Form),
    #[cfg(feature = "lmdb")]
    Lmdb(Form),
    #[cfg(feature = "sqlite")]
    Sqlite(Form),
    #[cfg(feature = "canopydb")]
    Canopydb(Form),
    #[cfg(feature = "sled")]
    Sled(Form),
}

/// With or without a group commit in the application.
pub type Form = Committing;

const FORMS: [Form; 2] = [Form::Direct, Form::Grouped];

impl Contender {
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::SessionLog, Self::Unmerged];
        for form in FORMS {
            all.extend([
                #[cfg(feature = "raft-engine")]
                Self::RaftEngine(form),
                #[cfg(feature = "tephra")]
                Self::Tephra(form),
                #[cfg(feature = "surrealkv")]
                Self::SurrealKv(form),
                #[cfg(feature = "surrealkv")]
                Self::SurrealKvPreallocated(form),
                #[cfg(feature = "rocksdb")]
                Self::RocksDb(form),
                #[cfg(feature = "rocksdb")]
                Self::RocksDbRecycling(form),
                #[cfg(feature = "okaywal")]
                Self::OkayWal(form),
                #[cfg(feature = "fjall")]
                Self::Fjall(form),
                #[cfg(feature = "redb")]
                Self::Redb(form),
                #[cfg(feature = "lmdb")]
                Self::Lmdb(form),
                #[cfg(feature = "sqlite")]
                Self::Sqlite(form),
                #[cfg(feature = "canopydb")]
                Self::Canopydb(form),
                #[cfg(feature = "sled")]
                Self::Sled(form),
            ]);
        }
        all
    }

    /// The contender's description and settings.
    fn described(self) -> Described {
        match self {
            Self::SessionLog => Described {
                name: "sessionlog",
                form: None,
                groups: true,
                finds: Finds::Ids,
                setting: "its defaults",
            },
            Self::Unmerged => Described {
                name: "sessionlog, not merging",
                setting: "its defaults, and no segments are merged",
                ..Self::SessionLog.described()
            },
            #[cfg(feature = "raft-engine")]
            Self::RaftEngine(form) => raft_engine::DESCRIBED.of(form),
            #[cfg(feature = "tephra")]
            Self::Tephra(form) => tephra::DESCRIBED.of(form),
            #[cfg(feature = "surrealkv")]
            Self::SurrealKv(form) => surrealkv::DESCRIBED.of(form),
            #[cfg(feature = "surrealkv")]
            Self::SurrealKvPreallocated(form) => surrealkv::PREALLOCATED.of(form),
            #[cfg(feature = "rocksdb")]
            Self::RocksDb(form) => rocksdb::DESCRIBED.of(form),
            #[cfg(feature = "rocksdb")]
            Self::RocksDbRecycling(form) => rocksdb::RECYCLING.of(form),
            #[cfg(feature = "okaywal")]
            Self::OkayWal(form) => okaywal::DESCRIBED.of(form),
            #[cfg(feature = "fjall")]
            Self::Fjall(form) => fjall::DESCRIBED.of(form),
            #[cfg(feature = "redb")]
            Self::Redb(form) => redb::DESCRIBED.of(form),
            #[cfg(feature = "lmdb")]
            Self::Lmdb(form) => lmdb::DESCRIBED.of(form),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(form) => sqlite::DESCRIBED.of(form),
            #[cfg(feature = "canopydb")]
            Self::Canopydb(form) => canopydb::DESCRIBED.of(form),
            #[cfg(feature = "sled")]
            Self::Sled(form) => sled::DESCRIBED.of(form),
        }
    }

    pub fn open(self, open: Open<'_>) -> Box<dyn Store> {
        match self {
            Self::SessionLog => Box::new(sessionlog::Ours::open(open)),
            Self::Unmerged => Box::new(sessionlog::Ours::open_unmerged(open)),
            #[cfg(feature = "raft-engine")]
            Self::RaftEngine(form) => log_on(raft_engine::RaftEngine::open(open), form, open),
            #[cfg(feature = "tephra")]
            Self::Tephra(form) => log_on(tephra::Tephra::open(open), form, open),
            #[cfg(feature = "surrealkv")]
            Self::SurrealKv(form) => log_on(
                surrealkv::SurrealKv::open(open, surrealkv::Preallocation::Off),
                form,
                open,
            ),
            #[cfg(feature = "surrealkv")]
            Self::SurrealKvPreallocated(form) => log_on(
                surrealkv::SurrealKv::open(open, surrealkv::Preallocation::On),
                form,
                open,
            ),
            #[cfg(feature = "rocksdb")]
            Self::RocksDb(form) => log_on(
                rocksdb::RocksDb::open(open, rocksdb::Logs::Deleted),
                form,
                open,
            ),
            #[cfg(feature = "rocksdb")]
            Self::RocksDbRecycling(form) => log_on(
                rocksdb::RocksDb::open(open, rocksdb::Logs::Recycled),
                form,
                open,
            ),
            #[cfg(feature = "okaywal")]
            Self::OkayWal(form) => log_on(okaywal::OkayWal::open(open), form, open),
            #[cfg(feature = "fjall")]
            Self::Fjall(form) => log_on(fjall::Fjall::open(open), form, open),
            #[cfg(feature = "redb")]
            Self::Redb(form) => log_on(redb::Redb::open(open), form, open),
            #[cfg(feature = "lmdb")]
            Self::Lmdb(form) => log_on(lmdb::Lmdb::open(open), form, open),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(form) => log_on(sqlite::Sqlite::open(open), form, open),
            #[cfg(feature = "canopydb")]
            Self::Canopydb(form) => log_on(canopydb::Canopydb::open(open), form, open),
            #[cfg(feature = "sled")]
            Self::Sled(form) => log_on(sled::Sled::open(open), form, open),
        }
    }

    pub fn setting(self) -> &'static str {
        self.described().setting
    }

    /// Returns whether it shares barriers among its callers, so that it needs no group commit in
    /// front.
    pub fn groups(self) -> bool {
        self.described().groups
    }

    pub fn is_grouped_by_application(self) -> bool {
        self.described().form == Some(Form::Grouped)
    }

    pub fn finds(self) -> Finds {
        self.described().finds
    }

    /// Returns whether it is the log, in any setting.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::SessionLog | Self::Unmerged)
    }

    /// Returns whether readers can follow appends.
    pub fn streams(self) -> bool {
        match self {
            Self::SessionLog => true,
            #[cfg(feature = "tephra")]
            Self::Tephra(Form::Direct) => true,
            #[allow(unreachable_patterns, reason = "without peers there is nobody else")]
            _ => false,
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let described = self.described();
        f.write_str(described.name)?;
        if described.form == Some(Form::Grouped) {
            f.write_str(" + group")
        } else {
            Ok(())
        }
    }
}

impl std::str::FromStr for Contender {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::all()
            .into_iter()
            .find(|contender| contender.to_string() == name)
            .ok_or_else(|| {
                let names: Vec<String> = Self::all().iter().map(Self::to_string).collect();
                format!("{name:?} is none of: {}", names.join(", "))
            })
    }
}

/// The ways in which it can find events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finds {
    Nothing,
    Sessions,
    /// By session as well.
    Ids,
}

/// The report's entries for a contender.
#[derive(Debug, Clone, Copy)]
struct Described {
    name: &'static str,
    form: Option<Form>,
    groups: bool,
    finds: Finds,
    /// The settings under which an ack means that the batch outlives a power cut.
    setting: &'static str,
}

impl Described {
    #[allow(dead_code, reason = "not without peers")]
    fn of(self, form: Form) -> Self {
        Self {
            form: Some(form),
            ..self
        }
    }
}

#[allow(dead_code, reason = "not without peers")]
fn log_on(peer: impl Peer, form: Form, open: Open<'_>) -> Box<dyn Store> {
    Box::new(Application::new(peer, form, open))
}
