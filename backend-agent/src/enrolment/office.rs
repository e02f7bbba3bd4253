//! Where tickets are written. What stands in one, and what a machine is given for it, is what is in force: files that
//! no reload has taken over yet are nothing to either.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use viworks_common::enrolment::{NameRule, TICKET_URL_BYTES_MAX, Ticket};
use viworks_common::id::{AgentId, Tenant, TicketId};
use viworks_common::key::MasterKey;
use viworks_common::network::IpNetwork;
use viworks_common::pin::PinSet;
use viworks_runtime::blocking::{self, Unanswered};
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::Conditions;
use viworks_runtime::random;
use zeroize::Zeroizing;

use crate::agent::authorities::Side;
use crate::agent::pins::ServerPins;
use crate::config::Config;
use crate::data::{Actor, NewTicket, Store, StoreError, StoredTicket, TicketBounds, TicketOutcome};
use crate::pki::issue::{Office, authority_in_force};
use crate::pki::place::authority;
use crate::pki::{PkiError, signing};

/// How long reading the authority's key may take.
const READ_TIME: Duration = Duration::from_secs(5);

/// Tickets that can be used at a time.
const TICKETS_LIVE_MAX: u64 = 10_000;
/// Of these, tickets that one key made.
const TICKETS_OF_ONE_MAX: u64 = 5_000;
/// Tickets that ended and are kept; beyond that the oldest are forgotten.
const TICKETS_ENDED_MAX: u64 = 10_000;

const BOUNDS: TicketBounds = TicketBounds {
    live: TICKETS_LIVE_MAX,
    of_one: TICKETS_OF_ONE_MAX,
    ended: TICKETS_ENDED_MAX,
};

/// A ticket that somebody wants.
#[derive(Debug, Clone)]
pub struct IssueTicket {
    /// How many gateways may come of it.
    pub uses: u32,
    /// How long it is valid.
    pub life: Duration,
    /// Labels that they get.
    pub labels: BTreeMap<String, String>,
    /// How they are called.
    pub naming: NameRule,
    /// Where they must be; anywhere when empty.
    pub networks: Vec<IpNetwork>,
    /// The gateway whose place a machine takes with it, where it is for that.
    pub replaces: Option<AgentId>,
    /// Whether a machine takes the place of the gateway that has its name.
    pub allow_replace: bool,
    /// After how long an absence its gateways are removed, if they are.
    pub ephemeral: Option<Duration>,
}

/// Why there is no ticket.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// Nobody could use it.
    #[error("this backend has no door for new gateways: set listen in [enrolment] and restart it")]
    NoDoor,
    /// As many can be used as may be.
    #[error(
        "{TICKETS_LIVE_MAX} tickets can be used at this moment, as many as may be: revoke those that nobody needs \
         (viworks ticket ls), or make one with more uses"
    )]
    Full,
    /// As many of one principal can be used as may be.
    #[error(
        "{TICKETS_OF_ONE_MAX} tickets of this key can be used at this moment, as many as one key may have made: revoke \
         those that nobody needs (viworks ticket ls), or make one with more uses"
    )]
    FullOfOne,
    /// A file or an address is not what it should be.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A disk hangs.
    #[error("the keys of this backend cannot be read at the moment: {0}")]
    Unanswered(#[from] Unanswered),
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether the secret of a ticket follows from this master key, without the one beside it.
#[must_use]
pub fn has_secret_of(master: &MasterKey, tenant: &Tenant, ticket: &StoredTicket) -> bool {
    let secret = master.ticket_secret(tenant, ticket.id);
    <[u8; 32]>::from(Sha256::digest(secret.expose())) == ticket.sha256
}

/// Writes tickets, and knows what a ticket's secret is. Clones share it.
#[derive(Debug, Clone)]
pub struct TicketOffice {
    config: Arc<Config>,
    /// Where the door really is, and where agents connect.
    addresses: Addresses,
    /// That of this process, whatever its file has meanwhile.
    master: Arc<MasterKey>,
    /// What gateways are to trust.
    pins: Arc<ServerPins>,
    /// The authorities that are in force, of which the first signs.
    side: watch::Receiver<Arc<Side>>,
    /// Where it is told that nothing can be signed.
    conditions: Conditions,
}

/// Where this backend listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// For machines that become gateways, if it does.
    pub door: Option<SocketAddr>,
    /// For gateways.
    pub agents: SocketAddr,
}

impl TicketOffice {
    /// Of a backend with this configuration and master key that listens there, and meets its callers with `side`.
    #[must_use]
    pub const fn new(
        config: Arc<Config>,
        addresses: Addresses,
        master: Arc<MasterKey>,
        pins: Arc<ServerPins>,
        side: watch::Receiver<Arc<Side>>,
        conditions: Conditions,
    ) -> Self {
        Self {
            config,
            addresses,
            master,
            pins,
            side,
            conditions,
        }
    }

    /// What tickets' secrets and gateways' keys follow from.
    pub(super) fn master(&self) -> &MasterKey {
        &self.master
    }

    /// What certificates are made of at this moment: of the files the authority's key alone is read, everything else
    /// is what is in force. `purpose` names the calls that wait for a disk together.
    pub(super) async fn open(&self, purpose: &'static str) -> Result<Office, TicketError> {
        let config = Arc::clone(&self.config);
        let side = Arc::clone(&self.side.borrow());
        let open = move || authority_in_force(&config, &side.signing);
        let error = match blocking::call(purpose, READ_TIME, open).await {
            Ok(Ok(authority)) => {
                // A key that was read signs; of a program nobody knows before it has.
                if !authority.is_asked() {
                    signing::tell(&self.conditions, &Ok(()));
                }
                let master = MasterKey::clone(&self.master);
                let shown = vec![self.pins.own().live];
                return Ok(Office::of(&self.config, authority, master, shown));
            }
            Ok(Err(error)) => TicketError::from(error),
            Err(error) => TicketError::from(error),
        };
        signing::tell_failed(&self.conditions, &error);
        Err(error)
    }

    /// Where it is told that nothing can be signed.
    pub(super) const fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Whether the secret of a ticket is known here: a machine with any other one is refused.
    #[must_use]
    pub fn knows(&self, tenant: &Tenant, ticket: &StoredTicket) -> bool {
        let of = |master: &MasterKey| has_secret_of(master, tenant, ticket);
        of(&self.master) || self.master.other().as_ref().is_some_and(of)
    }

    /// The address of the door, if this backend has one.
    #[must_use]
    pub const fn door(&self) -> Option<SocketAddr> {
        self.addresses.door
    }

    /// Whether this backend has an authority that signs gateways' certificates.
    #[must_use]
    pub fn signs(&self) -> bool {
        self.config.keys.signs()
    }

    /// How long gateways' certificates live.
    pub(super) fn certificate_life(&self) -> Duration {
        self.config.enrolment.certificate_life()
    }

    /// The pins that a gateway gets, where the server shows the key that `office` has.
    pub(super) fn pins(&self, office: &Office) -> PinSet {
        self.pins.for_newcomers(&office.pins)
    }

    /// Where gateways connect.
    pub(super) fn agents_url(&self) -> Result<String, PkiError> {
        let agents = &self.config.agents;
        if let Some(url) = &agents.public_url {
            return Ok(url.clone());
        }
        let place = authority(self.addresses.agents, &agents.certificate_file, |_host| {
            "public_url in [agents]".to_owned()
        })?;
        Ok(format!("wss://{place}/agent/v1/connect"))
    }

    /// Where machines become gateways.
    fn door_url(&self) -> Result<String, TicketError> {
        let Some(door) = self.addresses.door else {
            return Err(TicketError::NoDoor);
        };
        if let Some(url) = &self.config.enrolment.public_url {
            let url = url.trim_end_matches('/');
            if url.len() > TICKET_URL_BYTES_MAX {
                return Err(PkiError::Url {
                    message: "public_url in [enrolment] is too long for a ticket".to_owned(),
                    help: format!("it has to have at most {TICKET_URL_BYTES_MAX} bytes"),
                }
                .into());
            }
            return Ok(url.to_owned());
        }
        let place = authority(door, &self.config.agents.certificate_file, |_host| {
            "public_url in [enrolment]".to_owned()
        })?;
        Ok(format!("https://{place}"))
    }

    /// Makes a ticket. Its string is given once, here.
    ///
    /// # Errors
    ///
    /// Why there is none; nothing is stored then.
    pub async fn issue(
        &self,
        store: &dyn Store,
        tenant: &Tenant,
        wanted: IssueTicket,
        actor: &Actor,
        clock: &Timeline,
    ) -> Result<(StoredTicket, Zeroizing<String>), TicketError> {
        let url = self.door_url()?;
        // A gateway that enrolled must find its way to the agents' listener as well.
        self.agents_url()?;
        let office = self.open("tickets").await?;
        let now = clock.line();
        let id = TicketId::from_uuid(random::uuid_v7(clock.wall()));
        let secret = self.master.ticket_secret(tenant, id);
        let expires_at = now.saturating_add(wanted.life);
        let new = NewTicket {
            id,
            sha256: Sha256::digest(secret.expose()).into(),
            uses_max: wanted.uses,
            labels: wanted.labels,
            naming: wanted.naming,
            networks: wanted.networks,
            replaces: wanted.replaces,
            allow_replace: wanted.allow_replace,
            ephemeral: wanted.ephemeral,
            expires_at,
        };
        let stored = StoredTicket {
            id,
            sha256: new.sha256,
            uses_max: new.uses_max,
            uses: 0,
            refusals: 0,
            labels: new.labels.clone(),
            naming: new.naming.clone(),
            networks: new.networks.clone(),
            replaces: new.replaces,
            allow_replace: new.allow_replace,
            ephemeral: new.ephemeral,
            created_at: now,
            created_by: actor.to_string(),
            creator: None,
            expires_at,
            revoked_at: None,
        };
        let made = store.create_ticket(tenant, new, BOUNDS, actor, now);
        match made.await? {
            TicketOutcome::Made => {}
            TicketOutcome::Full => return Err(TicketError::Full),
            TicketOutcome::FullOfOne => return Err(TicketError::FullOfOne),
        }
        let ticket = Ticket {
            id,
            secret,
            expires_at,
            pins: self.pins(&office).pins,
            url,
        };
        Ok((stored, ticket.expose()))
    }
}
