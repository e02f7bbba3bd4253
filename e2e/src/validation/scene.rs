//! The installation that is validated: backends on servers of their own and behind nginx, gateways with a load, one
//! gateway more for the checks of `viworks validate`. All of it is gone afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, Start};
use viworks_testkit::gateway::mark_starts;
use viworks_testkit::nginx::{Backends, Nginx};
use viworks_testkit::process::Process;
use viworks_testkit::proxy::Proxy;
use viworks_testkit::{postgres, redis};

use crate::breaks::Break;

/// Gateways with a load.
pub(crate) const GATEWAYS: [&str; 2] = ["gw-1", "gw-2"];

/// How long anything may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// The installation.
pub(crate) struct Scene {
    pub(crate) postgres: Option<postgres::Own>,
    pub(crate) redis: Option<redis::Own>,
    pub(crate) nginx: Option<Nginx>,
    /// Another one with the name at which machines enrol: there is one name that resolves on any machine.
    door: Option<Nginx>,
    pub(crate) backends: Vec<Deployment>,
    /// Where gateways dial.
    pub(crate) address: Proxy,
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) gateways: Vec<Process>,
    /// The folder of a gateway that never ran.
    pub(crate) probe: PathBuf,
    start: Start,
}

impl Scene {
    pub(crate) async fn start(
        programs: &'static Binaries,
        embedded: bool,
        broken: Option<Break>,
    ) -> anyhow::Result<Self> {
        let postgres = if embedded {
            None
        } else {
            postgres::Own::start()
        };
        let redis = postgres.as_ref().and_then(|_it| redis::Own::start());
        let address = Proxy::before("").await?;
        let mut start = Start::default()
            .with("VIWORKS__API__KEY_REQUESTS_PER_MINUTE", "1000000")
            .with("VIWORKS__ENROLMENT__LISTEN", "127.0.0.1:0");
        let has_nginx = !embedded && Nginx::is_installed();
        if has_nginx {
            start = start
                .with("VIWORKS__AGENTS__PROXY_PROTOCOL", "require")
                .with("VIWORKS__AGENTS__TRUSTED_PROXIES", "127.0.0.1")
                .with("VIWORKS__ENROLMENT__PROXY_PROTOCOL", "require")
                .with("VIWORKS__ENROLMENT__TRUSTED_PROXIES", "127.0.0.1")
                .with("VIWORKS__API__TRUSTED_PROXIES", "127.0.0.1");
        }
        if let Some(redis) = &redis {
            start = start.with("VIWORKS__QUEUE__URL", redis.place().url());
        }
        if broken == Some(Break::DataFlow) {
            start = start.with("VIWORKS__TELEMETRY__GATEWAY_RECORDS_PER_DAY", "10");
        }
        let one = match &postgres {
            Some(own) => {
                own.server().make_empty("viworks");
                Deployment::on(programs, own.server().database("viworks"))
            }
            None => Deployment::new(programs),
        };
        let folders: Vec<PathBuf> = GATEWAYS.iter().map(|name| one.issue(name)).collect();
        let probe = one.issue("validation");
        if broken == Some(Break::Renewal) {
            one.ages_certificate(GATEWAYS[0]);
        }
        leads_to(&probe, &url(&address))?;
        let mut backends = vec![one];
        if postgres.is_some() {
            let second = backends
                .first()
                .context("there is one")?
                .another("backend-2");
            backends.push(second);
        }
        let mut scene = Self {
            postgres,
            redis,
            nginx: None,
            door: None,
            backends,
            address,
            folders,
            gateways: Vec::new(),
            probe,
            start,
        };
        for which in 0..scene.backends.len() {
            scene.start_backend(which).await;
        }
        if has_nginx {
            let agents = |it: &Deployment| it.agents_address().to_owned();
            let api = |it: &Deployment| it.api_url().trim_start_matches("http://").to_owned();
            scene.nginx = Some(Nginx::start(Backends {
                agents: scene.backends.iter().map(agents).collect(),
                api: scene.backends.iter().map(api).collect(),
                ..Backends::default()
            }));
            scene.door = Some(before_door(scene.first()));
        }
        scene.lead();
        for folder in scene.folders.clone() {
            mark_starts(&folder);
            scene.start_gateway(&folder);
        }
        for name in GATEWAYS {
            scene.first().online(name).await;
        }
        Ok(scene)
    }

    /// What it is, in a few words.
    pub(crate) fn words(&self) -> String {
        let database = self.postgres.as_ref().map_or("SQLite", |_it| "PostgreSQL");
        let queue = self.redis.as_ref().map_or("", |_it| " and Redis");
        let backends = if self.backends.len() == 1 {
            "one backend"
        } else {
            "two backends"
        };
        let nginx = self.nginx.as_ref().map_or("", |_it| " behind nginx");
        format!("{backends}{nginx} on {database}{queue}")
    }

    /// The backend that gateways come to.
    pub(crate) fn first(&self) -> &Deployment {
        self.backends.first().expect("a scene has a backend")
    }

    pub(crate) fn first_mut(&mut self) -> &mut Deployment {
        self.backends.first_mut().expect("a scene has a backend")
    }

    pub(crate) async fn start_backend(&mut self, which: usize) {
        let start = self.start.clone();
        if let Some(backend) = self.backends.get_mut(which) {
            backend.start_backend(start).await;
        }
    }

    /// Gateways that dial come to nginx, and where it is not, to the first backend.
    pub(crate) fn lead(&self) {
        let nginx = self.nginx.as_ref();
        let nginx = nginx.map(|nginx| format!("127.0.0.1:{}", nginx.port()));
        let own = self.first().agents_address();
        self.address.forward_to(nginx.as_deref().unwrap_or(own));
    }

    /// Where machines enrol: at nginx, and where it is not, at the first backend.
    pub(crate) fn door_address(&self) -> String {
        let nginx = self.door.as_ref();
        let nginx = nginx.map(|nginx| format!("127.0.0.1:{}", nginx.port()));
        nginx.unwrap_or_else(|| self.first().door_address().to_owned())
    }

    fn start_gateway(&mut self, folder: &Path) {
        let start = Start::default()
            .with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "1000")
            .with("VIWORKS__OUTBOUND__URL", url(&self.address));
        let gateway = self.first().start_gateway(folder, start);
        self.gateways.push(gateway);
    }

    pub(crate) fn token(&self) -> PathBuf {
        self.first().path().join("operator.key")
    }

    /// Ends all of it, as it should end where it still runs.
    pub(crate) async fn stop(mut self) {
        for gateway in &mut self.gateways {
            if gateway.ended().is_none() {
                gateway.stop(STOP_WITHIN).await;
            }
        }
        // Those that were killed by a check are gone; the others end when they are dropped.
    }
}

/// With the configuration that ships, in front of the door of a backend: who asks for `localhost` enrols.
fn before_door(backend: &Deployment) -> Nginx {
    let backends = Backends {
        enrolment: vec![backend.door_address().to_owned()],
        ..Backends::default()
    };
    Nginx::start_changed(backends, |shipped| {
        let agents = [
            "localhost  viworks_agents",
            "agents.example.org  viworks_agents",
        ];
        shipped
            .replace(agents[0], agents[1])
            .replace("enrol.example.org ", "localhost ")
    })
}

/// What gateways dial: nginx goes by the name.
fn url(address: &Proxy) -> String {
    format!("wss://localhost:{}/agent/v1/connect", address.port())
}

/// Has a gateway's configuration name this URL.
fn leads_to(folder: &Path, url: &str) -> anyhow::Result<()> {
    let file = folder.join("gateway.toml");
    let text = std::fs::read_to_string(&file)?;
    let url = format!("url = \"{url}\"");
    let lines = text.lines().map(|line| {
        if line.starts_with("url = ") {
            url.clone()
        } else {
            line.to_owned()
        }
    });
    let text = lines.collect::<Vec<_>>().join("\n") + "\n";
    Ok(std::fs::write(&file, text)?)
}
