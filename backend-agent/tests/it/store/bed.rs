//! What every test of the suite starts from: ids, times, gateways, sessions and runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;
use viworks_backend_agent::data::{
    Accepted, Actor, AdmitOutcome, AdmitRequest, Admitted, Command, ConfirmOutcome, ConfirmRequest,
    Confirmed, Gateway, GatewayRef, Holder, LeaseLimits, LeasedCommand, NewCommand, NewGateway,
    NewRun, Page, QueueLimits, Rejected, Run, Store, Submission,
};
use viworks_common::catalogue::Risk;
use viworks_common::code::RejectCode;
use viworks_common::command::{CommandState, Outcome, OutcomeState, RetainedOutput};
use viworks_common::id::{
    AgentId, AgentRunId, BootId, CommandId, InstallId, RunId, SessionId, Tenant,
};
use viworks_common::time::Timestamp;

/// A store and counters for ids that grow as a `UUIDv7` does.
pub(crate) struct Bed {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tenant: Tenant,
    next: AtomicU64,
}

/// Everything about one open session that the tests need again.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) holder: Holder,
    pub(crate) session_id: SessionId,
    pub(crate) admitted: Admitted,
    pub(crate) confirmed: Confirmed,
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_micros((1_800_000_000 + seconds) * 1_000_000)
}

pub(crate) fn agent(n: u64) -> AgentId {
    AgentId::from_uuid(Uuid::from_u128(
        (0x0190_0000_0000_7000_8000 << 48) | u128::from(n),
    ))
}

pub(crate) fn process(n: u64) -> AgentRunId {
    AgentRunId::from_uuid(Uuid::from_u128(0x5000 + u128::from(n)))
}

pub(crate) const LIMITS: QueueLimits = QueueLimits {
    per_gateway: 10_000,
    global: 100_000,
    retry_after: Duration::from_secs(5),
};

pub(crate) const LEASE: LeaseLimits = LeaseLimits {
    commands: 256,
    attempts_max: 5,
};

impl Bed {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            tenant: Tenant::default_tenant(),
            next: AtomicU64::new(1),
        }
    }

    fn uuid(&self) -> Uuid {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Uuid::from_u128((0x0191_0000_0000_7000_8000 << 48) | u128::from(n))
    }

    pub(crate) fn run_id(&self) -> RunId {
        RunId::from_uuid(self.uuid())
    }

    pub(crate) fn command_id(&self) -> CommandId {
        CommandId::from_uuid(self.uuid())
    }

    /// Creates gateway `n`, named `gw-n`.
    pub(crate) async fn gateway(&self, n: u64) -> AgentId {
        let new = NewGateway {
            agent_id: agent(n),
            name: format!("gw-{n}").parse().unwrap(),
            labels: BTreeMap::new(),
            key_generation: 1,
            pins: None,
            authorities: None,
            certificate: None,
        };
        self.store
            .create_gateway(&self.tenant, new, &Actor::local("test"), at(0))
            .await
            .unwrap();
        agent(n)
    }

    pub(crate) async fn gateway_now(&self, n: u64) -> Gateway {
        self.store
            .gateway(&self.tenant, &GatewayRef::Id(agent(n)))
            .await
            .unwrap()
            .unwrap()
    }

    /// A HELLO of gateway `n`'s process `run` that presents `epoch`.
    pub(crate) fn hello(&self, n: u64, run: u64, epoch: u64) -> AdmitRequest {
        AdmitRequest {
            agent_id: agent(n),
            session_id: SessionId::from_uuid(self.uuid()),
            install_id: InstallId::from_uuid(Uuid::from_u128(7)),
            boot_id: BootId::from_uuid(Uuid::from_u128(8)),
            agent_run_id: process(run),
            epoch,
            token_valid: true,
            key_generation: 1,
            highest_order: 0,
            low_water: 0,
            // Nothing overtook it.
            confirmed_at_challenge: u64::MAX,
            unreported: Vec::new(),
            telemetry: Vec::new(),
            catalogue_digest: "0".repeat(64),
            labels: BTreeMap::new(),
            agent_version: "1.2.3".to_owned(),
            pin_set_version: 1,
            peer_address: format!("192.0.2.{run}:4000"),
            fingerprint: [3; 32],
        }
    }

    pub(crate) async fn admit(&self, hello: AdmitRequest) -> AdmitOutcome {
        self.store.admit(&self.tenant, hello, at(1)).await.unwrap()
    }

    pub(crate) async fn admitted(&self, hello: AdmitRequest) -> Admitted {
        let outcome = self.admit(hello).await;
        let AdmitOutcome::Accepted(admitted) = outcome else {
            panic!("not admitted: {outcome:?}");
        };
        *admitted
    }

    pub(crate) fn confirm_of(&self, hello: &AdmitRequest, admitted: &Admitted) -> ConfirmRequest {
        ConfirmRequest {
            agent_id: hello.agent_id,
            session_id: hello.session_id,
            presented: admitted.presented,
            issued: admitted.issued,
            agent_run_id: hello.agent_run_id,
            unreported: hello.unreported.clone(),
            proves: None,
            signed_by: None,
        }
    }

    pub(crate) async fn confirm(&self, request: ConfirmRequest) -> ConfirmOutcome {
        self.store
            .confirm_session(&self.tenant, request, at(2))
            .await
            .unwrap()
    }

    pub(crate) async fn open(&self, hello: AdmitRequest) -> Session {
        let admitted = self.admitted(hello.clone()).await;
        let confirmed = match self.confirm(self.confirm_of(&hello, &admitted)).await {
            ConfirmOutcome::Confirmed(confirmed) => *confirmed,
            ConfirmOutcome::Superseded => panic!("superseded"),
        };
        let holder = Holder {
            agent_id: hello.agent_id,
            epoch: admitted.issued,
            agent_run_id: hello.agent_run_id,
        };
        Session {
            holder,
            session_id: hello.session_id,
            admitted,
            confirmed,
        }
    }

    /// A session of gateway `n` by process `run`, with whatever epoch the gateway has stored by now.
    pub(crate) async fn session(&self, n: u64, run: u64) -> Session {
        let epoch = self.gateway_now(n).await.confirmed;
        self.open(self.hello(n, run, epoch)).await
    }

    /// The same, by a process whose journal still holds `unreported`.
    pub(crate) async fn session_with(&self, n: u64, run: u64, unreported: &[CommandId]) -> Session {
        let epoch = self.gateway_now(n).await.confirmed;
        let mut hello = self.hello(n, run, epoch);
        hello.unreported = unreported.to_vec();
        self.open(hello).await
    }

    /// A run for some gateways, with an hour until its deadline.
    pub(crate) fn new_run(&self, gateways: &[u64], idempotent: bool) -> NewRun {
        NewRun {
            run_id: self.run_id(),
            name: "service.restart".parse().unwrap(),
            arguments: BTreeMap::from([("unit".parse().unwrap(), "ssh".to_owned())]),
            targets: gateways
                .iter()
                .map(|n| NewCommand {
                    agent_id: agent(*n),
                    command_id: self.command_id(),
                    idempotent,
                    risk: Risk::Change,
                    timeout_ms: 60_000,
                    remembered: None,
                    place: None,
                })
                .collect(),
            skipped: Vec::new(),
            skip_full: false,
            deadline: at(3_600),
            timeout_ms: None,
            traceparent: None,
            reason: None,
            actor: Actor::local("test").on_request("request-1"),
            idempotency: None,
            retry_of: None,
            limits: LIMITS,
        }
    }

    pub(crate) async fn submit(&self, new: NewRun) -> Run {
        let submission = self.store.submit_run(&self.tenant, new, at(10)).await;
        let Submission::Submitted { run, .. } = submission.unwrap() else {
            panic!("the run was answered from an earlier one");
        };
        run
    }

    /// One command for gateway `n`.
    pub(crate) async fn command(&self, n: u64, idempotent: bool) -> CommandId {
        let new = self.new_run(&[n], idempotent);
        let command_id = new.targets[0].command_id;
        self.submit(new).await;
        command_id
    }

    pub(crate) async fn command_now(&self, command_id: CommandId) -> Command {
        self.store
            .command(&self.tenant, command_id)
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn state(&self, command_id: CommandId) -> CommandState {
        self.command_now(command_id).await.state
    }

    pub(crate) async fn lease(&self, session: &Session) -> Vec<LeasedCommand> {
        let leased = self
            .store
            .lease_commands(&self.tenant, &session.holder, LEASE, at(20))
            .await;
        leased.unwrap().commands
    }

    /// A command for gateway `n` that is released to `session`'s process.
    pub(crate) async fn released(&self, n: u64, session: &Session) -> CommandId {
        let command_id = self.command(n, false).await;
        self.lease(session).await;
        self.accept(session, command_id, false).await;
        assert_eq!(self.state(command_id).await, CommandState::Released);
        command_id
    }

    pub(crate) async fn accept(
        &self,
        session: &Session,
        command_id: CommandId,
        idempotent: bool,
    ) -> viworks_backend_agent::data::AcceptOutcome {
        let accepted = Accepted {
            command_id,
            idempotent,
            awaiting_permit: true,
        };
        self.store
            .accept_command(&self.tenant, &session.holder, accepted, at(21))
            .await
            .unwrap()
    }

    pub(crate) async fn complete(
        &self,
        session: &Session,
        command_id: CommandId,
        state: OutcomeState,
    ) -> viworks_backend_agent::data::CompleteOutcome {
        self.store
            .complete_command(
                &self.tenant,
                &session.holder,
                command_id,
                outcome(state),
                at(30),
            )
            .await
            .unwrap()
    }

    /// The actions of the audit log, oldest first.
    pub(crate) async fn audited(&self) -> Vec<String> {
        let page = Page::first(1_000);
        let mut records = self
            .store
            .list_audit(&self.tenant, page)
            .await
            .unwrap()
            .items;
        records.reverse();
        records
            .into_iter()
            .map(|record| record.record.action)
            .collect()
    }
}

pub(crate) fn outcome(state: OutcomeState) -> Outcome {
    Outcome {
        state,
        exit_code: Some(0),
        signal: None,
        started_at: Some(at(25)),
        duration_ms: 12,
        stdout: RetainedOutput {
            head: b"out\0\xff".to_vec(),
            tail: b"put".to_vec(),
            cut_bytes: 9,
        },
        stderr: RetainedOutput::default(),
        reason: None,
        reject_code: None,
    }
}

/// What a gateway says of a command that it does not take.
pub(crate) fn rejected(command_id: CommandId, code: RejectCode) -> Rejected {
    Rejected {
        command_id,
        code,
        detail: "because".to_owned(),
        again_at: at(100),
    }
}
