//! How far the authorities that gateways are given have come: what is in the bundle is stored, so that every gateway,
//! connected or not, can be judged by what it reported last; and whoever lacks one is told of, and whoever has a
//! certificate of one that is not among them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;
use viworks_common::human;
use viworks_common::id::{GatewayName, Tenant};
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::lifecycle::Lifecycle;

use super::authorities::{Authorities, Trust};
use super::signers::{self, CUT_OFF_FIX, Holders};
use crate::data::{AuthorityTrust, BUNDLE_KEPT_FOR, Store, StoreResult, Tally, in_full};
use crate::metrics::BackendMetrics;

/// How often it is counted who has what.
const TELL_EVERY: Duration = Duration::from_secs(20);

/// How soon after others are given: whoever is connected has reported by then.
const TELL_SOON: Duration = Duration::from_secs(2);

/// How often it is counted for so long behind that, while somebody lacks one: each that comes by is taken from those
/// that are named, and an operator who replaces an authority looks on.
const TELL_EAGERLY: Duration = Duration::from_secs(5);
const EAGER_LOOKS: u32 = 24;

/// How often it is said that the bundle is still given; often enough for one that no gateway has yet to be kept.
const NOTE_EVERY: Duration = Duration::from_secs(200);
const _: () = assert!(NOTE_EVERY.as_secs() * 2 < BUNDLE_KEPT_FOR.as_secs());

/// Gateways that the condition names.
const NAMED_MAX: usize = 5;

/// The condition while one authority replaces another and a gateway does not have both.
const GATEWAYS: &str = "trust.gateways";

const FIX: &str = "show no server certificate of a new authority before this is gone; viworks authority status \
                   says who they are: those that are off learn it when they connect, or revoke those that are \
                   gone; those of an earlier version need it in their ca_file, by hand";

/// The condition while gateways have certificates of an authority that is not trusted.
const CERTIFICATES: &str = "trust.certificates";

/// The condition while another backend of the database gives other authorities.
const BACKENDS: &str = "trust.backends";

const BACKENDS_FIX: &str = "put the same certificates into the file of client_ca_file on every backend and reload each \
                            (SIGHUP): a gateway that one of them lets in another one refuses, and which authorities a \
                            gateway knows depends on where it connects; viworks authority status names them";

/// Watches how far the authorities have come.
pub struct Reach {
    /// Where it is stored.
    pub store: Arc<dyn Store>,
    /// Whose.
    pub tenant: Tenant,
    /// The time.
    pub clock: Arc<Timeline>,
    /// What is counted.
    pub metrics: BackendMetrics,
    /// Where it is told that something is wrong.
    pub conditions: Conditions,
    /// What gateways are given.
    pub trust: Arc<Trust>,
}

impl Reach {
    /// Stores what is in the bundle that is given now, and tells the other backends which one it is.
    ///
    /// # Errors
    ///
    /// When the store cannot be asked.
    pub async fn note(&self) -> StoreResult<()> {
        let current = self.trust.current();
        self.store.note_authorities(current.digest());
        let Some(bundle) = current.noted() else {
            return Ok(());
        };
        let now = self.clock.line();
        self.store.note_bundle(&self.tenant, bundle, now).await
    }

    /// Counts who has what, and says who lacks what, and which backends give others. True when nobody does either.
    async fn tell(&self) -> bool {
        let mut is_well = true;
        let looks = [
            self.look().await,
            self.compare().await,
            self.look_at_certificates().await,
        ];
        for done in looks {
            match done {
                Ok(well) => is_well &= well,
                Err(error) => {
                    is_well = false;
                    // Health says what is wrong with the store.
                    debug!(
                        error = in_full(&error),
                        "who has which authorities could not be looked at"
                    );
                }
            }
        }
        is_well
    }

    /// Says which other backends give other authorities. True when none does.
    async fn compare(&self) -> StoreResult<bool> {
        let own = *self.store.instance().borrow();
        let Some(own) = own else {
            return Ok(true);
        };
        let all = self.store.list_instances().await?;
        let current = self.trust.current();
        let others = all.iter();
        let others = others.filter(|one| one.gives_others(own, current.digest()));
        let others: Vec<&str> = others.map(|one| one.name.as_str()).collect();
        if others.is_empty() {
            self.conditions.clear(BACKENDS);
            return Ok(true);
        }
        self.conditions
            .raise(BACKENDS, Severity::Warn, &differ(&others), BACKENDS_FIX);
        Ok(false)
    }

    /// Says who lacks what. True when nobody is told of.
    async fn look(&self) -> StoreResult<bool> {
        let current = self.trust.current();
        let known = self.store.authority_trust(&self.tenant).await?;
        let lacking = known.lacking(&current.ids());
        self.metrics
            .gateways_lacking_authorities
            .set(i64::try_from(lacking.gateways).unwrap_or(i64::MAX));
        // Where there is but one, whoever has reported nothing has what it was enrolled with.
        let told = if current.are_several() {
            lacking
        } else {
            known.known_to_lack(&current.ids())
        };
        if told.gateways == 0 {
            self.conditions.clear(GATEWAYS);
            return Ok(true);
        }
        let named = self.named(&current, &known).await?;
        self.conditions
            .raise(GATEWAYS, Severity::Warn, &cause(told, &named), FIX);
        Ok(false)
    }

    /// Says whose certificates an authority signed that is not trusted. True when nobody's.
    async fn look_at_certificates(&self) -> StoreResult<bool> {
        let (store, wall) = (&*self.store, self.clock.wall());
        let signed = store.signed(&self.tenant, wall).await?;
        let signed = signers::others(signed, &self.trust.current());
        if signed.is_empty() {
            self.conditions.clear(CERTIFICATES);
            return Ok(true);
        }
        let cut_off = Holders::of(store, &self.tenant, &signed, wall).await?;
        let cause = cut_off.cut_off();
        self.conditions
            .raise(CERTIFICATES, Severity::Warn, &cause, CUT_OFF_FIX);
        Ok(false)
    }

    /// The first few of those that lack one and are told of, by their names.
    async fn named(
        &self,
        current: &Authorities,
        known: &AuthorityTrust,
    ) -> StoreResult<BTreeSet<GatewayName>> {
        let mut named = BTreeSet::new();
        for authority in current.all() {
            let wanted = [authority.id.clone()].into();
            if known.lacking(&wanted).gateways == 0 {
                continue;
            }
            let (id, reported) = (authority.id.clone(), !current.are_several());
            let unaware = self
                .store
                .unaware(&self.tenant, id, reported, None, NAMED_MAX);
            named.extend(unaware.await?.into_iter().map(|gateway| gateway.name));
        }
        Ok(named)
    }

    /// Works until the backend stops.
    pub async fn run(self, lifecycle: Lifecycle) {
        let mut given = self.trust.subscribe();
        let (mut notes, mut tells) = (interval(NOTE_EVERY), interval(TELL_EVERY));
        for ticks in [&mut notes, &mut tells] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut eager = 0_u32;
        loop {
            let woken = tokio::select! {
                () = lifecycle.stopping() => return,
                // What is given lives as long as this.
                _changed = given.changed() => Woken::Changed,
                _ = notes.tick() => Woken::Note,
                _ = tells.tick() => Woken::Tell,
            };
            if woken != Woken::Tell
                && let Err(error) = self.note().await
            {
                debug!(
                    error = in_full(&error),
                    "which authorities are given could not be noted"
                );
            }
            if woken == Woken::Changed {
                // Nobody has reported of it yet, and everybody would be named.
                eager = EAGER_LOOKS;
                tells.reset_after(TELL_SOON);
                continue;
            }
            let is_well = self.tell().await;
            if woken == Woken::Note {
                tells.reset_after(TELL_SOON);
            } else if !is_well && let Some(left) = eager.checked_sub(1) {
                eager = left;
                tells.reset_after(TELL_EAGERLY);
            }
        }
    }
}

/// Why there is something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// Others are given.
    Changed,
    /// It is time to say that these are still given.
    Note,
    /// It is time to look.
    Tell,
}

fn differ(others: &[&str]) -> String {
    let backends = human::counted(others.len(), "other backend has", "other backends have");
    format!(
        "{backends} other authorities in client_ca_file than this one: {}",
        others.join("; ")
    )
}

fn cause(lacking: Tally, named: &BTreeSet<GatewayName>) -> String {
    let gateways = human::counted_all(lacking.gateways, "gateway is", "gateways are");
    let off = match lacking.off() {
        0 => String::new(),
        off => format!(" ({} of them off)", human::count(off)),
    };
    let first: Vec<_> = named
        .iter()
        .take(NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    let is_all = u64::try_from(first.len()).is_ok_and(|told| told >= lacking.gateways);
    let more = if is_all { "" } else { ", …" };
    format!(
        "{gateways} without an authority that client_ca_file has{off}: {}{more}",
        first.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_that_give_others_are_named() {
        assert_eq!(
            differ(&["host-a, process 7"]),
            "1 other backend has other authorities in client_ca_file than this one: host-a, process 7"
        );
        let told = differ(&["a, process 7", "b, process 9"]);
        assert!(told.starts_with("2 other backends have "), "{told}");
        assert!(told.ends_with(": a, process 7; b, process 9"), "{told}");
    }

    #[test]
    fn whoever_lacks_an_authority_is_counted_named_and_said_to_be_off() {
        let names = |names: &[&str]| -> BTreeSet<GatewayName> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        let tally = |gateways, connected| Tally {
            gateways,
            connected,
        };
        assert_eq!(
            cause(tally(1, 1), &names(&["gw-1"])),
            "1 gateway is without an authority that client_ca_file has: gw-1"
        );
        let many = names(&["gw-1", "gw-2", "gw-3", "gw-4", "gw-5", "gw-6"]);
        assert_eq!(
            cause(tally(40, 37), &many),
            "40 gateways are without an authority that client_ca_file has (3 of them off): \
             gw-1, gw-2, gw-3, gw-4, gw-5, …"
        );
    }
}
