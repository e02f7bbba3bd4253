//! What a check takes for valid a start starts with, and what a start refuses a check refuses with the same words.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, date_time_ymd};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::process::{Process, Said, eventually, finish};
use viworks_testkit::small_disk;

mod backend;
mod gateway;
mod layers;
mod schemas;

/// Somebody who is neither root nor whoever runs the tests.
const STRANGER: u32 = 65_533;

/// A program that has not ended by then was not refused.
const SOON: Duration = Duration::from_secs(20);

/// One of the two agents.
struct Agent {
    /// Its sound folder.
    folder: &'static str,
    /// Its configuration's name.
    config: &'static str,
    /// The verb that starts it.
    start: &'static str,
    program: fn(&Binaries) -> PathBuf,
    /// What its programs are told beside the configuration.
    environment: &'static [(&'static str, &'static str)],
}

const BACKEND: Agent = Agent {
    folder: "backend",
    config: "backend.toml",
    start: "serve",
    program: Binaries::backend,
    environment: &[("VIWORKS__AGENTS__LISTEN", "127.0.0.1:0")],
};

const GATEWAY: Agent = Agent {
    folder: "gateways/gw-1",
    config: "gateway.toml",
    start: "run",
    program: Binaries::gateway,
    environment: &[],
};

/// One way to spoil a sound folder.
struct Case {
    name: &'static str,
    spoil: fn(&Folder),
    /// What must be said of it, by both.
    causes: &'static [&'static str],
}

/// The folder of one agent, to be spoiled.
struct Folder {
    path: PathBuf,
    /// Beside it: where the folder's files may be linked to.
    aside: PathBuf,
    /// Sound folders of the backend and of two gateways.
    sound: PathBuf,
    /// The configuration's name.
    config: &'static str,
}

impl Folder {
    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap()
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        // Written in place, so that the mode stays.
        fs::write(self.at(name), contents).unwrap();
    }

    /// A file of `conf.d`.
    fn lay(&self, name: &str, contents: impl AsRef<[u8]>) {
        let conf = self.at("conf.d");
        fs::create_dir_all(&conf).unwrap();
        fs::write(conf.join(name), contents).unwrap();
        for (path, mode) in [(conf.join(name), 0o644), (conf, 0o755)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
    }

    fn private(&self, name: &str, contents: impl AsRef<[u8]>) {
        self.write(name, contents);
        self.mode(name, 0o600);
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.at(name), Permissions::from_mode(mode)).unwrap();
    }

    fn own(&self, name: &str) {
        chown(self.at(name), Some(STRANGER), Some(STRANGER)).unwrap();
    }

    /// Puts a file elsewhere and a link in its place.
    fn link(&self, name: &str) {
        let target = self.aside.join("target");
        fs::rename(self.at(name), &target).unwrap();
        symlink(target, self.at(name)).unwrap();
    }

    /// A link where there was nothing, to a file that must stay as it is.
    fn trap(&self, name: &str) {
        let victim = self.aside.join("victim");
        fs::write(&victim, "untouched").unwrap();
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        symlink(victim, self.at(name)).unwrap();
    }

    fn mark(&self, name: &str) {
        let contents = fs::read(self.at(name)).unwrap();
        self.write(name, [b"\xef\xbb\xbf".as_slice(), &contents].concat());
    }

    fn configure(&self, from: &str, to: &str) {
        let text = self.read(self.config);
        assert!(text.contains(from), "{from} is not in:\n{text}");
        self.write(self.config, text.replace(from, to));
    }

    /// Overwrites a database behind so many bytes.
    fn tear(&self, name: &str, sound_bytes: usize) {
        let mut torn = fs::read(self.at(name)).unwrap();
        torn[sound_bytes..].fill(0xa5);
        self.write(name, torn);
    }

    /// Overwrites the page in the middle of a database, which nothing reads that only opens it: what stands in front is
    /// the schema, and what was written last is behind.
    fn tear_the_middle(&self, name: &str) {
        const PAGE: usize = 4096;
        let mut torn = fs::read(self.at(name)).unwrap();
        let middle = torn.len() / PAGE / 2 * PAGE;
        torn[middle..middle + PAGE].fill(0xa5);
        self.write(name, torn);
    }

    fn sound(&self, path: &str) -> Vec<u8> {
        fs::read(self.sound.join(path)).unwrap()
    }

    /// A certificate and its key by the sound backend's authority.
    fn issue(&self, params: &CertificateParams) -> (String, String) {
        let read = |name: &str| String::from_utf8(self.sound(&format!("backend/{name}"))).unwrap();
        let authority = KeyPair::from_pem(&read("ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), authority).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A backend's folder and two gateways', as the product makes them.
struct Sound {
    system: Deployment,
}

impl Sound {
    fn new() -> Self {
        let system = Deployment::new(Binaries::shipped());
        let gateways = [system.issue("gw-1"), system.issue("gw-2")];
        for folder in &gateways {
            let commands = folder.join("commands.d");
            fs::create_dir(&commands).unwrap();
            fs::write(commands.join("10.toml"), GOOD_COMMAND).unwrap();
            for (path, mode) in [(commands.clone(), 0o755), (commands.join("10.toml"), 0o644)] {
                fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            }
        }
        Self { system }
    }

    /// A copy of one of the folders, with modes.
    fn copy(&self, from: &str, config: &'static str) -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        let aside = place.path().join("aside");
        fs::create_dir(&aside).unwrap();
        let path = place.path().join("agent");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(self.system.path().join(from))
            .arg(&path)
            .status()
            .unwrap();
        assert!(copied.success());
        let folder = Folder {
            path,
            aside,
            sound: self.system.path().to_owned(),
            config,
        };
        (place, folder)
    }
}

const GOOD_COMMAND: &str = "[[command]]\nname = \"test.good\"\ntitle = \"good\"\nrisk = \"read\"\n\
                            idempotent = true\nargv = [\"/bin/true\"]\n";

impl Agent {
    /// Its check and its start, which both read the configuration of `folder`.
    fn programs(&self, sound: &Sound, folder: &Folder) -> [Command; 2] {
        let program = (self.program)(sound.system.binaries());
        self.actions().map(|action| {
            let mut command = Command::new(&program);
            command
                .args([action, "--config", text(&folder.at(self.config))])
                .envs(self.environment.iter().copied());
            command
        })
    }

    fn actions(&self) -> [&'static str; 2] {
        ["check-config", self.start]
    }

    fn copy(&self, sound: &Sound) -> (tempfile::TempDir, Folder) {
        sound.copy(self.folder, self.config)
    }

    async fn hold_all(&self, cases: &[Case]) {
        let sound = Sound::new();
        for case in cases {
            self.hold(&sound, case.name, case.spoil, case.causes).await;
        }
    }

    /// Each of these files, spoiled in the same way, must be named with the same words.
    async fn hold_each(&self, files: &[&str], spoil: fn(&Folder, &str), words: &str) {
        let sound = Sound::new();
        for file in files {
            let name = match *file {
                "" => "agent",
                // The folder above has a name of its own each time.
                ".." => "",
                file => file,
            };
            let cause = format!("{name} {words}");
            let spoil = |folder: &Folder| spoil(folder, file);
            self.hold(&sound, file, spoil, &[&cause]).await;
        }
    }

    /// Each of these files, when it is not there, must be named once and with what to do: what else cannot be known
    /// without it is no news.
    async fn hold_each_missing(&self, files: &[&str]) {
        let sound = Sound::new();
        for file in files {
            let spoil = |folder: &Folder| fs::remove_file(folder.at(file)).unwrap();
            let causes = [
                *file,
                "No such file",
                "help: put it there",
                "1 problem in the configuration",
            ];
            self.hold(&sound, file, spoil, &causes).await;
        }
    }

    /// Both programs' answers to one spoiled folder must be one answer.
    async fn hold(&self, sound: &Sound, name: &str, spoil: impl Fn(&Folder), causes: &[&str]) {
        let (_place, folder) = self.copy(sound);
        spoil(&folder);
        let mut answers: Vec<Said> = Vec::new();
        for command in self.programs(sound, &folder) {
            let said = finish(command, SOON).await;
            assert_eq!(said.code, Some(78), "{name}: {said:#?}");
            answers.push(said);
        }
        let [check, run] = &answers[..] else {
            panic!("two programs ran");
        };
        assert_eq!(check.stderr, run.stderr, "{name}");
        for cause in causes {
            assert!(
                check.stderr.contains(cause),
                "{name}: {cause}\n{}",
                check.stderr
            );
        }
        let victim = folder.aside.join("victim");
        if victim.exists() {
            let now = fs::read_to_string(victim).unwrap();
            assert_eq!(now, "untouched", "{name}");
        }
    }

    /// A state folder on a disk that takes nothing must be named by both with the same words.
    async fn hold_on_a_read_only_disk(&self) {
        if !small_disk::is_allowed() {
            return;
        }
        let sound = Sound::new();
        let (_place, folder) = self.copy(&sound);
        fs::create_dir_all(folder.at("state")).unwrap();
        let program = (self.program)(sound.system.binaries());
        let mut answers = Vec::new();
        for action in self.actions() {
            let mut command = read_only(&program, &folder.at("state"));
            command.args([action, "--config", text(&folder.at(self.config))]);
            let said = finish(command, SOON).await.ended_with(78);
            assert!(said.stderr.contains("Read-only file system"), "{said:#?}");
            answers.push(said.stderr);
        }
        assert_eq!(answers[0], answers[1]);
    }
}

/// What is said of a file that belongs to [`STRANGER`].
const OF_STRANGER: &str = "belongs to user 65533";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that sees a folder read-only.
pub(crate) fn read_only(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let script =
        "mount --bind \"$1\" \"$1\" && mount -o remount,ro,bind \"$1\" && shift && exec \"$@\"";
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(folder)
        .arg(program);
    command
}
