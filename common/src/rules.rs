//! The rules that the promises rest on, by name, so that a test can take one away from the code that ships.
//!
//! What decides takes a [`Rulebook`] and asks it before it relies on a rule. The agents pass [`Complete`], which has no
//! size and always says yes, so that the compiler leaves nothing of the question. The simulation passes a book with one
//! rule missing and must find a world that this breaks: then both the rule and the simulation are worth having.

/// A rule of the protocol that a test may take away, to see that somebody notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// What is not idempotent waits for GO.
    Permit,
    /// A permit holds for one process of the gateway agent.
    PermitBoundToRun,
    /// GO is consumed by the start.
    PermitConsumed,
    /// A known id is answered from the journal.
    KnownIdAnswered,
    /// Entries are forgotten by the low-water mark, and unknown orders below it are stale.
    LowWaterForgetting,
    /// Nothing is acknowledged before it is committed.
    AckAfterCommit,
    /// The gateway says and does what a write stands for after the write is durable.
    JournalFirst,
    /// The deadline is looked at again after the permit, up to the moment of the start.
    DeadlineAtStart,
    /// What was interrupted and must not run twice is indeterminate.
    InterruptedIsIndeterminate,
    /// Results are sent until they are acknowledged.
    ResultsResent,
    /// Writes carry the epoch of their session.
    EpochFence,
    /// Every epoch between the confirmed and the issued one is acceptable.
    EpochRange,
    /// An epoch that the identity has left behind is acceptable no more.
    LeftBehind,
    /// CONFIRM is sent after the epoch is durable.
    DurableBeforeConfirm,
    /// The live session is probed before another process takes over.
    ProbeBeforeTakeOver,
    /// After a copy was refused, the identity is kept for its live owner until that is back.
    FavourTheLive,
    /// Where it cannot be found out whether the live session answers, nobody takes over from it.
    UnknownIsNotSilence,
    /// To give an identity to one holder leaves every other one behind.
    GivingLeavesBehind,
    /// Holders of one installation are told apart by their boot, and those of one boot by their process.
    HoldersToldApart,
    /// A later agent key is durable before a HELLO is made with it.
    KeyDurable,
    /// What a process of the backend had is anybody's once its lease ran out.
    LeaseEnds,
    /// A permit counts from when the frame it names was sent.
    PermitCountsFromSending,
    /// A hole behind a restored database becomes a gap.
    GapAfterRollback,
    /// What lies at or below the committed position is dropped.
    PositionDropsRepeats,
    /// Deadlines and pauses are on a time line that does not step with the backend's wall clock.
    TimeLine,
}

impl Rule {
    /// Every rule.
    pub const ALL: &[Self] = &[
        Self::Permit,
        Self::PermitBoundToRun,
        Self::PermitConsumed,
        Self::KnownIdAnswered,
        Self::LowWaterForgetting,
        Self::AckAfterCommit,
        Self::JournalFirst,
        Self::DeadlineAtStart,
        Self::InterruptedIsIndeterminate,
        Self::ResultsResent,
        Self::EpochFence,
        Self::EpochRange,
        Self::LeftBehind,
        Self::DurableBeforeConfirm,
        Self::ProbeBeforeTakeOver,
        Self::FavourTheLive,
        Self::UnknownIsNotSilence,
        Self::GivingLeavesBehind,
        Self::HoldersToldApart,
        Self::KeyDurable,
        Self::LeaseEnds,
        Self::PermitCountsFromSending,
        Self::GapAfterRollback,
        Self::PositionDropsRepeats,
        Self::TimeLine,
    ];
}

/// Which rules are in force.
pub trait Rulebook: Copy + std::fmt::Debug {
    /// Whether `rule` is in force.
    #[must_use]
    fn keeps(self, rule: Rule) -> bool;
}

/// Every rule is in force: what the agents work by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Complete;

impl Rulebook for Complete {
    #[inline]
    fn keeps(self, _rule: Rule) -> bool {
        true
    }
}
