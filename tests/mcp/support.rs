//! What the tests share.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use sessionlog::{NewEvent, Options, Retention, SessionId, SessionLog};
use tempfile::TempDir;

/// The time within which everything that a test waits for has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// Waits for a future, and fails when it takes too long.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|elapsed| panic!("{what}: {elapsed}"))
}

/// Asks again until the answer is yes.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let asked = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, asked).await;
}

/// A log in a folder of its own.
pub(crate) struct Place {
    pub folder: TempDir,
    pub log: SessionLog,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = SessionLog::open(folder.path()).unwrap();
        Self { folder, log }
    }

    /// Closes the log and opens it again.
    pub(crate) fn reopen(&mut self) {
        self.log.close().unwrap();
        self.log = SessionLog::open(self.folder.path()).unwrap();
    }
}

/// A log whose clock stands until a test moves it.
pub(crate) struct Clocked {
    pub place: Place,
    now_ms: Arc<AtomicU64>,
}

impl Clocked {
    pub(crate) fn new() -> Self {
        let now_ms = Arc::new(AtomicU64::new(1_800_000_000_000));
        let ms = Arc::clone(&now_ms);
        let clock = move || UNIX_EPOCH + Duration::from_millis(ms.load(Ordering::Relaxed));
        // How often sessions are looked at follows from this retention, which is not theirs.
        let often = Retention::new().idle(Duration::from_secs(1));
        let folder = tempfile::tempdir().unwrap();
        let log = Options::new().clock(clock).retention(often);
        let log = log.open(folder.path()).unwrap();
        let place = Place { folder, log };
        Self { place, now_ms }
    }

    /// Lets time pass, and waits until all that is due after it is removed.
    pub(crate) async fn pass(&self, time: Duration) {
        let marker: SessionId = "marker".parse().unwrap();
        let log = &self.place.log;
        log.append(&marker, NewEvent::new("note", "{}")).unwrap();
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
        // It has no retention of its own, and sessions that were idle for longer come before it.
        until("a look at the sessions", || log.session(&marker).is_err()).await;
    }
}
