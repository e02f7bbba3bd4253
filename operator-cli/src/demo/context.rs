//! The demo as a context: remembered when it runs, forgotten when it has stopped.

use std::path::Path;

use super::layout::{Addresses, Layout};
use crate::contexts::{self, Context, Contexts};
use crate::failure::Failure;
use crate::output;
use crate::program::quoted;

/// Remembers the demo, and returns the flags by which other commands find it: none when it is selected.
pub(super) fn remember(
    config_dir: Option<&Path>,
    layout: &Layout,
    addresses: &Addresses,
) -> String {
    let server = addresses.server();
    match keep(config_dir, layout, &server) {
        Ok(kept) if kept.name == kept.current => String::new(),
        Ok(kept) => {
            output::note(&format!(
                "  context {} stays selected; this demo is context {}",
                kept.current, kept.name
            ));
            format!(" -c {}", kept.name)
        }
        Err(failure) => {
            // Everything the demo needs is in its own folder; a context only saves typing.
            let why = failure.details.first();
            output::note(&format!(
                "  no context was remembered: {}{}",
                failure.what,
                why.map_or_else(String::new, |detail| format!(" ({detail})"))
            ));
            format!(
                " --server {server} --token-file {}",
                quoted(&layout.token().to_string_lossy())
            )
        }
    }
}

/// Forgets the demo, which has stopped.
pub(super) fn forget(config_dir: Option<&Path>, layout: &Layout) {
    let token = layout.token();
    let forgotten = || -> Result<(), Failure> {
        let Ok(file) = contexts::file(config_dir) else {
            return Ok(());
        };
        let mut contexts = Contexts::load(config_dir)?;
        if contexts.retain(|_name, context| context.token_file.as_ref() != Some(&token)) {
            contexts.save(&file)?;
        }
        Ok(())
    };
    // The demo is over all the same, and the next one forgets what could not be forgotten here.
    drop(forgotten());
}

/// The demo's context and the selected one.
struct Kept {
    name: String,
    current: String,
}

/// Keeps the demo, and selects it unless another one is selected that still has a meaning.
fn keep(config_dir: Option<&Path>, layout: &Layout, server: &str) -> Result<Kept, Failure> {
    let file = contexts::file(config_dir)?;
    let mut contexts = Contexts::load(config_dir)?;
    let token = layout.token();
    contexts.retain(|_name, context| {
        let other = context.token_file.as_deref().filter(|key| *key != token);
        !other.is_some_and(has_ended)
    });
    let name = name_for(&contexts, &token);
    contexts.insert(
        name.clone(),
        Context {
            server: server.to_owned(),
            token_file: Some(token),
        },
    );
    let current = match contexts.current.take() {
        Some(current) if current != name && contexts.has_meaning(&current) => current,
        Some(_) | None => name.clone(),
    };
    contexts.current = Some(current.clone());
    contexts
        .save(&file)
        .map_err(|failure| failure.with(format!("beside {}", layout.root().display())))?;
    Ok(Kept { name, current })
}

/// Whether the key belongs to a demo that was ended without a word.
fn has_ended(token: &Path) -> bool {
    let layout = token.parent().and_then(|folder| Layout::at(folder).ok());
    layout.is_some_and(|layout| {
        let started = layout.load_started();
        layout.is_demo() && !started.is_some_and(|started| started.up.is_alive())
    })
}

/// The name of the demo with this key: its own, or one that is free. A demo whose folder is gone needs none any more.
fn name_for(contexts: &Contexts, token: &Path) -> String {
    let own = contexts
        .iter()
        .find(|(_name, context)| context.token_file.as_deref() == Some(token));
    if let Some((name, _context)) = own {
        return name.to_owned();
    }
    (1..)
        .map(|number| match number {
            1 => "demo".to_owned(),
            number => format!("demo-{number}"),
        })
        // What has no meaning is free as well as what is not there.
        .find(|name| !contexts.has_meaning(name))
        .unwrap_or_else(|| "demo".to_owned())
}
