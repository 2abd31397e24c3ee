//! Spare journal files, prepared and recycled in the background. So continuing in the next file
//! seldom waits for zeroes to be written.

use std::cmp::Reverse;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::{BLOCK, Disk, DiskFile, Halt, Mode, Refusals, Work, write_zeroes};
use crate::journal;
use crate::model::{Error, Result};
use crate::sync::{Deadline, Mailbox, Stopped};

/// The delay before the next attempt after the disk refused one.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The number of spare files that an idle log keeps; it removes the rest.
///
/// Under load all are kept. They were just in use, and the next burst would write their zeroes
/// again.
const IDLE_SPARES_MAX: usize = 2;

/// The pause after each write of zeroes, in multiples of the time that the write took. Commits use
/// the disk in the pause. There is none while a thread waits for the file.
const PAUSES: u32 = 3;

/// The longest write time that counts for the pause. A longer one says more about the disk than
/// about its load.
const WRITE_MAX: Duration = Duration::from_millis(10);

/// A pre-written file that holds nothing that counts.
pub(crate) struct Spare {
    pub number: u32,
    pub bytes: u64,
    /// Whether it holds nothing but zeroes. A recycled file holds what it held before.
    is_clean: bool,
    pub file: Arc<dyn DiskFile>,
}

pub(crate) struct Spares {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    bytes_max: u64,
    refusals: Arc<Refusals>,
    mailbox: Mailbox<Stock>,
}

/// The ready files and the demand for more.
struct Stock {
    ready: Vec<Spare>,
    next_number: u32,
    /// The size that the next file should have, and at least the size that a waiting batch needs.
    wanted: u64,
    /// The number of threads that wait for a file.
    waiting: usize,
    /// The number of those that wait for a clean one.
    waiting_for_clean: usize,
}

impl Spares {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        bytes_max: u64,
        next_number: u32,
        refusals: Arc<Refusals>,
    ) -> Self {
        let stock = Stock {
            ready: Vec::new(),
            next_number,
            wanted: 0,
            waiting: 0,
            waiting_for_clean: 0,
        };
        Self {
            disk,
            folder,
            bytes_max,
            refusals,
            mailbox: Mailbox::new(stock),
        }
    }

    /// Prepares a file in the background for when the active one of `active_bytes` is full.
    ///
    /// Its size is twice `active_bytes`, up to the maximum.
    pub(crate) fn prepare_next(&self, active_bytes: u64) {
        let wanted = active_bytes.saturating_mul(2).min(self.bytes_max);
        self.mailbox.update(|stock| stock.wanted = wanted);
    }

    /// Takes the largest spare file, once one has at least `bytes_min`.
    ///
    /// Returns `None` if there is none at the deadline.
    pub(crate) fn take(
        &self,
        bytes_min: u64,
        deadline: Deadline,
    ) -> Result<Option<Spare>, Stopped> {
        let largest = |stock: &mut Stock| {
            stock.take(
                |spare| spare.bytes >= bytes_min,
                |spare| Reverse(spare.bytes),
            )
        };
        if let Some(spare) = self.mailbox.with(largest) {
            return Ok(Some(spare));
        }
        self.mailbox.update(|stock| {
            stock.wanted = stock.wanted.max(bytes_min.next_power_of_two());
            stock.waiting += 1;
        });
        let taken = self.mailbox.wait_until(deadline, largest);
        self.mailbox.with(|stock| stock.waiting -= 1);
        taken
    }

    /// Recycles a file whose contents no longer count.
    ///
    /// Removes it instead if it is smaller than the wanted size and other files are ready.
    pub(crate) fn give(&self, number: u32, bytes: u64) -> Result<()> {
        let is_outgrown = |stock: &mut Stock| bytes < stock.wanted && !stock.ready.is_empty();
        if self.mailbox.with(is_outgrown) {
            return self.disk.remove(&journal::path(&self.folder, number));
        }
        let file = self.open(number)?;
        let spare = Spare {
            number,
            bytes,
            is_clean: false,
            file,
        };
        self.mailbox.update(|stock| stock.ready.push(spare));
        Ok(())
    }

    /// Takes a file of `bytes` that holds nothing but zeroes, once there is one.
    ///
    /// Returns `None` if there is none at the deadline.
    pub(crate) fn take_clean(
        &self,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<Option<Spare>, Stopped> {
        self.mailbox.update(|stock| {
            stock.wanted = stock.wanted.max(bytes);
            stock.waiting += 1;
            stock.waiting_for_clean += 1;
        });
        let taken = self.mailbox.wait_until(deadline, |stock| {
            stock.take(
                |spare| spare.is_clean && spare.bytes >= bytes,
                |spare| spare.bytes,
            )
        });
        self.mailbox.with(|stock| {
            stock.waiting -= 1;
            stock.waiting_for_clean -= 1;
        });
        taken
    }

    /// Removes the spare files that still hold what they held when they were in use.
    pub(crate) fn remove_used(&self) -> Result<()> {
        let used = self.mailbox.update(|stock| {
            let (clean, used) = std::mem::take(&mut stock.ready)
                .into_iter()
                .partition(|spare| spare.is_clean);
            stock.ready = clean;
            let used: Vec<Spare> = used;
            used
        });
        if used.is_empty() {
            return Ok(());
        }
        used.iter()
            .try_for_each(|spare| self.disk.remove(&journal::path(&self.folder, spare.number)))?;
        self.disk.sync_dir(&self.folder)
    }

    /// Returns the number of spare files and their bytes.
    pub(crate) fn ready(&self) -> (u64, u64) {
        self.mailbox.with(|stock| {
            let bytes = stock.ready.iter().map(|spare| spare.bytes).sum();
            (stock.ready.len() as u64, bytes)
        })
    }

    /// Removes the spare files that an idle log does not need, the smallest first.
    ///
    /// Those that fit are kept before others: one may have been made for a thread that waits.
    pub(crate) fn trim(&self) -> Result<()> {
        let surplus = self.mailbox.with(|stock| {
            let mut ready = std::mem::take(&mut stock.ready);
            ready.sort_unstable_by_key(|spare| Reverse((stock.fits(spare), spare.bytes)));
            let surplus = ready.split_off(ready.len().min(IDLE_SPARES_MAX));
            stock.ready = ready;
            surplus
        });
        surplus
            .iter()
            .try_for_each(|spare| self.disk.remove(&journal::path(&self.folder, spare.number)))
    }

    /// Runs the background thread: keeps one file of the wanted size ready until
    /// [`stop`](Spares::stop).
    pub(crate) fn run(&self) {
        while let Ok(bytes) = self.next_wanted() {
            let pause = |took: Duration| self.pause(took.min(WRITE_MAX) * PAUSES);
            match self.make(bytes, pause) {
                Ok(spare) => self.mailbox.update(|stock| stock.ready.push(spare)),
                Err(Halt::Failed(refused)) => {
                    self.refusals.note(Work::JournalFiles, Some(&refused));
                    // The next wait for work returns a stop.
                    let _stopped = self.mailbox.pause(RETRY_AFTER, |_stock| false);
                }
                Err(Halt::Stopped) => return,
            }
        }
    }

    /// Waits until no ready file has the wanted size, and returns that size.
    fn next_wanted(&self) -> Result<u64, Stopped> {
        self.mailbox.wait_for(|stock| {
            let is_ready = stock.ready.iter().any(|spare| stock.fits(spare));
            if is_ready {
                self.refusals.note(Work::JournalFiles, None);
            }
            (!is_ready).then_some(stock.wanted)
        })
    }

    /// Takes a spare file of exactly `bytes`, or makes one, for a log that is being opened.
    ///
    /// A larger file would make the journal of a log that crashes repeatedly grow each time. So
    /// another file of at least `bytes_min` is taken only if none can be made, as on a full disk.
    pub(crate) fn take_or_make(&self, bytes: u64, bytes_min: u64) -> Result<Spare> {
        if let Some(spare) = self.take_ready(bytes..=bytes) {
            return Ok(spare);
        }
        self.make_now(bytes)
            .or_else(|refused| self.take_ready(bytes_min..=u64::MAX).ok_or(refused))
    }

    /// Takes the smallest ready file with a size in the range.
    fn take_ready(&self, bytes: RangeInclusive<u64>) -> Option<Spare> {
        self.mailbox
            .with(|stock| stock.take(|spare| bytes.contains(&spare.bytes), |spare| spare.bytes))
    }

    /// Makes a file on the calling thread.
    pub(crate) fn make_now(&self, bytes: u64) -> Result<Spare> {
        self.make(bytes, |_took| Ok(()))
    }

    pub(crate) fn stop(&self) {
        self.mailbox.stop();
    }

    /// Makes a file with the next number.
    ///
    /// Only one thread makes files, so no other thread uses the same number. The number is used up
    /// once the file is complete and open.
    fn make<E: From<Error>>(
        &self,
        bytes: u64,
        pause: impl Fn(Duration) -> Result<(), E>,
    ) -> Result<Spare, E> {
        let number = self.mailbox.with(|stock| stock.next_number);
        let bytes = bytes.next_multiple_of(BLOCK as u64);
        write_zeroes(
            &*self.disk,
            &journal::path(&self.folder, number),
            bytes,
            pause,
        )?;
        let file = self.open(number)?;
        self.mailbox.with(|stock| stock.next_number = number + 1);
        Ok(Spare {
            number,
            bytes,
            is_clean: true,
            file,
        })
    }

    /// Opens a file that will be a spare. A file that cannot be opened is removed, so that such
    /// files do not accumulate.
    fn open(&self, number: u32) -> Result<Arc<dyn DiskFile>> {
        let path = journal::path(&self.folder, number);
        self.disk
            .open(&path, Mode::WriteThrough)
            .inspect_err(|_refused| {
                let _removed = self.disk.remove(&path);
            })
    }

    /// Leaves the disk to commits, unless a thread waits for the file.
    fn pause(&self, time: Duration) -> Result<(), Halt> {
        Ok(self.mailbox.pause(time, |stock| stock.waiting > 0)?)
    }
}

impl Stock {
    /// Whether no other file need be made beside this one.
    fn fits(&self, spare: &Spare) -> bool {
        let has_to_be_clean = self.waiting_for_clean > 0;
        spare.bytes >= self.wanted && (spare.is_clean || !has_to_be_clean)
    }

    /// Takes the first ready file, in the order of `key`, for which `fits` holds.
    fn take<K: Ord>(
        &mut self,
        fits: impl Fn(&Spare) -> bool,
        key: impl Fn(&Spare) -> K,
    ) -> Option<Spare> {
        let fitting = self
            .ready
            .iter()
            .enumerate()
            .filter(|(_, spare)| fits(spare));
        let (at, _) = fitting.min_by_key(|(_, spare)| key(spare))?;
        Some(self.ready.swap_remove(at))
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
            .map(|_| {
                spares
                    .take(BYTES / 2, Deadline::after(Duration::ZERO))
                    .unwrap()
                    .unwrap()
            })
            .collect();
        assert!(
            spares
                .take(BYTES / 2, Deadline::after(Duration::ZERO))
                .unwrap()
                .is_none(),
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
