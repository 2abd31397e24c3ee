//! Tests for `libtest-mimic`, which counts those that cannot run here as ignored.

use libtest_mimic::Trial;

use crate::report::{is_full, tell};

/// Returns a test, ignored and with the reason printed if there is an obstacle.
pub(crate) fn trial(
    name: impl Into<String>,
    run: impl FnOnce() + Send + 'static,
    obstacle: Option<String>,
) -> Trial {
    let name = name.into();
    let is_ignored = obstacle.is_some();
    if let Some(why) = obstacle {
        tell(&format!("{name}: SKIPPED, {why}\n"));
    }
    let trial = Trial::test(name, move || {
        run();
        Ok(())
    });
    trial.with_ignored_flag(is_ignored)
}

/// Returns a test that builds the crate many times over, or runs for long.
pub(crate) fn full_tier_only() -> Option<String> {
    (!is_full()).then(|| "it runs with SESSION_LOG_CAMPAIGN=full alone".to_owned())
}
