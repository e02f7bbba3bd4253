//! Where the demo keeps its files, and what it remembers about what it started.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use viworks_common::catalogue::SHIPPED;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{config, files};

use super::remove;
use super::stores::Stores;
use crate::failure::{Failure, chain};
use crate::program::{self, quoted};

/// Where a demo lives unless it is said.
pub const DEFAULT_FOLDER: &str = ".viworks/dev";
/// Bytes of a socket's path: 107 by unix(7), less what a name beside it may add.
const SOCKET_PATH_MAX: usize = 90;
const SOCKETS_PREFIX: &str = "viworks-";
/// Where the files of a server lie that is another user.
const SERVERS: &str = "/var/tmp";
/// The file by which a folder is known as one that `up` made.
const MARK_FILE: &str = ".viworks-demo";
const MARK_TEXT: &str = "`viworks up` made this folder; `viworks up --reset` removes what it made here, and nothing else.\n";

/// The name of the first backend, with which those of further ones begin.
pub const FIRST: &str = "backend";

/// The database server's name among the processes of a demo.
pub const SERVER: &str = "postgres";

/// The name there of the server between the backends.
pub const QUEUE_SERVER: &str = "redis";

/// The user that a database server is.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// Its number.
    pub user: u32,
    /// Its group's.
    pub group: u32,
}

/// The demo's folder.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

/// A relative folder is nowhere when the current one was removed.
fn nowhere(root: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        ExitCode::Config,
        format!(
            "{} is nowhere, because the current folder cannot be used: {error}",
            root.display()
        ),
    )
    .with("fix: cd to a folder that exists, or name one: --data-dir /FOLDER")
}

impl Layout {
    /// The demo below `root`, made absolute because children may run elsewhere.
    pub fn at(root: &Path) -> Result<Self, Failure> {
        Ok(Self {
            root: std::path::absolute(root).map_err(|error| nowhere(root, &error))?,
        })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The backend's certificates, keys, configuration and database.
    pub fn backend(&self) -> PathBuf {
        self.root.join("backend")
    }

    /// The backend's configuration.
    pub fn backend_config(&self) -> PathBuf {
        self.backend().join("backend.toml")
    }

    /// One gateway's files.
    pub fn gateway(&self, name: &str) -> PathBuf {
        self.root.join("gateways").join(name)
    }

    /// The ticket by which a gateway becomes one, for as long as it is none.
    pub fn ticket(&self, name: &str) -> PathBuf {
        self.gateway(name).join(".ticket")
    }

    /// The operator's API key.
    pub fn token(&self) -> PathBuf {
        self.root.join("operator.key")
    }

    /// The state folder of a backend beside the first one, made if it is missing.
    pub fn make_state(&self, backend: &str) -> Result<PathBuf, Failure> {
        let folder = self.root.join(backend);
        let state = folder.join("state");
        for folder in [&folder, &state] {
            files::create_private_folder(folder).map_err(|error| cannot_write(&error))?;
        }
        Ok(state)
    }

    /// Where the demo keeps its data, once it has some.
    pub fn stores(&self) -> Option<Stores> {
        let is_there = |path: PathBuf| path.symlink_metadata().is_ok();
        let servers = [self.postgres_place(), self.redis_place()].map(is_there);
        is_there(self.backend_config()).then_some(match servers {
            [true, true] => Stores::PostgresRedis,
            [true, false] => Stores::Postgres,
            [false, _] => Stores::Embedded,
        })
    }

    fn postgres_place(&self) -> PathBuf {
        self.root.join("postgres")
    }

    /// The folder of the demo's database server, made if it is missing. Where the server is another user, who cannot
    /// come here, it lies elsewhere, and a link says where.
    pub fn make_postgres(&self, owner: Option<Owner>) -> Result<PathBuf, Failure> {
        let place = self.postgres_place();
        let Some(owner) = owner else {
            files::create_private_folder(&place).map_err(|error| cannot_write(&error))?;
            return Ok(place);
        };
        if let Some(folder) = self.postgres_elsewhere()
            && folder.is_dir()
        {
            return Ok(folder);
        }
        // A link that leads nowhere.
        let _removed = std::fs::remove_file(&place);
        let folder = tempfile::Builder::new()
            .prefix(SOCKETS_PREFIX)
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in(SERVERS)?;
        std::os::unix::fs::chown(folder.path(), Some(owner.user), Some(owner.group))?;
        std::os::unix::fs::symlink(folder.path(), &place)?;
        // From here on the link says that it is there.
        Ok(folder.keep())
    }

    /// Where the link leads, if it is one of [`Self::make_postgres`].
    fn postgres_elsewhere(&self) -> Option<PathBuf> {
        let folder = std::fs::read_link(self.postgres_place()).ok()?;
        let ours = folder.parent() == Some(Path::new(SERVERS))
            && folder
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(SOCKETS_PREFIX));
        ours.then_some(folder)
    }

    fn redis_place(&self) -> PathBuf {
        self.root.join("redis")
    }

    /// The folder of the server between the backends, made if it is missing.
    pub fn make_redis(&self) -> Result<PathBuf, Failure> {
        let place = self.redis_place();
        files::create_private_folder(&place).map_err(|error| cannot_write(&error))?;
        Ok(place)
    }

    /// Removes the servers' files.
    pub fn remove_servers(&self) -> Result<(), Failure> {
        remove::server(&self.postgres_place(), self.postgres_elsewhere().as_deref())
            .and_then(|()| remove::server(&self.redis_place(), None))
            .map_err(|refused| not_removed(&refused))
    }

    /// A process's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Where a process writes its addresses once it is ready.
    pub fn ready(&self, name: &str) -> PathBuf {
        self.root.join("run").join(format!("{name}.json"))
    }

    /// A short way to a gateway's socket, where the one in its own folder would be longer than the system takes.
    pub fn short_socket(&self, name: &str) -> Result<Option<PathBuf>, Failure> {
        let own = self.gateway(name).join("state/api.sock");
        if own.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(None);
        }
        let folder = match self.sockets() {
            Some(folder) => folder,
            None => self.make_sockets()?,
        };
        Ok(Some(folder.join(format!("{name}.sock"))))
    }

    /// The folder of the sockets, when they are not in the gateways' own.
    pub fn sockets(&self) -> Option<PathBuf> {
        std::fs::read_link(self.sockets_link()).ok()
    }

    fn sockets_link(&self) -> PathBuf {
        self.root.join("run").join("sockets")
    }

    /// Makes a private folder with a short name, and a link to it by which the next `up` or `down` removes it.
    fn make_sockets(&self) -> Result<PathBuf, Failure> {
        let folder = tempfile::Builder::new()
            .prefix(SOCKETS_PREFIX)
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in("/tmp")
            .map_err(|error| {
                let what = "takes no sockets, and the demo's folder is too deep for them";
                cannot_use(what, Path::new("/tmp"), &error)
            })?;
        let link = self.sockets_link();
        std::os::unix::fs::symlink(folder.path(), &link)
            .map_err(|error| cannot_use("cannot be made a link", &link, &error))?;
        // From here on the link says that it is there.
        Ok(folder.keep())
    }

    /// Removes the folder of the sockets, when there is one.
    pub fn remove_sockets(&self) {
        let Some(folder) = self.sockets().filter(|_folder| self.is_demo()) else {
            return;
        };
        // Only what `make_sockets` makes is removed, whatever somebody made of the link.
        let ours = folder.parent() == Some(Path::new("/tmp"))
            && folder
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(SOCKETS_PREFIX));
        if ours && let Err(error) = remove::sockets(&folder) {
            crate::output::note(&format!("{} stays behind: {error}", folder.display()));
        }
        // Without its folder the link does no harm.
        let _removed = std::fs::remove_file(self.sockets_link());
    }

    /// How to stop this demo, to be pasted.
    pub fn down(&self) -> String {
        self.verb("down")
    }

    /// How to start this demo, to be pasted.
    pub fn up(&self) -> String {
        self.verb("up")
    }

    fn verb(&self, verb: &str) -> String {
        let program = quoted(&program::name());
        let usual = std::path::absolute(DEFAULT_FOLDER).is_ok_and(|usual| usual == self.root);
        if usual {
            format!("{program} {verb}")
        } else {
            format!(
                "{program} {verb} --data-dir {}",
                quoted(&self.root.to_string_lossy())
            )
        }
    }

    /// Says whose demo it is to who may not touch it.
    pub fn refuse_strangers(&self) -> Result<(), Failure> {
        use std::os::unix::fs::MetadataExt;

        let me = rustix::process::geteuid();
        let whose = match std::fs::symlink_metadata(&self.root) {
            Ok(found) if me.is_root() || found.uid() == me.as_raw() => return Ok(()),
            Ok(found) => format!("belongs to user {}", found.uid()),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                "is in a folder of another user".to_owned()
            }
            // Whatever it is, the next step meets it and says so.
            Err(_absent) => return Ok(()),
        };
        Err(Failure::new(
            ExitCode::Forbidden,
            format!(
                "the demo in {} {whose}, and you are user {}",
                self.root.display(),
                me.as_raw()
            ),
        )
        .with("fix: be that user or root (sudo), or name a folder of your own: --data-dir DIR"))
    }

    /// Whether `up` made this folder.
    pub fn is_demo(&self) -> bool {
        let is_file = |path: PathBuf| path.symlink_metadata().is_ok_and(|found| found.is_file());
        let is_folder = |name: &str| {
            let found = self.root.join(name).symlink_metadata();
            found.is_ok_and(|found| found.is_dir())
        };
        // Earlier versions left no mark.
        let as_before = || {
            is_file(self.backend_config()) && ["gateways", "logs", "run"].into_iter().all(is_folder)
        };
        is_file(self.root.join(MARK_FILE)) || as_before()
    }

    /// Refuses a folder in which somebody else keeps something, and one that nobody gives to a demo.
    pub fn refuse_foreign(&self) -> Result<(), Failure> {
        let refused = |why: &str| {
            Err(Failure::new(
                ExitCode::Config,
                format!("{} {why} and is left alone", self.root.display()),
            )
            .with("fix: name a folder that is new, empty, or a demo's: --data-dir DIR"))
        };
        let found = match std::fs::symlink_metadata(&self.root) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(cannot_use("cannot be used", &self.root, &error)),
        };
        if found.is_symlink() {
            return refused("is a link");
        }
        if !found.is_dir() {
            return refused("is no folder");
        }
        let not_read = |error: std::io::Error| cannot_use("cannot be read", &self.root, &error);
        let canonical = std::fs::canonicalize(&self.root).map_err(not_read)?;
        let home = config::environment().get("HOME").map(PathBuf::from);
        let is_home = home
            .and_then(|home| std::fs::canonicalize(home).ok())
            .is_some_and(|home| home == canonical);
        if canonical.parent().is_none() {
            return refused("is the root of everything");
        }
        if is_home {
            return refused("is your home");
        }
        if self.is_demo() {
            return Ok(());
        }
        let mut held = std::fs::read_dir(&self.root).map_err(not_read)?;
        if held.next().is_none() {
            return Ok(());
        }
        refused("holds files and is not a demo's folder")
    }

    /// Removes what `up` and the programs that it starts made, and says what is left. Of a folder that is no demo's,
    /// nothing.
    pub fn remove_demo(&self) -> Result<Vec<PathBuf>, Failure> {
        if !self.is_demo() {
            return Ok(Vec::new());
        }
        self.remove_servers()?;
        remove::demo(&self.root, MARK_FILE).map_err(|refused| not_removed(&refused))
    }

    /// Puts the shipped catalogue beside what somebody kept of one; a folder that is absent is filled by its gateway.
    pub fn complete_catalogue(&self, gateway: &str) -> Result<(), Failure> {
        let folder = self.gateway(gateway).join("commands.d");
        if !folder.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        for (name, contents) in SHIPPED {
            let file = folder.join(name);
            if file.symlink_metadata().is_err() {
                files::write_new(&file, contents.as_bytes(), 0o600)
                    .map_err(|error| cannot_write(&error))?;
            }
        }
        Ok(())
    }

    /// Removes what an interrupted start left of the backend.
    pub fn remove_backend(&self) -> Result<(), Failure> {
        remove::backend(&self.backend()).map_err(|refused| not_removed(&refused))
    }

    fn started(&self) -> PathBuf {
        self.root.join("run").join("demo.json")
    }

    /// Makes the folders, readable by their owner alone.
    pub fn create(&self) -> Result<(), Failure> {
        // The mark comes before what it marks, so that an interrupted start can be started over.
        files::create_private_folder(&self.root).map_err(|error| cannot_write(&error))?;
        self.mark()?;
        for folder in [
            self.root.join("logs"),
            self.root.join("run"),
            self.root.join("gateways"),
        ] {
            files::create_private_folder(&folder).map_err(|error| cannot_write(&error))?;
        }
        Ok(())
    }

    fn mark(&self) -> Result<(), Failure> {
        let mark = self.root.join(MARK_FILE);
        if mark.symlink_metadata().is_err() {
            files::write_new(&mark, MARK_TEXT.as_bytes(), 0o600)
                .map_err(|error| cannot_write(&error))?;
        }
        Ok(())
    }

    /// What an earlier `up` started and did not stop.
    pub fn load_started(&self) -> Option<Started> {
        if !self.is_demo() {
            return None;
        }
        // Whoever could change it could have other processes ended.
        let started = files::read_trusted(&self.started(), 1024 * 1024).ok()?;
        serde_json::from_slice(&started).ok()
    }

    /// Remembers what was started.
    pub fn save_started(&self, started: &Started) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(started)
            .map_err(|error| Failure::new(ExitCode::Error, error.to_string()))?;
        files::write_atomic(&self.started(), &text).map_err(|error| cannot_write(&error))
    }

    /// Forgets it.
    pub fn forget_started(&self) -> Result<(), Failure> {
        if !self.is_demo() {
            return Ok(());
        }
        match std::fs::remove_file(self.started()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What could not be removed, and why.
fn not_removed((path, error): &remove::Refused) -> Failure {
    cannot_use("cannot be removed", path, error)
}

/// What the system refuses of a place, with its cause. It ends as a file does for every other program: what somebody
/// has to mend is no unexpected fault.
fn cannot_use(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    let refused = files::FileError::Io {
        action: "use",
        path: path.to_owned(),
        source: error.kind().into(),
    };
    Failure::new(
        refused.exit_code(),
        format!("{} {what}: {error}", path.display()),
    )
    .with("fix: use another place: viworks up --data-dir DIR")
}

/// A folder or file that cannot be made, with its cause.
pub(super) fn cannot_write(error: &files::FileError) -> Failure {
    let failure = Failure::new(error.exit_code(), chain(error));
    if error.is_no_room() {
        return failure
            .with("fix: make room on its disk, or use another place: viworks up --data-dir DIR");
    }
    failure.with("fix: use another place: viworks up --data-dir DIR")
}

/// What `up` started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    /// The process that runs `viworks up` itself.
    pub up: Process,
    /// Where its backend listens, once everything is started.
    pub addresses: Option<Addresses>,
    /// The backend first, then the gateways.
    pub processes: Vec<Process>,
}

/// Where a demo's backend listens, `host:port` each, as its ready file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Addresses {
    /// For operators.
    pub api: String,
    /// For agents.
    pub agents: String,
    /// For machines with tickets.
    #[serde(default)]
    pub enrolment: Option<String>,
}

impl Addresses {
    /// The API, as a client takes it.
    pub fn server(&self) -> String {
        format!("http://{}", self.api)
    }
}

/// One process, told apart from a later one with the same number by its start time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub name: String,
    pub pid: u32,
    /// Its start, in clock ticks since boot.
    pub started_ticks: u64,
}

impl Process {
    /// The process `pid` as it runs at this moment.
    pub fn observe(name: &str, pid: u32) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            pid,
            started_ticks: start_ticks(pid)?,
        })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.started_ticks)
    }
}

/// Field 22 of `/proc/PID/stat` (proc(5)); `None` when the process is gone or a zombie.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may hold blanks; what follows the last one is regular.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::Process;

    #[test]
    fn this_process_is_alive_and_its_predecessor_is_not() {
        let me = Process::observe("me", std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(
            !Process {
                started_ticks: me.started_ticks.wrapping_add(1),
                ..me
            }
            .is_alive()
        );
    }
}
