//! SIGHUP: takes over what of the configuration can change while the backend runs, a renewed server certificate, its
//! key and the authorities of the gateways' certificates, unless a gateway needs one that is missing, or whoever
//! becomes one would not know the server's; tells when one of them ends, and which keys wait for a restart.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::watch;
use tracing::{info, warn};
use viworks_common::certificate::{Life, life};
use viworks_common::human;
use viworks_common::id::Tenant;
use viworks_common::time::Timestamp;
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::config::{LOG_FILTER, Readings, Source, tell_broken, tell_read};
use viworks_runtime::lifecycle::{Hangups, Lifecycle, notify};
use viworks_runtime::logging;
use viworks_runtime::tls;

use crate::agent::authorities::{Authorities, Side, Trust};
use crate::agent::manager::Manager;
use crate::agent::pins::ServerPins;
use crate::agent::shown;
use crate::agent::signers::{self, Holders};
use crate::auth::quota::Quotas;
use crate::config::{Config, LIVE};
use crate::data::{Store, StoreResult};
use crate::material::ServerMaterial;
use crate::metrics::BackendMetrics;

/// How often the ends of certificates are looked at.
const INTERVAL: Duration = Duration::from_secs(30);

/// How long reading files may take.
const READ_TIME: Duration = Duration::from_secs(10);

/// Gateways that are named when their certificates end.
const NAMED_MAX: usize = 5;

const RELOAD: &str = "reload";
const RELOAD_FIX: &str = "mend the files and send SIGHUP again; check-config lists every problem";
const NEEDED_FIX: &str = "put its certificate back behind the others in that file and send SIGHUP, and take it out when \
                          viworks authority status says that no gateway has a certificate of it: they renew by \
                          themselves; where its key was stolen, restart this backend, which takes the file as it is: \
                          the condition trust.certificates names those who are cut off then";
const RENEW: &str = "renew it for the same key, or for the one in next_key_file, and send SIGHUP";

/// What is read again, and what was read last.
pub struct Reload {
    config: Config,
    readings: Readings,
    store: Arc<dyn Store>,
    tenant: Tenant,
    current: ServerMaterial,
    server: watch::Sender<Arc<Side>>,
    manager: Arc<Manager>,
    pins: Arc<ServerPins>,
    trust: Arc<Trust>,
    metrics: BackendMetrics,
    conditions: Conditions,
    clock: Arc<dyn Clock>,
}

/// With what a reload tells and counts.
pub struct Tools {
    /// Knows what a gateway may have stored, and which authorities signed the gateways' certificates.
    pub store: Arc<dyn Store>,
    /// Whose gateways.
    pub tenant: Tenant,
    /// Knows the certificates of connected gateways.
    pub manager: Arc<Manager>,
    /// The pins of the server's keys.
    pub pins: Arc<ServerPins>,
    /// The authorities that gateways are given.
    pub trust: Arc<Trust>,
    /// What is counted.
    pub metrics: BackendMetrics,
    /// Where it is told.
    pub conditions: Conditions,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl Reload {
    /// Begins with what the start has read; the listener takes its side from the receiver.
    #[must_use]
    pub fn new(
        config: Config,
        material: ServerMaterial,
        tools: Tools,
    ) -> (Self, watch::Receiver<Arc<Side>>) {
        let (server, receiver) = watch::channel(Arc::clone(&material.server));
        let Tools {
            store,
            tenant,
            manager,
            pins,
            trust,
            metrics,
            conditions,
            clock,
        } = tools;
        let own = Self {
            readings: Readings::new(config.values.clone(), LIVE),
            config,
            store,
            tenant,
            current: material,
            server,
            manager,
            pins,
            trust,
            metrics,
            conditions,
            clock,
        };
        (own, receiver)
    }

    /// Works until the backend stops; the configuration came from `source`, and `quotas` follow it.
    pub async fn run(
        mut self,
        source: Source,
        mut hangups: Hangups,
        quotas: Arc<Quotas>,
        lifecycle: Lifecycle,
    ) {
        loop {
            self.tell_lives();
            let next = self.clock.now().saturating_add(INTERVAL);
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = hangups.next() => {
                    notify::reloading();
                    let waiting = self.compare(&source, &quotas).await;
                    self.read_again(&waiting).await;
                    notify::ready();
                }
                () = sleep_until(&*self.clock, next) => {}
            }
        }
    }

    /// Takes over what of the configuration can change while the backend runs, and tells what waits for a restart:
    /// these keys. Files that cannot be used change nothing.
    async fn compare(&mut self, source: &Source, quotas: &Quotas) -> Vec<String> {
        let Source { path, environment } = source.clone();
        let load = move || Config::load(&path, &environment);
        let problems = match blocking::call("configuration", READ_TIME, load).await {
            Ok(Ok(read)) => {
                let mut changed = self.readings.note(read.values);
                if let Err(error) = logging::take_over(&read.log.filter) {
                    warn!(%error, "the log filter stays as it was");
                    changed.taken_over.retain(|key| key != LOG_FILTER);
                    changed.waiting.push(LOG_FILTER.to_owned());
                }
                self.store.limit_telemetry(read.telemetry.limits);
                quotas.change(read.api.quota);
                if !changed.taken_over.is_empty() {
                    let keys = changed.taken_over.join(", ");
                    info!(keys, "took over from the configuration");
                }
                tell_read(&self.conditions, &changed.waiting);
                return changed.waiting;
            }
            Ok(Err(problems)) => problems.in_one_line(),
            Err(error) => error.to_string(),
        };
        tell_broken(&self.conditions, &problems, RELOAD_FIX);
        Vec::new()
    }

    /// Reads the files again that were named at the start; these keys of the configuration have another value since.
    async fn read_again(&mut self, waiting: &[String]) {
        let config = self.config.clone();
        let load = move || ServerMaterial::load(&config);
        let loaded = blocking::call("material", READ_TIME, load).await;
        let (problems, fix) = match loaded {
            Ok(Ok(material)) => {
                // A promotion on another backend counts as well; without the store, what was known does.
                drop(self.pins.refresh().await);
                match self.try_take_over(material).await {
                    Ok(()) => {
                        self.pins.shows(self.current.pin).await;
                        return self.conditions.clear(RELOAD);
                    }
                    Err(refused) => refused,
                }
            }
            Ok(Err(problems)) => (problems.in_one_line(), None),
            Err(error) => (error.to_string(), None),
        };
        let cause = format!(
            "what SIGHUP asked to be read again cannot be used, and what was read before stays in force: {problems}"
        );
        let fix = fix.map_or_else(|| reload_fix(waiting), str::to_owned);
        self.conditions.raise(RELOAD, Severity::Warn, &cause, &fix);
    }

    /// Takes it over unless that would cut gateways off: why it would, and what to do where that is more than to mend
    /// the files.
    async fn try_take_over(
        &mut self,
        material: ServerMaterial,
    ) -> Result<(), (String, Option<&'static str>)> {
        match self.needed(&material.authorities).await {
            Ok(None) => {}
            Ok(Some(needed)) => return Err((needed, Some(NEEDED_FIX))),
            Err(error) => {
                let reason = format!(
                    "client_ca_file lacks an authority that it had, and which gateways have certificates of it cannot \
                     be looked up: {}",
                    error.without_words()
                );
                return Err((reason, Some(NEEDED_FIX)));
            }
        }
        let (before, after) = (&self.current, &material);
        let before = (&before.shown, &*before.authorities);
        let after = (&after.shown, &*after.authorities);
        if shown::is_lost(before, after, self.clock.wall()) {
            return Err((shown::LOST.to_owned(), Some(shown::LOST_FIX)));
        }
        let taken = self.take_over(material);
        taken.map_err(|reason| (reason.to_owned(), None))
    }

    /// Why these may not take the place of the authorities that are trusted now, if a gateway needs one that is
    /// missing.
    async fn needed(&self, after: &Authorities) -> StoreResult<Option<String>> {
        let before = &self.current.authorities;
        if before.issuers().is_subset(&after.issuers()) {
            return Ok(None);
        }
        let (store, tenant, wall) = (&*self.store, &self.tenant, self.clock.wall());
        let signed = store.signed(tenant, wall).await?;
        let (needed, unknown) = signers::needing(signed, before, after);
        if needed.is_empty() && unknown.is_empty() {
            return Ok(None);
        }
        let needed = Holders::of(store, tenant, &needed, wall).await?;
        let unknown = Holders::of(store, tenant, &unknown, wall).await?;
        Ok(Some(signers::refusal(&needed, &unknown)))
    }

    fn take_over(&mut self, material: ServerMaterial) -> Result<(), &'static str> {
        let stepped = self.pins.known().stepped;
        if !self.pins.may_show(&material.pin) {
            return Err(if stepped {
                "the server's certificate has a key that was not promoted: gateways that do not trust it would be cut off; viworks pin status says who they are, and viworks pin promote lets it in"
            } else {
                "the server's certificate has a key that is neither the one in use nor the one in next_key_file: gateways that pin those two would be cut off; viworks pin stage makes them trust another one"
            });
        }
        let mut waiting = Vec::new();
        if !material.master.has_the_keys_of(&self.current.master) {
            // Every agent key follows from it.
            waiting.push("the master key");
        }
        if !stepped && material.pins != self.current.pins {
            waiting.push("the pins of both keys");
        }
        let pins = std::mem::take(&mut self.current.pins);
        self.server.send_replace(Arc::clone(&material.server));
        self.trust.give(&material.authorities);
        info!(not_after = %material.not_after, "read the server's certificate, its key and the gateways' authority again; new connections use them");
        if !waiting.is_empty() {
            warn!(
                ?waiting,
                "not taken over; what was read at the start stays in force until a restart"
            );
        }
        // The pins that gateways are offered belong to the configuration that was started with.
        self.current = ServerMaterial {
            pins,
            master: self.current.master.clone(),
            ..material
        };
        Ok(())
    }

    fn tell_lives(&self) {
        let (from, to) = (self.current.not_before, self.current.not_after);
        self.tell("server", "the server's certificate", from, to);
        // Of those in force: what they sign ends with them at the latest, whatever their file has meanwhile.
        let signing = self.current.server.signing.as_bytes();
        let lives = CertificateDer::pem_slice_iter(signing)
            .filter_map(Result::ok)
            .filter_map(|one| tls::validity(&one).ok());
        // The one that ends last: an older one beside it is being replaced.
        if let Some((from, to)) = lives.max_by_key(|(_from, to)| *to) {
            let what = "the authority of the gateways' certificates";
            self.tell("ca", what, from, to);
        }
        self.tell_gateways();
        self.tell_newcomers();
    }

    /// Whoever becomes a gateway does not know the authority of the server's certificate.
    fn tell_newcomers(&self) {
        if self.current.is_known_to_newcomers(self.clock.wall()) {
            return self.conditions.clear(shown::SERVER);
        }
        let (cause, fix) = (shown::UNKNOWN, shown::UNKNOWN_FIX);
        self.conditions
            .raise(shown::SERVER, Severity::Warn, cause, fix);
    }

    fn tell(&self, name: &'static str, what: &str, from: Timestamp, to: Timestamp) {
        self.metrics.certificate_ends(name, to);
        let condition = format!("certificate.{name}");
        let now = self.clock.wall();
        let found = life(from, to, now);
        let Some(cause) = human::life(found, from, to, now) else {
            return self.conditions.clear(&condition);
        };
        let severity = match found {
            Life::Good | Life::EndsSoon { .. } => Severity::Warn,
            Life::Ended | Life::NotYet => Severity::Fail,
        };
        let cause = format!("{what} {cause}");
        self.conditions.raise(&condition, severity, &cause, RENEW);
    }

    /// Of the gateways that connected to this process: those whose certificate ends soon, or has ended.
    fn tell_gateways(&self) {
        const NAME: &str = "certificate.gateways";
        let now = self.clock.wall();
        let ending = self.manager.ending_certificates(now);
        let count = ending.len();
        self.metrics
            .gateway_certificates_ending
            .set(i64::try_from(count).unwrap_or(i64::MAX));
        if ending.is_empty() {
            return self.conditions.clear(NAME);
        }
        let named: Vec<_> = ending
            .iter()
            .take(NAMED_MAX)
            .map(|(name, to)| format!("{name} {}", human::relative_and_exact(*to, now)))
            .collect();
        let more = if count > named.len() { ", …" } else { "" };
        let cause = format!(
            "the certificates of {} end soon or have ended: {}{more}",
            human::counted(count, "gateway", "gateways"),
            named.join(", ")
        );
        let fix = "renew each for its own key and put it where that gateway's certificate_file points; it takes it over by itself";
        self.conditions.raise(NAME, Severity::Warn, &cause, fix);
    }
}

/// What to do about files that cannot be used. Those that the configuration names only since the start were not read:
/// whoever has put them right there has nothing left to mend.
fn reload_fix(waiting: &[String]) -> String {
    let mut named = waiting.iter().filter(|key| key.ends_with("_file"));
    let Some(first) = named.next() else {
        return RELOAD_FIX.to_owned();
    };
    let others = named.map(|key| format!(", {key}")).collect::<String>();
    format!(
        "{RELOAD_FIX}; or restart, if it is about {first}{others}: the configuration names another file there since \
         the start, and only a restart reads that one"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_another_file_is_named_a_restart_reads_it() {
        let fix = |keys: &[&str]| {
            reload_fix(&keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(fix(&[]), RELOAD_FIX);
        assert_eq!(fix(&["api.listen"]), RELOAD_FIX);
        let told = fix(&["api.listen", "keys.ca_key_file", "agents.key_file"]);
        let named = "or restart, if it is about keys.ca_key_file, agents.key_file:";
        assert!(
            told.starts_with(RELOAD_FIX) && told.contains(named),
            "{told}"
        );
    }
}
