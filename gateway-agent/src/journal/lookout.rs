//! Asks whether the state folder is still there and takes writes, of a thread that may hang with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use viworks_runtime::blocking::Worker;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::files::{Guard, Lost, Prober};

/// How long a look may take.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Whether all is well as far as is known, with a write when the last one is too long ago.
    Look,
    /// Whether a write succeeds at this moment.
    Write,
}

/// Looks for all who ask, on a thread of its own: there is one at most, even when it hangs. Those who ask while it
/// looks share the next look, so that many commands do not wait for one look each before they share a commit.
pub(super) struct Lookout {
    folder: PathBuf,
    /// Looks that have begun.
    begun: AtomicU64,
    eyes: tokio::sync::Mutex<Eyes>,
    /// What the latest look found wrong, for those who do not want to wait.
    lost: Mutex<Option<Lost>>,
}

struct Eyes {
    worker: Worker<Question, Result<(), Lost>>,
    /// What the latest look saw.
    seen: Result<(), Lost>,
}

impl Lookout {
    /// One that looks by `guard` at what is in `folder`.
    pub(super) fn new(folder: &Path, guard: Guard) -> Self {
        let make = move || {
            let mut prober = Prober::new(guard.clone());
            move |question| match question {
                Question::Look => prober.look(SystemClock.now()),
                Question::Write => prober.write(SystemClock.now()),
            }
        };
        Self {
            folder: folder.to_owned(),
            begun: AtomicU64::new(0),
            eyes: tokio::sync::Mutex::new(Eyes {
                worker: Worker::new("state folder", make),
                seen: Ok(()),
            }),
            lost: Mutex::default(),
        }
    }

    /// Whether everything is where it was and can be written.
    ///
    /// # Errors
    ///
    /// What is wrong; that a look has no answer is no sign that all is well.
    pub(super) async fn look(&self) -> Result<(), Lost> {
        let begun = self.begun.load(Ordering::Acquire);
        let mut eyes = self.eyes.lock().await;
        // Only a look that began after the question answers it.
        if self.begun.load(Ordering::Acquire) > begun {
            return eyes.seen.clone();
        }
        // Should this look be given up, those who wait for it must not take an older answer for its own.
        eyes.seen = Err(self.unanswered("the look was given up"));
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.ask(&mut eyes, Question::Look).await
    }

    /// The same, with a write at this moment.
    ///
    /// # Errors
    ///
    /// As [`Self::look`].
    pub(super) async fn write(&self) -> Result<(), Lost> {
        let mut eyes = self.eyes.lock().await;
        eyes.seen = Err(self.unanswered("the look was given up"));
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.ask(&mut eyes, Question::Write).await
    }

    async fn ask(&self, eyes: &mut Eyes, question: Question) -> Result<(), Lost> {
        let looked = eyes.worker.ask(question, LOOK_TIME).await;
        eyes.seen = looked.unwrap_or_else(|error| Err(self.unanswered(error)));
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = eyes.seen.clone().err();
        eyes.seen.clone()
    }

    /// That nothing can be written, if the latest look found that. Then nothing should be tried either: SQLite shares
    /// memory through a file, and what it writes there on such a disk can end the process (SIGBUS).
    pub(super) fn read_only(&self) -> Option<Lost> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.clone()
            .filter(|lost| matches!(lost, Lost::ReadOnly { .. }))
    }

    fn unanswered(&self, reason: impl fmt::Display) -> Lost {
        Lost::Unreadable {
            path: self.folder.clone(),
            reason: reason.to_string(),
        }
    }
}

impl fmt::Debug for Lookout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookout")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use viworks_testkit::process::eventually;

    use super::*;

    #[tokio::test]
    async fn a_folder_that_does_not_answer_is_lost_and_is_asked_by_one_thread() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = Mutex::new(Some(hang));
        let make = move || {
            // Only the first thread has something to hang in.
            let hang = hang.lock().unwrap().take();
            move |_question| {
                if let Some(hang) = &hang {
                    let _released = hang.recv();
                }
                Ok(())
            }
        };
        let mut worker = Worker::new("test", make);
        let first = worker.ask(Question::Look, Duration::from_millis(20)).await;
        assert!(first.is_err());
        let lookout = Lookout {
            folder: PathBuf::from("/state"),
            begun: AtomicU64::new(0),
            eyes: tokio::sync::Mutex::new(Eyes {
                worker,
                seen: Ok(()),
            }),
            lost: Mutex::default(),
        };
        for _again in 0..100 {
            let lost = lookout.look().await.unwrap_err();
            assert!(matches!(lost, Lost::Unreadable { .. }), "{lost}");
        }
        drop(release);
        let soon = Duration::from_secs(20);
        eventually("the folder answers again", soon, async || {
            lookout.look().await.ok()
        })
        .await;
    }

    #[tokio::test]
    async fn those_who_ask_during_a_look_share_the_next_one() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Arc::new(Mutex::new(wait));
        let looks = std::sync::Arc::new(AtomicU64::new(0));
        let counted = std::sync::Arc::clone(&looks);
        let make = move || {
            let (wait, counted) = (
                std::sync::Arc::clone(&wait),
                std::sync::Arc::clone(&counted),
            );
            move |_question| {
                counted.fetch_add(1, Ordering::SeqCst);
                // The test lets each look come to its end.
                let _gone = wait.lock().unwrap().recv();
                Ok(())
            }
        };
        let lookout = Lookout {
            folder: PathBuf::from("/state"),
            begun: AtomicU64::new(0),
            eyes: tokio::sync::Mutex::new(Eyes {
                worker: Worker::new("test", make),
                seen: Ok(()),
            }),
            lost: Mutex::default(),
        };
        let first = lookout.look();
        let later = async {
            // The first look has begun by now, and does not count for these.
            futures_util::future::join_all((0..50).map(|_| lookout.look())).await
        };
        let release = async {
            for _look in 0..2 {
                go.send(()).unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (first, later, ()) = tokio::join!(first, later, release);
        assert_eq!(first, Ok(()));
        assert!(later.iter().all(Result::is_ok), "{later:?}");
        assert_eq!(looks.load(Ordering::SeqCst), 2);
    }
}
