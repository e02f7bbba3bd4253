//! `viworks pin`: which keys of the server gateways trust, and how one follows another.

use viworks_api::{PinPromotion, PinRequest};
use viworks_common::pin::SpkiPin;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::{Pin, PinStep};
use crate::output::Format;
use crate::views;

pub(super) async fn execute(
    client: &Client,
    verb: Pin,
    format: Format,
) -> Result<ExitCode, Failure> {
    let now = SystemClock.wall();
    match verb {
        Pin::Ls => views::pin::list(&client.pins().await?, format, now)?,
        Pin::Status => views::pin::status(&client.pins().await?, format, now)?,
        Pin::Stage(step) => {
            let changed = client.stage_pin(&request(&step)).await?;
            views::pin::staged(&step.pin, &changed, format)?;
        }
        Pin::Promote { pin, force, reason } => {
            let promotion = PinPromotion {
                pin: pin.to_string(),
                force,
                reason,
            };
            let changed = client.promote_pin(&promotion).await;
            let changed = changed.map_err(|failure| with_way_out(failure, &pin))?;
            views::pin::promoted(&pin, &changed, format)?;
        }
        Pin::Retire(step) => {
            let changed = client.retire_pin(&request(&step)).await?;
            views::pin::retired(&step.pin, &changed, format)?;
        }
    }
    Ok(ExitCode::Ok)
}

fn request(step: &PinStep) -> PinRequest {
    PinRequest {
        pin: step.pin.to_string(),
        reason: step.reason.clone(),
    }
}

/// Where gateways are named that would be cut off, how that is done all the same.
fn with_way_out(failure: Failure, pin: &SpkiPin) -> Failure {
    let names = |failure: &Failure| {
        let problem = failure.problem.as_ref();
        problem.is_some_and(|problem| {
            let mut fields = problem.errors.iter().map(|error| &error.field);
            fields.any(|field| field.starts_with("gateways"))
        })
    };
    if !names(&failure) {
        return failure;
    }
    failure.with(format!(
        "each of them takes the key over as soon as it connects; to cut them off: viworks pin promote {pin} --force \
         --reason TEXT"
    ))
}
