//! The files of one configuration, in the order in which a later one counts more: the one that is named, then what lies
//! in `conf.d` beside it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use viworks_common::human;

use super::text::Text;
use crate::files::{self, FileError, Folder, Owners};
use crate::problem::{Problem, Problems};

/// The folder of the further files, beside the first.
pub(super) const FOLDER: &str = "conf.d";

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Files in the folder; beyond that somebody made a mistake.
const FILES_MAX: usize = 256;

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// Somebody who acts by what is read: others must not be able to change it.
    Trusting,
    /// Somebody who only asks where something is.
    Asking,
}

/// What could be read, and what is wrong with the rest.
pub(super) struct Layers {
    pub(super) texts: Vec<Text>,
    pub(super) problems: Vec<Problem>,
}

/// Reads all of them.
///
/// # Errors
///
/// When the first cannot be used: then nothing is known.
pub(super) fn read(path: &Path, reader: Reader) -> Result<Layers, Problems> {
    let bytes = match reader {
        Reader::Trusting => files::read_trusted(path, FILE_BYTES_MAX),
        Reader::Asking => files::read_at_most(path, FILE_BYTES_MAX),
    };
    let first = bytes
        .map_err(|error| unread(path, &error))
        .and_then(|bytes| Text::decode(path, bytes))
        .map_err(|problem| Problems::new(vec![problem]))?;
    Ok(over(first, reader))
}

/// The same over a text at hand, which is not there yet.
pub(super) fn over(first: Text, reader: Reader) -> Layers {
    let folder = first.path.parent().unwrap_or_else(|| Path::new(""));
    let folder = folder.join(FOLDER);
    let mut layers = Layers {
        texts: vec![first],
        problems: Vec::new(),
    };
    layers.read_folder(&folder, reader);
    layers
}

impl Layers {
    fn read_folder(&mut self, path: &Path, reader: Reader) {
        let listed = match reader {
            // Opened once: whoever could exchange it afterwards exchanges nothing that is read here.
            Reader::Trusting => Folder::open(path, Owners::RootAndOwn)
                .and_then(|folder| Ok((folder.names()?, Some(folder)))),
            Reader::Asking => files::names(path).map(|names| (names, None)),
        };
        let (names, folder) = match listed {
            Ok(listed) => listed,
            Err(error) if error.is_missing() => return self.left_out(path),
            Err(error) => return self.problems.push(unread(path, &error)),
        };
        let mut names: Vec<OsString> = names.into_iter().filter(counts).collect();
        names.sort();
        if names.len() > FILES_MAX {
            let message = format!(
                "{} holds {}, at most {FILES_MAX} are read",
                path.display(),
                human::counted(names.len(), "file", "files")
            );
            return self
                .problems
                .push(Problem::of_file(path, message, "remove some"));
        }
        for name in names {
            let file = path.join(&name);
            let bytes = match &folder {
                Some(folder) => folder.read(&name, FILE_BYTES_MAX),
                None => files::read_at_most(&file, FILE_BYTES_MAX),
            };
            let read = bytes
                .map_err(|error| unread(&file, &error))
                .and_then(|bytes| Text::decode(&file, bytes));
            match read {
                Ok(text) => self.texts.push(text),
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    /// There is no folder, unless there is a link to one that is gone, such as a volume that is not mounted: what lies
    /// in it may be what restricts this process.
    fn left_out(&mut self, path: &Path) {
        if !files::is_absent(path) {
            self.problems.push(Problem::of_file(
                path,
                "it is a link to something that is not there",
                "make or mount what it leads to; or remove the link, where nothing lies over the first file",
            ));
        }
    }
}

/// Drafts, backups and what else lies about have other names.
fn counts(name: &OsString) -> bool {
    !files::is_hidden(name)
        && PathBuf::from(name)
            .extension()
            .is_some_and(|extension| extension == "toml")
}

fn unread(path: &Path, error: &FileError) -> Problem {
    let mut help = error.fix();
    if help.is_empty() {
        "the file must exist and be readable".clone_into(&mut help);
    }
    Problem::of_file(path, error.cause(), help)
}
