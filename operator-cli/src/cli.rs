//! The command tree: every verb, flag and help text, and which function carries it out.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::error::Failure;
use crate::output::Format;
use crate::{catalogue, codes, context, demo, gateway, run, runs, telemetry};

const EXIT_CODES: &str = "\
Exit codes:
  0 ok            3 failed        6 conflict     9 declined       75 busy        130 interrupted
  1 error         4 login         7 no_answer   20 no_go          77 forbidden   141 reader_gone
  2 usage         5 not_found     8 pending     69 unavailable    78 config

Examples:
  viworks up                                   a backend and three gateways on this machine
  viworks run sys.uptime --all                 run a command everywhere and show what came out
  viworks run net.ping host=127.0.0.1 -g gw-berlin
  viworks runs ls                              what was run, by whom, and how it ended";

/// Runs allow-listed commands on gateways behind NAT, and reads their telemetry.
#[derive(Debug, Parser)]
#[command(name = "viworks", version, after_help = EXIT_CODES, propagate_version = true, disable_help_subcommand = true)]
pub struct Arguments {
    /// What holds for every verb.
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Where the help of a verb shows the flags that every verb has.
const GLOBAL: &str = "Options of every verb";

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// How results are printed: table or json
    #[arg(
        short,
        long,
        global = true,
        help_heading = GLOBAL,
        value_parser = format,
        value_name = "FORMAT",
        default_value = "table",
        env = "VIWORKS_OUTPUT"
    )]
    pub output: Format,
    /// The backend's API, such as `http://127.0.0.1:8080`
    #[arg(long, global = true, help_heading = GLOBAL, env = "VIWORKS_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// A file that holds the API key
    #[arg(long, global = true, help_heading = GLOBAL, env = "VIWORKS_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Send the API key to another machine even where the address is http:// and everybody on the way can read it
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub allow_http: bool,
    /// Use this context instead of the selected one
    #[arg(
        short,
        long,
        global = true,
        help_heading = GLOBAL,
        env = "VIWORKS_CONTEXT",
        value_name = "NAME"
    )]
    pub context: Option<String>,
    /// Where contexts are kept [default: ~/.config/viworks]
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        env = "VIWORKS_CONFIG_DIR",
        value_name = "DIR",
        hide = true
    )]
    pub config_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the local demo: a backend, gateways over mutual TLS, a first command
    #[command(
        after_help = "Examples:\n  viworks up\n  viworks up --once --agents 5\n  viworks up --reset --data-dir ./demo"
    )]
    Up {
        /// How many gateways
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
        agents: u16,
        /// Run the first command, print the answers, stop everything
        #[arg(long)]
        once: bool,
        /// Remove what an earlier demo made here first; whatever else lies there stays
        #[arg(long)]
        reset: bool,
        /// Where certificates, databases and logs live
        #[arg(long, default_value = demo::layout::DEFAULT_FOLDER, value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Stop the local demo
    #[command(after_help = "Example:\n  viworks down")]
    Down {
        /// Where the demo lives
        #[arg(long, default_value = demo::layout::DEFAULT_FOLDER, value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Run an allow-listed command on gateways
    #[command(
        after_help = "Examples:\n  viworks run sys.uptime --all\n  viworks run log.tail unit=ssh lines=50 -g gw-berlin\n  viworks run service.restart unit=nginx -g gw-lyon,gw-oslo --yes --reason 'new certificate'"
    )]
    Run(run::Options),
    /// What was run, and how it ended
    #[command(subcommand, alias = "run-history")]
    Runs(runs::Verb),
    /// Gateways: who they are and whether they answer
    #[command(subcommand, visible_alias = "gw", alias = "gateways")]
    Gateway(gateway::Verb),
    /// The catalogue: what may be run, and where
    #[command(subcommand, visible_alias = "cmd")]
    Command(catalogue::Verb),
    /// Read a gateway's telemetry
    #[command(
        after_help = "Examples:\n  viworks telemetry -g gw-berlin\n  viworks telemetry -g gw-berlin --stream host.cpu --since 1h -o json"
    )]
    Telemetry(telemetry::Options),
    /// Contexts: the backends that are remembered, and which one is meant when none is named
    #[command(
        subcommand,
        after_help = "Examples:\n  viworks context ls\n  viworks context use demo-2"
    )]
    Context(context::Verb),
    /// The exit codes of every program of ViWorkS
    ExitCodes,
    /// What an error code means and what to do about it
    #[command(
        after_help = "Examples:\n  viworks error                   every code\n  viworks error VW-C-001          of the API\n  viworks error 4429              a close code, from an agent's log\n  viworks error identity_fork     the same by name"
    )]
    Error {
        /// A code of the API, or the number or name of a close code; every code when absent
        code: Option<String>,
    },
}

/// Carries out what was asked.
pub async fn execute(arguments: Arguments) -> Result<ExitCode, Failure> {
    let global = arguments.global;
    let client = || -> Result<Client, Failure> {
        let target = context::resolve(&global)?;
        Client::new(
            &target.server,
            target.token_file.as_deref(),
            global.allow_http,
        )
    };
    match arguments.verb {
        Verb::Up {
            agents,
            once,
            reset,
            data_dir,
        } => {
            let options = demo::Options {
                agents: usize::from(agents),
                once,
                reset,
                data_dir,
                format: global.output,
                config_dir: global.config_dir.clone(),
            };
            demo::up(&options).await
        }
        Verb::Down { data_dir } => {
            demo::down(&data_dir, global.config_dir.as_deref()).await?;
            Ok(ExitCode::Ok)
        }
        Verb::Run(options) => run::run(&client()?, &options, global.output).await,
        Verb::Runs(verb) => runs::execute(&client()?, verb, global.output).await,
        Verb::Gateway(verb) => gateway::execute(&client()?, verb, global.output).await,
        Verb::Command(verb) => catalogue::execute(&client()?, verb, global.output).await,
        Verb::Telemetry(options) => telemetry::execute(&client()?, &options, global.output).await,
        Verb::Context(verb) => context::execute(global.config_dir.as_deref(), &verb, global.output),
        Verb::ExitCodes => codes::exit_codes(global.output),
        Verb::Error { code } => codes::errors(code.as_deref(), global.output),
    }
}

/// Reads a format; a variable that is empty is one that is not set.
fn format(text: &str) -> Result<Format, String> {
    match text {
        "" | "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        _ => Err("expected table or json".to_owned()),
    }
}

/// Reads how many rows are wanted: at least one.
pub fn rows(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|rows| *rows > 0)
        .ok_or_else(|| "expected a whole number from 1".to_owned())
}

/// Reads a span of time such as `30s`, `15m`, `2h` or `500ms`.
pub fn span(text: &str) -> Result<Duration, String> {
    let expected = || {
        format!("{text:?} is no span of time: expected a number and ms, s, m, h or d, such as 30s")
    };
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(expected)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_not_a_number| expected())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{Arguments, Duration, span};

    #[test]
    fn the_command_tree_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn spans_of_time_are_read_or_refused_with_the_expected_form() {
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("2h"), Ok(Duration::from_secs(7_200)));
        for text in ["", "5", "m", "5 m", "-5s", "5w", "99999999999999999999d"] {
            assert!(span(text).unwrap_err().contains("such as 30s"), "{text:?}");
        }
    }
}
