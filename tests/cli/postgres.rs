//! A log on PostgreSQL: `export`, `import` and `serve` with its URL.
//!
//! The tests need a server at `SESSION_LOG_POSTGRES_URL`. Without it they say so and check nothing.

use std::fs;
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use sessionlog::{Durability, Options};

use crate::further::further;
use crate::support::{CLIENT_KEY, Served, command, finished, fixture, run, run_with};
use crate::transfer::{compared, export_of, text};

/// A schema that nothing else has. Its tables stay: nothing here talks SQL.
struct Schema {
    url: String,
    name: String,
}

impl Schema {
    fn new() -> Option<Self> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let Ok(url) = std::env::var("SESSION_LOG_POSTGRES_URL") else {
            eprintln!("skipped: SESSION_LOG_POSTGRES_URL names no server");
            return None;
        };
        let (process, nth) = (std::process::id(), MADE.fetch_add(1, Ordering::SeqCst));
        let now = jiff::Timestamp::now().as_microsecond();
        Some(Self {
            url,
            name: format!("cli_{now}_{process}_{nth}"),
        })
    }

    /// The options that say where it is, besides the URL.
    fn options(&self) -> [&str; 4] {
        [
            "--postgres-schema",
            &self.name,
            "--postgres-durability",
            "one-node",
        ]
    }

    fn with<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        let options = self.options();
        words.iter().copied().chain(options).collect()
    }

    fn export(&self) -> String {
        run(self.with(&["export", &self.url])).ok()
    }

    fn serve(&self) -> Served {
        let words = ["serve", "--listen", "127.0.0.1:0", "--postgres", &self.url];
        Served::begin(&mut command(self.with(&words)))
    }
}

impl Served {
    fn append(&self, session: &str, note: u64) {
        let line = format!("{{\"type\":\"note\",\"data\":{note}}}");
        finished(&mut self.command(&["append", session]), &line).ok();
    }

    /// Follows a session as a client that reconnects. It waits for so many events.
    fn follow(&self, session: &str, after: Option<&str>, count: usize) -> Vec<Frame> {
        let url = format!("{}/v1/sessions/{session}/stream", self.url);
        let mut call = ureq::get(url).header("authorization", format!("Bearer {CLIENT_KEY}"));
        if let Some(after) = after {
            call = call.header("Last-Event-ID", after);
        }
        let body = call.call().unwrap().into_body();
        let lines = BufReader::new(body.into_reader()).lines();
        let mut id = None;
        let frames = lines.filter_map(|line| {
            let line = line.unwrap();
            id = line.strip_prefix("id: ").map(str::to_owned).or(id.take());
            let data = line.strip_prefix("data: ").filter(|_| id.is_some())?;
            Some((id.take()?, data.to_owned()))
        });
        frames.take(count).collect()
    }
}

/// The ID and the data of an event.
type Frame = (String, String);

/// The records and states of an export: what counts, however it is cut into parts.
fn content(export: &str) -> Vec<Value> {
    let lines = compared(export).into_iter();
    let values = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of = |kind: &str, value: &Value| value.get(kind).is_some();
    let mut content: Vec<Value> = values.filter(|value| of("record", value)).collect();
    content.sort_by_key(|value| value["record"]["first_id"].to_string());
    content
}

/// The last state of each session.
fn states(export: &str) -> std::collections::BTreeMap<String, Value> {
    let lines = compared(export).into_iter();
    let values = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let states = values.filter_map(|mut value| value.get_mut("state").map(Value::take));
    states
        .map(|state| (state["session"].as_str().unwrap().to_owned(), state))
        .collect()
}

#[test]
fn a_log_moves_to_postgres_and_back_bit_for_bit() {
    let Some(schema) = Schema::new() else { return };
    let parent = tempfile::tempdir().unwrap();
    let back = parent.path().join("back");
    let before = export_of(fixture().path());
    let said = run_with(schema.with(&["import", "--to", &schema.url]), &before).ok();
    assert!(said.contains("28 events"), "{said}");
    let there = schema.export();
    assert_eq!(content(&there), content(&before));
    assert_eq!(states(&there), states(&before));
    run_with(["import", text(&back)], &there).ok();
    let after = export_of(&back);
    assert_eq!(content(&after), content(&before));
    assert_eq!(states(&after), states(&before));
    run(["verify", text(&back)]).ok();
    // Neither is overwritten.
    let again = run_with(schema.with(&["import", "--to", &schema.url]), &before);
    assert!(again.failed(1).contains("holds a log already"));
    assert_eq!(content(&schema.export()), content(&before));
    // Nor does a file that is there go on.
    let file = parent.path().join("log.jsonl.zst");
    run(schema.with(&["export", &schema.url, text(&file)])).ok();
    let other = Schema::new().unwrap();
    run(other.with(&["import", &other.url, text(&file)])).ok();
    assert_eq!(content(&other.export()), content(&before));
    run(schema.with(&["export", &schema.url, text(&file)])).failed(1);
}

#[test]
fn an_import_that_is_cut_short_or_damaged_leaves_nothing() {
    let Some(schema) = Schema::new() else { return };
    let whole = export_of(fixture().path());
    let import = |text: &str| run_with(schema.with(&["import", "--to", &schema.url]), text);
    let cut: Vec<&str> = whole.lines().collect();
    let cut = cut[..cut.len() - 2].join("\n") + "\n";
    assert!(import(&cut).failed(1).contains("cut short"));
    let damaged = whole.replacen("\"checksum\":", "\"checksum\":1", 1);
    import(&damaged).failed(1);
    let missing = run(schema.with(&["export", &schema.url]));
    assert!(missing.failed(1).contains("there is no log"));
    import(&whole).ok();
    assert_eq!(content(&schema.export()), content(&whole));
}

#[test]
fn appends_and_retries_go_on_where_a_log_moved_to() {
    let Some(schema) = Schema::new() else { return };
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("log");
    let id = "s".parse().unwrap();
    let keyed = || {
        let batch = sessionlog::Batch::new().event(sessionlog::NewEvent::new("note", "1"));
        batch.idempotency_key("once")
    };
    let log = sessionlog::SessionLog::open(&folder).unwrap();
    let first = log.append(&id, keyed()).unwrap();
    log.close().unwrap();
    let lines = export_of(&folder);
    run_with(schema.with(&["import", "--to", &schema.url]), &lines).ok();
    let options = || {
        let options = Options::new().schema(schema.name.as_str());
        options.durability(Durability::OneNode)
    };
    let log = options().connect(&schema.url).unwrap();
    let again = log.append(&id, keyed()).unwrap();
    assert!(again.replayed);
    assert_eq!(again.events, first.events);
    let next = log
        .append(&id, sessionlog::NewEvent::new("note", "2"))
        .unwrap();
    assert_eq!(next.events[0].seq, 2);
    assert!(next.events[0].id > first.events[0].id);
    log.close().unwrap();
    let back = parent.path().join("back");
    run_with(["import", text(&back)], &schema.export()).ok();
    let log = sessionlog::SessionLog::open(&back).unwrap();
    assert!(log.append(&id, keyed()).unwrap().replayed);
    assert_eq!(log.head(&id).unwrap().last, 2);
}

#[test]
fn a_client_that_follows_sees_a_move_as_a_pause() {
    let Some(schema) = Schema::new() else { return };
    let parent = tempfile::tempdir().unwrap();
    let [folder, back] = ["log", "back"].map(|name| parent.path().join(name));
    let mut all = Vec::new();
    let mut follow_on = |server: Served, first: u64| {
        for note in first..first + 3 {
            server.append("s", note);
        }
        let after = all.last().map(|(id, _): &Frame| id.clone());
        all.extend(server.follow("s", after.as_deref(), 3));
        // As a client does that has lost the answers to all of it.
        assert_eq!(server.follow("s", None, all.len()), all);
        for (nth, (id, _)) in all.iter().enumerate().take(all.len() - 1) {
            assert_eq!(server.follow("s", Some(id), 1), [all[nth + 1].clone()]);
        }
    };
    follow_on(Served::new(&folder), 0);
    run_with(
        schema.with(&["import", "--to", &schema.url]),
        &export_of(&folder),
    )
    .ok();
    follow_on(schema.serve(), 3);
    run_with(["import", text(&back)], &schema.export()).ok();
    follow_on(Served::new(&back), 6);
    let data = |(_, data): &Frame| serde_json::from_str::<Value>(data).unwrap()["data"].as_u64();
    let told: Vec<_> = all.iter().map(data).collect();
    assert_eq!(told, (0..9).map(Some).collect::<Vec<_>>());
}

#[test]
fn servers_on_postgres_are_one_service() {
    let Some(schema) = Schema::new() else { return };
    let servers = [schema.serve(), schema.serve()];
    for (nth, server) in (0..).zip(&servers) {
        server.append("s", nth);
    }
    for server in &servers {
        let shown = server.command(&["show", "s", "--json"]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert_eq!(shown.matches("\"note\"").count(), 2, "{shown}");
    }
    let exported = schema.export();
    assert_eq!(content(&exported).len(), 2);
}

#[test]
fn what_is_wrong_with_a_url_is_said_with_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let none = "postgres://me:secret@127.0.0.1:1/none";
    let said = run(["serve", "--postgres", "mysql://x", "--open"]);
    assert_eq!(said.code, Some(2));
    let both = run(["serve", "--postgres", none, "--data", text(place.path())]);
    assert_eq!(both.code, Some(2));
    let file = place.path().join("transcript");
    fs::write(&file, "{\"a\":1}\n").unwrap();
    let mapping = ["--session", "s", "--type", "t"];
    let words = ["import", "--to", none, text(&file)];
    let said = run(words.iter().chain(&mapping)).failed(1);
    assert!(!said.contains("secret"), "{said}");
    let Some(schema) = Schema::new() else { return };
    let said = run(["export", &schema.url, "--postgres-schema", &schema.name]).failed(1);
    assert!(said.contains("--postgres-durability"), "{said}");
    let check = |schema: &Schema| {
        let words = ["serve", "--check", "--open", "--postgres", &schema.url];
        run(schema.with(&words)).ok()
    };
    assert!(check(&schema).contains("gets an empty log"));
    drop(schema.serve());
    assert!(check(&schema).contains("holds a log"));
}

#[test]
fn shards_are_listed_and_moved_while_the_log_is_served() {
    let Some(schema) = Schema::new() else { return };
    let none = run(schema.with(&["shards", &schema.url])).failed(1);
    assert!(none.contains("holds no log"), "{none}");
    let further = further(&schema.url);
    let of = |words: &[&str]| {
        let spread = ["--postgres-database", &further, "--postgres-shards", "2"];
        let words: Vec<_> = words.iter().chain(&spread).copied().collect();
        command(schema.with(&words))
    };
    let serve = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--postgres",
        &schema.url,
    ];
    let served = Served::begin(&mut of(&serve));
    for nth in 0..8 {
        served.append(&format!("s{}", nth % 4), nth);
    }
    let shards = |words: &[&str]| {
        let words: Vec<_> = ["--json", "shards", &schema.url]
            .iter()
            .chain(words)
            .copied()
            .collect();
        let lines = finished(&mut of(&words), "").ok();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.collect::<Vec<_>>()
    };
    let before = shards(&[]);
    let homes = |shards: &[Value]| -> Vec<u64> {
        shards
            .iter()
            .map(|shard| shard["database"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(homes(&before), [0, 1]);
    let events: u64 = before
        .iter()
        .map(|shard| shard["events"].as_u64().unwrap())
        .sum();
    assert_eq!(events, 8);
    let moved = shards(&["--move", "1", "--to", "0"]);
    assert_eq!(moved[0]["sessions"], before[1]["sessions"]);
    assert_eq!(homes(&shards(&[])), [0, 0]);
    for nth in 8..12 {
        served.append(&format!("s{}", nth % 4), nth);
    }
    for session in ["s0", "s1", "s2", "s3"] {
        assert_eq!(served.follow(session, None, 3).len(), 3);
    }
    let listed = finished(&mut of(&["shards", &schema.url]), "").ok();
    assert!(
        listed.starts_with("SHARD") && listed.lines().count() == 3,
        "{listed}"
    );
    let wrong = finished(
        &mut of(&["shards", &schema.url, "--move", "2", "--to", "0"]),
        "",
    );
    assert!(wrong.failed(1).contains("invalid shard"));
    let half = finished(&mut of(&["shards", &schema.url, "--move", "1"]), "");
    assert_eq!(half.code, Some(2), "{half:?}");
}
