//! Two holders of one identity, and what an operator decides about them.

use viworks_common::fork;
use viworks_common::id::{AgentRunId, BootId, InstallId};
use viworks_common::time::Timestamp;

/// Two holders of one identity, as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// When the refused one last spoke.
    pub at: Timestamp,
    /// When it first did; not known of what an older version recorded.
    pub first_at: Option<Timestamp>,
    /// How often it did.
    pub times: u64,
    /// The one that was refused.
    pub refused: ForkParty,
    /// The last one that was accepted.
    pub accepted: Option<ForkParty>,
    /// Since when that one held its session.
    pub accepted_since: Option<Timestamp>,
    /// When an operator decided about it, and how.
    pub resolved: Option<(Timestamp, ForkEnd)>,
}

/// What an operator decided about a holder that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkEnd {
    /// It is the one that keeps the identity.
    Kept,
    /// It stays out.
    Out,
    /// It stays out, and is to get an identity of its own.
    Replaced,
}

impl ForkEnd {
    /// The word in the store and in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Out => "out",
            Self::Replaced => "replaced",
        }
    }

    /// The one with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Kept, Self::Out, Self::Replaced]
            .into_iter()
            .find(|end| end.name() == name)
    }
}

/// How an operator decides between two holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkDecision {
    /// The one with this process, or with this installation, keeps the identity; the other stays out.
    Keep(AgentRunId),
    /// The one that was accepted goes on; the other gets an identity of its own.
    Replace,
}

/// What became of the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkResolution {
    /// It holds.
    Resolved(Box<ForkResolved>),
    /// The identity is revoked: nobody keeps it.
    Revoked,
    /// No second holder was seen.
    NoFork,
    /// No holder has this process or installation.
    NoSuchHolder,
    /// Both holders have this installation.
    BothHolders,
    /// The certificate of this holder was revoked, or another machine has the gateway's place: it could not come back.
    HolderIsOut,
}

/// A decision between two holders that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkResolved {
    /// Whether it held before, and nothing has changed.
    pub already: bool,
    /// Who keeps the identity.
    pub kept: Option<ForkParty>,
    /// When that one spoke last, where it was the one that was refused.
    pub seen: Option<Timestamp>,
    /// By what it is known when it comes back; none where it has the session, or comes back as always.
    pub told_by: Option<fork::Apart>,
    /// Who stays out.
    pub out: Option<ForkParty>,
    /// Whether a session of the one that stays out was ended.
    pub session_ended: bool,
    /// Sessions up to this epoch are not the gateway's any more.
    pub fenced: Option<u64>,
}

/// One side of a fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkParty {
    /// The epoch it presented, or held.
    pub epoch: u64,
    /// Where it came from.
    pub peer_address: String,
    /// SHA-256 of its certificate.
    pub fingerprint: [u8; 32],
    /// Its installation.
    pub install_id: InstallId,
    /// Its boot.
    pub boot_id: BootId,
    /// Its process.
    pub agent_run_id: AgentRunId,
    /// The serial number of its certificate and when that ends, as long as it is known.
    pub certificate: Option<(String, Timestamp)>,
    /// The same of the one that the key of that certificate has now, where it got another one at the door since.
    pub reissued: Option<(String, Timestamp)>,
}

impl ForkParty {
    /// What it says of itself.
    #[must_use]
    pub const fn holder(&self) -> fork::Holder {
        fork::Holder {
            install_id: self.install_id,
            boot_id: self.boot_id,
            agent_run_id: self.agent_run_id,
        }
    }
}
