//! Whether certificates are signed at the moment: told by whoever needed one, and over with the next that is signed.

use std::error::Error;

use viworks_runtime::conditions::{Conditions, Severity};

use super::PkiError;
use crate::data::in_full;

/// The condition of an authority that signs nothing.
pub const SIGNING: &str = "pki.signing";

const FIX: &str = "put right what the cause names: until then no machine enrols and no certificate is renewed, and \
                   gateways ask again by themselves; this is over with the next certificate that is signed";

/// Tells what came of a signature.
pub fn tell<T>(conditions: &Conditions, signed: &Result<T, PkiError>) {
    match signed {
        Ok(_signed) => conditions.clear(SIGNING),
        // Somebody else issues the certificates of this site, on purpose.
        Err(PkiError::NoAuthority) => {}
        Err(error) => tell_failed(conditions, error),
    }
}

/// Tells why nothing can be signed.
pub fn tell_failed(conditions: &Conditions, error: &dyn Error) {
    let cause = format!(
        "certificates of gateways cannot be signed: {}",
        in_full(error)
    );
    conditions.raise(SIGNING, Severity::Warn, &cause, FIX);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use viworks_runtime::clock::SystemClock;

    use super::*;

    #[test]
    fn a_signature_that_does_not_come_is_told_with_its_cause_until_one_does() {
        let conditions = Conditions::new(Arc::new(SystemClock));
        let refused = |reason: &str| -> Result<(), PkiError> {
            Err(PkiError::Signer {
                reason: reason.to_owned(),
            })
        };
        tell(&conditions, &refused("it did not end within 10 seconds"));
        let told = conditions.list();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(
            (&*told[0].name, told[0].severity),
            (SIGNING, Severity::Warn)
        );
        assert_eq!(
            told[0].cause,
            "certificates of gateways cannot be signed: the program of ca_sign_command in [keys] did not sign: it did \
             not end within 10 seconds"
        );
        assert!(told[0].fix.contains("put right"), "{}", told[0].fix);
        // Whoever has no authority here neither raises nor ends it.
        tell::<()>(&conditions, &Err(PkiError::NoAuthority));
        assert_eq!(conditions.list().len(), 1);
        tell(&conditions, &refused("no such key"));
        assert!(conditions.list()[0].cause.ends_with("no such key"));
        tell(&conditions, &Ok(()));
        assert_eq!(conditions.list(), []);
        tell::<()>(&conditions, &Err(PkiError::NoAuthority));
        assert_eq!(conditions.list(), []);
    }
}
