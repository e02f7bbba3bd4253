//! Stable codes that a person can look up: WebSocket close codes and the reasons for refusals.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! close_codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $permanent:literal, $advice:literal;)*) => {
        /// Why a session was refused or closed. Both ends log the same code; `docs/errors/` has a page for each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum CloseCode {
            $($(#[$doc])* $variant,)*
        }

        impl CloseCode {
            /// Every code, in the order of its number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The number in the WebSocket close frame.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$variant => $number,)* }
            }

            /// The name on the wire, in logs and in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether the gateway waits 15 to 60 minutes before it tries again, when the refusal was authenticated.
            #[must_use]
            pub const fn is_permanent(self) -> bool {
                match self { $(Self::$variant => $permanent,)* }
            }

            /// What a person should do.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)* }
            }

            /// The code with a name, for example from a close frame's reason.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.name() == name)
            }
        }
    };
}

close_codes! {
    /// An envelope that is malformed, out of order or carries a wrong tag.
    BadEnvelope = 4400, "bad_envelope", false, "if it repeats, check that no proxy alters WebSocket messages and that both ends run supported versions";
    /// A nonce or challenge that was used before.
    Replay = 4400, "replay", false, "a recorded message was sent again: look for the machine behind the address in the security event";
    /// The gateway's certificate is not acceptable to the backend.
    CertUntrusted = 4401, "cert_untrusted", true, "issue the gateway a certificate from the backend's own authority, or, if the backend let it in before, see that the backend uses the database in which the gateway is";
    /// The ends disagree about how sessions are bound to the connection.
    BindingMismatch = 4401, "binding_mismatch", true, "set the same binding on the gateway and on the listener";
    /// The identity was revoked by an operator.
    Revoked = 4403, "revoked", true, "an operator revoked this identity, or only the certificate that it shows: the cause says which; if the machine still belongs to the fleet, and no other certificate of its own lets it in, let it in again: viworks gateway replace NAME, then viworks-gateway-agent enroll";
    /// HELLO or CONFIRM did not come in time.
    HelloTimeout = 4408, "hello_timeout", false, "check the path's latency and the gateway's load";
    /// No authenticated frame for the longest allowed silence.
    HeartbeatTimeout = 4408, "heartbeat_timeout", false, "the path went silent; the gateway reconnects by itself";
    /// A newer session of the same agent took over.
    Superseded = 4409, "superseded", false, "no action where this machine only lost its connection: its newer session serves it; otherwise another machine has the identity: viworks gateway forks";
    /// Two holders of one identity.
    IdentityFork = 4410, "identity_fork", true, "decide who keeps this identity: viworks gateway forks shows both holders, viworks gateway resolve --keep lets one in, also one whose state folder was lost or restored; where two machines are to go on, give the other an identity of its own; if a stranger has the copy, revoke it and issue its name again";
    /// A message over its size limit.
    TooLarge = 4413, "too_large", false, "the message exceeds the documented limit";
    /// The protocol versions of the two ends do not overlap.
    ProtocolTooOld = 4426, "protocol_too_old", true, "upgrade the older end";
    /// Too many take-overs or attempts in a short time.
    RateLimited = 4429, "rate_limited", false, "wait; if it repeats, look for two processes with the same identity";
    /// A fault on the backend's side.
    Internal = 4500, "internal", false, "look at the backend's log at the same time";
    /// The backend is about to stop.
    Draining = 4503, "draining", false, "no action: the gateway reconnects by itself";
}

/// What to do where another machine took the gateway's place.
const REPLACED: &str = "nothing, if that was meant: stop the agent here; if it was not meant, see who has the gateway's place: viworks gateway show NAME; only where this machine is yours and is to go on, make it a gateway of its own: viworks ticket create --name NAME-2, then viworks-gateway-agent enroll into another folder";

/// The same where an operator has decided for another holder.
const PUT_OUT: &str = "nothing, if that was meant: another holder of this identity was kept, and this machine is no gateway any more: stop the agent here, or make this machine a gateway of its own: viworks ticket create --name NAME-2, then viworks-gateway-agent enroll into another folder; if it was not meant: viworks gateway resolve NAME --keep takes the decision back";

/// What to do where another holder of the gateway's files connected with the certificate that came after the one that
/// is shown. Whoever shows it is refused before it could be told as a second holder, unless it was one before.
/// Operators are told the same as the gateway.
pub const RETIRED: &str = "a copy of the gateway's files, or older ones that were put back, were shown: see who has its session (viworks gateway show NAME); where the refused machine is yours and is to go on, viworks gateway resolve NAME --keep ID lets it in if viworks gateway forks NAME lists it, and otherwise viworks gateway replace NAME, then viworks-gateway-agent enroll there; where it is a copy, stop its agent, or look for whoever has the files";

/// The same where a certificate was revoked, and its gateway was not.
const ONLY_THE_CERTIFICATE: &str = "only this certificate was revoked, the gateway itself was not: with another one of its own it is back by itself within seconds; if it has none, let its machine in again: viworks gateway replace NAME, then viworks-gateway-agent enroll";

/// What a backend says to a holder of an identity that an operator has put out.
pub const KEPT_ANOTHER: &str = "an operator decided that another holder keeps this identity";

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.name())
    }
}

impl CloseCode {
    /// Whether a refusal with it may wait for an operator's decision between two holders of an identity; then the
    /// backend names a delay, so that whichever is kept does not wait for long after that.
    #[must_use]
    pub const fn awaits_a_decision(self) -> bool {
        matches!(self, Self::IdentityFork | Self::CertUntrusted)
    }

    /// Whether it refuses a certificate because the gateway has connected with a later one since. Every version says so
    /// in these words.
    #[must_use]
    pub fn is_of_a_retired_one(self, reason: &str) -> bool {
        self == Self::CertUntrusted && reason.contains("was replaced by a later one")
    }

    /// What a person should do, where the reason that came with the code tells more than the code does. A backend that
    /// revoked a gateway names no certificate in it, and one that revoked a certificate alone does, in every version.
    #[must_use]
    pub fn advice_for(self, reason: &str) -> &'static str {
        if self == Self::Revoked && reason.contains("certificate") {
            ONLY_THE_CERTIFICATE
        } else if self == Self::CertUntrusted && reason.contains("has this gateway's place") {
            REPLACED
        } else if self.is_of_a_retired_one(reason) {
            RETIRED
        } else if self == Self::IdentityFork && reason.contains(KEPT_ANOTHER) {
            PUT_OUT
        } else {
            self.advice()
        }
    }
}

/// Why a gateway refuses a command before it would start it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RejectCode {
    /// The gateway's catalogue has no such command.
    NotAllowed,
    /// The command is in the catalogue and what it runs is missing on this gateway.
    Unavailable,
    /// An argument is missing, unknown or does not fit its declaration.
    BadArguments,
    /// The order lies at or below the low-water mark and the id is unknown: it may have run and been forgotten.
    Stale,
    /// A command with this id and another digest is already known: a security event.
    DigestMismatch,
    /// The gateway already has as many unreported commands as it may.
    Busy,
    /// The journal cannot take another entry.
    JournalUnavailable,
}

impl RejectCode {
    /// Every code.
    pub const ALL: &[Self] = &[
        Self::NotAllowed,
        Self::Unavailable,
        Self::BadArguments,
        Self::Stale,
        Self::DigestMismatch,
        Self::Busy,
        Self::JournalUnavailable,
    ];

    /// The name on the wire, in the store and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::Unavailable => "unavailable",
            Self::BadArguments => "bad_arguments",
            Self::Stale => "stale",
            Self::DigestMismatch => "digest_mismatch",
            Self::Busy => "busy",
            Self::JournalUnavailable => "journal_unavailable",
        }
    }

    /// Whether the same command may be offered again later: nothing about the command itself was wrong.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        match self {
            Self::Busy | Self::JournalUnavailable => true,
            Self::NotAllowed
            | Self::Unavailable
            | Self::BadArguments
            | Self::Stale
            | Self::DigestMismatch => false,
        }
    }
}

impl fmt::Display for RejectCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
