//! What is told of a command that was moved: whoever follows its run hears of it, and its end is counted.

use viworks_common::time::Timestamp;

use super::bus::{CommandChange, RunBus};
use crate::data::{Run, Settled};
use crate::metrics::BackendMetrics;

/// What whoever follows its run hears of a command that was moved.
#[must_use]
pub fn change(settled: &Settled, at: Timestamp) -> CommandChange {
    CommandChange {
        at,
        command_id: settled.command_id,
        agent_id: settled.agent_id,
        state: settled.state,
        attempt: None,
        exit_code: None,
        duration_ms: None,
        reason: settled.reason.clone(),
        written: None,
    }
}

/// Tells of a command that was moved.
pub fn tell(bus: &RunBus, metrics: &BackendMetrics, settled: &Settled, at: Timestamp) {
    tell_more(bus, metrics, settled, change(settled, at), None);
}

/// The same with more to say than what was moved: what the gateway has reported of it, and the run as it ended with it.
pub fn tell_more(
    bus: &RunBus,
    metrics: &BackendMetrics,
    settled: &Settled,
    change: CommandChange,
    run: Option<Run>,
) {
    if settled.state.is_final() {
        metrics.commands_final(settled.state, 1);
    }
    match run {
        Some(run) => bus.run_ended(settled.run_id, change, run),
        None => bus.command_changed(settled.run_id, change, settled.run_finished),
    }
}
