//! Which backend and which key: from flags, the environment, or a remembered context.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{config, files};

use crate::cli::Global;
use crate::error::Failure;

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
    let name = global.context.as_ref().or(contexts.current.as_ref());
    let context = match name {
        Some(name) => Some(contexts.contexts.get(name).ok_or_else(|| {
            let known: Vec<&str> = contexts.contexts.keys().map(String::as_str).collect();
            Failure::new(ExitCode::NotFound, format!("there is no context {name:?}"))
                .with(format!("known contexts: {}", known.join(" ")))
        })?),
        None => None,
    };
    let server = global.server.clone().or_else(|| context.map(|context| context.server.clone())).ok_or_else(|| {
        Failure::new(ExitCode::Usage, "no backend was named")
            .with("fix: viworks up starts one here; or name one: --server URL --token-file FILE (VIWORKS_SERVER, VIWORKS_TOKEN_FILE)")
    })?;
    // A remembered key belongs to the remembered server and goes to no other.
    let remembered = context
        .filter(|context| context.server == server)
        .and_then(|context| context.token_file.clone());
    Ok(Target {
        server,
        token_file: global.token_file.clone().or(remembered),
    })
}

/// Remembers the demo as a context, and selects it unless another one is selected.
pub fn select_demo(
    config_dir: Option<&Path>,
    server: &str,
    token_file: &Path,
) -> Result<(), Failure> {
    let mut contexts = load(config_dir)?;
    contexts.contexts.insert(
        "demo".to_owned(),
        Context {
            server: server.to_owned(),
            token_file: Some(token_file.to_owned()),
        },
    );
    match contexts.current.as_deref() {
        None | Some("demo") => contexts.current = Some("demo".to_owned()),
        Some(other) => crate::output::note(&format!(
            "  context {other} stays selected; use the demo with: viworks -c demo …"
        )),
    }
    let Some(file) = file(config_dir) else {
        return Ok(());
    };
    if let Some(folder) = file.parent() {
        files::create_private_folder(folder)
            .map_err(|error| Failure::new(ExitCode::Error, error.to_string()))?;
    }
    let text = toml::to_string(&contexts)
        .map_err(|error| Failure::new(ExitCode::Error, error.to_string()))?;
    files::write_atomic(&file, text.as_bytes())
        .map_err(|error| Failure::new(ExitCode::Error, error.to_string()))
}

fn load(config_dir: Option<&Path>) -> Result<Contexts, Failure> {
    let Some(file) = file(config_dir) else {
        return Ok(Contexts::default());
    };
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Contexts::default());
        }
        Err(error) => {
            return Err(Failure::new(
                ExitCode::Config,
                format!("{} cannot be read: {error}", file.display()),
            ));
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
            let base = environment
                .get("XDG_CONFIG_HOME")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from);
            base.or_else(|| {
                environment
                    .get("HOME")
                    .map(|home| Path::new(home).join(".config"))
            })?
            .join("viworks")
        }
    };
    Some(folder.join("config.toml"))
}
