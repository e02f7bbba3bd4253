//! The keys of the server, and which gateways trust them.

use async_trait::async_trait;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::pin::SpkiPin;
use viworks_common::time::Timestamp;

use crate::data::{
    Actor, OwnPins, PinChange, PinOutcome, PinTrust, PinsKnown, StoreResult, Untrusting,
};

/// The keys of the server, and which gateways trust them.
#[async_trait]
pub trait PinStore: Send + Sync {
    /// What is known of the pins.
    async fn pins(&self, tenant: &Tenant, own: OwnPins, now: Timestamp) -> StoreResult<PinsKnown>;
    /// Stores the configured set where nothing is stored, or what is stored is of a lower version, so that every
    /// backend goes by the same one; whether it did. Of several that start at once the first one does.
    async fn note_pins(
        &self,
        tenant: &Tenant,
        own: OwnPins,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// Which versions gateways trust.
    async fn pin_trust(&self, tenant: &Tenant) -> StoreResult<PinTrust>;
    /// The first so many gateways behind one that trust no version from `from` to `to`, by id.
    async fn untrusting(
        &self,
        tenant: &Tenant,
        from: u64,
        to: u64,
        after: Option<AgentId>,
        limit: usize,
    ) -> StoreResult<Vec<Untrusting>>;
    /// Takes a step of the rotation, unless a rule speaks against it. A step that was taken before changes nothing.
    async fn change_pins(
        &self,
        tenant: &Tenant,
        change: PinChange,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<PinOutcome>;
    /// Notes which key this backend shows.
    async fn show_pin(&self, tenant: &Tenant, pin: SpkiPin, now: Timestamp) -> StoreResult<()>;
}
