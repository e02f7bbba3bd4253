//! Everything that a start reads before it changes anything. `check-config` and `run` both come through here, so that
//! what the one takes for valid the other starts with.

use std::path::Path;

use viworks_common::time::Timestamp;
use viworks_runtime::config::{Document, Environment, Place, Problem, Problems, Source};
use viworks_runtime::files;
use viworks_runtime::sqlite::{self, Migration};

use crate::api;
use crate::catalogue::{self, Catalogue, OtherUsers, Owners};
use crate::config::Config;
use crate::identity::{self, INSTALL_ID_FILE};
use crate::material::Material;
use crate::{journal, keyring, program, renewed, spool, trust};

/// What the agent keeps in its state folder whichever gateway the machine is, beside its databases.
const STATE_FILES: [&str; 5] = [
    ".lock",
    INSTALL_ID_FILE,
    "audit.log",
    "audit.log.1",
    "journal.db.reserve",
];

/// What the agent has done, which cannot be made anew.
const JOURNAL: &str = "journal.db";

/// The agent's databases, each with what SQLite keeps beside it.
const STATE_DATABASES: [&str; 2] = [JOURNAL, "spool.db"];

/// What else it keeps there of the identity that it has.
fn identity_files() -> impl Iterator<Item = &'static str> {
    ["pins.json", keyring::FILE, trust::FILE]
        .into_iter()
        .chain(renewed::FILES)
}

/// What it keeps there of the identity that it has, and another gateway cannot go on with.
pub fn of_identity() -> impl Iterator<Item = &'static str> {
    STATE_DATABASES.into_iter().chain(identity_files())
}

/// What the agent starts with.
#[derive(Debug)]
pub struct Setup {
    /// Where it came from.
    pub source: Source,
    /// The configuration.
    pub config: Config,
    /// Who the gateway is and whom it trusts.
    pub material: Material,
    /// What may run; none where a demo is still to be given its catalogue.
    pub catalogue: Option<Catalogue>,
    /// What somebody should know, and no reason not to start.
    pub warnings: Vec<Problem>,
}

impl Setup {
    /// Reads the configuration and everything that it names, and leaves no trace.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, with file and line.
    pub fn load(path: &Path, environment: &Environment, now: Timestamp) -> Result<Self, Problems> {
        let mut setup = Self::read(path, environment, now)?;
        if let Some(catalogue) = &mut setup.catalogue {
            catalogue.look();
        }
        Ok(setup)
    }

    /// The same without a look at what commands need, which takes its time where something of that does not answer.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, with file and line.
    pub fn read(path: &Path, environment: &Environment, now: Timestamp) -> Result<Self, Problems> {
        let path = std::path::absolute(path).unwrap_or_else(|_no_folder| path.to_owned());
        let mut document = Document::load(&path, environment)?;
        let config = Config::read(&mut document);
        let mut problems = Vec::new();
        let material = collect(&mut problems, Material::load(&config));
        let catalogue = collect(&mut problems, read_catalogue(&config));
        problems.extend(examine_state(&config));
        problems.extend(api::examine_socket(&config.gateway));
        // A file whose key is missing was noted as that.
        problems.retain(|problem| problem.place != Place::File(Path::new("").to_owned()));
        document.adopt(problems);
        document.finish()?;
        let (Some(material), Some(catalogue)) = (material, catalogue) else {
            return Err(Problems::new(vec![Problem::of_file(
                &path,
                "the configuration is incomplete",
                "",
            )]));
        };
        Ok(Self {
            source: Source {
                path,
                environment: environment.clone(),
            },
            warnings: material.warnings(now),
            config,
            material,
            catalogue,
        })
    }

    /// What a check looks at beyond what a start reads: all pages of the journal. A warning where there was no time for
    /// all of them.
    ///
    /// # Errors
    ///
    /// That it is damaged.
    pub fn look_over(&self) -> Result<Option<Problem>, Problems> {
        let file = self.config.gateway.state_folder.join(JOURNAL);
        let looked = sqlite::examine(&file, journal::LOST_FIX);
        looked.map_err(|damage| Problems::new(vec![damage]))
    }
}

fn collect<T>(problems: &mut Vec<Problem>, result: Result<T, Problems>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(found) => {
            problems.extend(found.into_vec());
            None
        }
    }
}

/// Whose catalogue files are trusted.
#[must_use]
pub const fn owners(config: &Config) -> Owners {
    if config.executor.allow_own_commands {
        Owners::RootAndOwn
    } else {
        Owners::Root
    }
}

/// Who runs commands of other users.
#[must_use]
pub fn others(config: &Config) -> OtherUsers {
    OtherUsers::Helper(config.executor.helper_socket.clone())
}

/// Finds out whether what may run here can be read.
///
/// # Errors
///
/// Everything that is wrong.
pub fn examine_catalogue(config: &Config) -> Result<(), Problems> {
    read_catalogue(config).map(drop)
}

/// Reads what may run; in a demo, a missing folder is filled with the shipped catalogue by the start itself.
fn read_catalogue(config: &Config) -> Result<Option<Catalogue>, Problems> {
    let folder = &config.executor.commands_folder;
    if config.executor.allow_own_commands && folder.symlink_metadata().is_err() {
        let possible = files::examine_creatable(folder);
        return possible
            .map(|()| None)
            .map_err(|error| Problems::new(vec![error.problem()]));
    }
    let (own, others) = (program::own(), others(config));
    catalogue::read(folder, owners(config), own, others).map(Some)
}

fn examine_state(config: &Config) -> Vec<Problem> {
    let folder = &config.gateway.state_folder;
    let names: Vec<&str> = STATE_FILES.into_iter().chain(identity_files()).collect();
    let errors = files::examine_state(folder, &names, &STATE_DATABASES);
    let known = identity::known_install_id(folder).err();
    let mut problems: Vec<Problem> = errors.iter().map(files::FileError::problem).collect();
    // Where nothing is yet, or the folder itself is no good, that is what was said.
    let known = known.map(|error| error.problem());
    if errors.is_empty() {
        problems.extend(known);
        let lost = Some(journal::LOST_FIX);
        problems.extend(refused(JOURNAL, folder, journal::MIGRATIONS, lost));
        // A damaged one is put aside by the start, which begins another.
        problems.extend(refused("spool.db", folder, spool::MIGRATIONS, None));
    }
    problems
}

/// A database that a newer agent has written, or that is damaged where that has a fix. One that cannot be read is for
/// the start to find out: it may be mended there.
fn refused(
    name: &str,
    folder: &Path,
    migrations: &[Migration],
    damaged_fix: Option<&'static str>,
) -> Option<Problem> {
    let file = folder.join(name);
    match sqlite::standing(&file, migrations) {
        Err(error @ sqlite::Error::SchemaTooNew { .. }) => {
            Some(Problem::of_file(&file, error.to_string(), ""))
        }
        Err(error @ sqlite::Error::Corrupt { .. }) => damaged_fix.map(|fix| {
            let told = format!("{:#}", anyhow::Error::new(error));
            Problem::of_file(&file, told, fix)
        }),
        Ok(_) | Err(_) => None,
    }
}
