//! Moves a site from the embedded database to PostgreSQL: every row, in batches that each note how far they came, and
//! all of it compared afterwards.

pub mod marker;
mod table;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use viworks_common::human;
use viworks_runtime::sqlite::{self, Params, Row, Value, params};

use super::intents::link::{Link, LinkError, Sql};
use super::postgres::{self, Address, MOVE_WITH_LATER, Target};
use super::sqlite::SqliteStore;

use table::{FIRST_PAGE, Held, Rows, Table};

/// The tables, each behind those that it refers to. What follows from others is not moved: the count of open commands,
/// and the row that health writes; nor are challenges of enrolments, which are good for a minute.
const TABLES: &[&str] = &[
    "gateways",
    "labels",
    "certificates",
    "reissued",
    "sessions",
    "forks",
    "catalogues",
    "runs",
    "run_skips",
    "commands",
    "command_outputs",
    "dead_letters",
    "orphan_results",
    "idempotency_keys",
    "gateway_budgets",
    "telemetry",
    "telemetry_streams",
    "telemetry_rollups",
    "telemetry_rollup_days",
    "telemetry_positions",
    "telemetry_gaps",
    "telemetry_refusals",
    "telemetry_usage",
    "telemetry_refused_epochs",
    "api_keys",
    "tickets",
    "enrolments",
    "server_pins",
    "authority_bundles",
    "audit_log",
    "site",
    "time_line",
];

/// Where a move has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The table it is at.
    pub table: &'static str,
    /// Rows of it that are done.
    pub rows: u64,
    /// Rows that it has.
    pub total: u64,
}

/// Why a site was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The embedded database cannot be read.
    #[error("the embedded database cannot be read")]
    Source(#[from] sqlite::Error),
    /// The server cannot be used.
    #[error("the database {address} cannot be used")]
    Target {
        /// Which one.
        address: String,
        /// Why.
        #[source]
        source: postgres::Error,
    },
    /// The configuration names another database than the one that it goes to.
    #[error(
        "[store] names {0} already, so that is the site, and what lies in the embedded database is older; to move that all \
         the same, take [store] out of the configuration"
    )]
    Elsewhere(String),
    /// It holds a site already.
    #[error(
        "the database is not empty: a backend or a move has left rows in it ({0}); a site is moved into an empty one"
    )]
    NotEmpty(String),
    /// A move of another site was begun there.
    #[error("the move of another site into this database was begun; name an empty one")]
    OtherSite,
    /// Nothing was moved there.
    #[error("no site was moved into this database, or the move was not finished")]
    NotMoved,
    /// A row that the other database does not take.
    #[error("{table}: the row {row} cannot be stored: {problem}")]
    Row {
        /// Of which table.
        table: &'static str,
        /// Its key.
        row: String,
        /// What the server says.
        problem: String,
    },
    /// There is nothing to move.
    #[error(
        "{} holds no site; `state_folder` and `sqlite_file` in [data] say where the one is that shall move",
        .0.display()
    )]
    NoSite(PathBuf),
    /// What this program does not know would be left behind.
    #[error("{}", MOVE_WITH_LATER)]
    Ahead,
    /// Both do not hold the same.
    #[error(
        "{table}: {} in the embedded database, {} on the server, and they differ; {}",
        human::counted_all(*.source_rows, "row", "rows"),
        human::count(*.target_rows),
        remedy(*.was_compared)
    )]
    Differs {
        /// Which table.
        table: &'static str,
        /// Rows here.
        source_rows: u64,
        /// Rows there.
        target_rows: u64,
        /// Whether they were equal once, at the end of the move.
        was_compared: bool,
    },
    /// It was told to stop; the next one goes on from there.
    #[error("stopped; the same command goes on where this one was")]
    Stopped,
}

/// What to do where they differ.
const fn remedy(was_compared: bool) -> &'static str {
    if was_compared {
        "they were equal after the move, so a backend has written to one of them since, as it may to the server's"
    } else {
        "the embedded database was written to during the move, so no backend starts on the server's: drop that, make an \
         empty one, and run `viworks-backend-agent migrate-store` again"
    }
}

/// A stopped site, and the database that it goes to. Everything here blocks, so it is called on a thread for that.
#[derive(Debug)]
pub struct Move {
    runtime: Handle,
    source: SqliteStore,
    file: PathBuf,
    target: Target,
    address: String,
}

/// Refuses a file that is none, or that no backend has made, or to which a later version has added; it is not changed.
///
/// # Errors
///
/// When there is no site, or not one that this program knows all of.
pub fn look_for_site(file: &Path) -> Result<(), MoveError> {
    let standing = super::sqlite::standing(file)?;
    if standing.is_ahead {
        return Err(MoveError::Ahead);
    }
    if standing
        .missing
        .iter()
        .any(|missing| missing.version() == 1)
    {
        return Err(MoveError::NoSite(file.to_owned()));
    }
    Ok(())
}

/// What the database on the server remembers of a move.
const MAKE_NOTES: &str = "\
CREATE TABLE IF NOT EXISTS store_move (
    table_name text PRIMARY KEY, site bytea NOT NULL, last_key json, rows bigint NOT NULL, finished boolean NOT NULL,
    compared boolean NOT NULL DEFAULT false)";

const NOTES: &str = "SELECT table_name, site, last_key, rows, finished, compared FROM store_move";

const NOTE: &str = "\
INSERT INTO store_move (table_name, site, last_key, rows, finished)
VALUES (:table, :site, :last_key, :rows, :finished)
ON CONFLICT (table_name) DO UPDATE
    SET last_key = excluded.last_key, rows = excluded.rows, finished = excluded.finished";

/// From here on backends may start there.
const NOTE_COMPARED: &str = "UPDATE store_move SET compared = true WHERE table_name = ''";

/// What follows from the rows that were moved.
const COUNT_OPEN: &str = "\
INSERT INTO open_commands (tenant, share, commands)
SELECT tenant, 0, count(*) FROM commands WHERE finished_at IS NULL GROUP BY tenant";

const GO_ON_COUNTING: &str = "\
SELECT setval(pg_get_serial_sequence('audit_log', 'seq'), (SELECT coalesce(max(seq), 0) + 1 FROM audit_log), false) AS next";

/// The site that a database is: the first of its audit log, which never changes.
const SITE: &str = "\
SELECT tenant, seq, at, actor_kind, actor_id, action, object, detail FROM audit_log ORDER BY tenant, seq LIMIT 1";

/// How far a table has come.
#[derive(Debug, Clone, Default)]
struct Noted {
    last_key: Option<Vec<Held>>,
    rows: u64,
    finished: bool,
    compared: bool,
}

impl Move {
    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// When the server cannot be used.
    pub fn open(
        runtime: Handle,
        source: SqliteStore,
        file: &Path,
        address: &Address,
    ) -> Result<Self, MoveError> {
        let named = address.to_string();
        let target = Target::open(address).map_err(|source| MoveError::Target {
            address: named.clone(),
            source,
        })?;
        Ok(Self {
            runtime,
            source,
            file: file.to_owned(),
            target,
            address: named,
        })
    }

    /// Moves everything that was not moved yet. `tell` is asked after each batch whether to go on.
    ///
    /// # Errors
    ///
    /// When one of the databases fails, the target holds something else, or `tell` says stop.
    pub fn run(&self, mut tell: impl FnMut(Progress) -> ControlFlow<()>) -> Result<(), MoveError> {
        let site = self.site()?;
        let made = self.target.prepare(true);
        made.map_err(|problem| self.target_error(problem))?;
        let notes = self.begin(&site)?;
        for name in TABLES {
            let table = self.on_source(move |link| Table::look(link, name))?;
            let noted = notes.get(*name).cloned().unwrap_or_default();
            if !noted.finished {
                self.move_table(&site, table, noted, &mut tell)?;
            }
        }
        if notes.get("").is_none_or(|all| !all.finished) {
            self.finish(&site)?;
        }
        Ok(())
    }

    /// Compares all rows of both; answers how many each table has. Where all are equal for the first time, backends may
    /// start on the server's database from then on; otherwise nothing is written.
    ///
    /// # Errors
    ///
    /// The first table that differs.
    pub fn verify(
        &self,
        mut tell: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<(&'static str, u64)>, MoveError> {
        let site = self.site()?;
        let notes = self.notes(&site)?;
        if notes.get("").is_none_or(|all| !all.finished) {
            return Err(MoveError::NotMoved);
        }
        let looked = self.target.prepare(false);
        looked.map_err(|problem| self.target_error(problem))?;
        let was_compared = notes.get("").is_some_and(|all| all.compared);
        let mut compared = Vec::new();
        for name in TABLES {
            let table = std::sync::Arc::new(self.on_source(move |link| Table::look(link, name))?);
            let width = table.columns.len();
            let here = self.digest(&table, width, &mut tell, |after, limit| {
                let (table, after) = (std::sync::Arc::clone(&table), after.map(<[Held]>::to_vec));
                self.on_source(move |link| table.page(link, after.as_deref(), limit))
            })?;
            let other = table.on_server();
            let other = other.as_ref().unwrap_or(&table);
            let there = self.digest(
                other,
                width,
                &mut |_| ControlFlow::Continue(()),
                |after, limit| self.on_target(|link| other.page(link, after, limit)),
            )?;
            if here != there {
                return Err(MoveError::Differs {
                    table: name,
                    source_rows: here.0,
                    target_rows: there.0,
                    was_compared,
                });
            }
            compared.push((*name, here.0));
        }
        if !was_compared {
            let noted = self
                .target
                .transact(|link| link.execute(NOTE_COMPARED.into(), &[], &[]).map(drop));
            noted.map_err(|problem| self.target_error(problem))?;
        }
        Ok(compared)
    }

    /// How many rows there are, and the sum of their digests, of so many columns each: the same in whatever order they
    /// come.
    fn digest(
        &self,
        table: &Table,
        width: usize,
        tell: &mut dyn FnMut(Progress) -> ControlFlow<()>,
        page: impl Fn(Option<&[Held]>, usize) -> Result<Rows, MoveError>,
    ) -> Result<(u64, [u64; 4]), MoveError> {
        let (mut digest, mut rows, mut after) = ([0_u64; 4], 0_u64, None::<Vec<Held>>);
        let mut limit = FIRST_PAGE;
        loop {
            let found = page(after.as_deref(), limit)?;
            let Some(last) = found.rows.last() else {
                return Ok((rows, digest));
            };
            after = Some(table.key_of(last));
            for row in &found.rows {
                add_digest(&mut digest, row.iter().take(width));
            }
            limit = found.ask_next(limit);
            rows = rows.saturating_add(u64::try_from(found.rows.len()).unwrap_or(u64::MAX));
            let progress = Progress {
                table: table.name,
                rows,
                total: rows,
            };
            if tell(progress).is_break() {
                return Err(MoveError::Stopped);
            }
        }
    }

    fn move_table(
        &self,
        site: &[u8],
        table: Table,
        mut noted: Noted,
        tell: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), MoveError> {
        let table = std::sync::Arc::new(table);
        let counted = std::sync::Arc::clone(&table);
        let total = self.on_source(move |link| counted.count(link))?;
        let mut limit = FIRST_PAGE;
        loop {
            let (read, after) = (std::sync::Arc::clone(&table), noted.last_key.clone());
            let page = self.on_source(move |link| read.page(link, after.as_deref(), limit))?;
            limit = page.ask_next(limit);
            let rows = page.rows;
            noted.finished = rows.is_empty();
            if let Some(last) = rows.last() {
                noted.last_key = Some(table.key_of(last));
            }
            let moved = u64::try_from(rows.len()).unwrap_or(u64::MAX);
            noted.rows = noted.rows.saturating_add(moved);
            self.store(site, &table, &rows, &noted)?;
            let progress = Progress {
                table: table.name,
                rows: noted.rows,
                total,
            };
            if tell(progress).is_break() {
                return Err(MoveError::Stopped);
            }
            if noted.finished {
                return Ok(());
            }
        }
    }

    /// One batch and how far it brings the table, both or neither.
    fn store(
        &self,
        site: &[u8],
        table: &Table,
        rows: &[Vec<Held>],
        noted: &Noted,
    ) -> Result<(), MoveError> {
        let whole = self.target.transact(|link| {
            table.insert(link, rows)?;
            note(link, table.name, site, noted)
        });
        let Err(problem) = whole else { return Ok(()) };
        if problem.is_about_the_server() {
            return Err(self.target_error(problem));
        }
        // Which one it was is worth more to whoever has to mend it than a quick end.
        for row in rows {
            let alone = self
                .target
                .try_out(|link| table.insert(link, std::slice::from_ref(row)));
            if let Err(problem) = alone {
                if problem.is_about_the_server() {
                    return Err(self.target_error(problem));
                }
                let key: Vec<String> = table
                    .key_of(row)
                    .iter()
                    .map(|it| it.note().to_string())
                    .collect();
                return Err(MoveError::Row {
                    table: table.name,
                    row: key.join(" "),
                    problem: problem.to_string(),
                });
            }
        }
        Err(self.target_error(problem))
    }

    /// Where an earlier move had come to; refuses a database that holds something else.
    fn begin(&self, site: &[u8]) -> Result<BTreeMap<String, Noted>, MoveError> {
        let has_notes = self.on_target(|link| {
            let mut has = false;
            let asked = "SELECT to_regclass('store_move') IS NOT NULL AS has";
            link.query(asked.into(), &[], &[], &mut |row| {
                has = row.get("has").unwrap_or_default();
                ControlFlow::Break(())
            })?;
            Ok(has)
        })?;
        if !has_notes {
            for name in TABLES {
                let count: &'static str = format!("SELECT count(*) AS rows FROM {name}").leak();
                let rows = self.on_target(|link| {
                    let mut rows = 0_u64;
                    link.query(count.into(), &[], &[], &mut |row| {
                        rows = row.get("rows").unwrap_or_default();
                        ControlFlow::Break(())
                    })?;
                    Ok(rows)
                })?;
                if rows > 0 {
                    return Err(MoveError::NotEmpty(format!("{name}: {rows}")));
                }
            }
            let made = self.target.transact(|link| {
                link.execute(MAKE_NOTES.into(), &[], &[])?;
                note(link, "", site, &Noted::default())
            });
            made.map_err(|problem| self.target_error(problem))?;
        }
        self.notes(site)
    }

    fn notes(&self, site: &[u8]) -> Result<BTreeMap<String, Noted>, MoveError> {
        let read = self.on_target(|link| {
            let mut notes = Vec::new();
            link.query(NOTES.into(), &[], &[], &mut |row| {
                notes.push((
                    row.get::<String>("table_name").unwrap_or_default(),
                    row.get::<Vec<u8>>("site").unwrap_or_default(),
                    row.get::<Option<String>>("last_key").flatten(),
                    row.get::<u64>("rows").unwrap_or_default(),
                    row.get::<bool>("finished").unwrap_or_default(),
                    row.get::<bool>("compared").unwrap_or_default(),
                ));
                ControlFlow::Continue(())
            })?;
            Ok(notes)
        });
        let mut notes = BTreeMap::new();
        for (table, of, last_key, rows, finished, compared) in
            read.map_err(|error| match error {
                MoveError::Target { source, .. } if source.is_missing_table() => {
                    MoveError::NotMoved
                }
                other @ (MoveError::Source(_)
                | MoveError::Target { .. }
                | MoveError::NotEmpty(_)
                | MoveError::OtherSite
                | MoveError::NotMoved
                | MoveError::Row { .. }
                | MoveError::NoSite(_)
                | MoveError::Ahead
                | MoveError::Elsewhere(_)
                | MoveError::Differs { .. }
                | MoveError::Stopped) => other,
            })?
        {
            if of != site {
                return Err(MoveError::OtherSite);
            }
            let key = last_key.and_then(|text| {
                let key: Vec<serde_json::Value> = serde_json::from_str(&text).ok()?;
                key.iter().map(Held::of_note).collect()
            });
            let noted = Noted {
                last_key: key,
                rows,
                finished,
                compared,
            };
            notes.insert(table, noted);
        }
        Ok(notes)
    }

    /// Counts what follows from the rows.
    fn finish(&self, site: &[u8]) -> Result<(), MoveError> {
        let done = self.target.transact(|link| {
            link.execute("DELETE FROM open_commands".into(), &[], &[])?;
            link.execute(COUNT_OPEN.into(), &[], &[])?;
            let next = &mut |_row: &Row<'_>| ControlFlow::Continue(());
            link.query(GO_ON_COUNTING.into(), &[], &[], next)?;
            let all = Noted {
                finished: true,
                ..Noted::default()
            };
            note(link, "", site, &all)
        });
        done.map_err(|problem| self.target_error(problem))
    }

    fn site(&self) -> Result<Vec<u8>, MoveError> {
        let site = self.on_source(|link| {
            let (mut digest, mut found) = (Sha256::new(), false);
            link.query(SITE.into(), &[], &[], &mut |row| {
                found = true;
                for column in [
                    "tenant",
                    "seq",
                    "at",
                    "actor_kind",
                    "actor_id",
                    "action",
                    "object",
                    "detail",
                ] {
                    row.get::<Held>(column)
                        .unwrap_or(Held(Value::Null))
                        .digest(&mut digest);
                }
                ControlFlow::Break(())
            })?;
            Ok(found.then(|| digest.finalize().to_vec()))
        })?;
        site.ok_or_else(|| MoveError::NoSite(self.file.clone()))
    }

    fn on_source<T: Send + 'static>(
        &self,
        work: impl Fn(&dyn Link) -> Result<T, LinkError> + Send + 'static,
    ) -> Result<T, MoveError> {
        let read = self.source.database().read(move |connection| {
            work(connection).map_err(|error| match error {
                LinkError::Sqlite(error) => error,
                LinkError::Postgres(_) => sqlite::Error::Closed,
            })
        });
        Ok(self.runtime.block_on(read)?)
    }

    fn on_target<T>(
        &self,
        work: impl FnOnce(&dyn Link) -> Result<T, LinkError>,
    ) -> Result<T, MoveError> {
        self.target
            .ask(work)
            .map_err(|problem| self.target_error(problem))
    }

    fn target_error(&self, source: postgres::Error) -> MoveError {
        MoveError::Target {
            address: self.address.clone(),
            source,
        }
    }
}

/// Adds the digest of a row.
fn add_digest<'h>(sum: &mut [u64; 4], row: impl Iterator<Item = &'h Held>) {
    let mut digest = Sha256::new();
    for value in row {
        value.digest(&mut digest);
    }
    let digest = digest.finalize();
    let (parts, _rest) = digest.as_chunks::<8>();
    for (sum, part) in sum.iter_mut().zip(parts) {
        *sum = sum.wrapping_add(u64::from_be_bytes(*part));
    }
}

fn note(link: &dyn Link, table: &str, site: &[u8], noted: &Noted) -> Result<(), LinkError> {
    let last_key = noted.last_key.as_ref().map(|key| {
        let key: Vec<serde_json::Value> = key.iter().map(Held::note).collect();
        serde_json::Value::Array(key).to_string()
    });
    let (rows, finished) = (noted.rows, noted.finished);
    link.execute(
        Sql::from(NOTE),
        params! { table, site, last_key, rows, finished },
        &[] as Params<'_>,
    )
    .map(drop)
}
