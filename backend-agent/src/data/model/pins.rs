//! The keys of the server, and which gateways trust them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use viworks_common::id::{AgentId, GatewayName};
use viworks_common::pin::rotation::{Rotation, RotationRefusal};
use viworks_common::pin::{PINS_MAX, PinSet, SpkiPin};
use viworks_common::time::Timestamp;

/// How long what a backend said of its key holds: longer than the pause between two times that it says so, so that one
/// that is away does not keep a key for ever.
pub const SHOWN_FOR: Duration = Duration::from_secs(60);

/// What a backend brings to every question about pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPins {
    /// The set of its configuration.
    pub configured: PinSet,
    /// The key that it shows.
    pub live: SpkiPin,
}

/// Which versions of the pin set gateways trust, by how many that are not revoked.
pub type PinTrust = BTreeMap<u64, u64>;

/// All that is known of the pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinsKnown {
    /// The keys.
    pub rotation: Rotation,
    /// Those that backends show, as far as they said so lately.
    pub shown: BTreeSet<SpkiPin>,
    /// Whether somebody took a step, and it is not only what was configured.
    pub stepped: bool,
}

impl PinsKnown {
    /// The pins for a machine that becomes a gateway, where the files have these, the shown key first. Without the key
    /// that is shown it could not even ask.
    #[must_use]
    pub fn for_newcomers(&self, files: &[SpkiPin]) -> PinSet {
        let mut set = self.rotation.set();
        if let Some(live) = files.first()
            && set.pins.len() < PINS_MAX
        {
            set.pins.insert(*live);
        }
        set
    }
}

/// A step of the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinStep {
    /// Gateways are to trust the key as well.
    Stage,
    /// The server may show it.
    Promote {
        /// Whatever gateways are cut off by that.
        forced: bool,
    },
    /// Gateways are not to trust it any more.
    Retire,
}

/// A step that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinChange {
    /// Which.
    pub step: PinStep,
    /// Of which key.
    pub pin: SpkiPin,
    /// Why, where that was said.
    pub reason: Option<String>,
    /// What the backend brings that is asked.
    pub own: OwnPins,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinOutcome {
    /// It is done.
    Done,
    /// It was done before.
    Before,
    /// A rule speaks against it.
    Refused(RotationRefusal),
}

/// A gateway that does not trust a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untrusting {
    /// Its id.
    pub agent_id: AgentId,
    /// Its name.
    pub name: GatewayName,
    /// The version that it trusts.
    pub version: u64,
    /// Whether it has a session.
    pub connected: bool,
    /// When something was last heard of it.
    pub last_seen_at: Option<Timestamp>,
}
