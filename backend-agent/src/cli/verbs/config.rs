//! `config`: what can be set, and what is set.

use viworks_runtime::config::Form;

use super::super::flags::ConfigCommand;
use super::super::views::print;
use super::open::explain;
use crate::config::reference;

/// Carries out what was asked.
pub(super) fn execute(command: ConfigCommand) -> anyhow::Result<()> {
    let form = match command {
        ConfigCommand::Example => Form::Example,
        ConfigCommand::Reference => Form::Reference,
        ConfigCommand::Schema => Form::Schema,
        ConfigCommand::Explain(flag) => {
            let (explained, problems) = explain(&flag)?;
            print(explained.trim_end())?;
            problems?;
            return Ok(());
        }
    };
    print(reference::describe(form).trim_end())
}
