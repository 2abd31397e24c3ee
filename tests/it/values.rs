//! The values that callers keep: they survive serde, follow their own rules, and lead from page to
//! page.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sessionlog::{
    Ack, Batch, Error, Event, EventType, Head, NewEvent, PageRequest, RecvTimeout, SessionId,
    StartAt, Stats,
};

use crate::support::{
    DEADLINE, append_notes, assert_error, folder, note, notes, open, seqs, session,
};

fn check_round_trip<T>(value: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let text = serde_json::to_string(value).unwrap();
    let again: T = serde_json::from_str(&text).unwrap();
    assert_eq!(again, *value, "{text}");
}

#[test]
fn what_a_log_returns_survives_serde() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s \u{1f600}");
    let batch = Batch::new()
        .user_message("hello")
        .event(NewEvent::new("note", vec![0, 255, b'"']));
    let ack: Ack = log.append(&id, batch).unwrap();
    check_round_trip::<Ack>(&ack);
    check_round_trip::<Event>(&ack.events[1]);
    check_round_trip::<SessionId>(&id);
    check_round_trip::<EventType>(&ack.events[0].event_type);
    check_round_trip::<Head>(&log.head(&id).unwrap());
    let message = log.message(ack.events[0].message_id.unwrap()).unwrap();
    check_round_trip(&message);
    let page = serde_json::to_value(log.list(&id, PageRequest::new()).unwrap()).unwrap();
    assert_eq!(page["items"][0]["event_type"], "user.message");
    let stats: Stats = log.stats();
    assert_eq!(serde_json::to_value(stats).unwrap()["events"], 2);
}

#[test]
fn a_name_is_checked_wherever_it_comes_from() {
    for bad in ["", "a\nb", "\u{7f}"] {
        assert_error!(EventType::new(bad), Error::Invalid { .. });
        assert_error!(EventType::try_from(bad), Error::Invalid { .. });
        assert_error!(SessionId::try_from(bad.to_owned()), Error::Invalid { .. });
        let text = serde_json::to_string(bad).unwrap();
        serde_json::from_str::<EventType>(&text).unwrap_err();
        serde_json::from_str::<SessionId>(&text).unwrap_err();
        let dir = folder();
        let refused = open(&dir).append(&session("s"), NewEvent::new(bad, "{}"));
        assert_error!(refused, Error::Invalid { .. });
    }
    assert_error!(EventType::new("x".repeat(1 << 17)), Error::TooLarge { .. });
    assert_eq!("note".parse::<EventType>().unwrap(), "note");
}

#[test]
fn a_batch_is_made_of_events_in_every_usual_way() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    log.append(&id, note("1")).unwrap();
    let mut batch: Batch = ["2", "3"].map(note).into_iter().collect();
    batch.extend([note("4")]);
    let ack = log.append(&id, batch).unwrap();
    assert_eq!(seqs(&ack.events), [2, 3, 4]);
}

#[test]
fn the_next_page_continues_the_one_before() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let mut notes_at = Vec::new();
    let mut turns_at = Vec::new();
    for round in 0..10 {
        let ack = append_notes(&log, &id, &round.to_string(), 2);
        notes_at.extend(seqs(&ack));
        let turn = log.append(&id, Batch::new().user_message("hello")).unwrap();
        turns_at.push(turn.first);
    }
    let list = |request: PageRequest| {
        let page = log.list(&id, request).unwrap();
        let items: Vec<u64> = page.items.iter().map(|event| event.seq).collect();
        (page, items)
    };
    let walk = |request: PageRequest| {
        let mut all = Vec::new();
        let mut next = Some(request);
        while let Some(request) = next {
            let (page, items) = list(request);
            assert_eq!(page.has_more, page.next_page().is_some());
            next = page.next_page();
            all.extend(items);
        }
        all
    };
    let only_notes = PageRequest::new().types(["note"]).limit(3);
    assert_eq!(walk(only_notes.clone()), notes_at);
    let bounded = only_notes.clone().after(3).before(20);
    let between: Vec<u64> = notes_at
        .iter()
        .copied()
        .filter(|seq| (4..20).contains(seq))
        .collect();
    assert_eq!(walk(bounded.clone()), between);
    let mut reversed = between;
    reversed.reverse();
    assert_eq!(walk(bounded.newest_first()), reversed);
    let mut turns = Vec::new();
    let mut next = Some(PageRequest::new().newest_first().limit(3));
    while let Some(request) = next {
        let page = log.messages(&id, request).unwrap();
        next = page.next_page();
        turns.extend(page.items.iter().map(|message| message.seq));
    }
    turns.reverse();
    assert_eq!(turns, turns_at);
}

#[test]
fn only_creation_waits_for_a_session() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    for start in [StartAt::Beginning, StartAt::Now, StartAt::after(0)] {
        assert_error!(log.stream(&id, start), Error::UnknownSession { .. });
    }
    let mut stream = log.stream(&id, StartAt::Creation).unwrap();
    stream.next_timeout(DEADLINE).expect("it has caught up");
    log.append(&id, notes("n", 1)).unwrap();
    let event = stream.next_timeout(DEADLINE).unwrap().into_event();
    assert_eq!(event.map(|event| event.seq), Some(1));
    stream.next_timeout(DEADLINE).expect("it has caught up");
    log.close().unwrap();
    let ended = stream.next_timeout(DEADLINE);
    assert!(matches!(ended, Err(RecvTimeout::Ended)), "{ended:?}");
}
