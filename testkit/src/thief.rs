//! A proxy in front of a PostgreSQL server that lets one commit happen and takes its answer away.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The message of the simple protocol that commits.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// The proxy; it ends with the runtime that it runs on.
#[derive(Debug)]
pub struct Thief {
    address: SocketAddr,
    armed: Arc<AtomicBool>,
    wanted: Arc<Mutex<String>>,
    stolen: Arc<AtomicU64>,
}

impl Thief {
    /// Starts it before the server on `port` of this machine.
    ///
    /// # Errors
    /// When there is no port for it.
    #[expect(
        clippy::disallowed_methods,
        reason = "a proxy of a test ends with its runtime"
    )]
    pub async fn before(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let thief = Self {
            address: listener.local_addr()?,
            armed: Arc::default(),
            wanted: Arc::default(),
            stolen: Arc::default(),
        };
        let (armed, stolen) = (Arc::clone(&thief.armed), Arc::clone(&thief.stolen));
        let wanted = Arc::clone(&thief.wanted);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (armed, stolen) = (Arc::clone(&armed), Arc::clone(&stolen));
                let wanted = Arc::clone(&wanted);
                tokio::spawn(async move {
                    // Either side may be gone at any time; that is what this is for.
                    let _gone = forward(client, port, &armed, &wanted, &stolen).await;
                });
            }
        });
        Ok(thief)
    }

    /// Where clients connect.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Takes away the answer to the next commit.
    pub fn arm(&self) {
        self.arm_for("");
    }

    /// Takes away the answer to the next commit of a transaction in which this text was said.
    pub fn arm_for(&self, text: &str) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.clear();
        wanted.push_str(text);
        drop(wanted);
        self.armed.store(true, Ordering::SeqCst);
    }

    /// How many answers it has taken.
    #[must_use]
    pub fn stolen(&self) -> u64 {
        self.stolen.load(Ordering::SeqCst)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a proxy of a test ends with its runtime"
)]
async fn forward(
    client: TcpStream,
    port: u16,
    armed: &AtomicBool,
    wanted: &Mutex<String>,
    stolen: &AtomicU64,
) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let count = from_server.read(&mut bytes).await?;
            if count == 0 {
                return to_client.shutdown().await;
            }
            to_client.write_all(&bytes[..count]).await?;
        }
    });
    let (mut bytes, mut transaction) = (vec![0; 64 * 1024], Vec::new());
    loop {
        let count = from_client.read(&mut bytes).await?;
        let (said, steals) = (&bytes[..count], Ordering::SeqCst);
        transaction.extend_from_slice(said);
        let commits = said.ends_with(COMMIT);
        if commits && holds(&transaction, wanted) && armed.swap(false, steals) {
            // Nothing comes back from here on; the server gets to read it all the same.
            back.abort();
            to_server.write_all(said).await?;
            to_server.shutdown().await?;
            stolen.fetch_add(1, steals);
            return Ok(());
        }
        if count == 0 {
            back.abort();
            return to_server.shutdown().await;
        }
        if commits {
            transaction.clear();
        }
        to_server.write_all(said).await?;
    }
}

/// Whether the wanted text was said.
fn holds(transaction: &[u8], wanted: &Mutex<String>) -> bool {
    let wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
    wanted.is_empty()
        || transaction
            .windows(wanted.len())
            .any(|said| said == wanted.as_bytes())
}
