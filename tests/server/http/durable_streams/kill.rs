//! The server is killed while calls of each kind are under way. What was answered is there, nothing
//! is there twice, and what was not answered is there as a whole or not at all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::process::{self, Server, command, free_address};
use crate::report::Runs;

/// How often the server is killed, and after how many answers.
const KILLS: Runs = Runs {
    quick: 4,
    full: 200,
};
const ANSWERS: usize = 300;

/// The calls of one kind, each with a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Appends to one stream.
    Append,
    /// Appends of a producer to one stream.
    Produce,
    /// Appends of several messages to one stream, each with a `Stream-Seq`.
    Sequence,
    /// A stream that is created with its content and closed at once.
    CreateClosed,
    /// A stream that gets its content together with its close.
    AppendAndClose,
    /// A stream that gets its content and its close from a producer.
    ProduceAndClose,
    /// A fork that copies a part of an event.
    Fork,
    /// A stream that is deleted.
    Delete,
}

const KINDS: [Kind; 8] = [
    Kind::Append,
    Kind::Produce,
    Kind::Sequence,
    Kind::CreateClosed,
    Kind::AppendAndClose,
    Kind::ProduceAndClose,
    Kind::Fork,
    Kind::Delete,
];

struct Client {
    agent: ureq::Agent,
    url: String,
}

/// The status of an answer and its text, or nothing where the server was gone.
type Answered = Option<(u16, String)>;

impl Client {
    fn new(address: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(30)))
            .http_status_as_error(false);
        Self {
            agent: config.build().into(),
            url: format!("http://{address}/ds"),
        }
    }

    fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answered {
        let content_type = if path == "Sequence" {
            "application/json"
        } else {
            "text/plain"
        };
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}/{path}", self.url))
            .header("content-type", content_type);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = self
            .agent
            .run(request.body(body.to_owned()).unwrap())
            .ok()?;
        let text = answer.body_mut().read_to_string().ok()?;
        Some((answer.status().as_u16(), text))
    }

    fn put(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answered {
        self.call("PUT", path, headers, body)
    }

    fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answered {
        self.call("POST", path, headers, body)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.call("GET", path, &[], "")
            .expect("the server is there")
    }

    fn is_closed(&self, path: &str) -> bool {
        let answer = self
            .agent
            .head(format!("{}/{path}", self.url))
            .call()
            .unwrap();
        answer.headers().contains_key("stream-closed")
    }
}

const CLOSE: (&str, &str) = ("stream-closed", "true");
const FORK: [(&str, &str); 3] = [
    ("stream-forked-from", "/source"),
    ("stream-fork-offset", "0000000000000000_0000000000000000"),
    ("stream-fork-sub-offset", "3"),
];

/// The headers of a producer's first append, apart from its number.
const PRODUCER: [(&str, &str); 2] = [("producer-id", "p"), ("producer-epoch", "0")];

/// Makes call `number` of a kind. Returns whether it was answered.
fn make(client: &Client, kind: Kind, number: usize) -> bool {
    let text = format!("{number};");
    let path = path(kind, number);
    let created = |answer: Answered| {
        answer.map(|(status, body)| {
            assert!(
                [200, 201].contains(&status),
                "{kind:?} {number}: {status} {body}"
            );
        })
    };
    let done = match kind {
        Kind::Append => client
            .post(&path, &[], &text)
            .map(|(status, _)| assert_eq!(status, 204)),
        Kind::Produce => {
            let seq = number.to_string();
            let headers = [&PRODUCER[..], &[("producer-seq", &*seq)]].concat();
            client.post(&path, &headers, &text).map(|(status, body)| {
                assert!([200, 204].contains(&status), "{number}: {status} {body}");
            })
        }
        Kind::Sequence => {
            let seq = format!("{number:08}");
            let body = format!("[{number},{number},{number}]");
            let answer = client.post(&path, &[("stream-seq", &*seq)], &body);
            // What was stored without an answer is not above itself.
            answer.map(|(status, body)| {
                assert!([204, 409].contains(&status), "{number}: {status} {body}");
            })
        }
        Kind::CreateClosed => created(client.put(&path, &[CLOSE], &text)),
        Kind::AppendAndClose => created(client.put(&path, &[], "")).and_then(|()| {
            let closed = client.post(&path, &[CLOSE], &text);
            closed.map(|(status, _)| assert_eq!(status, 204))
        }),
        Kind::ProduceAndClose => created(client.put(&path, &[], ""))
            .and_then(|()| produce_and_close(client, &path, &text))
            .map(|status| assert_eq!(status, 200)),
        Kind::Fork => created(client.put(&path, &FORK, &text)),
        Kind::Delete => created(client.put(&path, &[], &text)).and_then(|()| {
            let deleted = client.call("DELETE", &path, &[], "");
            deleted.map(|(status, _)| assert_eq!(status, 204))
        }),
    };
    done.is_some()
}

fn produce_and_close(client: &Client, path: &str, text: &str) -> Option<u16> {
    let headers = [&PRODUCER[..], &[("producer-seq", "0"), CLOSE]].concat();
    client.post(path, &headers, text).map(|(status, _)| status)
}

fn path(kind: Kind, number: usize) -> String {
    match kind {
        Kind::Append | Kind::Produce | Kind::Sequence => format!("{kind:?}"),
        _ => format!("{kind:?}/{number}"),
    }
}

/// Checks call `number` of a kind. Those before `last` were answered.
fn check(client: &Client, kind: Kind, number: usize, last: usize) {
    let is_answered = number < last;
    let path = path(kind, number);
    let (mut status, mut text) = client.get(&path);
    let is_closed = || client.is_closed(&path);
    let content = format!("{number};");
    if kind == Kind::ProduceAndClose && status == 200 {
        // The producer does not know, and sends it again.
        let is_stored = !text.is_empty();
        let again = produce_and_close(client, &path, &content);
        assert_eq!(again, Some(if is_stored { 204 } else { 200 }), "{path}");
        (status, text) = client.get(&path);
    }
    let what = format!("{kind:?} {number}, answered: {is_answered}: {status} {text}");
    match kind {
        Kind::Append | Kind::Produce | Kind::Sequence => unreachable!("these share a stream"),
        Kind::Delete if is_answered => assert_eq!(status, 404, "{what}"),
        _ if !is_answered && status == 404 => {}
        Kind::Delete => assert!(text == content, "{what}"),
        Kind::Fork => assert_eq!(text, format!("sou{content}"), "{what}"),
        Kind::AppendAndClose if !is_answered && text.is_empty() => assert!(!is_closed(), "{what}"),
        Kind::CreateClosed | Kind::AppendAndClose | Kind::ProduceAndClose => {
            assert_eq!(text, content, "{what}");
            assert!(is_closed(), "{what}");
            let (status, _) = client.post(&path, &[], "more").unwrap();
            assert_eq!(status, 409, "a closed stream is open again: {what}");
        }
    }
}

fn serve(data: &Path, address: &str) -> Server {
    let mut serve = command(data, address);
    serve.args(["--open", "--durable-streams", "/ds"]);
    Server::of(&mut serve)
}

#[test]
fn a_killed_server_has_lost_nothing_and_stored_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let address = free_address();
    let client = Client::new(&address);
    let server = serve(&data, &address);
    for path in ["source", "Append", "Produce", "Sequence"] {
        assert_eq!(client.put(path, &[], "").unwrap().0, 201);
    }
    assert_eq!(client.post("source", &[], "source").unwrap().0, 204);
    server.kill();
    // The number of the next call of each kind, and those of plain appends without an answer.
    let mut next: BTreeMap<Kind, usize> = KINDS.map(|kind| (kind, 0)).into();
    let mut unanswered = Vec::new();
    for _kill in 0..KILLS.planned() {
        let server = serve(&data, &address);
        let (answers, is_killed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let made = thread::scope(|scope| {
            let callers = KINDS.map(|kind| {
                let (from, answers, is_killed) = (next[&kind], &answers, &is_killed);
                let address = &address;
                scope.spawn(move || {
                    let client = Client::new(address);
                    let calls = (from..).take_while(|number| make(&client, kind, *number));
                    let made = calls
                        .inspect(|_| _ = answers.fetch_add(1, Ordering::SeqCst))
                        .count();
                    assert!(is_killed.load(Ordering::SeqCst), "{kind:?} ended by itself");
                    (kind, from + made)
                })
            });
            process::eventually("enough calls are answered", || {
                answers.load(Ordering::SeqCst) >= ANSWERS
            });
            is_killed.store(true, Ordering::SeqCst);
            server.kill();
            callers.map(|caller| caller.join().unwrap())
        });
        let server = serve(&data, &address);
        for (kind, last) in made {
            if let Kind::Append | Kind::Produce | Kind::Sequence = kind {
                // These send their last append again, since they do not know.
                let again = if kind == Kind::Append { last + 1 } else { last };
                unanswered.extend((kind == Kind::Append).then_some(last));
                next.insert(kind, again);
                continue;
            }
            for number in next[&kind]..=last {
                check(&client, kind, number, last);
            }
            next.insert(kind, last + 1);
        }
        check_appends(&client, &next, &unanswered);
        server.kill();
    }
    let server = serve(&data, &address);
    check_appends(&client, &next, &unanswered);
    for number in 0..next[&Kind::CreateClosed] {
        let path = path(Kind::CreateClosed, number);
        let (status, _) = client.get(&path);
        assert!(
            status == 404 || client.is_closed(&path),
            "{path} is open again"
        );
    }
    drop(server);
}

/// Checks the streams that many calls append to.
fn check_appends(client: &Client, next: &BTreeMap<Kind, usize>, unanswered: &[usize]) {
    let numbers = |path: &str| -> Vec<usize> {
        let (status, text) = client.get(path);
        assert_eq!(status, 200);
        let numbers = text
            .split_terminator(';')
            .map(|number| number.parse().unwrap());
        numbers.collect()
    };
    let appended = numbers("Append");
    let lost: Vec<usize> = (0..next[&Kind::Append])
        .filter(|number| !appended.contains(number) && !unanswered.contains(number))
        .collect();
    assert_eq!(lost, [0; 0], "these were answered");
    assert!(
        appended.is_sorted_by(|one, other| one < other),
        "{appended:?}"
    );
    // Of the others each is there once. The last may be there without an answer.
    let once = |kind: Kind, numbers: &[usize]| {
        let answered = next[&kind];
        assert!(numbers.iter().copied().eq(0..numbers.len()), "{numbers:?}");
        assert!(
            [answered, answered + 1].contains(&numbers.len()),
            "{kind:?} {answered} {numbers:?}"
        );
    };
    once(Kind::Produce, &numbers("Produce"));
    let (_, text) = client.get("Sequence");
    let messages: Vec<usize> = serde_json::from_str(&text).unwrap();
    let appends: Vec<&[usize]> = messages.chunks(3).collect();
    assert!(appends.iter().all(|append| append[..] == [append[0]; 3]));
    let firsts: Vec<usize> = appends.iter().map(|append| append[0]).collect();
    once(Kind::Sequence, &firsts);
}
