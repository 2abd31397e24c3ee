//! `GET /v1/sessions/{session_id}/events` and `GET /v1/sessions`.

use serde_json::{Value, json};
use sessionlog::http::Config;
use sessionlog::{NewEvent, Options};

use crate::support::{KEY, Scene, said};

fn ids(page: &Value) -> Vec<String> {
    page["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect()
}

fn note(n: usize) -> NewEvent {
    NewEvent::new(
        if n.is_multiple_of(10) { "rare" } else { "note" },
        format!("{{\"n\":{n}}}"),
    )
}

/// Returns a session of `events` events, and their IDs.
fn filled(events: usize) -> (Scene, Vec<String>) {
    let scene = Scene::new();
    let ids = (1..=events)
        .flat_map(|n| scene.note("s", [note(n)]))
        .map(|event| event.id.to_string())
        .collect();
    (scene, ids)
}

#[tokio::test]
async fn a_session_is_read_page_by_page_in_either_order() {
    let (scene, all) = filled(250);
    for (order, cursor) in [("asc", "after"), ("desc", "before")] {
        let mut seen = Vec::new();
        let mut query = format!("order={order}&limit=60");
        loop {
            let page = scene
                .get(&format!("/v1/sessions/s/events?{query}"))
                .await
                .ok();
            let shown = ids(&page);
            assert_eq!(
                (page["first_id"].as_str(), page["last_id"].as_str()),
                (
                    shown.first().map(String::as_str),
                    shown.last().map(String::as_str)
                )
            );
            assert_eq!(page["tail_id"], all[249].as_str());
            seen.extend(shown);
            assert_eq!(page["has_more"], seen.len() < 250);
            if seen.len() >= 250 {
                break;
            }
            query = format!(
                "order={order}&limit=60&{cursor}={}",
                page["last_id"].as_str().unwrap()
            );
        }
        if order == "desc" {
            seen.reverse();
        }
        assert_eq!(seen, all, "{order}");
    }
    let page = scene.get("/v1/sessions/s/events").await.ok();
    assert_eq!(
        (ids(&page), &page["has_more"]),
        (all[..100].to_vec(), &json!(true))
    );
    let keys: Vec<_> = page
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        ["events", "has_more", "first_id", "last_id", "tail_id"]
    );
    let behind = scene
        .get(&format!("/v1/sessions/s/events?after={}", all[249]))
        .await
        .ok();
    assert_eq!(
        behind,
        json!({
            "events": [], "has_more": false,
            "first_id": null, "last_id": null, "tail_id": all[249]
        })
    );
}

#[tokio::test]
async fn a_page_may_hold_some_types_alone() {
    let (scene, all) = filled(50);
    let tenth: Vec<_> = all.iter().skip(9).step_by(10).cloned().collect();
    assert_eq!(
        ids(&scene.get("/v1/sessions/s/events?type=rare").await.ok()),
        tenth
    );
    assert_eq!(
        ids(&scene
            .get("/v1/sessions/s/events?type=rare&type=note")
            .await
            .ok()),
        all
    );
    let page = scene
        .get(&format!(
            "/v1/sessions/s/events?type=rare&limit=2&after={}",
            tenth[1]
        ))
        .await
        .ok();
    assert_eq!(
        (ids(&page), &page["has_more"]),
        (tenth[2..4].to_vec(), &json!(true))
    );
    assert_eq!(
        ids(&scene.get("/v1/sessions/s/events?type=none").await.ok()),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn a_search_that_finds_nothing_yet_says_where_to_go_on() {
    let scene = Scene::with(Config::with_api_key(KEY), Options::new().scan_bytes_max(1));
    let all: Vec<_> = (1..=20)
        .flat_map(|n| scene.note("s", [note(n)]))
        .map(|event| event.id.to_string())
        .collect();
    for (order, cursor, expected) in [
        ("asc", "after", [&all[9], &all[19]]),
        ("desc", "before", [&all[19], &all[9]]),
    ] {
        let (mut found, mut pages, mut from) = (Vec::new(), 0, String::new());
        loop {
            let page = scene
                .get(&format!(
                    "/v1/sessions/s/events?type=rare&order={order}{from}"
                ))
                .await
                .ok();
            found.extend(ids(&page));
            pages += 1;
            if page["has_more"] == false {
                break;
            }
            from = format!("&{cursor}={}", page["last_id"].as_str().unwrap());
        }
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{order}");
        assert!(pages >= 10, "a page reads little: {pages}");
    }
}

#[tokio::test]
async fn a_page_of_large_events_holds_fewer_of_them() {
    let scene = Scene::new();
    for _ in 0..20 {
        scene.note(
            "s",
            [NewEvent::new(
                "large",
                format!("\"{}\"", "x".repeat(1_000_000)),
            )],
        );
    }
    let page = scene.get("/v1/sessions/s/events?limit=1000").await.ok();
    assert_eq!(
        (ids(&page).len(), &page["has_more"]),
        (5, &json!(true)),
        "what was read reaches 4 MiB with the last"
    );
    let mut seen = ids(&page);
    let mut page = page;
    while page["has_more"] == true {
        page = scene
            .get(&format!(
                "/v1/sessions/s/events?limit=1000&after={}",
                page["last_id"].as_str().unwrap()
            ))
            .await
            .ok();
        seen.extend(ids(&page));
    }
    assert_eq!(seen.len(), 20);
}

#[tokio::test]
async fn a_page_that_cannot_be_is_refused() {
    let (scene, all) = filled(2);
    let other = scene.note("t", [note(1)])[0].id.to_string();
    let unknown = "evt_01JQ3W8K5T0000000000000001";
    for bad in [
        "limit=",
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "limit=1.5",
        "order=up",
        "after=x",
        "after=",
        "before=evt_",
        &format!("after={}&before={}", all[0], all[1]),
        &format!("after={}&after={}", all[0], all[1]),
        &format!("after={}", all[0].to_lowercase()),
    ] {
        assert_eq!(
            scene
                .get(&format!("/v1/sessions/s/events?{bad}"))
                .await
                .status,
            400,
            "{bad}"
        );
    }
    scene
        .get("/v1/sessions/s/events?limit=1001")
        .await
        .refused(400, "too_large");
    scene
        .get(&format!("/v1/sessions/s/events?after={unknown}"))
        .await
        .refused(400, "cursor_unknown");
    scene
        .get(&format!("/v1/sessions/s/events?before={other}"))
        .await
        .refused(400, "cursor_of_other_session");
    scene
        .get("/v1/sessions/nobody/events")
        .await
        .refused(404, "unknown_session");
    assert_eq!(
        scene
            .get("/v1/sessions/s/events?limit=1000&unknown=1")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_page_begins_at_a_seq_as_at_the_event_with_it() {
    let (scene, all) = filled(9);
    for (by_seq, by_id) in [
        ("after=4", format!("after={}", all[3])),
        ("before=4", format!("before={}", all[3])),
        (
            "order=desc&before=4",
            format!("order=desc&before={}", all[3]),
        ),
        ("after=0", "order=asc".to_owned()),
        ("after=7&wait=1", format!("after={}&wait=1", all[6])),
    ] {
        for of in ["events", "messages"] {
            if of == "messages" && by_seq.contains("wait") {
                continue;
            }
            let page = async |query: &str| {
                let path = format!("/v1/sessions/s/{of}?{query}");
                scene.get(&path).await.ok()
            };
            assert_eq!(page(by_seq).await, page(&by_id).await, "{of} {by_seq}");
        }
    }
    let beyond = scene.get("/v1/sessions/s/events?after=10").await;
    beyond.refused(400, "cursor_beyond_tail");
}

#[tokio::test]
async fn data_that_is_no_json_is_said_in_base64() {
    let scene = Scene::new();
    let events = [
        NewEvent::new("bytes", vec![0, 255]),
        NewEvent::new("text", "no json"),
        NewEvent::new("json", "[1,\r\n 2]"),
        NewEvent::new("user.message", "\"a string\""),
    ];
    scene.note("s", events);
    let page = scene.get("/v1/sessions/s/events").await.ok();
    let said = |at: usize| {
        (
            page["events"][at]["data"].clone(),
            page["events"][at]["data_base64"].clone(),
        )
    };
    assert_eq!(said(0), (Value::Null, json!("AP8=")));
    assert_eq!(said(1), (Value::Null, json!("bm8ganNvbg==")));
    assert_eq!(said(2), (json!([1, 2]), Value::Null));
    assert_eq!(said(3), (json!("a string"), Value::Null));
    assert_eq!(page["events"][0]["message_id"], Value::Null);
}

#[tokio::test]
async fn sessions_are_listed_by_activity_and_by_id() {
    let scene = Scene::new();
    for session in ["b", "c", "a", "b"] {
        scene.post(session, said("x")).await.ok();
    }
    let names = |page: Value| -> Vec<String> {
        page["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|session| session["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let recent = scene.get("/v1/sessions").await.ok();
    assert_eq!(
        (&recent["sessions"][0]["events"], &recent["has_more"]),
        (&json!(2), &json!(false))
    );
    assert_eq!(names(recent), ["b", "a", "c"]);
    let first = scene.get("/v1/sessions?order=id&limit=2").await.ok();
    assert_eq!(first["has_more"], true);
    assert_eq!(names(first), ["a", "b"]);
    let all = scene.get("/v1/sessions?order=id&limit=3").await.ok();
    assert_eq!(all["has_more"], false, "they fit exactly");
    assert_eq!(names(all), ["a", "b", "c"]);
    assert_eq!(
        names(scene.get("/v1/sessions?order=id&after=b").await.ok()),
        ["c"]
    );
    for bad in [
        "order=id&after=",
        "after=b",
        "limit=",
        "limit=0",
        "limit=1001",
        "order=x",
    ] {
        assert_eq!(
            scene.get(&format!("/v1/sessions?{bad}")).await.status,
            400,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn a_page_of_sessions_is_as_small_as_pages_have_to_be() {
    let scene = Scene::with(Config::with_api_key(KEY), Options::new().page_events_max(2));
    for session in ["a", "b", "c"] {
        scene.post(session, said("hello")).await.ok();
    }
    for order in ["recent", "id"] {
        let page = scene.get(&format!("/v1/sessions?order={order}")).await.ok();
        assert_eq!(
            (
                page["sessions"].as_array().unwrap().len(),
                &page["has_more"]
            ),
            (2, &json!(true)),
            "{page}"
        );
    }
    scene
        .get("/v1/sessions?limit=3")
        .await
        .refused(400, "too_large");
}
