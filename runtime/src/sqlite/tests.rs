//! The writer and its readers, on real files.

use std::sync::mpsc;
use std::sync::{Condvar, Mutex};

use futures_util::future::{LocalBoxFuture, join_all, poll_immediate};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::*;

mod opening;
mod turns;

const TABLE: Migration = Migration {
    file: "0001_make_the_table.sql",
    sql: "CREATE TABLE item (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL DEFAULT 0 CONSTRAINT size_is_positive CHECK (size >= 0),
    parent INTEGER REFERENCES item (id),
    body BLOB
) STRICT",
};

const MIGRATIONS: &[Migration] = &[TABLE];

const INSERT: &str = "INSERT INTO item (name) VALUES (:name)";

async fn database(options: impl FnOnce(Options) -> Options) -> (TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let options = options(Options::new(folder.path().join("test.db")));
    let database = Database::open(options, MIGRATIONS).await.unwrap();
    (folder, database)
}

/// Opens the same file once more.
async fn reopen(folder: &TempDir, migrations: &'static [Migration]) -> Result<Database, Error> {
    Database::open(Options::new(folder.path().join("test.db")), migrations).await
}

async fn insert(database: &Database, name: impl Into<String>) -> Result<usize, Error> {
    let name = name.into();
    database
        .write(move |connection| connection.execute(INSERT, params! { name }))
        .await
}

async fn insert_body(database: &Database, name: String, bytes: usize) -> Result<usize, Error> {
    database
        .write(move |connection| {
            let (sql, body) = (
                "INSERT INTO item (name, body) VALUES (:name, :body)",
                vec![7_u8; bytes],
            );
            connection.execute(sql, params! { name, body })
        })
        .await
}

async fn execute(database: &Database, sql: &'static str) -> Result<usize, Error> {
    database
        .write(move |connection| connection.execute(sql, &[]))
        .await
}

fn count_items(connection: &Connection) -> Result<i64, Error> {
    connection.one("SELECT count(*) AS items FROM item", &[], |row| {
        Ok(row.get("items").unwrap())
    })
}

async fn count(database: &Database) -> i64 {
    database.read(count_items).await.unwrap()
}

/// A gate that a job can wait at.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let guard = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(guard, |open| !*open).unwrap());
    }
}

/// Keeps the writer in a job until the gate opens, so that what is queued meanwhile is one batch.
async fn hold_writer(database: &Database, tasks: &mut JoinSet<Result<(), Error>>) -> Gate {
    let gate = Gate::default();
    let (inside, entered) = oneshot::channel();
    let inside = Mutex::new(Some(inside));
    let (database, held) = (database.clone(), gate.clone());
    tasks.spawn(async move {
        database
            .write(move |_connection| {
                if let Some(inside) = inside.lock().unwrap().take() {
                    inside.send(()).unwrap();
                }
                held.wait();
                Ok::<_, Error>(())
            })
            .await
    });
    entered.await.unwrap();
    gate
}

/// Queues jobs behind a held writer; their answers in the order of the jobs. They are fewer than the 128 steps that a
/// task makes in one turn: a job that was stopped there has its place in the queue already, and is not in it yet.
async fn as_one_batch<T, F>(database: &Database, jobs: Vec<F>) -> Vec<Result<T, Error>>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut tasks = JoinSet::new();
    let gate = hold_writer(database, &mut tasks).await;
    let many = jobs.len();
    let queued = async {
        while database.queue_depth() < many {
            tokio::task::yield_now().await;
        }
        gate.open();
    };
    let (answers, ()) = tokio::join!(join_all(jobs), queued);
    tasks.join_next().await.unwrap().unwrap().unwrap();
    answers
}

#[tokio::test]
async fn what_was_written_is_there_after_closing_and_opening() {
    let (folder, database) = database(|options| options).await;
    insert(&database, "kept").await.unwrap();
    assert_eq!(count(&database).await, 1);
    database.close().await.unwrap();
    assert!(
        !folder.path().join("test.db-wal").exists(),
        "everything is in the one file"
    );
    let database = reopen(&folder, MIGRATIONS).await.unwrap();
    assert_eq!(count(&database).await, 1);
    database.close().await.unwrap();
}

/// Until the log is taken away, which only the last connection does and only if it may write.
async fn log_is_gone(folder: &TempDir) {
    let log = folder.path().join("test.db-wal");
    let gone = async {
        while log.exists() {
            tokio::task::yield_now().await;
        }
    };
    let gone = timeout(Duration::from_secs(60), gone).await;
    gone.expect("the log is taken away by the last that closes the file");
}

#[tokio::test]
async fn the_last_handle_closes_the_file() {
    let (folder, database) = database(|options| options).await;
    insert(&database, "kept").await.unwrap();
    assert_eq!(count(&database).await, 1);
    let (queued, clone) = (insert(&database, "queued"), database.clone());
    queued.await.unwrap();
    drop((database, clone));
    log_is_gone(&folder).await;
    let database = reopen(&folder, MIGRATIONS).await.unwrap();
    assert_eq!(count(&database).await, 2);
    database.close().await.unwrap();
}

#[tokio::test]
async fn the_writer_closes_the_file_after_a_reader_that_is_out() {
    let one_reader = |options| Options {
        readers_max: 1,
        ..options
    };
    let (folder, database) = database(one_reader).await;
    insert(&database, "kept").await.unwrap();
    // From here on the reader has the file open.
    assert_eq!(count(&database).await, 1);
    let gate = Gate::default();
    let (reached, entered) = oneshot::channel();
    let (held, inside) = (gate.clone(), Mutex::new(Some(reached)));
    let (reader, mut tasks) = (database.clone(), JoinSet::new());
    tasks.spawn(async move {
        // It looks at nothing, so it is in the way of no checkpoint.
        let job = move |_connection: &Connection| {
            if let Some(inside) = inside.lock().unwrap().take() {
                inside.send(()).unwrap();
            }
            held.wait();
            Ok::<_, Error>(())
        };
        reader.read(job).await
    });
    entered.await.unwrap();
    // Its thread stays in the job.
    tasks.shutdown().await;
    drop(database);
    // Long enough for a writer that does not wait for it.
    for _turn in 0..10_000 {
        tokio::task::yield_now().await;
    }
    gate.open();
    log_is_gone(&folder).await;
}

#[tokio::test]
async fn ten_thousand_concurrent_writes_share_few_commits() {
    let (_folder, database) = database(|options| options).await;
    let writes = (0..10_000).map(|index| insert(&database, format!("item {index}")));
    let mut tasks = JoinSet::new();
    let gate = hold_writer(&database, &mut tasks).await;
    let open = async {
        while database.queue_depth() < 1_024 {
            tokio::task::yield_now().await;
        }
        gate.open();
    };
    let (results, ()) = tokio::join!(join_all(writes), open);
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(count(&database).await, 10_000);
    assert_eq!(database.counters().jobs_committed(), 10_001);
    let commits = database.counters().commits();
    assert!(commits <= 10_000 / 20, "{commits} commits");
    database.close().await.unwrap();
}

#[tokio::test]
async fn what_waits_at_the_same_moment_is_one_commit() {
    let (_folder, database) = database(|options| options).await;
    let jobs = (0..100).map(|index| insert(&database, format!("item {index}")));
    let answers = as_one_batch(&database, jobs.collect()).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(
        database.counters().commits(),
        2,
        "the first job's and theirs"
    );
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_failing_job_leaves_its_neighbours_in_the_same_commit() {
    let (_folder, database) = database(|options| options).await;
    insert(&database, "taken").await.unwrap();
    let commits = database.counters().commits();
    let is_taken = |index: usize| index % 5 == 4;
    let jobs = (0..50).map(|index| {
        let name = if is_taken(index) {
            "taken".to_owned()
        } else {
            format!("item {index}")
        };
        insert(&database, name)
    });
    let answers = as_one_batch(&database, jobs.collect()).await;
    for (index, answer) in answers.into_iter().enumerate() {
        if is_taken(index) {
            let error = answer.unwrap_err();
            assert!(error.is_constraint(Constraint::Unique), "{error:?}");
        } else {
            answer.unwrap();
        }
    }
    assert_eq!(count(&database).await, 41);
    assert_eq!(database.counters().jobs_undone(), 10);
    assert_eq!(database.counters().commits() - commits, 2);
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
            for part in 0..3 {
                let name = format!("{name} {part}");
                connection.execute(INSERT, params! { name })?;
            }
            if refuse {
                Err(Refused::Balance(-1))
            } else {
                Ok(())
            }
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
    assert!(matches!(attempt("a", false).await, Err(Refused::Database)));
    assert_eq!(count(&database).await, 6);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_job_that_panics_harms_nobody_else() {
    let (_folder, database) = database(|options| options).await;
    let panics = || {
        database.write::<usize, Error, _>(|connection| {
            let name = "half done";
            connection.execute(INSERT, params! { name })?;
            panic!("planted")
        })
    };
    let insert = |name: &'static str| insert(&database, name);
    let jobs: Vec<LocalBoxFuture<'_, _>> = vec![
        Box::pin(insert("a")),
        Box::pin(panics()),
        Box::pin(insert("b")),
    ];
    let answers = as_one_batch(&database, jobs).await;
    assert!(answers[0].is_ok() && answers[2].is_ok());
    assert!(matches!(answers[1], Err(Error::Panicked)));
    // Alone, and on a reader.
    assert!(matches!(panics().await, Err(Error::Panicked)));
    let reading = database.read::<(), Error, _>(|_connection| panic!("planted"));
    assert!(matches!(reading.await, Err(Error::Panicked)));
    assert_eq!(count(&database).await, 2);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_full_database_says_so_and_works_again_after_a_delete() {
    let (_folder, database) = database(|options| options.max_page_count(64)).await;
    let mut stored = 0;
    let error = loop {
        match insert_body(&database, format!("item {stored}"), 8_000).await {
            Ok(_one) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Full(_)), "{error:?}");
    assert!(std::error::Error::source(&error).is_none(), "said once");
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
    let small = |index: usize| insert(&database, format!("small {index}"));
    let mut jobs: Vec<LocalBoxFuture<'_, _>> = Vec::new();
    jobs.extend((0..5).map(|index| Box::pin(small(index)) as _));
    jobs.push(Box::pin(insert_body(
        &database,
        "huge".to_owned(),
        4 * 1024 * 1024,
    )));
    jobs.extend((5..10).map(|index| Box::pin(small(index)) as _));
    let commits = database.counters().commits();
    let mut answers = as_one_batch(&database, jobs).await;
    let huge = answers.remove(5);
    assert!(matches!(huge, Err(Error::Full(_))), "{huge:?}");
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(count(&database).await, 10);
    let commits = database.counters().commits() - commits;
    assert_eq!(commits, 11, "the first job's, and each again by itself");
    database.close().await.unwrap();
}

#[tokio::test]
async fn broken_rules_of_the_schema_have_a_kind_and_a_name() {
    let (_folder, database) = database(|options| options).await;
    execute(&database, "INSERT INTO item (id, name) VALUES (1, 'a')")
        .await
        .unwrap();
    for (item, kind, names) in [
        ("(name) VALUES ('a')", Constraint::Unique, "item.name"),
        (
            "(id, name) VALUES (1, 'b')",
            Constraint::PrimaryKey,
            "item.id",
        ),
        ("(name) VALUES (NULL)", Constraint::NotNull, "item.name"),
        (
            "(name, size) VALUES ('c', -1)",
            Constraint::Check,
            "size_is_positive",
        ),
        (
            "(name, parent) VALUES ('d', 99)",
            Constraint::ForeignKey,
            "",
        ),
    ] {
        let sql = format!("INSERT INTO item {item}").leak();
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
async fn a_parameter_is_bound_by_its_name_or_refused() {
    let (_folder, database) = database(|options| options).await;
    let (name, size) = ("a", 3_u64);
    let wrong: Vec<LocalBoxFuture<'_, _>> = vec![
        Box::pin(database.write(move |connection| connection.execute(INSERT, params! { size }))),
        Box::pin(
            database.write(move |connection| connection.execute(INSERT, params! { name, size })),
        ),
        Box::pin(database.write(move |connection| connection.execute(INSERT, &[]))),
    ];
    for answer in join_all(wrong).await {
        let error: Error = answer.unwrap_err();
        assert!(matches!(error, Error::Other(_)), "{error:?}");
    }
    assert_eq!(count(&database).await, 0);
    database.close().await.unwrap();
}

#[tokio::test]
async fn values_come_back_as_they_went_in_or_not_at_all() {
    let (_folder, database) = database(|options| options).await;
    let (name, size, body) = ("a\0é", 3_u64, [7_u8, 0, 9]);
    database
        .write(move |connection| {
            let sql = "INSERT INTO item (name, size, body) VALUES (:name, :size, :body)";
            connection.execute(sql, params! { name, size, body })
        })
        .await
        .unwrap();
    database
        .read(|connection| {
            connection.one("SELECT name, size, body, parent FROM item", &[], |row| {
                assert_eq!(row.get::<String>("name").unwrap(), "a\0é");
                assert_eq!(row.text("name"), row.name());
                assert_eq!(row.get::<u64>("size"), Some(3));
                assert_eq!(row.get::<[u8; 3]>("body"), Some([7, 0, 9]));
                assert_eq!(row.get::<Option<i64>>("parent"), Some(None));
                assert_eq!(row.get::<i64>("parent"), None);
                assert_eq!(row.get::<[u8; 4]>("body"), None);
                assert_eq!(row.get::<u64>("name"), None);
                assert_eq!(row.get::<u64>("nothing"), None);
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
    database.close().await.unwrap();
}

#[tokio::test]
async fn readers_cannot_write_and_see_only_what_is_committed() {
    let (_folder, database) = database(|options| options).await;
    let name = "x";
    let refused = database
        .read(move |connection| connection.execute(INSERT, params! { name }))
        .await;
    assert!(
        matches!(refused, Err(Error::Io(_))),
        "a read-only file: {refused:?}"
    );
    assert_eq!(count(&database).await, 0);
    insert(&database, "a").await.unwrap();
    assert_eq!(count(&database).await, 1);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_read_sees_one_state_between_its_statements() {
    let (_folder, database) = database(|options| options).await;
    insert(&database, "a").await.unwrap();
    let (inside, entered) = mpsc::channel();
    let gate = Gate::default();
    let held = gate.clone();
    let reading = database.read(move |connection| {
        let before = count_items(connection)?;
        inside.send(()).unwrap();
        held.wait();
        Ok::<_, Error>((before, count_items(connection)?))
    });
    let writing = async {
        let begins = async {
            while entered.try_recv().is_err() {
                tokio::task::yield_now().await;
            }
        };
        let begun = timeout(Duration::from_secs(20), begins).await;
        begun.expect("the read begins");
        insert(&database, "b").await.unwrap();
        gate.open();
    };
    let (seen, ()) = tokio::join!(reading, writing);
    assert_eq!(seen.unwrap(), (1, 1));
    assert_eq!(count(&database).await, 2, "no snapshot is left open");
    database.close().await.unwrap();
}

#[tokio::test]
async fn readers_are_bounded() {
    let (_folder, database) = database(|options| Options {
        readers_max: 2,
        read_timeout: Duration::from_millis(100),
        ..options
    })
    .await;
    let gate = Gate::default();
    let mut held = JoinSet::new();
    let (inside, mut entered) = tokio::sync::mpsc::channel(2);
    for _reader in 0..2 {
        let (database, gate, inside) = (database.clone(), gate.clone(), inside.clone());
        held.spawn(async move {
            database
                .read(move |_connection| {
                    inside.blocking_send(()).unwrap();
                    gate.wait();
                    Ok::<_, Error>(())
                })
                .await
        });
        entered.recv().await.unwrap();
    }
    let refused = database.read(count_items).await;
    assert!(matches!(refused, Err(Error::ReadersBusy)), "{refused:?}");
    gate.open();
    while let Some(answer) = held.join_next().await {
        answer.unwrap().unwrap();
    }
    assert_eq!(count(&database).await, 0);
    database.close().await.unwrap();
}

#[tokio::test]
async fn what_takes_longer_than_it_may_is_ended_and_the_next_is_not() {
    const FOR_EVER: &str = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS i FROM n";
    let (_folder, database) = database(|options| Options {
        readers_max: 1,
        ..options
    })
    .await;
    let endless = |connection: &Connection| {
        connection.within(Duration::from_millis(50), || {
            let ended = connection.one(FOR_EVER, &[], |_row| Ok::<_, Error>(()));
            // Its time is over for what it asks later, too.
            assert!(matches!(ended, Err(Error::TooLong(_))), "{ended:?}");
            connection.one(FOR_EVER, &[], |_row| Ok::<_, Error>(()))
        })
    };
    let ended = database.read(endless).await;
    assert!(matches!(ended, Err(Error::TooLong(_))), "{ended:?}");
    assert_eq!(count(&database).await, 0);
    let quick = |connection: &Connection| {
        connection.within(Duration::from_secs(60), || count_items(connection))
    };
    assert_eq!(database.read(quick).await.unwrap(), 0);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_is_not_carried_out() {
    let (_folder, database) = database(|options| Options {
        readers_max: 1,
        ..options
    })
    .await;
    let gate = Gate::default();
    let held = gate.clone();
    let (inside, entered) = oneshot::channel();
    let inside = Mutex::new(Some(inside));
    let holding = database.read(move |_connection| {
        inside.lock().unwrap().take().unwrap().send(()).unwrap();
        held.wait();
        Ok::<_, Error>(())
    });
    let (carried_out, looked) = mpsc::channel();
    let abandoning = async {
        entered.await.unwrap();
        let mut abandoned = Box::pin(database.read(move |_connection| {
            carried_out.send(()).unwrap();
            Ok::<_, Error>(())
        }));
        // It is queued behind the one that holds the reader.
        assert!(poll_immediate(&mut abandoned).await.is_none());
        drop(abandoned);
        gate.open();
    };
    let (answer, ()) = tokio::join!(holding, abandoning);
    answer.unwrap();
    assert_eq!(count(&database).await, 0);
    assert!(looked.try_recv().is_err());
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_file_held_by_another_process_is_busy() {
    let (folder, database) = database(|options| Options {
        busy_timeout: Duration::from_millis(50),
        ..options
    })
    .await;
    let other = schema::connect(&Options::new(folder.path().join("test.db"))).unwrap();
    other.execute("BEGIN IMMEDIATE", &[]).unwrap();
    for answer in join_all(["a", "b", "c"].map(|name| insert(&database, name))).await {
        let error = answer.unwrap_err();
        assert!(
            matches!(error, Error::Busy(_)) && error.is_transient(),
            "{error:?}"
        );
    }
    other.execute("ROLLBACK", &[]).unwrap();
    insert(&database, "a").await.unwrap();
    drop(other);
    database.close().await.unwrap();
}

#[tokio::test]
async fn closing_finishes_what_was_queued_and_refuses_what_comes_later() {
    // Some of them wait outside the queue.
    let (_folder, database) = database(|options| Options {
        queue_depth_max: 16,
        ..options
    })
    .await;
    let queued = join_all((0..100).map(|index| insert(&database, format!("item {index}"))));
    let (results, closed) = tokio::join!(queued, database.close());
    closed.unwrap();
    assert!(results.iter().all(Result::is_ok));
    assert!(matches!(
        insert(&database, "late").await,
        Err(Error::Closed)
    ));
    assert!(matches!(
        database.read(count_items).await,
        Err(Error::Closed)
    ));
    database.close().await.unwrap();
}
