//! Code that the benchmarks share: the floor, percentiles, a table of ratios.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "each benchmark uses its part of this, prints its figures, \
              and stops where something is wrong"
)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use sessionlog::{Batch, NewEvent, SessionId};

pub const BLOCK: usize = 4096;

/// Returns whether this is a test run, which only checks that the benchmarks work.
pub fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// The least that a durable log can do: it writes whole blocks over an existing file, each write
/// its own barrier, and nothing else.
pub struct Floor {
    file: File,
    bytes: Vec<u8>,
    start: usize,
    at: u64,
    size: u64,
}

impl Floor {
    /// Prepares a file of `size` bytes, written and synced before anything is measured.
    pub fn new(folder: &Path, size: usize, write_max: usize) -> Self {
        let path = folder.join(format!("floor-{size}-{write_max}"));
        let zeroes = vec![0; 1024 * 1024];
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)
            .expect("the folder takes a file");
        (0..size.div_ceil(zeroes.len())).for_each(|at| {
            file.write_all_at(&zeroes, (at * zeroes.len()) as u64)
                .expect("the disk takes the floor's file");
        });
        file.sync_all().expect("the disk takes the floor's file");
        let flags = i32::try_from((OFlags::DIRECT | OFlags::DSYNC).bits()).expect("open flags fit");
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(&path);
        let file = direct.or_else(|_| {
            let flags = i32::try_from(OFlags::DSYNC.bits()).expect("open flags fit");
            OpenOptions::new()
                .write(true)
                .custom_flags(flags)
                .open(&path)
        });
        let bytes = vec![0xA5; write_max.next_multiple_of(BLOCK) + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self {
            file: file.expect("the floor's file opens"),
            bytes,
            start,
            at: 0,
            size: size as u64,
        }
    }

    /// Writes `bytes`, rounded up to blocks, and waits for the barrier.
    pub fn write(&mut self, bytes: usize) -> Duration {
        let length = bytes.next_multiple_of(BLOCK);
        if self.at + length as u64 > self.size {
            self.at = 0;
        }
        let began = Instant::now();
        let slice = &self.bytes[self.start..self.start + length];
        self.file
            .write_all_at(slice, self.at)
            .expect("the floor's file takes a write");
        self.at += length as u64;
        began.elapsed()
    }
}

/// The data of the events, made before anything is measured.
static DATA: [u8; 4096] = [b'x'; 4096];

/// A batch of events with data of `bytes` each.
pub fn batch(events: usize, bytes: usize) -> Batch {
    let event = NewEvent::new("bench.event", &DATA[..bytes]);
    Batch::new().events(std::iter::repeat_n(event, events))
}

pub fn session(number: usize) -> SessionId {
    SessionId::new(format!("session-{number:06}")).expect("the name follows the rules")
}

/// Returns the value below which `share` of the values are.
pub fn percentile(values: &mut [Duration], share: f64) -> Duration {
    values.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a position in a list"
    )]
    let at = ((values.len() as f64 - 1.0) * share) as usize;
    values.get(at).copied().unwrap_or_default()
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Lines of Markdown, printed when all is measured.
pub struct Table {
    lines: Vec<String>,
}

impl Table {
    pub fn new(columns: &[&str]) -> Self {
        let header = format!("| {} |", columns.join(" | "));
        let rule = format!("|{}", "---|".repeat(columns.len()));
        Self {
            lines: vec![header, rule],
        }
    }

    pub fn row(&mut self, cells: &[String]) {
        self.lines.push(format!("| {} |", cells.join(" | ")));
    }

    pub fn print(&self) {
        println!("\n{}\n", self.lines.join("\n"));
    }
}
