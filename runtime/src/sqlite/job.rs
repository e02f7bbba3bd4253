//! A queued write or read, whatever its types are.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;
use tokio::sync::oneshot;

use super::Error;

/// A write that waits for its commit, or a read that waits for its turn.
pub(super) trait Job: Send {
    /// Runs it; `keep_copy` says whether it may have to run again. Answers whether its effects are to be kept.
    fn run<'c>(
        &'c mut self,
        connection: &'c mut SqliteConnection,
        keep_copy: bool,
    ) -> BoxFuture<'c, Verdict>;

    /// Gives whoever waits its outcome, or the reason why that did not come to pass.
    fn answer(self: Box<Self>, fate: Result<(), Error>);

    /// How many wait.
    fn questions(&self) -> usize {
        1
    }

    /// Itself, for one of its kind.
    fn as_any(&self) -> &dyn Any;

    /// The same, by value.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;

    /// Takes over a job of its own kind; gives any other back.
    fn absorb(&mut self, other: Box<dyn Job>) -> Option<Box<dyn Job>> {
        Some(other)
    }

    /// A job for each that waits, after [`Verdict::Split`].
    fn split(self: Box<Self>) -> Vec<Box<dyn Job>>;
}

/// What to do with the effects of a job; those of a read are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Commit them.
    Keep,
    /// Undo them.
    Undo,
    /// Undo them, and carry out the job in its parts.
    Split,
}

/// The job behind one call of `Database::write`.
pub(super) struct TypedJob<F, T, E> {
    work: Option<F>,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> TypedJob<F, T, E> {
    pub(super) const fn new(work: F, reply: oneshot::Sender<Result<T, E>>) -> Self {
        Self {
            work: Some(work),
            outcome: None,
            reply,
        }
    }
}

impl<F, T, E> Job for TypedJob<F, T, E>
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>>
        + Clone
        + Send
        + 'static,
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    fn run<'c>(
        &'c mut self,
        connection: &'c mut SqliteConnection,
        keep_copy: bool,
    ) -> BoxFuture<'c, Verdict> {
        let work = if keep_copy {
            self.work.clone()
        } else {
            self.work.take()
        };
        Box::pin(async move {
            let Some(work) = work else {
                return Verdict::Undo;
            };
            // The closure itself may panic too, so it is called inside.
            let guarded = AssertUnwindSafe(async { work(connection).await }).catch_unwind();
            let outcome = guarded
                .await
                .unwrap_or_else(|_payload| Err(Error::Panicked.into()));
            let verdict = if outcome.is_ok() {
                Verdict::Keep
            } else {
                Verdict::Undo
            };
            self.outcome = Some(outcome);
            verdict
        })
    }

    fn answer(self: Box<Self>, fate: Result<(), Error>) {
        let outcome = match (fate, self.outcome) {
            // A job that failed by itself keeps its own error, whatever became of the transaction.
            (_, Some(Err(error))) => Err(error),
            (Err(error), _) => Err(error.into()),
            (Ok(()), Some(Ok(output))) => Ok(output),
            (Ok(()), None) => Err(Error::Closed.into()),
        };
        // Nobody waits any more; the effects stand all the same.
        drop(self.reply.send(outcome));
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }

    fn split(self: Box<Self>) -> Vec<Box<dyn Job>> {
        vec![self]
    }
}

/// Adds a job to a batch; one of a kind that is there already becomes a part of that.
pub(super) fn gather(batch: &mut Vec<Box<dyn Job>>, job: Box<dyn Job>) {
    let mut left = Some(job);
    for known in &mut *batch {
        let Some(job) = left.take() else { return };
        left = known.absorb(job);
    }
    batch.extend(left);
}
