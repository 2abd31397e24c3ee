//! The form of the output: JSON and nothing else, errors, closed pipes, harmless text, help.

use std::process::Stdio;

use serde_json::Value;

use crate::support::{command, finished, fixture, run};

fn path() -> &'static str {
    fixture().path().to_str().unwrap()
}

#[test]
fn no_control_character_of_an_event_reaches_a_terminal() {
    let message = fixture().message.as_str();
    let harmless = |out: &str| {
        let bad = |char: char| (char.is_control() && char != '\n') || char == '\u{202e}';
        assert!(!out.contains(bad), "{out:?}");
    };
    for args in [
        &["show", path(), "talk"][..],
        &["show", path(), "talk", "--full"],
        &["show", path(), "talk", "--json"],
        &["tail", path()],
        &["tail", path(), "--json"],
        &["message", path(), message],
        &["sessions", path()],
        &["info", path()],
    ] {
        harmless(&run(args).ok());
    }
    let ran = run(["show", path(), "\u{9b}31m\u{202e}x"]);
    assert_eq!(ran.code, Some(1));
    harmless(&ran.err);
}

#[test]
fn colours_are_for_terminals_and_for_those_that_force_them() {
    let with = |name: &str, value: &str| {
        let mut command = command(["info", path()]);
        command.env_remove("NO_COLOR").env(name, value);
        finished(&mut command, "").ok()
    };
    assert!(!with("TERM", "xterm").contains('\u{1b}'));
    assert!(with("CLICOLOR_FORCE", "1").contains('\u{1b}'));
    let mut both = command(["info", path()]);
    both.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1");
    assert!(!finished(&mut both, "").ok().contains('\u{1b}'));
}

#[test]
fn an_error_is_json_where_json_is_asked_for() {
    let ran = run(["--json", "show", path(), "nobody"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    let error: Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(error["error"]["code"], "unknown_session");
    assert!(
        error["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("sessionlog sessions")
    );
}

#[test]
fn a_closed_pipe_ends_the_command_quietly() {
    for args in [
        &["show", path(), "late"][..],
        &["sessions", path(), "--json"],
        &["info", path()],
        &["completions", "bash"],
    ] {
        let mut child = command(args).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
}

#[test]
fn the_help_documents_the_exit_codes() {
    let said = run(["--help"]).ok();
    for code in [
        "0  it is done",
        "1  it failed",
        "2  the command line",
        "3  the log is damaged",
    ] {
        assert!(said.contains(code), "{said}");
    }
    assert_eq!(run(["nonsense"]).code, Some(2));
    assert_eq!(run(["show"]).code, Some(2));
    let ran = run(["info"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("hint: "), "{ran:?}");
}

#[test]
fn there_are_completions_and_manual_pages_for_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run(["completions", shell]).ok();
        for name in ["info", "restore", "completions"] {
            assert!(script.contains(name), "{shell} does not complete {name}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().to_str().unwrap();
    run(["man", pages]).ok();
    let help = run(["--help"]).ok();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = commands.take_while(|line| !line.is_empty());
    let names: Vec<&str> = names
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(
            folder.path().join(format!("sessionlog-{name}.1")).is_file(),
            "{name}"
        );
    }
    run(["man", "/nowhere/at/all"]).failed(1);
}
