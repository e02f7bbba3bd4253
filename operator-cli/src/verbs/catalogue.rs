//! `viworks command`: what may be run, and where.

use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Catalogue;
use crate::output::Format;
use crate::views;

pub(super) async fn execute(
    client: &Client,
    verb: Catalogue,
    format: Format,
) -> Result<ExitCode, Failure> {
    match verb {
        Catalogue::Ls => views::catalogue::list(&client.catalogue().await?, format)?,
        Catalogue::Show { name } => {
            views::catalogue::show(&client.catalogue_command(&name).await?, format)?;
        }
    }
    Ok(ExitCode::Ok)
}
