//! A run that was submitted and is not waited for.

use viworks_api::Run;
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format};
use crate::program;

/// Says that the same submission was made before.
pub fn replayed(run: &Run, now: Timestamp) {
    output::note(&format!(
        "nothing new was run: this is the run {} that the same key submitted {}",
        run.id,
        human::relative(run.created_at, now)
    ));
}

/// Prints its id, for whoever follows it later.
pub fn print(run: &Run, format: Format) -> Result<(), Failure> {
    match format {
        Format::Table => output::line(&run.id.to_string())?,
        Format::Json => output::json(run)?,
    }
    let program = program::name();
    if run.skipped > 0 {
        output::note(&format!(
            "{} not able to take it and skipped: {program} runs show {}",
            human::counted_all(run.skipped, "gateway is", "gateways are"),
            run.id
        ));
    }
    output::note(&format!(
        "submitted to {}; follow it: {program} runs wait {}",
        human::counted_all(run.total, "gateway", "gateways"),
        run.id
    ));
    Ok(())
}
