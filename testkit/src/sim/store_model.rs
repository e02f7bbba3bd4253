//! The backend's database: the same intents as the real stores, each one atomic, over plain maps. What becomes of
//! them the ledger decides, as it does for the real ones.

use std::collections::{BTreeMap, BTreeSet};

use viworks_common::admission::IdentityRow;
use viworks_common::command::Outcome;
use viworks_common::id::{AgentId, AgentRunId, CommandId, CommandName, StreamName};
use viworks_common::ledger::command::low_water;
use viworks_common::ledger::session::may_write;
use viworks_common::ledger::telemetry::Usage;
use viworks_common::ledger::{Change, Command as Facts};
use viworks_common::telemetry::Gap;

use super::recorder::{Key, Recorder};
use super::scenario::Rules;

mod commands;
mod sessions;
mod telemetry;

pub(crate) use commands::Leased;
pub(crate) use sessions::{AdmitRequest, Admitted, ConfirmRequest, Refusal};

/// On whose behalf a session writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The gateway.
    pub agent: AgentId,
    /// The session's epoch.
    pub epoch: u64,
    /// The gateway's process.
    pub run: AgentRunId,
}

/// The epoch of a write is not the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fenced;

/// A command.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// What decisions depend on.
    pub facts: Facts,
    pub order: u64,
    pub name: CommandName,
    pub timeout_ms: Option<u64>,
    pub result: Option<Outcome>,
    pub late_outcome: Option<Outcome>,
}

/// A gateway.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    /// The counters of its identity.
    pub row: IdentityRow,
    /// The confirmed session: its epoch and process.
    pub live: Option<(u64, AgentRunId)>,
}

/// The database. A clone is a backup.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    rules: Rules,
    gateways: BTreeMap<AgentId, Gateway>,
    commands: BTreeMap<CommandId, Command>,
    orphans: BTreeSet<CommandId>,
    forks: BTreeSet<(AgentId, AgentRunId)>,
    telemetry: BTreeMap<Key, i64>,
    positions: BTreeMap<(AgentId, AgentRunId), u64>,
    gaps: Vec<(AgentId, AgentRunId, Gap)>,
    usages: BTreeMap<AgentId, Usage>,
    refused_epochs: BTreeMap<(AgentId, AgentRunId), u64>,
    streams: BTreeSet<(AgentId, StreamName)>,
}

impl Store {
    /// An empty database with these gateways.
    pub(crate) fn new(rules: Rules, agents: impl IntoIterator<Item = AgentId>) -> Self {
        let fresh = || Gateway {
            row: IdentityRow::fresh(1),
            live: None,
        };
        Self {
            rules,
            gateways: agents.into_iter().map(|agent| (agent, fresh())).collect(),
            commands: BTreeMap::new(),
            orphans: BTreeSet::new(),
            forks: BTreeSet::new(),
            telemetry: BTreeMap::new(),
            positions: BTreeMap::new(),
            gaps: Vec::new(),
            usages: BTreeMap::new(),
            refused_epochs: BTreeMap::new(),
            streams: BTreeSet::new(),
        }
    }

    /// Every gateway.
    pub(crate) fn agents(&self) -> impl Iterator<Item = AgentId> {
        self.gateways.keys().copied()
    }

    /// Every command.
    pub(crate) fn commands(&self) -> impl Iterator<Item = &Command> {
        self.commands.values()
    }

    /// The confirmed epoch of a gateway.
    #[must_use]
    pub(crate) fn confirmed(&self, agent: AgentId) -> u64 {
        self.gateways.get(&agent).map_or(0, |it| it.row.confirmed)
    }

    /// Whether a fork of an identity is recorded.
    #[must_use]
    pub(crate) fn has_fork(&self, agent: AgentId) -> bool {
        self.forks.iter().any(|(forked, _)| *forked == agent)
    }

    /// A record of telemetry.
    #[must_use]
    pub(crate) fn record(&self, key: &Key) -> Option<i64> {
        self.telemetry.get(key).copied()
    }

    /// Whether a record is known never to come.
    #[must_use]
    pub(crate) fn in_gap(&self, key: &Key) -> bool {
        self.gaps.iter().any(|(agent, run, gap)| {
            (*agent, *run) == (key.0, key.1) && (gap.from_seq..=gap.to_seq).contains(&key.2)
        })
    }

    /// Whether a record between the ends of a gap is stored.
    #[must_use]
    pub(crate) fn holds_between(&self, agent: AgentId, run: AgentRunId, gap: Gap) -> bool {
        let (from, to) = ((agent, run, gap.from_seq), (agent, run, gap.to_seq));
        self.telemetry.range(from..=to).next().is_some()
    }

    fn fence(&self, holder: Holder, recorder: &mut Recorder) -> Result<(), Fenced> {
        let row = self.gateways.get(&holder.agent).map(|known| &known.row);
        if row.is_some_and(|row| may_write(self.rules, row, holder.epoch)) {
            recorder.wrote(holder.agent, holder.epoch);
            return Ok(());
        }
        recorder.counts.fenced += 1;
        Err(Fenced)
    }

    /// The commands of a gateway up to `order` that are not final, in order.
    fn open(&self, agent: AgentId, order: u64) -> Vec<Facts> {
        let of_gateway = |it: &&Command| it.facts.agent_id == agent && !it.facts.state.is_final();
        let mut open: Vec<&Command> = self
            .commands
            .values()
            .filter(of_gateway)
            .filter(|command| command.order <= order)
            .collect();
        open.sort_unstable_by_key(|command| command.order);
        open.into_iter().map(|it| it.facts.clone()).collect()
    }

    /// Writes what was decided, with what follows from ends.
    fn write(&mut self, changes: impl IntoIterator<Item = Change>, result: Option<&Outcome>) {
        let mut ended = BTreeSet::new();
        for change in changes {
            let Some(command) = self.commands.get_mut(&change.command.command_id) else {
                continue;
            };
            if change.ends() {
                ended.insert(change.command.agent_id);
            }
            if change.result.is_some() {
                command.result = result.cloned();
            }
            command.facts = change.command;
        }
        for agent in ended {
            self.raise_low_water(agent);
        }
    }

    fn raise_low_water(&mut self, agent: AgentId) {
        let of_gateway = |it: &&Command| it.facts.agent_id == agent && !it.facts.state.is_final();
        let open = self.commands.values().filter(of_gateway);
        let lowest = open.map(|command| command.order).min();
        if let Some(gateway) = self.gateways.get_mut(&agent) {
            let row = &mut gateway.row;
            row.low_water = low_water(row.low_water, lowest, row.next_order);
        }
    }

    fn low_water(&self, agent: AgentId) -> u64 {
        self.gateways
            .get(&agent)
            .map_or(0, |gateway| gateway.row.low_water)
    }
}
