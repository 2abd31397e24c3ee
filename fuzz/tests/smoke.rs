//! The fuzz targets without a fuzzer: every file of the corpus, and mutations of them.

#[path = "../../tests/support/report.rs"]
#[allow(dead_code, reason = "the campaigns use the rest")]
mod report;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use report::{Dice, Report, Runs, seed};

const DECODER_INPUTS: Runs = Runs {
    quick: 500_000,
    full: 2_000_000,
};
/// An operation may write and sync files, so mutations stop after this time. Each file gets at
/// least a few.
const OPERATIONS_MUTATIONS: usize = 100;
const OPERATIONS_TIME: Duration = Duration::from_secs(10);
const OPERATIONS_MUTATIONS_MIN: usize = 1;
const JSON_MUTATIONS: usize = 5_000;
const INPUT_BYTES_MAX: usize = 16 * 1024;
/// The most that a decoder may have allocated: a multiple of the input, and a constant.
///
/// What is a byte of input may be a number of eight bytes, or its share of a list's item that is
/// mostly absent: a segment in a manifest takes 21 bytes at the least, and 256 in memory. A list
/// grows by doubling, and its old half is there until the new one is filled. That is 37 times the
/// input for segments. A decoder that trusts a length in its input allocates far more.
const ALLOCATION_FACTOR: usize = 64;
const ALLOCATION_BYTES_MORE: usize = 64 * 1024;

#[test]
fn campaign_hostile_bytes() {
    let seed = seed();
    let corpus = corpus("decoder");
    let mut report = Report::new("hostile bytes", seed, DECODER_INPUTS.planned());
    let mut dice = Dice(seed);
    let mut largest_share = 0;
    while !report.is_done() {
        let place = (report.runs() as usize) % corpus.len();
        let (name, bytes) = &corpus[place];
        let other = &corpus[dice.index(corpus.len())].1;
        let input = if report.runs() < corpus.len() as u64 {
            bytes.clone()
        } else {
            mutate(bytes, other, Dice(dice.roll()))
        };
        let what = || format!("{name} as {input:?}");
        let peak = report
            .run(what, || peak_of(|| sessionlog_fuzz::decoder(&input)))
            .unwrap_or_default();
        let allowed = ALLOCATION_FACTOR * input.len() + ALLOCATION_BYTES_MORE;
        if peak > allowed {
            report.run(
                || name.clone(),
                || {
                    panic!(
                        "{peak} bytes were allocated for {} bytes of input: {input:?}",
                        input.len()
                    )
                },
            );
        }
        largest_share = largest_share.max(peak * 100 / allowed);
    }
    report.count(
        "% of what may be allocated was, at the most",
        largest_share as u64,
    );
    report.end();
}

/// Returns the peak of this thread's allocations during `act`, in bytes.
fn peak_of(act: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    act();
    usize::try_from(PEAK.get() - before).expect("the peak is no less than what was there")
}

#[test]
fn no_operations_make_the_log_differ_from_its_model() {
    check("operations", sessionlog_fuzz::operations, |round, begun| {
        round < OPERATIONS_MUTATIONS_MIN
            || (round < OPERATIONS_MUTATIONS && begun.elapsed() < OPERATIONS_TIME)
    });
}

#[test]
fn any_bytes_are_json_that_can_be_read_or_are_refused() {
    check("json", sessionlog_fuzz::json, |round, _begun| {
        round < JSON_MUTATIONS
    });
}

/// Runs one mutation of every file of the corpus a round, while `goes_on` returns true.
fn check(target: &str, run: impl Fn(&[u8]), goes_on: impl Fn(usize, Instant) -> bool) {
    let corpus = corpus(target);
    assert!(
        corpus.len() >= 20,
        "the corpus of {target} has {} files",
        corpus.len()
    );
    for (name, bytes) in &corpus {
        told(&format!("{target}: {name}"), || run(bytes));
    }
    let begun = Instant::now();
    let mut mutations = 0;
    for round in (0..).take_while(|round| goes_on(*round, begun)) {
        for (place, (name, bytes)) in corpus.iter().enumerate() {
            let mutated = mutate(
                bytes,
                &corpus[(place + round) % corpus.len()].1,
                Dice((place * 1_000_003 + round) as u64),
            );
            told(
                &format!("{target}: {name}, mutation {round}: {mutated:?}"),
                || run(&mutated),
            );
            mutations += 1;
        }
    }
    println!(
        "{target}: {} files and {mutations} mutations in {:?}",
        corpus.len(),
        begun.elapsed()
    );
}

/// Runs `what`, and prints the name if it panics.
fn told(name: &str, what: impl FnOnce()) {
    struct Telling<'a>(&'a str);
    impl Drop for Telling<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the input that failed: {}", self.0);
            }
        }
    }
    let _telling = Telling(name);
    what();
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let entries = fs::read_dir(folder)
        .expect("the corpus")
        .map(|entry| entry.expect("a file of the corpus"));
    let mut files: Vec<_> = entries
        .map(|entry| {
            (
                entry.file_name().display().to_string(),
                fs::read(entry.path()).expect("read a file"),
            )
        })
        .collect();
    files.sort();
    files
}

/// Makes a few changes as fuzzers do: to bits, bytes and lengths, and to stretches that are moved,
/// doubled, dropped or taken from `other`.
fn mutate(bytes: &[u8], other: &[u8], mut dice: Dice) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.index(bytes.len() + 1);
        let end = (at + dice.index(64)).min(bytes.len());
        match dice.below(8) {
            0 => flip(&mut bytes, at, 1 << dice.below(8)),
            1 => flip(&mut bytes, at, dice.below(256) as u8),
            2 => put(&mut bytes, at, &[0, 0xFF, 0x7F, 0x80][dice.index(4)..][..1]),
            3 => put(
                &mut bytes,
                at,
                &(dice.roll() >> dice.below(64)).to_le_bytes(),
            ),
            4 => drop(bytes.drain(at..end)),
            5 => bytes.truncate(at),
            6 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ => {
                let from = dice.index(other.len() + 1);
                let stretch = &other[from..(from + dice.index(64)).min(other.len())];
                drop(bytes.splice(at..at, stretch.to_vec()));
            }
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn flip(bytes: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= bits;
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes
        .iter_mut()
        .skip(at)
        .zip(value)
        .for_each(|(byte, value)| *byte = *value);
}

thread_local! {
    /// Bytes that this thread allocated and has not freed. Negative where it freed what other
    /// threads had allocated.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The maximum of `LIVE`.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The system's allocator, and a count.
struct Counting;

// SAFETY: every call is passed to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.set(LIVE.get() + layout.size().cast_signed());
        PEAK.set(PEAK.get().max(LIVE.get()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size().cast_signed());
        unsafe { System.dealloc(place, layout) }
    }
}
