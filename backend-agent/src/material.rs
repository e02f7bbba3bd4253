//! Certificates and keys as the configuration names them: read whole, judged, and fitted to each other, with everything
//! that is wrong at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use viworks_common::key::MasterKey;
use viworks_common::pem;
use viworks_common::pin::SpkiPin;
use viworks_common::time::Timestamp;
use viworks_runtime::config::{Problem, Problems};
use viworks_runtime::tls::{self, Purpose, ServerSide};

use crate::agent::authorities::{Authorities, Side};
use crate::agent::shown::{self, Shown};
use crate::config::{AgentsConfig, Config, TlsEnd};
use crate::pki::crl;
use crate::pki::issue::{load_master, open_authority, server_pins};
use crate::pki::place::strange_public_url;

/// What the listener for agents works with.
#[derive(Debug, Clone)]
pub struct ServerMaterial {
    /// The listener's side: its own certificate and the authorities of the gateways'.
    pub server: Arc<Side>,
    /// The first moment of the server's certificate.
    pub not_before: Timestamp,
    /// The end of it.
    pub not_after: Timestamp,
    /// What every agent key follows from; of two, that one makes others to which the database belongs.
    pub master: MasterKey,
    /// The pin of the server's key.
    pub pin: SpkiPin,
    /// The pins of the server's key and of the one that will follow it.
    pub pins: BTreeSet<SpkiPin>,
    /// The authorities that gateways are given over their sessions.
    pub authorities: Arc<Authorities>,
    /// What gateways are shown of the server.
    pub shown: Shown,
}

impl ServerMaterial {
    /// Reads all files that the configuration names, at the start and whenever they may have been renewed.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them, each with its file.
    pub fn load(config: &Config) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let server = load_server(&config.agents)
            .map_err(|found| problems.extend(found))
            .ok();
        let master_file = &config.keys.master_key_file;
        let mut master = load_master(master_file)
            .map_err(|error| problems.push(error.problem(master_file)))
            .ok();
        if let Some(file) = &config.keys.previous_master_key_file {
            match load_master(file) {
                Ok(previous) => master = master.map(|master| master.beside(&previous)),
                Err(error) => problems.push(error.problem(file)),
            }
        }
        let certificate = &config.agents.certificate_file;
        let pins = server_pins(&config.agents)
            .map_err(|error| problems.push(error.problem(certificate)))
            .ok();
        if config.keys.signs() {
            let otherwise = config.keys.ca_key_file.as_ref();
            let otherwise = otherwise.unwrap_or(&config.agents.client_ca_file);
            let authority = open_authority(config);
            problems.extend(authority.err().map(|error| error.problem(otherwise)));
        }
        let pin = pins.as_ref().and_then(|pins| pins.first().copied());
        match (server, master, pins, pin) {
            (Some((server, shown, not_before, not_after)), Some(master), Some(pins), Some(pin))
                if problems.is_empty() =>
            {
                Ok(Self {
                    pin,
                    authorities: Arc::clone(&server.authorities),
                    server,
                    not_before,
                    not_after,
                    master,
                    pins: pins.into_iter().collect(),
                    shown,
                })
            }
            _incomplete => Err(Problems::new(problems)),
        }
    }

    /// What does not keep the backend from starting.
    #[must_use]
    pub fn warnings(&self, config: &Config, now: Timestamp) -> Vec<Problem> {
        let agents = &config.agents;
        let mut warnings = Vec::new();
        warnings.extend(self.dates(&agents.certificate_file, now));
        if let Some(next) = &agents.next_key_file
            && self.pins.len() < 2
        {
            let message = format!("the key in {} is the one in use", next.display());
            let help = "make another one, so that gateways pin a key that can follow";
            warnings.push(Problem::of_file(next, message, help));
        }
        if self.authorities.bundle().is_none() {
            let ca = &agents.client_ca_file;
            let message = format!(
                "{} has more authorities than gateways are given over their sessions",
                ca.display()
            );
            let help = "leave those that nothing is signed by any more out of it, or put them on each gateway by hand";
            warnings.push(Problem::of_file(ca, message, help));
        }
        if !self.is_known_to_newcomers(now) {
            let chain = &agents.certificate_file;
            warnings.push(Problem::of_file(chain, shown::UNKNOWN, shown::UNKNOWN_FIX));
        }
        warnings.extend(crl::warning(config));
        warnings.extend(crl::strange_place(config));
        warnings.extend(strange_public_url(config));
        warnings
    }

    /// Whether those take the server's certificate who become gateways, and have what `client_ca_file` has.
    #[must_use]
    pub fn is_known_to_newcomers(&self, now: Timestamp) -> bool {
        self.shown.is_known_by(&self.authorities, now)
    }

    /// No reason not to start: the clock that reads the dates may be the one that is wrong, and operators need the API.
    fn dates(&self, path: &Path, now: Timestamp) -> Option<Problem> {
        let (message, help) = if now > self.not_after {
            (
                format!(
                    "the certificate in {} expired at {}",
                    path.display(),
                    self.not_after
                ),
                "renew it for the same key; until then no gateway connects",
            )
        } else if now < self.not_before {
            (
                format!(
                    "the certificate in {} is not valid before {}",
                    path.display(),
                    self.not_before
                ),
                "set this machine's clock; until then no gateway connects",
            )
        } else {
            return None;
        };
        Some(Problem::of_file(path, message, help))
    }
}

type Server = (Arc<Side>, Shown, Timestamp, Timestamp);

fn load_server(agents: &AgentsConfig) -> Result<Server, Vec<Problem>> {
    let mut problems = Vec::new();
    let chain = &agents.certificate_file;
    let identity = tls::Identity::load_for(Purpose::Server, chain, &agents.key_file)
        .map_err(|errors| problems.extend(errors.iter().map(|error| error.problem(chain))));
    let ca = &agents.client_ca_file;
    let roots = tls::load_roots(ca).map_err(|error| problems.push(error.problem(ca)));
    let (Ok(identity), Ok(roots)) = (identity, roots) else {
        return Err(problems);
    };
    let certificates = tls::load_certificates(ca).map_err(|error| vec![error.problem(ca)])?;
    let authorities = Arc::new(Authorities::of(&certificates));
    let refused = |error: tls::TlsError| vec![error.problem(chain)];
    let leaf = identity.chain.first().map(AsRef::as_ref);
    let (not_before, not_after) = tls::validity(leaf.unwrap_or_default()).map_err(refused)?;
    let shown = match agents.tls_ends_at {
        TlsEnd::Backend => Shown::by_the_backend(identity.chain.clone()),
        TlsEnd::Proxy => Shown::by_a_proxy(),
    };
    let side = Side {
        tls: ServerSide::new(identity, roots).map_err(refused)?,
        authorities,
        signing: certificates
            .iter()
            .map(|one| pem::certificate(one))
            .collect(),
    };
    Ok((Arc::new(side), shown, not_before, not_after))
}
