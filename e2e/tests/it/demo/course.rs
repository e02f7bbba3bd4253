//! What a demo shows from its first step to its end, and what it stops.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{PATIENCE, text};
use viworks_testkit::process::{Process, eventually, finish};

use super::{Place, assert_three_answers, signal};

#[tokio::test]
async fn once_shows_three_answers_and_leaves_nothing_behind_twice_in_a_row() {
    let place = Place::new();
    for round in ["first", "second"] {
        let said = place.up(&["--once"]).await.ended_with(0);
        println!("{round} viworks up --once: {} ms", said.took.as_millis());
        assert_three_answers(&said);
        place.assert_nothing_runs();
    }
    let said = place.up(&["--once", "-o", "json"]).await.ended_with(0);
    let result = said.json();
    let commands = result["commands"].as_array().unwrap();
    assert_eq!(commands.len(), 3, "{result:#}");
    for command in commands {
        assert_eq!(command["state"], "succeeded", "{command:#}");
        let output = command["outcome"]["stdout"]["head"]["text"].as_str();
        let own = format!("agent_version: {}", env!("CARGO_PKG_VERSION"));
        assert!(output.unwrap().contains(&own), "{command:#}");
    }
    place.assert_nothing_runs();
}

/// Takes a port. Another test's demo may have it for a moment; what somebody else keeps is just as taken.
async fn hold(port: u16) -> Option<TcpListener> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Some(listener),
            Err(_taken) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(_taken) => return None,
        }
    }
}

#[tokio::test]
async fn taken_ports_are_no_obstacle() {
    let holders = [hold(8_080).await, hold(8_081).await];
    let place = Place::new();
    let said = place.up(&["--once", "--agents", "3"]).await.ended_with(0);
    assert_three_answers(&said);
    for port in ["8080", "8081"] {
        let note = format!("port {port} is taken; using a free one");
        assert!(said.stderr.contains(&note), "{said:#?}");
    }
    place.assert_nothing_runs();
    drop(holders);
}

#[tokio::test]
async fn a_second_up_finds_the_first_and_down_stops_all_of_it() {
    let place = Place::new();
    let mut first = place.stay().await;
    let started = place.written_down();
    let names: Vec<&str> = started.keys().map(String::as_str).collect();
    assert_eq!(names, ["backend", "gw-berlin", "gw-lyon", "gw-oslo", "up"]);
    assert_eq!(started["up"], first.pid());
    for (name, pid) in &started {
        assert!(place.running().contains_key(pid), "{name} does not run");
    }

    let second = place.up(&[]).await.ended_with(0);
    assert!(second.stderr.contains("already running"), "{second:#?}");
    assert!(second.stderr.contains("3 gateways online"), "{second:#?}");
    let second = place.up(&["--once"]).await.ended_with(0);
    assert_three_answers(&second);
    let refused = place.up(&["--reset"]).await.ended_with(6);
    assert!(refused.stderr.contains("viworks down"), "{refused:#?}");
    assert_eq!(place.written_down(), started, "the first was left alone");

    // The demo is the selected context: no address, no key.
    let said = place.run(&["run", "sys.uptime", "--all"]).await;
    let mut said = said.ended_with(0);
    // What the commands wrote comes first, each line behind its gateway's name; the table of answers follows.
    let (output, table): (Vec<&str>, Vec<&str>) =
        said.stdout.lines().partition(|line| line.contains('│'));
    for name in ["gw-berlin", "gw-lyon", "gw-oslo"] {
        let line = format!("{name} │ uptime: ");
        assert!(
            output.iter().any(|said| said.starts_with(&line)),
            "{said:#?}"
        );
    }
    said.stdout = table.join("\n");
    assert_three_answers(&said);

    let data = place.data();
    let down = ["down", "--data-dir", text(&data)];
    drop(place.run(&down).await.ended_with(0));
    assert!(first.wait(PATIENCE).await.success(), "{}", first.log());
    place.assert_nothing_runs();
    let again = place.run(&down).await.ended_with(0);
    assert!(again.stderr.contains("nothing to stop"), "{again:#?}");
}

#[tokio::test]
async fn ctrl_c_stops_everything() {
    let place = Place::new();
    let mut up = place.stay().await;
    assert_eq!(place.running().len(), 5);
    up.signal(Signal::INT);
    assert!(up.wait(PATIENCE).await.success(), "{}", up.log());
    place.assert_nothing_runs();
}

#[tokio::test]
async fn a_killed_demo_is_cleared_away_by_the_next_one() {
    let place = Place::new();
    let mut up = place.stay().await;
    up.kill();
    assert_eq!(place.running().len(), 4, "its children outlive a kill");
    let said = place.up(&["--once"]).await.ended_with(0);
    assert!(said.stderr.contains("was interrupted"), "{said:#?}");
    assert_three_answers(&said);
    place.assert_nothing_runs();
}

#[tokio::test]
async fn down_finds_what_is_left_of_a_demo_that_was_killed_at_any_moment() {
    let place = Place::new();
    let data = place.data();
    for milestone in [
        "certificates",
        "operator",
        "backend",
        "identities",
        "3 gateways",
        "first command",
    ] {
        let mut command = place.command(&["up", "--data-dir", text(&data)]);
        let mut up = Process::start(&mut command, &place.folder.path().join("up.log")).unwrap();
        // The step of this name, which other lines may speak of before.
        let step = format!("✓ {milestone}");
        let is_done = |line: &str| line.trim_start().starts_with(&step);
        eventually(milestone, PATIENCE, async || {
            let (ended, log) = (up.ended(), up.log());
            let found = log.lines().any(is_done);
            assert!(found || ended.is_none(), "{milestone}: {ended:?}: {log}");
            found.then_some(())
        })
        .await;
        up.kill();
        let said = place.run(&["down", "--data-dir", text(&data)]).await;
        drop(said.ended_with(0));
        place.assert_nothing_runs();
    }
    assert_three_answers(&place.up(&["--once"]).await.ended_with(0));
}

#[tokio::test]
async fn a_demo_ends_with_its_cause_when_one_of_its_processes_dies() {
    let place = Place::new();
    let mut up = place.stay().await;
    signal(place.written_down()["gw-lyon"], Signal::KILL);
    let status = up.wait(PATIENCE).await;
    assert_eq!(status.code(), Some(1), "{}", up.log());
    let log = up.log();
    assert!(log.contains("error: gw-lyon ended by itself"), "{log}");
    place.assert_nothing_runs();
}

#[tokio::test]
async fn a_revoked_gateway_is_left_out_at_once_and_how_it_comes_back_is_said() {
    let place = Place::new();
    drop(place.up(&["--once"]).await.ended_with(0));
    let config = place.data().join("backend/backend.toml");
    let mut revoke = Command::new(Binaries::shipped().backend());
    revoke.args(["gateway", "revoke", "gw-lyon", "--config", text(&config)]);
    drop(finish(revoke, PATIENCE).await.ended_with(0));
    let said = place.up(&["--once"]).await.ended_with(0);
    assert!(said.took < Duration::from_secs(25), "{said:#?}");
    assert!(
        said.stderr.contains("gw-lyon was revoked and is left out"),
        "{said:#?}"
    );
    assert!(!said.stdout.contains("gw-lyon"), "{said:#?}");
    assert!(said.stdout.contains("gw-berlin"), "{said:#?}");
    // What it says to do is what helps.
    let hint = said
        .stderr
        .lines()
        .find(|line| line.contains("mv "))
        .unwrap();
    let hint = hint
        .split_once("name: ")
        .unwrap()
        .1
        .split_once(", then")
        .unwrap()
        .0;
    let mut shell = Command::new("sh");
    shell.args(["-c", hint]);
    drop(finish(shell, PATIENCE).await.ended_with(0));
    assert_three_answers(&place.up(&["--once"]).await.ended_with(0));
}

#[tokio::test]
async fn gateways_of_a_demo_enrol_by_tickets_and_go_on_where_a_start_was_interrupted() {
    let place = Place::new();
    let said = place.up(&["--once", "--agents", "2"]).await.ended_with(0);
    assert!(said.stderr.contains("enrolled by ticket"), "{said:#?}");
    let folder = |name: &str| place.data().join("gateways").join(name);
    for left in [".ticket", ".enrolling"] {
        assert!(!folder("gw-lyon").join(left).exists(), "{left}");
    }
    // As somebody left it who was interrupted before the ticket was used, and whose ticket ended meanwhile.
    let third = folder("gw-oslo");
    std::fs::create_dir(&third).unwrap();
    std::fs::set_permissions(&third, std::fs::Permissions::from_mode(0o700)).unwrap();
    viworks_runtime::files::write_new(&third.join(".ticket"), b"vwt1_", 0o600).unwrap();
    // And with the key of a demo of before there were tickets.
    let key = place.data().join("operator.key");
    std::fs::remove_file(&key).unwrap();
    let config = place.data().join("backend/backend.toml");
    let mut create = Command::new(Binaries::shipped().backend());
    create.args(["apikey", "create", "--config", text(&config), "--name"]);
    create.args(["before", "--scopes", "gateways:read,runs:write", "--out"]);
    create.arg(&key);
    drop(finish(create, PATIENCE).await.ended_with(0));
    let said = place.up(&["--once"]).await.ended_with(0);
    assert_three_answers(&said);
    assert!(said.stderr.contains("1 enrolled by ticket"), "{said:#?}");
    let said = place.up(&["--once"]).await.ended_with(0);
    assert!(said.stderr.contains("of before"), "{said:#?}");
    place.assert_nothing_runs();
    drop(place.up(&["--once", "--reset"]).await.ended_with(0));
}

#[tokio::test]
async fn a_terminal_that_is_closed_ends_its_demo_and_nohup_keeps_it() {
    let place = Place::new();
    // The tests themselves may have been started by nohup, and what it ignores is inherited.
    let mut up = place
        .stay_by(&["/usr/bin/env", "--default-signal=HUP"], "terminal.log")
        .await;
    up.signal(Signal::HUP);
    assert!(up.wait(PATIENCE).await.success(), "{}", up.log());
    place.assert_nothing_runs();

    let mut up = place.stay_by(&["/usr/bin/nohup"], "nohup.log").await;
    up.signal(Signal::HUP);
    assert_three_answers(&place.up(&["--once"]).await.ended_with(0));
    assert!(up.ended().is_none(), "{}", up.log());
    up.signal(Signal::INT);
    assert!(up.wait(PATIENCE).await.success(), "{}", up.log());
    place.assert_nothing_runs();
}

#[tokio::test]
async fn fewer_gateways_than_before_are_not_waited_for() {
    let place = Place::new();
    drop(place.up(&["--once", "--agents", "5"]).await.ended_with(0));
    let said = place.up(&["--once", "--agents", "2"]).await.ended_with(0);
    assert_eq!(said.stdout.lines().count(), 3, "{said:#?}");
    assert!(said.stderr.contains("2 of 2 answered"), "{said:#?}");
    place.assert_nothing_runs();
}

#[tokio::test]
async fn a_proxy_in_the_environment_does_not_come_between_the_demo_and_itself() {
    let place = Place::new();
    let data = place.data();
    let mut command = place.command(&["up", "--once", "--data-dir", text(&data)]);
    for variable in ["http_proxy", "https_proxy", "ALL_PROXY"] {
        command.env(variable, "http://127.0.0.1:1");
    }
    assert_three_answers(&finish(command, PATIENCE).await.ended_with(0));
    place.assert_nothing_runs();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_that_is_interrupted_before_it_is_up_says_so_and_has_not_succeeded() {
    let mut place = Place::new();
    // Programs that never get anywhere, so that it is interrupted for certain before it is up.
    let programs = place.folder.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    std::fs::copy(&place.program, programs.join("viworks")).unwrap();
    for name in ["viworks-backend-agent", "viworks-gateway-agent"] {
        let program = programs.join(name);
        std::fs::write(&program, "#!/bin/sh\n: > \"$0.began\"\nexec sleep 90\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    place.program = programs.join("viworks");
    let data = place.data();
    let mut command = place.command(&["up", "--data-dir", text(&data)]);
    let mut up = Process::start(&mut command, &place.log(1)).unwrap();
    eventually("it has begun", PATIENCE, async || {
        let began = programs.join("viworks-backend-agent.began");
        began.exists().then_some(())
    })
    .await;
    up.signal(Signal::INT);
    let status = up.wait(PATIENCE).await;
    assert_eq!(status.code(), Some(130), "{}", up.log());
    assert!(up.log().contains("interrupted before"), "{}", up.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_is_told_what_its_surroundings_lack() {
    let place = Place::new();
    // The folder in which it was started is gone.
    let gone = place.home().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "rmdir \"$PWD\" && exec \"$0\" up --once"])
        .arg(&place.program)
        .current_dir(&gone);
    let said = finish(command, PATIENCE).await.ended_with(78);
    assert!(said.stderr.contains("--data-dir"), "{said:#?}");
    // A file stands where a folder is to be.
    let file = place.home().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("demo");
    let up = ["up", "--once", "--data-dir", text(&below)];
    let said = place.run(&up).await.ended_with(78);
    for words in [text(&below), "fix: ", "--data-dir"] {
        assert!(said.stderr.contains(words), "{words}: {said:#?}");
    }
}
