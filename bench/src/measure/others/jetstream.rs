//! NATS `JetStream`: requests in one stream and answers in another, both in files, each acknowledged by its reader.
//!
//! The server of Debian 12 cannot be told to bring each message to the disk before it acknowledges it; a file system
//! that does so with each write (`mount -o sync`) gives it the same durability.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, stream};
use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt;
use tokio::task::JoinSet;
use viworks_backend_agent::pki::issue::Material;
use viworks_testkit::small_disk;

use super::{Number, Server, Waiting, answered, coming, free_port, installed, request, start};
use crate::dial;
use crate::system::{System, name};

/// Gives the server a small file system in which each write is on the disk once it returns.
const MOUNT: &str = "\
set -e
truncate -s 2G \"$1.image\"
mkfs.ext4 -q -F \"$1.image\"
mkdir -p \"$1\"
mount -o loop,sync \"$1.image\" \"$1\"
shift
exec \"$@\"";

/// Bytes of the streams together.
const STORE_BYTES: u64 = 1 << 30;

/// The server, its clients, and somebody who asks.
#[derive(Clone)]
pub(super) struct Bench(Arc<Inner>);

struct Inner {
    context: jetstream::Context,
    agents: usize,
    waiting: Waiting<Number>,
    _clients: JoinSet<()>,
    _server: Server,
}

impl Bench {
    /// Starts it with so many clients; `None` where it is not installed, or cannot have such a file system.
    #[expect(clippy::print_stderr, reason = "whoever measures is to see it")]
    pub(super) async fn start(system: &System, agents: usize) -> anyhow::Result<Option<Self>> {
        let Some(program) = installed("nats-server", "nats-server") else {
            return Ok(None);
        };
        if !small_disk::fragile_is_allowed() {
            eprintln!("SKIPPED: NATS JetStream: a file system of its own cannot be mounted here");
            return Ok(None);
        }
        let (port, store) = (free_port()?, system.place("jetstream"));
        let configuration = system.place("nats.conf");
        let own = system.backend();
        let text = format!(
            "host: 127.0.0.1\nport: {port}\n\
             jetstream {{ store_dir: {store:?}, max_file_store: {STORE_BYTES} }}\n\
             tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\n",
            own.join("server.crt"),
            own.join("server.key"),
            own.join("ca.crt"),
        );
        std::fs::write(&configuration, text)?;
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            MOUNT,
            "sh",
        ]);
        command
            .arg(&store)
            .arg(program)
            .arg("-c")
            .arg(&configuration);
        let server = start(&mut command, port, &system.place("nats.log")).await?;

        let operator = connect(&system.gateways[0], port).await?;
        let context = jetstream::new(operator);
        let requests = make(&context, "requests", "request.>").await?;
        let answers = make(&context, "answers", "answer.>").await?;
        let (mut clients, waiting) = (JoinSet::new(), Waiting::default());
        for number in 0..agents {
            let client = connect(&system.gateways[number], port).await?;
            let (filter, replies) = (format!("request.{}", name(number)), jetstream::new(client));
            let own = replies
                .get_stream(&requests.cached_info().config.name)
                .await?;
            let consumer = own.create_consumer(reader(&name(number), &filter)).await?;
            let mut messages = consumer.messages().await?;
            let subject = format!("answer.{}", name(number));
            clients.spawn(async move {
                while let Some(Ok(message)) = messages.next().await {
                    let (payload, subject) = (message.payload.clone(), subject.clone());
                    let (replies, message) = (replies.clone(), message);
                    // A client that cannot answer shows as an answer that does not come.
                    let _answered = reply(&replies, subject, payload, &message).await;
                }
            });
        }
        let consumer = answers
            .create_consumer(reader("operator", "answer.>"))
            .await?;
        let mut messages = consumer.messages().await?;
        let told = waiting.clone();
        clients.spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                if answered(&told, &message.payload).is_ok() {
                    // What is not acknowledged comes again, and is answered already.
                    drop(message.ack().await);
                }
            }
        });
        Ok(Some(Self(Arc::new(Inner {
            context,
            agents,
            waiting,
            _clients: clients,
            _server: server,
        }))))
    }

    /// A request that is stored, and its answer that is stored.
    pub(super) async fn ask(&self, number: usize) -> anyhow::Result<()> {
        let (id, answer) = request(&self.0.waiting);
        let subject = format!("request.{}", name(number % self.0.agents));
        let stored = self.0.context.publish(subject, id.to_vec().into()).await?;
        stored.await?;
        coming(answer).await
    }
}

/// Stores an answer, and then says that its request was dealt with.
async fn reply(
    context: &jetstream::Context,
    subject: String,
    payload: bytes::Bytes,
    message: &jetstream::Message,
) -> anyhow::Result<()> {
    context.publish(subject, payload).await?.await?;
    message.ack().await.map_err(|error| anyhow!(error))
}

async fn connect(material: &Material, port: u16) -> anyhow::Result<Client> {
    let tls = dial::client(material)?;
    ConnectOptions::new()
        .require_tls(true)
        .tls_client_config(Arc::unwrap_or_clone(tls))
        .connect(format!("tls://127.0.0.1:{port}"))
        .await
        .context("NATS cannot be reached")
}

async fn make(
    context: &jetstream::Context,
    name: &str,
    subjects: &str,
) -> anyhow::Result<stream::Stream> {
    let config = stream::Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        storage: stream::StorageType::File,
        ..stream::Config::default()
    };
    Ok(context.create_stream(config).await?)
}

fn reader(name: &str, subjects: &str) -> pull::Config {
    pull::Config {
        durable_name: Some(name.to_owned()),
        filter_subject: subjects.to_owned(),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    }
}
