//! How much is read for a turn without an end. Reads are counted without a cache.

use super::*;
use crate::{Compression, Message, MessageId, MessageStatus};

const EVENTS: usize = 16_000;

/// The reads for the event that opened the turn, for the page's beginning, and for newer events.
const READS_TO_GO_ON: u64 = 40;

/// Returns a log with two turns: one that is over, and an endless one followed by many events in
/// segments.
fn endless() -> (Scene, SessionLog, [MessageId; 2]) {
    let (scene, log) = Scene::new();
    log.close().unwrap();
    // The events are alike. Compressed, they would leave too little to read.
    let options = Options::new()
        .journal_file_bytes_max(4 * MIB)
        .compression(Compression::None);
    let log = scene.open_with(options.clone()).unwrap();
    let [over, endless] = ["over", "without an end"].map(|text| {
        log.append(&scene.session, Batch::new().user_message(text))
            .unwrap()
            .events[0]
            .message_id
            .unwrap()
    });
    end(&scene, &log, over);
    for _ in 0..EVENTS / 1_000 {
        let note = || NewEvent::new("note", vec![b'0'; 1_000]).in_turn(endless);
        log.append(
            &scene.session,
            Batch::new().events((0..1_000).map(|_| note())),
        )
        .unwrap();
    }
    eventually("most of it is in segments", || log.stats().segments >= 2);
    log.close().unwrap();
    let options = options.cache_bytes_max(0).scan_bytes_max(64 * MIB);
    let log = scene.open_with(options).unwrap();
    log.head(&scene.session).unwrap();
    (scene, log, [over, endless])
}

fn end(scene: &Scene, log: &SessionLog, turn: MessageId) {
    let status = NewEvent::new("message.status_changed", r#"{"status":"completed"}"#).in_turn(turn);
    log.append(&scene.session, Batch::new().event(status))
        .unwrap();
}

fn say(scene: &Scene, log: &SessionLog, turn: MessageId) {
    let said =
        NewEvent::new("assistant.message_completed", r#"{"text":"Still here."}"#).in_turn(turn);
    log.append(&scene.session, Batch::new().event(said))
        .unwrap();
}

/// Returns the result of `read`, and how many bytes in how many reads it took from the disk.
fn counted<T>(scene: &Scene, read: impl FnOnce() -> T) -> (T, u64, u64) {
    scene.plan.reads.store(0, Ordering::SeqCst);
    scene.plan.read.store(0, Ordering::SeqCst);
    let answer = read();
    (
        answer,
        scene.plan.reads.load(Ordering::SeqCst),
        scene.plan.read.load(Ordering::SeqCst),
    )
}

#[test]
fn a_turn_without_an_end_is_read_once_and_then_goes_on() {
    let (scene, log, [over, endless]) = endless();
    let message = || log.message(endless).unwrap();
    let (first, reads, bytes) = counted(&scene, message);
    assert!(
        reads > 5 * READS_TO_GO_ON && bytes > 4 * MIB as u64,
        "{reads} reads of {bytes} bytes: nothing was there to read"
    );
    assert_eq!(first.status, MessageStatus::Queued);
    let goes_on = |what: &str, read: &dyn Fn() -> Message| {
        let (message, reads, bytes) = counted(&scene, read);
        assert!(
            reads <= READS_TO_GO_ON,
            "{what}: {reads} reads of {bytes} bytes"
        );
        message
    };
    // The page begins after the finished turn, or with it. A page of both reads the events of both,
    // and nothing after them.
    let on_page = |page: PageRequest| {
        log.messages(&scene.session, page)
            .unwrap()
            .items
            .pop()
            .unwrap()
    };
    let alone = || on_page(PageRequest::new().after(1).before(4).limit(1));
    let with_other = || on_page(PageRequest::new().before(4).limit(2));
    assert_eq!(goes_on("again", &message), first);
    assert_eq!(goes_on("on a page", &alone), first);
    assert_eq!(
        goes_on("on a page with one that is over", &with_other),
        first
    );
    for said in 1..=3 {
        say(&scene, &log, endless);
        say(&scene, &log, over);
        let message = goes_on("after more events", &message);
        assert_eq!(
            (message.status, message.output.len()),
            (MessageStatus::Running, 1),
            "the same again is no more, {said} times"
        );
        assert_eq!(goes_on("on a page after more events", &with_other), message);
    }
    end(&scene, &log, endless);
    let ended = goes_on("after its end", &message);
    assert_eq!(ended.status, MessageStatus::Completed);
    assert_eq!(goes_on("on a page after its end", &alone), ended);
    say(&scene, &log, endless);
    assert_eq!(goes_on("after events behind its end", &message), ended);
    drop(log);
    let log = scene.open();
    assert_eq!(
        log.message(endless).unwrap(),
        ended,
        "as it is read by who has never read it"
    );
}
