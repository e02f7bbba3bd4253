//! Why a machine does not become a gateway: a code, one sentence with the fix, and a status.

use std::time::Duration;

use http::StatusCode;
use viworks_common::enrolment::{GivenAuthorities, NameRule, NoName};
use viworks_common::human;
use viworks_common::id::GatewayName;

use super::office::TicketError;
use crate::data::{StoreError, StoredTicket, TicketRefusal, in_full};
use crate::pki::request::BadRequest;

/// How soon somebody may try again when nothing better is known.
const RETRY_SOON: Duration = Duration::from_secs(2);

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// How HTTP says it.
    pub(super) status: StatusCode,
    /// The word for programs and for metrics.
    pub(super) code: &'static str,
    /// One sentence with the fix.
    pub(super) detail: String,
    /// When to come back, where that helps.
    pub(super) retry_after: Option<Duration>,
    /// What a gateway gets all the same that has proved who it is.
    pub(super) authorities: Option<Box<GivenAuthorities>>,
}

/// Where another ticket comes from: from whoever gives a gateway's place away, where that is what the ticket is for.
fn new_one(ticket: Option<&StoredTicket>) -> String {
    let replaces = ticket.and_then(|ticket| Some((ticket, ticket.replaces?)));
    let Some((ticket, agent_id)) = replaces else {
        return "ask for a new one (viworks ticket create)".to_owned();
    };
    let gateway = match &ticket.naming {
        NameRule::Fixed(name) => name.to_string(),
        NameRule::Free | NameRule::Prefix(_) => agent_id.to_string(),
    };
    format!("ask for a new one (viworks gateway replace {gateway})")
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            retry_after: None,
            authorities: None,
        }
    }

    pub(super) fn later(
        status: StatusCode,
        code: &'static str,
        detail: &str,
        after: Duration,
    ) -> Self {
        Self {
            retry_after: Some(after),
            ..Self::new(status, code, detail)
        }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }

    pub(super) fn name_taken(name: &GatewayName) -> Self {
        let detail = format!(
            "another gateway is called {name}: choose another name with --name, or revoke that gateway and ask for a \
             ticket that is for this name (viworks ticket create --name)"
        );
        Self::new(
            StatusCode::CONFLICT,
            TicketRefusal::NameTaken.name(),
            detail,
        )
    }

    pub(super) fn name_of_revoked(name: &GatewayName) -> Self {
        let detail = format!(
            "a gateway called {name} was revoked, and only a ticket that is for this name, and was made since, takes it \
             over: ask for one (viworks ticket create --name {name}, or viworks gateway replace {name} to be that \
             gateway again), or choose another name with --name"
        );
        let code = TicketRefusal::NameOfRevoked.name();
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    pub(super) fn connected(name: &GatewayName) -> Self {
        let detail = format!(
            "the gateway {name} is connected, or was heard of within the last minute, and nobody takes its place by its \
             name alone meanwhile: stop the machine before and run enroll again in a minute, or have its place given to \
             this machine at once (viworks gateway replace {name})"
        );
        Self::new(
            StatusCode::CONFLICT,
            TicketRefusal::Connected.name(),
            detail,
        )
    }

    /// About a ticket, of which `ticket` is known.
    pub(super) fn of_ticket(refusal: TicketRefusal, ticket: Option<&StoredTicket>) -> Self {
        let status = match refusal {
            TicketRefusal::Unknown | TicketRefusal::BadProof | TicketRefusal::OtherNetwork => {
                StatusCode::FORBIDDEN
            }
            TicketRefusal::Challenge
            | TicketRefusal::KeyInUse
            | TicketRefusal::NameTaken
            | TicketRefusal::NameOfRevoked
            | TicketRefusal::Connected
            | TicketRefusal::KeysUsedUp => StatusCode::CONFLICT,
            TicketRefusal::Revoked | TicketRefusal::Expired | TicketRefusal::UsedUp => {
                StatusCode::GONE
            }
        };
        let at = |at: Option<viworks_common::time::Timestamp>| {
            at.map(|at| format!(" at {}", human::to_the_second(at)))
                .unwrap_or_default()
        };
        let new = new_one(ticket);
        let detail = match refusal {
            TicketRefusal::Unknown => format!(
                "this backend has no such ticket: it is of another backend, or ended long ago; {new}"
            ),
            TicketRefusal::BadProof => format!(
                "the ticket's secret is not the one that this backend knows: it is of another backend, or was made with \
                 another master key; {new}"
            ),
            TicketRefusal::Challenge => {
                "the challenge was answered already or is more than a minute old: run enroll again".to_owned()
            }
            TicketRefusal::Revoked => format!(
                "the ticket was revoked{}: {new}",
                at(ticket.and_then(|ticket| ticket.revoked_at))
            ),
            TicketRefusal::Expired => format!(
                "the ticket expired{}: {new}",
                at(ticket.map(|ticket| ticket.expires_at))
            ),
            TicketRefusal::UsedUp => format!(
                "the ticket has enrolled {}, as many as it was made for: {new}",
                human::counted_all(
                    ticket.map_or(1, |ticket| u64::from(ticket.uses_max)),
                    "gateway",
                    "gateways"
                )
            ),
            TicketRefusal::OtherNetwork => format!(
                "the ticket is not for machines at this address: enrol from one of its networks, or {new}"
            ),
            TicketRefusal::KeyInUse => {
                "this key belongs to a gateway already: remove the folder .enrolling beside the configuration, and run \
                 enroll again, which makes a new key"
                    .to_owned()
            }
            TicketRefusal::KeysUsedUp => {
                "the gateway had as many keys as one can have (255): enrol this machine under another name, with a \
                 ticket of its own (viworks ticket create)"
                    .to_owned()
            }
            TicketRefusal::NameTaken
            | TicketRefusal::NameOfRevoked
            | TicketRefusal::Connected => {
                "the name belongs to another gateway: choose another one with --name".to_owned()
            }
        };
        Self::new(status, refusal.name(), detail)
    }
}

impl From<BadRequest> for Refusal {
    fn from(error: BadRequest) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.name(), error.to_string())
    }
}

impl From<NoName> for Refusal {
    fn from(error: NoName) -> Self {
        Self::new(StatusCode::CONFLICT, "bad_name", error.to_string())
    }
}

impl From<TicketError> for Refusal {
    fn from(error: TicketError) -> Self {
        if let TicketError::Store(error) = error {
            return error.into();
        }
        tracing::error!(error = in_full(&error), "a machine could not be enrolled");
        let detail = "the backend cannot make a gateway at the moment; its log says why";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::later(status, "unavailable", detail, RETRY_SOON)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        if !error.is_outage() {
            tracing::error!(error = in_full(&error), "a machine could not be enrolled");
        }
        let detail = if matches!(error, StoreError::Full(_)) {
            "the database has no room; run enroll again when there is, which goes on where it was"
        } else {
            "the database does not answer; run enroll again, which goes on where it was"
        };
        Self::later(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            detail,
            RETRY_SOON,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;
    use viworks_common::id::{AgentId, TicketId};
    use viworks_common::time::Timestamp;

    use super::*;

    #[test]
    fn whoever_was_to_take_a_gateway_s_place_asks_for_that_again() {
        let of = |replaces: Option<AgentId>, naming: NameRule| {
            let at = Timestamp::from_unix_micros(7);
            let ticket = StoredTicket {
                id: TicketId::from_uuid(Uuid::from_u128(1)),
                sha256: [1; 32],
                uses_max: 1,
                uses: 1,
                refusals: 0,
                labels: BTreeMap::new(),
                naming,
                networks: Vec::new(),
                replaces,
                allow_replace: false,
                ephemeral: None,
                created_at: at,
                created_by: "test".to_owned(),
                creator: None,
                expires_at: at,
                revoked_at: None,
            };
            [
                TicketRefusal::UsedUp,
                TicketRefusal::Expired,
                TicketRefusal::Revoked,
            ]
            .map(|refusal| Refusal::of_ticket(refusal, Some(&ticket)).detail)
        };
        let agent = AgentId::from_uuid(Uuid::from_u128(2));
        let fixed = NameRule::Fixed("gw-1".parse().unwrap());
        for (told, words) in [
            (
                of(None, fixed.clone()),
                "(viworks ticket create)".to_owned(),
            ),
            (
                of(Some(agent), fixed),
                "(viworks gateway replace gw-1)".to_owned(),
            ),
            (
                of(Some(agent), NameRule::Free),
                format!("(viworks gateway replace {agent})"),
            ),
        ] {
            for detail in told {
                assert!(detail.ends_with(&words), "{detail}");
            }
        }
    }
}
