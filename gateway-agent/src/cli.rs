//! The agent's command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use viworks_common::enrolment::told_of_tickets;
use viworks_common::id::GatewayName;
use viworks_common::text;
use viworks_runtime::ask::ANSWER_SECONDS;
use viworks_runtime::bundle::BundleError;
use viworks_runtime::checked::Checked;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::{Environment, Explained, Form, Problems, environment};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::FileError;
use viworks_runtime::lifecycle::run_to_end;
use viworks_runtime::logging;
use viworks_runtime::ready_file::{ReadyFileError, file_of};
use viworks_runtime::sqlite;
use viworks_runtime::stdout::{self, PrintError};

use crate::config::{self, Config};
use crate::enrol::EnrolError;
use crate::identity::IdentityError;
use crate::setup::Setup;
use crate::{app, builtin, journal, launcher, program};

mod diag;
mod doctor;
mod enroll;
mod health;
pub mod helper;
mod status;

/// Where the package's service looks for its configuration.
const INSTALLED: &str = "/etc/viworks";

#[derive(Debug, Parser)]
#[command(
    name = "viworks-gateway-agent",
    version,
    about = "The agent on every gateway"
)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Connect to the backend and serve until told to stop
    Run {
        /// The configuration
        #[arg(long, default_value = "/etc/viworks/gateway.toml")]
        config: PathBuf,
        /// A file that is written once the agent serves
        #[arg(long)]
        ready_file: Option<PathBuf>,
        /// The agent's own folder, whatever the configuration says
        #[arg(long, value_name = "DIR")]
        state_folder: Option<PathBuf>,
    },
    /// Make a gateway of this machine, with a ticket of `viworks ticket create`
    ///
    /// Asks for the ticket, or reads it from --ticket-file or the standard input: never from the command line, which
    /// others can read. The key is made here and stays here. Writes the configuration, the keys and the shipped
    /// catalogue, and tries the connection. After an interruption, run it again: it goes on where it was.
    /// Ends with 0 when this is a gateway, 69 when the backend cannot be reached or understood or another server
    /// answers in its place, and where the disk has no room, 77 when it refuses, 6 when something is in the way, 78
    /// when no agent could start here, 1 when the clock is off.
    Enroll {
        /// Where everything goes
        #[arg(long, value_name = "DIR", default_value = INSTALLED)]
        out: PathBuf,
        /// How the gateway is to be called, whole, with the prefix that the ticket may have; when left out it is the
        /// ticket's prefix and what this machine calls itself
        #[arg(long)]
        name: Option<GatewayName>,
        /// The file that holds the ticket, readable by its owner only; `-` for the standard input
        #[arg(long, value_name = "FILE")]
        ticket_file: Option<PathBuf>,
        /// Without a way to the door: make the key and write a request for its certificate, a new file, and no more
        ///
        /// The key stays here. `viworks-backend-agent pki sign-request` answers the request on a backend's machine.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "ticket_file", "answer"])]
        request_out: Option<PathBuf>,
        /// The file that answers the request which was made here, readable by its owner only
        #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "ticket_file"])]
        answer: Option<PathBuf>,
        /// How long it is tried again while the backend is busy or not reached, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        #[arg(value_parser = clap::value_parser!(u64).range(0..=86_400))]
        wait: u64,
        /// As one of the local demo
        #[arg(long, hide = true)]
        demo: bool,
    },
    /// Check everything that a start reads, and list every problem: the configuration, the files that it names, the
    /// catalogue and the agent's own folder
    CheckConfig {
        /// The configuration
        #[arg(long, default_value = "/etc/viworks/gateway.toml")]
        config: PathBuf,
        /// The agent's own folder, whatever the configuration says
        #[arg(long, value_name = "DIR")]
        state_folder: Option<PathBuf>,
        /// For people or for programs
        #[arg(short, long, value_enum, default_value_t = status::Format::Table)]
        output: status::Format,
    },
    /// What can be set, and what is set
    #[command(subcommand)]
    Config(ConfigAction),
    /// Ask the running agent how it is: connected or why not, what to do about that, what is wrong, and what waits
    ///
    /// Ends with 0 when it is connected and nothing fails, 69 when it is not connected or does not answer, 20 when it
    /// is connected and a condition fails, 78 when the configuration cannot be used and no agent answers either.
    Status {
        /// The configuration, which names the agent's socket
        #[arg(long, default_value = "/etc/viworks/gateway.toml")]
        config: PathBuf,
        /// The agent's socket; then no configuration is read
        #[arg(long, conflicts_with = "config")]
        socket: Option<PathBuf>,
        /// For people or for programs
        #[arg(short, long, value_enum, default_value_t = status::Format::Table)]
        output: status::Format,
    },
    /// Ask the running agent whether it is well, in one line: for service managers, containers and scripts
    ///
    /// Ends with 0 when it is, 69 when it is not connected or does not answer, 20 when it is connected and a part
    /// fails, 78 when the configuration cannot be used and no agent answers either.
    Health {
        /// The configuration, which names the agent's socket
        #[arg(long, default_value = "/etc/viworks/gateway.toml")]
        config: PathBuf,
        /// The agent's socket; then no configuration is read
        #[arg(long, conflicts_with = "config")]
        socket: Option<PathBuf>,
        /// What is asked
        #[arg(long, value_enum, default_value_t = health::Probe::Ready)]
        probe: health::Probe,
        /// How long the answer may take, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = ANSWER_SECONDS)]
        #[arg(value_parser = clap::value_parser!(u64).range(1..=60))]
        timeout: u64,
        /// For people or for programs
        #[arg(short, long, value_enum, default_value_t = status::Format::Table)]
        output: status::Format,
    },
    /// Walk over everything that a connection needs, and name the first thing that is not right and its fix
    ///
    /// Looks at configuration, disk, certificate, agent, DNS, TCP, TLS, upgrade and clock, whether the agent runs or
    /// not, and disturbs no session. Run it as the agent's user. Ends with 0 when all is well, 69 when there is no
    /// connection, 20 when something else fails, 78 when the configuration is refused.
    Doctor {
        /// The configuration
        #[arg(long, default_value = "/etc/viworks/gateway.toml")]
        config: PathBuf,
        /// The agent's own folder, whatever the configuration says
        #[arg(long, value_name = "DIR")]
        state_folder: Option<PathBuf>,
        /// How long all of it may take, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = ANSWER_SECONDS)]
        #[arg(value_parser = clap::value_parser!(u64).range(1..=300))]
        timeout: u64,
        /// For people or for programs
        #[arg(short, long, value_enum, default_value_t = status::Format::Table)]
        output: status::Format,
    },
    /// What helps whoever is asked for help
    #[command(subcommand)]
    Diag(DiagAction),
    /// Serve a command of the catalogue
    #[command(hide = true)]
    Builtin {
        /// Its name and arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum DiagAction {
    /// Collect what helps into one new file, and list what is in it
    ///
    /// What looks like a secret is taken out. It has the configuration and what check-config says of it, what is public
    /// of the certificates, the sizes of the files in the state folder, limits of the machine, and what the running
    /// agent answers. Run it as the agent's user.
    Collect {
        /// The configuration
        #[arg(long, default_value = "/etc/viworks/gateway.toml")]
        config: PathBuf,
        /// The agent's own folder, whatever the configuration says
        #[arg(long, value_name = "DIR")]
        state_folder: Option<PathBuf>,
        /// A log of which the end is taken along; `-` for the standard input, as of journalctl
        #[arg(long, value_name = "FILE")]
        log: Option<PathBuf>,
        /// Where it goes, a new file; a name with the time in this folder when left out
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Print a configuration with every key and what it is for, to begin with
    Example,
    /// Print every key with the value that is in force and where it came from: the file or one in conf.d with its
    /// line, a variable of the environment, or the default. Of secrets it names the files only
    Explain {
        /// The configuration
        #[arg(long, default_value = "/etc/viworks/gateway.toml")]
        config: PathBuf,
        /// The agent's own folder, whatever the configuration says
        #[arg(long, value_name = "DIR")]
        state_folder: Option<PathBuf>,
        /// For people or for programs
        #[arg(short, long, value_enum, default_value_t = status::Format::Table)]
        output: status::Format,
    },
    /// Print the reference of all keys as Markdown
    Reference,
    /// Print the JSON Schema of the configuration, for editors and other programs
    Schema,
}

/// Does what the arguments say and returns what the process ends with.
#[must_use]
pub fn main(arguments: &[String]) -> std::process::ExitCode {
    // Before anything is parsed: its arguments are its own.
    if arguments
        .get(1)
        .is_some_and(|first| first == program::BUILTIN)
    {
        return builtin::run(arguments.get(2..).unwrap_or_default()).into();
    }
    if arguments
        .get(1)
        .is_some_and(|first| first == launcher::SUBCOMMAND)
    {
        return launcher::run().into();
    }
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            if error.use_stderr() {
                not_understood(&error, arguments);
                return ExitCode::Usage.into();
            }
            return asked(&error.render().to_string()).into();
        }
    };
    let code = match act(parsed.action) {
        Ok(code) => code,
        Err(error) if matches!(error.downcast_ref(), Some(PrintError::ReaderGone)) => {
            ExitCode::ReaderGone
        }
        Err(error) => {
            logging::say(&format!("error: {error:#}"));
            if let Some(fix) = fix_of(&error) {
                logging::say(&format!("  fix: {fix}"));
            }
            code_of(&error)
        }
    };
    logging::flush();
    code.into()
}

/// Every subcommand and flag, for what is written about them: manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Says what is wrong with the arguments. If nobody reads it, the exit code has to do.
fn not_understood(error: &clap::Error, arguments: &[String]) {
    match told_of_tickets(&error.render().to_string(), arguments) {
        Some(told) => logging::say(&told),
        None => drop(error.print()),
    }
}

/// Prints the help or the version.
fn asked(text: &str) -> ExitCode {
    match stdout::print(text) {
        Ok(()) => ExitCode::Ok,
        Err(PrintError::ReaderGone) => ExitCode::ReaderGone,
        Err(error @ PrintError::Failed(_)) => {
            logging::say(&format!("error: {error}"));
            logging::flush();
            ExitCode::Error
        }
    }
}

/// What to do about an error that does not say so itself.
fn fix_of(error: &anyhow::Error) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref::<EnrolError>() {
        return error.fix();
    }
    if let Some(error) = error.downcast_ref::<BundleError>() {
        return error.fix();
    }
    if let Some(ReadyFileError::File(error)) = error.downcast_ref() {
        return error.named_fix();
    }
    None
}

fn code_of(error: &anyhow::Error) -> ExitCode {
    if error.is::<Problems>() {
        return ExitCode::Config;
    }
    if let Some(error) = error.downcast_ref::<EnrolError>() {
        return error.exit_code();
    }
    if let Some(error) = error.downcast_ref::<BundleError>() {
        return error.exit_code();
    }
    let causes = error.chain();
    let database = causes.filter_map(|cause| cause.downcast_ref::<sqlite::Error>());
    match (error.downcast_ref::<IdentityError>(), database.last()) {
        (Some(IdentityError::File(error)), _) => error.exit_code(),
        (Some(_), _) => ExitCode::Config,
        // Above all one of a later version, which has changed its schema.
        (None, Some(error)) if error.is_lasting() => ExitCode::Config,
        // What is found to be damaged only when it is read stays so as well.
        (None, _) if journal::is_damage(error) => ExitCode::Config,
        // Room may be made while the service manager tries again.
        (None, Some(sqlite::Error::Full(_))) => ExitCode::Unavailable,
        (None, _) => file_of(error.chain()).map_or(ExitCode::Error, FileError::exit_code),
    }
}

fn act(action: Action) -> anyhow::Result<ExitCode> {
    match action {
        Action::Run {
            config,
            ready_file,
            state_folder,
        } => {
            let load = move || load(&config, state_folder);
            run_to_end(runtime()?, app::run(load, ready_file))
        }
        Action::Enroll {
            out,
            name,
            ticket_file,
            request_out,
            answer,
            wait,
            demo,
        } => {
            let by = match (request_out, answer) {
                (Some(out), _) => enroll::By::Request(out),
                (None, Some(file)) => enroll::By::Answer(file),
                (None, None) => enroll::By::Ticket(ticket_file),
            };
            let (folder, home) = enroll::home(&out, Path::new(INSTALLED), demo);
            let asked = enroll::Asked {
                folder,
                name,
                by,
                home,
                patience: Duration::from_secs(wait),
            };
            run_to_end(runtime()?, enroll::enroll(asked))
        }
        Action::CheckConfig {
            config,
            state_folder,
            output,
        } => check_config(&config, state_folder, output),
        Action::Config(action) => act_on_config(action),
        Action::Status {
            config,
            socket,
            output,
        } => {
            let (socket, problems) = socket_of(socket, &config);
            run_to_end(runtime()?, status::show(&socket, problems, output))
        }
        Action::Health {
            config,
            socket,
            probe,
            timeout,
            output,
        } => {
            let (socket, problems) = socket_of(socket, &config);
            let limit = Duration::from_secs(timeout);
            let asked = health::show(&socket, problems, probe, limit, output);
            run_to_end(runtime()?, asked)
        }
        Action::Doctor {
            config,
            state_folder,
            timeout,
            output,
        } => {
            let asked = doctor::Asked {
                config: std::path::absolute(&config).unwrap_or(config),
                environment: overlay(state_folder),
                limit: Duration::from_secs(timeout),
            };
            run_to_end(runtime()?, doctor::walk(asked, output))
        }
        Action::Diag(DiagAction::Collect {
            config,
            state_folder,
            log,
            out,
        }) => {
            let asked = diag::Asked {
                config: std::path::absolute(&config).unwrap_or(config),
                environment: overlay(state_folder),
                log,
                out,
            };
            run_to_end(runtime()?, diag::collect(asked))
        }
        Action::Builtin { arguments } => {
            // Unreachable by way of `main`, which looks first; the same all the same.
            let code = builtin::run(&arguments);
            Ok(if code == 0 {
                ExitCode::Ok
            } else {
                ExitCode::Error
            })
        }
    }
}

/// Where the agent is asked, and what is wrong with the configuration that says so.
fn socket_of(socket: Option<PathBuf>, config: &Path) -> (PathBuf, Option<Problems>) {
    if let Some(socket) = socket {
        return (socket, None);
    }
    let (config, problems) = Config::read_to_ask(config, &environment());
    (config.gateway.socket, problems)
}

/// What a start would say of everything that it reads.
fn check_config(
    config: &Path,
    state_folder: Option<PathBuf>,
    output: status::Format,
) -> anyhow::Result<ExitCode> {
    let mut checked = Checked::default();
    let looked = load(config, state_folder).and_then(|setup| {
        let unfinished = setup.look_over()?;
        Ok((setup.warnings, unfinished))
    });
    let ended: anyhow::Result<()> = match looked {
        Ok((warnings, unfinished)) => {
            checked.warnings = warnings;
            checked.warnings.extend(unfinished);
            checked.found.push(format!("{} is valid", config.display()));
            Ok(())
        }
        Err(problems) => {
            checked.problems = problems.iter().cloned().collect();
            Err(problems.into())
        }
    };
    let shown = checked.show(output == status::Format::Json);
    // What the check ended with says more than that its output could not be written.
    ended?;
    shown?;
    Ok(ExitCode::Ok)
}

fn act_on_config(action: ConfigAction) -> anyhow::Result<ExitCode> {
    let form = match action {
        ConfigAction::Example => Form::Example,
        ConfigAction::Reference => Form::Reference,
        ConfigAction::Schema => Form::Schema,
        ConfigAction::Explain {
            config,
            state_folder,
            output,
        } => {
            let path = std::path::absolute(&config).unwrap_or(config);
            let (explained, problems) = match Config::explain(&path, &overlay(state_folder)) {
                Ok(found) => found,
                // A program has its document all the same.
                Err(problems) if output == status::Format::Json => {
                    (Explained::default(), Err(problems))
                }
                Err(problems) => return Err(problems.into()),
            };
            let shown = match output {
                status::Format::Table => explained.to_string(),
                status::Format::Json => {
                    let wrong = problems.as_ref().err();
                    let told = explained.json(wrong.into_iter().flat_map(Problems::iter));
                    text::json(&format!("{told:#}\n")).into_owned()
                }
            };
            print(&shown)?;
            problems?;
            return Ok(ExitCode::Ok);
        }
    };
    print(&config::reference::describe(form))
}

/// What the start reads, and the check as well.
fn load(config: &Path, state_folder: Option<PathBuf>) -> Result<Setup, Problems> {
    Setup::load(config, &overlay(state_folder), SystemClock.wall())
}

/// The variables of this process, with the folder that was named on the command line.
fn overlay(state_folder: Option<PathBuf>) -> Environment {
    let variables = environment();
    let Some(folder) = state_folder else {
        return variables;
    };
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    variables.with("VIWORKS__GATEWAY__STATE_FOLDER", &folder.to_string_lossy())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the async runtime")
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    stdout::print(text)?;
    Ok(ExitCode::Ok)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use viworks_common::enrolment::TICKET_SHOWN;

    use super::*;
    use crate::journal::JournalError;

    #[test]
    fn whoever_asks_about_an_agent_that_stands_still_knows_within_five_seconds() {
        for verb in ["health", "doctor"] {
            let action = Arguments::parse_from(["agent", verb]).action;
            let (Action::Health { timeout, .. } | Action::Doctor { timeout, .. }) = action else {
                panic!("{verb} is another verb");
            };
            assert_eq!(timeout, 4, "{verb}");
        }
        assert_eq!(viworks_runtime::ask::ANSWER_TIME, Duration::from_secs(4));
    }

    #[test]
    fn a_journal_that_is_found_to_be_damaged_is_not_worth_another_start() {
        let broken = JournalError::Broken {
            path: Arc::from(Path::new("/x/journal.db")),
            cause: "the database is damaged".to_owned(),
        };
        let error = anyhow::Error::new(broken).context("/x/journal.db cannot be used");
        assert_eq!(code_of(&error), ExitCode::Config);
        let full = anyhow::Error::new(JournalError::Full(8));
        assert_eq!(code_of(&full), ExitCode::Error);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_no_unexpected_failure() {
        let refused = |errno: i32| FileError::Io {
            action: "write",
            path: PathBuf::from("/x/new"),
            source: std::io::Error::from_raw_os_error(errno),
        };
        let (missing, full) = (2, 28);
        for (errno, code) in [(missing, ExitCode::Config), (full, ExitCode::Unavailable)] {
            let ready = anyhow::Error::new(ReadyFileError::File(refused(errno)));
            assert!(fix_of(&ready).is_some(), "{errno}");
            for error in [
                ready,
                anyhow::Error::new(refused(errno)).context("a folder"),
            ] {
                assert_eq!(code_of(&error), code, "{error:#}");
            }
        }
        for error in [
            EnrolError::from(refused(full)),
            EnrolError::from(refused(full)).unkept("ticket"),
        ] {
            let error = anyhow::Error::new(error);
            assert_eq!(code_of(&error), ExitCode::Unavailable, "{error:#}");
            let fix = fix_of(&error).unwrap_or_default();
            assert!(fix.contains("make room"), "{error:#}: {fix}");
            assert!(fix.contains("run enroll again"), "{error:#}: {fix}");
        }
    }

    #[test]
    fn a_help_says_what_a_verb_is_told_to_do() {
        let root = command();
        let mut waiting = vec![&root];
        let mut seen = 0;
        while let Some(verb) = waiting.pop() {
            waiting.extend(verb.get_subcommands());
            let about = verb.get_about().map(ToString::to_string);
            let about = about.unwrap_or_default();
            let first = about.split(' ').next().unwrap_or_default();
            // As that of the backend and of the command line: print, not prints.
            assert!(!first.is_empty() && !first.ends_with('s'), "{about}");
            seen += 1;
        }
        assert!(seen > 10, "{seen}");
    }

    #[test]
    fn no_summary_ends_with_a_full_stop() {
        let root = command();
        let mut waiting = vec![&root];
        while let Some(verb) = waiting.pop() {
            waiting.extend(verb.get_subcommands());
            let flags = verb.get_arguments();
            let helps = flags.flat_map(|flag| [flag.get_help(), flag.get_long_help()]);
            let helps = helps.chain([verb.get_about(), verb.get_long_about()]);
            for help in helps.flatten().map(ToString::to_string) {
                let summary = help.split("\n\n").next().unwrap_or_default();
                assert!(!summary.ends_with('.'), "{}: {help}", verb.get_name());
            }
        }
    }

    #[test]
    fn a_ticket_in_the_wrong_place_is_not_repeated_and_is_to_be_revoked() {
        for words in [
            ["enroll", "vwt1_c2VjcmV0"].as_slice(),
            &["enroll", "--name", "vwt1_c2VjcmV0"],
            &["enroll", "--wait=vwt1_c2VjcmV0"],
            // Of a flag that is unknown only the name is repeated.
            &["enroll", "--ticket", "vwt1_c2VjcmV0"],
            &["enroll", "--ticket=vwt1_c2VjcmV0"],
            &["status", "--key=vwt1_c2VjcmV0"],
            &["vwt1_c2VjcmV0"],
        ] {
            let name = std::iter::once(&"viworks-gateway-agent");
            let arguments: Vec<&str> = name.chain(words).copied().collect();
            let error = Arguments::try_parse_from(&arguments).unwrap_err();
            let told = told_of_tickets(&error.render().to_string(), &arguments).unwrap();
            assert!(!told.contains("c2VjcmV0"), "{told}");
            assert!(told.ends_with(TICKET_SHOWN), "{told}");
        }
    }

    #[test]
    fn without_a_verb_nothing_is_started() {
        let error = Arguments::try_parse_from(["viworks-gateway-agent"]).unwrap_err();
        let kind = clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        assert_eq!(error.kind(), kind);
        // It goes where errors go, and ends as wrong arguments do.
        assert!(error.use_stderr());
    }
}
