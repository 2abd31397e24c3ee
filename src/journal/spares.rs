//! Journal files that are ready to be used: prepared and recycled in the background, so that going
//! on in the next file seldom waits for zeroes to be written.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::{BLOCK, Disk, DiskFile, Mode, Refusals, Work, write_zeroes};
use crate::journal;
use crate::model::{Error, Result};
use crate::sync::{Condvar, Deadline, Mutex};

/// How long to wait before asking a disk again that refused.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// So many are kept while nobody appends; the rest is given back to the file system. Under load all
/// are: as many were just in use, and whoever needs them again would write their zeroes again.
const IDLE_SPARES_MAX: usize = 3;

/// Of the time that zeroes take, so many times as much is left to commits in between, unless
/// somebody waits for the file.
const PAUSES: u32 = 3;

/// A write that takes longer says more about the disk than about what else it has to do.
const WRITE_MAX: Duration = Duration::from_millis(10);

/// A pre-written file that holds nothing that counts.
pub(crate) struct Spare {
    pub number: u32,
    pub bytes: u64,
    pub file: Arc<dyn DiskFile>,
}

pub(crate) struct Spares {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    bytes_max: u64,
    refusals: Arc<Refusals>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    ready: Vec<Spare>,
    next_number: u32,
    /// How large the next file should be, and how large it must be for the batch that waits.
    wanted: u64,
    /// How many wait for a file.
    waiting: usize,
    stopped: bool,
}

impl Spares {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        bytes_max: u64,
        next_number: u32,
        refusals: Arc<Refusals>,
    ) -> Self {
        let state = State {
            ready: Vec::new(),
            next_number,
            wanted: 0,
            waiting: 0,
            stopped: false,
        };
        Self {
            disk,
            folder,
            bytes_max,
            refusals,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// What the system refuses the background work of this log.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Prepares a file in the background for when one of `active_bytes` is full: the double, up to
    /// the cap.
    pub(crate) fn prepare_next(&self, active_bytes: u64) {
        let mut state = self.state.lock();
        state.wanted = active_bytes.saturating_mul(2).min(self.bytes_max);
        self.changed.notify_all();
    }

    /// The largest spare file, once there is one of at least `bytes_min`.
    ///
    /// # Errors
    ///
    /// After `wait`, what the system refuses, if anything: see [`Refusals::of_waiting`].
    pub(crate) fn take(&self, bytes_min: u64, wait: Duration) -> Result<Spare> {
        let deadline = Deadline::after(wait);
        let mut state = self.state.lock();
        loop {
            let fitting = state
                .ready
                .iter()
                .enumerate()
                .filter(|(_, spare)| spare.bytes >= bytes_min);
            if let Some((place, _)) = fitting.max_by_key(|(_, spare)| spare.bytes) {
                return Ok(state.ready.swap_remove(place));
            }
            if state.stopped {
                return Err(Error::Closed);
            }
            state.wanted = state.wanted.max(bytes_min.next_power_of_two());
            self.changed.notify_all();
            state.waiting += 1;
            let is_late = !deadline.wait(&self.changed, &mut state);
            state.waiting -= 1;
            if is_late {
                return Err(self.refusals.of_waiting(wait));
            }
        }
    }

    /// Takes back a file whose contents no longer count.
    pub(crate) fn give(&self, number: u32, bytes: u64) -> Result<()> {
        let mut state = self.state.lock();
        let outgrown = bytes < state.wanted && !state.ready.is_empty();
        if !outgrown {
            state.ready.push(Spare {
                number,
                bytes,
                file: self.open(number)?,
            });
            self.changed.notify_all();
            return Ok(());
        }
        drop(state);
        self.disk.remove(&journal::path(&self.folder, number))
    }

    /// Gives back to the file system what an idle log does not need, the smallest files first.
    pub(crate) fn trim(&self) -> Result<()> {
        let mut state = self.state.lock();
        state
            .ready
            .sort_unstable_by_key(|spare| std::cmp::Reverse(spare.bytes));
        let kept = state.ready.len().min(IDLE_SPARES_MAX);
        let surplus = state.ready.split_off(kept);
        drop(state);
        surplus
            .iter()
            .try_for_each(|spare| self.disk.remove(&journal::path(&self.folder, spare.number)))
    }

    /// The work of the background thread: keeps one file of the wanted size ready until
    /// [`stop`](Spares::stop).
    pub(crate) fn run(&self) {
        let mut state = self.state.lock();
        while !state.stopped {
            if state.ready.iter().any(|spare| spare.bytes >= state.wanted) {
                self.refusals.note(Work::JournalFiles, &Ok(()));
                self.changed.wait(&mut state);
                continue;
            }
            let bytes = state.wanted;
            drop(state);
            let made = self.make(bytes, |took| self.pause(took.min(WRITE_MAX) * PAUSES));
            self.refusals.note(Work::JournalFiles, &made);
            state = self.state.lock();
            match made {
                Ok(spare) => {
                    state.ready.push(spare);
                    self.changed.notify_all();
                }
                Err(_) if state.stopped => return,
                Err(_refused) => drop(self.changed.wait_for(&mut state, RETRY_AFTER)),
            }
        }
    }

    /// A spare file of just `bytes`, made here and now if there is none, for a log that is being
    /// opened. A larger one would make the journal of a log that crashes again and again grow each
    /// time; so any other of at least `bytes_min` is taken only where none can be made, as on a
    /// full disk.
    pub(crate) fn take_or_make(&self, bytes: u64, bytes_min: u64) -> Result<Spare> {
        if let Some(spare) = self.take_ready(bytes..=bytes) {
            return Ok(spare);
        }
        self.make_now(bytes)
            .or_else(|refused| self.take_ready(bytes_min..=u64::MAX).ok_or(refused))
    }

    /// The smallest ready file of a size in the range.
    fn take_ready(&self, bytes: RangeInclusive<u64>) -> Option<Spare> {
        let mut state = self.state.lock();
        let fitting = state
            .ready
            .iter()
            .enumerate()
            .filter(|(_, spare)| bytes.contains(&spare.bytes));
        let (place, _) = fitting.min_by_key(|(_, spare)| spare.bytes)?;
        Some(state.ready.swap_remove(place))
    }

    /// Makes a file here and now.
    pub(crate) fn make_now(&self, bytes: u64) -> Result<Spare> {
        self.make(bytes, |_took| Ok(()))
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// One thread makes files, so the number is its own; it is used up when there is a file of that
    /// number.
    fn make(&self, bytes: u64, pause: impl Fn(Duration) -> Result<()>) -> Result<Spare> {
        let number = self.state.lock().next_number;
        let bytes = bytes.next_multiple_of(BLOCK as u64);
        write_zeroes(
            &*self.disk,
            &journal::path(&self.folder, number),
            bytes,
            pause,
        )?;
        let file = self.open(number)?;
        self.state.lock().next_number = number + 1;
        Ok(Spare {
            number,
            bytes,
            file,
        })
    }

    /// Opens a file that is to be ready. One that cannot be opened is given back to the file
    /// system, or such files would become more and more.
    fn open(&self, number: u32) -> Result<Arc<dyn DiskFile>> {
        let path = journal::path(&self.folder, number);
        self.disk
            .open(&path, Mode::WriteThrough)
            .inspect_err(|_refused| {
                let _removed = self.disk.remove(&path);
            })
    }

    /// Leaves the disk to others. Says [`Error::Closed`] when it is time to stop.
    fn pause(&self, time: Duration) -> Result<()> {
        let deadline = Deadline::after(time);
        let mut state = self.state.lock();
        while state.waiting == 0 && !state.stopped && deadline.wait(&self.changed, &mut state) {}
        if state.stopped {
            Err(Error::Closed)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    const BYTES: u64 = 4 * BLOCK as u64;

    #[test]
    fn what_a_burst_used_is_used_again_until_the_log_is_idle() {
        let folder = tempfile::tempdir().unwrap();
        let spares = Spares::new(
            Arc::new(RealDisk::default()),
            folder.path().to_path_buf(),
            BYTES,
            1,
            Arc::default(),
        );
        let used: Vec<_> = [BYTES / 2, BYTES, BYTES, BYTES, BYTES]
            .map(|bytes| spares.make_now(bytes).unwrap())
            .into();
        let give_back = |taken: &[Spare]| {
            taken
                .iter()
                .try_for_each(|spare| spares.give(spare.number, spare.bytes))
        };
        give_back(&used).unwrap();
        let again: Vec<_> = used
            .iter()
            .map(|_| spares.take(BYTES / 2, Duration::ZERO).unwrap())
            .collect();
        assert!(
            spares.take(BYTES / 2, Duration::ZERO).is_err(),
            "that was all"
        );
        give_back(&again).unwrap();
        spares.trim().unwrap();
        let lengths: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(lengths, [BYTES; IDLE_SPARES_MAX]);
    }
}
