//! A process that moves shards between two databases while rounds go on: this program again, in
//! another role. It is killed at any moment, and another goes on.

use std::io::{BufRead, BufReader, Write, stderr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use sessionlog::{Error, Options, SessionLog};

use super::REST;
use crate::report::Dice;
use crate::support::{eventually, shards, spread};

/// Set for the process: the URL, the schema and a seed, a line each.
const MOVES: &str = "SESSION_LOG_FAILOVER_MOVER";

/// Lets shards move until it is over. Returns figures.
pub(super) fn move_shards(
    url: &str,
    schema: &str,
    mut dice: Dice,
    done: &AtomicBool,
) -> Vec<(String, u64)> {
    let (mut moved, mut cut_short, mut killed) = (0, 0, 0);
    while !done.load(Ordering::SeqCst) {
        let seed = dice.roll();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "failover::mover::moves_until_it_is_killed",
                "--nocapture",
            ])
            .env(MOVES, format!("{url}\n{schema}\n{seed}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(300 + dice.below(2_500)));
        let ended = process.try_wait().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let lines: Vec<_> = lines.map_while(Result::ok).collect();
        assert!(ended.is_none(), "it has ended by itself: {lines:?}");
        let count = |what| lines.iter().filter(|line| line.as_str() == what).count() as u64;
        moved += count("moved");
        cut_short += count("cut short");
        killed += 1;
    }
    vec![
        ("shards moved".to_owned(), moved),
        ("moves cut short".to_owned(), cut_short),
        ("movers killed".to_owned(), killed),
    ]
}

/// Ends what killed movers have left.
pub(super) fn settle(log: &SessionLog) {
    for shard in log.shards().unwrap() {
        eventually("what a mover has held is free", || {
            log.move_shard(shard.number, shard.database).is_ok()
        });
    }
    assert!(log.shards().unwrap().iter().all(|shard| !shard.is_moving));
}

#[test]
fn moves_until_it_is_killed() {
    let Ok(role) = std::env::var(MOVES) else {
        return;
    };
    let mut role = role.lines();
    let mut next = || role.next().unwrap();
    let (url, schema, seed) = (next(), next(), next());
    let options = spread(Options::new(), url).schema(schema).stall_wait(REST);
    let log = options.connect(url).unwrap();
    let mut dice = Dice(seed.parse().unwrap());
    loop {
        let shard = u32::try_from(dice.below(shards().into())).unwrap();
        let to = usize::try_from(dice.below(2)).unwrap();
        let said = match log.move_shard(shard, to) {
            Ok(_) => "moved",
            // A node is away, or the mover before is not known to be gone.
            Err(Error::Io { .. } | Error::Invalid { .. }) => "cut short",
            Err(error) => panic!("{error:?}"),
        };
        stderr().write_all(format!("{said}\n").as_bytes()).unwrap();
    }
}
