//! What the ends of a run's commands mean together: numbers that add up, and an exit code.

use viworks_common::command::CommandState;
use viworks_runtime::exit::ExitCode;

/// How many of the gateways that were meant came to which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Ran and succeeded.
    pub ok: usize,
    /// Came to a bad end that is known.
    pub failed: usize,
    /// Never got an answer.
    pub no_answer: usize,
    /// Not final yet.
    pub open: usize,
    /// Meant, and not sent the command.
    pub skipped: usize,
}

impl Tally {
    /// Counts; every gateway is counted once.
    pub fn of(states: &[CommandState], skipped: usize) -> Self {
        let count = |wanted: ExitCode| {
            let same = states.iter().filter(|state| code_of(**state) == wanted);
            same.count()
        };
        Self {
            ok: count(ExitCode::Ok),
            failed: count(ExitCode::Failed),
            no_answer: count(ExitCode::NoAnswer),
            open: count(ExitCode::Pending),
            skipped,
        }
    }

    /// Everybody who was meant.
    pub const fn total(&self) -> usize {
        self.ok + self.failed + self.no_answer + self.open + self.skipped
    }
}

/// Failed beats no answer beats pending; nothing targeted is not found.
pub fn exit_code(states: &[CommandState]) -> ExitCode {
    let rank = |code: &ExitCode| {
        let order = [ExitCode::Pending, ExitCode::NoAnswer, ExitCode::Failed];
        order
            .iter()
            .position(|ranked| ranked == code)
            .map_or(0, |position| position + 1)
    };
    states
        .iter()
        .map(|state| code_of(*state))
        .max_by_key(rank)
        .unwrap_or(ExitCode::NotFound)
}

/// What one command alone would end with.
const fn code_of(state: CommandState) -> ExitCode {
    match state {
        CommandState::Succeeded => ExitCode::Ok,
        CommandState::Failed
        | CommandState::TimedOut
        | CommandState::Rejected
        | CommandState::Cancelled
        | CommandState::Indeterminate => ExitCode::Failed,
        CommandState::Expired | CommandState::Dead => ExitCode::NoAnswer,
        CommandState::Queued
        | CommandState::Dispatched
        | CommandState::Released
        | CommandState::Running => ExitCode::Pending,
    }
}

#[cfg(test)]
mod tests {
    use CommandState as S;

    use super::*;

    #[test]
    fn failed_beats_no_answer_beats_pending() {
        assert_eq!(exit_code(&[S::Succeeded]), ExitCode::Ok);
        assert_eq!(exit_code(&[S::Succeeded, S::Queued]), ExitCode::Pending);
        assert_eq!(exit_code(&[S::Expired, S::Running]), ExitCode::NoAnswer);
        assert_eq!(exit_code(&[S::Dead, S::Indeterminate]), ExitCode::Failed);
        assert_eq!(exit_code(&[]), ExitCode::NotFound);
    }

    #[test]
    fn every_gateway_that_was_meant_is_counted_once() {
        let tally = Tally::of(
            &[S::Succeeded, S::Failed, S::Dead, S::Queued, S::TimedOut],
            2,
        );
        let each = (tally.ok, tally.failed, tally.no_answer, tally.open);
        assert_eq!(each, (1, 2, 1, 1));
        assert_eq!(tally.total(), 7);
    }
}
