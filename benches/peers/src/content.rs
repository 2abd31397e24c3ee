//! The events that are appended.

use std::borrow::Cow;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The kind of the events' data.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// This many bytes that do not compress.
    Noise(usize),
    /// Agent sessions, with an ID of its own in each event. A session goes through all of them, and
    /// each begins with another.
    Agent,
}

/// Names a file of sessions that replaces the one in the repository. Each line is a JSON object
/// with the `session_id`, the `type` and the `data` of one event.
const DATA_VARIABLE: &str = "SESSIONLOG_BENCH_DATA";

impl Content {
    /// Returns the type and the data of an event. `seq` counts from 1.
    pub fn event(self, session: u32, seq: u64) -> (&'static str, Cow<'static, [u8]>) {
        match self {
            Self::Noise(bytes) => ("bench.event", noise(session, seq, bytes).into()),
            Self::Agent => {
                let (event_type, rest) = scripted(session, seq);
                let id = mixed(u64::from(session) << 32 | seq);
                let data = format!("{{\"id\":\"{id:016x}\",{rest}");
                (event_type, data.into_bytes().into())
            }
        }
    }

    /// Returns the bytes of the data of a session's first events.
    pub fn bytes_of(self, session: u32, events: u64) -> u64 {
        match self {
            Self::Noise(bytes) => events * bytes as u64,
            Self::Agent => (1..=events)
                .map(|seq| 24 + scripted(session, seq).1.len() as u64)
                .sum(),
        }
    }
}

/// An event, and its data as an object without the opening brace.
type Scripted = (String, String);

fn scripted(session: u32, seq: u64) -> (&'static str, &'static str) {
    static SCRIPT: LazyLock<(Vec<Scripted>, Vec<usize>)> = LazyLock::new(script);
    let (events, begins) = &*SCRIPT;
    let begin = begins[session as usize % begins.len()] as u64;
    let (event_type, rest) = &events[((begin + seq - 1) % events.len() as u64) as usize];
    (event_type, rest)
}

/// Returns the events of all sessions, one session after the other, and where each begins.
fn script() -> (Vec<Scripted>, Vec<usize>) {
    #[derive(Deserialize)]
    struct Line<'a> {
        session_id: String,
        #[serde(rename = "type")]
        event_type: String,
        #[serde(borrow)]
        data: &'a RawValue,
    }
    let text = match std::env::var_os(DATA_VARIABLE) {
        Some(file) => std::fs::read_to_string(file).expect("the file of the sessions"),
        None => include_str!("../../../examples/data/agent_sessions.jsonl").to_owned(),
    };
    let mut sessions: Vec<(String, Vec<Scripted>)> = Vec::new();
    for line in text.lines() {
        let line: Line<'_> = serde_json::from_str(line).expect("an event");
        let rest = line.data.get().strip_prefix('{').expect("an object");
        let event = (line.event_type, rest.to_owned());
        match sessions.iter_mut().find(|(id, _)| *id == line.session_id) {
            Some((_, events)) => events.push(event),
            None => sessions.push((line.session_id, vec![event])),
        }
    }
    let (mut events, mut begins) = (Vec::new(), Vec::new());
    for (_, of_session) in sessions {
        begins.push(events.len());
        events.extend(of_session);
    }
    (events, begins)
}

fn noise(session: u32, seq: u64, bytes: usize) -> Vec<u8> {
    let mut state = u64::from(session) << 32 | seq;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        noise.extend_from_slice(&mixed(state).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// The output function of SplitMix64.
fn mixed(state: u64) -> u64 {
    let state = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ state >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ state >> 31
}
