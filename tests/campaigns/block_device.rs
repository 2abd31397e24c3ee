//! Power cuts on real file systems: a block device under a loop device records what a file system
//! sends it.
//!
//! A process works on that file system. The device is then rebuilt as a power cut might have left
//! it: all writes before the last completed flush, and none, all or some of the rest. The file
//! system on it is mounted, recovers, and the log must open.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};
use parking_lot::Mutex;

use super::mounts::{self, Loop, make_file_system, obstacle_to};
use super::process::{Changing, End, Role, Writing, works};
use super::support::crash_image::{
    Call, Content, Durability, Image, Left, NamesLeft, Node, Step, Through,
};
use super::support::ledger::Ledger;
use super::support::report::{Dice, Report, Runs, is_full, seed};
use super::trace::told_no_violation;

const CUTS: Runs = Runs {
    quick: 12,
    full: 300,
};
const CUTS_PER_RECORD: u64 = 20;
/// xfs makes no smaller file system.
const DEVICE_BYTES: u64 = 320 * 1024 * 1024;
const LIVES: u32 = 3;
/// The changes of sessions in each life.
const CHANGES: u64 = 8;
const LAST_LIFE: u32 = 1_000;

/// The states in which a disk that honours flushes may be left.
const LEFT: [Left; 4] = [
    Left::Nothing,
    Left::Everything,
    Left::SomeWrites,
    Left::SomeSectors,
];

pub(crate) fn obstacle() -> Option<String> {
    mounts::obstacle().or_else(|| {
        let folder = tempfile::tempdir().ok()?;
        let mounted = Device::of(Content::default())
            .mount(folder.path())
            .and_then(BackgroundSession::umount_and_join);
        mounted
            .err()
            .map(|error| format!("no file system of one's own can be mounted: {error}"))
    })
}

pub(crate) fn campaign() {
    let seed = seed();
    let mut report = Report::new("power cuts on real file systems", seed, CUTS.planned());
    let mut dice = Dice(seed);
    let kinds: &[&str] = if is_full() {
        &["ext4", "xfs", "btrfs"]
    } else {
        &["ext4"]
    };
    let share = CUTS.planned() / kinds.len() as u64;
    for (kind, nth) in kinds.iter().zip(1..) {
        if let Some(why) = obstacle_to(kind) {
            report.skip(share, why);
            continue;
        }
        while report.runs() < share * nth && !report.is_done() {
            let record = Record::of_a_writer(kind, dice.roll());
            report.count(format!("flushes of {kind}"), record.flushes());
            for _ in 0..CUTS_PER_RECORD {
                let mut what = String::new();
                let cut = record.cut(&mut dice, &mut what);
                match report.run(|| what, || record.check(&cut)) {
                    Some(Mounted::Yes) => report.count(format!("cuts of {kind}"), 1),
                    Some(Mounted::Torn) => report.skip(
                        1,
                        format!("{kind} with a torn superblock, which it does not mount"),
                    ),
                    None => {}
                }
            }
        }
    }
    report.end();
}

/// What a process printed and what a file system sent to its device, in one order.
struct Record {
    kind: &'static str,
    seed: u64,
    base: Image,
    steps: Vec<Step>,
}

struct CutOff {
    device: Content,
    superblock: Superblock,
    ledger: Ledger,
}

/// How the power cut left the superblock. ext4 and btrfs take theirs to be written whole, and do
/// not mount one with some sectors new and some old.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Superblock {
    Whole,
    Torn,
}

/// Returns whether the file system must mount, as it must with a whole superblock.
enum Mounted {
    Yes,
    Torn,
}

impl Record {
    fn of_a_writer(kind: &'static str, seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("image");
        make_file_system(kind, &file, DEVICE_BYTES).unwrap_or_else(|error| panic!("{error}"));
        let base = Content::read_from(&file).expect("read the image");
        let device = Device::of(base.clone());
        let state = Arc::clone(&device.state);
        let mount_point = tempfile::tempdir().expect("a folder");
        let session = device.mount(mount_point.path()).expect("mount the device");
        work_on(kind, mount_point.path(), seed);
        session.umount_and_join().expect("unmount the device");
        let steps = std::mem::take(&mut state.lock().steps);
        let image = Image {
            names: [(PathBuf::from("disk"), Node::File(0))].into(),
            files: vec![base],
        };
        Self {
            kind,
            seed,
            base: image,
            steps,
        }
    }

    fn flushes(&self) -> u64 {
        self.steps
            .iter()
            .filter(|step| matches!(step, Step::Begin(Call::Sync { .. })))
            .count() as u64
    }

    fn cut(&self, dice: &mut Dice, what: &mut String) -> CutOff {
        let end = 1 + dice.index(self.steps.len());
        let left = dice.one_of(&LEFT);
        let mut durability = Durability::of(&self.base);
        let mut running = self.base.files[0].clone();
        let mut superblocks = HashSet::from([superblock_in(&running, self.kind)]);
        let mut ledger = Ledger::new(works(self.seed));
        for step in &self.steps[..end] {
            durability.step(step);
            match step {
                Step::Begin(Call::Write { at, bytes, .. }) => {
                    running.write(*at, bytes);
                    superblocks.insert(superblock_in(&running, self.kind));
                }
                Step::Said(line) => ledger.note(line),
                _ => {}
            }
        }
        *what = format!(
            "{} cut at step {end} of {} with seed {}, {left:?} left",
            self.kind,
            self.steps.len(),
            self.seed
        );
        let image = durability.cut(left, NamesLeft::Synced, dice);
        let device = image.files.into_iter().next().expect("there is one file");
        let was_written = superblocks.contains(&superblock_in(&device, self.kind));
        CutOff {
            device,
            superblock: if was_written {
                Superblock::Whole
            } else {
                Superblock::Torn
            },
            ledger,
        }
    }

    /// Mounts what the cut left, and runs a process that checks the log on it.
    fn check(&self, cut: &CutOff) -> Mounted {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("image");
        cut.device.write_to(&file).expect("write the image");
        let device = Loop::new(&file).unwrap_or_else(|error| panic!("{error}"));
        let mount = match device.mount(self.kind) {
            Err(_refused) if cut.superblock == Superblock::Torn => return Mounted::Torn,
            mount => mount.unwrap_or_else(|error| panic!("{error}")),
        };
        let ledger = folder.path().join("ledger");
        cut.ledger.write_to(&ledger).expect("write the ledger");
        let role = Role::Check {
            folder: mount.path().join("log"),
            ledger,
            seed: self.seed,
            life: LAST_LIFE,
        };
        let output = role
            .command()
            .stdin(Stdio::null())
            .output()
            .expect("start a process");
        told_no_violation(&output);
        Mounted::Yes
    }
}

/// Returns the first superblock of a file system.
fn superblock_in(device: &Content, kind: &str) -> Vec<u8> {
    let (at, bytes) = match kind {
        "ext4" => (1024, 1024),
        "btrfs" => (64 * 1024, 4096),
        "xfs" => (0, 512),
        _ => panic!("{kind} keeps its superblock in another place"),
    };
    let mut superblock = vec![0; bytes];
    device.read(at, &mut superblock);
    superblock
}

/// Mounts the file system on the recording device, and runs a process that writes to it and prints
/// to the recorder.
fn work_on(kind: &str, mount_point: &Path, seed: u64) {
    let device = Loop::new(&mount_point.join("disk")).unwrap_or_else(|error| panic!("{error}"));
    let mount = device.mount(kind).unwrap_or_else(|error| panic!("{error}"));
    let writing = Writing {
        folder: mount.path().join("log"),
        seed,
        life: 1,
        lives: LIVES,
        tell: Some(mount_point.join("told")),
        end: End::Exit,
        changing: Changing {
            changes: CHANGES,
            known: None,
            backup: None,
        },
    };
    let output = Role::Write(writing)
        .command()
        .stdin(Stdio::null())
        .output()
        .expect("start a process");
    told_no_violation(&output);
}

/// A file system with two files: the device, and one for the process's output, so that both are
/// recorded in one order.
struct Device {
    state: Arc<Mutex<Recorded>>,
}

struct Recorded {
    content: Content,
    steps: Vec<Step>,
    told: u64,
}

const DISK: INodeNo = INodeNo(2);
const TOLD: INodeNo = INodeNo(3);

/// The file's bytes are not stored. Output makes it longer.
const TTL: Duration = Duration::ZERO;

impl Device {
    fn of(content: Content) -> Self {
        Self {
            state: Arc::new(Mutex::new(Recorded {
                content,
                steps: Vec::new(),
                told: 0,
            })),
        }
    }

    fn mount(self, folder: &Path) -> std::io::Result<BackgroundSession> {
        fuser::spawn_mount(self, folder, &fuser::Config::default())
    }

    fn attributes(&self, file: INodeNo) -> FileAttr {
        let state = self.state.lock();
        let (size, kind) = match file {
            DISK => (state.content.len, FileType::RegularFile),
            TOLD => (state.told, FileType::RegularFile),
            _ => (0, FileType::Directory),
        };
        FileAttr {
            ino: file,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

impl Filesystem for Device {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("disk") => reply.entry(&TTL, &self.attributes(DISK), Generation(0)),
            Some("told") => reply.entry(&TTL, &self.attributes(TOLD), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        file: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        reply.attr(&TTL, &self.attributes(file));
    }

    fn open(&self, _request: &Request, file: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // A line printed in one write must arrive in one write, and not page by page.
        let flags = if file == TOLD {
            FopenFlags::FOPEN_DIRECT_IO
        } else {
            FopenFlags::empty()
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _request: &Request,
        _file: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.state.lock();
        let left = state.content.len.saturating_sub(offset).min(size.into());
        let mut bytes = vec![0; usize::try_from(left).expect("a read is small")];
        state.content.read(offset, &mut bytes);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _request: &Request,
        file: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = u32::try_from(data.len()).expect("a write is small");
        let state = &mut *self.state.lock();
        if file == TOLD {
            let text = String::from_utf8_lossy(data);
            state
                .steps
                .extend(text.lines().map(|line| Step::Said(line.to_owned())));
            state.told += u64::from(written);
        } else {
            state.content.write(offset, data);
            let begun = state.steps.len();
            state.steps.push(Step::Begin(Call::Write {
                file: 0,
                at: offset,
                bytes: Arc::from(data),
                through: Through::Cache,
            }));
            state.steps.push(Step::End(begun));
        }
        reply.written(written);
    }

    fn flush(
        &self,
        _request: &Request,
        _file: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        file: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        if file == DISK {
            let state = &mut *self.state.lock();
            let begun = state.steps.len();
            state.steps.push(Step::Begin(Call::Sync {
                file: 0,
                kind: "flush".to_owned(),
            }));
            state.steps.push(Step::End(begun));
        }
        reply.ok();
    }
}
