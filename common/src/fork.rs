//! Two holders of one identity, and what an operator decides about them.
//!
//! A copy has everything that the original has: key, certificate, ratchet token. What tells the two apart is only what
//! they say of themselves: the installation, which is drawn once for a state folder and copied with it, the boot, which
//! a machine draws anew, and the process.

use crate::id::{AgentRunId, BootId, InstallId};
use crate::rules::{Complete, Rule, Rulebook};

/// What a holder of an identity says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its installation.
    pub install_id: InstallId,
    /// Its boot.
    pub boot_id: BootId,
    /// Its process.
    pub agent_run_id: AgentRunId,
}

/// By what two holders are told apart: the coarsest that differs, because that outlives the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Apart {
    /// The installation: a restart and a reboot change nothing.
    Install,
    /// Installation and boot: a restart changes nothing.
    Boot,
    /// The very process.
    Process,
}

impl Apart {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Install, Self::Boot, Self::Process];

    /// The word in the store.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Boot => "boot",
            Self::Process => "process",
        }
    }

    /// The one with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|apart| apart.name() == name)
    }

    /// What tells `kept` from `other`, and from every one of `further`.
    ///
    /// Of those, one with the same installation and the same boot is `kept` itself, started anew: only `other`, which
    /// the operator decided about, may be told from it by the process alone.
    #[must_use]
    pub fn between(
        kept: &Holder,
        other: Option<&Holder>,
        further: impl IntoIterator<Item = Holder>,
    ) -> Self {
        Self::between_under(Complete, kept, other, further)
    }

    /// The same by other rules.
    #[must_use]
    pub fn between_under(
        rules: impl Rulebook,
        kept: &Holder,
        other: Option<&Holder>,
        further: impl IntoIterator<Item = Holder>,
    ) -> Self {
        if !rules.keeps(Rule::HoldersToldApart) {
            return Self::Install;
        }
        let same_place = |it: &Holder| it.install_id == kept.install_id;
        let same_boot = |it: &Holder| same_place(it) && it.boot_id == kept.boot_id;
        if other.is_some_and(same_boot) {
            return Self::Process;
        }
        let other_boot = |it: &Holder| same_place(it) && !same_boot(it);
        if other.is_some_and(other_boot) || further.into_iter().any(|it| other_boot(&it)) {
            Self::Boot
        } else {
            Self::Install
        }
    }
}

/// Whom an operator gave an identity to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Where the decision put the identity's confirmed epoch: as long as that is where it is, nobody was confirmed
    /// since.
    pub epoch: u64,
    /// The holder.
    pub holder: Holder,
    /// By what it is known.
    pub apart: Apart,
}

impl Kept {
    /// Whether somebody is the holder that is kept.
    #[must_use]
    pub fn is(&self, somebody: &Holder) -> bool {
        let Holder {
            install_id,
            boot_id,
            agent_run_id,
        } = self.holder;
        somebody.install_id == install_id
            && (self.apart < Apart::Boot || somebody.boot_id == boot_id)
            && (self.apart < Apart::Process || somebody.agent_run_id == agent_run_id)
    }

    /// Whether the holder that is kept has not come yet.
    #[must_use]
    pub const fn is_awaited(&self, confirmed: u64) -> bool {
        self.epoch == confirmed
    }

    /// Whether somebody passes although its epoch was left behind: the holder that is kept, until a session of it is
    /// confirmed. That raises the confirmed epoch, and with it everybody is judged by the ratchet again.
    #[must_use]
    pub fn lets_in(&self, somebody: &Holder, confirmed: u64) -> bool {
        self.is_awaited(confirmed) && self.is(somebody)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn holder(install: u128, boot: u128, run: u128) -> Holder {
        Holder {
            install_id: InstallId::from_uuid(Uuid::from_u128(install)),
            boot_id: BootId::from_uuid(Uuid::from_u128(boot)),
            agent_run_id: AgentRunId::from_uuid(Uuid::from_u128(run)),
        }
    }

    fn kept(holder: Holder, apart: Apart) -> Kept {
        Kept {
            epoch: 9,
            holder,
            apart,
        }
    }

    #[test]
    fn two_are_told_apart_by_what_outlives_the_most() {
        let (one, none) = (holder(1, 1, 1), std::iter::empty);
        let apart = |other: Holder| Apart::between(&one, Some(&other), none());
        assert_eq!(apart(holder(2, 1, 2)), Apart::Install);
        assert_eq!(apart(holder(1, 2, 2)), Apart::Boot);
        assert_eq!(apart(holder(1, 1, 2)), Apart::Process);
        assert_eq!(Apart::between(&one, None, none()), Apart::Install);
    }

    #[test]
    fn of_further_holders_one_of_the_same_boot_is_the_kept_one_started_anew() {
        let (one, other) = (holder(1, 1, 1), holder(2, 2, 2));
        let apart = |further: Holder| Apart::between(&one, Some(&other), [further]);
        assert_eq!(apart(holder(1, 1, 3)), Apart::Install);
        // A second copied disk must not pass for the one that is kept.
        assert_eq!(apart(holder(1, 3, 3)), Apart::Boot);
        assert_eq!(apart(holder(3, 3, 3)), Apart::Install);
    }

    #[test]
    fn whoever_is_kept_passes_until_somebody_is_confirmed() {
        let by_install = kept(holder(1, 1, 1), Apart::Install);
        assert!(by_install.lets_in(&holder(1, 5, 6), 9));
        assert!(!by_install.lets_in(&holder(2, 1, 1), 9));
        assert!(!by_install.lets_in(&holder(1, 5, 6), 10));
        let by_boot = kept(holder(1, 1, 1), Apart::Boot);
        assert!(by_boot.lets_in(&holder(1, 1, 6), 9));
        assert!(!by_boot.lets_in(&holder(1, 2, 1), 9));
        let by_process = kept(holder(1, 1, 1), Apart::Process);
        assert!(by_process.lets_in(&holder(1, 1, 1), 9));
        assert!(!by_process.lets_in(&holder(1, 1, 2), 9));
    }

    #[test]
    fn each_has_a_word() {
        for apart in Apart::ALL {
            assert_eq!(Apart::from_name(apart.name()), Some(*apart));
        }
    }
}
