//! Runs, their commands, and what sessions do with them.

use std::collections::BTreeMap;
use std::time::Duration;

use viworks_api::SkipCode;
use viworks_common::catalogue::Risk;
use viworks_common::code::RejectCode;
use viworks_common::command::{Arguments, CommandState, Outcome, RetainedOutput};
use viworks_common::id::{AgentId, CommandId, CommandName, GatewayName, RunId};
pub use viworks_common::ledger::Ended as CommandResult;
pub use viworks_common::ledger::lease::Place;
use viworks_common::time::Timestamp;

use super::Actor;

/// A run to be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRun {
    /// Its id, a fresh `UUIDv7`.
    pub run_id: RunId,
    /// The command's name.
    pub name: CommandName,
    /// Its arguments, checked against every target's catalogue.
    pub arguments: Arguments,
    /// One for each gateway; no gateway twice.
    pub targets: Vec<NewCommand>,
    /// Gateways that are meant and get no command; none of them is among the targets.
    pub skipped: Vec<Skip>,
    /// Whether a target whose queue is full is skipped, instead of refusing the run.
    pub skip_full: bool,
    /// No command starts after this.
    pub deadline: Timestamp,
    /// The time limit that the operator gives it, in milliseconds; gateways are told of it.
    pub timeout_ms: Option<u64>,
    /// W3C trace context of the submission.
    pub traceparent: Option<String>,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// Who submits it.
    pub actor: Actor,
    /// The submission's `Idempotency-Key`, when it has one.
    pub idempotency: Option<Idempotency>,
    /// The dead letter that it retries; then it has one target.
    pub retry_of: Option<CommandId>,
    /// The bounds it is held against.
    pub limits: QueueLimits,
}

/// A gateway that is meant and gets no command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// Which gateway.
    pub agent_id: AgentId,
    /// Why, as a word.
    pub code: SkipCode,
    /// Why, in a sentence.
    pub detail: String,
}

/// A stored [`Skip`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedGateway {
    /// The gateway's name, as it is now.
    pub gateway: GatewayName,
    /// What was stored.
    pub skip: Skip,
}

/// One command of a new run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCommand {
    /// Its gateway.
    pub agent_id: AgentId,
    /// Its id, a fresh `UUIDv7`.
    pub command_id: CommandId,
    /// Whether the gateway's catalogue calls it idempotent.
    pub idempotent: bool,
    /// The risk by the gateway's catalogue.
    pub risk: Risk,
    /// The time limit by the gateway's catalogue, in milliseconds.
    pub timeout_ms: u64,
    /// What of the gateway was remembered when the command was checked, instead of being read.
    pub remembered: Option<Remembered>,
    /// The session that has kept room for it: there it is offered at once, if that is in turn.
    pub place: Option<Place>,
}

/// What a gateway was when it was last read. Where it is something else by now, nothing is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Its name.
    pub name: GatewayName,
    /// When it reported its catalogue.
    pub reported_at: Timestamp,
}

/// An `Idempotency-Key` and what it was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// Whose key it is.
    pub principal: String,
    /// On which route.
    pub route: String,
    /// The key.
    pub key: String,
    /// SHA-256 of the request.
    pub request_hash: [u8; 32],
}

/// Bounds on commands that are not final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// For each gateway.
    pub per_gateway: u64,
    /// For all gateways of the tenant together.
    pub global: u64,
    /// What a refused caller is told to wait.
    pub retry_after: Duration,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submission {
    /// The run exists now.
    Submitted {
        /// As it stands.
        run: Run,
        /// Those of its commands that were offered at once, in order of the gateways.
        offered: Vec<Offered>,
    },
    /// The same request had been accepted before: that run, as it is now.
    Replayed(Run),
    /// The `Idempotency-Key` had been used for another request.
    IdempotencyMismatch,
    /// A gateway is not what was remembered of it; nothing was submitted.
    Outdated,
    /// The dead letter that it would retry was discarded, or is kept no more; nothing was submitted.
    Resolved,
}

/// A command that was offered in the transaction that submitted it, and is still to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// To which gateway.
    pub agent_id: AgentId,
    /// In which session.
    pub epoch: u64,
    /// What is sent.
    pub command: LeasedCommand,
}

/// A run with its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its id.
    pub run_id: RunId,
    /// The command's name.
    pub name: CommandName,
    /// Its arguments.
    pub arguments: Arguments,
    /// No command starts after this.
    pub deadline: Timestamp,
    /// W3C trace context of the submission.
    pub traceparent: Option<String>,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// Who submitted it, as `kind:id`.
    pub submitted_by: String,
    /// The name of the API key that did; none where a key is not known by name, and right after the submission.
    pub submitter: Option<String>,
    /// When.
    pub created_at: Timestamp,
    /// When an operator first cancelled it.
    pub cancel_requested_at: Option<Timestamp>,
    /// When its last command became final.
    pub finished_at: Option<Timestamp>,
    /// How many commands are in each state that occurs.
    pub states: BTreeMap<CommandState, u64>,
    /// How many gateways were meant and got no command.
    pub skipped: u64,
    /// The command that could not be delivered and that it runs again.
    pub retry_of: Option<CommandId>,
}

impl Run {
    /// How many commands it has.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.states.values().sum()
    }

    /// Whether every command is final.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.finished_at.is_some()
    }
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its id.
    pub command_id: CommandId,
    /// Its run.
    pub run_id: RunId,
    /// Its gateway.
    pub agent_id: AgentId,
    /// Its gateway's name, as it is now.
    pub gateway: GatewayName,
    /// Its number on the gateway.
    pub order: u64,
    /// Its name.
    pub name: CommandName,
    /// Where it is in its life.
    pub state: CommandState,
    /// Whether it may run twice, by the stricter of both ends' opinions.
    pub idempotent: bool,
    /// Its risk when it was submitted.
    pub risk: Risk,
    /// Its time limit, in milliseconds.
    pub timeout_ms: u64,
    /// Deliveries so far.
    pub attempt: u32,
    /// It does not start after this.
    pub deadline: Timestamp,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When the permit was given.
    pub released_at: Option<Timestamp>,
    /// When it started, by the gateway's wall clock.
    pub started_at: Option<Timestamp>,
    /// When it became final.
    pub finished_at: Option<Timestamp>,
    /// When an operator asked for its end.
    pub cancel_requested_at: Option<Timestamp>,
    /// How it ended, when the gateway said so or refused it.
    pub result: Option<CommandResult>,
    /// What the gateway said after the command had ended as indeterminate, or as one that never started.
    pub late_outcome: Option<CommandResult>,
    /// Why it ended, when no outcome says so.
    pub reason: Option<String>,
}

/// What was kept of a command's output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandOutput {
    /// Its standard output.
    pub stdout: RetainedOutput,
    /// Its standard error.
    pub stderr: RetainedOutput,
}

/// What cancelling a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancelled {
    /// Commands that are cancelled now: they had no permit.
    pub cancelled: Vec<CommandRef>,
    /// Commands that may run: their gateways are asked to end them.
    pub requested: Vec<CommandRef>,
    /// The run afterwards.
    pub run: Run,
}

/// A command and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandRef {
    /// The command.
    pub command_id: CommandId,
    /// Its gateway.
    pub agent_id: AgentId,
}

/// A command with a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenCommand {
    /// The command.
    pub command_id: CommandId,
    /// It does not start after this.
    pub deadline: Timestamp,
}

/// How much one lease takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseLimits {
    /// Most commands to take: the session's free credit.
    pub commands: usize,
    /// Deliveries after which a command is dead.
    pub attempts_max: u32,
}

/// What a lease took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leased {
    /// To be sent, in this order.
    pub commands: Vec<LeasedCommand>,
    /// Commands that ended instead: their deliveries were used up.
    pub dead: Vec<Settled>,
    /// Dead letters that went for these before anybody had decided about them.
    pub dead_letters_dropped: u64,
}

/// A command to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedCommand {
    /// Its id.
    pub command_id: CommandId,
    /// Its run.
    pub run_id: RunId,
    /// Its number on the gateway.
    pub order: u64,
    /// Its name.
    pub name: CommandName,
    /// Its arguments.
    pub arguments: Arguments,
    /// SHA-256 of name and arguments.
    pub digest: [u8; 32],
    /// Which delivery this is, from 1 upwards.
    pub attempt: u32,
    /// W3C trace context of the submission.
    pub traceparent: Option<String>,
    /// It does not start after this.
    pub deadline: Timestamp,
    /// Whether the permit goes along: it is released already.
    pub permitted: bool,
    /// The time limit of its run, in milliseconds, when its operator gave it one.
    pub timeout_ms: Option<u64>,
}

/// A `COMMAND_ACCEPTED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The command.
    pub command_id: CommandId,
    /// Whether the gateway's own catalogue calls it idempotent.
    pub idempotent: bool,
    /// Whether it waits for its permit.
    pub awaiting_permit: bool,
}

/// What to answer to a `COMMAND_ACCEPTED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptOutcome {
    /// Give the permit: the release is committed.
    Go {
        /// It does not start after this.
        deadline: Timestamp,
    },
    /// Tell the gateway never to start it.
    Drop,
    /// An operator asked for its end: tell the gateway.
    Cancel,
    /// Nothing is to be sent.
    Wait,
}

/// A `COMMAND_REJECTED`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The command.
    pub command_id: CommandId,
    /// Why.
    pub code: RejectCode,
    /// One sentence.
    pub detail: String,
    /// When it is offered again, if the code allows that.
    pub again_at: Timestamp,
}

/// A command that was moved, now or before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Whether it moved now. What is said again, by whoever said it or because an answer was lost, moves nothing.
    pub moved: bool,
    /// The command.
    pub command_id: CommandId,
    /// Its gateway.
    pub agent_id: AgentId,
    /// Its run.
    pub run_id: RunId,
    /// Where it is now.
    pub state: CommandState,
    /// Whether this made the whole run final.
    pub run_finished: bool,
    /// What is known of why it is there.
    pub reason: Option<String>,
}

/// What became of a `COMMAND_RESULT`; every case is acknowledged with its low-water mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompleteOutcome {
    /// The command is final with this outcome.
    Completed {
        /// What moved.
        settled: Settled,
        /// Up to which order everything is final.
        low_water: u64,
        /// The run as it ended, when this made all of it final.
        run: Option<Box<Run>>,
    },
    /// The command had ended as indeterminate; the outcome is kept beside it.
    LateOutcome {
        /// Up to which order everything is final.
        low_water: u64,
    },
    /// The command was final already; nothing changed.
    Repeated {
        /// Up to which order everything is final.
        low_water: u64,
    },
    /// There is no such command; the outcome is kept as an orphan, as far as its gateway may leave any.
    Orphan {
        /// Up to which order everything is final.
        low_water: u64,
        /// Whether it is kept, and not only counted.
        kept: bool,
    },
}

impl CompleteOutcome {
    /// What `RESULT_ACK` carries.
    #[must_use]
    pub const fn low_water(&self) -> u64 {
        match self {
            Self::Completed { low_water, .. }
            | Self::LateOutcome { low_water }
            | Self::Repeated { low_water }
            | Self::Orphan { low_water, .. } => *low_water,
        }
    }
}

/// The outcome of a command that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The command, as its gateway names it.
    pub command_id: CommandId,
    /// When it was reported.
    pub received_at: Timestamp,
    /// What was reported.
    pub outcome: Outcome,
}

/// A place among the orphans of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrphanCursor {
    /// When it was reported.
    pub received_at: Timestamp,
    /// Which one of that moment.
    pub command_id: CommandId,
}

/// How many of what there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Gateways that are not revoked, and of those that are ephemeral the connected ones: nobody waits for the others.
    pub gateways: u64,
    /// Gateways with a confirmed session.
    pub connected: u64,
    /// Runs that are not finished.
    pub open_runs: u64,
    /// Commands that are not final, by state, of those states that occur.
    pub open_commands: BTreeMap<CommandState, u64>,
    /// When the queued command was submitted that has waited longest.
    pub oldest_queued_at: Option<Timestamp>,
    /// Commands that could not be delivered and that nobody has decided about.
    pub dead_letters: u64,
    /// Outcomes of unknown commands that gateways which are not revoked reported within a day.
    pub orphans: u64,
    /// Second holders of the identities of such gateways that were seen within a day, and about which nobody has
    /// decided.
    pub forks: u64,
    /// Of how many gateways those are.
    pub forked: u64,
    /// The first few of these gateways, those whose second holder spoke last before others.
    pub forked_first: Vec<GatewayName>,
}
