//! A TCP relay between gateways and backend, which can cut what it carries.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

/// Listens on loopback; ends with its value.
pub(crate) struct Relay {
    address: SocketAddr,
    target: Arc<RwLock<String>>,
    cut: broadcast::Sender<(u16, u16)>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Listens on a free port.
    pub(crate) async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("the relay cannot listen")?;
        let address = listener.local_addr()?;
        let target = Arc::new(RwLock::new(String::new()));
        let (cut, _) = broadcast::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&target), cut.clone()));
        Ok(Self {
            address,
            target,
            cut,
            _tasks: tasks,
        })
    }

    /// Where gateways connect.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Where new connections go.
    pub(crate) fn forward_to(&self, target: &str) {
        target.clone_into(&mut self.target.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// How many connections it carries.
    pub(crate) fn carried(&self) -> usize {
        self.cut.receiver_count()
    }

    /// Cuts one in `of` connections, without a word to either side; with 1 all of them.
    pub(crate) fn cut(&self, of: u16, which: u16) {
        // Without a connection there is nothing to cut.
        let _carried = self.cut.send((of.max(1), which));
    }
}

async fn serve(
    listener: TcpListener,
    target: Arc<RwLock<String>>,
    cut: broadcast::Sender<(u16, u16)>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, peer)) = accepted {
                    let target = target.read().unwrap_or_else(PoisonError::into_inner).clone();
                    connections.spawn(carry(stream, peer.port(), target, cut.subscribe()));
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn carry(
    mut near: TcpStream,
    port: u16,
    target: String,
    mut cut: broadcast::Receiver<(u16, u16)>,
) {
    let Ok(mut far) = TcpStream::connect(target).await else {
        return;
    };
    let told = async {
        loop {
            match cut.recv().await {
                Ok((of, which)) if port % of != which % of => {}
                // Who missed a cut is cut now.
                Ok(_) | Err(_) => return,
            }
        }
    };
    tokio::select! {
        // How a connection ends is the ends' affair.
        _ended = copy_bidirectional(&mut near, &mut far) => {}
        () = told => {}
    }
}
