//! Where the files of a gateway go, and what of an earlier gateway is in the way there.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use viworks_common::enrolment::{Home, configuration};
use viworks_common::key::BindingMode;
use viworks_common::pin::SpkiPin;
use viworks_runtime::config::{Document, Environment};
use viworks_runtime::files::{self, FileError, Folder, quoted};

use super::EnrolError;
use super::staging::{CATALOGUE, CONFIGURATION, FOLDER, MOVED};
use crate::config::Config;
use crate::identity::INSTALL_ID_FILE;
use crate::{keyring, renewed, setup};

/// What an agent keeps of the identity that it had, and another one cannot use.
const OF_IDENTITY: [&str; 8] = [
    keyring::FILE,
    "journal.db",
    "spool.db",
    "pins.json",
    renewed::FILES[0],
    renewed::FILES[1],
    renewed::FILES[2],
    renewed::FILES[3],
];

/// Where everything of the new gateway is going to be.
#[derive(Debug)]
pub struct Places {
    /// The folder of its configuration.
    pub target: PathBuf,
    /// Where it runs.
    pub home: Home,
    /// What its configuration is going to say, with what lies over it already.
    config: Config,
}

impl Places {
    /// Those of a gateway whose configuration goes into `target`.
    #[must_use]
    pub fn new(target: PathBuf, home: Home, environment: &Environment) -> Self {
        let anybody = SpkiPin::from_digest([0; 32]);
        let url = "wss://agents.invalid";
        let text = configuration(url, &[anybody], BindingMode::Exporter, home);
        let path = target.join(CONFIGURATION);
        // What is missing so far is no problem here.
        let config = Config::read(&mut Document::foresee(&path, &text, environment));
        Self {
            target,
            home,
            config,
        }
    }

    /// Where the agent is going to have its state.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.config.gateway.state_folder
    }

    /// Finds out whether an agent could start here at all, before a ticket is used for it.
    ///
    /// # Errors
    ///
    /// When another gateway's state is in the way, or this user may not say what runs here.
    pub(super) fn examine(&self) -> Result<(), EnrolError> {
        if let Some(name) = self.state_of_another() {
            if let Some(running) = self.running() {
                return Err(running);
            }
            return Err(EnrolError::Formerly {
                path: self.state().join(name),
                aside: self.aside(),
            });
        }
        let folder = &self.config.executor.commands_folder;
        if *folder != self.target.join(CATALOGUE) || !files::is_absent(folder) {
            return Ok(setup::examine_catalogue(&self.config)?);
        }
        let own = Folder::open(&self.target, setup::owners(&self.config));
        own.map(drop).map_err(|error| self.not_roots(error))
    }

    fn not_roots(&self, error: FileError) -> EnrolError {
        let is_owner = matches!(error, FileError::Owner { .. });
        if !is_owner || rustix::process::geteuid().is_root() {
            return error.into();
        }
        let (target, folder) = (quoted(&self.target), quoted(&self.target.join("conf.d")));
        EnrolError::NotRoot {
            cause: error.cause(),
            trial: format!(
                "mkdir -p -m 700 {target} {folder} && printf '[executor]\\nallow_own_commands = \"for_demo_only\"\\n' \
                 >{folder}/own.toml"
            ),
        }
    }

    /// Why there is no folder: root's are for root to make.
    pub(super) fn not_made(&self, error: EnrolError) -> EnrolError {
        if let EnrolError::File(refused) = &error
            && self.home == Home::Installed
            && refused.is_denied()
            && !rustix::process::geteuid().is_root()
        {
            let cause = refused.cause();
            return EnrolError::NotRoots { cause };
        }
        error
    }

    /// Why nothing is made here: this is there.
    pub(super) fn exists(&self, path: PathBuf) -> EnrolError {
        self.running().unwrap_or_else(|| EnrolError::Exists {
            path,
            aside: self.aside(),
        })
    }

    /// That an agent runs with what is there, which may not be moved under it. What moves the files of the package
    /// stops its service first.
    fn running(&self) -> Option<EnrolError> {
        // Where there is no state yet, nothing is made to find that out.
        self.state_of_another()?;
        match files::lock_folder(self.state()) {
            Err(FileError::Locked { path, holder }) if self.home != Home::Installed => {
                Some(EnrolError::Running { path, holder })
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// What is there of the state of an agent, which another gateway cannot go on with.
    fn state_of_another(&self) -> Option<&'static str> {
        let is_there = |name: &&&str| !files::is_absent(&self.state().join(name));
        OF_IDENTITY.iter().find(is_there).copied()
    }

    /// A command that puts everything of the gateway aside that this machine is or was, so that it can become another
    /// one.
    fn aside(&self) -> String {
        let mut command = String::new();
        if self.home == Home::Installed {
            command.push_str("systemctl stop viworks-gateway-agent && ");
        }
        self.put_files_aside(&mut command);
        self.put_state_aside(&mut command);
        command.truncate(command.trim_end_matches(" && ").len());
        command
    }

    /// Adds what moves the files that are there into a folder beside them. Their folder is of whoever moves them.
    fn put_files_aside(&self, command: &mut String) {
        let names = MOVED.iter().chain([&FOLDER]);
        let mut there = names
            .filter(|name| !files::is_absent(&self.target.join(name)))
            .peekable();
        if there.peek().is_none() {
            return;
        }
        let aside = free(|number| format!("before-{number}").into(), &self.target);
        let (folder, aside) = (quoted(&self.target), aside.display());
        write!(command, "cd {folder} && mkdir -m 700 {aside} && mv")
            .expect("writing to a string succeeds");
        for name in there {
            write!(command, " {name}").expect("writing to a string succeeds");
        }
        write!(command, " {aside} && ").expect("writing to a string succeeds");
    }

    /// Adds what renames the folder of the state as a whole, and makes another one in which the machine is still the
    /// same installation.
    ///
    /// The folder is the service's user's, who could put a link in place of any name in it at any moment. So nothing
    /// is moved into a name within it and no pattern is read there: what moves is a name of its parent, and one file,
    /// which is renamed and never followed, into a folder that is still the mover's own.
    fn put_state_aside(&self, command: &mut String) {
        if self.state_of_another().is_none() {
            return;
        }
        // A slash behind it would be that of a folder within.
        let state: PathBuf = self.state().components().collect();
        let beside = |number: u32| {
            let mut name = state.clone().into_os_string();
            name.push(format!(".before-{number}"));
            PathBuf::from(name)
        };
        let aside = free(beside, Path::new(""));
        let (old, new) = (quoted(&aside), quoted(&state));
        write!(command, "mv -nT {new} {old} && mkdir -m 700 {new} && ")
            .expect("writing to a string succeeds");
        if !files::is_absent(&state.join(INSTALL_ID_FILE)) {
            let from = quoted(&aside.join(INSTALL_ID_FILE));
            let to = quoted(&state.join(INSTALL_ID_FILE));
            write!(command, "mv -nT {from} {to} && ").expect("writing to a string succeeds");
        }
        write!(command, "chown --reference={old} {new} && ").expect("writing to a string succeeds");
    }
}

/// The first of these names in `folder` that nothing has yet.
fn free(name: impl Fn(u32) -> PathBuf, folder: &Path) -> PathBuf {
    let mut names = (1_u32..).map(name);
    let is_free = |name: &PathBuf| files::is_absent(&folder.join(name));
    names.find(is_free).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    /// A machine that has this in its folders.
    fn machine(files: &[&str], states: &[&str]) -> (tempfile::TempDir, Places) {
        let machine = tempfile::tempdir().unwrap();
        let target = machine.path().join("etc here");
        let state = machine.path().join("var");
        for (folder, names) in [(&target, files), (&state, states)] {
            std::fs::create_dir(folder).unwrap();
            for name in names {
                std::fs::write(folder.join(name), name).unwrap();
            }
        }
        let state = ("VIWORKS__GATEWAY__STATE_FOLDER", state.to_str().unwrap());
        let environment = Environment::from_iter([state]);
        let places = Places::new(target, Home::Installed, &environment);
        (machine, places)
    }

    #[test]
    fn the_package_s_service_is_stopped_and_everything_of_its_identity_put_aside() {
        let states = ["install_id", "journal.db", "journal.db-wal", "pins.json"];
        let (machine, places) = machine(&["gateway.key", "gateway.toml", "mine.txt"], &states);
        for number in 1..=2 {
            let aside = places.aside();
            let command = aside.strip_prefix("systemctl stop viworks-gateway-agent && ");
            if number == 2 {
                // Nothing is left to be done but that.
                assert_eq!(aside, "systemctl stop viworks-gateway-agent");
                break;
            }
            let done = Command::new("sh").args(["-ec", command.unwrap()]).status();
            assert!(done.unwrap().success(), "{aside}");
        }
        for (path, is_there) in [
            ("etc here/before-1/gateway.key", true),
            ("etc here/before-1/gateway.toml", true),
            ("etc here/gateway.toml", false),
            ("etc here/mine.txt", true),
            ("var.before-1/journal.db", true),
            ("var.before-1/journal.db-wal", true),
            ("var.before-1/pins.json", true),
            ("var.before-1/install_id", false),
            ("var/install_id", true),
            ("var/journal.db", false),
        ] {
            assert_eq!(machine.path().join(path).exists(), is_there, "{path}");
        }
    }

    #[test]
    fn what_the_service_s_user_puts_into_its_folder_leads_the_mover_nowhere() {
        let states = ["journal.db", "journal.db.sh"];
        let (machine, places) = machine(&[], &states);
        let var = machine.path().join("var");
        let elsewhere = machine.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(elsewhere.join("secret"), "of root").unwrap();
        symlink(&elsewhere, var.join("before-1")).unwrap();
        symlink(elsewhere.join("secret"), var.join(INSTALL_ID_FILE)).unwrap();
        let aside = places.aside();
        // No name within the folder is gone into, moved onto or asked for by a pattern.
        assert!(!aside.contains("cd ") && !aside.contains('*'), "{aside}");
        let command = aside.strip_prefix("systemctl stop viworks-gateway-agent && ");
        let done = Command::new("sh").args(["-ec", command.unwrap()]).status();
        assert!(done.unwrap().success(), "{aside}");
        let entries = std::fs::read_dir(&elsewhere).unwrap();
        assert_eq!(entries.count(), 1, "{aside}");
        let moved = var.join(INSTALL_ID_FILE).symlink_metadata().unwrap();
        assert!(moved.is_symlink(), "a copy of what it leads to: {aside}");
        assert!(machine.path().join("var.before-1/journal.db.sh").exists());
    }

    #[test]
    fn state_of_another_gateway_is_in_the_way_wherever_the_agent_will_look_for_it() {
        let (_machine, places) = machine(&[], &["install_id", "pins.json"]);
        let refused = places.examine().unwrap_err().to_string();
        assert!(
            refused.contains("var/pins.json is of the gateway"),
            "{refused}"
        );
        let (_machine, places) = machine(&[], &["install_id"]);
        let refused = places.examine();
        assert!(
            !matches!(refused, Err(EnrolError::Formerly { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn the_package_keeps_its_state_where_its_service_does() {
        let folder = PathBuf::from("/etc/viworks");
        let places = Places::new(folder, Home::Installed, &Environment::default());
        assert_eq!(places.state(), Path::new("/var/lib/viworks-gateway"));
    }
}
