//! `viworks authority`: which authorities gateways are given, who has them, and who needs which.

use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Authority;
use crate::output::Format;
use crate::views;

pub(super) async fn execute(
    client: &Client,
    verb: Authority,
    format: Format,
) -> Result<ExitCode, Failure> {
    match verb {
        Authority::Status => {
            let status = client.authorities().await?;
            views::authority::status(&status, format, SystemClock.wall())?;
            let cut_off = status.signers.as_ref().map_or(0, |known| known.cut_off);
            Ok(
                if status.lacking == 0 && cut_off == 0 && status.backends.is_empty() {
                    ExitCode::Ok
                } else {
                    ExitCode::NoGo
                },
            )
        }
    }
}
