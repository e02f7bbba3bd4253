//! What sessions, operators and reconcilers do with commands.

use std::collections::BTreeMap;
use std::time::Duration;

use viworks_common::code::RejectCode;
use viworks_common::command::{CommandState, Outcome, OutcomeState};
use viworks_common::id::{AgentId, CommandId, CommandName, RunId};
use viworks_common::ledger::end::{self, Reported};
use viworks_common::ledger::lease::{self, Place, Scene};
use viworks_common::ledger::permit::{self, Accepted, Permit};
use viworks_common::ledger::submit::{Bounds, Counters, judge};
use viworks_common::ledger::{Change, Command as Facts};
use viworks_common::time::Timestamp;

use super::super::core::Owner;
use super::{Command, Fenced, Holder, Letter, Store, Tx};

/// Deliveries before a command is dead; worlds are short, so that it takes a storm.
const ATTEMPTS_MAX: u32 = 16;
/// How soon a gateway that was busy is asked again.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// How long a command may run by its gateway's catalogue.
const TIME_LIMIT: Duration = Duration::from_secs(6);
/// How long after its deadline the owner of a permitted command waits.
const OVERDUE_WAIT: Duration = Duration::from_secs(30);
/// No world comes near them.
const BOUNDS: Bounds = Bounds {
    per_gateway: 1_000,
    global: 10_000,
};

/// What an operator submits.
#[derive(Debug, Clone)]
pub(crate) struct Submitted {
    pub id: CommandId,
    pub agent: AgentId,
    pub name: CommandName,
    pub idempotent: bool,
    pub deadline: Timestamp,
    pub timeout_ms: Option<u64>,
}

impl Store {
    fn scene(&self, agent: AgentId, now: Timestamp) -> Scene {
        let live = self.gateways.get(&agent).and_then(|gateway| gateway.live);
        Scene {
            session_epoch: live.map(|live| live.epoch),
            low_water: self.low_water(agent),
            waits: self.has_queued(agent, now),
        }
    }

    fn counters(&self) -> BTreeMap<AgentId, Counters> {
        let known = self.gateways.iter().filter(|(_, it)| !it.row.revoked);
        let counters = known.map(|(agent, gateway)| {
            let counters = Counters {
                name: "sim".parse().expect("a valid name"),
                next_order: gateway.row.next_order,
                open: u64::try_from(self.open(*agent).len()).unwrap_or(u64::MAX),
            };
            (*agent, counters)
        });
        counters.collect()
    }

    /// Whether a gateway has commands to lease.
    pub(crate) fn has_queued(&self, agent: AgentId, now: Timestamp) -> bool {
        let mut commands = self.commands.values().map(|command| &command.facts);
        commands.any(|facts| facts.agent_id == agent && lease::waits(facts, now))
    }

    /// A command, when it is one of the session's gateway.
    fn held(&self, holder: Holder, id: CommandId) -> Option<Facts> {
        let facts = self.commands.get(&id).map(|command| command.facts.clone());
        facts.filter(|facts| facts.agent_id == holder.agent)
    }
}

impl Tx<'_> {
    /// Accepts a submission to a process, unless something speaks against it; with the offer, where a session of it has
    /// kept room.
    pub(crate) fn submit(
        &mut self,
        desk: Owner,
        new: Submitted,
        place: Option<Place>,
    ) -> Option<Option<Command>> {
        let (store, now) = (&mut *self.store, self.now);
        let counters = store.counters();
        let waiting = counters.values().map(|it| it.open).sum();
        judge([new.agent], false, BOUNDS, |id| counters.get(&id), waiting).ok()?;
        let scene = store.scene(new.agent, now);
        let row = &mut store.gateways.get_mut(&new.agent)?.row;
        let order = row.next_order;
        row.next_order += 1;
        let ids = (new.id, RunId::from_uuid(*new.id.as_uuid()), new.agent);
        let facts = Facts::queued(ids, new.idempotent, now, (new.deadline, TIME_LIMIT));
        let born = place.and_then(|it| lease::at_birth(facts.clone(), order, it, scene, now));
        let command = Command {
            facts,
            order,
            name: new.name,
            timeout_ms: new.timeout_ms,
            result: None,
            late_outcome: None,
        };
        store.commands.insert(new.id, command);
        let is_offered = born.is_some();
        self.write(born, None);
        self.ask_owner(desk, new.agent, |_| Letter::Nudge(new.agent));
        let command = self.store.command(new.id).cloned();
        Some(command.filter(|_| is_offered))
    }

    /// Cancels what has no permit; true when the gateway must be asked.
    pub(crate) fn cancel(&mut self, desk: Owner, id: CommandId) -> bool {
        let known = self.store.commands.get_mut(&id);
        let Some(command) = known.filter(|it| !it.facts.state.is_final()) else {
            return false;
        };
        command.facts.cancel_requested = true;
        let change = end::cancel(command.facts.clone(), self.now);
        let (must_be_asked, agent) = (change.is_none(), command.facts.agent_id);
        self.write(change, None);
        if must_be_asked {
            self.ask_owner(desk, agent, |_| Letter::Cancel(agent, id));
        }
        must_be_asked
    }

    /// Takes the next commands in order.
    pub(crate) fn lease(&mut self, holder: Holder, room: usize) -> Result<Vec<Command>, Fenced> {
        self.fence(holder)?;
        let window = lease::window(self.store.low_water(holder.agent));
        let open = self.store.open_facts(holder.agent, window);
        let take = |it: &Facts| lease::take(it.clone(), holder.run, ATTEMPTS_MAX, self.now);
        let changes: Vec<Change> = open.iter().filter_map(take).take(room).collect();
        self.look_for_overtaking(&open, &changes);
        let offers = changes.iter().filter(|change| !change.ends());
        let offers: Vec<CommandId> = offers.map(|it| it.command.command_id).collect();
        self.write(changes, None);
        let leased = offers.into_iter().filter_map(|id| self.store.command(id));
        Ok(leased.cloned().collect())
    }

    /// Invariant 12: what was never offered and is in time has nothing to wait for.
    fn look_for_overtaking(&mut self, open: &[Facts], changes: &[Change]) {
        let fresh = |it: &&Facts| it.state == CommandState::Queued && it.attempt == 0;
        let in_time = |it: &&Facts| it.deadline > self.now;
        let mut passed_over = None;
        for facts in open.iter().filter(fresh).filter(in_time) {
            let id = facts.command_id;
            let taken = changes.iter().any(|it| it.command.command_id == id);
            match passed_over {
                Some(earlier) if taken => self.recorder.overtaken(earlier, id),
                None if !lease::waits(facts, self.now) => passed_over = Some(id),
                Some(_) | None => {}
            }
        }
    }

    /// Decides about the start permit of a command that its gateway has journalled.
    pub(crate) fn accept(
        &mut self,
        holder: Holder,
        id: CommandId,
        accepted: Accepted,
    ) -> Result<Permit, Fenced> {
        self.fence(holder)?;
        let held = self.store.held(holder, id);
        let (permit, change) =
            permit::accept(self.store.rules, held, holder.run, accepted, self.now);
        self.write(change, None);
        Ok(permit)
    }

    /// The gateway refused a command on arrival.
    pub(crate) fn reject(
        &mut self,
        holder: Holder,
        id: CommandId,
        code: RejectCode,
    ) -> Result<(), Fenced> {
        self.fence(holder)?;
        if code == RejectCode::Stale {
            self.recorder.stale(id);
        }
        if let Some(held) = self.store.held(holder, id) {
            let again_at = self.now.saturating_add(BUSY_PAUSE);
            let change = end::reject(held, code, code.name().to_owned(), again_at, self.now);
            let outcome = Outcome::without_run(OutcomeState::Rejected, code.name());
            self.write(change, Some(&outcome));
        }
        Ok(())
    }

    /// The gateway started a command.
    pub(crate) fn start(&mut self, holder: Holder, id: CommandId) -> Result<(), Fenced> {
        self.fence(holder)?;
        let held = self.store.held(holder, id);
        let change = held.and_then(|held| end::start(held, self.now, self.now));
        self.write(change, None);
        Ok(())
    }

    /// The gateway reported an outcome; answered with the low-water mark.
    pub(crate) fn complete(
        &mut self,
        holder: Holder,
        id: CommandId,
        outcome: &Outcome,
    ) -> Result<u64, Fenced> {
        self.fence(holder)?;
        let held = self.store.held(holder, id);
        let may_repeat = held.as_ref().is_none_or(|held| held.idempotent);
        let reported = end::report(held, (holder.agent, id, holder.run), outcome, self.now);
        let kept = match &reported {
            Reported::Ends(change) => change.result.is_some(),
            Reported::Late(..) | Reported::Orphan(_) => true,
            Reported::Denies(..) => false,
            // Of what ran more than once the first outcome counts.
            Reported::Repeated => may_repeat,
        };
        if kept {
            self.recorder.outcome_committed(outcome.duration_ms);
        }
        match reported {
            Reported::Ends(change) => self.write([*change], kept.then_some(outcome)),
            Reported::Denies(change, _) => self.write(change.map(|it| *it), None),
            Reported::Late(..) => {
                if let Some(command) = self.store.commands.get_mut(&id) {
                    self.recorder.counts.late_outcomes += 1;
                    command.facts.has_late_outcome = true;
                    command.facts.has_late_run = outcome.ran();
                    command.late_outcome = Some(outcome.clone());
                }
            }
            Reported::Repeated | Reported::Orphan(_) => {}
        }
        Ok(self.store.low_water(holder.agent))
    }

    /// Ends what could not start in time, and what was permitted and never heard of again.
    pub(crate) fn end_late(&mut self) {
        let now = self.now;
        let late = |Command { facts, .. }: &Command| {
            let late = end::expire(facts.clone(), now);
            late.or_else(|| end::give_up(facts.clone(), OVERDUE_WAIT, now))
        };
        let changes: Vec<Change> = self.store.commands.values().filter_map(late).collect();
        self.write(changes, None);
    }
}
