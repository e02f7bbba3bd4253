//! Loads a folder of catalogue files and lists everything that is wrong with them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use viworks_common::human;
use viworks_common::id::CommandName;
use viworks_common::limits;
use viworks_runtime::config::{Document, Environment, Place, Problem, Problems};
use viworks_runtime::files::{self, FileError, Folder};

use super::{Catalogue, Definition, OtherUsers, Owners, file};
use crate::launcher::Account;

/// Files in the folder; beyond that somebody made a mistake.
const FILES_MAX: usize = 256;

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What [`read`] reads, with a look at what each command needs.
///
/// # Errors
/// As there.
pub fn load(
    folder: &Path,
    owners: Owners,
    own_program: PathBuf,
    others: OtherUsers,
) -> Result<Catalogue, Problems> {
    let mut catalogue = read(folder, owners, own_program, others)?;
    catalogue.look();
    Ok(catalogue)
}

/// Reads every `*.toml` of `folder`, in the order of their names. `own_program` is the agent's program, which serves
/// the built-in commands; `/proc/self/exe` survives its own replacement by an upgrade. `others` run what is another
/// user's.
///
/// # Errors
/// Everything that is wrong in all files, each with its place.
pub fn read(
    folder: &Path,
    owners: Owners,
    own_program: PathBuf,
    others: OtherUsers,
) -> Result<Catalogue, Problems> {
    // Opened once: whoever could exchange it afterwards exchanges nothing that is read here.
    let opened = Folder::open(folder, owners)
        .map_err(|error| Problems::new(vec![refused(&error, owners)]))?;
    let names = list(folder, &opened, owners)?;
    let mut problems: Option<Problems> = None;
    let mut note = |more: Problems| {
        problems = Some(match problems.take() {
            Some(known) => known.join(more),
            None => more,
        });
    };
    let mut definitions: BTreeMap<CommandName, Definition> = BTreeMap::new();
    let mut places: BTreeMap<CommandName, Place> = BTreeMap::new();
    for name in names {
        let path = folder.join(&name);
        let read = opened.read(&name, FILE_BYTES_MAX);
        let document = match read {
            Ok(bytes) => Document::from_bytes(&path, bytes, &Environment::default()),
            Err(error) => Err(Problems::new(vec![refused(&error, owners)])),
        };
        let mut document = match document {
            Ok(document) => document,
            Err(more) => {
                note(more);
                continue;
            }
        };
        let found = file::read(&mut document, &mut places, &others);
        match document.finish() {
            Ok(()) => definitions.extend(found),
            Err(more) => note(more),
        }
    }
    if definitions.len() > limits::CATALOGUE_COMMANDS_MAX {
        let message = format!(
            "{} defined, at most {} can be",
            human::counted(definitions.len(), "command is", "commands are"),
            limits::CATALOGUE_COMMANDS_MAX
        );
        note(Problems::new(vec![Problem::of_file(
            folder,
            message,
            "remove some",
        )]));
    }
    match problems {
        Some(problems) => Err(problems),
        None => {
            if matches!(others, OtherUsers::Helper(_)) {
                definitions.values_mut().for_each(run_as_own_user);
            }
            Ok(Catalogue {
                definitions,
                owners,
                own_program,
                others,
            })
        }
    }
}

/// For what the agent's own user is to run, nobody else is needed.
fn run_as_own_user(definition: &mut Definition) {
    let is_own = |user: &String| Account::find(user).is_ok_and(|account| account.is_own());
    drop(definition.user.take_if(|user| is_own(user)));
}

/// The names of the files to read, in their order.
fn list(folder: &Path, opened: &Folder, owners: Owners) -> Result<Vec<OsString>, Problems> {
    let names = opened
        .names()
        .map_err(|error| Problems::new(vec![refused(&error, owners)]))?;
    let counts = |name: &OsString| {
        !files::is_hidden(name)
            && Path::new(name)
                .extension()
                .is_some_and(|extension| extension == "toml")
    };
    let mut names: Vec<OsString> = names.into_iter().filter(counts).collect();
    if names.len() > FILES_MAX {
        let message = format!(
            "{} holds {}, at most {FILES_MAX} are read",
            folder.display(),
            human::counted(names.len(), "file", "files")
        );
        return Err(Problems::new(vec![Problem::of_file(
            folder,
            message,
            "remove some",
        )]));
    }
    names.sort();
    Ok(names)
}

/// What must hold of every file that says what may run.
fn refused(error: &FileError, owners: Owners) -> Problem {
    let help = match owners {
        Owners::Root => {
            "the catalogue decides what may run: the folder and its files must belong to root, and nobody else may write them or a folder above them"
        }
        Owners::RootAndOwn => {
            "the folder and its files must belong to root or to the agent's user, and nobody else may write them or a folder above them"
        }
    };
    let fix = error.fix();
    let help = if fix.is_empty() {
        help.to_owned()
    } else {
        format!("{help}; {fix}")
    };
    Problem::of_file(error.path(), error.cause(), help)
}
