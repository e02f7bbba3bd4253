//! What is told of the last time that a gateway was refused a session, or a certificate at the door: why in words, and
//! what to do about it.

use viworks_api::GatewayRefusal;
use viworks_common::code::{CloseCode, RETIRED};
use viworks_common::id::GatewayName;

use crate::data::{Fork, ForkEnd, LastRefusal};

/// Why a second holder of an identity is refused.
pub(super) const FORK: &str = "fork";

/// As operators see it; `forks` are those of the gateway where one was why, and `revoked` whether it was thrown out.
pub(super) fn told(
    last: LastRefusal,
    name: &GatewayName,
    forks: &[Fork],
    revoked: bool,
) -> GatewayRefusal {
    let of_fork = match last.why == FORK {
        true if revoked => Some(REVOKED_FORK),
        true => decided(forks),
        false => None,
    };
    let (cause, fix) = of_fork.unwrap_or_else(|| words(&last.why));
    about(last, name, cause, fix)
}

/// The same of somebody who got no certificate at the door.
pub(super) fn at_door(last: LastRefusal, name: &GatewayName) -> GatewayRefusal {
    let (cause, fix) = door_words(&last.why);
    about(last, name, cause, fix)
}

fn about(last: LastRefusal, name: &GatewayName, cause: &str, fix: &str) -> GatewayRefusal {
    GatewayRefusal {
        at: last.at,
        cause: cause.to_owned(),
        fix: fix.replace("NAME", name.as_str()),
        why: last.why,
        peer_address: last.peer_address,
    }
}

/// Of a gateway that was thrown out nobody decides who keeps its identity.
const REVOKED_FORK: (&str, &str) = (
    "a second holder of its identity was refused, and the gateway was revoked: nobody keeps it",
    "nothing is to be decided; to let one of the machines in again: viworks gateway replace NAME",
);

/// The cause and the fix of a fork about which there is nothing to decide any more; none while there is.
fn decided(forks: &[Fork]) -> Option<(&'static str, &'static str)> {
    if forks.iter().any(|fork| fork.resolved.is_none()) {
        return None;
    }
    // One that lost the session by the decision is among them, and was not refused so far.
    let refused = forks.iter().filter(|fork| fork.times > 0);
    let last = refused.max_by_key(|fork| fork.at);
    let end = last.and_then(|fork| fork.resolved).map(|(_at, end)| end);
    Some(match end {
        Some(ForkEnd::Kept) => (
            "a second holder of its identity was refused, and it was decided since that this one keeps the identity",
            "nothing: it is let in when it comes back; viworks gateway forks NAME shows both holders",
        ),
        Some(ForkEnd::Out) => (
            "a second holder of its identity was refused, of which it is decided that it stays out",
            "nothing here; where it goes on knocking, stop the agent on the machine behind the address, or enrol that \
             machine under a name of its own: viworks ticket create --name NAME-2",
        ),
        Some(ForkEnd::Replaced) => (
            "a second holder of its identity was refused, of which it is decided that it gets an identity of its own",
            "nothing here; on the machine behind the address: viworks-gateway-agent enroll, with a ticket of viworks \
             ticket create --name NAME-2",
        ),
        None => (
            "a second holder of its identity was refused, and another machine has taken the gateway's place since",
            "nothing: the holders of before are out; viworks gateway show NAME says who has its session",
        ),
    })
}

/// The cause and the fix of each; what a later version recorded has its own word only.
fn words(why: &str) -> (&'static str, &'static str) {
    match why {
        FORK => (
            "its state was lost or restored, or another machine holds a copy of its identity: a later session was seen",
            "decide who keeps this identity: viworks gateway forks NAME shows both holders, viworks gateway resolve NAME \
             --keep lets one in, also one whose state folder was lost or restored; where two machines are to go on, give \
             the other an identity of its own (viworks gateway resolve NAME --replace); if a stranger has the copy, revoke \
             it (viworks gateway revoke NAME) and issue its name again",
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
             gateway replace NAME; viworks gateway forks NAME says whether there are two",
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
            RETIRED,
        ),
        "replaced_certificate" => (
            "the machine that was the gateway before another one took its place still knocks, or a copy of its files",
            "stop the agent on the machine behind the address; where that is none of yours, somebody has files that open \
             nothing any more; only where it is yours and is to go on, make it a gateway of its own: viworks ticket \
             create --name NAME-2",
        ),
        "unregistered_certificate" => (
            "it showed a certificate of this backend's authority that is registered for nobody",
            "see that this backend uses the database in which the gateway is; otherwise somebody made a certificate \
             without registering it, or the database is older than it: let the machine in anew",
        ),
        "revoked_certificate" => (
            "it showed a certificate that was revoked, alone or with the gateway",
            "no action if it was revoked on purpose: see who is at the address; to let the machine in again: viworks \
             gateway replace NAME",
        ),
        _ => (
            "this version of the backend has no words for it",
            "see the audit trail: viworks audit ls -g NAME --outcome refused",
        ),
    }
}

/// The cause and the fix of each at the door. Whoever got as far as a judgement has the gateway's agent key.
fn door_words(why: &str) -> (&'static str, &'static str) {
    match why {
        "bad_proof" => (
            "whoever asked says to be this gateway and does not have the key that it shares with the backend: its \
             identity file is of another gateway or backend, or the backend's master key was replaced",
            "see that the identity file of the machine at the address is its own; where it is lost, let the machine in \
             anew: viworks gateway replace NAME; where no machine of yours is there, nothing: it learned nothing",
        ),
        "bad_token" => (
            "it did not have the token of the session that it named: its state folder is older than its identity file, \
             or of another gateway",
            "put the state folder and the identity file of one machine together; where they are lost: viworks gateway \
             replace NAME",
        ),
        "stale_agent_key" => (
            "it showed an agent key that a later one has superseded, or another machine took the gateway's place",
            "put the latest key back (agent_keys.json in its state folder); where another machine has its place, stop the \
             agent on the machine behind the address: viworks gateway show NAME says who has the session",
        ),
        "revoked" => (
            "the gateway was revoked",
            "no action if it was revoked on purpose; to let the machine in again: viworks gateway replace NAME, then \
             viworks-gateway-agent enroll there",
        ),
        "unknown_key" => (
            "the key of its certificate is not registered for this gateway",
            "put back the certificate and the key that were issued for it, or let the machine in anew: viworks gateway \
             replace NAME",
        ),
        "certificate_revoked" => (
            "the certificate with its key was revoked, and such a key gets no other one",
            "no action if it was revoked on purpose and the gateway goes on with another one; otherwise let the machine \
             in again: viworks gateway replace NAME",
        ),
        "retired_key" => (
            "it asked with the key of a certificate that a later one has replaced",
            "see which machine has the later one: viworks gateway forks NAME and viworks gateway certificates NAME; where \
             this one is to go on, let it in anew: viworks gateway replace NAME",
        ),
        "not_lapsed" => (
            "it asked with a certificate that has not ended, by the backend's clock",
            "compare the clocks of the gateway and the backend; otherwise nothing: it connects with the certificate that \
             it has",
        ),
        "challenge" => (
            "it answered a challenge that was answered before, or is more than a minute old",
            "nothing unless it goes on: it asks for another one by itself; where it does go on, see whether something in \
             between sends requests again",
        ),
        "too_soon" => (
            "it got as many certificates in this time as a gateway may",
            "nothing unless it goes on: it asks again by itself; where it does go on, see who else has its files: viworks \
             gateway forks NAME",
        ),
        _ => (
            "its request for a certificate was not one that is signed, or this version has no words for why it was \
             refused",
            "see the audit trail: viworks audit ls -g NAME --outcome refused; the status of its agent says it, too",
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
            FORK,
            "bad_token",
            "stale_key",
            "revoked",
            "hello_replayed",
            "wrong_agent_key",
            "retired_certificate",
            "replaced_certificate",
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
        let told = told(last, &"gw-berlin".parse().unwrap(), &[], false);
        let names = told.fix.contains("viworks gateway replace gw-berlin,");
        assert!(names && !told.fix.contains("NAME"), "{}", told.fix);
        assert_eq!(told.fix, RETIRED.replace("NAME", "gw-berlin"));
    }

    fn refused(why: &str) -> LastRefusal {
        LastRefusal {
            at: Timestamp::from_unix_micros(7),
            why: why.to_owned(),
            peer_address: None,
        }
    }

    #[test]
    fn nobody_is_asked_who_keeps_the_identity_of_a_gateway_that_was_thrown_out() {
        let name = "gw-berlin".parse().unwrap();
        let open = told(refused(FORK), &name, &[], false);
        assert!(!open.fix.contains("NAME"), "{}", open.fix);
        let gone = told(refused(FORK), &name, &[], true);
        assert!(gone.cause.contains("was revoked"), "{}", gone.cause);
        assert!(!gone.fix.contains("resolve"), "{}", gone.fix);
        assert!(
            gone.fix.contains("gateway replace gw-berlin"),
            "{}",
            gone.fix
        );
    }

    #[test]
    fn every_refusal_at_the_door_has_its_own_cause_and_fix() {
        let name = "gw-berlin".parse().unwrap();
        let known = [
            "bad_proof",
            "bad_token",
            "stale_agent_key",
            "revoked",
            "unknown_key",
            "certificate_revoked",
            "retired_key",
            "not_lapsed",
            "challenge",
            "too_soon",
            "of a later version",
        ];
        let all = known.map(|why| at_door(refused(why), &name));
        let causes: BTreeSet<_> = all.iter().map(|told| told.cause.clone()).collect();
        let fixes: BTreeSet<_> = all.iter().map(|told| told.fix.clone()).collect();
        assert_eq!((causes.len(), fixes.len()), (known.len(), known.len()));
        assert!(fixes.iter().all(|fix| !fix.contains("NAME")), "{fixes:?}");
    }
}
