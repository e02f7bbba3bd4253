//! One WebSocket without blocking in either direction: reading goes on while writing waits for the network.
//!
//! Both agents hold their sessions through it. It knows nothing of what is said: messages come from an [`Outgoing`],
//! and whoever drives it decides what a [`Received`] means and when a [`Socket::stuck_at`] is reached.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as FrameCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes};
use viworks_common::limits::{self, DETAIL_BYTES_MAX, SocketBounds};
use viworks_common::session::{AgentSession, BackendSession};
use viworks_common::time::Monotonic;

/// How long the last messages and the close frame may take.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// A close frame's payload is at most 125 bytes, two of them the code.
const CLOSE_REASON_BYTES_MAX: usize = 123;

const _: () = assert!(CLOSE_REASON_BYTES_MAX < DETAIL_BYTES_MAX);

/// What the library is told of a socket within these bounds, which gathers so many bytes before it writes.
#[must_use]
pub fn settings(bounds: SocketBounds, gathered: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(limits::READ_BUFFER_BYTES)
        .write_buffer_size(gathered)
        .max_write_buffer_size(bounds.write_buffer)
        .max_message_size(Some(bounds.message))
        .max_frame_size(Some(bounds.frame))
}

/// What the network did.
#[derive(Debug)]
pub enum Received {
    /// One binary message.
    Frame(Bytes),
    /// One text message, which no session has.
    Text(Utf8Bytes),
    /// Bytes that break the rules of WebSocket.
    Foreign(Violation),
    /// A message beyond the limits.
    TooLarge,
    /// The other end has closed, with this number and reason if it said any.
    Closed(Option<(u16, String)>),
    /// The connection is gone.
    Lost(String),
}

/// How the rules of WebSocket were broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The number that RFC 6455 has for it.
    pub code: FrameCode,
    /// In words.
    pub reason: String,
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

impl Outgoing for BackendSession {
    fn next(&mut self, now: Monotonic) -> Option<Message> {
        self.poll_transmit(now).map(Message::binary)
    }
}

/// What counts as progress of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The socket takes a message: for an end that must get along with a slow line.
    Taken,
    /// Everything that was sent has left: for an end that nobody may hold by reading a little now and then.
    Gone,
}

/// The socket of a session.
#[derive(Debug)]
pub struct Socket<S> {
    inner: WebSocketStream<S>,
    send_timeout: Duration,
    progress: Progress,
    /// Since when what was sent waits for progress.
    unsent_since: Option<Monotonic>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Takes over an upgraded connection, on which sending has this long for each progress.
    pub const fn new(
        inner: WebSocketStream<S>,
        send_timeout: Duration,
        progress: Progress,
    ) -> Self {
        Self {
            inner,
            send_timeout,
            progress,
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
                Poll::Ready(Some(Ok(Message::Frame(_))) | None) => {
                    return Poll::Ready(Received::Closed(None));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(broken(&error)),
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
        match self.poll_send(context, outgoing, now) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Received::Lost(error.to_string())),
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
            self.unsent_since = match self.progress {
                Progress::Taken => Some(now),
                Progress::Gone => self.unsent_since.or(Some(now)),
            };
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

/// What an error of the library says about the other end.
fn broken(error: &Error) -> Received {
    let violation = |code| {
        Received::Foreign(Violation {
            code,
            reason: error.to_string(),
        })
    };
    match error {
        Error::ConnectionClosed => Received::Closed(None),
        // Not a violation: a connection that was cut, or the end of one that both had closed.
        Error::Protocol(
            ProtocolError::ResetWithoutClosingHandshake
            | ProtocolError::ReceivedAfterClosing
            | ProtocolError::SendAfterClosing,
        ) => Received::Lost(error.to_string()),
        Error::Protocol(_) => violation(FrameCode::Protocol),
        Error::Utf8(_) => violation(FrameCode::Invalid),
        Error::Capacity(_) => Received::TooLarge,
        Error::AlreadyClosed
        | Error::Io(_)
        | Error::Tls(_)
        | Error::WriteBufferFull(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_) => Received::Lost(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_connection_is_no_violation() {
        for cut in [
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake),
            Error::AlreadyClosed,
            Error::Io(std::io::ErrorKind::ConnectionReset.into()),
        ] {
            assert!(matches!(broken(&cut), Received::Lost(_)), "{cut}");
        }
        let closed = broken(&Error::ConnectionClosed);
        assert!(matches!(closed, Received::Closed(None)));
        let Received::Foreign(violation) =
            broken(&Error::Protocol(ProtocolError::NonZeroReservedBits))
        else {
            panic!("reserved bits break the rules");
        };
        assert_eq!(violation.code, FrameCode::Protocol);
    }

    /// As many messages as there are, of one size.
    struct Messages {
        left: usize,
        bytes: usize,
    }

    impl Outgoing for Messages {
        fn next(&mut self, _now: Monotonic) -> Option<Message> {
            self.left = self.left.checked_sub(1)?;
            Some(Message::binary(vec![0; self.bytes]))
        }
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(seconds))
    }

    /// The peer reads a little between two looks at the socket; when sending counts as stuck after that.
    async fn beside_a_slow_reader(progress: Progress) -> Option<Monotonic> {
        use tokio::io::AsyncReadExt;
        use tokio_tungstenite::tungstenite::protocol::Role;

        let (near, mut far) = tokio::io::duplex(1_024);
        let config = settings(SocketBounds::SESSION, 0);
        let inner = WebSocketStream::from_raw_socket(near, Role::Server, Some(config)).await;
        let mut socket = Socket::new(inner, Duration::from_secs(10), progress);
        let mut messages = Messages {
            left: 1_000,
            bytes: 1_000,
        };
        for second in 0..5 {
            let mut look = async || {
                std::future::poll_fn(|context| {
                    assert!(
                        socket
                            .poll_step(context, &mut messages, at(second))
                            .is_pending()
                    );
                    Poll::Ready(())
                })
                .await;
            };
            look().await;
            let mut taken = [0; 1_024];
            far.read_exact(&mut taken).await.unwrap();
            look().await;
        }
        assert!(messages.left > 0, "the line is slower than the sender");
        socket.stuck_at()
    }

    #[tokio::test]
    async fn a_slow_reader_holds_only_whom_it_may() {
        assert_eq!(beside_a_slow_reader(Progress::Taken).await, Some(at(14)));
        assert_eq!(beside_a_slow_reader(Progress::Gone).await, Some(at(10)));
    }
}
