//! The soak in small: that it runs, injects its faults and comes to an account.

use std::process::Command;
use std::time::Duration;

use viworks_testkit::postgres::Own;
use viworks_testkit::process::finish;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak_on_postgres_accounts_for_everything() {
    if Own::start().is_none() {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_soak"));
    command.args(["--minutes", "0.5", "--agents", "4", "--postgres"]);
    let said = finish(command, Duration::from_secs(400))
        .await
        .ended_with(0);
    let killed = "the database server killed";
    assert!(
        said.stdout.contains("everything is accounted for") && said.stdout.contains(killed),
        "{said:#?}"
    );
}
