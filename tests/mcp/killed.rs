//! The example as a process that is killed in the middle of a call, with a client of `rmcp`.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResult, ProgressNotificationParam, ProtocolVersion,
};
use rmcp::service::{NotificationContext, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::FixedInterval;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::support::soon;

/// The steps of the call, and the pause before each.
const STEPS: u32 = 60;
const PAUSE_MS: u64 = 30;

/// A run of the server.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    async fn start(address: &str, folder: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_mcp-server"))
            .args([address.as_ref(), folder.as_os_str()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = process.stdout.take().unwrap();
        let mut lines = BufReader::new(output).lines();
        let url = soon("the start of the server", lines.next_line()).await;
        let url = url.unwrap().expect("the server says where it is");
        Self { process, url }
    }

    fn address(&self) -> &str {
        let rest = self.url.strip_prefix("http://").unwrap();
        rest.split_once('/').unwrap().0
    }

    /// Ends it with SIGKILL.
    async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }
}

/// The client's side: all steps that were reported to it.
#[derive(Clone)]
struct Seen(Arc<watch::Sender<Vec<f64>>>);

impl Seen {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }

    async fn steps(&self, count: u32) {
        let mut seen = self.0.subscribe();
        let counted = seen.wait_for(|steps| steps.len() >= count as usize);
        soon("a report of progress", counted).await.unwrap();
    }
}

impl ClientHandler for Seen {
    async fn on_progress(
        &self,
        report: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.0.send_modify(|steps| steps.push(report.progress));
    }
}

type Client = RunningService<RoleClient, Seen>;

async fn connect(url: &str, seen: &Seen, lifecycle: ClientLifecycleMode) -> Client {
    let mut retry = FixedInterval::default();
    retry.duration = Duration::from_millis(50);
    let mut config = StreamableHttpClientTransportConfig::with_uri(url);
    config.retry_config = Arc::new(retry);
    let transport = StreamableHttpClientTransport::from_config(config);
    let connected = seen.clone().serve_with_lifecycle(transport, lifecycle);
    soon("the connection", connected).await.unwrap()
}

async fn count(client: &Client) -> CallToolResult {
    let arguments = json!({ "to": STEPS, "pause_ms": PAUSE_MS });
    let mut call = CallToolRequestParams::new("count");
    call.arguments = arguments.as_object().cloned();
    soon("the answer", client.call_tool(call)).await.unwrap()
}

/// Calls the tool, and kills the server whenever the client has seen so many steps.
async fn check(lifecycle: ClientLifecycleMode, kills: &[u32]) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start("127.0.0.1:0", folder.path()).await;
    let seen = Seen::new();
    let client = connect(&server.url, &seen, lifecycle).await;
    let called = tokio::spawn(async move { (count(&client).await, client) });
    for steps in kills {
        seen.steps(*steps).await;
        let address = server.address().to_owned();
        server.kill().await;
        server = Server::start(&address, folder.path()).await;
    }
    let (result, client) = called.await.unwrap();
    let text = json!(result)["content"][0]["text"].clone();
    assert_eq!(text, json!(format!("counted to {STEPS}")));
    let expected: Vec<_> = (0..=STEPS).map(f64::from).collect();
    assert_eq!(*seen.0.borrow(), expected, "each step once, in order");

    // The session goes on as well.
    let tools = soon("the tools", client.list_all_tools()).await.unwrap();
    assert_eq!(tools.len(), 1);
    client.cancel().await.unwrap();
    server.kill().await;
}

fn stateless() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover {
        preferred_versions: vec![ProtocolVersion::V_2026_07_28],
    }
}

// The client handles each report in a task of its own. On one thread they run in the order in which
// the reports came.
#[tokio::test]
async fn a_client_with_a_session_misses_nothing_of_a_call_whose_server_is_killed() {
    check(ClientLifecycleMode::Initialize, &[5, 20, 21]).await;
}

#[tokio::test]
async fn a_client_without_a_session_misses_nothing_of_a_call_whose_server_is_killed() {
    check(stateless(), &[5, 20, 21]).await;
}

#[tokio::test]
async fn a_call_is_answered_without_a_kill_too() {
    check(ClientLifecycleMode::Initialize, &[]).await;
    check(stateless(), &[]).await;
}
