//! One WebSocket without blocking in either direction: reading goes on while writing waits for the network.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as FrameCode;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes};
use viworks_common::session::AgentSession;
use viworks_common::time::Monotonic;

/// How long the last messages and the close frame may take.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// A close frame's payload is at most 125 bytes, two of them the code.
const CLOSE_REASON_BYTES_MAX: usize = 123;

/// What the network did.
#[derive(Debug)]
pub enum Received {
    /// One binary message.
    Frame(Bytes),
    /// One text message, which the backend never sends.
    Text(Utf8Bytes),
    /// The other end has closed, with this number and reason.
    Closed(Option<(u16, String)>),
    /// Nothing that was sent gets anywhere.
    Stuck,
    /// The connection is gone.
    Lost(String),
}

/// Where the messages that leave through a socket come from.
pub trait Outgoing {
    /// The next one. Asked for only when the socket has room for it.
    fn next(&mut self, now: Monotonic) -> Option<Message>;
}

impl Outgoing for AgentSession {
    fn next(&mut self, now: Monotonic) -> Option<Message> {
        self.poll_transmit(now).map(Message::binary)
    }
}

/// The socket of a session, over TLS unless a test says otherwise.
#[derive(Debug)]
pub struct AgentSocket<S = TlsStream<TcpStream>> {
    inner: WebSocketStream<S>,
    send_timeout: Duration,
    unsent_since: Option<Monotonic>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AgentSocket<S> {
    /// Takes over an upgraded connection, on which a send has this long to make progress.
    pub const fn new(inner: WebSocketStream<S>, send_timeout: Duration) -> Self {
        Self {
            inner,
            send_timeout,
            unsent_since: None,
        }
    }

    /// When sending has made no progress for too long.
    pub fn stuck_at(&self) -> Option<Monotonic> {
        self.unsent_since
            .map(|since| since.saturating_add(self.send_timeout))
    }

    /// Moves what there is to say towards the network, as far as that takes it now, and reads.
    pub fn poll_step(
        &mut self,
        context: &mut Context<'_>,
        outgoing: &mut impl Outgoing,
        now: Monotonic,
    ) -> Poll<Received> {
        if let Err(error) = self.poll_send(context, outgoing, now) {
            // A close frame that is already here says more than the failed write.
            if let Poll::Ready(Some(Ok(Message::Close(frame)))) =
                Pin::new(&mut self.inner).poll_next(context)
            {
                return Poll::Ready(closed(frame));
            }
            return Poll::Ready(Received::Lost(error.to_string()));
        }
        loop {
            match Pin::new(&mut self.inner).poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(Message::Binary(bytes)))) => {
                    return Poll::Ready(Received::Frame(bytes));
                }
                // The library answers pings; they prove nothing to the session.
                Poll::Ready(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                Poll::Ready(Some(Ok(Message::Text(text)))) => {
                    return Poll::Ready(Received::Text(text));
                }
                Poll::Ready(Some(Ok(Message::Close(frame)))) => {
                    // The library has its answer ready; whether it still arrives changes nothing.
                    drop(Pin::new(&mut self.inner).poll_flush(context));
                    return Poll::Ready(closed(frame));
                }
                Poll::Ready(Some(Ok(Message::Frame(_)) | Err(Error::ConnectionClosed)) | None) => {
                    return Poll::Ready(Received::Closed(None));
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Received::Lost(error.to_string()));
                }
            }
        }
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        outgoing: &mut impl Outgoing,
        now: Monotonic,
    ) -> Result<(), Error> {
        let mut inner = Pin::new(&mut self.inner);
        // A message gets its number when it is taken, so it is taken only when the socket has room for it.
        while let Poll::Ready(ready) = inner.as_mut().poll_ready(context) {
            ready?;
            let Some(message) = outgoing.next(now) else {
                break;
            };
            inner.as_mut().start_send(message)?;
            // The socket took something: that is progress.
            self.unsent_since = Some(now);
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
    pub async fn close(
        &mut self,
        outgoing: &mut impl Outgoing,
        code: FrameCode,
        reason: &str,
        now: Monotonic,
    ) {
        let end = reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX);
        let frame = CloseFrame {
            code,
            reason: reason[..end].to_owned().into(),
        };
        let farewell = async {
            while let Some(message) = outgoing.next(now) {
                self.inner.feed(message).await?;
            }
            self.inner.close(Some(frame)).await?;
            // Reading on until the other end has closed keeps a reset from overtaking the last messages.
            while let Some(Ok(_)) = StreamExt::next(&mut self.inner).await {}
            Ok::<_, Error>(())
        };
        // Whoever does not take the close frame finds the connection gone.
        drop(timeout(CLOSE_TIME, farewell).await);
    }
}

fn closed(frame: Option<CloseFrame>) -> Received {
    Received::Closed(frame.map(|frame| (u16::from(frame.code), frame.reason.to_string())))
}
