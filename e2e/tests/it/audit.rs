//! The audit trail on the command line: listed, searched, one record whole.

use serde_json::{Value, json};
use viworks_testkit::deployment::Start;

use super::desk::Desk;

/// The actions of a list, the latest first.
fn actions(list: &Value) -> Vec<&str> {
    let records = list["items"].as_array().unwrap().iter();
    records
        .map(|record| record["action"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_trail_is_listed_searched_and_shown() {
    let desk = Desk::that_speaks("", Start::default()).await;
    let said = ["run", "test.say", "word=hello", "-g", "gw-1"];
    desk.json(&said, 0).await;
    let revoke = [
        "gateway",
        "revoke",
        "gw-2",
        "--reason",
        "it was stolen",
        "--yes",
    ];
    drop(desk.run(&revoke).await.ended_with(0));

    let list = desk.json(&["audit", "ls", "--all"], 0).await;
    assert_eq!(list["kind"], "AuditList", "{list:#}");
    let all = actions(&list);
    for action in [
        "gateway.create",
        "run.submit",
        "command.end",
        "gateway.revoke",
    ] {
        assert!(all.contains(&action), "{action}: {list:#}");
    }
    let one = desk.json(&["audit", "ls", "--limit", "1"], 0).await;
    assert_eq!(actions(&one).len(), 1, "{one:#}");
    let told = desk.run(&["audit", "ls", "--limit", "1"]).await;
    let told = told.ended_with(0);
    assert!(told.stderr.contains("the latest 1; more with"), "{told:#?}");

    // Names stand for ids, of the key and of the gateway.
    let table = desk
        .run(&["audit", "ls", "--action", "gateway.revoke"])
        .await;
    let table = table.ended_with(0).stdout;
    let mut lines = table.lines();
    let heading: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    let expected = ["NUMBER", "WHEN", "BY", "ACTION", "ON", "OUTCOME", "WHY"];
    assert_eq!(heading, expected, "{table}");
    let row = lines.next().unwrap();
    for words in [
        " tests ",
        " gateway.revoke ",
        " gw-2 ",
        " done ",
        "it was stolen",
    ] {
        assert!(row.contains(words), "{words}: {table}");
    }
    assert_eq!(lines.next(), None, "{table}");

    for (conditions, expected) in [
        (
            "-g gw-2 --action gateway --outcome done",
            vec!["gateway.revoke", "gateway.create"],
        ),
        (
            "--on gw-2 --action gateway --by tests",
            vec!["gateway.revoke"],
        ),
        ("--by tests --action run", vec!["run.submit"]),
        ("--by gw-1 --action command", vec!["command.end"]),
        ("--by nobody", vec![]),
        ("--action gateway.revoke --since 1ms", vec![]),
        ("--action gateway.revoke --since 1d", vec!["gateway.revoke"]),
    ] {
        let mut words = vec!["audit", "ls"];
        words.extend(conditions.split(' '));
        let found = desk.json(&words, 0).await;
        assert_eq!(actions(&found), expected, "{conditions}: {found:#}");
    }
    let nothing = desk.run(&["audit", "ls", "--by", "nobody"]).await;
    let nothing = nothing.ended_with(0);
    assert!(
        nothing
            .stderr
            .contains("there is no such record: by \"nobody\""),
        "{nothing:#?}"
    );
    drop(desk.run(&["audit", "ls", "-g", "gw-9"]).await.ended_with(5));
    let odd = desk.run(&["audit", "ls", "--outcome", "well"]).await;
    drop(odd.ended_with(2));

    let found = desk
        .json(&["audit", "ls", "--action", "gateway.revoke"], 0)
        .await;
    let record = &found["items"][0];
    let number = record["id"].to_string();
    let shown = desk.json(&["audit", "show", &number], 0).await;
    assert_eq!(&shown, record);
    let shown = desk.run(&["audit", "show", &number]).await.ended_with(0);
    let actor = record["actor"].as_str().unwrap();
    let first = format!("number    {number}\n");
    let by = format!("by        tests ({actor})\n");
    for words in [
        first.as_str(),
        by.as_str(),
        "on        gw-2 (gateway:",
        "outcome   done\n",
        "  reason: it was stolen\n",
    ] {
        assert!(shown.stdout.contains(words), "{words}: {shown:#?}");
    }
    let absent = desk.run(&["audit", "show", "9999999"]).await.ended_with(5);
    assert!(
        absent.stderr.contains("has no record 9999999"),
        "{absent:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_wrote_into_the_audit_trail_drives_no_terminal() {
    let desk = Desk::that_speaks("", Start::default()).await;
    let body = json!({"reason": "a\u{1b}[31mred\u{202e}\nforged"});
    let revoked = desk.system.post("/v1/gateways/gw-1/revoke", &body).await;
    assert_eq!(revoked["session_ended"], true, "{revoked:#}");
    let listed = desk.run(&["audit", "ls"]).await.ended_with(0);
    let found = desk
        .json(&["audit", "ls", "--action", "gateway.revoke"], 0)
        .await;
    let number = found["items"][0]["id"].to_string();
    let shown = desk.run(&["audit", "show", &number]).await.ended_with(0);
    for said in [&listed, &shown] {
        assert!(said.stdout.contains("red"), "{said:#?}");
        let unsafe_one = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!said.stdout.contains(unsafe_one), "{said:#?}");
        let forged = said.stdout.lines().any(|line| line.starts_with("forged"));
        assert!(!forged, "{said:#?}");
    }
}
