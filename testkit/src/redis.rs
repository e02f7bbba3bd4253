//! Private Redis and Valkey servers for tests: on free ports, in temporary folders, and gone with the tests.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use redis::{Client, FromRedisValue, RedisResult};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::keeper::{End, keep};
use crate::postgres::free_port;
use crate::process::Process;
use crate::small_disk;

pub use cluster::{Cluster, Move};

mod cluster;

/// How long a server may take to start.
const START_TIME: Duration = Duration::from_secs(30);

/// What every server is started with: nothing on disk, unless the test wants it.
const SETTINGS: [&str; 5] = [
    "bind 127.0.0.1",
    "save \"\"",
    "appendonly no",
    "maxmemory-policy noeviction",
    "protected-mode no",
];

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Redis.
    Redis,
    /// Its fork of 2024.
    Valkey,
}

impl Kind {
    const fn program(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Valkey => "valkey-server",
        }
    }

    /// Where its server is, or a word about what is not tested.
    #[expect(clippy::print_stderr, reason = "whoever runs the tests is to see it")]
    fn found(self) -> Option<PathBuf> {
        let name = self.program();
        let path = std::env::var_os("PATH")?;
        let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]);
        let found = folders
            .map(|folder| folder.join(name))
            .find(|program| program.is_file());
        if found.is_none() {
            eprintln!(
                "SKIPPED: what needs {name}: it is not installed (on Debian: apt-get install {name})"
            );
        }
        found
    }
}

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    port: u16,
}

impl Place {
    /// Its port.
    #[must_use]
    pub const fn port(self) -> u16 {
        self.port
    }

    /// Its URL.
    #[must_use]
    pub fn url(self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What it answers to a command of its default user.
    ///
    /// # Errors
    /// What it says about it, or that it is not there.
    pub fn ask<T: FromRedisValue>(self, words: &[&str]) -> RedisResult<T> {
        let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
        self.ask_bytes(&words)
    }

    /// The same with words that need not be text.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_bytes<T: FromRedisValue>(self, words: &[&[u8]]) -> RedisResult<T> {
        let mut connection = Client::open(self.url())?.get_connection_with_timeout(START_TIME)?;
        let mut command = redis::Cmd::new();
        command.arg(words);
        command.query(&mut connection)
    }

    /// What is published while `work` goes on, with its channel, on channels of this pattern.
    ///
    /// # Panics
    /// When the server does not let its default user listen.
    pub async fn published(
        self,
        pattern: &str,
        work: impl Future<Output = ()>,
    ) -> Vec<(String, String)> {
        let opened = Client::open(self.url());
        let opened = opened.and_then(|client| client.get_connection_with_timeout(START_TIME));
        let mut connection = opened.expect("the server answers");
        let mut heard = connection.as_pubsub();
        heard
            .psubscribe(pattern)
            .expect("the server lets it listen");
        work.await;
        heard
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("the time is one");
        let messages = std::iter::from_fn(|| heard.get_message().ok());
        messages
            .map(|it| {
                let payload = String::from_utf8_lossy(it.get_payload_bytes());
                (it.get_channel_name().to_owned(), payload.into_owned())
            })
            .collect()
    }

    fn answers(self) -> bool {
        self.ask::<String>(&["PING"])
            .is_ok_and(|answer| answer == "PONG")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a server that starts can only be asked again and again, here where no runtime is"
    )]
    fn wait(self, log: &Path) {
        let begun = Instant::now();
        while !self.answers() {
            let log = || std::fs::read_to_string(log).unwrap_or_default();
            assert!(
                begun.elapsed() < START_TIME,
                "the server does not start: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A server that is shared by the tests of this process.
struct Shared {
    place: Place,
    /// The server ends when this is closed.
    _keeper: ChildStdin,
}

static SHARED: [OnceLock<Option<Shared>>; 2] = [OnceLock::new(), OnceLock::new()];

/// The server of this process, started when it is first asked for; `None` where it is not installed.
///
/// # Panics
/// When it is installed and cannot be started.
pub fn server(kind: Kind) -> Option<Place> {
    let start = || {
        let program = kind.found()?;
        Some(share(&program).expect("the server starts"))
    };
    let index = usize::from(kind == Kind::Valkey);
    SHARED[index].get_or_init(start).as_ref().map(|it| it.place)
}

fn share(program: &Path) -> io::Result<Shared> {
    let folder = tempfile::Builder::new()
        .prefix("viworks-redis-")
        .tempdir()?
        .keep();
    let place = Place { port: free_port()? };
    let command = command(program, &folder, &folder, place, &[])?;
    let keeper = keep(&command, &folder, End::Kill)?;
    place.wait(&folder.join("log"));
    Ok(Shared {
        place,
        _keeper: keeper,
    })
}

fn command(
    program: &Path,
    folder: &Path,
    data: &Path,
    place: Place,
    settings: &[String],
) -> io::Result<Command> {
    let mut lines = vec![
        format!("port {}", place.port),
        format!("dir {}", data.display()),
    ];
    lines.extend(SETTINGS.map(str::to_owned));
    lines.extend(settings.iter().cloned());
    let file = folder.join("server.conf");
    std::fs::write(&file, lines.join("\n") + "\n")?;
    let mut command = Command::new(program);
    command.arg(file).current_dir("/");
    if settings.iter().any(|line| line.starts_with("sentinel ")) {
        command.arg("--sentinel");
    }
    Ok(command)
}

/// A server of one test's own, to be killed, stopped and started again; gone when it is dropped.
#[derive(Debug)]
pub struct Own {
    program: PathBuf,
    place: Place,
    /// Where the other nodes of a cluster find it.
    bus: Option<u16>,
    settings: Vec<String>,
    /// The size of the disk for what it keeps, in MiB.
    disk: Option<u32>,
    process: Option<Process>,
    folder: TempDir,
}

impl Own {
    /// Whether Redis is installed.
    #[must_use]
    pub fn is_installed() -> bool {
        Kind::Redis.found().is_some()
    }

    /// Starts one; `None` where Redis is not installed.
    ///
    /// # Panics
    /// When Redis is installed and cannot be started.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// The same with lines of its configuration beside [`SETTINGS`].
    ///
    /// # Panics
    /// When Redis is installed and cannot be started.
    #[must_use]
    pub fn start_with(settings: &[&str]) -> Option<Self> {
        Self::start_at(settings, None, None)
    }

    /// The same with what it keeps on a disk of `mebibytes`, which is a new one with each start.
    ///
    /// # Panics
    /// When Redis is installed and cannot be started.
    #[must_use]
    pub fn start_on_disk_of(mebibytes: u32, settings: &[&str]) -> Option<Self> {
        Self::start_at(settings, None, Some(mebibytes))
    }

    fn start_at(settings: &[&str], bus: Option<u16>, disk: Option<u32>) -> Option<Self> {
        let program = Kind::Redis.found()?;
        let folder = tempfile::Builder::new().prefix("viworks-redis-").tempdir();
        let mut own = Self {
            program,
            place: Place {
                port: free_port().expect("a port is free"),
            },
            bus,
            settings: settings.iter().map(|line| (*line).to_owned()).collect(),
            disk,
            process: None,
            folder: folder.expect("a temporary folder can be made"),
        };
        own.start_again();
        Some(own)
    }

    /// A node of a cluster, without slots.
    fn start_node() -> Option<Self> {
        let bus = free_port().expect("a port is free");
        let settings = [
            "cluster-enabled yes",
            "cluster-announce-ip 127.0.0.1",
            "cluster-node-timeout 2000",
            // Otherwise it is ten thousand above the other one, where nothing may be.
            &format!("cluster-port {bus}"),
        ];
        Self::start_at(&settings, Some(bus), None)
    }

    /// Starts a server that follows this one, and waits until it has all of it.
    ///
    /// # Panics
    /// When it does not start, or does not follow.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "a server that starts can only be asked again and again, here where no runtime is"
    )]
    pub fn start_replica(&self) -> Self {
        let follow = format!("replicaof 127.0.0.1 {}", self.place.port);
        let lines = [follow.as_str(), "repl-diskless-sync-delay 0"];
        let replica = Self::start_with(&lines).expect("Redis is installed");
        let begun = Instant::now();
        loop {
            let info: String = replica
                .place
                .ask(&["INFO", "replication"])
                .expect("the replica answers");
            if info.contains("master_link_status:up") {
                return replica;
            }
            assert!(begun.elapsed() < START_TIME, "no replica: {info}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a sentinel that knows this server by a name.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_sentinel(&self, name: &str) -> Self {
        let lines = [
            format!("sentinel monitor {name} 127.0.0.1 {} 1", self.place.port),
            format!("sentinel down-after-milliseconds {name} 500"),
            format!("sentinel failover-timeout {name} 3000"),
        ];
        Self::start_with(&lines.each_ref().map(String::as_str)).expect("Redis is installed")
    }

    /// Has it listen for encrypted connections as well, and answers on which port. It is started again.
    ///
    /// # Panics
    /// When its files cannot be written.
    pub fn encrypt(&mut self, certificate: &str, key: &str) -> u16 {
        let port = free_port().expect("a port is free");
        let file = |name: &str, text: &str| {
            let path = self.folder.path().join(name);
            std::fs::write(&path, text).expect("the file can be written");
            path.display().to_string()
        };
        let lines = [
            format!("tls-port {port}"),
            format!("tls-cert-file {}", file("server.crt", certificate)),
            format!("tls-key-file {}", file("server.key", key)),
            format!("tls-ca-cert-file {}", file("clients.crt", certificate)),
            "tls-auth-clients no".to_owned(),
        ];
        self.settings.extend(lines);
        self.kill();
        self.start_again();
        port
    }

    /// Starts it again, on the same port, with what it had on disk.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&mut self) {
        let folder = self.folder.path();
        let (log, data) = (folder.join("log"), self.data());
        let command = command(&self.program, folder, &data, self.place, &self.settings);
        let mut command = command.expect("the configuration can be written");
        if let Some(mebibytes) = self.disk {
            let plain = command;
            command = small_disk::command(&self.program, &data, mebibytes);
            command.args(plain.get_args()).current_dir("/");
        }
        self.process = Some(Process::start(&mut command, &log).expect("the server starts"));
        self.place.wait(&log);
    }

    /// kill -9 of the server.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// The folder of what it keeps. One on a disk of its own is [seen](small_disk::seen_by) with the server's eyes.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        let folder = self.folder.path();
        self.disk
            .map_or_else(|| folder.to_owned(), |_mebibytes| folder.join("data"))
    }

    /// The number of its process.
    ///
    /// # Panics
    /// When it was killed.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it was started").pid()
    }

    /// Whether it has ended by itself.
    ///
    /// # Panics
    /// When it was killed.
    pub fn has_ended(&mut self) -> bool {
        let process = self.process.as_mut().expect("it was started");
        process.ended().is_some()
    }

    /// Lets it stand still with everything open, as one whose machine hangs does.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Where it listens.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }
}
