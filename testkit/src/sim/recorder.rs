//! The truth about a world, written down where it happens, and the invariants of the protocol stated over it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, AgentRunId, CommandId};
use viworks_common::session::End;
use viworks_common::telemetry::Gap;
use viworks_common::time::Monotonic;

use super::core::HostId;
use super::network::ConnectionId;
use super::store_model::Store;

/// One record of telemetry, wherever it is.
pub(crate) type Key = (AgentId, AgentRunId, u64);

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How often something happened, to see that a simulation is not idle.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            pub const fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            pub fn each(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counts! {
    /// Sessions that were confirmed.
    sessions,
    /// Of these, in place of one of another process.
    take_overs,
    /// Second holders that were refused.
    forks,
    /// Commands that really started.
    starts,
    /// Of these, not for the first time.
    again,
    /// Outcomes that were committed, repetitions included.
    results,
    /// Outcomes that came after the command was given up.
    late_outcomes,
    /// Commands that ended so.
    indeterminate,
    /// Commands that ended so.
    expired,
    /// Commands that ended so.
    cancelled,
    /// Commands that ended so.
    rejected,
    /// Databases that were restored.
    rolled_back,
    /// Records of telemetry that were spooled.
    records,
    /// Ranges of records that were reported missing.
    gaps,
    /// Processes of gateways that died.
    gateway_crashes,
    /// Processes of the backend that died.
    backend_crashes,
    /// Connections that were disturbed.
    cuts,
    /// Frames that a session refused.
    replays,
    /// Writes of sessions that were no longer the current one.
    fenced,
    /// Start permits that were given.
    permits,
    /// Times that the backend's wall clock was set.
    steps,
    /// Times that one of two processes of the backend was stopped for a while.
    pauses,
    /// Of these, for so long that its lease ran out.
    lost_leases,
    /// What one of two processes of the backend asked of the other.
    letters,
    /// Of these, whether a gateway answers.
    crossings,
    /// Identities that an operator gave to another holder.
    given,
    /// Of these, to another machine that takes the place of all others.
    replaced,
    /// Agent keys that reached a gateway over its session.
    keys,
    /// Gateways that came with a later agent key than before.
    new_keys,
}

/// A command that really ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    /// Its number in this world: the outcome carries it.
    pub number: u64,
    pub host: HostId,
    pub run: AgentRunId,
}

/// What an operator wants of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    /// Until when it may start, in true time.
    due: Monotonic,
    /// What that may be wrong by.
    tolerance: Duration,
    /// How long it may run, in milliseconds.
    limit: Option<u64>,
}

/// Who writes down what happens.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub counts: Counts,
    violation: Option<String>,
    sealed: BTreeMap<[u8; 16], (ConnectionId, End, bool)>,
    starts: BTreeMap<CommandId, Vec<Start>>,
    next_start: u64,
    permits: BTreeMap<(CommandId, AgentRunId), Monotonic>,
    finals: BTreeMap<CommandId, CommandState>,
    wishes: BTreeMap<CommandId, Wish>,
    journalled: BTreeSet<u64>,
    reported: BTreeSet<u64>,
    spooled: BTreeMap<Key, i64>,
    excused: BTreeSet<Key>,
    epochs: BTreeMap<AgentId, u64>,
    doubled: BTreeSet<AgentId>,
    /// Gateways that have not spoken since the database was restored.
    unsettled: BTreeSet<AgentId>,
    /// Processes that were alive when a copy was refused in their favour.
    protected: BTreeMap<AgentId, AgentRunId>,
    /// The machine of each process of a gateway.
    machines: BTreeMap<AgentRunId, HostId>,
    /// The machine to which an operator gave an identity, until it was copied again.
    wanted: BTreeMap<AgentId, HostId>,
    /// Sessions of epochs below these were put out by an operator.
    put_out: BTreeMap<AgentId, u64>,
    /// Commands of an operator who need not know about any restored database.
    fresh: BTreeSet<CommandId>,
}

const TAG_KEY: usize = 16;

fn tag_of(bytes: &[u8]) -> Option<[u8; TAG_KEY]> {
    let tag: [u8; TAG_KEY] = bytes.last_chunk().copied()?;
    // CHALLENGE carries no tag: nobody trusts it.
    (tag != [0; TAG_KEY]).then_some(tag)
}

impl Recorder {
    /// Notes that an invariant does not hold. The first one counts.
    pub(crate) fn violated(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// A message was put onto a connection.
    pub(crate) fn sealed(&mut self, id: ConnectionId, from: End, bytes: &[u8]) {
        if let Some(tag) = tag_of(bytes)
            && self.sealed.insert(tag, (id, from, false)).is_some()
        {
            self.violated(|| format!("8: {from:?} sealed the same message twice on {id:?}"));
        }
    }

    /// A message was accepted by `end`. Invariant 8.
    pub(crate) fn accepted(&mut self, id: ConnectionId, end: End, bytes: &[u8]) {
        let Some(tag) = tag_of(bytes) else { return };
        match self.sealed.get_mut(&tag) {
            Some((on, from, accepted)) if *on == id && *from != end && !*accepted => {
                *accepted = true;
            }
            known => {
                let origin = known.copied();
                self.violated(|| format!("8: {end:?} of {id:?} accepted what {origin:?} sealed"));
            }
        }
    }

    /// The backend gave a process of the gateway until `until`, in true time, to start a command.
    pub(crate) fn permitted(&mut self, command: CommandId, run: AgentRunId, until: Monotonic) {
        self.counts.permits += 1;
        let latest = self.permits.entry((command, run)).or_insert(until);
        *latest = until.max(*latest);
    }

    /// A command really starts. Invariants 1 and 4.
    pub(crate) fn started(
        &mut self,
        command: CommandId,
        (host, run): (HostId, AgentRunId),
        (may_run_again, limit): (bool, Option<u64>),
        now: Monotonic,
    ) -> u64 {
        self.counts.starts += 1;
        self.next_start += 1;
        let number = self.next_start;
        let starts = self.starts.entry(command).or_default();
        starts.push(Start { number, host, run });
        let starts = starts.clone();
        if starts.len() > 1 {
            self.counts.again += 1;
            if !may_run_again {
                self.violated(|| format!("1: {command} is not idempotent and ran: {starts:?}"));
            }
        }
        if let Some(wish) = self.wishes.get(&command).copied() {
            let late = now.saturating_since(wish.due);
            if late > wish.tolerance {
                self.violated(|| format!("4: {command} started {late:?} after its operator's due"));
            }
            if limit != wish.limit {
                let wish = wish.limit;
                self.violated(|| format!("4: {command} has limit {limit:?} instead of {wish:?}"));
            }
        }
        match self.permits.get(&(command, run)) {
            None => self.violated(|| format!("1: {command} started in {run} without a permit")),
            Some(until) if now > *until => {
                let late = now.saturating_since(*until);
                self.violated(|| format!("4: {command} started {late:?} after its deadline"));
            }
            Some(_) => {}
        }
        number
    }

    pub(crate) fn starts(&self, command: CommandId) -> &[Start] {
        self.starts.get(&command).map_or(&[], Vec::as_slice)
    }

    /// The outcome of a start is durable on the gateway; zero for what did not start.
    pub(crate) fn journalled(&mut self, number: u64) {
        self.journalled.insert(number);
    }

    /// The outcome of a start is committed, in whatever place.
    pub(crate) fn outcome_committed(&mut self, number: u64) {
        self.counts.results += 1;
        self.reported.insert(number);
    }

    /// Whether the outcome of a start is durable on the gateway and was never committed.
    pub(crate) fn is_owed(&self, number: u64) -> bool {
        self.journalled.contains(&number) && !self.reported.contains(&number)
    }

    /// Records are durable in a spool.
    pub(crate) fn spooled(&mut self, key: Key, value: i64) {
        self.counts.records += 1;
        if self.spooled.insert(key, value).is_some() {
            self.violated(|| format!("5: the key {key:?} was given twice"));
        }
    }

    /// A record is gone by no fault of the protocol: its disk went back in time or was put away.
    pub(crate) fn excuse(&mut self, key: Key) {
        self.excused.insert(key);
    }

    /// Invariant 5: every record is stored, in a gap, or nobody has to answer for it.
    pub(crate) fn look_for_loss(&mut self, store: &Store) {
        let is_lost = |key: &&Key| !store.accounts_for(key) && !self.excused.contains(*key);
        if let Some(key) = self.spooled.keys().find(is_lost).copied() {
            self.violated(|| format!("5: {key:?} was spooled, and is neither stored nor in a gap"));
        }
    }

    /// A record is stored. Invariant 5.
    pub(crate) fn stored(&mut self, key: Key, value: i64, new: bool) {
        if !new {
            self.violated(|| format!("5: the key {key:?} is stored twice"));
        }
        if self.spooled.get(&key) != Some(&value) {
            self.violated(|| format!("5: {key:?} is stored as {value}, and was never spooled so"));
        }
    }

    /// A gap is stored. Invariant 5.
    pub(crate) fn gap(&mut self, agent: AgentId, run: AgentRunId, gap: Gap, store: &Store) {
        self.counts.gaps += 1;
        if store.holds_between(agent, run, gap) {
            self.violated(|| format!("5: {gap:?} of {run} covers records that are stored"));
        }
    }

    /// A session of `epoch` changed state. Invariant 6.
    pub(crate) fn wrote(&mut self, agent: AgentId, epoch: u64) {
        let newest = self.epochs.entry(agent).or_insert(epoch);
        if epoch < *newest {
            let newest = *newest;
            self.violated(|| format!("6: epoch {epoch} of {agent} wrote after epoch {newest}"));
        } else {
            *newest = epoch;
        }
    }

    pub(crate) fn submitted(
        &mut self,
        agent: AgentId,
        command: CommandId,
        (now, span): (Monotonic, Duration),
        limit: Option<u64>,
    ) {
        let wish = Wish {
            due: now.saturating_add(span),
            tolerance: span / 1_000 + Duration::from_millis(1),
            limit,
        };
        self.wishes.insert(command, wish);
        if !self.unsettled.contains(&agent) {
            self.fresh.insert(command);
        }
    }

    /// A process of a gateway begins on a machine.
    pub(crate) fn booted(&mut self, run: AgentRunId, host: HostId) {
        self.machines.insert(run, host);
    }

    /// The machine of a process.
    pub(crate) fn machine_of(&self, run: AgentRunId) -> Option<HostId> {
        self.machines.get(&run).copied()
    }

    /// An operator gave an identity to the holder on a machine; every session of an epoch below is over. Without a
    /// machine, somebody may pass for that holder whom nobody has seen.
    pub(crate) fn given(&mut self, agent: AgentId, host: Option<HostId>, epoch: u64) {
        self.counts.given += 1;
        self.protected.remove(&agent);
        self.wanted.remove(&agent);
        self.wanted.extend(host.map(|host| (agent, host)));
        self.put_out.insert(agent, epoch);
    }

    /// Whether an operator has put a session out.
    pub(crate) fn is_put_out(&self, agent: AgentId, epoch: u64) -> bool {
        self.put_out.get(&agent).is_some_and(|given| epoch < *given)
    }

    /// A process was refused for its agent key. Invariant 7: of an identity with one holder, that cuts it off.
    pub(crate) fn key_refused(&mut self, agent: AgentId, run: AgentRunId) {
        if !self.doubled.contains(&agent) {
            self.violated(|| {
                format!("7: {run} is the only one of {agent}, and its key is refused")
            });
        }
    }

    /// A copy was refused because `run` is alive, and nothing goes wrong from here on.
    pub(crate) fn protected(&mut self, agent: AgentId, run: AgentRunId) {
        self.protected.insert(agent, run);
    }

    /// A session was confirmed. Invariant 7.
    pub(crate) fn settled(&mut self, agent: AgentId, run: AgentRunId) {
        self.unsettled.remove(&agent);
        if let Some(original) = self.protected.remove(&agent)
            && original != run
        {
            self.violated(|| format!("7: {run} robbed {original}, which was alive"));
        }
        let (wanted, machine) = (self.wanted.get(&agent).copied(), self.machine_of(run));
        if let Some(wanted) = wanted
            && machine != Some(wanted)
        {
            self.violated(|| {
                format!("7: {run} is in, and an operator keeps {wanted:?} in {agent}")
            });
        }
    }

    /// A gateway refused a command as stale. Invariant 11. One that was cancelled on its way is over, and may be.
    pub(crate) fn stale(&mut self, command: CommandId) {
        let over = self.finals.contains_key(&command);
        if !over && self.fresh.contains(&command) && self.starts(command).is_empty() {
            self.violated(|| format!("11: {command} is new, and was refused as stale"));
        }
    }

    /// There is, or was, more than one holder of an identity.
    pub(crate) fn doubled(&mut self, agent: AgentId) {
        self.doubled.insert(agent);
        // What an operator decided says nothing of a copy that was made since.
        self.wanted.remove(&agent);
    }

    /// A fork was recorded. Invariant 7.
    pub(crate) fn forked(&mut self, agent: AgentId, run: AgentRunId) {
        self.counts.forks += 1;
        if !self.doubled.contains(&agent) {
            self.violated(|| format!("7: {run} of {agent} looks like a fork, and is the only one"));
        }
    }

    /// The store committed something. Invariant 2.
    pub(crate) fn committed(&mut self, store: &Store, now: Monotonic) {
        for command in store.commands() {
            let facts = &command.facts;
            let before = self.finals.get(&facts.command_id).copied();
            match before {
                Some(before) if before != facts.state => {
                    let (id, after) = (facts.command_id, facts.state);
                    self.violated(|| format!("2: {id} was {before:?} and became {after:?}"));
                }
                None if facts.state.is_final() => {
                    self.finals.insert(facts.command_id, facts.state);
                    self.count_final(facts.state);
                    // A gateway may be early: delay counts against the permit.
                    if facts.state == CommandState::Expired && command.result.is_none() {
                        self.given_up(facts.command_id, now);
                    }
                }
                Some(_) | None => {}
            }
        }
    }

    /// The backend ended a command by its deadline.
    fn given_up(&mut self, command: CommandId, now: Monotonic) {
        if let Some(wish) = self.wishes.get(&command)
            && now.saturating_add(wish.tolerance) < wish.due
        {
            let early = wish.due.saturating_since(now);
            self.violated(|| format!("4: {command} was given up {early:?} before its deadline"));
        }
    }

    /// A command was offered before an earlier one of its gateway that nothing keeps waiting.
    pub(crate) fn overtaken(&mut self, earlier: CommandId, later: CommandId) {
        self.violated(|| format!("12: {later} overtook {earlier}"));
    }

    const fn count_final(&mut self, state: CommandState) {
        match state {
            CommandState::Indeterminate => self.counts.indeterminate += 1,
            CommandState::Expired => self.counts.expired += 1,
            CommandState::Cancelled => self.counts.cancelled += 1,
            CommandState::Rejected => self.counts.rejected += 1,
            CommandState::Queued
            | CommandState::Dispatched
            | CommandState::Released
            | CommandState::Running
            | CommandState::Succeeded
            | CommandState::Failed
            | CommandState::TimedOut
            | CommandState::Dead => {}
        }
    }

    /// The database went back to what it was: what was final since then is open again or never was.
    pub(crate) fn rolled_back(&mut self, store: &Store) {
        self.counts.rolled_back += 1;
        self.unsettled = store.agents().collect();
        self.fresh.clear();
        self.finals = store
            .commands()
            .map(|command| (command.facts.command_id, command.facts.state))
            .filter(|(_, state)| state.is_final())
            .collect();
    }
}
