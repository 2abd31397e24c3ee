//! The lives of a log on a simulated disk: threads append, one changes sessions in every way, and
//! the process is killed or its disk fails.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::simulated::{Fault, Faulty, SimulatedDisk};
use super::support::changes::Changer;
use super::support::crash_image::Image;
use super::support::ledger::{Ledger, Tag, Works, acknowledged, tried};
use super::support::report::Dice;
use crate::model::Error;
use crate::sync::{Instant, Mutex, scope, yield_now};
use crate::{Options, SessionLog};

const WRITERS: u32 = 5;
const APPENDS: u64 = 12;
/// The changes that one more thread makes in a life.
const CHANGES: u64 = 16;

/// The folder of the log's backup, below the log's own.
pub(super) const BACKUP: &str = "backup";

/// Batches that make a journal of small files rotate every few dozen. Now and then one may be
/// larger than such a file, or be written in parallel with another.
pub(super) const BATCHES: &[u64] = &[
    40, 40, 40, 200, 200, 200, 1_000, 1_000, 1_000, 4_000, 4_000, 12_000, 300_000,
];

const KIB: usize = 1024;
const HOUR_MS: u64 = 3_600_000;
const CLOCK_START_MS: u64 = 1_750_000_000_000;

/// A log that lives, and what is expected of it.
pub(super) struct Scene {
    pub disk: SimulatedDisk,
    pub works: Works,
    pub ledger: Mutex<Ledger>,
}

impl Scene {
    pub(super) fn new(root: &Path, works: Works) -> Self {
        Self {
            disk: SimulatedDisk::of(root, &Image::default()),
            works,
            ledger: Mutex::new(Ledger::new(works)),
        }
    }

    fn say(&self, line: String) {
        // The lock keeps both records in the same order.
        let mut ledger = self.ledger.lock();
        ledger.note(&line);
        self.disk.say(line);
    }

    fn say_what_is_shown(&self, log: &SessionLog) {
        let mut ledger = self.ledger.lock();
        ledger.check(log);
        for line in ledger.shown() {
            ledger.note(&line);
            self.disk.say(line);
        }
    }

    pub(super) fn live(&mut self, folder: &Path, life: u32, dice: &mut Dice) {
        match dice.below(6) {
            0 => self.disk.die_after(dice.index(40)),
            1 => self.disk.die_after(dice.index(300)),
            2 => self.disk.fail(Fault {
                of: Faulty::Barrier,
                after: dice.below(25),
            }),
            3 => self.disk.fail(Fault {
                of: Faulty::WriteThrough,
                after: dice.below(60),
            }),
            4 => self.disk.fail(Fault {
                of: Faulty::Write,
                after: dice.below(20),
            }),
            _ => {}
        }
        self.live_on(folder, life, dice);
    }

    pub(super) fn live_on(&mut self, folder: &Path, life: u32, dice: &mut Dice) {
        let opened = options(life, dice).open_on(self.disk.handle(), folder);
        if let Ok(log) = &opened {
            self.ledger.lock().forget_what_was_checked();
            self.say_what_is_shown(log);
            scope(|scope| {
                for writer in 0..WRITERS {
                    let (this, log) = (&*self, log.clone());
                    scope.spawn(move || this.write(&log, life, writer));
                }
                let (this, log) = (&*self, log.clone());
                let dice = Dice(dice.roll());
                scope.spawn(move || this.change(&log, folder, dice));
            });
            if dice.flip() {
                rest(log);
            }
            // A log that has failed also shows what is durable, and nothing else.
            self.say_what_is_shown(log);
            if dice.flip() {
                // Close may report the disk's failure.
                let _closed = log.close();
            }
        }
        drop(opened);
        self.disk.kill();
    }

    fn write(&self, log: &SessionLog, life: u32, writer: u32) {
        for nth in 0..u32::try_from(APPENDS).expect("they are few") {
            let tag = Tag { life, writer, nth };
            let work = self.works.of(tag);
            self.say(tried(tag));
            match log.append(&work.session, work.batch()) {
                Ok(ack) => self.say(acknowledged(tag, &work, &ack)),
                Err(error) => {
                    assert!(is_of_the_disk(&error), "an append failed with {error:?}");
                }
            }
        }
    }

    /// Changes sessions in every way, until something fails.
    fn change(&self, log: &SessionLog, folder: &Path, mut dice: Dice) {
        if dice.flip() {
            self.disk.switch_links();
        }
        let say = |line| self.say(line);
        let backup = |log: &SessionLog| {
            log.backup_on(self.disk.handle(), &folder.join(BACKUP))
                .map(drop)
        };
        let known = self.ledger.lock().changes().clone();
        let mut changer = Changer {
            changes: known,
            say: &say,
            backup: Some(&backup),
        };
        match changer.change(log, &mut dice, CHANGES) {
            Ok(()) => {}
            Err(error) => assert!(is_of_the_disk(&error), "a change failed with {error:?}"),
        }
    }
}

fn is_of_the_disk(error: &Error) -> bool {
    matches!(
        error,
        Error::Io { .. }
            | Error::Poisoned { .. }
            | Error::LookupFailed { .. }
            | Error::Stalled { .. }
            | Error::Refused { .. }
    )
}

/// Waits until the log has had time to write a witness, to seal, and to prepare its next file.
fn rest(log: &SessionLog) {
    let (began, before) = (Instant::now(), log.stats().segments);
    while began.elapsed() < Duration::from_millis(250) && log.stats().segments == before {
        yield_now();
    }
}

pub(super) fn options(life: u32, dice: &mut Dice) -> Options {
    let start_ms = CLOCK_START_MS + u64::from(life) * 1_000 - if dice.flip() { HOUR_MS } else { 0 };
    let begun = Instant::now();
    let mut options = Options::new()
        .journal_file_bytes_max(256 * KIB)
        .group_bytes_max(256 * KIB)
        .recent_bytes_max(1024 * KIB)
        .merge_fanout(2)
        .erase_within(Duration::from_millis(if dice.one_in(4) {
            100
        } else {
            100_000
        }))
        .stall_wait(Duration::from_millis(500))
        .clock(move || UNIX_EPOCH + Duration::from_millis(start_ms) + begun.elapsed());
    options.journal_file_bytes_min = 64 * KIB;
    // So that power is cut while entries of tables go to a file.
    options.table_bytes_max = 4 * KIB;
    options
}
