//! The soak in small: that it runs, injects its faults and comes to an account.

use std::process::Command;
use std::time::Duration;

use viworks_testkit::process::finish;
use viworks_testkit::{postgres, redis};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak_accounts_for_everything() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soak"));
    command.args(["--minutes", "0.5", "--agents", "5"]);
    let said = finish(command, Duration::from_secs(300))
        .await
        .ended_with(0);
    assert!(
        said.stdout.contains("everything is accounted for")
            && said.stdout.contains("a backend killed 3 times"),
        "{said:#?}"
    );
}

/// Two backends on servers of their own.
async fn on_servers(flags: &[&str], killed: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soak"));
    command.args(["--minutes", "0.5", "--agents", "4"]);
    command.args(flags);
    let said = finish(command, Duration::from_secs(400))
        .await
        .ended_with(0);
    assert!(
        said.stdout.contains("everything is accounted for"),
        "{said:#?}"
    );
    for server in killed {
        let killed = format!("{server} killed");
        assert!(said.stdout.contains(&killed), "{said:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak_on_postgres_accounts_for_everything() {
    if postgres::Own::is_installed() {
        on_servers(&["--postgres"], &["the database server"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak_on_postgres_and_redis_accounts_for_everything() {
    if postgres::Own::is_installed() && redis::Own::is_installed() {
        let killed = ["the database server", "the server between the backends"];
        on_servers(&["--postgres", "--redis"], &killed).await;
    }
}
