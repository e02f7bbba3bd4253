//! An armed process dies at its point and not before; without a harness, because the process that dies is this one.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use viworks_runtime::config::{Environment, environment};
use viworks_runtime::fault;

const POINT: &str = "journal.started.after_commit";
const CHILD: &str = "VIWORKS_TEST_PASSAGES";
const REFUSED: u8 = 3;
const SIGKILL: i32 = 9;

fn main() -> ExitCode {
    let environment = environment();
    environment
        .get(CHILD)
        .map_or_else(parent, |passages| child(&environment, passages))
}

fn child(environment: &Environment, passages: &str) -> ExitCode {
    if fault::configure(environment).is_err() {
        return ExitCode::from(REFUSED);
    }
    for _ in 0..passages.parse().unwrap_or(0) {
        fault::point("journal.started.before_commit");
        fault::point(POINT);
    }
    ExitCode::SUCCESS
}

fn parent() -> ExitCode {
    let third = format!("{POINT}:3");
    assert_eq!(
        run(Some(&third), 2).code(),
        Some(0),
        "the second passage is not the third"
    );
    assert_eq!(run(Some(&third), 3).signal(), Some(SIGKILL));
    assert_eq!(
        run(Some(POINT), 1).signal(),
        Some(SIGKILL),
        "the first passage is the default"
    );
    assert_eq!(run(None, 9).code(), Some(0), "an unarmed process lives");
    assert_eq!(
        run(Some("journal.strated"), 9).code(),
        Some(i32::from(REFUSED))
    );
    ExitCode::SUCCESS
}

fn run(armed: Option<&str>, passages: u32) -> ExitStatus {
    let myself = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new(myself);
    command
        .env(CHILD, passages.to_string())
        .env_remove(fault::VARIABLE);
    if let Some(armed) = armed {
        command.env(fault::VARIABLE, armed);
    }
    command.status().expect("this program can start itself")
}
