//! The contexts as a list.

use std::path::Path;

use serde::Serialize;

use super::document::{Document, Items, Kind};
use crate::contexts::Contexts;
use crate::failure::Failure;
use crate::output::{self, Format};

#[derive(Serialize)]
struct Row<'c> {
    name: &'c str,
    server: &'c str,
    token_file: Option<&'c Path>,
    selected: bool,
}

/// Prints them; the selected one is marked.
pub fn list(contexts: &Contexts, format: Format) -> Result<(), Failure> {
    let rows = contexts.iter().map(|(name, context)| Row {
        name,
        server: &context.server,
        token_file: context.token_file.as_deref(),
        selected: contexts.current.as_deref() == Some(name),
    });
    match format {
        Format::Json => Document::new(Kind::ContextList, Items::of(rows)).print(),
        Format::Table => {
            let mut any = false;
            output::table(
                ["SELECTED", "CONTEXT", "SERVER", "KEY"],
                rows.inspect(|_row| any = true).map(|row| {
                    [
                        if row.selected { "*" } else { "" }.to_owned(),
                        row.name.to_owned(),
                        row.server.to_owned(),
                        row.token_file
                            .map_or_else(|| "–".to_owned(), |file| file.display().to_string()),
                    ]
                }),
            )?;
            if !any {
                output::note("no context is known; viworks up makes one");
            }
            Ok(())
        }
    }
}
