//! Calls that may hang for ever, each on a plain thread: waited for as long as its limit, and never at the end of the
//! process.
//!
//! A dead network mount, a sensor or a disk can hold a call in the kernel for as long as it likes. The async runtime's
//! own pool is no place for such a call: its shutdown waits for every thread, and when the system has no thread left it
//! panics. Here the call is left behind, counted, and told of; a thread that cannot be had is an error like any other.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use viworks_common::human;

mod per_key;

pub use per_key::PerKey;

/// Calls of one name that may be under way at once; beyond that they are refused, because those before them hang.
pub const CALLS_MAX: usize = 64;

static CALLS: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The system has no thread for it at the moment: a limit on processes or memory.
    #[error("no thread could be started for it: {0}")]
    NoThread(#[source] io::Error),
    /// It takes too long; it may hang for ever.
    #[error("it did not answer within {0:?}")]
    Late(Duration),
    /// Too many earlier ones hang.
    #[error("{} not come back", human::counted(*.0, "earlier call has", "earlier calls have"))]
    Hanging(usize),
    /// It panicked, which was logged by the thread.
    #[error("it panicked")]
    Panicked,
}

/// One of the calls of a name, until the thread that makes it has ended.
#[derive(Debug)]
struct Place(&'static str);

impl Place {
    fn take(name: &'static str, calls_max: usize) -> Result<Self, Unanswered> {
        let mut calls = calls();
        let count = calls.entry(name).or_default();
        if *count >= calls_max {
            return Err(Unanswered::Hanging(*count));
        }
        *count += 1;
        Ok(Self(name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut calls = calls();
        if let Some(count) = calls.get_mut(self.0) {
            *count -= 1;
            if *count == 0 {
                calls.remove(self.0);
            }
        }
    }
}

fn calls() -> MutexGuard<'static, BTreeMap<&'static str, usize>> {
    // Nothing panics while it is held.
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calls that have not come back, by name, those whose time is not up included.
#[must_use]
pub fn under_way() -> BTreeMap<&'static str, usize> {
    calls().clone()
}

/// Makes one call on a thread of its own and waits for it, at most `limit`.
///
/// # Errors
/// When it does not answer in time, cannot be made, or panics. One that was late may still come to its end.
pub async fn call<T: Send + 'static>(
    name: &'static str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let place = Place::take(name, CALLS_MAX)?;
    let (reply, answer) = oneshot::channel();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let output = work();
            drop(place);
            // Nobody waits any more when it is late.
            drop(reply.send(output));
        })
        .map_err(Unanswered::NoThread)?;
    match timeout(limit, answer).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(_gone)) => Err(Unanswered::Panicked),
        Err(_elapsed) => Err(Unanswered::Late(limit)),
    }
}

/// Like [`call`], for code that is on a thread of its own already: waits on this thread.
///
/// # Errors
/// As for [`call`].
pub fn wait<T: Send + 'static>(
    name: &'static str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let place = Place::take(name, CALLS_MAX)?;
    let (reply, answer) = sync_channel(1);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let output = work();
            drop(place);
            drop(reply.try_send(output));
        })
        .map_err(Unanswered::NoThread)?;
    answer.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => Unanswered::Late(limit),
        RecvTimeoutError::Disconnected => Unanswered::Panicked,
    })
}

/// Makes the function that a worker's thread calls, on that thread.
type Make<Q, A> = dyn Fn() -> Box<dyn FnMut(Q) -> A> + Send + Sync;

/// One thread that answers questions one after another. While it hangs it is not asked, and no second one is started.
pub struct Worker<Q, A> {
    name: &'static str,
    make: std::sync::Arc<Make<Q, A>>,
    running: Option<Running<Q, A>>,
}

struct Running<Q, A> {
    questions: SyncSender<(Q, oneshot::Sender<A>)>,
    /// The answer to a question that was late.
    late: Option<oneshot::Receiver<A>>,
}

impl<Q: Send + 'static, A: Send + 'static> Worker<Q, A> {
    /// A worker whose thread is started with its first question. `make` prepares what it keeps between questions; it is
    /// called on the thread, and again if that had to be replaced.
    pub fn new<F>(name: &'static str, make: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: FnMut(Q) -> A + 'static,
    {
        Self {
            name,
            make: std::sync::Arc::new(move || Box::new(make())),
            running: None,
        }
    }

    /// Asks and waits, at most `limit`.
    ///
    /// # Errors
    /// When there is no answer. A worker that is still busy with a late question says so at once.
    pub async fn ask(&mut self, question: Q, limit: Duration) -> Result<A, Unanswered> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        if let Some(mut late) = running.late.take() {
            match late.try_recv() {
                // An answer to an old question is no answer to this one.
                Ok(_stale) => {}
                Err(oneshot::error::TryRecvError::Empty) => {
                    running.late = Some(late);
                    self.running = Some(running);
                    return Err(Unanswered::Late(limit));
                }
                Err(oneshot::error::TryRecvError::Closed) => return Err(Unanswered::Panicked),
            }
        }
        let (reply, mut answer) = oneshot::channel();
        if running.questions.try_send((question, reply)).is_err() {
            return Err(Unanswered::Panicked);
        }
        match timeout(limit, &mut answer).await {
            Ok(Ok(output)) => {
                self.running = Some(running);
                Ok(output)
            }
            // Its thread is gone; the next question starts another.
            Ok(Err(_gone)) => Err(Unanswered::Panicked),
            Err(_elapsed) => {
                running.late = Some(answer);
                self.running = Some(running);
                Err(Unanswered::Late(limit))
            }
        }
    }

    fn start(&self) -> Result<Running<Q, A>, Unanswered> {
        let (questions, asked) = sync_channel::<(Q, oneshot::Sender<A>)>(1);
        let make = std::sync::Arc::clone(&self.make);
        thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || {
                let mut answer = make();
                while let Ok((question, reply)) = asked.recv() {
                    drop(reply.send(answer(question)));
                }
            })
            .map_err(Unanswered::NoThread)?;
        Ok(Running {
            questions,
            late: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const AT_ONCE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_call_that_hangs_is_left_behind_and_counted_until_it_comes_back() {
        let (release, hang) = channel::<()>();
        let late = call("hangs", AT_ONCE, move || hang.recv()).await;
        assert!(matches!(late, Err(Unanswered::Late(_))));
        assert_eq!(under_way().get("hangs"), Some(&1));
        assert_eq!(call("adds", SOON, || 40 + 2).await.ok(), Some(42));
        drop(release);
        let back = async {
            while under_way().contains_key("hangs") {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, back).await.expect("the call comes back");
    }

    #[tokio::test]
    async fn calls_that_hang_are_bounded() {
        let mut held = Vec::new();
        for _each in 0..CALLS_MAX {
            let (release, hang) = channel::<()>();
            held.push(release);
            drop(call("many", Duration::from_millis(1), move || hang.recv()).await);
        }
        let refused = call("many", SOON, || ()).await;
        assert!(matches!(refused, Err(Unanswered::Hanging(CALLS_MAX))));
    }

    #[tokio::test]
    async fn a_call_that_panics_says_so() {
        let result = call("panics", SOON, || -> () { panic!("on purpose") }).await;
        assert!(matches!(result, Err(Unanswered::Panicked)));
    }

    #[tokio::test]
    async fn a_worker_that_hangs_is_not_asked_again_until_it_has_come_back() {
        let (release, hang) = channel::<u32>();
        let hang = std::sync::Arc::new(Mutex::new(hang));
        let mut worker = Worker::new("worker", move || {
            let hang = std::sync::Arc::clone(&hang);
            move |question: u32| {
                if question == 1 {
                    hang.lock().unwrap().recv().unwrap();
                }
                question
            }
        });
        assert_eq!(worker.ask(0, SOON).await.ok(), Some(0));
        assert!(matches!(
            worker.ask(1, AT_ONCE).await,
            Err(Unanswered::Late(_))
        ));
        assert!(matches!(
            worker.ask(2, SOON).await,
            Err(Unanswered::Late(_))
        ));
        release.send(1).unwrap();
        let back = async {
            loop {
                match worker.ask(3, SOON).await {
                    Ok(answer) => break answer,
                    Err(_busy) => tokio::task::yield_now().await,
                }
            }
        };
        let answer = timeout(SOON, back).await;
        assert_eq!(answer.expect("the worker comes back"), 3);
    }

    #[tokio::test]
    async fn a_worker_that_panicked_is_replaced() {
        let mut worker = Worker::new("worker", || {
            |fails: bool| {
                assert!(!fails, "on purpose");
                7
            }
        });
        assert!(matches!(
            worker.ask(true, SOON).await,
            Err(Unanswered::Panicked)
        ));
        assert_eq!(worker.ask(false, SOON).await.ok(), Some(7));
    }
}
