//! The fuzz targets without a fuzzer: every file of the corpus, and mutations of them that are the same in every run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The decoder takes microseconds, so each file is mutated often.
const DECODER_MUTATIONS: usize = 2_000;
/// An operation may write and sync files, so mutations stop after a while; each file gets a few at least.
const OPERATIONS_MUTATIONS: usize = 100;
const OPERATIONS_TIME: Duration = Duration::from_secs(40);
const OPERATIONS_MUTATIONS_MIN: usize = 1;
const INPUT_BYTES_MAX: usize = 16 * 1024;
/// Far above what inputs of this size hold, far below what their lengths and counts can claim.
const ALLOCATION_BYTES_MAX: usize = 2 * 1024 * 1024;

#[test]
fn no_bytes_make_the_decoder_panic_or_allocate_what_they_claim() {
    let decode = |bytes: &[u8]| {
        LARGEST.set(0);
        sessionlog_fuzz::decoder(bytes);
        assert!(
            LARGEST.get() <= ALLOCATION_BYTES_MAX,
            "{} bytes were allocated at once for {} bytes of input",
            LARGEST.get(),
            bytes.len()
        );
    };
    check("decoder", decode, |round, _| round < DECODER_MUTATIONS);
}

#[test]
fn no_operations_make_the_log_differ_from_its_model() {
    check("operations", sessionlog_fuzz::operations, |round, begun| {
        round < OPERATIONS_MUTATIONS_MIN || (round < OPERATIONS_MUTATIONS && begun.elapsed() < OPERATIONS_TIME)
    });
}

/// Round by round, one mutation of every file of the corpus, as long as `goes_on`.
fn check(target: &str, run: impl Fn(&[u8]), goes_on: impl Fn(usize, Instant) -> bool) {
    let corpus = corpus(target);
    assert!(corpus.len() >= 20, "the corpus of {target} has {} files", corpus.len());
    for (name, bytes) in &corpus {
        told(&format!("{target}: {name}"), || run(bytes));
    }
    let begun = Instant::now();
    let mut mutations = 0;
    for round in (0..).take_while(|round| goes_on(*round, begun)) {
        for (place, (name, bytes)) in corpus.iter().enumerate() {
            let mutated = mutate(bytes, &corpus[(place + round) % corpus.len()].1, Dice((place * 1_000_003 + round) as u64));
            told(&format!("{target}: {name}, mutation {round}: {mutated:?}"), || run(&mutated));
            mutations += 1;
        }
    }
    println!("{target}: {} files and {mutations} mutations in {:?}", corpus.len(), begun.elapsed());
}

/// Runs `what`, and names it should it panic.
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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(folder).expect("the corpus").map(|entry| entry.expect("a file of the corpus"));
    let mut files: Vec<_> =
        entries.map(|entry| (entry.file_name().display().to_string(), fs::read(entry.path()).expect("read a file"))).collect();
    files.sort();
    files
}

/// A few changes of the kinds that fuzzers make: bits, bytes, lengths, stretches moved, doubled, dropped or taken from `other`.
fn mutate(bytes: &[u8], other: &[u8], mut dice: Dice) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + dice.below(64)).min(bytes.len());
        match dice.below(8) {
            0 => flip(&mut bytes, at, 1 << dice.below(8)),
            1 => flip(&mut bytes, at, dice.below(256) as u8),
            2 => put(&mut bytes, at, &[0, 0xFF, 0x7F, 0x80][dice.below(4)..][..1]),
            3 => put(&mut bytes, at, &(dice.roll() >> dice.below(64)).to_le_bytes()),
            4 => drop(bytes.drain(at..end)),
            5 => bytes.truncate(at),
            6 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ => {
                let from = dice.below(other.len() + 1);
                let stretch = &other[from..(from + dice.below(64)).min(other.len())];
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
    bytes.iter_mut().skip(at).zip(value).for_each(|(byte, value)| *byte = *value);
}

/// splitmix64: the same rolls for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }
}

thread_local! {
    /// The largest allocation of this thread since it was last set to zero.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static NOTING: Noting = Noting;

/// The system's allocator, and a note of the largest allocation.
struct Noting;

// SAFETY: every call is handed to `System` as it came.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        unsafe { System.dealloc(place, layout) }
    }
}
