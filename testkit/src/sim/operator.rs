//! The commands that operators submit, and what a gateway's own catalogue says of them.

use viworks_common::code::RejectCode;
use viworks_common::id::CommandName;

use super::random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Must never run twice, and everybody knows.
    Once,
    Again,
    /// The backend believes that it may run twice; the gateway's catalogue says that it must not.
    Contested,
    /// Not in the gateway's catalogue.
    Unknown,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Once, Self::Again, Self::Contested, Self::Unknown];

    /// Draws one; those that must not run twice are the interesting ones.
    pub(crate) const fn draw(random: &mut Random) -> Self {
        match random.below(10) {
            0..5 => Self::Once,
            5..7 => Self::Again,
            7..9 => Self::Contested,
            _ => Self::Unknown,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Once => "sim.once",
            Self::Again => "sim.again",
            Self::Contested => "sim.contested",
            Self::Unknown => "sim.unknown",
        }
    }

    pub(crate) fn name(self) -> CommandName {
        self.text().parse().expect("a valid name")
    }

    pub(crate) fn of(name: &CommandName) -> Self {
        let known = Self::ALL
            .into_iter()
            .find(|kind| kind.text() == name.as_str());
        known.unwrap_or(Self::Unknown)
    }

    pub(crate) const fn believed_idempotent(self) -> bool {
        matches!(self, Self::Again | Self::Contested)
    }

    /// What the gateway's own catalogue says: whether it may run twice, or why it may not run at all.
    pub(crate) const fn verdict(self) -> Result<bool, RejectCode> {
        match self {
            Self::Once | Self::Contested => Ok(false),
            Self::Again => Ok(true),
            Self::Unknown => Err(RejectCode::NotAllowed),
        }
    }
}
