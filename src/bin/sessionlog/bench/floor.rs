//! The least that a durable log takes: it writes whole blocks over an existing file, each write its
//! own barrier, and nothing else.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::interrupt::Interrupt;

const BLOCK: usize = 4096;

/// The file is written over from its begin when its end is reached.
const FILE_BYTES: usize = 32 << 20;

pub(super) struct Floor {
    file: File,
    /// Holds a block at an address that direct writes need.
    bytes: Vec<u8>,
    at: usize,
}

impl Floor {
    /// Prepares the file, written and synced before anything is measured.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let path = folder.join("floor");
        let (mut file, zeroes) = (File::create_new(&path)?, vec![0; 1 << 20]);
        for _ in 0..FILE_BYTES / zeroes.len() {
            file.write_all(&zeroes)?;
        }
        file.sync_all()?;
        Ok(Self {
            file: open(&path)?,
            bytes: vec![0xA5; 2 * BLOCK],
            at: 0,
        })
    }

    /// Writes block after block for so long, and returns what each took.
    pub(super) fn measure(
        &mut self,
        seconds: Duration,
        interrupt: &Interrupt,
    ) -> io::Result<Vec<Duration>> {
        let (began, mut writes) = (Instant::now(), Vec::new());
        while began.elapsed() < seconds && !interrupt.is_set() {
            writes.push(self.write()?);
        }
        writes.sort_unstable();
        Ok(writes)
    }

    fn write(&mut self) -> io::Result<Duration> {
        if self.at + BLOCK > FILE_BYTES {
            self.at = 0;
        }
        let start = self.bytes.as_ptr().align_offset(BLOCK);
        let block = self.bytes.get(start..start + BLOCK);
        let block = block.ok_or(io::ErrorKind::InvalidInput)?;
        let began = Instant::now();
        self.file.seek(SeekFrom::Start(self.at as u64))?;
        self.file.write_all(block)?;
        if !cfg!(target_os = "linux") {
            self.file.sync_data()?;
        }
        self.at += BLOCK;
        Ok(began.elapsed())
    }
}

/// Opens the file so that each write is durable when it returns, past the page cache where the file
/// system can.
#[cfg(target_os = "linux")]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::OFlags;

    let with = |flags: OFlags| {
        let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
        OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(path)
    };
    with(OFlags::DIRECT | OFlags::DSYNC).or_else(|_no_direct_writes| with(OFlags::DSYNC))
}

#[cfg(not(target_os = "linux"))]
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

/// The name of the file system of a folder, if it is one in memory.
#[cfg(target_os = "linux")]
pub(super) fn in_memory(folder: &Path) -> Option<&'static str> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    #[expect(
        clippy::useless_conversion,
        reason = "the type of this number differs between machines"
    )]
    match i64::try_from(rustix::fs::statfs(folder).ok()?.f_type).ok()? {
        TMPFS => Some("tmpfs"),
        RAMFS => Some("ramfs"),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn in_memory(_folder: &Path) -> Option<&'static str> {
    None
}
