//! The pins of the server's keys, as operators see and change them.

use serde_json::{Value, json};
use viworks_common::enrolment::Ticket;
use viworks_common::pin::SpkiPin;

use super::harness::{Backend, catalogue};

fn pin(n: u8) -> SpkiPin {
    SpkiPin::from_digest([n; 32])
}

fn key(n: u8) -> Value {
    json!({ "pin": pin(n) })
}

/// The one with a pin, in what `GET /v1/pins` answers.
fn find(status: &Value, n: u8) -> Value {
    let mut pins = status["pins"].as_array().unwrap().iter();
    let found = pins.find(|known| known["pin"] == json!(pin(n)));
    found.unwrap_or_else(|| panic!("{status:#}")).clone()
}

#[tokio::test]
async fn a_ticket_has_the_pins_that_gateways_are_to_trust() {
    let backend = Backend::new().await;
    let pins = async || {
        let made = backend.post("/v1/tickets", &json!({"uses": 1})).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let secret = made.json()["secret"].as_str().unwrap().to_owned();
        secret.parse::<Ticket>().unwrap().pins
    };
    let before = pins().await;
    let staged = backend.post("/v1/pins/stage", &key(1)).await;
    assert_eq!(staged.status, 200, "{}", staged.text);
    let mut expected = before.clone();
    assert!(expected.insert(pin(1)));
    assert_eq!(pins().await, expected);
    let retired = backend.post("/v1/pins/retire", &key(1)).await;
    assert_eq!(retired.status, 200, "{}", retired.text);
    assert_eq!(pins().await, before);
}

#[tokio::test]
async fn a_promotion_names_who_would_be_cut_off_and_is_forced_with_a_reason() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    backend.register("gw-2").await;
    let staged = backend.post("/v1/pins/stage", &key(1)).await.json();
    assert_eq!(
        (&staged["already"], &staged["status"]["version"]),
        (&json!(false), &json!(2))
    );
    let again = backend.post("/v1/pins/stage", &key(1)).await.json();
    assert_eq!(again["already"], true, "{again:#}");
    let found = find(&backend.get("/v1/pins").await.json(), 1);
    assert_eq!(
        (&found["state"], &found["confirmed_by"], &found["shown"]),
        (&json!("staged"), &json!(0), &json!(false))
    );
    let cut_off = found["cut_off"].as_array().unwrap();
    let named = |name: &str| {
        let mut all = cut_off.iter();
        let one = all.find(|gateway| gateway["name"] == name);
        one.unwrap_or_else(|| panic!("{found:#}"))["online"].clone()
    };
    assert_eq!(
        (named("gw-1"), named("gw-2"), cut_off.len()),
        (json!(true), json!(false), 2)
    );

    let refused = backend.post("/v1/pins/promote", &key(1)).await;
    assert_eq!(refused.status, 409, "{}", refused.text);
    for words in ["2 gateways", "gateways: gw-1", "gateways: gw-2"] {
        assert!(refused.text.contains(words), "{words}: {}", refused.text);
    }
    let mut forced = key(1);
    forced["force"] = json!(true);
    let unexplained = backend.post("/v1/pins/promote", &forced).await;
    assert_eq!(unexplained.status, 422, "{}", unexplained.text);
    forced["reason"] = json!("both were sold");
    for already in [false, true] {
        let promoted = backend.post("/v1/pins/promote", &forced).await;
        assert_eq!(promoted.status, 200, "{}", promoted.text);
        let promoted = promoted.json();
        assert_eq!(promoted["already"], already, "{promoted:#}");
        let found = find(&promoted["status"], 1);
        assert_eq!(found["state"], "promoted", "{found:#}");
    }
    let audit = backend.get("/v1/audit").await.text;
    assert!(audit.contains("both were sold"), "{audit}");
    let odd = backend
        .post("/v1/pins/stage", &json!({"pin": "sha256/AA"}))
        .await;
    assert_eq!(odd.status, 422, "{}", odd.text);
}

#[tokio::test]
async fn a_key_that_is_in_no_set_is_not_found_when_it_is_retired_and_to_be_staged_when_it_is_promoted()
 {
    let backend = Backend::new().await;
    let retired = backend.post("/v1/pins/retire", &key(9)).await;
    assert_eq!(retired.status, 404, "{}", retired.text);
    assert!(
        retired.text.contains("nothing to retire"),
        "{}",
        retired.text
    );
    let promoted = backend.post("/v1/pins/promote", &key(9)).await;
    let problem = promoted.problem(409, "VW-N-002");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("stage it first"), "{problem:#}");
    let fix = problem["fix"].as_str().unwrap();
    assert!(fix.contains("viworks pin stage sha256/"), "{problem:#}");
}

#[tokio::test]
async fn the_key_that_the_server_shows_is_not_retired() {
    let backend = Backend::new().await;
    let status = backend.get("/v1/pins").await.json();
    let pins = status["pins"].as_array().unwrap();
    let shown = pins.iter().find(|pin| pin["shown"] == true).unwrap();
    let refused = backend
        .post("/v1/pins/retire", &json!({ "pin": shown["pin"] }))
        .await;
    assert_eq!(refused.status, 409, "{}", refused.text);
    assert!(
        refused.text.contains("still shows this key"),
        "{}",
        refused.text
    );
}
