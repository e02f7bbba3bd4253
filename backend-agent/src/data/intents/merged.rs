//! The intents that carry the load, with few journeys to a server: the changes go in one statement, which commits by
//! itself and does nothing where a row is not what the decision was made from, or the lease of the backend does not
//! hold. It is one statement for however many of the same kind wait at the same moment, each about a gateway of its
//! own. The facts are what this backend found and wrote last of the same rows, because what was decided from them
//! counts for these versions of the rows alone; where nothing is remembered, and for sessions that open, a question for
//! them comes before. Which certificates gateways present is only asked. For whatever is not the common case the intent
//! goes its usual way, in a transaction.

/// Which version of a row one has seen: the transaction that wrote it.
macro_rules! version {
    ($row:literal) => {
        concat!("CAST(CAST(", $row, ".xmin AS text) AS bigint)")
    };
}

/// Which version a row has that this statement writes.
macro_rules! written_version {
    () => {
        "CAST(CAST(CAST(pg_current_xact_id() AS xid) AS text) AS bigint)"
    };
}

/// Whether the backend has its lease; a tool needs none.
macro_rules! leased {
    () => {
        "(CAST(:instance AS text) IS NULL OR EXISTS (SELECT 1 FROM instances AS i WHERE i.instance = :instance \
          AND i.lease_until > clock_timestamp() AND NOT i.ended))"
    };
}

/// Appends to the audit log for each row of `$from`.
macro_rules! noted {
    ($from:literal) => {
        concat!(
            "noted AS (INSERT INTO audit_log (tenant, at, actor_kind, actor_id, action, object, outcome, detail, request_id) \
             SELECT :tenant, t.at + coalesce((SELECT wall_ahead FROM time_line WHERE one = 1), 0), \
                    t.actor_kind, t.actor_id, t.action, t.object, t.outcome, CAST(t.detail AS json), t.request_id FROM ",
            $from,
            " AS t)"
        )
    };
}

/// Counts the tenant's open commands by the rows of `$from`.
macro_rules! counted {
    ($from:literal, $change:literal) => {
        concat!(
            "open AS (INSERT INTO open_commands (tenant, share, commands) SELECT :tenant, pg_backend_pid() % 16, ",
            $change,
            " FROM ",
            $from,
            " HAVING count(*) > 0 \
             ON CONFLICT (tenant, share) DO UPDATE SET commands = open_commands.commands + excluded.commands)"
        )
    };
}

pub(super) mod admission;
pub(super) mod certificates;
pub(super) mod confirmation;
pub(super) mod end;
pub(super) mod heartbeats;
pub(super) mod identities;
pub(super) mod permit;
pub(super) mod submission;

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;

use viworks_common::command::Outcome;
use viworks_common::id::{AgentId, CommandId, InstanceId, Tenant};
use viworks_common::time::Timestamp;

use super::recent::Recent;
use super::tx::View;
use crate::data::{
    AcceptOutcome, Accepted, AdmitOutcome, AdmitRequest, Certificate, CompleteOutcome,
    ConfirmOutcome, ConfirmRequest, Holder, NewRun, StoreResult, Submission, TelemetryLimits,
};

/// How often the facts are asked for anew, where others change them meanwhile.
const ATTEMPTS: u32 = 3;

/// An intent that may be carried out together with others.
#[derive(Debug, Clone)]
pub enum Intent {
    /// Which certificate a gateway's key is registered with; it only asks.
    Certificate(AgentId, [u8; 32]),
    /// A HELLO, and what its gateway may have stored.
    Admit(Arc<AdmitRequest>, TelemetryLimits),
    /// A CONFIRM.
    Confirm(Arc<ConfirmRequest>),
    /// A run for one gateway.
    Submit(Arc<NewRun>),
    /// What a session says of a command that its gateway has journalled.
    Accept(Holder, Accepted),
    /// How a session says that a command ended.
    Complete(Holder, CommandId, Arc<Outcome>),
}

/// What it came to.
#[derive(Debug)]
pub enum Answer {
    /// What is known about the key.
    Certificate(Option<Certificate>),
    /// What HELLO is answered.
    Admitted(AdmitOutcome),
    /// What became of the session, and which other backend was left a letter.
    Confirmed(ConfirmOutcome, Option<InstanceId>),
    /// The run.
    Submitted(Submission),
    /// What the gateway is told.
    Accepted(AcceptOutcome),
    /// What became of the command and its run.
    Completed(CompleteOutcome),
}

/// An intent, and all that it takes.
#[derive(Debug, Clone)]
pub struct Item {
    pub(in crate::data) tenant: Tenant,
    pub(in crate::data) agent_id: AgentId,
    now: Timestamp,
    intent: Intent,
    recent: Arc<Recent>,
}

impl Item {
    /// Where enough is remembered for it; anything else goes its own way.
    pub(super) fn new(
        tenant: &Tenant,
        now: Timestamp,
        intent: Intent,
        recent: &Arc<Recent>,
    ) -> Option<Self> {
        let agent_id = match &intent {
            Intent::Certificate(agent_id, _) => *agent_id,
            Intent::Admit(request, _) => request.agent_id,
            Intent::Confirm(request) => request.agent_id,
            Intent::Submit(new) => submission::target(new).map(|(target, _)| target.agent_id)?,
            Intent::Accept(holder, _) | Intent::Complete(holder, ..) => holder.agent_id,
        };
        let known = match &intent {
            // They ask first, or only that.
            Intent::Certificate(..) | Intent::Admit(..) | Intent::Confirm(_) => true,
            Intent::Submit(_) => recent.gateway(tenant, agent_id, now).is_some(),
            Intent::Accept(_, Accepted { command_id, .. }) | Intent::Complete(_, command_id, _) => {
                recent.has(*command_id)
            }
        };
        known.then(|| Self {
            tenant: tenant.clone(),
            agent_id,
            now,
            intent,
            recent: Arc::clone(recent),
        })
    }

    /// The database may be another one than that which is remembered.
    pub(in crate::data) fn forget_all(&self) {
        self.recent.forget_all();
    }

    /// Only those of one kind go in one statement.
    pub(in crate::data) fn kind(&self) -> Discriminant<Intent> {
        discriminant(&self.intent)
    }
}

/// Carries out intents of one kind and one tenant, each about another gateway, in one statement. Nothing was written
/// of those without an answer, which go their own way.
pub(in crate::data) fn write(view: &View<'_>, items: &[&Item]) -> StoreResult<Vec<Option<Answer>>> {
    let Some(recent) = items.first().map(|first| Arc::clone(&first.recent)) else {
        return Ok(Vec::new());
    };
    let (mut presented, mut hellos, mut confirms) = (Vec::new(), Vec::new(), Vec::new());
    let (mut new, mut accepted, mut over) = (Vec::new(), Vec::new(), Vec::new());
    for item in items {
        match &item.intent {
            Intent::Certificate(agent_id, spki) => presented.push((*agent_id, *spki)),
            Intent::Admit(request, limits) => hellos.push((item.now, &**request, *limits)),
            Intent::Confirm(request) => confirms.push((item.now, &**request)),
            Intent::Submit(run) => new.push((item.now, &**run)),
            Intent::Accept(holder, said) => accepted.push((item.now, holder, *said)),
            Intent::Complete(holder, command_id, outcome) => {
                over.push((item.now, holder, *command_id, &**outcome));
            }
        }
    }
    let known = certificates::load_all(view, &presented)?;
    let admitted = admission::admit_all(view, &hellos)?;
    let confirmed = confirmation::confirm_all(view, &confirms)?;
    let submitted = submission::submit_all(view, &recent, &new)?;
    let permitted = permit::accept_all(view, &recent, &accepted)?;
    let completed = end::complete_all(view, &recent, &over)?;
    let known = known.into_iter().map(|it| it.map(Answer::Certificate));
    let admitted = admitted.into_iter().map(|it| it.map(Answer::Admitted));
    let confirmed = confirmed
        .into_iter()
        .map(|it| it.map(|(outcome, mailed)| Answer::Confirmed(outcome, mailed)));
    let submitted = submitted.into_iter().map(|it| it.map(Answer::Submitted));
    let permitted = permitted.into_iter().map(|it| it.map(Answer::Accepted));
    let completed = completed.into_iter().map(|it| it.map(Answer::Completed));
    let openings = known.chain(admitted).chain(confirmed);
    Ok(openings
        .chain(submitted)
        .chain(permitted)
        .chain(completed)
        .collect())
}
