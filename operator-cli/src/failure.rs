//! What failed, the state left behind, the fix, and a code to look up; how it is printed is a view.

use viworks_api::{Problem, ProblemCode};
pub use viworks_common::text::in_full as chain;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::{self, FileError};

/// One failure, to be shown to a person or to a program.
#[derive(Debug)]
pub struct Failure {
    pub exit: ExitCode,
    /// What failed: a lower-case fragment.
    pub what: String,
    /// State left behind and the fix, a sentence each.
    pub details: Vec<String>,
    /// The backend's own words, when it had any.
    pub problem: Option<Box<Problem>>,
    /// Whether a request was sent and its answer is not known: it may have been carried out.
    pub unanswered: bool,
    /// Whether there is nobody to tell: who read standard output has gone, as `head` does.
    pub quiet: bool,
}

impl Failure {
    pub fn new(exit: ExitCode, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            details: Vec::new(),
            problem: None,
            unanswered: false,
            quiet: false,
        }
    }

    /// A request was sent, and its answer did not come or not come whole.
    pub fn unanswered(what: impl Into<String>) -> Self {
        Self {
            unanswered: true,
            ..Self::new(ExitCode::Unavailable, what)
        }
    }

    /// Who read standard output has gone: nothing is wrong, and nothing is left to say.
    pub fn reader_gone() -> Self {
        Self {
            quiet: true,
            ..Self::new(
                ExitCode::ReaderGone,
                "the reader of standard output has gone",
            )
        }
    }

    /// Whether the backend gave this reason.
    pub fn is(&self, code: ProblemCode) -> bool {
        self.problem
            .as_ref()
            .is_some_and(|problem| problem.code == code.code())
    }

    /// Wrong flags or arguments.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, what)
    }

    /// Adds a sentence if nobody knows whether the request was carried out.
    #[must_use]
    pub fn if_unanswered(self, detail: &str) -> Self {
        if self.unanswered {
            self.with(detail)
        } else {
            self
        }
    }

    /// Adds a sentence: the state left behind, or the fix.
    #[must_use]
    pub fn with(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let failure = |exit| Self::new(exit, error.to_string());
        // Whose file it is, is not known here; a disk that takes nothing is the same for each.
        if ExitCode::of_file(&error) != ExitCode::Unavailable {
            return failure(ExitCode::Error);
        }
        let failure = failure(ExitCode::Unavailable);
        match files::output_fix(&error) {
            Some(fix) => failure.with(format!("fix: {fix}")),
            None => failure,
        }
    }
}

impl From<FileError> for Failure {
    /// A file that was named and is of no use.
    fn from(error: FileError) -> Self {
        let failure = Self::new(error.exit_code(), chain(&error));
        match error.named_fix() {
            Some(fix) => failure.with(format!("fix: {fix}")),
            None => failure,
        }
    }
}
