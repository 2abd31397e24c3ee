//! The paths and queries of calls.

use crate::source::folder::page_limit;
use crate::source::{Direction, Order, Range, SessionList, Standing};

/// The path of a page of sessions: the first, or the one behind a cursor.
pub(super) fn of_sessions(list: &SessionList, cursor: Option<&str>) -> String {
    let order = match list.order {
        Order::Recent => "recent",
        Order::Id => "id",
        Order::Created => "created",
    };
    let mut query = Query::new("/v1/sessions");
    query.add("order", order);
    query.add("limit", &page_limit(list.limit).to_string());
    match (list.direction, cursor) {
        (Direction::Forward, Some(cursor)) => query.add("after", cursor),
        (Direction::Forward, None) => {}
        (Direction::Reverse, Some(cursor)) => query.add("before", cursor),
        (Direction::Reverse, None) => query.add("before", &end_of(list.order)),
    }
    if let Some(prefix) = &list.prefix {
        query.add("prefix", prefix);
    }
    if let Some(time) = list.active_since {
        query.add("active_since", &time.to_string());
    }
    for (name, value) in &list.metadata {
        query.add(&format!("metadata[{name}]"), value);
    }
    match list.standing {
        Standing::Any => {}
        Standing::Open => query.add("closed", "false"),
        Standing::Closed => query.add("closed", "true"),
    }
    query.path
}

/// The position behind all sessions.
fn end_of(order: Order) -> String {
    match order {
        Order::Id => format!("id:{}", "\u{10ffff}".repeat(64)),
        Order::Recent | Order::Created => format!("at:evt_{}", "0".repeat(26)),
    }
}

/// The path of the page of events that goes on behind a cursor, or begins where the range may
/// begin. A call has one cursor.
pub(super) fn of_events(session: &str, range: &Range, cursor: Option<&str>) -> String {
    let (order, name, of_range) = match range.direction {
        Direction::Forward => ("asc", "after", &range.after),
        Direction::Reverse => ("desc", "before", &range.before),
    };
    let of_range = of_range.as_ref().map(ToString::to_string);
    let mut query = Query::new(&format!("/v1/sessions/{}/events", encoded(session)));
    query.add("order", order);
    query.add("limit", &page_limit(range.limit).to_string());
    if let Some(cursor) = cursor.or(of_range.as_deref()) {
        query.add(name, cursor);
    }
    for wanted in &range.types {
        query.add("type", wanted);
    }
    query.path
}

/// A path with its query.
struct Query {
    path: String,
    next: char,
}

impl Query {
    fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            next: '?',
        }
    }

    fn add(&mut self, name: &str, value: &str) {
        self.path.push(self.next);
        self.path.push_str(&encoded(name));
        self.path.push('=');
        self.path.push_str(&encoded(value));
        self.next = '&';
    }
}

/// Percent-encodes a part of a path or a query.
pub(super) fn encoded(text: &str) -> String {
    let bytes = text.bytes().map(|byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    });
    bytes.collect()
}
