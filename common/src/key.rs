//! The key schedule: agent keys, session keys and ratchet tokens, all by HKDF-SHA256 from one master key.

use std::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::{AgentId, Tenant, TicketId};

/// Bytes of every key and tag of this protocol.
pub const KEY_BYTES: usize = 32;

/// Bytes of what names a master key.
pub const MASTER_ID_BYTES: usize = 8;

/// A secret of 32 bytes: never printed, wiped when dropped, compared in constant time.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; KEY_BYTES]);

impl Secret {
    /// Takes over the bytes of a secret.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits, as stored in key files; surrounding white space is ignored.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; KEY_BYTES];
        hex::decode_to_slice(text.trim(), &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The bytes, for storing them or for handing them to another primitive.
    #[must_use]
    pub const fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The bytes as 64 hexadecimal digits.
    #[must_use]
    pub fn expose_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// HMAC-SHA256 (RFC 2104) over `parts` in order.
    #[must_use]
    pub fn tag(&self, parts: &[&[u8]]) -> [u8; KEY_BYTES] {
        self.mac(parts).finalize().into_bytes().into()
    }

    /// Whether `tag` is the HMAC-SHA256 of `parts`, compared in constant time.
    #[must_use]
    pub fn verifies(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        self.mac(parts).verify_slice(tag).is_ok()
    }

    /// The HMAC-SHA256 of `bytes` as it travels in a header or a document: in hexadecimal digits.
    pub(crate) fn tag_hex(&self, bytes: &[u8]) -> String {
        hex::encode(self.tag(&[bytes]))
    }

    /// Whether `digits` are the HMAC-SHA256 of `bytes` in that form.
    pub(crate) fn verifies_hex(&self, bytes: &[u8], digits: &[u8]) -> bool {
        hex::decode(digits).is_ok_and(|tag| self.verifies(&[bytes], &tag))
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

/// `x` behind its length in two bytes, big-endian, so that neighbouring fields cannot be glued together.
fn lp(into: &mut Vec<u8>, x: &[u8]) {
    let length =
        u16::try_from(x.len()).expect("every field of the key schedule is shorter than 64 KiB");
    into.extend_from_slice(&length.to_be_bytes());
    into.extend_from_slice(x);
}

pub(crate) fn info(label: &str, fields: &[&[u8]]) -> Vec<u8> {
    let mut info = Vec::with_capacity(128);
    lp(&mut info, label.as_bytes());
    for field in fields {
        lp(&mut info, field);
    }
    info
}

pub(crate) fn expand(prk: &Hkdf<Sha256>, info: &[u8]) -> Secret {
    let mut okm = Secret([0; KEY_BYTES]);
    prk.expand(info, &mut okm.0)
        .expect("32 bytes are far below HKDF's limit");
    okm
}

/// Whose key it is: taken from the certificate, never from a message body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The tenant the agent belongs to.
    pub tenant: Tenant,
    /// The agent.
    pub agent_id: AgentId,
}

/// The backend's master key: every agent key and every ratchet token follows from it. While a site moves from one to
/// another there is a second one beside it: what follows from that is accepted, and nothing is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterKey {
    secret: Secret,
    other: Option<Secret>,
}

impl MasterKey {
    /// Takes over the master secret.
    #[must_use]
    pub const fn new(secret: Secret) -> Self {
        Self {
            secret,
            other: None,
        }
    }

    /// The same, with another one beside it.
    #[must_use]
    pub fn beside(self, other: &Self) -> Self {
        Self {
            secret: self.secret,
            other: Some(other.secret.clone()),
        }
    }

    /// The other one alone, if there is one.
    #[must_use]
    pub fn other(&self) -> Option<Self> {
        self.other.clone().map(Self::new)
    }

    /// The same two with their parts changed, where there are two.
    #[must_use]
    pub fn turned(&self) -> Option<Self> {
        let other = self.other()?;
        Some(other.beside(self))
    }

    /// Whether these are the same keys, whichever of them makes others.
    #[must_use]
    pub fn has_the_keys_of(&self, other: &Self) -> bool {
        self == other || other.turned().is_some_and(|turned| *self == turned)
    }

    /// Whether a database that remembers this belongs to it, or to the one beside it.
    #[must_use]
    pub fn owns(&self, check: &[u8; KEY_BYTES]) -> bool {
        self.check() == *check || self.other().is_some_and(|other| other.check() == *check)
    }

    /// What tells it from others where one is named: a part of [`Self::check`].
    #[must_use]
    pub fn id(&self) -> [u8; MASTER_ID_BYTES] {
        let check = self.check();
        let mut id = [0; MASTER_ID_BYTES];
        id.copy_from_slice(&check[..MASTER_ID_BYTES]);
        id
    }

    /// Whether a token is the one of this epoch, by this key or the one beside it.
    #[must_use]
    pub fn knows_token(&self, identity: &Identity, epoch: u64, token: &Secret) -> bool {
        let own = self.token(identity, epoch) == *token;
        own || self
            .other()
            .is_some_and(|other| other.token(identity, epoch) == *token)
    }

    /// The key that one agent shares with the backend; `generation` counts rotations and never restarts.
    #[must_use]
    pub fn agent_key(&self, identity: &Identity, generation: u32) -> AgentKey {
        let prk = Hkdf::<Sha256>::new(None, self.secret.expose());
        let mut context = info(
            "viworks/1 agent",
            &[
                identity.tenant.as_str().as_bytes(),
                identity.agent_id.as_uuid().as_bytes(),
            ],
        );
        context.extend_from_slice(&generation.to_be_bytes());
        AgentKey(expand(&prk, &context))
    }

    /// The ratchet token of epoch `epoch`: not guessable, and nothing to store.
    #[must_use]
    pub fn token(&self, identity: &Identity, epoch: u64) -> Secret {
        let prk = Hkdf::<Sha256>::new(None, self.secret.expose());
        let mut context = info(
            "viworks/1 ratchet",
            &[
                identity.tenant.as_str().as_bytes(),
                identity.agent_id.as_uuid().as_bytes(),
            ],
        );
        context.extend_from_slice(&epoch.to_be_bytes());
        expand(&prk, &context)
    }

    /// The secret of one enrolment ticket: not guessable, and nothing to store but its digest.
    #[must_use]
    pub fn ticket_secret(&self, tenant: &Tenant, ticket: TicketId) -> Secret {
        let prk = Hkdf::<Sha256>::new(None, self.secret.expose());
        let fields: [&[u8]; 2] = [tenant.as_str().as_bytes(), ticket.as_uuid().as_bytes()];
        expand(&prk, &info("viworks/1 ticket", &fields))
    }

    /// The key by which every backend recognises the enrolment challenges that any of them gave.
    #[must_use]
    pub fn challenge_key(&self, tenant: &Tenant) -> Secret {
        let prk = Hkdf::<Sha256>::new(None, self.secret.expose());
        let fields: [&[u8]; 1] = [tenant.as_str().as_bytes()];
        expand(&prk, &info("viworks/1 enrol challenge", &fields))
    }

    /// What a database remembers to recognise the key that its gateways' keys follow from: 32 bytes that say nothing
    /// about the key, and are sent to nobody.
    #[must_use]
    pub fn check(&self) -> [u8; KEY_BYTES] {
        let prk = Hkdf::<Sha256>::new(None, self.secret.expose());
        *expand(&prk, &info("viworks/1 site", &[])).expose()
    }
}

/// The key one agent shares with the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentKey(Secret);

impl AgentKey {
    /// Takes over a stored key.
    #[must_use]
    pub const fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// The secret, for storing it.
    #[must_use]
    pub const fn secret(&self) -> &Secret {
        &self.0
    }
}

/// What a session is bound to: the TLS connection or the client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BindingMode {
    /// RFC 9266 exporter value of the TLS connection: TLS runs end to end.
    Exporter,
    /// SHA-256 of the client's leaf certificate in DER: TLS ends in a proxy.
    Certificate,
}

impl BindingMode {
    /// The name on the wire, in configuration files and in refusals.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exporter => "exporter",
            Self::Certificate => "certificate",
        }
    }
}

/// The 32 bytes a session is bound to, and how they came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// How the value was made; configured on both ends, never negotiated.
    pub mode: BindingMode,
    /// The exporter value or the certificate's digest.
    pub value: [u8; 32],
}

/// The keys of one session before and after HELLO.
#[derive(Debug)]
pub struct Schedule {
    prk: Hkdf<Sha256>,
    identity: Identity,
    binding: [u8; 32],
}

impl Schedule {
    /// Starts the schedule from the server's nonce and the shared key.
    #[must_use]
    pub fn new(
        server_nonce: &[u8; 32],
        key: &AgentKey,
        identity: Identity,
        binding: &Binding,
    ) -> Self {
        Self {
            prk: Hkdf::<Sha256>::new(Some(server_nonce), key.0.expose()),
            identity,
            binding: binding.value,
        }
    }

    /// The key that authenticates HELLO, bound to the exact bytes of CHALLENGE.
    #[must_use]
    pub fn hello_key(&self, challenge: &[u8]) -> Secret {
        let transcript = Sha256::digest(challenge);
        let fields: [&[u8]; 4] = [
            transcript.as_slice(),
            self.identity.tenant.as_str().as_bytes(),
            self.identity.agent_id.as_uuid().as_bytes(),
            &self.binding,
        ];
        expand(&self.prk, &info("viworks/1 hello", &fields))
    }

    /// The keys of both directions, bound to the exact bytes of CHALLENGE and HELLO.
    #[must_use]
    pub fn session_keys(&self, challenge: &[u8], hello: &[u8]) -> SessionKeys {
        let transcript = Sha256::new()
            .chain_update(challenge)
            .chain_update(hello)
            .finalize();
        let fields: [&[u8]; 2] = [transcript.as_slice(), &self.binding];
        SessionKeys {
            agent_to_backend: expand(&self.prk, &info("viworks/1 a2b", &fields)),
            backend_to_agent: expand(&self.prk, &info("viworks/1 b2a", &fields)),
        }
    }

    /// What covers later agent keys in this session: it follows from the agent key that HELLO was made with, bound as
    /// the session's own keys are.
    #[must_use]
    pub fn key_cover(&self, challenge: &[u8], hello: &[u8]) -> KeyCover {
        let transcript = Sha256::new()
            .chain_update(challenge)
            .chain_update(hello)
            .finalize();
        let fields: [&[u8]; 4] = [
            transcript.as_slice(),
            self.identity.tenant.as_str().as_bytes(),
            self.identity.agent_id.as_uuid().as_bytes(),
            &self.binding,
        ];
        KeyCover(expand(&self.prk, &info("viworks/1 key cover", &fields)))
    }
}

/// What covers later agent keys on their way through one session. Each is covered by a key of its own that serves this
/// once; that nobody changes them is for the session's own MAC.
#[derive(Debug)]
pub struct KeyCover(Secret);

impl KeyCover {
    /// The key of a generation as it travels.
    #[must_use]
    pub fn seal(&self, generation: u8, key: &AgentKey) -> String {
        covered(key.secret(), &self.of(generation)).expose_hex()
    }

    /// The key again; none where the text is none that [`Self::seal`] makes.
    #[must_use]
    pub fn open(&self, generation: u8, sealed: &str) -> Option<AgentKey> {
        let sealed = Secret::from_hex(sealed)?;
        Some(AgentKey(covered(&sealed, &self.of(generation))))
    }

    fn of(&self, generation: u8) -> Secret {
        let prk = Hkdf::<Sha256>::new(None, self.0.expose());
        let fields: [&[u8]; 1] = [&[generation]];
        expand(&prk, &info("viworks/1 key update", &fields))
    }
}

/// A secret under a one-time cover, or the secret again.
pub(crate) fn covered(secret: &Secret, cover: &Secret) -> Secret {
    let mut bytes = *secret.expose();
    for (byte, other) in bytes.iter_mut().zip(cover.expose()) {
        *byte ^= other;
    }
    Secret::from_bytes(bytes)
}

/// One key for each direction, so that nothing can be reflected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionKeys {
    /// Authenticates what the agent sends after HELLO.
    pub agent_to_backend: Secret,
    /// Authenticates what the backend sends after HELLO, WELCOME included.
    pub backend_to_agent: Secret,
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn identity(n: u128) -> Identity {
        Identity {
            tenant: Tenant::default_tenant(),
            agent_id: AgentId::from_uuid(Uuid::from_u128(n)),
        }
    }

    #[test]
    fn keys_differ_by_agent_generation_purpose_and_direction() {
        let master = MasterKey::new(Secret::from_bytes([7; 32]));
        let key = master.agent_key(&identity(1), 1);
        assert_ne!(key, master.agent_key(&identity(2), 1));
        assert_ne!(key, master.agent_key(&identity(1), 2));
        assert_ne!(*key.secret(), master.token(&identity(1), 1));
        let binding = Binding {
            mode: BindingMode::Exporter,
            value: [3; 32],
        };
        let keys = Schedule::new(&[1; 32], &key, identity(1), &binding)
            .session_keys(b"challenge", b"hello");
        assert_ne!(keys.agent_to_backend, keys.backend_to_agent);
        let other = Binding {
            mode: BindingMode::Exporter,
            value: [4; 32],
        };
        assert_ne!(
            keys,
            Schedule::new(&[1; 32], &key, identity(1), &other).session_keys(b"challenge", b"hello")
        );
    }

    #[test]
    fn a_covered_key_is_opened_by_the_ends_of_its_session_alone() {
        let master = MasterKey::new(Secret::from_bytes([7; 32]));
        let binding = |value| Binding {
            mode: BindingMode::Exporter,
            value: [value; 32],
        };
        let cover = |generation, nonce, hello: &[u8], bound| {
            let key = master.agent_key(&identity(1), generation);
            Schedule::new(&[nonce; 32], &key, identity(1), &binding(bound))
                .key_cover(b"challenge", hello)
        };
        let next = master.agent_key(&identity(1), 2);
        let sealed = cover(1, 1, b"hello", 3).seal(2, &next);
        assert_ne!(sealed, next.secret().expose_hex());
        assert_eq!(
            cover(1, 1, b"hello", 3).open(2, &sealed),
            Some(next.clone())
        );
        for other in [
            cover(3, 1, b"hello", 3),
            cover(1, 9, b"hello", 3),
            cover(1, 1, b"other", 3),
            cover(1, 1, b"hello", 9),
        ] {
            assert_ne!(other.open(2, &sealed), Some(next.clone()));
        }
        assert_ne!(cover(1, 1, b"hello", 3).open(3, &sealed), Some(next));
        assert_eq!(cover(1, 1, b"hello", 3).open(2, "no key"), None);
    }

    #[test]
    fn of_two_master_keys_both_are_known_and_one_makes_others() {
        let (old, new) = (7, 8);
        let alone = |byte| MasterKey::new(Secret::from_bytes([byte; 32]));
        let both = alone(new).beside(&alone(old));
        assert_eq!(
            both.token(&identity(1), 3),
            alone(new).token(&identity(1), 3)
        );
        assert_eq!(both.check(), alone(new).check());
        for byte in [old, new] {
            let token = alone(byte).token(&identity(1), 3);
            assert!(both.knows_token(&identity(1), 3, &token));
            assert!(!both.knows_token(&identity(1), 4, &token));
            assert!(both.owns(&alone(byte).check()));
        }
        assert!(!both.owns(&alone(9).check()));
        let turned = both.turned().unwrap();
        assert_eq!(turned.check(), alone(old).check());
        assert_eq!(turned.other(), Some(alone(new)));
        assert!(both.has_the_keys_of(&turned) && turned.has_the_keys_of(&both));
        assert!(!both.has_the_keys_of(&alone(new)));
        assert_eq!(alone(new).turned(), None);
        assert_ne!(alone(old).id(), alone(new).id());
    }

    #[test]
    fn a_secret_never_prints_its_bytes() {
        assert_eq!(
            format!("{:?}", Secret::from_bytes([0xab; 32])),
            "Secret(..)"
        );
    }
}
