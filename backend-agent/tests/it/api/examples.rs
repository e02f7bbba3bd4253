//! The examples of the description: each body and each parameter has one, and it is true.

use std::collections::BTreeMap;

use axum::body::Body;
use serde::de::DeserializeOwned;
use serde_json::Value;
use viworks_api as dto;

use super::declared::{self, DOCUMENT};
use super::harness::{Backend, catalogue};
use super::schema;

type Reader = fn(&Value) -> Result<(), String>;

fn reads<T: DeserializeOwned>(value: &Value) -> Result<(), String> {
    serde_json::from_value::<T>(value.clone())
        .map(drop)
        .map_err(|error| error.to_string())
}

/// How an example of each schema is read by a program.
fn readers() -> BTreeMap<&'static str, Reader> {
    BTreeMap::from([
        ("ApiKeyCreated", reads::<dto::ApiKeyCreated> as Reader),
        ("ApiKeyList", reads::<dto::ApiKeyList>),
        ("ApiKeyRequest", reads::<dto::ApiKeyRequest>),
        ("AuditList", reads::<dto::AuditList>),
        ("CatalogueCommand", reads::<dto::CatalogueCommand>),
        ("CatalogueList", reads::<dto::CatalogueList>),
        ("CertificateList", reads::<dto::CertificateList>),
        ("CertificateRevoked", reads::<dto::CertificateRevoked>),
        ("CommandList", reads::<dto::CommandList>),
        ("SkippedList", reads::<dto::SkippedList>),
        ("AuthorityStatus", reads::<dto::AuthorityStatus>),
        ("CommandView", reads::<dto::CommandView>),
        ("DeadLetter", reads::<dto::DeadLetter>),
        ("DeadLetterList", reads::<dto::DeadLetterList>),
        ("ForkList", reads::<dto::ForkList>),
        ("ForkResolved", reads::<dto::ForkResolved>),
        ("OrphanList", reads::<dto::OrphanList>),
        ("Gateway", reads::<dto::Gateway>),
        ("GatewayKeyRotated", reads::<dto::GatewayKeyRotated>),
        ("GatewayList", reads::<dto::GatewayList>),
        ("GatewayRevoked", reads::<dto::GatewayRevoked>),
        ("Health", reads::<dto::Health>),
        ("NotReady", reads::<dto::NotReady>),
        ("PinChanged", reads::<dto::PinChanged>),
        ("PinPromotion", reads::<dto::PinPromotion>),
        ("PinRequest", reads::<dto::PinRequest>),
        ("PinStatus", reads::<dto::PinStatus>),
        ("Problem", reads::<dto::Problem>),
        ("ResolveForkRequest", reads::<dto::ResolveForkRequest>),
        ("ReplaceRequest", reads::<dto::ReplaceRequest>),
        ("RevokeRequest", reads::<dto::RevokeRequest>),
        ("Run", reads::<dto::Run>),
        ("RunCancelled", reads::<dto::RunCancelled>),
        ("RunEvent", reads::<dto::RunEvent>),
        ("RunList", reads::<dto::RunList>),
        ("RunPlan", reads::<dto::RunPlan>),
        ("RunRequest", reads::<dto::RunRequest>),
        ("RunWait", reads::<dto::RunWait>),
        ("TelemetryAnswer", reads::<dto::TelemetryStepList>),
        ("TelemetryGapList", reads::<dto::TelemetryGapList>),
        ("TelemetryRefusalList", reads::<dto::TelemetryRefusalList>),
        ("TelemetryStreamList", reads::<dto::TelemetryStreamList>),
        ("Ticket", reads::<dto::Ticket>),
        ("TicketCreated", reads::<dto::TicketCreated>),
        ("TicketList", reads::<dto::TicketList>),
        ("TicketRequest", reads::<dto::TicketRequest>),
    ])
}

#[test]
fn every_body_has_an_example_that_its_schema_and_its_type_accept() {
    let readers = readers();
    let mut read = 0;
    for (_method, path, operation) in declared::operations() {
        let bodies = operation["responses"]
            .as_object()
            .unwrap()
            .values()
            .chain(operation.get("requestBody"))
            .filter_map(|body| body.get("content"));
        for (media_type, media) in bodies.flat_map(|content| content.as_object().unwrap()) {
            let example = &media["example"];
            assert!(!example.is_null(), "{path} {media_type} has no example");
            schema::check(&DOCUMENT, &media["schema"], example)
                .unwrap_or_else(|error| panic!("{path}: {error}"));
            if let Some(reference) = media["schema"]["$ref"].as_str() {
                let name = reference.rsplit('/').next().unwrap();
                let reader = readers
                    .get(name)
                    .unwrap_or_else(|| panic!("{name} is read by no program"));
                reader(example).unwrap_or_else(|error| panic!("{path} {name}: {error}"));
                read += 1;
            }
        }
    }
    assert!(read > 100, "{read}");
}

#[tokio::test]
async fn every_parameter_has_an_example_that_the_backend_accepts() {
    let backend = Backend::new().await;
    backend.connect("gw-berlin-01", catalogue()).await;
    for (method, path, operation) in declared::operations() {
        let (mut path, mut query, mut headers) = (path.to_owned(), Vec::new(), Vec::new());
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let (name, example) = (parameter["name"].as_str().unwrap(), &parameter["example"]);
            schema::check(&DOCUMENT, &parameter["schema"], example)
                .unwrap_or_else(|error| panic!("{path} {name}: {error}"));
            let text = example
                .as_str()
                .map_or_else(|| example.to_string(), str::to_owned);
            match parameter["in"].as_str().unwrap() {
                "path" => path = path.replace(&format!("{{{name}}}"), &text),
                "query" => query.push(format!("{name}={text}")),
                _ => headers.push((name.to_owned(), text)),
            }
        }
        let mut request = backend
            .request(method, &format!("{path}?{}", query.join("&")))
            .header("content-type", "application/json");
        for (name, text) in headers {
            request = request.header(name, text);
        }
        let body = operation
            .pointer("/requestBody/content/application~1json/example")
            .map(Value::to_string)
            .unwrap_or_default();
        let answer = backend.send(request.body(Body::from(body)).unwrap()).await;
        // Well-formed names of what is not here, and a key that nobody has staged.
        let unstaged = path.starts_with("/v1/pins/") && answer.status == 409;
        let accepted = answer.status.is_success() || answer.status == 404 || unstaged;
        assert!(accepted, "{path}: {}", answer.text);
    }
}
