//! A disk in memory behind the I/O seam, which records when every call began and ended.
//!
//! It serves one log at a time. Every later call of a log whose process was
//! [killed](SimulatedDisk::kill) fails and changes nothing. The next log finds the contents of the
//! page cache.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::support::crash_image::{
    Call, Content, Cut, Durability, Image, Names, Node, Step, Through, change_names,
};
use crate::disk::{Disk, DiskFile, Hold, Mode, io_error};
use crate::model::Result;
use crate::sync::Mutex;

/// The disk as one process sees it.
pub(crate) struct SimulatedDisk {
    shared: Arc<Shared>,
    life: u64,
}

struct Shared {
    /// Recorded paths are relative to this folder.
    root: PathBuf,
    state: Mutex<State>,
}

struct State {
    life: u64,
    names: Names,
    /// The contents of the page cache.
    files: Vec<Content>,
    steps: Vec<Step>,
    durability: Durability,
    /// A barrier was lost, so the device holds less than the page cache.
    is_torn: bool,
    /// Whether a file can get a second name.
    links: bool,
    /// The process is killed when this many steps are recorded.
    dies_at: usize,
    fault: Option<Fault>,
}

/// A failure that happens once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub of: Faulty,
    /// How many calls of the kind succeed first.
    pub after: u64,
}

/// The calls that a fault applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Faulty {
    /// A barrier, which loses what it should have made durable. The page cache keeps showing it.
    Barrier,
    /// The same for a barrier of a manifest.
    ManifestBarrier,
    /// The process is killed at the barrier of a manifest.
    ManifestDeath,
    /// A write-through write, of which the device may hold a part.
    WriteThrough,
    /// Any other write.
    Write,
}

impl SimulatedDisk {
    /// Returns a disk on which all of `image` is durable, seen by the first process.
    pub(crate) fn of(root: &Path, image: &Image) -> Self {
        let state = State {
            life: 0,
            names: image.names.clone(),
            files: image.files.clone(),
            steps: Vec::new(),
            durability: Durability::of(image),
            is_torn: false,
            links: true,
            dies_at: usize::MAX,
            fault: None,
        };
        let root = root.to_path_buf();
        Self {
            shared: Arc::new(Shared {
                root,
                state: Mutex::new(state),
            }),
            life: 0,
        }
    }

    /// Returns the disk for a log to open.
    pub(crate) fn handle(&self) -> Arc<dyn Disk> {
        Arc::new(Self {
            shared: Arc::clone(&self.shared),
            life: self.life,
        })
    }

    /// Kills the process and begins another.
    pub(crate) fn kill(&mut self) {
        let mut state = self.shared.state.lock();
        self.life += 1;
        state.life = self.life;
        state.dies_at = usize::MAX;
        state.fault = None;
        for begun in state.durability.under_way() {
            state.step(Step::Abandoned(begun));
        }
    }

    /// Kills the process after `steps` more steps.
    pub(crate) fn die_after(&self, steps: usize) {
        let mut state = self.shared.state.lock();
        state.dies_at = state.steps.len() + steps;
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.shared.state.lock().fault = Some(fault);
    }

    /// Makes it a disk whose files can have a second name, or whose files cannot, by turns.
    pub(crate) fn switch_links(&self) {
        let mut state = self.shared.state.lock();
        state.links = !state.links;
    }

    pub(crate) fn say(&self, line: String) {
        self.shared.state.lock().step(Step::Said(line));
    }

    pub(crate) fn steps(&self) -> Vec<Step> {
        self.shared.state.lock().steps.clone()
    }

    fn with<T>(
        &self,
        path: &Path,
        act: impl FnOnce(&mut State, PathBuf) -> std::io::Result<T>,
    ) -> Result<T> {
        self.shared.with(self.life, path, act)
    }

    /// Makes a call that changes names or makes them durable.
    fn call(
        &self,
        path: &Path,
        call: impl FnOnce(&State, PathBuf) -> std::io::Result<Option<Call>>,
    ) -> Result<()> {
        self.with(path, |state, name| match call(state, name)? {
            Some(call) => {
                let fails = matches!(call, Call::SyncDir { .. }) && state.fails(Faulty::Barrier);
                let begun = state.begin(call)?;
                if fails {
                    Err(ErrorKind::Other.into())
                } else {
                    state.end(begun)
                }
            }
            None => Ok(()),
        })
    }
}

impl Shared {
    fn with<T>(
        &self,
        life: u64,
        path: &Path,
        act: impl FnOnce(&mut State, PathBuf) -> std::io::Result<T>,
    ) -> Result<T> {
        let name = path.strip_prefix(&self.root).unwrap_or(path).to_path_buf();
        let mut state = self.state.lock();
        let acted = if state.life == life {
            act(&mut state, name)
        } else {
            Err(ErrorKind::NotConnected.into())
        };
        acted.map_err(io_error("use", path))
    }
}

impl State {
    fn step(&mut self, step: Step) {
        self.durability.step(&step);
        self.steps.push(step);
    }

    /// Begins a call, unless the process is dead.
    fn begin(&mut self, call: Call) -> std::io::Result<usize> {
        self.check_alive()?;
        change_names(&mut self.names, &call);
        self.step(Step::Begin(call));
        Ok(self.steps.len() - 1)
    }

    fn end(&mut self, begun: usize) -> std::io::Result<()> {
        self.check_alive()?;
        self.step(Step::End(begun));
        Ok(())
    }

    fn check_alive(&self) -> std::io::Result<()> {
        if self.steps.len() >= self.dies_at {
            Err(ErrorKind::NotConnected.into())
        } else {
            Ok(())
        }
    }

    fn fails(&mut self, faulty: Faulty) -> bool {
        match &mut self.fault {
            Some(fault) if fault.of == faulty && fault.after == 0 => {
                self.fault = None;
                true
            }
            Some(fault) if fault.of == faulty => {
                fault.after -= 1;
                false
            }
            _ => false,
        }
    }

    fn file(&self, name: &Path) -> std::io::Result<usize> {
        match self.names.get(name) {
            Some(Node::File(file)) => Ok(*file),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }
}

impl Disk for SimulatedDisk {
    fn make_dir(&self, path: &Path) -> Result<()> {
        self.call(path, |state, name| {
            let is_there = name.as_os_str().is_empty()
                || name.is_absolute()
                || state.names.contains_key(&name);
            Ok((!is_there).then_some(Call::MakeDir(name)))
        })
    }

    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>> {
        self.with(dir, |state, dir| {
            if state.names.get(&dir) != Some(&Node::Dir) {
                return Err(ErrorKind::NotFound.into());
            }
            let below = state
                .names
                .iter()
                .filter(|(path, _)| path.parent() == Some(&dir));
            let files = below.filter_map(|(path, node)| match node {
                Node::File(file) => Some((
                    path.file_name()?.to_str()?.to_owned(),
                    state.files.get(*file)?.len,
                )),
                Node::Dir => None,
            });
            Ok(files.collect())
        })
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.with(path, |state, name| {
            Ok(
                name.as_os_str().is_empty()
                    || name.is_absolute()
                    || state.names.contains_key(&name),
            )
        })
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.call(path, |state, name| {
            state.file(&name).map(|_| Some(Call::Remove(name)))
        })
    }

    fn link(&self, from: &Path, to: &Path) -> Result<()> {
        let from = from.strip_prefix(&self.shared.root).unwrap_or(from);
        self.call(to, |state, to| {
            if !state.links {
                return Err(ErrorKind::Unsupported.into());
            }
            let file = state.file(from)?;
            Ok(Some(Call::Link { file, path: to }))
        })
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        self.call(path, |_, name| Ok(Some(Call::RemoveTree(name))))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let to = to
            .strip_prefix(&self.shared.root)
            .unwrap_or(to)
            .to_path_buf();
        self.call(from, |state, from| match state.names.get(&from) {
            Some(_) => Ok(Some(Call::Rename { from, to })),
            None => Err(ErrorKind::NotFound.into()),
        })
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.call(dir, |_, dir| {
            let kind = format!("sync of folder ./{}", dir.display());
            Ok(Some(Call::SyncDir { dir, kind }))
        })
    }

    fn open(&self, path: &Path, mode: Mode) -> Result<Arc<dyn DiskFile>> {
        let file = self.with(path, |state, name| match state.names.get(&name) {
            Some(Node::File(file)) => Ok(*file),
            Some(Node::Dir) => Err(ErrorKind::IsADirectory.into()),
            None if !mode.writes() => Err(ErrorKind::NotFound.into()),
            None => {
                let file = state.files.len();
                let begun = state.begin(Call::Create { file, path: name })?;
                state.files.push(Content::default());
                state.end(begun)?;
                Ok(file)
            }
        })?;
        let (shared, life, path) = (Arc::clone(&self.shared), self.life, path.to_path_buf());
        Ok(Arc::new(SimulatedFile {
            shared,
            life,
            path,
            file,
            mode,
        }))
    }

    fn enter(&self, folder: &Path, lock_name: &str, hold: Hold) -> Result<Box<dyn Send + Sync>> {
        let file = folder.join(lock_name);
        if hold == Hold::Alone {
            self.open(&file, Mode::Write)?;
        }
        Ok(Box::new(()))
    }

    fn path_for_others(&self, path: &Path) -> Result<PathBuf> {
        Ok(path.to_path_buf())
    }
}

struct SimulatedFile {
    shared: Arc<Shared>,
    life: u64,
    path: PathBuf,
    file: usize,
    mode: Mode,
}

impl SimulatedFile {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> std::io::Result<T>) -> Result<T> {
        self.shared
            .with(self.life, &self.path, |state, _| act(state))
    }

    /// Returns the kind of a barrier on this file.
    fn kind(&self) -> String {
        let name = self
            .path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let extension = self
            .path
            .extension()
            .and_then(|extension| extension.to_str())
            .unwrap_or_default();
        let folder = self
            .path
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        match extension {
            "" => format!(
                "sync of {}",
                name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '-')
            ),
            extension => format!("sync of {folder}/*.{extension}"),
        }
    }
}

impl DiskFile for SimulatedFile {
    fn len(&self) -> Result<u64> {
        self.with(|state| Ok(state.files[self.file].len))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.with(|state| {
            let past_the_cache = state.is_torn && self.mode == Mode::ReadDevice;
            let torn = past_the_cache.then(|| state.durability.device(self.file));
            let content = torn.as_ref().unwrap_or(&state.files[self.file]);
            if offset + buf.len() as u64 > content.len {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            content.read(offset, buf);
            Ok(())
        })
    }

    /// Begins the call, lets other threads use the disk, and ends the call.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let through = if self.mode == Mode::WriteThrough {
            Through::Device
        } else {
            Through::Cache
        };
        let faulty = if through == Through::Device {
            Faulty::WriteThrough
        } else {
            Faulty::Write
        };
        let (begun, fails) = self.with(|state| {
            let begun = state.begin(Call::Write {
                file: self.file,
                at: offset,
                bytes: Arc::from(bytes),
                through,
            })?;
            state.files[self.file].write(offset, bytes);
            Ok((begun, state.fails(faulty)))
        })?;
        crate::sync::yield_now();
        self.with(|state| {
            if fails {
                Err(ErrorKind::Other.into())
            } else {
                state.end(begun)
            }
        })
    }

    fn allocate(&self, bytes: u64) -> Result<()> {
        self.with(|state| {
            let begun = state.begin(Call::Resize {
                file: self.file,
                len: bytes,
                cut: Cut::No,
            })?;
            state.files[self.file].resize(bytes, Cut::No);
            state.end(begun)
        })
    }

    fn sync(&self) -> Result<()> {
        let (begun, fails) = self.with(|state| {
            let kind = self.kind();
            let is_manifest = kind == "sync of MANIFEST";
            let begun = state.begin(Call::Sync {
                file: self.file,
                kind,
            })?;
            if is_manifest && state.fails(Faulty::ManifestDeath) {
                state.dies_at = state.steps.len();
            }
            Ok((
                begun,
                state.fails(Faulty::Barrier)
                    || (is_manifest && state.fails(Faulty::ManifestBarrier)),
            ))
        })?;
        crate::sync::yield_now();
        self.with(|state| {
            if fails {
                state.check_alive()?;
                state.is_torn = true;
                state.step(Step::Lost(begun));
                return Err(ErrorKind::Other.into());
            }
            state.end(begun)
        })
    }

    fn check_place(&self) -> Result<()> {
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
