//! The keys of callers: from the environment, from a file each, and from a file of many.

use std::collections::HashSet;
use std::env;
use std::error::Error;
use std::fs;
use std::num::NonZero;
use std::path::Path;

use serde::Deserialize;
use sessionlog::http::{Key, Scope};
use toml::Spanned;

use super::args::Args;

/// The keys that were given, and what an operator should know about their files.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) clients: Vec<Key>,
    pub(super) workers: Vec<Key>,
    pub(super) warnings: Vec<String>,
    /// All of them, to find one that is given twice.
    secrets: HashSet<Vec<u8>>,
}

/// The file of many keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default)]
    key: Vec<Spanned<KeyEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    secret: Option<String>,
    secret_file: Option<String>,
    #[serde(default)]
    scope: KeyScope,
    #[serde(default)]
    prefix: String,
    requests_per_second: Option<NonZero<u32>>,
    burst: Option<NonZero<u32>>,
    streams_max: Option<usize>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KeyScope {
    #[default]
    Client,
    Worker,
}

impl Keys {
    /// Collects the keys from everywhere.
    pub(super) fn of(args: &Args) -> Result<Self, Box<dyn Error>> {
        let mut keys = Self::default();
        for (variable, file, scope) in [
            (
                "SESSIONLOG_API_KEY",
                &args.keys.api_key_file,
                KeyScope::Client,
            ),
            (
                "SESSIONLOG_WORKER_KEY",
                &args.keys.worker_key_file,
                KeyScope::Worker,
            ),
        ] {
            if let Some(secret) = env::var_os(variable).filter(|secret| !secret.is_empty()) {
                let secret = secret.into_encoded_bytes();
                keys.check_secret(&secret)
                    .map_err(|why| format!("{variable}: {why}"))?;
                keys.add(scope, Key::new(secret));
            }
            if let Some(file) = file {
                let secret = keys.secret_in(file)?;
                keys.check_secret(&secret)
                    .map_err(|why| format!("{}: {why}", file.display()))?;
                keys.add(scope, Key::new(secret));
            }
        }
        if let Some(file) = &args.keys.keys {
            keys.add_all_in(file)?;
        }
        Ok(keys)
    }

    fn add(&mut self, scope: KeyScope, key: Key) {
        match scope {
            KeyScope::Client => self.clients.push(key),
            KeyScope::Worker => self.workers.push(key.scope(Scope::Worker)),
        }
    }

    /// Refuses a secret that admits nobody, or that is another key's too.
    fn check_secret(&mut self, secret: &[u8]) -> Result<(), String> {
        let secret = secret.trim_ascii();
        if secret.is_empty() {
            return Err("the secret is empty: write the key there".into());
        }
        if !self.secrets.insert(secret.to_vec()) {
            return Err("the secret is another key's too: give each key its own".into());
        }
        Ok(())
    }

    /// Reads a file that holds one key. White space around it does not count.
    fn secret_in(&mut self, file: &Path) -> Result<Vec<u8>, String> {
        let shown = file.display();
        let secret = fs::read(file).map_err(|error| cannot_read(file, &error))?;
        self.warn_if_others_may_read(file);
        let secret = secret.trim_ascii();
        if secret.contains(&b'\n') {
            return Err(format!(
                "{shown} has several lines: write one key into it, and more into a file for --keys"
            ));
        }
        Ok(secret.to_vec())
    }

    fn add_all_in(&mut self, file: &Path) -> Result<(), String> {
        let text = fs::read_to_string(file).map_err(|error| cannot_read(file, &error))?;
        self.warn_if_others_may_read(file);
        let at = |position: usize, what: &str| {
            let line = 1 + text
                .bytes()
                .take(position)
                .filter(|byte| *byte == b'\n')
                .count();
            format!("{}:{line}: {what}", file.display())
        };
        // The parser's own text shows the line, which may hold a key.
        let parsed = toml::from_str::<KeyFile>(&text).map_err(|error| {
            let what = error.message().trim();
            at(
                error.span().map_or(0, |span| span.start),
                &format!("{what}: correct this line"),
            )
        })?;
        if parsed.key.is_empty() {
            return Err(at(0, "there is no key: add one below a line [[key]]"));
        }
        for entry in parsed.key {
            let begins = entry.span().start;
            let entry = entry.into_inner();
            let scope = entry.scope;
            let key = self.key_of(entry, file).map_err(|why| at(begins, &why))?;
            self.add(scope, key);
        }
        Ok(())
    }

    fn key_of(&mut self, entry: KeyEntry, file: &Path) -> Result<Key, String> {
        let secret = match (entry.secret, entry.secret_file) {
            (Some(secret), None) => secret.into_bytes(),
            (None, Some(name)) => {
                let folder = file.parent().unwrap_or(Path::new(""));
                self.secret_in(&folder.join(name))?
            }
            _ => return Err("a key has either `secret` or `secret_file`: give one of them".into()),
        };
        self.check_secret(&secret)?;
        if entry.burst.is_some() && entry.requests_per_second.is_none() {
            return Err("`burst` is part of a rate: give `requests_per_second` too".into());
        }
        let mut key = Key::new(secret).prefix(entry.prefix);
        if let Some(requests) = entry.requests_per_second {
            key = key.requests_per_second(requests.get());
        }
        if let Some(requests) = entry.burst {
            key = key.burst(requests.get());
        }
        if let Some(streams) = entry.streams_max {
            key = key.streams_max(streams);
        }
        Ok(key)
    }

    #[cfg(unix)]
    fn warn_if_others_may_read(&mut self, file: &Path) {
        use std::os::unix::fs::PermissionsExt;

        let mode = fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o004 != 0 {
            let shown = file.display();
            self.warnings.push(format!(
                "every user may read the keys in {shown}: take that away with chmod o-r"
            ));
        }
    }

    #[cfg(not(unix))]
    fn warn_if_others_may_read(&mut self, _file: &Path) {}
}

fn cannot_read(file: &Path, error: &std::io::Error) -> String {
    let shown = file.display();
    format!("cannot read the key file {shown}: {error}; correct the path or the permissions")
}
