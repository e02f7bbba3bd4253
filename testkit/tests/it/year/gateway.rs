//! What a gateway has: certificates, pins, a journal, and the product's plan of when to ask for what.

use std::collections::{BTreeMap, BTreeSet};

use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_common::renewal::{Plan, RefusedOnes, choose};
use viworks_common::time::Timestamp;

use super::backend::{Certificate, Hello, first_pins};

/// How far a command has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It may not start yet; whether it may run twice.
    Journalled(bool),
    Running,
    /// Until its outcome is acknowledged.
    Done,
}

/// The session that is live.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    pub(super) epoch: u64,
    /// The key of the certificate that it showed.
    pub(super) key: u64,
}

#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) on: bool,
    /// What was meant for an earlier turn is void: each start, each stop and each lost session begins another one.
    pub(super) turn: u64,
    pub(super) run: AgentRunId,
    pub(super) session: Option<Session>,
    epoch: u64,
    pub(super) plan: Plan,
    pub(super) held: Vec<Certificate>,
    pub(super) refused: RefusedOnes,
    /// The key that a certificate was asked for, until there is one.
    pub(super) asked_for: Option<u64>,
    /// Answers that were lost in a row.
    pub(super) lost: u32,
    /// Requests at the door in a row that came to nothing.
    pub(super) vain: u32,
    pub(super) journal: BTreeMap<CommandId, Stage>,
    highest_order: u64,
    pub(super) low_water: u64,
    set: PinSet,
    previous: Option<PinSet>,
}

impl Gateway {
    pub(super) fn new(run: AgentRunId, plan: Plan, first: Certificate) -> Self {
        Self {
            on: true,
            turn: 0,
            run,
            session: None,
            epoch: 0,
            plan,
            held: vec![first],
            refused: RefusedOnes::default(),
            asked_for: None,
            lost: 0,
            vain: 0,
            journal: BTreeMap::new(),
            highest_order: 0,
            low_water: 0,
            set: first_pins(),
            previous: None,
        }
    }

    /// Whether a server with this key is spoken to.
    pub(super) fn trusts(&self, key: &SpkiPin) -> bool {
        let before = self.previous.as_ref();
        self.set.contains(key) || before.is_some_and(|set| set.contains(key))
    }

    /// Takes a set over that comes in a session with the key `live`; answers the version in force.
    pub(super) fn take_pins(&mut self, offered: PinSet, live: &SpkiPin) -> u64 {
        if self.set.accepts(&offered, live).is_ok() {
            let before = std::mem::replace(&mut self.set, offered);
            // One that never proved itself is not what a gateway falls back to.
            self.previous = self.previous.take().or(Some(before));
        }
        self.set.version
    }

    /// The certificate to show.
    pub(super) fn shown(&self) -> Certificate {
        let candidates: Vec<_> = self.held.iter().map(|it| it.candidate.clone()).collect();
        let place = choose(&candidates, &self.refused);
        self.held[place.expect("a gateway has a certificate")].clone()
    }

    pub(super) const fn hello(&self) -> Hello {
        Hello {
            epoch: self.epoch,
            run: self.run,
            highest_order: self.highest_order,
            low_water: self.low_water,
        }
    }

    /// Makes an epoch durable.
    pub(super) const fn keep(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// The last epoch that is durable.
    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A session is confirmed with a certificate, and with a server that shows the key `live`: those before it have
    /// served. True when the certificate was not in a session before.
    pub(super) fn confirmed(
        &mut self,
        epoch: u64,
        shown: &Certificate,
        live: &SpkiPin,
        wall: Timestamp,
        random: u64,
    ) -> bool {
        self.session = Some(Session {
            epoch,
            key: shown.key,
        });
        self.refused.forget(&shown.candidate.fingerprint);
        self.vain = 0;
        self.plan.begin();
        if self.set.contains(live) {
            self.previous = None;
        }
        let is_new = self.held.len() > 1;
        if is_new {
            self.held.retain(|it| it.key == shown.key);
            self.plan.proved(shown.candidate.life, wall, random);
        }
        is_new
    }

    /// The certificate of the live session.
    pub(super) fn in_use(&self) -> Option<&Certificate> {
        let key = self.session?.key;
        self.held.iter().find(|it| it.key == key)
    }

    /// What it has to tell of.
    pub(super) fn unreported(&self) -> BTreeSet<CommandId> {
        self.journal.keys().copied().collect()
    }

    /// Writes down what it was offered; false when it is known.
    pub(super) fn note(&mut self, id: CommandId, order: u64, idempotent: bool) -> bool {
        self.highest_order = self.highest_order.max(order);
        let is_new = !self.journal.contains_key(&id);
        if is_new {
            self.journal.insert(id, Stage::Journalled(idempotent));
        }
        is_new
    }
}
