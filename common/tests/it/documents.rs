//! The reference pages agree with the code: one page for each close code, and no page without one.

use std::collections::BTreeSet;
use std::path::Path;

use viworks_common::code::CloseCode;

use crate::legality::wire_name;
use crate::support::{agent_messages, backend_messages};

fn docs() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[test]
fn every_close_code_has_its_page_and_every_page_its_close_code() {
    let pages: BTreeSet<String> = std::fs::read_dir(docs().join("errors"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .collect();
    let expected: BTreeSet<String> = CloseCode::ALL
        .iter()
        .map(|code| format!("{}.md", code.name()))
        .collect();
    assert_eq!(pages, expected);
}

#[test]
fn every_page_says_what_the_program_says() {
    for code in CloseCode::ALL {
        let page = std::fs::read_to_string(docs().join(format!("errors/{}.md", code.name())));
        let page = page.unwrap();
        let title = format!("# {} {}\n", code.number(), code.name());
        assert!(page.starts_with(&title), "{code}: the title differs");
        assert!(
            page.contains(code.advice()),
            "{code}: the page lacks the advice {:?}",
            code.advice()
        );
        let permanent = if code.is_permanent() {
            "15 to 60 minutes"
        } else {
            "1 second doubling to 60 seconds"
        };
        assert!(
            page.contains(permanent),
            "{code}: the page must name the delay {permanent:?}"
        );
    }
}

#[test]
fn a_gateway_that_is_not_known_is_told_of_both_causes() {
    let advice = CloseCode::CertUntrusted.advice();
    for cause in ["certificate", "database"] {
        assert!(advice.contains(cause), "{advice}");
    }
}

#[test]
fn the_protocol_names_every_close_code() {
    let text = std::fs::read_to_string(docs().join("protocol.md")).unwrap();
    for code in CloseCode::ALL {
        let row = format!(
            "| {} | [{name}](errors/{name}.md) |",
            code.number(),
            name = code.name()
        );
        assert!(text.contains(&row), "{row}");
    }
}

/// The text that documents the body of `message`: its row, and for a batch the section about telemetry.
fn body_text<'a>(protocol: &'a str, message: &str) -> &'a str {
    if message == "TELEMETRY" {
        let (_, section) = protocol.split_once("\n## Telemetry\n").unwrap();
        return section.split("\n## ").next().unwrap();
    }
    let rows = protocol.split_once("\n## Bodies\n").unwrap().1;
    rows.lines()
        .find(|line| {
            let first_cell = line.split('|').nth(1).unwrap_or_default();
            first_cell.split(',').any(|name| name.trim() == message)
        })
        .unwrap_or_else(|| panic!("the body of {message} is not documented"))
}

#[test]
fn every_field_of_every_body_is_documented() {
    let protocol = std::fs::read_to_string(docs().join("protocol.md")).unwrap();
    let bodies = agent_messages()
        .into_iter()
        .map(|message| (wire_name(message.name()), message.encode()))
        .chain(
            backend_messages()
                .into_iter()
                .map(|message| (wire_name(message.name()), message.encode())),
        );
    for (name, body) in bodies {
        let body: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&body).unwrap();
        let text = body_text(&protocol, &name);
        for field in body.keys() {
            let documented = text.contains(&format!("`{field}`"));
            assert!(documented, "{name}.{field} is not documented");
        }
    }
}
