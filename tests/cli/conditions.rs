//! Every command on a folder in every state: its exit code, that it says what to do next, and that
//! a command that reads, or fails, changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::damage;
use crate::support::{
    Served, command, contents_of, copy_folder, finished, fixture, run_with, state_of,
};

/// The state of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Fine,
    Missing,
    Empty,
    Foreign,
    /// A file and no folder.
    File,
    DamagedManifest,
    DamagedSegment,
    DamagedJournal,
    LaterVersion,
    InUse,
}

const CONDITIONS: [Condition; 10] = [
    Condition::Fine,
    Condition::Missing,
    Condition::Empty,
    Condition::Foreign,
    Condition::File,
    Condition::DamagedManifest,
    Condition::DamagedSegment,
    Condition::DamagedJournal,
    Condition::LaterVersion,
    Condition::InUse,
];

/// What a command does to the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// It never writes.
    Reads,
    /// It reads blocks of a segment too.
    ReadsEvents,
    Writes,
}

/// A command on a folder, which is `DIR` in its arguments. `NEW` is a folder that is missing.
struct Case {
    args: &'static [&'static str],
    access: Access,
}

const CASES: &[Case] = &[
    Case {
        args: &["info", "DIR"],
        access: Access::Reads,
    },
    Case {
        args: &["sessions", "DIR"],
        access: Access::Reads,
    },
    Case {
        args: &["show", "DIR", "talk"],
        access: Access::ReadsEvents,
    },
    Case {
        args: &["tail", "DIR", "talk"],
        access: Access::ReadsEvents,
    },
    Case {
        args: &["tail", "DIR", "-n", "99"],
        access: Access::ReadsEvents,
    },
    Case {
        args: &["message", "DIR", "MESSAGE"],
        access: Access::ReadsEvents,
    },
    Case {
        args: &["get", "DIR", "EVENT"],
        access: Access::ReadsEvents,
    },
    Case {
        args: &["restore", "DIR", "NEW"],
        access: Access::Reads,
    },
    Case {
        args: &["append", "DIR", "talk"],
        access: Access::Writes,
    },
    Case {
        args: &["append", "DIR", "talk", "--each"],
        access: Access::Writes,
    },
    Case {
        args: &["backup", "DIR", "NEW"],
        access: Access::Writes,
    },
    Case {
        args: &["compact", "DIR"],
        access: Access::Writes,
    },
];

impl Condition {
    fn expected(self, case: &Case) -> i32 {
        let is_restore = case.args[0] == "restore";
        match (self, case.access) {
            (Condition::DamagedManifest | Condition::DamagedJournal, _)
            | (Condition::DamagedSegment, Access::ReadsEvents) => 3,
            // Blocks are read when an event in them is.
            (Condition::Fine | Condition::DamagedSegment, _) => 0,
            (Condition::InUse, Access::Reads | Access::ReadsEvents) if !is_restore => 0,
            _ => 1,
        }
    }

    /// What is said of the folder.
    fn word(self) -> &'static str {
        match self {
            Condition::Fine => "",
            Condition::Missing => "there is no folder",
            Condition::Empty => "is empty",
            Condition::Foreign => "holds other files",
            Condition::File => "is a file",
            Condition::DamagedManifest => "MANIFEST-",
            Condition::DamagedSegment => ".segment is damaged at byte ",
            Condition::DamagedJournal => ".journal is damaged at byte ",
            Condition::LaterVersion => "use a newer sessionlog",
            Condition::InUse => "is in use by process ",
        }
    }
}

/// A folder in some state.
struct Scene {
    parent: TempDir,
    folder: PathBuf,
    _server: Option<Served>,
}

impl Scene {
    fn new(condition: Condition) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("log");
        let log = || copy_folder(fixture().path(), &folder);
        match condition {
            Condition::Missing => {}
            Condition::Empty => fs::create_dir(&folder).unwrap(),
            Condition::Foreign => {
                fs::create_dir(&folder).unwrap();
                fs::write(folder.join("notes.txt"), "of somebody else").unwrap();
            }
            Condition::File => fs::write(&folder, "no folder").unwrap(),
            _ => log(),
        }
        match condition {
            Condition::DamagedManifest => damage::manifest(&folder),
            Condition::DamagedSegment => damage::segment(&folder),
            Condition::DamagedJournal => damage::journal(&folder),
            Condition::LaterVersion => damage::later_version(&folder),
            _ => {}
        }
        let server = (condition == Condition::InUse).then(|| Served::new(&folder));
        Self {
            parent,
            folder,
            _server: server,
        }
    }
}

#[test]
fn every_command_says_what_is_wrong_with_a_folder_and_leaves_it_alone() {
    let wrong: Vec<String> = CONDITIONS.into_iter().flat_map(faults_in).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn faults_in(condition: Condition) -> Vec<String> {
    let mut scene = Scene::new(condition);
    let mut wrong = Vec::new();
    for case in CASES {
        let state = match case.access {
            // An open for writing may write again what is there.
            Access::Writes => contents_of,
            Access::Reads | Access::ReadsEvents => state_of,
        };
        let before = state(&scene.folder);
        if let Some(fault) = faults_of(condition, case, &scene) {
            wrong.push(format!("{condition:?}, {:?}: {fault}", case.args));
        }
        let may_change = case.access == Access::Writes && condition.expected(case) == 0;
        if may_change {
            scene = Scene::new(condition);
        // A server writes to the folder as it likes.
        } else if condition != Condition::InUse && state(&scene.folder) != before {
            wrong.push(format!(
                "{condition:?}, {:?}: the folder changed",
                case.args
            ));
        }
    }
    wrong
}

fn faults_of(condition: Condition, case: &Case, scene: &Scene) -> Option<String> {
    let new = scene.parent.path().join("new");
    let args = case.args.iter().map(|arg| arg_of(arg, &scene.folder, &new));
    let input = "{\"type\":\"note\",\"data\":1}\n";
    let ran = run_with(args, input);
    let is_new = new.exists();
    let _removed = fs::remove_dir_all(&new);
    let expected = condition.expected(case);
    if ran.code != Some(expected) {
        return Some(format!("exit code {expected} was expected of {ran:?}"));
    }
    if expected == 0 {
        return None;
    }
    if !ran.err.contains("error: ") || !ran.err.contains("\nhint: ") {
        return Some(format!("it gives no hint: {ran:?}"));
    }
    if !ran.err.contains(condition.word()) {
        return Some(format!("it does not say {:?}: {ran:?}", condition.word()));
    }
    is_new.then(|| "a failed command left the folder that it made".to_owned())
}

fn arg_of(arg: &str, folder: &Path, new: &Path) -> PathBuf {
    match arg {
        "DIR" => folder.to_owned(),
        "NEW" => new.to_owned(),
        "MESSAGE" => fixture().message.as_str().into(),
        "EVENT" => fixture().event.as_str().into(),
        other => other.into(),
    }
}

#[test]
fn damage_is_named_by_file_and_offset_with_the_way_out() {
    for (condition, place) in [
        (Condition::DamagedManifest, "/log/MANIFEST-"),
        (Condition::DamagedJournal, "/log/journal/0000"),
    ] {
        let scene = Scene::new(condition);
        let said = run_with(["info".into(), scene.folder.clone()], "").failed(3);
        let offset = said
            .split(" is damaged at byte ")
            .nth(1)
            .unwrap()
            .split(':')
            .next();
        assert!(offset.unwrap().parse::<u64>().unwrap() > 0, "{said}");
        assert!(said.contains(place), "{said}");
        assert!(
            said.contains("sessionlog verify") && said.contains("sessionlog salvage"),
            "{said}"
        );
    }
}

#[test]
fn a_folder_in_use_is_said_to_be_with_the_process() {
    let folder = fixture().copy();
    let server = Served::new(folder.path());
    let said = run_with(["info".into(), folder.path().to_owned()], "").ok();
    if cfg!(target_os = "linux") {
        let process = format!("in use by process {} (", server.pid());
        assert!(
            said.contains(&process) && said.contains(" serve "),
            "{said}"
        );
    }
    assert!(said.contains("in use"), "{said}");
    let input = "{\"type\":\"note\",\"data\":1}\n";
    let append = ["append".into(), folder.path().to_owned(), "talk".into()];
    let said = run_with(append, input).failed(1);
    assert!(said.contains("--url"), "{said}");
    let backup = [
        "backup".into(),
        folder.path().to_owned(),
        folder.path().join("b"),
    ];
    let said = run_with(backup, "").failed(1);
    assert!(said.contains("snapshot"), "{said}");
}

#[test]
fn a_server_does_not_start_on_a_folder_that_does_not_open() {
    for (condition, code) in [
        (Condition::DamagedManifest, 3),
        (Condition::DamagedJournal, 3),
        (Condition::LaterVersion, 1),
        (Condition::InUse, 1),
    ] {
        let scene = Scene::new(condition);
        let mut serve = command(["serve", "--open", "--listen", "127.0.0.1:0", "--data"]);
        let said = finished(serve.arg(&scene.folder), "").failed(code);
        assert!(said.contains(condition.word()), "{condition:?}: {said}");
    }
}
