//! Writes or reads of one kind that wait at the same moment, carried out as one.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;
use tokio::sync::oneshot;

use super::Error;
use super::job::{Job, Verdict};

/// Answers questions of one kind and group in one transaction: one answer for each, in their order. An answer that is an error must
/// have no effect; an error of the whole undoes all, and each question is asked again by itself.
pub type Together<G, Q, T, E> = for<'c> fn(
    &'c mut SqliteConnection,
    G,
    Arc<Vec<Q>>,
) -> BoxFuture<'c, Result<Vec<Result<T, E>>, E>>;

/// The questions behind some calls of `Database::write_together` or `Database::read_together`.
pub(super) struct TogetherJob<G, Q, T, E> {
    group: G,
    work: Together<G, Q, T, E>,
    questions: Arc<Vec<Q>>,
    replies: Vec<oneshot::Sender<Result<T, E>>>,
    outcome: Option<Result<Vec<Result<T, E>>, E>>,
}

impl<G, Q, T, E> TogetherJob<G, Q, T, E> {
    pub(super) fn new(
        group: G,
        question: Q,
        work: Together<G, Q, T, E>,
        reply: oneshot::Sender<Result<T, E>>,
    ) -> Self {
        Self {
            group,
            work,
            questions: Arc::new(vec![question]),
            replies: vec![reply],
            outcome: None,
        }
    }
}

impl<G, Q, T, E> Job for TogetherJob<G, Q, T, E>
where
    G: Clone + Eq + Send + 'static,
    Q: Clone + Send + Sync + 'static,
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    fn run<'c>(
        &'c mut self,
        connection: &'c mut SqliteConnection,
        _keep_copy: bool,
    ) -> BoxFuture<'c, Verdict> {
        let (work, group) = (self.work, self.group.clone());
        let questions = Arc::clone(&self.questions);
        Box::pin(async move {
            let guarded =
                AssertUnwindSafe(async { work(connection, group, questions).await }).catch_unwind();
            let outcome = guarded
                .await
                .unwrap_or_else(|_payload| Err(Error::Panicked.into()));
            let verdict = match &outcome {
                Ok(_) => Verdict::Keep,
                Err(_) if self.replies.len() > 1 => Verdict::Split,
                Err(_) => Verdict::Undo,
            };
            self.outcome = Some(outcome);
            verdict
        })
    }

    fn answer(self: Box<Self>, fate: Result<(), Error>) {
        let outcomes = match self.outcome {
            Some(Ok(outcomes)) => outcomes,
            // Only a single question keeps an error of the whole: many are asked again, one by one.
            Some(Err(error)) => vec![Err(error)],
            None => Vec::new(),
        };
        let mut outcomes = outcomes.into_iter();
        for reply in self.replies {
            let outcome = match (&fate, outcomes.next()) {
                // An answer that is an error had no effect, whatever became of the transaction.
                (_, Some(Err(error))) => Err(error),
                (Err(error), _) => Err(error.clone().into()),
                (Ok(()), Some(Ok(output))) => Ok(output),
                (Ok(()), None) => Err(Error::Closed.into()),
            };
            // Nobody waits any more; the effects stand all the same.
            drop(reply.send(outcome));
        }
    }

    fn questions(&self) -> usize {
        self.replies.len()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn absorb(&mut self, other: Box<dyn Job>) -> Option<Box<dyn Job>> {
        let same = other.as_any().downcast_ref::<Self>().is_some_and(|other| {
            std::ptr::fn_addr_eq(self.work, other.work) && self.group == other.group
        });
        let (true, Some(own)) = (same, Arc::get_mut(&mut self.questions)) else {
            return Some(other);
        };
        if let Ok(other) = other.into_any().downcast::<Self>() {
            own.extend(Arc::unwrap_or_clone(other.questions));
            self.replies.extend(other.replies);
        }
        None
    }

    fn split(self: Box<Self>) -> Vec<Box<dyn Job>> {
        let questions = Arc::unwrap_or_clone(self.questions);
        questions
            .into_iter()
            .zip(self.replies)
            .map(|(question, reply)| {
                let one = Self::new(self.group.clone(), question, self.work, reply);
                Box::new(one) as Box<dyn Job>
            })
            .collect()
    }
}
