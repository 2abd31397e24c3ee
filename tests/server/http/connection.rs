//! A connection to a server that mixes plain appends with other requests, breaks off, or lasts
//! until the server stops.

use std::net::Shutdown;
use std::time::Duration;

use sessionlog::Options;
use sessionlog::http::Config;
use tokio::runtime::{Builder, Runtime};

use crate::here::{GET, Here, LAST, Sent, Told};
use crate::process::eventually;
use crate::support::{KEY, said};

fn serve() -> Here {
    Here::serve(Config::with_api_key(KEY))
}

/// A server on one thread, which no append may block.
fn serve_on_one_thread() -> Here {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    Here::on(runtime, Config::with_api_key(KEY), Options::new())
}

fn append(text: &str) -> Vec<u8> {
    Sent::append("s").body(said(text)).bytes()
}

/// What was answered: the status, and the text of an event.
fn text(told: &Told) -> String {
    let body: serde_json::Value = serde_json::from_str(&told.body).unwrap();
    let event = &body["events"][0]["data"]["content"][0]["text"];
    format!("{} {}", told.status, event.as_str().unwrap_or_default())
}

fn by_loop(told: &[Told]) -> Vec<bool> {
    told.iter().map(Told::is_by_loop).collect()
}

fn texts(told: &[Told]) -> Vec<String> {
    told.iter().map(text).collect()
}

#[test]
fn requests_sent_at_once_are_answered_in_order_whatever_form_they_have() {
    let list = format!(
        "GET /v1/sessions/s/events?limit=1&order=desc HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {KEY}\r\n\r\n"
    );
    for server in [serve(), serve_on_one_thread()] {
        let (one, two) = (append("one"), append("two"));
        let told = server.told([&*one, &two].concat());
        assert_eq!(texts(&told), ["200 one", "200 two", "200 "]);
        assert_eq!(by_loop(&told), [true, true, false]);
        let told = server.told([&*one, list.as_bytes(), &two, list.as_bytes()].concat());
        assert_eq!(
            texts(&told),
            ["200 one", "200 one", "200 two", "200 two", "200 "]
        );
        assert_eq!(by_loop(&told), [true, false, false, false, false]);
        let told = server.told([list.as_bytes(), &one].concat());
        assert_eq!(texts(&told), ["200 two", "200 one", "200 "]);
        let many: Vec<_> = (0..200).map(|n| n.to_string()).collect();
        let told = server.told(many.iter().flat_map(|n| append(n)).collect::<Vec<_>>());
        let expected: Vec<_> = many.iter().map(|n| format!("200 {n}")).collect();
        assert_eq!(texts(&told)[..200], expected);
    }
}

#[test]
fn a_request_in_another_form_between_appends_is_answered_as_always() {
    let server = serve();
    let body = said("other");
    let (half, rest) = body.split_at(10);
    let chunks = format!("a\r\n{half}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len());
    let sent = |text: &str| Sent::append("s").body(text);
    let large = said(&"x".repeat(100_000));
    for (other, status) in [
        (sent(&chunks).add("Transfer-Encoding", "chunked"), 200),
        (sent(&body).add("Connection", "close"), 200),
        (sent(&body).line("POST /v1/sessions/s/events HTTP/1.0"), 200),
        (sent(&large), 200),
        (
            (0..90).fold(sent(&body), |sent, n| sent.add(&format!("X-{n}"), "x")),
            200,
        ),
        (sent(&body).add("X", &"x".repeat(20_000)), 200),
        (sent(&body).add("X", &"x".repeat(40_000)), 431),
    ] {
        let told = server.told([append("before"), other.bytes()].concat());
        assert_eq!(text(&told[0]), "200 before");
        assert_eq!(told[1].status, status, "{}", told[1].body);
        assert_eq!(by_loop(&told)[..2], [true, false]);
    }
    let mut talk = server.talk();
    let waits = sent(&body).add("Expect", "100-continue");
    talk.send(append("before"));
    assert_eq!(text(&talk.next().unwrap()), "200 before");
    talk.send(waits.head());
    assert_eq!(talk.next().unwrap().status, 100);
    talk.send(&body);
    assert_eq!(text(&talk.next().unwrap()), "200 other");
    let kept = append("kept");
    talk.send([&*kept, LAST.as_bytes()].concat());
    assert_eq!(texts(&talk.rest()), ["200 kept", "200 "]);
}

#[test]
fn a_refusal_leaves_the_connection_to_the_next_request() {
    let server = serve();
    let sent = [
        Sent::append("s").key("x"),
        Sent::append("..").body(said("x")),
        Sent::append("s").body("{"),
        Sent::append("s").body(""),
        Sent::append("s").add("If-Match", "\"7\""),
    ];
    let sent = sent.iter().flat_map(|sent| [sent.bytes(), append("good")]);
    let told = server.told(sent.collect::<Vec<_>>().concat());
    let statuses: Vec<_> = told.iter().map(|told| told.status).collect();
    assert_eq!(
        statuses,
        [401, 200, 400, 200, 400, 200, 400, 200, 412, 200, 200]
    );
    assert!(told[..10].iter().skip(1).step_by(2).all(Told::is_by_loop));
    assert_eq!(server.log.stats().events, 5);
}

#[test]
fn a_client_that_sends_nothing_more_gets_the_answers_to_whole_requests() {
    let server = serve();
    for (rest, whole) in [(0, 2), (1, 1), (60, 1), (180, 1)] {
        let (one, two) = (append("one"), append("two"));
        let sent = [&*one, &two[..two.len() - rest]].concat();
        let before = server.log.stats().events;
        let mut socket = server.connect();
        std::io::Write::write_all(&mut socket, &sent).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let told = crate::here::Talk::over(socket).rest();
        let answered = told.iter().filter(|told| told.status == 200).count();
        assert_eq!(answered, whole, "without {rest}: {told:?}");
        assert_eq!(server.log.stats().events, before + whole as u64);
    }
}

/// The router decides on a body that does not come: only it knows whether the key is right.
#[test]
fn a_body_that_does_not_come_is_refused_and_a_head_is_not_waited_for() {
    let wait = Duration::from_millis(500);
    let server = Here::serve(Config::with_api_key(KEY).head_wait(wait).body_wait(wait));
    let whole = append("whole");
    for (key, status) in [(KEY, 408), ("x", 401)] {
        let slow = Sent::append("s").key(key).body(said("cut")).bytes();
        let mut talk = server.talk();
        talk.send([&*whole, &slow[..slow.len() - 1]].concat());
        let told = talk.rest();
        let statuses: Vec<_> = told.iter().map(|told| told.status).collect();
        assert_eq!(statuses, [200, status]);
    }
    for head in [&whole[..1], &whole[..100], b""] {
        let mut talk = server.talk();
        talk.send([&*whole, head].concat());
        assert_eq!(texts(&talk.rest()), ["200 whole"]);
    }
    assert_eq!(server.log.stats().events, 5);
    let metrics = server.told("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let route = "method=\"POST\",route=\"/v1/sessions/{session_id}/events\"";
    for (status, count) in [(200, 5), (401, 1), (408, 1)] {
        let line = format!("sessionlog_http_requests_total{{{route},status=\"{status}\"}} {count}");
        assert!(
            metrics[0].body.contains(&line),
            "{line} in {}",
            metrics[0].body
        );
    }
}

#[test]
fn a_client_may_send_its_body_after_its_head() {
    for server in [serve(), serve_on_one_thread()] {
        let mut talk = server.talk();
        for n in 0..20 {
            let sent = Sent::append("s").body(said(&n.to_string()));
            talk.send(sent.head());
            talk.send(said(&n.to_string()));
            let told = talk.next().unwrap();
            assert_eq!((text(&told), told.is_by_loop()), (format!("200 {n}"), true));
        }
    }
}

#[test]
fn a_server_that_stops_ends_idle_connections_of_either_kind() {
    for mut server in [serve(), serve_on_one_thread()] {
        let (mut fresh, mut direct, mut routed) = (server.talk(), server.talk(), server.talk());
        direct.send(append("x"));
        assert_eq!(text(&direct.next().unwrap()), "200 x");
        routed.send(GET);
        assert_eq!(routed.next().unwrap().status, 200);
        // The fresh one has been accepted before, as those behind it are answered.
        server.stop();
        for talk in [&mut fresh, &mut direct, &mut routed] {
            assert_eq!(talk.next(), None);
        }
    }
}

/// What has come of a request when the server stops is not forgotten.
#[test]
fn a_request_whose_rest_comes_while_the_server_stops_is_told_so() {
    for unsent in [1, 100, 200] {
        for mut server in [serve(), serve_on_one_thread()] {
            let mut talk = server.talk();
            let request = append("late");
            let (begun, rest) = request.split_at(request.len() - unsent);
            // The first answer shows that the start of the second request was read with it.
            talk.send([&*append("first"), begun].concat());
            assert_eq!(text(&talk.next().unwrap()), "200 first");
            server.begin_to_stop();
            eventually("it takes no connection", || server.try_connect().is_err());
            talk.send(rest);
            let told = talk.next().expect("an answer");
            assert_eq!(told.status, 503, "{told:?}");
            assert_eq!(talk.next(), None);
            server.stop();
            assert_eq!(server.log.stats().events, 1);
        }
    }
}

#[test]
fn a_body_that_takes_longer_than_the_server_waits_is_cut_off() {
    let config = Config::with_api_key(KEY).drain_wait(Duration::from_millis(50));
    let mut server = Here::on(Runtime::new().unwrap(), config, Options::new());
    let mut talk = server.talk();
    let request = append("late");
    talk.send([&*append("first"), &request[..request.len() - 1]].concat());
    assert_eq!(text(&talk.next().unwrap()), "200 first");
    server.stop();
    let told = talk.rest();
    assert!(told.iter().all(|told| told.status == 503), "{told:?}");
    assert_eq!(server.log.stats().events, 1);
}
