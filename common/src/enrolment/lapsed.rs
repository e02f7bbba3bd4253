//! The bodies of `POST /agent/v1/renew`, by which a gateway whose certificate has ended gets another one, and the keys
//! that prove and authenticate what is in them.
//!
//! As at enrolment, there are two requests: the first asks for a challenge, the second answers it with a header that
//! has the MAC of exactly its bytes. The keys follow from the key that the gateway shares with the backend, and from
//! the challenge. What is answered is a certificate, and never a session; beside it, and beside a refusal of one, a
//! gateway that has proved who it is gets the authorities of the server's certificate, under a MAC of their own.

use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::WireChallenge;
use crate::id::{AgentId, AgentVersion};
use crate::key::{AgentKey, Secret, expand, info};
use crate::time::Timestamp;

/// Where on the door.
pub const RENEW_PATH: &str = "/agent/v1/renew";

/// A request of a gateway at the door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum LapsedRequest {
    /// Asks for a challenge.
    Challenge {
        /// Who is going to answer it.
        agent_id: AgentId,
    },
    /// Asks for a certificate.
    Renew(LapsedRenewal),
}

/// What a gateway shows whose certificate has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LapsedRenewal {
    /// Who it is.
    pub agent_id: AgentId,
    /// The challenge that was asked for.
    pub challenge: WireChallenge,
    /// The certificate request, PEM: for the key that is registered, and no names.
    pub csr: String,
    /// The generation of the key that it shares with the backend.
    pub key_generation: u8,
    /// The last epoch that it made durable.
    pub epoch: u64,
    /// The ratchet token of that epoch, 64 hexadecimal digits.
    pub token: String,
    /// The agent that asks.
    pub agent_version: AgentVersion,
}

/// The certificate of a gateway whose own had ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapsedAnswer {
    /// The certificate, PEM.
    pub certificate: String,
    /// When it ends.
    pub not_after: Timestamp,
    /// The authorities of the server's certificate, where the backend has some to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<GivenAuthorities>,
}

/// The authorities of the server's certificate, as the door gives them: in an answer, and in the same field of a
/// refusal, which has no other MAC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenAuthorities {
    /// The certificates, PEM. Whoever has not verified them has no business with them.
    bundle: String,
    /// The MAC of exactly this text, 64 hexadecimal digits.
    mac: String,
}

/// The keys of one such renewal, which follow from the key that both ends share and from the challenge.
#[derive(Debug)]
pub struct LapsedExchange {
    prk: Hkdf<Sha256>,
    agent_id: AgentId,
}

impl LapsedExchange {
    /// Of the gateway with this key and of this challenge.
    #[must_use]
    pub fn new(key: &AgentKey, agent_id: AgentId, challenge: &WireChallenge) -> Self {
        Self {
            prk: Hkdf::<Sha256>::new(Some(&challenge.0), key.secret().expose()),
            agent_id,
        }
    }

    fn request_key(&self) -> Secret {
        let fields: [&[u8]; 1] = [self.agent_id.as_uuid().as_bytes()];
        expand(&self.prk, &info("viworks/1 renew request", &fields))
    }

    fn key(&self, label: &str, request: &[u8]) -> Secret {
        let digest = Sha256::digest(request);
        let fields: [&[u8]; 2] = [self.agent_id.as_uuid().as_bytes(), digest.as_slice()];
        expand(&self.prk, &info(label, &fields))
    }

    fn answer_key(&self, request: &[u8]) -> Secret {
        self.key("viworks/1 renew answer", request)
    }

    fn authorities_key(&self, request: &[u8]) -> Secret {
        self.key("viworks/1 renew authorities", request)
    }

    /// The proof over the exact bytes of a request.
    #[must_use]
    pub fn prove(&self, request: &[u8]) -> String {
        self.request_key().tag_hex(request)
    }

    /// Whether a header proves these bytes.
    #[must_use]
    pub fn proves(&self, request: &[u8], header: &[u8]) -> bool {
        self.request_key().verifies_hex(request, header)
    }

    /// The MAC over the exact bytes of the answer to a request.
    #[must_use]
    pub fn authenticate(&self, request: &[u8], answer: &[u8]) -> String {
        self.answer_key(request).tag_hex(answer)
    }

    /// Whether a header authenticates these bytes as the answer to this request.
    #[must_use]
    pub fn authenticates(&self, request: &[u8], answer: &[u8], header: &[u8]) -> bool {
        self.answer_key(request).verifies_hex(answer, header)
    }

    /// The authorities as they are given in the answer to a request, or with its refusal.
    #[must_use]
    pub fn give(&self, request: &[u8], bundle: String) -> GivenAuthorities {
        let mac = self.authorities_key(request).tag_hex(bundle.as_bytes());
        GivenAuthorities { bundle, mac }
    }

    /// The bundle of authorities that came back for this request; none when it is not the backend's.
    #[must_use]
    pub fn given<'a>(&self, request: &[u8], given: &'a GivenAuthorities) -> Option<&'a str> {
        let key = self.authorities_key(request);
        let is_authentic = key.verifies_hex(given.bundle.as_bytes(), given.mac.as_bytes());
        is_authentic.then_some(given.bundle.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::enrolment::Exchange;
    use crate::id::TicketId;

    fn exchange(key: u8, agent: u128, challenge: u8) -> LapsedExchange {
        let key = AgentKey::new(Secret::from_bytes([key; 32]));
        let agent_id = AgentId::from_uuid(Uuid::from_u128(agent));
        LapsedExchange::new(&key, agent_id, &WireChallenge([challenge; 32]))
    }

    #[test]
    fn a_proof_is_good_for_its_bytes_its_gateway_its_key_and_its_challenge_alone() {
        let proof = exchange(1, 2, 3).prove(b"request");
        assert!(exchange(1, 2, 3).proves(b"request", proof.as_bytes()));
        assert!(!exchange(1, 2, 3).proves(b"requesu", proof.as_bytes()));
        for other in [exchange(9, 2, 3), exchange(1, 9, 3), exchange(1, 2, 9)] {
            assert!(!other.proves(b"request", proof.as_bytes()));
        }
        for header in [&b""[..], b"00", b"not hexadecimal", &proof.as_bytes()[2..]] {
            assert!(!exchange(1, 2, 3).proves(b"request", header));
        }
    }

    #[test]
    fn an_answer_belongs_to_its_request_and_nothing_is_of_use_at_enrolment() {
        let own = exchange(1, 2, 3);
        let tag = own.authenticate(b"request", b"answer");
        assert!(own.authenticates(b"request", b"answer", tag.as_bytes()));
        assert!(!own.authenticates(b"another", b"answer", tag.as_bytes()));
        assert!(!own.authenticates(b"request", b"another", tag.as_bytes()));
        assert!(!own.proves(b"answer", tag.as_bytes()), "reflected");
        // The same secret, id and challenge there.
        let ticket = TicketId::from_uuid(Uuid::from_u128(2));
        let there = Exchange::new(
            &Secret::from_bytes([1; 32]),
            ticket,
            &WireChallenge([3; 32]),
        );
        assert_ne!(there.prove(b"request"), own.prove(b"request"));
        assert_ne!(there.authenticate(b"request", b"answer"), tag);
    }

    #[test]
    fn authorities_belong_to_their_request_their_gateway_its_key_and_its_challenge() {
        let own = exchange(1, 2, 3);
        let given = own.give(b"request", "bundle".to_owned());
        assert_eq!(own.given(b"request", &given), Some("bundle"));
        assert_eq!(own.given(b"another", &given), None);
        for other in [exchange(9, 2, 3), exchange(1, 9, 3), exchange(1, 2, 9)] {
            assert_eq!(other.given(b"request", &given), None);
        }
        let mac = given.mac.as_str();
        // Under the key of the answer, which has the same inputs, it would be another one.
        let answer = own.authenticate(b"request", b"bundle");
        assert_ne!(answer, mac);
        for (bundle, mac) in [
            ("another", mac),
            ("bundle", answer.as_str()),
            ("bundle", "00"),
            ("bundle", ""),
            ("bundle", "not hexadecimal"),
            ("bundle", &mac[2..]),
        ] {
            let wrong = GivenAuthorities {
                bundle: bundle.to_owned(),
                mac: mac.to_owned(),
            };
            assert_eq!(own.given(b"request", &wrong), None, "{bundle} {mac}");
        }
    }

    /// A backend of an earlier version gives none, and a gateway of one does not look at them.
    #[test]
    fn an_answer_is_read_without_authorities_and_with_fields_that_are_not_known() {
        let earlier = r#"{"certificate":"PEM","not_after":"2027-01-15T08:00:00Z"}"#;
        let read: LapsedAnswer = serde_json::from_str(earlier).unwrap();
        assert_eq!(read.authorities, None);
        assert_eq!(serde_json::to_string(&read).unwrap(), earlier);
        let later = earlier.replacen('{', "{\"more\":1,", 1);
        assert_eq!(serde_json::from_str::<LapsedAnswer>(&later).unwrap(), read);
        let given = exchange(1, 2, 3).give(b"request", "bundle".to_owned());
        let with = LapsedAnswer {
            authorities: Some(given),
            ..read
        };
        let text = serde_json::to_string(&with).unwrap();
        assert_eq!(serde_json::from_str::<LapsedAnswer>(&text).unwrap(), with);
    }

    proptest! {
        #[test]
        fn not_a_bit_of_a_request_can_be_another_one(
            request in prop::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let proof = exchange(1, 2, 3).prove(&request);
            let mut other = request.clone();
            other[at.index(request.len())] ^= 1 << bit;
            prop_assert!(!exchange(1, 2, 3).proves(&other, proof.as_bytes()));
        }
    }

    #[test]
    fn requests_have_one_form() {
        let asked = r#"{"step":"challenge","agent_id":"01900000-0000-7000-8000-0000000000ab"}"#;
        let read: LapsedRequest = serde_json::from_str(asked).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), asked);
        let renew = LapsedRequest::Renew(LapsedRenewal {
            agent_id: AgentId::from_uuid(Uuid::from_u128(7)),
            challenge: WireChallenge([5; 32]),
            csr: "CSR".to_owned(),
            key_generation: 1,
            epoch: 8,
            token: "00".repeat(32),
            agent_version: "0.1.0".parse().unwrap(),
        });
        let text = serde_json::to_string(&renew).unwrap();
        assert_eq!(serde_json::from_str::<LapsedRequest>(&text).unwrap(), renew);
        for wrong in [
            text.replace("\"epoch\"", "\"epochs\""),
            text.replacen("renew", "redeem", 1),
            text.replacen('{', "{\"more\":1,", 1),
        ] {
            let read = serde_json::from_str::<LapsedRequest>(&wrong);
            assert!(read.is_err(), "{wrong}");
        }
    }
}
