//! The schema: made, brought up to date, and refused where it is not ours.

use std::time::Duration;

use sqlx::migrate::{Migrate as _, MigrateError};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use viworks_common::human;
use viworks_runtime::migration;
use viworks_runtime::migrations::{Applied, Migration, Mismatch, Standing};

use super::connection::Connection;
use super::error::Error;
use super::{Address, Role, fit};

/// A file that is on the main branch is never changed; a test has their checksums.
pub(super) const MIGRATIONS: &[Migration] = &[
    migration!(
        "../../../migrations/postgres",
        "0001_create_system_of_record.sql"
    ),
    migration!(
        "../../../migrations/postgres",
        "0002_forget_gaps_of_telemetry.sql"
    ),
    migration!(
        "../../../migrations/postgres",
        "0003_renew_certificates.sql"
    ),
    migration!(
        "../../../migrations/postgres",
        "0004_rotate_server_keys.sql"
    ),
    migration!("../../../migrations/postgres", "0005_replace_gateways.sql"),
    migration!(
        "../../../migrations/postgres",
        "0006_decide_about_forks.sql"
    ),
    migration!("../../../migrations/postgres", "0007_rotate_agent_keys.sql"),
    migration!(
        "../../../migrations/postgres",
        "0008_revoke_certificates.sql"
    ),
    migration!(
        "../../../migrations/postgres",
        "0009_say_which_master_keys.sql"
    ),
    migration!(
        "../../../migrations/postgres",
        "0010_keep_reissued_certificates.sql"
    ),
    migration!(
        "../../../migrations/postgres",
        "0011_keep_which_authorities_gateways_have.sql"
    ),
    migration!(
        "../../../migrations/postgres",
        "0012_say_which_authorities.sql"
    ),
    migration!(
        "../../../migrations/postgres",
        "0013_say_who_signed_certificates.sql"
    ),
    migration!(
        "../../../migrations/postgres",
        "0014_say_how_long_what_is_shown_is_good.sql"
    ),
];

/// How often a migration is tried that other transactions stand in the way of.
const TRIES: u32 = 5;

/// The pause after the first try; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(100);

/// What was applied, as the library noted it that made these databases first, and since which version of the schema a
/// program can go on after it.
const MAKE_TABLE: &str = "\
CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version        bigint PRIMARY KEY,
    description    text NOT NULL,
    installed_on   timestamptz NOT NULL DEFAULT now(),
    success        boolean NOT NULL,
    checksum       bytea NOT NULL,
    execution_time bigint NOT NULL
);
ALTER TABLE _sqlx_migrations ADD COLUMN IF NOT EXISTS usable_from bigint";

/// Without the column that earlier programs have not made, too.
const APPLIED: &str = "\
SELECT version, success, checksum, (to_jsonb(m) ->> 'usable_from')::bigint AS usable_from
FROM _sqlx_migrations AS m ORDER BY version";

const NOTE: &str = "\
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time, usable_from)
VALUES ($1, $2, true, $3, -1, $4)";

/// Brings the schema up to date, or only looks whether it is. Answers where it stood.
///
/// A tool that works beside a backend leaves the schema of that as it is, and makes one only where there is none.
pub(super) fn prepare(address: &Address, migrate: bool, role: Role) -> Result<Standing, Error> {
    let connection = Connection::open(address)?;
    // A migration takes as long as there are rows.
    connection.batch("SET statement_timeout = 0")?;
    let done = connection.with_patience(async |inner| {
        let standing = look(inner).await?;
        let missing = &standing.missing;
        let is_new = standing.version.is_none();
        if missing.is_empty() || (role == Role::Beside && !is_new && !migrate) {
            return Ok(standing);
        }
        if !migrate {
            return Err(not_applied(missing.len()));
        }
        apply(inner).await?;
        Ok(standing)
    });
    connection.close();
    done
}

/// Says that the program is not the latest that has used a database, where it is not.
pub(super) fn tell(standing: &Standing) {
    if standing.is_ahead {
        tracing::info!(
            schema = standing.version,
            "a later version has added to the database; this program goes on with what it knows of it"
        );
    }
}

/// Applies what is missing. Of several programs that do so at once one goes first, and the others wait for it as long
/// as it takes; what somebody else holds of the tables themselves is waited for as ever.
async fn apply(inner: &mut PgConnection) -> Result<(), Error> {
    inner.execute(sqlx::raw_sql("SET lock_timeout = 0")).await?;
    // The library's own lock, which the programs before took. The server gives it back with the connection, which is
    // for this alone.
    inner.lock().await.map_err(|error| {
        let MigrateError::Execute(source) = error else {
            return refuse(format!("the schema cannot be brought up to date: {error}"));
        };
        Error::from(source)
    })?;
    inner.execute(sqlx::raw_sql("RESET lock_timeout")).await?;
    inner
        .execute(sqlx::raw_sql(MAKE_TABLE))
        .await
        .map_err(failed)?;
    // Whoever went first has done it.
    for migration in look(inner).await?.missing {
        let (mut tries, mut pause) = (1, PAUSE);
        while let Err(error) = apply_one(inner, &migration).await.map_err(failed) {
            // Backends that run go on with what they do to the same tables.
            let passes = matches!(error, Error::Again(_) | Error::Held(_));
            if !passes || tries == TRIES {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            (tries, pause) = (tries + 1, pause * 2);
        }
    }
    Ok(())
}

/// Applies a migration and notes it, both or neither.
async fn apply_one(inner: &mut PgConnection, migration: &Migration) -> Result<(), sqlx::Error> {
    let mut both = inner.begin().await?;
    both.execute(sqlx::raw_sql(migration.sql)).await?;
    let note = sqlx::query(NOTE)
        .bind(migration.version())
        .bind(migration.description())
        .bind(migration.checksum())
        .bind(migration.usable_from());
    note.execute(&mut *both).await?;
    both.commit().await
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
#[derive(Debug, Clone)]
pub struct Found {
    /// Where its schema stands.
    pub standing: Standing,
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
        let standing = connection.with(async |inner| look(inner).await)?;
        let missing = &standing.missing;
        let is_new = standing.version.is_none();
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
            standing,
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

/// What was applied, against what this program has; refuses what is not a database of ours.
async fn look(inner: &mut PgConnection) -> Result<Standing, Error> {
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
    let applied = if migrated {
        applied(inner).await?
    } else {
        Vec::new()
    };
    // Others note their migrations in a table of that name, too.
    let is_known = |one: &Applied| MIGRATIONS.iter().any(|own| own.checksum() == one.checksum);
    if tables > 0 && !ours && !applied.iter().any(is_known) {
        return Err(of_another());
    }
    let standing = Standing::of(MIGRATIONS, &applied).map_err(mismatched)?;
    if !standing.missing.is_empty() && !row.try_get::<bool, _>("may_create")? {
        let (who, schema): (String, String) = (row.try_get("who")?, row.try_get("schema")?);
        return Err(refuse(format!(
            "the user {who} may make no tables in the schema {schema}; make {who} the owner of the database, or \
             GRANT CREATE ON SCHEMA {schema} TO {who}"
        )));
    }
    Ok(standing)
}

async fn applied(inner: &mut PgConnection) -> Result<Vec<Applied>, Error> {
    let mut applied = Vec::new();
    for row in sqlx::query(APPLIED).fetch_all(inner).await? {
        applied.push(Applied {
            version: row.try_get("version")?,
            finished: row.try_get("success")?,
            checksum: row.try_get("checksum")?,
            usable_from: row.try_get("usable_from")?,
        });
    }
    Ok(applied)
}

fn mismatched(mismatch: Mismatch) -> Error {
    refuse(match mismatch {
        Mismatch::Unfinished(version) => format!(
            "migration {version} was interrupted and has to be repaired by hand; see docs/operations/scaling.md"
        ),
        Mismatch::Changed(version) => format!(
            "migration {version} of the database is not the one of this program: the schema was made by something else"
        ),
        Mismatch::TooNew { .. } | Mismatch::Overtaken { .. } | Mismatch::Missing(_) => {
            mismatch.to_string()
        }
    })
}

fn refuse(why: String) -> Error {
    Error::Schema(why)
}

/// What passes by itself stays what it is; only what is about the schema is for somebody to mend.
fn failed(source: sqlx::Error) -> Error {
    let known = Error::from(source);
    if known.is_about_the_server() {
        return known;
    }
    refuse(format!("the schema cannot be brought up to date: {known}"))
}
