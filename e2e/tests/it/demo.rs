//! `viworks up`: from nothing to three answers, anywhere, as anybody, again and again, and nothing left behind.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use viworks_common::group::Accounts;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{PATIENCE, text};
use viworks_testkit::process::{Process, Said, eventually, finish};

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// A place for one demo; whatever still runs in it is ended with it.
struct Place {
    folder: TempDir,
    program: PathBuf,
    user: Option<u32>,
    /// Where the demo lives, when not at the usual place.
    data: Option<PathBuf>,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::with_prefix("viworks demo with spaces ").unwrap();
        std::fs::create_dir(folder.path().join("a home")).unwrap();
        Self {
            folder,
            program: Binaries::shipped().cli(),
            user: None,
            data: None,
        }
    }

    /// The same for a user without rights, who gets copies of the programs where they can be read.
    fn of_nobody() -> Self {
        Self::of_user(NOBODY)
    }

    fn of_user(user: u32) -> Self {
        let mut place = Self::new();
        let programs = place.folder.path().join("bin");
        std::fs::create_dir(&programs).unwrap();
        let shipped = Binaries::shipped();
        for program in [shipped.cli(), shipped.backend(), shipped.gateway()] {
            let copy = programs.join(program.file_name().unwrap());
            std::fs::copy(&program, &copy).unwrap();
        }
        place.program = programs.join("viworks");
        let open = std::fs::Permissions::from_mode(0o755);
        for folder in [place.folder.path(), &programs] {
            std::fs::set_permissions(folder, open.clone()).unwrap();
        }
        let home = place.home();
        std::os::unix::fs::chown(&home, Some(user), Some(user)).unwrap();
        place.user = Some(user);
        place
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("a home")
    }

    fn data(&self) -> PathBuf {
        self.data
            .clone()
            .unwrap_or_else(|| self.home().join("demo data"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.home())
            .env("HOME", self.home())
            .env("VIWORKS_CONFIG_DIR", self.home().join("config"));
        for variable in ["VIWORKS_SERVER", "VIWORKS_TOKEN_FILE", "VIWORKS_CONTEXT"] {
            command.env_remove(variable);
        }
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    async fn run(&self, arguments: &[&str]) -> Said {
        finish(self.command(arguments), PATIENCE).await
    }

    async fn up(&self, more: &[&str]) -> Said {
        let data = self.data();
        self.run(&[&["up", "--data-dir", text(&data)], more].concat())
            .await
    }

    fn log(&self, number: u32) -> PathBuf {
        self.folder.path().join(format!("up-{number}.log"))
    }

    /// Starts a demo that stays, and waits until its first command is answered.
    async fn stay(&self) -> Process {
        let free = |number: &u32| !self.log(*number).exists();
        let log = self.log((1..).find(free).unwrap());
        let command = self.command(&["up", "--data-dir", text(&self.data())]);
        Self::until_up(command, &log).await
    }

    /// The same, started by another program, as a shell's user would.
    async fn stay_by(&self, starter: &[&str], log: &str) -> Process {
        let demo = self.command(&["up", "--data-dir", text(&self.data())]);
        let (program, arguments) = starter.split_first().unwrap();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(demo.get_program())
            .args(demo.get_args())
            .current_dir(self.home());
        for (name, value) in demo.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Self::until_up(command, &self.folder.path().join(log)).await
    }

    async fn until_up(mut command: Command, log: &Path) -> Process {
        let mut up = Process::start(&mut command, log).unwrap();
        eventually("the demo is up", PATIENCE, async || {
            if let Some(status) = up.ended() {
                panic!("viworks up ended with {status}:\n{}", up.log());
            }
            up.log().contains("Ctrl-C").then_some(())
        })
        .await;
        up
    }

    /// What `up` wrote down about itself and its children: names and numbers.
    fn written_down(&self) -> BTreeMap<String, u32> {
        let file = std::fs::read(self.data().join("run/demo.json")).unwrap();
        let started: Value = serde_json::from_slice(&file).unwrap();
        let children = started["processes"].as_array().unwrap().iter();
        children
            .chain([&started["up"]])
            .map(|one| {
                let pid = u32::try_from(one["pid"].as_u64().unwrap()).unwrap();
                (one["name"].as_str().unwrap().to_owned(), pid)
            })
            .collect()
    }

    /// Everything that runs with this place in its command line, by number.
    fn running(&self) -> BTreeMap<u32, String> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").unwrap() {
            let entry = entry.unwrap();
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            // A process that ended meanwhile has nothing to say; neither has one that is only waited for.
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            if words.contains(text(self.folder.path())) {
                found.insert(pid, words);
            }
        }
        found
    }

    fn assert_nothing_runs(&self) {
        assert_eq!(self.running(), BTreeMap::new());
        assert!(!self.data().join("run/demo.json").exists());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.running().into_keys() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended since it was found.
                let _sent = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Three gateways said who they are.
fn assert_three_answers(said: &Said) {
    let answers: Vec<&str> = said.stdout.lines().skip(1).collect();
    assert_eq!(answers.len(), 3, "{said:#?}");
    for (answer, name) in answers.iter().zip(["gw-berlin", "gw-lyon", "gw-oslo"]) {
        assert!(answer.starts_with(name), "{answer}");
        assert!(answer.contains("✓ ok"), "{answer}");
    }
    assert!(!said.stdout.contains('\x1b'), "{said:#?}");
    assert!(!said.stderr.contains('\x1b'), "{said:#?}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

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
async fn an_ordinary_user_needs_nothing_more_than_root_does() {
    let place = if is_root() {
        Place::of_nobody()
    } else {
        // Every test of this file then runs as an ordinary user.
        Place::new()
    };
    for _round in 0..2 {
        let said = place.up(&["--once"]).await.ended_with(0);
        assert_three_answers(&said);
        place.assert_nothing_runs();
    }
    if is_root() {
        use std::os::unix::fs::MetadataExt;
        for made in ["backend/master.key", "operator.key", "gateways/gw-oslo"] {
            let made = std::fs::metadata(place.data().join(made)).unwrap();
            assert_eq!(made.uid(), NOBODY);
            assert_eq!(made.mode() & 0o077, 0);
        }
    }
}

/// A user, not root, whose group is nobody else's by what this system knows.
fn user_with_a_group_of_its_own() -> Option<u32> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (passwd, group) = (read("/etc/passwd"), read("/etc/group"));
    let nsswitch = read("/etc/nsswitch.conf");
    let accounts = Accounts {
        passwd: &passwd,
        group: &group,
        nsswitch: &nsswitch,
    };
    let id = |line: &str| line.split(':').nth(2)?.parse::<u32>().ok();
    let mut users = passwd.lines().filter_map(id);
    users.find(|user| *user != 0 && accounts.are_private(*user))
}

#[tokio::test]
async fn folders_that_ones_own_group_may_write_are_good_enough_and_those_of_another_are_not() {
    let Some(user) = user_with_a_group_of_its_own().filter(|_user| is_root()) else {
        eprintln!("SKIPPED: being a user whose group is nobody else's takes root, and such a user");
        return;
    };
    let place = Place::of_user(user);
    // As a clone is made under `umask 002`.
    let open = std::fs::Permissions::from_mode(0o775);
    std::fs::set_permissions(place.home(), open.clone()).unwrap();
    let said = place.up(&["--once"]).await.ended_with(0);
    assert_three_answers(&said);
    std::os::unix::fs::chown(place.home(), None, Some(NOBODY)).unwrap();
    std::fs::set_permissions(place.home(), open).unwrap();
    let said = place.up(&["--once"]).await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(said.stderr.contains("chmod go-w"), "{said:#?}");
    place.assert_nothing_runs();
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
        "identities",
        "backend",
        "gateways",
        "answered",
    ] {
        let mut command = place.command(&["up", "--data-dir", text(&data)]);
        let mut up = Process::start(&mut command, &place.folder.path().join("up.log")).unwrap();
        eventually(milestone, PATIENCE, async || {
            up.log().contains(milestone).then_some(())
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
async fn reset_starts_over_and_leaves_foreign_folders_alone() {
    let place = Place::new();
    drop(place.up(&["--once"]).await.ended_with(0));
    let master = place.data().join("backend/master.key");
    let before = std::fs::read(&master).unwrap();
    drop(place.up(&["--once"]).await.ended_with(0));
    assert_eq!(std::fs::read(&master).unwrap(), before, "kept");
    let said = place.up(&["--once", "--reset"]).await.ended_with(0);
    assert_three_answers(&said);
    assert_ne!(std::fs::read(&master).unwrap(), before, "made anew");

    let foreign = place.home().join("photographs");
    write(&foreign.join("run/holiday.txt"), "not yours");
    let refused = ["up", "--once", "--reset", "--data-dir", text(&foreign)];
    let said = place.run(&refused).await.ended_with(78);
    assert!(said.stderr.contains("left alone"), "{said:#?}");
    let kept = std::fs::read_to_string(foreign.join("run/holiday.txt")).unwrap();
    assert_eq!(kept, "not yours");
    place.assert_nothing_runs();
}

/// Every file below a folder, and what is in it.
fn files_below(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            let content = std::fs::read(&path).unwrap();
            found.insert(path, String::from_utf8_lossy(&content).into_owned());
        }
    }
    found
}

#[tokio::test]
async fn a_folder_in_which_somebody_keeps_something_is_no_demos_with_and_without_reset() {
    let place = Place::new();
    let foreign = place.home().join("university");
    write(&foreign.join("thesis.txt"), "years of work");
    // Even one whose folders are named as a demo's.
    let alike = place.home().join("project");
    for name in [
        "backend/main.c",
        "gateways/list.txt",
        "logs/a.log",
        "run/demo.json",
    ] {
        write(&alike.join(name), "somebody's");
    }
    let linked = place.home().join("link");
    std::os::unix::fs::symlink(&foreign, &linked).unwrap();
    let before = files_below(&place.home());
    let mut refusing = vec![foreign, alike, linked, place.home()];
    if is_root() {
        // It belongs to nobody else, so it is refused for what it is.
        refusing.push(PathBuf::from("/"));
    }
    for folder in &refusing {
        let refused = ["up", "--once", "--data-dir", text(folder)];
        for more in [&[][..], &["--reset"][..]] {
            let said = place
                .run(&[&refused[..], more].concat())
                .await
                .ended_with(78);
            assert!(said.stderr.contains("left alone"), "{said:#?}");
            assert!(said.stderr.contains("fix: "), "{said:#?}");
        }
        drop(
            place
                .run(&["down", "--data-dir", text(folder)])
                .await
                .ended_with(0),
        );
    }
    assert_eq!(files_below(&place.home()), before);
}

#[tokio::test]
async fn reset_removes_what_up_made_and_nothing_that_lies_beside_it() {
    let place = Place::new();
    drop(place.up(&["--once"]).await.ended_with(0));
    let data = place.data();
    let beside = [
        "thesis.txt",
        "backend/thesis.txt",
        "gateways/thesis.txt",
        "gateways/gw-berlin/thesis.txt",
        "gateways/gw-berlin/commands.d/mine.toml",
        "logs/thesis.txt",
        "run/thesis.txt",
        "letters/thesis.txt",
    ];
    for name in beside {
        write(&data.join(name), "");
    }
    let linked = place.home().join("elsewhere");
    write(&linked.join("journal.db"), "somebody's");
    std::fs::remove_dir_all(data.join("gateways/gw-oslo/state")).unwrap();
    std::os::unix::fs::symlink(&linked, data.join("gateways/gw-oslo/state")).unwrap();
    let master = std::fs::read(data.join("backend/master.key")).unwrap();
    let said = place
        .up(&["--reset", "--once", "--agents", "2"])
        .await
        .ended_with(0);
    for name in beside {
        assert!(data.join(name).exists(), "{name} {said:#?}");
    }
    assert!(linked.join("journal.db").exists(), "{said:#?}");
    assert!(said.stderr.contains("left alone: "), "{said:#?}");
    assert!(said.stderr.contains("thesis.txt"), "{said:#?}");
    assert_ne!(
        std::fs::read(data.join("backend/master.key")).unwrap(),
        master
    );
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
async fn contexts_of_stopped_demos_do_not_pile_up_and_others_can_be_selected_and_removed() {
    let mut place = Place::new();
    let listed = async |place: &Place| {
        let said = place.run(&["context", "ls", "-o", "json"]).await;
        let items = said.ended_with(0).json()["items"].clone();
        let items = items.as_array().unwrap().iter();
        items
            .map(|item| {
                let name = item["name"].as_str().unwrap().to_owned();
                (name, item["selected"].as_bool().unwrap())
            })
            .collect::<Vec<_>>()
    };
    drop(place.up(&["--once"]).await.ended_with(0));
    assert!(listed(&place).await.is_empty());
    let mut first = place.stay().await;
    place.data = Some(place.home().join("second"));
    let mut second = place.stay().await;
    let of = |name: &str, selected| (name.to_owned(), selected);
    assert_eq!(
        listed(&place).await,
        [of("demo", true), of("demo-2", false)]
    );
    drop(place.run(&["context", "use", "demo-2"]).await.ended_with(0));
    assert_eq!(
        listed(&place).await,
        [of("demo", false), of("demo-2", true)]
    );
    drop(place.run(&["context", "use", "nope"]).await.ended_with(5));
    drop(place.run(&["context", "rm", "nope"]).await.ended_with(5));
    // One that is killed cannot forget itself; the next one does.
    second.kill();
    drop(place.run(&["context", "rm", "demo"]).await.ended_with(0));
    assert_eq!(listed(&place).await, [of("demo-2", true)]);
    let data = place.data();
    drop(
        place
            .run(&["down", "--data-dir", text(&data)])
            .await
            .ended_with(0),
    );
    assert!(listed(&place).await.is_empty(), "its context goes with it");
    place.data = Some(place.home().join("third"));
    let mut third = place.stay().await;
    assert_eq!(listed(&place).await, [of("demo", true)]);
    for demo in [&mut first, &mut third] {
        demo.signal(Signal::INT);
        assert!(demo.wait(PATIENCE).await.success(), "{}", demo.log());
    }
    assert!(listed(&place).await.is_empty());
    let lost = place.run(&["runs", "ls"]).await.ended_with(2);
    assert!(
        lost.stderr.contains("viworks up starts one here"),
        "{lost:#?}"
    );
}

fn write(file: &Path, content: &str) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, content).unwrap();
}

#[tokio::test]
async fn a_deep_folder_is_no_obstacle_and_its_hints_can_be_pasted() {
    let mut place = Place::new();
    let deep = place
        .home()
        .join("a folder ".repeat(9))
        .join("deep".repeat(20));
    std::fs::create_dir_all(&deep).unwrap();
    place.data = Some(deep.join("demo"));
    let mut up = place.stay().await;
    let log = up.log();
    let sockets = std::fs::read_link(place.data().join("run/sockets")).unwrap();
    assert!(sockets.join("gw-berlin.sock").exists(), "{log}");

    // What it says can be pasted, from anywhere.
    let hint = |start: &str| {
        log.lines()
            .find_map(|line| line.trim_start().strip_prefix(start))
            .unwrap_or_else(|| panic!("no hint {start}: {log}"))
            .replace("(second terminal)", "")
    };
    let paste = async |line: &str| {
        let mut command = place.command(&[]);
        let shell = format!("{line}\nexit $?");
        let environment: Vec<_> = command
            .get_envs()
            .map(|(name, value)| (name.to_owned(), value.map(std::ffi::OsStr::to_owned)))
            .collect();
        command = Command::new("/bin/sh");
        command.args(["-c", &shell]).current_dir("/");
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        finish(command, PATIENCE).await
    };
    let said = paste(&hint("Next")).await.ended_with(0);
    assert_eq!(said.stdout.matches("✓ ok").count(), 3, "{said:#?}");
    drop(paste(&hint("Stop      Ctrl-C, or")).await.ended_with(0));
    assert!(up.wait(PATIENCE).await.success(), "{}", up.log());
    assert!(!sockets.exists(), "nothing stays behind");
    place.assert_nothing_runs();

    // The folder of sockets goes away as well when the demo could not remove it.
    let mut up = place.stay().await;
    let sockets = std::fs::read_link(place.data().join("run/sockets")).unwrap();
    up.kill();
    let down = ["down", "--data-dir", text(place.data.as_ref().unwrap())];
    drop(place.run(&down).await.ended_with(0));
    assert!(!sockets.exists(), "{}", sockets.display());
    place.assert_nothing_runs();
}

#[tokio::test]
async fn a_second_demo_has_a_context_of_its_own() {
    let mut place = Place::new();
    let mut first = place.stay().await;
    let first_data = place.data();
    place.data = Some(place.home().join("second"));
    let mut second = place.stay().await;
    assert!(
        second.log().contains("context demo stays selected"),
        "{}",
        second.log()
    );
    assert!(
        second.log().contains("-c demo-2 run sys.uptime"),
        "{}",
        second.log()
    );
    let ids = async |context: &[&str]| {
        let list = ["gateway", "ls", "-o", "json"];
        let said = place.run(&[context, &list].concat()).await;
        said.ended_with(0).json()["items"][0]["id"].clone()
    };
    let (selected, one, two) = (
        ids(&[]).await,
        ids(&["-c", "demo"]).await,
        ids(&["-c", "demo-2"]).await,
    );
    assert_eq!(selected, one);
    assert_ne!(one, two);
    second.signal(Signal::INT);
    assert!(second.wait(PATIENCE).await.success(), "{}", second.log());
    first.signal(Signal::INT);
    assert!(first.wait(PATIENCE).await.success(), "{}", first.log());
    assert!(!first_data.join("run/demo.json").exists());
    place.assert_nothing_runs();
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
async fn nothing_outside_the_folder_is_needed() {
    let place = Place::new();
    write(&place.home().join("no folder"), "");
    let config = place.home().join("no folder/config");
    let data = place.data();
    for home in [Some(&config), None] {
        let mut command = place.command(&["up", "--once", "--data-dir", text(&data)]);
        match home {
            Some(home) => command.env("VIWORKS_CONFIG_DIR", home),
            None => command
                .env_remove("VIWORKS_CONFIG_DIR")
                .env_remove("HOME")
                .env_remove("XDG_CONFIG_HOME"),
        };
        let said = finish(command, PATIENCE).await.ended_with(0);
        assert_three_answers(&said);
        // One that is over in a moment is nobody's context.
        assert!(!said.stderr.contains("context"), "{said:#?}");
    }
    // How to use it without a context is in its hints.
    let mut command = place.command(&["up", "--data-dir", text(&data)]);
    command.env("VIWORKS_CONFIG_DIR", &config);
    let mut up = Process::start(&mut command, &place.folder.path().join("up.log")).unwrap();
    eventually("the demo is up", PATIENCE, async || {
        up.log().contains("Ctrl-C").then_some(())
    })
    .await;
    let token = data.join("operator.key");
    assert!(
        up.log().contains("no context was remembered")
            && up
                .log()
                .contains(&format!("--token-file '{}'", token.display())),
        "{}",
        up.log()
    );
    up.signal(Signal::INT);
    assert!(up.wait(PATIENCE).await.success(), "{}", up.log());
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

#[tokio::test]
async fn whose_demo_it_is_is_said_to_who_may_not_stop_it() {
    if !is_root() {
        // Only root can be two users.
        return;
    }
    let mut place = Place::of_nobody();
    drop(place.up(&["--once"]).await.ended_with(0));
    place.user = Some(NOBODY - 1);
    let data = place.data();
    for verb in ["down", "up"] {
        let said = place
            .run(&[verb, "--data-dir", text(&data)])
            .await
            .ended_with(77);
        assert!(
            said.stderr.contains("65534") && said.stderr.contains("sudo"),
            "{said:#?}"
        );
    }
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
        std::fs::write(&program, "#!/bin/sh\n: > \"$0.began\"\nexec sleep 600\n").unwrap();
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
}
