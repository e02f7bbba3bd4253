//! The door by which machines become gateways.

use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use viworks_common::network::IpNetwork;
use viworks_runtime::config::{Document, Section};
use viworks_runtime::settings;

use super::proxies::{ProxyProtocol, check_proxies};
use super::{KeysConfig, TIMEOUT, seconds, stand_in_the_way};

const SECTION: &str = "enrolment";

/// Addresses that it takes at least to have every place.
const SOURCES_MIN: usize = 4;

settings! {
    /// The door by which machines become gateways, with tickets of `viworks ticket create`: TLS with the certificate
    /// and key of `[agents]`, and no certificate of theirs.
    [enrolment]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct EnrolmentConfig from section {
        /// Where machines connect, usually port 8082; port 0 takes a free one. There is no door when it is left out.
        listen: Option<SocketAddr> = optional_parsed("address:port") like "127.0.0.1:8082",
        /// Where they reach it, when not at `listen`: tickets have it, and gateways of pki issue-gateway.
        public_url: Option<String> = optional_url(&["https"]) like "https://agents.example.org:8082",
        /// Whether every connection begins with a header of the PROXY protocol, in which a proxy that passes TLS
        /// through says who connects: a ticket's networks and the bounds of one address are about that one. With
        /// `require`, what does not begin with one, or comes from elsewhere than `trusted_proxies`, is refused.
        proxy_protocol: ProxyProtocol = one_of("off", &ProxyProtocol::ALL),
        /// The addresses and networks of the proxies that are believed about who connects, such as `127.0.0.1` or
        /// `10.0.8.0/24`.
        trusted_proxies: Vec<IpNetwork> = parsed_list("addresses and networks"),
        /// How many days a gateway's certificate is valid.
        certificate_days: u32 = integer(90, 1..=397),
        /// How many hours it is valid instead, for certificates that are to live for less; with 0 it is
        /// `certificate_days`.
        certificate_hours: u32 = integer(0, 0..=9_528),
        /// Open sockets. Beyond, and beyond three quarters for those who have not proved yet that they have a ticket, a
        /// newcomer takes the place of the one that has waited longest, of the address that has the most.
        connections_max: usize = integer(512, 16..=100_000),
        /// Open sockets of one IPv4 address or IPv6 /64 network, and of machines that have proved that they have the
        /// same ticket; a newcomer takes the place of the one that has waited longest. More than a
        /// quarter of `connections_max` is taken for a quarter.
        per_source_max: usize = integer(128, 1..=25_000),
        /// Redemptions of one ticket a minute at one backend, and as many at once after a pause; more are told when to
        /// come back. As many requests of one IPv4 address or IPv6 /64 network that are not right are told why.
        requests_per_minute: u32 = integer(600, 1..=1_000_000),
        /// For a connection and everything that is asked on it. The TLS handshake, the head of a request and its body
        /// have three seconds each.
        timeout: Duration = duration_ms(seconds(15), TIMEOUT),
    }
    check EnrolmentConfig::check
}

/// Whether machines take it: a host and a port, and nothing else.
fn is_a_door(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    let host_alone = |authority: &Authority| !authority.as_str().contains('@');
    matches!(uri.path(), "" | "/")
        && uri.query().is_none()
        && !url.contains('#')
        && uri.authority().is_some_and(host_alone)
}

impl EnrolmentConfig {
    /// How long a gateway's certificate is valid.
    #[must_use]
    pub fn certificate_life(&self) -> Duration {
        let hours = match self.certificate_hours {
            0 => u64::from(self.certificate_days) * 24,
            hours => u64::from(hours),
        };
        Duration::from_secs(hours * 3_600)
    }

    /// Sockets that it may have open.
    #[must_use]
    pub fn sockets_max(&self) -> usize {
        let each = self.proxy_protocol.sockets_of_place();
        self.listen
            .map_or(0, |_door| self.connections_max.saturating_mul(each))
    }

    /// Sockets of one source, and of machines with one ticket: a few sources never have all places.
    #[must_use]
    pub fn of_one_source(&self) -> usize {
        self.per_source_max.min(self.connections_max / SOURCES_MIN)
    }

    fn check(&self, section: &mut Section<'_>) {
        check_proxies(section, self.proxy_protocol, &self.trusted_proxies, false);
        if let Some(url) = &self.public_url
            && !is_a_door(url)
        {
            section.problem(
                "public_url",
                format!(
                    "{url:?} is no address of a door, and no machine would take a ticket with it"
                ),
                "give https://, the host and the port, and nothing behind them",
            );
        }
    }

    /// Notes what only other sections show: an address that another listener has, and that nobody could be issued a
    /// certificate.
    pub(super) fn check_beside(
        &self,
        document: &mut Document,
        taken: &[SocketAddr],
        keys: &KeysConfig,
    ) {
        let Some(listen) = self.listen else {
            return;
        };
        let mut section = document.section(SECTION, "The door by which machines become gateways.");
        if let Some(taken) = taken.iter().find(|taken| stand_in_the_way(listen, **taken)) {
            section.problem(
                "listen",
                format!(
                    "something else listens at {taken} already, and one address has one listener"
                ),
                "give [agents], [api] and [enrolment] different ports",
            );
        }
        if !keys.signs() {
            section.problem(
                "listen",
                "machines would enrol here, and nothing can sign their certificates".to_owned(),
                "set ca_key_file in [keys], or leave listen out",
            );
        }
    }
}
