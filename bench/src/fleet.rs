//! Many agents of one kind in this process, which connect, stay, and come back.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use viworks_runtime::random;

use crate::gateway::Feed;
use crate::server::{Role, Server};
use crate::system::{System, name};
use crate::{bare, dial};

/// Attempts to connect at once: as many as the backend opens sessions at once by default, less some room.
const ATTEMPTS: usize = 96;

/// How long an agent waits before it tries again, in milliseconds: the same for both kinds.
const PAUSE_MS: Range<u64> = 50..250;

/// How long a fleet may take to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(300);

/// Agents that run until it is dropped.
pub(crate) struct Fleet {
    /// How many have a session with each of the servers.
    up: watch::Sender<Vec<usize>>,
    /// Why the first session that ended did; that of a killed server is part of the plan.
    trouble: watch::Sender<String>,
    size: usize,
    _agents: JoinSet<()>,
}

/// Counts a session with one of the servers for as long as it is open.
struct Counted {
    up: watch::Sender<Vec<usize>>,
    server: usize,
}

impl Counted {
    fn new(up: watch::Sender<Vec<usize>>, server: usize) -> Self {
        up.send_modify(|up| up[server] += 1);
        Self { up, server }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.up.send_modify(|up| up[self.server] -= 1);
    }
}

impl Fleet {
    /// Starts the agents with these numbers.
    pub(crate) fn start(
        role: Role,
        system: &System,
        server: &Server,
        numbers: Range<usize>,
    ) -> anyhow::Result<Self> {
        Self::with_feeds(role, system, server, numbers, |_| None)
    }

    /// Starts them spread over some servers; each goes to the next one when it cannot stay where it is.
    pub(crate) fn spread(
        role: Role,
        system: &System,
        servers: &[&Server],
        numbers: Range<usize>,
    ) -> anyhow::Result<Self> {
        Self::of(role, system, servers, numbers, |_| None)
    }

    /// The same, each with telemetry of its own to deliver.
    pub(crate) fn with_feeds(
        role: Role,
        system: &System,
        server: &Server,
        numbers: Range<usize>,
        feed: impl Fn(usize) -> Option<Feed>,
    ) -> anyhow::Result<Self> {
        Self::of(role, system, &[server], numbers, feed)
    }

    fn of(
        role: Role,
        system: &System,
        servers: &[&Server],
        numbers: Range<usize>,
        feed: impl Fn(usize) -> Option<Feed>,
    ) -> anyhow::Result<Self> {
        let addresses = servers.iter().map(|it| it.addresses.agents.clone());
        let addresses: Arc<[String]> = addresses.collect();
        let (up, trouble) = (
            watch::Sender::new(vec![0; servers.len()]),
            watch::Sender::default(),
        );
        let attempts = Arc::new(Semaphore::new(ATTEMPTS));
        let mut agents = JoinSet::new();
        let size = numbers.len();
        for number in numbers {
            let (gateways, attempts) = (Arc::clone(&system.gateways), Arc::clone(&attempts));
            let (up, trouble) = (up.clone(), trouble.clone());
            let memories = Arc::clone(&system.memories);
            let addresses = Arc::clone(&addresses);
            let feed = feed(number);
            let tls = dial::client(&gateways[number])?;
            agents.spawn(async move {
                let material = &gateways[number];
                let mut gateway = memories[number].lock().await;
                for attempt in number.. {
                    let server = attempt % addresses.len();
                    let Ok(turn) = attempts.acquire().await else {
                        return;
                    };
                    if let Ok(socket) = dial::dial(&addresses[server], Arc::clone(&tls)).await {
                        let mut counted = None;
                        let opened = || {
                            counted = Some(Counted::new(up.clone(), server));
                            drop(turn);
                        };
                        let ended = match role {
                            Role::Ours => {
                                Box::pin(gateway.serve(material, socket, opened, feed.as_ref()))
                                    .await
                            }
                            Role::Reference => {
                                Box::pin(bare::serve(&name(number), socket, opened)).await
                            }
                        };
                        if let Err(error) = ended {
                            trouble.send_if_modified(|first: &mut String| {
                                let unset = first.is_empty();
                                if unset {
                                    *first = format!("{error:#}");
                                }
                                unset
                            });
                        }
                    } else {
                        drop(turn);
                    }
                    sleep(Duration::from_millis(random::uniform(PAUSE_MS))).await;
                }
            });
        }
        Ok(Self {
            up,
            trouble,
            size,
            _agents: agents,
        })
    }

    /// Waits until every agent has its session.
    pub(crate) async fn all_up(&self) -> anyhow::Result<()> {
        self.until(|up| up.iter().sum::<usize>() == self.size).await
    }

    /// Waits until every agent has its session with one of the servers.
    pub(crate) async fn all_at(&self, server: usize) -> anyhow::Result<()> {
        self.until(|up| up[server] == self.size).await
    }

    /// Waits until no agent has a session.
    pub(crate) async fn all_down(&self) -> anyhow::Result<()> {
        self.until(|up| up.iter().all(|up| *up == 0)).await
    }

    async fn until(&self, wanted: impl Fn(&[usize]) -> bool + Send + Sync) -> anyhow::Result<()> {
        let mut up = self.up.subscribe();
        let came = timeout(CONNECT_WITHIN, up.wait_for(|up| wanted(up))).await;
        match came {
            Ok(_came) => Ok(()),
            Err(_elapsed) => anyhow::bail!(
                "after {CONNECT_WITHIN:?} {:?} of {} agents are connected; the first session that ended did so because: {}",
                *self.up.borrow(),
                self.size,
                self.trouble()
            ),
        }
    }

    /// Why the first session that ended did; empty when none did.
    pub(crate) fn trouble(&self) -> String {
        self.trouble.borrow().clone()
    }
}
