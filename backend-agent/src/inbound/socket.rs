//! One WebSocket without blocking in either direction: reading goes on while writing waits for the network.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink, SinkExt, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as FrameCode;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes};
use viworks_common::limits::{DETAIL_BYTES_MAX, SEND_PROGRESS_TIMEOUT};
use viworks_common::session::BackendSession;
use viworks_common::time::Monotonic;

/// How long the close frame may take.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// A close frame's payload is at most 125 bytes, two of them the code.
const CLOSE_REASON_BYTES_MAX: usize = 123;

const _: () = assert!(CLOSE_REASON_BYTES_MAX < DETAIL_BYTES_MAX);

/// What the network did.
#[derive(Debug)]
pub enum Received {
    /// One binary message.
    Frame(Bytes),
    /// One text message, which agents never send.
    Text(Utf8Bytes),
    /// Bytes that break the rules of WebSocket, with the number RFC 6455 has for that.
    Foreign(FrameCode),
    /// A message beyond the limits.
    TooLarge,
    /// The connection is gone.
    Lost,
}

/// Where the messages that leave through a socket come from.
pub trait Outgoing {
    /// The next one. Asked for only when the socket has room for it.
    fn next(&mut self, now: Monotonic) -> Option<Message>;
}

impl Outgoing for BackendSession {
    fn next(&mut self, now: Monotonic) -> Option<Message> {
        self.poll_transmit(now).map(Message::binary)
    }
}

/// The socket of one agent, over TLS unless a test says otherwise.
#[derive(Debug)]
pub struct AgentSocket<S = TlsStream<TcpStream>> {
    inner: WebSocketStream<S>,
    /// Something was written since when the socket was last known to be empty.
    unsent_since: Option<Monotonic>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AgentSocket<S> {
    /// Takes over an upgraded connection.
    pub const fn new(inner: WebSocketStream<S>) -> Self {
        Self {
            inner,
            unsent_since: None,
        }
    }

    /// When sending has made no progress for too long.
    pub fn stuck_at(&self) -> Option<Monotonic> {
        self.unsent_since
            .map(|since| since.saturating_add(SEND_PROGRESS_TIMEOUT))
    }

    /// Moves what there is to say towards the network, as far as that takes it now, and reads.
    pub fn poll_step(
        &mut self,
        context: &mut Context<'_>,
        outgoing: &mut impl Outgoing,
        now: Monotonic,
    ) -> Poll<Received> {
        if self.poll_send(context, outgoing, now).is_err() {
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
                Poll::Ready(Some(Ok(Message::Text(text)))) => {
                    return Poll::Ready(Received::Text(text));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(broken(&error)),
                Poll::Ready(Some(Ok(Message::Close(_)))) => {
                    // The library has its answer ready; whether it still arrives changes nothing.
                    drop(Pin::new(&mut self.inner).poll_flush(context));
                    return Poll::Ready(Received::Lost);
                }
                Poll::Ready(None | Some(Ok(Message::Frame(_)))) => {
                    return Poll::Ready(Received::Lost);
                }
            }
        }
    }

    /// Only moves what there is to say towards the network.
    pub fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        outgoing: &mut impl Outgoing,
        now: Monotonic,
    ) -> Poll<Received> {
        if self.poll_send(context, outgoing, now).is_err() {
            return Poll::Ready(Received::Lost);
        }
        Poll::Pending
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
    pub async fn close(
        mut self,
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
            // Reading on until the other end has closed keeps a reset from overtaking the frame.
            while let Some(Ok(_)) = futures_util::StreamExt::next(&mut self.inner).await {}
            Ok::<_, Error>(())
        };
        // Whoever does not take the close frame finds the connection gone.
        drop(timeout(CLOSE_TIME, farewell).await);
    }
}

/// What an error of the library says about the other end.
const fn broken(error: &Error) -> Received {
    match error {
        // Not a violation: a connection that was cut, or the end of one that both had closed.
        Error::Protocol(
            ProtocolError::ResetWithoutClosingHandshake
            | ProtocolError::ReceivedAfterClosing
            | ProtocolError::SendAfterClosing,
        ) => Received::Lost,
        Error::Protocol(_) => Received::Foreign(FrameCode::Protocol),
        Error::Utf8(_) => Received::Foreign(FrameCode::Invalid),
        Error::Capacity(_) => Received::TooLarge,
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Io(_)
        | Error::Tls(_)
        | Error::WriteBufferFull(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_) => Received::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_connection_is_lost_and_no_violation() {
        for cut in [
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake),
            Error::ConnectionClosed,
            Error::Io(std::io::ErrorKind::ConnectionReset.into()),
        ] {
            assert!(matches!(broken(&cut), Received::Lost), "{cut}");
        }
        let violation = Error::Protocol(ProtocolError::NonZeroReservedBits);
        assert!(matches!(
            broken(&violation),
            Received::Foreign(FrameCode::Protocol)
        ));
    }
}
