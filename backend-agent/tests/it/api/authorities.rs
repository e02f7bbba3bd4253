//! The authorities that gateways are given, as operators see them.

use std::time::Duration;

use serde_json::json;
use viworks_backend_agent::data::{Actor, AuthorityBundle, NewCertificate};
use viworks_common::id::AgentId;

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

#[tokio::test]
async fn whoever_needs_an_authority_and_whoever_is_cut_off_without_one_is_named() {
    let backend = Backend::new().await;
    let trusted = backend.authorities().issuers();
    let own = trusted.first().copied();
    let certify = async |agent_id: AgentId, byte: u8, issuer: Option<[u8; 32]>| {
        let new = NewCertificate {
            agent_id,
            spki: [byte; 32],
            serial: format!("0a{byte:02x}"),
            not_after: now().saturating_add(Duration::from_secs(3_600)),
            fingerprint: [byte; 32],
            issuer,
        };
        let actor = Actor::local("test");
        let registered = backend
            .store
            .register_certificate(&backend.tenant, new, &actor, now());
        registered.await.unwrap();
    };
    certify(backend.register("gw-1").await, 1, own).await;
    certify(backend.register("gw-2").await, 2, Some([9; 32])).await;
    certify(backend.register("gw-3").await, 3, None).await;
    let told = backend.get("/v1/authorities").await.json();
    let authority = &told["authorities"][0];
    assert_eq!(authority["needed_by"], 1, "{told:#}");
    assert_eq!(authority["needed_by_off"], 1, "{told:#}");
    // Where there is one, nobody asks whether it may be taken out.
    assert_eq!(authority["needed_by_first"], json!([]), "{told:#}");
    let expected = json!({
        "cut_off": 1, "cut_off_first": ["gw-2"], "unknown": 1, "unknown_first": ["gw-3"],
    });
    assert_eq!(told["signers"], expected, "{told:#}");

    // Of each gateway it is said as well, in the list and where one is shown.
    let listed = backend.get("/v1/gateways").await.json();
    for (n, (name, is_cut_off)) in [("gw-1", false), ("gw-2", true), ("gw-3", false)]
        .into_iter()
        .enumerate()
    {
        assert_eq!(listed["items"][n]["name"], name, "{listed:#}");
        let told = &listed["items"][n]["certificate_unknown_ca"];
        assert_eq!(*told, is_cut_off, "{listed:#}");
        let shown = backend.get(&format!("/v1/gateways/{name}")).await.json();
        assert_eq!(shown["certificate_unknown_ca"], is_cut_off, "{shown:#}");
    }
}
