//! A year of certificates that live for one hour, in seconds: fifty gateways, five of which are off at times for longer
//! than a certificate lives, while the server's key and the authority of the certificates are replaced twice each.
//!
//! When a gateway asks for a certificate, which one it shows, who is admitted, who gets one at the door, how the keys
//! of the server follow each other, and everything about commands is decided by the product's own rules. Modelled is
//! what they stand on: time, the network, which loses answers, and what both ends keep. A certificate is what matters
//! of one: its key, its life, and who signed it. Gateways know the server by its pins alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;
use viworks_common::command::CommandState;
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::ledger::permit::Accepted;
use viworks_common::pin::rotation::RotationRefusal;
use viworks_common::renewal::{AtDoor, Plan, RefusedOnes, has_lapsed, pause_at_door, trial};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_testkit::sim::random::Random;

use self::backend::{Backend, Certificate, Loss, Offer, Opened, pin};
use self::gateway::{Gateway, Stage};

mod backend;
mod gateway;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

const GATEWAYS: usize = 50;
/// So many of them are off at times.
const AWAY: usize = 5;
const DAYS: u32 = 365;
/// Between two commands.
const EVERY: Duration = Duration::from_secs(600);
/// Answers that are lost in a row, at the most.
const LOST_MAX: u32 = 3;

/// Two thirds of a life, which begins in the past: nobody asks earlier after a certificate was issued.
const EARLIEST: Duration = Duration::from_secs(2_250);
/// With the thirtieth by which gateways spread, the pauses behind lost answers, and the trial.
const LATEST: Duration = Duration::from_secs(2_700);

const WALL_ORIGIN: Timestamp = Timestamp::from_unix_micros(1_795_000_000_000_000);

/// What an operator does.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Stage(u8),
    /// Again every hour until nobody would be cut off; then the one before is retired a day later.
    Promote(u8, u8),
    Retire(u8),
    /// Certificates of another authority are taken.
    Trust(u8),
    /// It signs from here on.
    Sign(u8),
    /// Certificates of that one are not taken any more.
    Withdraw(u8),
}

#[derive(Debug)]
enum Event {
    Power(usize, bool),
    /// In this turn of the gateway.
    Dial(usize, u64),
    AtDoor(usize, u64),
    /// In the session of this epoch.
    Ask(usize, u64),
    Issued(usize, u64, Certificate),
    /// The session is left for another one.
    Anew(usize, u64),
    Offered(usize, u64, Offer),
    Go(usize, u64, CommandId),
    Ran(usize, CommandId),
    /// The network loses the session, if there is one.
    Cut(usize),
    Submit,
    Operator(Deed),
}

/// What happened, to see that something did.
#[derive(Debug, Default)]
struct Counts {
    renewals: Vec<u32>,
    /// How long each gateway was on.
    on: Vec<Duration>,
    by_door: Vec<u32>,
    lost_answers: u32,
    cuts: u32,
    /// Promotions that would have cut somebody off.
    put_off: u32,
    promoted: u32,
    retired: u32,
    withdrawn: u32,
}

struct Year {
    now: Monotonic,
    random: Random,
    agenda: BTreeMap<(Monotonic, u64), Event>,
    serial: u64,
    backend: Backend,
    gateways: Vec<Gateway>,
    since: Vec<Monotonic>,
    started: BTreeMap<CommandId, u32>,
    keys: u64,
    counts: Counts,
}

impl Year {
    fn new(seed: u64) -> Self {
        let mut year = Self {
            now: Monotonic::ORIGIN,
            random: Random::new(seed),
            agenda: BTreeMap::new(),
            serial: 0,
            backend: Backend::new(GATEWAYS),
            gateways: Vec::new(),
            since: vec![Monotonic::ORIGIN; GATEWAYS],
            started: BTreeMap::new(),
            keys: 0,
            counts: Counts {
                renewals: vec![0; GATEWAYS],
                on: vec![Duration::ZERO; GATEWAYS],
                by_door: vec![0; GATEWAYS],
                ..Counts::default()
            },
        };
        for at in 0..GATEWAYS {
            let (key, now) = (year.key(), year.wall());
            let first = year.backend.issue(at, key, now);
            let plan = Plan::new(year.number());
            let run = year.run();
            year.gateways.push(Gateway::new(run, plan, first.unwrap()));
            year.after(SECOND, Event::Dial(at, 0));
            year.plan_cut(at);
        }
        year.plan_absences();
        year.plan_operator();
        year.after(EVERY, Event::Submit);
        year
    }

    /// The first and the last absence of all five are those in which keys and authorities are replaced.
    fn plan_absences(&mut self) {
        for at in 0..AWAY {
            for (day, days) in [(30_u32, 20_u32), (200, 20)] {
                let from = DAY * day + self.span(HOUR * 12);
                let to = DAY * (day + days) + self.span(DAY * 5);
                self.plan_absence(at, from, to);
            }
            for day in [80_u32, 110, 140, 260, 290, 320] {
                let from = DAY * day + self.span(DAY * 10);
                let to = from + HOUR * 2 + self.span(DAY * 3);
                self.plan_absence(at, from, to);
            }
        }
    }

    fn plan_absence(&mut self, at: usize, from: Duration, to: Duration) {
        self.after(from, Event::Power(at, false));
        self.after(to, Event::Power(at, true));
    }

    fn plan_operator(&mut self) {
        for (day, deed) in [
            (25_u32, Deed::Stage(3)),
            (35, Deed::Promote(3, 1)),
            (36, Deed::Trust(1)),
            (37, Deed::Sign(1)),
            (38, Deed::Withdraw(0)),
            // Staged while five are off: nobody is to be cut off, so that its promotion waits for them.
            (205, Deed::Stage(4)),
            (206, Deed::Promote(4, 3)),
            (207, Deed::Trust(2)),
            (208, Deed::Sign(2)),
            (209, Deed::Withdraw(1)),
        ] {
            self.after(DAY * day, Event::Operator(deed));
        }
    }

    fn after(&mut self, after: Duration, event: Event) {
        self.serial += 1;
        let at = self.now.saturating_add(after);
        self.agenda.insert((at, self.serial), event);
    }

    fn wall(&self) -> Timestamp {
        WALL_ORIGIN.saturating_add(self.now.as_duration())
    }

    fn number(&mut self) -> u64 {
        self.random.below(u64::MAX)
    }

    fn span(&mut self, longest: Duration) -> Duration {
        let longest = u64::try_from(longest.as_millis()).unwrap();
        self.random.millis(0, longest)
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.random.below(times) == 0
    }

    fn uuid(&mut self) -> Uuid {
        Uuid::from_u128((u128::from(self.number()) << 64) | u128::from(self.number()))
    }

    fn run(&mut self) -> AgentRunId {
        AgentRunId::from_uuid(self.uuid())
    }

    const fn key(&mut self) -> u64 {
        self.keys += 1;
        self.keys
    }

    fn plan_cut(&mut self, at: usize) {
        let within = HOUR + self.span(DAY * 6);
        self.after(within, Event::Cut(at));
    }

    fn play(&mut self) {
        let end = Monotonic::from_duration(DAY * DAYS);
        while let Some(((time, _serial), event)) = self.agenda.pop_first() {
            if time > end {
                break;
            }
            self.now = time;
            self.happen(event);
        }
        self.now = end;
        for at in 0..GATEWAYS {
            self.count_on(at);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Power(at, on) => self.power(at, on),
            Event::Dial(at, turn) if self.is_turn(at, turn) => self.dial(at),
            Event::AtDoor(at, turn) if self.is_turn(at, turn) => self.at_door(at),
            Event::Ask(at, epoch) if self.is_live(at, epoch) => self.ask(at, epoch),
            Event::Issued(at, epoch, certificate) if self.is_live(at, epoch) => {
                self.issued(at, epoch, certificate);
            }
            Event::Anew(at, epoch) if self.is_live(at, epoch) => {
                self.dial_anew(at, Duration::ZERO);
            }
            Event::Offered(at, epoch, offer) if self.is_live(at, epoch) => {
                self.offered(at, epoch, offer);
            }
            Event::Go(at, epoch, id) if self.is_live(at, epoch) => self.start(at, id),
            Event::Ran(at, id) => self.ran(at, id),
            Event::Cut(at) => self.cut(at),
            Event::Submit => self.submit(),
            Event::Operator(deed) => self.operate(deed),
            // Of a session, or of a start, that is over.
            Event::Dial(..)
            | Event::AtDoor(..)
            | Event::Ask(..)
            | Event::Issued(..)
            | Event::Anew(..)
            | Event::Offered(..)
            | Event::Go(..) => {}
        }
    }

    fn is_turn(&self, at: usize, turn: u64) -> bool {
        let gateway = &self.gateways[at];
        gateway.on && gateway.turn == turn
    }

    fn is_live(&self, at: usize, epoch: u64) -> bool {
        let session = self.gateways[at].session;
        session.is_some_and(|session| session.epoch == epoch)
    }

    /// The session ends, if there is one, and so does whatever was under way to another one.
    fn end_session(&mut self, at: usize) {
        let now = self.wall();
        let gateway = &mut self.gateways[at];
        gateway.turn += 1;
        if gateway.session.take().is_some() {
            self.backend.lose(at, now);
        }
    }

    fn dial_anew(&mut self, at: usize, pause: Duration) {
        self.end_session(at);
        let turn = self.gateways[at].turn;
        self.after(pause, Event::Dial(at, turn));
    }

    fn count_on(&mut self, at: usize) {
        if self.gateways[at].on {
            self.counts.on[at] += self.now.saturating_since(self.since[at]);
        }
    }

    fn power(&mut self, at: usize, on: bool) {
        if !on && !self.gateways[at].journal.is_empty() {
            // A stop waits for what runs, and tells of it.
            return self.after(MINUTE, Event::Power(at, false));
        }
        self.count_on(at);
        self.since[at] = self.now;
        self.end_session(at);
        self.gateways[at].on = on;
        if on {
            let (run, plan) = (self.run(), Plan::new(self.number()));
            let gateway = &mut self.gateways[at];
            (gateway.run, gateway.plan) = (run, plan);
            gateway.refused = RefusedOnes::default();
            gateway.vain = 0;
            let pause = self.span(MINUTE);
            self.dial_anew(at, pause);
        }
    }

    fn cut(&mut self, at: usize) {
        if self.gateways[at].session.is_some() {
            self.counts.cuts += 1;
            let pause = SECOND + self.span(MINUTE);
            self.dial_anew(at, pause);
        }
        self.plan_cut(at);
    }

    fn dial(&mut self, at: usize) {
        let (now, shown) = (self.wall(), self.gateways[at].shown());
        let live = self.backend.shown;
        let trusts = self.gateways[at].trusts(&live);
        assert!(trusts, "gateway {at} is cut off: it does not trust {live}");
        let loss = match self.random.below(40) {
            0 => Loss::Welcome,
            1 => Loss::Confirm,
            _ => Loss::None,
        };
        let hello = self.gateways[at].hello();
        match self.backend.open(at, &shown, hello, loss, now) {
            Opened::Session(epoch) => self.opened(at, epoch, &shown),
            Opened::Lost(durable) => {
                if let Some(epoch) = durable {
                    self.gateways[at].keep(epoch);
                }
                self.dial_anew(at, SECOND * 5);
            }
            Opened::Refused => self.refused(at, &shown),
        }
    }

    fn refused(&mut self, at: usize, shown: &Certificate) {
        let (now, random) = (self.now, self.number());
        let wall = self.wall();
        let gateway = &mut self.gateways[at];
        gateway.refused.note(shown.candidate.fingerprint);
        let mut others = gateway.held.iter();
        if others.any(|it| !gateway.refused.has(&it.candidate.fingerprint)) {
            let left = shown.not_after().saturating_since(wall);
            gateway.plan.gave_up(left, now, random);
            return self.dial_anew(at, SECOND);
        }
        assert!(
            has_lapsed(shown.not_after(), wall),
            "gateway {at} is cut off: its certificate is refused, and has not ended"
        );
        let turn = gateway.turn;
        self.after(Duration::ZERO, Event::AtDoor(at, turn));
    }

    fn at_door(&mut self, at: usize) {
        let random = self.number();
        let is_lost = self.once_in(4);
        let gateway = &mut self.gateways[at];
        let (shown, turn) = (gateway.shown(), gateway.turn);
        if is_lost {
            gateway.vain += 1;
            let pause = pause_at_door(AtDoor::Unheard, gateway.vain, random);
            return self.after(pause, Event::AtDoor(at, turn));
        }
        let (epoch, now) = (gateway.epoch(), self.wall());
        let Some(certificate) = self.backend.reissue(at, shown.key, epoch, now) else {
            panic!("gateway {at} is cut off: it gets no certificate at the door");
        };
        self.counts.by_door[at] += 1;
        let gateway = &mut self.gateways[at];
        gateway.held = vec![certificate];
        gateway.refused.keep(&[]);
        self.after(SECOND, Event::Dial(at, turn));
    }

    fn opened(&mut self, at: usize, epoch: u64, shown: &Certificate) {
        let (now, random) = (self.wall(), self.number());
        let live = self.backend.shown;
        let gateway = &mut self.gateways[at];
        gateway.keep(epoch);
        if gateway.confirmed(epoch, shown, &live, now, random) {
            self.counts.renewals[at] += 1;
        }
        self.tell_pins(at);
        let gateway = &self.gateways[at];
        let unreported = gateway.unreported();
        let journal = gateway.journal.iter().map(|(id, stage)| (*id, *stage));
        let journal: Vec<(CommandId, Stage)> = journal.collect();
        self.backend.settle(at, &unreported, now);
        for (id, stage) in journal {
            match stage {
                Stage::Journalled(idempotent) => self.accept(at, epoch, id, idempotent, true),
                Stage::Running => {}
                Stage::Done => self.report(at, id),
            }
        }
        self.lease(at, epoch);
        self.plan_ask(at, epoch);
    }

    fn tell_pins(&mut self, at: usize) {
        let (set, live) = (&self.backend.set, self.backend.shown);
        let confirmed = &mut self.backend.identities[at].pins;
        if *confirmed < set.version {
            *confirmed = self.gateways[at].take_pins(set.clone(), &live);
        }
    }

    fn plan_ask(&mut self, at: usize, epoch: u64) {
        let gateway = &self.gateways[at];
        // One that is there already is tried first.
        let Some(shown) = gateway.in_use().filter(|_| gateway.held.len() == 1) else {
            return;
        };
        let due = gateway.plan.due(shown.candidate.life);
        let wait = due.saturating_since(self.wall());
        let wait = wait.max(gateway.plan.pause(self.now).unwrap_or_default());
        self.after(wait, Event::Ask(at, epoch));
    }

    fn ask(&mut self, at: usize, epoch: u64) {
        let (now, wall, random) = (self.now, self.wall(), self.number());
        let is_lost = self.once_in(8);
        let next = self.key();
        let gateway = &mut self.gateways[at];
        if gateway.held.len() > 1 {
            return;
        }
        let Some(life) = gateway.in_use().map(|it| it.candidate.life) else {
            return;
        };
        assert!(gateway.plan.may_ask(life, wall, now));
        let left = life.1.saturating_since(wall);
        assert!(
            !left.is_zero(),
            "gateway {at} asks behind the end of its certificate"
        );
        gateway.plan.asked(left, now, random);
        let key = *gateway.asked_for.get_or_insert(next);
        let is_lost = is_lost && gateway.lost < LOST_MAX;
        gateway.lost = if is_lost { gateway.lost + 1 } else { 0 };
        assert!(self.backend.may_write(at, epoch));
        let issued = self.backend.issue(at, key, wall);
        if is_lost {
            self.counts.lost_answers += 1;
        } else if let Some(certificate) = issued {
            self.after(SECOND, Event::Issued(at, epoch, certificate));
        } else {
            // It is asked for with another key next.
            self.gateways[at].asked_for = None;
        }
        self.plan_ask(at, epoch);
    }

    fn issued(&mut self, at: usize, epoch: u64, certificate: Certificate) {
        let random = self.number();
        let not_after = certificate.not_after();
        let gateway = &mut self.gateways[at];
        gateway.asked_for = None;
        gateway.held.push(certificate);
        let is_quiet = gateway.journal.is_empty();
        let (from, latest) = trial(not_after, self.wall(), self.now, random);
        let when = if is_quiet { from } else { latest };
        let wait = when.saturating_since(self.now);
        self.after(wait, Event::Anew(at, epoch));
    }

    fn submit(&mut self) {
        let number = self.random.below(u64::try_from(GATEWAYS).unwrap());
        let at = usize::try_from(number).unwrap();
        let (id, idempotent) = (CommandId::from_uuid(self.uuid()), self.once_in(2));
        let now = self.wall();
        self.backend.submit(at, id, idempotent, now);
        if let Some(session) = self.gateways[at].session {
            self.lease(at, session.epoch);
        }
        // The last ones have a day.
        if self.now.as_duration() < DAY * (DAYS - 1) {
            self.after(EVERY, Event::Submit);
        }
    }

    fn lease(&mut self, at: usize, epoch: u64) {
        let now = self.wall();
        for offer in self.backend.lease(at, now) {
            let way = self.random.millis(1, 200);
            self.after(way, Event::Offered(at, epoch, offer));
        }
    }

    fn offered(&mut self, at: usize, epoch: u64, offer: Offer) {
        let Offer {
            id,
            order,
            idempotent,
            permitted,
        } = offer;
        if self.gateways[at].note(id, order, idempotent) {
            self.accept(at, epoch, id, idempotent, !permitted);
            if permitted {
                self.start(at, id);
            }
        }
    }

    fn accept(&mut self, at: usize, epoch: u64, id: CommandId, idempotent: bool, waits: bool) {
        let accepted = Accepted {
            idempotent,
            awaiting_permit: waits,
        };
        let now = self.wall();
        if self.backend.accept(at, id, accepted, now) {
            let way = self.random.millis(1, 200);
            self.after(way, Event::Go(at, epoch, id));
        }
    }

    fn start(&mut self, at: usize, id: CommandId) {
        let now = self.wall();
        let journal = &mut self.gateways[at].journal;
        if !matches!(journal.get(&id), Some(Stage::Journalled(_))) {
            return;
        }
        journal.insert(id, Stage::Running);
        *self.started.entry(id).or_default() += 1;
        self.backend.start(at, id, now);
        let runs = SECOND + self.span(MINUTE * 5);
        self.after(runs, Event::Ran(at, id));
    }

    fn ran(&mut self, at: usize, id: CommandId) {
        let gateway = &mut self.gateways[at];
        gateway.journal.insert(id, Stage::Done);
        if gateway.session.is_some() {
            self.report(at, id);
        }
    }

    fn report(&mut self, at: usize, id: CommandId) {
        let now = self.wall();
        let low_water = self.backend.report(at, id, now);
        // The acknowledgement is lost with its session, and the outcome told again in the next one.
        let is_lost = self.once_in(20);
        let gateway = &mut self.gateways[at];
        if let Some(session) = gateway.session.filter(|_| is_lost) {
            return self.after(SECOND, Event::Anew(at, session.epoch));
        }
        gateway.journal.remove(&id);
        gateway.low_water = gateway.low_water.max(low_water);
    }

    fn operate(&mut self, deed: Deed) {
        let (live, now) = (self.backend.shown, self.wall());
        let pins = &mut self.backend.pins;
        match deed {
            Deed::Stage(number) => {
                assert_eq!(pins.stage(pin(number), live, now), Ok(true));
                self.tell_all();
            }
            Deed::Promote(number, before) => self.promote(number, before),
            Deed::Retire(number) => {
                let shown = BTreeSet::from([live]);
                assert_eq!(pins.retire(&pin(number), &shown, now), Ok(true));
                self.counts.retired += 1;
                self.tell_all();
            }
            Deed::Trust(authority) => {
                self.backend.trusted.insert(authority);
            }
            Deed::Sign(authority) => self.backend.signs = authority,
            Deed::Withdraw(authority) => {
                self.backend.trusted.remove(&authority);
                self.counts.withdrawn += 1;
            }
        }
    }

    fn promote(&mut self, number: u8, before: u8) {
        let (key, now) = (pin(number), self.wall());
        let missing = self.backend.missing(&key);
        match self.backend.pins.promote(&key, missing, false, now) {
            Ok(_) => {
                self.backend.shown = key;
                self.counts.promoted += 1;
                self.after(DAY, Event::Operator(Deed::Retire(before)));
            }
            Err(RotationRefusal::CutOff) => {
                self.counts.put_off += 1;
                self.after(HOUR, Event::Operator(Deed::Promote(number, before)));
            }
            Err(other) => panic!("key {number} is not promoted: {other}"),
        }
    }

    fn tell_all(&mut self) {
        self.backend.set = self.backend.pins.set();
        for at in 0..GATEWAYS {
            if self.gateways[at].session.is_some() {
                self.tell_pins(at);
            }
        }
    }

    fn assert_nobody_is_cut_off(&self) {
        let now = self.wall();
        for (at, gateway) in self.gateways.iter().enumerate() {
            assert!(gateway.on, "gateway {at} is off");
            let shown = gateway.shown();
            assert!(shown.not_after() > now, "gateway {at}: {shown:?}");
            assert_eq!(shown.authority, 2, "gateway {at}");
            assert!(gateway.trusts(&pin(4)) && !gateway.trusts(&pin(1)));
            assert_eq!(self.backend.identities[at].pins, 5, "gateway {at}");
        }
    }

    fn assert_every_command_is_answered_once(&self) {
        let answers = &self.backend.answers;
        assert!(answers.len() > 50_000, "{}", answers.len());
        for (id, ended) in answers {
            assert_eq!(*ended, [CommandState::Succeeded], "{id}");
            assert_eq!(self.started.get(id), Some(&1), "{id}");
        }
    }

    fn assert_renewals_are_as_planned(&self) {
        for at in 0..GATEWAYS {
            let (renewals, on) = (self.counts.renewals[at], self.counts.on[at]);
            assert!(EARLIEST * renewals <= on, "gateway {at}: {renewals}");
            assert!(LATEST * (renewals + 20) >= on, "gateway {at}: {renewals}");
            let by_door = self.counts.by_door[at];
            let absences = if at < AWAY { 8 } else { 0 };
            assert_eq!(by_door, absences, "gateway {at}");
        }
    }
}

#[test]
fn in_a_year_of_certificates_of_an_hour_nobody_is_cut_off_and_every_command_is_answered_once() {
    let mut year = Year::new(13);
    year.play();
    year.assert_nobody_is_cut_off();
    year.assert_every_command_is_answered_once();
    year.assert_renewals_are_as_planned();
    let counts = &year.counts;
    let rotated = (counts.promoted, counts.retired, counts.withdrawn);
    assert_eq!(rotated, (2, 2, 2));
    assert!(counts.put_off > 300, "{counts:?}");
    assert!(counts.lost_answers > 10_000, "{counts:?}");
    assert!(counts.cuts > 1_000, "{counts:?}");
    assert_eq!(year.backend.trusted, BTreeSet::from([2]));
}
