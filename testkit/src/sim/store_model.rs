//! The backend's database: the same intents as the real stores, each one atomic, over plain maps.

use std::collections::{BTreeMap, BTreeSet};

use viworks_common::admission::IdentityRow;
use viworks_common::command::{CommandEvent, CommandState, Outcome, Transition, transition};
use viworks_common::id::{AgentId, AgentRunId, CommandId, CommandName};
use viworks_common::telemetry::Gap;
use viworks_common::time::Timestamp;

use super::recorder::{Key, Recorder};
use super::scenario::{Rule, Rules};

mod commands;
mod sessions;
mod telemetry;

pub(crate) use commands::{AcceptOutcome, Leased};
pub(crate) use sessions::{AdmitRequest, Admitted, ConfirmRequest, Confirmed, Refusal};

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
    pub id: CommandId,
    pub agent: AgentId,
    pub order: u64,
    pub name: CommandName,
    pub idempotent: bool,
    pub state: CommandState,
    pub attempt: u32,
    pub available_at: Timestamp,
    pub deadline: Timestamp,
    pub timeout_ms: Option<u64>,
    pub released_to: Option<AgentRunId>,
    pub cancel_requested: bool,
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
        let current = row.is_some_and(|row| row.confirmed == holder.epoch && !row.revoked);
        if current || !self.rules.keep(Rule::EpochFence) {
            recorder.wrote(holder.agent, holder.epoch);
            return Ok(());
        }
        recorder.counts.fenced += 1;
        Err(Fenced)
    }

    /// The commands of a gateway up to `order` that are not final, in order.
    fn open(&self, agent: AgentId, order: u64) -> Vec<CommandId> {
        let mut open: Vec<(u64, CommandId)> = self
            .commands
            .values()
            .filter(|command| command.agent == agent && !command.state.is_final())
            .filter(|command| command.order <= order)
            .map(|command| (command.order, command.id))
            .collect();
        open.sort_unstable();
        open.into_iter().map(|(_, id)| id).collect()
    }

    /// Lets `event` happen to a command, with what follows from its end.
    fn apply(
        &mut self,
        id: CommandId,
        event: CommandEvent,
        result: Option<&Outcome>,
    ) -> Transition {
        let Some(command) = self.commands.get_mut(&id) else {
            return Transition::Refused;
        };
        let decision = transition(command.state, event, command.idempotent);
        let Transition::To(next) = decision else {
            return decision;
        };
        command.state = next;
        if matches!(next, CommandState::Queued | CommandState::Dispatched) {
            command.released_to = None;
        }
        if let Some(result) = result {
            command.result = Some(result.clone());
        }
        let agent = command.agent;
        if next.is_final() {
            self.raise_low_water(agent);
        }
        decision
    }

    fn raise_low_water(&mut self, agent: AgentId) {
        let lowest = self
            .commands
            .values()
            .filter(|command| command.agent == agent && !command.state.is_final())
            .map(|command| command.order)
            .min();
        if let Some(gateway) = self.gateways.get_mut(&agent) {
            let mark = lowest.unwrap_or(gateway.row.next_order).saturating_sub(1);
            gateway.row.low_water = mark.max(gateway.row.low_water);
        }
    }

    fn low_water(&self, agent: AgentId) -> u64 {
        self.gateways
            .get(&agent)
            .map_or(0, |gateway| gateway.row.low_water)
    }
}
