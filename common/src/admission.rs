//! Who may open a session: epochs, the ratchet, forks and rolled-back backends, as pure rules over one identity's row.
//!
//! A row holds two epochs. `confirmed` is the last one whose CONFIRM was committed or that was presented; `issued` is
//! the last one handed out. HELLO is acceptable when its epoch lies between them and its token is right, so no number
//! of lost WELCOMEs or CONFIRMs makes an honest gateway look like a fork, while a copy that fell behind is always
//! below `confirmed`. The one exception is a decision of an operator about two holders: see [`crate::fork`].

use crate::id::AgentRunId;
use crate::rules::{Complete, Rule, Rulebook};

/// What the backend remembers about one identity; every field only grows, except who spoke last, and the generation of
/// the key where an operator gave the identity to a holder that has an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityRow {
    /// The last epoch that was presented or confirmed.
    pub confirmed: u64,
    /// The last epoch that was handed out; never below `confirmed`.
    pub issued: u64,
    /// The lowest generation of the agent key that is still accepted.
    pub key_generation: u32,
    /// The process that spoke last.
    pub last_agent_run_id: Option<AgentRunId>,
    /// Whether an operator revoked the identity.
    pub revoked: bool,
    /// The order of the next command; orders start at 1.
    pub next_order: u64,
    /// Up to which order every command is final.
    pub low_water: u64,
}

impl IdentityRow {
    /// The row of an identity that never connected.
    #[must_use]
    pub const fn fresh(key_generation: u32) -> Self {
        Self {
            confirmed: 0,
            issued: 0,
            key_generation,
            last_agent_run_id: None,
            revoked: false,
            next_order: 1,
            low_water: 0,
        }
    }
}

/// What an authenticated HELLO says, as far as admission depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelloFacts {
    /// The last epoch the gateway made durable.
    pub epoch: u64,
    /// Whether its token is the one of that epoch.
    pub token_valid: bool,
    /// The process that speaks.
    pub agent_run_id: AgentRunId,
    /// The generation of the key that authenticated it.
    pub key_generation: u32,
    /// The highest order it ever saw.
    pub highest_order: u64,
    /// The highest low-water mark it was told.
    pub low_water: u64,
    /// What `confirmed` was before its CHALLENGE was made.
    pub confirmed_at_challenge: u64,
    /// Whether an operator gave the identity to this very holder, and nobody was confirmed since.
    pub kept: bool,
}

/// What becomes of a HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may go on with epoch `issued`, once `row` is stored by compare-and-swap.
    Accept {
        /// The epoch it presented.
        presented: u64,
        /// The epoch it gets.
        issued: u64,
        /// The row to store.
        row: IdentityRow,
    },
    /// It proves that the backend's database was rolled back: its counters are raised, and the session goes on.
    RolledBack {
        /// The epoch it presented.
        presented: u64,
        /// The epoch it gets.
        issued: u64,
        /// The row to store.
        row: IdentityRow,
        /// Commands that are not idempotent, up to this order and absent from the unreported list, are indeterminate.
        highest_order: u64,
    },
    /// It was overtaken, by the same process or while it was under way: closed, not recorded. A copy comes back and
    /// is found.
    Late,
    /// A second holder of the identity that fell behind.
    Fork,
    /// The token does not belong to the epoch: a security event; nothing is revealed.
    BadToken,
    /// An operator revoked the identity.
    Revoked,
    /// The key's generation was retired.
    StaleKey,
}

/// Whether a HELLO that is refused for its retired key is of a second holder of the identity as well: one that has a
/// token of the identity and fell behind, while it was not overtaken under way and is not the process that has it.
#[must_use]
pub fn is_left_behind(row: &IdentityRow, hello: &HelloFacts) -> bool {
    hello.token_valid
        && hello.epoch < row.confirmed
        && hello.epoch < hello.confirmed_at_challenge
        && row.last_agent_run_id != Some(hello.agent_run_id)
}

/// Decides about a HELLO whose MAC was verified.
#[must_use]
pub fn admit(row: &IdentityRow, hello: &HelloFacts) -> Admission {
    admit_under(Complete, row, hello)
}

/// The same by other rules.
#[must_use]
pub fn admit_under(rules: impl Rulebook, row: &IdentityRow, hello: &HelloFacts) -> Admission {
    if row.revoked {
        return Admission::Revoked;
    }
    // The agent key of the holder that is kept may be one that the other holder's replaced, as its certificate may be.
    if hello.key_generation < row.key_generation && !hello.kept {
        return Admission::StaleKey;
    }
    if !hello.token_valid {
        return Admission::BadToken;
    }
    if hello.epoch != row.confirmed && !rules.keeps(Rule::EpochRange) {
        return Admission::Fork;
    }
    if hello.epoch < row.confirmed && !hello.kept && rules.keeps(Rule::LeftBehind) {
        // A process may die with its HELLO under way: its successor can be confirmed before that arrives. Whoever was
        // in range when the challenge was made may have been overtaken so, and proves nothing.
        let overtaken = hello.epoch >= hello.confirmed_at_challenge;
        return if overtaken || row.last_agent_run_id == Some(hello.agent_run_id) {
            Admission::Late
        } else {
            Admission::Fork
        };
    }
    let rolled_back = hello.epoch > row.issued
        || hello.highest_order >= row.next_order
        || hello.low_water > row.low_water;
    let Some(issued) = row.issued.max(hello.epoch).checked_add(1) else {
        // Unreachable by counting; a row at the end of its range admits nobody.
        return Admission::BadToken;
    };
    // Epochs only grow: whoever is let in with one that was left behind goes on from where the identity is.
    let presented = hello.epoch.max(row.confirmed);
    let after = IdentityRow {
        confirmed: presented,
        issued,
        // Also an earlier one of the holder that is kept: it has no other, and would be refused the next time.
        key_generation: hello.key_generation,
        last_agent_run_id: Some(hello.agent_run_id),
        revoked: false,
        // Above both marks: what the gateway was told is final it refuses as stale, whether it ever saw it or not.
        next_order: row
            .next_order
            .max(hello.highest_order.saturating_add(1))
            .max(hello.low_water.saturating_add(1)),
        // Orders up to the gateway's mark were final before the roll-back; the store raises its own mark only past
        // final commands.
        low_water: row.low_water,
    };
    if rolled_back {
        Admission::RolledBack {
            presented,
            issued,
            row: after,
            highest_order: hello.highest_order,
        }
    } else {
        Admission::Accept {
            presented,
            issued,
            row: after,
        }
    }
}

/// What somebody shows at the door who has the key of a gateway, and no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// The last epoch that it made durable.
    pub epoch: u64,
    /// Whether its token is the one of that epoch.
    pub token_valid: bool,
    /// The generation of the key.
    pub key_generation: u32,
}

/// Why whoever is at the door is not the gateway that it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTheGateway {
    /// An operator revoked the identity.
    Revoked,
    /// The key's generation was retired.
    StaleKey,
    /// The token does not belong to the epoch, or the identity has left that behind: which of both is not told.
    BadToken,
}

/// Whether whoever is at the door is the gateway: by the rule of HELLO, and it changes nothing. A copy that fell behind
/// gets no certificate, so it cannot come into a session by it either. While the holder that an operator keeps is
/// `awaited`, one that was left behind may be that one, and its certificate may have ended while it was kept out: which
/// holder it is, HELLO says.
///
/// # Errors
///
/// Why it is not.
pub const fn at_the_door(
    row: &IdentityRow,
    shown: Shown,
    awaited: bool,
) -> Result<(), NotTheGateway> {
    if row.revoked {
        return Err(NotTheGateway::Revoked);
    }
    if shown.key_generation < row.key_generation && !awaited {
        return Err(NotTheGateway::StaleKey);
    }
    // Beyond the last one that was handed out, the token shows that the database was set back, as in HELLO.
    if !shown.token_valid || shown.epoch < row.confirmed && !awaited {
        return Err(NotTheGateway::BadToken);
    }
    Ok(())
}

/// What becomes of a CONFIRM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confirmation {
    /// The session is the one: store `row`, then fence every older session.
    Confirmed(IdentityRow),
    /// A later HELLO or a revocation came in between.
    Superseded,
}

/// Decides about a CONFIRM of the session that presented `presented` and was given `issued`.
#[must_use]
pub fn confirm(
    row: &IdentityRow,
    presented: u64,
    issued: u64,
    agent_run_id: AgentRunId,
) -> Confirmation {
    // Every HELLO raises `issued`; a session whose epoch is not the last one handed out was overtaken.
    if row.revoked
        || row.confirmed != presented
        || row.issued != issued
        || row.last_agent_run_id != Some(agent_run_id)
    {
        return Confirmation::Superseded;
    }
    Confirmation::Confirmed(IdentityRow {
        confirmed: issued,
        ..row.clone()
    })
}

/// Giving an identity to another holder than the one that has it raises both counters: whoever had it is left behind,
/// whatever it holds, and the live session is fenced at once.
#[must_use]
pub fn give(row: &IdentityRow) -> IdentityRow {
    give_under(Complete, row)
}

/// The same by other rules.
#[must_use]
pub fn give_under(rules: impl Rulebook, row: &IdentityRow) -> IdentityRow {
    if !rules.keeps(Rule::GivingLeavesBehind) {
        return row.clone();
    }
    let raised = row.issued.saturating_add(1);
    IdentityRow {
        confirmed: raised,
        issued: raised,
        // Whoever spoke last is not merely late.
        last_agent_run_id: None,
        ..row.clone()
    }
}

/// Revocation raises both counters, so that every fenced write of a live session fails at once.
#[must_use]
pub fn revoke(row: &IdentityRow) -> IdentityRow {
    let raised = row.issued.saturating_add(1);
    IdentityRow {
        confirmed: raised,
        issued: raised,
        revoked: true,
        ..row.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn run(n: u128) -> AgentRunId {
        AgentRunId::from_uuid(Uuid::from_u128(n))
    }

    fn hello(epoch: u64, agent_run_id: AgentRunId) -> HelloFacts {
        HelloFacts {
            epoch,
            token_valid: true,
            agent_run_id,
            key_generation: 1,
            highest_order: 0,
            low_water: 0,
            confirmed_at_challenge: u64::MAX,
            kept: false,
        }
    }

    fn accepted(row: &IdentityRow, hello: &HelloFacts) -> (IdentityRow, u64) {
        match admit(row, hello) {
            Admission::Accept { issued, row, .. } | Admission::RolledBack { issued, row, .. } => {
                (row, issued)
            }
            refused @ (Admission::Late
            | Admission::Fork
            | Admission::BadToken
            | Admission::Revoked
            | Admission::StaleKey) => panic!("{refused:?}"),
        }
    }

    proptest! {
        #[test]
        fn whoever_gets_a_certificate_at_the_door_would_get_a_session_with_it(
            confirmed in 0_u64..6, ahead in 0_u64..4, generation in 1_u32..4, revoked in any::<bool>(),
            epoch in 0_u64..12, token_valid in any::<bool>(), key_generation in 1_u32..4, kept in any::<bool>(),
        ) {
            let row = IdentityRow {
                confirmed,
                issued: confirmed + ahead,
                key_generation: generation,
                revoked,
                ..IdentityRow::fresh(1)
            };
            let facts = HelloFacts { token_valid, key_generation, kept, ..hello(epoch, run(1)) };
            let shown = Shown { epoch, token_valid, key_generation };
            let is_admitted = matches!(
                admit(&row, &facts),
                Admission::Accept { .. } | Admission::RolledBack { .. }
            );
            prop_assert_eq!(at_the_door(&row, shown, kept).is_ok(), is_admitted);
        }

        /// Any mixture of lost WELCOMEs and CONFIRMs, and restarts in between.
        #[test]
        fn an_honest_gateway_is_never_a_fork(steps in prop::collection::vec((0_u8..4, any::<bool>()), 0..80)) {
            let mut row = IdentityRow::fresh(1);
            let mut durable = 0;
            let mut process = 1;
            for (lost, restart) in steps {
                if restart {
                    process += 1;
                }
                let (next, issued) = accepted(&row, &hello(durable, run(process)));
                let presented = durable;
                row = next;
                if lost == 0 {
                    continue; // WELCOME lost
                }
                durable = issued;
                if lost == 1 {
                    continue; // CONFIRM lost
                }
                match confirm(&row, presented, issued, run(process)) {
                    Confirmation::Confirmed(next) => row = next,
                    Confirmation::Superseded => prop_assert!(false, "nobody else spoke"),
                }
                prop_assert!(row.confirmed <= row.issued);
            }
        }
    }

    #[test]
    fn the_holder_that_is_kept_passes_with_the_key_that_it_has() {
        let row = IdentityRow {
            confirmed: 9,
            issued: 9,
            key_generation: 3,
            ..IdentityRow::fresh(1)
        };
        let mut facts = hello(2, run(1));
        assert_eq!(admit(&row, &facts), Admission::StaleKey);
        facts.confirmed_at_challenge = row.confirmed;
        assert!(is_left_behind(&row, &facts));
        let overtaken = HelloFacts {
            confirmed_at_challenge: facts.epoch,
            ..facts
        };
        assert!(!is_left_behind(&row, &overtaken));
        let without_token = HelloFacts {
            token_valid: false,
            ..facts
        };
        assert!(!is_left_behind(&row, &without_token));
        facts.kept = true;
        let (after, issued) = accepted(&row, &facts);
        assert_eq!((after.confirmed, issued), (9, 10));
        assert_eq!(after.key_generation, 1, "it has no later one to come with");
        // Whoever was left behind stays behind, whatever key it has.
        facts.kept = false;
        facts.key_generation = 3;
        facts.confirmed_at_challenge = 9;
        facts.agent_run_id = run(2);
        assert_eq!(admit(&after, &facts), Admission::Fork);
        facts.kept = true;
        facts.token_valid = false;
        assert_eq!(admit(&row, &facts), Admission::BadToken);
    }

    #[test]
    fn a_copy_that_fell_behind_is_a_fork_and_a_late_message_of_the_same_process_is_not() {
        let (row, issued) = accepted(&IdentityRow::fresh(1), &hello(0, run(1)));
        let Confirmation::Confirmed(row) = confirm(&row, 0, issued, run(1)) else {
            panic!()
        };
        assert_eq!(admit(&row, &hello(0, run(2))), Admission::Fork);
        assert_eq!(admit(&row, &hello(0, run(1))), Admission::Late);
    }

    #[test]
    fn the_last_words_of_a_dead_process_do_not_make_its_successor_look_like_a_copy() {
        let row = IdentityRow::fresh(1);
        let mut last_words = hello(0, run(1));
        last_words.confirmed_at_challenge = row.confirmed;
        let (row, issued) = accepted(&row, &hello(0, run(2)));
        let Confirmation::Confirmed(row) = confirm(&row, 0, issued, run(2)) else {
            panic!()
        };
        assert_eq!(admit(&row, &last_words), Admission::Late);
        // A copy answers a fresh challenge in the same way.
        last_words.confirmed_at_challenge = row.confirmed;
        assert_eq!(admit(&row, &last_words), Admission::Fork);
    }

    #[test]
    fn only_the_last_handed_out_epoch_is_confirmed() {
        let (row, first) = accepted(&IdentityRow::fresh(1), &hello(0, run(1)));
        let (row, second) = accepted(&row, &hello(0, run(2)));
        assert_eq!(confirm(&row, 0, first, run(1)), Confirmation::Superseded);
        assert!(matches!(
            confirm(&row, 0, second, run(2)),
            Confirmation::Confirmed(_)
        ));
    }

    #[test]
    fn a_counter_above_the_row_proves_a_roll_back() {
        let mut facts = hello(9, run(1));
        facts.highest_order = 40;
        let Admission::RolledBack {
            issued,
            row,
            highest_order,
            ..
        } = admit(&IdentityRow::fresh(1), &facts)
        else {
            panic!()
        };
        assert_eq!(
            (issued, row.confirmed, row.next_order, highest_order),
            (10, 9, 41, 40)
        );
        facts.token_valid = false;
        assert_eq!(admit(&IdentityRow::fresh(1), &facts), Admission::BadToken);
    }

    #[test]
    fn orders_after_a_roll_back_lie_above_everything_the_gateway_calls_final() {
        // Orders 4 and 5 were cancelled before they were offered: the gateway knows the mark, and never saw them.
        let mut facts = hello(0, run(1));
        (facts.highest_order, facts.low_water) = (3, 5);
        let (row, _) = accepted(&IdentityRow::fresh(1), &facts);
        assert_eq!(row.next_order, 6);
    }

    #[test]
    fn whoever_an_operator_keeps_goes_on_from_where_the_copy_had_come() {
        // The copy spoke first: the original, process 1, was left behind at epoch 1.
        let (row, first) = accepted(&IdentityRow::fresh(1), &hello(0, run(1)));
        let Confirmation::Confirmed(row) = confirm(&row, 0, first, run(1)) else {
            panic!()
        };
        let (row, copied) = accepted(&row, &hello(first, run(2)));
        let Confirmation::Confirmed(row) = confirm(&row, first, copied, run(2)) else {
            panic!()
        };
        let original = HelloFacts {
            confirmed_at_challenge: row.confirmed,
            ..hello(first, run(3))
        };
        assert_eq!(admit(&row, &original), Admission::Fork);
        let given = give(&row);
        let kept = HelloFacts {
            kept: true,
            confirmed_at_challenge: given.confirmed,
            ..original
        };
        // A lost WELCOME, and another HELLO of the same epoch.
        let (once, _lost) = accepted(&given, &kept);
        let (twice, issued) = accepted(&once, &kept);
        assert_eq!(
            (twice.confirmed, issued),
            (given.confirmed, given.issued + 2)
        );
        let confirmed = confirm(&twice, given.confirmed, issued, run(3));
        let Confirmation::Confirmed(row) = confirmed else {
            panic!("{confirmed:?}")
        };
        // Whatever the copy holds is left behind, also what it was given last.
        for epoch in [first, copied] {
            let copy = HelloFacts {
                confirmed_at_challenge: row.confirmed,
                ..hello(epoch, run(2))
            };
            assert_eq!(admit(&row, &copy), Admission::Fork, "{epoch}");
        }
        let (_, next) = accepted(&row, &hello(issued, run(3)));
        assert_eq!(next, issued + 1);
    }

    #[test]
    fn a_token_is_asked_of_whoever_is_kept() {
        let row = IdentityRow {
            confirmed: 5,
            issued: 5,
            ..IdentityRow::fresh(1)
        };
        let forged = HelloFacts {
            kept: true,
            token_valid: false,
            ..hello(1, run(1))
        };
        assert_eq!(admit(&row, &forged), Admission::BadToken);
        assert_eq!(
            admit(
                &revoke(&row),
                &HelloFacts {
                    token_valid: true,
                    ..forged
                }
            ),
            Admission::Revoked
        );
    }

    #[test]
    fn a_revoked_identity_and_a_retired_key_are_refused() {
        let (row, issued) = accepted(&IdentityRow::fresh(1), &hello(0, run(1)));
        let revoked = revoke(&row);
        assert_eq!(admit(&revoked, &hello(issued, run(1))), Admission::Revoked);
        assert_eq!(
            confirm(&revoked, 0, issued, run(1)),
            Confirmation::Superseded
        );
        let rotated = IdentityRow {
            key_generation: 2,
            ..row
        };
        assert_eq!(admit(&rotated, &hello(issued, run(1))), Admission::StaleKey);
    }
}
