//! The verdicts that `pki_verify` gives, on a small suite with one case for each thing that can be wrong.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType, date_time_ymd,
};
use serde_json::{Value, json};

#[path = "../../examples/pki_verify/limbo.rs"]
#[expect(
    clippy::module_inception,
    reason = "the file of the example has its name"
)]
mod limbo;

use limbo::Verdict::{self, Failure, Skipped, Success};

const URI: &str =
    "spiffe://viworks.test/tenant/default/gateway/01900000-0000-7000-8000-0000000000ab";

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2030, 1, 1);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(issuer: &Authority, purpose: ExtendedKeyUsagePurpose, names: Vec<SanType>) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "leaf");
    params.subject_alt_names = names;
    params.extended_key_usages = vec![purpose];
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, issuer).unwrap().pem()
}

fn server(issuer: &Authority) -> String {
    let name = SanType::DnsName("backend.test".try_into().unwrap());
    leaf(issuer, ExtendedKeyUsagePurpose::ServerAuth, vec![name])
}

fn client(issuer: &Authority, uris: &[&str]) -> String {
    let uris = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()));
    leaf(issuer, ExtendedKeyUsagePurpose::ClientAuth, uris.collect())
}

/// A case in the form of the suite, with fields that are not looked at as well.
fn case(id: &str, authority: &Authority, peer: &str) -> Value {
    json!({
        "id": id,
        "features": [],
        "description": "one thing",
        "validation_kind": "SERVER",
        "trusted_certs": [authority.pem()],
        "untrusted_intermediates": [],
        "peer_certificate": peer,
        "validation_time": "2026-06-01T00:00:00+00:00",
        "signature_algorithms": [],
        "key_usage": [],
        "extended_key_usage": [],
        "expected_result": "SUCCESS",
        "expected_peer_name": {"kind": "DNS", "value": "backend.test"},
        "expected_peer_names": [],
    })
}

fn judge(cases: &[Value]) -> Vec<limbo::Verdicts> {
    let suite = json!({"version": 1, "testcases": cases});
    limbo::judge(&serde_json::from_value(suite).unwrap()).unwrap()
}

fn verdicts(case: Value) -> (Verdict, Verdict) {
    let judged = judge(&[case]);
    (judged[0].client, judged[0].server)
}

#[test]
fn each_verifier_accepts_its_own_kind_of_certificate_and_refuses_the_other() {
    let ours = authority("ours");
    let good = case("server", &ours, &server(&ours));
    assert_eq!(verdicts(good), (Failure, Success));
    let good = case("client", &ours, &client(&ours, &[URI]));
    assert_eq!(verdicts(good), (Success, Failure));
}

#[test]
fn the_time_of_the_case_decides() {
    let ours = authority("ours");
    for (time, result) in [
        ("2025-12-31T23:59:59+00:00", Failure),
        ("2026-01-01T00:00:00+00:00", Success),
        ("2027-01-01T00:00:01+00:00", Failure),
    ] {
        let mut as_server = case("server", &ours, &server(&ours));
        as_server["validation_time"] = time.into();
        assert_eq!(verdicts(as_server).1, result, "{time}");
        let mut as_client = case("client", &ours, &client(&ours, &[URI]));
        as_client["validation_time"] = time.into();
        assert_eq!(verdicts(as_client).0, result, "{time}");
    }
}

#[test]
fn another_authority_and_no_authority_are_both_refused() {
    let (ours, stranger) = (authority("ours"), authority("stranger"));
    // The name of the authority is no proof: this one has ours with another key.
    let impostor = authority("ours");
    for issuer in [&stranger, &impostor] {
        assert_eq!(verdicts(case("x", &ours, &server(issuer))).1, Failure);
        assert_eq!(
            verdicts(case("x", &ours, &client(issuer, &[URI]))).0,
            Failure
        );
    }
    let mut nobody = case("x", &ours, &server(&ours));
    nobody["trusted_certs"] = json!([]);
    assert_eq!(verdicts(nobody), (Failure, Failure));
}

#[test]
fn a_server_of_another_name_is_refused() {
    let ours = authority("ours");
    let mut other = case("x", &ours, &server(&ours));
    other["expected_peer_name"]["value"] = "other.test".into();
    assert_eq!(verdicts(other).1, Failure);
}

#[test]
fn only_one_uri_names_a_gateway_whatever_the_chain_says() {
    let ours = authority("ours");
    let second = URI.replace("00ab", "00ac");
    let judged = judge(&[
        case("one", &ours, &client(&ours, &[URI])),
        case("two", &ours, &client(&ours, &[URI, &second])),
        case("none", &ours, &client(&ours, &[])),
    ]);
    let named: Vec<_> = judged
        .iter()
        .map(|v| (v.client, v.gateway.as_deref(), v.gateway_reason.is_some()))
        .collect();
    assert_eq!(
        named,
        [
            (Success, Some(URI), false),
            (Success, None, true),
            (Success, None, true)
        ]
    );
}

#[test]
fn what_the_verifiers_cannot_be_asked_is_skipped_with_a_reason() {
    let ours = authority("ours");
    let mut revoked = case("x", &ours, &server(&ours));
    revoked["crls"] = json!(["-----BEGIN X509 CRL-----"]);
    assert_eq!(verdicts(revoked), (Skipped, Skipped));
    let mut unnamed = case("x", &ours, &client(&ours, &[URI]));
    unnamed["expected_peer_name"] = Value::Null;
    let judged = judge(&[unnamed]);
    assert_eq!((judged[0].client, judged[0].server), (Success, Skipped));
    assert!(judged[0].server_reason.is_some());
}

#[test]
fn the_verdicts_are_written_in_the_words_of_the_suite() {
    let ours = authority("ours");
    let written = serde_json::to_value(judge(&[case("x", &ours, &server(&ours))])).unwrap();
    assert_eq!(written[0]["id"], "x");
    assert_eq!(written[0]["server"], "SUCCESS");
    assert_eq!(written[0]["client"], "FAILURE");
}
