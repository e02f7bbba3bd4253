//! The simulation: whole worlds from one number each, in which real rules meet modelled storage and everything that
//! fails.
//!
//! Both session machines, the gateway's command engine, admission, the command life-cycle and the reconnect policy
//! are the product's own code. Modelled are what they stand on: the store, the gateway's disk, the network, the
//! clocks. In some worlds two processes of the backend share the store, and ask things of each other through it. A
//! world first goes through turmoil, then is healed and must come to rest; a recorder that sees the truth checks the
//! invariants of `docs/protocol.md` all the way. Equal seeds give equal worlds.

use std::fmt;

mod backend;
mod core;
mod disk_model;
mod gateway;
mod network;
mod operator;
pub mod random;
mod recorder;
mod scenario;
mod spool_model;
mod store_model;
mod world;

pub use self::recorder::Counts;
pub use self::scenario::Rules;

/// A world in which an invariant did not hold.
#[derive(Debug)]
pub struct Failure {
    /// The number that makes the same world again.
    pub seed: u64,
    /// Which invariant, and what happened.
    pub violation: String,
    /// The last lines before that.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {} violates an invariant: {}",
            self.seed, self.violation
        )?;
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.violation)
    }
}

impl std::error::Error for Failure {}

/// Lets the world of `seed` happen.
///
/// # Errors
/// When an invariant does not hold; the world is then run a second time for its trace.
pub fn run(seed: u64, rules: Rules) -> Result<Counts, Box<Failure>> {
    let mut world = world::World::new(seed, rules, false);
    let Some(violation) = world.run() else {
        return Ok(world.counts());
    };
    Err(Box::new(Failure {
        seed,
        violation,
        trace: trace(seed, rules),
    }))
}

/// What happens in the world of `seed`, line by line.
#[must_use]
pub fn trace(seed: u64, rules: Rules) -> Vec<String> {
    let mut world = world::World::new(seed, rules, true);
    let _violation = world.run();
    world.into_trace()
}
