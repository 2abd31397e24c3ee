//! Power cuts at every call that the engine makes of a disk.
//!
//! A log lives a few lives on a simulated disk: it appends from several threads, rotates, seals,
//! closes, is killed, fails, recovers. Then the power is cut after each of these calls, in
//! different ways that a disk allows. The log is opened on the image and must hold all that it
//! acknowledged or showed before. Its recovery is cut as well.

use std::path::Path;
use std::time::Duration;

use super::lives::{BACKUP, BATCHES, Scene, options};
use super::simulated::{Fault, Faulty, SimulatedDisk};
use super::support::crash_image::{Durability, Image, Left, NamesLeft, Step, write_steps};
use super::support::ledger::{Ledger, Tag, Works, acknowledged, tried};
use super::support::report::{Dice, Report, Runs, TOLD_MAX, is_full, seed, tell};
use crate::disk::{Disk, Mode, RealDisk};
use crate::sync::scope;
use crate::{NewEvent, SessionId, SessionLog};

const CUTS: Runs = Runs {
    quick: 5_000,
    full: 200_000,
};

/// The number of parallel parts. It is the same on every machine, so that a seed reproduces a run.
const PARTS: u64 = 2;

/// The power is cut after one step in this many, so that a run meets many lives.
const ONE_STEP_IN: u64 = 6;

/// How many cuts are made in each recovery that is followed.
const SECOND_CUTS: u64 = 4;
const ONE_RECOVERY_IN: u64 = 12;

const LIVES: u32 = 4;
/// One state in this many, of those that have a backup, opens it.
const ONE_BACKUP_IN: u64 = 4;
/// The changes of the life that opens an image.
const LAST_CHANGES: u64 = 2;

/// The life of the process that opens an image of an earlier life and appends to it.
const LAST_LIFE: u32 = 1_000;

/// One state in this many opens the index that a life left behind. The others find one that cannot
/// be opened, which is faster.
const ONE_INDEX_IN: u64 = 100;
const NO_INDEX: &str = "/dev/null/log";

#[test]
fn campaign_power_cuts_on_a_simulated_disk() {
    let seed = seed();
    let mut report = Report::new("power cuts on a simulated disk", seed, CUTS.planned());
    let mut dice = Dice(seed);
    // A few runs may meet none of these.
    let of_changes = ["delete", "trim", "redact", "close", "fork", "merged"];
    while !report.has_met(&of_changes) {
        let parts: Vec<_> = report
            .split(PARTS)
            .into_iter()
            .map(|part| (part, Dice(dice.roll())))
            .collect();
        let ended: Vec<Report> = scope(|scope| {
            let begin = |(part, dice)| scope.spawn(move || cut_traces(part, dice));
            let running: Vec<_> = parts.into_iter().map(begin).collect();
            running
                .into_iter()
                .map(|thread| thread.join().expect("violations are caught"))
                .collect()
        });
        for part in ended {
            report.join(part);
        }
    }
    report.expect_some(CUTS.quick, &of_changes);
    let seldom = ["erased", "backups", "backups opened", "second cuts"];
    report.expect_some(CUTS.full, &seldom);
    let of_cuts = ["cuts with an index", "cuts with two groups in flight"];
    report.expect_some(CUTS.full, &of_cuts);
    report.end();
}

fn cut_traces(mut report: Report, mut dice: Dice) -> Report {
    while !report.is_done() {
        let trace = Trace::record(dice.roll());
        trace.cut(&[], &mut report, &mut dice);
    }
    report
}

/// Checks that the campaign finds something: each kind of barrier is made void, one after the
/// other.
#[test]
fn campaign_power_cuts_notice_a_barrier_that_does_nothing() {
    let seed = seed();
    let kinds = [
        "write through",
        "sync of journal/*.journal",
        "sync of journal/*.tmp",
        "sync of segments/*.tmp",
        "sync of MANIFEST",
        "sync of folder ./journal",
        "sync of folder ./segments",
        "sync of folder ./",
    ];
    let mut dice = Dice(seed);
    let planned = if is_full() { 60_000 } else { 10_000 };
    for kind in kinds {
        let mut report = Report::new(format!("without {kind:?}"), seed, planned);
        while !report.is_done() && report.violations() == 0 {
            let trace = Trace::record(dice.roll());
            trace.cut(&[kind], &mut report, &mut dice);
        }
        report.told();
        assert!(
            report.violations() > 0,
            "nothing noticed that {kind:?} does nothing, in {} cuts",
            report.runs()
        );
    }
}

/// The name of its folder, in the folder above, needs a barrier too.
#[test]
fn a_backup_that_was_made_is_there_after_a_power_cut() {
    let (root, mut dice) = (Path::new(NO_INDEX), Dice(1));
    let disk = SimulatedDisk::of(root, &Image::default());
    let log = options(1, &mut dice).open_on(disk.handle(), root).unwrap();
    let session = SessionId::new("s").unwrap();
    log.append(&session, NewEvent::new("note", "kept")).unwrap();
    log.backup_on(disk.handle(), &root.join(BACKUP)).unwrap();
    let mut durability = Durability::default();
    disk.steps().iter().for_each(|step| durability.step(step));
    let image = durability.cut(Left::Nothing, NamesLeft::Synced, &mut dice);
    let backup = SimulatedDisk::of(root, &image.below(Path::new(BACKUP)));
    let opened = open(&backup, root, &mut dice);
    assert_eq!(opened.stats().events, 1);
}

/// A failed barrier leaves content in the page cache that the disk does not have.
///
/// The next open must not trust a manifest in the page cache: it would release files that the
/// manifest on the disk still names. It reads the manifest past the cache and makes it durable in
/// any case.
#[test]
fn a_manifest_whose_barrier_failed_is_not_believed() {
    check_second_lives(Faulty::ManifestBarrier);
}

/// A process that is killed before the barrier of a manifest leaves it in the device's cache.
///
/// The next open must make that manifest durable before it releases files that only the previous
/// one names.
#[test]
fn a_manifest_that_a_killed_process_wrote_is_made_durable_before_it_is_relied_on() {
    check_second_lives(Faulty::ManifestDeath);
}

/// Ends a log's second life badly, at one of the barriers of a manifest, and cuts the power in its
/// third.
fn check_second_lives(of: Faulty) {
    for seed in 0..18 {
        check_second_life(
            seed,
            Fault {
                of,
                after: seed % 9,
            },
        );
    }
}

fn check_second_life(seed: u64, fault: Fault) {
    let mut dice = Dice(seed);
    let works = Works {
        seed,
        bytes: BATCHES,
    };
    let root = Path::new(NO_INDEX);
    let mut scene = Scene::new(root, works);
    scene.live_on(root, 1, &mut dice);
    scene.disk.fail(fault);
    scene.live_on(root, 2, &mut dice);
    let from = scene.disk.steps().len();
    scene.live_on(root, 3, &mut dice);
    let (steps, folder) = (scene.disk.steps(), tempfile::tempdir().unwrap());
    let mut report = Report::new(format!("a third life, seed {seed}"), seed, 60);
    Trace {
        works,
        steps,
        from,
        folder,
    }
    .cut(&[], &mut report, &mut dice);
    report.end();
}

/// The record of a log's lives.
struct Trace {
    works: Works,
    steps: Vec<Step>,
    /// The power is not cut before this step.
    from: usize,
    /// Holds the index as the last life left it.
    folder: tempfile::TempDir,
}

impl Trace {
    fn record(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let folder = tempfile::tempdir().unwrap();
        let works = Works {
            seed,
            bytes: BATCHES,
        };
        let mut scene = Scene::new(folder.path(), works);
        for life in 1..=LIVES {
            scene.live(folder.path(), life, &mut dice);
        }
        Self {
            works,
            steps: scene.disk.steps(),
            from: 0,
            folder,
        }
    }

    /// Returns whether there is an index. Possibly no life got far enough to create one.
    fn has_index(&self) -> bool {
        RealDisk::default()
            .exists(&self.folder.path().join("index"))
            .unwrap()
    }

    /// Cuts the power after each step, in a random choice of ways.
    fn cut(&self, void: &[&str], report: &mut Report, dice: &mut Dice) {
        let mut ledger = Ledger::new(self.works);
        self.cut_each_step(void, &mut ledger, report, dice);
        report.count("lives", u64::from(LIVES));
        for (what, many) in ledger.changes().figures() {
            report.count(what, many);
        }
    }

    fn cut_each_step(
        &self,
        void: &[&str],
        ledger: &mut Ledger,
        report: &mut Report,
        dice: &mut Dice,
    ) {
        let mut durability = Durability::default();
        durability.void = void.iter().map(ToString::to_string).collect();
        for (at, step) in self.steps.iter().enumerate() {
            durability.step(step);
            if let Step::Said(line) = step {
                ledger.note(line);
                continue;
            }
            if at < self.from || (self.from == 0 && !dice.one_in(ONE_STEP_IN)) {
                continue;
            }
            // Without pending writes there is one image, which was checked when the last one was
            // settled.
            let ways = if durability.is_settled() { 1 } else { 3 };
            for _ in 0..ways {
                let left = dice.one_of(&Left::ALL);
                let names = dice.one_of(&NamesLeft::ALL);
                let image = durability.cut(left, names, dice);
                let index =
                    (self.has_index() && dice.one_in(ONE_INDEX_IN)).then_some(self.folder.path());
                report.count("cuts with an index", u64::from(index.is_some()));
                report.count(
                    "cuts with two groups in flight",
                    u64::from(durability.written_through() > 1),
                );
                let (works, life) = (self.works, LAST_LIFE);
                let state = State {
                    image,
                    ledger: ledger.clone(),
                    index,
                    life,
                    works,
                    seed: dice.roll(),
                };
                let what = || {
                    format!(
                        "step {at} of {}, {left:?} left, names {names:?}",
                        self.steps.len()
                    )
                };
                if state.ledger.has_backup() && dice.one_in(ONE_BACKUP_IN) {
                    report.count("backups opened", 1);
                    if report.run(what, || state.check_backup()).is_none() {
                        state.keep(report, &self.steps[..=at]);
                    }
                }
                let first = report.run(what, || state.check());
                let Some(first) = first else {
                    state.keep(report, &self.steps[..=at]);
                    continue;
                };
                if dice.one_in(ONE_RECOVERY_IN) {
                    self.cut_recovery(&state, &first, report, dice);
                }
                if report.is_done() || (!void.is_empty() && report.violations() > 0) {
                    return;
                }
            }
        }
    }

    /// Cuts the recovery that a first cut made necessary, and the appends after it.
    fn cut_recovery(
        &self,
        first: &State<'_>,
        steps: &[Step],
        report: &mut Report,
        dice: &mut Dice,
    ) {
        for _ in 0..SECOND_CUTS {
            let end = 1 + dice.index(steps.len());
            let mut durability = Durability::of(&first.image);
            let mut ledger = first.ledger.clone();
            // A repeated recovery must find all that the first one found, also where no reader has
            // seen it yet.
            for line in steps
                .iter()
                .filter_map(Step::said)
                .take_while(|line| line.starts_with("shown"))
            {
                ledger.note(line);
            }
            for step in &steps[..end] {
                durability.step(step);
                if let Step::Said(line) = step {
                    ledger.note(line);
                }
            }
            let (left, names) = (dice.one_of(&Left::ALL), dice.one_of(&NamesLeft::ALL));
            let (image, life) = (durability.cut(left, names, dice), LAST_LIFE + 1);
            let state = State {
                image,
                ledger,
                index: None,
                life,
                works: self.works,
                seed: dice.roll(),
            };
            report.count("second cuts", 1);
            let what = || {
                format!(
                    "a recovery cut after step {end} of {}, {left:?} left, names {names:?}",
                    steps.len()
                )
            };
            if report.run(what, || state.check()).is_none() {
                state.keep(report, &steps[..end]);
            }
        }
    }
}

/// The image that a cut left, and what must be in it.
struct State<'a> {
    image: Image,
    ledger: Ledger,
    /// The folder of an index that has entries for events after the cut.
    index: Option<&'a Path>,
    /// The life that new appends belong to.
    life: u32,
    works: Works,
    seed: u64,
}

impl State<'_> {
    /// Opens the log, reads it, appends to it, and opens it again. Returns the disk's steps up to
    /// the second open.
    fn check(&self) -> Vec<Step> {
        let mut dice = Dice(self.seed);
        let folder = self.index.map(copy_of_index);
        let path = folder
            .as_ref()
            .map_or(Path::new(NO_INDEX), tempfile::TempDir::path);
        let mut disk = SimulatedDisk::of(path, &self.image);
        let mut ledger = self.ledger.clone();
        let log = open(&disk, path, &mut dice);
        ledger.check(&log);
        for line in ledger.shown() {
            ledger.note(&line);
            disk.say(line);
        }
        ledger.retry_what_was_not_acknowledged(&log);
        for nth in 0..u32::try_from(dice.below(3)).expect("few") {
            let tag = Tag {
                life: self.life,
                writer: 0,
                nth,
            };
            let work = self.works.of(tag);
            let mut say = |line: String| {
                ledger.note(&line);
                disk.say(line);
            };
            say(tried(tag));
            let ack = log
                .append(&work.session, work.batch())
                .unwrap_or_else(|error| panic!("{tag:?} failed: {error:?}"));
            say(acknowledged(tag, &work, &ack));
        }
        let tell = |line: &str| disk.say(line.to_owned());
        ledger
            .change(&log, &mut dice, LAST_CHANGES, &tell)
            .unwrap_or_else(|error| panic!("a change failed: {error:?}"));
        ledger.check(&log);
        if dice.flip() {
            log.close()
                .unwrap_or_else(|error| panic!("the log does not close: {error:?}"));
        }
        drop(log);
        let steps = disk.steps();
        disk.kill();
        ledger.forget_what_was_checked();
        ledger.check(&open(&disk, path, &mut dice));
        steps
    }

    /// Opens the backup as the cut left it.
    fn check_backup(&self) {
        let image = self.image.below(Path::new(BACKUP));
        let disk = SimulatedDisk::of(Path::new(NO_INDEX), &image);
        let options = options(self.life, &mut Dice(self.seed)).read_only();
        let opened = options.open_on(disk.handle(), Path::new(NO_INDEX));
        self.ledger.check_backup(opened);
    }

    /// Writes the image, what must be in it, and the steps up to the cut to a temporary folder.
    fn keep(&self, report: &Report, steps: &[Step]) {
        if report.violations() > TOLD_MAX {
            return;
        }
        let folder = std::env::temp_dir()
            .join("sessionlog-violations")
            .join(format!("{:016x}", self.seed));
        let kept = self
            .image
            .write_to(&folder)
            .and_then(|()| self.ledger.write_to(&folder.with_extension("ledger")))
            .and_then(|()| write_steps(steps, &folder.with_extension("steps")));
        tell(&format!(
            "  the image is kept in {}: {kept:?}\n",
            folder.display()
        ));
    }
}

fn open(disk: &SimulatedDisk, path: &Path, dice: &mut Dice) -> SessionLog {
    let options = options(u32::try_from(dice.below(8)).expect("few"), dice);
    // This disk answers, however late.
    let options = options.stall_wait(Duration::from_mins(1));
    let log = options.open_on(disk.handle(), path);
    log.unwrap_or_else(|error| panic!("the log does not open: {error:?}"))
}

/// Returns a folder with a copy of the index in `folder`.
fn copy_of_index(folder: &Path) -> tempfile::TempDir {
    let (disk, copy) = (RealDisk::default(), tempfile::tempdir().unwrap());
    let (from, to) = (folder.join("index"), copy.path().join("index"));
    disk.make_dir(&to).unwrap();
    for (name, bytes) in disk.list(&from).unwrap() {
        let mut contents = vec![0; usize::try_from(bytes).unwrap()];
        disk.open(&from.join(&name), Mode::Read)
            .unwrap()
            .read_exact_at(&mut contents, 0)
            .unwrap();
        disk.open(&to.join(&name), Mode::Write)
            .unwrap()
            .write_all_at(&contents, 0)
            .unwrap();
    }
    copy
}
