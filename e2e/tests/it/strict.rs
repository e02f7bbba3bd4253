//! What an enrolled peer says about itself is checked as strictly as its own configuration is, and is shown harmlessly.

use std::process::Command;

use viworks_common::catalogue::{Argument, ArgumentType, CatalogueEntry, Risk};
use viworks_common::limits;
use viworks_common::text::is_unsafe;
use viworks_common::wire::message::{AgentMessage, Catalogue, Event, Hello};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::process::{Said, eventually, finish};
use viworks_testkit::rogue::{Material, Refused, Rogue};

async fn viworks(system: &Deployment, arguments: &[&str]) -> Said {
    let mut command = Command::new(system.binaries().cli());
    command.args(arguments).current_dir(system.path());
    system.ask(&mut command);
    finish(command, PATIENCE).await
}

fn entry(name: &str, title: &str, value: ArgumentType) -> CatalogueEntry {
    CatalogueEntry {
        name: name.parse().unwrap(),
        title: title.to_owned(),
        risk: Risk::Read,
        idempotent: true,
        arguments: vec![Argument {
            name: "unit".parse().unwrap(),
            description: "A unit".to_owned(),
            value,
            default: None,
        }],
        timeout_ms: 20_000,
        output_bytes_max: 1_000,
        unavailable: None,
    }
}

fn catalogue(commands: Vec<CatalogueEntry>) -> AgentMessage {
    AgentMessage::Catalogue(Catalogue {
        digest: "11".repeat(32),
        commands,
    })
}

fn harmless(said: &Said) {
    let shown = said.stdout.replace('\n', "") + &said.stderr.replace('\n', "");
    assert!(!shown.contains(is_unsafe), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_lies_about_itself_is_told_and_nobody_is_fooled() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let material = Material::read(&folder).unwrap();
    let agents = system.agents_address().to_owned();

    let wrong: [fn(&mut Hello); 6] = [
        |hello| hello.labels = [("site".to_owned(), "x".repeat(500))].into(),
        |hello| hello.labels = [("si\nte".to_owned(), "berlin".to_owned())].into(),
        |hello| hello.labels = [("site".to_owned(), "\u{1b}[2Jberlin".to_owned())].into(),
        |hello| hello.agent_version = "1".repeat(4_000),
        |hello| hello.capabilities = vec!["x\u{202e}".to_owned()],
        |hello| hello.catalogue_digest = "no digest".to_owned(),
    ];
    for change in wrong {
        let mut rogue = Rogue::challenged(&agents, &material).await.unwrap();
        rogue.hello_with(change).await;
        assert_eq!(rogue.end().await, Refused::Closed(4_400));
    }
    let gateways = system.get("/v1/gateways").await.to_string();
    assert!(!gateways.contains("berlin"), "{gateways}");

    // None of that moved its counters: the honest HELLO is still the first.
    let mut rogue = Rogue::challenged(&agents, &material).await.unwrap();
    rogue.hello().await;
    rogue.confirm().await.unwrap();
    let string = |pattern: &str| ArgumentType::String {
        pattern: pattern.to_owned(),
    };
    let forged = "harmless\n  a.ok         read  yes\u{1b}[31m";
    rogue
        .say(catalogue(vec![
            entry("a.ok", "all is well", string("[a-z]+")),
            entry("a.title", forged, string("[a-z]+")),
            entry("a.range", "range", ArgumentType::Integer { min: 9, max: 1 }),
            entry("a.pattern", "pattern", string("(")),
        ]))
        .await
        .unwrap();
    rogue
        .say(AgentMessage::Event(Event {
            kind: "odd".to_owned(),
            detail: "a\n2026-01-01 ERROR forged \u{9b}31m".to_owned(),
        }))
        .await
        .unwrap();
    let listed = eventually("the catalogue", PATIENCE, async || {
        let said = viworks(&system, &["command", "ls"]).await;
        (said.stdout.contains("a.ok") && said.stdout.contains("a.pattern")).then_some(said)
    })
    .await;
    harmless(&listed);
    assert_eq!(listed.stdout.lines().count(), 5, "{listed:#?}");
    for name in ["a.title", "a.range", "a.pattern"] {
        let said = viworks(&system, &["command", "show", name]).await;
        harmless(&said);
        assert!(
            said.stdout.contains("the backend refuses this entry"),
            "{said:#?}"
        );
        assert!(
            !said.stdout.lines().any(|line| line.starts_with("  a.ok")),
            "{said:#?}"
        );
        harmless(&viworks(&system, &["command", "show", name, "-o", "json"]).await);
        let refused = viworks(&system, &["run", name, "unit=a", "-g", "gw-1"]).await;
        assert_ne!(refused.stderr, "");
        harmless(&refused);
    }
    let log = system.backend().log();
    assert!(
        log.contains("entries of the gateway's catalogue are refused"),
        "{log}"
    );
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01 ERROR")));
    assert!(!log.replace('\n', "").contains(is_unsafe));

    // More entries than any catalogue may have is no entry's fault.
    let many = (0..=limits::CATALOGUE_COMMANDS_MAX + 40)
        .map(|n| entry(&format!("a.b{n}"), "one of many", ArgumentType::Boolean))
        .collect();
    rogue.say(catalogue(many)).await.unwrap();
    assert_eq!(rogue.end().await, Refused::Closed(4_400));
    let shown = system.get("/v1/catalogue").await.to_string();
    assert!(!shown.contains("one of many"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_refusal_of_a_message_says_what_was_wrong_with_it() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let material = Material::read(&folder).unwrap();
    let agents = system.agents_address().to_owned();
    let mut rogue = Rogue::challenged(&agents, &material).await.unwrap();
    rogue
        .hello_with(|hello| hello.agent_version = "1".repeat(4_000))
        .await;
    let refused = rogue.confirm().await.unwrap_err().to_string();
    assert!(
        refused.contains("bad_envelope") && refused.contains("agent_version"),
        "{refused}"
    );
}
