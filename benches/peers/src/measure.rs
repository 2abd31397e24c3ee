//! The resources that a run used, as the kernel counts them, and its results.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use procfs::process::{Process, Status};

/// The results of one run of a workload on a store: metrics by name, which has the unit.
pub type Figures = BTreeMap<String, f64>;

/// The resources used so far by this process.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    cpu: Duration,
    written: u64,
}

impl Usage {
    pub fn now() -> Self {
        let process = Process::myself().expect("a process");
        let stat = process.stat().expect("its figures");
        let ticks = (stat.utime + stat.stime) as f64;
        Self {
            cpu: Duration::from_secs_f64(ticks / procfs::ticks_per_second() as f64),
            written: process.io().expect("its I/O").write_bytes,
        }
    }

    /// Adds the resources used since, divided by the events and their bytes of data.
    pub fn add_since(self, figures: &mut Figures, events: f64, bytes: f64) {
        let now = Self::now();
        figures.insert("cpu us/event".into(), micros(now.cpu - self.cpu) / events);
        figures.insert(
            "written/byte".into(),
            (now.written - self.written) as f64 / bytes,
        );
    }
}

/// The largest resident set so far, in megabytes.
pub fn peak_rss_mb() -> f64 {
    status().vmhwm.unwrap_or_default() as f64 / 1e3
}

/// The current resident set, in megabytes.
pub fn rss_mb() -> f64 {
    status().vmrss.unwrap_or_default() as f64 / 1e3
}

fn status() -> Status {
    Process::myself()
        .and_then(|process| process.status())
        .expect("the status of the process")
}

/// The space that the files of a folder take on the disk, in bytes.
pub fn disk_bytes(folder: &Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    let files = walkdir::WalkDir::new(folder)
        .into_iter()
        .filter_map(Result::ok);
    files
        .filter_map(|entry| entry.metadata().ok())
        .map(|found| (found.blocks() * 512) as f64)
        .sum()
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Returns the value below which `share` of the values are.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = ((values.len().max(1) - 1) as f64 * share).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

/// Returns the median, which is between the two middle values where there are two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

/// Empties the page cache, where that is permitted.
pub fn drop_caches() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Waits for this time. It loops, since the first park returns at once if the thread was unparked
/// before.
pub fn pause(time: Duration) {
    let began = Instant::now();
    while let Some(left) = time.checked_sub(began.elapsed()) {
        std::thread::park_timeout(left);
    }
}
