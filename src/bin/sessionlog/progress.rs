//! How far a long command has come, on standard error, and on a terminal alone.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

const TICK: Duration = Duration::from_millis(100);

/// A line that shows progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Shows what is being done, without an end that is known.
    pub(crate) fn new(output: &Output, doing: &str) -> Self {
        Self::of(
            output,
            ProgressBar::new_spinner(),
            "{spinner} {msg} ({elapsed})",
            doing,
        )
    }

    /// Shows how many of so many bytes are done.
    pub(crate) fn of_bytes(output: &Output, bytes: u64, doing: &str) -> Self {
        let form = "{msg} {bar:30} {decimal_bytes} of {decimal_total_bytes}, {eta} left";
        Self::of(output, ProgressBar::new(bytes), form, doing)
    }

    fn of(output: &Output, bar: ProgressBar, form: &str, doing: &str) -> Self {
        // It draws on a terminal alone by itself.
        let bar = if output.is_json() {
            ProgressBar::hidden()
        } else {
            bar
        };
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        bar.set_message(doing.to_owned());
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Shows how many events are done.
    pub(crate) fn of_events(output: &Output, doing: &str) -> Self {
        let form = "{msg} {bar:30} {human_pos} of {human_len} events, {eta} left";
        Self::of(output, ProgressBar::new(0), form, doing)
    }

    /// Shows that so much of all is done.
    pub(crate) fn at(&self, done: u64, all: u64) {
        self.0.set_length(all);
        self.0.set_position(done);
    }

    /// Writes something while nothing is shown.
    pub(crate) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }

    pub(crate) fn say(&self, doing: impl Into<String>) {
        self.0.set_message(doing.into());
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
