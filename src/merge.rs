//! Makes the filters over many segments that are not there yet. In the background, and whatever fails here costs time only, since the segments'
//! own filters answer where there is none.

use std::path::Path;
use std::sync::Arc;

use crate::disk::TEMPORARY;
use crate::error::{Error, Result};
use crate::locate::Locator;
use crate::segment::{MergedFilter, MergedPlace, Span};
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
    pub place: MergedPlace,
    pub locator: Arc<Locator>,
}

impl Merger {
    /// The work of the background thread, until the signal stops.
    pub(crate) fn run(&self) {
        // One that is left over is removed on the next open.
        let _removed = self.remove_unfinished();
        loop {
            self.make_missing();
            if !self.locator.merge.wait_for_work() {
                return;
            }
        }
    }

    fn remove_unfinished(&self) -> Result<()> {
        let MergedPlace { disk, folder, .. } = &self.place;
        for (name, _) in disk.list(folder)? {
            if Path::new(&name).extension().is_some_and(|extension| extension == TEMPORARY) {
                disk.remove(&folder.join(&name))?;
            }
        }
        Ok(())
    }

    /// Makes the filters that are not there. What fails is tried again when there is another segment.
    fn make_missing(&self) {
        let segments = self.locator.segments();
        // It need not be durable: where it is lost, it is made again, as are its files.
        let _made = self.place.disk.make_dir(&self.place.folder);
        let missing = Span::up_to(segments.newest_number()).filter(|span| !segments.is_merged(*span));
        for (span, of_span) in missing.filter_map(|span| Some((span, segments.of_span(span)?))) {
            match MergedFilter::make(&self.place, span, of_span, || self.locator.merge.go_on()) {
                Ok(filter) => self.locator.publish_merged(filter),
                Err(Error::Closed) => return,
                Err(_unreadable_or_full) => {}
            }
        }
    }
}
