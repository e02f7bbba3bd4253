//! Notices that the database is not where it was opened: what is committed then is gone with this process.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use viworks_runtime::blocking::{self, Unanswered};
use viworks_runtime::files::{Guard, Lost};
use viworks_runtime::sqlite::Error;

use crate::data::{StoreError, StoreResult};

/// How long a look may take.
const LOOK_TIME: Duration = Duration::from_secs(4);

/// The ground a database stands on. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    guard: Guard,
    lost: Arc<RwLock<Option<Lost>>>,
}

impl Ground {
    /// Remembers the file, which was just opened.
    pub(super) fn new(file: &Path) -> Result<Self, Error> {
        let guard = Guard::new(file).map_err(|source| Error::Open {
            path: file.to_owned(),
            source: Arc::new(source),
        })?;
        Ok(Self {
            guard,
            lost: Arc::default(),
        })
    }

    /// Looks whether everything is where it was; a look that hangs has shown nothing.
    pub(super) async fn look(&self) -> Option<Lost> {
        let guard = self.guard.clone();
        let found = match blocking::call("database folder", LOOK_TIME, move || guard.check()).await
        {
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
