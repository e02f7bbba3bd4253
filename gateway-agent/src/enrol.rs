//! Becoming a gateway: a key that is made here, a ticket that is proven and never sent, and files that are there whole
//! or not at all.

use std::path::PathBuf;
use std::time::Duration;

use viworks_common::enrolment::{AgentSecrets, EnrolmentAnswer, InvalidTicket};
use viworks_common::human;
use viworks_common::pin::SpkiPin;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::FileError;

use crate::outbound::failure::DialFailure;

mod exchange;
mod staging;

pub use exchange::{Enrolled, Machine, redeem};
pub use staging::{Stage, Staging};

/// Why this machine is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The text is no ticket.
    #[error(transparent)]
    Ticket(#[from] InvalidTicket),
    /// The ticket cannot be read.
    #[error("the ticket cannot be read: {0}")]
    NoTicket(String),
    /// A file or folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is one already.
    #[error("{} is there already and stays as it is: this machine is a gateway; move its files away to enrol it anew", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// The key cannot be made.
    #[error("no key and certificate request could be made: {0}")]
    Key(#[from] rcgen::Error),
    /// What was begun cannot be gone on with.
    #[error("what an earlier enroll left in {} cannot be used: {reason}; remove that folder and run enroll again", path.display())]
    Left {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The ticket's door has an address that cannot be used.
    #[error(
        "the ticket names {url:?}, which is no address of a door: ask for a new one (viworks ticket create)"
    )]
    Url {
        /// What it names.
        url: String,
    },
    /// Somebody else answers there.
    #[error(
        "the server at {place} shows the key {seen}, which is not in the ticket: the ticket is of another backend, or \
         something on the way ends TLS; nothing was sent, ask whoever runs the backend"
    )]
    OtherServer {
        /// Where.
        place: String,
        /// What it shows.
        seen: SpkiPin,
    },
    /// The clock is wrong.
    #[error(
        "this machine's clock is {} {} the backend's, and a certificate of today would not be good by both: set it \
         (timedatectl set-ntp true), and run enroll again",
        human::span(*off),
        if *ahead { "ahead of" } else { "behind" }
    )]
    Clock {
        /// By how much.
        off: Duration,
        /// In which direction.
        ahead: bool,
    },
    /// The door is not reached.
    #[error("the backend at {place} is not reached: {failure}; run enroll again once it is")]
    Unreached {
        /// Where.
        place: String,
        /// Why.
        failure: DialFailure,
    },
    /// The connection broke.
    #[error(
        "the backend at {place} did not answer: {reason}; run enroll again, it goes on where it was"
    )]
    Unanswered {
        /// Where.
        place: String,
        /// How.
        reason: String,
        /// The ticket may have been redeemed.
        sent: bool,
    },
    /// The backend said no.
    #[error("the backend refuses: {detail}")]
    Refused {
        /// The word for programs.
        code: String,
        /// One sentence with the fix.
        detail: String,
        /// When it may be tried again, where that helps.
        retry_after: Option<Duration>,
    },
    /// The answer is not the backend's that made the ticket.
    #[error(
        "the answer of {place} is not authentic: something on the way has changed it; run enroll again elsewhere, or ask whoever runs the backend"
    )]
    Forged {
        /// Where.
        place: String,
    },
}

impl EnrolError {
    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Ticket(_) | Self::NoTicket(_) | Self::Url { .. } => ExitCode::Usage,
            Self::Exists { .. } | Self::Left { .. } => ExitCode::Conflict,
            Self::File(error) => error.exit_code(),
            Self::Key(_) | Self::Forged { .. } | Self::OtherServer { .. } | Self::Clock { .. } => {
                ExitCode::Error
            }
            Self::Unreached { .. } | Self::Unanswered { .. } => ExitCode::Unavailable,
            Self::Refused {
                retry_after: Some(_),
                ..
            } => ExitCode::Unavailable,
            Self::Refused { .. } => ExitCode::Forbidden,
        }
    }

    /// Whether the backend may have made the gateway all the same, so that the key must be kept.
    #[must_use]
    pub const fn may_be_done(&self) -> bool {
        matches!(
            self,
            Self::Unanswered { sent: true, .. } | Self::Forged { .. }
        )
    }

    /// Whether it may go well a moment later.
    fn again(&self) -> Option<Duration> {
        if let Self::Refused { retry_after, .. } = self {
            return *retry_after;
        }
        matches!(self, Self::Unanswered { .. }).then_some(Duration::from_secs(1))
    }

    /// The same behind other attempts, of which one may have been carried out.
    fn after(mut self, sent_before: bool) -> Self {
        if let Self::Unanswered { sent, .. } = &mut self {
            *sent |= sent_before;
        }
        self
    }
}

/// The files of a new gateway by what it was answered.
#[derive(Debug)]
pub struct Papers {
    /// What it was answered.
    pub answer: EnrolmentAnswer,
    /// Its secrets.
    pub secrets: AgentSecrets,
}
