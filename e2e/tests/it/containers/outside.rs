//! The command lines of the containers, in a temporary folder that has their volumes and secrets, on free ports.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use viworks_testkit::binaries::{Binaries, workspace};
use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::process::{Process, Said, eventually, finish};
use viworks_testkit::{postgres, redis};

use super::compose::Compose;
use crate::ciphers;

/// Where an image has its programs.
const PROGRAMS: &str = "/usr/bin/viworks";

/// A host without an engine.
struct Host {
    folder: TempDir,
    compose: Compose,
    /// What is somewhere else here, the longest first.
    places: Vec<(String, String)>,
    running: Vec<Process>,
}

fn folder(path: &Path) {
    std::fs::create_dir_all(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Host {
    /// One on which these addresses are others.
    fn new(addresses: &[&str]) -> Self {
        let folder = TempDir::with_prefix("viworks-containers-").unwrap();
        let agents = free_port();
        let api = free_port();
        let door = free_port();
        let secrets = folder.path().join("secrets");
        let variables = BTreeMap::from([
            ("VIWORKS_AGENTS_PORT", agents.to_string()),
            ("VIWORKS_API_PORT", api.to_string()),
            ("VIWORKS_ENROLMENT_PORT", door.to_string()),
            ("VIWORKS_SECRETS", secrets.display().to_string()),
            (
                "VIWORKS_GATEWAY",
                folder.path().join("gateway").display().to_string(),
            ),
        ]);
        let mut places = vec![
            ("0.0.0.0:8081".to_owned(), format!("127.0.0.1:{agents}")),
            ("0.0.0.0:8082".to_owned(), format!("127.0.0.1:{door}")),
            ("listen 8082".to_owned(), format!("listen 127.0.0.1:{door}")),
            (
                "listen 8081".to_owned(),
                format!("listen 127.0.0.1:{agents}"),
            ),
            ("listen 8443".to_owned(), format!("listen 127.0.0.1:{api}")),
            ("/run/secrets".to_owned(), secrets.display().to_string()),
            (
                " /tmp/".to_owned(),
                format!(" {}/tmp/", folder.path().display()),
            ),
        ];
        let doors = ["127.0.0.1:9281", "127.0.0.1:9282"];
        for address in addresses.iter().chain(&doors) {
            places.push(((*address).to_owned(), format!("127.0.0.1:{}", free_port())));
        }
        let host = Self {
            folder,
            compose: Compose::with(&variables),
            places,
            running: Vec::new(),
        };
        self::folder(&secrets);
        self::folder(&host.path("tmp"));
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where `place` is here.
    fn place(&self, place: &str) -> String {
        let found = self.places.iter().find(|(there, _here)| there == place);
        found
            .unwrap_or_else(|| panic!("{place} is nowhere"))
            .1
            .clone()
    }

    /// What a service says, as it is here.
    fn here(&self, service: &str, text: &str) -> String {
        let mut places = self.places.clone();
        for mount in self.compose.services[service].mounts() {
            let is_volume = !mount.source.starts_with(['.', '/']);
            let source = if is_volume {
                let volume = self.path("volumes").join(&mount.source);
                folder(&volume);
                volume
            } else if mount.source.starts_with('/') {
                PathBuf::from(&mount.source)
            } else {
                workspace().join(&mount.source)
            };
            places.push((mount.target, source.display().to_string()));
        }
        let programs = Binaries::shipped().cli().display().to_string();
        places.push((PROGRAMS.to_owned(), programs));
        places.sort_by_key(|(there, _here)| std::cmp::Reverse(there.len()));
        let mut text = text.to_owned();
        // What was put in is not looked at again.
        for (number, (there, _here)) in places.iter().enumerate() {
            text = text.replace(there, &format!("\u{1}{number}\u{2}"));
        }
        for (number, (_there, here)) in places.iter().enumerate() {
            text = text.replace(&format!("\u{1}{number}\u{2}"), here);
        }
        text
    }

    /// A command line in a service's surroundings.
    fn command(&self, service: &str, words: &[String]) -> Command {
        let words: Vec<String> = words.iter().map(|word| self.here(service, word)).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.folder.path());
        let programs = Binaries::shipped().cli();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = programs.parent().unwrap().display();
        command.env("PATH", format!("{own}:{}:/usr/sbin", path.display()));
        command.env("VIWORKS_CONFIG_DIR", self.path("config"));
        for (name, value) in self.compose.services[service].environment() {
            command.env(name, self.here(service, &value));
        }
        if service != "gateway" {
            // The image has it where the package has it, and so does the configuration.
            let state = self.here(service, "/var/lib/viworks-backend");
            command.env("VIWORKS__DATA__STATE_FOLDER", state);
            let own = self.compose.services[service].environment();
            if !own.contains_key("VIWORKS__API__LISTEN") {
                // Its port may be somebody else's here.
                command.env("VIWORKS__API__LISTEN", self.place("127.0.0.1:8080"));
            }
        }
        command
    }

    /// Runs a setup to its end.
    async fn set_up(&self, service: &str) {
        let words = self.compose.services[service].strings("entrypoint");
        // Twice: what is there already stays.
        for _time in 0..2 {
            let said = finish(self.command(service, &words), PATIENCE).await;
            drop(said.ended_with(0));
        }
    }

    /// Starts a service by its command, behind the image's own entry point.
    fn start(&mut self, service: &str, entry: &[&str]) {
        let mut words: Vec<String> = entry.iter().map(|word| (*word).to_owned()).collect();
        words.extend(self.compose.services[service].strings("command"));
        let mut command = self.command(service, &words);
        let log = self.path(&format!("{service}.log"));
        self.running
            .push(Process::start(&mut command, &log).unwrap());
    }

    /// Waits until it says that it is well.
    async fn healthy(&self, service: &str) {
        let words = self.compose.services[service].healthcheck();
        eventually(&format!("{service} is well"), PATIENCE, async || {
            let said = finish(self.command(service, &words), PATIENCE).await;
            (said.code == Some(0)).then_some(())
        })
        .await;
    }

    /// What `docker compose exec SERVICE …` would say.
    async fn exec(&self, service: &str, line: &str) -> Said {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        finish(self.command(service, &words), PATIENCE).await
    }

    /// A folder that the backend of `service` issues for a gateway.
    async fn issued(&self, service: &str) {
        let config = "/etc/viworks/backend/backend.toml";
        let out = self.path("gateway").display().to_string();
        let issue =
            format!("viworks-backend-agent pki issue-gateway gw-1 --config {config} --out {out}");
        drop(self.exec(service, &issue).await.ended_with(0));
        if !rustix::process::geteuid().is_root() {
            let file = self.path("gateway/gateway.toml");
            let text = std::fs::read_to_string(&file).unwrap();
            let own = "\n[executor]\nallow_own_commands = \"for_demo_only\"\n";
            std::fs::write(&file, text + own).unwrap();
        }
    }

    /// The folder of a gateway that enrols with a ticket of the backend of `service`.
    async fn enrolled(&self, service: &str) {
        let line = "viworks ticket create --name gw-1 --from 127.0.0.0/8";
        let ticket = self.exec(service, line).await.ended_with(0).stdout;
        let file = self.path("ticket");
        viworks_runtime::files::write_new(&file, ticket.as_bytes(), 0o600).unwrap();
        let (out, file) = (self.path("gateway"), file.display());
        let enroll = format!(
            "viworks-gateway-agent enroll --demo --out {} --ticket-file {file}",
            out.display()
        );
        drop(self.exec("gateway", &enroll).await.ended_with(0));
    }

    /// The catalogue of the gateway's image.
    fn catalogue(&mut self) {
        let catalogue = self.path("commands.d");
        folder(&catalogue);
        for entry in std::fs::read_dir(workspace().join("common/catalogue")).unwrap() {
            let entry = entry.unwrap();
            let text = std::fs::read(entry.path()).unwrap();
            let name = catalogue.join(entry.file_name());
            viworks_runtime::files::write_new(&name, &text, 0o600).unwrap();
        }
        let here = catalogue.display().to_string();
        self.places
            .push(("/etc/viworks/commands.d".to_owned(), here));
    }

    /// Starts the gateway of that folder, until a command of the backend of `service` ran on it.
    async fn gateway(&mut self, service: &str) {
        self.start("gateway", &["/usr/bin/viworks-gateway-agent"]);
        self.healthy("gateway").await;
        // The backend learns what a gateway allows a moment after it connected.
        eventually("its catalogue is known", PATIENCE, async || {
            let asked = self.exec(service, "viworks command show sys.uptime").await;
            (asked.code == Some(0)).then_some(())
        })
        .await;
        let said = self
            .exec(service, "viworks run sys.uptime -g gw-1")
            .await
            .ended_with(0);
        assert!(said.stdout.contains("load"), "{said:#?}");
    }

    async fn stop(mut self) {
        // The last one first, as compose does.
        while let Some(mut process) = self.running.pop() {
            process.stop(PATIENCE).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_profile_works_by_its_command_lines() {
    let mut host = Host::new(&["127.0.0.1:8080"]);
    host.set_up("setup").await;
    host.start("backend", &["/usr/bin/viworks-backend-agent"]);
    host.healthy("backend").await;
    host.catalogue();
    host.issued("backend").await;
    host.gateway("backend").await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scale_profile_works_by_its_command_lines() {
    if !postgres::Own::is_installed() || !redis::Own::is_installed() {
        return;
    }
    if !Path::new("/usr/sbin/nginx").is_file() {
        super::skipped("the scale profile of docker-compose.yml: nginx is not installed");
        return;
    }
    let ports =
        ["6379", "8080", "9081", "9082", "9181", "9182"].map(|port| format!("127.0.0.1:{port}"));
    let mut host = Host::new(&ports.each_ref().map(String::as_str));
    let database = postgres::Own::start().unwrap();
    database.server().make_empty("viworks");
    let address = format!("127.0.0.1:{}", database.server().port());
    host.places.push(("127.0.0.1:5432".to_owned(), address));
    let redis_port = host
        .place("127.0.0.1:6379")
        .rsplit_once(':')
        .unwrap()
        .1
        .to_owned();
    let secret = |name: &str, text: &str| {
        let file = host.path("secrets").join(name);
        viworks_runtime::files::write_new(&file, text.as_bytes(), 0o400).unwrap();
    };
    secret("postgres_password", "only-here\n");
    secret("redis_password", "only-there\n");
    secret(
        "redis_acl",
        "user default off\nuser viworks on >only-there ~* &* +@all\n",
    );
    let key = rcgen::KeyPair::generate().unwrap();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    secret("api_certificate", &certificate.pem());
    secret("api_key", &key.serialize_pem());

    // Its port is a word of its own.
    let words = host.compose.services["redis"].strings("command");
    let words: Vec<String> = words
        .into_iter()
        .map(|word| {
            if word == "6379" {
                redis_port.clone()
            } else {
                word
            }
        })
        .collect();
    let mut command = host.command("redis", &words);
    host.running
        .push(Process::start(&mut command, &host.path("redis.log")).unwrap());
    let ping = host.compose.services["redis"].healthcheck();
    let ping: Vec<String> = ping
        .iter()
        .map(|word| word.replace("redis-cli ", &format!("redis-cli -p {redis_port} ")))
        .collect();
    eventually("redis is well", PATIENCE, async || {
        let said = finish(host.command("redis", &ping), PATIENCE).await;
        (said.code == Some(0)).then_some(())
    })
    .await;
    host.set_up("setup-scale").await;
    for backend in ["backend-1", "backend-2"] {
        host.start(backend, &["/usr/bin/viworks-backend-agent"]);
        host.healthy(backend).await;
    }
    nginx(&mut host);
    let api = format!(
        "https://{}",
        host.here("nginx", "listen 8443").replace("listen ", "")
    );
    let mut through = host.command(
        "backend-1",
        &["viworks", "gateway", "ls", "--server", &api].map(str::to_owned),
    );
    through.env("SSL_CERT_FILE", host.path("secrets/api_certificate"));
    eventually("the API answers through nginx", PATIENCE, async || {
        let mut asked = Command::new(through.get_program());
        asked.args(through.get_args()).envs(
            through
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        (finish(asked, PATIENCE).await.code == Some(0)).then_some(())
    })
    .await;
    ciphers::are_intermediate(api.trim_start_matches("https://"), "localhost").await;
    // Through nginx, to whichever door is there.
    host.catalogue();
    host.enrolled("backend-2").await;
    host.gateway("backend-2").await;
    host.stop().await;
}

/// As the image has it, but for what Debian has in modules of their own, and for the user.
fn nginx(host: &mut Host) {
    let text = std::fs::read_to_string(workspace().join("containers/nginx.conf")).unwrap();
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let load = if Path::new(module).is_file() {
        format!("load_module {module};\n")
    } else {
        String::new()
    };
    let user = if rustix::process::geteuid().is_root() {
        "user root;\n"
    } else {
        ""
    };
    let text = format!("{load}{user}{}", host.here("nginx", &text));
    let file = host.path("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let words = host.compose.services["nginx"].strings("command");
    let words: Vec<String> = words
        .into_iter()
        .map(|word| word.replace("/etc/viworks/nginx.conf", file.to_str().unwrap()))
        .collect();
    let mut command = host.command("nginx", &words);
    host.running
        .push(Process::start(&mut command, &host.path("nginx.log")).unwrap());
}
