//! `doctor` of the shipped gateway: of every way to set one up wrongly it names the first cause and what to do, within
//! five seconds, with and without a running agent, and disturbs no session.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use serde_json::Value;
use time::OffsetDateTime;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::process::{Said, finish};
use viworks_testkit::proxy::{Network, Proxy};
use viworks_testkit::rogue::Material;
use viworks_testkit::stand_in::{Answer, StandIn};

mod broken;
mod network;
mod running;

/// What is promised.
const IN_TIME: Duration = Duration::from_secs(5);

/// What a walk has to come to.
struct Wanted<'w> {
    name: &'w str,
    step: &'w str,
    code: i32,
    /// Words of the cause.
    cause: &'w [&'w str],
    /// Words of the fix.
    fix: &'w [&'w str],
}

impl Wanted<'_> {
    fn hold(&self, said: &Said) {
        let Self { name, step, .. } = self;
        assert_eq!(said.code, Some(self.code), "{name}: {said:#?}");
        assert!(said.took < IN_TIME, "{name} took {:?}", said.took);
        let told = said.json();
        assert_eq!(told["step"], *step, "{name}: {told:#}");
        let cause = told["cause"].as_str().unwrap();
        for words in self.cause {
            assert!(cause.contains(words), "{name}: {words}: {told:#}");
        }
        let fix = told["fix"].as_str().unwrap();
        for words in self.fix {
            assert!(fix.contains(words), "{name}: {words}: {told:#}");
        }
    }
}

/// A backend and gateways, and copies of a gateway's folder to be spoiled.
struct Ward {
    system: Deployment,
}

/// A copy of a sound gateway's folder.
struct Patient {
    _place: tempfile::TempDir,
    path: PathBuf,
}

impl Ward {
    /// With gateways that are issued; the backend does not run.
    fn new(gateways: &[&str]) -> Self {
        let system = Deployment::new(Binaries::shipped());
        for name in gateways {
            let _folder = system.issue(name);
        }
        Self { system }
    }

    fn backend(&self) -> PathBuf {
        self.system.path().join("backend")
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.system.path().join("gateways").join(name)
    }

    fn agents_url(&self) -> String {
        format!("wss://{}", self.system.agents_address())
    }

    fn copy(&self, name: &str) -> Patient {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("gateway");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(self.folder(name))
            .arg(&path)
            .status()
            .unwrap();
        assert!(copied.success());
        Patient {
            _place: place,
            path,
        }
    }

    fn command(&self, folder: &Path, url: &str) -> Command {
        let mut command = Command::new(self.system.binaries().gateway());
        let config = folder.join("gateway.toml");
        command
            .args(["doctor", "-o", "json", "--config", text(&config)])
            .env("VIWORKS__OUTBOUND__URL", url);
        command
    }

    async fn walk(&self, folder: &Path, url: &str) -> Said {
        finish(self.command(folder, url), PATIENCE).await
    }

    /// A certificate by this site's authority for `key`.
    fn issue(&self, mut params: CertificateParams, key: &KeyPair, from: i64, to: i64) -> String {
        let read = |name: &str| fs::read_to_string(self.backend().join(name)).unwrap();
        let authority = KeyPair::from_pem(&read("ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), authority).unwrap();
        let now = SystemClock.wall().unix_millis() / 1_000;
        params.not_before = OffsetDateTime::from_unix_timestamp(now + from).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(now + to).unwrap();
        params.signed_by(key, &issuer).unwrap().pem()
    }

    /// A gateway's certificate that lives from and until so many seconds from now.
    fn reissue(&self, patient: &Patient, from: i64, to: i64) {
        let identity = Material::read(&patient.path).unwrap().identity;
        let name = format!(
            "spiffe://viworks.internal/tenant/{}/gateway/{}",
            identity.tenant, identity.agent_id
        );
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::from_pem(&patient.read("gateway.key")).unwrap();
        patient.write("gateway.crt", self.issue(params, &key, from, to));
    }

    /// Somebody with this site's keys and a server certificate that lives from and until so many seconds from now.
    async fn server(&self, folder: &Path, from: i64, to: i64) -> StandIn {
        fs::create_dir_all(folder).unwrap();
        for name in ["ca.crt", "master.key", "server.key"] {
            fs::copy(self.backend().join(name), folder.join(name)).unwrap();
        }
        let key = fs::read_to_string(folder.join("server.key")).unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = self.issue(params, &KeyPair::from_pem(&key).unwrap(), from, to);
        fs::write(folder.join("server.crt"), certificate).unwrap();
        StandIn::start(folder, Answer::Clock(0)).await.unwrap()
    }
}

impl Patient {
    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap()
    }

    /// In place, so that the mode stays.
    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.at(name), contents).unwrap();
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.at(name), Permissions::from_mode(mode)).unwrap();
    }

    fn configure(&self, from: &str, to: &str) {
        let text = self.read("gateway.toml");
        assert!(text.contains(from), "{from} is not in:\n{text}");
        self.write("gateway.toml", text.replace(from, to));
    }

    /// A catalogue of this one file, by its own user.
    fn catalogue(&self, text: &str) {
        fs::create_dir_all(self.at("commands.d")).unwrap();
        self.mode("commands.d", 0o755);
        self.write("commands.d/10.toml", text);
        self.mode("commands.d/10.toml", 0o644);
    }

    fn take(&self, from: &Path, names: &[&str]) {
        for name in names {
            self.write(name, fs::read(from.join(name)).unwrap());
        }
    }
}

/// Takes every connection, and says these words on it.
fn talker(words: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("wss://{}", listener.local_addr().unwrap());
    let _talking = std::thread::spawn(move || {
        for mut connected in listener.incoming().flatten() {
            // Whoever went away hears nothing.
            drop(connected.write_all(words.as_bytes()));
        }
    });
    url
}

/// Where nobody listens.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("wss://{}", listener.local_addr().unwrap())
}
