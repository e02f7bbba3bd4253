//! Case 5 of the ten: a commit happens, its answer does not arrive, and the same is asked again. Every intent that
//! writes is here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use viworks_backend_agent::command::absent::Removal;
use viworks_backend_agent::command::bus::{BusLimits, RunBus};
use viworks_backend_agent::command::{CommandNudge, Commands, Parts};
use viworks_backend_agent::data::postgres::{Address, PostgresStore, Role};
use viworks_backend_agent::data::{
    Accepted, Actor, AuditOutcome, CertificateRef, CertificateRevocation, CompleteOutcome,
    ConfirmOutcome, ForkDecision, ForkResolution, HeartbeatFigures, Holder, KeyRotation,
    NewAuditRecord, NewCertificate, NewTicket, Owner, PinOutcome, ProbeAnswer, QueueLimits,
    RedeemOutcome, ReissueOutcome, Rejected, RenewalOutcome, SessionTouch, SiteClaim, StoreError,
    Submission, TelemetryWrite,
};
use viworks_backend_agent::metrics::BackendMetrics;
use viworks_common::claims::{Probed, Verdict};
use viworks_common::code::{CloseCode, RejectCode};
use viworks_common::command::{CommandState, OutcomeState};
use viworks_common::id::{AgentId, BootId, CommandId, InstanceId};
use viworks_common::time::Monotonic;
use viworks_common::timeline::shared::Point;
use viworks_common::timeline::{Anchor, Anchored};
use viworks_runtime::clock::{SystemClock, Timeline};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::metrics::Metrics;
use viworks_testkit::thief::Thief;

use super::bed::{Bed, LEASE, Session, agent, at, outcome, process};
use super::{database, enrolments, make, replacements};

/// What the store asks of the database in a transaction that commits.
const CONTRACT: &str = concat!(
    include_str!("../../../src/data/intents/contract/authorities.rs"),
    include_str!("../../../src/data/intents/contract/dispatch.rs"),
    include_str!("../../../src/data/intents/contract/enrolment.rs"),
    include_str!("../../../src/data/intents/contract/gateways.rs"),
    include_str!("../../../src/data/intents/contract/instances.rs"),
    include_str!("../../../src/data/intents/contract/pins.rs"),
    include_str!("../../../src/data/intents/contract/runs.rs"),
    include_str!("../../../src/data/intents/contract/sessions.rs"),
    include_str!("../../../src/data/intents/contract/telemetry.rs"),
    include_str!("../../../src/data/intents/contract/upkeep.rs"),
);

const NEIGHBOUR: &str = "01900000-0000-7000-8000-000000000001";

/// The names of the methods of the contract that write.
fn writing() -> BTreeSet<&'static str> {
    let methods = CONTRACT.split("    async fn ").skip(1);
    let calls = [
        "self.write(",
        "self.write_view(",
        "self.write_at_once(",
        "self.engine.write(",
    ];
    // A call may stand in several lines.
    let writes = |method: &&str| {
        let method: String = method.split_whitespace().collect();
        calls.iter().any(|call| method.contains(call))
    };
    let name = |method: &'static str| method.split('(').next().unwrap_or_default();
    methods.filter(writes).map(name).collect()
}

/// A store behind a thief, and which intents it has robbed.
struct Robbed {
    bed: Bed,
    thief: Thief,
    robbed: BTreeSet<&'static str>,
    /// Whose audit records are not as many as they should be.
    miscounted: Vec<String>,
}

impl Robbed {
    async fn start(port: u16, database: &str) -> Self {
        let thief = Thief::before(port).await.unwrap();
        let url = format!(
            "postgres://viworks@127.0.0.1:{}/{database}?sslmode=disable",
            thief.port()
        );
        let address = Address::parse(&url, None, None).unwrap().connections_max(4);
        let store = PostgresStore::open(address, Role::Beside, true).await;
        Self {
            bed: Bed::new(Arc::new(store.unwrap())),
            thief,
            robbed: BTreeSet::new(),
            miscounted: Vec::new(),
        }
    }
}

/// Loses the first answer of an intent and keeps the second. Of both there are so many audit records.
macro_rules! twice {
    ($own:ident, $intent:ident($($argument:expr),*), audited $audited:literal) => {{
        let (before, stolen) = ($own.bed.audited().await.len(), $own.thief.stolen());
        $own.thief.arm();
        let first = $own.bed.store.$intent($($argument),*).await;
        let name = stringify!($intent);
        assert!(matches!(first, Err(StoreError::Unknown(_))), "{name}: {first:?}");
        assert_eq!($own.thief.stolen(), stolen + 1, "{name}");
        $own.robbed.insert(name);
        let second = $own.bed.store.$intent($($argument),*).await.unwrap();
        let noted = $own.bed.audited().await.len() - before;
        if noted != $audited {
            let expected: usize = $audited;
            $own.miscounted.push(format!("{name}: {noted} instead of {expected}"));
        }
        second
    }};
}

#[tokio::test]
async fn an_intent_whose_answer_was_lost_is_safe_to_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    // Another backend, which has its lease as far as anybody knows.
    let neighbour = format!(
        "INSERT INTO instances (instance, name, lease_until, sessions, connections_max, openings_per_second, draining) \
         VALUES ('{NEIGHBOUR}', 'beside', clock_timestamp() + interval '1 hour', 0, 1, 1, false)"
    );
    server.psql(&database, &neighbour).unwrap();
    let mut own = Robbed::start(server.port(), &database).await;
    create(&mut own).await;
    enrol(&mut own).await;
    let session = connect(&mut own).await;
    command(&mut own, &session).await;
    reconcile(&mut own, &session).await;
    report(&mut own, &session).await;
    end(&mut own, &session).await;
    assert_eq!(own.miscounted, Vec::<String>::new());
    assert_eq!(own.robbed, writing(), "each intent that writes is here");
    own.bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

/// No session is here.
struct Nobody;

impl CommandNudge for Nobody {
    fn nudge(&self, _agent_id: &AgentId) {}
    fn cancel(&self, _agent_id: &AgentId, _command_id: CommandId) {}
    fn revoked(&self, _agent_id: &AgentId) {}
    fn certificate_revoked(&self, _agent_id: &AgentId, _epoch: u64) {}
}

#[tokio::test]
async fn what_ended_with_a_gateway_is_told_when_its_revocation_is_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let own = Robbed::start(server.port(), &database).await;
    own.bed.gateway(1).await;
    for _each in 0..2 {
        own.bed.command(1, false).await;
    }
    let metrics = Metrics::new("test", "0", at(0));
    let commands = Commands::new(Parts {
        store: Arc::clone(&own.bed.store),
        tenant: own.bed.tenant.clone(),
        clock: Arc::new(Timeline::unstored(Arc::new(SystemClock))),
        bus: Arc::new(RunBus::new(BusLimits::default(), 1)),
        nudge: Arc::new(Nobody),
        metrics: BackendMetrics::register(&metrics),
        limits: QueueLimits {
            per_gateway: 10,
            global: 10,
            retry_after: Duration::from_secs(1),
        },
        lifecycle: Lifecycle::new(),
    });
    let actor = Actor::local("test");
    own.thief.arm();
    let lost = commands.revoke_gateway(agent(1), "stolen", &actor).await;
    assert!(matches!(lost, Err(StoreError::Unknown(_))), "{lost:?}");
    for told in [2, 0] {
        let again = commands.revoke_gateway(agent(1), "stolen", &actor).await;
        let again = again.unwrap().unwrap();
        assert!(again.already);
        assert_eq!(again.ended.len(), told, "{again:?}");
        assert!(again.ended.iter().all(|ended| ended.run_finished));
    }
    let text = metrics.encode().unwrap();
    let line = "viworks_commands_final_total{state=\"cancelled\"} 2\n";
    assert!(text.contains(line), "{text}");
    own.bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

#[tokio::test]
async fn what_ended_with_an_absent_gateway_is_told_once_when_the_answer_to_that_was_lost() {
    // Long before any clock that this runs by.
    const LONG_AGO: i64 = -200_000_000;
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let own = Robbed::start(server.port(), &database).await;
    let ephemeral = NewTicket {
        ephemeral: Some(Duration::from_secs(600)),
        ..enrolments::new_ticket(1, 5)
    };
    enrolments::create_at(&own.bed, ephemeral, LONG_AGO).await;
    let enrolled = enrolments::enrol(&own.bed, 1, 1, LONG_AGO).await;
    assert_eq!(enrolled, RedeemOutcome::Enrolled);
    for _each in 0..2 {
        own.bed.command(1, false).await;
    }
    let metrics = Metrics::new("test", "0", at(0));
    let removal = Removal::new(
        Arc::clone(&own.bed.store),
        own.bed.tenant.clone(),
        Arc::new(Timeline::unstored(Arc::new(SystemClock))),
        Arc::new(RunBus::new(BusLimits::default(), 1)),
        BackendMetrics::register(&metrics),
    );
    let counted = |times: u32| {
        let text = metrics.encode().unwrap();
        let line = format!("viworks_commands_final_total{{state=\"cancelled\"}} {times}\n");
        (text.contains(&line), text)
    };
    own.thief.arm();
    let lost = removal.step(10).await;
    assert!(matches!(lost, Err(StoreError::Unknown(_))), "{lost:?}");
    assert!(!counted(2).0);
    assert_eq!(removal.step(10).await.unwrap(), [], "it was removed");
    assert_eq!(removal.tell_lost().await.unwrap(), [agent(1)]);
    let (told, text) = counted(2);
    assert!(told, "{text}");
    assert_eq!(removal.tell_lost().await.unwrap(), [], "once");
    assert!(counted(2).0);
    own.bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

async fn enrol(own: &mut Robbed) {
    let (tenant, actor) = (own.bed.tenant.clone(), Actor::local("test"));
    let (ticket, bounds) = (enrolments::new_ticket(1, 5), enrolments::BOUNDS);
    twice!(own, create_ticket(&tenant, ticket.clone(), bounds, &actor, at(0)), audited 1);
    let redemption = enrolments::redemption(1, 90);
    let again = twice!(own, redeem_ticket(&tenant, redemption.clone(), at(1)), audited 3);
    assert_eq!(again, RedeemOutcome::Enrolled);
    let place = replacements::ticket_for(2, 2);
    let made = own
        .bed
        .store
        .create_ticket(&tenant, place, bounds, &actor, at(0));
    made.await.unwrap();
    let newcomer = replacements::newcomer_for(2, 2, 92);
    let again = twice!(own, redeem_ticket(&tenant, newcomer.clone(), at(1)), audited 3);
    assert!(matches!(again, RedeemOutcome::Replaced(_)), "{again:?}");
    let refusal = enrolments::refusal(1, 91, "csr_key");
    // Whoever comes with a consumed challenge is refused for that, and that is told and counted: once more.
    let fresh = twice!(own, refuse_redemption(&tenant, refusal.clone(), at(2)), audited 2);
    assert!(!fresh, "its challenge is consumed");
    let id = enrolments::ticket_id(1);
    let ticket = own.bed.store.ticket(&tenant, id).await.unwrap().unwrap();
    assert_eq!((ticket.uses, ticket.refusals), (1, 2));
    // Each time that somebody asks for it is in the trail, as with a name.
    twice!(own, revoke_ticket(&tenant, id, &actor, at(3)), audited 2).unwrap();
}

async fn create(own: &mut Robbed) {
    let (tenant, actor) = (own.bed.tenant.clone(), Actor::local("test"));
    let own_key = twice!(own, claim_site(&[7; 32], SiteClaim::First), audited 0);
    assert!(own_key);
    twice!(own, make_days_ahead(&tenant, at(0)), audited 0);
    let new = super::gateways::new_gateway(1, "gw-1");
    twice!(own, create_gateway(&tenant, new.clone(), &actor, at(0)), audited 1);
    let name = "gw-one".parse().unwrap();
    twice!(own, rename_gateway(&tenant, agent(1), &name, &actor, at(0)), audited 2).unwrap();
    let new = super::gateways::new_gateway(2, "gw-2");
    let store = &own.bed.store;
    store
        .create_gateway(&tenant, new, &actor, at(0))
        .await
        .unwrap();
    let certificate = super::gateways::new_certificate(2, 7);
    twice!(own, register_certificate(&tenant, certificate.clone(), &actor, at(0)), audited 1);
    let key = super::records::new_key(1);
    twice!(own, create_api_key(&tenant, key.clone(), &actor, at(0)), audited 1);
    twice!(own, touch_api_key(&tenant, key.id, at(1)), audited 0);
    twice!(own, revoke_api_key(&tenant, key.id, &actor, at(2)), audited 2).unwrap();
    let (configured, system) = (super::pins::showing(1), Actor::system());
    let noted = twice!(own, note_pins(&tenant, configured.clone(), &system, at(2)), audited 0);
    assert!(!noted, "it was stored the first time");
    let (stage, pin) = (super::pins::stage(3), super::pins::pin(3));
    let staged = twice!(own, change_pins(&tenant, stage.clone(), &actor, at(2)), audited 1);
    assert_eq!(staged, PinOutcome::Before);
    twice!(own, show_pin(&tenant, pin, at(2)), audited 0);
    let given = super::authorities::bundle("1", &["a", "b"]);
    twice!(own, note_bundle(&tenant, given.clone(), at(2)), audited 0);
}

/// A session that is confirmed, and everything that it says about itself.
async fn connect(own: &mut Robbed) -> Session {
    let tenant = own.bed.tenant.clone();
    let hello = own.bed.hello(1, 1, 0);
    twice!(own, admit(&tenant, hello.clone(), at(1)), audited 0);
    let admitted = own.bed.admitted(hello.clone()).await;
    let confirm = own.bed.confirm_of(&hello, &admitted);
    let confirmed = twice!(own, confirm_session(&tenant, confirm.clone(), at(1)), audited 0);
    let ConfirmOutcome::Confirmed(confirmed) = confirmed else {
        panic!("a failover throws nobody out");
    };
    let epoch = admitted.issued;
    let figures = HeartbeatFigures::default();
    let touches = vec![SessionTouch {
        agent_id: agent(1),
        epoch,
        figures,
    }];
    twice!(own, touch_sessions(&tenant, touches.clone(), at(2)), audited 0);
    twice!(own, report_pins(&tenant, agent(1), epoch, 3), audited 0);
    let has = Some("1".repeat(64));
    twice!(own, report_bundle(&tenant, agent(1), epoch, has.clone(), at(2)), audited 0);
    twice!(own, note_keys(&tenant, agent(1), epoch, true, Some([7; 8])), audited 0);
    let actor = Actor::local("test");
    let rotated = twice!(own, rotate_key(&tenant, agent(1), &actor, at(2)), audited 1);
    assert_eq!(rotated, Some(KeyRotation::Wanted(2)));
    let renewal = super::renewals::renewal(epoch, 8);
    let renewed = twice!(own, renew_certificate(&tenant, renewal.clone(), at(2)), audited 1);
    assert_eq!(renewed, RenewalOutcome::Issued);
    let ended = NewCertificate {
        not_after: at(50),
        ..super::gateways::new_certificate(1, 9)
    };
    let actor = Actor::local("test");
    let registered = own
        .bed
        .store
        .register_certificate(&tenant, ended, &actor, at(2));
    registered.await.unwrap();
    let reissue = super::reissues::reissue(9, 95, epoch, 99);
    let reissued = twice!(own, reissue_certificate(&tenant, reissue.clone(), at(100)), audited 1);
    assert_eq!(reissued, ReissueOutcome::Issued);
    let refusal = super::reissues::refusal(Some(96), 1);
    let fresh = twice!(own, refuse_reissue(&tenant, refusal.clone(), at(100)), audited 2);
    assert!(!fresh, "its challenge is consumed");
    let entries = Vec::new();
    twice!(
        own,
        save_catalogue(&tenant, agent(1), epoch, "d", entries.clone(), at(2)),
        audited 0
    );
    let second = own.bed.hello(1, 2, 0);
    let asker = own.bed.hello(1, 2, 0).session_id;
    let owner = twice!(own, ask_owner(&tenant, agent(1), epoch, asker, at(2)), audited 0);
    assert_eq!(owner, Owner::Gone, "a tool has no session");
    let to: InstanceId = NEIGHBOUR.parse().unwrap();
    let answers = vec![ProbeAnswer {
        agent_id: agent(1),
        to,
        newcomer: asker,
        alive: true,
    }];
    twice!(own, answer_probes(&tenant, answers.clone(), at(2)), audited 0);
    assert!(twice!(own, take_inbox(&tenant, &[], at(2)), audited 0).is_empty());
    // What knocks twice is in the log twice, and one fork.
    let verdict = twice!(
        own,
        settle_probed(&tenant, &second, epoch, Probed::Alive, at(2)),
        audited 2
    );
    assert_eq!(verdict, Verdict::Fork);
    assert_eq!(
        own.bed
            .store
            .list_forks(&tenant, agent(1))
            .await
            .unwrap()
            .len(),
        1
    );
    let actor = Actor::local("test");
    let live = ForkDecision::Keep(process(1));
    let kept = twice!(own, resolve_fork(&tenant, agent(1), live, &actor, at(2)), audited 1);
    let Some(ForkResolution::Resolved(kept)) = kept else {
        panic!("{kept:?}");
    };
    assert!(kept.already && !kept.session_ended, "{kept:?}");
    let holder = Holder {
        agent_id: agent(1),
        epoch,
        agent_run_id: process(1),
    };
    Session {
        holder,
        session_id: hello.session_id,
        admitted,
        confirmed: *confirmed,
    }
}

/// A command from its submission to its result.
async fn command(own: &mut Robbed, session: &Session) {
    let (tenant, holder) = (own.bed.tenant.clone(), session.holder);
    let run = own.bed.new_run(&[1], false);
    let id = run.targets[0].command_id;
    let repeated = twice!(own, submit_run(&tenant, run.clone(), at(2)), audited 1);
    let Submission::Replayed(replayed) = repeated else {
        panic!("{repeated:?}");
    };
    assert_eq!(replayed.run_id, run.run_id);
    let leased = twice!(own, lease_commands(&tenant, &holder, LEASE, at(2)), audited 0);
    assert!(leased.commands.is_empty(), "offered once");
    let accepted = Accepted {
        command_id: id,
        idempotent: false,
        awaiting_permit: true,
    };
    twice!(own, accept_command(&tenant, &holder, accepted, at(3)), audited 0);
    assert_eq!(own.bed.state(id).await, CommandState::Released);
    twice!(own, start_command(&tenant, &holder, id, at(3), at(3)), audited 0);
    let done = outcome(OutcomeState::Succeeded);
    let done = twice!(
        own,
        complete_command(&tenant, &holder, id, done.clone(), at(3)),
        audited 1
    );
    assert!(matches!(done, CompleteOutcome::Repeated { .. }), "{done:?}");
    let refused = own.bed.command(1, false).await;
    own.bed.lease(session).await;
    let rejected = Rejected {
        command_id: refused,
        code: RejectCode::NotAllowed,
        detail: "not in the catalogue".to_owned(),
        again_at: at(9),
    };
    let again = twice!(own, reject_command(&tenant, &holder, rejected.clone(), at(4)), audited 1);
    assert!(again.is_some_and(|settled| !settled.moved));
    assert_eq!(own.bed.state(refused).await, CommandState::Rejected);
    let cancelled = own.bed.command(1, false).await;
    let of = own.bed.command_now(cancelled).await.run_id;
    let actor = Actor::local("test");
    // Asked for twice, and ended once.
    twice!(own, cancel_run(&tenant, of, &actor, at(5)), audited 3).unwrap();
    assert_eq!(own.bed.state(cancelled).await, CommandState::Cancelled);
}

/// What ends by itself ends once, and is announced by nobody when the answer is lost.
async fn reconcile(own: &mut Robbed, session: &Session) {
    let tenant = own.bed.tenant.clone();
    let late = own.bed.command(1, false).await;
    let expired = twice!(own, expire_commands(&tenant, 10, at(4_000)), audited 1);
    assert!(expired.is_empty(), "it ended before");
    assert_eq!(own.bed.state(late).await, CommandState::Expired);
    let lost = own.bed.released(1, session).await;
    let wait = Duration::ZERO;
    let overdue = twice!(own, end_overdue(&tenant, wait, 10, at(1_000_000)), audited 1);
    assert!(overdue.is_empty(), "it ended before");
    assert_eq!(own.bed.state(lost).await, CommandState::Indeterminate);
    let stored = own.bed.store.time_line().await.unwrap();
    let anchor = Anchor {
        at: Monotonic::ORIGIN,
        reads: at(0),
        wall_ahead: 0,
    };
    let anchored = Anchored {
        boot_id: BootId::from_uuid(uuid::Uuid::nil()),
        anchor,
    };
    let point = Point {
        number: stored.line.point.map_or(1, |point| point.number + 1),
        shows: at(0),
        reads: at(0),
    };
    // Then it looks once more, and finds its own.
    let first = twice!(own, anchor_time_line(&anchored, Some(&point)), audited 0);
    assert!(!first);
    let found = own.bed.store.time_line().await.unwrap();
    assert_eq!(found.line.point, Some(point));
    assert_eq!(found.line.anchored, Some(anchored));
}

async fn report(own: &mut Robbed, session: &Session) {
    let tenant = own.bed.tenant.clone();
    let write = TelemetryWrite {
        agent_id: agent(1),
        epoch: session.holder.epoch,
        skew_ms: None,
        batch: super::telemetry::batch(1, 3),
    };
    let writes: Arc<[_]> = Arc::from(vec![write]);
    twice!(own, commit_telemetry(&tenant, Arc::clone(&writes), at(4), at(4)), audited 0);
    let positions = own.bed.store.telemetry_positions(&tenant, agent(1)).await;
    assert_eq!(positions.unwrap()[0].seq, 3);
    let record = NewAuditRecord {
        actor: Actor::gateway(agent(1)),
        action: "gateway.test".to_owned(),
        object: Actor::gateway(agent(1)).to_string(),
        outcome: AuditOutcome::Refused,
        detail: json!({}),
    };
    // What is only noted is noted as often as it is said.
    twice!(own, append_audit(&tenant, record.clone(), at(5)), audited 2);
    twice!(own, note_gateway(&tenant, agent(1), record.clone(), at(5)), audited 2);
}

async fn end(own: &mut Robbed, session: &Session) {
    let (tenant, actor) = (own.bed.tenant.clone(), Actor::local("test"));
    let epoch = session.holder.epoch;
    let code = CloseCode::Internal;
    twice!(own, end_session(&tenant, agent(1), epoch, code, at(6)), audited 0);
    twice!(own, end_abandoned_sessions(&tenant, None, at(6)), audited 0);
    twice!(own, end_dead_instances(&tenant, at(6)), audited 0);
    let removed = twice!(own, remove_absent_gateways(&tenant, 10, at(7)), audited 0);
    assert!(removed.is_empty(), "none is ephemeral: {removed:?}");
    let which = CertificateRef::Fingerprint([8; 32]);
    let revoked = twice!(
        own,
        revoke_certificate(&tenant, agent(1), &which, "stolen", &actor, at(7)),
        audited 1
    );
    let CertificateRevocation::Revoked(revoked) = revoked else {
        panic!("{revoked:?}");
    };
    assert!(revoked.already);
    let revoked = twice!(own, revoke_gateway(&tenant, agent(1), None, &actor, at(7)), audited 1);
    assert!(revoked.unwrap().already);
    let unknown = own.bed.command_id();
    let none = twice!(own, discard_dead_letter(&tenant, unknown, &actor, at(8)), audited 0);
    assert_eq!(none, None);
    twice!(own, roll_up_telemetry(&tenant, at(0)), audited 0);
    twice!(own, purge_telemetry(&tenant, None, 100, at(100_000_000)), audited 0);
    twice!(own, purge(&tenant, 500, at(100_000_000)), audited 0);
    twice!(own, recount(&tenant, at(100_000_000)), audited 0);
}
