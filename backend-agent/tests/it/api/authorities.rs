//! The authorities that gateways are given, as operators see them.

use serde_json::json;
use viworks_backend_agent::data::AuthorityBundle;

use super::harness::{Backend, catalogue, now};

#[tokio::test]
async fn whoever_lacks_an_authority_is_named_with_the_bundle_that_it_has() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    backend.register("gw-2").await;
    let status = backend.get("/v1/authorities").await.json();
    assert_eq!(
        (&status["gateways"], &status["lacking"]),
        (&json!(2), &json!(2))
    );
    let id = status["authorities"][0]["authority"].as_str().unwrap();
    let digest = status["bundle"].as_str().unwrap();
    let given = AuthorityBundle {
        digest: digest.to_owned(),
        authorities: [id.to_owned()].into(),
    };
    let noted = backend.store.note_bundle(&backend.tenant, given, now());
    noted.await.unwrap();
    let report = async |digest: &str| {
        let (agent_id, epoch) = (holder.agent_id, holder.epoch);
        let has = Some(digest.to_owned());
        let reported = backend
            .store
            .report_bundle(&backend.tenant, agent_id, epoch, has, now());
        reported.await.unwrap();
    };

    report(digest).await;
    let told = backend.get("/v1/authorities").await.json();
    assert_eq!(
        (&told["lacking"], &told["lacking_off"]),
        (&json!(1), &json!(1))
    );
    let authority = &told["authorities"][0];
    assert_eq!(authority["known_to"], 1, "{told:#}");
    let missing = authority["missing"].as_array().unwrap();
    assert_eq!(missing.len(), 1, "{told:#}");
    assert_eq!(missing[0]["name"], "gw-2", "{told:#}");
    assert_eq!(missing[0]["online"], false, "{told:#}");
    let shown = backend.get("/v1/gateways/gw-1").await.json();
    assert_eq!(shown["authorities"]["current"], true, "{shown:#}");

    let other = "0".repeat(64);
    report(&other).await;
    let told = backend.get("/v1/authorities").await.json();
    assert_eq!(
        (&told["lacking"], &told["lacking_off"]),
        (&json!(2), &json!(1))
    );
    let shown = backend.get("/v1/gateways/gw-1").await.json();
    assert_eq!(shown["authorities"]["bundle"], other, "{shown:#}");
    assert_eq!(shown["authorities"]["current"], false, "{shown:#}");
    let silent = backend.get("/v1/gateways/gw-2").await.json();
    assert!(silent.get("authorities").is_none(), "{silent:#}");
}
