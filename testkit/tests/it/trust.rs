//! Machines that hold one identity, and an operator who decides about them: copies, forks that are resolved, machines
//! that are replaced, agent keys that are rotated, a gateway that is revoked, in any order that a seed draws. The
//! product's own decisions play; three of them are taken away in turn, and that must be noticed.

use uuid::Uuid;
use viworks_common::admission::{
    Admission, Confirmation, HelloFacts, IdentityRow, admit, confirm, give, revoke,
};
use viworks_common::fork::{Apart, Holder, Kept};
use viworks_common::id::{AgentRunId, BootId, InstallId};
use viworks_common::ledger::session::may_write;
use viworks_common::rotation::{self, Candidate, RefusedKeys};
use viworks_common::rules::Complete;
use viworks_testkit::sim::random::Random;

/// Worlds, and what happens in each.
const SEEDS: u64 = 2_000;
const STEPS: u32 = 60;
const MACHINES_MAX: usize = 8;

/// The decision that is not taken as the product takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// To keep one holder leaves the other one where it is.
    LeavingBehind,
    /// Holders are told apart by their installation alone.
    TellingApart,
    /// Another machine gets the next key, which the one before may have.
    AnotherKey,
}

#[derive(Debug, Clone)]
struct Machine {
    holder: Holder,
    epoch: u64,
    keys: Vec<u8>,
    /// Whether it is what an operator wants in the identity.
    entitled: bool,
    /// Whether another one took its place by a ticket.
    replaced: bool,
    /// The epoch of its last session.
    session: Option<u64>,
}

struct World {
    random: Random,
    without: Without,
    row: IdentityRow,
    wanted: Option<u32>,
    kept: Option<Kept>,
    machines: Vec<Machine>,
    drawn: u128,
}

impl World {
    fn new(seed: u64, without: Without) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            without,
            row: IdentityRow::fresh(1),
            wanted: None,
            kept: None,
            machines: Vec::new(),
            drawn: 0,
        };
        let install = InstallId::from_uuid(world.uuid());
        world.add(install, 0, vec![1], true);
        world
    }

    const fn uuid(&mut self) -> Uuid {
        self.drawn += 1;
        Uuid::from_u128(self.drawn)
    }

    fn add(&mut self, install_id: InstallId, epoch: u64, keys: Vec<u8>, entitled: bool) {
        let holder = Holder {
            install_id,
            boot_id: BootId::from_uuid(self.uuid()),
            agent_run_id: AgentRunId::from_uuid(self.uuid()),
        };
        self.machines.push(Machine {
            holder,
            epoch,
            keys,
            entitled,
            replaced: false,
            session: None,
        });
    }

    fn some(&mut self) -> usize {
        let count = u64::try_from(self.machines.len()).unwrap();
        usize::try_from(self.random.below(count)).unwrap()
    }

    /// What went wrong, if something did.
    fn play(&mut self) -> Option<String> {
        for _ in 0..STEPS {
            let at = self.some();
            match self.random.below(20) {
                0 | 1 if self.machines.len() < MACHINES_MAX => self.copy(at),
                2 | 3 => self.keep(at),
                4 if self.machines.len() < MACHINES_MAX => self.replace(),
                5 | 6 => {
                    let next = rotation::next(self.row.key_generation, self.wanted);
                    self.wanted = next.or(self.wanted);
                }
                7 if self.random.below(8) == 0 => {
                    self.row = revoke(&self.row);
                    self.entitle(None);
                }
                _ => self.connect(at),
            }
            let wrong = self.look();
            if wrong.is_some() {
                return wrong;
            }
        }
        None
    }

    /// Somebody starts another machine from a copy of this one.
    fn copy(&mut self, at: usize) {
        let Machine {
            holder,
            epoch,
            keys,
            entitled,
            replaced,
            session: _,
        } = self.machines[at].clone();
        self.add(holder.install_id, epoch, keys, entitled);
        if let Some(copy) = self.machines.last_mut() {
            copy.replaced = replaced;
        }
    }

    /// From here on this one alone is wanted, or nobody is.
    fn entitle(&mut self, wanted: Option<usize>) {
        for (at, machine) in self.machines.iter_mut().enumerate() {
            machine.entitled = wanted == Some(at);
        }
    }

    /// An operator gives the identity to one of those that may have it, which comes at once.
    fn keep(&mut self, at: usize) {
        let wanted = self.machines[at].clone();
        if self.row.revoked || !wanted.entitled {
            return;
        }
        let others = self.machines.iter().map(|it| it.holder);
        let mut others = others.filter(|it| *it != wanted.holder);
        let other = others.next();
        let apart = if self.without == Without::TellingApart {
            Apart::Install
        } else {
            Apart::between(&wanted.holder, other.as_ref(), others)
        };
        if self.without != Without::LeavingBehind {
            self.row = give(&self.row);
        }
        self.kept = Some(Kept {
            epoch: self.row.confirmed,
            holder: wanted.holder,
            apart,
        });
        self.entitle(Some(at));
    }

    /// Another machine takes the place of all that there are, as redeeming a ticket for that does.
    fn replace(&mut self) {
        let (accepted, asked_for) = (self.row.key_generation, self.wanted);
        let generation = if self.without == Without::AnotherKey {
            rotation::next(accepted, asked_for)
        } else {
            rotation::above(accepted, asked_for)
        };
        let Some(generation) = generation else { return };
        self.row = IdentityRow {
            key_generation: generation,
            revoked: false,
            ..give(&self.row)
        };
        (self.wanted, self.kept) = (None, None);
        let install = InstallId::from_uuid(self.uuid());
        let key = u8::try_from(generation).unwrap();
        self.entitle(None);
        for machine in &mut self.machines {
            machine.replaced = true;
        }
        self.add(install, self.row.confirmed, vec![key], true);
    }

    /// A machine says HELLO with the latest key that it has, and is confirmed if it is let in; then it is given the key
    /// that was asked for.
    fn connect(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let candidate = |generation: &u8| Candidate {
            digest: [*generation; 32],
            generation: *generation,
        };
        let candidates: Vec<Candidate> = machine.keys.iter().map(candidate).collect();
        let place = rotation::choose(&candidates, &RefusedKeys::default());
        let shown = machine.keys[place.unwrap()];
        let (confirmed, kept) = (self.row.confirmed, self.kept);
        let run = machine.holder.agent_run_id;
        let facts = HelloFacts {
            epoch: machine.epoch,
            token_valid: true,
            agent_run_id: run,
            key_generation: u32::from(shown),
            highest_order: 0,
            low_water: 0,
            confirmed_at_challenge: confirmed,
            kept: kept.is_some_and(|kept| kept.lets_in(&machine.holder, confirmed)),
        };
        let Admission::Accept {
            presented,
            issued,
            row,
        } = admit(&self.row, &facts)
        else {
            return;
        };
        let Confirmation::Confirmed(row) = confirm(&row, presented, issued, run) else {
            return;
        };
        self.row = row;
        machine.epoch = issued;
        machine.session = Some(issued);
        let asked_for = rotation::pending(self.row.key_generation, self.wanted);
        if let Some(new) = asked_for.and_then(|new| u8::try_from(new).ok()) {
            machine.keys = rotation::kept(&machine.keys, shown, new);
        }
    }

    /// What should not be.
    fn look(&self) -> Option<String> {
        let (confirmed, revoked) = (self.row.confirmed, self.row.revoked);
        let lives = |it: &&Machine| {
            let may = |epoch| may_write(Complete, confirmed, revoked, epoch);
            it.session.is_some_and(may)
        };
        let live: Vec<&Machine> = self.machines.iter().filter(lives).collect();
        if live.len() > 1 {
            return Some(format!("two live holders: {live:?}"));
        }
        if let Some(other) = live.iter().find(|it| !it.entitled) {
            return Some(format!("somebody is in whom nobody wants: {other:?}"));
        }
        let is_accepted = |key: &u8| u32::from(*key) >= self.row.key_generation;
        let mut machines = self.machines.iter();
        let known = machines.find(|it| it.replaced && it.keys.iter().any(is_accepted));
        known.map(|known| format!("a machine that was replaced has a good key: {known:?}"))
    }

    /// Whom the operator wants is let in, however often that was decided anew.
    fn lets_in_who_is_wanted(&mut self) -> bool {
        let Some(at) = self.machines.iter().position(|it| it.entitled) else {
            return true;
        };
        let is_alone = self.machines.iter().filter(|it| it.entitled).count() == 1;
        self.connect(at);
        !is_alone || self.machines[at].session == Some(self.row.confirmed)
    }
}

fn first_violation(without: Without) -> Option<String> {
    (0..SEEDS).find_map(|seed| {
        let mut world = World::new(seed, without);
        let wrong = world.play();
        let wrong = wrong.or_else(|| {
            let is_let_in = world.lets_in_who_is_wanted();
            (!is_let_in).then(|| "who is wanted is not let in".to_owned())
        });
        wrong.map(|wrong| format!("seed {seed}: {wrong}"))
    })
}

#[test]
fn whatever_is_decided_about_an_identity_nobody_is_in_whom_the_operator_does_not_want() {
    assert_eq!(first_violation(Without::Nothing), None);
}

#[test]
fn a_decision_about_an_identity_that_is_missing_is_noticed() {
    for without in [
        Without::LeavingBehind,
        Without::TellingApart,
        Without::AnotherKey,
    ] {
        let wrong = first_violation(without);
        assert!(wrong.is_some(), "nothing goes wrong with {without:?}");
    }
}
