//! What comes of requests that are not good: each has one sentence with the fix, a record in the audit trail, and
//! changes nothing on either end.

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize, SanType,
    SigningKey,
};
use serde_json::{Value, json};
use uuid::Uuid;
use viworks_common::enrolment::{
    EnrolmentChallenge, EnrolmentRequest, Exchange, RedeemRequest, Ticket,
};
use viworks_common::id::InstallId;
use viworks_testkit::deployment::Deployment;
use viworks_testkit::door;
use viworks_testkit::foreign::ForeignSigner;
use viworks_testkit::process::finish;

use super::{LIMIT, backend, enroll, folder, gateways, good_for, latest_attempt, ticket};
use viworks_testkit::faketime::library;

/// Redeems a ticket with whatever request, proved as it should be; the status and what was said.
pub(super) async fn redeem(
    system: &Deployment,
    ticket: &Ticket,
    csr: &str,
    name: Option<&str>,
) -> (u16, Value) {
    let (body, proof) = proved(system, ticket, csr, name).await;
    let (address, authority) = (system.door_address(), system.authority());
    let answer = door::ask(address, &authority, b"", &body, Some(&proof)).await;
    answer.unwrap()
}

/// A redemption as it is sent, with its proof.
async fn proved(
    system: &Deployment,
    ticket: &Ticket,
    csr: &str,
    name: Option<&str>,
) -> (Vec<u8>, String) {
    let (address, authority) = (system.door_address(), system.authority());
    let asked = EnrolmentRequest::Challenge { ticket: ticket.id };
    let asked = serde_json::to_vec(&asked).unwrap();
    let answer = door::ask(address, &authority, b"", &asked, None).await;
    let (status, answer) = answer.unwrap();
    assert_eq!(status, 200, "{answer}");
    let EnrolmentChallenge { challenge, .. } = serde_json::from_value(answer).unwrap();
    let request = EnrolmentRequest::Redeem(RedeemRequest {
        ticket: ticket.id,
        challenge,
        csr: csr.to_owned(),
        install_id: InstallId::from_uuid(Uuid::from_u128(1)),
        name: name.map(|name| name.parse().unwrap()),
        host: "edge-7".to_owned(),
        agent_version: "0.1.0".parse().unwrap(),
    });
    let body = serde_json::to_vec(&request).unwrap();
    let proof = Exchange::new(&ticket.secret, ticket.id, &challenge).prove(&body);
    (body, proof)
}

pub(super) fn plain() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
}

pub(super) fn request(params: &CertificateParams, key: &impl SigningKey) -> String {
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// Every request that is not good, with its code and what is said.
fn bad_requests() -> Vec<(&'static str, String, &'static str, &'static str)> {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let foreign = ForeignSigner {
        shown: key(),
        own: key(),
    };
    let mut named = plain();
    named.distinguished_name.push(DnType::CommonName, "admin");
    let mut elsewhere = plain();
    elsewhere.subject_alt_names = vec![SanType::DnsName("a.test".try_into().unwrap())];
    let mut serving = plain();
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let kind = "another kind of key than ECDSA P-256";
    let names = "asks for names or uses: leave them out";
    let text = "send one PKCS #10 request, PEM".to_owned();
    vec![
        ("rsa", request(&plain(), &rsa), "csr_key", kind),
        ("p384", request(&plain(), &p384), "csr_key", kind),
        (
            "foreign",
            request(&plain(), &foreign),
            "csr_signature",
            "not signed by the key that it is for",
        ),
        ("named", request(&named, &key()), "csr_names", names),
        ("elsewhere", request(&elsewhere, &key()), "csr_names", names),
        ("serving", request(&serving, &key()), "csr_names", names),
        ("none", text, "csr_malformed", "send one PKCS #10 request"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_or_a_name_that_is_no_good_is_told_of_audited_and_costs_nothing() {
    let system = backend().await;
    let whole = ticket(&system, &json!({"uses": 1, "name_prefix": "gw-"})).await;
    let parsed: Ticket = whole.parse().unwrap();
    let good = request(&plain(), &KeyPair::generate().unwrap());
    let mut cases = bad_requests();
    let bad = cases.len();
    cases.push(("edge", good.clone(), "bad_name", "begin with \"gw-\""));
    for (n, (what, csr, code, told)) in cases.into_iter().enumerate() {
        let name = (n == bad).then_some(what);
        let (status, said) = redeem(&system, &parsed, &csr, name).await;
        assert!((400..500).contains(&status), "{what}: {said}");
        assert_eq!(said["code"], code, "{what}: {said}");
        let detail = said["detail"].as_str().unwrap();
        assert!(detail.contains(told), "{what}: {detail}");
        let noted = latest_attempt(&system).await;
        assert_eq!(noted["outcome"], "refused", "{what}: {noted}");
        assert_eq!(noted["detail"]["why"], code, "{what}: {noted}");
        assert_eq!(noted["detail"]["told"], detail, "{what}: {noted}");
        assert_eq!(noted["detail"]["peer"], "127.0.0.1", "{what}: {noted}");
        let tickets = system.get("/v1/tickets").await;
        let shown = &tickets["items"][0];
        assert_eq!(
            (&shown["uses"], &shown["refusals"]),
            (&json!(0), &json!(n + 1))
        );
        assert!(gateways(&system).await.is_empty(), "{what}");
    }
    // Without the proof of somebody who has the ticket.
    let other = Ticket {
        secret: viworks_common::key::Secret::from_bytes([7; 32]),
        ..whole.parse().unwrap()
    };
    let (status, said) = redeem(&system, &other, &good, None).await;
    assert_eq!(
        (status, &said["code"]),
        (403, &json!("bad_proof")),
        "{said}"
    );
    // Nothing is written for that one.
    let noted = latest_attempt(&system).await;
    assert_eq!(noted["detail"]["why"], "bad_name", "{noted}");
    let tickets = system.get("/v1/tickets").await;
    assert_eq!(tickets["items"][0]["refusals"], bad + 1, "{tickets}");
    // It is as good as it was; and who asks for a name that somebody has is on record as well.
    good_for(&system, "gw-first", &whole).await;
    let next = ticket(&system, &json!({"uses": 1})).await.parse().unwrap();
    let (status, said) = redeem(&system, &next, &good, Some("gw-first")).await;
    assert_eq!(
        (status, &said["code"]),
        (409, &json!("name_taken")),
        "{said}"
    );
    let noted = latest_attempt(&system).await;
    assert_eq!(noted["detail"]["why"], "name_taken", "{noted}");
    assert_eq!(gateways(&system).await.len(), 1);
    // What was taken once is not taken again, to the byte and with its proof.
    let (body, proof) = proved(&system, &next, &good, Some("gw-second")).await;
    let (address, authority) = (system.door_address(), system.authority());
    for status in [200, 409, 409] {
        let answer = door::ask(address, &authority, b"", &body, Some(&proof)).await;
        let (answered, said) = answer.unwrap();
        assert_eq!(answered, status, "{said}");
        let is_refused = said["code"] == "challenge";
        assert_eq!(is_refused, status == 409, "{said}");
    }
    let noted = latest_attempt(&system).await;
    assert_eq!(noted["detail"]["why"], "challenge", "{noted}");
    assert_eq!(gateways(&system).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_clock_is_a_year_off_is_told_by_how_much_and_asks_for_nothing() {
    let Some(library) = library() else {
        return;
    };
    let system = backend().await;
    let ticket = ticket(&system, &json!({"uses": 1})).await;
    let home = folder(&system, "gw-1");
    for (offset, told) in [
        ("-8766h", "clock is 365 days behind the backend's"),
        ("+8766h", "clock is 365 days ahead of the backend's"),
        // The backend's certificate is of today.
        ("-23h", "behind the backend's"),
    ] {
        let mut command = enroll(&system, &home, &ticket, &["--name", "gw-1"]);
        command
            .env("LD_PRELOAD", &library)
            .env("FAKETIME", offset)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let said = finish(command, LIMIT).await.ended_with(1);
        assert!(said.stderr.contains(told), "{said:?}");
        assert!(said.stderr.contains("set it"), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        let is_left = home.exists();
        assert_eq!(
            (is_left, gateways(&system).await.len()),
            (false, 0),
            "{offset}"
        );
    }
    good_for(&system, "gw-1", &ticket).await;
}
