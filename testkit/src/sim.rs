//! The simulation: the real session machines and the real rules, in a world where everything that can fail does.
//!
//! One seed is one world. Inside it run both ends of `common::session`, the admission, journal and life-cycle rules of
//! `common`, a model of the backend's store and a model of the gateway's disk, over a network that delays and cuts. Either
//! end dies before or after any durable write; disks of either side are put back to an earlier copy; a disk is cloned and
//! both copies speak. What really happened (which command was started when and where) is recorded outside the system, and
//! held against the invariants of `docs/protocol.md`. Then the faults stop, and everything must come to rest.
//!
//! [`Rules`] switches single rules off, to prove that the simulation would notice.

mod backend;
mod gateway;
mod recorder;
mod rng;
mod store;
mod world;

pub use recorder::Violation;
pub use world::{Report, run};

/// Which rules are in force; all of them, except where a test proves that one is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What must not run twice starts only with a permit that is committed after its acceptance.
    pub permit: bool,
    /// A permit holds in one run of the gateway agent only.
    pub permit_bound_to_run: bool,
    /// The gateway forgets by the low-water mark, and refuses unknown orders up to it.
    pub forget_by_low_water: bool,
    /// The backend acknowledges telemetry after it is committed.
    pub acknowledge_after_commit: bool,
    /// A session's write needs the session's epoch.
    pub epoch_fence: bool,
    /// The gateway reports a step after it is on disk.
    pub journal_before_report: bool,
}

impl Rules {
    /// Every rule.
    pub const ALL: Self = Self {
        permit: true,
        permit_bound_to_run: true,
        forget_by_low_water: true,
        acknowledge_after_commit: true,
        epoch_fence: true,
        journal_before_report: true,
    };
}
