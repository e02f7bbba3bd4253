//! One connection of the echo: the product's upgrade, socket options and socket, and everything goes back.

use std::collections::VecDeque;
use std::future::poll_fn;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as FrameCode;
use viworks_backend_agent::inbound::listener;
use viworks_backend_agent::inbound::upgrade::{self, Rules, Verdict};
use viworks_common::limits::{HANDSHAKE_STEP_TIMEOUT, SEND_PROGRESS_TIMEOUT, SocketBounds};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock, SystemClock, sleep_until};
use viworks_runtime::websocket::{Outgoing, Progress, Received, Socket};

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

/// Messages that wait for a peer that sends without reading.
const WAITING_MAX: usize = 1_024;

/// Serves one connection until it ends.
pub(crate) async fn serve(stream: TcpStream, bounds: SocketBounds) {
    listener::prepare(&stream);
    let rules = Rules {
        place: None,
        bounds,
        sends_first: false,
    };
    let welcome = |_headers| std::future::ready(Verdict::Welcome(()));
    let upgraded = upgrade::serve(stream, &rules, welcome);
    let Ok(Some((socket, ()))) = timeout(HANDSHAKE_STEP_TIMEOUT, Box::pin(upgraded)).await else {
        return;
    };
    let mut socket = Socket::new(socket, SEND_PROGRESS_TIMEOUT, Progress::Gone);
    let mut waiting = Waiting::default();
    let (code, reason) = loop {
        let stuck_at = socket.stuck_at();
        let received =
            poll_fn(|context| socket.poll_step(context, &mut waiting, SystemClock.now()));
        let received = tokio::select! {
            biased;
            received = received => received,
            () = sleep_until(&SystemClock, stuck_at.unwrap_or_default()), if stuck_at.is_some() => return,
        };
        match received {
            Received::Frame(bytes) => waiting.push(Message::Binary(bytes)),
            Received::Text(text) => waiting.push(Message::Text(text)),
            Received::Foreign(violation) => {
                break (violation.code, "the frame breaks the protocol");
            }
            Received::TooLarge => break (FrameCode::Size, "the message exceeds the limit"),
            Received::Closed(_) | Received::Lost(_) => return,
        }
        if waiting.messages.len() > WAITING_MAX || waiting.bytes > bounds.write_buffer {
            break (FrameCode::Policy, "too much was sent without being read");
        }
    };
    let now = SystemClock.now();
    socket.close(&mut waiting, code, reason, now).await;
}
