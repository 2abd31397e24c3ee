//! The traits of `tower-mcp` 0.25.

use async_trait::async_trait;
use tower_mcp::event_store::{EventRecord, EventStore, EventStoreError};
use tower_mcp::session_store::{SessionRecord, SessionStore, SessionStoreError};

use crate::mcp::store::{EVENT, Kind, SESSION, Store};
use crate::model::{Error, Expected, NewEvent, Result};
use crate::read::PageRequest;

/// When `append` returns, the event is on stable storage. A replay reads all events of the session
/// that are kept, since several streams of one session may store their events out of order. It
/// has them in the order of their IDs.
#[async_trait]
impl EventStore for Store {
    async fn append(&self, session_id: &str, event: EventRecord) -> Result<(), EventStoreError> {
        let session = self
            .session(Kind::TowerEvents, session_id)
            .map_err(events_failed)?;
        let event =
            NewEvent::json(EVENT, &event).map_err(|e| EventStoreError::Encode(chain(&e)))?;
        Store::append(self, &session, event)
            .await
            .map(drop)
            .map_err(events_failed)
    }

    async fn replay_after(
        &self,
        session_id: &str,
        after_id: u64,
    ) -> Result<Vec<EventRecord>, EventStoreError> {
        let Ok(session) = self.session(Kind::TowerEvents, session_id) else {
            return Ok(Vec::new());
        };
        let read = self.reading(move |log| {
            let mut events = Vec::new();
            let mut next = Some(PageRequest::new().types([EVENT]));
            while let Some(request) = next {
                let page = match log.list(&session, request) {
                    Ok(page) => page,
                    Err(Error::UnknownSession { .. }) => break,
                    Err(error) => return Err(error),
                };
                for event in page.items.iter().filter(|event| !event.redacted) {
                    let record = event.json::<EventRecord>();
                    if record.as_ref().is_ok_and(|record| record.id <= after_id) {
                        continue;
                    }
                    events.push(record.map_err(|e| EventStoreError::Decode(chain(&e))));
                }
                next = page.next_page();
            }
            Ok(events)
        });
        let read = read.await.map_err(events_failed)?;
        let mut events = read.into_iter().collect::<Result<Vec<_>, _>>()?;
        events.sort_by_key(|event| event.id);
        Ok(events)
    }

    async fn purge_session(&self, session_id: &str) -> Result<(), EventStoreError> {
        self.remove(Kind::TowerEvents, session_id)
            .await
            .map_err(events_failed)
    }
}

/// A record is on stable storage when `create` or `save` returns, and removed some time after it
/// has expired. `create` gives a record whose ID is taken, also by an expired one, another ID.
#[async_trait]
impl SessionStore for Store {
    async fn create(&self, record: &mut SessionRecord) -> Result<(), SessionStoreError> {
        let mut new = record.clone();
        loop {
            match keep(self, &new, Expected::Absent).await {
                Err(Refused::Log(Error::ExpectedMismatch { .. })) => {
                    new.id = uuid::Uuid::new_v4().to_string();
                }
                created => {
                    created.map_err(Refused::into_error)?;
                    *record = new;
                    return Ok(());
                }
            }
        }
    }

    async fn save(&self, record: &SessionRecord) -> Result<(), SessionStoreError> {
        keep(self, record, Expected::Any)
            .await
            .map_err(Refused::into_error)
    }

    async fn load(&self, id: &str) -> Result<Option<SessionRecord>, SessionStoreError> {
        let stored = self.record(Kind::TowerSession, id);
        let Some(event) = stored.await.map_err(sessions_failed)? else {
            return Ok(None);
        };
        let record: SessionRecord = event
            .json()
            .map_err(|e| SessionStoreError::Decode(chain(&e)))?;
        Ok(Some(record).filter(|record| !record.is_expired()))
    }

    async fn delete(&self, id: &str) -> Result<(), SessionStoreError> {
        self.remove(Kind::TowerSession, id)
            .await
            .map_err(sessions_failed)
    }
}

/// Why a record was not stored.
enum Refused {
    Encode(Error),
    Log(Error),
}

impl Refused {
    fn into_error(self) -> SessionStoreError {
        match self {
            Self::Encode(error) => SessionStoreError::Encode(chain(&error)),
            Self::Log(error) => sessions_failed(error),
        }
    }
}

/// Stores a record for as long as it says.
async fn keep(store: &Store, record: &SessionRecord, expected: Expected) -> Result<(), Refused> {
    let session = store
        .session(Kind::TowerSession, &record.id)
        .map_err(Refused::Log)?;
    let event = NewEvent::json(SESSION, record).map_err(Refused::Encode)?;
    // Both times are of one moment, so this is the time to live that the server was given.
    let kept = record.expires_at.duration_since(record.last_accessed);
    store
        .put(&session, event, Some(kept.unwrap_or_default()), expected)
        .await
        .map_err(Refused::Log)
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn events_failed(error: Error) -> EventStoreError {
    EventStoreError::Backend(chain(&error))
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn sessions_failed(error: Error) -> SessionStoreError {
    SessionStoreError::Backend(chain(&error))
}

/// Returns an error with its causes: the errors of the library hold text alone.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
