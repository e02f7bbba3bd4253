//! The pin set in force: the configured one, or a newer one that the backend sent, until the configured one changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;
use viworks_common::pin::{PinSet, PinSetRefusal, SpkiPin};
use viworks_runtime::files::{self, FileError};

/// Why an offered set is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// A rule speaks against it.
    #[error("the backend's pin set is refused: {0:?}")]
    Refused(PinSetRefusal),
    /// It has no JSON form.
    #[error("the pin set cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// It cannot be kept.
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// What was configured when the set came.
    configured: BTreeSet<SpkiPin>,
    set: PinSet,
}

/// The pins of this gateway.
#[derive(Debug)]
pub struct Pins {
    path: PathBuf,
    configured: BTreeSet<SpkiPin>,
    current: Mutex<PinSet>,
}

impl Pins {
    /// Reads the kept set, if it came after the configured one.
    #[must_use]
    pub fn open(folder: &Path, configured: BTreeSet<SpkiPin>) -> Self {
        let path = folder.join("pins.json");
        let kept = files::read_private(&path)
            .ok()
            .and_then(|bytes| match serde_json::from_slice::<Kept>(&bytes) {
                Ok(kept) => Some(kept),
                Err(error) => {
                    warn!(%error, "the kept pin set cannot be read, using the configured one");
                    None
                }
            })
            .filter(|kept| kept.configured == configured && !kept.set.pins.is_empty());
        let current = kept.map_or_else(
            || PinSet {
                version: 0,
                pins: configured.clone(),
            },
            |kept| kept.set,
        );
        Self {
            path,
            configured,
            current: Mutex::new(current),
        }
    }

    /// The set in force.
    #[must_use]
    pub fn current(&self) -> PinSet {
        self.lock().clone()
    }

    /// Takes over a set that came on a connection with the key `live`; durable once this returns.
    ///
    /// # Errors
    ///
    /// When a rule speaks against it or it cannot be kept; the old one stays in force.
    pub fn adopt(&self, offered: PinSet, live: &SpkiPin) -> Result<(), PinsError> {
        let mut current = self.lock();
        current
            .accepts(&offered, live)
            .map_err(PinsError::Refused)?;
        let kept = Kept {
            configured: self.configured.clone(),
            set: offered,
        };
        let json = serde_json::to_vec(&kept).map_err(PinsError::Encode)?;
        files::write_atomic(&self.path, &json)?;
        *current = kept.set;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, PinSet> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
