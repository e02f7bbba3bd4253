//! `viworks run`: submit a command, follow it live, and say in the exit code how it went.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use viworks_common::api::{
    CommandView, GatewayRef, RequestedArguments, Run, RunEvent, RunRequest, Targets,
};
use viworks_common::catalogue::Risk;
use viworks_common::command::{Arguments, CommandState};
use viworks_common::id::{CommandId, CommandName, GatewayName};
use viworks_common::wire::message::OutputStream;
use viworks_runtime::exit::ExitCode;

use crate::cli::span;
use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, Format, last_line, plain};

/// How many commands' output is fetched for a table; beyond that the run's page is the better reader.
const OUTPUTS_SHOWN_MAX: usize = 50;

/// What to run, and where.
#[derive(Debug, Args)]
pub struct Options {
    /// The command's name in the catalogue
    command: CommandName,
    /// Its arguments, as name=value
    #[arg(value_name = "NAME=VALUE")]
    arguments: Vec<String>,
    /// Gateways, by name or id; repeat it or separate them by commas
    #[arg(
        short,
        long,
        value_name = "NAME",
        value_delimiter = ',',
        conflicts_with = "all"
    )]
    gateway: Vec<String>,
    /// Every gateway
    #[arg(long)]
    all: bool,
    /// Wait until every command is final (the default); with a limit, at most so long [e.g. --wait=60s]
    #[arg(long, value_name = "LIMIT", num_args = 0..=1, require_equals = true, default_missing_value = "1d", value_parser = span)]
    wait: Option<Duration>,
    /// Print the run and do not wait
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// How long a command may wait for its start; it never starts later
    #[arg(long, value_name = "SPAN", value_parser = span)]
    expires: Option<Duration>,
    /// End a command that runs longer than this
    #[arg(long, value_name = "SPAN", value_parser = span)]
    timeout: Option<Duration>,
    /// Do not ask before a command that changes something
    #[arg(short, long)]
    yes: bool,
    /// How many gateways are meant; needed for dangerous commands
    #[arg(long, value_name = "N")]
    confirm: Option<u64>,
    /// Why; kept with the run and in the audit trail
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Say what would be run, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Makes the submission safe to repeat: the same key never submits twice
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// Submits and, unless told otherwise, waits.
pub async fn run(client: &Client, options: &Options, format: Format) -> Result<ExitCode, Failure> {
    let request = request(options)?;
    confirm(client, options, &request).await?;
    if options.dry_run {
        return dry_run(client, &request, format).await;
    }
    let submitted = client
        .submit(&request, options.idempotency_key.as_deref())
        .await?;
    if options.no_wait {
        match format {
            Format::Table => output::line(&submitted.id.to_string())?,
            Format::Json => output::json(&submitted)?,
        }
        output::note(&format!(
            "submitted to {} gateways; follow it: {} runs wait {}",
            submitted.total,
            program_name(),
            submitted.id
        ));
        return Ok(ExitCode::Ok);
    }
    let limit = options.wait.unwrap_or(Duration::from_secs(24 * 3_600));
    let exit = tokio::select! {
        exit = follow(client, &submitted, limit, format) => exit?,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            output::note("");
            output::note(&format!("stopped watching; the run goes on. Back to it: {0} runs wait {1}   cancel it: {0} runs cancel {1}", program_name(), submitted.id));
            ExitCode::Interrupted
        }
    };
    Ok(exit)
}

fn request(options: &Options) -> Result<RunRequest, Failure> {
    let mut arguments = Arguments::new();
    for text in &options.arguments {
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
    let targets = match (options.all, options.gateway.as_slice()) {
        (true, _) => Targets::All,
        (false, []) => {
            return Err(Failure::usage("no gateway was named")
                .with("name them: -g gw-berlin,gw-lyon")
                .with("or all of them: --all")
                .with("which are there: viworks gateway ls"));
        }
        (false, names) => {
            let references: Result<Vec<GatewayRef>, _> =
                names.iter().map(|name| name.parse()).collect();
            Targets::Gateways(references.map_err(|error| Failure::usage(format!("{error}")))?)
        }
    };
    Ok(RunRequest {
        command: options.command.clone(),
        arguments: RequestedArguments(arguments),
        targets,
        deadline_ms: options.expires.map(milliseconds),
        timeout_ms: options.timeout.map(milliseconds),
        expect_targets: options.confirm,
        reason: options.reason.clone(),
    })
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Asks before something changes: a person by prompt, a script by flag.
async fn confirm(client: &Client, options: &Options, request: &RunRequest) -> Result<(), Failure> {
    if options.dry_run || options.yes && options.confirm.is_some() {
        return Ok(());
    }
    // An unknown command is the backend's to explain; it names what is allowed.
    let Ok(entry) = client.catalogue_command(request.command.as_str()).await else {
        return Ok(());
    };
    let many = match &request.targets {
        Targets::All => true,
        Targets::Gateways(names) => names.len() > 1,
    };
    match entry.risk {
        Risk::Read => Ok(()),
        Risk::Change if options.yes || !many => Ok(()),
        Risk::Change => ask(
            &format!("{} changes something on several gateways.", request.command),
            "--yes",
        ),
        Risk::Danger if options.confirm.is_some() => Ok(()),
        Risk::Danger => Err(Failure::new(
            ExitCode::Declined,
            format!("{} can cause an outage", request.command),
        )
        .with("say how many gateways you mean: --confirm=N (viworks run … --dry-run counts them)")),
    }
}

fn ask(what: &str, flag: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::new(ExitCode::Declined, format!("{what} A prompt was needed"))
                .with(format!("in scripts, add {flag}")),
        );
    }
    output::note(&format!("{what} Continue? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::new(
            ExitCode::Declined,
            "you said no; nothing was sent",
        ))
    }
}

async fn dry_run(
    client: &Client,
    request: &RunRequest,
    format: Format,
) -> Result<ExitCode, Failure> {
    let entry = client.catalogue_command(request.command.as_str()).await?;
    let gateways = client.gateways().await?;
    let meant: Vec<&str> = gateways
        .iter()
        .filter(|gateway| match &request.targets {
            Targets::All => true,
            Targets::Gateways(names) => names.iter().any(|name| {
                name.to_string() == gateway.name.as_str()
                    || name.to_string() == gateway.id.to_string()
            }),
        })
        .map(|gateway| gateway.name.as_str())
        .collect();
    match format {
        Format::Table => {
            output::line(&format!(
                "{} ({:?}) on {} gateways: {}",
                request.command,
                entry.risk,
                meant.len(),
                meant.join(" ")
            ))?;
        }
        Format::Json => output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "RunPlan", "request": request, "gateways": meant}),
        )?,
    }
    output::note("nothing was run");
    Ok(if meant.is_empty() {
        ExitCode::NotFound
    } else {
        ExitCode::Ok
    })
}

/// Shows a run live and then its result.
pub async fn follow(
    client: &Client,
    run: &Run,
    limit: Duration,
    format: Format,
) -> Result<ExitCode, Failure> {
    let mut live = Live {
        many: run.total > 1,
        format,
        open: BTreeMap::new(),
    };
    let followed = tokio::time::timeout(
        limit,
        client.follow(run.id, |event| {
            live.show(&event);
            Ok(())
        }),
    )
    .await;
    if let Ok(outcome) = followed {
        outcome?;
    }
    let commands = client.run_commands(run.id).await?;
    live.flush();
    match format {
        Format::Json => {
            let run = client.run(run.id).await?;
            let commands = with_output(client, commands.clone()).await?;
            output::json(
                &json!({"apiVersion": "viworks/v1", "kind": "RunResult", "run": run, "commands": commands}),
            )?;
        }
        Format::Table => print_commands(&with_output(client, commands.clone()).await?)?,
    }
    let states: Vec<CommandState> = commands.iter().map(|command| command.state).collect();
    let exit = exit_code(states.iter().copied());
    output::note(&summary(&states));
    if exit == ExitCode::Pending {
        output::note(&format!("Follow  {} runs wait {}", program_name(), run.id));
    }
    Ok(exit)
}

/// Live output as whole lines, each behind its gateway's name when there are several.
struct Live {
    many: bool,
    format: Format,
    open: BTreeMap<(CommandId, OutputStream), (GatewayName, String)>,
}

impl Live {
    fn show(&mut self, event: &RunEvent) {
        match event {
            RunEvent::Output {
                command_id,
                gateway,
                stream,
                data,
                ..
            } => {
                if self.format == Format::Json {
                    return;
                }
                let (name, text) = self
                    .open
                    .entry((*command_id, *stream))
                    .or_insert_with(|| (gateway.name.clone(), String::new()));
                text.push_str(&data.text);
                let name = name.clone();
                while let Some(end) = text.find('\n') {
                    let line: String = text.drain(..=end).collect();
                    print_line(self.many, &name, &line);
                }
            }
            RunEvent::Missed { events } => {
                output::note(&format!(
                    "({events} live events were not received; the retained output is complete up to its stated bounds)"
                ));
            }
            RunEvent::Command { .. } | RunEvent::Finished { .. } => {}
        }
    }

    fn flush(&mut self) {
        for (name, text) in std::mem::take(&mut self.open).into_values() {
            if !text.is_empty() {
                print_line(self.many, &name, &text);
            }
        }
    }
}

/// Live lines are narration: the result on standard output holds the retained output.
fn print_line(many: bool, gateway: &GatewayName, line: &str) {
    let line = plain(line.trim_end_matches(['\n', '\r']));
    if many {
        output::note(&format!("{gateway} │ {line}"));
    } else {
        output::note(&line);
    }
}

/// Adds the retained output, for as many commands as a person reads.
pub async fn with_output(
    client: &Client,
    commands: Vec<CommandView>,
) -> Result<Vec<CommandView>, Failure> {
    if commands.len() > OUTPUTS_SHOWN_MAX {
        return Ok(commands);
    }
    let mut complete = Vec::with_capacity(commands.len());
    for command in commands {
        complete.push(if command.outcome.is_some() {
            client.command(command.run_id, command.id).await?
        } else {
            command
        });
    }
    Ok(complete)
}

/// One row for each gateway.
pub fn print_commands(commands: &[CommandView]) -> Result<(), Failure> {
    let mut commands: Vec<&CommandView> = commands.iter().collect();
    commands.sort_by(|a, b| a.gateway.name.cmp(&b.gateway.name));
    output::table(
        ["GATEWAY", "STATUS", "EXIT", "TIME", "OUTPUT"],
        commands.iter().map(|command| {
            let outcome = command.outcome.as_ref();
            [
                command.gateway.name.to_string(),
                word(command.state).to_owned(),
                outcome
                    .and_then(|outcome| outcome.exit_code)
                    .map_or_else(|| "–".to_owned(), |code| code.to_string()),
                outcome.map_or_else(|| "–".to_owned(), |outcome| duration(outcome.duration_ms)),
                said(command),
            ]
        }),
    )
}

/// The last line of what a command wrote, or why it did not run.
fn said(command: &CommandView) -> String {
    let Some(outcome) = &command.outcome else {
        return plain(command.reason.as_deref().unwrap_or(""));
    };
    let text = |view: &Option<viworks_common::api::OutputView>| {
        view.as_ref().map(|view| {
            if view.cut_bytes > 0 {
                view.tail.text.clone()
            } else {
                format!("{}{}", view.head.text, view.tail.text)
            }
        })
    };
    let stdout = text(&outcome.stdout).unwrap_or_default();
    let stderr = text(&outcome.stderr).unwrap_or_default();
    let reason = outcome
        .reason
        .clone()
        .or_else(|| command.reason.clone())
        .unwrap_or_default();
    let preferred = if command.state == CommandState::Succeeded {
        [stdout, stderr, reason]
    } else {
        [reason, stderr, stdout]
    };
    preferred
        .iter()
        .map(|text| last_line(text))
        .find(|line| !line.is_empty())
        .unwrap_or_default()
}

/// A state as a table shows it: a shape and a word.
pub const fn word(state: CommandState) -> &'static str {
    match state {
        CommandState::Queued => "◌ queued",
        CommandState::Dispatched => "◌ dispatched",
        CommandState::Released => "◌ released",
        CommandState::Running => "◐ running",
        CommandState::Succeeded => "✓ ok",
        CommandState::Failed => "✕ failed",
        CommandState::TimedOut => "✕ timed_out",
        CommandState::Rejected => "✕ rejected",
        CommandState::Expired => "○ expired",
        CommandState::Cancelled => "✕ cancelled",
        CommandState::Dead => "○ dead",
        CommandState::Indeterminate => "✕ indeterminate",
    }
}

/// A duration as people read it.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} m {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

/// One sentence whose numbers add up to the number of targets.
fn summary(states: &[CommandState]) -> String {
    let count =
        |wanted: &[CommandState]| states.iter().filter(|state| wanted.contains(state)).count();
    let ok = count(&[CommandState::Succeeded]);
    let no_answer = count(&[CommandState::Expired, CommandState::Dead]);
    let open = states.iter().filter(|state| !state.is_final()).count();
    let failed = states.len() - ok - no_answer - open;
    let mut parts = vec![format!("{ok} ok")];
    for (number, word) in [
        (failed, "failed"),
        (no_answer, "no answer"),
        (open, "still open"),
    ] {
        if number > 0 {
            parts.push(format!("{number} {word}"));
        }
    }
    format!("{} = {}", parts.join(", "), states.len())
}

/// Failed beats no answer beats pending; nothing targeted is not found.
pub fn exit_code(states: impl Iterator<Item = CommandState>) -> ExitCode {
    let mut exit = None;
    let rank = |code: ExitCode| {
        let order = [ExitCode::Pending, ExitCode::NoAnswer, ExitCode::Failed];
        order
            .iter()
            .position(|ranked| *ranked == code)
            .map_or(0, |position| position + 1)
    };
    for state in states {
        let code = match state {
            CommandState::Succeeded => ExitCode::Ok,
            CommandState::Failed
            | CommandState::TimedOut
            | CommandState::Rejected
            | CommandState::Cancelled
            | CommandState::Indeterminate => ExitCode::Failed,
            CommandState::Expired | CommandState::Dead => ExitCode::NoAnswer,
            CommandState::Queued
            | CommandState::Dispatched
            | CommandState::Released
            | CommandState::Running => ExitCode::Pending,
        };
        if exit.is_none_or(|current| rank(code) > rank(current)) {
            exit = Some(code);
        }
    }
    exit.unwrap_or(ExitCode::NotFound)
}

/// How to call this program from where the person stands.
pub fn program_name() -> String {
    let me = std::env::args_os()
        .next()
        .map(|arg| arg.to_string_lossy().into_owned());
    me.unwrap_or_else(|| "viworks".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_beats_no_answer_beats_pending() {
        use CommandState as S;
        assert_eq!(exit_code([S::Succeeded].into_iter()), ExitCode::Ok);
        assert_eq!(
            exit_code([S::Succeeded, S::Queued].into_iter()),
            ExitCode::Pending
        );
        assert_eq!(
            exit_code([S::Expired, S::Running].into_iter()),
            ExitCode::NoAnswer
        );
        assert_eq!(
            exit_code([S::Dead, S::Indeterminate].into_iter()),
            ExitCode::Failed
        );
        assert_eq!(exit_code(std::iter::empty()), ExitCode::NotFound);
    }

    #[test]
    fn the_summary_adds_up() {
        use CommandState as S;
        assert_eq!(
            summary(&[S::Succeeded, S::Failed, S::Dead, S::Queued]),
            "1 ok, 1 failed, 1 no answer, 1 still open = 4"
        );
    }
}
