//! The Autobahn case loop, through the product's own dialling, upgrade and socket.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use viworks_common::limits::{HANDSHAKE_STEP_TIMEOUT, SEND_PROGRESS_TIMEOUT, SocketBounds};
use viworks_common::time::Monotonic;
use viworks_gateway_agent::config::Timeouts;
use viworks_gateway_agent::outbound::dial::{Target, connect, upgrade};
use viworks_runtime::clock::{Clock, SystemClock, sleep_until};
use viworks_runtime::websocket::{Outgoing, Progress, Received, Socket};

/// The name under which the suite files its report.
const AGENT: &str = "viworks";

/// The gateway's default times.
const TIMES: Timeouts = Timeouts {
    resolve: HANDSHAKE_STEP_TIMEOUT,
    connect: HANDSHAKE_STEP_TIMEOUT,
    tls: HANDSHAKE_STEP_TIMEOUT,
    upgrade: HANDSHAKE_STEP_TIMEOUT,
    opening: HANDSHAKE_STEP_TIMEOUT,
    send: SEND_PROGRESS_TIMEOUT,
};

/// After this long without a message, a case has gone wrong.
const CASE_TIME: Duration = Duration::from_secs(120);

/// A server with the bounds it is spoken to with.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) bounds: SocketBounds,
}

/// What came and has not gone back yet.
#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Waiting {
    fn push(&mut self, message: Message) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }
}

impl Outgoing for Waiting {
    fn next(&mut self, _now: Monotonic) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.len();
        Some(message)
    }
}

impl Server {
    /// Runs every case of the suite, calling `progress` before each, and has it write its report.
    pub(crate) async fn run_cases(&self, mut progress: impl FnMut(u32, u32)) -> anyhow::Result<()> {
        let count = self.case_count().await?;
        for case in 1..=count {
            progress(case, count);
            let path = format!("/runCase?case={case}&agent={AGENT}");
            // A case may well be that the server's answer to the upgrade is bad; the report says how it went.
            drop(self.echo(&path).await);
        }
        self.echo(&format!("/updateReports?agent={AGENT}")).await?;
        Ok(())
    }

    async fn case_count(&self) -> anyhow::Result<u32> {
        let mut socket = self.open("/getCaseCount").await?;
        let mut nothing = Waiting::default();
        let received = next(&mut socket, &mut nothing).await?;
        let Received::Text(text) = received else {
            bail!("the number of cases was expected, not {received:?}");
        };
        Ok(text.trim().parse()?)
    }

    /// Sends everything back until the connection ends.
    pub(crate) async fn echo(&self, path: &str) -> anyhow::Result<()> {
        let mut socket = self.open(path).await?;
        let mut waiting = Waiting::default();
        loop {
            match next(&mut socket, &mut waiting).await? {
                Received::Frame(bytes) => waiting.push(Message::Binary(bytes)),
                Received::Text(text) => waiting.push(Message::Text(text)),
                Received::Closed(_) => return Ok(()),
                Received::Foreign(violation) => {
                    bail!("the server broke the rules: {}", violation.reason)
                }
                Received::TooLarge => bail!("a message is larger than the limit"),
                Received::Lost(reason) => bail!("the connection was lost: {reason}"),
            }
            if waiting.bytes > self.bounds.write_buffer {
                bail!("the server sends without reading");
            }
        }
    }

    async fn open(&self, path: &str) -> anyhow::Result<Socket<TcpStream>> {
        let stream = connect(&self.host, self.port, None, &TIMES).await?;
        let target = Target {
            authority: format!("{}:{}", self.host, self.port),
            path,
            subprotocol: None,
            bounds: self.bounds,
        };
        let socket = upgrade(stream, &target, TIMES.upgrade).await?;
        Ok(Socket::new(socket, TIMES.send, Progress::Taken))
    }
}

async fn next(socket: &mut Socket<TcpStream>, waiting: &mut Waiting) -> anyhow::Result<Received> {
    let patience = SystemClock.now().saturating_add(CASE_TIME);
    let due = socket.stuck_at().map_or(patience, |at| at.min(patience));
    let received = poll_fn(|context| socket.poll_step(context, waiting, SystemClock.now()));
    tokio::select! {
        biased;
        received = received => Ok(received),
        () = sleep_until(&SystemClock, due) => {
            Err(anyhow::anyhow!("nothing happened for too long")).context("a case stands still")
        }
    }
}
