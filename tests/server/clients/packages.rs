//! The client packages in `examples/clients`: they install as their READMEs say, and pass their own
//! tests, which start servers of their own.
//!
//! Needs Python with `venv`, Node with `npm`, and for some tests packages of their registries. What
//! is installed lies below the target folder, so that the checkout stays clean.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

use crate::missing;
use crate::page::Browser;
use crate::process::{KEY, Server, program};
use crate::proxy::Nginx;

/// Why a test cannot run here.
pub(crate) type Obstacle = String;

/// A client that follows a session and prints each event.
pub(crate) struct Follower {
    pub(crate) name: &'static str,
    pub(crate) command: fn() -> Result<Command, Obstacle>,
}

pub(crate) const FOLLOWERS: &[Follower] = &[
    Follower {
        name: "python",
        command: || {
            let mut command = Command::new(python()?);
            command.args(["-m", "sessionlog_client"]);
            Ok(command)
        },
    },
    Follower {
        name: "node",
        command: || {
            missing(&["node"]).map_or(Ok(()), Err)?;
            let mut command = Command::new("node");
            command.arg(package("typescript").join("cli.mjs"));
            Ok(command)
        },
    },
];

pub(crate) fn the_python_client_passes_its_tests() -> Result<(), Obstacle> {
    let mut tests = Command::new(python()?);
    tests
        .args(["-m", "unittest", "discover", "-s"])
        .arg(package("python").join("tests"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SESSIONLOG", program());
    passes(&mut tests);
    Ok(())
}

pub(crate) fn the_typescript_client_passes_its_tests() -> Result<(), Obstacle> {
    missing(&["node", "npm"]).map_or(Ok(()), Err)?;
    let project = tempfile::tempdir().unwrap();
    passes(
        npm(project.path())
            .arg("install")
            .arg(package("typescript")),
    );
    copy(
        &package("typescript"),
        "tests/client.test.mjs",
        project.path(),
    );
    copy(&package("typescript"), "tests/harness.mjs", project.path());
    let mut tests = Command::new("node");
    tests
        .current_dir(&project)
        .args(["--test", "tests/client.test.mjs"])
        .env("SESSIONLOG", program());
    passes(&mut tests);
    Ok(())
}

pub(crate) fn the_javascript_is_what_the_typescript_compiles_to() -> Result<(), Obstacle> {
    missing(&["node", "npm"]).map_or(Ok(()), Err)?;
    let (sources, copies) = (package("typescript"), environment("typescript"));
    for file in ["package.json", "tsconfig.json", "sessionlog-client.ts"] {
        copy(&sources, file, &copies);
    }
    can(npm(&copies).arg("install"))?;
    passes(npm(&copies).args(["run", "build"]));
    for file in ["sessionlog-client.js", "sessionlog-client.d.ts"] {
        let read = |folder: &Path| fs::read_to_string(folder.join("dist").join(file)).unwrap();
        assert_eq!(
            read(&sources),
            read(&copies),
            "`npm run build` writes {file}"
        );
    }
    Ok(())
}

/// A page of the server's origin imports the client as it is, sends a message and follows it.
pub(crate) async fn the_typescript_client_runs_in_a_browser() {
    let browser = Browser::start().await;
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), "127.0.0.1:0");
    let upstream = server.url.strip_prefix("http://").unwrap();
    let files = package("typescript").join("dist");
    // The braces end the location of the server and begin one for the file.
    let settings = format!(
        "}} location = /client.js {{ alias {}; types {{ text/javascript js; }}",
        files.join("sessionlog-client.js").display()
    );
    let nginx = Nginx::start(
        folder.path(),
        &crate::process::free_address(),
        upstream,
        &settings,
    );
    // A page without a policy of its own. The one of the server admits no module.
    let page = format!("{}/healthz", nginx.url);
    browser.client.goto(&page).await.unwrap();
    let script = format!(
        "(async () => {{
            const {{ SessionLog }} = await import('/client.js');
            const log = new SessionLog(location.origin, {{ key: '{KEY}' }});
            await log.sendMessage('a b/c', 'hello');
            for await (const event of log.follow('a b/c')) return event;
        }})().then(event => {{ window.seen = event; }}, error => {{ window.seen = `${{error}}`; }})"
    );
    browser.ask(&script).await;
    browser.until("window.seen !== undefined").await;
    let seen: Value = browser.ask("window.seen").await;
    assert_eq!(seen["data"]["content"][0]["text"], "hello", "{seen}");
    assert_eq!(server.ids("a%20b%2Fc"), [seen["id"].as_str().unwrap()]);
    browser.end().await;
}

/// The Python of an environment that has the client.
fn python() -> Result<&'static Path, Obstacle> {
    static PYTHON: LazyLock<Result<PathBuf, Obstacle>> = LazyLock::new(|| {
        missing(&["python3"]).map_or(Ok(()), Err)?;
        let environment = environment("python");
        let python = environment.join("bin/python");
        // One of an earlier run may name a Python that is gone.
        if !run(Command::new(&python).args(["-m", "pip", "--version"])).0 {
            can(Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&environment))?;
        }
        let pip = |options: &[&str]| {
            let mut pip = Command::new(&python);
            pip.args(["-m", "pip", "install", "--quiet", "--retries=1"]);
            pip.args(options);
            pip
        };
        can(&mut pip(&["flit_core", "httpx"]))?;
        // What it needs is there, so that a failure is one of the package.
        passes(pip(&["--no-build-isolation"]).arg(package("python")));
        Ok(python)
    });
    PYTHON.as_deref().map_err(Clone::clone)
}

pub(crate) fn npm(folder: &Path) -> Command {
    let mut npm = Command::new("npm");
    npm.current_dir(folder).args([
        "--no-audit",
        "--no-fund",
        "--fetch-retries=0",
        "--prefer-offline",
    ]);
    npm
}

fn package(name: &str) -> PathBuf {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/clients");
    clients.join(name).canonicalize().unwrap()
}

/// A folder for what is installed. It stays for the next run.
pub(crate) fn environment(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("clients")
        .join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

pub(crate) fn copy(from: &Path, file: &str, to: &Path) {
    let copy = to.join(file);
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    fs::copy(from.join(file), copy).unwrap();
}

/// Runs a command that may lack something from outside.
pub(crate) fn can(command: &mut Command) -> Result<(), Obstacle> {
    let (succeeds, said) = run(command);
    let program = Path::new(command.get_program()).file_name().unwrap();
    let last = said.trim_end().lines().last().unwrap_or_default();
    let why = || format!("{} failed: {last}", program.display());
    if succeeds { Ok(()) } else { Err(why()) }
}

fn passes(command: &mut Command) {
    let (succeeds, said) = run(command);
    assert!(succeeds, "{command:?} failed:\n{said}");
}

/// Returns whether a command succeeds, and what it says.
pub(crate) fn run(command: &mut Command) -> (bool, String) {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            (output.status.success(), said)
        }
        Err(error) => (false, error.to_string()),
    }
}
