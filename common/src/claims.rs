//! Who keeps an identity: one live session, a probe before another process takes over, a budget of take-overs, and
//! favour for whoever was alive when a copy spoke.
//!
//! A [`Standing`] is what all processes of the backend know of an identity, [`Claims`] are what one of them knows of
//! its sessions. Epochs in the store fence what it does not know; a session that another process holds is probed by
//! asking that process.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::id::{AgentId, AgentRunId};
use crate::limits::{FAVOUR_TIME, TAKE_OVERS_PER_MINUTE_MAX};
use crate::rules::{Rule, Rulebook};
use crate::time::Monotonic;

/// The span of the take-over budget.
const MINUTE: Duration = Duration::from_secs(60);

/// How soon a newcomer comes again when nobody could say whether the live session answers.
const UNDECIDED_RETRY: Duration = Duration::from_secs(5);

/// Identities of which a process remembers at once what they did.
pub const IDENTITIES_MAX: usize = 10_000;

/// What becomes of a confirmed session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It holds the identity, and nobody did.
    First,
    /// It holds the identity; the older session is closed.
    Supersedes,
    /// A newer session is there.
    Overtaken,
}

/// What an admitted newcomer meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newcomer {
    /// Nobody else holds a confirmed session.
    Welcome,
    /// Another process does: find out whether it is alive.
    Probe,
}

/// What probing a session brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// Its gateway answered.
    Alive,
    /// Its gateway did not answer the process of the backend that holds it, or that process is no more.
    Silent,
    /// The process that holds it could not be asked: its gateway may well be alive.
    Unreachable,
}

impl Probed {
    /// What it says once the confirmed session of the identity is of the epoch `live`. Where that is another one than
    /// the session of the epoch `asked`, about which somebody was asked, nobody knows anything of it.
    #[must_use]
    pub const fn by_now(self, asked: u64, live: Option<u64>) -> Self {
        match live {
            Some(live) if live != asked => Self::Unreachable,
            Some(_) | None => self,
        }
    }
}

/// Who of two processes keeps the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The newcomer.
    TakeOver,
    /// The one that answered: the newcomer is another machine. The live one is to reconnect, because its next HELLO
    /// moves the ratchet past the copy.
    Fork,
    /// Nobody for so long: the newcomer may have been refused in favour of this very silence on another connection.
    Favoured(Duration),
    /// Nobody for so long: the identity changed hands too often.
    Exhausted(Duration),
    /// Nobody for so long: whether the other one is alive could not be found out, so it keeps what it has.
    Undecided(Duration),
}

/// What is kept of one identity beside its epochs, over all backends that it may dial: whom it is kept for, and when it
/// changed hands. Its times are readings of one clock, whichever that is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The process that was alive when a copy of it spoke, until it is back, and until when it is waited for.
    pub favoured: Option<(AgentRunId, Monotonic)>,
    /// When the identity changed hands within the last minute, the latest last.
    pub take_overs: VecDeque<Monotonic>,
}

impl Standing {
    /// How long another process than `run` is favoured: nobody else may move the counters of its identity meanwhile.
    #[must_use]
    pub fn favours_another(
        &self,
        rules: impl Rulebook,
        run: AgentRunId,
        now: Monotonic,
    ) -> Option<Duration> {
        let favoured = self.favoured;
        favoured
            .filter(|(favourite, until)| *favourite != run && *until > now)
            .filter(|_| rules.keeps(Rule::FavourTheLive))
            .map(|(_, until)| until.saturating_since(now))
    }

    /// The confirmed session, which is of the process `live`, was probed for the sake of `newcomer`.
    #[must_use]
    pub fn on_probed(
        &mut self,
        rules: impl Rulebook,
        live: Option<AgentRunId>,
        newcomer: AgentRunId,
        probed: Probed,
        now: Monotonic,
    ) -> Verdict {
        if probed == Probed::Alive && rules.keeps(Rule::ProbeBeforeTakeOver) {
            // A copy is refused in its favour, and until it has reconnected, and its ratchet has passed the copy, the
            // two look the same.
            let until = now.saturating_add(FAVOUR_TIME);
            self.favoured = live.map(|run| (run, until)).or(self.favoured);
            return Verdict::Fork;
        }
        if let Some(wait) = self.favours_another(rules, newcomer, now) {
            return Verdict::Favoured(wait);
        }
        if probed == Probed::Unreachable && rules.keeps(Rule::UnknownIsNotSilence) {
            return Verdict::Undecided(UNDECIDED_RETRY);
        }
        if self.may_take_over(now) {
            return Verdict::TakeOver;
        }
        Verdict::Exhausted(MINUTE)
    }

    /// A session of the identity was confirmed: its ratchet has passed every copy.
    pub const fn entered(&mut self) {
        self.favoured = None;
    }

    /// Uses up one take-over by another process; `false` when there was the share of this minute.
    fn may_take_over(&mut self, now: Monotonic) -> bool {
        let is_past = |at: &Monotonic| now.saturating_since(*at) >= MINUTE;
        while self.take_overs.front().is_some_and(is_past) {
            self.take_overs.pop_front();
        }
        let allowed = self.take_overs.len() < TAKE_OVERS_PER_MINUTE_MAX;
        if allowed {
            self.take_overs.push_back(now);
        }
        allowed
    }
}

/// The claims to identities, as far as one process knows.
#[derive(Debug, Default)]
pub struct Claims {
    live: BTreeMap<AgentId, u64>,
}

impl Claims {
    /// A session of `epoch` was confirmed.
    #[must_use]
    pub fn enter(&mut self, agent: AgentId, epoch: u64) -> Entered {
        let older = self.live.get(&agent).copied();
        if older.is_some_and(|older| older >= epoch) {
            return Entered::Overtaken;
        }
        self.live.insert(agent, epoch);
        match older {
            Some(_) => Entered::Supersedes,
            None => Entered::First,
        }
    }

    /// The session of `epoch` ended; a newer one stays.
    pub fn leave(&mut self, agent: AgentId, epoch: u64) {
        if self.live.get(&agent) == Some(&epoch) {
            self.live.remove(&agent);
        }
    }

    /// A newcomer was admitted; `confirmed` says whether the confirmed session there is, if any, is of the same
    /// process.
    #[must_use]
    pub const fn on_newcomer(&self, confirmed: Option<bool>) -> Newcomer {
        match confirmed {
            Some(false) => Newcomer::Probe,
            Some(true) | None => Newcomer::Welcome,
        }
    }

    /// What asking the process of the backend that holds a session brought. `answered` is what that process says of
    /// the session's gateway, `None` when it said nothing in time; `owner_lives` is whether its lease ran even then.
    /// What is not known is never taken for silence: only the owner's word, or its end, lets a newcomer in.
    #[must_use]
    pub const fn heard(&self, answered: Option<bool>, owner_lives: bool) -> Probed {
        match (answered, owner_lives) {
            (Some(true), _) => Probed::Alive,
            (Some(false), _) | (None, false) => Probed::Silent,
            (None, true) => Probed::Unreachable,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::rules::Complete;

    fn agent() -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(1))
    }

    fn run(n: u128) -> AgentRunId {
        AgentRunId::from_uuid(Uuid::from_u128(n))
    }

    const fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(seconds))
    }

    /// The session of process 1 is probed for the sake of process 2.
    fn probe(standing: &mut Standing, probed: Probed, second: u64) -> Verdict {
        standing.on_probed(Complete, Some(run(1)), run(2), probed, at(second))
    }

    #[test]
    fn a_newer_session_supersedes_and_the_late_end_of_the_older_one_does_not_touch_it() {
        let mut claims = Claims::default();
        assert_eq!(claims.enter(agent(), 1), Entered::First);
        assert_eq!(claims.enter(agent(), 2), Entered::Supersedes);
        assert_eq!(claims.enter(agent(), 1), Entered::Overtaken);
        claims.leave(agent(), 1);
        assert_eq!(claims.enter(agent(), 2), Entered::Overtaken);
        claims.leave(agent(), 2);
        assert_eq!(claims.enter(agent(), 3), Entered::First);
    }

    #[test]
    fn only_another_process_is_probed_for() {
        let claims = Claims::default();
        assert_eq!(claims.on_newcomer(None), Newcomer::Welcome);
        assert_eq!(claims.on_newcomer(Some(true)), Newcomer::Welcome);
        assert_eq!(claims.on_newcomer(Some(false)), Newcomer::Probe);
    }

    #[test]
    fn take_overs_are_budgeted_per_minute() {
        let mut standing = Standing::default();
        let mut silent = |second| probe(&mut standing, Probed::Silent, second);
        for second in 0..3 {
            assert_eq!(silent(second), Verdict::TakeOver);
        }
        assert_eq!(silent(59), Verdict::Exhausted(MINUTE));
        assert_eq!(silent(60), Verdict::TakeOver);
    }

    #[test]
    fn who_was_alive_when_a_copy_spoke_is_favoured_until_it_is_back() {
        let mut standing = Standing::default();
        let verdict = probe(&mut standing, Probed::Alive, 0);
        assert_eq!(verdict, Verdict::Fork);
        assert_eq!(standing.favours_another(Complete, run(1), at(1)), None);
        let wait = standing.favours_another(Complete, run(2), at(30));
        assert_eq!(wait, Some(Duration::from_secs(60)));
        // Silence on another connection does not undo it.
        let verdict = probe(&mut standing, Probed::Silent, 30);
        assert_eq!(verdict, Verdict::Favoured(Duration::from_secs(60)));
        assert_eq!(standing.favours_another(Complete, run(2), at(90)), None);
        standing.entered();
        assert_eq!(standing.favours_another(Complete, run(2), at(30)), None);
    }

    #[test]
    fn only_the_owner_s_word_or_its_end_is_silence() {
        let claims = Claims::default();
        for owner_lives in [true, false] {
            assert_eq!(claims.heard(Some(true), owner_lives), Probed::Alive);
            assert_eq!(claims.heard(Some(false), owner_lives), Probed::Silent);
        }
        assert_eq!(claims.heard(None, true), Probed::Unreachable);
        assert_eq!(claims.heard(None, false), Probed::Silent);
    }

    #[test]
    fn what_was_said_of_a_session_says_nothing_about_the_one_that_followed_it() {
        for probed in [Probed::Alive, Probed::Silent, Probed::Unreachable] {
            assert_eq!(probed.by_now(7, Some(7)), probed);
            assert_eq!(probed.by_now(7, None), probed);
            assert_eq!(probed.by_now(7, Some(8)), Probed::Unreachable);
        }
    }

    #[test]
    fn who_cannot_be_asked_keeps_the_identity_and_costs_nobody_a_take_over() {
        let mut standing = Standing::default();
        let mut probed = |probed, second| probe(&mut standing, probed, second);
        for second in 0..10 {
            let verdict = probed(Probed::Unreachable, second);
            assert_eq!(verdict, Verdict::Undecided(UNDECIDED_RETRY));
        }
        for second in 10..13 {
            assert_eq!(probed(Probed::Silent, second), Verdict::TakeOver);
        }
        // It hears when to come again, and not how often the identity changed hands.
        let verdict = probed(Probed::Unreachable, 13);
        assert_eq!(verdict, Verdict::Undecided(UNDECIDED_RETRY));
    }

    #[test]
    fn an_owner_that_cannot_be_asked_does_not_undo_its_favour() {
        let mut standing = Standing::default();
        let verdict = probe(&mut standing, Probed::Alive, 0);
        assert_eq!(verdict, Verdict::Fork);
        let verdict = probe(&mut standing, Probed::Unreachable, 30);
        assert_eq!(verdict, Verdict::Favoured(Duration::from_secs(60)));
    }

    proptest! {
        #[test]
        fn nobody_takes_over_from_a_live_holder_whatever_the_order(
            answers in prop::collection::vec((0_u8..3, 0_u64..40), 1..60)
        ) {
            let mut standing = Standing::default();
            let (mut now, mut taken) = (0, Vec::new());
            for (answer, pause) in answers {
                now += pause;
                let probed = [Probed::Alive, Probed::Silent, Probed::Unreachable];
                let probed = probed[usize::from(answer)];
                let verdict = probe(&mut standing, probed, now);
                prop_assert_eq!(probed == Probed::Alive, verdict == Verdict::Fork);
                if verdict == Verdict::TakeOver {
                    prop_assert_eq!(probed, Probed::Silent);
                    taken.push(now);
                }
            }
            for window in taken.windows(TAKE_OVERS_PER_MINUTE_MAX + 1) {
                prop_assert!(window[TAKE_OVERS_PER_MINUTE_MAX] - window[0] >= 60);
            }
        }
    }
}
