//! States and durations in the words that every view uses.

use viworks_api::CommandOutcome;
use viworks_common::command::CommandState;

/// What stands in place of a state where a gateway got no command.
pub(super) const SKIPPED: &str = "○ skipped";

/// A state as a table shows it: a shape and a word.
pub(super) const fn word(state: CommandState) -> &'static str {
    match state {
        CommandState::Queued => "◌ queued",
        CommandState::Dispatched => "◌ dispatched",
        CommandState::Released => "◌ released",
        CommandState::Running => "◐ running",
        CommandState::Succeeded => "✓ ok",
        CommandState::Failed => "✕ failed",
        CommandState::TimedOut => "✕ timed_out",
        CommandState::Rejected => "✕ rejected",
        CommandState::Expired => "○ expired",
        CommandState::Cancelled => "✕ cancelled",
        CommandState::Dead => "○ dead",
        CommandState::Indeterminate => "✕ indeterminate",
    }
}

/// What a gateway said of a command that had ended without it.
pub(super) fn said_later(outcome: &CommandOutcome) -> Option<String> {
    use CommandState as S;
    if !outcome.late {
        return None;
    }
    let Some(state) = outcome.late_state else {
        return Some("the gateway said later how it ended".to_owned());
    };
    let what = match state {
        S::Succeeded | S::Failed | S::TimedOut => "that it ran: ",
        S::Cancelled if outcome.started_at.is_some() => "that it ran: ",
        S::Rejected | S::Expired | S::Cancelled => "that it did not run: ",
        S::Indeterminate | S::Queued | S::Dispatched | S::Released | S::Running | S::Dead => {
            "how it ended: "
        }
    };
    Some(format!("the gateway said later {what}{}", state.name()))
}

/// A duration as people read it.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} m {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use viworks_common::time::Timestamp;

    use super::*;

    #[test]
    fn what_a_gateway_said_later_is_told_as_such() {
        let late = |state, started| CommandOutcome {
            late: true,
            late_state: state,
            started_at: started,
            ..CommandOutcome::default()
        };
        let begun = Some(Timestamp::from_unix_micros(1));
        for (state, started, said) in [
            (CommandState::Succeeded, begun, "that it ran: succeeded"),
            (CommandState::Cancelled, begun, "that it ran: cancelled"),
            (
                CommandState::Cancelled,
                None,
                "that it did not run: cancelled",
            ),
            (CommandState::Expired, begun, "that it did not run: expired"),
            (
                CommandState::Indeterminate,
                begun,
                "how it ended: indeterminate",
            ),
        ] {
            let told = said_later(&late(Some(state), started));
            assert_eq!(told, Some(format!("the gateway said later {said}")));
        }
        assert!(said_later(&late(None, None)).is_some());
        let in_time = CommandOutcome {
            late: false,
            ..late(Some(CommandState::Succeeded), begun)
        };
        assert_eq!(said_later(&in_time), None);
    }
}
