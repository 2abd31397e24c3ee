//! The page at `/` in a browser: messages arrive, a restarted server is found again, keys work like
//! a mouse, and every event that the log can hold is shown.
//!
//! Needs Chromium and its driver.

use std::collections::HashSet;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::{Value, json};
use sessionlog::NewEvent;

use crate::in_process::{InProcess, Wire, in_url};
use crate::odd::{Odd, odd_events};
use crate::process::{Ending, KEY, Server, command, free_address, post};

pub(crate) struct Browser {
    pub(crate) client: Client,
    driver: Ending,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut driver = Command::new("chromedriver");
        driver
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let driver = Ending(driver.spawn().unwrap());
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1200,800",
        ];
        let options = json!({"goog:chromeOptions": {"args": arguments}})
            .as_object()
            .unwrap()
            .clone();
        let mut builder =
            ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        builder.capabilities(options);
        for _ in 0..200 {
            match builder.connect(&format!("http://127.0.0.1:{port}")).await {
                Ok(client) => return Self { client, driver },
                Err(_not_yet) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        panic!("chromedriver is there and starts no browser");
    }

    async fn element(&self, css: &str) -> Element {
        self.client
            .wait()
            .at_most(Duration::from_secs(20))
            .for_element(Locator::Css(css))
            .await
            .unwrap()
    }

    /// Returns the result of a script on the page.
    pub(crate) async fn ask(&self, script: &str) -> Value {
        self.client
            .execute(&format!("return {script}"), Vec::new())
            .await
            .unwrap()
    }

    pub(crate) async fn until(&self, script: &str) {
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
        let ids = self
            .ask(
                "[...document.querySelectorAll('.event:not(.waits)')]\
                 .map(event => event.dataset.id)",
            )
            .await;
        serde_json::from_value(ids).unwrap()
    }

    pub(crate) async fn until_shown(&self, ids: &[String]) {
        let last = ids.last().unwrap();
        self.until(&format!(
            "[...document.querySelectorAll('.event:not(.waits)')]\
             .some(event => event.dataset.id === '{last}')"
        ))
        .await;
        assert_eq!(self.shown().await, ids);
    }

    /// Presses a key, wherever the focus is.
    async fn key(&self, value: char) {
        let keys = KeyActions::new("keyboard".into())
            .then(KeyAction::Down { value })
            .then(KeyAction::Up { value });
        self.client.perform_actions(keys).await.unwrap();
    }

    /// Opens a session by its address, and waits until its stream is open.
    async fn open(&self, server: &InProcess, session: &str) {
        self.client
            .goto(&format!("{}/#{}", server.url, in_url(session)))
            .await
            .unwrap();
        let name = json!(session);
        self.until(&format!(
            "document.querySelector('#name').textContent === {name}"
        ))
        .await;
        self.until("document.querySelector('#state').dataset.is === 'live'")
            .await;
    }

    /// Reads back to the session's first event.
    async fn read_backwards(&self) {
        while self.ask("document.querySelector('#earlier').hidden").await == false {
            let count = self.shown().await.len();
            self.key('e').await;
            self.until(&format!(
                "document.querySelectorAll('.event').length > {count}"
            ))
            .await;
        }
    }

    /// Checks that these events are shown and no others. Each shows its text as it came, and none
    /// is marked as one that could not be rendered.
    async fn shows(&self, events: &[Wire]) {
        self.until(&format!(
            "document.querySelectorAll('.event').length >= {}",
            events.len()
        ))
        .await;
        let raw = "[...document.querySelectorAll('.event')].map(event => { \
                   event.querySelector('.raw')?.click(); \
                   const said = [event.dataset.id, event.querySelector('pre')?.textContent, \
                   event.querySelector('.bad')?.textContent]; \
                   event.querySelector('.raw')?.click(); \
                   return said; })";
        let shown: Vec<(String, Option<String>, Option<String>)> =
            serde_json::from_value(self.ask(raw).await).unwrap();
        for (event, (id, raw, error)) in events.iter().zip(&shown) {
            assert_eq!(
                (id, raw.as_ref(), error),
                (&event.id, Some(&event.raw), &None)
            );
        }
        assert_eq!(shown.len(), events.len());
        assert_eq!(
            self.ask("document.querySelector('#trouble').textContent")
                .await,
            ""
        );
        let run =
            "window.broken ?? document.querySelectorAll('#events :is(img, script, b)').length";
        assert_eq!(
            self.ask(run).await,
            0,
            "an event's text became a part of the page"
        );
    }

    pub(crate) async fn end(self) {
        let Self { client, driver } = self;
        client.close().await.unwrap();
        drop(driver);
    }
}

const ENTER: char = '\u{e007}';
const DOWN: char = '\u{e015}';

pub(crate) async fn what_is_sent_arrives_and_a_server_that_comes_back_is_found_again() {
    let browser = Browser::start().await;
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let url = format!("http://{address}");
    let open = || Server::of(command(folder.path(), &address).arg("--open"));
    let server = open();
    browser.client.goto(&url).await.unwrap();

    // A session that does not exist yet, by keyboard alone.
    browser.key('n').await;
    browser
        .element("dialog[open] #answer")
        .await
        .send_keys("from the page")
        .await
        .unwrap();
    browser.key(ENTER).await;
    browser.until("document.activeElement.id === 'text'").await;
    browser
        .element("#text")
        .await
        .send_keys("hello")
        .await
        .unwrap();
    browser.key(ENTER).await;
    browser
        .until("document.querySelectorAll('.event.mine:not(.waits)').length === 1")
        .await;
    browser
        .until("document.querySelector('#state').dataset.is === 'live'")
        .await;
    assert_eq!(
        browser
            .ask("document.querySelector('.event.mine p').innerText")
            .await,
        "hello"
    );
    browser
        .until("document.querySelector('#sessions b')?.innerText === 'from the page'")
        .await;

    // Another client writes, and the event arrives.
    let session = "from%20the%20page";
    for n in 0..5 {
        post(&url, session, &format!("first {n}"), "<b>no markup</b>").unwrap();
    }
    browser.until_shown(&server.ids(session)).await;
    assert_eq!(
        browser
            .ask("document.querySelectorAll('#events b').length")
            .await,
        0
    );

    // Raw JSON on demand.
    browser.element(".event .raw").await.click().await.unwrap();
    let raw = browser
        .ask("JSON.parse(document.querySelector('.event pre').innerText).data.content[0].text")
        .await;
    assert_eq!(raw, "hello");

    server.kill();
    browser
        .until("document.querySelector('#state').dataset.is === 'lost'")
        .await;
    browser
        .element("#text")
        .await
        .send_keys("sent while it is away")
        .await
        .unwrap();
    browser.key(ENTER).await;
    browser
        .until("document.querySelectorAll('.event.waits').length === 1")
        .await;
    let server = open();
    for n in 0..5 {
        post(&url, session, &format!("second {n}"), "x").unwrap();
    }
    browser
        .until("document.querySelectorAll('.event.waits').length === 0")
        .await;
    browser
        .until("document.querySelector('#state').dataset.is === 'live'")
        .await;
    post(&url, session, "last", "x").unwrap();
    let ids = server.ids(session);
    assert_eq!(ids.len(), 13, "what was sent once is stored once");
    browser.until_shown(&ids).await;
    browser.end().await;
}

pub(crate) async fn a_long_session_is_read_backwards_and_sessions_are_chosen_by_keyboard() {
    let browser = Browser::start().await;
    let folder = tempfile::tempdir().unwrap();
    let server = Server::of(command(folder.path(), "127.0.0.1:0").arg("--open"));
    for n in 0..180 {
        server.post("long", &n.to_string(), "x").unwrap();
    }
    server.post("short", "0", "x").unwrap();
    browser.client.goto(&server.url).await.unwrap();
    browser
        .until("document.querySelectorAll('#sessions b').length === 2")
        .await;
    assert_eq!(
        browser
            .ask("[...document.querySelectorAll('#sessions b')].map(name => name.innerText)")
            .await,
        json!(["short", "long"])
    );
    browser.key(DOWN).await;
    browser.key(DOWN).await;
    browser.key(ENTER).await;
    browser
        .until("document.querySelector('#name').innerText === 'long'")
        .await;
    browser
        .until("document.querySelector('#state').dataset.is === 'live'")
        .await;
    let all = server.ids("long");
    assert_eq!(
        browser.shown().await,
        all[130..],
        "the newest page, and at its end"
    );
    assert!(
        browser
            .ask(
                "(events => events.scrollHeight - events.scrollTop - events.clientHeight < 5)\
                 (document.querySelector('#events'))"
            )
            .await
            == true
    );
    // By key, and by scrolling up.
    browser.key('e').await;
    browser
        .until("document.querySelectorAll('.event').length === 100")
        .await;
    browser
        .ask("document.querySelector('#events').scrollTo(0, 0)")
        .await;
    browser
        .until("document.querySelectorAll('.event').length >= 150")
        .await;
    browser
        .ask("document.querySelector('#events').scrollTo(0, 0)")
        .await;
    browser
        .until("document.querySelectorAll('.event').length === 180")
        .await;
    assert_eq!(browser.shown().await, all);
    browser
        .until("document.querySelector('#earlier').hidden")
        .await;
    // New events do not move what the user reads.
    let read = browser
        .ask("document.querySelector('#events').scrollTop")
        .await;
    server.post("long", "more", "x").unwrap();
    browser
        .until("!document.querySelector('#fresh').hidden")
        .await;
    assert_eq!(
        browser
            .ask("document.querySelector('#events').scrollTop")
            .await,
        read
    );
    let distinct: HashSet<_> = browser.shown().await.into_iter().collect();
    assert_eq!(distinct.len(), 181);
    browser.end().await;
}

pub(crate) async fn a_server_with_a_key_is_asked_for_with_it() {
    let browser = Browser::start().await;
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "127.0.0.1:0");
    server.post("s", "0", "x").unwrap();
    browser.client.goto(&server.url).await.unwrap();
    browser
        .element("dialog[open] #answer")
        .await
        .send_keys("wrong")
        .await
        .unwrap();
    browser.key(ENTER).await;
    browser
        .until("document.querySelector('#complaint').innerText !== ''")
        .await;
    browser
        .element("dialog[open] #answer")
        .await
        .send_keys(KEY)
        .await
        .unwrap();
    browser.key(ENTER).await;
    browser
        .element("#sessions [data-session=s]")
        .await
        .click()
        .await
        .unwrap();
    browser
        .until("document.querySelector('#state').dataset.is === 'live'")
        .await;
    assert_eq!(browser.shown().await, server.ids("s"));
    browser.end().await;
}

pub(crate) async fn an_odd_event_is_shown_and_hides_no_other() {
    let browser = Browser::start().await;
    let server = InProcess::start().await;
    let plain = || (0..80).map(|n| NewEvent::new("note", n.to_string()));
    // The page showed 50 of 161 events.
    server.append("reported", plain());
    let body =
        r#"{"events":[{"type":"user.message","content":[{"type":"x","file_id":{"toString":1}}]}]}"#;
    assert!(server.post("reported", body));
    server.append("reported", plain());
    browser.open(&server, "reported").await;
    browser.read_backwards().await;
    assert_eq!(browser.shown().await.len(), 161);
    browser.shows(&server.listed("reported")).await;

    server.append("odd", odd_events());
    browser.open(&server, "odd").await;
    browser.read_backwards().await;
    let listed = server.listed("odd");
    browser.shows(&listed).await;
    server.append("odd", odd_events());
    let streamed = server.streamed("odd", &listed.last().unwrap().id);
    assert_eq!(streamed.len(), odd_events().len());
    browser
        .shows(&listed.into_iter().chain(streamed).collect::<Vec<_>>())
        .await;
    // The page names what its limit leaves out.
    for cut_off in [
        "480000 more characters, in the raw JSON",
        "149800 more blocks, in the raw JSON",
    ] {
        let says = format!("document.querySelector('#events').textContent.includes('{cut_off}')");
        assert_eq!(browser.ask(&says).await, true);
    }
    let gist = "[...document.querySelectorAll('.gist')]\
                .some(gist => gist.textContent.includes('9007199254740993'))";
    assert_eq!(
        browser.ask(gist).await,
        true,
        "a number is shown as it is spelled"
    );
    browser.end().await;
}

/// Any other odd events.
pub(crate) async fn any_event_is_shown_and_its_raw_text_is_that_of_the_wire() {
    let browser = Browser::start().await;
    let server = InProcess::start().await;
    let mut odd = Odd::new();
    let session = "100% / .. ?#\"<b>\u{202e}";
    let mut append = || {
        server.append(session, odd.events(60));
        let mut requests = std::iter::repeat_with(|| odd.request());
        let _stored = requests
            .by_ref()
            .filter(|request| server.post(session, request))
            .nth(39);
    };
    append();
    browser.open(&server, session).await;
    browser.read_backwards().await;
    let listed = server.listed(session);
    assert_eq!(listed.len(), 100);
    browser.shows(&listed).await;
    append();
    let streamed = server.streamed(session, &listed[99].id);
    assert_eq!(streamed.len(), 100);
    browser
        .shows(&listed.into_iter().chain(streamed).collect::<Vec<_>>())
        .await;
    browser.end().await;
}

/// Nothing is swallowed.
pub(crate) async fn an_error_is_shown_and_an_event_that_cannot_be_rendered_is_shown_as_text() {
    let browser = Browser::start().await;
    let server = InProcess::start().await;
    server.append("s", (0..60).map(|n| NewEvent::new("note", n.to_string())));
    browser.open(&server, "s").await;
    let answers = |script: &str| {
        format!("void (window.real ??= fetch, window.fetch = (path, options) => {script})")
    };
    let fail = |part: &str, answer: &str| {
        answers(&format!(
            "path.includes('{part}') ? {answer} : real(path, options)"
        ))
    };
    let says = |text: &str| format!("document.body.innerText.includes('{text}')");

    browser
        .ask(&fail(
            "before=",
            "Promise.reject(new TypeError('no way back'))",
        ))
        .await;
    browser.key('e').await;
    browser.until(&says("no way back")).await;
    // The page tries again, and the complaint disappears.
    browser.ask("void (window.fetch = real)").await;
    browser.key('e').await;
    browser
        .until("document.querySelectorAll('.event').length === 60")
        .await;
    assert_eq!(browser.ask(&says("no way back")).await, false);

    browser
        .ask(&fail(
            "/v1/sessions?",
            "new Response('no list', {status: 500})",
        ))
        .await;
    browser
        .element("[data-order=id]")
        .await
        .click()
        .await
        .unwrap();
    browser.until(&says("no list")).await;
    browser.ask("void (window.fetch = real)").await;
    browser
        .element("[data-order=id]")
        .await
        .click()
        .await
        .unwrap();
    browser.until(&format!("!{}", says("no list"))).await;

    // The name of the event that ends a stream. Other events have that name only with an ID.
    let ended = r#"new Response('event: error\ndata: {"error":{"message":"no segment"}}\n\n')"#;
    browser.ask(&fail("/stream", ended)).await;
    server.append("t", [NewEvent::new("error", "1")]);
    browser.ask("void (location.hash = 't')").await;
    browser.until(&says("no segment")).await;
    browser.ask("void (window.fetch = real)").await;
    browser
        .until("document.querySelector('#state').dataset.is === 'live'")
        .await;
    browser.shows(&server.listed("t")).await;

    // A 404 that does not mean a session without events.
    browser
        .ask(&fail(
            "/events?",
            "new Response('not this server', {status: 404})",
        ))
        .await;
    browser.ask("void (location.hash = 'u')").await;
    browser.until(&says("not this server")).await;
    browser
        .ask("void (window.fetch = real, location.hash = 't')")
        .await;
    browser
        .until("document.querySelector('#state').dataset.is === 'live'")
        .await;

    // Faults of the page's own.
    browser
        .ask("void (window.gist = () => { throw new Error('no gist') })")
        .await;
    server.append("t", ["1", "2"].map(|data| NewEvent::new("note", data)));
    browser
        .until("document.querySelectorAll('.event').length === 3")
        .await;
    let shown = browser
        .ask("[...document.querySelectorAll('.event')].slice(1).map(event => event.textContent)")
        .await;
    let listed = server.listed("t");
    for (shown, event) in shown.as_array().unwrap().iter().zip(&listed[1..]) {
        let shown = shown.as_str().unwrap();
        assert!(
            shown.contains("no gist") && shown.contains(&event.raw),
            "{shown}"
        );
    }
    assert_eq!(
        browser.shown().await,
        listed
            .iter()
            .map(|event| event.id.clone())
            .collect::<Vec<_>>()
    );
    browser
        .ask("void (document.querySelector('#name').remove(), location.hash = 's')")
        .await;
    browser.until(&says("In this page: ")).await;
    browser.end().await;
}

/// Sessions, too, are shown under their exact names.
pub(crate) async fn a_session_of_any_name_is_listed_and_opens() {
    let browser = Browser::start().await;
    let server = InProcess::start().await;
    let longest = "\u{1f980}".repeat(64);
    let names = [
        "%",
        "%2e",
        "%2E%2E",
        "...",
        "a/b",
        "/",
        "?",
        "#",
        "a?after=1#x",
        "\"'`<b>&amp;",
        "\\",
        " a",
        "a ",
        "a  b",
        "+",
        "\u{202e}abc",
        "\u{5d0}\u{5d1}",
        "__proto__",
        "constructor",
        "toString",
        "null",
        &longest,
    ];
    for name in names {
        server.append(name, [NewEvent::new("note", json!(name).to_string())]);
    }
    browser.client.goto(&server.url).await.unwrap();
    browser
        .until(&format!(
            "document.querySelectorAll('#sessions b').length === {}",
            names.len()
        ))
        .await;
    for name in names {
        let button = format!(
            "[...document.querySelectorAll('#sessions button')]\
             .find(button => button.dataset.session === {})",
            json!(name)
        );
        assert_eq!(
            browser
                .ask(&format!("{button}.querySelector('b').innerText"))
                .await,
            name
        );
        browser.ask(&format!("void {button}.click()")).await;
        browser
            .until(&format!(
                "document.querySelector('#name').innerText === {}",
                json!(name)
            ))
            .await;
        browser
            .until("document.querySelector('#state').dataset.is === 'live'")
            .await;
        browser.shows(&server.listed(name)).await;
        // The address leads there again.
        let from_hash = browser
            .ask("decodeURIComponent(location.hash.slice(1))")
            .await;
        assert_eq!(from_hash, name);
    }
    // No URL holds these names: the page reports that, and requests no other session instead.
    for name in [".", ".."] {
        server.append(name, [NewEvent::new("note", "1")]);
        browser
            .ask(&format!("void (location.hash = '{name}')"))
            .await;
        browser
            .until(&format!(
                "document.querySelector('#state').textContent\
                 .startsWith('no URL holds the name \\\"{name}\\\"')"
            ))
            .await;
    }
    browser.end().await;
}

/// The walk to the recent sessions is bounded.
pub(crate) async fn a_list_of_recent_sessions_that_was_cut_short_says_so_and_leads_to_all() {
    let browser = Browser::start().await;
    let server = InProcess::start().await;
    let append = |range: std::ops::Range<u32>| {
        for n in range {
            server.append(&format!("session {n:03}"), [NewEvent::new("note", "1")]);
        }
    };
    append(0..99);
    browser.client.goto(&server.url).await.unwrap();
    browser
        .until("document.querySelectorAll('#sessions b').length === 99")
        .await;
    let offer = "document.querySelector('#sessions .more button')";
    assert_eq!(browser.ask(offer).await, Value::Null);
    append(99..205);
    browser
        .element("[data-order=recent]")
        .await
        .click()
        .await
        .unwrap();
    browser
        .until("document.querySelectorAll('#sessions b').length === 100")
        .await;
    let note = browser
        .ask("document.querySelector('#sessions .more')?.innerText")
        .await;
    assert!(
        note.as_str()
            .unwrap()
            .contains("There may be more sessions"),
        "{note}"
    );
    browser
        .element("#sessions .more button")
        .await
        .click()
        .await
        .unwrap();
    for count in [100, 200, 205] {
        browser
            .until(&format!(
                "document.querySelectorAll('#sessions b').length === {count}"
            ))
            .await;
        if count < 205 {
            browser
                .element("#sessions .more button")
                .await
                .click()
                .await
                .unwrap();
        }
    }
    assert_eq!(browser.ask(offer).await, Value::Null);
    let names = browser
        .ask("[...document.querySelectorAll('#sessions b')].map(name => name.innerText)")
        .await;
    let all: Vec<_> = (0..205).map(|n| format!("session {n:03}")).collect();
    assert_eq!(names, json!(all));
    browser.end().await;
}
