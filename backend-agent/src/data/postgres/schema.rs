//! The schema: made, brought up to date, and refused where it is not ours.

use std::borrow::Cow;

use sqlx::migrate::{Migrate as _, MigrateError, Migration, MigrationType, Migrator};
use sqlx::{PgConnection, Row as _};

use super::connection::Connection;
use super::error::Error;
use super::{Address, Role};
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
            return Err(refuse(format!(
                "{} migrations of the schema are not applied; run `viworks-backend-agent migrate`",
                missing.len()
            )));
        }
        let run = migrator().run_direct(None, inner, false).await;
        run.map_err(|error| failed("the schema cannot be brought up to date", &error))
    });
    connection.close();
    done
}

/// Refuses a database into which a site is being moved: a backend would be there before all of it is.
pub(super) fn check_moved(address: &Address) -> Result<(), Error> {
    const BEGUN: &str = "SELECT to_regclass('store_move') IS NOT NULL AS begun";
    const OPEN: &str =
        "SELECT count(*) AS open FROM store_move WHERE NOT finished AND table_name = ''";
    let connection = Connection::open(address)?;
    let done = connection.with(async |inner| {
        let begun = sqlx::query(BEGUN).fetch_one(&mut *inner).await?;
        if !begun.try_get::<bool, _>("begun")? {
            return Ok(());
        }
        let open = sqlx::query(OPEN).fetch_one(&mut *inner).await?;
        if open.try_get::<i64, _>("open")? == 0 {
            return Ok(());
        }
        Err(refuse(
            "a site is being moved into this database; run `viworks-backend-agent migrate-store` to its end".to_owned(),
        ))
    });
    connection.close();
    done
}

/// What a database still lacks.
///
/// # Errors
///
/// When the server cannot be reached, or the schema is not ours.
pub async fn pending(address: Address) -> Result<Vec<Pending>, Error> {
    let look = move || {
        let connection = Connection::open(&address)?;
        let missing = connection.with(async |inner| missing(inner).await);
        connection.close();
        missing
    };
    let looked = tokio::task::spawn_blocking(look).await;
    looked.map_err(|_panicked| Error::Panicked)?
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
    if tables > 0 && !(migrated && ours) {
        return Err(refuse(format!(
            "the database holds {tables} tables of something else; name an empty database"
        )));
    }
    let migrator = migrator();
    let applied = if migrated {
        let dirty = inner.dirty_version(&migrator.table_name).await;
        if let Some(version) = dirty.map_err(|error| failed("the schema cannot be read", &error))? {
            return Err(refuse(format!(
                "migration {version} was interrupted and has to be repaired by hand; see docs/operations/scaling.md"
            )));
        }
        let applied = inner.list_applied_migrations(&migrator.table_name).await;
        applied.map_err(|error| failed("the schema cannot be read", &error))?
    } else {
        Vec::new()
    };
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
    Ok(missing
        .map(|(version, description, _)| Pending {
            version: *version,
            description: (*description).to_owned(),
        })
        .collect())
}

fn refuse(why: String) -> Error {
    Error::Schema(why)
}

fn failed(what: &str, error: &MigrateError) -> Error {
    // What lies beneath says it; what lies above repeats it.
    let mut cause: &dyn std::error::Error = error;
    while let Some(beneath) = cause.source() {
        cause = beneath;
    }
    Error::Schema(format!("{what}: {cause}"))
}
