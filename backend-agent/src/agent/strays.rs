//! Sessions that the database says this backend has, and that it has not: the answer to a confirmation was lost, or the
//! database was away for long while they ended.

use std::collections::BTreeSet;

use viworks_common::id::AgentId;

/// A session: whose, and of which epoch.
pub type Which = (AgentId, u64);

/// What the last look found missing.
#[derive(Debug, Default)]
pub struct Strays {
    missing: BTreeSet<Which>,
}

impl Strays {
    /// Takes over what a look found missing; answers what the look before it had missed as well. One look alone may
    /// have come between the end of a session and the record of it.
    pub fn look(&mut self, missing: BTreeSet<Which>) -> Vec<Which> {
        let stays = missing.intersection(&self.missing).copied().collect();
        self.missing = missing;
        stays
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn session(agent: u128, epoch: u64) -> Which {
        (AgentId::from_uuid(Uuid::from_u128(agent)), epoch)
    }

    #[test]
    fn what_is_missing_in_two_looks_one_after_the_other_is_a_stray() {
        let mut strays = Strays::default();
        let (one, other) = (session(1, 5), session(2, 5));
        assert_eq!(strays.look([one].into()), []);
        assert_eq!(strays.look([other].into()), []);
        assert_eq!(strays.look([one, other].into()), [other]);
        assert_eq!(strays.look([].into()), []);
        assert_eq!(strays.look([one].into()), []);
        // Another session of the same gateway is another matter.
        assert_eq!(strays.look([session(1, 6)].into()), []);
    }
}
