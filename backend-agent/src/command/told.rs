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
    // Once for each command, however often its gateway says the same.
    if settled.moved && settled.state.is_final() {
        metrics.commands_final(settled.state, 1);
    }
    match run {
        Some(run) => bus.run_ended(settled.run_id, change, run),
        None => bus.command_changed(settled.run_id, change, settled.run_finished),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;
    use viworks_common::command::CommandState;
    use viworks_common::id::{AgentId, CommandId, RunId};
    use viworks_runtime::metrics::Metrics;

    use super::super::bus::{BusLimits, Step};
    use super::*;

    #[test]
    fn an_end_that_is_said_again_is_told_and_not_counted() {
        let at = Timestamp::from_unix_micros(0);
        let metrics = Metrics::new("test", "0", at);
        let own = BackendMetrics::register(&metrics);
        let bus = Arc::new(RunBus::new(BusLimits::default(), 1));
        let run_id = RunId::from_uuid(Uuid::from_u128(1));
        let mut follower = bus.subscribe(run_id, None);
        for (moved, state) in [
            (true, CommandState::Running),
            (true, CommandState::Rejected),
            (false, CommandState::Rejected),
        ] {
            let settled = Settled {
                moved,
                command_id: CommandId::from_uuid(Uuid::from_u128(2)),
                agent_id: AgentId::from_uuid(Uuid::from_u128(3)),
                run_id,
                state,
                run_finished: false,
                reason: None,
            };
            tell(&bus, &own, &settled, at);
            assert!(matches!(follower.poll_next(), Step::Event(..)));
        }
        let text = metrics.encode().unwrap();
        let line = "viworks_commands_final_total{state=\"rejected\"} 1\n";
        assert!(text.contains(line), "{text}");
        assert!(!text.contains("state=\"running\""), "{text}");
    }
}
