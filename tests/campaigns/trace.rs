//! Power cuts in what the operating system was asked to do: a process works under `strace`, and its folder is rebuilt as a power cut
//! might have left it after any of its system calls. Independent of the engine's own idea of its disk.
//!
//! Each image is opened by a process of its own, and checked against what was acknowledged in the same trace. Some of those processes run
//! under `strace` as well, and their recovery is cut in turn.

use std::path::Path;
use std::process::{Output, Stdio};

use super::crash_image::{Durability, Image, Left, NamesLeft, Step};
use super::ledger::Ledger;
use super::process::{End, Role, Writing, works};
use super::report::{Dice, Report, Runs, seed};
use super::system_calls::{read, under_strace};

const IMAGES: Runs = Runs { quick: 100, full: 2_000 };
/// Second-level images.
const RECOVERIES: Runs = Runs { quick: 20, full: 1_200 };

const IMAGES_PER_TRACE: u64 = 100;
const CUTS_PER_RECOVERY: u64 = 10;
const LIVES: u32 = 5;
/// Whoever looks at an image appends as this one, or as a later one.
const LAST_LIFE: u32 = 1_000;

pub(crate) fn campaign() {
    let seed = seed();
    let mut report = Report::new("power cuts in a trace of system calls", seed, IMAGES.planned());
    let mut recoveries = Report::new("power cuts in the trace of a recovery", seed, RECOVERIES.planned());
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
                        recoveries.run(|| format!("{}, then {}", cut.what, second.what), || second.check());
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

/// What a process did to a folder, and said.
struct Trace {
    seed: u64,
    base: Image,
    /// What was expected of the folder at the beginning.
    ledger: Ledger,
    steps: Vec<Step>,
    /// As whom the next to look at it appends.
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
        let writing = Writing { folder: log.clone(), seed, life: 1, lives: LIVES, tell: None, end: End::Exit };
        let steps = traced(&Role::Write(writing), folder.path(), &log, &Image::default());
        Self { seed, base: Image::default(), ledger: Ledger::new(works(seed)), steps, life: LAST_LIFE }
    }

    /// Cuts the power at a random place.
    fn cut(&self, dice: &mut Dice) -> CutOff {
        let end = 1 + dice.index(self.steps.len());
        let mut durability = Durability::of(&self.base);
        let mut ledger = self.ledger.clone();
        for step in &self.steps[..end] {
            durability.step(step);
            if let Some(line) = step.said() {
                ledger.note(line);
            }
        }
        let left = Left::ALL[dice.index(Left::ALL.len())];
        let names = NamesLeft::ALL[dice.index(NamesLeft::ALL.len())];
        let what = format!("step {end} of {} with seed {}, {left:?} left, names {names:?}", self.steps.len(), self.seed);
        CutOff { what, seed: self.seed, image: durability.cut(left, names, dice), ledger, life: self.life }
    }
}

impl CutOff {
    /// A fresh process opens the folder, twice.
    fn check(&self) {
        let folder = self.folder();
        let output = self.role(folder.path()).command().stdin(Stdio::null()).output().expect("start a process");
        told_no_violation(&output);
    }

    /// The same, and what that process did.
    fn check_traced(&self) -> Trace {
        let folder = self.folder();
        let steps = traced(&self.role(folder.path()), folder.path(), &folder.path().join("log"), &self.image);
        // Whatever the recovery found, one that is cut short and made again must find too, also where nobody was told yet.
        let mut ledger = self.ledger.clone();
        let said = steps.iter().filter_map(Step::said);
        said.take_while(|line| !line.starts_with("try")).for_each(|line| ledger.note(line));
        Trace { seed: self.seed, base: self.image.clone(), ledger, steps, life: self.life + 2 }
    }

    fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        self.image.write_to(&folder.path().join("log")).expect("write the image");
        self.ledger.write_to(&folder.path().join("ledger")).expect("write the ledger");
        folder
    }

    fn role(&self, folder: &Path) -> Role {
        let (seed, life) = (self.seed, self.life);
        Role::Check { folder: folder.join("log"), ledger: folder.join("ledger"), seed, life }
    }
}

/// Runs a process under `strace`, which finds `image` in `log`, and returns what it did there.
fn traced(role: &Role, folder: &Path, log: &Path, image: &Image) -> Vec<Step> {
    let output = folder.join("trace");
    let run = under_strace(&role.command(), &output).stdin(Stdio::null()).output().expect("start strace");
    told_no_violation(&run);
    read(&output, log, &image.names, image.files.len())
}

/// A process that checked ended well.
pub(crate) fn told_no_violation(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}", output.status, said.trim());
    assert!(!said.contains("panicked"), "{said}");
}
