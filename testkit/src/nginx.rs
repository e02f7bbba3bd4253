//! Private nginx servers for tests: the configuration that ships, on free ports, in a temporary folder, and gone with
//! the test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::binaries::workspace;
use crate::deployment::text;
use crate::postgres::free_port;
use crate::process::Process;
use crate::rogue::config;

/// How long a server may take to start and to stop.
const TIME: Duration = Duration::from_secs(30);

/// The name under which operators reach the API.
pub const API_NAME: &str = "api.example.org";

/// The module without which TLS cannot be passed through, where Debian has it.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A server of one test's own.
#[derive(Debug)]
pub struct Nginx {
    folder: TempDir,
    ports: Ports,
    backends: Backends,
    shipped: &'static str,
    /// Where the backend's certificate, key and authority are, when it ends the gateways' TLS.
    backend: PathBuf,
    process: Option<Process>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    tls: u16,
    plain: u16,
    inner: u16,
    nothing: u16,
}

/// What stands behind it: addresses with ports. Where there are none, nothing listens.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    /// Where gateways are taken.
    pub agents: Vec<String>,
    /// Where the API is.
    pub api: Vec<String>,
    /// Where machines enrol.
    pub enrolment: Vec<String>,
}

impl Nginx {
    /// Whether it is installed with what the shipped configuration needs; says so where it is not.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "whoever runs the tests is to see it")]
    pub fn is_installed() -> bool {
        let found = program().is_some() && Path::new(STREAM_MODULE).is_file();
        if !found {
            eprintln!(
                "SKIPPED: what needs nginx: it is not installed (on Debian: apt-get install nginx-light libnginx-mod-stream)"
            );
        }
        found
    }

    /// Starts one with the shipped file in front of these backends. Gateways ask it for `localhost`, operators for
    /// [`API_NAME`].
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(backends: Backends) -> Self {
        Self::start_changed(backends, str::to_owned)
    }

    /// The same with other settings.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_changed(backends: Backends, change: impl FnOnce(&str) -> String) -> Self {
        Self::start_of("nginx.conf", backends, Path::new(""), change)
    }

    /// Starts one that ends the gateways' TLS with the certificate and key of the backend in this folder.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_terminating(
        backends: Backends,
        backend: &Path,
        change: impl FnOnce(&str) -> String,
    ) -> Self {
        Self::start_of("nginx-terminate.conf", backends, backend, change)
    }

    fn start_of(
        shipped: &'static str,
        backends: Backends,
        backend: &Path,
        change: impl FnOnce(&str) -> String,
    ) -> Self {
        let folder = tempfile::Builder::new().prefix("viworks-nginx-").tempdir();
        let port = || free_port().expect("a port is free");
        let mut own = Self {
            folder: folder.expect("a temporary folder can be made"),
            ports: Ports {
                tls: port(),
                plain: port(),
                inner: port(),
                nothing: port(),
            },
            backends,
            shipped,
            backend: backend.to_owned(),
            process: None,
        };
        let (certificate, key) = certificate(API_NAME);
        own.write("api.crt", &certificate);
        own.write("api.key", &key);
        own.configure(change);
        own.start_again();
        own
    }

    /// Writes its configuration anew, for the next start or reload.
    ///
    /// # Panics
    /// When the shipped file is not as this one expects it.
    pub fn configure(&self, change: impl FnOnce(&str) -> String) {
        let shipped = std::fs::read_to_string(workspace().join("nginx").join(self.shipped));
        let shipped = shipped.expect("the repository has it");
        self.write("nginx.conf", &change(&self.placed(&shipped)));
    }

    /// The shipped file with the places of this server.
    fn placed(&self, shipped: &str) -> String {
        let folder = text(self.folder.path());
        let Ports {
            tls,
            plain,
            inner,
            nothing,
        } = self.ports;
        let servers = |addresses: &[String]| {
            if addresses.is_empty() {
                return format!("server 127.0.0.1:{nothing};");
            }
            let servers = addresses
                .iter()
                .map(|address| format!("server {address} max_fails=1 fail_timeout=5s;"));
            servers.collect::<Vec<_>>().join("\n        ")
        };
        // Whoever is not root has no other user to work as.
        let user = if rustix::process::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"))
            .concat();
        let places = [
            ("user www-data;", user.to_owned()),
            ("/run/nginx.pid", format!("{folder}/pid")),
            ("/var/log/nginx", folder.to_owned()),
            ("worker_processes auto", "worker_processes 2".to_owned()),
            (
                "worker_rlimit_nofile 131072",
                "worker_rlimit_nofile 4096".to_owned(),
            ),
            (
                "worker_connections 32768",
                "worker_connections 1024".to_owned(),
            ),
            ("http {\n", format!("http {{\n{temporary}")),
            ("listen [::]:443 ssl default_server;", String::new()),
            ("listen [::]:443 ssl;", String::new()),
            ("listen [::]:443;", String::new()),
            ("listen 443", format!("listen 127.0.0.1:{tls}")),
            ("listen [::]:80 default_server;", String::new()),
            ("listen 80 ", format!("listen 127.0.0.1:{plain} ")),
            ("127.0.0.1:8443", format!("127.0.0.1:{inner}")),
            (
                "server 127.0.0.1:8081 max_fails=1 fail_timeout=5s;",
                servers(&self.backends.agents),
            ),
            (
                "server 127.0.0.1:8080 max_fails=1 fail_timeout=5s;",
                servers(&self.backends.api),
            ),
            (
                "server 127.0.0.1:8082 max_fails=1 fail_timeout=5s;",
                servers(&self.backends.enrolment),
            ),
            ("/etc/viworks/nginx/", format!("{folder}/")),
            ("/etc/viworks/backend/", format!("{}/", text(&self.backend))),
            ("agents.example.org", "localhost".to_owned()),
        ];
        let mut placed = shipped.to_owned();
        for (theirs, own) in places {
            placed = placed.replace(theirs, &own);
        }
        // Otherwise a test would use what belongs to this machine.
        let theirs = [
            "listen 443",
            "listen 80 ",
            "[::]",
            ":8080",
            ":8081",
            ":8082",
            ":8443",
            "/etc/viworks",
            "/var/log",
            "/run/nginx",
            "www-data",
        ];
        for line in placed
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
        {
            let left = theirs.iter().find(|theirs| line.contains(**theirs));
            assert_eq!(left, None, "left as shipped: {line}");
        }
        placed
    }

    /// Has other backends behind it, from the next start or reload.
    pub fn lead_to(&mut self, backends: Backends) {
        self.backends = backends;
        self.configure(str::to_owned);
    }

    /// Where gateways dial.
    #[must_use]
    pub fn agents_url(&self) -> String {
        format!("wss://localhost:{}/agent/v1/connect", self.ports.tls)
    }

    /// The port of everything that is encrypted.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.ports.tls
    }

    /// The port that says where the encrypted one is.
    #[must_use]
    pub const fn plain_port(&self) -> u16 {
        self.ports.plain
    }

    /// The API's URL, for a client of [`Self::client`].
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("https://{API_NAME}:{}", self.ports.tls)
    }

    /// A client that finds the API's name here and knows its certificate.
    ///
    /// # Panics
    /// When the library refuses.
    #[must_use]
    pub fn client(&self) -> reqwest::Client {
        let certificate = std::fs::read(self.folder.path().join("api.crt"));
        let certificate = reqwest::Certificate::from_pem(&certificate.expect("it was written"));
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only([certificate.expect("it is a certificate")])
            .resolve(API_NAME, ([127, 0, 0, 1], self.ports.tls).into())
            .build()
            .expect("a client with one certificate can be made")
    }

    /// What it answers to these bytes, sent under TLS to the API's name, until it closes the connection.
    ///
    /// # Errors
    /// When TLS is refused.
    ///
    /// # Panics
    /// When it does not close within a time.
    pub async fn speak(&self, bytes: &[u8]) -> anyhow::Result<String> {
        let authority = std::fs::read(self.folder.path().join("api.crt"))?;
        let stream = TcpStream::connect(("127.0.0.1", self.ports.tls)).await?;
        let connector = TlsConnector::from(config(&authority, None)?);
        let mut stream = connector
            .connect(ServerName::try_from(API_NAME)?, stream)
            .await?;
        let mut answer = Vec::new();
        let spoken = tokio::time::timeout(TIME, async {
            // It may have heard enough before the end.
            drop(stream.write_all(bytes).await);
            drop(stream.read_to_end(&mut answer).await);
        });
        spoken.await.expect("it closes the connection");
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Where its files and logs are.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What it has written about errors.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default()
    }

    /// What it has written about connections that it passed through.
    #[must_use]
    pub fn sessions(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stream.log")).unwrap_or_default()
    }

    /// Starts it, on the same ports.
    ///
    /// # Panics
    /// When it does not start.
    #[expect(
        clippy::disallowed_methods,
        reason = "a server that starts can only be asked again and again, here where no runtime is"
    )]
    pub fn start_again(&mut self) {
        let folder = self.folder.path();
        let mut command = Command::new(program().expect("nginx is installed"));
        command.args(["-g", "daemon off;", "-e", text(&folder.join("start.log"))]);
        command.args(["-c", text(&folder.join("nginx.conf"))]);
        let log = folder.join("start.log");
        let mut process = Process::start(&mut command, &log).expect("nginx starts");
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.ports.tls)).is_err() {
            let late = begun.elapsed() > TIME || process.ended().is_some();
            assert!(!late, "nginx does not start: {}", process.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.process = Some(process);
    }

    /// Has it read its configuration again: new workers take what comes, old ones keep what they have.
    pub fn reload(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::HUP);
        }
    }

    /// The processes that work for it, old ones included.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        let process = self.process.as_ref();
        process.map_or_else(Vec::new, |process| children(process.pid()))
    }

    /// kill -9 of the server, and of what works for it and would go on without it.
    ///
    /// # Panics
    /// When it cannot be stopped before.
    #[expect(
        clippy::disallowed_methods,
        reason = "a server that is stopped can only be looked at again and again, here where no runtime is"
    )]
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        // While it stands still it makes no worker that nobody knows, which would keep its port.
        process.signal(Signal::STOP);
        let begun = Instant::now();
        while !stands_still(process.pid()) && process.ended().is_none() {
            assert!(begun.elapsed() < TIME, "nginx does not stand still");
            std::thread::sleep(Duration::from_millis(1));
        }
        let workers = children(process.pid());
        process.kill();
        let pids = workers
            .into_iter()
            .filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        for pid in pids {
            // One that is already gone needs no signal.
            let _sent = kill_process(pid, Signal::KILL);
        }
    }

    /// Ends it at once, with every connection.
    ///
    /// # Panics
    /// When it does not end.
    #[expect(
        clippy::disallowed_methods,
        reason = "a server that ends can only be asked again and again, here where no runtime is"
    )]
    pub fn stop(&mut self) {
        // Its workers would outlive a master that is killed.
        let Some(mut process) = self.process.take() else {
            return;
        };
        process.signal(Signal::TERM);
        let begun = Instant::now();
        while process.ended().is_none() {
            assert!(
                begun.elapsed() < TIME,
                "nginx does not stop: {}",
                process.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.folder.path().join(name);
        std::fs::write(path, content).expect("its folder can be written");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The children of a process.
fn children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Whether a process was stopped by a signal.
fn stands_still(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Its name may have anything in it.
    let state = stat.rsplit_once(") ").map(|(_name, rest)| rest);
    state.is_some_and(|rest| rest.starts_with('T'))
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders
        .map(|folder| folder.join("nginx"))
        .find(|program| program.is_file())
}

/// A certificate that signed itself, and its key.
fn certificate(name: &str) -> (String, String) {
    let key = KeyPair::generate().expect("a key can be made");
    let params = CertificateParams::new([name.to_owned()]).expect("it is a name");
    let certificate = params
        .self_signed(&key)
        .expect("a key signs its own certificate");
    (certificate.pem(), key.serialize_pem())
}
