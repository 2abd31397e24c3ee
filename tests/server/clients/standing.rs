//! The page at `/` in a browser: a session is renamed, closed, forked and deleted there.

use crate::page::Browser;
use crate::process::{KEY, Server, command};

const WORKER_KEY: &str = "a worker";

pub(crate) async fn a_session_is_renamed_closed_forked_and_deleted_on_the_page() {
    let browser = Browser::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), "127.0.0.1:0");
    command.env("SESSIONLOG_API_KEY", KEY);
    let server = Server::of(command.env("SESSIONLOG_WORKER_KEY", WORKER_KEY));
    server.post("s", "0", "x").unwrap();
    server.post("s", "1", "y").unwrap();
    browser.client.goto(&server.url).await.unwrap();
    let key = format!("sessionStorage.setItem('key', '{WORKER_KEY}')");
    browser.ask(&key).await;
    browser.client.goto("about:blank").await.unwrap();
    let at_session = format!("{}/#s", server.url);
    browser.client.goto(&at_session).await.unwrap();
    browser.until("!$('acts').hidden").await;

    browser.ask("$('rename').click()").await;
    answer(&browser, "A title").await;
    browser.until("$('name').textContent === 'A title'").await;
    browser
        .until("$('sessions').innerText.includes('A title')")
        .await;

    browser.ask("$('close').click()").await;
    browser.until("$('state').textContent === 'closed'").await;
    browser.until("$('composer').hidden").await;
    browser.ask("$('close').click()").await;
    browser.until("$('state').dataset.is === 'live'").await;

    browser
        .ask("document.querySelector('.event .raw').click()")
        .await;
    browser
        .ask("document.querySelector('.event .fork').click()")
        .await;
    browser.until("open.id !== 's'").await;
    browser
        .until("$('info').textContent.includes('fork of s at 1')")
        .await;
    browser
        .until("document.querySelectorAll('.event').length === 1")
        .await;

    browser.client.goto(&at_session).await.unwrap();
    browser.until("open.id === 's' && !$('acts').hidden").await;
    browser.ask("$('delete').click()").await;
    answer(&browser, "s").await;
    answer(&browser, "another").await;
    browser.until("$('state').dataset.is === 'live'").await;
    browser.ask("$('delete').click()").await;
    answer(&browser, "s").await;
    answer(&browser, "s").await;
    browser.until("$('state').textContent === 'deleted'").await;
    browser.end().await;
}

/// Answers the question of the page, once it asks it.
async fn answer(browser: &Browser, text: &str) {
    browser
        .until("$('ask').open && $('answer').value === ''")
        .await;
    browser.ask(&format!("$('answer').value = '{text}'")).await;
    browser
        .ask("document.querySelector('#ask .go').click()")
        .await;
}
