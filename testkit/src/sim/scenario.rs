//! What one seed decides before its world begins: who takes part, what may go wrong, and how often.

use std::time::Duration;

use viworks_common::rules::{Rule, Rulebook};

use super::random::Random;

mod decisions;

use decisions::Decisions;

/// The rules in force: the product's own, or all of them but one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    off: Option<Rule>,
}

impl Rules {
    /// Every rule, as the product has them.
    pub const fn all() -> Self {
        Self { off: None }
    }

    /// Every rule but one.
    pub const fn without(rule: Rule) -> Self {
        Self { off: Some(rule) }
    }
}

impl Rulebook for Rules {
    fn keeps(self, rule: Rule) -> bool {
        self.off != Some(rule)
    }
}

/// Whose storage goes back in time or becomes two. Never both ends' at once: then nobody is left who could know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Storage {
    /// Disks keep what was synced.
    Sound,
    /// A gateway's disk is replaced by an older image of itself.
    GatewayRestored,
    /// A second host starts from an image of a gateway's disk.
    GatewayCloned,
    /// The backend's database is replaced by an older backup of itself.
    BackendRestored,
}

/// One world's plan.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// Gateways with an identity each.
    pub gateways: usize,
    /// Processes of the backend that share the store.
    pub instances: usize,
    pub commands: u64,
    /// Faults of processes, connections and clocks.
    pub faults: u64,
    pub storage: Storage,
    pub decisions: Decisions,
    /// How long commands are submitted and faults happen.
    pub turmoil: Duration,
    /// One way through the network, at most.
    pub latency: Duration,
    /// Until a write is durable, at most.
    pub sync: Duration,
    /// One in so many commits is a process's last act; zero for none.
    pub crash_at_commit: u64,
    /// Whether frames of other sessions are played into connections.
    pub replays: bool,
    pub jumps: bool,
    pub spool_max: usize,
    /// Whether the copy of a gateway ignores how long it should wait.
    pub rude_copy: bool,
    pub heartbeat: Duration,
    /// Commands a session may have open.
    pub command_credit: u32,
}

impl Scenario {
    /// Draws a plan; what operators decide about identities has chance of its own, `fate`.
    pub(crate) fn draw(random: &mut Random, fate: &mut Random) -> Self {
        let storage = match random.below(10) {
            0 | 1 => Storage::GatewayRestored,
            2 | 3 => Storage::GatewayCloned,
            4 | 5 => Storage::BackendRestored,
            _ => Storage::Sound,
        };
        // A world with a copy and one process is what it was before there were several.
        let alone = if storage == Storage::GatewayCloned {
            random.clone().below(3) > 0
        } else {
            random.below(3) > 0
        };
        let calm = random.once_in(20);
        Self {
            gateways: if random.once_in(4) { 2 } else { 1 },
            instances: if alone { 1 } else { 2 },
            commands: 2 + random.below(5),
            faults: if calm { 0 } else { random.below(9) },
            storage,
            decisions: Decisions::draw(fate, storage),
            turmoil: random.millis(8_000, 60_000),
            latency: random.millis(1, 150),
            sync: random.millis(1, 60),
            crash_at_commit: if calm || random.once_in(3) {
                0
            } else {
                20 + random.below(80)
            },
            replays: random.once_in(4),
            jumps: random.once_in(4),
            spool_max: 3 + random.index(12),
            rude_copy: random.once_in(2),
            heartbeat: random.millis(1_000, 15_000),
            command_credit: 1 + u32::try_from(random.below(6)).unwrap_or_default(),
        }
    }
}
