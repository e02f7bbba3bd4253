//! Proxies in front of the listener: who is one, and what they say about whom they connect for.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use viworks_common::network::IpNetwork;
use viworks_common::proxy_protocol::{self, HEADER_BYTES_MAX, Header, Origin, ProxyProtocolError};

use super::limits::{Arrival, Turned};
use crate::config::{AgentsConfig, EnrolmentConfig, ProxyProtocol, TlsEnd};

/// Whom a listener believes.
#[derive(Debug, Clone)]
pub struct Proxies {
    protocol: ProxyProtocol,
    tls_ends_at: TlsEnd,
    trusted: Vec<IpNetwork>,
}

impl From<&AgentsConfig> for Proxies {
    fn from(config: &AgentsConfig) -> Self {
        Self {
            protocol: config.proxy_protocol,
            tls_ends_at: config.tls_ends_at,
            trusted: config.trusted_proxies.clone(),
        }
    }
}

impl From<&EnrolmentConfig> for Proxies {
    fn from(config: &EnrolmentConfig) -> Self {
        Self {
            protocol: config.proxy_protocol,
            tls_ends_at: TlsEnd::Backend,
            trusted: config.trusted_proxies.clone(),
        }
    }
}

impl Proxies {
    /// Whether every connection begins with a header.
    #[must_use]
    pub fn send_headers(&self) -> bool {
        self.protocol == ProxyProtocol::Require
    }

    /// Whether they end TLS, and pass certificates on.
    #[must_use]
    pub fn end_tls(&self) -> bool {
        self.tls_ends_at == TlsEnd::Proxy
    }

    /// Whether what comes from this address is believed.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }
}

/// Why a connection says nothing about its client.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// What came is no header.
    #[error(transparent)]
    Malformed(#[from] ProxyProtocolError),
    /// It broke before the header was complete.
    #[error("the connection ended within the header of the PROXY protocol")]
    Broken(#[source] io::Error),
}

/// Why a connection of a proxy is not served.
#[derive(Debug, thiserror::Error)]
pub enum Unarrived {
    /// It does not say for whom it is.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// It did not say so in time.
    #[error("the header of the PROXY protocol took too long")]
    Late,
    /// It had waited longest when there was no room for another one.
    #[error("another one came, and this had waited longest")]
    Ousted,
    /// Whoever it is for has no room.
    #[error("there is no room: {}", .0.name())]
    Turned(Turned),
}

/// Finds out for whom a proxy connects, and whether there is room for that one. What the connection took up as one of a
/// proxy (`arrived`) is given back.
///
/// # Errors
///
/// Why it is closed.
pub async fn arrive<A>(
    stream: &mut TcpStream,
    proxy: SocketAddr,
    arrived: Arrival,
    admit: impl FnOnce(IpAddr) -> Result<A, Turned> + Send,
    limit: Duration,
) -> Result<(SocketAddr, A), Unarrived> {
    let cut = arrived.cut();
    let said = tokio::select! {
        biased;
        said = timeout(limit, client(stream, proxy)) => said,
        () = cut.cancelled() => return Err(Unarrived::Ousted),
    };
    let client = said.map_err(|_elapsed| Unarrived::Late)??;
    let admitted = admit(client.ip());
    drop(arrived);
    let admitted = admitted.map_err(Unarrived::Turned)?;
    Ok((client, admitted))
}

/// Takes the header from the front of a connection, and not a byte more. The caller bounds the time.
async fn client(stream: &mut TcpStream, proxy: SocketAddr) -> Result<SocketAddr, HeaderError> {
    let Header { origin, .. } = take_header(stream).await?;
    Ok(match origin {
        Origin::Client(client) => client,
        Origin::Proxy => proxy,
    })
}

async fn take_header(stream: &mut TcpStream) -> Result<Header, HeaderError> {
    let mut bytes = vec![0; HEADER_BYTES_MAX];
    let mut taken = 0;
    loop {
        let seen = stream.peek(bytes.get_mut(taken..).unwrap_or_default());
        let seen = taken + seen.await.map_err(HeaderError::Broken)?;
        if seen == taken {
            return Err(HeaderError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let header = proxy_protocol::parse(bytes.get(..seen).unwrap_or_default())?;
        // As long as it is not complete, everything that is there belongs to it.
        let until = header.map_or(seen, |header| header.length);
        let own = bytes.get_mut(taken..until).unwrap_or_default();
        stream.read_exact(own).await.map_err(HeaderError::Broken)?;
        taken = until;
        if let Some(header) = header {
            return Ok(header);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::inbound::limits::Arrivals;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    const PROXY: &str = "192.0.2.1:1";

    #[tokio::test]
    async fn what_follows_the_header_is_left_for_whom_it_is_meant() {
        let (mut proxy, mut ours) = pair().await;
        let line = b"PROXY TCP4 203.0.113.9 198.51.100.1 50000 443\r\nhello";
        proxy.write_all(line).await.unwrap();
        let found = client(&mut ours, PROXY.parse().unwrap()).await.unwrap();
        assert_eq!(found, "203.0.113.9:50000".parse().unwrap());
        let mut rest = [0; 5];
        ours.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[tokio::test]
    async fn one_that_says_nothing_gives_way_to_one_that_does() {
        const LIMIT: Duration = Duration::from_secs(3_600);
        let arrivals = Arrivals::new(1);
        let (_silent, mut waiting) = pair().await;
        let held = arrivals.enter().unwrap();
        let (mut proxy, mut ours) = pair().await;
        let line = b"PROXY TCP4 203.0.113.9 198.51.100.1 50000 443\r\n";
        proxy.write_all(line).await.unwrap();
        let newcomer = arrivals.enter().unwrap();
        let address = PROXY.parse().unwrap();
        let admit = |client: IpAddr| Ok(client);
        let ousted = arrive(&mut waiting, address, held, admit, LIMIT).await;
        assert!(matches!(ousted, Err(Unarrived::Ousted)), "{ousted:?}");
        let (_address, client) = arrive(&mut ours, address, newcomer, admit, LIMIT)
            .await
            .unwrap();
        assert_eq!(client, "203.0.113.9".parse::<IpAddr>().unwrap());
    }

    #[tokio::test]
    async fn a_header_may_come_byte_by_byte() {
        let (mut proxy, mut ours) = pair().await;
        proxy.set_nodelay(true).unwrap();
        let sent = async {
            for byte in b"PROXY UNKNOWN\r\n!" {
                proxy.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let ((), found) = tokio::join!(sent, client(&mut ours, PROXY.parse().unwrap()));
        assert_eq!(found.unwrap(), PROXY.parse().unwrap());
        assert_eq!(ours.read_u8().await.unwrap(), b'!');
    }

    #[tokio::test]
    async fn a_connection_that_ends_early_or_speaks_tls_has_no_header() {
        let (mut proxy, mut ours) = pair().await;
        proxy.write_all(b"PROXY TCP4 203.").await.unwrap();
        drop(proxy);
        let found = client(&mut ours, PROXY.parse().unwrap()).await;
        assert!(matches!(found, Err(HeaderError::Broken(_))), "{found:?}");
        let (mut proxy, mut ours) = pair().await;
        proxy.write_all(b"\x16\x03\x01").await.unwrap();
        let found = client(&mut ours, PROXY.parse().unwrap()).await;
        let missing = ProxyProtocolError::Missing;
        assert!(
            matches!(found, Err(HeaderError::Malformed(error)) if error == missing),
            "{found:?}"
        );
    }
}
