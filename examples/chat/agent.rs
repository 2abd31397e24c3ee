//! The agent: it answers every user's message of every chat, and goes on where it was killed.
//!
//! What it has said is in the log alone: a word is durable before it is shown, and the next one
//! follows from those that are stored. So a kill loses no word that was shown, and repeats none.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream;
use serde_json::{Value, json};
use sessionlog::{
    Batch, ContentBlock, EventStream, Expected, MessageId, MessageStatus, NewEvent, PageRequest,
    SessionId, SessionLog, SessionQuery, StartAt, StreamItem,
};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::{CHATS, Result};

/// A word of an answer: `{"text"}`.
const WORD: &str = "assistant.word";

/// The agent goes on after a restart.
const RESUMED: &str = "assistant.resumed";

/// How long the model thinks about each word.
const THINKS: Duration = Duration::from_millis(100);

/// Answers messages until the log is closed.
///
/// # Errors
///
/// When messages can no longer be read.
pub(crate) async fn run(log: SessionLog) -> Result<()> {
    // The feed begins before the turns are read, so that no message falls between the two. Some may
    // be in both.
    let (feed, begun) = {
        let log = log.clone();
        spawn_blocking(move || Result::Ok((feed_from_now(&log)?, open_turns(&log)?))).await??
    };
    for turn in &begun {
        tokio::spawn(answer_or_tell(log.clone(), *turn));
    }
    let mut feed = feed.into_async();
    while let Some(item) = poll_fn(|context| Pin::new(&mut feed).poll_next(context)).await {
        let StreamItem::Event(event) = item? else {
            continue;
        };
        let is_asked = event.event_type == "user.message" && is_chat(&event.session_id);
        if let Some(turn) = event
            .message_id
            .filter(|turn| is_asked && !begun.contains(turn))
        {
            tokio::spawn(answer_or_tell(log.clone(), turn));
        }
    }
    Ok(())
}

fn is_chat(session: &SessionId) -> bool {
    session.as_str().starts_with(CHATS)
}

/// Returns a feed of what comes after the newest event.
fn feed_from_now(log: &SessionLog) -> Result<EventStream> {
    let page = log.sessions(SessionQuery::by_activity().limit(1))?;
    let newest = page.items.first().and_then(|session| session.last_id);
    Ok(match newest {
        Some(id) => log.feed_after(id).or_else(|_removed| log.feed())?,
        None => log.feed()?,
    })
}

/// Returns the turns of all chats that have no final status.
fn open_turns(log: &SessionLog) -> Result<HashSet<MessageId>> {
    let mut turns = HashSet::new();
    let mut chats = Some(SessionQuery::by_id().prefix(CHATS).open());
    while let Some(query) = chats {
        let page = log.sessions(query)?;
        for chat in &page.items {
            let mut messages = Some(PageRequest::new().open_turns());
            while let Some(request) = messages {
                let page = log.messages(&chat.id, request)?;
                turns.extend(page.items.iter().map(|message| message.id));
                messages = page.next_page();
            }
        }
        chats = page.next_page();
    }
    Ok(turns)
}

/// A turn that cannot be answered now stays open, and the next start takes it up again.
async fn answer_or_tell(log: SessionLog, turn: MessageId) {
    if let Err(error) = answer(&log, turn).await {
        eprintln!("the turn {turn} is not answered: {error}");
    }
}

async fn answer(log: &SessionLog, turn: MessageId) -> Result<()> {
    let mut answer = {
        let log = log.clone();
        spawn_blocking(move || Answer::read(&log, turn)).await??
    };
    let begins = if answer.status == MessageStatus::Queued {
        NewEvent::json("message.status_changed", &json!({"status": "running"}))?
    } else {
        NewEvent::json(RESUMED, &json!({"words": answer.words.len()}))?
    };
    answer.append(log, [begins]).await?;
    // A model that cannot continue a text would begin an attempt of the turn anew here. One whose
    // answers must not be mixed would end the turn with the status `failed`.
    while let Some(word) = next_word(&answer.prompt, &answer.words) {
        sleep(THINKS).await;
        let event = NewEvent::json(WORD, &json!({"text": word}))?;
        answer.append(log, [event]).await?;
        answer.words.push(word);
    }
    let text = answer.words.join(" ");
    let ends = [
        NewEvent::json("assistant.message_completed", &json!({"text": text}))?,
        NewEvent::json("message.status_changed", &json!({"status": "completed"}))?,
    ];
    answer.append(log, ends).await
}

/// Stands for a language model: returns the next word of an answer, from what was said of it. It
/// counts to the first number of the prompt, at most to 1,000, or to 20.
fn next_word(prompt: &str, said: &[String]) -> Option<String> {
    let mut numbers = prompt.split(|c: char| !c.is_ascii_digit());
    let goal = numbers
        .find_map(|number| number.parse::<u32>().ok())
        .unwrap_or(20)
        .min(1000);
    let last = said.last().map_or(Ok(0), |word| word.parse::<u32>()).ok()?;
    (last < goal).then(|| (last + 1).to_string())
}

/// An answer as the log has it.
struct Answer {
    session: SessionId,
    turn: MessageId,
    status: MessageStatus,
    prompt: String,
    words: Vec<String>,
}

impl Answer {
    fn read(log: &SessionLog, turn: MessageId) -> Result<Self> {
        let message = log.message(turn)?;
        let mut words = Vec::new();
        let later = log.stream(&message.session_id, StartAt::after(message.seq))?;
        for event in later.until_tail().events() {
            let event = event?;
            if event.message_id == Some(turn) && event.event_type == WORD {
                let data: Value = serde_json::from_slice(&event.data)?;
                let text = data.get("text").and_then(Value::as_str);
                words.push(text.ok_or("a word without a text")?.to_owned());
            }
        }
        let texts = message.content.iter().filter_map(ContentBlock::as_text);
        Ok(Self {
            turn,
            status: message.status,
            prompt: texts.collect::<Vec<_>>().join(" "),
            words,
            session: message.session_id,
        })
    }

    /// Appends events of the turn as one. A chat that was deleted meanwhile does not begin anew.
    async fn append<const N: usize>(&self, log: &SessionLog, events: [NewEvent; N]) -> Result<()> {
        let events = events.map(|event| event.in_turn(self.turn));
        let batch: Batch = events.into_iter().collect();
        let batch = batch.expected(Expected::Exists);
        log.append_async(&self.session, batch).await?;
        Ok(())
    }
}
