//! A test's own file systems: loop devices and mounts, removed when they are dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Returns why nothing can be mounted here, if so, by trying it.
pub(crate) fn obstacle() -> Option<String> {
    let tried = || {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let memory = Mount::new("tmpfs", Path::new("tmpfs"), "size=16m", folder)?;
        let file = memory.path().join("image");
        make_file_system("ext4", &file, 8 * 1024 * 1024)?;
        let device = Loop::new(&file)?;
        device.mount("ext4").map(drop)
    };
    tried()
        .err()
        .map(|why| format!("nothing can be mounted: {why}"))
}

/// Returns why there is no such file system here, if so.
pub(crate) fn obstacle_to(file_system: &str) -> Option<String> {
    let made = Command::new(format!("mkfs.{file_system}"))
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    made.err()
        .map(|error| format!("no mkfs.{file_system}: {error}"))
}

/// Runs a command, and returns its output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|error| format!("{program} does not start: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Creates a file of `bytes` bytes with an empty file system in it.
pub(crate) fn make_file_system(kind: &str, file: &Path, bytes: u64) -> Result<(), String> {
    let made = std::fs::File::create(file).and_then(|file| file.set_len(bytes));
    made.map_err(|error| error.to_string())?;
    let file = text(file);
    match kind {
        "ext4" => run(
            "mkfs.ext4",
            &[
                "-q",
                "-F",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
                file,
            ],
        ),
        _ => run(&format!("mkfs.{kind}"), &["-q", "-f", file]),
    }
    .map(drop)
}

/// A loop device over a file.
pub(crate) struct Loop(PathBuf);

impl Loop {
    pub(crate) fn new(file: &Path) -> Result<Self, String> {
        run("losetup", &["--find", "--show", text(file)]).map(|device| Self(device.into()))
    }

    pub(crate) fn mount(&self, kind: &str) -> Result<Mount, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        // xfs refuses a second file system with the same ID, such as another image of the same one.
        Mount::new(
            kind,
            &self.0,
            if kind == "xfs" { "nouuid" } else { "defaults" },
            folder,
        )
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _detached = run("losetup", &["--detach", text(&self.0)]);
    }
}

/// A mounted file system.
pub(crate) struct Mount(TempDir);

impl Mount {
    pub(crate) fn new(
        kind: &str,
        device: &Path,
        options: &str,
        folder: TempDir,
    ) -> Result<Self, String> {
        run(
            "mount",
            &["-t", kind, "-o", options, text(device), text(folder.path())],
        )?;
        Ok(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if run("umount", &[text(self.0.path())]).is_err() {
            // If a process still uses the mount, it goes when the process ends.
            let _detached = run("umount", &["--lazy", text(self.0.path())]);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}
