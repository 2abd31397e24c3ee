//! A log as text: exports, what they leave out, and imports that are cut short or given something
//! else.

use std::fs;
use std::path::Path;

use sessionlog::transfer::{Export, export, import, last_complete};
use sessionlog::{Batch, Delete, Error, Fork, NewEvent, Options, SessionLog};

use crate::support::{
    append_notes, assert_error, feed_all, folder, read_all, seal_once, session, small_files,
};

fn exported(folder: &Path, what: &Export) -> String {
    let mut text = Vec::new();
    export(folder, &mut text, what, |_| ()).unwrap();
    String::from_utf8(text).unwrap()
}

fn imported(text: &str, folder: &Path) -> sessionlog::Result<SessionLog> {
    import(
        text.as_bytes(),
        "the export",
        folder,
        Options::new(),
        |_| (),
    )?;
    SessionLog::open(folder)
}

/// A log with three segments or more, and some that is in none.
fn filled(folder: &Path) {
    let log = small_files().open(folder).unwrap();
    for n in 0..3 {
        append_notes(&log, &session("s"), &format!("n{n}"), 5);
        seal_once(&log, &session(&format!("filler{n}")));
    }
    append_notes(&log, &session("s"), "end", 5);
    log.close().unwrap();
}

#[test]
fn data_of_any_kind_comes_back_and_json_stays_readable() {
    let (dir, copy) = (folder(), folder());
    let log = SessionLog::open(dir.path()).unwrap();
    let id = session("s");
    let data: [&[u8]; 12] = [
        b"",
        b"{}",
        br#"{"b":1,"a":1,"a":2}"#,
        b"12345678901234567890123.4500e-3",
        b"{\n  \"pretty\": true\r\n}",
        b" {} ",
        b"plain text",
        b"\"\\u0000\\ud800\"",
        "\u{2028}\u{85}\u{0}".as_bytes(),
        b"\xff\xfe\x00",
        b"[1] [2]",
        b"\n",
    ];
    for (nth, data) in data.iter().enumerate() {
        let event = NewEvent::new("note", data.to_vec());
        let batch = Batch::new().event(event);
        log.append(&id, batch.idempotency_key(format!("k{nth}")))
            .unwrap();
    }
    // These numbers do not come back from their text.
    log.set_metadata(
        &id,
        serde_json::from_str::<serde_json::Value>(
            r#"{"a":1.00000000000000000001e-7,"b":0.30000000000000004}"#,
        )
        .unwrap(),
    )
    .unwrap();
    log.close().unwrap();
    let text = exported(dir.path(), &Export::new());
    assert!(text.contains(r#""data":{"b":1,"a":1,"a":2}"#), "{text}");
    let log = imported(&text, copy.path()).unwrap();
    let stored = read_all(&log, &id);
    assert!(
        stored.iter().map(|event| &*event.data).eq(data),
        "{stored:?}"
    );
    let retried = Batch::new().event(NewEvent::new("note", data[3].to_vec()));
    let ack = log.append(&id, retried.idempotency_key("k3")).unwrap();
    assert!(ack.replayed && ack.first == 4);
    log.close().unwrap();
}

#[test]
fn an_export_of_some_sessions_has_what_they_were_forked_from_and_no_other() {
    let (dir, copy) = (folder(), folder());
    let log = SessionLog::open(dir.path()).unwrap();
    for name in ["a/1", "a/2", "b/1", "c"] {
        append_notes(&log, &session(name), name, 3);
    }
    log.fork(Fork::new(&session("b/1")), &session("a/fork"))
        .unwrap();
    log.delete(&session("a/2"), Delete::new()).unwrap();
    log.close().unwrap();
    let text = exported(dir.path(), &Export::new().prefix("a/"));
    let log = imported(&text, copy.path()).unwrap();
    let names: Vec<_> = log
        .sessions(sessionlog::SessionQuery::by_id())
        .unwrap()
        .items
        .into_iter()
        .map(|info| info.id.to_string())
        .collect();
    assert_eq!(names, ["a/1", "a/fork", "b/1"]);
    assert_eq!(read_all(&log, &session("a/fork")).len(), 3);
    assert!(!text.contains("c.0"));
    log.close().unwrap();
    let mut nothing = Vec::new();
    let unknown = Export::new().session(session("z"));
    assert_error!(
        export(dir.path(), &mut nothing, &unknown, |_| ()),
        Error::UnknownSession { .. }
    );
    assert!(nothing.is_empty());
}

#[test]
fn what_was_removed_is_not_exported() {
    let dir = folder();
    let log = SessionLog::open(dir.path()).unwrap();
    let id = session("s");
    let events = append_notes(&log, &id, "word", 6);
    log.redact(events[2].id, "asked for").unwrap();
    log.trim(&id, 2).unwrap();
    append_notes(&log, &session("gone"), "gone", 2);
    log.delete(&session("gone"), Delete::new()).unwrap();
    // It is in the journal and in the segments alike.
    for text in [exported(dir.path(), &Export::new()), {
        log.close().unwrap();
        let log = SessionLog::open(dir.path()).unwrap();
        log.compact(|_| std::ops::ControlFlow::Continue(()))
            .unwrap();
        log.close().unwrap();
        exported(dir.path(), &Export::new())
    }] {
        for removed in ["word.0/", "word.2/", "gone.0/", "gone.1/"] {
            assert!(!text.contains(removed), "{removed} in {text}");
        }
        assert!(text.contains("word.1/") && text.contains("word.5/"));
    }
}

#[test]
fn an_import_that_was_cut_short_goes_on_and_an_export_too() {
    let (dir, copy, other) = (folder(), folder(), folder());
    filled(dir.path());
    let text = exported(dir.path(), &Export::new());
    let parts = text.matches(r#"{"part":"#).count();
    assert!(parts >= 4, "{parts} parts");
    for cut in [text.len() / 3, text.len() * 2 / 3, text.len() - 2] {
        let refused = import(
            &text.as_bytes()[..cut],
            "cut",
            copy.path(),
            Options::new(),
            |_| (),
        );
        assert_error!(refused, Error::Corrupt { file, .. } if file == Path::new("cut"));
        // It is no log yet, and says so.
        assert_error!(
            SessionLog::open(copy.path()),
            Error::Corrupt { file, .. } if file.ends_with("UNFINISHED")
        );
        // The export goes on too, from what is whole of it.
        let complete = last_complete(&text.as_bytes()[..cut]).unwrap();
        assert!(!complete.is_whole && complete.bytes <= cut as u64);
        let mut whole = text.as_bytes()[..usize::try_from(complete.bytes).unwrap()].to_vec();
        let rest = Export::new().after(complete.last_id.unwrap());
        export(dir.path(), &mut whole, &rest, |_| ()).unwrap();
        assert!(last_complete(&*whole).unwrap().is_whole);
        let continued = folder();
        let log = imported(std::str::from_utf8(&whole).unwrap(), continued.path()).unwrap();
        let original = SessionLog::open(dir.path()).unwrap();
        assert_eq!(feed_all(&log), feed_all(&original));
        original.close().unwrap();
        log.close().unwrap();
    }
    filled(other.path());
    let another = exported(other.path(), &Export::new());
    assert_error!(imported(&another, copy.path()), Error::Invalid { .. });
    let report = import(
        text.as_bytes(),
        "whole",
        copy.path(),
        Options::new(),
        |_| (),
    )
    .unwrap();
    assert!(report.parts_kept >= 1, "{report:?}");
    assert_eq!(report.parts + report.parts_kept, parts as u64);
    let (log, original) = (
        SessionLog::open(copy.path()).unwrap(),
        SessionLog::open(dir.path()).unwrap(),
    );
    assert_eq!(feed_all(&log), feed_all(&original));
    log.close().unwrap();
    original.close().unwrap();
    // A log is never overwritten.
    assert_error!(imported(&text, copy.path()), Error::Invalid { .. });
}

#[test]
fn lines_that_contradict_each_other_are_refused_and_leave_no_log() {
    let dir = folder();
    let log = SessionLog::open(dir.path()).unwrap();
    for name in ["a", "b"] {
        append_notes(&log, &session(name), name, 2);
    }
    log.append(
        &session("a"),
        Batch::new()
            .event(NewEvent::new("note", "x"))
            .idempotency_key("k"),
    )
    .unwrap();
    log.close().unwrap();
    let text = exported(dir.path(), &Export::new());
    let lines: Vec<&str> = text.lines().collect();
    let refused = |lines: Vec<String>, why: &str| {
        let copy = folder();
        let text = lines.join("\n") + "\n";
        let said = imported(&text, copy.path())
            .err()
            .map(|error| error.to_string());
        let said = said.unwrap_or_else(|| panic!("{why}: it was taken"));
        assert!(said.contains(why), "{said:?} does not say {why:?}");
        assert!(
            !copy.path().join("MANIFEST-0").exists(),
            "{why}: there is a log"
        );
    };
    let all = || lines.iter().map(|line| (*line).to_owned());
    for nth in 0..lines.len() {
        let without = all().enumerate().filter(|(at, _)| *at != nth);
        refused(without.map(|(_, line)| line).collect(), "line");
        let twice = all().enumerate().flat_map(|(at, line)| {
            let times = if at == nth { 2 } else { 1 };
            std::iter::repeat_n(line, times)
        });
        // What follows the last line is not read.
        if nth + 1 < lines.len() {
            refused(twice.collect(), "line");
        }
    }
    let edited = |from: &str, to: &str| all().map(|line| line.replace(from, to)).collect();
    refused(edited(r#""a.0/0""#, r#""a.0/9""#), "line");
    refused(edited("a.0/0", "a.0/9"), "checksum");
    refused(edited(r#""first_seq":2,"#, r#""first_seq":1,"#), "line");
    refused(edited(r#""key":"k","#, ""), "fingerprint");
    refused(edited(r#""session":"b""#, r#""session":"a""#), "line");
    refused(edited(r#""version":1"#, r#""version":2"#), "version");
    refused(vec!["{".to_owned()], "line 1");
    refused(Vec::new(), "line 1");
    refused(vec![lines[1].to_owned()], "first line");
    fs::remove_dir_all(dir.path()).unwrap();
}

#[test]
fn an_export_goes_on_beside_a_writer_that_merges_and_after_it_has() {
    let (dir, copy, resumed) = (folder(), folder(), folder());
    let log = small_files().merge_fanout(2).open(dir.path()).unwrap();
    for n in 0..3 {
        append_notes(&log, &session("s"), &format!("n{n}"), 5);
        log.backup(folder().path()).unwrap();
    }
    let (mut text, mut merged) = (Vec::new(), false);
    // After the first part everything is written again, and the names of the others are gone.
    export(dir.path(), &mut text, &Export::new(), |progress| {
        if progress.parts == 1 && !merged {
            merged = true;
            let first = log
                .list(&session("s"), sessionlog::PageRequest::new().limit(1))
                .unwrap();
            log.redact(first.items[0].id, "asked for").unwrap();
            log.compact(|_| std::ops::ControlFlow::Continue(()))
                .unwrap();
        }
    })
    .unwrap();
    assert!(merged);
    let log_of = |text: &[u8], folder: &Path| {
        import(text, "text", folder, Options::new(), |_| ()).unwrap();
        SessionLog::open(folder).unwrap()
    };
    let whole = log_of(&text, copy.path());
    assert_eq!(read_all(&whole, &session("s")).len(), 15);
    // Cut behind the first part, it goes on in segments that begin earlier.
    let first = text
        .windows(12)
        .position(|at| at == br#"{"part_end":"#)
        .unwrap();
    let end = first
        + text[first..]
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap()
        + 1;
    let mut cut = text[..end].to_vec();
    let complete = last_complete(&*cut).unwrap();
    let rest = Export::new().after(complete.last_id.unwrap());
    export(dir.path(), &mut cut, &rest, |_| ()).unwrap();
    let went_on = log_of(&cut, resumed.path());
    assert_eq!(read_all(&went_on, &session("s")).len(), 15);
    for log in [log, whole, went_on] {
        log.close().unwrap();
    }
}
