//! A wall clock that is set while the backend runs, or between two of its processes: nothing is early, late or
//! overtaken.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;
use viworks_backend_agent::data::line::take_up;
use viworks_backend_agent::data::{Actor, NewCommand, NewRun, Page, QueueLimits, TelemetryQuery};
use viworks_common::catalogue::Risk;
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, AgentRunId, CommandId, RunId, Tenant};
use viworks_common::session::AgentEvent;
use viworks_common::telemetry::{Batch, FieldValue, Record, TimeSource};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::AgentMessage;
use viworks_runtime::clock::{Clock, SystemClock};

use crate::inbound::{Backend, Gateway};
use crate::pki;

const PATIENCE: Duration = Duration::from_secs(20);
const HOUR: i64 = 3_600;

/// The system's clocks, set by hand: time that passes moves both, and setting the wall clock moves one.
#[derive(Default)]
pub(crate) struct Stepped {
    passed_micros: AtomicU64,
    set_micros: AtomicI64,
}

impl Stepped {
    pub(crate) fn pass(&self, seconds: u64) {
        self.passed_micros
            .fetch_add(seconds * 1_000_000, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, seconds: i64) {
        self.set_micros
            .fetch_add(seconds * 1_000_000, Ordering::Relaxed);
    }
}

impl Clock for Stepped {
    fn now(&self) -> Monotonic {
        let passed = Duration::from_micros(self.passed_micros.load(Ordering::Relaxed));
        SystemClock.now().saturating_add(passed)
    }

    fn wall(&self) -> Timestamp {
        let passed = Duration::from_micros(self.passed_micros.load(Ordering::Relaxed));
        let wall = SystemClock.wall().saturating_add(passed).unix_micros();
        Timestamp::from_unix_micros(wall + self.set_micros.load(Ordering::Relaxed))
    }
}

/// Submits a command that may start within `seconds`, as `--expires` does.
async fn submit(
    backend: &Backend,
    clock: &Arc<Stepped>,
    (agent_id, number): (AgentId, u128),
    seconds: u64,
) -> CommandId {
    let line = take_up(&*backend.store, Arc::<Stepped>::clone(clock)).await;
    let now = line.unwrap().line();
    let command_id = CommandId::from_uuid(Uuid::from_u128(100 + number));
    let run = NewRun {
        run_id: RunId::from_uuid(Uuid::from_u128(200 + number)),
        name: "sys.uptime".parse().unwrap(),
        arguments: [].into(),
        targets: vec![NewCommand {
            agent_id,
            command_id,
            idempotent: false,
            risk: Risk::Read,
            timeout_ms: 60_000,
            remembered: None,
            place: None,
        }],
        skipped: Vec::new(),
        skip_full: false,
        deadline: now.saturating_add(Duration::from_secs(seconds)),
        timeout_ms: None,
        traceparent: None,
        reason: None,
        actor: Actor::system(),
        idempotency: None,
        retry_of: None,
        limits: QueueLimits {
            per_gateway: 10,
            global: 10,
            retry_after: Duration::from_secs(1),
        },
    };
    let tenant = Tenant::default_tenant();
    backend.store.submit_run(&tenant, run, now).await.unwrap();
    command_id
}

async fn state(backend: &Backend, command_id: CommandId) -> CommandState {
    let tenant = Tenant::default_tenant();
    let command = backend.store.command(&tenant, command_id).await;
    command.unwrap().unwrap().state
}

async fn until_expired(backend: &Backend, command_id: CommandId) {
    let expired = async {
        while state(backend, command_id).await != CommandState::Expired {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, expired).await.unwrap();
}

/// The next offer: which command, and how much of its time is left.
async fn offered(gateway: &mut Gateway) -> (CommandId, Duration) {
    loop {
        match gateway.event().await {
            Some(AgentEvent::Welcomed(_)) => gateway.session.confirm(SystemClock.now()),
            Some(AgentEvent::Command(command)) => {
                let left = Duration::from_millis(command.deadline.remaining_ms);
                return (command.command_id, left);
            }
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

#[tokio::test]
async fn a_command_does_not_outlive_its_deadline_when_the_clock_is_set_back() {
    let clock = Arc::new(Stepped::default());
    let backend = Backend::start_on(pki::initialised(), Arc::<Stepped>::clone(&clock)).await;
    let material = backend.join("gw-1").await;
    let late = submit(&backend, &clock, (material.identity.agent_id, 1), 20).await;
    clock.set(-90);
    clock.pass(25);
    until_expired(&backend, late).await;
    let fresh = submit(&backend, &clock, (material.identity.agent_id, 2), 20).await;
    let mut gateway = backend.dial(&material).await;
    gateway.hello(1, 0, &material.token).await;
    let (first, left) = offered(&mut gateway).await;
    assert_eq!(first, fresh, "what is past its deadline is not offered");
    assert!(left <= Duration::from_secs(20), "{left:?}");
    drop(backend.stop().await);
}

/// A permit counts from when the gateway sent the last frame that was heard: of one that was silent for long, a short
/// time would be over before it began.
#[tokio::test]
async fn a_short_deadline_is_whole_for_a_gateway_that_was_silent() {
    let clock = Arc::new(Stepped::default());
    let often = Duration::from_millis(50);
    let reading = Arc::<Stepped>::clone(&clock);
    let backend = Backend::start_changed(pki::initialised(), reading, |config| {
        config.jobs.offer = often;
    })
    .await;
    let material = backend.join("gw-1").await;
    let mut gateway = backend.dial(&material).await;
    gateway.open(1, 0, &material.token).await.unwrap();
    let mut as_of = Vec::new();
    for (order, silent) in [(1, 0), (2, 10)] {
        clock.pass(silent);
        let short = submit(&backend, &clock, (material.identity.agent_id, order), 4).await;
        let offered = loop {
            match gateway.event().await {
                Some(AgentEvent::Command(command)) => break command,
                Some(_) => {}
                None => panic!("the session ended"),
            }
        };
        assert_eq!(offered.command_id, short);
        as_of.push(offered.deadline.as_of);
    }
    // Nothing but its answer to the question whether it is there lies between the two.
    assert_eq!(as_of[1], as_of[0] + 1, "{as_of:?}");
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_command_is_not_given_up_when_the_clock_is_set_forward() {
    let clock = Arc::new(Stepped::default());
    let backend = Backend::start_on(pki::initialised(), Arc::<Stepped>::clone(&clock)).await;
    let material = backend.join("gw-1").await;
    let command = submit(&backend, &clock, (material.identity.agent_id, 1), 60).await;
    clock.set(HOUR);
    // The reconciler has looked at it since: another one that is past its deadline is gone.
    let other = submit(&backend, &clock, (material.identity.agent_id, 2), 0).await;
    until_expired(&backend, other).await;
    let mut gateway = backend.dial(&material).await;
    gateway.hello(1, 0, &material.token).await;
    let (offered, left) = offered(&mut gateway).await;
    assert_eq!(offered, command);
    assert!(
        left > Duration::from_secs(30) && left <= Duration::from_secs(60),
        "{left:?}"
    );
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_queued_command_is_not_overtaken_when_the_clock_is_set_back() {
    let clock = Arc::new(Stepped::default());
    let backend = Backend::start_on(pki::initialised(), Arc::<Stepped>::clone(&clock)).await;
    let material = backend.join("gw-1").await;
    let agent_id = material.identity.agent_id;
    let older = submit(&backend, &clock, (agent_id, 1), 600).await;
    clock.set(-HOUR);
    let newer = submit(&backend, &clock, (agent_id, 2), 600).await;
    let mut gateway = backend.dial(&material).await;
    gateway.hello(1, 0, &material.token).await;
    assert_eq!(offered(&mut gateway).await.0, older);
    assert_eq!(offered(&mut gateway).await.0, newer);
    drop(backend.stop().await);
}

#[tokio::test]
async fn elapsed_time_goes_on_through_a_restart_beside_a_clock_that_was_set() {
    let clock = Arc::new(Stepped::default());
    let backend = Backend::start_on(pki::initialised(), Arc::<Stepped>::clone(&clock)).await;
    let material = backend.join("gw-1").await;
    let agent_id = material.identity.agent_id;
    let late = submit(&backend, &clock, (agent_id, 1), 20).await;
    let in_time = submit(&backend, &clock, (agent_id, 2), 600).await;
    let folder = backend.stop().await;
    clock.set(-HOUR);
    clock.pass(25);
    let backend = Backend::start_on(folder, Arc::<Stepped>::clone(&clock)).await;
    until_expired(&backend, late).await;
    let folder = backend.stop().await;
    clock.set(2 * HOUR);
    clock.pass(25);
    let backend = Backend::start_on(folder, Arc::<Stepped>::clone(&clock)).await;
    let mut gateway = backend.dial(&material).await;
    gateway.hello(1, 0, &material.token).await;
    let (command, left) = offered(&mut gateway).await;
    assert_eq!(command, in_time);
    let elapsed = Duration::from_secs(600).saturating_sub(left);
    assert!((50..90).contains(&elapsed.as_secs()), "{elapsed:?}");
    drop(backend.stop().await);
}

#[tokio::test]
async fn the_audit_log_is_in_wall_time() {
    let clock = Arc::new(Stepped::default());
    let folder = pki::initialised();
    let backend = Backend::start_on(folder, Arc::<Stepped>::clone(&clock)).await;
    let folder = backend.stop().await;
    clock.set(-HOUR);
    // Its start stores what the wall clock says by now.
    let backend = Backend::start_on(folder, Arc::<Stepped>::clone(&clock)).await;
    let material = backend.join("gw-1").await;
    let line = take_up(&*backend.store, Arc::<Stepped>::clone(&clock)).await;
    let now = line.unwrap().line();
    let tenant = Tenant::default_tenant();
    submit(&backend, &clock, (material.identity.agent_id, 1), 600).await;
    let run = backend.store.list_runs(&tenant, Page::first(1)).await;
    let created_at = run.unwrap().items[0].created_at;
    assert!(created_at >= now, "a run is on the time line");
    let audit = backend.store.list_audit(&tenant, Page::first(1)).await;
    let at = audit.unwrap().items[0].at;
    let ahead = created_at.saturating_since(at);
    assert!((3_590..3_610).contains(&ahead.as_secs()), "{ahead:?}");
    drop(backend.stop().await);
}

#[tokio::test]
async fn telemetry_is_stored_on_the_line_and_what_a_gateway_says_is_held_against_the_wall_clock() {
    let clock = Arc::new(Stepped::default());
    let backend = Backend::start_on(pki::initialised(), Arc::<Stepped>::clone(&clock)).await;
    let material = backend.join("gw-1").await;
    let mut gateway = backend.dial(&material).await;
    gateway.open(1, 0, &material.token).await.unwrap();
    // The backend's clock had been two days behind, and the gateway's is right.
    clock.set(48 * HOUR);
    let said = clock.wall();
    let record = Record {
        stream: "host.cpu".parse().unwrap(),
        observed_at: said,
        fields: [("load".parse().unwrap(), FieldValue::Number(0.5))].into(),
    };
    let batch = Batch {
        spool_epoch: AgentRunId::from_uuid(Uuid::from_u128(1)),
        from_seq: 1,
        to_seq: 1,
        gaps: Vec::new(),
        records: vec![(1, record)],
    };
    let message = AgentMessage::Telemetry(batch.into());
    gateway.session.send(message, SystemClock.now()).unwrap();
    loop {
        match gateway.event().await {
            Some(AgentEvent::TelemetryAcknowledged(_)) => break,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
    let everything = TelemetryQuery {
        stream: None,
        from: Timestamp::from_unix_micros(i64::MIN),
        until: Timestamp::from_unix_micros(i64::MAX),
        newest_first: false,
    };
    let (tenant, agent_id) = (Tenant::default_tenant(), material.identity.agent_id);
    let found = backend
        .store
        .query_telemetry(&tenant, agent_id, &everything, Page::first(1))
        .await;
    let stored = found.unwrap().items.remove(0);
    assert_eq!(stored.time_source, TimeSource::Gateway);
    assert_eq!(stored.observed_at, said);
    let ahead = said.saturating_since(stored.stored_at).as_secs();
    assert!((47 * 3_600..49 * 3_600).contains(&ahead), "{ahead} s");
    drop(backend.stop().await);
}
