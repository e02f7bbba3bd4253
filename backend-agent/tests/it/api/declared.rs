//! Holds every answer that a test gets against what the API's description declares.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use http::Method;
use serde_json::Value;

use super::harness::Answer;
use super::schema;

/// The description.
pub(super) static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(&viworks_backend_agent::api::openapi::document()).unwrap()
});

/// An operation's id and a status.
pub(super) type Outcome = (String, u16);

/// Every operation with its method and path.
pub(super) fn operations() -> impl Iterator<Item = (Method, &'static str, &'static Value)> {
    DOCUMENT["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(|(method, operation)| {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                (method, path.as_str(), operation)
            })
        })
}

/// Every status of every operation that the description declares.
pub(super) fn outcomes() -> BTreeSet<Outcome> {
    operations()
        .flat_map(|(_method, _path, operation)| {
            let id = id(operation);
            operation["responses"]
                .as_object()
                .unwrap()
                .keys()
                .map(move |status| (id.clone(), status.parse().unwrap()))
        })
        .collect()
}

pub(super) fn id(operation: &Value) -> String {
    operation["operationId"].as_str().unwrap().to_owned()
}

fn fits(template: &str, path: &str) -> bool {
    let (wanted, given): (Vec<_>, Vec<_>) =
        (template.split('/').collect(), path.split('/').collect());
    wanted.len() == given.len()
        && wanted
            .iter()
            .zip(given)
            .all(|(wanted, given)| wanted.starts_with('{') || *wanted == given)
}

/// Checks an answer; gives its operation and status, or nothing when the request was for no operation.
pub(super) fn check(
    method: &Method,
    path: &str,
    answer: &Answer,
) -> Result<Option<Outcome>, String> {
    let status = answer.status.as_u16();
    let at_path: Vec<_> = operations()
        .filter(|(_method, template, _operation)| fits(template, path))
        .collect();
    let asked = if method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let found = at_path
        .iter()
        // A literal segment goes before a parameter.
        .filter(|(method, _template, _operation)| method == asked)
        .min_by_key(|(_method, template, _operation)| template.matches('{').count());
    let Some((_method, _template, operation)) = found else {
        let expected = if at_path.is_empty() { 404 } else { 405 };
        return if status == expected {
            Ok(None)
        } else {
            Err(format!("{method} {path} is no operation and got {status}"))
        };
    };
    let id = id(operation);
    let response = &operation["responses"][status.to_string()];
    if response.is_null() {
        return Err(format!("{id} does not declare {status}: {}", answer.text));
    }
    headers(&id, status, response, answer)?;
    if method != Method::HEAD {
        body(response, answer).map_err(|error| format!("{id} {status}: {error}"))?;
    }
    Ok(Some((id, status)))
}

/// Every header that says something of its own is declared.
fn headers(id: &str, status: u16, response: &Value, answer: &Answer) -> Result<(), String> {
    let general = [
        "content-type",
        "content-length",
        "cache-control",
        "x-content-type-options",
        "content-security-policy",
        "x-frame-options",
        "referrer-policy",
        "cross-origin-resource-policy",
    ];
    for name in answer.headers.keys().map(http::HeaderName::as_str) {
        let declared = response["headers"].get(name).is_some();
        if !declared && !general.contains(&name) && name != "x-accel-buffering" {
            return Err(format!("{id} {status} does not declare the header {name}"));
        }
    }
    Ok(())
}

fn body(response: &Value, answer: &Answer) -> Result<(), String> {
    let given = answer.header("content-type");
    let essence = given.split(';').next().unwrap_or_default().trim();
    let Some(content) = response.get("content").and_then(Value::as_object) else {
        return if answer.text.is_empty() {
            Ok(())
        } else {
            Err(format!("a body is not declared: {}", answer.text))
        };
    };
    let Some(media) = content.get(essence) else {
        return Err(format!("{essence:?} is not declared"));
    };
    match essence {
        "application/json" | "application/problem+json" => {
            let value = serde_json::from_str(&answer.text).map_err(|error| error.to_string())?;
            schema::check(&DOCUMENT, &media["schema"], &value)
        }
        "text/event-stream" => answer
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .try_for_each(|data| event(media, data)),
        _ => schema::check(
            &DOCUMENT,
            &media["schema"],
            &Value::from(answer.text.as_str()),
        ),
    }
}

fn event(media: &Value, data: &str) -> Result<(), String> {
    let value = serde_json::from_str(data).map_err(|error| error.to_string())?;
    schema::check(&DOCUMENT, &media["schema"], &value)
}
