//! The handle of a task.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::task::{AbortHandle, JoinHandle};

/// A started task. Dropping the handle leaves it running; awaiting gives its output, or `None` if it was aborted or
/// panicked.
#[derive(Debug)]
pub struct Task<T> {
    handle: JoinHandle<Option<T>>,
}

impl<T> Task<T> {
    pub(super) const fn new(handle: JoinHandle<Option<T>>) -> Self {
        Self { handle }
    }

    /// Drops the task at its next await.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Something that can abort the task while the handle itself is being awaited elsewhere.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        self.handle.abort_handle()
    }

    /// Whether it has ended, in whatever way.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Future for Task<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A join error means aborted: panics are caught inside.
        Poll::Ready(
            ready!(Pin::new(&mut self.handle).poll(context))
                .ok()
                .flatten(),
        )
    }
}
