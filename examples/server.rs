//! A server of a dozen lines.
//!
//! `SESSIONLOG_API_KEY=secret cargo run --example server --features http`
//!
//! The command `sessionlog serve` is the server for production.

use sessionlog::{SessionLog, http};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let log = SessionLog::open("data")?;
    let config = http::Config::with_api_key(std::env::var("SESSIONLOG_API_KEY")?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    let until_interrupted = async { drop(tokio::signal::ctrl_c().await) };
    http::serve(listener, log.clone(), config, until_interrupted).await?;
    log.close()?;
    Ok(())
}
