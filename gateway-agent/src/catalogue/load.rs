//! Loads a folder of catalogue files and lists everything that is wrong with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use viworks_common::id::CommandName;
use viworks_common::limits;
use viworks_runtime::config::{Document, Environment, Place, Problems};

use super::{Catalogue, Definition, Owners, file, ownership};

/// Files in the folder; beyond that somebody made a mistake.
const FILES_MAX: usize = 256;

/// Reads every `*.toml` of `folder`, in the order of their names. `own_program` is the agent's program, which serves
/// the built-in commands; `/proc/self/exe` survives its own replacement by an upgrade.
///
/// # Errors
/// Everything that is wrong in all files, each with its place.
pub fn load(folder: &Path, owners: Owners, own_program: PathBuf) -> Result<Catalogue, Problems> {
    let paths = match list(folder, owners) {
        Ok(paths) => paths,
        Err(message) => return Err(refused(folder, message, owners)),
    };
    let mut problems: Option<Problems> = None;
    let mut note = |more: Problems| {
        problems = Some(match problems.take() {
            Some(known) => known.join(more),
            None => more,
        });
    };
    let mut definitions: BTreeMap<CommandName, Definition> = BTreeMap::new();
    let mut places: BTreeMap<CommandName, Place> = BTreeMap::new();
    for path in paths {
        if let Err(message) = ownership::check(&path, owners) {
            note(refused(&path, message, owners));
            continue;
        }
        let mut document = match Document::load(&path, &Environment::default()) {
            Ok(document) => document,
            Err(more) => {
                note(more);
                continue;
            }
        };
        let found = file::read(&mut document, owners, &mut places);
        match document.finish() {
            Ok(()) => definitions.extend(found),
            Err(more) => note(more),
        }
    }
    if definitions.len() > limits::CATALOGUE_COMMANDS_MAX {
        let message = format!(
            "{} commands are defined, at most {} can be",
            definitions.len(),
            limits::CATALOGUE_COMMANDS_MAX
        );
        note(problem(folder, message, "remove some"));
    }
    match problems {
        Some(problems) => Err(problems),
        None => Ok(Catalogue {
            definitions,
            owners,
            own_program,
        }),
    }
}

fn list(folder: &Path, owners: Owners) -> Result<Vec<PathBuf>, String> {
    ownership::check(folder, owners)?;
    let failed = |error: std::io::Error| format!("{} cannot be listed: {error}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden
            && path
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    if paths.len() > FILES_MAX {
        return Err(format!(
            "{} holds {} files, at most {FILES_MAX} are read",
            folder.display(),
            paths.len()
        ));
    }
    paths.sort();
    Ok(paths)
}

fn refused(path: &Path, message: String, owners: Owners) -> Problems {
    let help = match owners {
        Owners::Root => {
            "the catalogue decides what may run: the folder and its files must belong to root, and nobody else may write them or a folder above them"
        }
        Owners::RootAndOwn => {
            "the folder and its files must belong to root or to the agent's user, and nobody else may write them or a folder above them"
        }
    };
    problem(path, message, help)
}

fn problem(path: &Path, message: String, help: &str) -> Problems {
    let mut document = Document::parse(path, "", &Environment::default());
    document.problem(message, help);
    match document.finish() {
        Err(problems) => problems,
        Ok(()) => unreachable!("a document with a problem does not finish well"),
    }
}
