//! Drives the fuzzing server of the Autobahn test suite with the gateway's connector, as the agent `viworks`.
//!
//! `cargo run -p viworks-gateway-agent --example ws_fuzz_client -- ws://127.0.0.1:9001`

use anyhow::Context;
use clap::Parser;
use http::Uri;
use viworks_common::limits::SocketBounds;
use viworks_testkit::size;

mod drive;

use drive::Server;

/// Runs every case of an Autobahn fuzzing server through the gateway's own connector, without TLS and without asking
/// for the subprotocol; text is echoed although the backend may not send it.
#[derive(Debug, Parser)]
#[command(name = "ws_fuzz_client")]
struct Arguments {
    /// The fuzzing server, such as `ws://127.0.0.1:9001`
    server: Uri,
    /// The largest message and frame that is taken; the suite sends up to 16 MiB
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64MiB")]
    max_message_bytes: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let uri = &arguments.server;
    anyhow::ensure!(uri.scheme_str() == Some("ws"), "only ws:// is spoken here");
    let server = Server {
        host: uri.host().context("the address has no host")?.to_owned(),
        port: uri.port_u16().unwrap_or(80),
        bounds: SocketBounds::of_messages(arguments.max_message_bytes),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    runtime.block_on(server.run_cases(|case, count| {
        #[expect(clippy::print_stderr, reason = "progress of a long run")]
        {
            eprintln!("case {case} of {count}");
        }
    }))
}
