//! Clocks, refusals and authorities at the door.

use rcgen::{BasicConstraints, CertificateParams, IsCa, PKCS_ECDSA_P256_SHA256};
use uuid::Uuid;
use viworks_common::id::AgentId;
use viworks_common::key::{AgentKey, Secret};
use viworks_runtime::clock::SystemClock;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn at(hours: u32) -> Timestamp {
    Timestamp::from_unix_micros(1_790_000_000_000_000).saturating_add(HOUR * hours)
}

#[test]
fn a_clock_that_is_wrong_asks_for_nothing_and_is_told_by_how_much() {
    // Ended by both.
    assert!(clocks_agree(at(100), at(200), at(200)).is_ok());
    assert!(clocks_agree(at(100), at(210), at(200)).is_ok());
    // Only by the gateway's own, which is a year ahead.
    let vain = clocks_agree(at(100), at(8_800), at(40)).unwrap_err();
    assert!(vain.cause.contains("has not ended"), "{}", vain.cause);
    assert!(vain.cause.contains("365 d"), "{}", vain.cause);
    assert!(vain.cause.contains("ahead of the backend's"));
    assert_eq!(vain.fix, FIX_CLOCK);
    // Ended, and no certificate of today is good by this clock.
    let vain = clocks_agree(at(100), at(10), at(200)).unwrap_err();
    assert!(
        vain.cause.contains("behind the backend's"),
        "{}",
        vain.cause
    );
    assert_eq!(vain.came, AtDoor::Refused(None));
}

#[test]
fn what_is_said_at_the_door_decides_when_it_is_asked_again_and_for_which_key() {
    let refused = |code: &str, for_certain| {
        Vain::from(DoorFailure::Refused {
            code: code.to_owned(),
            detail: "because".to_owned(),
            retry_after: Some(HOUR),
            for_certain,
            authorities: None,
        })
    };
    assert_eq!(refused("revoked", true).came, AtDoor::Refused(Some(HOUR)));
    assert_eq!(refused("unavailable", false).came, AtDoor::Unheard);
    for (code, of_the_key) in [
        ("retired_key", true),
        (CERTIFICATE_REVOKED, true),
        ("unknown_key", true),
        ("revoked", false),
    ] {
        assert_eq!(refused(code, true).is_of_the_key, of_the_key, "{code}");
    }
    let revoked = refused(CERTIFICATE_REVOKED, true);
    assert!(revoked.cause.contains(CERTIFICATE_REVOKED));
    assert!(
        revoked.fix.contains("viworks gateway replace NAME"),
        "{}",
        revoked.fix
    );
    let thrown_out = refused("revoked", true).fix;
    assert!(
        thrown_out.contains("viworks gateway replace NAME, then viworks-gateway-agent enroll"),
        "{thrown_out}"
    );
    for (code, of_the_agent_key) in [
        ("bad_proof", true),
        ("stale_agent_key", true),
        ("bad_token", false),
        ("retired_key", false),
    ] {
        let vain = refused(code, true);
        assert_eq!(vain.is_of_the_agent_key, of_the_agent_key, "{code}");
    }
    let other = Vain::from(DoorFailure::OtherServer {
        place: "door.test:8082".to_owned(),
        seen: SpkiPin::from_digest([7; 32]),
    });
    assert_eq!((other.came, other.fix), (AtDoor::Unheard, FIX_PIN));
}

/// An authority's certificate, PEM.
fn authority() -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem()
}

fn exchange(key: u8) -> LapsedExchange {
    let key = AgentKey::new(Secret::from_bytes([key; 32]));
    let agent_id = AgentId::from_uuid(Uuid::from_u128(2));
    LapsedExchange::new(&key, agent_id, &WireChallenge([3; 32]))
}

#[tokio::test]
async fn authorities_at_the_door_are_taken_from_the_backend_and_from_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(trust::FILE);
    let (own, nobody) = (exchange(1), Arc::new(RootCertStore::empty()));
    // Somebody who has the server's key and not that of this gateway, and an answer to another request.
    for given in [
        exchange(9).give(b"request", authority()),
        own.give(b"another", authority()),
    ] {
        let taken = take_over(folder.path(), &nobody, &own, b"request", &given).await;
        assert_eq!(taken.unwrap_err().fix, FIX_FORGED);
        assert!(!file.exists());
    }
    let bundle = authority();
    let given = own.give(b"request", bundle.clone());
    let taken = take_over(folder.path(), &nobody, &own, b"request", &given).await;
    assert!(taken.is_ok_and(|is_new| is_new));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), bundle);
    let again = take_over(folder.path(), &nobody, &own, b"request", &given).await;
    assert!(again.is_ok_and(|is_new| !is_new), "written again");
    // What is authentic is judged all the same.
    let none = own.give(b"request", String::new());
    let taken = take_over(folder.path(), &nobody, &own, b"request", &none).await;
    assert_eq!(taken.unwrap_err().fix, FIX_BY_HAND);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), bundle);
}

#[test]
fn only_other_authorities_help_against_one_that_is_not_known() {
    let fix = |is_other| {
        suffices(Errand::Authorities, is_other)
            .err()
            .map(|vain| vain.fix)
    };
    assert_eq!(fix(Some(true)), None);
    assert_eq!(fix(Some(false)), Some(FIX_OTHERS));
    assert_eq!(fix(None), Some(FIX_BY_HAND));
    for is_other in [None, Some(false), Some(true)] {
        assert!(suffices(Errand::Certificate, is_other).is_ok());
    }
}

#[test]
fn whoever_waits_at_the_door_says_for_what_and_why() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let conditions = Conditions::new(Arc::clone(&clock));
    let folder = tempfile::tempdir().unwrap();
    let lapsed = Lapsed::new(folder.path().to_owned(), conditions.clone(), clock);
    let (url, pause) = ("https://door.test:8082", Duration::from_secs(85));
    let told = |errand: Errand| {
        let mut all = conditions.list().into_iter();
        all.find(|known| known.name == errand.condition())
            .map(|known| (known.cause, known.fix))
    };
    // What came did not help: that is told while nobody is asked.
    lapsed.state().gave = Some(Errand::Authorities);
    for (errand, cause, fix) in [
        (Errand::Authorities, "did not help", FIX_OTHERS),
        (Errand::Certificate, "asking the door at", FIX_WAIT),
    ] {
        assert_eq!(told(errand), None);
        lapsed.tell_pause(url, errand, at(100), pause);
        let (said, help) = told(errand).unwrap();
        assert!(
            said.contains(cause) && said.contains("in 1 min 25 s"),
            "{said}"
        );
        assert_eq!(help, fix);
    }
    // What the door said stands until it is asked again.
    let condition = Errand::Authorities.condition();
    conditions.raise(condition, Severity::Fail, "refused", FIX_REFUSED);
    lapsed.tell_pause(url, Errand::Authorities, at(100), pause);
    assert_eq!(told(Errand::Authorities).unwrap().0, "refused");
    lapsed.settle();
    assert_eq!(told(Errand::Authorities), None);
}

#[test]
fn a_clock_by_which_no_session_would_be_opened_is_told_before_anything_is_asked() {
    let fresh = Some((at(190), at(8_000)));
    assert!(clock_is_right(at(200), at(200), fresh).is_ok());
    let vain = clock_is_right(at(100), at(200), fresh).unwrap_err();
    assert!(vain.cause.contains("4 d"), "{}", vain.cause);
    assert_eq!(vain.fix, FIX_CLOCK);
}

#[test]
fn the_key_of_a_certificate_can_be_written_beside_another_one() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let read = pair(&der).unwrap_or_else(|vain| panic!("{}", vain.cause));
    assert_eq!(read.serialize_der(), key.serialize_der());
}
