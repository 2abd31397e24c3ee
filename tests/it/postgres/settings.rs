//! What servers, roles and URLs may be set to.

use std::net::TcpListener;
use std::time::Duration;

use sessionlog::{Delete, Error, Options};

use super::{Schema, schema};
use crate::support::{append_notes, assert_error, note, read_all, seqs, session};

impl Schema {
    /// Lets the server refuse every record with an error of a class.
    fn refuse_records(&self, class: &str) {
        self.ask(&format!(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             RAISE 'not this one' USING ERRCODE = '{class}'; END $$; \
             CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON record \
             FOR EACH ROW EXECUTE FUNCTION refuse()"
        ));
    }
}

#[test]
fn warnings_of_other_things_than_a_commit_are_passed_over() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let id = session("s");
    append_notes(&log, &id, "before", 1);
    schema.ask(
        "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE WARNING 'something else'; RETURN NEW; END $$; \
         CREATE TRIGGER warn BEFORE UPDATE ON shard FOR EACH ROW EXECUTE FUNCTION warn()",
    );
    append_notes(&log, &id, "warned", 1);
    // Its first commit shows that what is seen is on a quorum.
    let other = schema.options().stall_wait(Duration::from_secs(2));
    let other = other.connect(&schema.url).unwrap();
    append_notes(&other, &id, "warned again", 1);
    assert_eq!(seqs(&read_all(&other, &id)), [1, 2, 3]);
}

#[test]
fn a_node_that_does_not_answer_keeps_nobody_waiting() {
    let Some(schema) = schema() else { return };
    // It takes connections, and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let (before, after) = schema.url.rsplit_once('/').unwrap();
    let url = format!("{before},{}/{after}", mute.local_addr().unwrap());
    let options = schema.options().stall_wait(Duration::from_secs(1));
    let log = options.connect(&url).unwrap();
    append_notes(&log, &session("s"), "n", 1);
    schema.cut();
    append_notes(&log, &session("s"), "n", 1);
    assert_eq!(seqs(&read_all(&log, &session("s"))), [1, 2]);
}

/// Each has a state that is told: nothing was written.
#[test]
fn an_error_that_does_not_pass_is_told_as_what_it_is() {
    let Some(schema) = schema() else { return };
    let log = schema
        .options()
        .stall_wait(Duration::from_mins(1))
        .connect(&schema.url)
        .unwrap();
    let id = session("s");
    append_notes(&log, &id, "before", 1);
    let refused = |class: &str| {
        schema.refuse_records(class);
        log.append(&id, note(class)).map(drop)
    };
    assert_error!(refused("53100"), Error::NoSpace { .. });
    assert_error!(refused("25006"), Error::ReadOnly);
    assert_error!(refused("42501"), Error::ReadOnly);
    assert_error!(refused("42P01"), Error::Unsupported { .. });
    assert_error!(refused("23505"), Error::Corrupt { .. });
    for class in [
        "XX001", "XX002", "58030", "22021", "54000", "0A000", "23514",
    ] {
        assert_error!(refused(class), Error::Refused { .. });
    }
    schema.ask("DROP TRIGGER refuse ON record");
    assert_eq!(append_notes(&log, &id, "after", 1)[0].seq, 2);
}

/// Another server has brought the tables to a later format.
#[test]
fn an_open_log_writes_nothing_to_tables_of_another_format() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let id = session("s");
    append_notes(&log, &id, "before", 1);
    schema.ask("UPDATE meta SET format = 99; UPDATE shard SET format = 99");
    assert_error!(
        log.append(&id, note("n")),
        Error::Unsupported { found: 99, .. }
    );
    assert_error!(
        log.delete(&id, Delete::new()),
        Error::Unsupported { found: 99, .. }
    );
    assert_eq!(schema.count("record"), 1);
}

#[test]
fn a_role_that_may_not_make_schemas_uses_one_that_is_there() {
    let Some(schema) = schema() else { return };
    let role = format!("role_{}", schema.name);
    schema.ask(&format!(
        "CREATE ROLE \"{role}\" LOGIN; \
         ALTER ROLE \"{role}\" SET default_transaction_read_only = on; \
         CREATE SCHEMA \"{0}\" AUTHORIZATION \"{role}\"",
        schema.name
    ));
    let (start, rest) = schema.url.split_once("://").unwrap();
    let rest = rest.split_once('@').map_or(rest, |(_, rest)| rest);
    let log = schema
        .options()
        .connect(&format!("{start}://{role}@{rest}"))
        .unwrap();
    append_notes(&log, &session("s"), "n", 1);
    drop(log);
    schema.ask(&format!(
        "DROP SCHEMA \"{}\" CASCADE; DROP ROLE \"{role}\"",
        schema.name
    ));
}

#[test]
fn a_schema_that_the_server_would_rename_is_refused() {
    let Some(schema) = schema() else { return };
    let long = "x".repeat(64);
    for name in ["", "with\0nul", "with\nline", &long] {
        let options = Options::new().schema(name);
        assert_error!(
            options.connect(&schema.url),
            Error::Invalid { what: "schema", .. }
        );
    }
}
