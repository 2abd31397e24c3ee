//! How much is read where the index does not answer, as on a log opened for reading only. Reads are
//! counted without a cache.

use super::*;

/// The reads that find and show one run: of its segment, and of the one before.
const READS_A_RUN: u64 = 10;

/// The reads of a page beyond those of its runs: for the head, and for where the page begins. Both
/// grow with the logarithm of the number of segments.
const READS_A_PAGE: u64 = 60;

/// Returns a closed log of at least `segments` segments, all events of the scene's session, and the
/// number of segments. Each segment has a turn's event of that session.
fn fill(segments: u64) -> (Scene, Vec<Event>, u64) {
    let (scene, log) = Scene::new();
    log.close().unwrap();
    let options = Options::new().recent_bytes_max(0);
    let log = scene.open_with(options.merge_fanout(usize::MAX)).unwrap();
    let mut events = log
        .append(
            &scene.session,
            Batch::new().user_message("a turn that does not end"),
        )
        .unwrap()
        .events;
    let turn = events[0].message_id.unwrap();
    while log.stats().segments < segments {
        let event = NewEvent::new("note", events.len().to_string()).in_turn(turn);
        events.extend(
            log.append(&scene.session, Batch::new().event(event))
                .unwrap()
                .events,
        );
    }
    let segments = log.stats().segments;
    log.close().unwrap();
    (scene, events, segments)
}

/// Opens the log for reading only, and returns the result of `read` and the number of its reads.
fn counted<T>(scene: &Scene, read: impl FnOnce(&SessionLog) -> T) -> (T, u64) {
    let log = scene
        .open_with(Options::new().read_only().cache_bytes_max(0))
        .unwrap();
    // The session's head is looked up once.
    log.head(&scene.session).unwrap();
    scene.plan.reads.store(0, Ordering::SeqCst);
    let answer = read(&log);
    (answer, scene.plan.reads.load(Ordering::SeqCst))
}

/// A session in many segments, read without the index.
#[test]
fn without_the_index_a_page_reads_no_more_for_a_run_where_there_are_more_segments() {
    const SEGMENTS: u64 = 96;
    let (scene, events, segments) = fill(SEGMENTS);
    let check =
        |what: &str, runs: u64, read: &dyn Fn(&SessionLog) -> Vec<Event>, expected: Vec<Event>| {
            let (shown, reads) = counted(&scene, read);
            assert_eq!(shown, expected, "{what}");
            let reads_max = READS_A_PAGE + READS_A_RUN * runs;
            assert!(
                reads <= reads_max,
                "{what}: {reads} reads of {segments} segments, and {reads_max} are enough"
            );
        };
    let session = &scene.session;
    let list =
        |page: PageRequest| move |log: &SessionLog| log.list(session, page.clone()).unwrap().items;
    let (all, downwards) = (
        events.clone(),
        events.iter().rev().cloned().collect::<Vec<_>>(),
    );
    let (middle, half) = (events[events.len() / 2].seq, events.len() / 2);
    let newest = PageRequest::new().newest_first();
    let of_type = PageRequest::new().types([crate::model::USER_MESSAGE]);
    for (what, runs, page, expected) in [
        (
            "all, oldest first",
            segments,
            PageRequest::new().limit(1_000),
            &all[..],
        ),
        (
            "all, newest first",
            segments,
            newest.clone().limit(1_000),
            &downwards,
        ),
        (
            "one",
            1,
            PageRequest::new().after(middle).limit(1),
            &events[half + 1..half + 2],
        ),
        ("the oldest", 1, PageRequest::new().limit(1), &events[..1]),
        ("the newest", 1, newest.limit(1), &downwards[..1]),
        ("of a type", segments, of_type, &events[..1]),
    ] {
        check(what, runs, &list(page), expected.to_vec());
    }
    let stream = |log: &SessionLog| {
        log.stream(session, StartAt::Beginning)
            .unwrap()
            .until_tail()
            .events()
            .map(Result::unwrap)
            .collect()
    };
    check("a stream", segments, &stream, all.clone());
    let fold = |log: &SessionLog| {
        let page = log.messages(session, PageRequest::new()).unwrap();
        assert_eq!(page.items.len(), 1);
        all.clone()
    };
    // Each segment is read once for the turns that were opened, and once for what follows them.
    check("a page of messages", 2 * segments, &fold, all.clone());
}

/// Events on either side of the damage are read, and nothing is shown in its place.
#[test]
fn without_the_index_a_damaged_segment_hides_its_own_events_and_no_others() {
    let (scene, events, segments) = fill(20);
    let damaged = scene
        .folder
        .path()
        .join(format!("segments/{:016}.segment", segments / 2));
    let file = RealDisk::default().open(&damaged, Mode::Write).unwrap();
    file.write_all_at(
        &vec![0xFF; usize::try_from(file.len().unwrap()).unwrap()],
        0,
    )
    .unwrap();
    for options in [Options::new().read_only(), Options::new()] {
        let index = scene.folder.path().join("index");
        if RealDisk::default().exists(&index).unwrap() {
            RealDisk::default().remove_tree(&index).unwrap();
        }
        let log = scene.open_with(options).unwrap();
        let mut hidden = Vec::new();
        for event in &events {
            match log.list(
                &scene.session,
                PageRequest::new().after(event.seq - 1).limit(1),
            ) {
                Ok(page) => assert_eq!(page.items, std::slice::from_ref(event)),
                Err(Error::Corrupt { file, .. }) if file == damaged => hidden.push(event.seq),
                Err(other) => panic!("seq {}: {other:?}", event.seq),
            }
        }
        let (Some(first), Some(last)) = (hidden.first(), hidden.last()) else {
            panic!("nothing was damaged")
        };
        assert!(
            last - first + 1 == hidden.len() as u64,
            "{hidden:?} are no stretch"
        );
        assert!(
            hidden.len() < events.len() / 4,
            "{hidden:?} of {} are hidden",
            events.len()
        );
    }
}
