//! What can go wrong with the server, by what the caller can do about it.

use std::sync::Arc;

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use viworks_runtime::sqlite::Constraint;

use crate::data::StoreError;
use crate::protocol::Protocol;

/// What a server answers that is a standby, or was made read-only.
const READ_ONLY: &str = "25006";

/// The same, where the password is wrong or there is none.
const WRONG_PASSWORD: &str = "28P01";

/// What it answers where a table is not there.
const NO_TABLE: &str = "42P01";

/// What it answers to a division by zero.
const DIVISION_BY_ZERO: &str = "22012";

/// Classes of what it answers that speak of itself, of the connection, or of the schema as everybody meets it: to give
/// it something else does not help. Whatever else there is speaks of a value, of a row, or of a rule that somebody made
/// for them: of those there are many, `P0` (a plain RAISE), `22`, `23`, `38`, `39`, `44` and `54` among them, and
/// anybody who writes a trigger may think of one more, so what is left is not listed.
const OF_THE_SERVER: [&str; 23] = [
    // No error at all, or a statement that is none.
    "00", "01", "02", "03",
    // The connection; what it does not support, such as a statement that was prepared before a table changed; how
    // transactions begin.
    "08", "0A", "0B",
    // The state of a transaction; a prepared statement or a portal that somebody between us took away; who we are, and
    // which database and schema that is.
    "25", "26", "28", "34", "3D", "3F",
    // Transactions that meet; statements that do not fit the schema, and rights.
    "40", "42",
    // Memory, disks, connections; what is not in the state for this, or locked; an operator; the system beneath.
    "53", "55", "57", "58",
    // Snapshots that are too old; its configuration; another server that it asks; a fault of its own. Where it finds
    // damage (`XX001`, `XX002`), that is of a row or of an index: whoever does not need it goes on.
    "72", "F0", "HV", "XX000",
];

/// A failure of the server, of the way to it, or of what it was asked to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Two transactions waited for each other: nothing of it remains, and it can be done again.
    #[error("the transaction met another one: {}", said(.0))]
    Again(Arc<sqlx::Error>),
    /// The server gave up on a statement.
    #[error("the database server took too long: {}", said(.0))]
    Slow(Arc<sqlx::Error>),
    /// It gave up on a lock that somebody else holds.
    #[error("somebody else holds a lock in the database that a statement needs: {}", said(.0))]
    Held(Arc<sqlx::Error>),
    /// The server cannot be reached, is starting or stopping, takes no more connections or no writes, or the connection
    /// broke.
    #[error("the database server cannot be used at the moment: {}", said(.0))]
    Lost(Arc<sqlx::Error>),
    /// The connection broke while a transaction was committed: whether it was is not known.
    #[error("the connection broke before the server said whether it had committed: {}", said(.0))]
    Unknown(Arc<sqlx::Error>),
    /// The disk of the server is full.
    #[error("the database server has no room left: {}", said(.0))]
    Full(Arc<sqlx::Error>),
    /// A rule of the schema refused the statement.
    #[error("a constraint of the schema refused the statement: {kind:?} {name}: {}", said(.source_error))]
    Constraint {
        /// The kind of rule.
        kind: Constraint,
        /// Its name.
        name: String,
        /// As the server tells it.
        source_error: Arc<sqlx::Error>,
    },
    /// The password, the user or the database is not one that the server takes.
    #[error("the database server refuses us: {}; check the user, the database and the file of the password", said(.0))]
    Refused(Arc<sqlx::Error>),
    /// It wants a password, and there is none.
    #[error(
        "the database server wants a password, and no file of one is named: {}; name one as password_file in [store], \
         or by --password-file of migrate-store",
        said(.0)
    )]
    NoPassword(Arc<sqlx::Error>),
    /// The user of the database has not the rights that a statement needs.
    #[error(
        "the database server does not let this user do what is needed: {}; make it the owner of the tables, or grant it what it lacks",
        said(.0)
    )]
    Forbidden(Arc<sqlx::Error>),
    /// A statement needs something of the schema that is not there.
    #[error("the schema of the database lacks what a statement needs: {}", said(.0))]
    Lacking(Arc<sqlx::Error>),
    /// The schema lacks what statements need, or the user the rights: all of it, as it was looked for.
    #[error("{0}")]
    Lacks(String),
    /// The address of the database cannot be used.
    #[error("{0}")]
    Address(String),
    /// The server has not what promises rest on.
    #[error("{0}")]
    Unfit(String),
    /// The schema is not ours, is newer than this program, or cannot be brought up to date.
    #[error("{0}")]
    Schema(String),
    /// A site is being moved into this database, or backends have it and one shall be.
    #[error("the database is in use by {0}; a site is moved while no backend has its database")]
    InUse(String),
    /// This backend's lease of the database ran out, or another backend ended it.
    #[error("this backend's lease of the database ran out; it is renewed, or taken anew")]
    NoLease(Arc<sqlx::Error>),
    /// The job panicked; nothing of it remains.
    #[error("a database job panicked")]
    Panicked,
    /// There is no thread for a connection.
    #[error("the system has no thread for a connection: {0}")]
    NoThread(Arc<std::io::Error>),
    /// The store was closed.
    #[error("the database is closed")]
    Closed,
    /// Nobody took the job in time: all connections are busy, or none can be made.
    #[error("no connection to the database became free in time")]
    Busy,
    /// Anything else, most likely a fault of ours.
    #[error("the database failed: {}", said(.0))]
    Other(Arc<sqlx::Error>),
}

/// What happened, once: the library tells what the server said as an error and as its cause.
fn said(error: &Arc<sqlx::Error>) -> String {
    match error.as_database_error() {
        Some(database) => database.message().to_owned(),
        None => error.to_string(),
    }
}

fn code_of(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Whether the server says it of a statement, and goes on: no trigger can end the connection by what it raises.
fn is_of_a_statement(error: &sqlx::Error) -> bool {
    let said = error.as_database_error();
    let said = said.and_then(|said| said.try_downcast_ref::<PgDatabaseError>());
    said.is_some_and(|said| said.severity() == PgSeverity::Error)
}

impl Error {
    /// Whether a rule of this kind refused a statement.
    #[must_use]
    pub fn is_constraint(&self, wanted: Constraint) -> bool {
        matches!(self, Self::Constraint { kind, .. } if *kind == wanted)
    }

    /// Whether it is about the server and not about what it was given.
    #[must_use]
    pub const fn is_about_the_server(&self) -> bool {
        !matches!(
            self,
            Self::Other(_) | Self::Lacking(_) | Self::Constraint { .. }
        )
    }

    /// Whether it is about what a statement was given, or what it brought to light: the same with something else may
    /// work.
    #[must_use]
    pub fn is_about_what_it_was_given(&self) -> bool {
        if let Self::Other(source) = self {
            return code_of(source).is_some_and(|code| is_about_what_was_given(&code));
        }
        matches!(self, Self::Constraint { .. } | Self::Panicked)
    }

    /// Whether the server answered it to a statement, and there is nothing of what that was to do. Whatever code it
    /// has, a trigger may have raised it for some rows and for no others. Of the connection nobody knows that.
    #[must_use]
    pub fn is_an_answer(&self) -> bool {
        let broken = matches!(self, Self::Lost(_) | Self::Unknown(_) | Self::NoLease(_));
        !broken
            && self
                .beneath()
                .is_some_and(|source| is_of_a_statement(source))
    }

    /// By which code the server refused something, and by which rule of the schema, where that has a name: no value is
    /// in it, as there may be in what the server says.
    #[must_use]
    pub fn refused_by(&self) -> Option<String> {
        let code = code_of(self.beneath()?);
        if let Self::Constraint { name, .. } = self {
            let code = code.unwrap_or_default();
            return Some(format!("{code} {name}").trim().to_owned());
        }
        code
    }

    /// What may be told of it to those who may not read what is stored, where the server has answered a statement: its
    /// words may be a trigger's, and quote a row.
    #[must_use]
    pub fn without_words(&self) -> Option<String> {
        // That one is told in our words.
        if let Self::NoLease(_) = self {
            return None;
        }
        let source = self.beneath().filter(|source| is_of_a_statement(source))?;
        let what = if let Self::Forbidden(_) = self {
            "does not let this user do what is needed: make it the owner of the tables, or grant it what it lacks"
        } else if let Self::Lacking(_) = self {
            "lacks something that a statement needs"
        } else if let Self::Full(_) = self {
            "has no room left"
        } else if let Self::Lost(_) = self {
            "cannot be used at the moment"
        } else {
            "answers a statement by an error"
        };
        let code = code_of(source).unwrap_or_default();
        Some(format!(
            "the database server {what}; its code is {code}, its words are in the log"
        ))
    }

    /// As the library tells it.
    const fn beneath(&self) -> Option<&Arc<sqlx::Error>> {
        match self {
            Self::Again(source)
            | Self::Slow(source)
            | Self::Held(source)
            | Self::Lost(source)
            | Self::Unknown(source)
            | Self::Full(source)
            | Self::Constraint {
                source_error: source,
                ..
            }
            | Self::Refused(source)
            | Self::NoPassword(source)
            | Self::Forbidden(source)
            | Self::Lacking(source)
            | Self::NoLease(source)
            | Self::Other(source) => Some(source),
            Self::Lacks(_)
            | Self::Address(_)
            | Self::Unfit(_)
            | Self::Schema(_)
            | Self::InUse(_)
            | Self::Panicked
            | Self::NoThread(_)
            | Self::Closed
            | Self::Busy => None,
        }
    }

    /// Whether a statement named a table that is not there.
    #[must_use]
    pub fn is_missing_table(&self) -> bool {
        let Self::Lacking(source) = self else {
            return false;
        };
        code_of(source).as_deref() == Some(NO_TABLE)
    }

    /// Whether the operator has to change something before it can work; otherwise it passes by itself.
    #[must_use]
    pub const fn is_lasting(&self) -> bool {
        match self {
            Self::Refused(_)
            | Self::NoPassword(_)
            | Self::Forbidden(_)
            | Self::Lacking(_)
            | Self::Lacks(_)
            | Self::Address(_)
            | Self::Unfit(_)
            | Self::Schema(_) => true,
            Self::Again(_)
            | Self::Slow(_)
            | Self::Held(_)
            | Self::Lost(_)
            | Self::Unknown(_)
            | Self::Full(_)
            | Self::Constraint { .. }
            | Self::InUse(_)
            | Self::NoLease(_)
            | Self::Panicked
            | Self::NoThread(_)
            | Self::Closed
            | Self::Busy
            | Self::Other(_) => false,
        }
    }

    /// Whether nothing was heard that only a server of this kind says.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::Lost(source) if source.as_database_error().is_none())
    }

    /// Another kind of server is at the address.
    pub(super) fn of_another(found: Protocol) -> Self {
        Self::Unfit(format!(
            "what answers at that address is no PostgreSQL server but {found}; check host and port"
        ))
    }

    /// Whether the server said that it takes no writes.
    pub(super) fn takes_no_writes(&self) -> bool {
        let Self::Lost(source) = self else {
            return false;
        };
        code_of(source).as_deref() == Some(READ_ONLY)
    }

    /// The same, where no password was given.
    pub(super) fn without_password(self) -> Self {
        if let Self::Refused(source) = &self
            && code_of(source).as_deref() == Some(WRONG_PASSWORD)
        {
            return Self::NoPassword(Arc::clone(source));
        }
        self
    }

    /// The same about the beginning of a transaction, which divides by zero where there is no lease, see `Begin`.
    pub(super) fn while_beginning(self) -> Self {
        if let Self::Other(source) = &self
            && code_of(source).as_deref() == Some(DIVISION_BY_ZERO)
        {
            return Self::NoLease(Arc::clone(source));
        }
        self
    }

    /// The same about a commit: where the way to the server broke, nobody knows whether it was made.
    pub(super) fn while_committing(self) -> Self {
        // A rule that looks at the end only: the server says that there is nothing of it. Of a failure of its own, or
        // of the system beneath, that is not certain: one that comes behind the record of the commit is told in the
        // same way before the server ends itself by it.
        let has_failed = self.beneath().and_then(|source| code_of(source));
        let has_failed =
            has_failed.is_some_and(|code| code.starts_with("58") || code.starts_with("XX000"));
        if self.is_an_answer() && !has_failed {
            return self;
        }
        match self {
            Self::Lost(source) | Self::Other(source) => Self::Unknown(source),
            Self::Unfit(why) => Self::Unknown(Arc::new(sqlx::Error::Protocol(why))),
            known @ (Self::Again(_)
            | Self::Slow(_)
            | Self::Held(_)
            | Self::Unknown(_)
            | Self::Full(_)
            | Self::Constraint { .. }
            | Self::Refused(_)
            | Self::NoPassword(_)
            | Self::Forbidden(_)
            | Self::Lacking(_)
            | Self::Lacks(_)
            | Self::Address(_)
            | Self::Schema(_)
            | Self::InUse(_)
            | Self::NoLease(_)
            | Self::Panicked
            | Self::NoThread(_)
            | Self::Closed
            | Self::Busy) => known,
        }
    }

    /// The same about a statement that commits by itself: where the way to the server broke, nobody knows whether it
    /// did.
    pub(super) fn by_itself(self) -> Self {
        // That one is no answer to lose: the server said that it wrote nothing.
        if self.takes_no_writes() {
            return self;
        }
        if let Self::Lost(source) = self {
            Self::Unknown(source)
        } else {
            self
        }
    }

    fn of_database(error: &dyn sqlx::error::DatabaseError, source: Arc<sqlx::Error>) -> Self {
        let code = error.code().unwrap_or_default();
        let name = error.constraint().unwrap_or_default().to_owned();
        let constraint = |kind| Self::Constraint {
            kind,
            name: name.clone(),
            source_error: Arc::clone(&source),
        };
        // https://www.postgresql.org/docs/current/errcodes-appendix.html
        match &*code {
            "23505" if name.ends_with("_pkey") => constraint(Constraint::PrimaryKey),
            "23505" => constraint(Constraint::Unique),
            "23503" => constraint(Constraint::ForeignKey),
            "23502" => constraint(Constraint::NotNull),
            "23514" => constraint(Constraint::Check),
            // Serialization failure, deadlock.
            "40001" | "40P01" => Self::Again(source),
            // Lock timeout, statement timeout: it took long enough.
            "55P03" => Self::Held(source),
            "57014" => Self::Slow(source),
            "53100" | "53200" => Self::Full(source),
            // Unknown password, unknown user, unknown database.
            WRONG_PASSWORD | "28000" | "3D000" => Self::Refused(source),
            "42501" => Self::Forbidden(source),
            // No such table, column, function, object or schema, or no unique index for what ON CONFLICT names.
            NO_TABLE | "42703" | "42883" | "42704" | "3F000" | "42P10" => Self::Lacking(source),
            // It takes no writes, so another server has become the primary, or it does again soon.
            READ_ONLY => Self::Lost(source),
            code if is_the_last_word(code, is_of_a_statement(&source)) => Self::Lost(source),
            code if code.starts_with("08") => Self::Lost(source),
            _ => Self::Other(source),
        }
    }
}

/// Whether a server ends the connection by what it says, or lets none begin: it is shut down, has crashed, is starting
/// or a standby, ends one that idles, or has too many. After what it says of a statement it goes on, so that one of
/// these codes is what a trigger raised.
fn is_the_last_word(code: &str, is_of_a_statement: bool) -> bool {
    let codes = ["57P01", "57P02", "57P03", "57P05", "25P03", "53300"];
    codes.contains(&code) && !is_of_a_statement
}

/// Whether what a server answers speaks of what it was given, by
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn is_about_what_was_given(code: &str) -> bool {
    let of_the_server = OF_THE_SERVER.iter().any(|class| code.starts_with(class));
    !code.is_empty() && !of_the_server
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let source = Arc::new(error);
        let shared = Arc::clone(&source);
        if let sqlx::Error::Database(error) = &*source {
            return Self::of_database(error.as_ref(), shared);
        }
        if let Some(why) = unverified(&source) {
            return Self::Unfit(format!(
                "the database server could not be verified: {why}; where a private authority signed its certificate, name \
                 that as ca_file in [store], or by --ca-file of migrate-store"
            ));
        }
        if let sqlx::Error::Protocol(said) = &*source
            && is_another_product(said)
        {
            return Self::of_another(recognised(said));
        }
        if matches!(
            &*source,
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed
        ) {
            return Self::Lost(shared);
        }
        if matches!(&*source, sqlx::Error::Configuration(_)) {
            return Self::Refused(shared);
        }
        Self::Other(shared)
    }
}

/// Whether the first that was heard is nothing that a PostgreSQL server says. One that has no process left for us may
/// answer with the first letter of an error (0x45).
fn is_another_product(said: &str) -> bool {
    let answer = said.split_once("unexpected response from SSLRequest: ");
    answer.is_some_and(|(_, byte)| byte != "0x45")
}

/// What that was, where the one byte tells.
fn recognised(said: &str) -> Protocol {
    match said.rsplit(' ').next() {
        Some("0x48") => Protocol::Http,
        Some("0x15") => Protocol::Tls,
        _ => Protocol::Other,
    }
}

/// Why the certificate of the server is not accepted; the library tells it as an error of the connection.
fn unverified(error: &sqlx::Error) -> Option<String> {
    if let sqlx::Error::Tls(tls) = error {
        return Some(tls.to_string());
    }
    if let sqlx::Error::Io(io) = error
        && io.kind() == std::io::ErrorKind::InvalidData
    {
        return Some(io.to_string());
    }
    None
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Full(_) => Self::Full(Box::new(error)),
            Error::Unknown(_) => Self::Unknown(Box::new(error)),
            Error::Forbidden(_) | Error::Lacking(_) | Error::Lacks(_) => {
                Self::Unfit(Box::new(error))
            }
            Error::Held(_) => Self::Held(Box::new(error)),
            Error::Again(_)
            | Error::Slow(_)
            | Error::Lost(_)
            | Error::Constraint { .. }
            | Error::Refused(_)
            | Error::NoPassword(_)
            | Error::Address(_)
            | Error::Unfit(_)
            | Error::Schema(_)
            | Error::InUse(_)
            | Error::NoLease(_)
            | Error::Panicked
            | Error::NoThread(_)
            | Error::Closed
            | Error::Busy
            | Error::Other(_) => Self::Unavailable(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_goes_on_after_is_not_the_end_of_the_connection() {
        for code in ["57P01", "57P02", "57P03", "57P05", "25P03", "53300"] {
            assert!(is_the_last_word(code, false), "{code}");
            // It is no value that such a rule speaks of, as far as is known: that is for the telemetry of others to
            // tell.
            assert!(!is_the_last_word(code, true), "{code}");
            assert!(!is_about_what_was_given(code), "{code}");
        }
        for code in ["57014", "53200", "25006", "P0001"] {
            assert!(!is_the_last_word(code, false), "{code}");
        }
    }

    #[test]
    fn whatever_is_not_about_the_server_is_about_what_it_was_given() {
        for given in [
            // Values, rules, and what is too large.
            "22012", "22P02", "22P05", "23000", "23P01", "44000", "54000", "54001", "21000",
            // Triggers: a plain RAISE, an ASSERT, a function in another language, and codes of somebody's own.
            "P0000", "P0001", "P0004", "09000", "27000", "2F003", "38000", "39P01", "U0001",
            "VW001", "99999", // A row that is damaged, or an index.
            "XX001", "XX002",
        ] {
            assert!(is_about_what_was_given(given), "{given}");
        }
        for server in [
            "08006", "0A000", "25P02", "26000", "28000", "34000", "3D000", "40001", "42804",
            "53200", "53400", "55000", "55006", "57014", "57P04", "58030", "72000", "F0001",
            "HV00N", "XX000", "",
        ] {
            assert!(!is_about_what_was_given(server), "{server}");
        }
    }
}
