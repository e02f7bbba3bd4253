//! A TCP proxy between any two parts, which does to what it carries what a bad network does.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// The largest piece that is carried at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Pieces a second of a slow network.
const SLOW_PIECES: u32 = 50;

/// Ends of connections that one of them may not have heard of yet; who missed one is ended all the same.
const ENDS_MAX: usize = 64;

/// What the network is like, for the connections that live and for new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Everything passes.
    Normal,
    /// Every piece waits that long before it goes on, in each direction.
    Delay(Duration),
    /// So many bytes a second of each connection in each direction.
    Slow(u32),
    /// Nothing passes and nothing closes, not even what an end closes. What was said meanwhile goes on afterwards.
    HalfOpen,
    /// Every connection is closed at both ends, a new one as soon as it is there.
    Cut,
    /// The same, by RST.
    Reset,
}

/// What is made of what a client has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It goes on.
    Pass,
    /// It goes on, nothing comes back any more, and the connection ends.
    Last,
}

/// Listens to what one client says.
pub trait Ear: Send {
    /// The next piece of it.
    fn heard(&mut self, said: &[u8]) -> Heard;
}

/// Makes an ear for each connection.
type Ears = dyn Fn() -> Box<dyn Ear> + Send + Sync;

/// The end of some connections: of each whose client's port is `which` modulo `of`.
#[derive(Debug, Clone, Copy)]
struct End {
    of: u16,
    which: u16,
    reset: bool,
}

/// Listens on a free port of loopback; everything that it carries ends with its value.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    target: Arc<RwLock<String>>,
    network: watch::Sender<Network>,
    ends: broadcast::Sender<End>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts one before `target`, an address with its port.
    ///
    /// # Errors
    /// When there is no port for it.
    pub async fn before(target: impl Into<String>) -> io::Result<Self> {
        Self::open(target.into(), None).await
    }

    /// The same, with an ear at each connection.
    ///
    /// # Errors
    /// When there is no port for it.
    pub async fn listening(
        target: impl Into<String>,
        ears: impl Fn() -> Box<dyn Ear> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::open(target.into(), Some(Arc::new(ears))).await
    }

    async fn open(target: String, ears: Option<Arc<Ears>>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let target = Arc::new(RwLock::new(target));
        let (network, _) = watch::channel(Network::Normal);
        let (ends, _) = broadcast::channel(ENDS_MAX);
        let mut tasks = JoinSet::new();
        let (targets, networks, ended) = (Arc::clone(&target), network.clone(), ends.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        // One that could not be accepted is gone already.
                        let Ok((near, peer)) = accepted else { continue };
                        let line = Line {
                            port: peer.port(),
                            target: targets.read().unwrap_or_else(PoisonError::into_inner).clone(),
                            network: networks.subscribe(),
                            ends: ended.subscribe(),
                            ear: ears.as_ref().map(|ears| ears()),
                        };
                        connections.spawn(line.carry(near));
                    }
                    Some(_ended) = connections.join_next() => {}
                }
            }
        });
        Ok(Self {
            address,
            target,
            network,
            ends,
            _tasks: tasks,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The port of it.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where new connections go.
    pub fn forward_to(&self, target: &str) {
        target.clone_into(&mut self.target.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// What the network is like from now on.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
        if matches!(network, Network::Cut | Network::Reset) {
            self.end(1, 0, network == Network::Reset);
        }
    }

    /// Cuts one in `of` connections once, without a word to either side; with 1 all of them.
    pub fn cut(&self, of: u16, which: u16) {
        self.end(of, which, false);
    }

    /// How many connections it carries.
    #[must_use]
    pub fn carried(&self) -> usize {
        self.ends.receiver_count()
    }

    fn end(&self, of: u16, which: u16, reset: bool) {
        let of = of.max(1);
        // Without a connection there is nothing to end.
        let _carried = self.ends.send(End { of, which, reset });
    }
}

/// One connection.
struct Line {
    port: u16,
    target: String,
    network: watch::Receiver<Network>,
    ends: broadcast::Receiver<End>,
    ear: Option<Box<dyn Ear>>,
}

impl Line {
    async fn carry(self, mut near: TcpStream) {
        let Self {
            port,
            target,
            network,
            mut ends,
            ear,
        } = self;
        // One that was there before the network turned bad is told so by `ends`.
        let first = *network.borrow();
        if matches!(first, Network::Cut | Network::Reset) {
            return close(&near, first == Network::Reset);
        }
        let connect = async {
            let mut from_now = network.clone();
            passage(&mut from_now, 0).await;
            TcpStream::connect(target).await
        };
        let far = tokio::select! {
            far = connect => far,
            reset = ended(&mut ends, port) => return close(&near, reset),
        };
        let Ok(mut far) = far else { return };
        // Small messages are not held back, as they are not without a proxy.
        for stream in [&near, &far] {
            // Where it cannot be set, the end is gone already.
            let _gone = stream.set_nodelay(true);
        }
        let reset = tokio::select! {
            // How a connection ends is the ends' affair.
            _over = exchange(&mut near, &mut far, &network, ear) => false,
            reset = ended(&mut ends, port) => reset,
        };
        close(&near, reset);
        close(&far, reset);
    }
}

/// What becomes of a connection when it is dropped.
fn close(stream: &TcpStream, reset: bool) {
    if reset {
        // Where it fails, the other end is gone already.
        let _gone = stream.set_zero_linger();
    }
}

/// Returns when this connection is to end: whether by RST.
async fn ended(ends: &mut broadcast::Receiver<End>, port: u16) -> bool {
    loop {
        match ends.recv().await {
            Ok(end) if port % end.of != end.which % end.of => {}
            Ok(end) => return end.reset,
            // Who missed an end ends now.
            Err(_) => return false,
        }
    }
}

/// Carries both directions until both are closed or one of them breaks.
async fn exchange(
    near: &mut TcpStream,
    far: &mut TcpStream,
    network: &watch::Receiver<Network>,
    mut ear: Option<Box<dyn Ear>>,
) -> io::Result<()> {
    let (from_client, to_client) = near.split();
    let (from_server, to_server) = far.split();
    let mute = AtomicBool::new(false);
    let up = async {
        let hear = |said: &[u8]| {
            let heard = ear.as_mut().map_or(Heard::Pass, |ear| ear.heard(said));
            // Before it goes on: no answer to it may pass.
            mute.fetch_or(heard == Heard::Last, Ordering::SeqCst);
            heard
        };
        pump(from_client, to_server, network.clone(), hear, || false).await
    };
    let down = async {
        let is_mute = || mute.load(Ordering::SeqCst);
        let pass = |_said: &[u8]| Heard::Pass;
        pump(from_server, to_client, network.clone(), pass, is_mute).await
    };
    tokio::try_join!(up, down).map(|_both_closed| ())
}

/// Carries one direction until its source is closed.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut network: watch::Receiver<Network>,
    mut hear: impl FnMut(&[u8]) -> Heard,
    is_mute: impl Fn() -> bool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let most = piece_bytes(*network.borrow());
        let count = from.read(&mut piece[..most]).await?;
        passage(&mut network, count).await;
        if is_mute() {
            return std::future::pending().await;
        }
        if count == 0 {
            return to.shutdown().await;
        }
        let heard = hear(&piece[..count]);
        to.write_all(&piece[..count]).await?;
        if heard == Heard::Last {
            to.shutdown().await?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
}

/// How much is carried at once.
fn piece_bytes(network: Network) -> usize {
    match network {
        Network::Slow(rate) => {
            let share = usize::try_from(rate / SLOW_PIECES).unwrap_or(PIECE_BYTES);
            share.clamp(1, PIECE_BYTES)
        }
        Network::Normal | Network::Delay(_) | Network::HalfOpen | Network::Cut | Network::Reset => {
            PIECE_BYTES
        }
    }
}

/// Returns when so many bytes may go on, by what the network is like by then.
async fn passage(network: &mut watch::Receiver<Network>, bytes: usize) {
    loop {
        let now = *network.borrow_and_update();
        let wait = match now {
            Network::Normal => return,
            Network::Delay(wait) => Some(wait),
            Network::Slow(rate) => {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                Some(Duration::from_secs(1).saturating_mul(bytes) / rate.max(1))
            }
            // What ends the connection is told to it by other means.
            Network::HalfOpen | Network::Cut | Network::Reset => None,
        };
        let over = async {
            match wait {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return,
            changed = network.changed() => if changed.is_err() { return },
        }
    }
}
