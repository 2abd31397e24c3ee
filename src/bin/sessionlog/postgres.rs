//! A log on PostgreSQL, in place of a folder.

use std::path::Path;

use clap::ValueEnum;
use sessionlog::{Durability, Options};

/// How the URLs of PostgreSQL begin.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// What a URL does not say.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "PostgreSQL")]
#[group(skip)]
pub(crate) struct Args {
    /// Schema of the tables
    #[arg(
        id = "postgres_schema",
        long = "postgres-schema",
        env = "SESSIONLOG_POSTGRES_SCHEMA",
        value_name = "NAME",
        default_value = "sessionlog"
    )]
    schema: String,

    /// What a commit of the server survives
    #[arg(
        id = "postgres_durability",
        long = "postgres-durability",
        env = "SESSIONLOG_POSTGRES_DURABILITY",
        value_name = "KIND",
        value_enum,
        default_value = "replicated"
    )]
    durability: Kind,

    /// Shards of a log that is made
    #[arg(
        id = "postgres_shards",
        long = "postgres-shards",
        env = "SESSIONLOG_POSTGRES_SHARDS",
        value_name = "NUMBER",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    shards: u32,

    /// URL of a further database over which the shards are spread; may be repeated
    #[arg(
        id = "postgres_database",
        long = "postgres-database",
        env = "SESSIONLOG_POSTGRES_DATABASE",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ' ',
        value_parser = parse_url
    )]
    databases: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The loss of a node: a commit is on a quorum, as the server's settings say
    Replicated,
    /// A crash of the one node
    OneNode,
    /// What the database below PostgreSQL promises
    EngineReplicates,
}

impl Args {
    /// Adds what is said here to the options of a log.
    pub(crate) fn to(&self, options: Options) -> Options {
        let databases = self.databases.iter();
        databases.fold(self.of_first(options), |options, url| {
            options.and_database(url)
        })
    }

    /// Adds what is said of the first of its databases.
    pub(crate) fn of_first(&self, options: Options) -> Options {
        let durability = match self.durability {
            Kind::Replicated => Durability::Replicated,
            Kind::OneNode => Durability::OneNode,
            Kind::EngineReplicates => Durability::EngineReplicates,
        };
        let options = options.schema(self.schema.as_str()).durability(durability);
        options.shards(self.shards)
    }
}

/// Returns the URL if it is one and no folder.
pub(crate) fn url(place: &Path) -> Option<&str> {
    place.to_str().filter(|text| is_url(text))
}

/// Checks the value of an option.
pub(crate) fn parse_url(text: &str) -> Result<String, String> {
    if is_url(text) {
        return Ok(text.to_owned());
    }
    Err(format!("give a URL that begins with {}", SCHEMES[0]))
}

fn is_url(text: &str) -> bool {
    SCHEMES.iter().any(|scheme| text.starts_with(scheme))
}

/// Returns a URL for people, without what comes before its host and after its database: there may
/// be a password.
pub(crate) fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let rest = rest.rsplit_once('@').map_or(rest, |(_user, place)| place);
    let place = rest.split_once('?').map_or(rest, |(place, _)| place);
    format!("{scheme}://{place}")
}
