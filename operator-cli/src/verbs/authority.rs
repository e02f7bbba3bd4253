//! `viworks authority`: which authorities gateways are given, and who has them.

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
            Ok(if status.lacking == 0 && status.backends.is_empty() {
                ExitCode::Ok
            } else {
                ExitCode::NoGo
            })
        }
    }
}
