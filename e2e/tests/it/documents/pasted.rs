//! The blocks of the pages, pasted one after the other beside a demo.

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::process::{Process, eventually, finish};

use super::{blocks, environment, page, pages};

/// A folder that looks like the repository's to whoever pastes: the programs, and the demo where it always is.
struct Repository {
    folder: TempDir,
    demo: Process,
}

impl Repository {
    async fn with_demo() -> Self {
        let folder = TempDir::with_prefix("viworks documents ").unwrap();
        std::fs::create_dir(folder.path().join("target")).unwrap();
        let programs = Binaries::shipped().cli();
        let programs = programs.parent().unwrap();
        std::os::unix::fs::symlink(programs, folder.path().join("target/debug")).unwrap();
        let mut up = Command::new("target/debug/viworks");
        up.arg("up");
        environment(&mut up, folder.path());
        let log = folder.path().join("up.log");
        let mut demo = Process::start(&mut up, &log).unwrap();
        eventually("the demo is up", PATIENCE, async || {
            let ended = demo.ended();
            assert!(ended.is_none(), "{ended:?} {}", demo.log());
            demo.log().contains("Stop").then_some(())
        })
        .await;
        Self { folder, demo }
    }

    /// Pastes the blocks of a page one after the other into one shell.
    async fn paste(&self, name: &str) {
        let scripts: Vec<String> = blocks(&page(name))
            .into_iter()
            .filter(|block| block.not_run.is_none())
            .map(|block| block.script)
            .collect();
        if scripts.is_empty() {
            return;
        }
        let script = format!("set -euo pipefail\n{}", scripts.join("\n"));
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]);
        environment(&mut shell, self.folder.path());
        let said = finish(shell, PATIENCE).await;
        assert_eq!(said.code, Some(0), "{name}:\n{script}\n{said:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reader_pastes_works_as_printed() {
    let mut repository = Repository::with_demo().await;
    for name in pages() {
        repository.paste(&name).await;
    }
    // What was pasted last may have replaced a gateway's certificate; the demo still ends when it is told to.
    let ended = repository.demo.stop(Duration::from_secs(60)).await;
    assert!(ended.code().is_some(), "{ended:?}");
}
