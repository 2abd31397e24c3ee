//! Maintains the filters over many segments: adopts existing ones and makes missing ones.
//!
//! A failure here costs only time: without a span filter the segments' own filters answer.

use std::collections::HashMap;

use crate::disk::{Halt, Work};
use crate::engine::{Engine, Writer};
use crate::model::Result;
use crate::segment::{Span, SpanFilter};

/// Runs the background thread until the log stops.
pub(crate) fn run(engine: &Engine) {
    let Some(writer) = &engine.writer else {
        return;
    };
    match adopt(engine, writer) {
        Ok(()) => engine.refusals.note(Work::Filters, None),
        // Filters that cannot be listed are made again.
        Err(Halt::Failed(refused)) => engine.refusals.note(Work::Filters, Some(&refused)),
        Err(Halt::Stopped) => return,
    }
    let mut failed = HashMap::new();
    let wait_for_segment = || {
        writer
            .new_segment
            .wait_for(|is_new| std::mem::take(is_new).then_some(()))
    };
    while make_missing(engine, writer, &mut failed).is_ok() && wait_for_segment().is_ok() {}
}

/// Adopts the existing filters.
fn adopt(engine: &Engine, writer: &Writer) -> Result<(), Halt> {
    let locator = &engine.store.locator;
    let check_stop = || Result::<_, Halt>::Ok(writer.new_segment.check_stop()?);
    let filters = SpanFilter::list(&engine.filter_dir, &locator.segments(), check_stop)?;
    locator.publish_filters(filters);
    Ok(())
}

/// Makes the missing filters.
///
/// A filter that failed costs a read of the tables of all its segments. It is therefore tried again
/// only after as many new segments as it spans.
fn make_missing(
    engine: &Engine,
    writer: &Writer,
    failed: &mut HashMap<Span, u64>,
) -> Result<(), Halt> {
    let locator = &engine.store.locator;
    let segments = locator.segments();
    let newest = segments.newest_number();
    let missing = Span::up_to(newest).filter(|span| !segments.has_filter(*span));
    for (span, of_span) in missing.filter_map(|span| Some((span, segments.of_span(span)?))) {
        let is_too_soon = |at: &u64| newest < at + span.segments();
        if failed.get(&span).is_some_and(is_too_soon) {
            continue;
        }
        let check_stop = || Ok(writer.new_segment.check_stop()?);
        match SpanFilter::make(&engine.filter_dir, span, of_span, check_stop) {
            Ok(filter) => {
                locator.publish_filters(filter);
                engine.refusals.note(Work::Filters, None);
            }
            Err(Halt::Stopped) => return Err(Halt::Stopped),
            Err(Halt::Failed(unreadable_or_full)) => {
                failed.insert(span, newest);
                engine
                    .refusals
                    .note(Work::Filters, Some(&unreadable_or_full));
            }
        }
    }
    Ok(())
}
