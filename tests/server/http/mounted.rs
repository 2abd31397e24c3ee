//! The router as a part of an application with routes of its own.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use sessionlog::Batch;
use sessionlog::http::{self, Config};

use crate::support::Scene;

async fn not_here() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "the application has no such page")
}

#[tokio::test]
async fn an_application_keeps_its_own_pages_and_its_own_fallbacks() {
    let mut scene = Scene::new();
    let api = http::api(scene.log.clone(), Config::open());
    scene.router = Router::new()
        .route("/", get(|| async { "the application" }))
        .nest("/agents", api)
        .fallback(not_here);
    let batch = Batch::new().user_message("hello");
    scene.log.append(&"s".parse().unwrap(), batch).unwrap();
    let page = scene.get("/agents/v1/sessions/s/events").await;
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(scene.get("/agents/healthz").await.status, StatusCode::OK);
    assert_eq!(
        scene.get("/agents/openapi.json").await.status,
        StatusCode::OK
    );
    assert_eq!(scene.get("/").await.body, b"the application");
    let missing = scene.get("/agents/v1/nothing").await;
    assert_eq!(missing.body, b"the application has no such page");
    let wrong = scene.get("/agents/v1/sessions/s/other").await;
    assert_eq!(wrong.body, b"the application has no such page");
}

#[tokio::test]
async fn the_page_can_be_mounted_beside_the_calls() {
    let mut scene = Scene::new();
    let api = http::api(scene.log.clone(), Config::open());
    scene.router = api.merge(http::ui());
    assert_eq!(scene.get("/").await.status, StatusCode::OK);
    assert_eq!(scene.get("/v1/sessions").await.status, StatusCode::OK);
    let answer = scene.get("/nothing").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}
