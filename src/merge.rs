//! Keeps filters over many segments: takes in those that are there, makes those that are missing. In the background, and whatever fails here
//! costs time only, since the segments' own filters answer where there is none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::StoreId;
use crate::disk::{Disk, TEMPORARY};
use crate::error::{Error, Result};
use crate::locate::Locator;
use crate::segment::{BlockCache, MergedFilter, MergedPlace, Span};
use crate::sync::{Condvar, Mutex};

/// Between the one who seals and the one who merges.
#[derive(Default)]
pub(crate) struct MergeSignal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    has_work: bool,
    stopped: bool,
}

impl MergeSignal {
    /// There is another segment.
    pub(crate) fn notify(&self) {
        self.state.lock().has_work = true;
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for work. `false` when it is time to stop.
    fn wait_for_work(&self) -> bool {
        let mut state = self.state.lock();
        while !state.has_work && !state.stopped {
            self.changed.wait(&mut state);
        }
        state.has_work = false;
        !state.stopped
    }

    /// Says [`Error::Closed`] when it is time to stop.
    fn go_on(&self) -> Result<()> {
        if self.state.lock().stopped { Err(Error::Closed) } else { Ok(()) }
    }
}

/// What merging works on.
pub(crate) struct Merger {
    pub disk: Arc<dyn Disk>,
    pub folder: PathBuf,
    pub store: StoreId,
    pub locator: Arc<Locator>,
    pub cache: Arc<BlockCache>,
}

impl Merger {
    /// The work of the background thread, until the signal stops.
    pub(crate) fn run(&self) {
        // The folder need not be durable: where it is lost, it is made again.
        let _taken_in = self.disk.make_dir(&self.folder).and_then(|()| self.take_in());
        self.make_missing();
        while self.locator.merge.wait_for_work() {
            self.make_missing();
        }
    }

    /// Takes in the filters that are there.
    fn take_in(&self) -> Result<()> {
        let segments = self.locator.segments();
        let mut filters = Vec::new();
        for (name, bytes) in self.disk.list(&self.folder)? {
            if Path::new(&name).extension().is_some_and(|extension| extension == TEMPORARY) {
                self.disk.remove(&self.folder.join(&name))?;
            }
            let of_segments = Span::of_name(&name).and_then(|span| Some((span, segments.of_span(span)?)));
            filters.extend(of_segments.and_then(|(span, segments)| MergedFilter::new(&self.place(), span, segments, bytes)));
        }
        self.locator.publish_merged(filters);
        Ok(())
    }

    /// Makes the filters that are not there. What fails is tried again when there is another segment.
    fn make_missing(&self) {
        let segments = self.locator.segments();
        let missing = Span::up_to(segments.newest_number()).filter(|span| !segments.is_merged(*span));
        for (span, of_span) in missing.filter_map(|span| Some((span, segments.of_span(span)?))) {
            match MergedFilter::make(&self.place(), span, of_span, || self.locator.merge.go_on()) {
                Ok(filter) => self.locator.publish_merged(filter),
                Err(Error::Closed) => return,
                Err(_unreadable_or_full) => {}
            }
        }
    }

    fn place(&self) -> MergedPlace<'_> {
        MergedPlace { disk: &self.disk, cache: &self.cache, folder: &self.folder, store: self.store }
    }
}
