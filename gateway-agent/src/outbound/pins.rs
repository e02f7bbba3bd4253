//! The pins in force: the configured set, or a newer one that the backend sent, until the configured one changes.
//!
//! A set that was taken over must first prove itself: until a session was confirmed that was dialled with it, the set
//! before it is accepted as well, so that a mistake in the new one cuts nobody off.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use viworks_common::pin::{PinSet, PinSetRefusal, SpkiPin};
use viworks_common::session::parting::{Cause, Parting, Partings};
use viworks_common::time::Monotonic;
use viworks_runtime::blocking::{self, Unanswered};
use viworks_runtime::files::{self, FileError};
use viworks_runtime::random;

use crate::reserve;

/// How long the disk may take for the file.
const WRITE_TIME: Duration = Duration::from_secs(30);

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
    /// The thread that writes it failed.
    #[error("the pin set was not written")]
    Thread(#[source] Unanswered),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// What was configured when the set came.
    configured: BTreeSet<SpkiPin>,
    set: PinSet,
    /// The set before it, until a session was confirmed on the new one.
    previous: Option<PinSet>,
}

/// The pins of this gateway.
#[derive(Debug)]
pub struct Pins {
    path: PathBuf,
    kept: Mutex<Kept>,
    /// One change at a time; held while the file is written, which readers do not wait for.
    changing: tokio::sync::Mutex<()>,
    /// The sessions that were left because their server's key is in no set any more.
    partings: Mutex<Partings>,
}

/// What became of a set that may have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The version that is in force, durable.
    pub version: u64,
    /// The set that came is a newer one and leaves out the key of the session that it came over: it is taken over in
    /// one with another key.
    pub leaves_out_the_live_key: bool,
    /// A key is accepted that the set in force lacks, until a session was dialled with that; this server has one of its
    /// keys.
    pub lets_a_key_go: bool,
}

/// What one attempt to connect may accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The pins of the newest set, and of the one before it while that is kept.
    pub pins: BTreeSet<SpkiPin>,
    /// The version of the newest set.
    pub version: u64,
}

impl Pins {
    /// Reads the kept sets, if they came after the configured one.
    #[must_use]
    pub fn open(folder: &Path, configured: BTreeSet<SpkiPin>) -> Self {
        let path = folder.join("pins.json");
        let unreadable = |error: &dyn std::error::Error| {
            let (error, path) = (error.to_string(), path.display());
            warn!(%error, %path, "the kept pin set cannot be read, using the configured one");
        };
        let bytes = files::read_private(&path).inspect_err(|error| {
            // There is none before the first change.
            if std::fs::symlink_metadata(&path).is_ok() {
                unreadable(error);
            }
        });
        let kept = bytes
            .ok()
            .and_then(|bytes| {
                let read = serde_json::from_slice::<Kept>(&bytes);
                read.inspect_err(|error| unreadable(error)).ok()
            })
            .filter(|kept| kept.configured == configured && !kept.set.pins.is_empty());
        let kept = kept.unwrap_or_else(|| Kept {
            set: PinSet {
                version: 0,
                pins: configured.clone(),
            },
            configured,
            previous: None,
        });
        Self {
            path,
            kept: Mutex::new(kept),
            changing: tokio::sync::Mutex::new(()),
            partings: Mutex::default(),
        }
    }

    /// Takes over another configured set, in place of whatever was in force. True when it is another one.
    pub fn configure(&self, configured: BTreeSet<SpkiPin>) -> bool {
        let mut kept = self.lock();
        if kept.configured == configured {
            return false;
        }
        // As after a restart; what was kept for the older one is passed over by then.
        *kept = Kept {
            set: PinSet {
                version: 0,
                pins: configured.clone(),
            },
            configured,
            previous: None,
        };
        true
    }

    /// The newest set.
    #[must_use]
    pub fn current(&self) -> PinSet {
        self.lock().set.clone()
    }

    /// What the next attempt to connect may accept.
    #[must_use]
    pub fn accepted(&self) -> Accepted {
        let kept = self.lock();
        let previous = kept.previous.iter().flat_map(|set| &set.pins);
        Accepted {
            pins: kept.set.pins.iter().chain(previous).copied().collect(),
            version: kept.set.version,
        }
    }

    /// Takes over a set that may have come on a connection with the key `live`, as far as it may follow the one in
    /// force.
    pub async fn take(&self, offered: Option<PinSet>, live: &SpkiPin) -> Taken {
        let mut leaves_out_the_live_key = false;
        if let Some(offered) = offered {
            let version = offered.version;
            match self.adopt(offered, live).await {
                Ok(()) => info!(version, "took over the backend's pin set"),
                Err(PinsError::Refused(PinSetRefusal::LiveKeyMissing)) => {
                    leaves_out_the_live_key = true;
                    warn!(
                        version,
                        "the backend's pin set leaves out the key that its server shows in this session: it is taken \
                         over in a session with another key"
                    );
                }
                Err(error) => warn!(%error, version, "the backend's pin set was not taken over"),
            }
        }
        Taken {
            version: self.current().version,
            leaves_out_the_live_key,
            lets_a_key_go: self.lets_a_key_go(live),
        }
    }

    fn lets_a_key_go(&self, live: &SpkiPin) -> bool {
        let kept = self.lock();
        let previous = kept.previous.as_ref();
        let lacks_one = previous.is_some_and(|before| !before.pins.is_subset(&kept.set.pins));
        // A server that shows another key would be left over and over.
        lacks_one && kept.set.contains(live)
    }

    /// When to leave a session for this, of which that may have been planned before; `slot` is the time within which
    /// the backend takes its gateways in again.
    #[must_use]
    pub fn parting(
        &self,
        planned: Option<Parting>,
        cause: Cause,
        now: Monotonic,
        slot: Duration,
    ) -> Parting {
        let random = u64::from_ne_bytes(random::bytes());
        self.partings().plan(planned, cause, now, slot, random)
    }

    /// One was left for this.
    pub fn parted(&self, cause: Cause, now: Monotonic) {
        self.partings().left(cause, now);
    }

    /// Takes over a set that came on a connection with the key `live`; durable once this returns. The set that was in
    /// force stays acceptable beside it.
    ///
    /// # Errors
    ///
    /// When a rule speaks against it or it cannot be kept; nothing changes then.
    pub async fn adopt(&self, offered: PinSet, live: &SpkiPin) -> Result<(), PinsError> {
        let _turn = self.changing.lock().await;
        let kept = self.lock().clone();
        kept.set
            .accepts(&offered, live)
            .map_err(PinsError::Refused)?;
        // One that never proved itself is not what a gateway falls back to.
        let proved = kept.previous.unwrap_or(kept.set);
        self.keep(Kept {
            configured: kept.configured,
            set: offered,
            previous: Some(proved),
        })
        .await
    }

    /// Notes that a session was confirmed whose server had the key `live` and which was dialled with `version`: the set
    /// before it has served. True when it was given up.
    ///
    /// # Errors
    ///
    /// When that cannot be kept; the older set then stays acceptable.
    pub async fn proved(&self, version: u64, live: &SpkiPin) -> Result<bool, PinsError> {
        let _turn = self.changing.lock().await;
        let kept = self.lock().clone();
        let proves = kept.set.version == version && kept.set.contains(live);
        if kept.previous.is_none() || !proves {
            return Ok(false);
        }
        self.keep(Kept {
            previous: None,
            ..kept
        })
        .await?;
        Ok(true)
    }

    /// Writes the sets to the file, on a thread that may wait for the disk, and then takes them on.
    async fn keep(&self, kept: Kept) -> Result<(), PinsError> {
        let json = serde_json::to_vec(&kept).map_err(PinsError::Encode)?;
        let path = self.path.clone();
        let write = move || reserve::write(&path, &json);
        blocking::call("pins", WRITE_TIME, write)
            .await
            .map_err(PinsError::Thread)??;
        let mut current = self.lock();
        // Another configured list that came meanwhile has the last word, as it would after a restart with this file.
        if current.configured == kept.configured {
            *current = kept;
        }
        Ok(())
    }

    fn partings(&self) -> MutexGuard<'_, Partings> {
        self.partings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(n: u8) -> SpkiPin {
        SpkiPin::from_digest([n; 32])
    }

    fn pins(numbers: &[u8]) -> BTreeSet<SpkiPin> {
        numbers.iter().copied().map(pin).collect()
    }

    fn set(version: u64, numbers: &[u8]) -> PinSet {
        PinSet {
            version,
            pins: pins(numbers),
        }
    }

    #[tokio::test]
    async fn an_adopted_set_is_durable_and_the_older_one_serves_until_it_has_proved_itself() {
        let folder = tempfile::tempdir().unwrap();
        let configured = pins(&[1, 2]);
        Pins::open(folder.path(), configured.clone())
            .adopt(set(7, &[2, 3]), &pin(2))
            .await
            .unwrap();
        let opened = Pins::open(folder.path(), configured.clone());
        assert_eq!(opened.current(), set(7, &[2, 3]));
        let both = Accepted {
            pins: pins(&[1, 2, 3]),
            version: 7,
        };
        assert_eq!(opened.accepted(), both);
        // The session on which it came was dialled before; one on the older key proves nothing either.
        assert!(!opened.proved(0, &pin(2)).await.unwrap());
        assert!(!opened.proved(7, &pin(1)).await.unwrap());
        assert_eq!(opened.accepted(), both);
        assert!(opened.proved(7, &pin(3)).await.unwrap());
        assert!(!opened.proved(7, &pin(3)).await.unwrap());
        let opened = Pins::open(folder.path(), configured);
        assert_eq!(opened.accepted().pins, pins(&[2, 3]));
    }

    #[tokio::test]
    async fn what_breaks_a_rule_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Pins::open(folder.path(), pins(&[1, 2]));
        for (offered, rule) in [
            (set(0, &[1, 2]), PinSetRefusal::NotNewer),
            (set(1, &[]), PinSetRefusal::TooFew),
            (set(1, &[1]), PinSetRefusal::TooFew),
            (set(1, &[2, 3]), PinSetRefusal::LiveKeyMissing),
        ] {
            match opened.adopt(offered, &pin(1)).await {
                Err(PinsError::Refused(refused)) => assert_eq!(refused, rule),
                other => panic!("not refused: {other:?}"),
            }
        }
        assert_eq!(opened.accepted().pins, pins(&[1, 2]));
        assert!(!folder.path().join("pins.json").exists());
    }

    #[tokio::test]
    async fn a_newer_set_without_a_key_that_is_accepted_asks_for_another_session() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Pins::open(folder.path(), pins(&[1, 2]));
        for (offered, version, leaves_out_the_live_key, lets_a_key_go) in [
            (None, 0, false, false),
            (Some(set(0, &[2, 3])), 0, false, false),
            (Some(set(4, &[3])), 0, false, false),
            (Some(set(4, &[2, 3])), 0, true, false),
            // One more, and one less.
            (Some(set(5, &[1, 2, 3])), 5, false, false),
            (Some(set(6, &[1, 3])), 6, false, true),
        ] {
            let expected = Taken {
                version,
                leaves_out_the_live_key,
                lets_a_key_go,
            };
            assert_eq!(opened.take(offered, &pin(1)).await, expected);
        }
        // It stays so, whatever else comes in the session; a server with the other key proves nothing.
        assert!(opened.take(None, &pin(1)).await.lets_a_key_go);
        assert!(!opened.take(None, &pin(2)).await.lets_a_key_go);
        // The next session is dialled with it, and lets the other key go.
        assert_eq!(opened.accepted().pins, pins(&[1, 2, 3]));
        assert!(opened.proved(6, &pin(1)).await.unwrap());
        assert_eq!(opened.accepted().pins, pins(&[1, 3]));
        assert!(!opened.take(None, &pin(1)).await.lets_a_key_go);
    }

    #[test]
    fn a_session_is_left_for_a_retired_key_soon_after_one_that_was_left_for_another_key() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Pins::open(folder.path(), pins(&[1, 2]));
        let now = Monotonic::from_duration(Duration::from_secs(100));
        let wait = |cause| {
            let parting = opened.parting(None, cause, now, Duration::ZERO);
            parting.from.saturating_since(now)
        };
        opened.parted(Cause::OtherKey, now);
        assert!(wait(Cause::LiveKey) < Duration::from_secs(60));
        opened.parted(Cause::LiveKey, now);
        assert!(wait(Cause::LiveKey) > Duration::from_secs(60));
        assert!(wait(Cause::OtherKey) < Duration::from_secs(60));
    }

    #[tokio::test]
    async fn a_set_that_never_proved_itself_is_no_fallback() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Pins::open(folder.path(), pins(&[1, 2]));
        opened.adopt(set(1, &[2, 3]), &pin(2)).await.unwrap();
        opened.adopt(set(2, &[2, 4]), &pin(2)).await.unwrap();
        assert_eq!(opened.accepted().pins, pins(&[1, 2, 4]));
    }

    #[tokio::test]
    async fn a_configured_set_that_changed_is_the_one_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Pins::open(folder.path(), pins(&[1, 2]));
        opened.adopt(set(1, &[2, 3]), &pin(2)).await.unwrap();
        let opened = Pins::open(folder.path(), pins(&[8, 9]));
        assert_eq!(opened.current(), set(0, &[8, 9]));
        assert!(!opened.configure(pins(&[8, 9])));
        let before = opened.lock().clone();
        assert!(opened.configure(pins(&[9, 10])));
        assert_eq!(opened.accepted().pins, pins(&[9, 10]));
        // A set of before that is written only now does not take its place.
        opened.keep(before).await.unwrap();
        assert_eq!(opened.accepted().pins, pins(&[9, 10]));
    }
}
