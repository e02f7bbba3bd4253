//! A stream on which one answer waits for the message that follows it at once, so that both leave together.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What may leave together; what does not fit in leaves by itself.
const TOGETHER_BYTES_MAX: usize = 4 * 1024;

/// Whoever has it says from when on what is written waits.
#[derive(Debug, Clone, Default)]
pub(super) struct Hold(Arc<AtomicBool>);

impl Hold {
    /// What is written from here on waits.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stream whose last answer may wait.
#[derive(Debug)]
pub struct Held<S> {
    inner: S,
    /// Until the stream is let go.
    hold: Option<Hold>,
    held: Vec<u8>,
}

impl<S> Held<S> {
    /// A stream through which everything goes until `hold` begins.
    pub(super) const fn new(inner: S, hold: Hold) -> Self {
        Self {
            inner,
            hold: Some(hold),
            held: Vec::new(),
        }
    }

    /// What is held leaves with the next flush, and what is written until then.
    pub(super) fn let_go(&mut self) {
        self.hold = None;
    }

    fn holds(&self) -> bool {
        let begun = |hold: &Hold| hold.0.load(Ordering::Relaxed);
        self.hold.as_ref().is_some_and(begun)
    }
}

impl<S: AsyncWrite + Unpin> Held<S> {
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        let drained = loop {
            let Some(rest) = self.held.get(written..).filter(|rest| !rest.is_empty()) else {
                break Poll::Ready(Ok(()));
            };
            match Pin::new(&mut self.inner).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => written += bytes,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.held.drain(..written);
        if self.held.is_empty() {
            // The stream lives for months, and holds nothing more.
            self.held = Vec::new();
        }
        drained
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let joins = self.holds() || !self.held.is_empty();
        if joins && self.held.len() + bytes.len() <= TOGETHER_BYTES_MAX {
            self.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_answer_leaves_with_the_message_behind_it() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let hold = Hold::default();
        let mut stream = Held::new(ours, hold.clone());
        let mut room = [0; 64];
        stream.write_all(b"before").await.unwrap();
        let read = theirs.read(&mut room).await.unwrap();
        assert_eq!(&room[..read], b"before");

        hold.begin();
        stream.write_all(b"answer, ").await.unwrap();
        stream.flush().await.unwrap();
        stream.let_go();
        stream.write_all(b"message").await.unwrap();
        assert!(theirs.read(&mut room).now_or_never().is_none());
        stream.flush().await.unwrap();
        let read = theirs.read(&mut room).await.unwrap();
        assert_eq!(&room[..read], b"answer, message");

        stream.write_all(b"after").await.unwrap();
        let read = theirs.read(&mut room).await.unwrap();
        assert_eq!(&room[..read], b"after");
        assert_eq!(stream.held.capacity(), 0);
    }

    #[tokio::test]
    async fn what_is_held_leaves_before_more_than_may_leave_together_and_before_the_end() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let hold = Hold::default();
        let mut stream = Held::new(ours, hold.clone());
        hold.begin();
        stream.write_all(b"an answer").await.unwrap();
        stream.let_go();
        let much = vec![7; TOGETHER_BYTES_MAX];
        let mut read = Vec::new();
        let (written, all) = tokio::join!(
            async {
                stream.write_all(&much).await?;
                stream.shutdown().await
            },
            theirs.read_to_end(&mut read)
        );
        written.unwrap();
        assert_eq!(all.unwrap(), 9 + TOGETHER_BYTES_MAX);
        assert!(read.starts_with(b"an answer\x07"));

        let (ours, mut theirs) = tokio::io::duplex(64);
        let hold = Hold::default();
        let mut stream = Held::new(ours, hold.clone());
        hold.begin();
        stream.write_all(b"a refusal").await.unwrap();
        stream.shutdown().await.unwrap();
        read.clear();
        theirs.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"a refusal");
    }
}
