//! A server that takes no writes: a standby that the address leads to for a while, and a primary that was made
//! read-only. A store notices by itself, and goes on by itself.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use viworks_backend_agent::data::postgres::Role;
use viworks_backend_agent::data::{GatewayRef, Store, StoreError};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::eventually;
use viworks_testkit::proxy::Proxy;

use super::bed::{Bed, agent, at};
use super::postgres_only::open;

const PATIENCE: Duration = Duration::from_secs(30);

/// More than there are connections for either purpose, so that each of them is tried.
const MANY: u64 = 40;

const DATABASE: &str = "viworks";

fn place(server: &Own) -> String {
    format!("127.0.0.1:{}", server.server().port())
}

/// A primary and its standby, and a backend whose address leads to the primary.
struct Site {
    primary: Own,
    standby: Own,
    address: Proxy,
    bed: Bed,
}

impl Site {
    async fn start() -> Option<Self> {
        let primary = Own::start()?;
        primary.server().make_empty(DATABASE);
        let standby = primary.standby("second");
        let address = Proxy::before(place(&primary)).await.unwrap();
        let url = primary
            .server()
            .database(DATABASE)
            .behind(address.port())
            .url();
        let store = open(&url, Role::Backend).await.unwrap();
        let bed = Bed::new(Arc::new(store) as Arc<dyn Store>);
        bed.gateway(1).await;
        let site = Self {
            primary,
            standby,
            address,
            bed,
        };
        site.use_every_connection().await;
        Some(site)
    }

    /// The first that goes wrong of as many writes and reads as there are connections.
    async fn ask(&self) -> Result<(), StoreError> {
        let gateway = GatewayRef::Id(agent(1));
        let writes = (0..MANY).map(|_| self.bed.store.health());
        let reads = (0..MANY).map(|_| self.bed.store.gateway(&self.bed.tenant, &gateway));
        let (written, read) = tokio::join!(join_all(writes), join_all(reads));
        written.into_iter().collect::<Result<Vec<_>, _>>()?;
        read.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(())
    }

    async fn use_every_connection(&self) {
        eventually("every connection is of use", PATIENCE, async || {
            self.ask().await.ok()
        })
        .await;
    }

    /// Waits until nothing is written and nothing is read, and the reason given is this.
    async fn is_refused(&self, why: &str) {
        let gateway = GatewayRef::Id(agent(1));
        eventually("nothing is written or read", PATIENCE, async || {
            let written = self.bed.store.health().await.err()?;
            let read = self.bed.store.gateway(&self.bed.tenant, &gateway).await;
            let said = |error: StoreError| error.source().map(ToString::to_string);
            let reasons = [said(written), said(read.err()?)];
            let right = |said: &Option<String>| said.as_ref().is_some_and(|it| it.contains(why));
            reasons.iter().all(right).then_some(())
        })
        .await;
    }

    /// Waits until the standby has all that the primary committed.
    async fn standby_is_level(&self) {
        let (primary, standby) = (self.primary.server(), self.standby.server());
        let lsn = primary.psql(DATABASE, "SELECT pg_current_wal_flush_lsn()");
        let level = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", lsn.unwrap());
        eventually("the standby has it all", PATIENCE, async || {
            (standby.psql(DATABASE, &level).unwrap() == "t").then_some(())
        })
        .await;
    }

    fn set_read_only(&self, how: &str) {
        let primary = self.primary.server();
        let set = format!("ALTER SYSTEM {how}");
        primary.psql("postgres", &set).unwrap();
        primary.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    }

    async fn rename(&self, name: &str) -> Result<(), StoreError> {
        let (name, actor) = (
            name.parse().unwrap(),
            viworks_backend_agent::data::Actor::local("test"),
        );
        let store = &self.bed.store;
        let renamed = store.rename_gateway(&self.bed.tenant, agent(1), &name, &actor, at(5));
        renamed.await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_led_to_a_standby_goes_on_at_the_primary() {
    let Some(mut site) = Site::start().await else {
        return;
    };
    site.address.forward_to(&place(&site.standby));
    site.address.cut(1, 0);
    site.is_refused("the server is a standby").await;
    // Nobody ends what leads to the standby.
    site.address.forward_to(&place(&site.primary));
    site.use_every_connection().await;
    // And the same once more, where the primary does not come back.
    site.standby_is_level().await;
    site.primary.kill();
    site.address.forward_to(&place(&site.standby));
    site.address.cut(1, 0);
    site.is_refused("the server is a standby").await;
    site.standby.promote();
    site.use_every_connection().await;
    site.bed.command(1, false).await;
    site.bed.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_does_not_stay_at_a_primary_that_was_made_read_only() {
    let Some(site) = Site::start().await else {
        return;
    };
    site.set_read_only("SET default_transaction_read_only = on");
    site.is_refused("takes no writes").await;
    site.set_read_only("RESET default_transaction_read_only");
    site.use_every_connection().await;
    // The old primary lives on, and nobody is to read there what is not true any more.
    site.standby_is_level().await;
    site.set_read_only("SET default_transaction_read_only = on");
    site.standby.promote();
    site.address.forward_to(&place(&site.standby));
    eventually("it is written to the new one", PATIENCE, async || {
        site.rename("gw-moved").await.ok()
    })
    .await;
    let gateway = GatewayRef::Id(agent(1));
    let reads = (0..MANY).map(|_| site.bed.store.gateway(&site.bed.tenant, &gateway));
    // One that could not be read was not read at the old one.
    for read in join_all(reads).await.into_iter().flatten() {
        assert_eq!(read.unwrap().name.as_str(), "gw-moved");
    }
    site.use_every_connection().await;
    site.bed.store.close().await;
}
