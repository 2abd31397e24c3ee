//! How much a campaign does, and its report of what it did.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

const ENV_TIER: &str = "SESSION_LOG_CAMPAIGN";
const ENV_SEED: &str = "SESSION_LOG_SEED";
const ENV_RUNS: &str = "SESSION_LOG_RUNS";

/// A campaign that has found this many violations makes no further runs.
const VIOLATIONS_MAX: usize = 20;

/// The number of violations that are printed in full when they are found.
pub(crate) const TOLD_MAX: usize = 5;

/// How many runs a campaign makes: few in `cargo test`, all with `SESSION_LOG_CAMPAIGN=full`, and
/// exactly `n` with `SESSION_LOG_RUNS=n`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runs {
    pub quick: u64,
    pub full: u64,
}

impl Runs {
    /// Returns how many runs to make this time.
    pub(crate) fn planned(self) -> u64 {
        number_in(ENV_RUNS).unwrap_or(if is_full() { self.full } else { self.quick })
    }
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .and_then(|number| number.parse().ok())
}

pub(crate) fn is_full() -> bool {
    std::env::var(ENV_TIER).is_ok_and(|tier| tier == "full")
}

/// Returns the seed of this run: the one in the environment, or a fresh one.
pub(crate) fn seed() -> u64 {
    number_in(ENV_SEED).unwrap_or_else(|| RandomState::new().build_hasher().finish())
}

/// What a campaign did. Printed when the campaign ends, which fails on a violation.
pub(crate) struct Report {
    campaign: String,
    seed: u64,
    began: Instant,
    planned: u64,
    runs: u64,
    violations: Vec<String>,
    skipped: BTreeMap<String, u64>,
    figures: BTreeMap<String, u64>,
}

impl Report {
    pub(crate) fn new(campaign: impl Into<String>, seed: u64, planned: u64) -> Self {
        let report = Self::untold(campaign.into(), seed, planned);
        // Printed first, so that the seed is known also of a campaign that hangs.
        tell(&format!(
            "campaign {}: {planned} runs planned, {ENV_SEED}={seed}\n",
            report.campaign
        ));
        report
    }

    fn untold(campaign: String, seed: u64, planned: u64) -> Self {
        let (violations, skipped, figures) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            campaign,
            seed,
            began: Instant::now(),
            planned,
            runs: 0,
            violations,
            skipped,
            figures,
        }
    }

    /// Returns a report for each of `parts` equal parts of the runs, to be [joined](Report::join)
    /// at the end.
    pub(crate) fn split(&self, parts: u64) -> Vec<Self> {
        (0..parts)
            .map(|part| {
                Self::untold(
                    self.campaign.clone(),
                    self.seed,
                    (self.planned + part) / parts,
                )
            })
            .collect()
    }

    /// Adds the results of a part of the runs.
    pub(crate) fn join(&mut self, part: Self) {
        self.runs += part.runs;
        self.violations.extend(part.violations);
        part.skipped
            .into_iter()
            .for_each(|(why, runs)| self.skip(runs, why));
        part.figures
            .into_iter()
            .for_each(|(figure, count)| self.count(figure, count));
    }

    /// Returns whether all runs were made, or enough violations were found.
    pub(crate) fn is_done(&self) -> bool {
        self.runs >= self.planned || self.violations.len() >= VIOLATIONS_MAX
    }

    /// Whether all runs were made, and met all of these. What seldom comes is waited for in three
    /// times as many runs.
    pub(crate) fn has_met(&self, figures: &[&str]) -> bool {
        let has_all = figures.iter().all(|figure| self.figure(figure) > 0);
        self.is_done() && (has_all || self.violations() > 0 || self.runs >= 3 * self.planned)
    }

    pub(crate) fn runs(&self) -> u64 {
        self.runs
    }

    fn took(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn violations(&self) -> usize {
        self.violations.len()
    }

    /// Counts a run, which is a violation if it panics. `what` says how to reproduce it.
    pub(crate) fn run<T>(
        &mut self,
        what: impl FnOnce() -> String,
        check: impl FnOnce() -> T,
    ) -> Option<T> {
        self.runs += 1;
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(value) => Some(value),
            Err(panic) => {
                let said = panic.downcast_ref::<String>().cloned();
                let said =
                    said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
                let violation = format!(
                    "{}: {}",
                    what(),
                    said.unwrap_or_else(|| "a panic".to_owned())
                );
                if self.violations.len() < TOLD_MAX {
                    tell(&format!(
                        "  VIOLATION in campaign {}: {violation}\n",
                        self.campaign
                    ));
                }
                self.violations.push(violation);
                None
            }
        }
    }

    /// Counts runs that could not be made here.
    pub(crate) fn skip(&mut self, runs: u64, why: impl Into<String>) {
        *self.skipped.entry(why.into()).or_default() += runs;
    }

    /// Adds to a metric of what the runs met.
    pub(crate) fn count(&mut self, figure: impl Into<String>, more: u64) {
        *self.figures.entry(figure.into()).or_default() += more;
    }

    pub(crate) fn figure(&self, figure: &str) -> u64 {
        self.figures.get(figure).copied().unwrap_or_default()
    }

    /// Fails if none of one of these was met, unless there were fewer runs.
    pub(crate) fn expect_some(&self, runs: u64, figures: &[&str]) {
        for expected in figures {
            let is_met = self.figure(expected) > 0;
            assert!(is_met || self.runs < runs, "no {expected}");
        }
    }

    /// Prints the report and returns the number of violations.
    pub(crate) fn told(&self) -> usize {
        let (runs, violations, seconds) = (self.runs, self.violations.len(), self.took().as_secs());
        let skipped: u64 = self.skipped.values().sum();
        let mut lines = vec![format!(
            "campaign {}: {runs} runs, {violations} violations, {skipped} skipped, \
             {ENV_SEED}={}, {seconds} s",
            self.campaign, self.seed
        )];
        lines.extend(
            self.skipped
                .iter()
                .map(|(why, runs)| format!("  SKIPPED {runs}: {why}")),
        );
        lines.extend(
            self.figures
                .iter()
                .map(|(figure, count)| format!("  {count} {figure}")),
        );
        tell(&(lines.join("\n") + "\n"));
        violations
    }

    /// Prints the report, and fails on a violation or on a run that was dropped without a reason.
    pub(crate) fn end(self) {
        let violations = self.told();
        assert_eq!(
            violations,
            0,
            "campaign {}: {:?}",
            self.campaign,
            self.violations.first()
        );
        let skipped: u64 = self.skipped.values().sum();
        assert!(
            self.runs + skipped >= self.planned,
            "campaign {}: {} runs of {}",
            self.campaign,
            self.runs,
            self.planned
        );
    }
}

/// Prints past the test harness, which hides the output of a passing test.
pub(crate) fn tell(text: &str) {
    // A campaign does not fail for want of a terminal.
    let _told = std::io::stderr().write_all(text.as_bytes());
}

/// splitmix64: the same seed gives the same numbers.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("it is below a length")
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.index(all.len())]
    }

    pub(crate) fn flip(&mut self) -> bool {
        self.roll() & 1 == 1
    }

    pub(crate) fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}
