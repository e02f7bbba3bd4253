//! Which backend and which key: from flags, the environment, or a remembered context; and the contexts themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::json;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{config, files};

use crate::cli::Global;
use crate::demo::layout::Layout;
use crate::error::{Failure, chain};
use crate::output::{self, Format};
use crate::run;

/// The largest file of contexts that is read.
const CONTEXTS_BYTES_MAX: u64 = 1024 * 1024;

/// Where to send requests and which key to show.
#[derive(Debug)]
pub struct Target {
    /// The API's address.
    pub server: String,
    /// The file with the key.
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contexts {
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    server: String,
    token_file: Option<PathBuf>,
}

/// Flag before environment before context.
pub fn resolve(global: &Global) -> Result<Target, Failure> {
    let contexts = load(global.config_dir.as_deref())?;
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let name = given(&global.context).or_else(|| contexts.current.clone());
    let context = match name {
        Some(name) => Some(
            contexts
                .contexts
                .get(&name)
                .ok_or_else(|| contexts.unknown(&name))?,
        ),
        None => None,
    };
    let server = given(&global.server).or_else(|| context.map(|context| context.server.clone())).ok_or_else(|| {
        let failure = Failure::new(ExitCode::Usage, "no backend was named")
            .with("fix: viworks up starts one here; or name one: --server URL --token-file FILE (VIWORKS_SERVER, VIWORKS_TOKEN_FILE)");
        match contexts.names().as_slice() {
            [] => failure,
            names => failure.with(format!(
                "or select a context that is known: {} context use NAME ({})",
                run::program_name(),
                names.join(" ")
            )),
        }
    })?;
    // A remembered key belongs to the remembered server and goes to no other.
    let remembered = context
        .filter(|context| context.server == server)
        .and_then(|context| context.token_file.clone());
    Ok(Target {
        server,
        token_file: global
            .token_file
            .clone()
            .filter(|file| !file.as_os_str().is_empty())
            .or(remembered),
    })
}

/// A demo that was remembered.
#[derive(Debug)]
pub struct Remembered {
    /// Its context.
    pub name: String,
    /// Whether that is the selected one.
    pub selected: bool,
    /// The selected one.
    pub current: String,
}

/// Remembers a demo as a context of its own, and selects it unless another one is selected that still has a meaning.
pub fn remember_demo(
    config_dir: Option<&Path>,
    server: &str,
    folder: &Path,
    token_file: &Path,
) -> Result<Remembered, Failure> {
    let Some(file) = file(config_dir) else {
        return Err(nowhere());
    };
    let mut contexts = load(config_dir)?;
    contexts.forget_stopped(token_file);
    let name = contexts.name_for(token_file);
    contexts.contexts.insert(
        name.clone(),
        Context {
            server: server.to_owned(),
            token_file: Some(token_file.to_owned()),
        },
    );
    let current = match contexts.current.take() {
        Some(current) if current != name && contexts.has_meaning(&current) => current,
        Some(_) | None => name.clone(),
    };
    contexts.current = Some(current.clone());
    contexts
        .save(&file)
        .map_err(|failure| failure.with(format!("beside {}", folder.display())))?;
    Ok(Remembered {
        selected: current == name,
        name,
        current,
    })
}

/// Forgets the demo with this key, which has stopped.
pub fn forget_demo(config_dir: Option<&Path>, token_file: &Path) {
    let forgotten = || -> Result<(), Failure> {
        let Some(file) = file(config_dir) else {
            return Ok(());
        };
        let mut contexts = load(config_dir)?;
        let before = contexts.contexts.len();
        contexts
            .contexts
            .retain(|_name, context| context.token_file.as_deref() != Some(token_file));
        if contexts.contexts.len() == before {
            return Ok(());
        }
        contexts.deselect_missing();
        contexts.save(&file)
    };
    // The demo is over all the same, and the next one forgets what could not be forgotten here.
    drop(forgotten());
}

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the contexts; the selected one is marked
    Ls,
    /// Select a context for the commands that name none
    Use {
        /// Its name
        name: String,
    },
    /// Forget a context; the backend and the key stay what they are
    Rm {
        /// Its name
        name: String,
    },
}

/// Carries it out.
pub fn execute(
    config_dir: Option<&Path>,
    verb: &Verb,
    format: Format,
) -> Result<ExitCode, Failure> {
    let mut contexts = load(config_dir)?;
    let (name, removes) = match verb {
        Verb::Ls => return contexts.list(format),
        Verb::Use { name } => (name, false),
        Verb::Rm { name } => (name, true),
    };
    if !contexts.contexts.contains_key(name) {
        return Err(contexts.unknown(name));
    }
    let file = file(config_dir).ok_or_else(nowhere)?;
    if removes {
        contexts.contexts.remove(name);
        contexts.deselect_missing();
    } else {
        contexts.current = Some(name.clone());
    }
    contexts.save(&file)?;
    output::note(&match (&contexts.current, removes) {
        (Some(current), _) => format!("context {current} is selected"),
        (None, _) => "no context is selected".to_owned(),
    });
    Ok(ExitCode::Ok)
}

fn nowhere() -> Failure {
    Failure::new(
        ExitCode::Config,
        "neither HOME nor XDG_CONFIG_HOME says where",
    )
}

impl Contexts {
    fn names(&self) -> Vec<&str> {
        self.contexts.keys().map(String::as_str).collect()
    }

    fn unknown(&self, name: &str) -> Failure {
        let known = self.names();
        Failure::new(ExitCode::NotFound, format!("there is no context {name:?}")).with(
            if known.is_empty() {
                "none is known here; viworks up makes one".to_owned()
            } else {
                format!("known contexts: {}", known.join(" "))
            },
        )
    }

    fn list(&self, format: Format) -> Result<ExitCode, Failure> {
        let selected = |name: &str| self.current.as_deref() == Some(name);
        match format {
            Format::Json => {
                let items: Vec<_> = self
                    .contexts
                    .iter()
                    .map(|(name, context)| {
                        json!({
                            "name": name,
                            "server": context.server,
                            "token_file": context.token_file,
                            "selected": selected(name),
                        })
                    })
                    .collect();
                output::json(
                    &json!({"apiVersion": "viworks/v1", "kind": "ContextList", "items": items}),
                )?;
            }
            Format::Table => {
                output::table(
                    ["SELECTED", "CONTEXT", "SERVER", "KEY"],
                    self.contexts.iter().map(|(name, context)| {
                        let file = context.token_file.as_ref();
                        [
                            if selected(name) { "*" } else { "" }.to_owned(),
                            name.clone(),
                            context.server.clone(),
                            file.map_or_else(|| "–".to_owned(), |file| file.display().to_string()),
                        ]
                    }),
                )?;
                if self.contexts.is_empty() {
                    output::note("no context is known; viworks up makes one");
                }
            }
        }
        Ok(ExitCode::Ok)
    }

    fn save(&self, file: &Path) -> Result<(), Failure> {
        let cannot = |error: &dyn std::error::Error| Failure::new(ExitCode::Error, chain(error));
        if let Some(folder) = file.parent() {
            files::create_private_folder(folder).map_err(|error| cannot(&error))?;
        }
        let text = toml::to_string(self).map_err(|error| cannot(&error))?;
        files::write_atomic(file, text.as_bytes()).map_err(|error| cannot(&error))
    }

    /// Forgets demos that were ended without a word; `but` is the one that just started.
    fn forget_stopped(&mut self, but: &Path) {
        self.contexts.retain(|_name, context| {
            let Some(token) = context.token_file.as_deref().filter(|token| *token != but) else {
                return true;
            };
            let folder = token.parent().and_then(|folder| Layout::at(folder).ok());
            folder.is_none_or(|folder| {
                let started = folder.load_started();
                !folder.is_demo() || started.is_some_and(|started| started.up.is_alive())
            })
        });
        self.deselect_missing();
    }

    fn deselect_missing(&mut self) {
        self.current = self
            .current
            .take()
            .filter(|current| self.contexts.contains_key(current));
    }

    /// The name of the demo with this key: its own, or one that is free. A demo whose folder is gone needs none any more.
    fn name_for(&self, token_file: &Path) -> String {
        let own = self
            .contexts
            .iter()
            .find(|(_name, context)| context.token_file.as_deref() == Some(token_file));
        if let Some((name, _context)) = own {
            return name.clone();
        }
        (1..)
            .map(|number| match number {
                1 => "demo".to_owned(),
                number => format!("demo-{number}"),
            })
            .find(|name| !self.contexts.contains_key(name) || !self.has_meaning(name))
            .unwrap_or_else(|| "demo".to_owned())
    }

    /// Whether a context can still be used: what has lost its key cannot.
    fn has_meaning(&self, name: &str) -> bool {
        self.contexts
            .get(name)
            .is_some_and(|context| context.token_file.as_deref().is_none_or(Path::exists))
    }
}

fn load(config_dir: Option<&Path>) -> Result<Contexts, Failure> {
    let Some(file) = file(config_dir) else {
        return Ok(Contexts::default());
    };
    // Whoever could change it could have the key sent to another server.
    let text = match files::read_trusted(&file, CONTEXTS_BYTES_MAX) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.is_missing() => return Ok(Contexts::default()),
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
            .with(error.to_string().trim().to_owned())
    })
}

fn file(config_dir: Option<&Path>) -> Option<PathBuf> {
    let folder = match config_dir {
        Some(folder) => folder.to_owned(),
        None => {
            let environment = config::environment();
            // The XDG base directory specification: what is not absolute is not valid and means nothing.
            let absolute = |name: &str| {
                environment
                    .get(name)
                    .map(PathBuf::from)
                    .filter(|path| path.is_absolute())
            };
            absolute("XDG_CONFIG_HOME")
                .or_else(|| absolute("HOME").map(|home| home.join(".config")))?
                .join("viworks")
        }
    };
    Some(folder.join("config.toml"))
}
