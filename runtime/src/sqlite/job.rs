//! A queued write or read, whatever its types are.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;

use super::{Connection, Error};

/// A write that waits for its commit, or a read that waits for its turn.
pub(super) trait Job: Send {
    /// Runs it; answers whether it worked, so that its effects are to be kept.
    fn run(&mut self, connection: &Connection) -> bool;

    /// Gives whoever waits its outcome, or the reason why that did not come to pass.
    fn answer(self: Box<Self>, fate: Result<(), Error>);

    /// Whether nobody waits for its answer any more.
    fn is_abandoned(&self) -> bool;
}

/// The job behind one call.
pub(super) struct TypedJob<F, T, E> {
    work: F,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> TypedJob<F, T, E> {
    /// The job, and where its answer arrives.
    pub(super) fn new(work: F) -> (Self, oneshot::Receiver<Result<T, E>>) {
        let (reply, answer) = oneshot::channel();
        let job = Self {
            work,
            outcome: None,
            reply,
        };
        (job, answer)
    }
}

impl<F, T, E> Job for TypedJob<F, T, E>
where
    F: Fn(&Connection) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn run(&mut self, connection: &Connection) -> bool {
        // What a job leaves half done is undone with its transaction.
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.work)(connection)))
            .unwrap_or_else(|_payload| Err(Error::Panicked.into()));
        let worked = outcome.is_ok();
        self.outcome = Some(outcome);
        worked
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

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}
