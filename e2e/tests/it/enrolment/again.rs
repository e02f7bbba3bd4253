//! Enrolments that break off on either end, or meet what is there already: no ticket is used in vain, and nothing of a
//! gateway is ever replaced.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, Start};
use viworks_testkit::process::{Process, Said, eventually, finish};
use viworks_testkit::small_disk;

use super::{LIMIT, backend, enroll, folder, gateways, good_for, ticket, with_door};

/// Where a backend dies while it makes a gateway.
pub(crate) const BACKEND_POINTS: [&str; 2] =
    ["store.redeem.before_commit", "store.redeem.after_commit"];

const MOVED: [&str; 5] = [
    "gateway.key",
    "gateway.crt",
    "ca.crt",
    "identity.json",
    "gateway.toml",
];

/// What happened to the newest ticket.
async fn uses(system: &Deployment) -> Value {
    system.get("/v1/tickets?limit=1").await["items"][0]["uses"].clone()
}

/// `enroll` of a program that dies, or stands still, at this point.
fn enroll_until(
    system: &Deployment,
    home: &Path,
    ticket: &str,
    more: &[&str],
    point: &str,
) -> Command {
    let plain = enroll(system, home, ticket, more);
    let mut command = Command::new(Binaries::with_fault_points().gateway());
    command.args(plain.get_args()).env("VIWORKS_FAULT", point);
    command
}

async fn is_online(system: &Deployment, home: &Path, name: &str) {
    let mut gateway = system.start_gateway(home, Start::default());
    system.online(name).await;
    assert!(gateway.stop(LIMIT).await.success());
}

/// Does what the program said, to the letter.
async fn do_as_told(said: &Said) {
    let (_, command) = said.stderr.trim_end().rsplit_once("run first: ").unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-ec", command]);
    let done = finish(shell, LIMIT).await;
    assert_eq!(done.code, Some(0), "{command}: {done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_dies_at_its_commit_answers_the_same_gateway_once_it_is_back() {
    for point in BACKEND_POINTS {
        let mut system = Deployment::new(Binaries::with_fault_points());
        system.start_backend(with_door().dying_at(point)).await;
        let back = Start::default().with("VIWORKS__ENROLMENT__LISTEN", system.door_address());
        let ticket = ticket(&system, &json!({"uses": 1, "name": "gw-1"})).await;
        let home = folder(&system, "gw-1");
        // The first attempt has no answer, and those behind it find nobody.
        let impatient = enroll(&system, &home, &ticket, &["--wait", "4"]);
        let said = finish(impatient, LIMIT).await.ended_with(69);
        for told in ["is not reached", "may have been used all the same"] {
            assert!(said.stderr.contains(told), "{point}: {told}: {said:?}");
        }
        let key = std::fs::read(home.join(".enrolling/gateway.key")).unwrap();
        assert!(!system.backend().wait(LIMIT).await.success());
        system.start_backend(back).await;
        let said = finish(enroll(&system, &home, &ticket, &[]), LIMIT).await;
        assert_eq!(said.code, Some(0), "{point}: {said:?}");
        assert_eq!(std::fs::read(home.join("gateway.key")).unwrap(), key);
        assert_eq!(gateways(&system).await.len(), 1, "{point}");
        assert_eq!(uses(&system).await, 1, "{point}");
        is_online(&system, &home, "gw-1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrolment_waits_for_a_backend_that_is_started_again() {
    let mut system = Deployment::new(Binaries::with_fault_points());
    system
        .start_backend(with_door().dying_at("store.redeem.after_commit"))
        .await;
    let back = Start::default().with("VIWORKS__ENROLMENT__LISTEN", system.door_address());
    let ticket = ticket(&system, &json!({"uses": 1, "name": "gw-1"})).await;
    let home = folder(&system, "gw-1");
    let mut patient = enroll(&system, &home, &ticket, &["--wait", "60"]);
    let log = system.path().join("patient.log");
    let mut patient = Process::start(&mut patient, &log).unwrap();
    assert!(!system.backend().wait(LIMIT).await.success());
    // An attempt that had no answer, and another one that found nobody.
    for told in ["trying again for up to", "is not reached"] {
        let says = async || patient.log().contains(told).then_some(());
        eventually("it says what it waits for", LIMIT, says).await;
    }
    system.start_backend(back).await;
    let ended = patient.wait(LIMIT).await;
    assert!(ended.success(), "{}", patient.log());
    assert_eq!(gateways(&system).await.len(), 1);
    is_online(&system, &home, "gw-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_power_cut_left_empty_or_half_is_made_anew() {
    let system = backend().await;
    let left = [
        "install_id",
        "gateway.key",
        "request.csr",
        "gateway.crt",
        "identity.json",
        "gateway.toml",
        "complete.json",
    ];
    let alone = left.iter().map(std::slice::from_ref);
    for (n, names) in alone.chain([left.as_slice()]).enumerate() {
        for contents in ["", "half"] {
            let name = format!("gw-{n}{contents}");
            let ticket = ticket(&system, &json!({"uses": 1, "name": name})).await;
            let home = folder(&system, &name);
            let staging = home.join(".enrolling");
            std::fs::create_dir_all(&staging).unwrap();
            std::fs::set_permissions(&staging, Permissions::from_mode(0o700)).unwrap();
            for file in names {
                let file = staging.join(file);
                std::fs::write(&file, contents).unwrap();
                std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            }
            let said = finish(enroll(&system, &home, &ticket, &[]), LIMIT).await;
            assert_eq!(said.code, Some(0), "{names:?} {contents}: {said:?}");
            let told = "takes this gateway's certificate";
            assert!(said.stdout.contains(told), "{names:?} {contents}: {said:?}");
            assert!(!staging.exists(), "{names:?} {contents}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_of_a_gateway_are_never_replaced_by_those_of_an_enrolment_that_broke_off() {
    let system = backend().await;
    for (n, point) in [
        "enrol.asked",
        "enrol.filling",
        "enrol.moving",
        "enrol.moving:3",
    ]
    .into_iter()
    .enumerate()
    {
        let (name, other) = (format!("gw-{n}"), format!("gw-{n}-by-files"));
        let ticket = ticket(&system, &json!({"uses": 1, "name": name})).await;
        let home = folder(&system, &name);
        let dying = enroll_until(&system, &home, &ticket, &[], point);
        assert_ne!(finish(dying, LIMIT).await.code, Some(0), "{point}");
        // Somebody gave it up and took the other way.
        let issued = system.issue(&other);
        for file in MOVED {
            std::fs::copy(issued.join(file), home.join(file)).unwrap();
        }
        let files = || MOVED.map(|file| std::fs::read(home.join(file)).unwrap());
        let before = files();
        let said = finish(enroll(&system, &home, &ticket, &[]), LIMIT).await;
        assert_eq!(said.code, Some(6), "{point}: {said:?}");
        assert!(said.stderr.contains("stays as it is"), "{point}: {said:?}");
        assert_eq!(files(), before, "{point}");
        // What died before it asked uses no ticket later either.
        let used = usize::from(point != "enrol.asked");
        assert_eq!(uses(&system).await, used, "{point}");
        is_online(&system, &home, &other).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_enrolments_at_once_one_makes_the_gateway_and_the_other_says_so() {
    let system = backend().await;
    let one = ticket(&system, &json!({"uses": 1, "name": "gw-1"})).await;
    let home = folder(&system, "gw-1");
    let mut first = enroll_until(&system, &home, &one, &[], "enrol.answered=stop");
    let mut first = Process::start(&mut first, &system.path().join("first.log")).unwrap();
    eventually("the first has its answer", LIMIT, async || {
        (uses(&system).await == 1).then_some(())
    })
    .await;
    let second = finish(enroll(&system, &home, &one, &[]), LIMIT).await;
    let second = second.ended_with(6);
    let told = "another enroll is under way in";
    assert!(second.stderr.contains(told), "{second:?}");
    eventually("it stands still and is let go on", LIMIT, async || {
        first.signal(Signal::CONT);
        first.ended()
    })
    .await;
    assert!(first.ended().unwrap().success(), "{}", first.log());
    is_online(&system, &home, "gw-1").await;

    // However they meet.
    let many = ticket(&system, &json!({"uses": 12})).await;
    let home = folder(&system, "gw-2");
    let all = (0..12).map(|n| {
        let name = format!("gw-many-{n}");
        let command = enroll(&system, &home, &many, &["--name", &name]);
        async move { (name, finish(command, LIMIT).await) }
    });
    let said = join_all(all).await;
    let (won, lost): (Vec<_>, Vec<_>) = said.iter().partition(|(_, said)| said.code == Some(0));
    assert_eq!(won.len(), 1, "{said:?}");
    for (_, said) in lost {
        assert_eq!(said.code, Some(6), "{said:?}");
    }
    assert_eq!(uses(&system).await, 1);
    is_online(&system, &home, &won[0].0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_a_gateway_becomes_another_one_as_it_is_told() {
    let system = backend().await;
    let first = ticket(&system, &json!({"uses": 1})).await;
    good_for(&system, "gw-1", &first).await;
    let home = folder(&system, "gw-1");
    let mut gateway = system.start_gateway(&home, Start::default());
    system.online("gw-1").await;
    // Nothing is moved under an agent that runs.
    let next = ticket(&system, &json!({"uses": 1})).await;
    let said = finish(enroll(&system, &home, &next, &[]), LIMIT).await;
    let said = said.ended_with(6);
    assert!(said.stderr.contains("its agent runs with"), "{said:?}");
    assert!(!said.stderr.contains("run first"), "{said:?}");
    assert!(gateway.stop(LIMIT).await.success());
    // What is mounted cannot be renamed, which is said before anything is moved.
    if small_disk::is_allowed() {
        let plain = enroll(&system, &home, &next, &[]);
        let program = Path::new(plain.get_program());
        let mut mounted = small_disk::command(program, &home.join("state"), 64);
        mounted.args(plain.get_args());
        let said = finish(mounted, LIMIT).await.ended_with(6);
        let told = "something is mounted there";
        assert!(said.stderr.contains(told), "{said:?}");
        assert!(!said.stderr.contains("run first"), "{said:?}");
    }
    // A gateway with everything, and one of which somebody took the files away.
    for by_hand in [false, true] {
        let name = format!("gw-1-{by_hand}");
        let next = ticket(&system, &json!({"uses": 1, "name": name})).await;
        if by_hand {
            for file in MOVED {
                std::fs::remove_file(home.join(file)).unwrap();
            }
        }
        let said = finish(enroll(&system, &home, &next, &[]), LIMIT).await;
        let said = said.ended_with(6);
        assert_eq!(uses(&system).await, 0, "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        do_as_told(&said).await;
        let said = finish(enroll(&system, &home, &next, &[]), LIMIT).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        is_online(&system, &home, &name).await;
    }
    for aside in ["before-1/gateway.key", "state.before-1/journal.db"] {
        assert!(home.join(aside).exists(), "{aside}");
    }
    assert!(home.join("state.before-2/journal.db").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_than_root_is_told_what_to_do_before_a_ticket_is_used() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: an enrolment by another user: this is not root");
        return;
    }
    let system = backend().await;
    let ticket = ticket(&system, &json!({"uses": 1, "name": "gw-1"})).await;
    let yard = tempfile::tempdir().unwrap();
    let (bin, home) = (yard.path().join("bin"), yard.path().join("home"));
    for folder in [&bin, &home] {
        std::fs::create_dir(folder).unwrap();
    }
    for folder in [yard.path(), &bin] {
        std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
    let program = bin.join("viworks-gateway-agent");
    std::fs::copy(system.binaries().gateway(), &program).unwrap();
    let file = home.join("ticket");
    std::fs::write(&file, &ticket).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    for path in [&home, &file] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let by_nobody = |command: &str| {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-ec", command])
            .current_dir(&home)
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .uid(NOBODY)
            .gid(NOBODY);
        shell
    };
    if !Path::new("/etc/viworks").exists() {
        let installed = "viworks-gateway-agent enroll --ticket-file ticket";
        let said = finish(by_nobody(installed), LIMIT).await.ended_with(78);
        assert!(said.stderr.contains("run enroll as root"), "{said:?}");
    }
    let enroll = "viworks-gateway-agent enroll --out gw --ticket-file ticket --wait 20";
    let said = finish(by_nobody(enroll), LIMIT).await.ended_with(78);
    assert!(said.stderr.contains("is for root to say"), "{said:?}");
    assert_eq!(uses(&system).await, 0, "{said:?}");
    let (_, first) = said.stderr.trim_end().rsplit_once("run first: ").unwrap();
    let done = finish(by_nobody(first), LIMIT).await;
    assert_eq!(done.code, Some(0), "{first}: {done:?}");
    let said = finish(by_nobody(enroll), LIMIT).await.ended_with(0);
    let (_, start) = said.stdout.trim_end().rsplit_once("Start it: ").unwrap();
    let mut started = by_nobody(&format!("exec {start}"));
    let log = system.path().join("nobody.log");
    let mut gateway = Process::start(&mut started, &log).unwrap();
    system.online("gw-1").await;
    assert!(gateway.stop(LIMIT).await.success(), "{}", gateway.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_is_in_the_way_and_leaves_nothing() {
    let system = backend().await;
    let ticket = ticket(&system, &json!({"uses": 2})).await;
    good_for(&system, "gw-1", &ticket).await;
    // What somebody made stays, unlike a folder that was made for nothing.
    let home = folder(&system, "gw-2");
    std::fs::create_dir(&home).unwrap();
    let command = enroll(&system, &home, &ticket, &["--name", "gw-1"]);
    let said = finish(command, Duration::from_secs(30)).await.ended_with(6);
    let told = "another gateway is called gw-1";
    assert!(said.stderr.contains(told), "{said:?}");
    assert_eq!(std::fs::read_dir(&home).unwrap().count(), 0);
}
