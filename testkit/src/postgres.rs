//! A private PostgreSQL server for the tests of one process: on a free port, in a temporary folder, and gone with it.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::keeper::{End, keep};
use crate::process::Process;
use crate::small_disk;

/// How long the server may take to start.
const START_TIME: Duration = Duration::from_secs(60);

/// How long the server may take to end; after that it is killed.
const QUIT_TIME: Duration = Duration::from_secs(20);

/// How long what a test does may take to show in what the server answers.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub struct Server {
    programs: PathBuf,
    port: u16,
    /// Whether the template has what is copied from it.
    filled: Mutex<bool>,
    /// The server ends when this is closed.
    #[expect(dead_code, reason = "it is held and not used")]
    keeper: Option<ChildStdin>,
}

static SERVER: OnceLock<Option<Server>> = OnceLock::new();

/// The server of this process, started when it is first asked for; `None` where PostgreSQL is not installed.
///
/// # Panics
/// When PostgreSQL is installed and cannot be started.
pub fn server() -> Option<&'static Server> {
    let start = || found().map(|programs| Server::start(programs).expect("PostgreSQL starts"));
    SERVER.get_or_init(start).as_ref()
}

/// The same, or a word about what is not tested.
#[expect(clippy::print_stderr, reason = "whoever runs the tests is to see it")]
fn found() -> Option<PathBuf> {
    let programs = programs();
    if programs.is_none() {
        eprintln!(
            "SKIPPED: what needs PostgreSQL: it is not installed (on Debian: apt-get install postgresql)"
        );
    }
    programs
}

/// The folder with the server's programs: the newest version that is installed, or `VIWORKS_POSTGRES_BIN`.
fn programs() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("VIWORKS_POSTGRES_BIN") {
        return Some(PathBuf::from(named));
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .flatten()
        .filter_map(|version| {
            let number = version.file_name().to_str()?.parse().ok()?;
            let programs = version.path().join("bin");
            programs
                .join("initdb")
                .is_file()
                .then_some((number, programs))
        })
        .collect();
    found.sort_unstable();
    found.pop().map(|(_, programs)| programs)
}

/// A command of the server, which refuses to run as root.
fn command(program: &Path) -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=postgres",
        "--regid=postgres",
        "--clear-groups",
        "--",
    ]);
    command.arg(program);
    command
}

/// A database of a server.
#[derive(Debug, Clone)]
pub struct Database {
    programs: PathBuf,
    port: u16,
    name: String,
}

impl Database {
    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        let Self { port, name, .. } = self;
        format!("postgres://viworks@127.0.0.1:{port}/{name}?sslmode=disable")
    }

    /// The same behind a proxy on another port of this machine.
    #[must_use]
    pub fn behind(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Runs what `pg_dump` has written.
    ///
    /// # Panics
    /// When the server does not take all of it.
    pub fn restore(&self, dump: &Path) {
        let restored = self.psql().arg("-f").arg(dump).output();
        let restored = restored.expect("psql starts");
        let said = String::from_utf8_lossy(&restored.stderr);
        assert!(restored.status.success(), "{said}");
    }

    /// What a query answers, its rows in lines and its columns between bars.
    ///
    /// # Errors
    /// What the server says about it.
    pub fn ask(&self, query: &str) -> Result<String, String> {
        let output = self.psql().args(["-c", query]).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The client, which ends at the first statement that fails.
    fn psql(&self) -> Command {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "viworks",
            "-h",
            "127.0.0.1",
        ]);
        psql.args(["-p", &self.port.to_string(), "-d", &self.name]);
        psql
    }
}

/// Hands a file or a folder to whoever the server runs as.
fn hand_over(path: &Path) {
    if rustix::process::getuid().is_root() {
        let owner = Command::new("chown").arg("postgres:").arg(path).status();
        assert!(
            owner.is_ok_and(|it| it.success()),
            "the user postgres is missing"
        );
    }
}

/// Runs `initdb`; answers the folder of the data.
fn initialise(programs: &Path, folder: &Path) -> PathBuf {
    hand_over(folder);
    let data = folder.join("data");
    let mut initdb = command(&programs.join("initdb"));
    initdb.args([
        "--username=viworks",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
    ]);
    initdb.arg("--no-instructions").arg("--pgdata").arg(&data);
    let made = initdb.current_dir("/").output().expect("initdb starts");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    data
}

/// The command that runs a server.
fn serve(programs: &Path, data: &Path, port: u16) -> Command {
    let mut server = command(&programs.join("postgres"));
    server
        .arg("-D")
        .arg(data)
        .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", ""]);
    for setting in [
        "max_connections=300",
        "shared_buffers=64MB",
        "log_min_messages=fatal",
        // In its folder, which is taken away, whatever became of the server.
        "dynamic_shared_memory_type=mmap",
    ] {
        server.args(["-c", setting]);
    }
    server.current_dir("/");
    server
}

/// A folder for the data of one server.
fn own_folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("viworks-pg-").tempdir();
    folder.expect("a temporary folder can be made")
}

/// Takes away the segment of shared memory that a killed server left behind, by the folder of its data. Nobody else
/// does, a machine has room for 4,096 of them, and without one no server starts.
///
/// # Panics
/// When there is one and it cannot be removed.
pub fn forget(data: &Path) {
    // Its key and its number: LOCK_FILE_LINE_SHMEM_KEY in miscadmin.h of PostgreSQL. The file is gone with a server
    // that ended by itself.
    let file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let line = file.lines().nth(6).unwrap_or_default();
    let Some(number) = line.split_whitespace().nth(1) else {
        return;
    };
    let mut remove = Command::new("ipcrm");
    let removed = remove.args(["-m", number]).env("LC_ALL", "C").output();
    let removed = removed.expect("ipcrm of util-linux starts");
    let said = String::from_utf8_lossy(&removed.stderr);
    // The number is of this segment alone: a later one in its place has another.
    let is_gone = ["invalid id", "already removed"].map(|gone| said.contains(gone));
    assert!(
        removed.status.success() || is_gone.contains(&true) || std::thread::panicking(),
        "{said}"
    );
}

/// Removes the folder of a server that was killed, with what that left outside it.
///
/// # Panics
/// When it is still there after a while.
#[expect(
    clippy::disallowed_methods,
    reason = "what a killed server has started ends by itself, and can only be asked again and again"
)]
pub fn remove(folder: &Path) {
    forget(&folder.join("data"));
    let begun = Instant::now();
    while let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        if std::thread::panicking() {
            return;
        }
        assert!(begun.elapsed() < QUIT_TIME, "{}: {error}", folder.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that nobody has.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A server of one test's own, to be killed and started again; gone when it is dropped.
#[derive(Debug)]
pub struct Own {
    server: Server,
    process: Option<Process>,
    encrypted: bool,
    /// The size in MiB of the disk that its tables have to themselves.
    disk: Option<u32>,
    folder: TempDir,
}

impl Own {
    /// Starts one; `None` where PostgreSQL is not installed.
    ///
    /// # Panics
    /// When PostgreSQL is installed and cannot be started.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::start_with(None)
    }

    /// The same with its tables on a disk of so many MiB, which is gone when the server ends; its log of transactions
    /// is elsewhere, because a server that cannot write that does not go on.
    ///
    /// # Panics
    /// When PostgreSQL is installed and cannot be started.
    #[must_use]
    pub fn start_on_disk_of(mebibytes: u32) -> Option<Self> {
        Self::start_with(Some(mebibytes))
    }

    /// Whether there is a server to be started; where there is none, that is said.
    #[must_use]
    pub fn is_installed() -> bool {
        found().is_some()
    }

    /// Whether this machine lets a server have such a disk: mounting takes root, and a server does not run as root, not
    /// even in a namespace of its own.
    #[must_use]
    pub fn may_have_a_disk() -> bool {
        rustix::process::getuid().is_root()
    }

    fn start_with(disk: Option<u32>) -> Option<Self> {
        let programs = found()?;
        let folder = own_folder();
        initialise(&programs, folder.path());
        Some(Self::start_in(folder, programs, disk))
    }

    /// Starts the server whose data is in a folder.
    fn start_in(folder: TempDir, programs: PathBuf, disk: Option<u32>) -> Self {
        let server = Server {
            programs,
            port: free_port().expect("a port is free"),
            filled: Mutex::new(false),
            keeper: None,
        };
        let mut own = Self {
            server,
            process: None,
            encrypted: false,
            disk,
            folder,
        };
        own.start_again();
        own
    }

    /// Starts a standby that follows this one; `name` is what `synchronous_standby_names` of this one calls it.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn standby(&self, name: &str) -> Self {
        let programs = self.server.programs.clone();
        let folder = own_folder();
        hand_over(folder.path());
        let primary = format!(
            "host=127.0.0.1 port={} user=viworks application_name={name}",
            self.server.port
        );
        let mut copy = command(&programs.join("pg_basebackup"));
        copy.arg("--pgdata").arg(folder.path().join("data"));
        copy.args(["--dbname", &primary, "--write-recovery-conf"]);
        copy.args(["--wal-method=stream", "--checkpoint=fast", "--no-sync"]);
        let copied = copy.current_dir("/").output();
        let copied = copied.expect("pg_basebackup starts");
        assert!(
            copied.status.success(),
            "{}",
            String::from_utf8_lossy(&copied.stderr)
        );
        Self::start_in(folder, programs, None)
    }

    /// Makes a primary of a standby; it takes writes when this returns.
    ///
    /// # Panics
    /// When it is none.
    pub fn promote(&self) {
        let promoted = self.server.psql("postgres", "SELECT pg_promote()");
        assert_eq!(promoted.as_deref(), Ok("t"), "a standby can be promoted");
    }

    /// Changes a setting that needs no restart.
    ///
    /// # Panics
    /// When the server does not take it.
    pub fn set(&self, setting: &str, value: &str) {
        for query in [
            format!("ALTER SYSTEM SET {setting} = '{value}'"),
            "SELECT pg_reload_conf()".to_owned(),
        ] {
            self.server
                .psql("postgres", &query)
                .expect("the server does it");
        }
    }

    /// Has it take encrypted connections with a password only, from here on. It is started again.
    ///
    /// # Panics
    /// When its files cannot be written.
    pub fn secure(&mut self, certificate: &str, key: &str, password: &str) {
        let set = format!("ALTER ROLE viworks PASSWORD '{password}'");
        self.server
            .psql("postgres", &set)
            .expect("the password is set");
        let data = self.folder.path().join("data");
        let rules = "local all all trust\nhostssl viworks viworks 127.0.0.1/32 scram-sha-256\n\
                     host postgres viworks 127.0.0.1/32 trust\n";
        for (name, text) in [
            ("server.crt", certificate),
            ("server.key", key),
            ("pg_hba.conf", rules),
        ] {
            let path = data.join(name);
            std::fs::write(&path, text).expect("the file can be written");
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&path, mode).expect("its mode can be set");
            hand_over(&path);
        }
        self.encrypted = true;
        self.kill();
        self.start_again();
    }

    /// Starts it again, on the same port.
    ///
    /// # Panics
    /// When it does not start.
    #[expect(
        clippy::disallowed_methods,
        reason = "a server that starts can only be asked again and again, here where no runtime is"
    )]
    pub fn start_again(&mut self) {
        let (data, log) = (
            self.folder.path().join("data"),
            self.folder.path().join("log"),
        );
        let begun = Instant::now();
        // What a killed server leaves behind ends by itself, and until then a new one refuses to start.
        while self.process.is_none() {
            let mut command = serve(&self.server.programs, &data, self.server.port);
            if self.encrypted {
                command.args(["-c", "ssl=on"]);
            }
            if let Some(mebibytes) = self.disk {
                let plain = command;
                let program = Path::new(plain.get_program());
                command = small_disk::command(program, &self.tables(), mebibytes);
                command.args(plain.get_args()).current_dir("/");
            }
            let mut process = Process::start(&mut command, &log).expect("the server starts");
            let in_time = || {
                assert!(
                    begun.elapsed() < START_TIME,
                    "PostgreSQL does not start: {}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
            };
            while process.ended().is_none() {
                if self.server.answers() {
                    self.process = Some(process);
                    return;
                }
                in_time();
                std::thread::sleep(Duration::from_millis(30));
            }
            in_time();
        }
    }

    /// kill -9 of the server.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends it with what it shares with its children.
    #[expect(
        clippy::disallowed_methods,
        reason = "a server that ends can only be asked again and again, here where no runtime is"
    )]
    fn quit(mut process: Process) {
        process.signal(Signal::QUIT);
        // One that a test holds still hears nothing else.
        process.signal(Signal::CONT);
        let begun = Instant::now();
        while process.ended().is_none() && begun.elapsed() < QUIT_TIME {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The folder of its tables.
    #[must_use]
    pub fn tables(&self) -> PathBuf {
        self.folder.path().join("data/base")
    }

    /// The number of its process.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").pid()
    }

    /// The server.
    #[must_use]
    pub const fn server(&self) -> &Server {
        &self.server
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            Self::quit(process);
        }
        // Not left to the folder itself, which gives up where orphans of a killed server still make files.
        remove(self.folder.path());
    }
}

impl Server {
    fn start(programs: PathBuf) -> io::Result<Self> {
        // In memory where that is to be had: these tests are about what is stored, not about a disk.
        let memory = Path::new("/dev/shm");
        let temporary = std::env::temp_dir();
        let place = if memory.is_dir() { memory } else { &temporary };
        let folder = tempfile::Builder::new()
            .prefix("viworks-pg-")
            .tempdir_in(place)?
            .keep();
        let data = initialise(&programs, &folder);
        let port = free_port()?;
        let keeper = keep(&serve(&programs, &data, port), &folder, End::Quit)?;
        let started = Self {
            programs,
            port,
            filled: Mutex::new(false),
            keeper: Some(keeper),
        };
        started.wait(&folder.join("log"));
        Ok(started)
    }

    fn answers(&self) -> bool {
        let answer = self.psql("postgres", "SELECT 1");
        answer.is_ok_and(|answer| answer == "1")
    }

    /// Waits until it takes connections.
    #[expect(
        clippy::disallowed_methods,
        reason = "a server that starts can only be asked again and again, here where no runtime is"
    )]
    fn wait(&self, log: &Path) {
        let begun = Instant::now();
        while !self.answers() {
            let log = || std::fs::read_to_string(log).unwrap_or_default();
            assert!(
                begun.elapsed() < START_TIME,
                "PostgreSQL does not start: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where it listens on this machine.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its programs.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// A database of it, whether it is there or not.
    #[must_use]
    pub fn database(&self, name: &str) -> Database {
        Database {
            programs: self.programs.clone(),
            port: self.port,
            name: name.to_owned(),
        }
    }

    /// The URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.database(database).url()
    }

    /// Makes an empty database, unless it is there; answers whether it was made.
    ///
    /// # Panics
    /// When the server does not make it.
    pub fn make_empty(&self, database: &str) -> bool {
        let known = format!("SELECT count(*) FROM pg_database WHERE datname = '{database}'");
        let missing = self.psql("postgres", &known).expect("the server does it") == "0";
        if missing {
            self.psql("postgres", &format!("CREATE DATABASE \"{database}\""))
                .expect("the server does it");
        }
        missing
    }

    /// Makes a database, unless it is there, as a copy of `template`, which `fill` fills when it is first needed.
    ///
    /// # Panics
    /// When the server does not make it.
    pub fn make(&self, database: &str, template: &str, fill: impl FnOnce()) {
        // One at a time: a database that somebody else copies cannot be copied.
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        if !*filled {
            self.make_empty(template);
            fill();
            *filled = true;
        }
        let known = format!("SELECT count(*) FROM pg_database WHERE datname = '{database}'");
        if self.psql("postgres", &known).expect("the server does it") == "0" {
            let make = format!("CREATE DATABASE \"{database}\" TEMPLATE \"{template}\"");
            self.psql("postgres", &make).expect("the server does it");
        }
        drop(filled);
    }

    /// Drops a database, with whoever is connected to it.
    ///
    /// # Panics
    /// When the server does not drop it.
    pub fn drop(&self, database: &str) {
        let drop = format!("DROP DATABASE \"{database}\" WITH (FORCE)");
        self.psql("postgres", &drop).expect("the server does it");
    }

    /// What a query answers, its rows in lines and its columns between bars.
    ///
    /// # Errors
    /// What the server says about it.
    pub fn psql(&self, database: &str, query: &str) -> Result<String, String> {
        self.database(database).ask(query)
    }

    /// What a query answers when it is what is waited for, asked again and again until then.
    ///
    /// # Panics
    /// When it cannot be asked, or the answer does not come within a minute.
    #[expect(
        clippy::disallowed_methods,
        reason = "a server can only be asked again and again, here where no runtime is"
    )]
    #[must_use]
    pub fn asked_until(&self, database: &str, query: &str, is_it: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let answer = self.psql(database, query).expect("the server answers");
            if is_it(&answer) {
                return answer;
            }
            assert!(
                begun.elapsed() < ANSWER_TIME,
                "in {ANSWER_TIME:?} the answer was {answer:?} and nothing else: {query}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
