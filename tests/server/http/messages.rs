//! `GET /v1/messages/{message_id}` and `GET /v1/sessions/{session_id}/messages`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sessionlog::http::Config;
use sessionlog::{MessageId, NewEvent, Options};

use crate::support::{KEY, Scene, said};

fn status(message: MessageId, status: &str) -> NewEvent {
    NewEvent::new(
        "message.status_changed",
        json!({"status": status}).to_string(),
    )
    .in_turn(message)
}

fn answer(message: MessageId) -> [NewEvent; 2] {
    let said = NewEvent::new("assistant.message_completed", r#"{"text":"Done."}"#).in_turn(message);
    [said, status(message, "completed")]
}

fn said_data(text: &str) -> String {
    json!({"content": [{"type": "text", "text": text}]}).to_string()
}

async fn asked(scene: &Scene) -> MessageId {
    let body = scene.post("s", said("Please.")).await.ok();
    body["events"][0]["message_id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_message_shows_how_far_its_turn_is() {
    let scene = Scene::new();
    let id = asked(&scene).await;
    let path = format!("/v1/messages/{id}");
    let message = scene.get(&path).await.ok();
    let keys: Vec<_> = message
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let named = [
        "id",
        "session_id",
        "sequence_number",
        "status",
        "content",
        "metadata",
        "attempt",
        "output",
        "output_omitted",
        "error",
        "created_at",
        "completed_at",
    ];
    assert_eq!(keys, named);
    assert_eq!(
        (
            &message["status"],
            &message["content"][0]["text"],
            &message["metadata"]
        ),
        (&json!("queued"), &json!("Please."), &json!({}))
    );
    assert_eq!(
        (
            &message["sequence_number"],
            &message["attempt"],
            &message["completed_at"]
        ),
        (&json!(1), &json!(1), &json!(null))
    );
    scene.note("s", answer(id));
    let message = scene.get(&path).await.ok();
    assert_eq!(
        (&message["status"], &message["output"]),
        (&json!("completed"), &json!([{"text": "Done."}]))
    );
    assert!(message["completed_at"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn who_waits_hears_of_the_end_when_it_comes() {
    let scene = Scene::new();
    for end in ["completed", "failed", "cancelled"] {
        let id = asked(&scene).await;
        let append = async {
            scene.until_streams(1).await;
            scene.note("other", [status(id, end)]);
            scene.note("s", [status(id, "running")]);
            scene.note("s", [status(id, end)]);
        };
        let path = format!("/v1/messages/{id}?wait=60");
        let (message, ()) = tokio::join!(scene.get(&path), append);
        assert_eq!(message.ok()["status"], end);
        assert_eq!(scene.get(&path).await.ok()["status"], end);
        scene.until_streams(0).await;
    }
    assert_eq!(scene.log.stats().streams, 0);
}

#[tokio::test]
async fn who_waits_in_vain_gets_what_there_is() {
    let scene = Scene::new();
    let id = asked(&scene).await;
    let began = Instant::now();
    assert_eq!(
        scene.get(&format!("/v1/messages/{id}?wait=1")).await.ok()["status"],
        "queued"
    );
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(scene.log.stats().streams, 0);
}

#[tokio::test]
async fn a_server_that_stops_lets_nobody_wait() {
    let config = Config::with_api_key(KEY);
    let stopper = config.stopper();
    let scene = Scene::with(config, Options::new());
    let id = asked(&scene).await;
    let stop = async {
        scene.until_streams(1).await;
        stopper.stop();
    };
    let path = format!("/v1/messages/{id}?wait=60");
    let (message, ()) = tokio::join!(scene.get(&path), stop);
    assert_eq!(message.ok()["status"], "queued");
    scene.get(&path).await.refused(503, "closed");
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let scene = Scene::new();
    let note = scene.note("s", [NewEvent::new("note", "{}")])[0].id;
    let message = MessageId::from(note);
    scene
        .get(&format!("/v1/messages/{message}"))
        .await
        .refused(404, "unknown_message");
    scene
        .get("/v1/messages/msg_01JQ3W8K5T0000000000000001")
        .await
        .refused(404, "unknown_message");
    let id = asked(&scene).await;
    for bad in [
        "/v1/messages/x",
        &format!("/v1/messages/{note}"),
        &format!("/v1/messages/{id}?wait=61"),
        &format!("/v1/messages/{id}?wait=-1"),
    ] {
        assert_eq!(scene.get(bad).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn the_messages_of_a_session_are_listed_in_order() {
    let scene = Scene::new();
    let mut asked_for = Vec::new();
    for _ in 0..5 {
        let id = asked(&scene).await;
        scene.note("s", answer(id));
        asked_for.push(id.to_string());
    }
    let first = scene.get("/v1/sessions/s/messages?limit=3").await.ok();
    let ids = |page: &serde_json::Value| -> Vec<String> {
        page["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        (ids(&first), &first["has_more"], &first["last_id"]),
        (asked_for[..3].to_vec(), &json!(true), &json!(asked_for[2]))
    );
    let rest = scene
        .get(&format!("/v1/sessions/s/messages?after={}", asked_for[2]))
        .await
        .ok();
    assert_eq!(
        (ids(&rest), &rest["has_more"]),
        (asked_for[3..].to_vec(), &json!(false))
    );
    let newest = scene
        .get("/v1/sessions/s/messages?order=desc&limit=1")
        .await
        .ok();
    assert_eq!(ids(&newest), asked_for[4..]);
    scene
        .get("/v1/sessions/nobody/messages")
        .await
        .refused(404, "unknown_session");
}

#[tokio::test]
async fn the_open_turns_of_a_session_are_found_page_by_page() {
    let config = Config::with_api_key(KEY).page_bytes_max(20_000);
    let scene = Scene::with(config, Options::new());
    let mut open = Vec::new();
    let ends = ["completed", "failed", "cancelled", "running"];
    for n in 0..60 {
        let asked = NewEvent::new("user.message", said_data(&"x".repeat(1_000)));
        let id = MessageId::from(scene.note("s", [asked])[0].id);
        let name = if n == 41 { "queued" } else { ends[n % 3] };
        scene.note("s", [status(id, if n == 7 { ends[3] } else { name })]);
        if n == 7 || n == 41 {
            open.push(scene.get(&format!("/v1/messages/{id}")).await.ok());
        }
    }
    for (order, on) in [("asc", "after"), ("desc", "before")] {
        for limit in [1, 1000] {
            let (mut walked, mut empty, mut place) = (Vec::new(), 0, String::new());
            let path = format!("/v1/sessions/s/messages?status=open&limit={limit}&order={order}");
            for round in 0.. {
                assert!(round < 100, "the pages do not end");
                let page = scene.get(&format!("{path}{place}")).await.ok();
                let messages = page["messages"].as_array().unwrap();
                empty += usize::from(messages.is_empty());
                walked.extend(messages.iter().cloned());
                if page["has_more"] == false {
                    break;
                }
                place = format!("&{on}={}", page["last_id"].as_str().unwrap());
            }
            if order == "desc" {
                walked.reverse();
            }
            assert_eq!(walked, open, "{order} by {limit}");
            assert!(empty > 0, "no search came to its bound");
        }
    }
    for bad in ["", "closed", "Open", "cancelled", "open&status=open"] {
        scene
            .get(&format!("/v1/sessions/s/messages?status={bad}"))
            .await
            .refused(400, "invalid");
    }
    // A page of events has no such filter, and ignores what it does not know.
    assert_eq!(
        scene.get("/v1/sessions/s/events?status=x").await.status,
        200
    );
}

/// The data of a turn's own events is shown in any spelling. The message that opened the turn comes
/// back as it was sent.
#[tokio::test]
async fn a_message_is_shown_whatever_json_its_turn_was_told_in() {
    let scene = Scene::new();
    let deep = format!("{}{}", "[".repeat(900), "]".repeat(900));
    let content = format!(r#"[{{"type":"text","text":"cut \ud83d","n":{deep}}}]"#);
    let asked = NewEvent::new(
        "user.message",
        format!(r#"{{"content":{content},"metadata":{{"n":1e400}}}}"#),
    );
    let id = MessageId::from(scene.note("s", [asked])[0].id);
    let told = [
        (
            "assistant.message_completed",
            r#"{"text":"cut \ud83d","cost":NaN}"#.to_owned(),
        ),
        (
            "message.status_changed",
            format!(
                r#"{{"status":"failed","attempt":1.0,"error":{{"limit":1e999,"trace":{deep}}}}}"#
            ),
        ),
    ];
    scene.note(
        "s",
        told.map(|(event_type, data)| NewEvent::new(event_type, data).in_turn(id)),
    );
    let answer = scene.get(&format!("/v1/messages/{id}")).await;
    let text = String::from_utf8(answer.body).unwrap();
    assert!(
        text.contains(&format!(r#""content":{content},"metadata":{{"n":1e400}}"#)),
        "{text}"
    );
    assert!(text.contains(r#""status":"failed""#), "{text}");
    assert!(
        text.contains(r#""output":[{"text":"cut \\ud83d","cost":"NaN"}]"#),
        "{text}"
    );
    assert!(
        text.contains(r#""error":{"limit":"1e999","trace":"#),
        "{text}"
    );
    // The parts of an event that are not JSON are shown too, next to the given bytes.
    let listed = String::from_utf8(scene.get("/v1/sessions/s/events").await.body).unwrap();
    assert!(
        listed.contains(&format!(
            r#""metadata":{{"n":1e400}},"message_id":"{id}"}}"#
        )),
        "{listed}"
    );
    assert!(
        listed.contains(r#""data":{"text":"cut \\ud83d","cost":"NaN"},"data_base64":"eyJ0"#),
        "{listed}"
    );
}

#[tokio::test]
async fn who_waits_hears_of_an_end_that_a_strict_reader_does_not() {
    let scene = Scene::new();
    let ends = [
        r#"{"status":"failed","error":"\ud83d"}"#,
        r#"{"status":"completed","attempt":"1","cost":-nan}"#,
        r#"{"status":"completed","attempt":0}"#,
    ];
    for end in ends {
        let id = asked(&scene).await;
        let append = async {
            scene.until_streams(1).await;
            scene.note(
                "s",
                [NewEvent::new("message.status_changed", end).in_turn(id)],
            );
        };
        let path = format!("/v1/messages/{id}?wait=10");
        let began = Instant::now();
        let (message, ()) = tokio::join!(scene.get(&path), append);
        assert!(
            message.ok()["completed_at"].is_string() && began.elapsed() < Duration::from_secs(10),
            "{end}"
        );
        scene.until_streams(0).await;
    }
}

/// Pages in both orders, compared with each turn by itself.
#[tokio::test]
async fn pages_that_may_hold_little_lose_no_turn_and_show_none_twice() {
    let scene = Scene::with(
        Config::with_api_key(KEY).page_bytes_max(40_000),
        Options::new(),
    );
    let mut each = Vec::new();
    let asked: Vec<_> = (0..8)
        .map(|n| NewEvent::new("user.message", said_data(&n.to_string())))
        .collect();
    let turns: Vec<MessageId> = scene
        .note("s", asked)
        .iter()
        .map(|event| event.id.into())
        .collect();
    for n in 0..10 {
        for (at, turn) in turns.iter().enumerate() {
            let text = json!({"n": n, "text": "x".repeat(1_000 * (at % 3) + 3_000 * (at / 7))});
            scene.note(
                "s",
                [NewEvent::new("assistant.message_completed", text.to_string()).in_turn(*turn)],
            );
        }
    }
    for turn in &turns {
        each.push(scene.get(&format!("/v1/messages/{turn}")).await.ok());
    }
    let omitted = |message: &Value| message["output_omitted"].as_u64().unwrap();
    assert!(omitted(&each[7]) > 0 && each[..7].iter().all(|message| omitted(message) == 0));
    assert_eq!(
        each[7]["output"].as_array().unwrap().last().unwrap()["n"],
        9
    );
    for (order, on) in [("asc", "after"), ("desc", "before")] {
        let (mut walked, mut pages, mut place) = (Vec::new(), 0, String::new());
        loop {
            let page = scene
                .get(&format!(
                    "/v1/sessions/s/messages?limit=1000&order={order}{place}"
                ))
                .await
                .ok();
            let messages = page["messages"].as_array().unwrap();
            // A page that ends among outputs shows no turn, and reports where to continue.
            walked.extend(messages.iter().cloned());
            pages += 1;
            if page["has_more"] == false {
                break;
            }
            place = format!("&{on}={}", page["last_id"].as_str().unwrap());
        }
        if order == "desc" {
            walked.reverse();
        }
        assert_eq!(walked, each, "{order}");
        assert!(pages >= 3, "{pages}");
    }
}

/// Text as it was written, where nothing has to be left out.
#[tokio::test]
async fn what_was_sent_and_said_comes_back_as_it_was_written() {
    let scene = Scene::new();
    let [sent, odd, none] = [
        r#"{"content":[],"content":[{"type":"n", "n":1.10}],"metadata":{"n":1E2}}"#,
        r#"{"content":[7,{"type":"n","n":1.10},{},{"type":1}],"metadata":[]}"#,
        r#"{"content":{"type":"n"}}"#,
    ]
    .map(|data| MessageId::from(scene.note("s", [NewEvent::new("user.message", data)])[0].id));
    let failed = NewEvent::new(
        "message.status_changed",
        r#"{"status":"failed","error":{"n":1.10}}"#,
    )
    .in_turn(sent);
    scene.note(
        "s",
        [
            NewEvent::new("assistant.message_completed", r#" {"n": 1.10} "#).in_turn(sent),
            failed,
        ],
    );
    for (message, written) in [
        (
            sent,
            vec![
                r#""content":[{"type":"n", "n":1.10}],"metadata":{"n":1E2}"#,
                r#""output":[{"n": 1.10}]"#,
                r#""error":{"n":1.10}"#,
            ],
        ),
        (
            odd,
            vec![r#""content":[{"type":"n","n":1.10}],"metadata":{}"#],
        ),
        (none, vec![r#""content":[],"metadata":{}"#]),
    ] {
        let answer =
            String::from_utf8(scene.get(&format!("/v1/messages/{message}")).await.body).unwrap();
        for part in written {
            assert!(answer.contains(part), "{part} in {answer}");
        }
    }
}
