//! Appends that a connection's own loop answers. Each answer is the one of the router: its status,
//! its fields and its body, and whether the connection stays.
//!
//! Two servers with logs of their own get the same. One of them gets another request before, with
//! which its connection passes to the router.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;
use sessionlog::http::{Config, Key, Scope, Stopper};
use sessionlog::{Batch, Error, NewEvent, Options, PageRequest, SessionId};
use tokio::runtime::Runtime;

use crate::here::{GET, Here, Sent, Talk, Told};
use crate::process::eventually;
use crate::support::{KEY, WORKER_KEY, said};

/// Who is to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Loop,
    Router,
}

use By::{Loop, Router};

struct Twins {
    direct: Here,
    routed: Here,
}

fn config() -> Config {
    Config::with_api_key(KEY)
        .worker_key(WORKER_KEY)
        .key(Key::new("nine").prefix("t9-"))
        .key(Key::new("nine works").prefix("t9-").scope(Scope::Worker))
}

fn options() -> Options {
    Options::new().clock(|| UNIX_EPOCH + Duration::from_secs(1_900_000_000))
}

impl Twins {
    fn new() -> Self {
        Self::with(config)
    }

    fn with(config: impl Fn() -> Config) -> Self {
        Self::of(|| Here::on(Runtime::new().unwrap(), config(), options()))
    }

    fn of(here: impl Fn() -> Here) -> Self {
        let (direct, routed) = (here(), here());
        Self { direct, routed }
    }

    /// Sends this to both, and returns the one answer.
    fn ask(&self, by: By, sent: &Sent) -> Told {
        self.ask_each(by, |_here| sent.bytes())
    }

    fn ask_each(&self, by: By, sent: impl Fn(&Here) -> Vec<u8>) -> Told {
        let (mut direct, mut routed) = (self.direct.talk(), self.routed.talk());
        routed.send(GET);
        routed.next().expect("an answer");
        direct.send(sent(&self.direct));
        routed.send(sent(&self.routed));
        let what = String::from_utf8_lossy(&sent(&self.direct)).into_owned();
        let told = [direct.next(), routed.next()].map(|told| told.expect("an answer"));
        let [one, other] = &told;
        assert_eq!(alike(one), alike(other), "{what}");
        let then = [direct, routed].map(probed);
        let [one, other] = then.each_ref().map(Option::as_ref);
        assert_eq!(one.map(alike), other.map(alike), "after {what}");
        assert!(one.is_some() || by == Router, "{what}");
        // A log that takes nothing does not tell who answers.
        assert!(one.is_none_or(|one| one.status == 200 || told[0].status == 503));
        for (then, by) in [(one, by), (other, Router)] {
            let is_by_loop = then.filter(|then| then.status == 200).map(Told::is_by_loop);
            assert!(is_by_loop.is_none_or(|is| is == (by == Loop)), "{what}");
        }
        let [told, _other] = told;
        told
    }

    /// Sends each of these, to which the loop gives an answer with this status.
    fn check(&self, status: u16, all: impl IntoIterator<Item = Sent>) {
        for sent in all {
            let told = self.ask(Loop, &sent);
            assert_eq!(told.status, status, "{sent:?}: {told:?}");
        }
    }

    fn both(&self) -> [&Here; 2] {
        [&self.direct, &self.routed]
    }
}

/// What a connection answers to another request, if it stays. A connection that was passed to the
/// router once stays there.
fn probed(mut talk: Talk) -> Option<Told> {
    talk.try_send(Sent::probe().bytes()).ok()?;
    talk.next()
}

/// An answer without what differs each time: the date, and which IDs are in it.
fn alike(told: &Told) -> Told {
    let mut told = told.clone();
    told.fields.retain(|(name, _)| name != "date");
    told.fields.sort();
    let (mut known, mut body) = (BTreeMap::new(), String::new());
    let mut rest = &*told.body;
    while let Some(at) = ["evt_", "msg_"]
        .iter()
        .filter_map(|kind| rest.find(kind))
        .min()
    {
        let (before, found) = rest.split_at(at + 4);
        let (id, behind) = found.split_at(found.len().min(26));
        let next = known.len();
        let number = known.entry(id.to_owned()).or_insert(next);
        body.extend([before, &number.to_string()]);
        rest = behind;
    }
    told.body = body + rest;
    told
}

fn events(events: &str) -> Sent {
    Sent::append("s").body(format!(r#"{{"events":{events}}}"#))
}

fn message(more: &str) -> Sent {
    events(&format!(r#"[{{"type":"user.message",{more}}}]"#))
}

fn by_worker(events: &str) -> Sent {
    Sent::append("s")
        .key(WORKER_KEY)
        .body(format!(r#"{{"events":{events}}}"#))
}

#[test]
fn what_is_stored_is_answered_as_by_the_router() {
    let twins = Twins::new();
    let batch = r#"[{"type":"step","data":[1.10,1e400]},{"type":"user.message","content":[]}]"#;
    twins.check(
        200,
        [
            Sent::append("s"),
            Sent::append("t"),
            message(r#""content":[]"#),
            message(r#""content":[{"type":"x","n":[1.10,1e400,"\ud83d"]}],"metadata":{"a":null}"#),
            Sent::append("s").body(format!("\u{feff}{}", said("x"))),
            Sent::append("s").body(format!("\r\n\t {} \n", said("x"))),
            Sent::append("s").body(said(&"x".repeat(15_000))),
            by_worker(batch),
            by_worker(r#"[{"type":"step","data":null}],"close":false"#),
            Sent::append("s").key(&format!(" \t{KEY} ")),
            Sent::append("s").set("Authorization", &format!("bEARER {KEY}")),
            Sent::append("s").set("Content-Type", "APPLICATION/JSON ;charset=UTF-8"),
            Sent::append("s").add("Content-Encoding", "Identity"),
            Sent::append("s").add("Connection", "Keep-Alive"),
            Sent::append("s").add("Cookie", "a=b").add("Cookie", "c=d"),
            Sent::append("s").add("X-Odd", "caf\u{e9}\t!"),
            Sent::append("s").without("Host"),
            Sent::append("s").add("Content-Length", &format!("00{}", said("x").len())),
            Sent::append("s").add(
                "traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ),
        ],
    );
    let by_router = [
        Sent::append("caf%C3%A9"),
        Sent::append("a%2Fb"),
        Sent::append("a+b"),
        Sent::append("s").line("POST /v1/sessions/s/events? HTTP/1.1"),
        Sent::append("s").line("POST http://x/v1/sessions/s/events HTTP/1.1"),
        Sent::append("s").add("Upgrade", "h2c"),
        Sent::append("s").body(said(&"x".repeat(20_000))),
        (0..40).fold(Sent::append("s"), |sent, n| {
            sent.add(&format!("X-{n}"), "x")
        }),
    ];
    for sent in by_router {
        assert_eq!(twins.ask(Router, &sent).status, 200, "{sent:?}");
    }
    let counts = twins.both().map(|here| here.log.stats().events);
    assert!(counts[0] > 20 && counts[0] == counts[1], "{counts:?}");
}

#[test]
fn what_is_no_batch_is_refused_as_by_the_router() {
    let twins = Twins::with(|| config().body_bytes_max(10_000));
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let bodies = [
        "",
        " ",
        "{",
        "[]",
        " [1]",
        "null",
        "{}",
        "\u{feff}",
        "\u{feff}\u{feff}{}",
        r#"{"events":[]}"#,
        r#"{"events":null}"#,
        r#"{"events":{}}"#,
        r#"{"events":[null]}"#,
        r#"{"events":[{"type":"user.message","content":[]}],"more":1}"#,
        r#"{"events":[{"type":"user.message","content":[]}]} x"#,
        r#"{"events":[{"type":"user.message","content":[]},{"type":"user.message"}]}"#,
        r#"{"events":[{"type":"user.message","content":[]}],"events":[]}"#,
        r#"{"events":[{"type":"user.message","content":[]}],"close":1}"#,
        r#"{"close":false}"#,
    ];
    twins.check(400, bodies.map(|body| Sent::append("s").body(body)));
    let parts = [
        r#""content":null"#,
        r#""content":"text""#,
        r#""content":[{"text":"no type"}]"#,
        r#""content":[],"metadata":null"#,
        r#""content":[],"metadata":{"n":NaN}"#,
        r#""content":[],"content":[]"#,
        &format!(r#""content":[],"metadata":{{"a":{deep}}}"#),
    ];
    twins.check(400, parts.map(message));
    let others = [
        "[{}]",
        r#"[{"type":1,"content":[]}]"#,
        r#"[{"type":"step","data":1}]"#,
    ];
    twins.check(400, others.map(events));
    let by_workers = [
        r#"[{"type":"step"}]"#,
        r#"[{"type":"","data":1}]"#,
        r#"[{"type":"a\nb","data":1}]"#,
        r#"[{"type":"step","data":1,"message_id":null}]"#,
        r#"[{"type":"step","data":1,"message_id":"x"}]"#,
    ];
    twins.check(400, by_workers.map(by_worker));
    twins.check(400, [Sent::append("s").body([0xff, 0xfe])]);
    for sent in [
        Sent::append("s").body(said(&"x".repeat(10_000))),
        Sent::append("s").body(said(&"x".repeat(20_000))),
    ] {
        assert_eq!(twins.ask(Router, &sent).status, 413);
    }
    for here in twins.both() {
        let page = here.log.list(&"s".parse().unwrap(), PageRequest::new());
        assert!(matches!(page, Err(Error::UnknownSession { .. })));
    }
    let small = || {
        Here::on(
            Runtime::new().unwrap(),
            config(),
            options().event_bytes_max(100),
        )
    };
    let twins = Twins::of(small);
    twins.check(413, [Sent::append("s").body(said(&"x".repeat(100)))]);
}

#[test]
fn a_type_or_coding_that_is_not_taken_is_refused_as_by_the_router() {
    let twins = Twins::new();
    let types = ["text/plain", "application/jsonp", "", "json", "caf\u{e9}"];
    twins.check(
        415,
        types.map(|given| Sent::append("s").set("Content-Type", given)),
    );
    twins.check(415, [Sent::append("s").without("Content-Type")]);
    let codings = ["gzip", "deflate, gzip", "", "caf\u{e9}"];
    twins.check(
        415,
        codings.map(|given| Sent::append("s").add("Content-Encoding", given)),
    );
    let two = Sent::append("s").add("Content-Encoding", "identity");
    twins.check(415, [two.add("Content-Encoding", "br")]);
    let two = Sent::append("s").add("Content-Type", "text/plain");
    twins.check(200, [two]);
}

#[test]
fn a_key_opens_and_closes_the_same_as_at_the_router() {
    let twins = Twins::new();
    let wrong = [
        "Bearer",
        "Bearer x",
        "Bearer the key x",
        "Basic dGhlIGtleQ==",
        "the key",
        "",
    ];
    twins.check(
        401,
        wrong.map(|given| Sent::append("s").set("Authorization", given)),
    );
    twins.check(401, [Sent::append("s").without("Authorization")]);
    // A refusal says nothing about the rest of the request.
    twins.check(
        401,
        [
            Sent::append("..").key("x"),
            Sent::append("s").key("x").body("{"),
        ],
    );
    let closing = r#"{"close":true}"#;
    twins.check(403, [Sent::append("s").body(closing)]);
    twins.check(403, [Sent::append("s").add("Producer-Id", "w")]);
    for key in ["nine", "nine works"] {
        let hidden = [
            Sent::append("s"),
            Sent::append("t9"),
            Sent::append("t8-a").body("{"),
        ];
        twins.check(404, hidden.map(|sent| sent.key(key)));
        twins.check(400, [Sent::append("..").key(key)]);
        twins.check(200, [Sent::append("t9-a").key(key)]);
    }
    let open = Twins::with(|| Config::open().worker_key(WORKER_KEY));
    twins.check(200, [Sent::append("s")]);
    open.check(
        200,
        ["x", KEY, WORKER_KEY, ""].map(|key| Sent::append("s").key(key)),
    );
    open.check(200, [Sent::append("s").without("Authorization")]);
    open.check(403, [Sent::append("s").body(closing)]);
}

#[test]
fn an_event_in_the_turn_of_another_session_is_as_unknown_as_at_the_router() {
    let twins = Twins::new();
    let turn_of = |here: &Here, session: &str| {
        let session: SessionId = session.parse().unwrap();
        let stored = here.log.append(&session, Batch::new().user_message("x"));
        stored.unwrap().events[0].message_id.unwrap()
    };
    let turns = twins
        .both()
        .map(|here| [turn_of(here, "t9-a"), turn_of(here, "t8-a")]);
    let sent = |here: &Here, key: &str, at: usize| {
        let turns = if std::ptr::eq(here, &raw const twins.direct) {
            turns[0]
        } else {
            turns[1]
        };
        let event = json!({"type": "step", "data": 1, "message_id": turns[at].to_string()});
        let sent = Sent::append("t9-a").key(key);
        sent.body(json!({ "events": [event] }).to_string()).bytes()
    };
    for key in [WORKER_KEY, "nine works"] {
        for at in 0..2 {
            twins.ask_each(Loop, |here| sent(here, key, at));
        }
    }
}

#[test]
fn a_key_beyond_its_rate_is_told_so_as_by_the_router() {
    let limited = || Key::new("limited").requests_per_second(1).burst(3);
    let twins = Twins::with(|| config().key(limited()));
    let told = twins.both().map(|here| {
        let mut talk = here.talk();
        if std::ptr::eq(here, &raw const twins.routed) {
            talk.send(GET);
            talk.next();
        }
        let mut told = (0..10_000).map(|_| {
            talk.send(Sent::append("s").key("limited").bytes());
            talk.next().unwrap()
        });
        let refused = told.find(|told| told.status != 200);
        (
            refused.expect("it is refused at some time"),
            probed(talk).unwrap(),
        )
    });
    let [(one, then), (other, then_other)] = &told;
    assert_eq!((one.status, one.field("retry-after")), (429, Some("1")));
    assert_eq!(alike(one), alike(other));
    assert_eq!([then.is_by_loop(), then_other.is_by_loop()], [true, false]);
}

#[test]
fn conditions_are_read_as_by_the_router() {
    let twins = Twins::new();
    let at = |tag: &str| Sent::append("s").add("If-Match", tag);
    twins.check(412, [at("*"), at("\"3\""), at("\"1\", \"2\"")]);
    let met = [
        "\"0\"",
        "\"1\"",
        "W/\"2\"",
        "3",
        "*",
        "\"7\", \"5\"",
        "W/\"6\",W/\"9\" , 1",
    ];
    twins.check(200, met.map(at));
    twins.check(412, [at("\"1\""), at("\"1\", \"2\"")]);
    let malformed = [
        "\"3",
        "\"\"",
        "\"-1\"",
        "w/\"3\"",
        "\"1\",",
        "\"1\", *",
        "",
        "caf\u{e9}",
    ];
    twins.check(400, malformed.map(at));
    twins.check(
        400,
        [at("\"99999999999999999999\""), at("*").add("If-Match", "*")],
    );
    twins.check(200, [at("\"1\"").add("If-Match", "\"7\"")]);
}

#[test]
fn what_is_sent_again_is_answered_as_by_the_router() {
    let twins = Twins::new();
    let keyed = |key: &str, text: &str| {
        Sent::append("s")
            .body(said(text))
            .add("Idempotency-Key", key)
    };
    let first = twins.ask(Loop, &keyed("k", "once"));
    assert_eq!((first.status, first.field("etag")), (200, Some("\"1\"")));
    for _ in 0..2 {
        let again = twins.ask(Loop, &keyed("k", "once"));
        assert_eq!((again.status, &again.body), (200, &first.body));
        assert_eq!(again.field("idempotent-replayed"), Some("true"));
    }
    twins.check(200, [keyed("k", "once").add("If-Match", "\"0\", \"7\"")]);
    twins.check(409, [keyed("k", "twice")]);
    let bad = ["", "caf\u{e9}", &"k".repeat(257)];
    twins.check(400, bad.map(|key| keyed(key, "x")));
    twins.check(400, [keyed("k", "once").add("Idempotency-Key", "k")]);
}

#[test]
fn producers_and_closed_sessions_are_answered_as_by_the_router() {
    let twins = Twins::new();
    let by = |id: &str, epoch: &str, seq: &str| {
        let fields = [
            ("Producer-Id", id),
            ("Producer-Epoch", epoch),
            ("Producer-Seq", seq),
        ];
        let given = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let sent = Sent::append("s").key(WORKER_KEY);
        given.fold(sent, |sent, (name, value)| sent.add(name, value))
    };
    twins.check(
        200,
        [
            by("w", "1", "0"),
            by("w", "1", "1"),
            by("w", "1", "1"),
            by("v", "", ""),
        ],
    );
    twins.check(409, [by("w", "1", "7")]);
    twins.check(200, [by("w", "2", "0")]);
    twins.check(403, [by("w", "1", "2")]);
    twins.check(
        400,
        [
            by("", "1", ""),
            by("", "", "1"),
            by("w", "x", ""),
            by("w", "", "+1"),
        ],
    );
    twins.check(
        400,
        [by("w", "18446744073709551616", ""), by("caf\u{e9}", "", "")],
    );
    twins.check(400, [by("w", "2", "1").add("Producer-Id", "w")]);
    let closing = Sent::append("s")
        .key(WORKER_KEY)
        .body(r#"{"events":[],"close":true}"#);
    twins.check(200, [closing.clone()]);
    twins.check(409, [Sent::append("s"), by("w", "2", "1")]);
    twins.ask(Loop, &closing);
}

#[test]
fn a_session_is_named_as_at_the_router() {
    let twins = Twins::new();
    twins.check(200, ["...", "~", "-_.", &"x".repeat(256)].map(Sent::append));
    twins.check(400, [".", "..", &"x".repeat(257)].map(Sent::append));
    let by_router = [
        "%2e%2E", "%00", "%FF", "%zz", "", "a/b", "..%2F", "a:b@c", "a;b", "café",
    ];
    for name in by_router {
        twins.ask(Router, &Sent::append(name));
    }
}

#[test]
fn a_head_that_is_too_long_or_for_another_host_is_refused_as_by_the_router() {
    let twins = Twins::with(|| {
        let hosts = ["localhost", "[::1]"];
        config()
            .hosts(hosts)
            .url_bytes_max(100)
            .head_bytes_max(1_000)
    });
    let to = |host: &str| Sent::append("s").set("Host", host);
    twins.check(200, [to("localhost"), to("LOCALHOST:8080"), to("[::1]:1")]);
    let others = [
        "evil.example",
        "localhost.evil.example",
        "",
        "@",
        "evil@localhost",
        "caf\u{e9}",
    ];
    twins.check(421, others.map(to));
    twins.check(
        421,
        [
            to("localhost").add("Host", "localhost"),
            to("x").without("Host"),
        ],
    );
    let long = |session: usize| Sent::append(&"s".repeat(session)).set("Host", "localhost");
    twins.check(414, [long(100)]);
    twins.check(431, [to("localhost").add("X", &"x".repeat(1_000))]);
    let any = Twins::new();
    any.check(400, [to("evil@localhost"), to("x").add("Host", "x")]);
    any.check(200, [to("caf\u{e9}"), to("")]);
}

#[test]
fn a_log_out_of_service_is_reported_as_by_the_router() {
    let twins = Twins::new();
    twins.check(200, [Sent::append("s")]);
    for here in twins.both() {
        here.log.close().unwrap();
    }
    twins.check(503, [Sent::append("s")]);
    let read_only = Twins::of(|| {
        let folder = tempfile::tempdir().unwrap();
        options().open(folder.path()).unwrap().close().unwrap();
        let log = Options::new().open_read_only(folder.path()).unwrap();
        Here::of(Runtime::new().unwrap(), config(), log, folder)
    });
    read_only.check(503, [Sent::append("s")]);
    let displaced = Twins::of(|| {
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = (folder.path().join("log"), folder.path().join("moved"));
        let log = options().open(&before).unwrap();
        std::fs::rename(before, after).unwrap();
        let note = || log.append(&"s".parse().unwrap(), NewEvent::new("note", "1"));
        eventually("it is found", || {
            matches!(note(), Err(Error::Poisoned { .. }))
        });
        Here::of(Runtime::new().unwrap(), config(), log, folder)
    });
    let told = displaced.ask(Loop, &Sent::append("s"));
    assert_eq!((told.status, told.field("retry-after")), (503, Some("30")));
}

#[test]
fn a_server_about_to_stop_says_so_as_the_router_does() {
    let stoppers = RefCell::new(Vec::new());
    let twins = Twins::with(|| {
        let config = config();
        stoppers.borrow_mut().push(config.stopper());
        config
    });
    twins.check(200, [Sent::append("s")]);
    stoppers.into_inner().iter().for_each(Stopper::stop);
    let told = twins.ask(Loop, &Sent::append("s"));
    assert_eq!((told.status, told.field("retry-after")), (503, Some("1")));
}

/// The framing of a request decides where the next one begins.
#[test]
fn a_head_that_two_servers_might_read_differently_is_left_to_the_router() {
    let twins = Twins::new();
    let body = said("x");
    let length = body.len().to_string();
    let sent = || Sent::append("s").body(body.clone());
    let head = |from: &str, to: &str| {
        let text = String::from_utf8(sent().bytes()).unwrap();
        assert!(text.contains(from));
        text.replacen(from, to, 1)
    };
    let last = format!("Content-Length: {length}\r\n");
    let cases = [
        sent()
            .add("Content-Length", &length)
            .add("Content-Length", &length)
            .bytes(),
        sent()
            .add("Content-Length", &length)
            .add("Content-Length", "1")
            .bytes(),
        sent().add("Content-Length", &format!("+{length}")).bytes(),
        sent()
            .add("Content-Length", &format!("{length}, {length}"))
            .bytes(),
        sent().add("Content-Length", "").bytes(),
        sent().add("Content-Length", "18446744073709551615").bytes(),
        sent()
            .add("Content-Length", &length)
            .add("Transfer-Encoding", "chunked")
            .bytes(),
        sent().add("Transfer-Encoding", "gzip").bytes(),
        sent().add("Transfer-Encoding", "identity").bytes(),
        sent().add("Expect", "x").bytes(),
        sent().add("Connection", "close").bytes(),
        sent().add("Connection", "keep-alive, close").bytes(),
        sent()
            .add("Connection", "keep-alive")
            .add("Connection", "close")
            .bytes(),
        sent().line("POST /v1/sessions/s/events HTTP/1.0").bytes(),
        sent().line("POST /v1/sessions/s/events HTTP/2.0").bytes(),
        sent().line("POST  /v1/sessions/s/events HTTP/1.1").bytes(),
        sent().line("post /v1/sessions/s/events HTTP/1.1").bytes(),
        head("Host: x", "Host : x").into_bytes(),
        head("Host: x", " Host: x").into_bytes(),
        head("Host: x", "Host: x\r\n y").into_bytes(),
        head("Host: x", "Host: x\0").into_bytes(),
        head("Host: x", "Host: x\ry").into_bytes(),
        head("Host: x", "H\u{e9}st: x").into_bytes(),
        head("Host: x", "Host").into_bytes(),
        head(&last, "").into_bytes(),
    ];
    for case in cases {
        let what = String::from_utf8_lossy(&case).into_owned();
        let routed = [GET.as_bytes(), &case].concat();
        let probe = |sent: &[u8]| [sent, &Sent::probe().bytes()].concat();
        let told = twins.direct.told(probe(&case));
        let mut other = twins.routed.told(probe(&routed));
        other.remove(0);
        assert_eq!(
            told.iter().map(alike).collect::<Vec<_>>(),
            other.iter().map(alike).collect::<Vec<_>>(),
            "{what}"
        );
        assert!(!told.iter().any(Told::is_by_loop), "{what}: {told:?}");
    }
    // Lines may end without a carriage return, for the loop as for the router.
    let bare = head("\r\n\r\n", "\n\n").into_bytes();
    twins.ask_each(Loop, |_here| bare.clone());
    twins.ask_each(Loop, |_here| [b"\r\n\n", &*sent().bytes()].concat());
}

#[test]
fn appends_are_counted_under_one_route_whoever_answers_them() {
    let twins = Twins::new();
    twins.check(200, [Sent::append("s"), Sent::append("t")]);
    twins.check(400, [Sent::append("s").body("")]);
    twins.check(401, [Sent::append("s").key("x")]);
    twins.check(404, [Sent::append("s").key("nine")]);
    let counts = twins.both().map(|here| {
        let metrics = here.told("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let of_appends = |line: &&str| {
            line.starts_with("sessionlog_http_requests_total{")
                && line.contains("route=\"/v1/sessions/")
                || line.starts_with("sessionlog_http_request_seconds_count{")
                    && line.contains("method=\"POST\"")
        };
        let mut lines: Vec<_> = metrics[0]
            .body
            .lines()
            .filter(of_appends)
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    });
    assert_eq!(counts[0], counts[1]);
    assert_eq!(counts[0].len(), 5, "{counts:?}");
}
