//! Challenges that nobody has to remember: each has the time at which it was given, and a MAC by which every backend of
//! the site recognises it. What asking for them costs is one MAC.

use std::time::Duration;

use viworks_common::enrolment::{CHALLENGE_TIME, WireChallenge};
use viworks_common::id::{Tenant, TicketId};
use viworks_common::key::{KEY_BYTES, MasterKey, Secret};
use viworks_common::time::Timestamp;
use viworks_runtime::random;

use crate::data::AnsweredChallenge;

/// Bytes of the time, and of what makes two of the same time differ. The rest is the MAC, cut to 128 bits.
const PART_BYTES: usize = 8;

/// How far the clocks of two backends may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// How long one is kept that was answered: well beyond the time at which the slowest clock still takes it.
const KEPT: Duration = Duration::from_secs(600);

/// Gives and recognises the challenges of one tenant.
#[derive(Debug, Clone)]
pub(super) struct Challenges {
    key: Secret,
    /// That of the master key beside the one that makes others.
    other: Option<Secret>,
}

impl Challenges {
    pub(super) fn new(master: &MasterKey, tenant: &Tenant) -> Self {
        Self {
            key: master.challenge_key(tenant),
            other: master.other().map(|other| other.challenge_key(tenant)),
        }
    }

    /// Those of gateways at the door: none of them is good for a ticket, nor the other way round.
    pub(super) fn of_gateways(master: &MasterKey, tenant: &Tenant) -> Self {
        let of = |master: &MasterKey| {
            let key = master.challenge_key(tenant);
            Secret::from_bytes(key.tag(&[b"viworks/1 renew challenge"]))
        };
        Self {
            key: of(master),
            other: master.other().as_ref().map(of),
        }
    }

    /// A new one for a ticket, or for whatever else has an id, whether there is such a ticket or not.
    pub(super) fn give(&self, ticket: TicketId, now: Timestamp) -> WireChallenge {
        let time = now.unix_micros().to_be_bytes();
        made_of(&self.key, ticket, time, random::bytes())
    }

    /// The challenge as it is kept once it is answered; `None` when no backend gave it for this ticket, or it is too
    /// old.
    pub(super) fn recognise(
        &self,
        ticket: TicketId,
        challenge: &WireChallenge,
        now: Timestamp,
    ) -> Option<AnsweredChallenge> {
        let (time, rest) = challenge.0.split_first_chunk::<PART_BYTES>()?;
        let (nonce, _tag) = rest.split_first_chunk::<PART_BYTES>()?;
        // Secrets are compared in constant time.
        let seen = Secret::from_bytes(challenge.0);
        let is_of = |key: &Secret| {
            let own = made_of(key, ticket, *time, *nonce);
            Secret::from_bytes(own.0) == seen
        };
        if !is_of(&self.key) && !self.other.as_ref().is_some_and(is_of) {
            return None;
        }
        let given = Timestamp::from_unix_micros(i64::from_be_bytes(*time));
        let is_good =
            now < given.saturating_add(CHALLENGE_TIME) && given <= now.saturating_add(CLOCKS_APART);
        is_good.then(|| AnsweredChallenge {
            challenge: challenge.0,
            expires_at: given.saturating_add(KEPT),
        })
    }
}

fn made_of(
    key: &Secret,
    ticket: TicketId,
    time: [u8; PART_BYTES],
    nonce: [u8; PART_BYTES],
) -> WireChallenge {
    let tag = key.tag(&[ticket.as_uuid().as_bytes(), &time, &nonce]);
    let mut bytes = [0; KEY_BYTES];
    let parts = time.iter().chain(&nonce).chain(&tag);
    for (byte, part) in bytes.iter_mut().zip(parts) {
        *byte = *part;
    }
    WireChallenge(bytes)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const BEGIN: Timestamp = Timestamp::from_unix_micros(1_800_000_000_000_000);

    fn backend(key: u8) -> Challenges {
        let master = MasterKey::new(Secret::from_bytes([key; KEY_BYTES]));
        Challenges::new(&master, &Tenant::default_tenant())
    }

    fn ticket(n: u128) -> TicketId {
        TicketId::from_uuid(Uuid::from_u128(n))
    }

    fn at(seconds: u64) -> Timestamp {
        BEGIN.saturating_add(Duration::from_secs(seconds))
    }

    #[test]
    fn a_challenge_is_good_at_every_backend_of_the_site_for_its_ticket_and_its_minute() {
        let challenge = backend(1).give(ticket(7), at(100));
        assert_ne!(challenge, backend(1).give(ticket(7), at(100)));
        let recognised = |seconds| backend(1).recognise(ticket(7), &challenge, at(seconds));
        let kept = AnsweredChallenge {
            challenge: challenge.0,
            expires_at: at(700),
        };
        // The clock of another backend may be behind.
        for seconds in [40, 100, 159] {
            assert_eq!(recognised(seconds), Some(kept), "{seconds}");
        }
        for seconds in [39, 160, 1_000] {
            assert_eq!(recognised(seconds), None, "{seconds}");
        }
        assert_eq!(backend(1).recognise(ticket(8), &challenge, at(100)), None);
        assert_eq!(backend(2).recognise(ticket(7), &challenge, at(100)), None);
    }

    #[test]
    fn a_challenge_of_a_gateway_is_none_of_a_ticket_with_its_id() {
        let master = MasterKey::new(Secret::from_bytes([1; KEY_BYTES]));
        let gateways = Challenges::of_gateways(&master, &Tenant::default_tenant());
        let (own, other) = (
            gateways.give(ticket(7), at(0)),
            backend(1).give(ticket(7), at(0)),
        );
        assert!(gateways.recognise(ticket(7), &own, at(0)).is_some());
        assert_eq!(gateways.recognise(ticket(7), &other, at(0)), None);
        assert_eq!(backend(1).recognise(ticket(7), &own, at(0)), None);
    }

    #[test]
    fn a_challenge_by_either_of_two_master_keys_is_recognised() {
        let master = |key| MasterKey::new(Secret::from_bytes([key; KEY_BYTES]));
        let both = Challenges::new(&master(2).beside(&master(1)), &Tenant::default_tenant());
        for (key, is_known) in [(1, true), (2, true), (3, false)] {
            let challenge = backend(key).give(ticket(7), at(0));
            let recognised = both.recognise(ticket(7), &challenge, at(1));
            assert_eq!(recognised.is_some(), is_known, "{key}");
        }
        let given = both.give(ticket(7), at(0));
        assert!(backend(2).recognise(ticket(7), &given, at(1)).is_some());
    }

    #[test]
    fn not_a_bit_of_a_challenge_can_be_another_one() {
        let challenge = backend(1).give(ticket(7), at(0));
        for bit in 0..8 * KEY_BYTES {
            let mut other = challenge;
            other.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                backend(1).recognise(ticket(7), &other, at(0)),
                None,
                "{bit}"
            );
        }
    }
}
