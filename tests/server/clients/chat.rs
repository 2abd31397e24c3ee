//! The example `chat` in a browser: an answer goes on after reloads of the page and kills of the
//! server, and the page shows every word once.
//!
//! Needs Chromium and its driver, and the client of Durable Streams from the registry of `npm`.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sessionlog::SessionLog;

use crate::in_process::in_url;
use crate::packages::{Obstacle, can, copy, environment, npm};
use crate::page::Browser;
use crate::process::{Server, agent, free_address};
use crate::{BROWSER, missing, on_tokio};

/// The words of the answer.
const WORDS: usize = 80;

pub(crate) fn an_answer_survives_reloads_of_the_page_and_kills_of_the_server()
-> Result<(), Obstacle> {
    missing(BROWSER).map_or(Ok(()), Err)?;
    missing(&["npm"]).map_or(Ok(()), Err)?;
    let packages = environment("chat");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/chat");
    copy(&sources, "package.json", &packages);
    can(npm(&packages).arg("install"))?;
    let client = packages.join("node_modules/@durable-streams/client/dist/index.js");
    on_tokio(|| an_answer_survives(&client));
    Ok(())
}

async fn an_answer_survives(client: &Path) {
    let browser = Browser::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (data, address) = (folder.path().join("data"), free_address());
    let start = || {
        let mut chat = Command::new(env!("CARGO_BIN_EXE_chat"));
        chat.arg(&address).args([data.as_path(), client]);
        Server::of(chat.stdin(Stdio::null()))
    };
    let mut server = start();
    browser.client.goto(&server.url).await.unwrap();
    browser.until("location.hash !== ''").await;
    ask(&browser, &format!("Count to {WORDS}")).await;

    until_shown(&browser, 5).await;
    reload(&browser).await;
    for words in [20, 45] {
        until_shown(&browser, words).await;
        server.kill();
        server = start();
        until_shown(&browser, words + 10).await;
        reload(&browser).await;
    }
    until_shown(&browser, WORDS).await;
    until_answered(&browser, 1).await;

    // A message that is sent while there is no server.
    server.kill();
    ask(&browser, "Count to 3").await;
    browser
        .until("document.querySelector('#state').textContent !== ''")
        .await;
    let server = start();
    let shows_all = async || {
        until_answered(&browser, 2).await;
        let answers = [counted(WORDS), counted(3)];
        assert_eq!(texts(&browser, ".answer").await, answers);
        let messages = [format!("Count to {WORDS}"), "Count to 3".to_owned()];
        assert_eq!(texts(&browser, ".message").await, messages);
        let notes = texts(&browser, ".resumed").await;
        assert!(
            notes.len() == 1 && notes[0].contains("2 times"),
            "{notes:?}"
        );
    };
    shows_all().await;
    reload(&browser).await;
    shows_all().await;
    // A page that has saved nothing reads the chat from its beginning.
    browser.ask("void localStorage.clear()").await;
    browser.client.refresh().await.unwrap();
    shows_all().await;
    let stored = words(&server, &browser).await;
    assert_eq!(stored, [counted(WORDS), counted(3)].join(" "));

    // A chat that takes no more messages.
    server.kill();
    close(&data, &name(&browser).await);
    let _server = start();
    let state = "document.querySelector('#state').textContent";
    browser
        .until(&format!("{state} === 'This chat is closed.'"))
        .await;
    shows_all().await;
    browser.end().await;
}

fn counted(words: usize) -> String {
    let words: Vec<_> = (1..=words).map(|word| word.to_string()).collect();
    words.join(" ")
}

async fn ask(browser: &Browser, text: &str) {
    let script = format!(
        "void (document.querySelector('#text').value = {}, \
         document.querySelector('form').requestSubmit())",
        json!(text)
    );
    browser.ask(&script).await;
}

/// Waits until the page shows so many words of the first answer, and checks that there are no
/// others.
async fn until_shown(browser: &Browser, words: usize) {
    let enough = "(document.querySelector('.answer')?.textContent ?? '').split(' ').length";
    browser.until(&format!("{enough} >= {words}")).await;
    let shown = texts(browser, ".answer").await.concat();
    assert_eq!(shown, counted(shown.split(' ').count()));
}

async fn until_answered(browser: &Browser, answers: usize) {
    let over = "document.querySelectorAll('.answer:not(.goes-on)').length";
    browser.until(&format!("{over} === {answers}")).await;
}

/// Loads the page again, and checks that it asks for what comes after the offset that it has saved.
async fn reload(browser: &Browser) {
    browser.client.refresh().await.unwrap();
    let offsets = "performance.getEntriesByType('resource').map(({ name }) => new URL(name))\
                   .filter(({ pathname }) => pathname.startsWith('/ds/chat/'))\
                   .map(({ searchParams }) => searchParams.get('offset'))";
    browser.until(&format!("{offsets}.length > 0")).await;
    let asked = browser.ask(offsets).await;
    let asked = asked.as_array().unwrap();
    assert!(!asked.contains(&json!("-1")), "{asked:?}");
}

async fn texts(browser: &Browser, selector: &str) -> Vec<String> {
    let texts = format!("[...document.querySelectorAll('{selector}')].map(e => e.textContent)");
    serde_json::from_value(browser.ask(&texts).await).unwrap()
}

/// The session of the chat.
async fn name(browser: &Browser) -> String {
    let chat = browser.ask("location.hash.slice(1)").await;
    format!("ds/chat/{}", chat.as_str().unwrap())
}

fn close(data: &Path, session: &str) {
    let log = SessionLog::open(data).unwrap();
    log.close_session(&session.parse().unwrap()).unwrap();
    log.close().unwrap();
}

/// The words of the chat as the log has them.
async fn words(server: &Server, browser: &Browser) -> String {
    let url = format!(
        "{}/v1/sessions/{}/events?type=assistant.word&limit=1000",
        server.url,
        in_url(&name(browser).await)
    );
    let page: Value = agent()
        .get(url)
        .call()
        .unwrap()
        .body_mut()
        .read_json()
        .unwrap();
    let events = page["events"].as_array().unwrap();
    let words: Vec<_> = events
        .iter()
        .map(|event| event["data"]["text"].as_str().unwrap())
        .collect();
    words.join(" ")
}
