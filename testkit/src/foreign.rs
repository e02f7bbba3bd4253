//! A certificate request by somebody who does not hold the key it shows.

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};

/// Shows one key and signs with another.
pub struct ForeignSigner {
    /// The key that a request shows.
    pub shown: KeyPair,
    /// The key that signs it.
    pub own: KeyPair,
}

impl PublicKeyData for ForeignSigner {
    fn der_bytes(&self) -> &[u8] {
        self.shown.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.shown.algorithm()
    }
}

impl SigningKey for ForeignSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.own.sign(message)
    }
}
