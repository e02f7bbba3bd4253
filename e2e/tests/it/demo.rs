//! `viworks up`: from nothing to three answers, anywhere, as anybody, again and again, and nothing left behind.

mod belongings;
mod course;
mod servers;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{PATIENCE, text};
use viworks_testkit::postgres;
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
        self.stay_with(&[]).await
    }

    async fn stay_with(&self, more: &[&str]) -> Process {
        let free = |number: &u32| !self.log(*number).exists();
        let log = self.log((1..).find(free).unwrap());
        let data = self.data();
        let command = self.command(&[&["up", "--data-dir", text(&data)], more].concat());
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

    /// Where the files of its database server are: outside this place, where root starts it.
    fn server(&self) -> Option<PathBuf> {
        std::fs::canonicalize(self.data().join("postgres")).ok()
    }

    /// Everything that runs with this place in its command line, by number.
    fn running(&self) -> BTreeMap<u32, String> {
        let server = self.server();
        let places = [Some(self.folder.path()), server.as_deref()];
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").unwrap() {
            let entry = entry.unwrap();
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            // A process that ended meanwhile has nothing to say; neither has one that is only waited for.
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            let mut places = places.iter().flatten();
            if places.any(|place| words.contains(text(place))) {
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
        // Whatever else a test has linked there is not the demo's.
        let is_own = |server: &PathBuf| {
            server.starts_with("/var/tmp") || server.starts_with(self.folder.path())
        };
        if let Some(server) = self.server().filter(is_own) {
            postgres::remove(&server);
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
