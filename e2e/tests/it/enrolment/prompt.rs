//! Somebody at a terminal who is asked for the ticket.

use std::process::Command;

use rustix::process::Signal;
use serde_json::json;
use viworks_testkit::deployment::Deployment;
use viworks_testkit::process::{Process, eventually};
use viworks_testkit::terminal::Terminal;

use super::{LIMIT, backend, folder, gateways, ticket};

fn start(system: &Deployment, terminal: &Terminal) -> Process {
    let mut command = Command::new(system.binaries().gateway());
    command.args(["enroll", "--demo", "--out"]);
    command.arg(folder(system, "gw-1"));
    terminal.start(command).unwrap()
}

async fn shows(terminal: &mut Terminal, what: &str) {
    eventually(what, LIMIT, async || {
        terminal.shown().contains(what).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_stops_or_ends_it_at_the_question_leaves_the_terminal_as_it_was() {
    let system = backend().await;
    let mut terminal = Terminal::open().unwrap();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let mut process = start(&system, &terminal);
        eventually("it does not show what is typed", LIMIT, async || {
            (!terminal.echoes().unwrap()).then_some(())
        })
        .await;
        shows(&mut terminal, "Ticket: ").await;
        process.signal(signal);
        let ended = process.wait(LIMIT).await;
        assert_eq!(ended.code(), Some(130), "{}", terminal.shown());
        assert!(terminal.echoes().unwrap(), "{signal:?}");
    }
    // Who lets it go on is asked again.
    let mut process = start(&system, &terminal);
    for (signal, echoes) in [
        (None, false),
        (Some(Signal::TSTP), true),
        (Some(Signal::CONT), false),
    ] {
        if let Some(signal) = signal {
            process.signal(signal);
        }
        eventually("the terminal is as it is to be", LIMIT, async || {
            (terminal.echoes().unwrap() == echoes).then_some(())
        })
        .await;
    }
    process.signal(Signal::INT);
    assert_eq!(process.wait(LIMIT).await.code(), Some(130));
    assert!(!folder(&system, "gw-1").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_whose_line_was_broken_on_the_way_is_taken_whole() {
    let system = backend().await;
    let ticket = ticket(&system, &json!({"uses": 1, "name": "gw-1"})).await;
    let mut terminal = Terminal::open().unwrap();
    // The rest comes at once, or later; an empty line gives it up.
    let (front, back) = ticket.split_at(100);
    let mut process = start(&system, &terminal);
    shows(&mut terminal, "Ticket: ").await;
    terminal.type_in(&format!("{front}\n\n")).unwrap();
    assert_eq!(process.wait(LIMIT).await.code(), Some(2));
    shows(&mut terminal, "cut off after 100").await;
    let mut terminal = Terminal::open().unwrap();
    let mut process = start(&system, &terminal);
    shows(&mut terminal, "Ticket: ").await;
    terminal.type_in(&format!("{front}\n")).unwrap();
    shows(&mut terminal, "100 of its").await;
    assert!(!terminal.echoes().unwrap());
    let (middle, end) = back.split_at(20);
    terminal.type_in(&format!("{middle}\n  {end}\n")).unwrap();
    shows(&mut terminal, "This machine is a gateway now").await;
    assert!(process.wait(LIMIT).await.success());
    assert!(!terminal.shown().contains(end));
    assert_eq!(gateways(&system).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_is_looked_at_is_not_shown_either() {
    let system = backend().await;
    let ticket = ticket(&system, &json!({"uses": 1, "name": "gw-1"})).await;
    let mut terminal = Terminal::open().unwrap();
    let inspect = |terminal: &Terminal| {
        let mut command = Command::new(system.binaries().cli());
        command.args(["ticket", "inspect"]);
        command.env("VIWORKS_CONFIG_DIR", system.path().join("contexts"));
        terminal.start(command).unwrap()
    };
    let mut process = inspect(&terminal);
    shows(&mut terminal, "Ticket: ").await;
    assert!(!terminal.echoes().unwrap());
    terminal.type_in(&format!("{ticket}\n")).unwrap();
    // It ends by itself: nobody has to say that this was all.
    assert!(process.wait(LIMIT).await.success(), "{}", terminal.shown());
    for part in ticket.as_bytes().chunks_exact(16) {
        let part = std::str::from_utf8(part).unwrap();
        assert!(!terminal.shown().contains(part), "{}", terminal.shown());
    }
    assert!(terminal.echoes().unwrap(), "it is as it was");
    let mut process = inspect(&terminal);
    eventually("it is asked for again", LIMIT, async || {
        (!terminal.echoes().unwrap()).then_some(())
    })
    .await;
    process.signal(Signal::INT);
    assert_eq!(process.wait(LIMIT).await.code(), Some(130));
    assert!(terminal.echoes().unwrap(), "it is as it was");
}
