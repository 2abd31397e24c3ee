//! The campaigns of all packages: the name of each, what it breaks, and how to run it.

/// A campaign as `cargo campaign` knows it.
pub(crate) struct Campaign {
    pub(crate) name: &'static str,
    /// What goes wrong in it.
    pub(crate) breaks: &'static str,
    pub(crate) place: Place,
    /// The part that the names of its tests share.
    pub(crate) tests: &'static str,
}

/// The test program that has a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The unit tests in `src/testing`, since it needs the crate's internals.
    Inside,
    /// This package.
    Outside,
    /// Calls to a server, and other clients: `tests/server`.
    Calls,
    Clients,
}

pub(crate) const PLACES: &[Place] = &[Place::Inside, Place::Outside, Place::Calls, Place::Clients];

impl Place {
    /// Returns the arguments of `cargo test` that run it.
    pub(crate) fn target(self) -> &'static [&'static str] {
        match self {
            Place::Inside => &["--package", "sessionlog", "--lib"],
            Place::Outside => &["--package", "sessionlog-campaigns", "--test", "campaigns"],
            Place::Calls => &["--package", "sessionlog-server-tests", "--test", "http"],
            Place::Clients => &["--package", "sessionlog-server-tests", "--test", "clients"],
        }
    }
}

pub(crate) const CAMPAIGNS: &[Campaign] = &[
    Campaign {
        name: "power-cuts",
        breaks: "the power, after any call to a simulated disk",
        place: Place::Inside,
        tests: "power_cuts::campaign_power_cuts",
    },
    Campaign {
        name: "damage",
        breaks: "any bit, block or file of a closed log",
        place: Place::Inside,
        tests: "damage::campaign_damage",
    },
    Campaign {
        name: "traced-power-cuts",
        breaks: "the power, after any system call of a process (strace)",
        place: Place::Outside,
        tests: "campaign_power_cuts_in_a_trace",
    },
    Campaign {
        name: "power-cuts-on-sled",
        breaks: "the same, for a log written on sled, to compare",
        place: Place::Outside,
        tests: "campaign_power_cuts_on_sled",
    },
    Campaign {
        name: "file-systems",
        breaks: "the power, under ext4, xfs and btrfs (root, FUSE)",
        place: Place::Outside,
        tests: "campaign_power_cuts_on_file_systems",
    },
    Campaign {
        name: "kill",
        breaks: "the process, at any moment",
        place: Place::Outside,
        tests: "campaign_kill",
    },
    Campaign {
        name: "failing-calls",
        breaks: "each system call, once or from then on (strace)",
        place: Place::Outside,
        tests: "campaign_failing_calls",
    },
    Campaign {
        name: "displaced-folders",
        breaks: "the folder's place: moved, removed, replaced, mounted over",
        place: Place::Outside,
        tests: "campaign_displaced_folders",
    },
    Campaign {
        name: "full-disks",
        breaks: "room, on disks of many sizes (root)",
        place: Place::Outside,
        tests: "campaign_full_disks",
    },
    Campaign {
        name: "concurrent-openers",
        breaks: "the lock: eight processes open one log at once",
        place: Place::Outside,
        tests: "campaign_concurrent_openers",
    },
    Campaign {
        name: "schedules",
        breaks: "the order of events among threads (shuttle)",
        place: Place::Outside,
        tests: "campaign_schedules",
    },
    Campaign {
        name: "histories",
        breaks: "nothing; what threads saw is held against time",
        place: Place::Outside,
        tests: "campaign_histories",
    },
    Campaign {
        name: "hostile-bytes",
        breaks: "what the decoders read, and how much memory they take",
        place: Place::Outside,
        tests: "campaign_hostile_bytes",
    },
    Campaign {
        name: "soak",
        breaks: "the process, again and again under a mixed load",
        place: Place::Outside,
        tests: "campaign_soak",
    },
    Campaign {
        name: "mutants",
        breaks: "a rule of the engine, which a test must notice",
        place: Place::Outside,
        tests: "campaign_mutants",
    },
    Campaign {
        name: "hostile-clients",
        breaks: "the server: clients that are slow, huge or many",
        place: Place::Calls,
        tests: "campaign_hostile_clients",
    },
    Campaign {
        name: "schemathesis",
        breaks: "requests, made up from the OpenAPI document (pip)",
        place: Place::Clients,
        tests: "campaign_schemathesis",
    },
];
