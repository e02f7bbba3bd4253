//! Everything that a start reads before it changes anything. `check-config` and `serve` both come through here, so that
//! what the one takes for valid the other starts with.

use std::path::Path;

use viworks_common::time::Timestamp;
use viworks_runtime::config::{Document, Environment, Place, Problem, Problems, Source};
use viworks_runtime::files::{self, FileError};
use viworks_runtime::sqlite::Error as SqliteError;

use crate::config::{Config, DataConfig};
use crate::data::moving::marker;
use crate::data::sqlite;
use crate::earlier;
use crate::material::ServerMaterial;
use crate::pki::site;

/// What the backend keeps in its state folder, beside its database.
const STATE_FILES: [&str; 2] = [".lock", earlier::FILE];

/// What the backend starts with.
#[derive(Debug)]
pub struct Setup {
    /// Where it came from, to read it again.
    pub source: Source,
    /// The configuration.
    pub config: Config,
    /// Certificates and keys.
    pub material: ServerMaterial,
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
        let mut document = Document::load(path, environment)?;
        let config = Config::read(&mut document);
        let mut problems = examine_state(&config.data);
        let loaded = match ServerMaterial::load(&config) {
            Ok(material) => Some(material),
            Err(found) => {
                problems.extend(found.into_vec());
                None
            }
        };
        if let Some(material) = &loaded
            && problems.is_empty()
        {
            problems.extend(examine_database(&config, material));
        }
        // A file whose key is missing was noted as that.
        problems.retain(|problem| problem.place != Place::File(Path::new("").to_owned()));
        document.adopt(problems);
        document.finish()?;
        let Some(material) = loaded else {
            return Err(Problems::new(vec![Problem::of_file(
                path,
                "the configuration is incomplete",
                "",
            )]));
        };
        Ok(Self {
            source: Source {
                path: path.to_owned(),
                environment: environment.clone(),
            },
            warnings: material.warnings(&config, now),
            config,
            material,
        })
    }

    /// What a check looks at beyond what a start reads: all pages of the embedded database. A warning where there was
    /// no time for all of them.
    ///
    /// # Errors
    ///
    /// That it is damaged.
    pub fn look_over(&self) -> Result<Option<Problem>, Problems> {
        if !self.config.store.is_embedded() {
            return Ok(None);
        }
        let file = &self.config.data.sqlite_file;
        let looked = viworks_runtime::sqlite::examine(file, sqlite::DAMAGED_FIX);
        looked.map_err(|damage| Problems::new(vec![damage]))
    }
}

/// What a start would refuse of the embedded database, which is not changed. One that cannot be read is for the start
/// to find out: it may be mended there.
fn examine_database(config: &Config, material: &ServerMaterial) -> Vec<Problem> {
    if !config.store.is_embedded() {
        return Vec::new();
    }
    let file = &config.data.sqlite_file;
    let of_file = |message: String| Problem::of_file(file, message, "");
    match marker::refuse(file) {
        Ok(Ok(())) => {}
        Ok(Err(left)) => return vec![of_file(left.to_string())],
        Err(error) => return vec![error.problem()],
    }
    let found = match site::is_of_another(file, &material.master) {
        Ok(other) => site::judge(!other, &config.keys.master_key_file)
            .err()
            .map(|error| of_file(error.to_string())),
        Err(error @ SqliteError::SchemaTooNew { .. }) => Some(of_file(error.to_string())),
        Err(error @ SqliteError::Corrupt { .. }) => {
            let told = format!("{:#}", anyhow::Error::new(error));
            Some(Problem::of_file(file, told, sqlite::DAMAGED_FIX))
        }
        Err(_unreadable) => None,
    };
    found.into_iter().collect()
}

fn examine_state(data: &DataConfig) -> Vec<Problem> {
    let mut errors = files::examine_state(&data.state_folder, &STATE_FILES, &[]);
    let database = &data.sqlite_file;
    let name = database.file_name().and_then(std::ffi::OsStr::to_str);
    if let (Some(folder), Some(name)) = (database.parent(), name) {
        errors.extend(files::examine_state(folder, &[], &[name]));
        // The state folder is made where it is missing, what lies deeper is not.
        if folder != data.state_folder && !folder.exists() {
            errors.push(FileError::Io {
                action: "open",
                path: folder.to_owned(),
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
    }
    errors.iter().map(FileError::problem).collect()
}
