//! The store contract: one intent, one method, one transaction, its audit record included.
//!
//! Rules every implementation follows; the conformance suite in `tests/it/store.rs` holds them to it:
//! - `now` is an argument, a reading of the time line ([`viworks_common::timeline`]), whose differences are elapsed
//!   time;
//!   no method reads a clock. The audit log alone is in wall time, by what the stored anchor says of it.
//! - Every method takes the tenant, and every key contains it.
//! - Not found is `Ok(None)`. A row that contradicts the schema is [`StoreError::Inconsistent`].
//! - When a method has returned, what it did survives a power cut.
//! - What a session does carries its epoch; once a newer epoch is confirmed, or the gateway is revoked, the answer is
//!   [`StoreError::Fenced`] and nothing has changed.
//! - A command changes its state only as [`viworks_common::command::transition`] allows, guarded by the state it had.

mod contract;
mod intents;
pub mod ledger;
pub mod line;
pub mod model;
pub mod moving;
pub mod postgres;
pub mod sqlite;

use std::time::Duration;

use viworks_common::human;
use viworks_common::id::GatewayName;
pub(crate) use viworks_common::text::in_full;
use viworks_runtime::sqlite::Error as FileError;

pub use contract::{
    AuthorityStore, DispatchStore, EnrolmentStore, GatewayStore, InstanceStore, PinStore, RunStore,
    SessionStore, Store, TelemetryStore, UpkeepStore,
};
pub use intents::SqlStore;
pub use intents::link::{Doubt, Engine, Urgency};
pub use intents::merged::{Answer, Intent, Item};
pub use intents::tx::View;
pub use model::*;

/// Why the store did not do what was asked. Nothing has changed when an error is returned, except perhaps for
/// [`StoreError::Unknown`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something unique exists already.
    #[error("{what} exists already")]
    Conflict {
        /// What exists, such as ``gateway name "berlin-1"``.
        what: String,
    },
    /// Something that the request refers to does not exist or cannot be used.
    #[error("{what} does not exist or was revoked")]
    Missing {
        /// What is missing.
        what: String,
    },
    /// A bound on waiting commands was reached; the whole run was refused.
    #[error("{scope} already has its {}", human::counted_all(*.limit, "waiting command", "waiting commands"))]
    QueueFull {
        /// Whose bound it is: `the backend`, or the first gateway's name.
        scope: String,
        /// The gateways whose bound it is; empty when it is the backend's.
        gateways: Vec<GatewayName>,
        /// The bound.
        limit: u64,
        /// When trying again makes sense.
        retry_after: Duration,
    },
    /// As many reports are being made as may be at a time.
    #[error("too many reports are being made at the moment")]
    ReportsBusy,
    /// A question took longer than one may.
    #[error("the question took longer than one may")]
    TooLong(#[source] Cause),
    /// The session's epoch is no longer the current one: the session must end.
    #[error("the session was superseded or its gateway was revoked")]
    Fenced,
    /// The database cannot be reached or did not answer in time.
    #[error("the database is unavailable")]
    Unavailable(#[source] Cause),
    /// The schema lacks something, or the rights to use it: somebody has to put it back.
    #[error("the database is not as this program needs it")]
    Unfit(#[source] Cause),
    /// Somebody else holds a lock in the database for longer than it is waited for.
    #[error("the database is held up")]
    Held(#[source] Cause),
    /// The answer to a commit was lost: it may have happened, or not. Every intent is safe to repeat.
    #[error("the connection to the database broke before it said whether it had committed")]
    Unknown(#[source] Cause),
    /// The database cannot grow any further.
    #[error("the database is full")]
    Full(#[source] Cause),
    /// A row contradicts the schema: damage, or a fault of ours.
    #[error("{table}.{column} of row {row} holds what it cannot hold")]
    Inconsistent {
        /// Which table.
        table: &'static str,
        /// Which column.
        column: &'static str,
        /// Which row.
        row: String,
    },
}

impl StoreError {
    /// Whether the database could not be used, rather than that it refused something. The store has said so in the log,
    /// or a condition says it.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::Unknown(_) | Self::Unfit(_) | Self::Held(_)
        )
    }

    /// Whether it lies in what was to be written, or in rows that only this needs: the same for somebody else may work,
    /// and the same again does not.
    #[must_use]
    pub fn is_about_what_was_given(&self) -> bool {
        let Self::Unavailable(cause) = self else {
            return matches!(self, Self::Inconsistent { .. });
        };
        let file = cause.downcast_ref::<FileError>();
        let server = cause.downcast_ref::<postgres::Error>();
        file.is_some_and(FileError::is_about_what_it_was_given)
            || server.is_some_and(postgres::Error::is_about_what_it_was_given)
    }

    /// Whether the database answered it to what was to be written, took nothing of that, and speaks of itself: of its
    /// room, its schema, its rights. A rule that somebody made may say the same, of what was given.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        let Some(cause) = self.cause() else {
            return false;
        };
        let file = cause.downcast_ref::<FileError>();
        let server = cause.downcast_ref::<postgres::Error>();
        let is_an_answer = file.is_some_and(FileError::is_an_answer)
            || server.is_some_and(postgres::Error::is_an_answer);
        is_an_answer && !self.is_about_what_was_given()
    }

    /// By which code or rule the database refused what was given, without its words: they may quote a value, which not
    /// everybody may read who may know of a refusal.
    #[must_use]
    pub fn refused_by(&self) -> String {
        if let Self::Inconsistent { table, column, .. } = self {
            return format!("{table}.{column}");
        }
        let code = self.cause().and_then(|cause| {
            let file = cause.downcast_ref::<FileError>();
            let server = cause.downcast_ref::<postgres::Error>();
            let code = file.and_then(FileError::refused_by);
            code.or_else(|| server.and_then(postgres::Error::refused_by))
        });
        code.unwrap_or_else(|| "a fault of this program".to_owned())
    }

    /// All of it, for those who may not read what is stored, see [`without_words`].
    #[must_use]
    pub fn without_words(&self) -> String {
        match self.cause().and_then(code_alone) {
            Some(told) => format!("{self}: {told}"),
            None => in_full(self),
        }
    }

    const fn cause(&self) -> Option<&Cause> {
        match self {
            Self::TooLong(cause)
            | Self::Unavailable(cause)
            | Self::Unfit(cause)
            | Self::Held(cause)
            | Self::Unknown(cause)
            | Self::Full(cause) => Some(cause),
            Self::Conflict { .. }
            | Self::Missing { .. }
            | Self::QueueFull { .. }
            | Self::ReportsBusy
            | Self::Fenced
            | Self::Inconsistent { .. } => None,
        }
    }
}

/// What lies beneath a store error.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What a cause says to those who may not read what is stored: of what a database answers to a statement the code
/// alone, for its words may be a trigger's, and quote a row. They are in the log.
pub(crate) fn without_words(cause: &Cause) -> String {
    code_alone(cause).unwrap_or_else(|| in_full(&**cause))
}

/// The same, where there are such words.
fn code_alone(cause: &Cause) -> Option<String> {
    if let Some(server) = cause.downcast_ref::<postgres::Error>() {
        return server.without_words();
    }
    let file = cause.downcast_ref::<FileError>();
    let refused = file.filter(|error| error.is_an_answer())?;
    let code = refused.refused_by();
    let code = code.map_or_else(String::new, |code| format!("its code is {code}, "));
    Some(format!(
        "the database answers a statement by an error; {code}its words are in the log"
    ))
}

/// What every method answers.
pub type StoreResult<T> = Result<T, StoreError>;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use viworks_runtime::sqlite;

    use super::*;

    #[test]
    fn a_full_database_is_said_to_be_full_once() {
        let code = rusqlite::ffi::Error::new(13);
        let words = Some("database or disk is full".to_owned());
        let full = rusqlite::Error::SqliteFailure(code, words);
        let error = sqlite::Error::Full(Arc::new(full));
        assert_eq!(in_full(&error), "the database is full");
        assert_eq!(in_full(&StoreError::from(error)), "the database is full");
        let server = StoreError::Full(Box::new(std::io::Error::other("53100")));
        assert_eq!(in_full(&server), "the database is full: 53100");
    }

    #[test]
    fn what_a_database_says_of_a_statement_is_told_by_its_code() {
        for (number, is_in_doubt) in [(1811, false), (1, true)] {
            let code = rusqlite::ffi::Error::new(number);
            let words = Some("ACME has had its 4711".to_owned());
            let refused = rusqlite::Error::SqliteFailure(code, words);
            let error = StoreError::from(sqlite::Error::from(refused));
            assert!(in_full(&error).contains("ACME"));
            assert_eq!(error.is_in_doubt(), is_in_doubt);
            let told = error.without_words();
            let by = format!(
                "the database is unavailable: the database answers a statement by an error; its code is {number},"
            );
            assert!(told.starts_with(&by) && !told.contains("ACME"), "{told}");
        }
        let away = StoreError::Unavailable("Connection refused".into());
        assert_eq!(
            away.without_words(),
            "the database is unavailable: Connection refused"
        );
        assert!(!away.is_in_doubt());
    }
}
