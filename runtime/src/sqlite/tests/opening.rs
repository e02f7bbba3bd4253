//! What is there once a file is open, its settings and its schema, and which files are not opened.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::migrations::Mismatch;

/// What the writer says of one of its settings.
async fn pragma(database: &Database, setting: &str) -> String {
    // Statements live as long as the program does.
    let sql: &str = format!("SELECT CAST({setting} AS TEXT) FROM pragma_{setting}").leak();
    database
        .write(move |connection| {
            connection.one(sql, &[], |row| {
                Ok::<_, Error>(row.name().unwrap().to_owned())
            })
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn the_writer_has_the_settings_that_durability_rests_on() {
    let (_folder, database) = database(|options| options.max_page_count(500)).await;
    for (setting, wanted) in [
        ("synchronous", "2"),
        ("journal_mode", "wal"),
        ("foreign_keys", "1"),
        ("trusted_schema", "0"),
        ("auto_vacuum", "2"),
        ("page_size", "4096"),
        ("max_page_count", "500"),
        ("journal_size_limit", "16777216"),
    ] {
        assert_eq!(pragma(&database, setting).await, wanted, "{setting}");
    }
    database.close().await.unwrap();
}

#[test]
fn weaker_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path().join("test.db"));
    schema::check_settings(&schema::connect(&options).unwrap()).unwrap();
    for (weaker, name) in [
        ("PRAGMA synchronous = NORMAL", "synchronous"),
        ("PRAGMA foreign_keys = OFF", "foreign_keys"),
        ("PRAGMA trusted_schema = ON", "trusted_schema"),
        ("PRAGMA journal_mode = DELETE", "journal_mode"),
    ] {
        let connection = schema::connect(&options).unwrap();
        connection.inner().execute_batch(weaker).unwrap();
        let error = schema::check_settings(&connection).unwrap_err();
        assert!(
            matches!(error, Error::Setting { setting, .. } if setting == name),
            "{error}"
        );
    }
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
async fn a_schema_from_a_newer_program_is_refused() {
    const NEWER: &[Migration] = &[
        TABLE,
        Migration {
            file: "0002_make_another.sql",
            sql: "CREATE TABLE later (id INTEGER PRIMARY KEY)",
        },
    ];
    let (folder, database) = database(|options| options).await;
    database.close().await.unwrap();
    let newer = reopen(&folder, NEWER).await.unwrap();
    newer.close().await.unwrap();
    let error = reopen(&folder, MIGRATIONS).await.unwrap_err();
    let why = Mismatch::TooNew {
        found: 2,
        needed: 2,
        known: 1,
    };
    assert!(
        matches!(error, Error::SchemaTooNew(found) if found == why),
        "{error}"
    );
    assert!(error.is_lasting(), "{error}");
}

#[tokio::test]
async fn a_schema_to_which_a_newer_program_has_added_is_used() {
    const NEWER: &[Migration] = &[
        TABLE,
        Migration {
            file: "0002_make_another.sql",
            sql: "-- usable from: 1\nALTER TABLE item ADD COLUMN later INTEGER",
        },
    ];
    let (folder, database) = database(|options| options).await;
    database.close().await.unwrap();
    // As the programs before left it, which did not note from when on it can be used.
    let path = folder.path().join("test.db");
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute_batch("ALTER TABLE _sqlx_migrations DROP COLUMN usable_from")
        .unwrap();
    drop(file);
    assert!(!standing(&path, MIGRATIONS).unwrap().is_ahead);
    let missing = standing(&path, NEWER).unwrap();
    assert!(missing.missing.len() == 1 && missing.keeps_programs());
    let newer = reopen(&folder, NEWER).await.unwrap();
    insert(&newer, "new").await.unwrap();
    newer.close().await.unwrap();
    assert!(standing(&path, MIGRATIONS).unwrap().is_ahead);
    let older = reopen(&folder, MIGRATIONS).await.unwrap();
    insert(&older, "old").await.unwrap();
    assert_eq!(count(&older).await, 2);
    older.close().await.unwrap();
    let newer = reopen(&folder, NEWER).await.unwrap();
    assert_eq!(count(&newer).await, 2);
    newer.close().await.unwrap();
}

#[tokio::test]
async fn a_migration_that_was_changed_or_removed_afterwards_is_refused() {
    const CHANGED: &[Migration] = &[Migration {
        sql: "CREATE TABLE item (id INTEGER PRIMARY KEY)",
        ..TABLE
    }];
    const REMOVED: &[Migration] = &[Migration {
        file: "0002_make_another.sql",
        sql: "CREATE TABLE later (id INTEGER PRIMARY KEY)",
    }];
    let (folder, database) = database(|options| options).await;
    database.close().await.unwrap();
    for other in [CHANGED, REMOVED] {
        let error = reopen(&folder, other).await.unwrap_err();
        assert!(matches!(error, Error::Migrate(_)), "{error}");
    }
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing() {
    const BROKEN: &[Migration] = &[
        TABLE,
        Migration {
            file: "0002_break.sql",
            sql: "CREATE TABLE half (id INTEGER PRIMARY KEY); CREATE TABLE item (id INTEGER)",
        },
    ];
    const RIGHT: &[Migration] = &[
        TABLE,
        Migration {
            file: "0002_make_another.sql",
            sql: "CREATE TABLE half (id INTEGER PRIMARY KEY)",
        },
    ];
    let folder = tempfile::tempdir().unwrap();
    let error = reopen(&folder, BROKEN).await.unwrap_err();
    assert!(matches!(error, Error::Migrate(_)), "{error}");
    let database = reopen(&folder, RIGHT).await.unwrap();
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_called_corrupt_and_named_and_stays_so() {
    let (folder, database) = database(|options| options).await;
    database.close().await.unwrap();
    let file = folder.path().join("test.db");
    let mut torn = std::fs::read(&file).unwrap();
    // All that is right is its head.
    torn[100..].fill(0xa5);
    for contents in [torn, vec![b'x'; 8192]] {
        std::fs::write(&file, contents).unwrap();
        let looked = standing(&file, MIGRATIONS).unwrap_err();
        let opened = reopen(&folder, MIGRATIONS).await.unwrap_err();
        for error in [looked, opened] {
            assert!(
                matches!(&error, Error::Corrupt { path, .. } if *path == file),
                "{error:?}"
            );
            assert!(error.to_string().contains("test.db is damaged"), "{error}");
            assert!(error.is_lasting(), "{error}");
        }
    }
}

#[tokio::test]
async fn a_page_that_is_found_to_be_damaged_names_its_file() {
    let (folder, database) = database(|options| options).await;
    insert_body(&database, "pump".to_owned(), 20_000)
        .await
        .unwrap();
    database.close().await.unwrap();
    let file = folder.path().join("test.db");
    let mut torn = std::fs::read(&file).unwrap();
    // The schema is on the first page, what it is about behind it.
    torn[4096..].fill(0xa5);
    std::fs::write(&file, torn).unwrap();
    // Whether it comes to light at the start or with the first question, it is told alike.
    let found = match reopen(&folder, MIGRATIONS).await {
        Ok(database) => database.read(count_items).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(
        matches!(&found, Error::Corrupt { path, .. } if *path == file),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_look_at_every_page_finds_what_no_statement_has_met_and_leaves_no_trace() {
    const MANY: &str = "INSERT INTO item (name) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
        WHERE i < 5000) SELECT CAST(i AS TEXT) FROM n";
    let enough = Duration::from_secs(60);
    let (folder, database) = database(|options| options).await;
    execute(&database, MANY).await.unwrap();
    let file = folder.path().join("test.db");
    // Beside whoever has it open, as well as when nobody has.
    assert_eq!(look_over(&file, enough).unwrap(), Looked::Sound);
    database.close().await.unwrap();
    assert_eq!(look_over(&file, enough).unwrap(), Looked::Sound);
    let late = look_over(&file, Duration::ZERO).unwrap();
    assert_eq!(late, Looked::Unfinished);
    let mut torn = std::fs::read(&file).unwrap();
    // Behind the schema and the notes of the migrations, which a start reads.
    torn[16_384..].fill(0xa5);
    std::fs::write(&file, torn).unwrap();
    standing(&file, MIGRATIONS).unwrap();
    let error = look_over(&file, enough).unwrap_err();
    let Error::Corrupt { path, source } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(*path, file);
    let what = source.to_string();
    assert!(what.contains("age ") && !what.contains('*'), "{what}");
    let there = std::fs::read_dir(folder.path()).unwrap();
    assert_eq!(there.count(), 1);
    let none = folder.path().join("none.db");
    assert_eq!(look_over(&none, enough).unwrap(), Looked::Sound);
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path().join("none/test.db"));
    let error = Database::open(options, MIGRATIONS).await.unwrap_err();
    assert!(error.to_string().ends_with("none/test.db"), "{error}");
}

#[tokio::test]
async fn what_is_not_opened_to_write_is_not_looked_at_either() {
    let (folder, database) = database(|options| options).await;
    database.close().await.unwrap();
    let there = folder.path().join("test.db");
    let refused = |file: &std::path::Path| {
        let looked = standing(file, MIGRATIONS).unwrap_err();
        assert!(matches!(looked, Error::Unsafe(_)), "{looked:?}");
        assert!(looked.is_lasting(), "{looked}");
    };
    for (name, target) in [("link.db", "test.db"), ("dangling.db", "none.db")] {
        let link = folder.path().join(name);
        std::os::unix::fs::symlink(target, &link).unwrap();
        refused(&link);
    }
    let within = folder.path().join("folder.db");
    std::fs::create_dir(&within).unwrap();
    refused(&within);
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(folder.path(), mode(0o777)).unwrap();
    refused(&there);
    // What is missing could be put there by anybody.
    refused(&folder.path().join("missing.db"));
    std::fs::set_permissions(folder.path(), mode(0o700)).unwrap();
    assert!(standing(&there, MIGRATIONS).unwrap().missing.is_empty());
    // Last: whoever opens it waits for a writer.
    let pipe = folder.path().join("pipe.db");
    let (fifo, owner) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo, owner, 0).unwrap();
    refused(&pipe);
}
