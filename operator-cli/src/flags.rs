//! The command tree: every verb, flag and help text. What is done about them is in the room of the verbs.

mod audit;
mod authority;
mod catalogue;
mod context;
mod diag;
mod dlq;
mod gateway;
mod key;
mod pin;
mod run;
mod runs;
mod telemetry;
mod ticket;
mod validate;
mod value;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use self::audit::{Audit, ListAudit};
pub use self::authority::Authority;
pub use self::catalogue::Catalogue;
pub use self::context::Context;
pub use self::diag::Diag;
pub use self::dlq::Dlq;
pub use self::gateway::{Gateway, ReplaceGateway};
pub use self::key::Key;
pub use self::pin::{Pin, PinStep};
pub use self::run::Run;
pub use self::runs::Runs;
pub use self::telemetry::Telemetry;
pub use self::ticket::{CreateTicket, Ticket};
pub use self::validate::Validate;
use crate::demo::layout::DEFAULT_FOLDER;
use crate::demo::stores::Stores;
use crate::output::Format;

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

/// Run allow-listed commands on gateways behind NAT, and read their telemetry.
#[derive(Debug, Parser)]
#[command(name = "viworks", version, after_help = EXIT_CODES, propagate_version = true, disable_help_subcommand = true)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where the help of a verb shows the flags that every verb has.
const GLOBAL: &str = "Options of every verb";

/// Flags of every verb.
#[derive(Debug, Args)]
pub struct Global {
    /// How results are printed: table or json
    #[arg(
        short,
        long,
        global = true,
        help_heading = GLOBAL,
        value_parser = value::format,
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
pub enum Verb {
    /// Start the local demo: a backend, gateways over mutual TLS, a first command
    #[command(
        after_help = "Examples:\n  viworks up\n  viworks up --once --agents 5\n  viworks up --reset --data-dir ./demo\n  viworks up --stores postgres,redis --data-dir ./demo-servers"
    )]
    Up(Up),
    /// Stop the local demo
    #[command(after_help = "Example:\n  viworks down")]
    Down {
        /// Where the demo lives
        #[arg(long, default_value = DEFAULT_FOLDER, value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Run an allow-listed command on gateways
    #[command(
        after_help = "Examples:\n  viworks run sys.uptime --all\n  viworks run log.tail unit=ssh lines=50 -g gw-berlin\n  viworks run service.restart unit=nginx.service -g gw-lyon,gw-oslo --yes --reason 'new certificate'"
    )]
    Run(Run),
    /// What was run, and how it ended
    #[command(subcommand, alias = "run-history")]
    Runs(Runs),
    /// The audit trail: who did what to what, and how it ended
    #[command(
        subcommand,
        after_help = "Examples:\n  viworks audit ls -g gw-berlin\n  viworks audit show 81"
    )]
    Audit(Audit),
    /// Dead letters: commands that could not be delivered, to be retried or discarded
    #[command(
        subcommand,
        after_help = "Examples:\n  viworks dlq ls\n  viworks dlq retry 01940f5e-8a11-7000-8000-0000000000c1"
    )]
    Dlq(Dlq),
    /// Gateways: who they are and whether they answer
    #[command(subcommand, visible_alias = "gw", alias = "gateways")]
    Gateway(Gateway),
    /// Enrolment tickets: what machines become gateways by
    #[command(subcommand, alias = "tickets")]
    Ticket(Ticket),
    /// Pins: which keys of the server gateways trust, and how one follows another
    #[command(subcommand, alias = "pins")]
    Pin(Pin),
    /// Authorities: which of them gateways are given, who has them, and who needs which
    #[command(subcommand, alias = "authorities")]
    Authority(Authority),
    /// Keys that gateways share with the backend: given anew over their sessions
    #[command(subcommand, alias = "keys")]
    Key(Key),
    /// The catalogue: what may be run, and where
    #[command(subcommand, visible_alias = "cmd")]
    Command(Catalogue),
    /// Read a gateway's telemetry
    #[command(
        after_help = "Examples:\n  viworks telemetry -g gw-berlin\n  viworks telemetry -g gw-berlin --stream host.cpu --since 1h -o json\n  viworks telemetry -g gw-berlin --stream host.load --field one --step 5m --agg max --since 1d"
    )]
    Telemetry(Telemetry),
    /// Contexts: the backends that are remembered, and which one is meant when none is named
    #[command(
        subcommand,
        after_help = "Examples:\n  viworks context ls\n  viworks context use demo-2"
    )]
    Context(Context),
    /// Is this installation fit for production? Go, or no-go with reasons
    #[command(after_help = validate::HELP)]
    Validate(Validate),
    /// What is in the way between this machine and a backend: the first cause and its fix
    #[command(
        after_help = "Examples:\n  viworks doctor\n  viworks doctor --context production -o json"
    )]
    Doctor {
        /// How many seconds all of it may take on a slow line
        #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=300))]
        timeout: u64,
    },
    /// What helps whoever is asked for help
    #[command(subcommand)]
    Diag(Diag),
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

/// What the demo is to be.
#[derive(Debug, Args)]
pub struct Up {
    /// How many gateways
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub agents: u16,
    /// Run the first command, print the answers, stop everything
    #[arg(long)]
    pub once: bool,
    /// Remove what an earlier demo made here first; whatever else lies there stays
    #[arg(long)]
    pub reset: bool,
    /// Where data is kept: sqlite; postgres for two backends on a private server of the PostgreSQL that is installed;
    /// postgres,redis for the same with a private Redis or Valkey between them
    /// [default: what this demo has, sqlite for a new one]
    #[arg(long, value_name = "STORES", value_parser = Stores::read)]
    pub stores: Option<Stores>,
    /// Where certificates, databases and logs live
    #[arg(long, default_value = DEFAULT_FOLDER, value_name = "DIR")]
    pub data_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser as _};

    use super::Arguments;

    #[test]
    fn a_script_may_say_yes_to_every_verb_that_revokes() {
        fn look(command: &clap::Command, way: &str, found: &mut Vec<String>) {
            for verb in command.get_subcommands() {
                let way = format!("{way} {}", verb.get_name());
                if verb.get_name() == "revoke" {
                    let has_yes = verb
                        .get_arguments()
                        .any(|flag| flag.get_long() == Some("yes"));
                    assert!(has_yes, "{way} has no --yes");
                    found.push(way.clone());
                }
                look(verb, &way, found);
            }
        }
        let mut found = Vec::new();
        look(&Arguments::command(), "viworks", &mut found);
        for known in ["viworks ticket revoke", "viworks gateway revoke"] {
            assert!(found.iter().any(|way| way == known), "{found:?}");
        }
    }

    #[test]
    fn the_command_tree_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn where_one_of_two_is_needed_the_error_names_both_and_takes_one() {
        let id = "01940f5e-0003-7000-8000-0000000000f3";
        for (verb, one, other) in [
            ("gateway resolve gw-1", "--keep", "--replace"),
            ("gateway revoke --reason x", "<GATEWAY", "--of-ticket"),
            ("key rotate", "<GATEWAY", "--all"),
        ] {
            let words = format!("viworks {verb}");
            let error = Arguments::try_parse_from(words.split(' ')).unwrap_err();
            let told = error.render().to_string();
            let required = told.split("Usage:").next().unwrap();
            assert!(required.contains(one) && required.contains(other), "{told}");
        }
        for (taken, words) in [
            (true, format!("gateway resolve gw-1 --keep {id}")),
            (true, "gateway resolve gw-1 --replace".to_owned()),
            (false, format!("gateway resolve gw-1 --replace --keep {id}")),
            (true, "gateway revoke gw-1 --reason x".to_owned()),
            (true, format!("gateway revoke --of-ticket {id} --reason x")),
            (
                false,
                format!("gateway revoke gw-1 --of-ticket {id} --reason x"),
            ),
            (true, "key rotate gw-1".to_owned()),
            (true, "key rotate --all".to_owned()),
            (false, "key rotate gw-1 --all".to_owned()),
        ] {
            let parsed = Arguments::try_parse_from(format!("viworks {words}").split(' '));
            assert_eq!(parsed.is_ok(), taken, "{words}");
        }
    }
}
