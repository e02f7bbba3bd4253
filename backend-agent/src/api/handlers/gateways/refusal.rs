//! What is told of the last time that a gateway was refused a session: why in words, and what to do about it.

use viworks_api::GatewayRefusal;
use viworks_common::code::CloseCode;
use viworks_common::id::GatewayName;

use crate::data::LastRefusal;

/// As operators see it.
pub(super) fn told(last: LastRefusal, name: &GatewayName) -> GatewayRefusal {
    let (cause, fix) = words(&last.why);
    GatewayRefusal {
        at: last.at,
        cause: cause.to_owned(),
        fix: fix.replace("NAME", name.as_str()),
        why: last.why,
        peer_address: last.peer_address,
    }
}

/// The cause and the fix of each; what a later version recorded has its own word only.
fn words(why: &str) -> (&'static str, &'static str) {
    match why {
        "fork" => (
            "its state was lost or restored, or another machine holds a copy of its identity: a later session was seen",
            CloseCode::IdentityFork.advice(),
        ),
        "bad_token" => (
            "it did not have the token of the session that it named: its state folder is older than its identity file, \
             or of another gateway",
            "put the state folder and the identity file of one machine together; where they are lost: viworks gateway \
             replace NAME",
        ),
        "stale_key" => (
            "it showed an agent key that a later one has superseded: an older identity file was put back, or somebody \
             has a copy of it",
            "put the latest key back (agent_keys.json in its state folder), or let the machine in anew: viworks \
             gateway replace NAME; viworks gateway forks says whether there are two",
        ),
        "revoked" => ("the gateway was revoked", CloseCode::Revoked.advice()),
        "hello_replayed" => (
            "a HELLO came that was used before: somebody recorded it",
            CloseCode::Replay.advice(),
        ),
        "wrong_agent_key" => (
            "whoever dialled has its certificate and not its agent key",
            "see that its identity file is the one that came with the certificate and that this backend has its \
             master key; otherwise somebody took the certificate: viworks gateway revoke NAME --reason TEXT",
        ),
        "retired_certificate" => (
            "it showed a certificate that a later one has replaced",
            "look for the machine behind the address: it has a copy of the gateway's files, or its own were put back; \
             where it is the right one, let it in anew: viworks gateway replace NAME",
        ),
        "unregistered_certificate" => (
            "it showed a certificate of this backend's authority that is registered for nobody",
            "see that this backend uses the database in which the gateway is; otherwise somebody made a certificate \
             without registering it, or the database is older than it: let the machine in anew",
        ),
        "revoked_certificate" => (
            "it showed a certificate that was revoked",
            "no action if the gateway goes on with another one; otherwise let the machine in anew: viworks gateway \
             replace NAME",
        ),
        _ => (
            "this version of the backend has no words for it",
            "see the audit trail: viworks audit ls -g NAME --outcome refused",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use viworks_common::time::Timestamp;

    use super::*;

    #[test]
    fn every_refusal_has_its_own_cause_and_fix() {
        let known = [
            "fork",
            "bad_token",
            "stale_key",
            "revoked",
            "hello_replayed",
            "wrong_agent_key",
            "retired_certificate",
            "unregistered_certificate",
            "revoked_certificate",
        ];
        let all: Vec<_> = known.iter().map(|why| words(why)).collect();
        let causes: BTreeSet<_> = all.iter().map(|(cause, _fix)| cause).collect();
        let fixes: BTreeSet<_> = all.iter().map(|(_cause, fix)| fix).collect();
        assert_eq!((causes.len(), fixes.len()), (known.len(), known.len()));
        let unknown = words("of a later version");
        assert!(!all.contains(&unknown), "{unknown:?}");
    }

    #[test]
    fn the_fix_is_about_the_gateway_itself() {
        let last = LastRefusal {
            at: Timestamp::from_unix_micros(7),
            why: "retired_certificate".to_owned(),
            peer_address: None,
        };
        let told = told(last, &"gw-berlin".parse().unwrap());
        let ends = told.fix.ends_with("viworks gateway replace gw-berlin");
        assert!(ends, "{}", told.fix);
    }
}
