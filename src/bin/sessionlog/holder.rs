//! The process that has a log open for writing.

use std::fmt;
use std::path::Path;

/// The name of the file that a writer locks, as the format has it.
const LOCK: &str = "LOCK";

/// A process that has the folder of a log open for writing.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    /// Its number and its command line, where the system tells them.
    pub(crate) process: Option<(u32, String)>,
}

impl Holder {
    /// Returns the process that holds the folder, if one does.
    pub(crate) fn of(folder: &Path) -> Option<Self> {
        found(&folder.join(LOCK))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, command)) if command.is_empty() => write!(f, "process {pid}"),
            Some((pid, command)) => write!(f, "process {pid} ({command})"),
            None => f.write_str("another process"),
        }
    }
}

/// Linux lists all locks, so that nothing need be locked to look.
#[cfg(target_os = "linux")]
fn found(lock: &Path) -> Option<Holder> {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    let metadata = fs::metadata(lock).ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let device = format!(
        "{:02x}:{:02x}:{inode}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let ending = format!(":{inode}");
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let held: Vec<(&str, i64)> = locks.lines().filter_map(held_by).collect();
    let by_device = held.iter().find(|(file, _)| *file == device);
    // Some file systems show another device there than to `stat`. The process has the file open.
    let has_it_open = |pid: i64| {
        let files = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        let mut files = files.filter_map(|file| fs::metadata(file.ok()?.path()).ok());
        files.any(|file| (file.dev(), file.ino()) == (metadata.dev(), inode))
    };
    let by_inode = || {
        let mut same = held.iter().filter(|(file, _)| file.ends_with(&ending));
        same.find(|(_, pid)| has_it_open(*pid))
    };
    let (_, pid) = by_device.or_else(by_inode)?;
    // A process of another namespace has no number here.
    let process = u32::try_from(*pid).ok().filter(|pid| *pid > 0);
    Some(Holder {
        process: process.map(|pid| (pid, command_line(pid))),
    })
}

/// Reads the file and the process of a line of `/proc/locks` about a whole file.
#[cfg(target_os = "linux")]
fn held_by(line: &str) -> Option<(&str, i64)> {
    let mut words = line.split_whitespace().skip(1);
    if words.next()? != "FLOCK" || words.nth(1)? != "WRITE" {
        return None;
    }
    let pid = words.next()?.parse().ok()?;
    words.next().map(|file| (file, pid))
}

#[cfg(target_os = "linux")]
fn command_line(pid: u32) -> String {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = arguments
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    words.join(" ")
}

/// Elsewhere a shared lock, given back at once, tells whether another process has its own.
#[cfg(not(target_os = "linux"))]
fn found(lock: &Path) -> Option<Holder> {
    use std::fs::{File, TryLockError};

    let file = File::open(lock).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(Holder { process: None }),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}
