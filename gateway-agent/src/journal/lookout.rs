//! Asks whether the state folder is still there, of a thread that may hang with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_runtime::blocking::Worker;
use viworks_runtime::files::{Guard, Lost};

/// How long a look may take.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// Looks for all who ask, on a thread of its own: there is one at most, even when it hangs.
pub(super) struct Lookout {
    folder: PathBuf,
    worker: tokio::sync::Mutex<Worker<(), Result<(), Lost>>>,
}

impl Lookout {
    /// One that looks by `guard` at what is in `folder`.
    pub(super) fn new(folder: &Path, guard: Guard) -> Self {
        let make = move || {
            let guard = guard.clone();
            move |()| guard.check()
        };
        Self {
            folder: folder.to_owned(),
            worker: tokio::sync::Mutex::new(Worker::new("state folder", make)),
        }
    }

    /// Whether everything is where it was and can be written.
    ///
    /// # Errors
    ///
    /// What is wrong; that a look has no answer is no sign that all is well.
    pub(super) async fn look(&self) -> Result<(), Lost> {
        let looked = self.worker.lock().await.ask((), LOOK_TIME).await;
        looked.unwrap_or_else(|error| {
            Err(Lost::Unreadable {
                path: self.folder.clone(),
                reason: error.to_string(),
            })
        })
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
    use super::*;

    #[tokio::test]
    async fn a_folder_that_does_not_answer_is_lost_and_is_asked_by_one_thread() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = std::sync::Mutex::new(Some(hang));
        let make = move || {
            // Only the first thread has something to hang in.
            let hang = hang.lock().unwrap().take();
            move |()| {
                if let Some(hang) = &hang {
                    let _released = hang.recv();
                }
                Ok(())
            }
        };
        let mut worker = Worker::new("test", make);
        let first = worker.ask((), Duration::from_millis(20)).await;
        assert!(first.is_err());
        let lookout = Lookout {
            folder: PathBuf::from("/state"),
            worker: tokio::sync::Mutex::new(worker),
        };
        for _again in 0..100 {
            let lost = lookout.look().await.unwrap_err();
            assert!(matches!(lost, Lost::Unreadable { .. }), "{lost}");
        }
        drop(release);
        while lookout.look().await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}
