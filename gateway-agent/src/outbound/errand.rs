//! What a gateway comes to the door of the backend for.

use viworks_common::code::CloseCode;
use viworks_common::renewal::Against;
use viworks_common::time::Timestamp;

use super::ending::Ended;
use super::failure::{self, DialFailure};
use crate::material::Material;
use crate::renewed::Origin;

/// What is asked for; the request is the same, and so is the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// Another certificate: its own has ended.
    Certificate,
    /// The authorities of the server's certificate, which is of one that is not known here: it was replaced while the
    /// gateway was off.
    Authorities,
}

impl Errand {
    /// The condition while it is asked for.
    #[must_use]
    pub const fn condition(self) -> &'static str {
        match self {
            Self::Certificate => "certificate.door",
            Self::Authorities => "authorities.door",
        }
    }

    /// What is asked for, behind what is wrong.
    pub(super) const fn wanted(self) -> &'static str {
        match self {
            Self::Certificate => "another one",
            Self::Authorities => "the authorities",
        }
    }

    /// What did not come.
    pub(super) const fn missed(self) -> &'static str {
        match self {
            Self::Certificate => "no other one",
            Self::Authorities => "no authority that helps",
        }
    }
}

/// What an attempt to connect failed for, as far as the door and other files may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blame {
    /// What was said against the certificate, where another one may fare better.
    pub(super) certificate: Option<Against>,
    /// The other end says that the certificate has ended, and this clock does not.
    pub(super) disputed: bool,
    /// The server has a pinned key, and a certificate of an authority that is not known here.
    pub(super) authority: bool,
}

impl Blame {
    /// That of a session, or of an attempt that came as far as one.
    pub(super) fn of_session(ended: &Ended) -> Self {
        let refused = ended.is_of_the_certificate();
        Self {
            certificate: refused.then_some(Against::Refused),
            disputed: false,
            authority: false,
        }
    }

    /// That of an attempt that showed this certificate.
    pub(super) fn of_attempt(failure: &DialFailure, material: &Material) -> Self {
        let proved = material.shown.origin != Origin::Issued;
        let refused = failure.is_of_the_certificate(proved);
        Self {
            certificate: refused.then(|| failure.against()),
            disputed: matches!(failure, DialFailure::CertificateDisputed { .. }),
            authority: matches!(failure, DialFailure::AuthorityUnknown { .. }),
        }
    }

    /// What there is to ask the door for; `over` when the latest certificate of this gateway has ended by its own
    /// clock.
    pub(super) fn errand(self, code: Option<CloseCode>, over: bool) -> Option<Errand> {
        let is_refused = code == Some(CloseCode::CertUntrusted);
        if self.authority {
            Some(Errand::Authorities)
        } else if is_refused && (self.disputed || over) {
            Some(Errand::Certificate)
        } else {
            None
        }
    }
}

/// What to do about an end that the door may help with, where that is another thing than the end itself says.
pub(super) fn fix(
    ended: &Ended,
    blame: Blame,
    not_after: Timestamp,
    wall: Timestamp,
    has_door: bool,
) -> &'static str {
    let is_refused = ended.code == Some(CloseCode::CertUntrusted);
    match (has_door, is_refused && not_after < wall) {
        (true, _) if blame.authority => failure::AUTHORITIES_FROM_THE_DOOR,
        (true, true) => failure::FROM_THE_DOOR,
        (false, true) => failure::RENEW,
        (_, false) => ended.fix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_door_is_asked_for_what_an_attempt_failed_for_and_for_nothing_else() {
        let none = Blame {
            certificate: Some(Against::Refused),
            disputed: false,
            authority: false,
        };
        let untrusted = Some(CloseCode::CertUntrusted);
        assert_eq!(none.errand(untrusted, false), None, "it may be revoked");
        assert_eq!(none.errand(None, true), None, "nobody refused it");
        assert_eq!(none.errand(untrusted, true), Some(Errand::Certificate));
        let disputed = Blame {
            disputed: true,
            ..none
        };
        assert_eq!(disputed.errand(untrusted, false), Some(Errand::Certificate));
        // The server's certificate is looked at before ours is shown: whatever is wrong with ours comes second.
        let authority = Blame {
            authority: true,
            ..none
        };
        for over in [true, false] {
            assert_eq!(authority.errand(None, over), Some(Errand::Authorities));
        }
    }
}
