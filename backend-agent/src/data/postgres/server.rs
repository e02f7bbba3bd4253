//! Whether a server keeps what it commits, takes writes, and is new enough: asked on every connection, because the next
//! one may lead to another server than the last.

use sqlx::{PgConnection, Row as _};

use super::error::Error;

/// The oldest server that the statements are written for.
const OLDEST: i32 = 150_000;

/// What a server says of itself.
#[derive(Debug, Clone)]
struct Settings {
    version: i32,
    named: String,
    fsync: String,
    full_page_writes: String,
    synchronous_commit: String,
    encoding: String,
    is_read_only: bool,
    is_standby: bool,
}

/// Refuses a server that does not keep what it commits, takes no writes, or that the statements are too new for.
pub(super) async fn check(inner: &mut PgConnection) -> Result<(), Error> {
    const SETTINGS: &str = "\
        SELECT current_setting('server_version_num')::int4 AS version, current_setting('server_version') AS named,
               current_setting('fsync') AS fsync, current_setting('full_page_writes') AS pages,
               current_setting('server_encoding') AS encoding, current_setting('synchronous_commit') AS commits,
               current_setting('transaction_read_only') = 'on' AS read_only, pg_is_in_recovery() AS standby";
    let row = sqlx::query(SETTINGS).fetch_one(inner).await?;
    let settings = Settings {
        version: row.try_get("version")?,
        named: row.try_get("named")?,
        fsync: row.try_get("fsync")?,
        full_page_writes: row.try_get("pages")?,
        synchronous_commit: row.try_get("commits")?,
        encoding: row.try_get("encoding")?,
        is_read_only: row.try_get("read_only")?,
        is_standby: row.try_get("standby")?,
    };
    judge(&settings).map_or(Ok(()), |why| Err(Error::Unfit(why)))
}

/// Why a server cannot be used.
fn judge(settings: &Settings) -> Option<String> {
    let Settings {
        version,
        named,
        fsync,
        full_page_writes,
        synchronous_commit,
        encoding,
        is_read_only,
        is_standby,
    } = settings;
    if *version < OLDEST {
        return Some(format!(
            "PostgreSQL {named} is too old, 15 or later is needed"
        ));
    }
    if *is_standby {
        return Some("the server is a standby and takes no writes; name the primary".to_owned());
    }
    if *is_read_only {
        return Some(
            "the database takes no writes: default_transaction_read_only is on, for this user, this database or the \
             whole server; set it off"
                .to_owned(),
        );
    }
    if encoding != "UTF8" {
        return Some(format!(
            "the encoding of the database is {encoding}, but must be UTF8; make it anew with \
             `createdb -E UTF8 -T template0`"
        ));
    }
    let lost = "what it commits would not be safe";
    if synchronous_commit == "off" {
        return Some(format!("the server's synchronous_commit is off: {lost}"));
    }
    for (setting, found) in [("fsync", fsync), ("full_page_writes", full_page_writes)] {
        if found != "on" {
            return Some(format!(
                "the server's {setting} is {found}, but must be on: {lost}"
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_judged_by_what_it_says_of_itself() {
        let good = Settings {
            version: OLDEST,
            named: "15.0".to_owned(),
            fsync: "on".to_owned(),
            full_page_writes: "on".to_owned(),
            synchronous_commit: "local".to_owned(),
            encoding: "UTF8".to_owned(),
            is_read_only: false,
            is_standby: false,
        };
        assert_eq!(judge(&good), None);
        let refused = |change: fn(&mut Settings), why: &str| {
            let mut settings = good.clone();
            change(&mut settings);
            let said = judge(&settings).unwrap();
            assert!(said.contains(why), "{said}");
        };
        let old = |it: &mut Settings| (it.version, it.named) = (140_012, "14.12".to_owned());
        refused(old, "PostgreSQL 14.12 is too old");
        refused(|it| it.is_standby = true, "a standby");
        refused(|it| it.is_read_only = true, "takes no writes");
        refused(|it| it.encoding = "LATIN1".to_owned(), "createdb -E UTF8");
        refused(|it| it.fsync = "off".to_owned(), "fsync is off");
        let pages = |it: &mut Settings| it.full_page_writes = "off".to_owned();
        refused(pages, "full_page_writes is off");
        let commits = |it: &mut Settings| it.synchronous_commit = "off".to_owned();
        refused(commits, "synchronous_commit is off");
    }
}
