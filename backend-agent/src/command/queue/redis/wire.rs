//! A connection to Redis, whatever answers at the address: one server, a cluster, or what sentinels point to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo as _, Pipeline, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisFuture,
    RedisResult, TlsCertificates, TlsMode, Value,
};
use tokio::sync::mpsc;

use super::error::Error;
use crate::config::queue::{QueueAddress, Topology};

/// How long a connection may take to be made, and each of its steps.
const OPEN_TIME: Duration = Duration::from_secs(2);

/// How long an answer may take. It bounds how long anything can wait for Redis before it goes on without.
pub(super) const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Messages that were received and not looked at; those beyond are lost, which is noted.
const PUSHES_MAX: usize = 4_096;

/// What is received on a connection.
pub(super) struct Pushes {
    received: mpsc::Receiver<PushInfo>,
    lost: Arc<AtomicBool>,
}

impl Pushes {
    /// The next message, or word that the connection is gone; `None` when nothing can come any more.
    pub(super) async fn next(&mut self) -> Option<PushInfo> {
        self.received.recv().await
    }

    /// Whether messages were lost since this was last asked.
    pub(super) fn were_lost(&self) -> bool {
        self.lost.swap(false, Ordering::Relaxed)
    }
}

/// An open connection. Clones share it.
#[derive(Clone)]
pub(super) enum Wire {
    /// To one server.
    Single(MultiplexedConnection),
    /// To the nodes of a cluster.
    Cluster(ClusterConnection),
}

impl ConnectionLike for Wire {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

impl Wire {
    /// Connects; messages of channels that are subscribed come by the receiver, and so does the end of the connection.
    pub(super) async fn open(address: &QueueAddress) -> Result<(Self, Pushes), Error> {
        let (sender, received) = mpsc::channel(PUSHES_MAX);
        let lost = Arc::<AtomicBool>::default();
        let pushes = Pushes {
            received,
            lost: Arc::clone(&lost),
        };
        let push = move |info| {
            let sent = sender.try_send(info);
            if sent.is_err() {
                lost.store(true, Ordering::Relaxed);
            }
            sent
        };
        let opening = async {
            match &address.topology {
                Topology::Cluster => open_cluster(address, push).await.map(Self::Cluster),
                Topology::Single => {
                    let client = single(address)?;
                    open_single(&client, push).await
                }
                Topology::Sentinel(master) => {
                    let client = ask_sentinels(address, master).await?;
                    open_single(&client, push).await
                }
            }
        };
        let wire = tokio::time::timeout(OPEN_TIME, Box::pin(opening)).await;
        Ok((wire.map_err(|_elapsed| Error::Late)??, pushes))
    }

    /// Hears what is published there from here on.
    pub(super) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Single(connection) => connection.subscribe(channel).await,
            Self::Cluster(connection) => connection.subscribe(channel).await,
        }
    }

    /// Hears it no more.
    pub(super) async fn unsubscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Single(connection) => connection.unsubscribe(channel).await,
            Self::Cluster(connection) => connection.unsubscribe(channel).await,
        }
    }
}

type TrySend = Result<(), mpsc::error::TrySendError<PushInfo>>;

async fn open_single(
    client: &Client,
    push: impl Fn(PushInfo) -> TrySend + Send + Sync + 'static,
) -> Result<Wire, Error> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(OPEN_TIME))
        .set_response_timeout(Some(ANSWER_TIME))
        .set_push_sender(push);
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    Ok(Wire::Single(connection.await?))
}

async fn open_cluster(
    address: &QueueAddress,
    push: impl Fn(PushInfo) -> TrySend + Send + Sync + 'static,
) -> Result<ClusterConnection, Error> {
    let nodes = addresses(address)
        .into_iter()
        .map(|node| info(address, node));
    let mut builder = ClusterClientBuilder::new(nodes.collect::<Result<Vec<_>, _>>()?)
        .connection_timeout(OPEN_TIME)
        .response_timeout(ANSWER_TIME)
        // Whoever asked is told at once, and the breaker decides when it is tried again.
        .retries(1)
        .push_sender(push)
        .use_protocol(ProtocolVersion::RESP3);
    if address.encrypted {
        builder = builder.tls(TlsMode::Secure);
    }
    if let Some(trusted) = certificates(address)? {
        builder = builder.certs(trusted);
    }
    Ok(builder.build()?.get_async_connection().await?)
}

fn single(address: &QueueAddress) -> Result<Client, Error> {
    let Some(server) = addresses(address).into_iter().next() else {
        let nothing = (ErrorKind::InvalidClientConfig, "no server is named");
        return Err(Error::Server(nothing.into()));
    };
    let info = info(address, server)?;
    Ok(match certificates(address)? {
        Some(trusted) => Client::build_with_tls(info, trusted)?,
        None => Client::open(info)?,
    })
}

/// Where the server of this name is now. Sentinels are asked without a password.
async fn ask_sentinels(address: &QueueAddress, master: &str) -> Result<Client, Error> {
    let mut builder =
        SentinelClientBuilder::new(addresses(address), master, SentinelServerType::Master)?
            .set_client_to_redis_db(address.database)
            .set_client_to_redis_protocol(ProtocolVersion::RESP3);
    if let Some(user) = &address.user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = address.password()? {
        builder = builder.set_client_to_redis_password(&*password);
    }
    if address.encrypted {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(trusted) = certificates(address)? {
        builder = builder
            .set_client_to_redis_certificates(trusted.clone())
            .set_client_to_sentinel_certificates(trusted);
    }
    Ok(builder.build()?.async_get_client().await?)
}

fn addresses(address: &QueueAddress) -> Vec<ConnectionAddr> {
    let hosts = address.hosts.iter().cloned();
    hosts
        .map(|(host, port)| match address.encrypted {
            true => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            },
            false => ConnectionAddr::Tcp(host, port),
        })
        .collect()
}

fn info(address: &QueueAddress, server: ConnectionAddr) -> Result<ConnectionInfo, Error> {
    let mut settings = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(address.database);
    if let Some(user) = &address.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = address.password()? {
        settings = settings.set_password(&*password);
    }
    Ok(server.into_connection_info()?.set_redis_settings(settings))
}

fn certificates(address: &QueueAddress) -> Result<Option<TlsCertificates>, Error> {
    let authority = address.authority()?;
    Ok(authority.map(|authority| TlsCertificates {
        client_tls: None,
        root_cert: Some(authority),
    }))
}
