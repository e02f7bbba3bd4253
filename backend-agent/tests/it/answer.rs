//! Requests for certificates that come by hand: what is answered fits, is answered once, and whatever is not right is
//! said in one sentence and changes nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair,
    PKCS_ECDSA_P384_SHA384,
};
use viworks_backend_agent::agent::authorities::Authorities;
use viworks_backend_agent::data::{
    Actor, GatewayRef, OwnPins, PinChange, PinOutcome, PinStep, Store, StoreError,
};
use viworks_backend_agent::pki::PkiError;
use viworks_backend_agent::pki::answer::{Reply, read_request, sign};
use viworks_backend_agent::pki::issue::{Delivery, GATEWAY_LIFE, IssueRequest, Office};
use viworks_backend_agent::pki::request::CertificateRequest;
use viworks_common::enrolment::read_answer_file;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::key::Identity;
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_runtime::clock::{Clock as _, SystemClock, Timeline};
use viworks_runtime::tls;
use viworks_testkit::foreign::ForeignSigner;

use crate::pki::{config, deliver, delivery, initialised, store};

fn plain() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
}

fn made() -> CertificateRequest {
    let key = KeyPair::generate().unwrap();
    let request = plain().serialize_request(&key).unwrap();
    CertificateRequest::read(&request.pem().unwrap()).unwrap()
}

async fn signed(
    store: &dyn Store,
    office: &Office,
    csr: &CertificateRequest,
    name: &str,
    out: &Path,
) -> Result<AgentId, PkiError> {
    let wanted = IssueRequest {
        name: name.parse().unwrap(),
        labels: [("site".to_owned(), "berlin".to_owned())].into(),
        life: GATEWAY_LIFE,
    };
    let reply = Reply {
        out: out.to_owned(),
        url: "wss://localhost:1".to_owned(),
        pin_set_version: 3,
    };
    let (tenant, clock) = (
        Tenant::default_tenant(),
        Timeline::unstored(Arc::new(SystemClock)),
    );
    let request = (csr, &wanted);
    sign(
        store,
        &tenant,
        office,
        request,
        &reply,
        &Actor::system(),
        &clock,
    )
    .await
}

fn draft(out: &Path) -> PathBuf {
    viworks_runtime::files::with_suffix(out, ".unfinished")
}

#[tokio::test]
async fn a_request_is_answered_once_with_everything_that_its_gateway_needs() {
    let folder = initialised();
    let config = config(&folder);
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let (csr, out) = (made(), folder.path().join("gw-1.answer"));
    let id = signed(&*store, &office, &csr, "gw-1", &out).await.unwrap();
    let mode = out.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (answer, secrets) = read_answer_file(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!((answer.agent_id, answer.name.as_str()), (id, "gw-1"));
    assert_eq!((answer.pins.version, answer.pins.pins.len()), (3, 2));
    assert_eq!(answer.labels["site"], "berlin");
    let certificate = tls::one_certificate(answer.certificate.as_bytes()).unwrap();
    assert_eq!(tls::spki_sha256(&certificate).unwrap(), csr.spki);
    let tenant = Tenant::default_tenant();
    let identity = Identity {
        tenant: tenant.clone(),
        agent_id: id,
    };
    assert_eq!(
        secrets.agent_key,
        *office.master.agent_key(&identity, 1).secret()
    );
    assert_eq!(secrets.token, office.master.token(&identity, 0));
    let known = store.certificate(&tenant, id, &csr.spki).await.unwrap();
    assert_eq!(known.unwrap().gateway, answer.name);

    let again = signed(&*store, &office, &csr, "gw-1", &out).await;
    assert!(matches!(again, Err(PkiError::Answered { .. })), "{again:?}");
    let other = folder.path().join("other.answer");
    let elsewhere = signed(&*store, &office, &csr, "gw-1", &other).await;
    let is_known = matches!(elsewhere, Err(PkiError::KeyInUse));
    assert!(is_known, "{elsewhere:?}");
    let in_the_way = signed(&*store, &office, &made(), "gw-3", &out).await;
    let in_the_way = in_the_way.unwrap_err();
    assert!(
        matches!(in_the_way, PkiError::Exists { .. }),
        "{in_the_way}"
    );
    let twice = signed(&*store, &office, &csr, "gw-2", &other).await;
    let twice = twice.unwrap_err();
    assert!(matches!(twice, PkiError::KeyInUse), "{twice}");
    assert!(twice.to_string().contains("--request-out"), "{twice}");
    let taken = signed(&*store, &office, &made(), "gw-1", &other).await;
    let is_taken = matches!(taken, Err(PkiError::Store(StoreError::Conflict { .. })));
    assert!(is_taken, "{taken:?}");
    assert!(!other.exists() && !draft(&other).exists());
    store.close().await;
}

/// Stages a key that the files know nothing of.
async fn stage(store: &dyn Store, office: &Office, staged: SpkiPin) {
    let change = PinChange {
        step: PinStep::Stage,
        pin: staged,
        reason: None,
        own: OwnPins {
            configured: PinSet {
                version: 3,
                pins: office.pins.iter().copied().collect(),
            },
            live: office.pins[0],
        },
    };
    let (tenant, actor) = (Tenant::default_tenant(), Actor::system());
    let change = store.change_pins(&tenant, change, &actor, SystemClock.wall());
    assert_eq!(change.await.unwrap(), PinOutcome::Done);
}

/// Which version of the pin set a gateway has confirmed.
async fn confirmed(store: &dyn Store, name: &str) -> u64 {
    let which = GatewayRef::Name(name.parse().unwrap());
    let found = store.gateway(&Tenant::default_tenant(), &which).await;
    found.unwrap().unwrap().pin_set_version
}

#[tokio::test]
async fn a_gateway_that_is_issued_by_files_gets_the_pins_in_force() {
    let folder = initialised();
    let config = config(&folder);
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let staged = SpkiPin::from_digest([7; 32]);
    stage(&*store, &office, staged).await;
    let delivery = delivery(&folder);
    deliver(&*store, &office, "gw-1", &delivery).await.unwrap();
    let toml = std::fs::read_to_string(delivery.folder.join("gateway.toml")).unwrap();
    let mut rest = toml.as_str();
    // The key that is shown first.
    for pin in [office.pins[0], office.pins[1], staged] {
        let (_before, after) = rest.split_once(&format!("\"{pin}\",")).unwrap();
        rest = after;
    }
    assert_eq!(confirmed(&*store, "gw-1").await, 4);
    store.close().await;
}

#[tokio::test]
async fn a_gateway_that_is_made_by_files_is_known_to_have_the_authorities_that_are_in_them() {
    let folder = initialised();
    let config = config(&folder);
    // Another one behind the one that signs, which no backend has given so far.
    let file = &config.agents.client_ca_file;
    let mut params = plain();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let another = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let both = std::fs::read_to_string(file).unwrap() + &another.pem();
    std::fs::write(file, both).unwrap();
    let given = Authorities::of(&tls::load_certificates(file).unwrap());
    assert_eq!(given.all().len(), 2);

    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let delivery = delivery(&folder);
    deliver(&*store, &office, "gw-1", &delivery).await.unwrap();
    let (csr, out) = (made(), folder.path().join("gw-2.answer"));
    signed(&*store, &office, &csr, "gw-2", &out).await.unwrap();
    let tenant = Tenant::default_tenant();
    for name in ["gw-1", "gw-2"] {
        let which = GatewayRef::Name(name.parse().unwrap());
        let known = store.gateway(&tenant, &which).await.unwrap().unwrap();
        // As it will report them, in whatever order they are in its file.
        assert_eq!(known.authorities.as_deref(), Some(given.digest()));
    }
    let trust = store.authority_trust(&tenant).await.unwrap();
    assert_eq!(trust.all().gateways, 2);
    assert_eq!(trust.lacking(&given.ids()).gateways, 0);
    store.close().await;
}

#[tokio::test]
async fn a_gateway_that_is_issued_by_files_knows_the_door_where_there_is_one() {
    let folder = initialised();
    let store = store(&config(&folder)).await;
    let file = folder.path().join("b/backend.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    let url = "https://agents.example.org:8082";
    let door =
        format!("{written}\n[enrolment]\nlisten = \"127.0.0.1:0\"\npublic_url = \"{url}\"\n");
    for (number, (text, known)) in [(&written, false), (&door, true)].into_iter().enumerate() {
        std::fs::write(&file, text).unwrap();
        let office = Office::open(&config(&folder)).unwrap();
        let delivery = Delivery {
            folder: folder.path().join(format!("g{number}")),
            ..delivery(&folder)
        };
        let name = format!("gw-{number}");
        deliver(&*store, &office, &name, &delivery).await.unwrap();
        let toml = std::fs::read_to_string(delivery.folder.join("gateway.toml")).unwrap();
        let told = toml.contains(&format!("\ndoor_url = \"{url}\"\n"));
        assert_eq!(told, known, "{toml}");
    }
    store.close().await;
}

#[tokio::test]
async fn an_answer_has_the_pins_that_the_door_would_give() {
    let folder = initialised();
    let config = config(&folder);
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let staged = SpkiPin::from_digest([7; 32]);
    stage(&*store, &office, staged).await;
    let out = folder.path().join("gw-1.answer");
    let made = signed(&*store, &office, &made(), "gw-1", &out).await;
    made.unwrap();
    let (answer, _secrets) = read_answer_file(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!((answer.pins.version, answer.pins.pins.len()), (4, 3));
    assert!(answer.pins.contains(&staged) && answer.pins.contains(&office.pins[0]));
    assert_eq!(confirmed(&*store, "gw-1").await, 4);
    store.close().await;
}

#[tokio::test]
async fn an_answer_that_was_interrupted_is_gone_on_with_and_no_other_takes_its_place() {
    let folder = initialised();
    let config = config(&folder);
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let (csr, out) = (made(), folder.path().join("gw-1.answer"));
    // Before it was written whole.
    std::fs::write(draft(&out), "{\"viworks_enrol").unwrap();
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(draft(&out), private).unwrap();
    let id = signed(&*store, &office, &csr, "gw-1", &out).await.unwrap();
    assert!(!draft(&out).exists());
    // After its gateway was registered.
    let whole = std::fs::read(&out).unwrap();
    std::fs::rename(&out, draft(&out)).unwrap();
    let renamed = signed(&*store, &office, &csr, "gw-2", &out).await;
    assert!(matches!(renamed, Err(PkiError::KeyInUse)), "{renamed:?}");
    let other = signed(&*store, &office, &made(), "gw-3", &out).await;
    assert!(matches!(other, Err(PkiError::Exists { .. })), "{other:?}");
    let finished = signed(&*store, &office, &csr, "gw-1", &out).await;
    assert_eq!(finished.unwrap(), id);
    assert_eq!(std::fs::read(&out).unwrap(), whole);
    store.close().await;
}

#[test]
fn a_request_by_hand_that_is_no_good_is_refused_in_one_sentence() {
    tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gw-1.csr");
    let key = || KeyPair::generate().unwrap();
    let pem = |params: &CertificateParams, key: &KeyPair| {
        params.serialize_request(key).unwrap().pem().unwrap()
    };
    let weak = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let mut named = plain();
    named.distinguished_name.push(DnType::CommonName, "admin");
    let foreign = ForeignSigner {
        shown: key(),
        own: key(),
    };
    let foreign = plain().serialize_request(&foreign).unwrap().pem().unwrap();
    for (text, told) in [
        (pem(&plain(), &weak), "another kind of key than ECDSA P-256"),
        (pem(&named, &key()), "asks for names or uses"),
        (foreign, "not signed by the key that it is for"),
        ("no request".to_owned(), "send one PKCS #10 request"),
    ] {
        std::fs::write(&path, text).unwrap();
        let refused = read_request(&path).unwrap_err().to_string();
        assert!(refused.contains(told), "{refused}");
        assert!(refused.contains("gw-1.csr"), "{refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
}

#[tokio::test]
async fn an_answer_with_too_long_a_name_is_told_of_as_that_and_nobody_is_registered() {
    let folder = initialised();
    let config = config(&folder);
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let csr = made();
    // One that a file may have, and its draft may not, and one that no file has.
    for length in [250, 300] {
        let out = folder.path().join("x".repeat(length));
        match signed(&*store, &office, &csr, "gw-1", &out).await {
            Err(PkiError::Write { path, source }) => {
                let kind = std::io::ErrorKind::InvalidFilename;
                assert_eq!((path, source.kind()), (out, kind));
            }
            other => panic!("{other:?}"),
        }
    }
    let which = GatewayRef::Name("gw-1".parse().unwrap());
    let known = store.gateway(&Tenant::default_tenant(), &which).await;
    assert!(known.unwrap().is_none());
}
