//! A socket whose peer must take what is sent to it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

/// Bytes that a peer must take within the limit when it does not take everything: reading a byte now and then is no
/// reading.
const PROGRESS_BYTES: usize = 4 * 1024;

/// A connection that can be given up, whatever is still unsent.
pub trait Abort {
    /// Has the operating system forget what is unsent when the socket is closed, and tell the peer at once.
    fn abort(&self);
}

impl Abort for TcpStream {
    fn abort(&self) {
        // Otherwise the system keeps what is unsent for a peer that takes nothing.
        if let Err(error) = set_socket_linger(self, Some(Duration::ZERO)) {
            tracing::debug!(%error, "a socket could not be told to forget what is unsent");
        }
    }
}

impl Abort for UnixStream {
    /// Such a socket keeps nothing for a peer.
    fn abort(&self) {}
}

/// Fails a write with [`io::ErrorKind::TimedOut`] when the peer has not taken enough of it for so long. A connection
/// that ends so, or after `cut`, is aborted.
#[derive(Debug)]
pub struct Progress<S: Abort> {
    inner: S,
    limit: Duration,
    cut: CancellationToken,
    /// Runs while the peer owes us to read.
    owed: Option<Pin<Box<Sleep>>>,
    taken: usize,
}

impl<S: Abort> Progress<S> {
    /// Holds the peer of `inner` to `limit`.
    pub const fn new(inner: S, limit: Duration, cut: CancellationToken) -> Self {
        Self {
            inner,
            limit,
            cut,
            owed: None,
            taken: 0,
        }
    }

    /// What a write of `wanted` bytes came to.
    fn settle(
        &mut self,
        context: &mut Context<'_>,
        wrote: Poll<io::Result<usize>>,
        wanted: usize,
    ) -> Poll<io::Result<usize>> {
        match wrote {
            Poll::Ready(Ok(bytes)) if bytes >= wanted => {
                self.owed = None;
                self.taken = 0;
            }
            Poll::Ready(Ok(bytes)) => {
                self.taken = self.taken.saturating_add(bytes);
                if self.taken >= PROGRESS_BYTES {
                    self.taken = 0;
                    if let Some(owed) = self.owed.as_mut() {
                        owed.as_mut().reset(Instant::now() + self.limit);
                    }
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let limit = self.limit;
                let owed = self.owed.get_or_insert_with(|| Box::pin(sleep(limit)));
                if owed.as_mut().poll(context).is_ready() {
                    self.cut.cancel();
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the peer does not take what is sent to it",
                    )));
                }
            }
        }
        wrote
    }
}

impl<S: AsyncRead + Unpin + Abort> AsyncRead for Progress<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin + Abort> AsyncWrite for Progress<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.settle(context, wrote, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write_vectored(context, pieces);
        let wanted = pieces.iter().map(|piece| piece.len()).sum();
        self.settle(context, wrote, wanted)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<S: Abort> Drop for Progress<S> {
    fn drop(&mut self) {
        if self.cut.is_cancelled() {
            self.inner.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    impl Abort for DuplexStream {
        fn abort(&self) {}
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_is_given_up_at_the_limit() {
        let (ours, _theirs) = duplex(1_024);
        let mut socket = Progress::new(ours, LIMIT, CancellationToken::new());
        let started = Instant::now();
        let error = socket.write_all(&[0; 100_000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_slowly_but_reads_gets_everything() {
        let (ours, mut theirs) = duplex(8 * 1_024);
        let mut socket = Progress::new(ours, LIMIT, CancellationToken::new());
        let reading = async {
            let mut piece = vec![0; 8 * 1_024];
            for _ in 0..16 {
                sleep(LIMIT / 2).await;
                theirs.read_exact(&mut piece).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(socket.write_all(&[0; 128 * 1_024]), reading);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_no_reading() {
        let (ours, mut theirs) = duplex(1_024);
        let mut socket = Progress::new(ours, LIMIT, CancellationToken::new());
        let reading = async {
            loop {
                sleep(LIMIT / 20).await;
                theirs.read_u8().await.unwrap();
            }
        };
        let bytes = [0; 128 * 1_024];
        let written = tokio::select! {
            written = socket.write_all(&bytes) => written,
            () = reading => Ok(()),
        };
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_with_nothing_to_send_is_nobody_s_fault() {
        let (ours, mut theirs) = duplex(1_024);
        let mut socket = Progress::new(ours, LIMIT, CancellationToken::new());
        for _ in 0..5 {
            sleep(LIMIT * 3).await;
            socket.write_all(b"event").await.unwrap();
            theirs.read_exact(&mut [0; 5]).await.unwrap();
        }
    }
}
