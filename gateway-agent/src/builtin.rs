//! Commands that the agent serves itself, so that they work where a tool is missing.
//!
//! They run as `AGENT builtin NAME ARGUMENT…`, a process like any other command, through the same executor: with its
//! time limit, its output bounds, and no way to hold up the agent. Output is lines of `key: value` or a table with a
//! header, whose words stay the same between versions.

use std::io::{self, Write};

use crate::catalogue;
use crate::host::disks::{self, Prober};

mod gateway;
mod network;
mod ping;
mod system;
mod table;

/// The agent's subcommand.
pub const SUBCOMMAND: &str = "builtin";

/// Every built-in command.
pub const NAMES: &[&str] = &[
    "gateway.info",
    "sys.uptime",
    "sys.kernel",
    "sys.disks",
    "sys.memory",
    "sys.processes",
    "net.interfaces",
    "net.resolve",
    "net.ping",
];

/// Why a built-in command fails.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    /// No such command, or other arguments than it takes.
    #[error("usage: {0}")]
    Usage(String),
    /// What was asked for does not exist, does not answer, or cannot be read.
    #[error("{0}")]
    Failed(String),
    /// Nobody reads the output any more.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

/// Runs the built-in command that `arguments` names, and returns the process's exit code: 0, or 1 when it failed, or
/// 64 when it was called wrongly. Blocks.
#[must_use]
pub fn run(arguments: &[String]) -> u8 {
    let mut output = io::BufWriter::new(io::stdout().lock());
    let prober = Prober::Process(catalogue::own_program());
    let result = dispatch(arguments, &prober, &mut output).and_then(|()| Ok(output.flush()?));
    match result {
        Ok(()) => 0,
        Err(error) => {
            drop(output.flush());
            // If standard error is gone as well, the exit code has to do.
            drop(writeln!(io::stderr(), "{error}"));
            match error {
                BuiltinError::Usage(_) => 64,
                BuiltinError::Failed(_) | BuiltinError::Output(_) => 1,
            }
        }
    }
}

/// Why a built-in command cannot run on this host; every one of them has a way that needs no tool.
#[must_use]
pub fn unavailable(name: &str) -> Option<String> {
    if NAMES.contains(&name) {
        None
    } else {
        Some(format!("this agent has no built-in command {name:?}"))
    }
}

fn dispatch(
    arguments: &[String],
    prober: &Prober,
    output: &mut dyn Write,
) -> Result<(), BuiltinError> {
    let Some((name, rest)) = arguments.split_first() else {
        return Err(BuiltinError::Usage(format!(
            "{SUBCOMMAND} NAME [ARGUMENT]; names: {}",
            NAMES.join(", ")
        )));
    };
    let rest: Vec<&str> = rest
        .iter()
        .map(String::as_str)
        .skip_while(|argument| *argument == "--")
        .collect();
    match (name.as_str(), rest.as_slice()) {
        ("gateway.info", []) => gateway::info(output),
        ("sys.uptime", []) => system::uptime(output),
        ("sys.kernel", []) => system::kernel(output),
        ("sys.disks", []) => system::disks(output, prober),
        (disks::PROBER, []) => Ok(disks::serve_probe(io::stdin().lock(), output)?),
        ("sys.memory", []) => system::memory(output),
        ("sys.processes", []) => system::processes(output, 20),
        ("sys.processes", [count]) => match count.parse() {
            Ok(count) => system::processes(output, count),
            Err(_) => Err(BuiltinError::Usage("sys.processes [COUNT]".to_owned())),
        },
        ("net.interfaces", []) => network::interfaces(output),
        ("net.resolve", [name]) => network::resolve(output, name),
        ("net.ping", [host]) => ping::ping(output, host),
        _ => Err(BuiltinError::Usage(format!(
            "{SUBCOMMAND} NAME [ARGUMENT]; names: {}",
            NAMES.join(", ")
        ))),
    }
}

fn failed(what: &str) -> impl FnOnce(sysinfo::Error) -> BuiltinError {
    let what = what.to_owned();
    move |error| BuiltinError::Failed(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_to_text(arguments: &[&str]) -> Result<String, BuiltinError> {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let mut output = Vec::new();
        dispatch(&arguments, &Prober::Myself, &mut output)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    #[test]
    fn each_command_without_arguments_prints_what_its_name_says() {
        for (name, expected) in [
            ("gateway.info", "agent_version: "),
            ("sys.uptime", "uptime_seconds: "),
            ("sys.kernel", "release: "),
            ("sys.disks", "MOUNT"),
            ("sys.memory", "total_bytes: "),
            ("sys.processes", "PID"),
            ("net.interfaces", "INTERFACE"),
        ] {
            let text = run_to_text(&[name]).unwrap();
            assert!(text.contains(expected), "{name}: {text}");
            assert!(text.ends_with('\n'), "{name}");
        }
    }

    #[test]
    fn the_number_of_processes_is_bounded_by_the_argument() {
        let text = run_to_text(&["sys.processes", "1"]).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn loopback_resolves_and_answers() {
        assert!(
            run_to_text(&["net.resolve", "--", "127.0.0.1"])
                .unwrap()
                .contains("127.0.0.1")
        );
        let text = run_to_text(&["net.ping", "--", "127.0.0.1"]).unwrap();
        assert!(text.contains("127.0.0.1"), "{text}");
    }

    #[test]
    fn an_unknown_name_or_argument_is_a_usage_error() {
        for arguments in [
            &[][..],
            &["sys.nothing"],
            &["sys.uptime", "x"],
            &["sys.processes", "x"],
        ] {
            assert!(
                matches!(run_to_text(arguments), Err(BuiltinError::Usage(_))),
                "{arguments:?}"
            );
        }
    }
}
