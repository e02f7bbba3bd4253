//! A whole system in a temporary folder: the shipped backend and gateways as processes on free ports.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use viworks_runtime::clock::{Clock, SystemClock};

use crate::binaries::Binaries;
use crate::few_files;
use crate::postgres::Database;
use crate::process::{Process, eventually};
use crate::small_disk;

mod runs;

/// How long anything in a test may take before it counts as broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A system under test.
#[derive(Debug)]
pub struct Deployment {
    folder: Arc<TempDir>,
    /// What this backend of the site is called.
    name: String,
    binaries: &'static Binaries,
    http: reqwest::Client,
    token: String,
    backend: Option<Process>,
    addresses: Option<(String, String)>,
    pub(crate) door: Option<String>,
    /// The database, where it is not a file.
    server: Option<Database>,
}

/// How to start a process.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Environment variables on top of what a deployment sets itself: settings (`VIWORKS__SECTION__KEY`) and crash
    /// points (`VIWORKS_FAULT`).
    pub environment: Vec<(String, String)>,
    /// The size of the state folder's own disk in MiB; see [`small_disk`].
    pub disk: Option<u32>,
    /// That disk turns read-only at its first error.
    pub fragile: bool,
    /// Its standard error output is a pipe that is held open and not read.
    pub unread: bool,
    /// How many files and sockets it may have open, at first and at most.
    pub files: Option<(u32, u32)>,
}

impl Start {
    /// Adds a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Keeps its state on a disk of so many MiB.
    #[must_use]
    pub const fn on_disk_of(mut self, mebibytes: u32) -> Self {
        self.disk = Some(mebibytes);
        self
    }

    /// Keeps its state on a disk of so many MiB that turns read-only at its first error.
    #[must_use]
    pub const fn on_fragile_disk_of(mut self, mebibytes: u32) -> Self {
        self.fragile = true;
        self.on_disk_of(mebibytes)
    }

    /// Writes its log to a pipe that is held open and not read.
    #[must_use]
    pub const fn with_an_unread_log(mut self) -> Self {
        self.unread = true;
        self
    }

    /// May have so many files and sockets open at first, and so many at most.
    #[must_use]
    pub const fn with_files(mut self, soft: u32, hard: u32) -> Self {
        self.files = Some((soft, hard));
        self
    }

    fn process(&self, command: &mut Command, log: &Path) -> std::io::Result<Process> {
        if self.unread {
            Process::start_unread(command, log)
        } else {
            Process::start(command, log)
        }
    }

    fn command(&self, program: &Path, state: &Path) -> Command {
        match self.disk {
            Some(mebibytes) if self.fragile => small_disk::fragile(program, state, mebibytes),
            Some(mebibytes) => small_disk::command(program, state, mebibytes),
            None => self.files.map_or_else(
                || Command::new(program),
                |(soft, hard)| few_files::command(program, soft, hard),
            ),
        }
    }

    /// Stands still at a crash point, until it is told to go on.
    #[must_use]
    pub fn stopping_at(self, point: &str) -> Self {
        self.with("VIWORKS_FAULT", format!("{point}=stop"))
    }

    /// Dies at a crash point.
    #[must_use]
    pub fn dying_at(self, point: &str) -> Self {
        self.with("VIWORKS_FAULT", point)
    }
}

impl Deployment {
    /// Makes certificates, database and an API key with every scope; nothing runs yet.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn new(binaries: &'static Binaries) -> Self {
        Self::with(binaries, None)
    }

    /// The same on a PostgreSQL database.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn on(binaries: &'static Binaries, database: Database) -> Self {
        Self::with(binaries, Some(database))
    }

    fn with(binaries: &'static Binaries, server: Option<Database>) -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let folder = TempDir::new().expect("a temporary folder can be made");
        let backend = folder.path().join("backend");
        let config = backend.join("backend.toml");
        let key = folder.path().join("operator.key");
        run(
            &binaries.backend(),
            &["pki", "init", "--dir", text(&backend)],
        );
        if let Some(server) = &server {
            let written = std::fs::read_to_string(&config).expect("the configuration is there");
            let store = format!("{written}\n[store]\nurl = \"{}\"\n", server.url());
            std::fs::write(&config, store).expect("the configuration can be written");
        }
        run(
            &binaries.backend(),
            &[
                "apikey",
                "create",
                "--config",
                text(&config),
                "--name",
                "tests",
                "--scopes",
                "all",
                "--out",
                text(&key),
            ],
        );
        let token = std::fs::read_to_string(&key)
            .expect("the key was written")
            .trim()
            .to_owned();
        Self {
            folder: Arc::new(folder),
            name: "backend".to_owned(),
            binaries,
            http: crate::http::client(),
            token,
            backend: None,
            addresses: None,
            door: None,
            server,
        }
    }

    /// Another backend of the same site, with the same keys, configuration and database, and a state folder of its own;
    /// it does not run yet. What is asked of it is asked at its own address.
    #[must_use]
    pub fn another(&self, name: &str) -> Self {
        Self {
            folder: Arc::clone(&self.folder),
            name: name.to_owned(),
            binaries: self.binaries,
            http: crate::http::client(),
            token: self.token.clone(),
            backend: None,
            addresses: None,
            door: None,
            server: self.server.clone(),
        }
    }

    /// The state folder of this backend.
    #[must_use]
    pub fn state_folder(&self) -> PathBuf {
        self.path().join(&self.name).join("state")
    }

    /// Where everything lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The programs in use.
    #[must_use]
    pub const fn binaries(&self) -> &'static Binaries {
        self.binaries
    }

    /// From now on other programs are started, on everything that is there; what runs goes on.
    pub const fn upgrade_to(&mut self, binaries: &'static Binaries) {
        self.binaries = binaries;
    }

    /// The backend's configuration.
    #[must_use]
    pub fn backend_config(&self) -> PathBuf {
        self.path().join("backend/backend.toml")
    }

    /// Issues a gateway's identity; the backend must not run.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn issue(&self, name: &str) -> PathBuf {
        let folder = self.path().join("gateways").join(name);
        let config = self.backend_config();
        run(
            &self.binaries.backend(),
            &[
                "pki",
                "issue-gateway",
                name,
                "--config",
                text(&config),
                "--out",
                text(&folder),
                "--demo",
            ],
        );
        folder
    }

    /// Lets the backend forget the key of its authority: certificates are somebody else's affair.
    ///
    /// # Panics
    /// When its configuration does not name one.
    pub fn without_authority(&self) {
        let path = self.backend_config();
        let named = std::fs::read_to_string(&path).expect("it was made");
        let kept = named
            .lines()
            .filter(|line| !line.starts_with("ca_key_file"));
        let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
        assert_ne!(kept.len(), named.len(), "it named the key");
        std::fs::write(&path, kept).expect("it is ours");
    }

    /// Starts the backend on free ports and waits until it listens.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_backend(&mut self, mut start: Start) {
        let ready = self.path().join(format!("{}-ready.json", self.name));
        drop(std::fs::remove_file(&ready));
        // After the first start the ports stay, so that gateways find it again.
        let (api, agents) = self
            .addresses
            .clone()
            .unwrap_or_else(|| ("127.0.0.1:0".to_owned(), "127.0.0.1:0".to_owned()));
        let state = self.state_folder();
        if self.name != "backend" {
            std::fs::create_dir_all(&state).expect("a folder can be made");
            start = start.with("VIWORKS__DATA__STATE_FOLDER", text(&state));
        }
        let mut command = start.command(&self.binaries.backend(), &state);
        command
            .args([
                "serve",
                "--config",
                text(&self.backend_config()),
                "--ready-file",
                text(&ready),
            ])
            .env("VIWORKS__API__LISTEN", api)
            .env("VIWORKS__AGENTS__LISTEN", agents)
            // A machine of tests may not have as many sockets as a site.
            .env("VIWORKS__AGENTS__CONNECTIONS_MAX", "10000")
            .envs(std::mem::take(&mut start.environment));
        let mut process = start
            .process(
                &mut command,
                &self.path().join(format!("{}.log", self.name)),
            )
            .expect("the backend starts");
        let addresses: Value = eventually("the backend is ready", PATIENCE, async || {
            if let Some(status) = process.ended() {
                panic!("the backend ended with {status}:\n{}", process.log());
            }
            serde_json::from_slice(&std::fs::read(&ready).ok()?).ok()
        })
        .await;
        let address = |name: &str| {
            addresses[name]
                .as_str()
                .expect("the ready file names both addresses")
                .to_owned()
        };
        self.addresses = Some((address("api"), address("agents")));
        self.door = addresses["enrolment"].as_str().map(str::to_owned);
        self.backend = Some(process);
    }

    /// The running backend.
    ///
    /// # Panics
    /// When none runs.
    pub const fn backend(&mut self) -> &mut Process {
        self.backend.as_mut().expect("the backend was started")
    }

    /// kill -9 of the backend.
    ///
    /// # Panics
    /// When none runs.
    pub fn kill_backend(&mut self) {
        self.backend.take().expect("the backend was started").kill();
    }

    /// Where agents connect.
    ///
    /// # Panics
    /// When the backend was never started.
    #[must_use]
    pub fn agents_address(&self) -> &str {
        &self.addresses.as_ref().expect("the backend was started").1
    }

    /// Lets a program of operators ask this backend with a key, as on a machine that knows nothing else.
    ///
    /// # Panics
    /// When the backend was never started.
    pub fn ask_with(&self, key: &Path, command: &mut Command) {
        command
            .env("HOME", self.path())
            .env("VIWORKS_CONFIG_DIR", self.path().join("config"))
            .env("VIWORKS_SERVER", self.api_url())
            .env("VIWORKS_TOKEN_FILE", key)
            .env_remove("VIWORKS_CONTEXT")
            .env_remove("VIWORKS_OUTPUT");
    }

    /// The same with the key of its operator.
    ///
    /// # Panics
    /// When the backend was never started.
    pub fn ask(&self, command: &mut Command) {
        self.ask_with(&self.path().join("operator.key"), command);
    }

    /// The API's address.
    ///
    /// # Panics
    /// When the backend was never started.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!(
            "http://{}",
            self.addresses.as_ref().expect("the backend was started").0
        )
    }

    /// Starts a gateway from its folder.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_gateway(&self, folder: &Path, mut start: Start) -> Process {
        let mut command = start.command(&self.binaries.gateway(), &folder.join("state"));
        command
            .args(["run", "--config", text(&folder.join("gateway.toml"))])
            .env(
                "VIWORKS__OUTBOUND__URL",
                format!("wss://{}/agent/v1/connect", self.agents_address()),
            )
            .envs(std::mem::take(&mut start.environment));
        start
            .process(&mut command, &folder.join("gateway.log"))
            .expect("the gateway agent starts")
    }

    /// Sends a request to the API and returns status and body.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), reqwest::Error> {
        let method =
            reqwest::Method::from_bytes(method.as_bytes()).expect("tests use real methods");
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.api_url()))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.timeout(PATIENCE).send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        Ok((
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        ))
    }

    /// GET that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self
            .request("GET", path, None)
            .await
            .expect("the API answers");
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// POST that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self
            .request("POST", path, Some(body))
            .await
            .expect("the API answers");
        assert!(
            (200..300).contains(&status),
            "POST {path}: {status} {answer}"
        );
        answer
    }

    /// Telemetry of one stream as the stopped backend's database holds it: stored records, distinct keys, records in
    /// gaps.
    ///
    /// # Panics
    /// When the database cannot be read.
    pub fn stored_telemetry(&self, stream: &str) -> StoredTelemetry {
        let records = match self.server {
            Some(_) => "telemetry_records",
            None => "telemetry",
        };
        let telemetry = format!(
            "SELECT count(*), count(DISTINCT agent_id || spool_epoch || seq) FROM {records} WHERE stream = '{stream}'"
        );
        let telemetry = self.stored(&telemetry).remove(0);
        let gaps =
            self.stored("SELECT coalesce(sum(to_seq - from_seq + 1), 0) FROM telemetry_gaps");
        let count = |text: &String| text.parse().expect("counts are not negative");
        StoredTelemetry {
            records: count(&telemetry[0]),
            keys: count(&telemetry[1]),
            in_gaps: count(&gaps[0][0]),
        }
    }

    /// Every command that the database holds.
    ///
    /// # Panics
    /// When the database cannot be read.
    pub fn stored_commands(&self) -> Vec<StoredCommand> {
        let commands = self.stored(
            "SELECT c.command_id, r.name, c.state FROM commands AS c \
             JOIN runs AS r ON r.tenant = c.tenant AND r.run_id = c.run_id",
        );
        let stored = commands.into_iter().map(|row| {
            let [id, name, state] = row.try_into().expect("three columns were asked for");
            StoredCommand { id, name, state }
        });
        stored.collect()
    }

    /// How many commands are not final.
    ///
    /// # Panics
    /// When the database cannot be read.
    pub fn open_commands(&self) -> usize {
        let open = self.stored("SELECT count(*) FROM commands WHERE finished_at IS NULL");
        open[0][0].parse().expect("counts are not negative")
    }

    /// What the database answers, each column as text.
    fn stored(&self, sql: &str) -> Vec<Vec<String>> {
        if let Some(server) = &self.server {
            let rows = server.ask(sql).expect("the server answers");
            let columns = |row: &str| row.split('|').map(str::to_owned).collect();
            return rows.lines().map(columns).collect();
        }
        let database = self.database();
        let mut statement = database.prepare(sql).expect("the statement is one");
        let columns = statement.column_count();
        let text = |value: rusqlite::types::Value| match value {
            rusqlite::types::Value::Text(text) => text,
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Null => String::new(),
            rusqlite::types::Value::Real(number) => number.to_string(),
            rusqlite::types::Value::Blob(bytes) => format!("{bytes:?}"),
        };
        let rows = statement.query_map([], |row| {
            (0..columns)
                .map(|column| row.get(column).map(text))
                .collect()
        });
        let rows = rows.and_then(Iterator::collect);
        rows.expect("the database answers")
    }

    /// Writes the only command of a run down so many times more, each with its output, so that the run is as long as
    /// one of many gateways. The backend must not run.
    ///
    /// # Panics
    /// When the database does not take them.
    pub fn multiply(&self, run: &str, times: u32) {
        let path = self.path().join("backend/state/backend.sqlite");
        let connection = rusqlite::Connection::open(path).expect("the database opens");
        let command: String = connection
            .query_row(
                "SELECT command_id FROM commands WHERE run_id = ?1",
                [run],
                |row| row.get(0),
            )
            .expect("the run has a command");
        for table in ["commands", "command_outputs"] {
            let mut columns = connection
                .prepare("SELECT name FROM pragma_table_info(?1)")
                .expect("the table is known");
            let names = columns.query_map([table], |row| row.get::<_, String>(0));
            let names: Vec<String> = names
                .and_then(Iterator::collect)
                .expect("its columns are known");
            let values: Vec<&str> = names
                .iter()
                .map(|name| match name.as_str() {
                    // The same id with another end.
                    "command_id" => "substr(command_id, 1, 24) || printf('%012x', n)",
                    // A gateway's commands have an order of their own.
                    "order_no" => "order_no + n",
                    same => same,
                })
                .collect();
            let sql = format!(
                "WITH RECURSIVE more (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM more WHERE n < ?2)                  INSERT INTO {table} ({}) SELECT {} FROM {table}, more WHERE command_id = ?1",
                names.join(", "),
                values.join(", ")
            );
            let written = connection.execute(&sql, rusqlite::params![command, times]);
            assert_eq!(written, Ok(times as usize), "{table}");
        }
    }

    /// Has the database say that a gateway's certificate was registered a month ago and ends in an hour: the gateway,
    /// whose certificate is as good as before, does not renew it. No backend may run.
    ///
    /// # Panics
    /// When the database does not take it.
    pub fn ages_certificate(&self, name: &str) {
        const MONTH_S: i64 = 30 * 24 * 3_600;
        let now = SystemClock.wall().unix_millis() / 1_000;
        let sql = format!(
            "UPDATE certificates SET registered_at = {}, not_after = {} \
             WHERE agent_id = (SELECT agent_id FROM gateways WHERE name = '{name}')",
            (now - MONTH_S) * 1_000_000,
            (now + 3_600) * 1_000_000
        );
        if let Some(server) = &self.server {
            server.ask(&sql).expect("the server answers");
            return;
        }
        let path = self.path().join("backend/state/backend.sqlite");
        let connection = rusqlite::Connection::open(path).expect("the database opens");
        let changed = connection.execute(&sql, []);
        assert_eq!(changed, Ok(1), "{name} has one certificate");
    }

    fn database(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let path = self.path().join("backend/state/backend.sqlite");
        rusqlite::Connection::open_with_flags(path, flags).expect("the database opens")
    }

    /// Waits until a gateway is online and its catalogue is known.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn online(&self, name: &str) -> Value {
        eventually(&format!("{name} is online"), PATIENCE, async || {
            let (status, gateway) = self
                .request("GET", &format!("/v1/gateways/{name}"), None)
                .await
                .ok()?;
            (status == 200
                && gateway["status"] == "online"
                && !gateway["catalogue_digest"].is_null())
            .then_some(gateway)
        })
        .await
    }
}

/// A command as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCommand {
    /// Its id.
    pub id: String,
    /// The command's name.
    pub name: String,
    /// Its state.
    pub state: String,
}

/// What a database holds of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredTelemetry {
    /// Records.
    pub records: usize,
    /// Distinct keys among them.
    pub keys: usize,
    /// Records that reported gaps stand for, over all streams.
    pub in_gaps: usize,
}

/// Runs a program that must succeed.
///
/// # Panics
/// When it does not, with what it said.
pub fn run(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("the program starts");
    assert!(
        output.status.success(),
        "{} {} ended with {}:\n{}",
        program.display(),
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A path as text.
///
/// # Panics
/// When it is not UTF-8.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have UTF-8 names")
}
