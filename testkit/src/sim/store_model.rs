//! The backend's database: the same intents as the real stores, each one atomic, over plain maps. What becomes of
//! them the ledger decides, as it does for the real ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use viworks_common::admission::IdentityRow;
use viworks_common::claims::Standing;
use viworks_common::command::Outcome;
use viworks_common::fork::{Holder as Party, Kept};
use viworks_common::id::{AgentId, AgentRunId, CommandId, CommandName, StreamName};
use viworks_common::ledger::command::low_water;
use viworks_common::ledger::session::may_write;
use viworks_common::ledger::telemetry::{Reached, Usage};
use viworks_common::ledger::{Change, Command as Facts};
use viworks_common::rules::{Rule, Rulebook};
use viworks_common::telemetry::Gap;
use viworks_common::time::{Monotonic, Timestamp};

use super::core::{BackendStep, Core, Event, Owner};
use super::recorder::{Key, Recorder};
use super::scenario::Rules;

mod commands;
mod decisions;
mod instances;
mod sessions;
mod telemetry;

pub(crate) use commands::Submitted;
use decisions::Fork;
use instances::Lease;
pub(crate) use instances::Letter;
pub(crate) use sessions::{AdmitRequest, Admitted, ConfirmRequest};

/// How late a process reads what another one asks of it.
const POLL: Duration = Duration::from_millis(250);
/// The same where its database does not answer for a while.
const LATE: Duration = Duration::from_secs(6);

/// On whose behalf a session writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pub agent: AgentId,
    pub epoch: u64,
    pub run: AgentRunId,
}

/// The epoch of a write is not the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fenced;

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

/// A confirmed session: its epoch, the gateway's process, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub epoch: u64,
    pub run: AgentRunId,
    pub owner: Owner,
}

#[derive(Debug, Clone)]
struct Gateway {
    /// The counters of its identity.
    row: IdentityRow,
    live: Option<Live>,
    /// Whom its identity is kept for, and how often it changed hands.
    standing: Standing,
    /// The epoch of which somebody found that its owner was gone, rightly, whether that comes back or not.
    abandoned: Option<u64>,
    usage: Usage,
    streams: BTreeSet<StreamName>,
    /// What its processes said of themselves.
    said: BTreeMap<AgentRunId, Party>,
    /// The process of the session that was confirmed last.
    last: Option<AgentRunId>,
    /// Whom an operator gave its identity to.
    kept: Option<Kept>,
    /// The generation of the agent key that it is to be given.
    key_wanted: Option<u32>,
}

/// The database. A clone is a backup.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    rules: Rules,
    gateways: BTreeMap<AgentId, Gateway>,
    commands: BTreeMap<CommandId, Command>,
    /// By who was refused.
    forks: BTreeMap<(AgentId, AgentRunId), Fork>,
    telemetry: BTreeMap<Key, i64>,
    epochs: BTreeMap<(AgentId, AgentRunId), Reached>,
    gaps: Vec<(AgentId, AgentRunId, Gap)>,
    /// The processes of the backend, and until when each has its lease.
    leases: BTreeMap<Owner, Lease>,
    /// What they ask of each other.
    letters: Vec<(Owner, Letter)>,
    /// Who has something new to read.
    posted: Vec<Owner>,
}

/// One transaction, and who writes down what it did.
#[derive(Debug)]
pub(crate) struct Tx<'s> {
    store: &'s mut Store,
    recorder: &'s mut Recorder,
    now: Timestamp,
    elapsed: Monotonic,
}

impl Store {
    /// An empty database with these gateways.
    pub(crate) fn new(rules: Rules, agents: impl IntoIterator<Item = AgentId>) -> Self {
        let fresh = || Gateway {
            row: IdentityRow::fresh(1),
            live: None,
            standing: Standing::default(),
            abandoned: None,
            usage: Usage::default(),
            streams: BTreeSet::new(),
            said: BTreeMap::new(),
            last: None,
            kept: None,
            key_wanted: None,
        };
        Self {
            rules,
            gateways: agents.into_iter().map(|agent| (agent, fresh())).collect(),
            commands: BTreeMap::new(),
            forks: BTreeMap::new(),
            telemetry: BTreeMap::new(),
            epochs: BTreeMap::new(),
            gaps: Vec::new(),
            leases: BTreeMap::new(),
            letters: Vec::new(),
            posted: Vec::new(),
        }
    }

    /// Carries out an intent, whole.
    pub(crate) fn commit<T>(
        &mut self,
        core: &mut Core,
        intent: impl FnOnce(&mut Tx<'_>) -> T,
    ) -> T {
        let now = core.backend_now();
        let answer = intent(&mut Tx {
            store: self,
            recorder: &mut core.recorder,
            now,
            elapsed: core.now,
        });
        core.recorder.committed(self, core.now);
        for owner in std::mem::take(&mut self.posted) {
            let late = core.turmoil && core.random.once_in(4);
            let longest = if late { LATE } else { POLL };
            let pause = core.random.span(Duration::ZERO, longest);
            let read = Event::Backend(owner.id, owner.generation, BackendStep::Inbox);
            core.after(pause, read);
        }
        answer
    }

    pub(crate) fn agents(&self) -> impl Iterator<Item = AgentId> {
        self.gateways.keys().copied()
    }

    pub(crate) fn commands(&self) -> impl Iterator<Item = &Command> {
        self.commands.values()
    }

    pub(crate) fn command(&self, id: CommandId) -> Option<&Command> {
        self.commands.get(&id)
    }

    /// The confirmed epoch of a gateway.
    pub(crate) fn confirmed(&self, agent: AgentId) -> u64 {
        self.gateways.get(&agent).map_or(0, |it| it.row.confirmed)
    }

    /// Whether a gateway has a session, as far as the backend knows.
    pub(crate) fn is_live(&self, agent: AgentId) -> bool {
        let gateway = self.gateways.get(&agent);
        gateway.is_some_and(|gateway| gateway.live.is_some())
    }

    pub(crate) fn has_fork(&self, agent: AgentId) -> bool {
        self.forks.keys().any(|(forked, _)| *forked == agent)
    }

    /// Whether a record is stored, or known never to come.
    pub(crate) fn accounts_for(&self, key: &Key) -> bool {
        let in_gap = |(agent, run, gap): &(AgentId, AgentRunId, Gap)| {
            (*agent, *run) == (key.0, key.1) && (gap.from_seq..=gap.to_seq).contains(&key.2)
        };
        self.telemetry.contains_key(key) || self.gaps.iter().any(in_gap)
    }

    /// Whether a record between the ends of a gap is stored.
    pub(crate) fn holds_between(&self, agent: AgentId, run: AgentRunId, gap: Gap) -> bool {
        let (from, to) = ((agent, run, gap.from_seq), (agent, run, gap.to_seq));
        self.telemetry.range(from..=to).next().is_some()
    }

    /// The commands of a gateway that are not final, in order.
    fn open(&self, agent: AgentId) -> Vec<&Command> {
        let of_gateway = |it: &&Command| it.facts.agent_id == agent && !it.facts.state.is_final();
        let mut open: Vec<&Command> = self.commands.values().filter(of_gateway).collect();
        open.sort_unstable_by_key(|command| command.order);
        open
    }

    /// The facts of those of them up to `order`.
    fn open_facts(&self, agent: AgentId, order: u64) -> Vec<Facts> {
        let open = self.open(agent).into_iter();
        let known = open.take_while(|command| command.order <= order);
        known.map(|command| command.facts.clone()).collect()
    }

    fn low_water(&self, agent: AgentId) -> u64 {
        self.gateways.get(&agent).map_or(0, |it| it.row.low_water)
    }
}

impl Tx<'_> {
    fn fence(&mut self, holder: Holder) -> Result<(), Fenced> {
        let (rules, known) = (self.store.rules, self.store.gateways.get(&holder.agent));
        // One that was ended, perhaps by another process that took its own for dead, writes nothing more.
        let is_open = |live: Option<Live>| live.is_some_and(|live| live.epoch == holder.epoch);
        if known.is_some_and(|known| {
            may_write(rules, known.row.confirmed, known.row.revoked, holder.epoch)
                && (is_open(known.live) || !rules.keeps(Rule::EpochFence))
        }) {
            self.recorder.wrote(holder.agent, holder.epoch);
            return Ok(());
        }
        self.recorder.counts.fenced += 1;
        Err(Fenced)
    }

    /// Writes what was decided, with what follows from ends.
    fn write(&mut self, changes: impl IntoIterator<Item = Change>, result: Option<&Outcome>) {
        let mut ended = BTreeSet::new();
        for change in changes {
            let Some(command) = self.store.commands.get_mut(&change.command.command_id) else {
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
        let lowest = self.store.open(agent).first().map(|command| command.order);
        if let Some(Gateway { row, .. }) = self.store.gateways.get_mut(&agent) {
            row.low_water = low_water(row.low_water, lowest, row.next_order);
        }
    }
}
