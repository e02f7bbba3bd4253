//! A fresh backend's folder with the identities of as many gateways as are wanted.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tempfile::TempDir;
use tokio::sync::Mutex;
use viworks_api::Scope;
use viworks_backend_agent::auth::apikey::{self, CreateKey};
use viworks_backend_agent::config::Config;
use viworks_backend_agent::data::postgres::Role;
use viworks_backend_agent::data::{Actor, Store};
use viworks_backend_agent::database;
use viworks_backend_agent::pki::Home;
use viworks_backend_agent::pki::init::{InitRequest, init};
use viworks_backend_agent::pki::issue::{
    Delivery, GATEWAY_LIFE, IssueRequest, Material, Office, issue, make,
};
use viworks_common::id::Tenant;
use viworks_runtime::clock::{Clock, SystemClock, Timeline};
use viworks_runtime::config::Environment;
use viworks_runtime::files;

use crate::gateway::Gateway;
use crate::servers::Servers;

/// Gateways that are registered at once, so that many share one commit.
const TOGETHER: usize = 128;

/// Certificates, database and identities, in a folder that goes with it.
pub(crate) struct System {
    folder: TempDir,
    /// Everything a gateway brings, by number.
    pub(crate) gateways: Arc<Vec<Material>>,
    /// What each of them remembers between its sessions.
    pub(crate) memories: Arc<Vec<Mutex<Gateway>>>,
    /// An operator's key with every scope.
    pub(crate) token: String,
    /// The database and the queue of a reference on servers.
    pub(crate) relay: Option<[String; 2]>,
}

impl System {
    /// Makes it on the embedded database, with `gateways` identities.
    pub(crate) async fn new(gateways: usize) -> anyhow::Result<Self> {
        Self::on(None, gateways).await
    }

    /// Makes it on these servers, or on the embedded database.
    pub(crate) async fn on(servers: Option<&Servers>, gateways: usize) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("viworks-bench-").context("no temporary folder")?;
        let request = InitRequest {
            folder: folder.path().join("backend"),
            trust_domain: "bench.viworks.test".parse()?,
            server_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            installed: false,
            authority: None,
        };
        init(&request, SystemClock.wall())?;
        let mut system = Self {
            folder,
            gateways: Arc::default(),
            memories: Arc::default(),
            token: String::new(),
            relay: servers.map(|servers| [servers.reference(), servers.queue()]),
        };
        if let Some(servers) = servers {
            let path = system.config();
            let text = std::fs::read_to_string(&path)? + &servers.configuration();
            std::fs::write(&path, text)?;
        }
        let config = system.configuration()?;
        files::create_private_folder(&config.data.state_folder)?;
        let store = database::open(&config, Role::Beside).await?;
        let office = Office::open(&config)?;
        system.gateways = Arc::new(register(&*store, &office, gateways).await?);
        let memories = system
            .gateways
            .iter()
            .map(|it| Mutex::new(Gateway::new(it)));
        system.memories = Arc::new(memories.collect());
        system.token = operator(&*store).await?;
        store.close().await;
        Ok(system)
    }

    /// Writes what one more gateway needs to a folder of its own; no server may run meanwhile.
    pub(crate) async fn issue(&self, name: &str) -> anyhow::Result<PathBuf> {
        let config = self.configuration()?;
        let store = database::open(&config, Role::Beside).await?;
        let office = Office::open(&config)?;
        let request = IssueRequest {
            name: name.parse()?,
            labels: [].into(),
            life: GATEWAY_LIFE,
        };
        let delivery = Delivery {
            folder: self.place(name),
            // Said anew whenever an agent is started.
            url: "wss://127.0.0.1:1/agent/v1/connect".to_owned(),
            home: Home::Demo,
        };
        let (tenant, actor) = (Tenant::default_tenant(), Actor::system());
        let clock = Timeline::unstored(Arc::new(SystemClock));
        issue(
            &*store, &tenant, &office, request, &delivery, &actor, &clock,
        )
        .await?;
        store.close().await;
        Ok(delivery.folder)
    }

    fn configuration(&self) -> anyhow::Result<Config> {
        Config::load(&self.config(), &Environment::default())
            .map_err(|problems| anyhow::anyhow!("{problems}"))
    }

    /// The backend's configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.backend().join("backend.toml")
    }

    /// The folder of certificates and keys.
    pub(crate) fn backend(&self) -> PathBuf {
        self.folder.path().join("backend")
    }

    /// The state folder of the server that is called so. That of the first backend has what was registered.
    pub(crate) fn state(&self, server: &str) -> anyhow::Result<PathBuf> {
        if server == "ours" {
            return Ok(self.configuration()?.data.state_folder);
        }
        let folder = self.place(&format!("{server}-state"));
        files::create_private_folder(&folder)?;
        Ok(folder)
    }

    /// A place for one more file.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

async fn register(
    store: &dyn Store,
    office: &Office,
    gateways: usize,
) -> anyhow::Result<Vec<Material>> {
    let tenant = Tenant::default_tenant();
    stream::iter(0..gateways)
        .map(|number| {
            let tenant = &tenant;
            async move {
                let request = IssueRequest {
                    name: name(number).parse()?,
                    labels: [].into(),
                    life: GATEWAY_LIFE,
                };
                let now = SystemClock.wall();
                let (material, gateway) = make(tenant, office, request, now)?;
                store
                    .create_gateway(tenant, gateway, &Actor::system(), now)
                    .await?;
                anyhow::Ok(material)
            }
        })
        .buffered(TOGETHER)
        .try_collect()
        .await
}

/// What a gateway is called.
pub(crate) fn name(number: usize) -> String {
    format!("gw-{number:05}")
}

async fn operator(store: &dyn Store) -> anyhow::Result<String> {
    let request = CreateKey {
        name: "bench".to_owned(),
        scopes: Scope::ALL.iter().copied().collect(),
        expires_in: None,
    };
    let tenant = Tenant::default_tenant();
    let now = SystemClock.wall();
    let (_key, secret) = apikey::issue(store, &tenant, request, &Actor::system(), now).await?;
    Ok(secret.expose().to_owned())
}
