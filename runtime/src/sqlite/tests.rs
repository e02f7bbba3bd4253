use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt;

use futures_util::StreamExt;
use futures_util::future::join_all;
use sqlx::migrate::{Migration, MigrationType};
use sqlx::{AssertSqlSafe, SqlSafeStr};
use tempfile::TempDir;

use super::*;

const TABLE: &str = "CREATE TABLE item (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL DEFAULT 0 CONSTRAINT size_is_positive CHECK (size >= 0),
    parent INTEGER REFERENCES item (id),
    body BLOB
) STRICT";

fn migrator(statements: &[&'static str]) -> Migrator {
    let migration = |(index, sql): (usize, &&'static str)| {
        let version = i64::try_from(index).unwrap() + 1;
        Migration::new(
            version,
            Cow::Borrowed("test"),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    };
    Migrator::with_migrations(statements.iter().enumerate().map(migration).collect())
}

async fn database(options: impl FnOnce(Options) -> Options) -> (TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let options = options(Options::new(folder.path().join("test.db")));
    let database = Database::open(options, &migrator(&[TABLE])).await.unwrap();
    (folder, database)
}

async fn insert(database: &Database, name: impl Into<String>) -> Result<i64, Error> {
    let name = name.into();
    database
        .write(move |connection| {
            Box::pin(async move {
                let inserted = sqlx::query("INSERT INTO item (name) VALUES (?)")
                    .bind(name)
                    .execute(connection)
                    .await?;
                Ok(inserted.last_insert_rowid())
            })
        })
        .await
}

async fn insert_body(database: &Database, name: String, bytes: usize) -> Result<(), Error> {
    database
        .write(move |connection| {
            Box::pin(async move {
                let insert = sqlx::query("INSERT INTO item (name, body) VALUES (?, ?)").bind(name);
                insert.bind(vec![7_u8; bytes]).execute(connection).await?;
                Ok(())
            })
        })
        .await
}

async fn execute(database: &Database, sql: &'static str) -> Result<(), Error> {
    database
        .write(move |connection| {
            Box::pin(async move {
                sqlx::query(sql).execute(connection).await?;
                Ok(())
            })
        })
        .await
}

async fn count(database: &Database) -> i64 {
    let mut reader = database.read().await.unwrap();
    sqlx::query_scalar("SELECT count(*) FROM item")
        .fetch_one(&mut *reader)
        .await
        .unwrap()
}

async fn pragma(database: &Database, name: &'static str) -> String {
    database
        .write::<_, Error, _>(move |connection| {
            Box::pin(async move {
                let sql = AssertSqlSafe(format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}"));
                Ok(sqlx::query_scalar(sql).fetch_one(connection).await?)
            })
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn the_writer_has_the_settings_that_durability_rests_on() {
    let (_folder, database) = database(|options| options.max_page_count(500)).await;
    assert_eq!(pragma(&database, "synchronous").await, "2");
    assert_eq!(pragma(&database, "journal_mode").await, "wal");
    assert_eq!(pragma(&database, "foreign_keys").await, "1");
    assert_eq!(pragma(&database, "auto_vacuum").await, "2");
    assert_eq!(pragma(&database, "max_page_count").await, "500");
    assert_eq!(
        pragma(&database, "journal_size_limit").await,
        (16 * 1024 * 1024).to_string()
    );
    database.close().await.unwrap();
}

#[tokio::test]
async fn weaker_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path().join("test.db"));
    let mut weak = options
        .connect()
        .synchronous(SqliteSynchronous::Normal)
        .create_if_missing(true)
        .connect()
        .await
        .unwrap();
    let error = schema::check_settings(&mut weak).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Setting {
                setting: "synchronous",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn the_file_is_for_the_owner_only() {
    let (folder, database) = database(|options| options).await;
    insert(&database, "a").await.unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o077,
            0,
            "{:?}",
            entry.file_name()
        );
    }
    database.close().await.unwrap();
}

#[tokio::test]
async fn what_was_written_is_there_after_closing_and_opening() {
    let (folder, database) = database(|options| options).await;
    insert(&database, "kept").await.unwrap();
    database.close().await.unwrap();
    assert!(
        !folder.path().join("test.db-wal").exists(),
        "everything is in the one file"
    );
    let database = Database::open(
        Options::new(folder.path().join("test.db")),
        &migrator(&[TABLE]),
    )
    .await
    .unwrap();
    assert_eq!(count(&database).await, 1);
    database.close().await.unwrap();
}

#[tokio::test]
async fn ten_thousand_concurrent_writes_share_few_commits() {
    let (_folder, database) = database(|options| options).await;
    let writes = (0..10_000).map(|index| insert(&database, format!("item {index}")));
    for result in join_all(writes).await {
        result.unwrap();
    }
    assert_eq!(count(&database).await, 10_000);
    assert_eq!(database.counters().jobs_committed(), 10_000);
    let commits = database.counters().commits();
    assert!(commits <= 10_000 / 20, "{commits} commits");
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_failing_job_leaves_its_neighbours_in_the_same_commit() {
    let (_folder, database) = database(|options| options).await;
    insert(&database, "taken").await.unwrap();
    let commits = database.counters().commits();
    // The first write occupies the writer; the rest queue up behind it and are one batch.
    let names = (0..50).map(|index| {
        if index % 5 == 4 {
            "taken".to_owned()
        } else {
            format!("item {index}")
        }
    });
    let results = join_all(names.map(|name| insert(&database, name))).await;
    for (index, result) in results.into_iter().enumerate() {
        if index % 5 == 4 {
            let error = result.unwrap_err();
            assert!(error.is_constraint(Constraint::Unique), "{error:?}");
        } else {
            result.unwrap();
        }
    }
    assert_eq!(count(&database).await, 41);
    assert_eq!(database.counters().jobs_undone(), 10);
    assert!(database.counters().commits() - commits <= 3);
    database.close().await.unwrap();
}

#[tokio::test]
async fn everything_a_failed_job_did_is_undone_and_its_own_error_comes_back() {
    #[derive(Debug)]
    enum Refused {
        Balance(i64),
        Database,
    }
    impl From<Error> for Refused {
        fn from(_: Error) -> Self {
            Self::Database
        }
    }
    let (_folder, database) = database(|options| options).await;
    let attempt = |name: &'static str, refuse: bool| {
        database.write(move |connection| {
            Box::pin(async move {
                for part in 0..3 {
                    let insert = sqlx::query("INSERT INTO item (name) VALUES (?)")
                        .bind(format!("{name} {part}"));
                    insert
                        .execute(&mut *connection)
                        .await
                        .map_err(|error| Refused::from(Error::from(error)))?;
                }
                if refuse {
                    Err(Refused::Balance(-1))
                } else {
                    Ok(())
                }
            })
        })
    };
    // Alone, and in company.
    assert!(matches!(
        attempt("alone", true).await,
        Err(Refused::Balance(-1))
    ));
    let (first, second, third) =
        tokio::join!(attempt("a", false), attempt("b", true), attempt("c", false));
    assert!(first.is_ok() && third.is_ok());
    assert!(matches!(second, Err(Refused::Balance(-1))));
    assert_eq!(count(&database).await, 6);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_job_that_panics_harms_nobody_else() {
    let (_folder, database) = database(|options| options).await;
    let panics = database.write::<(), Error, _>(|connection| {
        Box::pin(async move {
            sqlx::query("INSERT INTO item (name) VALUES ('half done')")
                .execute(connection)
                .await?;
            panic!("planted")
        })
    });
    let (first, second, third) =
        tokio::join!(insert(&database, "a"), panics, insert(&database, "b"));
    assert!(first.is_ok() && third.is_ok());
    assert!(matches!(second, Err(Error::Panicked)));
    assert_eq!(count(&database).await, 2);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_full_database_says_so_and_works_again_after_a_delete() {
    let (_folder, database) = database(|options| options.max_page_count(64)).await;
    let mut stored = 0;
    let error = loop {
        match insert_body(&database, format!("item {stored}"), 8_000).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Full(_)), "{error:?}");
    assert!(stored > 10, "{stored}");
    execute(&database, "DELETE FROM item WHERE id <= 5")
        .await
        .unwrap();
    insert_body(&database, "fits again".to_owned(), 8_000)
        .await
        .unwrap();
    assert_eq!(count(&database).await, stored - 5 + 1);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_job_that_finds_the_database_full_does_not_take_its_batch_with_it() {
    let (_folder, database) = database(|options| options.max_page_count(64)).await;
    let small = || (0..10).map(|index| insert(&database, format!("small {index}")));
    let before: Vec<_> = small().take(5).collect();
    let after: Vec<_> = small().skip(5).collect();
    let huge = insert_body(&database, "huge".to_owned(), 4 * 1024 * 1024);
    let (before, huge, after) = tokio::join!(join_all(before), huge, join_all(after));
    assert!(matches!(huge, Err(Error::Full(_))), "{huge:?}");
    assert!(
        before.iter().chain(&after).all(Result::is_ok),
        "{before:?} {after:?}"
    );
    assert_eq!(count(&database).await, 10);
    database.close().await.unwrap();
}

#[tokio::test]
async fn broken_rules_of_the_schema_have_a_kind_and_a_name() {
    let (_folder, database) = database(|options| options).await;
    execute(&database, "INSERT INTO item (id, name) VALUES (1, 'a')")
        .await
        .unwrap();
    for (sql, kind, names) in [
        (
            "INSERT INTO item (name) VALUES ('a')",
            Constraint::Unique,
            "item.name",
        ),
        (
            "INSERT INTO item (id, name) VALUES (1, 'b')",
            Constraint::PrimaryKey,
            "item.id",
        ),
        (
            "INSERT INTO item (name) VALUES (NULL)",
            Constraint::NotNull,
            "item.name",
        ),
        (
            "INSERT INTO item (name, size) VALUES ('c', -1)",
            Constraint::Check,
            "size_is_positive",
        ),
        (
            "INSERT INTO item (name, parent) VALUES ('d', 99)",
            Constraint::ForeignKey,
            "",
        ),
    ] {
        let error = execute(&database, sql).await.unwrap_err();
        let Error::Constraint {
            kind: found,
            names: named,
            ..
        } = &error
        else {
            panic!("{sql}: {error:?}");
        };
        assert_eq!((*found, named.as_str()), (kind, names), "{sql}");
    }
    assert_eq!(count(&database).await, 1);
    database.close().await.unwrap();
}

#[tokio::test]
async fn readers_cannot_write_and_see_only_what_is_committed() {
    let (_folder, database) = database(|options| options).await;
    let mut reader = database.read().await.unwrap();
    let refused = sqlx::query("INSERT INTO item (name) VALUES ('x')")
        .execute(&mut *reader)
        .await
        .unwrap_err();
    assert!(
        matches!(Error::from(refused), Error::Io(_)),
        "a read-only file"
    );
    drop(reader);
    assert_eq!(count(&database).await, 0);
    insert(&database, "a").await.unwrap();
    assert_eq!(count(&database).await, 1);
    database.close().await.unwrap();
}

#[tokio::test]
async fn readers_are_bounded() {
    let (_folder, database) = database(|options| Options {
        readers_max: 1,
        read_timeout: Duration::from_millis(100),
        ..options
    })
    .await;
    let held = database.read().await.unwrap();
    assert!(matches!(database.read().await, Err(Error::ReadersBusy)));
    drop(held);
    database.read().await.unwrap();
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_was_left_in_the_middle_serves_the_next_one() {
    let (_folder, database) = database(|options| Options {
        readers_max: 1,
        ..options
    })
    .await;
    insert(&database, "a").await.unwrap();
    let mut reader = database.read().await.unwrap();
    let mut numbers = sqlx::query_scalar::<_, i64>(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 100000) SELECT n FROM n",
    )
    .fetch(&mut *reader);
    assert_eq!(numbers.next().await.unwrap().unwrap(), 1);
    drop(numbers);
    drop(reader);
    assert_eq!(count(&database).await, 1);
    insert(&database, "b").await.unwrap();
    assert_eq!(count(&database).await, 2, "no snapshot is left open");
    database.close().await.unwrap();
    assert!(matches!(database.read().await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_file_held_by_another_process_is_busy() {
    let (folder, database) = database(|options| Options {
        busy_timeout: Duration::from_millis(50),
        ..options
    })
    .await;
    let mut other = Options::new(folder.path().join("test.db"))
        .connect()
        .connect()
        .await
        .unwrap();
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    let results = tokio::join!(
        insert(&database, "a"),
        insert(&database, "b"),
        insert(&database, "c")
    );
    for result in [results.0, results.1, results.2] {
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::Busy(_)) && error.is_transient(),
            "{error:?}"
        );
    }
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    insert(&database, "a").await.unwrap();
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_schema_from_a_newer_program_is_refused() {
    let (folder, database) = database(|options| options).await;
    database.close().await.unwrap();
    let path = folder.path().join("test.db");
    let newer = migrator(&[TABLE, "CREATE TABLE later (id INTEGER PRIMARY KEY)"]);
    Database::open(Options::new(&path), &newer)
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
    let error = Database::open(Options::new(&path), &migrator(&[TABLE]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::SchemaTooNew { found: 2, known: 1 }),
        "{error}"
    );
}

#[tokio::test]
async fn a_migration_that_was_changed_afterwards_is_refused() {
    let (folder, database) = database(|options| options).await;
    database.close().await.unwrap();
    let changed = migrator(&["CREATE TABLE item (id INTEGER PRIMARY KEY)"]);
    let error = Database::open(Options::new(folder.path().join("test.db")), &changed)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Migrate(_)), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_called_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    std::fs::write(&path, [b'x'; 8192]).unwrap();
    let error = Database::open(Options::new(&path), &migrator(&[TABLE]))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error:?}");
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path().join("none/test.db"));
    let error = Database::open(options, &migrator(&[TABLE]))
        .await
        .unwrap_err();
    assert!(error.to_string().ends_with("none/test.db"), "{error}");
}

#[tokio::test]
async fn a_checkpoint_moves_the_log_into_the_file() {
    let (folder, database) = database(|options| options).await;
    insert(&database, "a").await.unwrap();
    let log = folder.path().join("test.db-wal");
    assert!(std::fs::metadata(&log).unwrap().len() > 0);
    database.checkpoint().await.unwrap();
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    database.close().await.unwrap();
}

#[tokio::test]
async fn closing_finishes_what_was_queued_and_refuses_what_comes_later() {
    let (_folder, database) = database(|options| options).await;
    let queued = join_all((0..100).map(|index| insert(&database, format!("item {index}"))));
    let (results, closed) = tokio::join!(queued, database.close());
    closed.unwrap();
    assert!(results.iter().all(Result::is_ok));
    assert!(matches!(
        insert(&database, "late").await,
        Err(Error::Closed)
    ));
    assert!(matches!(database.read().await, Err(Error::Closed)));
    database.close().await.unwrap();
}

/// Inserts names; one that begins with `no` is refused, one that is `bad` fails the whole, and each call notes its size.
fn insert_all<'c>(
    connection: &'c mut SqliteConnection,
    _group: u8,
    names: Arc<Vec<(String, SizeLog)>>,
) -> BoxFuture<'c, Result<Vec<Result<String, Error>>, Error>> {
    Box::pin(async move {
        let mut answers = Vec::new();
        for (name, log) in names.iter() {
            log.lock().unwrap().push(names.len());
            if name.starts_with("no") {
                answers.push(Err(Error::ReadersBusy));
                continue;
            }
            let value = (name != "bad").then_some(name.as_str());
            sqlx::query("INSERT INTO item (name) VALUES (?)")
                .bind(value)
                .execute(&mut *connection)
                .await?;
            answers.push(Ok(name.clone()));
        }
        Ok(answers)
    })
}

type SizeLog = Arc<std::sync::Mutex<Vec<usize>>>;

async fn together(
    database: &Database,
    group: u8,
    names: &[&str],
) -> (Vec<Result<String, Error>>, SizeLog) {
    let log = SizeLog::default();
    let calls = names.iter().map(|name| {
        database.write_together(group, ((*name).to_owned(), Arc::clone(&log)), insert_all)
    });
    // What is queued before the writer looks is one batch.
    (join_all(calls).await, log)
}

#[tokio::test]
async fn questions_of_one_kind_are_answered_together_each_with_its_own_answer() {
    let (_folder, database) = database(|options| options).await;
    let (answers, log) = together(&database, 1, &["a", "no", "b"]).await;
    assert_eq!(answers[0].as_deref().unwrap(), "a");
    assert!(matches!(answers[1], Err(Error::ReadersBusy)));
    assert_eq!(answers[2].as_deref().unwrap(), "b");
    assert_eq!(count(&database).await, 2);
    assert!(log.lock().unwrap().contains(&3), "they were one batch");
    assert_eq!(database.counters().jobs_committed(), 3);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_failure_of_the_whole_is_only_that_of_the_question_that_causes_it() {
    let (_folder, database) = database(|options| options).await;
    let (answers, _log) = together(&database, 1, &["a", "bad", "b", "c"]).await;
    let right: Vec<_> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(right, [true, false, true, true]);
    assert!(matches!(answers[1], Err(Error::Constraint { .. })));
    assert_eq!(count(&database).await, 3, "nothing twice, nothing lost");
    // The same beside other jobs, and for one alone.
    let (beside, (answers, _log)) = tokio::join!(
        insert(&database, "d"),
        together(&database, 1, &["bad", "e"])
    );
    beside.unwrap();
    assert!(answers[0].is_err() && answers[1].is_ok());
    let (alone, _log) = together(&database, 1, &["bad"]).await;
    assert!(alone[0].is_err());
    assert_eq!(count(&database).await, 5);
    database.close().await.unwrap();
}

#[tokio::test]
async fn groups_are_kept_apart() {
    let (_folder, database) = database(|options| options).await;
    let ((first, one), (second, two)) = tokio::join!(
        together(&database, 1, &["a", "b"]),
        together(&database, 2, &["c", "d", "e"])
    );
    assert!(first.iter().chain(&second).all(Result::is_ok));
    assert!(one.lock().unwrap().iter().all(|size| *size <= 2));
    assert!(two.lock().unwrap().iter().all(|size| *size <= 3));
    assert_eq!(count(&database).await, 5);
    database.close().await.unwrap();
}

/// Answers whether names are there; `no` is refused, `bad` fails the whole, and each call notes its size.
fn find_all<'c>(
    connection: &'c mut SqliteConnection,
    _group: u8,
    names: Arc<Vec<(String, SizeLog)>>,
) -> BoxFuture<'c, Result<Vec<Result<bool, Error>>, Error>> {
    Box::pin(async move {
        let mut answers = Vec::new();
        for (name, log) in names.iter() {
            log.lock().unwrap().push(names.len());
            let sql = match name.as_str() {
                "no" => {
                    answers.push(Err(Error::ReadersBusy));
                    continue;
                }
                "panic" => panic!("on purpose"),
                "bad" => "SELECT name FROM nothing WHERE name = ?",
                _ => "SELECT name FROM item WHERE name = ?",
            };
            let found = sqlx::query(sql)
                .bind(name)
                .fetch_optional(&mut *connection)
                .await?;
            answers.push(Ok(found.is_some()));
        }
        Ok(answers)
    })
}

#[tokio::test]
async fn reads_of_one_kind_are_answered_together_each_with_its_own_answer() {
    let (_folder, database) = database(|options| options).await;
    let ask = |names: &'static [&'static str]| {
        let database = database.clone();
        async move {
            let log = SizeLog::default();
            let calls = names.iter().map(|name| {
                database.read_together(1, ((*name).to_owned(), Arc::clone(&log)), find_all)
            });
            (join_all(calls).await, log)
        }
    };
    insert(&database, "a").await.unwrap();
    let (answers, log) = ask(&["a", "no", "b", "a"]).await;
    assert!(matches!(
        answers[..],
        [Ok(true), Err(Error::ReadersBusy), Ok(false), Ok(true)]
    ));
    let sizes = log.lock().unwrap().clone();
    assert_eq!(
        sizes,
        [1, 3, 3, 3],
        "the first alone, what came meanwhile together"
    );
    // What is committed before a question is seen by it.
    insert(&database, "b").await.unwrap();
    let (answers, _log) = ask(&["b", "bad", "a", "panic", "c"]).await;
    assert!(
        matches!(
            answers[..],
            [
                Ok(true),
                Err(Error::Other(_)),
                Ok(true),
                Err(Error::Panicked),
                Ok(false)
            ]
        ),
        "{answers:?}"
    );
    database.close().await.unwrap();
    let (answers, _log) = ask(&["a"]).await;
    assert!(matches!(answers[..], [Err(Error::Closed)]), "{answers:?}");
}
