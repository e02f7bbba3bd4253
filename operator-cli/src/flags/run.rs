//! What `viworks run` takes: its flags, and the request that they mean.

use std::time::Duration;

use clap::Args;
use viworks_api::{GatewayRef, RequestedArguments, RunRequest, Targets};
use viworks_common::command::Arguments;
use viworks_common::id::CommandName;

use super::value::{some_time, span};
use crate::failure::Failure;

/// What to run, and where.
#[derive(Debug, Args)]
pub struct Run {
    /// The command's name in the catalogue
    pub command: CommandName,
    /// Its arguments, as name=value
    #[arg(value_name = "NAME=VALUE")]
    pub arguments: Vec<String>,
    /// Gateways, by name or id; repeat it or separate them by commas
    #[arg(
        short,
        long,
        value_name = "NAME",
        value_delimiter = ',',
        conflicts_with = "all"
    )]
    pub gateway: Vec<String>,
    /// Every gateway; those that do not have the command are listed as skipped, and those that are offline are waited
    /// for: see --no-wait, --wait and --except
    #[arg(long)]
    pub all: bool,
    /// With --all: not these, by name or id; repeat it or separate them by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "all")]
    pub except: Vec<String>,
    /// Skip gateways that cannot take the command, whatever the reason, instead of refusing the run; one that is
    /// offline takes it when it comes back
    #[arg(long)]
    pub skip_unable: bool,
    /// Wait until every command is final (the default); with a limit, at most so long [e.g. --wait=60s]
    #[arg(long, value_name = "LIMIT", num_args = 0..=1, require_equals = true, default_missing_value = "1d", value_parser = span)]
    pub wait: Option<Duration>,
    /// Print the run and do not wait
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
    /// How long a command may wait for its start; it never starts later
    #[arg(long, value_name = "SPAN", value_parser = span, allow_hyphen_values = true)]
    pub expires: Option<Duration>,
    /// End a command that runs longer than this, where the catalogue allows it longer
    #[arg(long, value_name = "SPAN", value_parser = some_time, allow_hyphen_values = true)]
    pub timeout: Option<Duration>,
    /// Do not ask before a command that changes something: a terminal is asked, a script needs this for several
    /// gateways
    #[arg(short, long)]
    pub yes: bool,
    /// How many gateways are meant; needed for dangerous commands
    #[arg(long, value_name = "N")]
    pub confirm: Option<u64>,
    /// Why; kept with the run and in the audit trail
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Say what would be run, and run nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Makes the submission safe to repeat: the same key never submits twice
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

impl Run {
    /// The request that the flags mean.
    pub fn request(&self) -> Result<RunRequest, Failure> {
        let mut arguments = Arguments::new();
        for text in &self.arguments {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                Failure::usage(format!("{text:?} is no argument"))
                    .with("expected: name=value, such as unit=nginx")
            })?;
            let name = name
                .parse()
                .map_err(|error| Failure::usage(format!("{error}")))?;
            if arguments.insert(name, value.to_owned()).is_some() {
                return Err(Failure::usage(format!(
                    "the argument of {text:?} is given twice"
                )));
            }
        }
        let targets = match (self.all, self.gateway.as_slice()) {
            (true, _) if self.except.is_empty() => Targets::All,
            (true, _) => Targets::AllExcept(references(&self.except)?),
            (false, []) => {
                return Err(Failure::usage("no gateway was named")
                    .with("name them: -g gw-berlin,gw-lyon")
                    .with("or all of them: --all")
                    .with("which are there: viworks gateway ls"));
            }
            (false, names) => Targets::Gateways(references(names)?),
        };
        Ok(RunRequest {
            command: self.command.clone(),
            arguments: RequestedArguments(arguments),
            targets,
            deadline_ms: self.expires.map(milliseconds),
            timeout_ms: self.timeout.map(milliseconds),
            skip_unable: self.skip_unable,
            expect_targets: self.confirm,
            reason: self.reason.clone(),
        })
    }
}

fn references(names: &[String]) -> Result<Vec<GatewayRef>, Failure> {
    let references: Result<Vec<_>, _> = names.iter().map(|name| name.parse()).collect();
    references.map_err(|error| Failure::usage(format!("{error}")))
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
