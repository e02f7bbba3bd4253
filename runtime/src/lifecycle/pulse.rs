//! Whether tasks still move: each that the process cannot do without is woken now and then, and has to come back from
//! the step that it takes then.
//!
//! A task that blocks its thread, waits for a lock that nobody gives back or computes for ever does not come back. One
//! that waits for something to happen does, as often as it is asked.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::task::AtomicWaker;

/// The pulse of one task.
#[derive(Debug)]
pub(super) struct Pulse {
    name: &'static str,
    asked: AtomicU64,
    answered: AtomicU64,
    task: AtomicWaker,
}

impl Pulse {
    /// Does what `future` does, and answers after each of its steps.
    pub(super) async fn over<F: Future>(self: Arc<Self>, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            // First, so that whoever asks during the step has another one taken.
            self.task.register(context.waker());
            let asked = self.asked.load(Ordering::Acquire);
            let polled = future.as_mut().poll(context);
            self.answered.store(asked, Ordering::Release);
            polled
        })
        .await
    }

    fn is_silent(&self) -> bool {
        self.answered.load(Ordering::Acquire) < self.asked.load(Ordering::Acquire)
    }

    fn ask(&self) {
        self.asked.fetch_add(1, Ordering::AcqRel);
        self.task.wake();
    }
}

/// Those of a process.
#[derive(Debug, Default)]
pub(super) struct Pulses {
    taken: Mutex<Vec<Weak<Pulse>>>,
}

impl Pulses {
    /// That of a task that begins.
    pub(super) fn take(&self, name: &'static str) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse {
            name,
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            task: AtomicWaker::new(),
        });
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.push(Arc::downgrade(&pulse));
        pulse
    }

    /// The tasks that have not answered since they were asked last; asks all of them again.
    pub(super) fn ask(&self) -> Vec<&'static str> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut silent = Vec::new();
        taken.retain(|pulse| {
            let Some(pulse) = pulse.upgrade() else {
                // It has ended.
                return false;
            };
            if pulse.is_silent() {
                silent.push(pulse.name);
            }
            pulse.ask();
            true
        });
        silent
    }
}
