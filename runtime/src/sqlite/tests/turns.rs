//! Who writes first: what somebody waits for, and what takes long.

use super::*;

#[tokio::test]
async fn bulk_waits_for_short_writes_and_is_not_lost_at_the_close() {
    let (_folder, database) = database(|options| options).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let order = Arc::clone(&order);
        move |_connection: &Connection| {
            order.lock().unwrap().push(what);
            Ok::<_, Error>(())
        }
    };
    let mut tasks = JoinSet::new();
    let gate = hold_writer(&database, &mut tasks).await;
    let bulk = database.write_bulk(note("bulk"));
    let short = database.write(note("short"));
    let queued = async {
        while database.queue_depth() < 1 {
            tokio::task::yield_now().await;
        }
        gate.open();
    };
    let (bulk, short, ()) = tokio::join!(bulk, short, queued);
    bulk.unwrap();
    short.unwrap();
    assert_eq!(*order.lock().unwrap(), ["short", "bulk"]);
    let (bulk, closed) = tokio::join!(database.write_bulk(note("last")), database.close());
    bulk.unwrap();
    closed.unwrap();
}

#[tokio::test]
async fn writes_that_change_nothing_keep_nobody_from_writing_much() {
    let (_folder, database) = database(|options| options).await;
    for _look in 0..20 {
        execute(&database, "UPDATE item SET size = 1 WHERE id = 0")
            .await
            .unwrap();
    }
    assert!(!database.counters().is_busy());
    // Nor do looks that are committed together with a write.
    let mut tasks = JoinSet::new();
    let gate = hold_writer(&database, &mut tasks).await;
    let looks = (0..20).map(|_look| execute(&database, "UPDATE item SET size = 1 WHERE id = 0"));
    let looks = join_all(looks);
    let queued = async {
        while database.queue_depth() < 21 {
            tokio::task::yield_now().await;
        }
        gate.open();
    };
    let (looks, inserted, ()) =
        tokio::join!(looks, insert(&database, "beside looks".to_owned()), queued);
    looks.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    inserted.unwrap();
    assert!(!database.counters().is_busy());
    for number in 0..20 {
        insert(&database, format!("item {number}")).await.unwrap();
    }
    assert!(database.counters().is_busy());
    database.close().await.unwrap();
}

/// On which thread a look was answered, and how many items it saw.
fn looked(connection: &Connection) -> Result<(Option<String>, i64), Error> {
    let thread = std::thread::current().name().map(str::to_owned);
    Ok((thread, count_items(connection)?))
}

#[tokio::test]
async fn the_writer_answers_looks_before_it_writes_what_waits() {
    let patient = |options| Options {
        look_wait: Duration::from_secs(600),
        ..options
    };
    let (_folder, database) = database(patient).await;
    let mut tasks = JoinSet::new();
    let gate = hold_writer(&database, &mut tasks).await;
    let before = database.look_room.available_permits();
    let queued = async {
        while database.queue_depth() < 1 || before - database.look_room.available_permits() < 3 {
            tokio::task::yield_now().await;
        }
        gate.open();
    };
    let failing = database.look(|connection| connection.execute("SELECT missing FROM item", &[]));
    let looks = join_all([database.look(looked), database.look(looked)]);
    let (inserted, looks, failed, ()) =
        tokio::join!(insert(&database, "waits"), looks, failing, queued);
    inserted.unwrap();
    failed.unwrap_err();
    for look in looks {
        assert_eq!(look.unwrap(), (Some("sqlite writer".to_owned()), 0));
    }
    assert_eq!(database.look(looked).await.unwrap().1, 1);
    insert(&database, "goes on").await.unwrap();
    database.close().await.unwrap();
    database.look(looked).await.unwrap_err();
}

#[tokio::test]
async fn a_look_does_not_wait_for_a_writer_that_is_held_up() {
    let (_folder, database) = database(|options| options).await;
    insert(&database, "before").await.unwrap();
    let mut tasks = JoinSet::new();
    let gate = hold_writer(&database, &mut tasks).await;
    let (thread, seen) = database.look(looked).await.unwrap();
    assert_ne!(thread.as_deref(), Some("sqlite writer"));
    assert_eq!(seen, 1);
    gate.open();
    database.close().await.unwrap();
}
