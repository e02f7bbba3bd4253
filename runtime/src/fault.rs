//! Crash points: named places at durable steps where a test build can kill its own process.
//!
//! A black-box test starts a binary built with the cargo feature `fault-points` and the environment variable
//! `VIWORKS_FAULT="point[:N][=stop][,point…]"`: the process kills itself with SIGKILL, as a power cut would, the N-th
//! time (by default the first) it passes the point; with `=stop` it stands still there, by SIGSTOP, until somebody lets
//! it go on. Without the feature [`point`] is empty and compiles to nothing, and a
//! process that is given the variable refuses to start, so that no test can believe it injected a fault when it did
//! not.
//!
//! A new point is a name in [`POINTS`] and a call of [`point`] with it.

use crate::config::Environment;

/// The environment variable that arms points.
pub const VARIABLE: &str = "VIWORKS_FAULT";

/// Every crash point of the product.
pub const POINTS: &[&str] = &[
    "journal.accepted.before_commit",
    "journal.accepted.after_commit",
    "journal.begun.before_commit",
    "journal.begun.after_commit",
    "journal.started.before_commit",
    "journal.started.after_commit",
    "journal.finished.before_commit",
    "journal.finished.after_commit",
    "journal.reported.before_commit",
    "journal.reported.after_commit",
    "spool.trimmed.before_commit",
    "spool.trimmed.after_commit",
    "release.committed.before_go",
    "result.committed.before_acknowledgement",
    "telemetry.committed.before_acknowledgement",
    "queue.offered.before_lease",
    "session.confirmed.before_entry",
    "session.entered.before_route",
    "session.routed.before_look",
    "store.submit.before_commit",
    "store.submit.after_commit",
    "store.release.before_commit",
    "store.release.after_commit",
    "store.result.before_commit",
    "store.result.after_commit",
    "store.telemetry.before_commit",
    "store.telemetry.after_commit",
    "store.redeem.before_commit",
    "store.redeem.after_commit",
    "enrol.asked",
    "enrol.answered",
    "enrol.writing",
    "enrol.filling",
    "enrol.moving",
    "renewal.key_kept",
    "renewal.issued_kept",
    "renewal.moving",
    "door.asking",
    "door.answered",
    "door.kept",
    "agent_key.kept",
    "api_key.written",
    "api_key.stored",
];

/// Why the armed points cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// This build has no crash points.
    #[error("{VARIABLE} is set, but this build has no crash points (cargo feature `fault-points`)")]
    NotBuilt,
    /// No such point.
    #[error("{VARIABLE} names the unknown crash point {name:?}; known are: {}", POINTS.join(", "))]
    Unknown {
        /// As it was given.
        name: String,
    },
    /// The count behind the colon is not a number from 1.
    #[error("{VARIABLE} has {count:?} as the count of {name}; a number from 1 is needed")]
    Count {
        /// The point.
        name: String,
        /// As it was given.
        count: String,
    },
    /// No such effect.
    #[error("{VARIABLE} wants {effect:?} at {name}; stop is what there is, or nothing for a kill")]
    Effect {
        /// The point.
        name: String,
        /// As it was given.
        effect: String,
    },
    /// Points were armed before.
    #[error("crash points were configured twice")]
    Twice,
}

/// Arms the points that `environment` names. Call it once, first thing in `main`.
///
/// # Errors
///
/// For an unknown point, a bad count, or any point at all in a build without the feature.
pub fn configure(environment: &Environment) -> Result<(), FaultError> {
    let Some(armed) = environment.get(VARIABLE) else {
        return Ok(());
    };
    plan::arm(armed)
}

/// Marks that a durable step is about to happen or has just happened.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub const fn point(_name: &'static str) {}

#[cfg(feature = "fault-points")]
pub use plan::point;

#[cfg(not(feature = "fault-points"))]
mod plan {
    //! Nothing can be armed.

    pub(super) const fn arm(_armed: &str) -> Result<(), super::FaultError> {
        Err(super::FaultError::NotBuilt)
    }
}

#[cfg(feature = "fault-points")]
mod plan;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_have_distinct_names() {
        let distinct: std::collections::BTreeSet<_> = POINTS.iter().collect();
        assert_eq!(distinct.len(), POINTS.len());
    }

    #[cfg(not(feature = "fault-points"))]
    #[test]
    fn a_build_without_points_refuses_to_be_armed() {
        let environment = Environment::from_iter([(VARIABLE, POINTS[0])]);
        assert_eq!(configure(&environment), Err(FaultError::NotBuilt));
        assert_eq!(configure(&Environment::default()), Ok(()));
        point(POINTS[0]);
    }
}
