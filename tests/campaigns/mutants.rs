//! Checks that the campaigns find mistakes. Each mutant breaks one rule of the engine in a copy of
//! its source, and some test of a campaign must then fail.
//!
//! The campaigns on a disk that breaks a rule, by ignoring a barrier, check that in every run.

use std::path::Path;
use std::process::Command;

use self::postgres::{Nodes, OF_POSTGRES, ON_POSTGRES, UNIT_ON_POSTGRES};
use super::support::report::{Report, tell};
use super::{nested, root};

mod postgres;

/// A change of the source, and the test that must notice it.
#[derive(Clone, Copy)]
struct Mutant {
    name: &'static str,
    /// Files, the text that each has exactly once, and its replacement.
    edits: &'static [(&'static str, &'static str, &'static str)],
    test: &'static str,
    target: &'static [&'static str],
}

const UNIT: &[&str] = &["--lib"];
const INTEGRATION: &[&str] = &["--test", "it"];

/// A test that hangs has noticed too.
const SECONDS_MAX: &str = "900";

/// The runs of the test's campaign.
const RUNS: &str = "3000";

/// Of the schedules, which are shorter and find some orders of events seldom.
const SCHEDULES_RUNS: &str = "30000";

/// Mutants that need a build of their own.
const SCHEDULES: &str = "campaign_schedules";
const POWER_CUTS: &str = "campaign_power_cuts_on";
const DISPLACED: &str = "place::a_log_whose_folder_is_no_longer_in_its_place";
const LYING_INDEX: &str = "index::an_index_that";
const LIFECYCLE: &str = "lifecycle::";
const ERASURE: &str = "erasure::";

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "the checksums of a group's records are not checked",
        edits: &[(
            "src/journal/window.rs",
            "if !is_whole(&header, records) {",
            "if false && !is_whole(&header, records) {",
        )],
        test: POWER_CUTS,
        target: UNIT,
    },
    Mutant {
        name: "an append is answered before its barrier",
        edits: &[
            (
                "src/write/commit.rs",
                "                    .write(&placed, &group.buffer)\n                    \
                 .and_then(|()| self.wait_for_turn(&placed));",
                "                    .wait_for_turn(&placed);",
            ),
            (
                "src/write/commit.rs",
                "Ok(()) => self.publish(group, &placed),",
                "Ok(()) => {\nself.publish(group, &placed);\n\
                 drop(self.write(&placed, &group.buffer));\n}",
            ),
        ],
        test: POWER_CUTS,
        target: UNIT,
    },
    Mutant {
        name: "a group is published before the one it follows",
        edits: &[(
            "src/write/commit.rs",
            "                    .and_then(|()| self.wait_for_turn(&placed));",
            ";",
        )],
        test: SCHEDULES,
        target: UNIT,
    },
    Mutant {
        name: "who waits for the groups in flight is not woken",
        edits: &[(
            "src/write/commit.rs",
            "        drop(section);\n        self.commit.turn.notify_all();",
            "        drop(section);",
        )],
        test: SCHEDULES,
        target: UNIT,
    },
    Mutant {
        name: "a spare file that a thread waits for is trimmed",
        edits: &[(
            "src/journal/spares.rs",
            "Reverse((stock.fits(spare), spare.bytes))",
            "Reverse(spare.bytes)",
        )],
        test: SCHEDULES,
        target: UNIT,
    },
    Mutant {
        name: "sealing may come between the two looks at a retry",
        edits: &[(
            "src/write/section.rs",
            "            drop(state);\n            return Some(request);\n        }\n",
            "            drop(state);\n            return Some(request);\n        }\n\
             drop(state);\nlet mut state = request.session.lock();\n",
        )],
        test: SCHEDULES,
        target: UNIT,
    },
    Mutant {
        name: "an append waits for room in a log that has failed",
        edits: &[("src/write/commit.rs", " || state.failure().is_some();", ";")],
        test: SCHEDULES,
        target: UNIT,
    },
    Mutant {
        name: "a waiter forgets that it was woken before it waited",
        edits: &[(
            "src/sync/waiter.rs",
            "while !state.woken && deadline",
            "while deadline",
        )],
        test: SCHEDULES,
        target: UNIT,
    },
    Mutant {
        name: "a group says of itself that it is durable",
        edits: &[(
            "src/write/commit.rs",
            "journal.place(&mut group.buffer, state.durable_lsn())",
            "{\nlet end = journal.end_lsn() + 4096;\njournal.place(&mut group.buffer, end)\n}",
        )],
        test: POWER_CUTS,
        target: UNIT,
    },
    Mutant {
        name: "a journal file is used again before its segment is durable",
        edits: &[
            (
                "src/maintain/seal.rs",
                "let info = write_segment(",
                "for (file, bytes) in &files {\n\
                 let _early = self.writer.shared.spares.give(file.number, *bytes);\n}\n\
                 let info = write_segment(",
            ),
            (
                "src/maintain/seal.rs",
                "if let Err(refused) = self.writer.shared.spares.give(file.number, *bytes) {",
                "if let Err(refused) = Result::Ok((file, bytes)) {",
            ),
        ],
        test: POWER_CUTS,
        target: UNIT,
    },
    Mutant {
        name: "a next journal file is begun while groups are in flight in the one before",
        edits: &[(
            "src/write/commit.rs",
            "        self.wait_for_groups_in_flight();\n",
            "",
        )],
        test: SCHEDULES,
        target: UNIT,
    },
    Mutant {
        name: "the manifest that was found is not made durable",
        edits: &[(
            "src/engine/open.rs",
            "                manifest.make_durable()?;\n",
            "",
        )],
        test: "a_manifest_that_a_killed_process_wrote_is_made_durable_before_it_is_relied_on",
        target: UNIT,
    },
    Mutant {
        name: "recovery goes on in the file that a crash left",
        edits: &[(
            "src/engine/open.rs",
            "if recovery.clean {\n            self.resume",
            "if recovery.clean || true {\n            self.resume",
        )],
        test: POWER_CUTS,
        target: UNIT,
    },
    Mutant {
        name: "where a session stood is remembered past what it stands at next",
        edits: &[(
            "src/recent/sessions.rs",
            "            idle.put(id, known);",
            "            if idle.get(&id).is_none() {\nidle.put(id, known);\n}",
        )],
        test: "where_an_idle_session_stands_is_remembered_and_never_less_than_that",
        target: UNIT,
    },
    Mutant {
        name: "what the index says of a run is not checked",
        edits: &[(
            "src/segment/open.rs",
            "if !expected {",
            "if false && !expected {",
        )],
        test: LYING_INDEX,
        target: INTEGRATION,
    },
    Mutant {
        name: "an entry of the index is believed when its segment is gone",
        edits: &[
            (
                "src/index/locate.rs",
                "let segment = self.segments.by_number(entry.segment)?;",
                "let newest = || self.segments.iter().next_back();\n\
                 let segment = self.segments.by_number(entry.segment).or_else(newest)?;",
            ),
            // What else would notice.
            (
                "src/segment/open.rs",
                "if !expected {",
                "if false && !expected {",
            ),
        ],
        test: LYING_INDEX,
        target: INTEGRATION,
    },
    Mutant {
        name: "a session's state is taken from an older segment",
        edits: &[(
            "src/segment/set.rs",
            "            .rev()\n            .filter_map(",
            "            .filter_map(",
        )],
        test: POWER_CUTS,
        target: UNIT,
    },
    Mutant {
        name: "the inputs of a merge are removed before the manifest is durable",
        edits: &[(
            "src/maintain/merge.rs",
            "        let numbers: Vec<u64> = inputs.iter()",
            "        for input in inputs {\n\
             let _early = segments.disk.remove(input.path());\n}\n\
             let numbers: Vec<u64> = inputs.iter()",
        )],
        test: POWER_CUTS,
        target: UNIT,
    },
    Mutant {
        name: "a redaction is applied to events and not to messages",
        edits: &[(
            "src/read/store.rs",
            "if kept.owner.redacted().binary_search(&id).is_ok() {",
            "if kept.owner.redacted().binary_search(&id).is_ok()\n\
             && std::any::type_name::<T>().ends_with(\"Event\") {",
        )],
        test: LIFECYCLE,
        target: INTEGRATION,
    },
    Mutant {
        name: "a merge leaves out what is kept",
        edits: &[(
            "src/maintain/keep.rs",
            "kept.push(self.state.first..=Seq::MAX);",
            "kept.push(self.state.first + 1..=Seq::MAX);",
        )],
        test: ERASURE,
        target: INTEGRATION,
    },
    Mutant {
        name: "a fork shows what its parent appended later",
        edits: &[(
            "src/read/store.rs",
            "through: piece.through,",
            "through: Seq::MAX,",
        )],
        test: LIFECYCLE,
        target: INTEGRATION,
    },
    Mutant {
        name: "the journal is left out when something is erased",
        edits: &[(
            "src/maintain/erase.rs",
            "        self.erase_journal()?;\n",
            "",
        )],
        test: ERASURE,
        target: INTEGRATION,
    },
    Mutant {
        name: "names below the log's folder are looked up from its path",
        edits: &[(
            "src/disk/held.rs",
            "let Some(root) = self.root().filter(|root| path.starts_with(&root.path)) else {",
            "let Some(root) = self.root().filter(|_| false) else {",
        )],
        test: DISPLACED,
        target: INTEGRATION,
    },
    Mutant {
        name: "nobody looks whether the log is still in its place",
        edits: &[(
            "src/journal/writer.rs",
            "        file.check_place()?;\n",
            "",
        )],
        test: DISPLACED,
        target: INTEGRATION,
    },
    Mutant {
        name: "a copy of the process gives the lock back",
        edits: &[(
            "src/disk/lock.rs",
            "if std::process::id() == self.owner {",
            "if true {",
        )],
        test: "place::a_forked_copy_of_the_process",
        target: INTEGRATION,
    },
    Mutant {
        name: "the slot of the manifest that counts is written first",
        edits: &[(
            "src/manifest.rs",
            "[1 - self.slot, self.slot]",
            "[self.slot, 1 - self.slot]",
        )],
        test: "a_manifest_write_that_is_cut_short_leaves_the_slot_that_counted",
        target: UNIT,
    },
];

pub(crate) fn campaign() {
    must_be_noticed("mutants", MUTANTS);
}

/// The same of the engine on PostgreSQL, whose tests need nodes.
pub(crate) fn campaign_on_postgres() {
    must_be_noticed("mutants on PostgreSQL", OF_POSTGRES);
}

pub(crate) fn obstacle_on_postgres() -> Option<String> {
    Nodes::obstacle(&root())
}

/// Checks that the source still has each text to be replaced.
pub(crate) fn campaign_of_edits() {
    let all = [MUTANTS, OF_POSTGRES].concat();
    let nothing = |_: &Mutant, _: &Path| ();
    on_each("mutants, as far as their edits go", &all, nothing);
}

fn must_be_noticed(campaign: &str, mutants: &[Mutant]) {
    on_each(campaign, mutants, |mutant, folder| {
        assert!(!mutant.passes(folder), "no test noticed");
        tell(&format!(
            "  in which {}: {} turned red\n",
            mutant.name, mutant.test
        ));
    });
}

/// Builds and tests mutants, one after the other, in a copy of the source.
fn on_each(campaign: &str, mutants: &[Mutant], look: impl Fn(&Mutant, &Path)) {
    let mut report = Report::new(campaign, 0, mutants.len() as u64);
    let copy = tempfile::tempdir().expect("a folder");
    let source = root();
    for mutant in mutants {
        report.run(
            || format!("the mutant in which {}", mutant.name),
            || {
                copy_source(&source, copy.path());
                mutant.apply(copy.path());
                look(mutant, copy.path());
            },
        );
    }
    report.end();
}

fn copy_source(from: &Path, to: &Path) {
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "docs",
        "src",
        "tests",
        "benches",
        "examples",
    ] {
        let copied = Command::new("cp")
            .arg("-r")
            .arg("--no-preserve=mode")
            .arg(from.join(part))
            .arg(to)
            .status();
        assert!(copied.expect("cp").success(), "{part} is not copied");
    }
}

impl Mutant {
    fn apply(&self, folder: &Path) {
        for (file, from, to) in self.edits {
            let file = folder.join(file);
            let text = std::fs::read_to_string(&file).expect("a source file");
            assert_eq!(
                text.matches(from).count(),
                1,
                "{from:?} does not stand once in {}",
                file.display()
            );
            std::fs::write(&file, text.replace(from, to)).expect("write a source file");
        }
    }

    /// Builds it, which must succeed, and runs the test.
    fn passes(&self, folder: &Path) -> bool {
        let mut tests = Command::new("timeout");
        tests.arg(SECONDS_MAX).current_dir(folder);
        if self.test == SCHEDULES {
            tests.arg(nested::unit_tests_for_schedules(folder));
        } else {
            let arguments = [&["test", "--quiet"], self.target].concat();
            let built = Command::new("cargo")
                .args(&arguments)
                .arg("--no-run")
                .current_dir(folder)
                .output()
                .expect("cargo");
            assert!(
                built.status.success(),
                "it does not build: {}",
                String::from_utf8_lossy(&built.stderr)
            );
            tests.arg("cargo").args(&arguments);
        }
        let runs = if self.test == SCHEDULES {
            SCHEDULES_RUNS
        } else {
            RUNS
        };
        let needs_nodes = [ON_POSTGRES, UNIT_ON_POSTGRES].contains(&self.target);
        let nodes = needs_nodes.then(|| Nodes::create(folder));
        if let Some(nodes) = &nodes {
            nodes.tell(&mut tests);
        }
        let tested = tests
            .arg(self.test)
            .env("SESSION_LOG_RUNS", runs)
            .env_remove("SESSION_LOG_CAMPAIGN")
            .output();
        tested.expect("a process").status.success()
    }
}
