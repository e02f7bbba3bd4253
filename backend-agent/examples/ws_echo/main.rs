//! A target for outside WebSocket suites: the backend's acceptor and WebSocket settings without TLS, as an echo.
//!
//! `cargo run -p viworks-backend-agent --example ws_echo -- --listen 127.0.0.1:0 --ready-file F`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use viworks_common::limits::SocketBounds;
use viworks_runtime::lifecycle::{Lifecycle, Signals};
use viworks_runtime::ready_file;
use viworks_testkit::size;

mod echo;

/// How many connections are held at once.
const CONNECTIONS_MAX: usize = 1_024;

/// Echoes text and binary messages with the backend's own WebSocket settings. A test double: no TLS, any path, any
/// subprotocol (none is ever chosen), and text is echoed although agents may not send it.
#[derive(Debug, Parser)]
#[command(name = "ws_echo")]
struct Arguments {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Write {"echo":"ADDRESS:PORT"} once connections are taken
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Larger messages and frames than the product takes, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max_message_bytes: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Ready {
    echo: SocketAddr,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let bounds = arguments
        .max_message_bytes
        .map_or(SocketBounds::SESSION, SocketBounds::of_messages);
    let mut signals = Signals::listen().context("failed to install the signal handlers")?;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("failed to listen on {}", arguments.listen))?;
    let address = listener
        .local_addr()
        .context("failed to read the address")?;
    let lifecycle = Lifecycle::new();
    let accepting = accept(listener, bounds, lifecycle.clone());
    drop(lifecycle.spawn_critical("echo listener", accepting));
    if let Some(path) = &arguments.ready_file {
        ready_file::write(path, &Ready { echo: address })?;
    } else {
        #[expect(clippy::print_stdout, reason = "the address is this tool's output")]
        {
            println!("ws://{address}/");
        }
    }
    let outcome = lifecycle.run(&mut signals, Duration::ZERO).await;
    Ok(ExitCode::from(outcome.exit_code()))
}

async fn accept(listener: TcpListener, bounds: SocketBounds, lifecycle: Lifecycle) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let stopping = lifecycle.stop_token();
    loop {
        // Taken before the connection: beyond the bound they wait in the kernel.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let connection = async move {
            echo::serve(stream, bounds).await;
            drop(place);
        };
        drop(lifecycle.spawn("echo", Box::pin(connection)));
    }
}
