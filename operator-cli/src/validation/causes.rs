//! What is found where nothing could be measured: nobody answered, or there was no connection.

use viworks_runtime::exit::ExitCode;

use super::report::Finding;
use super::wire::Refused;
use crate::failure::Failure;

/// What to do when nobody answers.
pub(super) const START_IT: &str = "start the backend, and name its API: --server URL";

/// What the log of the agent or the backend says, for a fix.
pub(super) const LOGS: &str = "look at /readyz and the backend's log";

/// The API did not do what was asked of it.
pub(super) fn unanswered(measured: &str, failure: Failure) -> Finding {
    let fix = if failure.exit == ExitCode::Unavailable {
        START_IT
    } else {
        LOGS
    };
    Finding::fail(measured, failure.what, fix)
}

pub(super) fn not_upgraded(refused: &Refused) -> Finding {
    let fix = match refused {
        Refused::Tcp(_) => "start the backend, or look at the way to it",
        Refused::Tls(_) | Refused::Certificate(_) => {
            "look at the certificates, the pins and whoever ends TLS in front of the backend"
        }
        Refused::Http(403) => {
            "the gateway is not known or was revoked: issue another one for this validation"
        }
        Refused::Http(_) => {
            "something in front answers without forwarding the upgrade: proxy_http_version 1.1, Upgrade and Connection"
        }
        Refused::Closed(_) | Refused::Cut => LOGS,
    };
    Finding::fail(refused.words(), "there is no connection of a gateway", fix)
}
