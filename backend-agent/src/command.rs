//! Commands: submitted, watched, cancelled, and ended with their gateway.

pub mod absent;
pub mod bus;
pub mod dead_letters;
pub mod dispatch;
pub mod queue;
pub mod submit;
pub mod told;
pub(crate) mod unsure;

use std::collections::BTreeSet;
use std::sync::Arc;

use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, CommandId, RunId, Tenant};
use viworks_runtime::clock::Timeline;
use viworks_runtime::lifecycle::Lifecycle;

use crate::agent::shelf::Kept;
use crate::data::{
    Actor, Cancelled, CertificateRef, CertificateRevocation, ForkDecision, ForkResolution,
    GatewayRef, KeyRotation, QueueLimits, Revoked, Settled, Store, StoreError, StoreResult,
};
use crate::metrics::BackendMetrics;
use bus::RunBus;
use submit::Known;
use unsure::Unsure;

/// What submitting, cancelling and revoking ask of dispatch. All are hints: reconcilers find what a lost one was about.
pub trait CommandNudge: Send + Sync {
    /// Keeps room in the session of a gateway for a command that is about to be submitted, so that it can be offered
    /// there at once. By default there is none, and commands wait to be looked for.
    fn keep(&self, agent_id: &AgentId, with_timeout: bool) -> Option<Kept> {
        let _nobody = (agent_id, with_timeout);
        None
    }
    /// Commands wait for this gateway.
    fn nudge(&self, agent_id: &AgentId);
    /// This command waits for this gateway. By default no more than a nudge.
    fn offer(&self, agent_id: &AgentId, command_id: CommandId) {
        let _hint_is_enough = command_id;
        self.nudge(agent_id);
    }
    /// An operator asked for the end of a command that this gateway may have.
    fn cancel(&self, agent_id: &AgentId, command_id: CommandId);
    /// This gateway was revoked: its session here, if it has one, ends at once.
    fn revoked(&self, agent_id: &AgentId);
    /// This gateway's identity was given to another holder: its session here, if it has one up to this epoch, ends at
    /// once. By default there is none.
    fn given_away(&self, agent_id: &AgentId, epoch: u64) {
        let _nobody = (agent_id, epoch);
    }
    /// The certificate was revoked that this gateway's session of this epoch was opened with: if that is here, it ends
    /// at once.
    fn certificate_revoked(&self, agent_id: &AgentId, epoch: u64);
    /// This gateway is to get the agent key of a later generation. By default it does in its next session.
    fn rekey(&self, agent_id: &AgentId, generation: u32) {
        let _next_session = (agent_id, generation);
    }
}

/// The feature behind the operators' API. Clones share everything.
#[derive(Clone)]
pub struct Commands {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<Timeline>,
    bus: Arc<RunBus>,
    nudge: Arc<dyn CommandNudge>,
    metrics: BackendMetrics,
    known: Arc<Known>,
    unsure: Arc<Unsure>,
    limits: QueueLimits,
    lifecycle: Lifecycle,
}

/// What it is made of.
pub struct Parts {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Whose commands.
    pub tenant: Tenant,
    /// The time.
    pub clock: Arc<Timeline>,
    /// Who listens to commands.
    pub bus: Arc<RunBus>,
    /// The way to sessions.
    pub nudge: Arc<dyn CommandNudge>,
    /// What counts commands that end.
    pub metrics: BackendMetrics,
    /// The bounds that runs are held against.
    pub limits: QueueLimits,
    /// What submissions outlive their requests in.
    pub lifecycle: Lifecycle,
}

impl Commands {
    /// Wires it.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            store,
            tenant,
            clock,
            bus,
            nudge,
            metrics,
            limits,
            lifecycle,
        } = parts;
        Self {
            store,
            tenant,
            clock,
            bus,
            nudge,
            metrics,
            known: Arc::default(),
            unsure: Arc::default(),
            limits,
            lifecycle,
        }
    }

    /// Where changes of runs and live output can be followed.
    #[must_use]
    pub const fn bus(&self) -> &Arc<RunBus> {
        &self.bus
    }

    /// Cancels a run: what has no start permit never starts, the gateways of the rest are asked to end it. `None` when
    /// there is no such run.
    ///
    /// # Errors
    /// As the store's.
    pub async fn cancel(&self, run_id: RunId, actor: &Actor) -> StoreResult<Option<Cancelled>> {
        let now = self.clock.line();
        let cancelled = self
            .store
            .cancel_run(&self.tenant, run_id, actor, now)
            .await?;
        let Some(cancelled) = cancelled else {
            return Ok(None);
        };
        let last = cancelled.cancelled.len().saturating_sub(1);
        for (index, command) in cancelled.cancelled.iter().enumerate() {
            let settled = Settled {
                moved: true,
                command_id: command.command_id,
                agent_id: command.agent_id,
                run_id,
                state: CommandState::Cancelled,
                run_finished: index == last && cancelled.run.is_finished(),
                reason: None,
            };
            told::tell(&self.bus, &self.metrics, &settled, now);
        }
        // A gateway that has journalled an offer without a permit still keeps a place for it until it is told.
        for command in cancelled.cancelled.iter().chain(&cancelled.requested) {
            self.nudge.cancel(&command.agent_id, command.command_id);
        }
        Ok(Some(cancelled))
    }

    /// Revokes a gateway: its session ends, here at once and elsewhere by what the transaction leaves there, and its
    /// commands end with it. `None` when there is no such gateway.
    ///
    /// # Errors
    /// As the store's.
    pub async fn revoke_gateway(
        &self,
        agent_id: AgentId,
        reason: &str,
        actor: &Actor,
    ) -> StoreResult<Option<Revoked>> {
        // What may end with it: if the answer is lost, nothing else says so.
        let open = self.store.open_commands(&self.tenant, agent_id).await?;
        let now = self.clock.line();
        let revoked = self
            .store
            .revoke_gateway(&self.tenant, agent_id, Some(reason), actor, now)
            .await;
        if matches!(revoked, Err(StoreError::Unknown(_))) {
            self.unsure.lost(&self.bus, agent_id, open);
        }
        let Some(mut revoked) = revoked? else {
            return Ok(None);
        };
        // Also when it was revoked before: if the answer to that was lost, nobody has told the session here.
        self.nudge.revoked(&agent_id);
        let lost = self.unsure.take(agent_id);
        if revoked.already && !lost.is_empty() {
            let ended = self.ended_with(agent_id, &lost).await;
            revoked.ended = ended.inspect_err(|_away| self.unsure.keep(agent_id, lost))?;
        }
        for settled in &revoked.ended {
            told::tell(&self.bus, &self.metrics, settled, now);
        }
        Ok(Some(revoked))
    }

    /// Those of some commands that ended with the revocation of their gateway.
    async fn ended_with(
        &self,
        agent_id: AgentId,
        commands: &BTreeSet<CommandId>,
    ) -> StoreResult<Vec<Settled>> {
        let gateway = GatewayRef::Id(agent_id);
        let gateway = self.store.gateway(&self.tenant, &gateway).await?;
        let revoked_at = gateway.and_then(|gateway| gateway.revoked_at);
        let moments = revoked_at.into_iter().collect();
        unsure::ended_at(&*self.store, &self.tenant, commands, &moments).await
    }

    /// Decides between two holders of a gateway's identity; the session of the one that is not kept is cut, on
    /// whichever backend it is. `None` when there is no such gateway.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn resolve_fork(
        &self,
        agent_id: AgentId,
        decision: ForkDecision,
        actor: &Actor,
    ) -> StoreResult<Option<ForkResolution>> {
        let now = self.clock.line();
        let resolution = self
            .store
            .resolve_fork(&self.tenant, agent_id, decision, actor, now)
            .await?;
        if let Some(ForkResolution::Resolved(resolved)) = &resolution {
            // Also when it was decided before: if the answer to that was lost, nobody has told the session here.
            if let Some(epoch) = resolved.fenced {
                self.nudge.given_away(&agent_id, epoch);
            }
        }
        Ok(resolution)
    }

    /// Revokes one certificate of a gateway: a session that was opened with it ends, here at once and elsewhere by what
    /// the transaction leaves there. The gateway goes on with its others.
    ///
    /// # Errors
    /// As the store's.
    pub async fn revoke_certificate(
        &self,
        agent_id: AgentId,
        which: &CertificateRef,
        reason: &str,
        actor: &Actor,
    ) -> StoreResult<CertificateRevocation> {
        let now = self.clock.line();
        let revoked = self
            .store
            .revoke_certificate(&self.tenant, agent_id, which, reason, actor, now)
            .await?;
        if let CertificateRevocation::Revoked(revoked) = &revoked
            && let Some(epoch) = revoked.epoch
        {
            // Also when it was revoked before: if the answer to that was lost, nobody has told the session here.
            self.nudge.certificate_revoked(&agent_id, epoch);
        }
        Ok(revoked)
    }

    /// Has a gateway given a later agent key: here at once, elsewhere by what the transaction leaves there, and
    /// otherwise in its next session. `None` when there is no such gateway.
    ///
    /// # Errors
    /// As the store's.
    pub async fn rotate_key(
        &self,
        agent_id: AgentId,
        actor: &Actor,
    ) -> StoreResult<Option<KeyRotation>> {
        let now = self.clock.line();
        let (store, tenant) = (&self.store, &self.tenant);
        let rotated = store.rotate_key(tenant, agent_id, actor, now).await?;
        if let Some(KeyRotation::Wanted(generation)) = rotated {
            // Also when it was asked for before: if the answer to that was lost, nobody has told the session here.
            self.nudge.rekey(&agent_id, generation);
        }
        Ok(rotated)
    }
}
