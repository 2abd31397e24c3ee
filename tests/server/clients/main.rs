//! Other programs in front of the server: a browser, a proxy, the client packages in their
//! languages, and one that generates requests. A test whose program is missing is ignored, and the
//! report has the reason.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::too_many_lines,
    reason = "a test fails by panicking, waits with the wall clock, and tells one story"
)]

mod chat;
mod durable_streams;
mod followers;
mod in_process;
mod odd;
mod packages;
mod page;
#[allow(dead_code, reason = "the calls use the rest")]
#[path = "../process/mod.rs"]
mod process;
mod proxy;
#[allow(dead_code, reason = "the campaigns use the rest")]
#[path = "../../support/report.rs"]
mod report;
mod schemathesis;
mod standing;
#[path = "../../support/trial.rs"]
mod trial;

use std::env;
use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::{Arguments, Completion, Trial};
use tokio::runtime::Runtime;

use packages::{FOLLOWERS, Follower, Obstacle};
use report::tell;
use trial::{full_tier_only, trial};

const BROWSER: &[&str] = &["chromium", "chromedriver"];
const NGINX: &[&str] = &["nginx"];

/// A function and its name.
macro_rules! test {
    ($function:path) => {
        (stringify!($function), $function)
    };
}

fn main() {
    let mut trials = vec![
        trial(
            "campaign_schemathesis",
            schemathesis::campaign,
            full_tier_only().or_else(|| missing(&["python3"])),
        ),
        in_browser(test!(
            page::what_is_sent_arrives_and_a_server_that_comes_back_is_found_again
        )),
        in_browser(test!(
            page::a_long_session_is_read_backwards_and_sessions_are_chosen_by_keyboard
        )),
        in_browser(test!(page::a_server_with_a_key_is_asked_for_with_it)),
        in_browser(test!(page::an_odd_event_is_shown_and_hides_no_other)),
        in_browser(test!(
            page::any_event_is_shown_and_its_raw_text_is_that_of_the_wire
        )),
        in_browser(test!(
            page::an_error_is_shown_and_an_event_that_cannot_be_rendered_is_shown_as_text
        )),
        in_browser(test!(page::a_session_of_any_name_is_listed_and_opens)),
        in_browser(test!(
            page::a_list_of_recent_sessions_that_was_cut_short_says_so_and_leads_to_all
        )),
        in_browser(test!(
            standing::a_session_is_renamed_closed_forked_and_deleted_on_the_page
        )),
        behind_nginx(
            test!(proxy::a_stream_comes_through_a_proxy_at_once_and_is_resumed_there),
            &[],
        ),
        behind_nginx(
            test!(proxy::tags_keys_and_errors_mean_the_same_behind_a_proxy),
            &[],
        ),
        behind_nginx(test!(proxy::curl_shows_a_stream_through_a_proxy), &["curl"]),
        behind_nginx(
            ("proxy::the_page_works_behind_a_proxy", || {
                on_tokio(proxy::the_page_works_behind_a_proxy);
            }),
            BROWSER,
        ),
        behind_nginx(
            ("packages::the_typescript_client_runs_in_a_browser", || {
                on_tokio(packages::the_typescript_client_runs_in_a_browser);
            }),
            BROWSER,
        ),
        installing(test!(packages::the_python_client_passes_its_tests)),
        installing(test!(packages::the_typescript_client_passes_its_tests)),
        installing(test!(
            packages::the_javascript_is_what_the_typescript_compiles_to
        )),
        installing(test!(
            chat::an_answer_survives_reloads_of_the_page_and_kills_of_the_server
        )),
        installing(test!(
            durable_streams::the_suite_of_the_protocol_passes_before_and_after_a_kill
        )),
    ];
    for follower in FOLLOWERS {
        trials.extend([
            following(
                test!(followers::an_example_client_comes_back_without_gap_or_duplicate),
                follower,
                &[],
            ),
            following(
                test!(proxy::a_client_follows_through_a_proxy_that_stops_and_a_server_that_does),
                follower,
                NGINX,
            ),
            following(
                test!(proxy::a_frame_that_is_cut_off_behind_a_proxy_is_taken_when_it_is_whole),
                follower,
                NGINX,
            ),
        ]);
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn in_browser<F: Future<Output = ()>>(
    (name, test): (&str, impl FnOnce() -> F + Send + 'static),
) -> Trial {
    trial(name, || on_tokio(test), missing(BROWSER))
}

fn behind_nginx((name, test): (&str, impl FnOnce() + Send + 'static), more: &[&str]) -> Trial {
    trial(name, test, missing(NGINX).or_else(|| missing(more)))
}

fn following(
    (name, test): (&str, impl FnOnce(Command) + Send + 'static),
    follower: &'static Follower,
    more: &'static [&str],
) -> Trial {
    let run = || {
        missing(more).map_or(Ok(()), Err)?;
        test((follower.command)()?);
        Ok(())
    };
    installing((&format!("{name} ({})", follower.name), run))
}

/// Returns a test that finds out only while it runs whether something is missing.
fn installing(
    (name, test): (&str, impl FnOnce() -> Result<(), Obstacle> + Send + 'static),
) -> Trial {
    let shown = name.to_owned();
    Trial::ignorable_test(name, move || {
        Ok(match test() {
            Ok(()) => Completion::Completed,
            Err(why) => {
                tell(&format!("{shown}: SKIPPED, {why}\n"));
                Completion::ignored_with(why)
            }
        })
    })
}

/// Returns why a test that needs these programs cannot run here, if so.
fn missing(programs: &[&str]) -> Option<String> {
    let missing = programs.iter().find(|program| find(program).is_none());
    missing.map(|program| format!("there is no {program}"))
}

/// Returns where a program is. Servers may be where only root's path leads.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|program| program.is_file())
}

fn on_tokio<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    Runtime::new().unwrap().block_on(test())
}
