//! Rebuilds what a power cut leaves on a disk, from the calls made before the cut.
//!
//! A call begins and, later, ends. Everything that a barrier covered is there if the barrier ended
//! before the cut. Everything else may be there or not, in part and in any order:
//!
//! * a write by itself, in units of [`SECTOR`],
//! * a name once its folder is synced, or before.
//!
//! A barrier on a file covers the writes that had ended when the barrier began. A write-through
//! write is a barrier for its own bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::report::Dice;

/// The unit that a disk writes whole or not at all, in bytes.
const SECTOR: u64 = 512;

const PAGE: usize = 4096;
const PAGE_BYTES: u64 = PAGE as u64;

/// A call, or a line that a process printed between calls. Paths are relative to the examined
/// folder.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Begin(Call),
    /// The call that began at this index among the steps succeeded.
    End(usize),
    /// The call failed. What it should have made durable is lost for good, though the page cache
    /// may still show it.
    Lost(usize),
    /// The process of the call was killed, or the call failed. Its change may be visible, is no
    /// barrier, and is covered by the barriers of others.
    Abandoned(usize),
    Said(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin(Call::Write {
                file,
                at,
                bytes,
                through,
            }) => {
                write!(
                    f,
                    "begin: write {} bytes at {at} of file {file}, {through:?}",
                    bytes.len()
                )
            }
            Self::Begin(call) => write!(f, "begin: {call:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl Step {
    pub(crate) fn said(&self) -> Option<&str> {
        match self {
            Self::Said(line) => Some(line),
            _ => None,
        }
    }
}

/// A file has a number, which stays when its name changes.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    MakeDir(PathBuf),
    Create {
        file: usize,
        path: PathBuf,
    },
    Write {
        file: usize,
        at: u64,
        bytes: Arc<[u8]>,
        through: Through,
    },
    /// Makes the file at least `len` bytes long or, with [`Cut::Yes`], exactly `len`.
    Resize {
        file: usize,
        len: u64,
        cut: Cut,
    },
    Sync {
        file: usize,
        kind: String,
    },
    /// Gives a file another name.
    Link {
        file: usize,
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove(PathBuf),
    RemoveTree(PathBuf),
    SyncDir {
        dir: PathBuf,
        kind: String,
    },
}

/// Whether a write is its own barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Through {
    Cache,
    Device,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    No,
    Yes,
}

/// The bytes of a file. Pages of zeroes are not stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    pub len: u64,
}

impl Content {
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let place = at + done as u64;
            let within = usize::try_from(place % PAGE_BYTES).expect("it is within a page");
            let part = (PAGE - within).min(bytes.len() - done);
            let from = &bytes[done..done + part];
            let page = place / PAGE_BYTES;
            if *from == [0; PAGE] {
                self.pages.remove(&page);
            } else {
                let page = self
                    .pages
                    .entry(page)
                    .or_insert_with(|| Arc::new([0; PAGE]));
                Arc::make_mut(page)[within..within + part].copy_from_slice(from);
            }
            done += part;
        }
        self.len = self.len.max(at + bytes.len() as u64);
    }

    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let place = at + done as u64;
            let within = usize::try_from(place % PAGE_BYTES).expect("it is within a page");
            let part = (PAGE - within).min(buf.len() - done);
            match self.pages.get(&(place / PAGE_BYTES)) {
                Some(page) => buf[done..done + part].copy_from_slice(&page[within..within + part]),
                None => buf[done..done + part].fill(0),
            }
            done += part;
        }
    }

    pub(crate) fn resize(&mut self, len: u64, cut: Cut) {
        if cut == Cut::Yes && len < self.len {
            self.pages.retain(|page, _| page * PAGE_BYTES < len);
            let tail = usize::try_from(len % PAGE_BYTES).expect("it is within a page");
            if let Some(page) = self.pages.get_mut(&(len / PAGE_BYTES)) {
                Arc::make_mut(page)[tail..].fill(0);
            }
            self.len = len;
        }
        self.len = self.len.max(len);
    }

    /// Reads the content of a file.
    pub(crate) fn read_from(file: &Path) -> std::io::Result<Self> {
        let mut content = Self::default();
        let mut file = std::fs::File::open(file)?;
        let mut chunk = vec![0; 256 * PAGE];
        loop {
            let read = std::io::Read::read(&mut file, &mut chunk)?;
            if read == 0 {
                return Ok(content);
            }
            content.write(content.len, &chunk[..read]);
        }
    }

    /// Writes the content to a file, with holes for its zeroes.
    pub(crate) fn write_to(&self, file: &Path) -> std::io::Result<()> {
        let mut file = std::fs::File::create(file)?;
        for (page, bytes) in &self.pages {
            file.seek(SeekFrom::Start(page * PAGE_BYTES))?;
            file.write_all(&bytes[..])?;
        }
        file.set_len(self.len)
    }
}

/// What a name refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Dir,
    File(usize),
}

pub(crate) type Names = BTreeMap<PathBuf, Node>;

/// A folder as a power cut left it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub names: Names,
    pub files: Vec<Content>,
}

impl Image {
    /// Returns what is in a folder of it.
    pub(crate) fn below(&self, folder: &Path) -> Self {
        let inner = |(path, node): (&PathBuf, &Node)| {
            let path = path.strip_prefix(folder).ok()?;
            (!path.as_os_str().is_empty()).then(|| (path.to_path_buf(), *node))
        };
        Self {
            names: self.names.iter().filter_map(inner).collect(),
            files: self.files.clone(),
        }
    }

    /// Writes the image to a folder, which is empty or missing.
    pub(crate) fn write_to(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for (path, node) in &self.names {
            match node {
                Node::Dir => std::fs::create_dir_all(folder.join(path))?,
                Node::File(file) => self.files[*file].write_to(&folder.join(path))?,
            }
        }
        Ok(())
    }
}

/// Applies a change of names as the running system shows it.
pub(crate) fn change_names(names: &mut Names, call: &Call) {
    match call {
        Call::MakeDir(path) => drop(names.insert(path.clone(), Node::Dir)),
        Call::Create { file, path } | Call::Link { file, path } => {
            names.insert(path.clone(), Node::File(*file));
        }
        Call::Rename { from, to } => {
            let moved: Vec<PathBuf> = names
                .keys()
                .filter(|path| path.starts_with(from))
                .cloned()
                .collect();
            for path in moved {
                let node = names.remove(&path).expect("it was just there");
                let below = path.strip_prefix(from).expect("it lies below");
                let target = if below.as_os_str().is_empty() {
                    to.clone()
                } else {
                    to.join(below)
                };
                names.insert(target, node);
            }
        }
        Call::Remove(path) => drop(names.remove(path)),
        Call::RemoveTree(path) => names.retain(|name, _| !name.starts_with(path)),
        Call::Write { .. } | Call::Resize { .. } | Call::Sync { .. } | Call::SyncDir { .. } => {}
    }
}

/// How much survives of the writes that no barrier covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Everything,
    /// Each write or none of it, at random.
    SomeWrites,
    /// Some sectors of each write, at random.
    SomeSectors,
    /// The first sectors of each write.
    FirstSectors,
    /// The last writes, and not those before them.
    LastWrites,
    /// Lengths, and no bytes.
    Lengths,
}

impl Left {
    pub(crate) const ALL: [Self; 7] = [
        Self::Nothing,
        Self::Everything,
        Self::SomeWrites,
        Self::SomeSectors,
        Self::FirstSectors,
        Self::LastWrites,
        Self::Lengths,
    ];
}

/// Which names survive that no barrier covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamesLeft {
    /// None: POSIX promises no more.
    Synced,
    /// All up to some moment, as on a file system with a metadata journal.
    InOrder,
}

impl NamesLeft {
    pub(crate) const ALL: [Self; 2] = [Self::Synced, Self::InOrder];
}

/// Tracks what is durable and what is not, step by step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durability {
    /// Barriers of these kinds count as void, to check that a campaign notices.
    pub void: BTreeSet<String>,
    files: Vec<File>,
    names: Names,
    pending_names: Vec<PendingName>,
    calls: BTreeMap<usize, Call>,
    at: usize,
}

#[derive(Debug, Clone, Default)]
struct File {
    durable: Content,
    pending: Vec<Pending>,
}

/// A change of a file's bytes or length that no barrier covers.
#[derive(Debug, Clone)]
struct Pending {
    begun: usize,
    ended: Option<usize>,
    change: Change,
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, bytes: Arc<[u8]> },
    Resize { len: u64, cut: Cut },
}

#[derive(Debug, Clone)]
struct PendingName {
    begun: usize,
    ended: Option<usize>,
    call: Call,
}

impl Durability {
    /// Returns a disk on which all of `image` is durable.
    pub(crate) fn of(image: &Image) -> Self {
        let files = image.files.iter().map(|content| File {
            durable: content.clone(),
            pending: Vec::new(),
        });
        Self {
            files: files.collect(),
            names: image.names.clone(),
            ..Self::default()
        }
    }

    /// Applies the next step.
    pub(crate) fn step(&mut self, step: &Step) {
        let at = self.at;
        self.at += 1;
        match step {
            Step::Begin(call) => self.begin(at, call),
            Step::End(begun) => self.end(at, *begun),
            Step::Lost(begun) => self.lose(*begun),
            Step::Abandoned(begun) => self.abandon(at, *begun),
            Step::Said(_) => {}
        }
    }

    fn begin(&mut self, at: usize, call: &Call) {
        match call {
            Call::Write {
                file,
                at: place,
                bytes,
                ..
            } => {
                self.add(
                    *file,
                    at,
                    Change::Write {
                        at: *place,
                        bytes: Arc::clone(bytes),
                    },
                );
            }
            Call::Resize { file, len, cut } => self.add(
                *file,
                at,
                Change::Resize {
                    len: *len,
                    cut: *cut,
                },
            ),
            Call::Sync { .. } | Call::SyncDir { .. } => {}
            Call::Create { file, .. } => {
                self.file(*file);
                self.pending_names.push(PendingName {
                    begun: at,
                    ended: None,
                    call: call.clone(),
                });
            }
            _ => self.pending_names.push(PendingName {
                begun: at,
                ended: None,
                call: call.clone(),
            }),
        }
        self.calls.insert(at, call.clone());
    }

    fn file(&mut self, file: usize) -> &mut File {
        if self.files.len() <= file {
            self.files.resize_with(file + 1, File::default);
        }
        &mut self.files[file]
    }

    fn add(&mut self, file: usize, begun: usize, change: Change) {
        self.file(file).pending.push(Pending {
            begun,
            ended: None,
            change,
        });
    }

    fn end(&mut self, at: usize, begun: usize) {
        match self
            .calls
            .remove(&begun)
            .expect("a call ends once, after it began")
        {
            Call::Write { file, through, .. } => {
                self.files[file].end(at, begun);
                if through == Through::Device && !self.void.contains("write through") {
                    self.files[file].settle_one(begun);
                }
            }
            Call::Resize { file, .. } => self.files[file].end(at, begun),
            Call::Sync { file, kind } if !self.void.contains(&kind) => {
                self.files[file].settle(begun);
            }
            Call::SyncDir { dir, kind } if !self.void.contains(&kind) => {
                self.settle_names(&dir, begun);
            }
            Call::Sync { .. } | Call::SyncDir { .. } => {}
            _ => self.end_name(at, begun),
        }
    }

    fn abandon(&mut self, at: usize, begun: usize) {
        match self
            .calls
            .remove(&begun)
            .expect("a call ends once, after it began")
        {
            Call::Write { file, .. } | Call::Resize { file, .. } => self.files[file].end(at, begun),
            Call::Sync { .. } | Call::SyncDir { .. } => {}
            _ => self.end_name(at, begun),
        }
    }

    /// Returns the calls that have not ended.
    pub(crate) fn under_way(&self) -> Vec<usize> {
        self.calls.keys().copied().collect()
    }

    /// Counts the write-through writes that have not ended.
    pub(crate) fn written_through(&self) -> usize {
        let is_through = |call: &&Call| {
            matches!(
                call,
                Call::Write {
                    through: Through::Device,
                    ..
                }
            )
        };
        self.calls.values().filter(is_through).count()
    }

    fn end_name(&mut self, at: usize, begun: usize) {
        self.pending_names
            .iter_mut()
            .filter(|name| name.begun == begun)
            .for_each(|name| name.ended = Some(at));
    }

    fn lose(&mut self, begun: usize) {
        if let Some(Call::Sync { file, .. }) = self.calls.remove(&begun) {
            let before = |pending: &Pending| pending.ended.is_some_and(|ended| ended < begun);
            self.files[file].pending.retain(|pending| !before(pending));
        }
    }

    /// Makes the name changes in `dir` that ended before `begun` durable. A rename out of another
    /// folder becomes durable with its target's folder.
    fn settle_names(&mut self, dir: &Path, begun: usize) {
        let within = |path: &Path| path.parent().unwrap_or(Path::new("")) == dir;
        let (settled, pending) = std::mem::take(&mut self.pending_names)
            .into_iter()
            .partition(|name| {
                let touched = match &name.call {
                    Call::MakeDir(path)
                    | Call::Create { path, .. }
                    | Call::Link { path, .. }
                    | Call::Remove(path)
                    | Call::RemoveTree(path) => within(path),
                    Call::Rename { to, .. } => within(to),
                    _ => false,
                };
                touched && name.ended.is_some_and(|ended| ended < begun)
            });
        self.pending_names = pending;
        let settled: Vec<PendingName> = settled;
        for name in settled {
            change_names(&mut self.names, &name.call);
        }
    }

    /// Returns the content of a file as the device holds it, read before power is lost.
    pub(crate) fn device(&self, file: usize) -> Content {
        self.files.get(file).map_or_else(Content::default, |file| {
            let mut content = file.durable.clone();
            file.pending
                .iter()
                .for_each(|pending| pending.change.apply(&mut content));
            content
        })
    }

    /// Whether a cut now can leave more than one image.
    pub(crate) fn is_settled(&self) -> bool {
        self.pending_names.is_empty() && self.files.iter().all(|file| file.pending.is_empty())
    }

    /// Returns what a power cut leaves now.
    pub(crate) fn cut(&self, left: Left, names_left: NamesLeft, dice: &mut Dice) -> Image {
        let mut names = self.names.clone();
        let take = match names_left {
            NamesLeft::Synced => 0,
            NamesLeft::InOrder => dice.index(self.pending_names.len() + 1),
        };
        self.pending_names
            .iter()
            .take(take)
            .for_each(|name| change_names(&mut names, &name.call));
        // A file is lost with its folder where the folder's own name is lost.
        let all = names.clone();
        names.retain(|path, _| {
            path.ancestors()
                .skip(1)
                .all(|above| above.as_os_str().is_empty() || all.get(above) == Some(&Node::Dir))
        });
        let files = self.files.iter().map(|file| file.cut(left, dice)).collect();
        Image { names, files }
    }
}

impl File {
    fn end(&mut self, at: usize, begun: usize) {
        self.pending
            .iter_mut()
            .filter(|pending| pending.begun == begun)
            .for_each(|pending| pending.ended = Some(at));
    }

    /// Applies the end of a barrier that began at `begun`.
    fn settle(&mut self, begun: usize) {
        let (settled, pending) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending: &Pending| pending.ended.is_some_and(|ended| ended < begun));
        self.pending = pending;
        let settled: Vec<Pending> = settled;
        for pending in settled {
            pending.change.apply(&mut self.durable);
        }
    }

    /// Applies the end of a write-through write, which also settles the earlier writes that it
    /// overlaps.
    fn settle_one(&mut self, begun: usize) {
        let Some(place) = self
            .pending
            .iter()
            .position(|pending| pending.begun == begun)
        else {
            return;
        };
        let this = self.pending.remove(place);
        let mut earlier = 0;
        while earlier < place {
            if self.pending.get(earlier).is_some_and(|pending| {
                pending.begun < begun && pending.change.overlaps(&this.change)
            }) {
                let under = self.pending.remove(earlier);
                under.change.apply(&mut self.durable);
            } else {
                earlier += 1;
            }
        }
        this.change.apply(&mut self.durable);
    }

    fn cut(&self, left: Left, dice: &mut Dice) -> Content {
        let mut content = self.durable.clone();
        let from = match left {
            Left::LastWrites if !self.pending.is_empty() => dice.index(self.pending.len()),
            _ => 0,
        };
        for pending in self.pending.iter().skip(from) {
            match left {
                Left::Everything | Left::LastWrites => pending.change.apply(&mut content),
                Left::SomeWrites if dice.flip() => pending.change.apply(&mut content),
                Left::Nothing | Left::SomeWrites => {}
                Left::SomeSectors => pending
                    .change
                    .apply_sectors(&mut content, |_, _| dice.flip()),
                Left::FirstSectors => {
                    let share = dice.below(101);
                    pending
                        .change
                        .apply_sectors(&mut content, |sector, sectors| {
                            sector * 100 < sectors * share
                        });
                }
                Left::Lengths => pending.change.apply_length(&mut content),
            }
        }
        content
    }
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Self::Write { at, bytes } => content.write(*at, bytes),
            Self::Resize { len, cut } => content.resize(*len, *cut),
        }
    }

    fn apply_length(&self, content: &mut Content) {
        match self {
            Self::Write { at, bytes } => content.resize(at + bytes.len() as u64, Cut::No),
            Self::Resize { len, cut } => content.resize(*len, *cut),
        }
    }

    /// Applies the sectors of a write for which `is_left` returns true. It gets the number of the
    /// sector and the number of sectors.
    fn apply_sectors(&self, content: &mut Content, mut is_left: impl FnMut(u64, u64) -> bool) {
        let Self::Write { at, bytes } = self else {
            return self.apply(content);
        };
        let (first, end) = (at / SECTOR, (at + bytes.len() as u64).div_ceil(SECTOR));
        for sector in first..end {
            if is_left(sector - first, end - first) {
                let from = (sector * SECTOR).max(*at);
                let to = ((sector + 1) * SECTOR).min(at + bytes.len() as u64);
                let part =
                    |place: u64| usize::try_from(place - at).expect("it is within the write");
                content.write(from, &bytes[part(from)..part(to)]);
            }
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Write { at, bytes },
                Self::Write {
                    at: other_at,
                    bytes: other_bytes,
                },
            ) => *at < other_at + other_bytes.len() as u64 && *other_at < at + bytes.len() as u64,
            _ => false,
        }
    }
}

/// Writes steps to a file, for people to read.
pub(crate) fn write_steps(steps: &[Step], file: &Path) -> std::io::Result<()> {
    let lines = steps
        .iter()
        .zip(0..)
        .map(|(step, at): (_, usize)| format!("{at} {step}\n"));
    std::fs::write(file, lines.collect::<String>())
}
