//! Where a request came from: from the other end of its connection, or from where a proxy that is believed says.

use std::net::IpAddr;

use http::{Extensions, HeaderMap};
use viworks_common::network::IpNetwork;

use super::request::Peer;

/// How a proxy names the address of its client.
const ADDRESS: &str = "x-real-ip";

/// The address of whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client(pub(super) IpAddr);

impl Client {
    /// `None` for a request that did not come over a socket.
    ///
    /// What anybody else than a proxy of `trusted` says about itself is passed over, and so is what a proxy says twice
    /// or not as an address: the proxy itself is where the request came from then.
    pub(super) fn of(
        extensions: &Extensions,
        headers: &HeaderMap,
        trusted: &[IpNetwork],
    ) -> Option<Self> {
        let Peer(peer) = extensions.get::<Peer>()?;
        let peer = peer.ip().to_canonical();
        let is_proxy = trusted.iter().any(|network| network.contains(peer));
        let said = if is_proxy { said(headers) } else { None };
        Some(Self(said.unwrap_or(peer)))
    }
}

fn said(headers: &HeaderMap) -> Option<IpAddr> {
    let mut values = headers.get_all(ADDRESS).iter();
    let address: IpAddr = values.next()?.to_str().ok()?.parse().ok()?;
    values.next().is_none().then(|| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Where a request comes from that the proxy at 192.0.2.1, or somebody, passes on with these headers.
    fn of(peer: &str, values: &[&str]) -> String {
        let (mut extensions, mut headers) = (Extensions::new(), HeaderMap::new());
        extensions.insert(Peer(peer.parse().unwrap()));
        for value in values {
            headers.append(ADDRESS, HeaderValue::from_str(value).unwrap());
        }
        let trusted = ["192.0.2.1".parse().unwrap()];
        let Client(address) = Client::of(&extensions, &headers, &trusted).unwrap();
        address.to_string()
    }

    #[test]
    fn a_proxy_that_is_believed_says_where_its_client_is() {
        assert_eq!(of("192.0.2.1:5000", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(of("192.0.2.1:5000", &["::ffff:203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            of("[::ffff:192.0.2.1]:5000", &["2001:db8::9"]),
            "2001:db8::9"
        );
    }

    #[test]
    fn whoever_is_no_such_proxy_is_where_its_connection_comes_from() {
        assert_eq!(of("192.0.2.2:5000", &["203.0.113.9"]), "192.0.2.2");
        assert_eq!(of("127.0.0.1:5000", &["203.0.113.9"]), "127.0.0.1");
    }

    #[test]
    fn what_a_proxy_says_twice_or_unreadably_is_passed_over() {
        for values in [
            &[][..],
            &["203.0.113.9", "203.0.113.10"],
            &["203.0.113.9, 203.0.113.10"],
            &["203.0.113.9:80"],
            &[""],
        ] {
            assert_eq!(of("192.0.2.1:5000", values), "192.0.2.1", "{values:?}");
        }
    }

    #[test]
    fn what_came_over_no_socket_came_from_nowhere() {
        let found = Client::of(&Extensions::new(), &HeaderMap::new(), &[]);
        assert_eq!(found, None);
    }
}
