//! Mosquitto with persistence: requests and answers with quality of service 1, in sessions that outlive connections.
//!
//! It acknowledges what it has in memory. The strictest that it can be told is to save all that it keeps after each
//! turn of its loop in which a message came, so what it acknowledged last can be lost with it: less than ours keeps.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, bail};
use futures_util::stream::{SplitSink, StreamExt};
use futures_util::{SinkExt, Stream};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Codec, ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, Subscribe,
};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_util::codec::Framed;
use viworks_backend_agent::pki::issue::Material;

use super::{Number, Server, Waiting, answered, coming, free_port, installed, request, start};
use crate::dial;
use crate::system::{System, name};

/// The largest packet.
const PACKET_BYTES: usize = 64 * 1024;

/// What whoever asks is called.
const OPERATOR: &str = "operator";

/// A connection that speaks MQTT 3.1.1.
type Connection = Framed<TlsStream<TcpStream>, Codec>;

/// The server, its clients, and somebody who asks.
#[derive(Clone)]
pub(super) struct Bench(Arc<Inner>);

struct Inner {
    sender: Arc<Mutex<SplitSink<Connection, Packet>>>,
    agents: usize,
    next: AtomicU16,
    /// Requests that the server has to acknowledge.
    stored: Waiting<u16>,
    /// Requests that a client has to answer.
    waiting: Waiting<Number>,
    _tasks: JoinSet<()>,
    _server: Server,
}

impl Bench {
    /// Starts it with so many clients; `None` where it is not installed.
    pub(super) async fn start(system: &System, agents: usize) -> anyhow::Result<Option<Self>> {
        let Some(program) = installed("mosquitto", "mosquitto") else {
            return Ok(None);
        };
        let port = free_port()?;
        let configuration = system.place("mosquitto.conf");
        std::fs::write(&configuration, settings(system, port)?)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&configuration);
        let server = start(&mut command, port, &system.place("mosquitto.log")).await?;

        let mut tasks = JoinSet::new();
        for number in 0..agents {
            let name = name(number);
            let material = &system.gateways[number];
            let connection = connect(material, port, &name, &format!("request/{name}")).await?;
            tasks.spawn(async move {
                // A client that cannot go on shows as an answer that does not come.
                drop(serve(connection, &format!("answer/{name}")).await);
            });
        }
        let connection = connect(&system.gateways[0], port, OPERATOR, "answer/+").await?;
        let (sender, packets) = connection.split();
        let sender = Arc::new(Mutex::new(sender));
        let (stored, waiting) = (Waiting::default(), Waiting::default());
        let reading = read(
            packets,
            Arc::clone(&sender),
            stored.clone(),
            waiting.clone(),
        );
        tasks.spawn(async move { drop(reading.await) });
        Ok(Some(Self(Arc::new(Inner {
            sender,
            agents,
            next: AtomicU16::new(0),
            stored,
            waiting,
            _tasks: tasks,
            _server: server,
        }))))
    }

    /// A request that is acknowledged, and its answer that was.
    pub(super) async fn ask(&self, number: usize) -> anyhow::Result<()> {
        let inner = &self.0;
        let (id, answer) = request(&inner.waiting);
        let topic = format!("request/{}", name(number % inner.agents));
        let mut request = Publish::new(topic, QoS::AtLeastOnce, id);
        request.pkid = after(inner.next.fetch_add(1, Ordering::Relaxed));
        let stored = inner.stored.begin(request.pkid);
        let mut sender = inner.sender.lock().await;
        sender.send(Packet::Publish(request)).await?;
        drop(sender);
        coming(stored).await?;
        coming(answer).await
    }
}

/// The next number of a packet, which is never zero.
const fn after(number: u16) -> u16 {
    number % u16::MAX + 1
}

/// What the server's configuration says.
fn settings(system: &System, port: u16) -> anyhow::Result<String> {
    let store = system.place("mosquitto");
    std::fs::create_dir(&store)?;
    let own = system.backend();
    Ok(format!(
        "listener {port} 127.0.0.1\n\
         certfile {}\nkeyfile {}\ncafile {}\nrequire_certificate true\nallow_anonymous true\nset_tcp_nodelay true\n\
         persistence true\npersistence_location {}/\nautosave_on_changes true\nautosave_interval 1\n\
         max_inflight_messages 0\nmax_queued_messages 0\nuser root\n",
        own.join("server.crt").display(),
        own.join("server.key").display(),
        own.join("ca.crt").display(),
        store.display(),
    ))
}

/// Connects with a session that outlives its connection, and subscribes to one topic.
async fn connect(
    material: &Material,
    port: u16,
    client: &str,
    topic: &str,
) -> anyhow::Result<Connection> {
    let stream = dial::connect(&format!("127.0.0.1:{port}"), dial::client(material)?).await?;
    let codec = Codec {
        max_incoming_size: PACKET_BYTES,
        max_outgoing_size: PACKET_BYTES,
    };
    let mut connection = Framed::new(stream, codec);
    let mut hello = Connect::new(client);
    hello.clean_session = false;
    hello.keep_alive = u16::MAX;
    connection.send(Packet::Connect(hello)).await?;
    let said = next(&mut connection).await?;
    let is_in = |said: &ConnAck| said.code == ConnectReturnCode::Success;
    if !matches!(&said, Packet::ConnAck(said) if is_in(said)) {
        bail!("mosquitto does not let a client in: {said:?}");
    }
    let mut subscribe = Subscribe::new(topic, QoS::AtLeastOnce);
    subscribe.pkid = 1;
    connection.send(Packet::Subscribe(subscribe)).await?;
    let said = next(&mut connection).await?;
    if !matches!(said, Packet::SubAck(_)) {
        bail!("mosquitto does not let a client subscribe: {said:?}");
    }
    Ok(connection)
}

async fn next(
    packets: &mut (impl Stream<Item = Result<Packet, rumqttc::mqttbytes::Error>> + Unpin),
) -> anyhow::Result<Packet> {
    let packet = packets.next().await;
    Ok(packet.context("mosquitto ended the connection")??)
}

/// A client: answers each request, and acknowledges it once its answer is.
async fn serve(mut connection: Connection, topic: &str) -> anyhow::Result<()> {
    let mut answered = BTreeMap::new();
    let mut number = 0;
    loop {
        let packet = next(&mut connection).await?;
        if let Packet::Publish(request) = packet {
            let mut answer = Publish::from_bytes(topic, QoS::AtLeastOnce, request.payload);
            number = after(number);
            answer.pkid = number;
            answered.insert(number, request.pkid);
            connection.send(Packet::Publish(answer)).await?;
        } else if let Packet::PubAck(stored) = packet {
            if let Some(request) = answered.remove(&stored.pkid) {
                let seen = Packet::PubAck(PubAck::new(request));
                connection.send(seen).await?;
            }
        } else {
            bail!("not for a client: {packet:?}");
        }
    }
}

/// Whoever asked: hears what was stored, and what was answered.
async fn read(
    mut packets: impl Stream<Item = Result<Packet, rumqttc::mqttbytes::Error>> + Unpin,
    sender: Arc<Mutex<SplitSink<Connection, Packet>>>,
    stored: Waiting<u16>,
    waiting: Waiting<Number>,
) -> anyhow::Result<()> {
    loop {
        let packet = next(&mut packets).await?;
        if let Packet::Publish(answer) = packet {
            answered(&waiting, &answer.payload)?;
            let seen = Packet::PubAck(PubAck::new(answer.pkid));
            sender.lock().await.send(seen).await?;
        } else if let Packet::PubAck(it) = packet {
            stored.came(&it.pkid);
        } else {
            bail!("not for whoever asks: {packet:?}");
        }
    }
}
