//! Whether a database has all that this program needs in it: what its migrations made, and the rights to use it.
//!
//! A server says of each statement what that lacks, and of the others nothing. Whoever looks after a site wants to know
//! all of it, before a gateway or an operator finds out.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::Row as _;
use viworks_common::human;
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock as _, SystemClock};

use super::connection::Connection;
use super::error::Error;

/// What there has to be, as a fresh database has it; a test holds it against one.
const EXPECTED: &str = include_str!("../../../migrations/postgres/schema.txt");

/// What there is. Days of telemetry are made as they come; whatever else somebody added is theirs.
const FOUND: &str = r"
WITH tables AS (
    SELECT c.oid, c.relname::text AS name, c.relowner FROM pg_class AS c
    WHERE c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid)
      AND c.relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname = ANY (current_schemas(false)))
      AND c.relname !~ '^telemetry_[0-9]{4}_')
SELECT 'table' AS kind, name AS of, '' AS what FROM tables
UNION ALL SELECT 'column', t.name, a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
    FROM tables AS t JOIN pg_attribute AS a ON a.attrelid = t.oid WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT 'default', t.name, a.attname
    FROM tables AS t JOIN pg_attribute AS a ON a.attrelid = t.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND (a.atthasdef OR a.attidentity <> '')
UNION ALL SELECT 'not null', t.name, a.attname
    FROM tables AS t JOIN pg_attribute AS a ON a.attrelid = t.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull
UNION ALL SELECT CASE WHEN i.indisunique THEN 'key' ELSE 'index' END, t.name,
        replace(pg_get_indexdef(i.indexrelid), quote_ident(current_schema()) || '.', '')
    FROM tables AS t JOIN pg_index AS i ON i.indrelid = t.oid
    WHERE i.indisvalid AND i.indisready AND i.indislive
UNION ALL SELECT 'constraint', t.name, r.conname::text
    FROM tables AS t JOIN pg_constraint AS r ON r.conrelid = t.oid WHERE r.contype IN ('c', 'f') AND r.convalidated
UNION ALL SELECT 'trigger', t.name, g.tgname::text
    FROM tables AS t JOIN pg_trigger AS g ON g.tgrelid = t.oid WHERE NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
UNION ALL SELECT 'right', t.name, verb
    FROM tables AS t, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS verb
    WHERE has_table_privilege(t.oid, verb)
UNION ALL SELECT 'right', t.name, 'ownership'
    FROM tables AS t WHERE t.name = 'telemetry' AND pg_has_role(t.relowner, 'USAGE')
UNION ALL SELECT 'right', 'the schema', 'CREATE' WHERE has_schema_privilege(current_schema(), 'CREATE')";

/// What it takes to make and drop the days of telemetry.
const OWNERSHIP: &str = "ownership";

/// How many missing things are named; of more their number is told.
const NAMED: usize = 6;

/// How often it is looked where nothing gave cause to: a look takes a few milliseconds of the server's.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// One thing that a database has: its kind, the table that it belongs to, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Fact {
    kind: String,
    of: String,
    what: String,
}

impl Fact {
    /// Reads a line of what is expected.
    fn read(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, '|').map(str::to_owned);
        Some(Self {
            kind: parts.next()?,
            of: parts.next()?,
            what: parts.next()?,
        })
    }

    /// Whether statements fail without it; otherwise it makes them fast, or refuses what no statement should do.
    fn is_needed(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "table" | "column" | "default" | "key" | "right"
        )
    }

    /// How a person is told of it, with the statement that puts it back where one does; `user` is whose rights they are.
    fn told(&self, user: &str) -> String {
        let Self { kind, of, what } = self;
        match (kind.as_str(), what.as_str()) {
            ("table", _) => format!("the table {of}"),
            ("column", _) => format!("the column {of}.{what}"),
            ("default", _) => format!("the default of the column {of}.{what}"),
            ("not null", _) => format!("NOT NULL of the column {of}.{what}"),
            ("key" | "index", _) => format!("an index of {of} ({what})"),
            ("right", OWNERSHIP) => format!("the ownership of {of} (ALTER TABLE {of} OWNER TO {user})"),
            ("right", "CREATE") => format!("the right {what} on {of} of the tables"),
            ("right", _) => format!("the right {what} on {of} (GRANT {what} ON {of} TO {user})"),
            _ => format!("the {kind} {what} of {of}"),
        }
    }
}

/// What a database that can be used lacks all the same: what makes it fast, and what keeps mistakes out. `None` where
/// it lacks nothing.
pub(super) type Flaw = Option<String>;

/// Looks at all of it.
///
/// # Errors
/// [`Error::Lacks`] where statements fail because of what is not there, with all of that.
pub(super) fn look(connection: &Connection) -> Result<Flaw, Error> {
    let (found, user) = connection.with(async |inner| {
        let mut found = BTreeSet::new();
        for row in sqlx::query(FOUND).fetch_all(&mut *inner).await? {
            found.insert(Fact {
                kind: row.try_get("kind")?,
                of: row.try_get("of")?,
                what: row.try_get("what")?,
            });
        }
        let user = sqlx::query("SELECT quote_ident(current_user) AS who");
        let user: String = user.fetch_one(inner).await?.try_get("who")?;
        Ok((found, user))
    })?;
    let expected = EXPECTED.lines().filter_map(Fact::read).collect();
    let (needed, others) = lacking(&expected, &found);
    if needed.is_empty() {
        let told = || told("the schema of the database", &others, &user);
        return Ok((!others.is_empty()).then(told));
    }
    let is_right = |fact: &&Fact| fact.kind == "right";
    let (rights, things): (Vec<&Fact>, Vec<&Fact>) = needed.into_iter().partition(is_right);
    let mut said = Vec::new();
    if !things.is_empty() {
        said.push(format!(
            "{}; make it again as the migrations did, or restore the database from a backup",
            told("the schema of the database", &things, &user)
        ));
    }
    if !rights.is_empty() {
        said.push(format!(
            "{}; or make {user} the owner of the tables",
            told(&format!("the user {user}"), &rights, &user)
        ));
    }
    Err(Error::Lacks(said.join("; ")))
}

/// What is expected and not there: what statements need, and the rest. Of a table that is not there nothing else is
/// told.
fn lacking<'e>(
    expected: &'e BTreeSet<Fact>,
    found: &'e BTreeSet<Fact>,
) -> (Vec<&'e Fact>, Vec<&'e Fact>) {
    let missing: Vec<&Fact> = expected.difference(found).collect();
    let gone: BTreeSet<&str> = missing
        .iter()
        .filter(|fact| fact.kind == "table")
        .map(|fact| fact.of.as_str())
        .collect();
    let missing = missing
        .into_iter()
        .filter(|fact| fact.kind == "table" || !gone.contains(fact.of.as_str()));
    missing.partition(|fact| fact.is_needed())
}

fn told(who: &str, missing: &[&Fact], user: &str) -> String {
    let named = missing.iter().take(NAMED).map(|fact| fact.told(user));
    let named: Vec<String> = named.collect();
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(
            " and {}",
            human::counted(more, "other thing", "other things")
        ),
    };
    format!("{who} lacks {}{more}", named.join(", "))
}

/// Who keeps others from what they lock: transactions that have been open for longer than a lock is waited for and are
/// no reading of ours. `None` where there are none.
///
/// # Errors
/// When the server does not say it.
pub(super) fn holders(connection: &Connection) -> Result<Option<String>, Error> {
    const HOLDERS: &str = "\
        SELECT a.pid, coalesce(nullif(a.application_name, ''), 'an unnamed program') AS program,
               coalesce(a.usename::text, 'nobody') AS who, string_agg(DISTINCT c.relname::text, ', ') AS tables,
               extract(epoch FROM clock_timestamp() - min(a.xact_start))::bigint AS seconds
        FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation AND c.relkind IN ('r', 'p')
        JOIN pg_stat_activity AS a ON a.pid = l.pid
        WHERE l.granted AND l.mode <> 'AccessShareLock' AND l.pid <> pg_backend_pid()
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
          AND (a.xact_start IS NULL OR a.xact_start < clock_timestamp() - interval '5 seconds')
        GROUP BY a.pid, a.application_name, a.usename, a.xact_start ORDER BY a.xact_start LIMIT 3";
    connection.with(async |inner| {
        let mut all = Vec::new();
        for row in sqlx::query(HOLDERS).fetch_all(inner).await? {
            let (pid, program, who, tables): (i32, String, String, String) = (
                row.try_get("pid")?,
                row.try_get("program")?,
                row.try_get("who")?,
                row.try_get("tables")?,
            );
            let seconds: Option<i64> = row.try_get("seconds")?;
            let since = seconds.map_or_else(String::new, |seconds| format!(" for {seconds} s"));
            all.push(format!(
                "process {pid} of the server ({program}, user {who}) has had locks of {tables}{since}"
            ));
        }
        Ok((!all.is_empty()).then(|| all.join("; ")))
    })
}

/// When it was looked last, and what was found.
#[derive(Debug, Default)]
pub(super) struct Watch(Mutex<Option<(Monotonic, Result<Flaw, Error>)>>);

impl Watch {
    /// What was found, where that is recent enough and nothing was lacking.
    pub(super) fn known(&self) -> Option<Flaw> {
        let now = SystemClock.now();
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((at, Ok(flaw))) if now.saturating_since(*at) < LOOK_EVERY => Some(flaw.clone()),
            Some(_) | None => None,
        }
    }

    /// Remembers it.
    pub(super) fn note(&self, found: Result<Flaw, Error>) -> Result<Flaw, Error> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((SystemClock.now(), found.clone()));
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use viworks_testkit::postgres;

    use super::*;
    use crate::data::UpkeepStore as _;
    use crate::data::postgres::{Address, PostgresStore, Role};

    /// Every fact of a fresh database.
    async fn fresh(database: &str) -> Option<BTreeSet<Fact>> {
        let server = postgres::server()?;
        server.make_empty(database);
        let address = Address::parse(&server.url(database), None, None).unwrap();
        let store = PostgresStore::open(address.clone(), Role::Beside, true);
        store.await.unwrap().close().await;
        let found = tokio::task::spawn_blocking(move || {
            let connection = Connection::open(&Arc::new(address)).unwrap();
            let found = connection.with(async |inner| {
                let mut found = BTreeSet::new();
                for row in sqlx::query(FOUND).fetch_all(&mut *inner).await? {
                    found.insert(Fact {
                        kind: row.try_get("kind")?,
                        of: row.try_get("of")?,
                        what: row.try_get("what")?,
                    });
                }
                Ok(found)
            });
            connection.close();
            found.unwrap()
        });
        let found = found.await.unwrap();
        server.drop(database);
        Some(found)
    }

    /// What the program does with each table, as its sources say.
    fn verbs() -> BTreeMap<String, BTreeSet<&'static str>> {
        let mut verbs: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data")];
        let mut texts = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                let name = entry.file_name().into_string().unwrap();
                if path.is_dir() && name != "sqlite" && name != "moving" {
                    folders.push(path);
                } else if name.ends_with(".rs") && !matches!(name.as_str(), "moving.rs" | "fit.rs")
                {
                    texts.push(fs::read_to_string(path).unwrap());
                }
            }
        }
        for (beginning, verb) in [
            ("INSERT INTO ", "INSERT"),
            ("COPY ", "INSERT"),
            ("UPDATE ", "UPDATE"),
            ("DELETE FROM ", "DELETE"),
        ] {
            for piece in texts.iter().flat_map(|text| text.split(beginning).skip(1)) {
                let table: String = piece
                    .chars()
                    .take_while(|letter| letter.is_ascii_lowercase() || *letter == '_')
                    .collect();
                let of = verbs.entry(table).or_default();
                of.insert(verb);
                let rest = piece.split("INSERT INTO ").next().unwrap_or_default();
                let statement = rest.split("\";").next().unwrap_or_default();
                if verb == "INSERT" && statement.contains("DO UPDATE") {
                    of.insert("UPDATE");
                }
            }
        }
        verbs
    }

    /// With `VIWORKS_WRITE_SCHEMA` set, the list is written anew.
    #[tokio::test]
    async fn what_is_expected_is_what_the_migrations_make_and_no_right_beyond_what_is_used() {
        let Some(found) = fresh("viworks_fit").await else {
            return;
        };
        let verbs = verbs();
        let is_used = |fact: &&Fact| {
            let used = verbs
                .get(&fact.of)
                .is_some_and(|of| of.contains(fact.what.as_str()));
            let is_verb = matches!(fact.what.as_str(), "INSERT" | "UPDATE" | "DELETE");
            fact.kind != "right" || !is_verb || used
        };
        // The library's table is read only, and what it has is the library's.
        let is_ours = |fact: &&Fact| {
            fact.of != "_sqlx_migrations" || fact.kind == "right" && fact.what == "SELECT"
        };
        let used = found.iter().filter(is_used).filter(is_ours);
        let lines: Vec<String> = used
            .map(|Fact { kind, of, what }| format!("{kind}|{of}|{what}\n"))
            .collect();
        let written = lines.concat();
        if std::env::var_os("VIWORKS_WRITE_SCHEMA").is_some() {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres/schema.txt");
            fs::write(file, &written).unwrap();
        }
        assert_eq!(
            written, EXPECTED,
            "run this test with VIWORKS_WRITE_SCHEMA set"
        );
        assert!(found.len() > 300, "{}", found.len());
    }

    #[test]
    fn of_a_table_that_is_gone_nothing_else_is_told_and_the_first_few_things_are_named() {
        let expected: BTreeSet<Fact> = EXPECTED.lines().filter_map(Fact::read).collect();
        let mut found = expected.clone();
        assert_eq!(lacking(&expected, &found), (Vec::new(), Vec::new()));
        found.retain(|fact| fact.of != "commands" && fact.kind != "trigger");
        let (needed, others) = lacking(&expected, &found);
        assert_eq!(told("it", &needed, "u"), "it lacks the table commands");
        let others = told("it", &others, "u");
        assert!(
            others.contains("the trigger audit_log_is_never_changed of audit_log"),
            "{others}"
        );
        found.retain(|fact| fact.kind != "right");
        let (needed, _) = lacking(&expected, &found);
        let said = told("it", &needed, "u");
        assert!(said.contains("GRANT SELECT ON api_keys TO u"), "{said}");
        assert!(said.contains(" other things"), "{said}");
    }
}
