//! The holders of one identity as operators see them, side by side.

use viworks_api::{Fork, ForkEnd, ForkHolder};
use viworks_common::id::AgentRunId;
use viworks_common::time::Timestamp;

use crate::data;

/// Who is heard, and when that was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard<'a> {
    /// All that is recorded of the identity.
    forks: &'a [data::Fork],
    /// The process that has the session, while there is one.
    holder: Option<AgentRunId>,
    /// When something was last heard of the gateway.
    last_seen: Option<Timestamp>,
}

impl<'a> Heard<'a> {
    /// Of a gateway and its forks.
    pub(super) fn of(gateway: &data::Gateway, forks: &'a [data::Fork]) -> Self {
        let session = gateway.session.as_ref();
        Self {
            forks,
            holder: session.map(|session| session.agent_run_id),
            last_seen: gateway.last_seen_at,
        }
    }

    /// When a process was last heard. What is heard of the gateway is heard of whoever has its session, and not of one
    /// that was refused or put out since.
    fn of_process(self, run: AgentRunId) -> Option<Timestamp> {
        if self.holder == Some(run) {
            return self.last_seen;
        }
        let own = |fork: &&data::Fork| fork.refused.agent_run_id == run;
        if let Some(refused) = self.forks.iter().filter(own).map(|fork| fork.at).max() {
            return Some(refused);
        }
        let is_out = self.forks.iter().any(|fork| {
            let accepted = fork.accepted.as_ref();
            let kept = fork
                .resolved
                .is_some_and(|(_at, end)| end == data::ForkEnd::Kept);
            kept && accepted.is_some_and(|party| party.agent_run_id == run)
        });
        if is_out { None } else { self.last_seen }
    }
}

/// Both holders of a fork.
pub(super) fn side_by_side(fork: data::Fork, heard: Heard<'_>) -> Fork {
    let last_seen = heard.of_process(fork.refused.agent_run_id);
    let refused = holder(fork.refused, fork.first_at, last_seen);
    Fork {
        times: fork.times,
        refused,
        accepted: fork.accepted.map(|party| {
            let last_seen = heard.of_process(party.agent_run_id);
            holder(party, fork.accepted_since, last_seen)
        }),
        resolved_at: fork.resolved.map(|(at, _end)| at),
        resolution: fork.resolved.map(|(_at, end)| match end {
            data::ForkEnd::Kept => ForkEnd::Kept,
            data::ForkEnd::Out => ForkEnd::Out,
            data::ForkEnd::Replaced => ForkEnd::Replaced,
        }),
    }
}

/// One of them.
pub(super) fn holder(
    party: data::ForkParty,
    since: Option<Timestamp>,
    last_seen: Option<Timestamp>,
) -> ForkHolder {
    let (serial, not_after) = party.certificate.unzip();
    let (reissued_serial, reissued_not_after) = party.reissued.unzip();
    ForkHolder {
        epoch: party.epoch,
        peer_address: party.peer_address,
        certificate_sha256: hex::encode(party.fingerprint),
        certificate_serial: serial,
        certificate_not_after: not_after,
        reissued_serial,
        reissued_not_after,
        install_id: party.install_id,
        boot_id: party.boot_id,
        agent_run_id: party.agent_run_id,
        since,
        last_seen,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use viworks_common::id::{BootId, InstallId};

    use super::*;

    fn process(run: u128) -> AgentRunId {
        AgentRunId::from_uuid(Uuid::from_u128(run))
    }

    fn party(run: u128) -> data::ForkParty {
        data::ForkParty {
            epoch: 1,
            peer_address: "192.0.2.7:4000".to_owned(),
            fingerprint: [7; 32],
            install_id: InstallId::from_uuid(Uuid::from_u128(1)),
            boot_id: BootId::from_uuid(Uuid::from_u128(run)),
            agent_run_id: process(run),
            certificate: None,
            reissued: None,
        }
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_unix_micros(micros)
    }

    /// Process `refused` was refused then, beside `accepted`.
    fn fork(
        refused: u128,
        then: i64,
        accepted: u128,
        resolved: Option<data::ForkEnd>,
    ) -> data::Fork {
        data::Fork {
            at: at(then),
            first_at: Some(at(1)),
            times: 1,
            refused: party(refused),
            accepted: Some(party(accepted)),
            accepted_since: Some(at(1)),
            resolved: resolved.map(|end| (at(6), end)),
        }
    }

    fn seen(forks: &[data::Fork], holder: Option<u128>) -> Vec<(Option<Timestamp>, Timestamp)> {
        let heard = Heard {
            forks,
            holder: holder.map(process),
            last_seen: Some(at(9)),
        };
        let both = |fork: &data::Fork| {
            let shown = side_by_side(fork.clone(), heard);
            let accepted = shown.accepted.unwrap().last_seen;
            (accepted, shown.refused.last_seen.unwrap())
        };
        forks.iter().map(both).collect()
    }

    #[test]
    fn what_is_heard_of_a_gateway_is_of_the_holder_of_its_session_alone() {
        // Nobody has decided: the one that was accepted is the gateway.
        let open = [fork(2, 5, 1, None)];
        assert_eq!(seen(&open, Some(1)), [(Some(at(9)), at(5))]);
        // The one that was refused is kept and back; the other was refused since, or never heard again.
        let kept = data::ForkEnd::Kept;
        let decided = [
            fork(1, 7, 2, Some(data::ForkEnd::Out)),
            fork(2, 5, 1, Some(kept)),
        ];
        assert_eq!(
            seen(&decided, Some(2)),
            [(Some(at(9)), at(7)), (Some(at(7)), at(9))]
        );
        assert_eq!(seen(&decided[1..], Some(2)), [(None, at(9))]);
        // It has not come back so far.
        assert_eq!(seen(&decided[1..], None), [(None, at(5))]);
        // The one that was accepted goes on, as another process by now.
        let replaced = [fork(2, 5, 1, Some(data::ForkEnd::Replaced))];
        assert_eq!(seen(&replaced, Some(3)), [(Some(at(9)), at(5))]);
    }
}
