//! `GET /v1/sessions`: orders, both directions, and filters.

use serde_json::{Value, json};
use sessionlog::{NewEvent, NewSession};

use crate::support::Scene;

fn names(page: &Value) -> Vec<String> {
    let sessions = page["sessions"].as_array().unwrap().iter();
    sessions
        .map(|session| session["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Seven sessions, created as a to g and then used from g to a.
fn filled() -> (Scene, Vec<String>) {
    let scene = Scene::new();
    let all: Vec<_> = ["a", "b", "c", "d", "e", "f", "g"].map(String::from).into();
    for id in &all {
        let agent = if id < &"d".to_owned() { "a1" } else { "a 2" };
        let metadata = json!({"agent": agent, "id": id, "n": 1});
        let new = NewSession::new().metadata(metadata);
        scene.log.create(&id.parse().unwrap(), new).unwrap();
    }
    for id in all.iter().rev() {
        scene.note(id, [NewEvent::new("step", "1")]);
    }
    (scene, all)
}

#[tokio::test]
async fn sessions_are_walked_in_both_directions_in_every_order() {
    let (scene, all) = filled();
    let reversed: Vec<_> = all.iter().rev().cloned().collect();
    for (order, expected) in [("id", &all), ("recent", &all), ("created", &reversed)] {
        let path = format!("/v1/sessions?order={order}&limit=2");
        let (mut seen, mut from) = (Vec::new(), String::new());
        let last = loop {
            let page = scene.get(&format!("{path}{from}")).await.ok();
            seen.extend(names(&page));
            if page["has_more"] == false {
                break page;
            }
            from = format!("&after={}", page["last_cursor"].as_str().unwrap());
        };
        assert_eq!(seen, *expected, "{order}");
        let (mut seen, mut cursor) = (names(&last), last["first_cursor"].clone());
        loop {
            let before = cursor.as_str().unwrap();
            let page = scene.get(&format!("{path}&before={before}")).await.ok();
            seen.splice(0..0, names(&page));
            if page["has_more"] == false {
                break;
            }
            cursor = page["first_cursor"].clone();
        }
        assert_eq!(seen, *expected, "{order} back");
    }
}

#[tokio::test]
async fn sessions_are_filtered() {
    let (scene, _all) = filled();
    scene.log.close_session(&"b".parse().unwrap()).unwrap();
    for (query, expected) in [
        ("metadata[agent]=a1", &["a", "b", "c"][..]),
        ("metadata%5Bagent%5D=a+2", &["d", "e", "f", "g"]),
        ("metadata[agent]=a1&metadata[id]=c", &["c"]),
        ("metadata[n]=1", &[]),
        ("closed=true", &["b"]),
        ("closed=false&metadata[agent]=a1", &["a", "c"]),
        ("prefix=c", &["c"]),
        ("prefix=x", &[]),
        ("active_since=2020-01-01T00:00:00Z&prefix=a", &["a"]),
        ("active_since=2999-01-01T00:00:00Z", &[]),
    ] {
        for order in ["id", "recent"] {
            let page = scene
                .get(&format!("/v1/sessions?order={order}&{query}"))
                .await
                .ok();
            assert_eq!(names(&page), expected, "{order} {query}");
        }
    }
}

#[tokio::test]
async fn a_list_of_sessions_that_cannot_be_is_refused() {
    let (scene, _all) = filled();
    let page = scene.get("/v1/sessions?limit=1").await.ok();
    let at = page["last_cursor"].as_str().unwrap();
    let many: Vec<_> = (0..17).map(|n| format!("metadata[{n}]=x")).collect();
    let many = many.join("&");
    for bad in [
        &*format!("order=id&after={at}"),
        "order=recent&after=id:a",
        "order=created&before=a",
        &format!("after={at}&before={at}"),
        "before=",
        "after=at:x",
        "closed=x",
        "closed=",
        "active_since=yesterday",
        &many,
    ] {
        scene
            .get(&format!("/v1/sessions?{bad}"))
            .await
            .refused(400, "invalid");
    }
}

#[tokio::test]
async fn a_session_id_by_itself_is_a_position_in_the_order_of_ids() {
    let (scene, _all) = filled();
    for after in ["after=e", "after=id:e", "after=dz"] {
        let page = scene
            .get(&format!("/v1/sessions?order=id&{after}"))
            .await
            .ok();
        assert!(names(&page).ends_with(&["f".into(), "g".into()]), "{after}");
    }
    let page = scene.get("/v1/sessions?order=id&before=c").await.ok();
    assert_eq!(names(&page), ["a", "b"]);
}
