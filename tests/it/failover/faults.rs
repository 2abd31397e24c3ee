//! What befalls the nodes and the servers in a round of the campaign.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::child::Child;
use super::ledger::Attempt;
use super::nodes::Cluster;
use super::{AFTER, REST};
use crate::report::Dice;
use crate::support::eventually;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The primary dies, and the better of the others takes its place.
    Kill,
    /// A server is killed between its two flights, and others at any moment.
    Server,
    /// The primary is cut off from both standbys and not from the servers. Another takes its place.
    CutFromStandbys,
    /// Both standbys are away, waits for them are cancelled, and the primary dies.
    Cancel,
    /// The primary freezes, another takes its place, and it comes back.
    Freeze,
    /// The servers are cut off from the primary. In half of the rounds another takes its place.
    CutFromServers,
    /// The primary dies and starts again.
    Restart,
    /// Both standbys are away. The primary dies, starts again alone, and dies for good: what it has
    /// recovered is nowhere else.
    StartsAlone,
    /// A standby dies. The other is a quorum.
    Standby,
    /// The primary is cut off from everybody, and another takes its place.
    CutFromAll,
    /// Both standbys freeze: nothing is acknowledged until one is back.
    NoQuorum,
}

pub(super) const FAULTS: [Fault; 11] = [
    Fault::Kill,
    Fault::Server,
    Fault::CutFromStandbys,
    Fault::Cancel,
    Fault::Freeze,
    Fault::CutFromServers,
    Fault::Restart,
    Fault::StartsAlone,
    Fault::Standby,
    Fault::CutFromAll,
    Fault::NoQuorum,
];

impl Fault {
    pub(super) fn needs_networks(self) -> bool {
        use Fault::{CutFromAll, CutFromServers, CutFromStandbys};
        matches!(self, CutFromAll | CutFromServers | CutFromStandbys)
    }
}

/// A round, as what befalls it needs it.
pub(super) struct Scene<'a> {
    pub cluster: &'a Cluster,
    pub schema: &'a str,
    pub round: u64,
    pub dice: Dice,
    /// Counts the appends of the servers in this process that were acknowledged.
    pub acked: &'a AtomicU64,
    /// What the servers in processes of their own have appended.
    pub of_children: Vec<Attempt>,
    /// What the round met.
    pub figures: Vec<(String, u64)>,
}

/// The commits of the log that wait for a standby, among all connections of the nodes.
const WAITS: &str = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

impl Scene<'_> {
    /// Lets a fault befall the nodes, and brings all of them back.
    pub(super) fn befall(&mut self, fault: Fault) {
        let cluster = self.cluster;
        let primary = &cluster.primary();
        match fault {
            Fault::Kill => {
                cluster.run(&["kill", primary]);
                self.fail_over(primary, "");
            }
            Fault::Freeze => {
                cluster.run(&["freeze", primary]);
                self.fail_over(primary, "thaw");
            }
            Fault::Restart => {
                cluster.run(&["kill", primary]);
                cluster.run(&["start", primary]);
            }
            Fault::Standby => {
                let standby = &cluster.standbys()[0];
                cluster.run(&["kill", standby]);
                self.goes_on("without one standby");
                cluster.run(&["start", standby]);
            }
            Fault::NoQuorum => {
                let standbys = self.freeze_standbys();
                self.nothing_is_acknowledged();
                self.thaw(&standbys);
            }
            Fault::Cancel => self.cancel(primary),
            Fault::StartsAlone => self.start_alone(primary),
            Fault::Server => self.kill_servers(primary),
            Fault::CutFromStandbys => {
                for standby in cluster.standbys() {
                    cluster.run(&["cut", primary, &standby]);
                }
                self.nothing_is_acknowledged();
                self.fail_over(primary, "heal");
            }
            Fault::CutFromServers => {
                cluster.run(&["cut", "client", primary]);
                self.nothing_is_acknowledged();
                if self.dice.flip() {
                    self.fail_over(primary, "heal");
                } else {
                    cluster.run(&["heal"]);
                    self.goes_on("once the primary is back");
                }
            }
            Fault::CutFromAll => {
                cluster.run(&["cut", "client", primary]);
                for standby in cluster.standbys() {
                    cluster.run(&["cut", primary, &standby]);
                }
                self.fail_over(primary, "heal");
            }
        }
    }

    /// Promotes another node. The one before comes back as the primary that it was, if there is a
    /// word for it, and then as a standby.
    fn fail_over(&mut self, before: &str, back: &str) {
        let cluster = self.cluster;
        let next = cluster.run(&["promote", before]);
        self.goes_on("over a failover");
        match back {
            "" => {}
            "thaw" => drop(cluster.run(&[back, before])),
            _ => drop(cluster.run(&[back])),
        }
        sleep(AFTER);
        if !back.is_empty() {
            cluster.run(&["kill", before]);
        }
        cluster.run(&["rejoin", before, &next]);
    }

    /// Waits until appends are acknowledged again.
    fn goes_on(&mut self, when: &str) {
        let began = Instant::now();
        let before = self.acked.load(Ordering::SeqCst);
        while self.acked.load(Ordering::SeqCst) == before {
            assert!(began.elapsed() < REST, "appends do not go on {when}");
            sleep(Duration::from_millis(5));
        }
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap();
        self.figures
            .push((format!("ms until acknowledged again {when}"), millis));
        sleep(AFTER / 2);
    }

    /// Nothing is acknowledged while there is no quorum. What was on its way to a standby still is.
    fn nothing_is_acknowledged(&self) {
        let count = || self.acked.load(Ordering::SeqCst);
        let began = Instant::now();
        let mut before = count();
        loop {
            sleep(AFTER / 2);
            let now = count();
            if std::mem::replace(&mut before, now) == now {
                break;
            }
            assert!(began.elapsed() < REST, "acknowledged without a quorum");
        }
        sleep(AFTER);
        assert_eq!(count(), before, "acknowledged without a quorum");
    }

    fn freeze_standbys(&self) -> Vec<String> {
        let standbys = self.cluster.standbys();
        for standby in &standbys {
            self.cluster.run(&["freeze", standby]);
        }
        standbys
    }

    fn thaw(&self, nodes: &[String]) {
        for node in nodes {
            self.cluster.run(&["thaw", node]);
        }
    }

    /// Kills frozen nodes and starts them again. If they thawed, they would read what was on its
    /// way to them when they froze.
    fn restart(&self, nodes: &[String]) {
        for node in nodes {
            self.cluster.run(&["kill", node]);
            self.cluster.run(&["start", node]);
        }
    }

    fn cancel(&mut self, primary: &str) {
        let cluster = self.cluster;
        let standbys = self.freeze_standbys();
        let how = self
            .dice
            .one_of(&["pg_cancel_backend", "pg_terminate_backend"]);
        let cancel = format!(
            "WITH waits AS MATERIALIZED (SELECT pid {WAITS}) SELECT count({how}(pid)) FROM waits"
        );
        let mut cancelled = 0;
        eventually("waits are cancelled", || {
            // The connections that come after are cancelled too.
            let more = cluster.run(&["sql", primary, &cancel]);
            cancelled += more.parse::<u64>().unwrap();
            cancelled >= 3
        });
        self.figures
            .push((format!("waits ended by {how}"), cancelled));
        self.nothing_is_acknowledged();
        cluster.run(&["kill", primary]);
        self.restart(&standbys);
        self.fail_over(primary, "");
    }

    fn start_alone(&mut self, primary: &str) {
        let cluster = self.cluster;
        let standbys = self.freeze_standbys();
        let waiting = format!("SELECT count(*) > 0 {WAITS} AND query ~ '^(COMMIT|WITH held)'");
        eventually("a commit waits", || {
            cluster.run(&["sql", primary, &waiting]) == "t"
        });
        cluster.run(&["kill", primary]);
        cluster.run(&["start", primary]);
        self.nothing_is_acknowledged();
        // Longer than a read waits.
        sleep(3 * AFTER);
        cluster.run(&["kill", primary]);
        self.restart(&standbys);
        self.fail_over(primary, "");
    }

    /// Starts servers in processes of their own and kills them: at any moment, and while they hold
    /// the shard's lock.
    fn kill_servers(&mut self, primary: &str) {
        for nth in 0..4 {
            let url = self.cluster.run(&["url"]);
            let child = Child::start(&url, self.schema, &format!("{}.c{nth}", self.round));
            child.has_acknowledged();
            sleep(Duration::from_millis(self.dice.below(400)));
            if nth % 2 == 0 && self.catch(&child, primary) {
                self.figures
                    .push(("servers caught with the lock".to_owned(), 1));
                if self.dice.flip() {
                    // The server of the database ends the transaction of one that is silent.
                    self.goes_on("while a server is silent with the lock");
                    child.signal("CONT");
                    sleep(Duration::from_millis(self.dice.below(300)));
                }
            }
            self.of_children.extend(child.kill());
            self.figures.push(("servers killed".to_owned(), 1));
            self.goes_on("without a server that was killed");
        }
    }

    /// Stops a server between its two flights. Returns whether it could be met there.
    fn catch(&mut self, child: &Child, primary: &str) -> bool {
        // What the servers of this process have open ends before it is asked for again.
        let held = format!(
            "SELECT a.pid || ' ' || a.xact_start FROM pg_stat_activity a JOIN pg_locks l USING (pid) \
             WHERE a.state = 'idle in transaction' AND l.mode = 'RowShareLock' \
             AND l.relation = '\"{}\".shard'::regclass",
            self.schema
        );
        let ask = || self.cluster.run(&["sql", primary, &held]);
        for _ in 0..60 {
            child.signal("STOP");
            let first = ask();
            if !first.is_empty() {
                sleep(Duration::from_millis(50));
                if ask() == first {
                    return true;
                }
            }
            child.signal("CONT");
            sleep(Duration::from_micros(500 + self.dice.below(20_000)));
        }
        false
    }
}
