//! Several backends on one database: leases of it, and the end of those that are gone.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use viworks_backend_agent::data::postgres::{Error, Role, Target};
use viworks_backend_agent::data::{
    AcceptOutcome, Accepted, Actor, AdmitOutcome, AdmitRequest, CertificateRef, ConfirmOutcome,
    Hurry, InstanceLoad, KeyRotation, Letter, Mail, NewCertificate, Owner, ProbeAnswer, Retention,
    SessionTouch, Store, StoreError, TelemetryLimits, UpkeepStore as _,
};
use viworks_common::claims::{Probed, Verdict};
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, InstanceId};
use viworks_testkit::postgres::Database;
use viworks_testkit::process::eventually;

use super::bed::{Bed, LEASE, agent, at};
use super::postgres_only::{finish, open, two};
use super::{database, make};

const PATIENCE: Duration = Duration::from_secs(20);

/// The database of two backends, as somebody who can do anything with it.
pub(super) struct Hand {
    pub(super) database: Database,
}

impl Hand {
    pub(super) fn says(&self, statement: &str) -> String {
        self.database.ask(statement).unwrap()
    }

    /// Nobody's lease can be renewed or taken any more, as when the machine that would do it stands still.
    pub(super) fn stop_renewals(&self) {
        self.says(
            "CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.ended THEN RETURN NEW; END IF; RAISE EXCEPTION 'it stands still'; END $$; \
             CREATE TRIGGER stand_still BEFORE UPDATE ON instances FOR EACH ROW EXECUTE FUNCTION stand_still(); \
             CREATE FUNCTION stay_away() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it stands still'; END $$; \
             CREATE TRIGGER stay_away BEFORE INSERT ON instances FOR EACH ROW EXECUTE FUNCTION stay_away()",
        );
    }

    pub(super) fn go_on(&self) {
        self.says("DROP TRIGGER stand_still ON instances; DROP TRIGGER stay_away ON instances");
        self.says("DROP FUNCTION stand_still; DROP FUNCTION stay_away");
    }

    /// The lease of an instance ran out.
    pub(super) fn expire(&self, instance: InstanceId) {
        self.set(
            instance,
            "lease_until = clock_timestamp() - interval '1 second'",
        );
    }

    /// An instance has had its lease for long.
    pub(super) fn age(&self, instance: InstanceId) {
        self.set(instance, "since = since - interval '1 minute'");
    }

    /// Past whatever stops renewals.
    pub(super) fn set(&self, instance: InstanceId, what: &str) {
        self.says(&format!(
            "SET session_replication_role = replica; UPDATE instances SET {what} WHERE instance = '{instance}'"
        ));
    }
}

/// Two backends on one database.
pub(super) async fn two_backends(folder: &TempDir) -> Option<(Bed, Bed, Database)> {
    let (server, database) = database(folder)?;
    make(server, &database);
    let url = server.url(&database);
    let open =
        async || Bed::new(Arc::new(open(&url, Role::Backend).await.unwrap()) as Arc<dyn Store>);
    Some((open().await, open().await, server.database(&database)))
}

pub(super) fn instance(bed: &Bed) -> InstanceId {
    bed.store.instance().borrow().unwrap()
}

#[tokio::test]
async fn what_nobody_has_is_ended_at_the_next_start() {
    for many in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let Some((one, other)) = two(&folder).await else {
            return;
        };
        super::sessions::abandoned_sessions_are_ended(&one, many).await;
        finish(&folder, one, other).await;
    }
}

#[tokio::test]
async fn two_backends_have_a_database_and_a_move_keeps_off() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, hand)) = two_backends(&folder).await else {
        return;
    };
    assert_ne!(instance(&one), instance(&other));
    let load = InstanceLoad {
        sessions: 7,
        connections_max: 9,
        openings_per_second: 5,
        draining: true,
        retention: None,
    };
    other.store.note_load(load);
    let told = eventually("the other one is told of", PATIENCE, async || {
        let listed = one.store.list_instances().await.unwrap();
        let found = listed.iter().find(|it| it.id == instance(&other));
        (listed.len() == 2).then_some(())?;
        found.filter(|it| it.sessions == 7 && it.draining).cloned()
    });
    let told = told.await;
    assert!(told.lease > Duration::from_secs(10), "{told:?}");
    assert!(told.name.contains(&std::process::id().to_string()));
    // Known with the next renewal.
    one.store.note_load(InstanceLoad {
        draining: true,
        ..InstanceLoad::default()
    });
    let mut neighbours = one.store.neighbours();
    let neighbour = eventually("the neighbour is known", PATIENCE, async || {
        neighbours.borrow_and_update().first().copied()
    });
    let neighbour = neighbour.await;
    let retention = Some(Retention::of(&TelemetryLimits::default()));
    let load = InstanceLoad { retention, ..load };
    assert_eq!((neighbour.id, neighbour.load), (instance(&other), load));
    let url = hand.url();
    let moved = tokio::task::spawn_blocking(move || {
        let address = viworks_backend_agent::data::postgres::Address::parse(&url, None, None);
        Target::open(&address.unwrap()).unwrap_err()
    });
    let refused = moved.await.unwrap();
    assert!(
        matches!(&refused, Error::InUse(holder) if holder.contains("viworks-backend-agent")),
        "{refused:?}"
    );
    open(&hand.url(), Role::Beside).await.unwrap().close().await;
    other.store.close().await;
    assert_eq!(one.store.list_instances().await.unwrap().len(), 1);
    one.store.close().await;
    super::postgres_counts_are_right(&folder);
}

#[tokio::test]
async fn a_backend_without_a_lease_writes_nothing_until_it_has_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let hand = Hand { database };
    one.gateway(1).await;
    let own = instance(&one);
    hand.stop_renewals();
    hand.expire(own);
    let new = || super::gateways::new_gateway(2, "gw-2");
    let actor = Actor::local("test");
    let refused = one.store.create_gateway(&one.tenant, new(), &actor, at(0));
    let refused = refused.await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
    assert!(one.store.health().await.is_err());
    // What it reads is true all the same, and nobody has ended it: it goes on as it was.
    assert_eq!(one.gateway_now(1).await.name.to_string(), "gw-1");
    hand.go_on();
    let created = one.store.create_gateway(&one.tenant, new(), &actor, at(0));
    created.await.unwrap();
    assert_eq!(instance(&one), own);
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn the_sessions_of_a_backend_that_is_gone_are_ended_by_another_and_it_goes_on_as_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let hand = Hand { database };
    one.gateway(1).await;
    one.gateway(2).await;
    let session = one.session(1, 1).await;
    assert_eq!(session.confirmed.instance, Some(instance(&one)));
    let elsewhere = other.session(2, 2).await;
    let released = one.released(1, &session).await;
    let offered = one.command(1, false).await;
    one.lease(&session).await;
    assert_eq!(one.state(offered).await, CommandState::Dispatched);
    let lost = instance(&one);
    hand.stop_renewals();
    hand.expire(lost);
    let end = async || other.store.end_dead_instances(&other.tenant, at(40)).await;
    // Who has its own lease for a moment only knows too little.
    assert_eq!(end().await.unwrap().sessions, 0);
    hand.age(instance(&other));
    let ended = end().await.unwrap();
    assert_eq!((ended.sessions, ended.instances, ended.more), (1, 0, true));
    // It is told once, with how long it was silent.
    let [given_up] = ended.given_up.as_slice() else {
        panic!("{ended:?}");
    };
    assert_eq!((given_up.id, ended.left), (lost, 1));
    assert!(given_up.name.contains("process "), "{given_up:?}");
    assert!(given_up.unheard >= Duration::from_secs(20), "{given_up:?}");
    let again = end().await.unwrap();
    assert_eq!((again.sessions, again.given_up.len()), (0, 0));
    // Whoever lost that answer finds it once more, and then it is gone.
    assert_eq!(again.earlier.len(), 1, "{again:?}");
    assert_eq!(again.earlier[0].id, lost);
    assert_eq!((again.instances, again.left, again.more), (1, 0, false));
    assert!(end().await.unwrap().earlier.is_empty());
    let gateway = other.gateway_now(1).await;
    assert_eq!(gateway.session, None);
    assert!(
        other.gateway_now(2).await.session.is_some(),
        "{elsewhere:?}"
    );
    assert_eq!(other.state(offered).await, CommandState::Queued);
    assert_eq!(other.state(released).await, CommandState::Released);
    hand.go_on();
    // It is back: another instance, and what the session of the lost one does has no effect.
    let mut became = one.store.instance();
    let fenced = one
        .store
        .lease_commands(&one.tenant, &session.holder, LEASE, at(41))
        .await;
    assert!(matches!(fenced, Err(StoreError::Fenced)), "{fenced:?}");
    let accepted = Accepted {
        command_id: offered,
        idempotent: false,
        awaiting_permit: true,
    };
    let fenced = one
        .store
        .accept_command(&one.tenant, &session.holder, accepted, at(41))
        .await;
    assert!(matches!(fenced, Err(StoreError::Fenced)), "{fenced:?}");
    let touch = SessionTouch {
        agent_id: session.holder.agent_id,
        epoch: session.holder.epoch,
        figures: Default::default(),
    };
    one.store
        .touch_sessions(&one.tenant, vec![touch], at(50))
        .await
        .unwrap();
    assert_eq!(one.gateway_now(1).await.last_seen_at, Some(at(40)));
    assert_ne!(*became.borrow_and_update(), Some(lost));
    assert_eq!(one.store.list_instances().await.unwrap().len(), 2);
    // The same process of the gateway comes back, and its permit is said again.
    let again = one.session_with(1, 1, &[released]).await;
    assert_eq!(again.confirmed.released.len(), 1);
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn a_process_ends_what_the_one_before_it_with_its_folder_was() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let hand = Hand { database };
    one.gateway(1).await;
    one.session(1, 1).await;
    let earlier = instance(&one);
    // It was killed: nobody gives its lease back, and it has not run out.
    hand.stop_renewals();
    let ended = other
        .store
        .end_abandoned_sessions(&other.tenant, Some(earlier), at(9));
    assert_eq!(ended.await.unwrap(), 1);
    assert_eq!(other.gateway_now(1).await.session, None);
    hand.go_on();
    finish(&folder, one, other).await;
}

/// Case 3 of the ten, between two instances: whatever is released under an epoch is released before the next one is
/// confirmed.
#[tokio::test]
async fn nothing_is_released_under_an_epoch_that_another_instance_has_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, _)) = two_backends(&folder).await else {
        return;
    };
    one.gateway(1).await;
    let mut session = one.session(1, 1).await;
    let (mut first, mut fenced) = (0, 0);
    for round in 2..1_002_u64 {
        let (here, there) = if round % 2 == 0 {
            (&one, &other)
        } else {
            (&other, &one)
        };
        let command = one.command(1, false).await;
        here.lease(&session).await;
        let hello = one.hello(1, round, session.admitted.issued);
        let admitted = one.admitted(hello.clone()).await;
        let confirm = one.confirm_of(&hello, &admitted);
        let accepted = Accepted {
            command_id: command,
            idempotent: false,
            awaiting_permit: true,
        };
        let (permit, confirmed) = tokio::join!(
            here.store
                .accept_command(&one.tenant, &session.holder, accepted, at(20)),
            there
                .store
                .confirm_session(&one.tenant, confirm.clone(), at(20)),
        );
        assert!(
            matches!(confirmed, Ok(ConfirmOutcome::Confirmed(_))),
            "{confirmed:?}"
        );
        let now = one.command_now(command).await;
        match permit {
            // Committed before the confirmation, which settled it.
            Ok(AcceptOutcome::Go { .. }) => {
                first += 1;
                assert_eq!(now.state, CommandState::Indeterminate);
            }
            Err(StoreError::Fenced) => {
                fenced += 1;
                assert_eq!(now.state, CommandState::Queued);
            }
            other => panic!("{other:?}"),
        }
        let opened = there.open(one.hello(1, round, admitted.issued)).await;
        there
            .store
            .cancel_run(&one.tenant, now.run_id, &Actor::local("test"), at(30))
            .await
            .unwrap();
        session = opened;
    }
    assert!(
        first > 0 && fenced > 0,
        "each came first at times: {first} and {fenced}"
    );
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn jobs_of_two_instances_end_each_command_once() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, hand)) = two_backends(&folder).await else {
        return;
    };
    let numbers: Vec<u64> = (1..=6).collect();
    for n in &numbers {
        one.gateway(*n).await;
    }
    let (mut ended, mut submitted) = (0, 0);
    for round in 0..20 {
        let session = one.session(1, round + 1).await;
        one.submit(one.new_run(&numbers, false)).await;
        let released = one.released(1, &session).await;
        submitted += numbers.len() + 1;
        let late = at(1_000_000);
        let (a, b, c, d) = tokio::join!(
            one.store.expire_commands(&one.tenant, 500, late),
            other.store.expire_commands(&one.tenant, 500, late),
            one.store
                .end_overdue(&one.tenant, Duration::ZERO, 500, late),
            other
                .store
                .end_overdue(&one.tenant, Duration::ZERO, 500, late),
        );
        for settled in [a, b, c, d] {
            ended += settled
                .unwrap()
                .iter()
                .filter(|it| it.state.is_final())
                .count();
        }
        // What another one had locked has its turn another time.
        for bed in [&one, &other] {
            ended += bed
                .store
                .expire_commands(&one.tenant, 500, late)
                .await
                .unwrap()
                .len();
            let overdue = bed
                .store
                .end_overdue(&one.tenant, Duration::ZERO, 500, late)
                .await;
            ended += overdue.unwrap().len();
        }
        assert!(one.state(released).await.is_final());
        let purged = tokio::join!(
            one.store.purge(&one.tenant, 500, at(10)),
            other.store.purge(&one.tenant, 500, at(10)),
        );
        purged.0.unwrap();
        purged.1.unwrap();
    }
    assert_eq!(ended, submitted);
    let doubled = "SELECT object, count(*) FROM audit_log WHERE object LIKE 'command:%' GROUP BY object HAVING count(*) > 1";
    assert_eq!(hand.ask(doubled).unwrap(), "");
    let told = "SELECT count(*) FROM audit_log WHERE action = 'command.end'";
    assert_eq!(hand.ask(told).unwrap(), submitted.to_string());
    finish(&folder, one, other).await;
}

async fn taken(bed: &Bed, handled: &[u64]) -> Vec<Mail> {
    let taken = bed.store.take_inbox(&bed.tenant, handled, at(40)).await;
    taken.unwrap()
}

/// The only thing in the inbox of a backend; it is dealt with.
pub(super) async fn only(bed: &Bed) -> (AgentId, Letter) {
    let mail = taken(bed, &[]).await;
    let [one] = mail[..] else {
        panic!("{mail:?}");
    };
    assert_eq!(taken(bed, &[one.number]).await, []);
    (one.agent_id, one.letter.unwrap())
}

/// Remembers whom it told.
#[derive(Default)]
struct Told(Mutex<Vec<InstanceId>>);

impl Hurry for Told {
    fn hurry(&self, instance: InstanceId) {
        self.0.lock().unwrap().push(instance);
    }
}

#[tokio::test]
async fn each_backend_is_left_what_concerns_its_sessions_once() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, hand)) = two_backends(&folder).await else {
        return;
    };
    let told = Arc::new(Told::default());
    one.store.hurry_by(Arc::clone(&told) as Arc<dyn Hurry>);
    for n in 1..=3 {
        one.gateway(n).await;
    }
    let _here = one.session(1, 1).await;
    let there = one.gateway_now(2).await.confirmed;
    let there = other.open(one.hello(2, 2, there)).await;
    let actor = Actor::local("test");

    // Commands wait; more of them are no more to tell.
    one.submit(one.new_run(&[1, 2, 3], false)).await;
    one.submit(one.new_run(&[2], false)).await;
    assert_eq!(*told.0.lock().unwrap(), [instance(&other); 2]);
    assert_eq!(taken(&one, &[]).await, []);
    assert_eq!(only(&other).await, (agent(2), Letter::Look));

    // What only a later version knows keeps nothing else from being read.
    let later = format!(
        "INSERT INTO inbox (tenant, instance, agent_id, kind, about) VALUES ('default', '{}', '{}', 'later', '')",
        instance(&other),
        agent(2)
    );
    hand.ask(&later).unwrap();
    one.submit(one.new_run(&[2], false)).await;
    let mail = taken(&other, &[]).await;
    let letters: Vec<_> = mail.iter().map(|mail| mail.letter).collect();
    assert_eq!(letters, [None, Some(Letter::Look)]);
    let handled: Vec<_> = mail.iter().map(|mail| mail.number).collect();
    assert_eq!(taken(&other, &handled).await, []);

    // What is not dealt with comes again, and what is asked again meanwhile is not taken for dealt with.
    let run = one.submit(one.new_run(&[2], false)).await;
    let first = taken(&other, &[]).await;
    assert_eq!(taken(&other, &[]).await, first);
    one.submit(one.new_run(&[2], false)).await;
    let second = taken(&other, &[first[0].number]).await;
    assert_eq!((second.len(), second[0].letter), (1, Some(Letter::Look)));
    assert_ne!(second[0].number, first[0].number);
    assert_eq!(taken(&other, &[second[0].number]).await, []);

    let cancelled = one
        .store
        .cancel_run(&one.tenant, run.run_id, &actor, at(30));
    let cancelled = cancelled.await.unwrap().unwrap().cancelled[0].command_id;
    assert_eq!(only(&other).await, (agent(2), Letter::Cancel(cancelled)));

    // A copy of the gateway dials the first one, whose question and answer cross.
    let copy = one.hello(2, 9, there.admitted.issued);
    let newcomer = copy.session_id;
    let ask = || {
        one.store
            .ask_owner(&one.tenant, agent(2), there.holder.epoch, newcomer, at(31))
    };
    assert_eq!(ask().await.unwrap(), Owner::Asked);
    let (asks, epoch) = (instance(&one), there.holder.epoch);
    let probe = Letter::Probe {
        newcomer,
        asks,
        epoch,
    };
    assert_eq!(only(&other).await, (agent(2), probe));
    // One of those who asked is gone by now, which is no reason to leave the others without an answer.
    let (to, alive) = (asks, true);
    let answer = ProbeAnswer {
        agent_id: agent(2),
        to,
        newcomer,
        alive,
    };
    let gone = ProbeAnswer {
        to: InstanceId::from_uuid(uuid::Uuid::from_u128(77)),
        ..answer
    };
    let answered = other
        .store
        .answer_probes(&one.tenant, vec![gone, answer], at(32));
    answered.await.unwrap();
    assert_eq!(
        only(&one).await,
        (agent(2), Letter::Answer { newcomer, alive })
    );
    let verdict = one
        .store
        .settle_probed(&one.tenant, &copy, epoch, Probed::Alive, at(33));
    assert_eq!(verdict.await.unwrap(), Verdict::Fork);
    assert_eq!(only(&other).await, (agent(2), Letter::Drain));
    for _asked in 0..2 {
        let rotated = one.store.rotate_key(&one.tenant, agent(2), &actor, at(33));
        assert_eq!(rotated.await.unwrap(), Some(KeyRotation::Wanted(2)));
        let generation = 2;
        assert_eq!(only(&other).await, (agent(2), Letter::Rekey { generation }));
    }

    // The gateway comes back to the first one, and the certificate that it shows there is revoked by a tool.
    let hello = one.hello(2, 2, there.admitted.issued);
    let shown = hello.fingerprint;
    let moved = one.open(hello).await;
    assert_eq!(only(&other).await, (agent(2), Letter::Superseded { epoch }));
    assert_eq!(moved.confirmed.instance, Some(asks));
    let certificate = NewCertificate {
        fingerprint: shown,
        ..super::gateways::new_certificate(2, 9)
    };
    let registered = one
        .store
        .register_certificate(&one.tenant, certificate, &actor, at(34));
    registered.await.unwrap();
    let which = CertificateRef::Fingerprint(shown);
    let revoked =
        other
            .store
            .revoke_certificate(&one.tenant, agent(2), &which, "copied", &actor, at(34));
    revoked.await.unwrap();
    let epoch = moved.holder.epoch;
    let letter = Letter::CertificateRevoked { epoch };
    assert_eq!(only(&one).await, (agent(2), letter));

    // It comes with another one, and is revoked as a whole.
    let hello = AdmitRequest {
        fingerprint: [8; 32],
        ..one.hello(2, 2, epoch)
    };
    one.open(hello).await;
    let revoked = other
        .store
        .revoke_gateway(&one.tenant, agent(2), None, &actor, at(34));
    revoked.await.unwrap();
    assert_eq!(only(&one).await, (agent(2), Letter::Revoked));
    assert_eq!(taken(&other, &[]).await, []);
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn a_backend_without_a_lease_is_not_taken_for_gone_before_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let hand = Hand { database };
    one.gateway(1).await;
    let session = one.session(1, 1).await;
    let newcomer = one.hello(1, 2, 0).session_id;
    let ask = |epoch| {
        let (store, tenant) = (Arc::clone(&other.store), other.tenant.clone());
        async move {
            let asked = store.ask_owner(&tenant, agent(1), epoch, newcomer, at(40));
            asked.await.unwrap()
        }
    };
    let epoch = session.holder.epoch;
    assert_eq!(ask(epoch).await, Owner::Asked);
    assert_eq!(ask(epoch - 1).await, Owner::Gone, "that session is over");
    hand.stop_renewals();
    hand.expire(instance(&one));
    assert_eq!(ask(epoch).await, Owner::Unsure);
    hand.age(instance(&other));
    assert_eq!(ask(epoch).await, Owner::Gone);
    for forgotten in [0, 1] {
        let ended = other.store.end_dead_instances(&other.tenant, at(41)).await;
        assert_eq!(ended.unwrap().instances, forgotten);
    }
    assert_eq!(hand.says("SELECT count(*) FROM inbox"), "0");
    assert_eq!(ask(epoch).await, Owner::Gone);
    hand.go_on();
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn an_identity_is_kept_for_its_live_process_and_changes_hands_so_often_over_all_backends() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, _)) = two_backends(&folder).await else {
        return;
    };
    one.gateway(1).await;
    let original = one.session(1, 1).await;
    let issued = original.admitted.issued;
    let copy = other.hello(1, 9, issued);
    let settle = |bed: &Bed, hello: &AdmitRequest, probed, seconds| {
        let (store, tenant, hello) = (Arc::clone(&bed.store), bed.tenant.clone(), hello.clone());
        async move {
            // The session that there is; what it is about is what the gateway presents.
            let settled = store.settle_probed(&tenant, &hello, hello.epoch, probed, at(seconds));
            settled.await.unwrap()
        }
    };
    assert_eq!(
        settle(&other, &copy, Probed::Alive, 100).await,
        Verdict::Fork
    );
    // Nobody else moves its counters, whichever backend is dialled, nor silence on another connection.
    for bed in [&one, &other] {
        let hello = bed
            .store
            .admit(&bed.tenant, one.hello(1, 9, issued), at(101));
        let hello = hello.await.unwrap();
        assert!(matches!(hello, AdmitOutcome::Favoured(_)), "{hello:?}");
        let verdict = settle(bed, &copy, Probed::Silent, 102).await;
        assert!(matches!(verdict, Verdict::Favoured(_)), "{verdict:?}");
    }
    let back = other
        .store
        .admit(&one.tenant, one.hello(1, 1, issued), at(103));
    assert!(matches!(back.await.unwrap(), AdmitOutcome::Accepted(_)));
    let back = other.open(other.hello(1, 1, issued)).await;
    let epoch = back.admitted.issued;
    // What was said of the session before this one says nothing about it.
    let late = other
        .store
        .settle_probed(&one.tenant, &copy, issued, Probed::Silent, at(104));
    let late = late.await.unwrap();
    assert!(matches!(late, Verdict::Undecided(_)), "{late:?}");
    // It is back: the favour is over, and each minute has three take-overs at whatever backend.
    for (seconds, bed) in [(110, &one), (111, &other), (112, &one)] {
        let hello = bed.hello(1, 7, epoch);
        assert_eq!(
            settle(bed, &hello, Probed::Silent, seconds).await,
            Verdict::TakeOver
        );
    }
    let hello = one.hello(1, 7, epoch);
    for bed in [&one, &other] {
        let verdict = settle(bed, &hello, Probed::Silent, 113).await;
        assert!(matches!(verdict, Verdict::Exhausted(_)), "{verdict:?}");
        let verdict = settle(bed, &hello, Probed::Unreachable, 113).await;
        assert!(matches!(verdict, Verdict::Undecided(_)), "{verdict:?}");
    }
    assert_eq!(
        settle(&other, &hello, Probed::Silent, 171).await,
        Verdict::TakeOver
    );
    finish(&folder, one, other).await;
}
