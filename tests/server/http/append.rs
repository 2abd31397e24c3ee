//! `POST /v1/sessions/{session_id}/events`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use futures_util::stream;
use serde_json::{Value, json};
use sessionlog::http::Config;
use sessionlog::{NewEvent, Options, SessionLog};

use crate::support::{KEY, Scene, WORKER_KEY, post, request, said};

/// A batch whose second event has a block without a type.
const ONE_BAD: &str = concat!(
    r#"{"events":[{"type":"user.message","content":[]},"#,
    r#"{"type":"user.message","content":[{}]}]}"#
);

/// The request of the reference page.
const EXAMPLE: &str = r#"{
    "events": [
      {
        "type": "user.message",
        "content": [
          { "type": "text", "text": "Summarize this ticket and draft a reply." },
          { "type": "file", "file_id": "file_456" }
        ],
        "metadata": {
          "ticket_id": "T-1042"
        }
      }
    ]
  }"#;

#[tokio::test]
async fn the_request_of_the_reference_page_gets_the_answer_shown_there() {
    let scene = Scene::new();
    let answer = scene.post("sess_123", EXAMPLE).await;
    let body = answer.ok();
    let event = &body["events"][0];
    let (id, created_at) = (
        event["id"].as_str().unwrap(),
        event["created_at"].as_str().unwrap(),
    );
    let message_id = id.replace("evt_", "msg_");
    let expected = json!({"events": [{
        "id": id,
        "session_id": "sess_123",
        "seq": 1,
        "message_id": message_id,
        "type": "user.message",
        "data": {
            "content": [
                {"type": "text", "text": "Summarize this ticket and draft a reply."},
                {"type": "file", "file_id": "file_456"}
            ],
            "metadata": {"ticket_id": "T-1042"},
            "message_id": message_id
        },
        "created_at": created_at
    }]});
    assert_eq!(body, expected);
    // `preserve_order` makes text compare the order too.
    assert_eq!(
        String::from_utf8(answer.body).unwrap(),
        expected.to_string()
    );
    assert!(
        created_at.parse::<jiff::Timestamp>().is_ok() && created_at.ends_with('Z'),
        "{created_at}"
    );
    assert_eq!(
        (&answer.headers["content-type"], &answer.headers["etag"]),
        (
            &"application/json".parse().unwrap(),
            &"\"1\"".parse().unwrap()
        )
    );
}

#[tokio::test]
async fn content_and_metadata_come_back_as_they_were_sent() {
    let content = concat!(
        r#"[{"zeta":[1.10,1e2,123456789012345678901234,-0.0],"type":"sketch","#,
        r#""nested":{"b":null,"a":[[],{}]}},"#,
        r#"{"type":"text","text":"a\u0041\n\"\\ \u2028 é"},"#,
        r#"{"type":"text","text":null,"cache_control":{"ttl":300}}]"#
    );
    let metadata = concat!(
        r#"{"null":null,"bool":true,"number":0.1,"string":"","array":[1,"two",[]],"#,
        r#""object":{"a":{"b":{}}},"":"empty","type":"x"}"#
    );
    // Spellings that JavaScript and Python write, and no Rust string or double holds.
    let odd_content =
        r#"[{"type":"text","text":"cut \ud83d"},{"type":"\udc00","\ud83d":[1e400,-1E+999]}]"#;
    let odd_metadata = r#"{"title":"\ude00\ud83d","limit":1e400}"#;
    for (content, metadata) in [
        (content, metadata),
        (odd_content, metadata),
        (content, odd_metadata),
    ] {
        check_sent(content, metadata).await;
    }
}

/// Sends a message, and reads it in each way there is.
async fn check_sent(content: &str, metadata: &str) {
    let scene = Scene::new();
    let sent = format!(
        r#"{{"events":[{{"metadata":{metadata},"content":{content},"type":"user.message"}}]}}"#
    );
    let answered = scene.post("s", sent.clone()).await;
    assert_eq!(answered.status, 200);
    let listed = scene.get("/v1/sessions/s/events").await;
    let mut stream = scene
        .open(request(Method::GET, "/v1/sessions/s/stream", Body::empty()))
        .await;
    let at = answered
        .body
        .windows(4)
        .position(|at| at == b"msg_")
        .unwrap();
    let id = std::str::from_utf8(&answered.body[at..at + 30]).unwrap();
    let message = scene.get(&format!("/v1/messages/{id}")).await;
    let messages = scene.get("/v1/sessions/s/messages").await;
    let texts = [
        answered.body,
        listed.body,
        stream.next().await.unwrap().data.into_bytes(),
        message.body,
        messages.body,
    ];
    for text in texts.map(|text| String::from_utf8(text).unwrap()) {
        assert!(text.contains(&format!("\"content\":{content}")), "{text}");
        assert!(text.contains(&format!("\"metadata\":{metadata}")), "{text}");
    }
}

#[tokio::test]
async fn what_is_no_batch_of_user_messages_is_refused_and_nothing_is_stored() {
    let scene = Scene::new();
    let cases = [
        "",
        "{",
        "[]",
        "null",
        "{}",
        r#"{"events":[]}"#,
        r#"{"events":null}"#,
        r#"{"events":{}}"#,
        r#"{"events":[null]}"#,
        r#"{"events":[{}]}"#,
        r#"{"events":[{"type":"user.message"}]}"#,
        r#"{"events":[{"type":"assistant.message_completed","content":[]}]}"#,
        r#"{"events":[{"type":1,"content":[]}]}"#,
        r#"{"events":[{"content":[]}]}"#,
        r#"{"events":[{"type":"user.message","content":null}]}"#,
        r#"{"events":[{"type":"user.message","content":"text"}]}"#,
        r#"{"events":[{"type":"user.message","content":["text"]}]}"#,
        r#"{"events":[{"type":"user.message","content":[{"text":"no type"}]}]}"#,
        r#"{"events":[{"type":"user.message","content":[{"type":7}]}]}"#,
        r#"{"events":[{"type":"user.message","content":[],"metadata":null}]}"#,
        r#"{"events":[{"type":"user.message","content":[],"metadata":[]}]}"#,
        r#"{"events":[{"type":"user.message","content":[],"metadata":{"n":NaN}}]}"#,
        r#"{"events":[{"type":"user.message","content":["\ud800"]}]}"#,
        r#"{"events":[{"type":"user.message","content":[],"metadata":[1e999]}]}"#,
        r#"{"events":[{"type":"user.message","content":[],"metdata":{}}]}"#,
        r#"{"events":[{"type":"user.message","content":[],"content":[]}]}"#,
        r#"{"events":[{"type":"user.message","content":[]}],"more":1}"#,
        r#"{"events":[{"type":"user.message","content":[]}]} x"#,
        ONE_BAD,
    ];
    for body in cases {
        let error = scene.post("s", body).await.refused(400, "invalid");
        assert_eq!(error["type"], "invalid_request", "{body}");
    }
    let deep = format!(
        r#"{{"events":[{{"type":"user.message","content":[],"metadata":{{"a":{}1{}}}}}]}}"#,
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    scene.post("s", deep).await.refused(400, "invalid");
    scene
        .post("s", vec![0xFF, 0xFE])
        .await
        .refused(400, "invalid");
    let message = scene.post("s", ONE_BAD).await;
    assert!(
        message.json()["error"]["message"]
            .as_str()
            .unwrap()
            .starts_with("events[1].content"),
        "{}",
        message.json()
    );
    scene
        .get("/v1/sessions/s/events")
        .await
        .refused(404, "unknown_session");
}

/// Near the limit of nesting. A request and its stored event nest to different depths.
#[tokio::test]
async fn what_is_taken_can_be_read_however_deep_it_is() {
    let scene = Scene::new();
    let (mut taken, mut refused) = (0, 0);
    for depth in 118..=130 {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let content = format!(r#"[{{"type":"x","n":{}}}]"#, nested(depth));
        let metadata = format!(r#"{{"a":{}}}"#, nested(depth));
        for (content, metadata) in [(content.as_str(), "{}"), ("[]", metadata.as_str())] {
            let body = format!(
                concat!(
                    r#"{{"events":[{{"type":"user.message","content":{content},"#,
                    r#""metadata":{metadata}}}]}}"#
                ),
                content = content,
                metadata = metadata
            );
            let answer = scene.post("s", body).await;
            if answer.status == 400 {
                answer.refused(400, "invalid");
                refused += 1;
                continue;
            }
            taken += 1;
            let id = answer
                .body
                .windows(4)
                .position(|at| at == b"msg_")
                .map(|at| &answer.body[at..at + 30])
                .unwrap();
            let message = scene
                .get(&format!("/v1/messages/{}", String::from_utf8_lossy(id)))
                .await;
            let shown = String::from_utf8(message.body).unwrap();
            assert!(
                shown.contains(&format!(r#""content":{content},"metadata":{metadata}"#)),
                "{depth}: {shown}"
            );
        }
    }
    assert!(
        taken > 10 && refused > 6,
        "{taken} taken, {refused} refused"
    );
}

#[tokio::test]
async fn a_body_may_begin_with_a_byte_order_mark() {
    let scene = Scene::new();
    scene.post("s", format!("\u{feff}{}", said("x"))).await.ok();
    scene
        .post("s", format!("\u{feff}\u{feff}{}", said("x")))
        .await
        .refused(400, "invalid");
    // A body that may be left out is as good as left out.
    for body in ["", "\u{feff}"] {
        let mut fork = request(Method::POST, "/v1/sessions/s/fork", body);
        let bearer = format!("Bearer {WORKER_KEY}").parse().unwrap();
        fork.headers_mut().insert("authorization", bearer);
        let made = scene.call(fork).await;
        assert_eq!(made.status, 201, "{}", made.json());
    }
}

#[tokio::test]
async fn several_events_are_one_batch_in_order() {
    let scene = Scene::new();
    let events: Vec<Value> = (0..5)
        .map(|n| {
            json!({
                "type": "user.message",
                "content": [{"type": "text", "text": n.to_string()}]
            })
        })
        .collect();
    let body = scene
        .post("s", json!({"events": events}).to_string())
        .await
        .ok();
    let texts: Vec<_> = body["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["data"]["content"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["0", "1", "2", "3", "4"]);
    assert_eq!(scene.log.stats().batches, 1);
    let thousand = json!({"events": vec![&events[0]; 1_001]}).to_string();
    let error = scene.post("s", thousand).await.refused(413, "too_large");
    assert_eq!(
        (&error["limit"], &error["actual"]),
        (&json!(1_000), &json!(1_001))
    );
}

#[tokio::test]
async fn only_json_is_taken() {
    let scene = Scene::new();
    for taken in [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON ;charset=UTF-8",
    ] {
        assert_eq!(
            scene
                .call(post("s", said("x")).header("content-type", taken).build())
                .await
                .status,
            200,
            "{taken}"
        );
    }
    for refused in [
        "text/plain",
        "application/jsonp",
        "application/x-www-form-urlencoded",
        "",
        "application",
        "json",
    ] {
        let answer = scene
            .call(post("s", said("x")).header("content-type", refused).build())
            .await;
        assert_eq!(
            answer.refused(415, "unsupported_media_type")["type"],
            "unsupported_media_type"
        );
    }
    scene
        .call(request(Method::POST, "/v1/sessions/s/events", said("x")))
        .await
        .refused(415, "unsupported_media_type");
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_before_it_is_read_whole() {
    let scene = Scene::with(
        Config::with_api_key(KEY).body_bytes_max(1_000),
        Options::new(),
    );
    let announced = post("s", Body::empty())
        .header("content-length", "1001")
        .build();
    let error = scene.call(announced).await.refused(413, "too_large");
    assert_eq!(
        (&error["limit"], &error["actual"]),
        (&json!(1_000), &json!(1_001))
    );
    // Without end, and without a length.
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>("x".repeat(400)));
    let error = scene
        .call(post("s", Body::from_stream(endless)).build())
        .await
        .refused(413, "too_large");
    assert_eq!(error["limit"], 1_000);
    assert_eq!(scene.post("s", said(&"x".repeat(900))).await.status, 200);
    let scene = Scene::with(
        Config::with_api_key(KEY),
        Options::new().event_bytes_max(100),
    );
    let error = scene
        .post("s", said(&"x".repeat(100)))
        .await
        .refused(413, "too_large");
    assert_eq!(error["limit"], 100);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let scene = Scene::with(
        Config::with_api_key(KEY).body_wait(Duration::from_millis(50)),
        Options::new(),
    );
    let never = stream::pending::<Result<Vec<u8>, std::io::Error>>();
    scene
        .call(post("s", Body::from_stream(never)).build())
        .await
        .refused(408, "body_timeout");
}

#[tokio::test]
async fn a_session_is_named_by_what_the_path_says_decoded_once() {
    let scene = Scene::new();
    for (path, name) in [
        ("a%2Fb", "a/b"),
        ("%2525", "%25"),
        ("caf%C3%A9", "café"),
        ("a+b", "a+b"),
        ("...", "..."),
        ("%252e", "%2e"),
        ("%20", " "),
    ] {
        let body = scene.post(path, said("x")).await.ok();
        assert_eq!(body["events"][0]["session_id"], name, "{path}");
        assert_eq!(
            scene.get(&format!("/v1/sessions/{path}/events")).await.ok()["events"][0]["session_id"],
            name
        );
    }
    for bad in ["%00", "%0A", "%FF", &"x".repeat(257)] {
        assert_eq!(scene.post(bad, said("x")).await.status, 400, "{bad}");
    }
}

/// Browsers, `fetch` and curl remove these from a path before they send it, also
/// percent-encoded.
#[tokio::test]
async fn a_session_that_no_client_can_name_in_a_path_is_refused() {
    let scene = Scene::new();
    for dots in [".", "..", "%2e", "%2E%2e", ".%2e"] {
        scene
            .post(dots, said("x"))
            .await
            .refused(400, "dot_segment");
        for call in ["events", "stream", "messages"] {
            scene
                .get(&format!("/v1/sessions/{dots}/{call}"))
                .await
                .refused(400, "dot_segment");
        }
    }
    assert_eq!(scene.log.stats().events, 0);
}

/// A proxy that compresses makes a tag weak, and a client may have several.
#[tokio::test]
async fn a_tag_that_came_through_a_proxy_says_where_the_session_must_be() {
    let scene = Scene::new();
    let matching = |tag: &str| scene.call(post("s", said("x")).header("if-match", tag).build());
    assert_eq!(matching("W/\"0\"").await.headers["etag"], "\"1\"");
    assert_eq!(matching("\"7\", \"1\"").await.headers["etag"], "\"2\"");
    assert_eq!(
        matching("W/\"2\",W/\"1\" , 9").await.headers["etag"],
        "\"3\""
    );
    assert_eq!(
        matching("\"1\", \"2\"")
            .await
            .refused(412, "expected_mismatch")["actual_seq"],
        3
    );
    let mut several = post("s", said("x")).header("if-match", "\"1\"").build();
    several
        .headers_mut()
        .append("if-match", "\"3\"".parse().unwrap());
    assert_eq!(scene.call(several).await.headers["etag"], "\"4\"");
    let keyed = |tag: &str| {
        scene.call(
            post("s", said("k"))
                .header("if-match", tag)
                .header("idempotency-key", "k")
                .build(),
        )
    };
    let first = keyed("\"3\", \"4\"").await;
    assert_eq!(first.headers["etag"], "\"5\"");
    assert_eq!(
        keyed("\"3\", \"4\"").await.body,
        first.body,
        "a retry is looked at first"
    );
}

/// Events have their seq, so that a client knows it also where a proxy removes the tag.
#[tokio::test]
async fn events_carry_their_seq_everywhere() {
    let scene = Scene::new();
    let posted = scene.post("s", said("x")).await.ok();
    scene.note("s", [NewEvent::new("note", "1")]);
    assert_eq!(posted["events"][0]["seq"], 1);
    let listed = scene.get("/v1/sessions/s/events").await.ok();
    assert_eq!(
        (&listed["events"][0]["seq"], &listed["events"][1]["seq"]),
        (&json!(1), &json!(2))
    );
    let mut frames = scene
        .open(request(Method::GET, "/v1/sessions/s/stream", Body::empty()))
        .await;
    for seq in 1..=2 {
        let frame = frames.next().await.unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&frame.data).unwrap()["seq"],
            seq
        );
    }
}

/// The status of a compressed body decides, and not its first byte.
#[tokio::test]
async fn a_compressed_body_is_an_unsupported_media_type() {
    let scene = Scene::new();
    for coding in ["gzip", "br", "deflate, gzip", "x"] {
        let request = post("s", "\u{1f}\u{8b}")
            .header("content-encoding", coding)
            .build();
        scene
            .call(request)
            .await
            .refused(415, "unsupported_encoding");
    }
    scene
        .call(
            post("s", said("x"))
                .header("content-encoding", "identity")
                .build(),
        )
        .await
        .ok();
}

/// Times of one length sort as text.
#[tokio::test]
async fn times_always_have_three_decimals() {
    use std::time::{Duration, UNIX_EPOCH};

    let millis = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let now = std::sync::Arc::clone(&millis);
    let clock = move || {
        UNIX_EPOCH
            + Duration::from_millis(
                1_774_982_400_000 + now.load(std::sync::atomic::Ordering::SeqCst),
            )
    };
    let scene = Scene::with(Config::with_api_key(KEY), Options::new().clock(clock));
    for ms in [0, 500, 580, 575, 1_000] {
        millis.store(ms, std::sync::atomic::Ordering::SeqCst);
        let event = scene.post("s", said("x")).await.ok()["events"][0].clone();
        let message = scene
            .get(&format!(
                "/v1/messages/{}",
                event["message_id"].as_str().unwrap()
            ))
            .await
            .ok();
        let session = scene.get("/v1/sessions").await.ok()["sessions"][0].clone();
        for at in [
            &event["created_at"],
            &message["created_at"],
            &session["last_event_at"],
        ] {
            let decimals = at.as_str().unwrap().split_once('.').unwrap().1;
            assert!(decimals.len() == 4 && decimals.ends_with('Z'), "{at}");
        }
    }
}

#[tokio::test]
async fn a_retry_gets_the_first_answer_and_says_so() {
    let scene = Scene::new();
    let keyed = |body: String| post("s", body).header("idempotency-key", "k1").build();
    let first = scene.call(keyed(said("once"))).await;
    assert!(first.ok()["events"].is_array() && !first.headers.contains_key("idempotent-replayed"));
    scene.post("s", said("between")).await.ok();
    let spaced =
        serde_json::to_string_pretty(&serde_json::from_str::<Value>(&said("once")).unwrap())
            .unwrap();
    for body in [said("once"), spaced] {
        let again = scene.call(keyed(body)).await;
        assert_eq!((again.status, &again.body), (first.status, &first.body));
        assert_eq!(again.headers["idempotent-replayed"], "true");
        assert!(
            !again.headers.contains_key("etag"),
            "the session went on since"
        );
    }
    let conflict = scene.call(keyed(said("twice"))).await;
    assert_eq!(
        conflict.refused(409, "idempotency_conflict")["type"],
        "conflict"
    );
    // In another session it is another key.
    assert!(
        !scene
            .call(
                post("t", said("twice"))
                    .header("idempotency-key", "k1")
                    .build()
            )
            .await
            .headers
            .contains_key("idempotent-replayed")
    );
    assert_eq!(
        scene.get("/v1/sessions/s/events").await.ok()["events"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    for bad in ["", &"k".repeat(257)] {
        let answer = scene
            .call(post("s", said("x")).header("idempotency-key", bad).build())
            .await;
        assert_eq!(answer.status, 400, "{}", answer.json());
    }
    let mut two = keyed(said("x"));
    two.headers_mut()
        .append("idempotency-key", "k2".parse().unwrap());
    scene.call(two).await.refused(400, "invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_sixteen_duplicates_at_once_one_lands_and_all_get_its_answer() {
    let scene = Arc::new(Scene::new());
    for round in 0..10 {
        let calls: Vec<_> = (0..16)
            .map(|_| {
                let (scene, key) = (Arc::clone(&scene), format!("key {round}"));
                tokio::spawn(async move {
                    scene
                        .call(
                            post("s", said("once"))
                                .header("idempotency-key", &key)
                                .build(),
                        )
                        .await
                })
            })
            .collect();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.unwrap());
        }
        let replays = answers
            .iter()
            .filter(|answer| answer.headers.contains_key("idempotent-replayed"))
            .count();
        assert_eq!(replays, 15);
        assert!(
            answers
                .iter()
                .all(|answer| answer.status == 200 && answer.body == answers[0].body)
        );
    }
    assert_eq!(
        scene.get("/v1/sessions/s/events").await.ok()["events"]
            .as_array()
            .unwrap()
            .len(),
        10
    );
}

#[tokio::test]
async fn a_retry_after_a_restart_gets_the_first_answer() {
    let folder = tempfile::tempdir().unwrap();
    let mut bodies = Vec::new();
    for _start in 0..3 {
        let log = SessionLog::open(folder.path()).unwrap();
        let router = sessionlog::http::router(log.clone(), Config::with_api_key(KEY));
        let keyed = post("s", said("once"))
            .header("idempotency-key", "k1")
            .build();
        let response = tower::ServiceExt::oneshot(router, keyed).await.unwrap();
        assert_eq!(
            response.headers().contains_key("idempotent-replayed"),
            !bodies.is_empty()
        );
        bodies.push(
            http_body_util::BodyExt::collect(response.into_body())
                .await
                .unwrap()
                .to_bytes(),
        );
        log.close().unwrap();
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]));
}

#[tokio::test]
async fn an_append_may_say_where_the_session_must_be() {
    let scene = Scene::new();
    let matching = |tag: &str| scene.call(post("s", said("x")).header("if-match", tag).build());
    let error = matching("\"3\"").await.refused(412, "expected_mismatch");
    assert_eq!(
        (&error["actual_seq"], &error["type"]),
        (&json!(0), &json!("precondition_failed"))
    );
    matching("*").await.refused(412, "expected_mismatch");
    assert_eq!(matching("\"0\"").await.headers["etag"], "\"1\"");
    assert_eq!(matching("\"1\"").await.headers["etag"], "\"2\"");
    assert_eq!(
        matching("2").await.headers["etag"],
        "\"3\"",
        "without quotes it says the same"
    );
    assert_eq!(matching("*").await.headers["etag"], "\"4\"");
    let late = matching("\"1\"").await;
    assert_eq!(
        (
            late.refused(412, "expected_mismatch")["actual_seq"].clone(),
            &late.headers["etag"]
        ),
        (json!(4), &"\"4\"".parse().unwrap())
    );
    assert_eq!(
        scene.get("/v1/sessions/s/events").await.headers["etag"],
        "\"4\""
    );
    for bad in [
        "\"3",
        "3\"",
        "\"\"",
        "\"-1\"",
        "\"+3\"",
        "w/\"3\"",
        "W/",
        "\"1\",",
        "\"1\", *",
        "*, \"1\"",
        "\"99999999999999999999\"",
    ] {
        matching(bad).await.refused(400, "invalid");
    }
}

#[tokio::test]
async fn a_log_that_is_closed_is_said_to_be_unavailable() {
    let scene = Scene::new();
    scene.post("s", said("x")).await.ok();
    assert_eq!(scene.get("/healthz").await.ok(), json!({"status": "ok"}));
    scene.log.close().unwrap();
    for answer in [
        scene.post("s", said("x")).await,
        scene.get("/v1/sessions/s/events").await,
        scene.get("/healthz").await,
    ] {
        assert_eq!(answer.refused(503, "closed")["type"], "unavailable");
    }
}
