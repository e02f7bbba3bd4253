//! Notices that the database is not where it was opened, or that its disk takes nothing any more: what is committed
//! then is gone with this process, and SQLite, which shares memory through a file, could end it there (decision 13).

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use viworks_runtime::blocking::{Unanswered, Worker};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::files::{Guard, Lost, Prober};
use viworks_runtime::sqlite::Error;

use crate::data::{StoreError, StoreResult};

/// How long a look may take.
const LOOK_TIME: Duration = Duration::from_secs(4);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Whether all is well as far as is known, with a write when the last one is too long ago.
    Look,
    /// Whether a write succeeds at this moment.
    Write,
}

/// The ground a database stands on. Clones share it.
#[derive(Clone)]
pub(super) struct Ground {
    /// One thread at most, even when it hangs.
    prober: Arc<tokio::sync::Mutex<Worker<Question, Result<(), Lost>>>>,
    lost: Arc<RwLock<Option<Lost>>>,
}

impl Ground {
    /// Remembers the file, which was just opened.
    pub(super) fn new(file: &Path) -> Result<Self, Error> {
        let guard = Guard::new(file).map_err(|source| Error::Open {
            path: file.to_owned(),
            source: Arc::new(source),
        })?;
        let make = move || {
            let mut prober = Prober::new(guard.clone());
            move |question| match question {
                Question::Look => prober.look(SystemClock.now()),
                Question::Write => prober.write(SystemClock.now()),
            }
        };
        let worker = Worker::new("database folder", make);
        Ok(Self {
            prober: Arc::new(tokio::sync::Mutex::new(worker)),
            lost: Arc::default(),
        })
    }

    /// Looks whether everything is where it was and can be written; a look that hangs has shown nothing.
    pub(super) async fn look(&self) -> Option<Lost> {
        self.ask(Question::Look).await
    }

    /// The same with a write at this moment: SQLite has one answer for a disk that broke and one that is read-only.
    pub(super) async fn write(&self) -> Option<Lost> {
        self.ask(Question::Write).await
    }

    async fn ask(&self, question: Question) -> Option<Lost> {
        let found = match self.prober.lock().await.ask(question, LOOK_TIME).await {
            Ok(found) => found.err(),
            Err(
                Unanswered::Late(_)
                | Unanswered::Hanging(_)
                | Unanswered::Panicked
                | Unanswered::NoThread(_),
            ) => return self.lost(),
        };
        *self.lost.write().unwrap_or_else(PoisonError::into_inner) = found.clone();
        found
    }

    /// Refuses a write that would be acknowledged and then be gone.
    pub(super) fn check(&self) -> StoreResult<()> {
        match self.lost() {
            None => Ok(()),
            Some(lost) => Err(StoreError::Unavailable(Box::new(lost))),
        }
    }

    fn lost(&self) -> Option<Lost> {
        let lost = self.lost.read().unwrap_or_else(PoisonError::into_inner);
        lost.clone()
    }
}

impl fmt::Debug for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ground")
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
