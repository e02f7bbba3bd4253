//! The keys and sequence numbers of one session, as one end sees them.

use crate::key::Secret;
use crate::wire::envelope::{self, EnvelopeError, Opened, Packed, Phase, Sealed, Verified};

/// Seals and opens in strict order: what was opened once cannot be opened again.
#[derive(Debug)]
pub(super) struct Link {
    send_key: Secret,
    receive_key: Secret,
    next_send: u64,
    next_receive: u64,
}

impl Link {
    pub(super) const fn new(
        send_key: Secret,
        receive_key: Secret,
        next_send: u64,
        next_receive: u64,
    ) -> Self {
        Self {
            send_key,
            receive_key,
            next_send,
            next_receive,
        }
    }

    /// Gives a message the next sequence number of this direction.
    pub(super) fn seal(&mut self, kind: u8, body: &Packed) -> Vec<u8> {
        let bytes = envelope::seal(kind, 0, self.next_send, body, &self.send_key);
        self.next_send += 1;
        bytes
    }

    pub(super) fn open<'a>(
        &mut self,
        bytes: &'a [u8],
        phase: Phase,
    ) -> Result<Opened<'a>, EnvelopeError> {
        self.verify(bytes, phase)?.open()
    }

    /// The same without unpacking the body. A body that then cannot be unpacked ends the session, so its number is
    /// used up.
    pub(super) fn verify<'a>(
        &mut self,
        bytes: &'a [u8],
        phase: Phase,
    ) -> Result<Verified<'a>, EnvelopeError> {
        let verified = Sealed::new(bytes, phase)?.verify(&self.receive_key, self.next_receive)?;
        self.next_receive += 1;
        Ok(verified)
    }

    /// The number of the last message that was sealed.
    pub(super) const fn last_sent(&self) -> u64 {
        self.next_send - 1
    }

    /// The number of the last message that was opened.
    pub(super) const fn last_received(&self) -> u64 {
        self.next_receive - 1
    }
}
