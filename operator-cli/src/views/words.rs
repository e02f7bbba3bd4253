//! States and durations in the words that every view uses.

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

/// A duration as people read it.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} m {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}
