//! Runs and their commands: what an operator asks for and what came out of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::gateway::{GatewayRef, NamedGateway};
use crate::page::{Kind, list};
use viworks_common::catalogue::Risk;
use viworks_common::code::RejectCode;
use viworks_common::command::{Arguments, CommandState, RetainedOutput};
use viworks_common::id::{ArgumentName, CommandId, CommandName, RunId};
use viworks_common::limits;
use viworks_common::time::Timestamp;

/// Which gateways a run is for: `"all"`, `{"all_except": ["gw-berlin-01", …]}` or `{"gateways": ["gw-berlin-01", …]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Targets {
    /// Every gateway that is not revoked.
    All,
    /// Every gateway that is not revoked, without these.
    AllExcept(Vec<GatewayRef>),
    /// These, by name or id; naming one twice does not run the command twice.
    Gateways(Vec<GatewayRef>),
}

/// The arguments of a submission: text, numbers and booleans, all carried on as text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RequestedArguments(pub Arguments);

/// A submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunRequest {
    /// The command's name in the catalogue.
    pub command: CommandName,
    /// Its arguments.
    #[serde(default)]
    pub arguments: RequestedArguments,
    /// Which gateways.
    pub targets: Targets,
    /// How long the command may wait for its start, in milliseconds; 15 minutes when absent.
    #[cfg_attr(feature = "openapi", schema(minimum = 100, maximum = 2592000000_u64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// A time limit below the catalogue's, in milliseconds; a gateway whose agent is too old to keep it refuses the command.
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Leave out gateways that cannot take the command, whatever the reason, instead of refusing the run; they are
    /// reported as skipped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_unable: bool,
    /// Refuse unless exactly so many gateways get the command: for scripts whose selection may grow overnight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_targets: Option<u64>,
    /// Why, for the audit trail: at most 512 bytes; required where the command's risk is `danger`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a run still has something to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RunState {
    /// At least one command is not final.
    Running,
    /// Every command is final.
    Finished,
}

/// A submission and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Run {
    /// What this is.
    pub kind: Kind,
    /// Its id.
    pub id: RunId,
    /// The command's name.
    pub command: CommandName,
    /// Its arguments, defaults included.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub arguments: Arguments,
    /// Whether every command is final.
    pub state: RunState,
    /// How many commands it has: one for each gateway that could take it.
    pub total: u64,
    /// How many gateways were meant and got no command; `…/skipped` lists them with the reason.
    #[serde(default)]
    pub skipped: u64,
    /// How many of them are in which state; states without a command are absent.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, u64>))]
    pub counts: BTreeMap<CommandState, u64>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Who submitted it.
    pub created_by: String,
    /// The name of the API key that submitted it, where that is known.
    #[serde(default)]
    pub created_by_name: Option<String>,
    /// Until when its commands may start.
    pub deadline: Timestamp,
    /// Why, in the submitter's words.
    pub reason: Option<String>,
    /// When its last command became final.
    pub finished_at: Option<Timestamp>,
    /// When it was cancelled.
    pub cancelled_at: Option<Timestamp>,
    /// The command that could not be delivered and that it runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<CommandId>,
}

list! {
    /// Runs, latest first.
    RunList of Run
}

/// Why a gateway that was meant got no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SkipCode {
    /// Its catalogue does not have the command.
    NotInCatalogue,
    /// Its catalogue has the command, and what it needs is missing there.
    CommandUnavailable,
    /// It has not connected yet, so what it allows is not known.
    NeverConnected,
    /// The arguments do not fit its own declaration of the command.
    BadArguments,
    /// As many commands wait for it as may.
    QueueFull,
    /// Its catalogue gives the command a risk that the request may not take.
    RiskNotAllowed,
}

impl SkipCode {
    /// Every code.
    pub const ALL: [Self; 6] = [
        Self::NotInCatalogue,
        Self::CommandUnavailable,
        Self::NeverConnected,
        Self::BadArguments,
        Self::QueueFull,
        Self::RiskNotAllowed,
    ];

    /// The word for it, the same on the wire and in the store.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotInCatalogue => "not_in_catalogue",
            Self::CommandUnavailable => "command_unavailable",
            Self::NeverConnected => "never_connected",
            Self::BadArguments => "bad_arguments",
            Self::QueueFull => "queue_full",
            Self::RiskNotAllowed => "risk_not_allowed",
        }
    }

    /// The code with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }
}

/// A gateway that a run was meant for and that got no command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SkippedGateway {
    /// Which gateway.
    pub gateway: NamedGateway,
    /// Why, as a word.
    pub code: SkipCode,
    /// Why, in a sentence.
    pub detail: String,
}

/// A gateway that would get a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlannedGateway {
    /// The gateway.
    pub gateway: NamedGateway,
    /// What the command can do there, as the gateway says.
    pub risk: Risk,
}

/// What a submission would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunPlan {
    /// What this is.
    pub kind: Kind,
    /// Its arguments, defaults included.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub arguments: Arguments,
    /// The gateways that would get a command.
    pub gateways: Vec<PlannedGateway>,
    /// The gateways that are meant and would get none.
    pub skipped: Vec<SkippedGateway>,
}

list! {
    /// The gateways that a run skipped, in the order of their ids.
    SkippedList of SkippedGateway
}

/// Bytes that a command wrote: exactly, and as text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutputBytes {
    /// Exactly, as standard Base64.
    pub base64: String,
    /// As text; bytes that are not UTF-8 are shown as U+FFFD.
    pub text: String,
}

impl OutputBytes {
    /// Both forms of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self {
            base64: STANDARD.encode(bytes),
            text: String::from_utf8_lossy(bytes).into_owned(),
        }
    }

    /// The exact bytes; `None` when the text is not Base64.
    #[must_use]
    pub fn decode(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.base64).ok()
    }
}

/// What was kept of one output stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutputView {
    /// Its beginning.
    pub head: OutputBytes,
    /// Its end; empty when nothing was cut.
    pub tail: OutputBytes,
    /// Bytes between them that were not kept.
    pub cut_bytes: u64,
}

impl From<&RetainedOutput> for OutputView {
    fn from(output: &RetainedOutput) -> Self {
        Self {
            head: OutputBytes::new(&output.head),
            tail: OutputBytes::new(&output.tail),
            cut_bytes: output.cut_bytes,
        }
    }
}

/// How a command ended on its gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CommandOutcome {
    /// The exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it, when one did.
    pub signal: Option<i32>,
    /// When it started, by the gateway's wall clock.
    pub started_at: Option<Timestamp>,
    /// How long it ran.
    pub duration_ms: u64,
    /// What it wrote to its standard output; not in the list of a run's commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<OutputView>,
    /// What it wrote to its standard error; not in the list of a run's commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<OutputView>,
    /// Why it was refused or could not run.
    pub reason: Option<String>,
    /// The refusal's code when it was rejected.
    pub reject_code: Option<RejectCode>,
    /// Bytes it wrote to its standard output, kept or not; absent for commands of earlier versions.
    #[serde(default)]
    pub stdout_bytes: Option<u64>,
    /// Bytes it wrote to its standard error, kept or not; absent for commands of earlier versions.
    #[serde(default)]
    pub stderr_bytes: Option<u64>,
    /// Whether it came after the command had ended without it: the command's state and reason do not go by it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// Where it came late, the state in which the command ended by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_state: Option<CommandState>,
}

/// One command: one run on one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CommandView {
    /// What this is.
    pub kind: Kind,
    /// Its id.
    pub id: CommandId,
    /// The run it belongs to.
    pub run_id: RunId,
    /// Its gateway.
    pub gateway: NamedGateway,
    /// Where it is in its life.
    pub state: CommandState,
    /// How often it was delivered.
    pub attempt: u32,
    /// Its number on this gateway.
    pub order: u64,
    /// Its risk, by its gateway's catalogue at submission.
    pub risk: Risk,
    /// Whether it may run twice, by the stricter of both ends' opinions.
    pub idempotent: bool,
    /// Its time limit, in milliseconds.
    pub timeout_ms: u64,
    /// Until when it may start.
    pub deadline: Timestamp,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it was permitted to start.
    pub released_at: Option<Timestamp>,
    /// When it started, by the gateway's wall clock.
    pub started_at: Option<Timestamp>,
    /// When it became final.
    pub finished_at: Option<Timestamp>,
    /// When its cancellation was asked for.
    pub cancel_requested_at: Option<Timestamp>,
    /// Why it is in this state, when there is more to say.
    pub reason: Option<String>,
    /// How it ended on the gateway. One that is `late` came after the command had ended without it, and is what became
    /// of it nevertheless.
    pub outcome: Option<CommandOutcome>,
}

list! {
    /// The commands of a run, in the order of their ids.
    CommandList of CommandView
}

/// The answer to a wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunWait {
    /// What this is.
    pub kind: Kind,
    /// Whether the run finished before the wait ended.
    pub finished: bool,
    /// The run as it stands.
    pub run: Run,
}

/// The answer to a cancellation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunCancelled {
    /// What this is.
    pub kind: Kind,
    /// Commands that had not been permitted to start and never will.
    pub cancelled: u64,
    /// Commands that may already run: their gateways are asked to end them.
    pub requested: u64,
    /// Commands that were final before.
    pub final_before: u64,
    /// The run as it stands.
    pub run: Run,
}

impl<'de> Deserialize<'de> for RequestedArguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = RequestedArguments;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of argument names with text, numbers or booleans")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<RequestedArguments, A::Error> {
                let mut arguments = Arguments::new();
                while let Some(name) = map.next_key::<ArgumentName>()? {
                    if arguments.len() == limits::ARGUMENTS_MAX {
                        return Err(A::Error::custom(format_args!(
                            "arguments: more than {}",
                            limits::ARGUMENTS_MAX
                        )));
                    }
                    let value = map.next_value::<Scalar>()?;
                    match arguments.entry(name) {
                        Entry::Vacant(slot) => slot.insert(value.0),
                        Entry::Occupied(slot) => {
                            return Err(A::Error::custom(format_args!(
                                "duplicate argument `{}`",
                                slot.key()
                            )));
                        }
                    };
                }
                Ok(RequestedArguments(arguments))
            }
        }

        deserializer.deserialize_map(Map)
    }
}

struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;

        impl Visitor<'_> for AsText {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number or a boolean")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
                if value.len() > limits::ARGUMENT_VALUE_BYTES_MAX {
                    return Err(E::custom(format_args!(
                        "a value of more than {} bytes",
                        limits::ARGUMENT_VALUE_BYTES_MAX
                    )));
                }
                Ok(Scalar(value.to_owned()))
            }
        }

        deserializer.deserialize_any(AsText)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for RequestedArguments {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};

        let scalar = ObjectBuilder::new().schema_type(SchemaType::Array(vec![
            Type::String,
            Type::Number,
            Type::Boolean,
        ]));
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .additional_properties(Some(scalar))
            .max_properties(Some(limits::ARGUMENTS_MAX))
            .description(Some("Values by argument name"))
            .build()
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for RequestedArguments {}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RunRequest, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn arguments_beyond_the_bound_are_refused() {
        let with = |count: usize| {
            let arguments: Vec<String> = (0..count).map(|n| format!("\"a{n}\":{n}")).collect();
            let arguments = arguments.join(",");
            read(&format!(
                r#"{{"command":"a.b","arguments":{{{arguments}}},"targets":"all"}}"#
            ))
        };
        assert!(with(32).is_ok());
        let refused = with(33).unwrap_err();
        assert!(refused.to_string().contains("more than 32"), "{refused}");
    }

    #[test]
    fn numbers_and_booleans_become_text() {
        let request = read(
            r#"{"command":"a.b","arguments":{"n":5,"t":true,"s":"x","f":1.5},"targets":"all"}"#,
        )
        .unwrap();
        let values: Vec<_> = request
            .arguments
            .0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            values,
            [("f", "1.5"), ("n", "5"), ("s", "x"), ("t", "true")]
        );
    }

    #[test]
    fn targets_are_all_or_a_list_of_names_and_ids() {
        let request = read(
            r#"{"command":"a","targets":{"gateways":["gw-1","01900000-0000-7000-8000-0000000000ab"]}}"#,
        )
        .unwrap();
        let Targets::Gateways(gateways) = request.targets else {
            panic!("not a list")
        };
        assert!(matches!(
            gateways[..],
            [GatewayRef::Name(_), GatewayRef::Id(_)]
        ));
    }

    #[test]
    fn sloppy_submissions_are_refused() {
        for text in [
            r#"{"command":"a","targets":"all","extra":1}"#,
            r#"{"command":"a","command":"b","targets":"all"}"#,
            r#"{"command":"a","targets":"some"}"#,
            r#"{"command":"a","targets":"all","arguments":{"x":"1","x":"2"}}"#,
            r#"{"command":"a","targets":"all","arguments":{"x":null}}"#,
            r#"{"command":"a","targets":"all","arguments":{"x":["1"]}}"#,
            r#"{"command":"A B","targets":"all"}"#,
            r#"{"command":"a"}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
