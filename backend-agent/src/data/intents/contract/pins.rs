//! The keys of the server, and which gateways trust them.

use async_trait::async_trait;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::pin::SpkiPin;
use viworks_common::time::Timestamp;

use super::super::link::Engine;
use super::super::pins;
use super::super::store::SqlStore;
use crate::data::{
    Actor, OwnPins, PinChange, PinOutcome, PinStore, PinTrust, PinsKnown, StoreResult, Untrusting,
};

#[async_trait]
impl<E: Engine> PinStore for SqlStore<E> {
    async fn pins(&self, tenant: &Tenant, own: OwnPins, now: Timestamp) -> StoreResult<PinsKnown> {
        self.read(tenant, move |view| pins::known(view, &own, now))
            .await
    }

    async fn note_pins(
        &self,
        tenant: &Tenant,
        own: OwnPins,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<bool> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| pins::note(tx, &own, &actor))
            .await
    }

    async fn pin_trust(&self, tenant: &Tenant) -> StoreResult<PinTrust> {
        self.read(tenant, pins::trust).await
    }

    async fn untrusting(
        &self,
        tenant: &Tenant,
        from: u64,
        to: u64,
        after: Option<AgentId>,
        limit: usize,
    ) -> StoreResult<Vec<Untrusting>> {
        self.read(tenant, move |view| {
            pins::untrusting(view, from, to, after, limit)
        })
        .await
    }

    async fn change_pins(
        &self,
        tenant: &Tenant,
        change: PinChange,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<PinOutcome> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| pins::change(tx, &change, &actor))
            .await
    }

    async fn show_pin(&self, tenant: &Tenant, pin: SpkiPin, now: Timestamp) -> StoreResult<()> {
        self.write(tenant, now, move |tx| pins::show(tx, &pin))
            .await
    }
}
