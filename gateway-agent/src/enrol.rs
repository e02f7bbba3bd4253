//! Becoming a gateway: a key that is made here, a ticket that is proven and never sent, and files that are there whole
//! or not at all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_common::enrolment::{
    AgentSecrets, EnrolmentAnswer, Home, InvalidTicket, configuration,
};
use viworks_common::id::{LabelKey, check_label_value};
use viworks_common::limits::LABELS_MAX;
use viworks_common::pin::SpkiPin;
use viworks_common::time::Timestamp;
use viworks_common::{human, text};
use viworks_runtime::config::Problems;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::FileError;

use crate::config::Config;
use crate::outbound::door::DoorFailure;
use crate::outbound::failure::DialFailure;

mod exchange;
mod fit;
mod places;
mod staging;

pub use exchange::{Enrolled, Machine, redeem};
pub use places::Places;
pub use staging::{Found, Staging, Whole};

use staging::CONFIGURATION;

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
    #[error(
        "{} is there already and stays as it is: this machine is a gateway; to enrol it anew, run first: {aside}",
        path.display()
    )]
    Exists {
        /// What is there.
        path: PathBuf,
        /// What puts everything of that gateway aside.
        aside: String,
    },
    /// Something has the name that the request was to have.
    #[error(
        "{} is there already and stays as it is: name a new file with --request-out, or move the one that is there: it \
         may be a request whose answer is still to come",
        path.display()
    )]
    RequestTaken {
        /// What is there.
        path: PathBuf,
    },
    /// It was one.
    #[error(
        "{} is of the gateway that this machine was, and another one cannot go on with it; run first: {aside}",
        path.display()
    )]
    Formerly {
        /// What is there.
        path: PathBuf,
        /// What puts everything of that gateway aside.
        aside: String,
    },
    /// It is or was one, and its state cannot be renamed.
    #[error(
        "{} has the state of the gateway that this machine is or was, and something is mounted there, so it cannot be \
         put aside: stop that gateway's agent, unmount it or mount another file system there (a volume of its own in a \
         container), and run enroll again",
        path.display()
    )]
    Mounted {
        /// The folder of its state.
        path: PathBuf,
    },
    /// It is one, and its agent runs.
    #[error(
        "this machine is a gateway, and its agent runs with the state in {}{}: nothing may be moved under it; stop it, \
         and run enroll again",
        path.display(),
        holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    Running {
        /// The folder of its state.
        path: PathBuf,
        /// Its process, where that is known.
        holder: Option<u32>,
    },
    /// Another process is at it.
    #[error("another enroll is under way in {}: wait until it has ended", path.display())]
    UnderWay {
        /// The folder.
        path: PathBuf,
    },
    /// This user cannot say what runs here.
    #[error(
        "what may run on a gateway is for root to say, and {cause}: run enroll as root; or, to try things as a user of \
         your own, run first: {trial}"
    )]
    NotRoot {
        /// What is not root's.
        cause: String,
        /// What lets the user say so all the same.
        trial: String,
    },
    /// The package's folder is for root to make.
    #[error(
        "{cause}: run enroll as root; or, to try things as a user of your own, name a folder of your own with --out"
    )]
    NotRoots {
        /// What the system refuses.
        cause: String,
    },
    /// The catalogue that is there cannot be used.
    #[error(transparent)]
    Catalogue(#[from] Problems),
    /// The keyboard or the service manager ended it.
    #[error("interrupted; run enroll again, it goes on where it was")]
    Interrupted,
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
        "the server at {place} shows the key {seen}, which is not in the ticket: the ticket is of another backend, or of \
         before the server's key was replaced (ask for a new one: viworks ticket create), or something on the way ends \
         TLS; nothing was sent"
    )]
    OtherServer {
        /// Where.
        place: String,
        /// What it shows.
        seen: SpkiPin,
    },
    /// The clock is wrong.
    #[error(
        "this machine's clock is {} {} the backend's, and certificates of today are not good by both: set it \
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
    #[error("the backend at {place} did not answer: {reason}; run enroll again")]
    Unanswered {
        /// Where.
        place: String,
        /// How.
        reason: String,
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
        /// It knows that nothing came of it; otherwise only that it cannot say what did.
        for_certain: bool,
    },
    /// There was no answer to a redemption, by this attempt or one before.
    #[error(
        "{cause}; the ticket may have been used all the same: with that ticket enroll goes on as the same gateway"
    )]
    InDoubt {
        /// What the last attempt ended with.
        cause: Box<Self>,
    },
    /// A challenge of a later version, or of something else that has the key: this attempt asked for nothing yet. An
    /// earlier one may have, so the words are of this one alone: they stand within [`Self::InDoubt`] as well.
    #[error(
        "what {place} answers cannot be read ({reason}): it is a backend of a later version, or something else \
         answers; this attempt asked for nothing: run enroll of a gateway agent of the backend's version, or ask \
         whoever runs the backend"
    )]
    UnreadChallenge {
        /// Where.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The backend has made the gateway, and the answer is of a later version.
    #[error(
        "the backend at {place} has made the gateway, and what it answers cannot be read ({reason}), so it is of a \
         later version: run enroll of a gateway agent of that version, with the same ticket; it goes on as the same \
         gateway"
    )]
    UnreadAnswer {
        /// Where.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The backend has made the gateway, and its files cannot be put in place.
    #[error(
        "the backend has made the gateway, and its files cannot be put in place: {}; mend that, and run enroll again \
         with the same {by}: it goes on as the same gateway",
        text::in_full(cause)
    )]
    Unkept {
        /// What is in the way.
        cause: Box<Self>,
        /// By what the machine becomes a gateway, in one word.
        by: &'static str,
    },
    /// The backend has made the gateway, and no agent could start with what it says about it.
    #[error(
        "the backend at {place} has made the gateway, and what it answers cannot be used ({reason}): nothing of it was \
         written; tell whoever runs the backend, and then run enroll again with the same ticket: it goes on as the \
         same gateway"
    )]
    UnusableAnswer {
        /// Where.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An answer came by hand, and no request was made here.
    #[error(
        "no request was made here whose answer {} could be: run enroll --request-out FILE on this machine, have that \
         file signed (viworks-backend-agent pki sign-request), and come back with the answer to it",
        path.display()
    )]
    NoRequest {
        /// The answer.
        path: PathBuf,
    },
    /// An answer that came by hand does not fit.
    #[error(
        "the answer in {} cannot be used ({reason}): nothing of it was written; have the request of this machine \
         signed, and bring the answer to that",
        path.display()
    )]
    AnswerFile {
        /// The answer.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
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

impl From<DoorFailure> for EnrolError {
    fn from(failure: DoorFailure) -> Self {
        match failure {
            DoorFailure::OtherServer { place, seen } => Self::OtherServer { place, seen },
            DoorFailure::Unreached { place, failure } => Self::Unreached { place, failure },
            DoorFailure::Unanswered { place, reason } => Self::Unanswered { place, reason },
            DoorFailure::Refused {
                code,
                detail,
                retry_after,
                for_certain,
                // Those of a new gateway are in its answer.
                authorities: _,
            } => Self::Refused {
                code,
                detail,
                retry_after,
                for_certain,
            },
        }
    }
}

impl EnrolError {
    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Ticket(_)
            | Self::NoTicket(_)
            | Self::Url { .. }
            | Self::NoRequest { .. }
            | Self::AnswerFile { .. } => ExitCode::Usage,
            Self::Exists { .. }
            | Self::RequestTaken { .. }
            | Self::Formerly { .. }
            | Self::Mounted { .. }
            | Self::Running { .. }
            | Self::UnderWay { .. }
            | Self::Left { .. } => ExitCode::Conflict,
            Self::NotRoot { .. } | Self::NotRoots { .. } | Self::Catalogue(_) => ExitCode::Config,
            Self::File(error) => error.exit_code(),
            Self::Key(_) | Self::Clock { .. } => ExitCode::Error,
            Self::Interrupted => ExitCode::Interrupted,
            // Whoever answers in its place, it is not a backend of this version.
            Self::Unreached { .. }
            | Self::Unanswered { .. }
            | Self::UnreadChallenge { .. }
            | Self::UnreadAnswer { .. }
            | Self::UnusableAnswer { .. }
            | Self::OtherServer { .. }
            | Self::Forged { .. } => ExitCode::Unavailable,
            Self::Refused {
                retry_after: Some(_),
                ..
            } => ExitCode::Unavailable,
            Self::Refused { code, .. }
                if matches!(code.as_str(), "name_taken" | "gateway_connected") =>
            {
                ExitCode::Conflict
            }
            Self::Refused { .. } => ExitCode::Forbidden,
            Self::InDoubt { cause } | Self::Unkept { cause, .. } => cause.exit_code(),
        }
    }

    /// What to do about a disk, of which the error itself says no more than the operating system does.
    #[must_use]
    pub fn fix(&self) -> Option<&'static str> {
        if let Self::InDoubt { cause } | Self::Unkept { cause, .. } = self {
            return cause.fix();
        }
        let Self::File(error) = self else {
            return None;
        };
        if error.is_no_room() {
            return Some(
                "make room on its disk, and run enroll again with the same ticket, request or answer: it goes on where \
                 it was",
            );
        }
        error.named_fix()
    }

    /// Whether the backend has made the gateway, or may have all the same, so that the key must be kept.
    #[must_use]
    pub const fn may_be_done(&self) -> bool {
        matches!(
            self,
            Self::InDoubt { .. }
                | Self::UnreadAnswer { .. }
                | Self::Unkept { .. }
                | Self::UnusableAnswer { .. }
        )
    }

    /// What is in the way, without what to do about it, where it may pass by itself.
    #[must_use]
    pub fn cause(&self) -> String {
        if let Self::Unreached { place, failure } = self {
            format!("the backend at {place} is not reached: {failure}")
        } else if let Self::Unanswered { place, reason } = self {
            format!("the backend at {place} did not answer: {reason}")
        } else {
            self.to_string()
        }
    }

    /// How soon it may go well, where it may at all.
    fn again(&self) -> Option<Duration> {
        if let Self::Refused { retry_after, .. } = self {
            return *retry_after;
        }
        let may_pass = matches!(self, Self::Unreached { .. } | Self::Unanswered { .. });
        may_pass.then_some(Duration::ZERO)
    }

    /// The same of the files of a gateway that the backend has made; `by` is what that takes, in one word.
    #[must_use]
    pub fn unkept(self, by: &'static str) -> Self {
        // Anything else says itself what is to be done.
        if !matches!(self, Self::File(_)) {
            return self;
        }
        let cause = Box::new(self);
        Self::Unkept { cause, by }
    }

    /// The same behind attempts of which one may have been carried out.
    fn in_doubt(self) -> Self {
        // There is no doubt about that one.
        if self.may_be_done() {
            return self;
        }
        let cause = Box::new(self);
        Self::InDoubt { cause }
    }
}

/// What a new gateway was answered, by which its files are made.
#[derive(Debug)]
pub struct Papers {
    /// What it was answered.
    pub answer: EnrolmentAnswer,
    /// Its secrets.
    pub secrets: AgentSecrets,
    /// The door at which it enrolled; none where the answer was brought by hand.
    pub door: Option<String>,
}

impl Papers {
    /// The configuration that follows from the answer.
    fn configuration(&self, home: Home) -> String {
        let answer = &self.answer;
        let pins: Vec<SpkiPin> = answer.pins.pins.iter().copied().collect();
        configuration(
            &answer.url,
            self.door.as_deref(),
            &pins,
            answer.binding,
            home,
        )
    }

    /// Holds what the answer says against what an agent reads and people are shown, before anything of it is written:
    /// an authentic answer is still only what some server says.
    ///
    /// `request` is what the certificate was asked for with. The first and the last moment of the certificate's life.
    ///
    /// # Errors
    ///
    /// What cannot be used, on one line.
    pub fn examine(&self, request: &str) -> Result<(Timestamp, Timestamp), String> {
        let labels = &self.answer.labels;
        if labels.len() > LABELS_MAX {
            let labels = human::counted(labels.len(), "label", "labels");
            return Err(format!("it has {labels}, and at most {LABELS_MAX} can be"));
        }
        for (key, value) in labels {
            let key = key.parse::<LabelKey>().map(drop);
            key.and_then(|()| check_label_value(value))
                .map_err(|invalid| text::line(&invalid.to_string()).into_owned())?;
        }
        // The places of the package's service are no words of the backend.
        let written = self.configuration(Home::Folder);
        let read = Config::examine_draft(Path::new(CONFIGURATION), &written);
        read.map_err(|problems| text::line(&problems.in_one_line()).into_owned())?;
        fit::examine(&self.answer, fit::key_of(request))
    }
}
