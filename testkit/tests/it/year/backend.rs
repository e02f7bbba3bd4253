//! What a backend keeps of fifty gateways, and what the product's own rules make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;
use viworks_common::admission::{
    Admission, Confirmation, HelloFacts, IdentityRow, Shown, admit, at_the_door, confirm,
};
use viworks_common::certificate;
use viworks_common::command::{CommandState, Outcome, OutcomeState};
use viworks_common::id::{AgentId, AgentRunId, CommandId, RunId};
use viworks_common::ledger::command::low_water;
use viworks_common::ledger::end::{self, Reported};
use viworks_common::ledger::permit::{self, Accepted, Permit};
use viworks_common::ledger::submit::{Bounds, Counters, judge};
use viworks_common::ledger::{Change, Command, lease, session};
use viworks_common::pin::rotation::Rotation;
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_common::renewal::{Candidate, has_lapsed};
use viworks_common::rules::Complete;
use viworks_common::time::Timestamp;

use super::{DAY, HOUR};

/// How long before it is issued a certificate begins, as the product's authority has it.
const BACKDATE: Duration = Duration::from_secs(3_600 / 8);
const ATTEMPTS_MAX: u32 = 16;
/// Longer than any machine is off.
const DEADLINE: Duration = Duration::from_secs(40 * 24 * 3_600);
const BOUNDS: Bounds = Bounds {
    per_gateway: 1_000,
    global: 10_000,
};

/// What matters of a certificate.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    pub(super) candidate: Candidate,
    pub(super) key: u64,
    /// Who signed it.
    pub(super) authority: u8,
}

impl Certificate {
    pub(super) const fn not_after(&self) -> Timestamp {
        self.candidate.life.1
    }
}

/// What is known of one gateway.
#[derive(Debug)]
pub(super) struct Identity {
    agent: AgentId,
    row: IdentityRow,
    /// The live session, and the process at its other end.
    live: Option<(u64, AgentRunId)>,
    /// By their keys.
    certificates: BTreeMap<u64, Certificate>,
    /// The version of the pin set that it confirmed.
    pub(super) pins: u64,
    /// Those that are not final, by their orders.
    open: BTreeMap<u64, Command>,
}

/// What is offered to a gateway.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub(super) id: CommandId,
    pub(super) order: u64,
    pub(super) idempotent: bool,
    /// Whether it may start at once.
    pub(super) permitted: bool,
}

/// What came of a HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// The epoch of the session.
    Session(u64),
    /// WELCOME was lost, or the CONFIRM behind it: then this is the epoch that the gateway made durable.
    Lost(Option<u64>),
    /// The certificate is not accepted.
    Refused,
}

/// What goes wrong while a session is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    None,
    Welcome,
    Confirm,
}

/// What a gateway says when it opens a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hello {
    pub(super) epoch: u64,
    pub(super) run: AgentRunId,
    pub(super) highest_order: u64,
    pub(super) low_water: u64,
}

#[derive(Debug)]
pub(super) struct Backend {
    pub(super) identities: Vec<Identity>,
    pub(super) pins: Rotation,
    /// The set that they make: each session asks for it.
    pub(super) set: PinSet,
    /// The key that it shows.
    pub(super) shown: SpkiPin,
    /// The authorities whose certificates it takes, and the one that signs.
    pub(super) trusted: BTreeSet<u8>,
    pub(super) signs: u8,
    /// How each command ended, as often as it did.
    pub(super) answers: BTreeMap<CommandId, Vec<CommandState>>,
    serial: u64,
}

pub(super) fn pin(number: u8) -> SpkiPin {
    SpkiPin::from_digest([number; 32])
}

/// The set that everything begins with: a key that is shown, and one in a safe.
pub(super) fn first_pins() -> PinSet {
    PinSet {
        version: 1,
        pins: [pin(1), pin(2)].into(),
    }
}

impl Backend {
    pub(super) fn new(gateways: usize) -> Self {
        let identity = |number: u128| Identity {
            agent: AgentId::from_uuid(Uuid::from_u128(number)),
            row: IdentityRow::fresh(1),
            live: None,
            certificates: BTreeMap::new(),
            pins: 1,
            open: BTreeMap::new(),
        };
        Self {
            identities: (1..).take(gateways).map(identity).collect(),
            pins: Rotation::of(&first_pins(), pin(1), Vec::new()),
            set: first_pins(),
            shown: pin(1),
            trusted: [0].into(),
            signs: 0,
            answers: BTreeMap::new(),
            serial: 0,
        }
    }

    fn sign(&mut self, key: u64, now: Timestamp) -> Certificate {
        self.serial += 1;
        let mut fingerprint = [0; 32];
        fingerprint[..8].copy_from_slice(&self.serial.to_be_bytes());
        Certificate {
            candidate: Candidate {
                fingerprint,
                life: (now.saturating_sub(BACKDATE), now.saturating_add(HOUR)),
            },
            key,
            authority: self.signs,
        }
    }

    /// Registers a certificate for a key of a gateway: at its enrolment, or because it asked over its session. None for
    /// a key whose certificate has ended.
    pub(super) fn issue(&mut self, at: usize, key: u64, now: Timestamp) -> Option<Certificate> {
        // The answer to the same question was lost.
        if let Some(before) = self.identities[at].certificates.get(&key) {
            return (before.not_after() > now).then(|| before.clone());
        }
        let certificate = self.sign(key, now);
        let known = &mut self.identities[at].certificates;
        known.insert(key, certificate.clone());
        Some(certificate)
    }

    /// Whether a session may change what belongs to its gateway.
    pub(super) fn may_write(&self, at: usize, epoch: u64) -> bool {
        let row = &self.identities[at].row;
        session::may_write(Complete, row.confirmed, row.revoked, epoch)
    }

    /// What a gateway gets at the door for the key that it has.
    pub(super) fn reissue(
        &mut self,
        at: usize,
        key: u64,
        epoch: u64,
        now: Timestamp,
    ) -> Option<Certificate> {
        let identity = &self.identities[at];
        let shown = Shown {
            epoch,
            token_valid: true,
            key_generation: 1,
        };
        at_the_door(&identity.row, shown, false).ok()?;
        let known = identity.certificates.get(&key)?;
        if !has_lapsed(known.not_after(), now) {
            return None;
        }
        let certificate = self.sign(key, now);
        let known = &mut self.identities[at].certificates;
        known.insert(key, certificate.clone());
        Some(certificate)
    }

    /// Opens a session, and fences every one before it.
    pub(super) fn open(
        &mut self,
        at: usize,
        shown: &Certificate,
        hello: Hello,
        loss: Loss,
        now: Timestamp,
    ) -> Opened {
        let trusted = self.trusted.contains(&shown.authority);
        let identity = &mut self.identities[at];
        let (from, to) = shown.candidate.life;
        let good = match certificate::life(from, to, now) {
            certificate::Life::Good | certificate::Life::EndsSoon { .. } => true,
            certificate::Life::NotYet | certificate::Life::Ended => false,
        };
        if !trusted || !good || !identity.certificates.contains_key(&shown.key) {
            return Opened::Refused;
        }
        let facts = HelloFacts {
            epoch: hello.epoch,
            token_valid: true,
            agent_run_id: hello.run,
            key_generation: 1,
            highest_order: hello.highest_order,
            low_water: hello.low_water,
            confirmed_at_challenge: identity.row.confirmed,
            kept: false,
        };
        let admission = admit(&identity.row, &facts);
        let Admission::Accept {
            presented,
            issued,
            row,
        } = admission
        else {
            panic!("gateway {at} was not admitted: {admission:?}");
        };
        identity.row = row;
        match loss {
            Loss::Welcome => return Opened::Lost(None),
            Loss::Confirm => return Opened::Lost(Some(issued)),
            Loss::None => {}
        }
        let confirmation = confirm(&identity.row, presented, issued, hello.run);
        let Confirmation::Confirmed(row) = confirmation else {
            panic!("gateway {at} was not confirmed");
        };
        identity.row = row;
        identity.live = Some((issued, hello.run));
        // The certificates before it are accepted no more.
        identity.certificates.retain(|key, _| *key >= shown.key);
        Opened::Session(issued)
    }

    /// A session of a gateway ended.
    pub(super) fn lose(&mut self, at: usize, now: Timestamp) {
        let identity = &mut self.identities[at];
        identity.live = None;
        let open = identity.open.values().cloned();
        let changes: Vec<Change> = open.filter_map(|it| session::lose(it, now)).collect();
        self.write(at, changes);
    }

    /// How many gateways do not trust a key, as far as is known.
    pub(super) fn missing(&self, key: &SpkiPin) -> u64 {
        let from = self.pins.trusted_from(key);
        let misses = |it: &&Identity| from.is_none_or(|from| it.pins < from);
        let missing = self.identities.iter().filter(misses).count();
        u64::try_from(missing).unwrap_or(u64::MAX)
    }

    fn write(&mut self, at: usize, changes: impl IntoIterator<Item = Change>) {
        let identity = &mut self.identities[at];
        for change in changes {
            let id = change.command.command_id;
            let found = identity.open.iter().find(|(_, it)| it.command_id == id);
            let Some((order, before)) = found else {
                panic!("{id} was final when it was changed");
            };
            let order = *order;
            assert_eq!(before.state, change.from, "{id}");
            if change.ends() {
                let answers = self.answers.entry(id).or_default();
                answers.push(change.command.state);
                identity.open.remove(&order);
            } else {
                identity.open.insert(order, change.command);
            }
        }
        let row = &mut identity.row;
        let lowest = identity.open.keys().next().copied();
        row.low_water = low_water(row.low_water, lowest, row.next_order);
    }

    /// Accepts a command for a gateway.
    pub(super) fn submit(&mut self, at: usize, id: CommandId, idempotent: bool, now: Timestamp) {
        let waiting = self
            .identities
            .iter()
            .map(|it| it.open.len())
            .sum::<usize>();
        let identity = &mut self.identities[at];
        let counters = Counters {
            name: "gw-1".parse().unwrap(),
            next_order: identity.row.next_order,
            open: u64::try_from(identity.open.len()).unwrap(),
        };
        let waiting = u64::try_from(waiting).unwrap();
        let find = |_agent| Some(&counters);
        let refused = judge([identity.agent], false, BOUNDS, find, waiting);
        assert_eq!(refused, Ok(BTreeSet::new()));
        let ids = (id, RunId::from_uuid(*id.as_uuid()), identity.agent);
        let deadline = now.saturating_add(DEADLINE);
        let command = Command::queued(ids, idempotent, now, (deadline, DAY));
        identity.open.insert(identity.row.next_order, command);
        identity.row.next_order += 1;
        self.answers.insert(id, Vec::new());
    }

    /// What a new session makes of the commands of those before it.
    pub(super) fn settle(&mut self, at: usize, unreported: &BTreeSet<CommandId>, now: Timestamp) {
        let identity = &self.identities[at];
        let Some((_, run)) = identity.live else {
            return;
        };
        let open = identity.open.values().cloned();
        let successor = session::Successor {
            run,
            unreported: unreported.clone(),
            by_decision: false,
        };
        let older = session::settle_older(Complete, open, &successor, now);
        self.write(at, older.changes);
    }

    /// Offers what waits to the live session of a gateway.
    pub(super) fn lease(&mut self, at: usize, now: Timestamp) -> Vec<Offer> {
        let identity = &self.identities[at];
        let Some((_, run)) = identity.live else {
            return Vec::new();
        };
        let window = lease::window(identity.row.low_water);
        let within = identity.open.range(..=window);
        let taken = within.filter_map(|(order, command)| {
            let change = lease::take(command.clone(), run, ATTEMPTS_MAX, now)?;
            Some((*order, change))
        });
        let taken: Vec<(u64, Change)> = taken.collect();
        let offers = taken.iter().filter(|(_, change)| !change.ends());
        let offers = offers.map(|(order, change)| Offer {
            id: change.command.command_id,
            order: *order,
            idempotent: change.command.idempotent,
            permitted: change.command.state == CommandState::Released,
        });
        let offers = offers.collect();
        self.write(at, taken.into_iter().map(|(_, change)| change));
        offers
    }

    fn held(&self, at: usize, id: CommandId) -> Option<Command> {
        let mut open = self.identities[at].open.values();
        open.find(|it| it.command_id == id).cloned()
    }

    /// Whether a command may start that its gateway has journalled.
    pub(super) fn accept(
        &mut self,
        at: usize,
        id: CommandId,
        accepted: Accepted,
        now: Timestamp,
    ) -> bool {
        let Some((_, run)) = self.identities[at].live else {
            return false;
        };
        let held = self.held(at, id);
        let (permit, change) = permit::accept(Complete, held, run, accepted, now);
        self.write(at, change);
        matches!(permit, Permit::Go(_))
    }

    /// A gateway has started a command.
    pub(super) fn start(&mut self, at: usize, id: CommandId, now: Timestamp) {
        let change = self.held(at, id).and_then(|it| end::start(it, now, now));
        self.write(at, change);
    }

    /// A gateway reports how a command ended; answered with its low-water mark.
    pub(super) fn report(&mut self, at: usize, id: CommandId, now: Timestamp) -> u64 {
        let agent = self.identities[at].agent;
        let (_, run) = self.identities[at].live.expect("it reports over a session");
        let mut outcome = Outcome::without_run(OutcomeState::Succeeded, "");
        outcome.exit_code = Some(0);
        // What is final is not among those that are open, and is known for sure.
        if let Some(held) = self.held(at, id) {
            match end::report(Some(held), (agent, id, run), &outcome, now) {
                Reported::Ends(change) => self.write(at, [*change]),
                other @ (Reported::Denies(..)
                | Reported::Late(..)
                | Reported::Repeated
                | Reported::Orphan(_)) => {
                    panic!("{id} was open, and its outcome came to {other:?}");
                }
            }
        }
        self.identities[at].row.low_water
    }
}
