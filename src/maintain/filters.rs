//! Keeps the filters over many segments: takes in those that are there and makes those that are
//! missing. In the background, and whatever fails here costs time only, since the segments' own
//! filters answer where there is none.

use std::collections::HashMap;
use std::sync::Arc;

use crate::disk::{Refusals, Work};
use crate::index::Locator;
use crate::model::{Error, Result};
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
        if self.state.lock().stopped {
            Err(Error::Closed)
        } else {
            Ok(())
        }
    }
}

/// What merging works on.
pub(crate) struct Merger {
    pub place: MergedPlace,
    pub locator: Arc<Locator>,
    pub refusals: Arc<Refusals>,
}

impl Merger {
    /// The work of the background thread, until the signal stops.
    pub(crate) fn run(&self) {
        // Where they cannot be listed, they are made again.
        self.refusals.note(Work::Filters, &self.take_in());
        let mut failed = HashMap::new();
        loop {
            self.make_missing(&mut failed);
            if !self.locator.merge.wait_for_work() {
                return;
            }
        }
    }

    /// Takes in the filters that are there.
    fn take_in(&self) -> Result<()> {
        let filters = MergedFilter::list(&self.place, &self.locator.segments(), || {
            self.locator.merge.go_on()
        })?;
        self.locator.publish_merged(filters);
        Ok(())
    }

    /// Makes the filters that are not there. One that failed is tried again when there are as many
    /// segments more as it is over, since it costs reading the tables of all of them.
    fn make_missing(&self, failed: &mut HashMap<Span, u64>) {
        let segments = self.locator.segments();
        let newest = segments.newest_number();
        let missing = Span::up_to(newest).filter(|span| !segments.is_merged(*span));
        for (span, of_span) in missing.filter_map(|span| Some((span, segments.of_span(span)?))) {
            if failed
                .get(&span)
                .is_some_and(|at| newest < at + span.segments())
            {
                continue;
            }
            match MergedFilter::make(&self.place, span, of_span, || self.locator.merge.go_on()) {
                Ok(filter) => {
                    self.locator.publish_merged(filter);
                    self.refusals.note(Work::Filters, &Ok(()));
                }
                Err(Error::Closed) => return,
                Err(unreadable_or_full) => {
                    failed.insert(span, newest);
                    self.refusals
                        .note::<()>(Work::Filters, &Err(unreadable_or_full));
                }
            }
        }
    }
}
