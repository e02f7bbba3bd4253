//! `config`: what can be set, and what is set.

use viworks_common::text;
use viworks_runtime::config::{Explained, Form, Problems};

use super::super::flags::{ConfigCommand, Format};
use super::super::views::print;
use super::open::explain;
use crate::config::reference;

/// Carries out what was asked.
pub(super) fn execute(command: ConfigCommand) -> anyhow::Result<()> {
    let form = match command {
        ConfigCommand::Example => Form::Example,
        ConfigCommand::Reference => Form::Reference,
        ConfigCommand::Schema => Form::Schema,
        ConfigCommand::Explain { config, output } => {
            let (explained, problems) = match explain(&config) {
                Ok(found) => found,
                // A program has its document all the same.
                Err(problems) if output == Format::Json => (Explained::default(), Err(problems)),
                Err(problems) => return Err(problems.into()),
            };
            let shown = match output {
                Format::Table => explained.to_string(),
                Format::Json => {
                    let wrong = problems.as_ref().err();
                    let told = explained.json(wrong.into_iter().flat_map(Problems::iter));
                    text::json(&format!("{told:#}")).into_owned()
                }
            };
            print(shown.trim_end())?;
            return Ok(problems?);
        }
    };
    print(reference::describe(form).trim_end())
}
