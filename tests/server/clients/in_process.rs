//! A server in the test's own process, and its events as they come over the wire.

use serde::Deserialize;
use serde_json::value::RawValue;
use sessionlog::http::{self, Config};
use sessionlog::{Batch, NewEvent, SessionLog};
use tokio::task::JoinHandle;

use crate::process::agent;

/// A server in this process. Its log appends through the library what no HTTP call can append.
pub(crate) struct InProcess {
    log: SessionLog,
    pub(crate) url: String,
    serving: JoinHandle<std::io::Result<()>>,
    _folder: tempfile::TempDir,
}

impl InProcess {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = SessionLog::open(folder.path()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(http::serve(
            listener,
            log.clone(),
            Config::open(),
            std::future::pending(),
        ));
        Self {
            log,
            url,
            serving,
            _folder: folder,
        }
    }

    pub(crate) fn append(&self, session: &str, events: impl IntoIterator<Item = NewEvent>) {
        self.log
            .append(&session.parse().unwrap(), Batch::new().events(events))
            .unwrap();
    }

    /// Returns whether the request was accepted.
    pub(crate) fn post(&self, session: &str, body: &str) -> bool {
        let request = agent().post(format!(
            "{}/v1/sessions/{}/events",
            self.url,
            in_url(session)
        ));
        match request
            .header("content-type", "application/json")
            .send(body)
        {
            Ok(_stored) => true,
            Err(ureq::Error::StatusCode(400)) => false,
            Err(error) => panic!("{error} for {body}"),
        }
    }

    fn get(&self, session: &str, rest: &str) -> String {
        let url = format!("{}/v1/sessions/{}/{rest}", self.url, in_url(session));
        agent()
            .get(url)
            .call()
            .unwrap()
            .body_mut()
            .with_config()
            .limit(u64::MAX)
            .read_to_string()
            .unwrap()
    }

    /// Returns the events of a session as the list call has them.
    pub(crate) fn listed(&self, session: &str) -> Vec<Wire> {
        let mut events: Vec<Wire> = Vec::new();
        loop {
            let after = events
                .last()
                .map(|last| format!("&after={}", last.id))
                .unwrap_or_default();
            let page = self.get(session, &format!("events?limit=1000{after}"));
            let page: Listed<'_> = serde_json::from_str(&page).unwrap();
            events.extend(page.events.iter().map(|event| Wire::new(event.get())));
            if !page.has_more {
                return events;
            }
        }
    }

    /// Returns the events after one as the stream has them.
    pub(crate) fn streamed(&self, session: &str, after: &str) -> Vec<Wire> {
        let frames = self.get(session, &format!("stream?follow=false&after={after}"));
        let frames = frames
            .split("\n\n")
            .filter(|frame| frame.starts_with("id: "));
        frames
            .map(|frame| Wire::new(frame.split("\ndata: ").nth(1).unwrap()))
            .collect()
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
    has_more: bool,
}

/// An event as it came over the wire.
pub(crate) struct Wire {
    pub(crate) id: String,
    pub(crate) raw: String,
}

impl Wire {
    fn new(raw: &str) -> Self {
        #[derive(Deserialize)]
        struct Identified {
            id: String,
        }
        let Identified { id } = serde_json::from_str(raw).unwrap();
        Self {
            id,
            raw: raw.to_owned(),
        }
    }
}

/// Encodes a name as a part of a URL.
pub(crate) fn in_url(name: &str) -> String {
    let part = |byte: u8| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    name.bytes().map(part).collect()
}
