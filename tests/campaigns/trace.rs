//! Power cuts in the system calls of a process, independent of the engine's own view of its disk.
//!
//! A process works under `strace`, and its folder is rebuilt as a power cut might have left it
//! after any of its system calls. A process of its own opens each image and checks it against what
//! the same trace acknowledged. Some of those processes run under `strace` as well, and their
//! recovery is cut too.

use std::path::Path;
use std::process::{Output, Stdio};

use super::process::{Changing, End, Role, Writing, works};
use super::support::crash_image::{Durability, Image, Left, NamesLeft, Step};
use super::support::ledger::Ledger;
use super::support::report::{Dice, Report, Runs, seed};
use super::system_calls::{read, under_strace};

const IMAGES: Runs = Runs {
    quick: 60,
    full: 2_000,
};
/// Images of a recovery that was cut.
const RECOVERIES: Runs = Runs {
    quick: 10,
    full: 1_200,
};

const SLED_IMAGES: Runs = Runs {
    quick: 15,
    full: 150,
};
const SLED_APPENDS: u32 = 300;

const IMAGES_PER_TRACE: u64 = 100;
const CUTS_PER_RECOVERY: u64 = 10;
const LIVES: u32 = 5;
/// The changes of sessions in each life.
const CHANGES: u64 = 5;
/// The life, or the first of the lives, of a process that opens an image and appends to it.
const LAST_LIFE: u32 = 1_000;

pub(crate) fn campaign() {
    let seed = seed();
    let mut report = Report::new(
        "power cuts in a trace of system calls",
        seed,
        IMAGES.planned(),
    );
    let mut recoveries = Report::new(
        "power cuts in the trace of a recovery",
        seed,
        RECOVERIES.planned(),
    );
    let mut dice = Dice(seed);
    while !report.is_done() {
        let trace = Trace::of_a_writer(dice.roll());
        for _ in 0..IMAGES_PER_TRACE {
            let cut = trace.cut(&mut dice);
            let what = || cut.what.clone();
            if !recoveries.is_done() && dice.one_in(2) {
                if let Some(recovery) = report.run(what, || cut.check_traced()) {
                    for _ in 0..CUTS_PER_RECOVERY {
                        let second = recovery.cut(&mut dice);
                        recoveries.run(
                            || format!("{}, then {}", cut.what, second.what),
                            || second.check(),
                        );
                    }
                }
            } else {
                report.run(what, || cut.check());
            }
            if report.is_done() {
                break;
            }
        }
    }
    let violations = recoveries.told();
    report.end();
    assert_eq!(violations, 0, "recoveries that were cut short");
}

/// Checks that the campaign finds something: where a kind of call is no barrier, events must be
/// missing.
pub(crate) fn campaign_without_barriers() {
    let seed = seed();
    let mut dice = Dice(seed);
    for kind in ["write through", "fdatasync", "fsync"] {
        let mut report = Report::new(format!("a trace without {kind:?}"), seed, 60);
        let mut trace = Trace::of_a_writer(dice.roll());
        trace.void = Some(kind);
        while !report.is_done() && report.violations() == 0 {
            let cut = trace.cut(&mut dice);
            report.run(|| cut.what.clone(), || cut.check());
        }
        assert!(
            report.told() > 0,
            "nothing noticed that {kind:?} does nothing"
        );
    }
}

/// The same cuts in the trace of a log that is a sled database with its own `flush`. A loss there
/// is no violation: it is the reason why events are not stored in sled.
pub(crate) fn campaign_on_sled() {
    let seed = seed();
    let mut report = Report::new(
        "power cuts in a trace of sled's own flush",
        seed,
        SLED_IMAGES.planned(),
    );
    let mut dice = Dice(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let db = folder.path().join("db");
    let role = Role::WriteSled {
        folder: db.clone(),
        appends: SLED_APPENDS,
    };
    std::fs::create_dir(&db).expect("a folder");
    let steps = traced(&role, folder.path(), &db, &Image::default());
    while !report.is_done() {
        let end = 1 + dice.index(steps.len());
        let mut durability = Durability::default();
        steps[..end].iter().for_each(|step| durability.step(step));
        let acknowledged = steps[..end]
            .iter()
            .filter_map(Step::said)
            .filter(|line| line.starts_with("acknowledged"))
            .count();
        let (left, names) = (dice.one_of(&Left::ALL), dice.one_of(&NamesLeft::ALL));
        let image = durability.cut(left, names, &mut dice);
        let what = || format!("step {end} of {}", steps.len());
        let found = report.run(what, || {
            found_by_sled(&image, u32::try_from(acknowledged).expect("few"))
        });
        report.count("acknowledged appends", acknowledged as u64);
        match found {
            Some(Some(found)) => {
                let lost = (acknowledged - found) as u64;
                report.count("of them lost", lost);
                report.count("cuts that lost some", u64::from(lost > 0));
                report.count("cuts that lost all", u64::from(lost > 0 && found == 0));
            }
            Some(None) => report.count("cuts that left a database that does not open", 1),
            None => {}
        }
    }
    report.end();
}

/// Returns how many of the appends sled finds in an image, if it opens it.
fn found_by_sled(image: &Image, appends: u32) -> Option<usize> {
    let folder = tempfile::tempdir().expect("a folder");
    let db = folder.path().join("db");
    image.write_to(&db).expect("write the image");
    let output = Role::CheckSled {
        folder: db,
        appends,
    }
    .command()
    .stdin(Stdio::null())
    .output()
    .expect("start a process");
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim().parse().ok().filter(|_| output.status.success())
}

/// What a process did to a folder, and its output.
struct Trace {
    seed: u64,
    base: Image,
    /// What was expected of the folder at the beginning.
    ledger: Ledger,
    steps: Vec<Step>,
    /// This kind of barrier counts as none.
    void: Option<&'static str>,
    /// The life of the next process that opens an image and appends.
    life: u32,
}

/// A folder after a power cut, and what must be in it.
struct CutOff {
    what: String,
    seed: u64,
    image: Image,
    ledger: Ledger,
    life: u32,
}

impl Trace {
    fn of_a_writer(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        std::fs::create_dir(&log).expect("a folder");
        let writing = Writing {
            folder: log.clone(),
            seed,
            life: 1,
            lives: LIVES,
            tell: None,
            end: End::Exit,
            changing: Changing {
                changes: CHANGES,
                known: None,
                backup: None,
            },
        };
        let steps = traced(
            &Role::Write(writing),
            folder.path(),
            &log,
            &Image::default(),
        );
        Self {
            seed,
            base: Image::default(),
            ledger: Ledger::new(works(seed)),
            steps,
            void: None,
            life: LAST_LIFE,
        }
    }

    /// Cuts the power at a random place.
    fn cut(&self, dice: &mut Dice) -> CutOff {
        let end = 1 + dice.index(self.steps.len());
        let mut durability = Durability::of(&self.base);
        durability.void.extend(self.void.map(str::to_owned));
        let mut ledger = self.ledger.clone();
        for step in &self.steps[..end] {
            durability.step(step);
            if let Some(line) = step.said() {
                ledger.note(line);
            }
        }
        let (left, names) = (dice.one_of(&Left::ALL), dice.one_of(&NamesLeft::ALL));
        let what = format!(
            "step {end} of {} with seed {}, {left:?} left, names {names:?}",
            self.steps.len(),
            self.seed
        );
        CutOff {
            what,
            seed: self.seed,
            image: durability.cut(left, names, dice),
            ledger,
            life: self.life,
        }
    }
}

impl CutOff {
    /// Opens the folder in a new process, twice.
    fn check(&self) {
        let folder = self.folder();
        let output = self
            .role(folder.path())
            .command()
            .stdin(Stdio::null())
            .output()
            .expect("start a process");
        told_no_violation(&output);
    }

    /// Does the same, and returns what that process did.
    fn check_traced(&self) -> Trace {
        let folder = self.folder();
        let steps = traced(
            &self.role(folder.path()),
            folder.path(),
            &folder.path().join("log"),
            &self.image,
        );
        // A repeated recovery must find all that the interrupted one found, also where no reader
        // has seen it yet.
        let mut ledger = self.ledger.clone();
        let said = steps.iter().filter_map(Step::said);
        said.take_while(|line| !line.starts_with("try"))
            .for_each(|line| ledger.note(line));
        Trace {
            seed: self.seed,
            base: self.image.clone(),
            ledger,
            steps,
            void: None,
            life: self.life + 2,
        }
    }

    fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        self.image
            .write_to(&folder.path().join("log"))
            .expect("write the image");
        self.ledger
            .write_to(&folder.path().join("ledger"))
            .expect("write the ledger");
        folder
    }

    fn role(&self, folder: &Path) -> Role {
        let (seed, life) = (self.seed, self.life);
        Role::Check {
            folder: folder.join("log"),
            ledger: folder.join("ledger"),
            seed,
            life,
        }
    }
}

/// Runs a process under `strace`, which finds `image` in `log`, and returns what it did there.
fn traced(role: &Role, folder: &Path, log: &Path, image: &Image) -> Vec<Step> {
    let output = folder.join("trace");
    let run = under_strace(&role.command(), &output)
        .stdin(Stdio::null())
        .output()
        .expect("start strace");
    told_no_violation(&run);
    read(&output, log, &image.names, image.files.len())
}

/// Checks that a process that checked ended well.
pub(crate) fn told_no_violation(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        said.trim()
    );
    assert!(!said.contains("panicked"), "{said}");
}
