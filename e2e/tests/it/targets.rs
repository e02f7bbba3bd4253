//! The list that an operator meant is the list that is reported, and no gateway can veto a run for all others unnamed.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::mark_starts;
use viworks_testkit::process::{Process, Said, finish};

/// `test.say` with a word of this pattern.
fn catalogue(pattern: &str) -> String {
    format!(
        r#"
[[command]]
name = "test.say"
title = "says what it is told"
risk = "read"
idempotent = true
argv = ["/bin/echo", "{{word}}"]
timeout_ms = 20000
[[command.argument]]
name = "word"
description = "what it says"
type = "string"
pattern = "{pattern}"
"#
    )
}

/// Three gateways: one that can, one whose declaration no word fits, one that does not have the command.
struct Fleet {
    system: Deployment,
    _gateways: Vec<Process>,
}

impl Fleet {
    async fn start() -> Self {
        let mut system = Deployment::new(Binaries::shipped());
        let catalogues = [
            ("gw-can", Some(catalogue("[a-z]{1,8}"))),
            ("gw-odd", Some(catalogue("[0-9]{900}"))),
            ("gw-without", None),
        ];
        let folders = catalogues.map(|(name, catalogue)| {
            let folder = system.issue(name);
            mark_starts(&folder);
            if let Some(catalogue) = catalogue {
                let file = folder.join("commands.d/say.toml");
                std::fs::write(&file, catalogue).unwrap();
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            }
            (name, folder)
        });
        system.start_backend(Start::default()).await;
        let mut gateways = Vec::new();
        for (name, folder) in &folders {
            gateways.push(system.start_gateway(folder, Start::default()));
            system.online(name).await;
        }
        Self {
            system,
            _gateways: gateways,
        }
    }

    async fn viworks(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(self.system.binaries().cli());
        command
            .args(arguments)
            .env("HOME", self.system.path())
            .env("VIWORKS_CONFIG_DIR", self.system.path().join("config"))
            .env("VIWORKS_SERVER", self.system.api_url())
            .env(
                "VIWORKS_TOKEN_FILE",
                self.system.path().join("operator.key"),
            )
            .env_remove("VIWORKS_CONTEXT")
            .env_remove("VIWORKS_OUTPUT");
        finish(command, PATIENCE).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_gateway_that_was_meant_is_accounted_for() {
    let fleet = Fleet::start().await;
    let say = ["run", "test.say", "word=hello", "--all"];

    // One gateway refuses the arguments: nothing is sent, it is named, and so is the way out.
    let said = fleet.viworks(&say).await.ended_with(2);
    assert!(said.stderr.contains("gw-odd"), "{said:#?}");
    assert!(said.stderr.contains("--except"), "{said:#?}");
    assert!(!said.stderr.contains("gw-can"), "{said:#?}");

    // Without it the run goes ahead, and whoever lacks the command is in the list and in the exit code.
    let said = fleet
        .viworks(&[&say[..], &["--except", "gw-odd"]].concat())
        .await
        .ended_with(7);
    assert!(said.stdout.contains("gw-without"), "{said:#?}");
    assert!(said.stdout.contains("skipped"), "{said:#?}");
    assert!(!said.stdout.contains("gw-odd"), "{said:#?}");
    assert!(said.stderr.contains("1 ok, 1 skipped = 2"), "{said:#?}");

    // Whoever says that gateways may be skipped gets all of them listed, and a good exit code.
    let said = fleet
        .viworks(&[&say[..], &["--skip-unable", "-o", "json"]].concat())
        .await
        .ended_with(0);
    let result = said.json();
    assert_eq!(result["run"]["total"], 1, "{result:#}");
    assert_eq!(result["run"]["skipped"], 2, "{result:#}");
    let mut skipped: Vec<_> = result["skipped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|skipped| {
            (
                skipped["gateway"]["name"].as_str().unwrap(),
                skipped["code"].as_str().unwrap(),
            )
        })
        .collect();
    skipped.sort_unstable();
    let wanted = [
        ("gw-odd", "bad_arguments"),
        ("gw-without", "not_in_catalogue"),
    ];
    assert_eq!(skipped, wanted);

    // It is still known later.
    let run = result["run"]["id"].as_str().unwrap();
    let said = fleet.viworks(&["runs", "show", run]).await.ended_with(0);
    for name in ["gw-can", "gw-odd", "gw-without"] {
        assert!(said.stdout.contains(name), "{said:#?}");
    }

    // A dry run tells both lists; a gateway that does not exist cannot be left out.
    let said = fleet
        .viworks(&[&say[..], &["--dry-run"]].concat())
        .await
        .ended_with(0);
    assert!(said.stdout.contains("gw-without"), "{said:#?}");
    let said = fleet
        .viworks(&[&say[..], &["--except", "gw-typo"]].concat())
        .await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(said.stderr.contains("gw-typo"), "{said:#?}");
}
