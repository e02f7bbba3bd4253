//! The contexts: backends that are remembered with the file of their key, and which of them is selected.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{config, files};

use crate::failure::{Failure, chain};

/// The largest file of contexts that is read.
const CONTEXTS_BYTES_MAX: u64 = 1024 * 1024;

/// All of them, as their file holds them.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The selected one.
    pub current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// One backend.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    pub server: String,
    /// The file with the key.
    pub token_file: Option<PathBuf>,
}

/// What is wrong in the text, on one line: how the parser shows it, with the line itself, takes several.
fn told(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

impl Contexts {
    /// Reads them; none where there is no file, or no place for one.
    pub fn load(config_dir: Option<&Path>) -> Result<Self, Failure> {
        let Ok(file) = file(config_dir) else {
            return Ok(Self::default());
        };
        // Whoever could change it could have the key sent to another server.
        let text = match files::read_trusted(&file, CONTEXTS_BYTES_MAX) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.is_missing() => return Ok(Self::default()),
            Err(error) => {
                let failure = Failure::new(
                    ExitCode::Config,
                    format!("the contexts cannot be used: {}", error.cause()),
                );
                return Err(match error.fix() {
                    fix if fix.is_empty() => failure,
                    fix => failure.with(format!("fix: {fix}")),
                });
            }
        };
        toml::from_str(&text).map_err(|error| {
            Failure::new(ExitCode::Config, format!("{} is not valid", file.display()))
                .with(told(&error, &text))
        })
    }

    /// Writes them to the place that [`file()`] names.
    pub fn save(&self, file: &Path) -> Result<(), Failure> {
        if let Some(folder) = file.parent() {
            files::create_private_folder(folder)?;
        }
        let text = toml::to_string(self);
        let text = text.map_err(|error| Failure::new(ExitCode::Error, chain(&error)))?;
        Ok(files::write_atomic(file, text.as_bytes())?)
    }

    /// Each with its name, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Context)> {
        self.contexts
            .iter()
            .map(|(name, context)| (name.as_str(), context))
    }

    pub fn names(&self) -> Vec<&str> {
        self.contexts.keys().map(String::as_str).collect()
    }

    /// The one with this name, or a failure that says which there are.
    pub fn get(&self, name: &str) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            let failure = Failure::new(ExitCode::NotFound, format!("there is no context {name:?}"));
            failure.with(match self.names().as_slice() {
                [] => "fix: none is known here; viworks up makes one".to_owned(),
                known => format!("fix: name one that is known: {}", known.join(" ")),
            })
        })
    }

    /// Adds one, in place of the one that had its name.
    pub fn insert(&mut self, name: String, context: Context) {
        self.contexts.insert(name, context);
    }

    /// Forgets all but those that `keep` names, and says whether any went. What is gone is not selected any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &Context) -> bool) -> bool {
        let before = self.contexts.len();
        self.contexts.retain(|name, context| keep(name, context));
        let current = self.current.take();
        self.current = current.filter(|current| self.contexts.contains_key(current));
        self.contexts.len() != before
    }

    /// Whether a context is there and can still be used: what has lost its key cannot.
    pub fn has_meaning(&self, name: &str) -> bool {
        self.contexts
            .get(name)
            .is_some_and(|context| context.token_file.as_deref().is_none_or(Path::exists))
    }
}

/// Where they are kept.
pub fn file(config_dir: Option<&Path>) -> Result<PathBuf, Failure> {
    let folder = match config_dir {
        Some(folder) => folder.to_owned(),
        None => usual_folder().ok_or_else(|| {
            Failure::new(
                ExitCode::Config,
                "neither HOME nor XDG_CONFIG_HOME says where",
            )
        })?,
    };
    Ok(folder.join("config.toml"))
}

/// By the XDG base directory specification: what is not absolute is not valid and means nothing.
fn usual_folder() -> Option<PathBuf> {
    let environment = config::environment();
    let absolute = |name: &str| {
        environment
            .get(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let folder =
        absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    folder.map(|folder| folder.join("viworks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_the_file_is_told_on_one_line_with_its_number() {
        let root = tempfile::tempdir().unwrap();
        let file = file(Some(root.path())).unwrap();
        files::write_new(&file, b"current = \"a\"\nfoo = 1\n", 0o600).unwrap();
        let failure = Contexts::load(Some(root.path())).unwrap_err();
        assert_eq!(failure.exit, ExitCode::Config);
        let told = &failure.details[0];
        assert!(told.starts_with("line 2: "), "{told}");
        assert!(told.contains("foo") && !told.contains('\n'), "{told}");
    }
}
