//! A machine of one's own: Debian in a container, with systemd as its first process and a network of its own.
//!
//! `scripts/test.sh` makes the image once, outside the repository; where it is not, or only root could start it, what
//! needs a machine is skipped, loudly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::keeper::{self, End};
use crate::process::eventually;

/// How long a machine may take to boot.
const BOOT_TIME: Duration = Duration::from_secs(240);

/// The image below the folder of caches; `scripts/test.sh` makes it.
const IMAGE: &str = "viworks/machine-bookworm";

/// A machine that runs; it is cut from its power when it is dropped, and when the test process ends, in whatever way.
#[derive(Debug)]
pub struct Machine {
    /// Runs the container, and takes its files away after it.
    keeper: Child,
    /// Its first process, as this machine numbers it.
    leader: u32,
    root: PathBuf,
}

impl Machine {
    /// A fresh one that has booted; `None`, said loudly, where there can be none.
    ///
    /// # Panics
    /// When it does not boot although it could.
    #[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
    pub async fn boot() -> Option<Self> {
        let image = match image() {
            Ok(image) => image,
            Err(why) => {
                eprintln!("SKIPPED: services under a real systemd: {why}");
                return None;
            }
        };
        let folder =
            tempfile::TempDir::with_prefix("viworks-machine-").expect("a folder can be made");
        // One level down: systemd-nspawn leaves a lock beside it.
        let root = folder.path().join("root");
        fs::create_dir(&root).expect("a folder can be made");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(image.join("."))
            .arg(&root)
            .status();
        assert!(
            copied.is_ok_and(|status| status.success()),
            "the image cannot be copied"
        );
        // A minimal Debian does not know itself.
        let names = "127.0.0.1 localhost\n::1 localhost\n";
        fs::write(root.join("etc/hosts"), names).expect("a file can be written");
        let mut command = Command::new("systemd-nspawn");
        command
            .args([
                "--quiet",
                "--register=no",
                "--keep-unit",
                "--link-journal=no",
            ])
            .args([
                "--private-network",
                "--console=pipe",
                "--boot",
                "--directory",
            ])
            .arg(&root);
        // Killed by itself, systemd-nspawn would leave everything in its container running.
        let keeper = keeper::start(&command, folder.path(), End::KillChildren);
        let mut machine = Self {
            keeper: keeper.expect("a shell starts"),
            leader: 0,
            root,
        };
        // The keeper takes it away.
        let _kept = folder.keep();
        machine.leader = eventually("the machine has booted", BOOT_TIME, async || {
            // While it is being made, processes come and go that are not its first.
            let leader = first_child(first_child(machine.keeper.id())?)?;
            let state = attempt(leader, &["systemctl", "is-system-running"]);
            // Degraded: a unit of Debian's that a container cannot have.
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            let booted = ["running", "degraded"].contains(&state.as_str());
            booted.then_some(leader)
        })
        .await;
        Some(machine)
    }

    /// Its files, as seen from here.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// Its first process, as this machine numbers it.
    #[must_use]
    pub const fn leader(&self) -> u32 {
        self.leader
    }

    /// Runs a command there as root, whatever it comes to.
    ///
    /// # Panics
    /// When it cannot be run at all.
    #[must_use]
    pub fn attempt(&self, command: &[&str]) -> Output {
        attempt(self.leader, command)
    }

    /// Runs a command there as root, which has to come to a good end, and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn run(&self, command: &[&str]) -> String {
        let output = self.attempt(command);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{command:?} ended with {}:\n{stdout}{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.journal()
        );
        stdout
    }

    /// The same for a line of shell.
    ///
    /// # Panics
    /// When it fails.
    pub fn shell(&self, line: &str) -> String {
        self.run(&["/bin/sh", "-euc", line])
    }

    /// A property of a unit, as the manager has it.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> String {
        let [value] = self.properties(unit, [name]);
        value
    }

    /// Several properties of a unit, as they are at one moment.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn properties<const N: usize>(&self, unit: &str, names: [&str; N]) -> [String; N] {
        let asked = format!("--property={}", names.join(","));
        let shown = self.run(&["systemctl", "show", &asked, unit]);
        // It shows them in an order of its own.
        names.map(|name| {
            let mut lines = shown.lines().filter_map(|line| line.split_once('='));
            let found = lines.find(|(shown, _value)| *shown == name);
            let (_name, value) = found.unwrap_or_else(|| panic!("no {name} of {unit}:\n{shown}"));
            value.trim().to_owned()
        })
    }

    /// What its services logged last.
    #[must_use]
    pub fn journal(&self) -> String {
        let output = self.attempt(&[
            "journalctl",
            "--no-pager",
            "--lines=80",
            "--output=short-monotonic",
        ]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // What is left of it, if anything, is in the keeper's log.
        drop(self.keeper.wait());
    }
}

/// Runs a command as root where the process `leader` is at home.
fn attempt(leader: u32, command: &[&str]) -> Output {
    let target = leader.to_string();
    let mut entered = Command::new("nsenter");
    entered.args(["--all", "--target", &target, "--", "/usr/bin/env", "-i"]);
    entered.args([
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "LANG=C.UTF-8",
    ]);
    entered.args(["SYSTEMD_PAGER=", "DEBIAN_FRONTEND=noninteractive"]);
    entered.args(command).stdin(Stdio::null());
    entered.output().expect("nsenter runs")
}

fn image() -> Result<PathBuf, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root can start a machine".to_owned());
    }
    let caches = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let Some(caches) = caches.or(home) else {
        return Err("there is no folder for caches".to_owned());
    };
    let image = caches.join(IMAGE);
    if !image.join("usr/lib/systemd/systemd").exists() {
        return Err(format!(
            "there is no image of one at {}; scripts/test.sh makes it",
            image.display()
        ));
    }
    let found = Command::new("systemd-nspawn")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        return Err(
            "systemd-nspawn is missing (on Debian: apt-get install systemd-container)".to_owned(),
        );
    }
    Ok(image)
}

/// The first child of a process, once it is there.
fn first_child(of: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
    let child = children.split_whitespace().next()?;
    child.parse().ok()
}
