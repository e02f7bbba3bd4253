//! A batch as it travelled: while it waits it costs what it cost the link, and nothing that it claims is believed yet.

use super::check::check_batch;
use super::envelope::Packed;
use crate::telemetry::BatchColumns;

/// A TELEMETRY body whose tag was verified, and that was neither unpacked nor parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    body: Packed,
}

impl PackedBatch {
    pub(crate) const fn new(body: Packed) -> Self {
        Self { body }
    }

    /// Packs a batch as a gateway does.
    #[must_use]
    pub fn pack(columns: &BatchColumns) -> Self {
        let json =
            serde_json::to_vec(columns).expect("columns have string keys and finite numbers");
        Self::new(Packed::compressed(json))
    }

    /// What it costs while it waits.
    #[must_use]
    pub const fn wire_bytes(&self) -> usize {
        self.body.wire_bytes()
    }

    /// Bytes of its text once it is unpacked; at most [`BULK_BODY_BYTES_MAX`](crate::limits::BULK_BODY_BYTES_MAX).
    #[must_use]
    pub const fn body_bytes(&self) -> usize {
        self.body.body_bytes()
    }

    /// Unpacks and reads it.
    ///
    /// # Errors
    /// One sentence, when it is damaged or no batch: a fault of the sender, which closes the session.
    pub fn open(&self) -> Result<BatchColumns, String> {
        let body = self.body.unpack().map_err(|error| error.to_string())?;
        let malformed =
            |error: &dyn std::fmt::Display| format!("the body of kind 0x12 is malformed: {error}");
        let columns = serde_json::from_slice(&body).map_err(|error| malformed(&error))?;
        check_batch(&columns).map_err(|violation| malformed(&violation))?;
        Ok(columns)
    }
}
