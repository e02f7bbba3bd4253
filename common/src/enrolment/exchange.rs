//! The bodies of `POST /agent/v1/enrol`, and the keys that prove, seal and authenticate what is in them.
//!
//! Two requests: the first asks for a challenge; the second has the certificate request, everything that is asked for
//! and the challenge, and a header with the MAC of exactly these bytes. The answer has a header with the MAC of its
//! bytes under a key that depends on the request. So neither can be replayed, mixed with another one, or changed.

use std::collections::BTreeMap;
use std::time::Duration;

use hkdf::Hkdf;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::id::{AgentId, AgentVersion, GatewayName, InstallId, Tenant, TicketId, TrustDomain};
use crate::key::{BindingMode, KEY_BYTES, Secret, covered, expand, info};
use crate::pin::PinSet;
use crate::time::Timestamp;

/// Where on the door.
pub const PATH: &str = "/agent/v1/enrol";
/// The header with the MAC of a body, 64 hexadecimal digits.
pub const PROOF_HEADER: &str = "enrolment-proof";
/// Bytes of the largest request.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// How long a challenge can be answered.
pub const CHALLENGE_TIME: Duration = Duration::from_secs(60);
/// How far a machine's clock may be off the backend's: beyond, certificates of today are not good by both.
pub const CLOCK_OFF_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Whether a machine whose clock says `own` can get a session while the backend's says `backends`: certificates of
/// today are good by both clocks, and the server's own, good for that long where it can be read, is good by this one
/// unless it is not by the backend's either.
#[must_use]
pub fn clock_suits(
    own: Timestamp,
    backends: Timestamp,
    good_for: Option<(Timestamp, Timestamp)>,
) -> bool {
    let off = own
        .saturating_since(backends)
        .max(backends.saturating_since(own));
    let is_good = |clock| good_for.is_none_or(|(from, to)| from <= clock && clock <= to);
    off <= CLOCK_OFF_MAX && (is_good(own) || !is_good(backends))
}

/// The random bytes of a challenge: 64 hexadecimal digits on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireChallenge(pub [u8; KEY_BYTES]);

impl Serialize for WireChallenge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for WireChallenge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; KEY_BYTES];
        hex::decode_to_slice(text, &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// A request at the door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum EnrolmentRequest {
    /// Asks for a challenge.
    Challenge {
        /// Which ticket is going to be redeemed.
        ticket: TicketId,
    },
    /// Redeems a ticket.
    Redeem(RedeemRequest),
}

/// What a machine asks for that becomes a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedeemRequest {
    /// Which ticket is redeemed.
    pub ticket: TicketId,
    /// The challenge that was asked for.
    pub challenge: WireChallenge,
    /// The certificate request, PEM: a P-256 key of the machine's own, and no names.
    pub csr: String,
    /// The installation.
    pub install_id: InstallId,
    /// How the gateway is to be called, when somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<GatewayName>,
    /// What the machine calls itself.
    pub host: String,
    /// The agent that asks.
    pub agent_version: AgentVersion,
}

/// What a redemption has to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentChallenge {
    /// Good for one redemption, within [`CHALLENGE_TIME`].
    pub challenge: WireChallenge,
    /// What the backend's clock says.
    pub time: Timestamp,
}

/// Everything a new gateway has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentAnswer {
    /// Whose gateway it is.
    pub tenant: Tenant,
    /// Who it is.
    pub agent_id: AgentId,
    /// How it is called.
    pub name: GatewayName,
    /// The trust domain of its certificate.
    pub trust_domain: TrustDomain,
    /// Its certificate, PEM.
    pub certificate: String,
    /// When that ends.
    pub not_after: Timestamp,
    /// The authority of its certificate and of the backend's, PEM.
    pub authority: String,
    /// The generation of its key.
    pub key_generation: u8,
    /// The epoch of its first ratchet token: above zero where it takes the place of a gateway that had sessions.
    #[serde(default)]
    pub epoch: u64,
    /// The key that it shares with the backend, and its first ratchet token, sealed: 128 hexadecimal digits.
    pub sealed: String,
    /// The keys that the backend may show.
    pub pins: PinSet,
    /// What sessions are bound to.
    pub binding: BindingMode,
    /// The labels that the ticket gave it.
    pub labels: BTreeMap<String, String>,
    /// Where the backend listens for agents.
    pub url: String,
}

/// The secrets of a new gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSecrets {
    /// The key that it shares with the backend.
    pub agent_key: Secret,
    /// The ratchet token of its first epoch.
    pub token: Secret,
}

/// Text that holds no sealed secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sealed secrets are 128 hexadecimal digits")]
pub struct BadSeal;

/// The keys of one redemption, which follow from the ticket's secret and the challenge.
#[derive(Debug)]
pub struct Exchange {
    prk: Hkdf<Sha256>,
    ticket: TicketId,
}

impl Exchange {
    /// Of the ticket with this secret and of this challenge.
    #[must_use]
    pub fn new(secret: &Secret, ticket: TicketId, challenge: &WireChallenge) -> Self {
        Self {
            prk: Hkdf::<Sha256>::new(Some(&challenge.0), secret.expose()),
            ticket,
        }
    }

    fn key(&self, label: &str, request: &[u8]) -> Secret {
        let digest = Sha256::digest(request);
        let fields: [&[u8]; 2] = [self.ticket.as_uuid().as_bytes(), digest.as_slice()];
        expand(&self.prk, &info(label, &fields))
    }

    fn request_key(&self) -> Secret {
        let fields: [&[u8]; 1] = [self.ticket.as_uuid().as_bytes()];
        expand(&self.prk, &info("viworks/1 enrol request", &fields))
    }

    fn answer_key(&self, request: &[u8]) -> Secret {
        self.key("viworks/1 enrol answer", request)
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

    /// The secrets as they travel. Each is covered by a key of its own that serves this once: the challenge is in it.
    /// That nobody changes them is for the MAC of the answer.
    #[must_use]
    pub fn seal(&self, request: &[u8], secrets: &AgentSecrets) -> String {
        let [key, token] = self.covers(request);
        let mut text = covered(&secrets.agent_key, &key).expose_hex();
        text.push_str(&covered(&secrets.token, &token).expose_hex());
        text
    }

    /// The secrets again.
    ///
    /// # Errors
    ///
    /// When the text is none that [`Self::seal`] makes.
    pub fn open(&self, request: &[u8], sealed: &str) -> Result<AgentSecrets, BadSeal> {
        let (agent_key, token) = sealed.split_at_checked(2 * KEY_BYTES).ok_or(BadSeal)?;
        let [key, other] = self.covers(request);
        let read = |text: &str| Secret::from_hex(text).ok_or(BadSeal);
        Ok(AgentSecrets {
            agent_key: covered(&read(agent_key)?, &key),
            token: covered(&read(token)?, &other),
        })
    }

    fn covers(&self, request: &[u8]) -> [Secret; 2] {
        [
            self.key("viworks/1 enrol agent key", request),
            self.key("viworks/1 enrol token", request),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn exchange(secret: u8, ticket: u128, challenge: u8) -> Exchange {
        let ticket = TicketId::from_uuid(Uuid::from_u128(ticket));
        let challenge = WireChallenge([challenge; 32]);
        Exchange::new(&Secret::from_bytes([secret; 32]), ticket, &challenge)
    }

    #[test]
    fn a_proof_is_good_for_its_bytes_its_ticket_and_its_challenge_alone() {
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
    fn an_answer_belongs_to_its_request_and_is_no_proof() {
        let own = exchange(1, 2, 3);
        let tag = own.authenticate(b"request", b"answer");
        assert!(own.authenticates(b"request", b"answer", tag.as_bytes()));
        assert!(!own.authenticates(b"another", b"answer", tag.as_bytes()));
        assert!(!own.authenticates(b"request", b"another", tag.as_bytes()));
        assert!(!own.proves(b"answer", tag.as_bytes()), "reflected");
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_for_the_same_exchange_alone(key in any::<[u8; 32]>(), token in any::<[u8; 32]>()) {
            let secrets = AgentSecrets {
                agent_key: Secret::from_bytes(key),
                token: Secret::from_bytes(token),
            };
            let sealed = exchange(1, 2, 3).seal(b"request", &secrets);
            prop_assert_eq!(exchange(1, 2, 3).open(b"request", &sealed), Ok(secrets.clone()));
            prop_assert!(!sealed.contains(&hex::encode(key)));
            prop_assert_ne!(exchange(1, 2, 4).open(b"request", &sealed), Ok(secrets.clone()));
            prop_assert_ne!(exchange(1, 2, 3).open(b"another", &sealed), Ok(secrets));
            prop_assert_eq!(exchange(1, 2, 3).open(b"request", &sealed[1..]), Err(BadSeal));
        }
    }

    #[test]
    fn requests_have_one_form() {
        let asked = r#"{"step":"challenge","ticket":"01900000-0000-7000-8000-0000000000ab"}"#;
        let read: EnrolmentRequest = serde_json::from_str(asked).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), asked);
        let redeem = EnrolmentRequest::Redeem(RedeemRequest {
            ticket: TicketId::from_uuid(Uuid::from_u128(7)),
            challenge: WireChallenge([5; 32]),
            csr: "CSR".to_owned(),
            install_id: InstallId::from_uuid(Uuid::from_u128(8)),
            name: None,
            host: "edge-7".to_owned(),
            agent_version: "0.1.0".parse().unwrap(),
        });
        let text = serde_json::to_string(&redeem).unwrap();
        assert_eq!(
            serde_json::from_str::<EnrolmentRequest>(&text).unwrap(),
            redeem
        );
        for wrong in [
            text.replace("\"host\"", "\"hosts\""),
            text.replacen("redeem", "other", 1),
            text.replacen('{', "{\"more\":1,", 1),
        ] {
            assert!(
                serde_json::from_str::<EnrolmentRequest>(&wrong).is_err(),
                "{wrong}"
            );
        }
    }
}
