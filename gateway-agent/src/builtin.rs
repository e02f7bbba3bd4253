//! Commands that the agent serves itself, so that they work where a tool is missing.
//!
//! They run as `AGENT builtin NAME ARGUMENT…`, a process like any other command, through the same executor: with its
//! time limit, its output bounds, and no way to hold up the agent. Output is lines of `key: value` or a table with a
//! header, whose words stay the same between versions.

use std::io::{self, Write};

use viworks_runtime::exit::ExitCode;

use crate::host::disks::{self, Prober};
use crate::host::look;
use crate::program::{self, BUILTIN};

mod gateway;
mod network;
mod ping;
mod system;
mod table;

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
    let prober = Prober::Process(program::own());
    let result = dispatch(arguments, &prober, &mut output).and_then(|()| Ok(output.flush()?));
    match result {
        Ok(()) => 0,
        Err(error) => {
            drop(output.flush());
            if let BuiltinError::Output(error) = &error
                && error.kind() == io::ErrorKind::BrokenPipe
            {
                return ExitCode::ReaderGone.number();
            }
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
            "{BUILTIN} NAME [ARGUMENT]; names: {}",
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
        (look::LOOKER, [kind, path]) => match look::serve(kind, path) {
            Some(said) => Ok(writeln!(output, "{said}")?),
            None => Err(BuiltinError::Usage(format!("{} KIND PATH", look::LOOKER))),
        },
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
            "{BUILTIN} NAME [ARGUMENT]; names: {}",
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
    use std::time::Duration;

    use viworks_runtime::clock::{Clock as _, SystemClock};

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

    /// What a tool of the system says; `None` when this system has no such tool.
    fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
        let output = std::process::Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(said)
    }

    fn value(text: &str, key: &str) -> String {
        let line = |line: &str| Some(line.split_once(':')?.1.trim().to_owned());
        text.lines()
            .find(|found| found.starts_with(key))
            .and_then(line)
            .unwrap_or_else(|| panic!("{key} is missing from {text}"))
    }

    #[test]
    fn the_host_is_named_and_counted_as_its_own_tools_do() {
        let info = run_to_text(&["gateway.info"]).unwrap();
        let kernel = run_to_text(&["sys.kernel"]).unwrap();
        for (text, key, program, arguments) in [
            (&info, "host", "uname", &["-n"][..]),
            (&info, "kernel", "uname", &["-r"]),
            (&info, "architecture", "uname", &["-m"]),
            (&info, "processors", "nproc", &[]),
            (&kernel, "system", "uname", &["-s"]),
            (&kernel, "release", "uname", &["-r"]),
            (&kernel, "version", "uname", &["-v"]),
            (&kernel, "machine", "uname", &["-m"]),
        ] {
            if let Some(said) = said_by(program, arguments) {
                assert_eq!(value(text, key), said.trim(), "{key}: {text}");
            }
        }
    }

    #[test]
    fn memory_is_that_of_the_kernel() {
        let text = run_to_text(&["sys.memory"]).unwrap();
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        for (ours, theirs) in [
            ("total_bytes", "MemTotal"),
            ("swap_total_bytes", "SwapTotal"),
        ] {
            let theirs = value(&meminfo, theirs);
            let kibibytes: u64 = theirs.trim().trim_end_matches(" kB").parse().unwrap();
            assert_eq!(value(&text, ours), (kibibytes * 1024).to_string(), "{text}");
        }
    }

    #[test]
    fn interfaces_are_those_of_the_kernel_with_their_addresses_the_uplink_first() {
        let text = run_to_text(&["net.interfaces"]).unwrap();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        let named: std::collections::BTreeSet<&str> = rows.iter().map(|row| row[0]).collect();
        for entry in std::fs::read_dir("/sys/class/net").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let Ok(mtu) = std::fs::read_to_string(entry.path().join("mtu")) else {
                // A file such as bonding_masters, or gone meanwhile.
                continue;
            };
            assert!(named.contains(name.as_str()), "{name}: {text}");
            let row = rows.iter().find(|row| row[0] == name).unwrap();
            assert!(row.contains(&mtu.trim()), "{name} has MTU {mtu}: {text}");
        }
        for line in said_by("ip", &["-o", "addr", "show"])
            .unwrap_or_default()
            .lines()
        {
            let words: Vec<&str> = line.split_whitespace().collect();
            let row = rows.iter().find(|row| row[0] == words[1]).unwrap();
            assert!(
                row.contains(&words[3]),
                "{} of {}: {text}",
                words[3],
                words[1]
            );
        }
        let route = said_by("ip", &["-o", "route", "show", "default"]).unwrap_or_default();
        let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
        if let Some(uplink) = words.nth(1) {
            assert_eq!(rows[0][0], uplink, "{text}");
        }
    }

    #[test]
    fn a_process_has_the_memory_that_the_kernel_counts() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", child.id());
        let begun = SystemClock.now();
        let (text, is_listed) = loop {
            let text = run_to_text(&["sys.processes", "100000"]).unwrap();
            // Until exec it is this program.
            let is_listed = text.lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.first() == Some(&child.id().to_string().as_str())
                    && words.last() == Some(&"sleep")
            });
            let waited = SystemClock.now().saturating_since(begun);
            if is_listed || waited > Duration::from_secs(20) {
                break (text, is_listed);
            }
        };
        let status = std::fs::read_to_string(status);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_listed, "{} is not listed as sleep: {text}", child.id());
        let status = status.unwrap();
        let resident = value(&status, "VmRSS")
            .trim()
            .trim_end_matches(" kB")
            .to_owned();
        let theirs = table::bytes(resident.trim().parse::<u64>().unwrap() * 1024);
        let row = text
            .lines()
            .find(|line| line.trim_start().starts_with(&child.id().to_string()))
            .unwrap();
        let (ours, theirs) = (row.split_whitespace().nth(1), theirs.split(' ').next());
        let number = |text: Option<&str>| text.unwrap().parse::<f64>().unwrap();
        // The counters of single threads are added up a moment later.
        assert!(
            (number(ours) - number(theirs)).abs() <= 0.3 * number(theirs),
            "{row} {theirs:?}"
        );
    }

    #[test]
    fn names_resolve_as_they_do_for_everybody_else() {
        let text = run_to_text(&["net.resolve", "localhost"]).unwrap();
        let Some(said) = said_by("getent", &["ahosts", "localhost"]) else {
            return;
        };
        let unique = |text: &str| {
            let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
            text.lines()
                .filter_map(first)
                .collect::<std::collections::BTreeSet<_>>()
        };
        // It leaves out what this host has no use for.
        assert!(unique(&said).is_subset(&unique(&text)), "{said}: {text}");
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
