//! The schema: made, brought up to date, and refused where it is not ours.

use std::borrow::Cow;

use sqlx::migrate::{Migrate as _, MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Executor as _, PgConnection, Row as _};
use viworks_common::human;

use super::connection::Connection;
use super::error::Error;
use super::{Address, Role, fit};
use crate::data::Pending;

/// Version, what it does, and its statements. A file that was released is never changed.
const MIGRATIONS: &[(i64, &str, &str)] = &[(
    1,
    "create system of record",
    include_str!("../../../migrations/postgres/0001_create_system_of_record.sql"),
)];

fn migrator() -> Migrator {
    let migrations = MIGRATIONS.iter().map(|(version, description, sql)| {
        let kind = MigrationType::Simple;
        let sql = sqlx::SqlSafeStr::into_sql_str(*sql);
        Migration::new(*version, Cow::Borrowed(*description), kind, sql, false)
    });
    Migrator::with_migrations(migrations.collect())
}

/// Brings the schema up to date, or only looks whether it is.
///
/// A tool that works beside a backend leaves the schema of that as it is, and makes one only where there is none.
pub(super) fn prepare(address: &Address, migrate: bool, role: Role) -> Result<(), Error> {
    let connection = Connection::open(address)?;
    // A migration takes as long as there are rows.
    connection.batch("SET statement_timeout = 0")?;
    let done = connection.with_patience(async |inner| {
        let missing = missing(inner).await?;
        let is_new = missing.len() == MIGRATIONS.len();
        if missing.is_empty() || (role == Role::Beside && !is_new && !migrate) {
            return Ok(());
        }
        if !migrate {
            return Err(not_applied(missing.len()));
        }
        apply(inner).await
    });
    connection.close();
    done
}

/// Applies what is missing. Of several programs that do so at once one goes first, and the others wait for it as long
/// as it takes; what somebody else holds of the tables themselves is waited for as ever.
async fn apply(inner: &mut PgConnection) -> Result<(), Error> {
    let failed = |error| failed("the schema cannot be brought up to date", error);
    inner.execute(sqlx::raw_sql("SET lock_timeout = 0")).await?;
    // The server gives it back with the connection, which is for this alone.
    inner.lock().await.map_err(failed)?;
    inner.execute(sqlx::raw_sql("RESET lock_timeout")).await?;
    let mut migrator = migrator();
    migrator.set_locking(false);
    let run = migrator.run_direct(None, inner, false).await;
    run.map_err(failed)
}

/// Refuses a database into which a site is being moved, or was and nobody knows whether all of it is there.
pub(super) fn check_moved(connection: &Connection) -> Result<(), Error> {
    const BEGUN: &str = "SELECT to_regclass('store_move') IS NOT NULL AS begun";
    const STATE: &str = "\
        SELECT coalesce(bool_and(finished), false) AS finished, coalesce(bool_and(compared), false) AS compared
        FROM store_move WHERE table_name = ''";
    connection.with(async |inner| {
        let begun = sqlx::query(BEGUN).fetch_one(&mut *inner).await?;
        if !begun.try_get::<bool, _>("begun")? {
            return Ok(());
        }
        let state = sqlx::query(STATE).fetch_one(&mut *inner).await?;
        if !state.try_get::<bool, _>("finished")? {
            return Err(refuse(
                "a site is being moved into this database; run `viworks-backend-agent migrate-store` to its end"
                    .to_owned(),
            ));
        }
        if !state.try_get::<bool, _>("compared")? {
            return Err(refuse(
                "a site was moved into this database, and was not found to be equal; run `viworks-backend-agent \
                 migrate-store` to its end, and where it says that they differ, drop the database and begin with an \
                 empty one"
                    .to_owned(),
            ));
        }
        Ok(())
    })
}

/// What a start finds in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The migrations that it lacks.
    pub missing: Vec<Pending>,
    /// Whether it has a gateway.
    pub has_gateways: bool,
    /// What its schema lacks that nothing fails without.
    pub lacks: Option<String>,
    /// What recognises the master key that it belongs to; `None` before a backend claimed it.
    pub key_check: Option<[u8; 32]>,
}

/// Looks at a database as a start does, and changes nothing. With `migrate` false it has to be up to date.
///
/// # Errors
///
/// When no backend can start there.
pub async fn inspect(address: Address, migrate: bool) -> Result<Found, Error> {
    const HELD: &str = "\
        SELECT EXISTS (SELECT FROM gateways) AS has_gateways, (SELECT key_check FROM site WHERE one = 1) AS key_check";
    let look = move || {
        let connection = Connection::open_first(&address)?;
        let missing = connection.with(async |inner| missing(inner).await)?;
        let is_new = missing.len() == MIGRATIONS.len();
        if !missing.is_empty() && !migrate {
            return Err(not_applied(missing.len()));
        }
        check_moved(&connection)?;
        // A start applies what is missing first.
        let lacks = if missing.is_empty() {
            fit::look(&connection)?
        } else {
            None
        };
        let (has_gateways, key_check) = connection.with(async |inner| {
            if is_new {
                return Ok((false, None));
            }
            let held = sqlx::query(HELD).fetch_one(inner).await?;
            Ok((held.try_get("has_gateways")?, held.try_get("key_check")?))
        })?;
        connection.close();
        Ok(Found {
            missing,
            has_gateways,
            lacks,
            key_check,
        })
    };
    let looked = tokio::task::spawn_blocking(look).await;
    looked.map_err(|_panicked| Error::Panicked)?
}

fn not_applied(count: usize) -> Error {
    let (migrations, are) = if count == 1 {
        ("migration", "is")
    } else {
        ("migrations", "are")
    };
    refuse(format!(
        "{count} {migrations} of the schema {are} not applied; run `viworks-backend-agent migrate`"
    ))
}

/// The migrations that were not applied; refuses what is not a database of ours.
async fn missing(inner: &mut PgConnection) -> Result<Vec<Pending>, Error> {
    const TABLES: &str = "\
        SELECT (SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename <> '_sqlx_migrations') AS tables,
               to_regclass('_sqlx_migrations') IS NOT NULL AS migrated,
               to_regclass('gateways') IS NOT NULL AS ours, current_schema() AS schema, current_user::text AS who,
               coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create";
    let row = sqlx::query(TABLES).fetch_one(&mut *inner).await?;
    let (tables, migrated, ours): (i64, bool, bool) = (
        row.try_get("tables")?,
        row.try_get("migrated")?,
        row.try_get("ours")?,
    );
    if row.try_get::<Option<String>, _>("schema")?.is_none() {
        return Err(refuse(
            "there is no schema that this user can use".to_owned(),
        ));
    }
    let of_another = || {
        let tables = human::counted_all(tables.unsigned_abs(), "table", "tables");
        refuse(format!(
            "the database holds {tables} of something else; name an empty database"
        ))
    };
    if tables > 0 && !migrated {
        return Err(of_another());
    }
    let migrator = migrator();
    let applied = if migrated {
        let dirty = inner.dirty_version(&migrator.table_name).await;
        if let Some(version) = dirty.map_err(|error| failed("the schema cannot be read", error))? {
            return Err(refuse(format!(
                "migration {version} was interrupted and has to be repaired by hand; see docs/operations/scaling.md"
            )));
        }
        let applied = inner.list_applied_migrations(&migrator.table_name).await;
        applied.map_err(|error| failed("the schema cannot be read", error))?
    } else {
        Vec::new()
    };
    if tables > 0 && !ours && applied.is_empty() {
        return Err(of_another());
    }
    let newest = MIGRATIONS.iter().map(|(version, ..)| *version).max();
    for one in &applied {
        let known = migrator.iter().find(|known| known.version == one.version);
        match known {
            None => {
                return Err(refuse(format!(
                    "the database schema has version {}, this program knows versions up to {}; use the newer program",
                    one.version,
                    newest.unwrap_or_default(),
                )));
            }
            Some(known) if known.checksum != one.checksum => {
                return Err(refuse(format!(
                    "migration {} of the database is not the one of this program: the schema was made by something else",
                    one.version
                )));
            }
            Some(_) => {}
        }
    }
    let is_applied = |version| applied.iter().any(|one| one.version == version);
    let missing = MIGRATIONS
        .iter()
        .filter(|(version, ..)| !is_applied(*version));
    let missing: Vec<Pending> = missing
        .map(|(version, description, _)| Pending {
            version: *version,
            description: (*description).to_owned(),
        })
        .collect();
    if !missing.is_empty() && !row.try_get::<bool, _>("may_create")? {
        let (who, schema): (String, String) = (row.try_get("who")?, row.try_get("schema")?);
        return Err(refuse(format!(
            "the user {who} may make no tables in the schema {schema}; make {who} the owner of the database, or \
             GRANT CREATE ON SCHEMA {schema} TO {who}"
        )));
    }
    Ok(missing)
}

fn refuse(why: String) -> Error {
    Error::Schema(why)
}

/// What passes by itself stays what it is; only what is about the schema is for somebody to mend.
fn failed(what: &str, error: MigrateError) -> Error {
    let (MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) = error else {
        return refuse(format!("{what}: {error}"));
    };
    let known = Error::from(source);
    if known.is_about_the_server() {
        return known;
    }
    refuse(format!("{what}: {known}"))
}
