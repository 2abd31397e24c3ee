//! tephra: an event store with one order of all events, found by tags. The session is a tag, and so
//! is the ID in workloads that look it up.

use std::sync::Arc;
use std::thread::JoinHandle;

use tephra::{
    Event, EventType, Position, Query, QueryItem, SegmentConfig, SegmentSet, Tag, Tags,
    WriteCoordinator, WriteHandle, WriterConfig,
};

use super::{Described, Finds};
use crate::store::{Answer, Entry, Following, Ids, Open, Peer, See, Seen, session_name};

pub(super) const DESCRIBED: Described = Described {
    name: "tephra",
    form: None,
    groups: true,
    finds: Finds::Ids,
    setting: "its defaults (always synced), segments of 256 MiB",
};

const SEGMENT_BYTES: usize = 256 << 20;

pub(super) struct Tephra {
    handle: WriteHandle,
    coordinator: Option<WriteCoordinator>,
    kind: EventType,
    ids: Ids,
}

impl Tephra {
    pub(super) fn open(open: Open<'_>) -> Self {
        let set =
            SegmentSet::open(open.folder, SegmentConfig::new(SEGMENT_BYTES)).expect("tephra opens");
        let (coordinator, handle) =
            WriteCoordinator::start(set, WriterConfig::default()).expect("tephra starts");
        Self {
            handle,
            coordinator: Some(coordinator),
            kind: EventType::new("bench.event").expect("a type"),
            ids: open.ids,
        }
    }

    fn events(&self, entries: &[Entry]) -> Vec<Event> {
        let event = |entry: &Entry| {
            let id = (self.ids == Ids::Found).then(|| id_tag(entry.id));
            let tags = Tags::new([session_tag(entry.session)].into_iter().chain(id)).expect("tags");
            Event::new(&self.kind, &tags, &entry.value).expect("an event")
        };
        entries.iter().map(event).collect()
    }
}

fn session_tag(session: u32) -> Tag {
    Tag::new(session_name(session)).expect("a tag")
}

fn id_tag(id: u128) -> Tag {
    Tag::new(format!("id:{id:032x}")).expect("a tag")
}

fn tagged(tag: Tag) -> Query {
    Query::item(QueryItem::with_tags(Tags::new([tag]).expect("tags")))
}

impl Peer for Tephra {
    fn commit(&self, entries: &[Entry]) {
        self.handle
            .append(self.events(entries), None)
            .expect("the commit succeeds");
    }

    fn commit_async(self: Arc<Self>, entries: Vec<Entry>) -> Answer<'static> {
        let events = self.events(&entries);
        Box::pin(async move {
            let _positions = self
                .handle
                .append_async(events, None)
                .await
                .expect("the commit succeeds");
        })
    }

    /// Its positions count all events, so a place in a session has to be counted.
    fn scan(&self, session: u32, seq: u64, limit: usize, see: See<'_>) {
        let before = seq - 1;
        let mut events = self.handle.read(
            &tagged(session_tag(session)),
            Position::ZERO,
            Some(before + limit as u64),
        );
        let mut nth = 0;
        while let Some(event) = events.next() {
            nth += 1;
            if nth > before {
                see(event.expect("an event").event.data());
            }
        }
    }

    fn scan_back(&self, session: u32, limit: usize, see: See<'_>) {
        let mut events = self.handle.read_back(
            &tagged(session_tag(session)),
            Position::MAX,
            Some(limit as u64),
        );
        while let Some(event) = events.next() {
            see(event.expect("an event").event.data());
        }
    }

    fn find(&self, id: u128, see: See<'_>) {
        let mut events = self
            .handle
            .read(&tagged(id_tag(id)), Position::ZERO, Some(1));
        see(events
            .next()
            .expect("the event is there")
            .expect("an event")
            .event
            .data());
    }

    fn follow(&self, session: u32, mut seen: Seen) -> JoinHandle<()> {
        let mut stream = self
            .handle
            .subscribe(tagged(session_tag(session)), self.handle.head());
        std::thread::spawn(move || {
            while let Some(events) = stream.next_batch() {
                for _event in events.expect("the stream goes on") {
                    if seen() == Following::Enough {
                        return;
                    }
                }
            }
        })
    }
}

impl Drop for Tephra {
    fn drop(&mut self) {
        if let Some(coordinator) = self.coordinator.take() {
            drop(coordinator.shutdown());
        }
    }
}
