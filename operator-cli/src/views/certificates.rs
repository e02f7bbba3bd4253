//! The certificates of a gateway: the list, and one that was revoked.

use viworks_api::{CertificateList, CertificateRevoked, CertificateState, GatewayCertificate};
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};
use crate::program;

/// Prints a row for each.
pub fn list(list: &CertificateList, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    output::table(
        ["SERIAL", "STATE", "FROM", "UNTIL", "FINGERPRINT"],
        list.items.iter().map(|certificate| {
            [
                one_line(&certificate.serial),
                state(certificate, now),
                human::relative(certificate.registered_at, now),
                human::relative(certificate.not_after, now),
                one_line(&certificate.fingerprint),
            ]
        }),
    )?;
    let good = |certificate: &&GatewayCertificate| {
        let accepted = match certificate.state {
            CertificateState::InUse | CertificateState::ToBeProved => true,
            CertificateState::Retired | CertificateState::Revoked => false,
        };
        accepted && certificate.not_after > now
    };
    output::note(&format!(
        "{}, {} of them accepted",
        human::counted(list.items.len(), "certificate", "certificates"),
        list.items.iter().filter(good).count()
    ));
    Ok(())
}

/// One that has ended is of no use, whatever else it is.
fn state(certificate: &GatewayCertificate, now: Timestamp) -> String {
    let words = certificate.state.words();
    if certificate.not_after <= now {
        format!("{words}, ended")
    } else {
        words.to_owned()
    }
}

/// What is asked before one is revoked.
#[must_use]
pub fn farewell(gateway: &str, certificate: &str) -> String {
    format!(
        "The certificate {certificate} of {gateway} is refused from then on, for good, and a session with it ends; if it \
         is the only one, the machine needs a new identity."
    )
}

/// Says what became of it.
pub fn revoked(
    revoked: &CertificateRevoked,
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(revoked);
    }
    output::line(&one_line(&fate(revoked, now)))?;
    for step in goes_on(revoked, now) {
        output::note(&one_line(&step));
    }
    output::note(&format!(
        "what {} still has: {} gateway certificates {}",
        revoked.gateway.name,
        program::name(),
        revoked.gateway.name
    ));
    Ok(())
}

/// What may be in the same hands as the one that was revoked, and how that is revoked too.
fn goes_on(revoked: &CertificateRevoked, now: Timestamp) -> Vec<String> {
    let name = &revoked.gateway.name;
    let step = |other: &GatewayCertificate| {
        let since = human::relative_and_exact(other.registered_at, now);
        format!(
            "{name} was issued another one {since}, which is good and was in no session so far: {}; unless the machine \
             itself asked for it, revoke it too: {} gateway revoke {name} --certificate {} --reason TEXT",
            other.fingerprint,
            program::name(),
            other.fingerprint
        )
    };
    revoked.to_be_proved.iter().map(step).collect()
}

fn fate(revoked: &CertificateRevoked, now: Timestamp) -> String {
    let mut which = format!(
        "the certificate {} of {}",
        revoked.certificate.serial, revoked.gateway.name
    );
    if let Some(named) = &revoked.named {
        let since = human::relative_and_exact(named.reissued_at, now);
        let earlier = &named.serial;
        which = format!("{which}, which its key got at the door {since} in place of {earlier},");
    }
    if revoked.already {
        let when = revoked.certificate.since;
        let when = when.map_or_else(String::new, |at| format!(", {}", human::happened(at, now)));
        return format!("{which} was revoked already{when}");
    }
    if revoked.session_ended {
        format!("{which} is revoked; the session with it is ended")
    } else {
        format!("{which} is revoked; no session was open with it")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn certificate(state: &str) -> GatewayCertificate {
        let certificate = json!({
            "serial": "0a1f", "fingerprint": "3b".repeat(32), "registered_at": "2026-01-01T00:00:00Z",
            "not_after": "2026-02-01T00:00:00Z", "state": state, "since": "2026-01-02T00:00:00Z",
        });
        serde_json::from_value(certificate).unwrap()
    }

    #[test]
    fn what_a_certificate_is_good_for_is_said_and_whether_it_ended() {
        let at = |text| Timestamp::parse(text).unwrap();
        let (before, after) = (at("2026-01-31T00:00:00Z"), at("2026-02-01T00:00:00Z"));
        assert_eq!(state(&certificate("in_use"), before), "in use");
        assert_eq!(state(&certificate("to_be_proved"), before), "to be proved");
        assert_eq!(state(&certificate("retired"), after), "retired, ended");
    }

    #[test]
    fn a_renewal_that_is_not_proved_is_named_with_how_to_revoke_it() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let revoked = json!({
            "kind": "CertificateRevoked", "already": false, "session_ended": true,
            "gateway": {"id": "00000000-0000-4000-8000-000000000001", "name": "gw-1"},
            "certificate": certificate("revoked"), "to_be_proved": [certificate("to_be_proved")],
        });
        let mut revoked: CertificateRevoked = serde_json::from_value(revoked).unwrap();
        let told = goes_on(&revoked, now).join("\n");
        let command = format!("gateway revoke gw-1 --certificate {}", "3b".repeat(32));
        assert!(told.contains(&command), "{told}");
        revoked.to_be_proved.clear();
        assert!(goes_on(&revoked, now).is_empty());
    }

    #[test]
    fn of_an_earlier_certificate_it_is_said_which_one_its_key_has_now() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let revoked = json!({
            "kind": "CertificateRevoked", "already": false, "session_ended": true,
            "gateway": {"id": "00000000-0000-4000-8000-000000000001", "name": "gw-1"},
            "certificate": certificate("revoked"),
            "named": {
                "serial": "0b2e", "fingerprint": "4c".repeat(32), "not_after": "2026-01-02T01:00:00Z",
                "reissued_at": "2026-01-02T00:55:00Z",
            },
        });
        let told = fate(&serde_json::from_value(revoked).unwrap(), now);
        let expected = "the certificate 0a1f of gw-1, which its key got at the door ";
        assert!(told.starts_with(expected), "{told}");
        let expected = " in place of 0b2e, is revoked; the session with it is ended";
        assert!(told.ends_with(expected), "{told}");
    }

    #[test]
    fn what_became_of_a_certificate_is_told_and_nothing_that_did_not_happen() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let told = |already, session_ended| {
            let revoked = json!({
                "kind": "CertificateRevoked", "already": already, "session_ended": session_ended,
                "gateway": {"id": "00000000-0000-4000-8000-000000000001", "name": "gw-1"},
                "certificate": certificate("revoked"),
            });
            fate(&serde_json::from_value(revoked).unwrap(), now)
        };
        let which = "the certificate 0a1f of gw-1";
        assert_eq!(
            told(false, true),
            format!("{which} is revoked; the session with it is ended")
        );
        assert_eq!(
            told(false, false),
            format!("{which} is revoked; no session was open with it")
        );
        let again = told(true, false);
        assert!(
            again.starts_with(&format!("{which} was revoked already, ")),
            "{again}"
        );
    }
}
