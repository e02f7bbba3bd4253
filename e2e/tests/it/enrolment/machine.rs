//! What the machine itself puts in the way: a disk that is full at any moment, and somebody at a terminal.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::json;
use viworks_testkit::deployment::text;
use viworks_testkit::process::{eventually, finish};
use viworks_testkit::small_disk;
use viworks_testkit::terminal::Terminal;

use super::{LIMIT, backend, enroll, folder, gateways, ticket};

/// Fills the disk but for a page more each time, and enrols there until that goes well; a line for each time.
const UNTIL_THERE_IS_ROOM: &str = r#"
home=$1; ballast=$2; shift 2
head -c 64m /dev/zero >"$ballast" 2>/dev/null
times=0
while :; do
    said=$("$@" 2>&1 >/dev/null)
    code=$?
    [ -e "$home/gateway.toml" ] && there=yes || there=no
    printf '%s %s %s %s' "$times" "$code" "$there" "$said" | tr '\n' ' '
    echo
    [ $code -eq 0 ] && break
    [ $times -eq 60 ] && break
    times=$((times + 1))
    truncate -s -4096 "$ballast"
done
ls "$home" "$home/state"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrolment_whose_disk_is_full_anywhere_goes_on_as_the_same_gateway_once_there_is_room() {
    if !small_disk::is_allowed() {
        eprintln!("SKIPPED: an enrolment on a full disk: this machine allows no mounts");
        return;
    }
    let system = backend().await;
    let ticket = ticket(&system, &json!({"uses": 1, "name": "gw-1"})).await;
    let disk = system.path().join("small");
    let home = disk.join("gateway");
    std::fs::create_dir_all(&home).unwrap();
    for folder in [&disk, &home] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    let plain = enroll(&system, &home, &ticket, &[]);
    let mut command = small_disk::command("/bin/sh".as_ref(), &disk, 1);
    command
        .args(["-c", UNTIL_THERE_IS_ROOM, "sh", text(&home)])
        .arg(disk.join("ballast"))
        .arg(plain.get_program())
        // In a namespace of its own it is root, as it is when it is installed.
        .args(plain.get_args().filter(|word| *word != "--demo"));
    let said = finish(command, LIMIT).await.ended_with(0);
    let lines: Vec<&str> = said.stdout.lines().collect();
    let times: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.splitn(4, ' ').collect::<Vec<_>>())
        .filter(|words| words.len() == 4)
        .collect();
    let (last, failed) = times.split_last().unwrap();
    assert_eq!(last[1..3], ["0", "yes"], "{said:#?}");
    // It was full before the key, between the files, and behind the redemption.
    assert!(failed.len() >= 5, "{said:#?}");
    for time in failed {
        assert_eq!(time[2], "no", "half an identity: {said:#?}");
        assert!(time[3].contains("No space left"), "{said:#?}");
        // Room may be made, and then the same call goes on.
        assert_eq!(time[1], "69", "{said:#?}");
        let fix = "make room on its disk, and run enroll again with the same ticket";
        assert!(time[3].contains(fix), "{said:#?}");
    }
    // Behind the redemption that is said, with what goes on.
    let is_told = |time: &Vec<&str>| {
        let told = "the backend has made the gateway, and its files cannot be put in place";
        time[3].contains(told) && time[3].contains("again with the same ticket")
    };
    assert!(failed.iter().any(is_told), "{said:#?}");
    assert!(!is_told(&failed[0]), "{said:#?}");
    // And from then on each time, also by a call that finds every file made and asks nobody any more.
    let made = failed.iter().skip_while(|time| !is_told(time));
    assert!(made.clone().all(is_told), "{said:#?}");
    let is_whole = |time: &Vec<&str>| is_told(time) && time[3].contains("commands.d");
    assert!(made.filter(|time| is_whole(time)).count() > 1, "{said:#?}");
    for file in [
        "commands.d",
        "gateway.toml",
        "gateway.key",
        "gateway.crt",
        "identity.json",
        // As of an enrolment that nothing disturbed.
        "install_id",
    ] {
        assert!(lines.contains(&file), "{file}: {said:#?}");
    }
    assert_eq!(gateways(&system).await.len(), 1);
    let shown = system.get("/v1/tickets").await;
    assert_eq!(shown["items"][0]["uses"], 1, "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_is_typed_at_a_terminal_is_not_shown_there() {
    let system = backend().await;
    let ticket = ticket(&system, &json!({"uses": 1, "name": "gw-1"})).await;
    let mut terminal = Terminal::open().unwrap();
    assert!(terminal.echoes().unwrap());
    let mut command = Command::new(system.binaries().gateway());
    command.args(["enroll", "--demo", "--out"]);
    command.arg(folder(&system, "gw-1"));
    let mut process = terminal.start(command).unwrap();
    eventually("the ticket is asked for", LIMIT, async || {
        terminal.shown().contains("Ticket: ").then_some(())
    })
    .await;
    assert!(!terminal.echoes().unwrap());
    terminal.type_in(&format!("{ticket}\n")).unwrap();
    eventually("it is a gateway", LIMIT, async || {
        let told = "This machine is a gateway now";
        terminal.shown().contains(told).then_some(())
    })
    .await;
    let ended = process.wait(LIMIT).await;
    let shown = terminal.shown().to_owned();
    assert!(ended.success(), "{shown}");
    // Not even a part of it.
    for part in ticket.as_bytes().chunks_exact(16) {
        let part = std::str::from_utf8(part).unwrap();
        assert!(!shown.contains(part), "{part} of the ticket: {shown}");
    }
    assert!(terminal.echoes().unwrap(), "it is as it was");
    assert_eq!(gateways(&system).await.len(), 1);
}
