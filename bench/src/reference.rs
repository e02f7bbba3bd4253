//! The reference server: tokio-tungstenite and rustls with our settings, and a relay that keeps its commands.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use uuid::Uuid;
use viworks_runtime::config::environment;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::{random, ready_file, tls};

use crate::dial;
use crate::server::Addresses;

mod stores;

use stores::Stores;

/// Commands on their way to one agent.
const QUEUE: usize = 256;

#[derive(Clone)]
struct Relay {
    agents: Arc<Mutex<BTreeMap<String, mpsc::Sender<Uuid>>>>,
    waiting: Arc<Mutex<BTreeMap<Uuid, oneshot::Sender<()>>>>,
    stores: Stores,
}

/// Serves until the process is killed.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1))
            .map(PathBuf::from)
            .with_context(|| format!("{name} is missing"))
    };
    let folder = argument("--config")?
        .parent()
        .context("a configuration lies in a folder")?
        .to_owned();
    let ready = argument("--ready-file")?;
    let roots = tls::roots(tls::load_certificates(&folder.join("ca.crt"))?)?;
    let identity = tls::Identity::load(&folder.join("server.crt"), &folder.join("server.key"))?;
    let acceptor = TlsAcceptor::from(tls::server_config(identity, roots)?);
    let variables = environment();
    let relay = Relay {
        agents: Arc::default(),
        waiting: Arc::default(),
        stores: Stores::open(&variables).await?,
    };
    let listen = |name: &str| variables.get(name).unwrap_or("127.0.0.1:0").to_owned();
    let api = TcpListener::bind(listen("VIWORKS__API__LISTEN")).await?;
    let agents = TcpListener::bind(listen("VIWORKS__AGENTS__LISTEN")).await?;
    let addresses = Addresses {
        api: api.local_addr()?.to_string(),
        agents: agents.local_addr()?.to_string(),
    };
    ready_file::write(&ready, &addresses)?;
    let lifecycle = Lifecycle::new();
    let router = Router::new()
        .route("/run/{agent}", post(run))
        .with_state(relay.clone());
    drop(lifecycle.spawn("api", async move {
        // It is killed, never stopped.
        drop(axum::serve(api, router).await);
    }));
    loop {
        let (stream, _) = agents.accept().await?;
        let (acceptor, relay) = (acceptor.clone(), relay.clone());
        drop(lifecycle.spawn("agent", async move {
            // An agent that leaves is not an error of the relay.
            drop(Box::pin(attend(stream, acceptor, relay)).await);
        }));
    }
}

async fn attend(stream: TcpStream, acceptor: TlsAcceptor, relay: Relay) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let mut socket = Box::pin(accept_hdr_async_with_config(
        stream,
        protocol,
        Some(dial::settings()),
    ))
    .await?;
    let name = socket.next().await.context("nobody spoke")??;
    let name = name.into_text()?.to_string();
    relay.stores.attach(&name).await?;
    let (sender, mut commands) = mpsc::channel(QUEUE);
    lock(&relay.agents).insert(name, sender);
    socket.send(Message::text("known")).await?;
    loop {
        tokio::select! {
            command = commands.recv() => {
                let command = command.context("another connection took over")?;
                socket.send(Message::binary(command.as_bytes().to_vec())).await?;
            }
            message = socket.next() => {
                if let Message::Binary(answer) = message.context("the agent left")??
                    && let Ok(id) = Uuid::from_slice(&answer)
                    && let Some(waiting) = lock(&relay.waiting).remove(&id)
                {
                    // Whoever asked may have gone.
                    let _told = waiting.send(());
                }
            }
        }
    }
}

#[expect(
    clippy::result_large_err,
    clippy::unnecessary_wraps,
    reason = "the signature of the handshake's callback"
)]
fn protocol(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    if let Some(offered) = request.headers().get("sec-websocket-protocol") {
        response
            .headers_mut()
            .insert("sec-websocket-protocol", offered.clone());
    }
    Ok(response)
}

async fn run(State(relay): State<Relay>, Path(agent): Path<String>) -> StatusCode {
    let Some(sender) = lock(&relay.agents).get(&agent).cloned() else {
        return StatusCode::NOT_FOUND;
    };
    let id = random::uuid_v4();
    let (answered, answer) = oneshot::channel();
    lock(&relay.waiting).insert(id, answered);
    let Ok(next) = relay.stores.accept(&agent, id).await else {
        return StatusCode::INTERNAL_SERVER_ERROR;
    };
    if sender.send(next).await.is_err() || answer.await.is_err() {
        return StatusCode::BAD_GATEWAY;
    }
    if relay.stores.finish(&agent, id).await.is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    StatusCode::OK
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
