//! The page at `/` in a browser: what is sent arrives, a server that comes back is found again, and keys do what a mouse does.
//!
//! Needs Chromium and its driver; skipped with a message where they are not.

use std::collections::HashSet;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::{Value, json};

use crate::process::{Ending, Server, command, free_address, post};
use crate::support::KEY;

struct Browser {
    client: Client,
    driver: Ending,
}

impl Browser {
    /// `None` where there is none.
    async fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut driver = Command::new("chromedriver");
        driver.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null());
        let has_chromium = Command::new("chromium").arg("--version").output().is_ok();
        let Some(driver) = driver.spawn().ok().filter(|_| has_chromium).map(Ending) else {
            println!("skipped: there is no chromium, or no chromedriver");
            return None;
        };
        let arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,800"];
        let options = json!({"goog:chromeOptions": {"args": arguments}}).as_object().unwrap().clone();
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        builder.capabilities(options);
        for _ in 0..200 {
            match builder.connect(&format!("http://127.0.0.1:{port}")).await {
                Ok(client) => return Some(Self { client, driver }),
                Err(_not_yet) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        panic!("chromedriver is there and starts no browser");
    }

    async fn element(&self, css: &str) -> Element {
        self.client.wait().at_most(Duration::from_secs(20)).for_element(Locator::Css(css)).await.unwrap()
    }

    /// What a script on the page answers.
    async fn ask(&self, script: &str) -> Value {
        self.client.execute(&format!("return {script}"), Vec::new()).await.unwrap()
    }

    async fn until(&self, script: &str) {
        for _ in 0..400 {
            if self.ask(script).await == Value::Bool(true) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let shown = self.ask("document.body.innerText").await;
        panic!("it did not come to this: {script}; the page shows {shown}");
    }

    /// The IDs of the events on the page, from top to bottom.
    async fn shown(&self) -> Vec<String> {
        let ids = self.ask("[...document.querySelectorAll('.event:not(.waits)')].map(event => event.dataset.id)").await;
        serde_json::from_value(ids).unwrap()
    }

    async fn until_shown(&self, ids: &[String]) {
        let last = ids.last().unwrap();
        self.until(&format!("[...document.querySelectorAll('.event:not(.waits)')].some(event => event.dataset.id === '{last}')"))
            .await;
        assert_eq!(self.shown().await, ids);
    }

    /// A key of the keyboard, wherever it goes.
    async fn key(&self, value: char) {
        let keys = KeyActions::new("keyboard".into()).then(KeyAction::Down { value }).then(KeyAction::Up { value });
        self.client.perform_actions(keys).await.unwrap();
    }

    async fn end(self) {
        let Self { client, driver } = self;
        client.close().await.unwrap();
        drop(driver);
    }
}

const ENTER: char = '\u{e007}';
const DOWN: char = '\u{e015}';

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_arrives_and_a_server_that_comes_back_is_found_again() {
    let Some(browser) = Browser::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let url = format!("http://{address}");
    let open = || Server::of(command(folder.path(), &address).arg("--open"));
    let server = open();
    browser.client.goto(&url).await.unwrap();

    // A session that is not there yet, by keyboard alone.
    browser.key('n').await;
    browser.element("dialog[open] #answer").await.send_keys("from the page").await.unwrap();
    browser.key(ENTER).await;
    browser.until("document.activeElement.id === 'text'").await;
    browser.element("#text").await.send_keys("hello").await.unwrap();
    browser.key(ENTER).await;
    browser.until("document.querySelectorAll('.event.mine:not(.waits)').length === 1").await;
    browser.until("document.querySelector('#state').dataset.is === 'live'").await;
    assert_eq!(browser.ask("document.querySelector('.event.mine p').innerText").await, "hello");
    browser.until("document.querySelector('#sessions b')?.innerText === 'from the page'").await;

    // Somebody else writes, and it arrives.
    let session = "from%20the%20page";
    for n in 0..5 {
        post(&url, session, &format!("first {n}"), "<b>no markup</b>").unwrap();
    }
    browser.until_shown(&server.ids(session)).await;
    assert_eq!(browser.ask("document.querySelectorAll('#events b').length").await, 0);

    // Raw JSON on demand.
    browser.element(".event .raw").await.click().await.unwrap();
    let raw = browser.ask("JSON.parse(document.querySelector('.event pre').innerText).data.content[0].text").await;
    assert_eq!(raw, "hello");

    server.kill();
    browser.until("document.querySelector('#state').dataset.is === 'lost'").await;
    browser.element("#text").await.send_keys("sent while it is away").await.unwrap();
    browser.key(ENTER).await;
    browser.until("document.querySelectorAll('.event.waits').length === 1").await;
    let server = open();
    for n in 0..5 {
        post(&url, session, &format!("second {n}"), "x").unwrap();
    }
    browser.until("document.querySelectorAll('.event.waits').length === 0").await;
    browser.until("document.querySelector('#state').dataset.is === 'live'").await;
    post(&url, session, "last", "x").unwrap();
    let ids = server.ids(session);
    assert_eq!(ids.len(), 13, "what was sent once is stored once");
    browser.until_shown(&ids).await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_session_is_read_backwards_and_sessions_are_chosen_by_keyboard() {
    let Some(browser) = Browser::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::of(command(folder.path(), "127.0.0.1:0").arg("--open"));
    for n in 0..180 {
        server.post("long", &n.to_string(), "x").unwrap();
    }
    server.post("short", "0", "x").unwrap();
    browser.client.goto(&server.url).await.unwrap();
    browser.until("document.querySelectorAll('#sessions b').length === 2").await;
    assert_eq!(
        browser.ask("[...document.querySelectorAll('#sessions b')].map(name => name.innerText)").await,
        json!(["short", "long"])
    );
    browser.key(DOWN).await;
    browser.key(DOWN).await;
    browser.key(ENTER).await;
    browser.until("document.querySelector('#name').innerText === 'long'").await;
    browser.until("document.querySelector('#state').dataset.is === 'live'").await;
    let all = server.ids("long");
    assert_eq!(browser.shown().await, all[130..], "the newest page, and at its end");
    assert!(
        browser
            .ask(
                "(events => events.scrollHeight - events.scrollTop - events.clientHeight < 5)(document.querySelector('#events'))"
            )
            .await
            == true
    );
    // By key, and by scrolling up.
    browser.key('e').await;
    browser.until("document.querySelectorAll('.event').length === 100").await;
    browser.ask("document.querySelector('#events').scrollTo(0, 0)").await;
    browser.until("document.querySelectorAll('.event').length >= 150").await;
    browser.ask("document.querySelector('#events').scrollTo(0, 0)").await;
    browser.until("document.querySelectorAll('.event').length === 180").await;
    assert_eq!(browser.shown().await, all);
    browser.until("document.querySelector('#earlier').hidden").await;
    // What comes meanwhile does not move what is read.
    let read = browser.ask("document.querySelector('#events').scrollTop").await;
    server.post("long", "more", "x").unwrap();
    browser.until("!document.querySelector('#fresh').hidden").await;
    assert_eq!(browser.ask("document.querySelector('#events').scrollTop").await, read);
    let distinct: HashSet<_> = browser.shown().await.into_iter().collect();
    assert_eq!(distinct.len(), 181);
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_key_is_asked_for_with_it() {
    let Some(browser) = Browser::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "127.0.0.1:0");
    server.post("s", "0", "x").unwrap();
    browser.client.goto(&server.url).await.unwrap();
    browser.element("dialog[open] #answer").await.send_keys("wrong").await.unwrap();
    browser.key(ENTER).await;
    browser.until("document.querySelector('#complaint').innerText !== ''").await;
    browser.element("dialog[open] #answer").await.send_keys(KEY).await.unwrap();
    browser.key(ENTER).await;
    browser.element("#sessions [data-session=s]").await.click().await.unwrap();
    browser.until("document.querySelector('#state').dataset.is === 'live'").await;
    assert_eq!(browser.shown().await, server.ids("s"));
    browser.end().await;
}
