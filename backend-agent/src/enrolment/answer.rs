//! What is answered at the door, and what it is made of.

use viworks_common::time::Timestamp;
use viworks_runtime::tls;

use crate::pki::PkiError;

/// What somebody is answered: the body, and its MAC where there is a secret to make one.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) body: Vec<u8>,
    pub(super) proof: Option<String>,
    /// The word in metrics.
    pub(super) outcome: &'static str,
}

/// When a certificate ends, PEM.
pub(super) fn end_of(certificate: &str) -> Result<Timestamp, PkiError> {
    let der = tls::one_certificate(certificate.as_bytes())?;
    Ok(tls::validity(&der)?.1)
}

pub(super) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what is exchanged has string keys and whole numbers")
}
