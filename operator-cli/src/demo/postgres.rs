//! The private PostgreSQL server of a demo: found where it is installed, made in the demo's own place, reached over
//! loopback with a password.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_runtime::config;
use viworks_runtime::exit::ExitCode;

use super::layout::{Layout, Owner, SERVER};
use super::named::{NAME, Named};
use super::processes::{MARK, Running};
use crate::failure::Failure;
use crate::views;

/// The oldest version that the backend works with.
const VERSION_MIN: u32 = 15;
/// Where distributions keep the programs of each version: Debian's and that of PostgreSQL's own packages.
const PLACES: [(&str, &str); 2] = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")];
/// What is needed of them.
const NEEDED: [&str; 4] = ["initdb", "postgres", "pg_isready", "createdb"];
/// How long the server may take to answer.
const READY_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// How the backends' configuration names it.
pub(super) const NAMED: Named = Named {
    section: "store",
    scheme: "postgres",
    rest: "/viworks?sslmode=disable",
    password_file: "database.password",
};
/// Says that the server's folder is complete.
const MADE: &str = "made";

/// The programs of the newest version that is installed.
#[derive(Debug, Clone)]
pub(super) struct Installed {
    folder: PathBuf,
    version: u32,
    /// Whom the server runs as, where that is not whoever starts it: it refuses to be root.
    owner: Option<Owner>,
}

impl Installed {
    /// Looks where distributions put it.
    pub(super) fn find() -> Result<Self, Failure> {
        let found = PLACES
            .iter()
            .flat_map(|(place, prefix)| versions(Path::new(place), prefix));
        let (version, folder) = found.max().ok_or_else(|| {
            Failure::new(
                ExitCode::Config,
                format!("PostgreSQL {VERSION_MIN} or later is not installed here: neither in /usr/lib/postgresql nor in /usr/pgsql-*"),
            )
            .with("fix: install it (on Debian: apt-get install postgresql), or leave --stores out for the embedded database")
        })?;
        let owner = if rustix::process::geteuid().is_root() {
            Some(server_user()?)
        } else {
            None
        };
        Ok(Self {
            folder,
            version,
            owner,
        })
    }

    /// A program of it, as the user that it is to be, in the server's folder.
    fn command(&self, program: &str, layout: &Layout, server: &Path) -> Command {
        let mut command = Command::new(self.folder.join(program));
        command.current_dir(server).stdin(Stdio::null());
        // What somebody set for servers of their own (PGSSLMODE, …) is not meant for this one, whose words are read.
        command.env_clear().env("LC_ALL", "C");
        if let Some(path) = config::environment().get("PATH") {
            command.env("PATH", path);
        }
        command.env(MARK, layout.root());
        if let Some(owner) = self.owner {
            command.uid(owner.user).gid(owner.group);
        }
        command
    }

    /// Whom the server runs as, where that is not whoever starts it.
    pub(super) const fn owner(&self) -> Option<Owner> {
        self.owner
    }
}

/// The versions in a place, each with its programs.
fn versions(place: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(place) else {
        return Vec::new();
    };
    let found = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let version: u32 = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
        let programs = entry.path().join("bin");
        let is_complete = NEEDED.iter().all(|name| programs.join(name).is_file());
        (version >= VERSION_MIN && is_complete).then_some((version, programs))
    });
    found.collect()
}

/// The user that packages of PostgreSQL make, by passwd(5).
fn server_user() -> Result<Owner, Failure> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == "postgres").then_some(())?;
        let user = fields.nth(1)?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        Some(Owner { user, group })
    });
    found.ok_or_else(|| {
        Failure::new(
            ExitCode::Config,
            "PostgreSQL does not run as root, and there is no user postgres whom it could run as",
        )
        .with("fix: start the demo as another user than root")
    })
}

/// Makes the server if it is missing, starts it, and lets the backend's configuration name it.
pub(super) async fn start(
    layout: &Layout,
    installed: &Installed,
    running: &mut Vec<Running>,
) -> Result<(), Failure> {
    let step = Instant::now();
    let password = NAMED.password(layout)?;
    let folder = layout.make_postgres(installed.owner)?;
    let port = NAMED.configure(&layout.backend_config())?;
    let made = folder.join(MADE);
    let is_new = !made.exists();
    if is_new {
        initialise(layout, installed, &folder, &password).await?;
    }
    let mut server = installed.command("postgres", layout, &folder);
    server.arg("-D").arg(folder.join("data"));
    // On loopback alone, and with no socket that would need a place with a short name.
    server.args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", ""]);
    // In its folder and not beside it, where a killed server would leave it.
    server.args(["-c", "dynamic_shared_memory_type=mmap"]);
    running.push(Running::spawn(layout, SERVER, server)?);
    let process = running.last_mut().expect("it was pushed on the line above");
    answers(layout, installed, &folder, port, process).await?;
    if is_new {
        let mut create = installed.command("createdb", layout, &folder);
        create.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", NAME]);
        create.args(["-w", "-E", "UTF8", "-T", "template0", NAME]);
        create.env("PGPASSWORD", &password);
        finish(create, Some("already exists")).await?;
        drop(new_file(&made, "")?);
    }
    views::demo::step(
        "database",
        &format!("postgres://127.0.0.1:{port}/{NAME}"),
        &format!("PostgreSQL {}", installed.version),
        step.elapsed(),
    );
    Ok(())
}

/// Makes the files of a server; what an interrupted start left of them goes first.
async fn initialise(
    layout: &Layout,
    installed: &Installed,
    folder: &Path,
    password: &str,
) -> Result<(), Failure> {
    let data = folder.join("data");
    match std::fs::remove_dir_all(&data) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    let file = folder.join("password");
    let _left_behind = std::fs::remove_file(&file);
    let opened = new_file(&file, password)?;
    if let Some(owner) = installed.owner {
        // What was opened, wherever the name leads by now.
        std::os::unix::fs::fchown(&opened, Some(owner.user), Some(owner.group))?;
    }
    let mut initdb = installed.command("initdb", layout, folder);
    initdb.arg("--pgdata").arg(&data).arg("--pwfile").arg(&file);
    initdb.args(["--username", NAME, "--auth=scram-sha-256"]);
    initdb.args(["--encoding=UTF8", "--locale=C", "--no-instructions"]);
    let made = finish(initdb, None).await;
    std::fs::remove_file(&file)?;
    made
}

/// Writes a file into the server's folder. That may be another user's, so nothing that lies there is followed.
fn new_file(file: &Path, text: &str) -> Result<File, Failure> {
    let mut options = std::fs::OpenOptions::new();
    let mut opened = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    opened.write_all(text.as_bytes())?;
    Ok(opened)
}

/// Waits until the server takes connections.
async fn answers(
    layout: &Layout,
    installed: &Installed,
    folder: &Path,
    port: u16,
    server: &mut Running,
) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let mut ask = installed.command("pg_isready", layout, folder);
        ask.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
        if tokio::process::Command::from(ask).status().await?.success() {
            return Ok(());
        }
        if let Some(failure) = server.ended()? {
            return Err(failure);
        }
        if Instant::now() >= deadline {
            let log = layout.log(SERVER);
            return Err(Failure::new(
                ExitCode::Unavailable,
                format!("PostgreSQL did not answer in {} s", READY_WITHIN.as_secs()),
            )
            .with(format!("log: {}", log.display())));
        }
        sleep(POLL).await;
    }
}

/// Runs a program of the server to its end; a failure that says `harmless` is none.
async fn finish(command: Command, harmless: Option<&str>) -> Result<(), Failure> {
    let program = PathBuf::from(command.get_program());
    let output = tokio::process::Command::from(command).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || harmless.is_some_and(|harmless| said.contains(harmless)) {
        return Ok(());
    }
    let failure = Failure::new(
        ExitCode::Error,
        format!("{} ended with {}", program.display(), output.status),
    );
    Err(said
        .lines()
        .rev()
        .take(8)
        .fold(failure, |failure, line| failure.with(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_counts_when_it_is_new_enough_and_whole() {
        let place = tempfile::tempdir().unwrap();
        for (version, programs) in [
            ("13", &NEEDED[..]),
            ("15", &NEEDED),
            ("16", &NEEDED[..3]),
            ("other", &NEEDED),
        ] {
            let folder = place.path().join(version).join("bin");
            std::fs::create_dir_all(&folder).unwrap();
            for program in programs {
                std::fs::write(folder.join(program), "").unwrap();
            }
        }
        let found = versions(place.path(), "");
        assert_eq!(found, [(15, place.path().join("15/bin"))]);
        assert_eq!(versions(&place.path().join("nowhere"), ""), []);
    }
}
