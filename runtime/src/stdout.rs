//! Standard output of a program that is asked something: whoever reads it may go away early, as `head` does.
//!
//! One that was closed from the start (`>&-`) cannot be told from one that was thrown away: before `main`, `/dev/null`
//! is opened in its place.

use std::io::{self, Write};

/// Why something could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum PrintError {
    /// The reader has gone: nothing is wrong, and nothing is left to say. A program then ends without a word, with
    /// [`ExitCode::ReaderGone`](crate::exit::ExitCode::ReaderGone).
    #[error("the reader of the standard output has gone")]
    ReaderGone,
    /// The disk behind it is full, for example.
    #[error("failed to write to the standard output: {0}")]
    Failed(io::Error),
}

impl From<io::Error> for PrintError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::ReaderGone
        } else {
            Self::Failed(error)
        }
    }
}

/// Prints all of `text`, as it is.
///
/// # Errors
/// When the reader has gone, or nothing can be written.
pub fn print(text: &str) -> Result<(), PrintError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
