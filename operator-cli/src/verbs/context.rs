//! `viworks context`: the contexts that are there, selecting one and forgetting one.

use std::path::Path;

use viworks_runtime::exit::ExitCode;

use crate::contexts::{self, Contexts};
use crate::failure::Failure;
use crate::flags::Context;
use crate::output::{self, Format};
use crate::views;

pub(super) fn execute(
    config_dir: Option<&Path>,
    verb: &Context,
    format: Format,
) -> Result<ExitCode, Failure> {
    let mut contexts = Contexts::load(config_dir)?;
    let selected = match verb {
        Context::Ls => {
            views::contexts::list(&contexts, format)?;
            return Ok(ExitCode::Ok);
        }
        Context::Use { name } => {
            contexts.get(name)?;
            contexts.current = Some(name.clone());
            Some(name.clone())
        }
        Context::Rm { name } => {
            contexts.get(name)?;
            contexts.retain(|known, _context| known != name);
            output::note(&format!("context {name} is forgotten"));
            contexts.current.clone()
        }
    };
    contexts.save(&contexts::file(config_dir)?)?;
    output::note(&selected.map_or_else(
        || "no context is selected".to_owned(),
        |current| format!("context {current} is selected"),
    ));
    Ok(ExitCode::Ok)
}
