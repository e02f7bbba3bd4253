//! What is told of the last time that a gateway was refused a session: why in words, and what to do about it.

use viworks_api::GatewayRefusal;
use viworks_common::code::{CloseCode, RETIRED};
use viworks_common::id::GatewayName;

use crate::data::{Fork, ForkEnd, LastRefusal};

/// Why a second holder of an identity is refused.
pub(super) const FORK: &str = "fork";

/// As operators see it; `forks` are those of the gateway where one was why.
pub(super) fn told(last: LastRefusal, name: &GatewayName, forks: &[Fork]) -> GatewayRefusal {
    let of_fork = (last.why == FORK).then(|| decided(forks)).flatten();
    let (cause, fix) = of_fork.unwrap_or_else(|| words(&last.why));
    GatewayRefusal {
        at: last.at,
        cause: cause.to_owned(),
        fix: fix.replace("NAME", name.as_str()),
        why: last.why,
        peer_address: last.peer_address,
    }
}

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
        let told = told(last, &"gw-berlin".parse().unwrap(), &[]);
        let names = told.fix.contains("viworks gateway replace gw-berlin,");
        assert!(names && !told.fix.contains("NAME"), "{}", told.fix);
        assert_eq!(told.fix, RETIRED.replace("NAME", "gw-berlin"));
    }
}
