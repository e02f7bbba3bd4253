//! The list that an operator meant is the list that is reported, and no gateway can veto a run for all others unnamed.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use viworks_testkit::deployment::Start;

use super::desk::{Desk, say};

const WORDS: &str = "[a-z]{1,8}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_gateway_that_was_meant_is_accounted_for() {
    let catalogues = [
        ("gw-can", Some(say("read", WORDS))),
        ("gw-odd", Some(say("read", "[0-9]{900}"))),
        ("gw-without", None),
    ];
    let desk = Desk::of_each(&catalogues, Start::default()).await;
    let say = ["run", "test.say", "word=hello", "--all"];

    // One gateway refuses the arguments: nothing is sent, it is named, and so is the way out.
    let said = desk.run(&say).await.ended_with(2);
    assert!(said.stderr.contains("gw-odd"), "{said:#?}");
    assert!(said.stderr.contains("--except"), "{said:#?}");
    assert!(!said.stderr.contains("gw-can"), "{said:#?}");

    // Without it the run goes ahead, and whoever lacks the command is in the list and in the exit code.
    let said = desk
        .run(&[&say[..], &["--except", "gw-odd"]].concat())
        .await
        .ended_with(7);
    assert!(said.stdout.contains("gw-without"), "{said:#?}");
    assert!(said.stdout.contains("skipped"), "{said:#?}");
    assert!(!said.stdout.contains("gw-odd"), "{said:#?}");
    assert!(said.stderr.contains("1 ok, 1 skipped = 2"), "{said:#?}");

    // Whoever says that gateways may be skipped gets all of them listed, and a good exit code.
    let said = desk
        .run(&[&say[..], &["--skip-unable", "-o", "json"]].concat())
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
    let said = desk.run(&["runs", "show", run]).await.ended_with(0);
    for name in ["gw-can", "gw-odd", "gw-without"] {
        assert!(said.stdout.contains(name), "{said:#?}");
    }

    // A dry run tells both lists, and is refused where the run would be; a gateway that does not exist cannot be left
    // out.
    let said = desk
        .run(&[&say[..], &["--except", "gw-odd", "--dry-run"]].concat())
        .await
        .ended_with(0);
    assert!(said.stdout.contains("gw-without"), "{said:#?}");
    let refused = [&say[..], &["--dry-run"]].concat();
    let said = desk.run(&refused).await.ended_with(2);
    assert!(said.stderr.contains("gw-odd"), "{said:#?}");
    let said = desk
        .run(&[&say[..], &["--except", "gw-typo"]].concat())
        .await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(said.stderr.contains("gw-typo"), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_claims_a_higher_risk_is_named_and_can_be_left_out() {
    let catalogues = [
        ("gw-can", Some(say("read", WORDS))),
        ("gw-too", Some(say("read", WORDS))),
        ("gw-odd", Some(say("danger", WORDS))),
    ];
    let desk = Desk::of_each(&catalogues, Start::default()).await;
    let scopes = ["runs:write", "runs:read", "catalogue:read", "gateways:read"];
    let made = desk
        .system
        .post("/v1/apikeys", &json!({"name": "looks", "scopes": scopes}))
        .await;
    let key = desk.system.path().join("looks.key");
    std::fs::write(&key, made["secret"].as_str().unwrap()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let say = ["run", "test.say", "word=hello", "--all"];
    let with = |more: &[&'static str]| [&say[..], more].concat();
    let looks = async |more: &[&'static str]| desk.run_with(&key, &with(more)).await;

    // The key may not take that risk: the refusal names who claims it, and the way out.
    let said = looks(&["--confirm", "3", "--reason", "a test"]);
    let said = said.await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(said.stderr.contains("runs:write:danger"), "{said:#?}");
    assert!(said.stderr.contains("gw-odd"), "{said:#?}");
    assert!(said.stderr.contains("--except"), "{said:#?}");
    assert!(!said.stderr.contains("gw-can"), "{said:#?}");

    // Without it the run goes ahead, and nobody has to confirm what is meant by nobody else.
    let said = looks(&["--except", "gw-odd"]);
    let said = said.await.ended_with(0);
    assert!(said.stderr.contains("2 ok = 2"), "{said:#?}");
    let said = looks(&["--skip-unable", "-o", "json"]);
    let result = said.await.ended_with(0).json();
    assert_eq!(result["run"]["total"], 2, "{result:#}");
    assert_eq!(
        result["skipped"][0]["gateway"]["name"], "gw-odd",
        "{result:#}"
    );
    assert_eq!(
        result["skipped"][0]["code"], "risk_not_allowed",
        "{result:#}"
    );

    // Whoever may take the risk is told where it is, before and after.
    let said = desk.run(&say).await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(said.stderr.contains("gw-odd"), "{said:#?}");
    let said = desk.run(&with(&["--confirm", "3"])).await.ended_with(2);
    assert!(said.stderr.contains("reason"), "{said:#?}");
    assert!(said.stderr.contains("gw-odd"), "{said:#?}");
    assert!(!said.stderr.contains("gw-can"), "{said:#?}");
    let said = desk.run(&["command", "show", "test.say"]).await;
    let row = |name: &str| said.stdout.lines().find(|line| line.starts_with(name));
    assert!(row("gw-odd").unwrap().contains("danger"), "{said:#?}");
    assert!(row("gw-can").unwrap().contains("read"), "{said:#?}");
    let said = desk
        .run(&with(&["--dry-run", "--reason", "a test"]))
        .await
        .ended_with(0);
    let row = |risk: &str| said.stdout.lines().find(|line| line.contains(risk));
    let dangerous = row("(danger)").unwrap();
    assert!(dangerous.contains("gw-odd"), "{said:#?}");
    assert!(!dangerous.contains("gw-can"), "{said:#?}");
    let arguments = ["--confirm", "3", "--reason", "a test"];
    let said = desk.run(&with(&arguments)).await.ended_with(0);
    assert!(said.stderr.contains("3 ok = 3"), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_only_the_named_gateways_lack_is_not_called_unknown() {
    let catalogues = [("gw-can", Some(say("read", WORDS))), ("gw-without", None)];
    let desk = Desk::of_each(&catalogues, Start::default()).await;
    for more in [&["-g", "gw-without"][..], &["--all", "--except", "gw-can"]] {
        let said = desk
            .run(&[&["run", "test.say", "word=hello"][..], more].concat())
            .await
            .ended_with(5);
        assert!(said.stderr.contains("gw-without"), "{said:#?}");
        assert!(!said.stderr.contains("no gateway has"), "{said:#?}");
    }
    // One that nobody has is misspelt.
    let said = desk.run(&["run", "test.sya", "-g", "gw-without"]).await;
    assert!(said.ended_with(5).stderr.contains("no gateway has"));
}
