//! What was answered is there after a restart, the state of producers included.

use sessionlog::Options;
use sessionlog::http::Config;

use crate::durable_streams::{CLOSE, Ds, Headers, JSON, TEXT, header, is};
use crate::engine::open_at;

/// Opens the log again, as a server does that was stopped.
fn restarted(ds: &Ds) -> Ds {
    ds.scene.log.close().unwrap();
    let log = open_at(Options::new(), &ds.folder()).unwrap();
    Ds::of(log, Config::open()).in_folder_of(ds)
}

impl Ds {
    fn folder(&self) -> std::path::PathBuf {
        self.opened_in
            .clone()
            .unwrap_or_else(|| self.scene.folder())
    }

    fn in_folder_of(mut self, other: &Self) -> Self {
        self.opened_in = Some(other.folder());
        self
    }
}

fn producer<'a>(epoch: &'a str, seq: &'a str) -> [(&'static str, &'a str); 4] {
    [
        TEXT,
        ("producer-id", "p"),
        ("producer-epoch", epoch),
        ("producer-seq", seq),
    ]
}

#[tokio::test]
async fn the_numbers_of_a_producer_are_known_after_a_restart() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "").await, 201);
    is(ds.post("/ds/a", &producer("1", "0"), "x").await, 200);
    is(ds.post("/ds/a", &producer("1", "1"), "y").await, 200);
    let ds = restarted(&ds);
    let again = is(ds.post("/ds/a", &producer("1", "0"), "x").await, 204);
    assert_eq!(header(&again, "producer-seq"), Some("1"));
    let gap = is(ds.post("/ds/a", &producer("1", "3"), "z").await, 409);
    assert_eq!(header(&gap, "producer-expected-seq"), Some("2"));
    let stale = is(ds.post("/ds/a", &producer("0", "0"), "z").await, 403);
    assert_eq!(header(&stale, "producer-epoch"), Some("1"));
    is(ds.post("/ds/a", &producer("2", "1"), "z").await, 400);
    let close = [&producer("1", "2")[..], &[CLOSE]].concat();
    is(ds.post("/ds/a", &close, "!").await, 200);
    let ds = restarted(&ds);
    is(ds.post("/ds/a", &close, "!").await, 204);
    for (epoch, seq) in [("1", "3"), ("1", "7"), ("0", "0"), ("2", "1"), ("2", "0")] {
        let other = is(ds.post("/ds/a", &producer(epoch, seq), "z").await, 409);
        assert_eq!(
            header(&other, "stream-closed"),
            Some("true"),
            "{epoch} {seq}"
        );
    }
    assert_eq!(ds.text("/ds/a").await, "xy!");
}

#[tokio::test]
async fn what_a_stream_is_survives_a_restart() {
    let ds = Ds::open();
    let seq = |seq| [JSON, ("stream-seq", seq)];
    is(
        ds.put("/ds/a", &[JSON, ("stream-ttl", "100")], "[1]").await,
        201,
    );
    is(ds.post("/ds/a", &seq("b"), "2").await, 204);
    let fork: Headers = &[("stream-forked-from", "/ds/a")];
    is(ds.put("/ds/fork", fork, "[3]").await, 201);
    is(ds.delete("/ds/a").await, 204);
    is(ds.put("/ds/b", &[TEXT], "").await, 201);
    is(
        ds.post("/ds/b", &[TEXT, ("stream-seq", "b")], "x").await,
        204,
    );
    is(ds.post("/ds/b", &[CLOSE], "").await, 204);
    let last = is(ds.head("/ds/b").await, 200);
    let ds = restarted(&ds);
    is(ds.get("/ds/a").await, 410);
    is(ds.put("/ds/a", &[JSON], "").await, 409);
    assert_eq!(ds.text("/ds/fork").await, "[1,2,3]");
    is(ds.put("/ds/fork", fork, "").await, 200);
    // A fork takes over no Stream-Seq.
    is(ds.post("/ds/fork", &seq("a"), "4").await, 204);
    is(ds.post("/ds/fork", &seq("a"), "5").await, 409);
    let head = is(ds.head("/ds/fork").await, 200);
    assert_eq!(
        (header(&head, "content-type"), header(&head, "stream-ttl")),
        (Some("application/json"), Some("100"))
    );
    let head = is(ds.head("/ds/b").await, 200);
    for name in ["stream-next-offset", "stream-closed", "content-type"] {
        assert_eq!(header(&head, name), header(&last, name), "{name}");
    }
    is(ds.post("/ds/b", &[TEXT], "y").await, 409);
    is(ds.put("/ds/b", &[TEXT], "").await, 409);
    is(ds.put("/ds/b", &[TEXT, CLOSE], "").await, 200);
    is(ds.delete("/ds/fork").await, 204);
    let ds = restarted(&ds);
    is(ds.get("/ds/a").await, 404);
    is(ds.put("/ds/a", &[JSON], "").await, 201);
}
