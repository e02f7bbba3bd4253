//! The published schema of compose: every word of docker-compose.yml is one that it knows, of the type that it takes.

use std::collections::BTreeMap;

use jsonschema::Validator;
use serde_json::{Value, json};

use super::compose::Compose;

/// As it was published: `e2e/tests/fixtures/compose/README.md`.
const SCHEMA: &str = include_str!("../../fixtures/compose/compose-spec.json");

fn validator() -> Validator {
    let mut schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let words = schema.as_object_mut().unwrap();
    // It names its dialect by an address with `https`, which is not the dialect's name, and itself by no address.
    let dialect = words.remove("$schema").unwrap();
    assert_eq!(dialect, "https://json-schema.org/draft-07/schema");
    words.remove("$id").unwrap();
    jsonschema::draft7::new(&schema).unwrap()
}

/// What is wrong with a file, each with its place.
fn refusals(document: &Value) -> Vec<(String, String)> {
    let validator = validator();
    let errors = validator.iter_errors(document);
    errors
        .map(|error| (error.instance_path().to_string(), error.to_string()))
        .collect()
}

fn document() -> Value {
    Compose::document(&BTreeMap::new())
}

#[test]
fn the_file_is_what_the_schema_of_compose_takes() {
    let document = document();
    // Read with its anchors merged, or the schema would see less than there is.
    assert_eq!(
        document.pointer("/services/backend/read_only"),
        Some(&json!(true))
    );
    let refused = refusals(&document);
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn what_compose_does_not_know_or_takes_otherwise_is_found_wherever_it_stands() {
    for (place, key, value) in [
        ("", "service", json!({})),
        ("/services/backend", "stop_grace", json!("75s")),
        ("/services/backend", "read_only", json!(["yes"])),
        ("/services/backend", "cap_drop", json!("ALL")),
        ("/services/backend", "security_opts", json!([])),
        ("/services/backend/build", "stage", json!("backend")),
        ("/services/backend/healthcheck", "retry", json!(3)),
        ("/services/backend/healthcheck", "interval", json!(15)),
        ("/services/backend/ulimits", "nofile", json!(["many"])),
        (
            "/services/backend/depends_on/setup",
            "condition",
            json!("service_ended"),
        ),
        (
            "/services/backend/deploy/resources/limits",
            "memory",
            json!(1_073_741_824),
        ),
        (
            "/services/backend/deploy/resources/limits",
            "processes",
            json!(256),
        ),
        ("/services/postgres/logging", "option", json!({})),
        ("/secrets/postgres_password", "path", json!("./secret")),
        ("/volumes", "keys", json!([])),
    ] {
        let mut document = document();
        let table = document.pointer_mut(place).unwrap();
        table
            .as_object_mut()
            .unwrap()
            .insert(key.to_owned(), value.clone());
        let refused = refusals(&document);
        assert!(!refused.is_empty(), "{place}/{key}: {value} is taken");
        // Where one of several forms is taken, it is the whole that is refused.
        let is_there = |found: &str| found.starts_with(place) || place.starts_with(found);
        assert!(
            refused.iter().all(|(found, _why)| is_there(found)),
            "{place}/{key}: {refused:#?}"
        );
        // And what is refused is this: at its very place, or by its name.
        let itself = format!("{place}/{key}");
        let below = format!("{itself}/");
        let names = [format!("'{key}'"), format!("\"{key}\"")];
        let is_it = |(found, why): &(String, String)| {
            *found == itself
                || found.starts_with(&below)
                || names.iter().any(|name| why.contains(name))
        };
        assert!(refused.iter().any(is_it), "{itself}: {refused:#?}");
    }
}
