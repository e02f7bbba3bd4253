//! One WebSocket without blocking in either direction: reading goes on while writing waits for the network.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink, SinkExt, Stream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as FrameCode;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use viworks_common::limits::{DETAIL_BYTES_MAX, SEND_PROGRESS_TIMEOUT};
use viworks_common::session::{BackendSession, Closed};
use viworks_common::time::Monotonic;

use super::upgrade::Socket;

/// How long the close frame may take.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// A close frame's payload is at most 125 bytes, two of them the code.
const CLOSE_REASON_BYTES_MAX: usize = 123;

const _: () = assert!(CLOSE_REASON_BYTES_MAX < DETAIL_BYTES_MAX);

/// What the network did.
#[derive(Debug)]
pub(super) enum Received {
    /// One binary message.
    Frame(Bytes),
    /// Something the protocol does not have.
    Foreign,
    /// A message beyond the limits.
    TooLarge,
    /// The connection is gone.
    Lost,
}

/// The socket of one agent.
#[derive(Debug)]
pub(super) struct AgentSocket {
    inner: Socket,
    /// Something was written since when the socket was last known to be empty.
    unsent_since: Option<Monotonic>,
}

impl AgentSocket {
    pub(super) const fn new(inner: Socket) -> Self {
        Self {
            inner,
            unsent_since: None,
        }
    }

    /// When sending has made no progress for too long.
    pub(super) fn stuck_at(&self) -> Option<Monotonic> {
        self.unsent_since
            .map(|since| since.saturating_add(SEND_PROGRESS_TIMEOUT))
    }

    /// Moves what the session has to say towards the network, as far as that takes it now, and reads.
    pub(super) fn poll_step(
        &mut self,
        context: &mut Context<'_>,
        session: &mut BackendSession,
        now: Monotonic,
    ) -> Poll<Received> {
        if self.poll_send(context, session, now).is_err() {
            return Poll::Ready(Received::Lost);
        }
        loop {
            match Pin::new(&mut self.inner).poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(Message::Binary(bytes)))) => {
                    return Poll::Ready(Received::Frame(bytes));
                }
                // The library answers pings; they prove nothing to the session.
                Poll::Ready(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                Poll::Ready(Some(Ok(Message::Text(_) | Message::Frame(_)))) => {
                    return Poll::Ready(Received::Foreign);
                }
                Poll::Ready(Some(Err(Error::Capacity(_)))) => {
                    return Poll::Ready(Received::TooLarge);
                }
                Poll::Ready(Some(Err(Error::Protocol(_) | Error::Utf8(_)))) => {
                    return Poll::Ready(Received::Foreign);
                }
                Poll::Ready(None | Some(Ok(Message::Close(_)) | Err(_))) => {
                    return Poll::Ready(Received::Lost);
                }
            }
        }
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        session: &mut BackendSession,
        now: Monotonic,
    ) -> Result<(), Error> {
        let mut inner = Pin::new(&mut self.inner);
        // A message gets its number when it is taken, so it is taken only when the socket has room for it.
        while let Poll::Ready(ready) = inner.as_mut().poll_ready(context) {
            ready?;
            let Some(bytes) = session.poll_transmit(now) else {
                break;
            };
            inner.as_mut().start_send(Message::binary(bytes))?;
            self.unsent_since.get_or_insert(now);
        }
        if self.unsent_since.is_some()
            && let Poll::Ready(flushed) = inner.poll_flush(context)
        {
            flushed?;
            self.unsent_since = None;
        }
        Ok(())
    }

    /// Sends what is left and the close frame, for a moment at most.
    pub(super) async fn close(
        mut self,
        session: &mut BackendSession,
        closed: &Closed,
        now: Monotonic,
    ) {
        let text = format!("{}: {}", closed.name(), closed.reason);
        let end = text.floor_char_boundary(CLOSE_REASON_BYTES_MAX);
        let frame = CloseFrame {
            code: FrameCode::from(closed.number()),
            reason: text[..end].to_owned().into(),
        };
        let farewell = async {
            while let Some(bytes) = session.poll_transmit(now) {
                self.inner.feed(Message::binary(bytes)).await?;
            }
            self.inner.close(Some(frame)).await?;
            // Reading on until the other end has closed keeps a reset from overtaking the frame.
            while let Some(Ok(_)) = futures_util::StreamExt::next(&mut self.inner).await {}
            Ok::<_, Error>(())
        };
        // Whoever does not take the close frame finds the connection gone.
        drop(timeout(CLOSE_TIME, farewell).await);
    }
}
