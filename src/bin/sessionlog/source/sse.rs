//! Server-sent events, read frame by frame.

use std::io::{self, BufRead};

/// One frame of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) id: Option<String>,
    pub(super) event: String,
    pub(super) data: String,
}

/// Reads the next frame. `None` when the stream has ended. Comments are skipped, and a frame that
/// is cut short is none.
pub(super) fn next_frame(from: &mut impl BufRead) -> io::Result<Option<Frame>> {
    let (mut frame, mut line) = (Frame::default(), String::new());
    let mut is_begun = false;
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let text = line.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            if is_begun {
                return Ok(Some(frame));
            }
            continue;
        }
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => frame.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut frame.event),
            "data" if frame.data.is_empty() => value.clone_into(&mut frame.data),
            "data" => {
                frame.data.push('\n');
                frame.data.push_str(value);
            }
            _ => continue,
        }
        is_begun = true;
    }
}
