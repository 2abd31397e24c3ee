//! Tails a session on tokio while other tasks append to it.
//!
//! ```text
//! cargo run --example async_tail
//! ```
//!
//! The log starts no runtime and needs none. `append_async` is a plain future and the stream is a
//! `futures_core::Stream`, so any executor runs them. A waiting task holds no thread.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;

use futures_core::Stream;
use serde_json::json;
use sessionlog::{
    AsyncEventStream, Batch, NewEvent, Seq, SessionId, SessionLog, StartAt, StreamItem,
};
use tokio::sync::watch;
use tokio::task::{self, JoinSet};

const WORKERS: u64 = 3;
const STEPS: u64 = 4;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = SessionLog::open(folder.path())?;
    let session = SessionId::new("sess_tail")?;

    // The session has no event yet, so the stream waits for its first.
    let (seen, mut reached) = watch::channel(0);
    let stream = log.stream(&session, StartAt::Creation)?.into_async();
    let tail = task::spawn(tail(stream, seen));

    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        workers.spawn(work(log.clone(), session.clone(), worker));
    }
    while let Some(done) = workers.join_next().await {
        println!("      a worker finished with seq {}", done??);
    }

    // All events are durable now. The stream delivers them, then waits until the log closes.
    reached.wait_for(|seq| *seq == WORKERS * STEPS).await?;
    task::spawn_blocking(move || log.close()).await??;
    println!(
        "      the log is closed, the tail received {} events",
        tail.await??
    );
    Ok(())
}

/// Appends a few batches of one event, one after the other, and returns the last seq.
async fn work(log: SessionLog, session: SessionId, worker: u64) -> Result<Seq> {
    let mut last = 0;
    for step in 1..=STEPS {
        let event = NewEvent::json(
            "tool.call_completed",
            &json!({ "call_id": format!("call_{worker}_{step}"), "output": "ok" }),
        )?;
        let ack = log
            .append_async(&session, Batch::new().event(event))
            .await?;
        last = ack.last;
    }
    Ok(last)
}

/// Prints every event, reports its seq, and returns the number of events when the log closes.
async fn tail(mut stream: AsyncEventStream, seen: watch::Sender<Seq>) -> Result<u64> {
    let mut events = 0;
    while let Some(item) = poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await {
        match item? {
            StreamItem::Event(event) => {
                println!(
                    "{:>4}  {}  {}",
                    event.seq,
                    event.id,
                    String::from_utf8_lossy(&event.data)
                );
                events += 1;
                seen.send_replace(event.seq);
            }
            StreamItem::CaughtUp => println!("      caught up"),
            _ => {}
        }
    }
    Ok(events)
}
