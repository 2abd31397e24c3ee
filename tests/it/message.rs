//! A turn reads back as one message, at once and wherever its events lie.

use serde_json::{Value, json};
use sessionlog::{
    Batch, ContentBlock, Error, Event, EventId, Message, MessageId, MessageStatus, NewEvent,
    Options, PageRequest, Seq, SessionId, SessionLog, UserMessage,
};

use crate::support::{
    OpenIn, append_notes, assert_error, folder, note, notes, open, seal_once, session, small_files,
};

use MessageStatus::{Cancelled, Completed, Failed, Queued, Running, WaitingForTool};

/// Opens a turn and returns its event.
fn ask(log: &SessionLog, session: &SessionId, text: &str) -> Event {
    log.append(session, Batch::new().user_message(text))
        .unwrap()
        .events
        .remove(0)
}

/// Appends an event of a turn.
fn tell(
    log: &SessionLog,
    session: &SessionId,
    turn: MessageId,
    event_type: &str,
    data: &Value,
) -> Event {
    let event = NewEvent::json(event_type, data).unwrap().in_turn(turn);
    log.append(session, Batch::new().event(event))
        .unwrap()
        .events
        .remove(0)
}

fn tell_status(log: &SessionLog, session: &SessionId, turn: MessageId, data: &Value) -> Event {
    tell(log, session, turn, "message.status_changed", data)
}

#[test]
fn a_message_can_be_read_as_soon_as_its_append_returned() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    append_notes(&log, &id, "before", 2);
    let asked = UserMessage::text("Summarize this ticket.")
        .with_block(ContentBlock::file("file_456"))
        .with_block(ContentBlock::of_type("sketch").with("strokes", json!([1, 2])))
        .with_metadata("ticket_id", "T-1042");
    for n in 0..20 {
        let ack = log
            .append(&id, Batch::new().user_message(asked.clone()))
            .unwrap();
        let message = log.message(ack.events[0].message_id.unwrap()).unwrap();
        assert_eq!(
            (message.id, &message.session_id),
            (MessageId::from(ack.events[0].id), &id)
        );
        assert_eq!(
            (message.seq, message.created_at),
            (3 + n, ack.events[0].created_at)
        );
        assert_eq!(
            (&message.content, &message.metadata),
            (&asked.content, &asked.metadata)
        );
        assert_eq!(
            (message.status, message.attempt, message.completed_at),
            (Queued, 1, None)
        );
        assert_eq!((message.output, message.error), (vec![], None));
    }
}

#[test]
fn a_message_shows_each_step_of_its_turn_at_once() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let turn = MessageId::from(ask(&log, &id, "hello").id);
    let (look, done) = (json!({"text": "I look."}), json!({"text": "Done."}));
    let (first, second) = (json!({"call_id": "c1"}), json!({"call_id": "c2"}));
    let (running, failed) = (json!({"status": "running"}), json!({"status": "failed"}));
    let steps = [
        ("message.status_changed", &running, Running, 0),
        ("assistant.message_completed", &look, Running, 1),
        ("tool.call_requested", &first, WaitingForTool, 1),
        ("tool.call_requested", &second, WaitingForTool, 1),
        ("tool.call_completed", &first, WaitingForTool, 1),
        ("tool.call_failed", &second, Running, 1),
        ("agent.thought_of_later", &failed, Running, 1),
        ("assistant.message_completed", &done, Running, 2),
    ];
    for (event_type, data, status, said) in steps {
        tell(&log, &id, turn, event_type, data);
        let message = log.message(turn).unwrap();
        assert_eq!(
            (message.status, message.output.len(), message.completed_at),
            (status, said, None),
            "after {event_type}"
        );
    }
    let end = tell_status(&log, &id, turn, &json!({"status": "completed"}));
    let message = log.message(turn).unwrap();
    assert_eq!(
        (message.status, message.completed_at),
        (Completed, Some(end.created_at))
    );
    assert_eq!(message.output, [look, done]);

    for late in [
        json!({"status": "failed", "error": "late"}),
        json!({"status": "running", "attempt": 2}),
    ] {
        tell_status(&log, &id, turn, &late);
        tell(
            &log,
            &id,
            turn,
            "assistant.message_completed",
            &json!({"text": "late"}),
        );
        assert_eq!(log.message(turn).unwrap(), message);
    }
}

#[test]
fn a_turn_may_begin_and_end_in_one_batch() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let first = ask(&log, &id, "one");
    let end = |status: &str| {
        NewEvent::json(
            "message.status_changed",
            &json!({"status": status, "error": "why"}),
        )
        .unwrap()
    };
    let batch = notes("n", 1)
        .event(end("failed").in_turn(first.id.into()))
        .user_message("two")
        .event(end("completed"));
    let events = log.append(&id, batch).unwrap().events;
    let message = log.message(first.id.into()).unwrap();
    assert_eq!(
        (message.status, message.error),
        (Failed, Some("why".into()))
    );
    assert_eq!(
        log.message(events[2].id.into()).unwrap().status,
        Queued,
        "an event that names no turn belongs to none"
    );
}

#[test]
fn a_turn_is_cancelled_by_a_status_alone_and_stays_so() {
    let dir = folder();
    let mut log = small_files().open_in(&dir).unwrap();
    let id = session("s");
    let turn = MessageId::from(ask(&log, &id, "a long task").id);
    let said = json!({"text": "I look."});
    tell(&log, &id, turn, "assistant.message_completed", &said);
    tell(
        &log,
        &id,
        turn,
        "tool.call_requested",
        &json!({"call_id": 1}),
    );
    for no_end in ["user.interrupt", "message.cancelled"] {
        let told = tell(&log, &id, turn, no_end, &json!({"status": "cancelled"}));
        let message = log.message(turn).unwrap();
        assert_eq!(
            (message.status, message.completed_at),
            (WaitingForTool, None)
        );
        assert_eq!(told.message_id, Some(turn), "{no_end}");
    }
    tell_status(&log, &id, turn, &json!({"status": "canceled"}));
    assert_eq!(log.message(turn).unwrap().status, WaitingForTool, "unknown");

    let cancelled = json!({"status": "cancelled", "error": "only a failure has one"});
    let end = tell_status(&log, &id, turn, &cancelled);
    let message = log.message(turn).unwrap();
    assert_eq!(
        (message.status, message.completed_at, &message.error),
        (Cancelled, Some(end.created_at), &None)
    );
    assert_eq!((message.attempt, &message.output), (1, &vec![said]));
    assert!(message.status.is_final());
    for late in ["completed", "failed", "running"] {
        let data = json!({"status": late, "attempt": 2});
        tell_status(&log, &id, turn, &data);
        assert_eq!(log.message(turn).unwrap(), message, "after {late}");
    }
    seal_once(&log, &session("filler"));
    log.close().unwrap();
    log = small_files().open_in(&dir).unwrap();
    assert_eq!(log.message(turn).unwrap(), message);
}

#[test]
fn only_events_of_its_own_session_that_name_it_change_a_message() {
    let dir = folder();
    let log = open(&dir);
    let (id, other) = (session("s"), session("other"));
    let (first, second) = (ask(&log, &id, "one"), ask(&log, &id, "two"));
    let elsewhere = ask(&log, &other, "three");
    let failed = json!({"status": "failed"});
    tell_status(&log, &other, first.id.into(), &failed);
    tell_status(&log, &id, elsewhere.id.into(), &failed);
    tell_status(&log, &id, EventId::from_u128(7).into(), &failed);
    log.append(
        &id,
        Batch::new().event(NewEvent::json("message.status_changed", &failed).unwrap()),
    )
    .unwrap();
    let statuses =
        || [&first, &second, &elsewhere].map(|event| log.message(event.id.into()).unwrap().status);
    assert_eq!(statuses(), [Queued, Queued, Queued]);
    tell_status(&log, &id, second.id.into(), &json!({"status": "running"}));
    assert_eq!(statuses(), [Queued, Running, Queued]);
    tell_status(&log, &id, first.id.into(), &failed);
    assert_eq!(statuses(), [Failed, Running, Queued]);
    tell_status(
        &log,
        &other,
        elsewhere.id.into(),
        &json!({"status": "completed"}),
    );
    assert_eq!(statuses(), [Failed, Running, Completed]);
}

#[test]
fn what_opened_no_turn_is_an_unknown_message() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let id = session("s");
    let asked = ask(&log, &id, "hello");
    let told = tell_status(&log, &id, asked.id.into(), &json!({"status": "running"}));
    let noted = log
        .append(&id, Batch::new().event(note("n")))
        .unwrap()
        .events
        .remove(0);
    let check = || {
        for event in [
            told.id,
            noted.id,
            EventId::from_u128(0),
            EventId::from_u128(noted.id.to_u128() + 1),
        ] {
            let unknown = MessageId::from(event);
            assert_error!(log.message(unknown), Error::UnknownMessage { id } if *id == unknown);
        }
        assert_eq!(log.message(asked.id.into()).unwrap().status, Running);
    };
    check();
    seal_once(&log, &session("filler"));
    check();
}

#[test]
fn a_message_whose_content_cannot_be_read_is_still_a_message() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    for data in ["", "no json", "[]", r#"{"content":7}"#] {
        let event = log
            .append(&id, Batch::new().event(NewEvent::new("user.message", data)))
            .unwrap()
            .events
            .remove(0);
        let message = log.message(event.id.into()).unwrap();
        assert_eq!(
            (message.status, message.content, message.seq),
            (Queued, vec![], event.seq)
        );
    }
}

#[test]
fn a_turn_over_several_segments_reads_back_whole() {
    let dir = folder();
    let mut log = small_files().open_in(&dir).unwrap();
    let (id, filler) = (session("s"), session("filler"));
    let turn = MessageId::from(ask(&log, &id, "a long task").id);
    let mut said = Vec::new();
    for round in 0..3 {
        tell(
            &log,
            &id,
            turn,
            "tool.call_requested",
            &json!({"call_id": round}),
        );
        seal_once(&log, &filler);
        assert_eq!(log.message(turn).unwrap().status, WaitingForTool);
        ask(&log, &id, "another task");
        tell(
            &log,
            &id,
            turn,
            "tool.call_completed",
            &json!({"call_id": round}),
        );
        said.push(json!({ "text": round }));
        tell(
            &log,
            &id,
            turn,
            "assistant.message_completed",
            &said[said.len() - 1],
        );
        let message = log.message(turn).unwrap();
        assert_eq!((message.status, &message.output), (Running, &said));
        log.close().unwrap();
        log = small_files().open_in(&dir).unwrap();
        assert_eq!(log.message(turn).unwrap(), message);
    }
    tell_status(&log, &id, turn, &json!({"status": "completed"}));
    let done = log.message(turn).unwrap();
    assert_eq!((done.status, &done.output), (Completed, &said));
    seal_once(&log, &filler);
    assert_eq!(log.message(turn).unwrap(), done);
    assert_eq!(
        log.messages(&id, PageRequest::new()).unwrap().items.len(),
        4
    );
}

#[test]
fn a_turn_longer_than_any_page_reads_back_whole() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let turn = MessageId::from(ask(&log, &id, "count").id);
    for round in 0..5 {
        let said = (0..500).map(|n| {
            NewEvent::json("assistant.message_completed", &(round * 500 + n))
                .unwrap()
                .in_turn(turn)
        });
        log.append(&id, Batch::new().events(said).event(note("in between")))
            .unwrap();
    }
    tell_status(&log, &id, turn, &json!({"status": "completed"}));
    let message = log.message(turn).unwrap();
    assert_eq!(message.status, Completed);
    assert_eq!(
        message.output,
        (0..2_500).map(Value::from).collect::<Vec<_>>()
    );
}

/// Walks the session's messages from page to page, in both orders.
fn check_messages(log: &SessionLog, session: &SessionId, all: &[Message], tail: Seq) {
    for limit in [1, 2, 3, all.len().max(1), 1_000] {
        let mut walked: Vec<Message> = Vec::new();
        let mut page = log
            .messages(session, PageRequest::new().limit(limit))
            .unwrap();
        assert_eq!(page.first, 1);
        loop {
            assert_eq!(page.tail, tail);
            assert!(page.items.len() <= limit);
            assert!(
                page.items
                    .iter()
                    .all(|message| (page.first..=page.last).contains(&message.seq)),
                "{page:?}"
            );
            walked.append(&mut page.items);
            if !page.has_more {
                break;
            }
            let next = log
                .messages(session, PageRequest::new().after(page.last).limit(limit))
                .unwrap();
            assert_eq!(next.first, page.last + 1);
            page = next;
        }
        assert_eq!(page.last, tail);
        assert_eq!(walked, all, "in pages of {limit}");

        walked.clear();
        page = log
            .messages(session, PageRequest::new().newest_first().limit(limit))
            .unwrap();
        assert_eq!(page.last, tail);
        loop {
            assert!(page.items.len() <= limit);
            walked.append(&mut page.items);
            if !page.has_more {
                break;
            }
            let next = log
                .messages(
                    session,
                    PageRequest::new()
                        .before(page.first)
                        .newest_first()
                        .limit(limit),
                )
                .unwrap();
            assert_eq!(next.last + 1, page.first);
            page = next;
        }
        walked.reverse();
        assert_eq!(walked, all, "newest first in pages of {limit}");
    }
    for message in all {
        assert_eq!(log.message(message.id).unwrap(), *message);
    }
}

/// Reads the messages between two bounds, as seqs and as event IDs.
#[test]
fn turns_that_never_end_are_listed_as_each_is_read() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let turns: Vec<MessageId> = (0..30)
        .map(|n| ask(&log, &id, &n.to_string()).message_id.unwrap())
        .collect();
    for (n, turn) in turns.iter().enumerate().filter(|(n, _)| n % 3 > 0) {
        tell_status(
            &log,
            &id,
            *turn,
            &json!({"status": if n % 3 == 1 { "running" } else { "completed" }}),
        );
    }
    let each: Vec<Message> = turns
        .iter()
        .map(|turn| log.message(*turn).unwrap())
        .collect();
    assert_eq!(log.messages(&id, PageRequest::new()).unwrap().items, each);
    let newest_first = log
        .messages(&id, PageRequest::new().newest_first().limit(7))
        .unwrap()
        .items;
    assert_eq!(
        newest_first,
        each.iter().rev().take(7).cloned().collect::<Vec<_>>()
    );
}

fn check_range(
    log: &SessionLog,
    session: &SessionId,
    all: &[Message],
    after: &Event,
    before: &Event,
) {
    let wanted: Vec<_> = all
        .iter()
        .filter(|message| (after.seq + 1..before.seq).contains(&message.seq))
        .cloned()
        .collect();
    for page in [
        PageRequest::new().after(after.seq).before(before.seq),
        PageRequest::new().before(before.id).after(after.id),
    ] {
        let page = log.messages(session, page.limit(1_000)).unwrap();
        assert_eq!((&page.items, page.has_more), (&wanted, false));
        assert_eq!((page.first, page.last), (after.seq + 1, before.seq - 1));
    }
}

#[test]
fn messages_are_listed_in_the_order_of_their_turns() {
    let dir = folder();
    let log = small_files().open_in(&dir).unwrap();
    let id = session("s");
    append_notes(&log, &id, "before any turn", 3);
    check_messages(&log, &id, &[], 3);
    let mut turns: Vec<Event> = Vec::new();
    for round in 0..3 {
        let asked = log
            .append(
                &id,
                Batch::new()
                    .user_message("one")
                    .user_message("two")
                    .event(note("n")),
            )
            .unwrap()
            .events;
        turns.extend_from_slice(&asked[..2]);
        append_notes(&log, &id, "n", 5);
        turns.push(ask(&log, &id, "three"));
        // An answer that comes after later turns have begun.
        tell(
            &log,
            &id,
            turns[round].id.into(),
            "assistant.message_completed",
            &json!(round),
        );
        tell_status(
            &log,
            &id,
            turns[round].id.into(),
            &json!({"status": "completed"}),
        );
        if round < 2 {
            seal_once(&log, &session("filler"));
        }
    }
    let tail = log.head(&id).unwrap().last;
    let all: Vec<_> = turns
        .iter()
        .map(|event| log.message(event.id.into()).unwrap())
        .collect();
    let statuses: Vec<_> = all.iter().map(|message| message.status).collect();
    assert_eq!(
        statuses,
        [[Completed; 3], [Queued; 3], [Queued; 3]].concat()
    );
    let check = |log: &SessionLog| {
        check_messages(log, &id, &all, tail);
        for (after, before) in [(0, 8), (1, 2), (2, 5), (3, 7)] {
            check_range(log, &id, &all, &turns[after], &turns[before]);
        }
    };
    check(&log);
    log.close().unwrap();
    check(&small_files().open_in(&dir).unwrap());
}

/// Types and data of a turn's events, each turn with one leaf that `serde_json` refuses.
const ODD_TURNS: &[(&[[&str; 2]], MessageStatus)] = &[
    (
        &[
            ["assistant.message_completed", r#"{"text":"cut \ud83d"}"#],
            ["message.status_changed", r#"{"status":"completed"}"#],
        ],
        Completed,
    ),
    (
        &[[
            "message.status_changed",
            r#"{"status":"failed","error":{"message":"tool said: \ud83d"}}"#,
        ]],
        Failed,
    ),
    (
        &[
            [
                "assistant.message_completed",
                r#"{"text":"x","usage":{"cost":1e400}}"#,
            ],
            ["message.status_changed", r#"{"status":"completed"}"#],
        ],
        Completed,
    ),
    (
        &[[
            "message.status_changed",
            r#"{"status":"failed","error":{"limit":1e999}}"#,
        ]],
        Failed,
    ),
    (
        &[[
            "message.status_changed",
            r#"{"status":"completed","note":"\udc00"}"#,
        ]],
        Completed,
    ),
];

#[test]
fn k2_a_leaf_that_cannot_be_shown_voids_no_event() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    for (events, status) in ODD_TURNS {
        let turn = MessageId::from(ask(&log, &id, "hello").id);
        let told = events
            .iter()
            .map(|[event_type, data]| NewEvent::new(*event_type, *data).in_turn(turn));
        log.append(&id, Batch::new().events(told)).unwrap();
        let message = log.message(turn).unwrap();
        let read = (
            message.status,
            message.output.len(),
            message.error.is_some(),
        );
        assert_eq!(
            read,
            (*status, events.len() - 1, *status == Failed),
            "{events:?}"
        );
    }
}

#[test]
fn a_leaf_that_cannot_be_shown_is_shown_as_it_was_written() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let content = r#"[{"type":"text","text":"cut \ud83d"},{"type":"x","n":[1e400,NaN]}]"#;
    let asked = [
        br#"{"content":"#,
        content.as_bytes(),
        br#","metadata":{"by":"Lua "#,
        b"\xFF",
        br#""}}"#,
    ]
    .concat();
    let asked = log
        .append(
            &id,
            Batch::new().event(NewEvent::new("user.message", asked)),
        )
        .unwrap()
        .events
        .remove(0);
    let turn = MessageId::from(asked.id);
    let told = [
        NewEvent::new(
            "assistant.message_completed",
            r#"{"text":"cut \ud83d","cost":1e400}"#,
        ),
        NewEvent::new(
            "message.status_changed",
            r#"{"status":"failed","error":{"limit":-Infinity}}"#,
        ),
    ];
    log.append(
        &id,
        Batch::new().events(told.map(|event| event.in_turn(turn))),
    )
    .unwrap();
    let message = log.message(turn).unwrap();
    assert_eq!(message.content[0].as_text(), Some(r"cut \ud83d"));
    assert_eq!(message.content[1].as_object()["n"], json!(["1e400", "NaN"]));
    assert_eq!(message.metadata["by"], "Lua \u{fffd}");
    assert_eq!(
        message.output,
        [json!({"text": r"cut \ud83d", "cost": "1e400"})]
    );
    assert_eq!(message.error, Some(json!({"limit": "-Infinity"})));
    assert_eq!(
        UserMessage::from_event(&asked).unwrap().content,
        message.content
    );
}

/// The latest of a turn's `outputs` are there, the last among them.
fn check_latest_outputs(message: &Message, outputs: u64) {
    let kept: Vec<u64> = message
        .output
        .iter()
        .map(|output| output["n"].as_u64().unwrap())
        .collect();
    let expected: Vec<u64> = (message.output_omitted..outputs).collect();
    assert_eq!(kept, expected, "{}", message.seq);
}

/// Turns opened in one batch, with outputs that together are far more than a page may keep.
#[test]
fn a_page_of_messages_ends_before_the_turn_that_is_too_much() {
    let dir = folder();
    let log = Options::new().scan_bytes_max(40_000).open_in(&dir).unwrap();
    let id = session("s");
    let asked = (0..9).fold(Batch::new(), |batch, n| {
        batch.user_message(format!("turn {n}"))
    });
    let turns: Vec<MessageId> = log
        .append(&id, asked)
        .unwrap()
        .events
        .iter()
        .map(|event| event.id.into())
        .collect();
    // Small outputs, large ones, and one that is too large by itself.
    let sizes = [
        (1, 10),
        (10, 1_000),
        (10, 1_000),
        (10, 1_000),
        (1, 10),
        (30, 3_000),
        (0, 0),
        (3, 10_000),
        (1, 39_000),
    ];
    for round in 0..30 {
        for (turn, (_, bytes)) in turns
            .iter()
            .zip(sizes)
            .filter(|(_, (outputs, _))| round < *outputs)
        {
            tell(
                &log,
                &id,
                *turn,
                "assistant.message_completed",
                &json!({"n": round, "text": "x".repeat(bytes)}),
            );
        }
    }
    let all: Vec<Message> = turns
        .iter()
        .map(|turn| log.message(*turn).unwrap())
        .collect();
    for (message, (outputs, _)) in all.iter().zip(sizes) {
        assert_eq!(message.output_omitted > 0, outputs == 30, "{}", message.seq);
        check_latest_outputs(message, outputs);
    }
    let largest = log.messages(&id, PageRequest::new()).unwrap();
    assert!(largest.has_more && largest.items.len() < all.len());
    check_messages(&log, &id, &all, log.head(&id).unwrap().last);
    // An attempt that drops the output also drops the omitted output.
    tell_status(
        &log,
        &id,
        turns[5],
        &json!({"status": "running", "attempt": 2}),
    );
    let message = log.message(turns[5]).unwrap();
    assert_eq!((message.output.len(), message.output_omitted), (0, 0));
}

/// Data that takes a hundred times its length as values is counted as such.
#[test]
fn outputs_that_are_large_as_values_are_left_out_as_if_they_were_long() {
    let dir = folder();
    let log = Options::new()
        .scan_bytes_max(1_000_000)
        .open_in(&dir)
        .unwrap();
    let id = session("s");
    for part in ["0", "[]", "{}", "[0]", r#"{"":0}"#, "[[[[0]]]]"] {
        let turn = MessageId::from(ask(&log, &id, part).id);
        for n in 0..4 {
            let odd = format!("[{n}{}]", format!(",{part}").repeat(20_000));
            tell(
                &log,
                &id,
                turn,
                "assistant.message_completed",
                &serde_json::from_str(&odd).unwrap(),
            );
        }
        let message = log.message(turn).unwrap();
        assert_eq!(
            (message.output.len(), message.output_omitted),
            (1, 3),
            "{part}"
        );
        assert_eq!(message.output[0][0], 3, "the last is there: {part}");
    }
    for page in [PageRequest::new(), PageRequest::new().newest_first()] {
        assert_eq!(log.messages(&id, page).unwrap().items.len(), 1);
    }
}

/// Walks the open turns by `next_page`, in both orders, and compares them with those among all
/// messages. Returns the most pages that one walk took.
fn check_open(log: &SessionLog, session: &SessionId, limits: &[usize]) -> usize {
    let walk = |request: PageRequest, limit: usize| {
        let (mut walked, mut pages, mut next) = (Vec::new(), 0, Some(request.limit(limit)));
        let mut covered = 0;
        while let Some(request) = next {
            let page = log.messages(session, request).unwrap();
            assert!(page.items.len() <= limit);
            assert!(
                page.first <= page.last || !page.has_more,
                "a page gets nowhere"
            );
            covered += page.last + 1 - page.first;
            let inside = |message: &Message| (page.first..=page.last).contains(&message.seq);
            assert!(page.items.iter().all(inside));
            next = page.next_page();
            walked.extend(page.items);
            pages += 1;
        }
        (walked, pages, covered)
    };
    let mut expected = walk(PageRequest::new(), limits[0]).0;
    expected.retain(|message| !message.status.is_final());
    let tail = log.head(session).unwrap().last;
    let mut most = 0;
    for &limit in limits {
        let open = PageRequest::new().open_turns();
        let (up, pages, covered) = walk(open.clone(), limit);
        assert_eq!((&up, covered), (&expected, tail), "in pages of {limit}");
        let (mut down, pages_down, covered) = walk(open.newest_first(), limit);
        down.reverse();
        assert_eq!((&down, covered), (&expected, tail), "newest first, {limit}");
        most = most.max(pages).max(pages_down);
    }
    most
}

#[test]
fn a_page_of_open_turns_holds_all_that_wait_and_none_that_is_over() {
    let dir = folder();
    let log = small_files().page_events_max(20).open_in(&dir).unwrap();
    let id = session("s");
    append_notes(&log, &id, "before any turn", 3);
    check_open(&log, &id, &[1, 20]);
    let turns: Vec<MessageId> = (0..70)
        .map(|n| ask(&log, &id, &n.to_string()).id.into())
        .collect();
    check_open(&log, &id, &[1, 2, 7, 20]);
    // Turns end late, and in another order than they began.
    let names = ["completed", "failed", "cancelled", "running", "completed"];
    for (n, turn) in turns.iter().enumerate().rev().filter(|(n, _)| n % 9 > 0) {
        let name = names[n % names.len()];
        tell_status(&log, &id, *turn, &json!({ "status": name }));
    }
    let call = json!({"call_id": 1});
    tell(&log, &id, turns[18], "tool.call_requested", &call);
    check_open(&log, &id, &[1, 2, 7, 20]);
    let shown = |request: PageRequest| -> Vec<MessageStatus> {
        let page = log.messages(&id, request.open_turns()).unwrap();
        page.items.into_iter().map(|item| item.status).collect()
    };
    let first = PageRequest::new().limit(5);
    let expected = [Queued, Running, Running, Queued, Running];
    assert_eq!(shown(first.clone()), expected);
    let (after, before) = (turns[13].event_id(), turns[24].event_id());
    let some = first.after(after).before(before);
    assert_eq!(shown(some.clone()), [WaitingForTool, Running]);
    assert_eq!(shown(some.newest_first()), [Running, WaitingForTool]);

    seal_once(&log, &session("filler"));
    check_open(&log, &id, &[1, 20]);
    for turn in turns {
        tell_status(&log, &id, turn, &json!({"status": "cancelled"}));
    }
    check_open(&log, &id, &[1, 20]);
}

#[test]
fn a_search_for_open_turns_reads_a_bounded_part_and_goes_on_from_there() {
    let dir = folder();
    let bytes_max = 64 * 1024;
    let options = Options::new().scan_bytes_max(bytes_max);
    let log = options.open_in(&dir).unwrap();
    let id = session("s");
    for n in 0..40 {
        let asked = ask(&log, &id, &"x".repeat(8 * 1024));
        if n != 33 {
            tell_status(&log, &id, asked.id.into(), &json!({"status": "completed"}));
        }
    }
    let first = log
        .messages(&id, PageRequest::new().open_turns().limit(1))
        .unwrap();
    assert!(first.items.is_empty() && first.has_more);
    // A turn of 8 KiB is two events, and the last event may lie across the bound.
    assert!((8..=18).contains(&first.last), "{first:?}");
    let pages = check_open(&log, &id, &[1, 100, 1_000]);
    assert!((4..=40).contains(&pages), "{pages}");
}

#[test]
fn open_turns_that_keep_too_much_for_a_page_come_on_the_next() {
    let dir = folder();
    let options = Options::new().scan_bytes_max(64 * 1024);
    let log = options.open_in(&dir).unwrap();
    let id = session("s");
    let turns: Vec<MessageId> = (0..12)
        .map(|n| ask(&log, &id, &n.to_string()).id.into())
        .collect();
    for round in 0..12 {
        for turn in &turns {
            let said = json!({"n": round, "text": "x".repeat(4_000)});
            tell(&log, &id, *turn, "assistant.message_completed", &said);
        }
    }
    for turn in turns.iter().step_by(2) {
        tell_status(&log, &id, *turn, &json!({"status": "failed"}));
    }
    let pages = check_open(&log, &id, &[1, 3, 100]);
    assert!((6..=150).contains(&pages), "{pages}");
}

#[test]
fn a_page_of_events_ignores_the_filter_for_open_turns() {
    let dir = folder();
    let log = open(&dir);
    let id = session("s");
    let turn = ask(&log, &id, "one").id.into();
    tell_status(&log, &id, turn, &json!({"status": "cancelled"}));
    append_notes(&log, &id, "n", 3);
    let page = |request: PageRequest| log.list(&id, request.limit(2)).unwrap().items;
    let request = PageRequest::new();
    assert_eq!(page(request.clone().open_turns()), page(request));
    for limit in [0, 1_001] {
        let request = PageRequest::new().open_turns().limit(limit);
        assert!(log.messages(&id, request).is_err(), "a limit of {limit}");
    }
}
