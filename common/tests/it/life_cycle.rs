//! Laws of a command's life, checked for every state and event, and along random lives.

use proptest::prelude::*;
use viworks_common::code::RejectCode;
use viworks_common::command::{CommandEvent, CommandState, OutcomeState, Transition, transition};

fn events() -> Vec<CommandEvent> {
    let outcomes = [
        OutcomeState::Succeeded,
        OutcomeState::Failed,
        OutcomeState::TimedOut,
        OutcomeState::Rejected,
        OutcomeState::Expired,
        OutcomeState::Cancelled,
        OutcomeState::Indeterminate,
    ];
    let mut events = vec![
        CommandEvent::Dispatched,
        CommandEvent::Released,
        CommandEvent::Started,
        CommandEvent::SessionLost,
        CommandEvent::RunGone,
        CommandEvent::DeadlinePassed,
        CommandEvent::CancelRequested,
        CommandEvent::AttemptsExhausted,
        CommandEvent::WaitExhausted,
        CommandEvent::RolledBack,
    ];
    events.extend(outcomes.map(CommandEvent::Ended));
    events.extend(RejectCode::ALL.iter().copied().map(CommandEvent::Rejected));
    events
}

/// Every state, event and opinion, with what becomes of it.
fn every() -> impl Iterator<Item = (CommandState, CommandEvent, bool, Transition)> {
    CommandState::ALL.iter().flat_map(|state| {
        events().into_iter().flat_map(move |event| {
            [false, true].map(|repeatable| {
                (
                    *state,
                    event,
                    repeatable,
                    transition(*state, event, repeatable),
                )
            })
        })
    })
}

#[test]
fn a_command_waits_or_has_its_permit_or_is_over() {
    let of = |word: fn(CommandState) -> bool| -> Vec<CommandState> {
        let all = CommandState::ALL.iter().copied();
        all.filter(|state| word(*state)).collect()
    };
    let (waiting, permitted) = (
        of(CommandState::awaits_permit),
        of(CommandState::has_permit),
    );
    assert_eq!(waiting, [CommandState::Queued, CommandState::Dispatched]);
    assert_eq!(permitted, [CommandState::Released, CommandState::Running]);
    let over = of(CommandState::is_final);
    assert_eq!([waiting, permitted, over].concat(), CommandState::ALL);
}

fn goes_to(transition: Transition) -> Option<CommandState> {
    match transition {
        Transition::To(state) => Some(state),
        Transition::Stay | Transition::LateOutcome | Transition::Refused => None,
    }
}

/// A gateway may have started it.
fn may_have_started(state: CommandState) -> bool {
    matches!(state, CommandState::Released | CommandState::Running)
}

fn still_waits(state: CommandState) -> bool {
    matches!(state, CommandState::Queued | CommandState::Dispatched)
}

#[test]
fn what_is_final_stays_so_and_only_the_indeterminate_learns_more() {
    for (state, event, _, becomes) in every().filter(|it| it.0.is_final()) {
        let late = state == CommandState::Indeterminate && matches!(event, CommandEvent::Ended(_));
        let expected = if late {
            Transition::LateOutcome
        } else {
            Transition::Stay
        };
        assert_eq!(becomes, expected, "{state:?} {event:?}");
    }
}

#[test]
fn what_may_have_started_and_must_not_run_twice_is_never_offered_again() {
    for (state, event, repeatable, becomes) in every() {
        if may_have_started(state) && !repeatable {
            assert!(
                !goes_to(becomes).is_some_and(still_waits),
                "{state:?} {event:?}"
            );
        }
    }
}

#[test]
fn nothing_runs_without_a_permit() {
    for (state, event, repeatable, becomes) in every() {
        match goes_to(becomes) {
            Some(CommandState::Released) => {
                assert_eq!(event, CommandEvent::Released);
                assert!(state == CommandState::Dispatched || repeatable, "{state:?}");
            }
            Some(CommandState::Running) => {
                assert_eq!(
                    (state, event),
                    (CommandState::Released, CommandEvent::Started)
                );
            }
            Some(_) | None => {}
        }
    }
}

#[test]
fn the_backend_alone_can_end_every_command_and_says_only_what_it_knows() {
    let own = [
        CommandEvent::DeadlinePassed,
        CommandEvent::CancelRequested,
        CommandEvent::AttemptsExhausted,
        CommandEvent::WaitExhausted,
    ];
    for state in CommandState::ALL.iter().filter(|state| !state.is_final()) {
        for repeatable in [false, true] {
            let ends: Vec<_> = own
                .iter()
                .filter_map(|event| goes_to(transition(*state, *event, repeatable)))
                .collect();
            assert!(!ends.is_empty(), "nobody ends {state:?}");
            for end in ends {
                assert!(end.is_final());
                let guessed = may_have_started(*state) && end != CommandState::Indeterminate;
                assert!(
                    !guessed,
                    "{state:?} ends as {end:?} without its gateway's word"
                );
            }
        }
    }
}

#[test]
fn a_busy_gateway_ends_nothing_that_may_wait() {
    for code in RejectCode::ALL
        .iter()
        .copied()
        .filter(|code| code.is_transient())
    {
        let event = CommandEvent::Rejected(code);
        for (state, repeatable) in [
            (CommandState::Queued, false),
            (CommandState::Dispatched, false),
            (CommandState::Dispatched, true),
            // Offered with its permit.
            (CommandState::Released, true),
        ] {
            let becomes = transition(state, event, repeatable);
            assert_eq!(
                becomes,
                Transition::To(CommandState::Queued),
                "{state:?} {code:?}"
            );
        }
    }
}

proptest! {
    /// A life of a command that must not run twice has one permit at most, and one end at most.
    #[test]
    fn a_life_has_one_permit_and_one_end(
        lived in prop::collection::vec(prop::sample::select(events()), 0..60),
    ) {
        let (mut state, mut permits, mut ends) = (CommandState::Queued, 0, 0);
        for event in lived {
            if let Some(next) = goes_to(transition(state, event, false)) {
                permits += u32::from(next == CommandState::Released);
                ends += u32::from(next.is_final());
                state = next;
            }
        }
        prop_assert!(permits <= 1 && ends <= 1);
        prop_assert_eq!(ends == 1, state.is_final());
    }
}
