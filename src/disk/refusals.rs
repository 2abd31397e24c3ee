//! Errors of the system that stop background work.
//!
//! Background work has no caller. So its errors are reported to waiting appends, in the log's
//! metrics, in its health, and in a line of the program's own log.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{Error, Refusal, Result, may_pass};
use crate::sync::{AtomicU64, Instant, Mutex, Ordering, Stopped};

/// A kind of background work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Making and recycling journal files.
    JournalFiles,
    /// Writing segments and naming them in the manifest.
    Sealing,
    Indexing,
    /// Merging segments, and erasing what was removed.
    Merging,
}

/// Why background work ended before it was done.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The log is closing.
    Stopped,
    Failed(Error),
}

impl From<Stopped> for Halt {
    fn from(_stopped: Stopped) -> Self {
        Halt::Stopped
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Halt::Failed(error)
    }
}

/// The errors that stop background work, each with its work and its start.
#[derive(Default)]
pub(crate) struct Refusals {
    standing: Mutex<Vec<Standing>>,
    /// The number of refused calls since the log was opened.
    count: AtomicU64,
}

struct Standing {
    work: Work,
    error: Arc<Error>,
    since: Instant,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::JournalFiles => "journal files",
            Work::Sealing => "sealing",
            Work::Indexing => "index",
            Work::Merging => "merging",
        }
    }

    /// Returns whether appends come to a stop without this work. Other work only makes reads
    /// faster.
    fn is_needed(self) -> bool {
        matches!(self, Work::JournalFiles | Work::Sealing)
    }
}

impl Refusals {
    /// Returns the error that sealing is refused with.
    pub(crate) fn of_sealing(&self) -> Option<Error> {
        let standing = self.standing.lock();
        let sealing = standing
            .iter()
            .find(|refused| refused.work == Work::Sealing);
        sealing.map(|refused| Error::clone(&refused.error))
    }

    /// Records how an attempt at some work ended. A change is logged.
    pub(crate) fn note(&self, work: Work, error: Option<&Error>) {
        match error {
            None => self.has_passed(work),
            Some(error) => self.is_refused(work, error),
        }
    }

    fn has_passed(&self, work: Work) {
        let mut standing = self.standing.lock();
        let before = standing.len();
        standing.retain(|refusal| refusal.work != work);
        if standing.len() < before {
            tracing::info!(
                target: "sessionlog",
                work = work.name(),
                "background work goes on again"
            );
        }
    }

    fn is_refused(&self, work: Work, error: &Error) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut standing = self.standing.lock();
        let known = standing.iter_mut().find(|refusal| refusal.work == work);
        let is_news = known
            .as_ref()
            .is_none_or(|known| known.error.with_sources() != error.with_sources());
        let error = Arc::new(error.clone());
        if is_news {
            tracing::warn!(
                target: "sessionlog",
                work = work.name(),
                error = error.with_sources(),
                "background work is refused"
            );
        }
        match known {
            Some(known) => known.error = error,
            None => standing.push(Standing {
                work,
                error,
                since: Instant::now(),
            }),
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns what is refused at the moment.
    pub(crate) fn standing(&self) -> Vec<Refusal> {
        let shown = |refusal: &Standing| Refusal {
            work: refusal.work.name(),
            code: refusal.error.code(),
            error: refusal.error.with_sources(),
            lasts: refusal.since.elapsed(),
        };
        self.standing.lock().iter().map(shown).collect()
    }

    /// Returns the error for an append that waited for room in vain.
    pub(crate) fn of_waiting(&self, waited: Duration) -> Error {
        self.needed(Duration::ZERO).map_or(
            Error::Stalled {
                waited,
                source: None,
            },
            |refused| Self::of(&refused, waited),
        )
    }

    /// Fails if work that appends need has been refused for at least `lasting`.
    pub(crate) fn check(&self, lasting: Duration) -> Result<()> {
        self.needed(lasting)
            .map_or(Ok(()), |refused| Err(Self::of(&refused, lasting)))
    }

    fn needed(&self, lasting: Duration) -> Option<Arc<Error>> {
        let standing = self.standing.lock();
        let needed = standing
            .iter()
            .find(|refusal| refusal.work.is_needed() && refusal.since.elapsed() >= lasting);
        needed.map(|refusal| Arc::clone(&refusal.error))
    }

    /// Returns the error for an append: the disk is full, the cause may pass by itself, or it needs
    /// a repair.
    fn of(refused: &Arc<Error>, waited: Duration) -> Error {
        match &**refused {
            Error::Io { path, source, .. } if is_full(source) => Error::NoSpace {
                path: path.clone(),
                source: Arc::clone(source),
            },
            Error::Io { source, .. } if may_pass(source) => Error::Stalled {
                waited,
                source: Some(Arc::clone(refused)),
            },
            _ => Error::Refused {
                source: Arc::clone(refused),
            },
        }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
