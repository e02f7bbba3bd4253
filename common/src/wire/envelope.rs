//! The envelope: seals and opens the bytes of one message; nothing inside is read before its tag has been verified.

use std::borrow::Cow;

use subtle::ConstantTimeEq;

use crate::code::CloseCode;
use crate::key::{KEY_BYTES, Secret};
use crate::limits;

/// The version of this envelope and of the protocol.
pub const VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 12;
/// Bytes after the body.
pub const TAG_BYTES: usize = KEY_BYTES;
/// Bytes of the nonce before HELLO's JSON, and of the one before CHALLENGE's.
pub const NONCE_BYTES: usize = 32;
/// Bytes of the session id before CHALLENGE's nonce.
pub const SESSION_ID_BYTES: usize = 16;
/// Flag: the body is one zstd frame that declares its content size.
pub const FLAG_ZSTD: u8 = 0b0000_0001;
/// The kind of CHALLENGE.
pub const KIND_CHALLENGE: u8 = 0x01;
/// The kind of HELLO.
pub const KIND_HELLO: u8 = 0x02;
/// The kind of TELEMETRY.
pub const KIND_TELEMETRY: u8 = 0x12;

/// Bytes of a body of `kind` after decompression: what it is unpacked into is bounded before it is unpacked.
#[must_use]
pub const fn body_bytes_max(kind: u8) -> usize {
    match kind {
        KIND_TELEMETRY | 0x16 => limits::BULK_BODY_BYTES_MAX,
        0x17 => limits::RESULT_BODY_BYTES_MAX,
        0x18 => limits::CATALOGUE_BODY_BYTES_MAX,
        // What else an agent sends once it is confirmed.
        0x10..=0x1f => limits::SMALL_BODY_BYTES_MAX,
        _ => limits::BODY_BYTES_MAX,
    }
}

/// Bodies below this size are not worth compressing.
const COMPRESS_FROM_BYTES: usize = 512;
const COMPRESSION_LEVEL: i32 = 3;

/// How far the session is: what an envelope may be before and after CONFIRM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// CHALLENGE to CONFIRM: small messages, no compression.
    Opening,
    /// After CONFIRM.
    Established,
}

impl Phase {
    /// Bytes of the largest message.
    #[must_use]
    pub const fn message_bytes_max(self) -> usize {
        match self {
            Self::Opening => limits::OPENING_MESSAGE_BYTES_MAX,
            Self::Established => limits::MESSAGE_BYTES_MAX,
        }
    }
}

/// Why bytes are not an acceptable envelope. Every one of these ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Shorter than a header and a tag.
    #[error("a message of {bytes} bytes is shorter than an empty envelope")]
    TooShort {
        /// Its length.
        bytes: usize,
    },
    /// Longer than allowed at this point of the session.
    #[error("a message of {bytes} bytes exceeds the {limit} allowed at this point")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The tag does not fit the bytes and the key.
    #[error("the authentication tag is wrong")]
    BadTag,
    /// Another version of the envelope.
    #[error("envelope version {0} is not supported")]
    Version(u8),
    /// A gap or a repetition.
    #[error("sequence number {found} where {expected} was due")]
    Sequence {
        /// The number that was due.
        expected: u64,
        /// The number in the envelope.
        found: u64,
    },
    /// Flags this version does not define.
    #[error("undefined flags {0:#04x}")]
    Flags(u8),
    /// A key generation outside HELLO, or none inside it.
    #[error("key generation {0} does not belong in this message")]
    KeyGeneration(u8),
    /// CHALLENGE was due.
    #[error("message kind {0:#04x} where CHALLENGE was due")]
    NotChallenge(u8),
    /// Compression before CONFIRM.
    #[error("a compressed body before CONFIRM")]
    CompressedTooEarly,
    /// Not one zstd frame of the declared size.
    #[error("the compressed body is damaged or does not declare its size")]
    Compression,
    /// The body would exceed its limit after decompression.
    #[error(
        "the body has {bytes} bytes after decompression, over the {limit} allowed for its kind"
    )]
    BodyTooLarge {
        /// What it declares.
        bytes: u64,
        /// What is allowed.
        limit: usize,
    },
}

impl EnvelopeError {
    /// Whether the tag was right, so that the sender is who it claims to be.
    #[must_use]
    pub const fn is_authentic(self) -> bool {
        match self {
            Self::Version(_)
            | Self::Sequence { .. }
            | Self::Flags(_)
            | Self::KeyGeneration(_)
            | Self::CompressedTooEarly
            | Self::Compression
            | Self::BodyTooLarge { .. } => true,
            Self::TooShort { .. }
            | Self::TooLarge { .. }
            | Self::BadTag
            | Self::NotChallenge(_) => false,
        }
    }

    /// The code to close with.
    #[must_use]
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::TooLarge { .. } | Self::BodyTooLarge { .. } => CloseCode::TooLarge,
            Self::TooShort { .. }
            | Self::BadTag
            | Self::Version(_)
            | Self::Sequence { .. }
            | Self::Flags(_)
            | Self::KeyGeneration(_)
            | Self::NotChallenge(_)
            | Self::CompressedTooEarly
            | Self::Compression => CloseCode::BadEnvelope,
        }
    }
}

/// A body as it travels, compressed when that was worth it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    flags: u8,
    bytes: Vec<u8>,
    body_bytes: usize,
}

impl Packed {
    /// A body that travels as it is.
    #[must_use]
    pub const fn plain(bytes: Vec<u8>) -> Self {
        let body_bytes = bytes.len();
        Self {
            flags: 0,
            bytes,
            body_bytes,
        }
    }

    /// A body that is compressed when it is large enough and becomes smaller.
    #[must_use]
    pub fn compressed(bytes: Vec<u8>) -> Self {
        if bytes.len() < COMPRESS_FROM_BYTES {
            return Self::plain(bytes);
        }
        match zstd::bulk::compress(&bytes, COMPRESSION_LEVEL) {
            Ok(smaller) if smaller.len() < bytes.len() => Self {
                flags: FLAG_ZSTD,
                bytes: smaller,
                body_bytes: bytes.len(),
            },
            // Compression is a favour to the link: a body that resists it travels as it is.
            Ok(_) | Err(_) => Self::plain(bytes),
        }
    }

    /// Bytes of the body on the wire.
    #[must_use]
    pub const fn wire_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the body before it was packed.
    #[must_use]
    pub const fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Unpacks the body.
    ///
    /// # Errors
    /// When it is not one zstd frame of the size it declares.
    pub fn unpack(&self) -> Result<Cow<'_, [u8]>, EnvelopeError> {
        unpack(self.flags, &self.bytes, self.body_bytes)
    }

    /// Bytes of the whole message on the wire.
    #[must_use]
    pub const fn message_bytes(&self) -> usize {
        HEADER_BYTES + self.bytes.len() + TAG_BYTES
    }
}

fn header_and_body(kind: u8, key_generation: u8, sequence: u64, body: &Packed) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.message_bytes());
    bytes.extend_from_slice(&[VERSION, kind, body.flags, key_generation]);
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&body.bytes);
    bytes
}

/// Seals a message; `key_generation` is zero in everything but HELLO.
#[must_use]
pub fn seal(kind: u8, key_generation: u8, sequence: u64, body: &Packed, key: &Secret) -> Vec<u8> {
    let mut bytes = header_and_body(kind, key_generation, sequence, body);
    let tag = key.tag(&[&bytes]);
    bytes.extend_from_slice(&tag);
    bytes
}

/// CHALLENGE: no key exists yet, so its tag is zeros; HELLO's key authenticates its bytes afterwards.
#[must_use]
pub fn challenge(
    session_id: &[u8; SESSION_ID_BYTES],
    server_nonce: &[u8; NONCE_BYTES],
    json: &[u8],
) -> Vec<u8> {
    let body = Packed::plain([&session_id[..], &server_nonce[..], json].concat());
    let mut bytes = header_and_body(KIND_CHALLENGE, 0, 0, &body);
    bytes.extend_from_slice(&[0; TAG_BYTES]);
    bytes
}

/// HELLO's body: the client's nonce before the JSON.
#[must_use]
pub fn hello_body(client_nonce: &[u8; NONCE_BYTES], json: &[u8]) -> Packed {
    Packed::plain([&client_nonce[..], json].concat())
}

/// A message as received: nothing in it may be believed.
#[derive(Debug, Clone, Copy)]
pub struct Sealed<'a> {
    signed: &'a [u8],
    tag: &'a [u8],
    phase: Phase,
}

/// A message whose tag, sequence number, flags and size were verified, with its body as it travelled. Only [`Sealed`]
/// makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified<'a> {
    kind: u8,
    flags: u8,
    body: &'a [u8],
    body_bytes: usize,
}

impl<'a> Verified<'a> {
    /// The message kind.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// Bytes of the body after it is unpacked.
    #[must_use]
    pub const fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Unpacks the body.
    ///
    /// # Errors
    /// When it is not one zstd frame of the size it declares.
    pub fn open(self) -> Result<Opened<'a>, EnvelopeError> {
        Ok(Opened {
            kind: self.kind,
            body: unpack(self.flags, self.body, self.body_bytes)?,
        })
    }

    /// Keeps the body as it travelled, for later.
    #[must_use]
    pub fn keep(self) -> Packed {
        Packed {
            flags: self.flags,
            bytes: self.body.to_vec(),
            body_bytes: self.body_bytes,
        }
    }
}

/// A message whose body was unpacked, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened<'a> {
    kind: u8,
    body: Cow<'a, [u8]>,
}

impl Opened<'_> {
    /// The message kind.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// The body, decompressed.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

impl<'a> Sealed<'a> {
    /// Looks at the length of a message and at nothing else.
    ///
    /// # Errors
    /// When the message is too short for an envelope or too large for the phase.
    pub fn new(bytes: &'a [u8], phase: Phase) -> Result<Self, EnvelopeError> {
        let limit = phase.message_bytes_max();
        if bytes.len() > limit {
            return Err(EnvelopeError::TooLarge {
                bytes: bytes.len(),
                limit,
            });
        }
        let too_short = EnvelopeError::TooShort { bytes: bytes.len() };
        let (signed, tag) = bytes
            .len()
            .checked_sub(TAG_BYTES)
            .filter(|signed| *signed >= HEADER_BYTES)
            .map(|signed| bytes.split_at(signed))
            .ok_or(too_short)?;
        Ok(Self { signed, tag, phase })
    }

    /// The kind the message claims to be, before anything is verified.
    #[must_use]
    pub const fn claimed_kind(&self) -> u8 {
        self.signed[1]
    }

    /// The key generation the message claims: it selects the key that then proves or disproves it.
    #[must_use]
    pub const fn claimed_key_generation(&self) -> u8 {
        self.signed[3]
    }

    /// The nonce a HELLO claims, before anything is verified: only good for a look-up.
    #[must_use]
    pub fn claimed_client_nonce(&self) -> Option<[u8; NONCE_BYTES]> {
        if self.claimed_kind() == KIND_HELLO {
            self.signed[HEADER_BYTES..].first_chunk().copied()
        } else {
            None
        }
    }

    /// Verifies the tag over the exact bytes in constant time, then the header and the size of the body.
    ///
    /// # Errors
    /// The first of these that fails.
    pub fn verify(self, key: &Secret, sequence: u64) -> Result<Verified<'a>, EnvelopeError> {
        if !key.verifies(&[self.signed], self.tag) {
            return Err(EnvelopeError::BadTag);
        }
        self.check(sequence)
    }

    /// Verifies the message, and unpacks its body.
    ///
    /// # Errors
    /// The first of these that fails.
    pub fn open(self, key: &Secret, sequence: u64) -> Result<Opened<'a>, EnvelopeError> {
        self.verify(key, sequence)?.open()
    }

    /// Reads CHALLENGE, which no key protects: its bytes go into the keys of everything that follows.
    ///
    /// # Errors
    /// When it is not CHALLENGE with sequence number zero and a tag of zeros.
    pub fn open_challenge(self) -> Result<Opened<'a>, EnvelopeError> {
        if !bool::from(self.tag.ct_eq(&[0; TAG_BYTES])) {
            return Err(EnvelopeError::BadTag);
        }
        if self.claimed_kind() != KIND_CHALLENGE {
            return Err(EnvelopeError::NotChallenge(self.claimed_kind()));
        }
        self.check(0)?.open()
    }

    fn check(self, sequence: u64) -> Result<Verified<'a>, EnvelopeError> {
        let (header, body) = self.signed.split_at(HEADER_BYTES);
        let [version, kind, flags, key_generation, ..] = *header else {
            return Err(EnvelopeError::TooShort {
                bytes: self.signed.len(),
            });
        };
        if version != VERSION {
            return Err(EnvelopeError::Version(version));
        }
        let found = header
            .last_chunk()
            .map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes));
        if found != sequence {
            return Err(EnvelopeError::Sequence {
                expected: sequence,
                found,
            });
        }
        if flags & !FLAG_ZSTD != 0 {
            return Err(EnvelopeError::Flags(flags));
        }
        if (kind == KIND_HELLO) == (key_generation == 0) {
            return Err(EnvelopeError::KeyGeneration(key_generation));
        }
        let declared = if flags & FLAG_ZSTD == 0 {
            u64::try_from(body.len()).unwrap_or(u64::MAX)
        } else {
            match self.phase {
                Phase::Opening => return Err(EnvelopeError::CompressedTooEarly),
                Phase::Established => declared_bytes(body)?,
            }
        };
        let limit = body_bytes_max(kind);
        let body_bytes = usize::try_from(declared)
            .ok()
            .filter(|bytes| *bytes <= limit)
            .ok_or(EnvelopeError::BodyTooLarge {
                bytes: declared,
                limit,
            })?;
        Ok(Verified {
            kind,
            flags,
            body,
            body_bytes,
        })
    }
}

/// What a zstd frame says about its content.
fn declared_bytes(frame: &[u8]) -> Result<u64, EnvelopeError> {
    zstd::zstd_safe::get_frame_content_size(frame)
        .ok()
        .flatten()
        .ok_or(EnvelopeError::Compression)
}

/// Unpacks a body whose size was checked before a byte is allocated, and bounds what is written.
fn unpack(flags: u8, body: &[u8], body_bytes: usize) -> Result<Cow<'_, [u8]>, EnvelopeError> {
    if flags & FLAG_ZSTD == 0 {
        return Ok(Cow::Borrowed(body));
    }
    let unpacked =
        zstd::bulk::decompress(body, body_bytes).map_err(|_damaged| EnvelopeError::Compression)?;
    if unpacked.len() == body_bytes {
        Ok(Cow::Owned(unpacked))
    } else {
        Err(EnvelopeError::Compression)
    }
}
