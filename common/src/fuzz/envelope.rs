//! The envelope: exact bounds, nothing without its tag, nothing twice, and what is sealed comes out again.

use crate::key::Secret;
use crate::limits;
use crate::wire::envelope::{
    EnvelopeError, FLAG_ZSTD, HEADER_BYTES, KIND_HELLO, Packed, Phase, Sealed, TAG_BYTES, VERSION,
    body_bytes_max, seal,
};

const KEY: Secret = Secret::from_bytes([0x2a; 32]);
const OTHER_KEY: Secret = Secret::from_bytes([0x2b; 32]);

/// Takes the bytes as a whole message, as the signed part of one, and as a body.
pub fn envelope(data: &[u8]) {
    for phase in [Phase::Opening, Phase::Established] {
        as_message(data, phase);
        as_signed_part(data, phase);
    }
    as_body(data);
}

fn as_message(data: &[u8], phase: Phase) {
    let fits = (HEADER_BYTES + TAG_BYTES..=phase.message_bytes_max()).contains(&data.len());
    match Sealed::new(data, phase) {
        Err(EnvelopeError::TooShort { .. } | EnvelopeError::TooLarge { .. }) => assert!(!fits),
        Err(other) => panic!("looking at the length alone gave {other}"),
        Ok(sealed) => {
            assert!(fits);
            let zeros = data.ends_with(&[0; TAG_BYTES]);
            match sealed.open_challenge() {
                Ok(opened) => assert!(zeros && opened.kind() == 0x01),
                Err(EnvelopeError::BadTag) => assert!(!zeros),
                Err(_) => assert!(zeros),
            }
            // No fuzzer finds a tag; a stored message with a good one is behind the next function.
            let claimed = u64::MAX;
            if sealed.open(&OTHER_KEY, claimed).is_ok() {
                panic!("bytes from nowhere carry a good tag");
            }
        }
    }
}

/// Puts the right tag behind the bytes, as whoever has the key can: now the header decides.
fn as_signed_part(data: &[u8], phase: Phase) {
    let message = [data, &KEY.tag(&[data])].concat();
    let Ok(sealed) = Sealed::new(&message, phase) else {
        return;
    };
    let (Some(header), Some(sequence)) = (
        data.first_chunk::<4>().copied(),
        data.get(4..HEADER_BYTES).and_then(|s| s.first_chunk::<8>()),
    ) else {
        unreachable!("the length was checked");
    };
    let [version, kind, flags, key_generation] = header;
    let sequence = u64::from_be_bytes(*sequence);
    assert_eq!(
        sealed.open(&OTHER_KEY, sequence),
        Err(EnvelopeError::BadTag)
    );
    let header_is_good = version == VERSION
        && flags & !FLAG_ZSTD == 0
        && (kind == KIND_HELLO) == (key_generation != 0)
        && (flags == 0 || matches!(phase, Phase::Established));
    match sealed.open(&KEY, sequence) {
        Ok(opened) => {
            assert!(header_is_good);
            assert_eq!(opened.kind(), kind);
            assert!(opened.body().len() <= body_bytes_max(kind));
            if flags == 0 {
                assert_eq!(opened.body(), &data[HEADER_BYTES..]);
            }
        }
        Err(error) => assert!(
            !header_is_good
                || flags == FLAG_ZSTD
                || data.len() - HEADER_BYTES > body_bytes_max(kind),
            "a good message was refused: {error}"
        ),
    }
    if version == VERSION {
        let next = sequence.wrapping_add(1);
        assert_eq!(
            sealed.open(&KEY, next),
            Err(EnvelopeError::Sequence {
                expected: next,
                found: sequence
            })
        );
    }
}

fn as_body(data: &[u8]) {
    for body in [
        Packed::plain(data.to_vec()),
        Packed::compressed(data.to_vec()),
    ] {
        assert!(body.wire_bytes() <= data.len());
        let message = seal(0x12, 0, 7, &body, &KEY);
        assert_eq!(message.len(), body.message_bytes());
        let Ok(sealed) = Sealed::new(&message, Phase::Established) else {
            assert!(message.len() > limits::MESSAGE_BYTES_MAX);
            continue;
        };
        assert_eq!(body.body_bytes(), data.len());
        match sealed.open(&KEY, 7) {
            Ok(opened) => assert_eq!(opened.body(), data),
            Err(EnvelopeError::BodyTooLarge { limit, .. }) => assert!(data.len() > limit),
            Err(error) => panic!("what was sealed does not open: {error}"),
        }
    }
}
