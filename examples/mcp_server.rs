//! An MCP server with resumable streams: a call goes on where it was when the server was killed.
//!
//! `cargo run --example mcp_server --features mcp,http -- 127.0.0.1:8080 data`
//!
//! Its tool `count` counts up to a number, slowly, and reports each step as progress. Every report
//! is in the log before a client gets it. It carries what the call still has to do, so a server
//! that starts again finds the calls that were cut off, and finishes them. A client that reconnects
//! gets all that it missed, and then the rest.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, JsonObject,
    ListToolsResult, MetaObject, Notification, NotificationMetaObject, PaginatedRequestParams,
    ProgressNotificationParam, ProgressToken, RequestId, ServerCapabilities, ServerConfig,
    ServerJsonRpcMessage, ServerNotification, ServerResult, Tool,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::session::{
    EventStore, EventStoreError, ServerSseMessage,
};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sessionlog::{SessionLog, mcp};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let folder = args.next().unwrap_or_else(|| "data".to_owned());

    let log = SessionLog::open(folder)?;
    let store = mcp::Store::new(log.clone());
    finish_calls(&store)?;

    let store = Arc::new(store);
    let manager = LocalSessionManager::default().with_event_store(store.clone());
    let mut config = StreamableHttpServerConfig::default();
    config.session_store = Some(store);
    // After this time a client that lost its connection tries again.
    config.sse_retry = Some(Duration::from_millis(500));
    let service = StreamableHttpService::new(|| Ok(Counter), Arc::new(manager), config);

    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("http://{}/mcp", listener.local_addr()?);
    let router = axum::Router::new().nest_service("/mcp", service);
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    log.close()?;
    Ok(())
}

/// Goes on with the calls that the last run of the server has left unfinished.
fn finish_calls(store: &mcp::Store) -> Result<(), Box<dyn Error>> {
    for stream in store.unanswered()? {
        let newest = stream.message.unwrap_or_default();
        let work = newest.pointer("/params/_meta/count");
        let Some(Ok(count)) = work.map(Count::deserialize) else {
            continue; // The stream of a session, or a call that had not begun.
        };
        let store = store.clone();
        tokio::spawn(async move {
            if let Err(error) = count.finish(&store, &stream.stream_id).await {
                eprintln!("a call could not be finished: {error}");
            }
        });
    }
    Ok(())
}

/// The tool's work: all that is needed to go on with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Count {
    request: RequestId,
    token: ProgressToken,
    step: u32,
    to: u32,
    pause_ms: u64,
}

impl Count {
    /// Takes the next step, and returns the report of it.
    async fn next(&mut self) -> Option<ProgressNotificationParam> {
        if self.step >= self.to {
            return None;
        }
        sleep(Duration::from_millis(self.pause_ms)).await;
        self.step += 1;
        Some(self.report())
    }

    fn report(&self) -> ProgressNotificationParam {
        let mut report = ProgressNotificationParam::new(self.token.clone(), f64::from(self.step))
            .with_total(f64::from(self.to));
        let mut meta = JsonObject::new();
        meta.insert("count".to_owned(), json!(self));
        report.meta = Some(NotificationMetaObject(MetaObject(meta)));
        report
    }

    fn result(&self) -> CallToolResult {
        let text = format!("counted to {}", self.to);
        CallToolResult::success(vec![ContentBlock::text(text)])
    }

    /// Does the rest of the work, and stores what the client is still to get.
    async fn finish(mut self, store: &mcp::Store, stream_id: &str) -> Result<(), EventStoreError> {
        while let Some(report) = self.next().await {
            let report = ServerNotification::ProgressNotification(Notification::new(report));
            let message = ServerJsonRpcMessage::notification(report);
            let event = ServerSseMessage::from_message(message);
            store.store_event(stream_id, &event).await?;
        }
        let result = ServerResult::CallToolResult(self.result());
        let message = ServerJsonRpcMessage::response(result, self.request.clone());
        let event = ServerSseMessage::from_message(message);
        store.store_event(stream_id, &event).await?;
        Ok(())
    }
}

/// The server of one session.
#[derive(Clone)]
struct Counter;

impl ServerHandler for Counter {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema = json!({
            "type": "object",
            "properties": {
                "to": { "type": "integer", "minimum": 0 },
                "pause_ms": { "type": "integer", "minimum": 0 },
            },
            "required": ["to"],
        });
        let schema = schema.as_object().cloned().unwrap_or_default();
        let tool = Tool::new("count", "Counts up to a number, slowly.", schema);
        Ok(ListToolsResult::with_all_items(vec![tool]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        #[derive(Deserialize)]
        struct Arguments {
            to: u32,
            #[serde(default = "a_second")]
            pause_ms: u64,
        }
        fn a_second() -> u64 {
            1000
        }

        let refuse = |why: String| ErrorData::invalid_params(why, None);
        if request.name != "count" {
            return Err(refuse(format!("there is no tool {}", request.name)));
        }
        let arguments = json!(request.arguments.unwrap_or_default());
        let arguments =
            Arguments::deserialize(arguments).map_err(|error| refuse(error.to_string()))?;
        let token = context.meta.get_progress_token();
        let mut count = Count {
            request: context.id.clone(),
            token: token.ok_or_else(|| refuse("the call has no progressToken".to_owned()))?,
            step: 0,
            to: arguments.to,
            pause_ms: arguments.pause_ms,
        };
        // The first report makes the call one that a later run can finish.
        let mut report = Some(count.report());
        while let Some(progress) = report {
            // Without its client the count goes on: the store has what the client is to get.
            drop(context.peer.notify_progress(progress).await);
            report = count.next().await;
        }
        Ok(count.result().into())
    }
}
