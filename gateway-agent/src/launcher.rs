//! The first moments of a command: a session of its own, its folder, and then its program in place of this one.
//!
//! A command has no terminal: in a session of its own, opening `/dev/tty` fails at once instead of stopping it. And what
//! may hang for ever, a folder or a program behind a dead mount, hangs here, in a process with a time limit that can be
//! given up, and not in the agent. Whoever starts it holds the other end of its standard input, a socket: one byte says
//! that the session is there, the end of the stream that the program has taken over, and anything else why it did not.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The agent's subcommand.
pub const SUBCOMMAND: &str = "launch";

/// The byte that says that the session is there.
pub const READY: u8 = b'+';

/// What a launcher ends with when it could not become the program.
const FAILED: u8 = 127;

/// The arguments of a launcher, its subcommand included.
#[must_use]
pub fn arguments<'a>(
    folder: &'a Path,
    environment: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
    program: &'a Path,
    arguments: &'a [String],
) -> Vec<std::ffi::OsString> {
    let mut line = vec![
        SUBCOMMAND.into(),
        folder.as_os_str().to_owned(),
        environment.len().to_string().into(),
    ];
    line.extend(environment.map(|(name, value)| format!("{name}={value}").into()));
    line.push(program.as_os_str().to_owned());
    line.extend(arguments.iter().map(Into::into));
    line
}

/// Becomes the program. Returns only when that fails, with the exit code to end with.
#[must_use]
pub fn run(arguments: &[String]) -> u8 {
    let mut report = match prepare() {
        Ok(report) => report,
        Err(error) => {
            // Whoever started this reads standard error as the command's own.
            drop(writeln!(io::stderr(), "cannot prepare a session: {error}"));
            return FAILED;
        }
    };
    // If nobody listens, nobody is to be told.
    drop(report.write_all(become_program(arguments).as_bytes()));
    FAILED
}

/// Puts the socket aside, empties standard input, and opens a session.
fn prepare() -> io::Result<UnixStream> {
    let report: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let mut report = UnixStream::from(report);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::process::setsid()?;
    report.write_all(&[READY])?;
    Ok(report)
}

/// Why it could not.
fn become_program(arguments: &[String]) -> String {
    let Some((folder, program, environment, rest)) = split(arguments) else {
        return "the launcher was called wrongly".to_owned();
    };
    if let Err(error) = std::env::set_current_dir(folder) {
        return format!("{folder} cannot be entered: {error}");
    }
    let error = Command::new(program)
        .args(rest)
        .envs(environment.iter().filter_map(|pair| pair.split_once('=')))
        .exec();
    error.to_string()
}

fn split(arguments: &[String]) -> Option<(&String, &String, &[String], &[String])> {
    let (folder, rest) = arguments.split_first()?;
    let (count, rest) = rest.split_first()?;
    let (environment, rest) = rest.split_at_checked(count.parse().ok()?)?;
    let (program, rest) = rest.split_first()?;
    Some((folder, program, environment, rest))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_was_put_together_comes_apart_again() {
        let environment: BTreeMap<String, String> = [
            ("A".to_owned(), "1=2".to_owned()),
            ("B".to_owned(), String::new()),
        ]
        .into();
        let given = ["x".to_owned(), "--".to_owned(), String::new()];
        let program = PathBuf::from("/bin/echo");
        let line: Vec<String> = arguments(Path::new("/tmp"), environment.iter(), &program, &given)
            .into_iter()
            .map(|part| part.into_string().unwrap())
            .collect();
        assert_eq!(line[0], SUBCOMMAND);
        let (folder, program, variables, rest) = split(&line[1..]).unwrap();
        assert_eq!((folder.as_str(), program.as_str()), ("/tmp", "/bin/echo"));
        assert_eq!(variables, ["A=1=2", "B="]);
        assert_eq!(rest, given);
        assert_eq!(split(&line[1..3]), None);
    }
}
