//! Proxies in front of a listener, as they are configured: whether they say who connects, and which are believed.

use viworks_common::network::IpNetwork;
use viworks_runtime::config::Section;

/// Whether connections begin with what a proxy says about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// Clients connect by themselves.
    Off,
    /// Every connection comes from a proxy and begins with its header.
    Require,
}

impl ProxyProtocol {
    /// What each is called.
    pub(super) const ALL: [(&'static str, Self); 2] =
        [("off", Self::Off), ("require", Self::Require)];

    /// Sockets of one client's place: where a proxy has to say first for whom it connects, as many may be about to.
    pub(super) const fn sockets_of_place(self) -> usize {
        match self {
            Self::Off => 1,
            Self::Require => 2,
        }
    }
}

/// Notes proxies that are asked and not believed, or the other way round; `believed_for_more` where they are believed
/// about something else as well.
pub(super) fn check_proxies(
    section: &mut Section<'_>,
    protocol: ProxyProtocol,
    trusted: &[IpNetwork],
    believed_for_more: bool,
) {
    let required = protocol == ProxyProtocol::Require;
    if required && believes_nobody(section, trusted) {
        section.problem(
            "proxy_protocol",
            "proxy_protocol is \"require\", and no proxy is believed: nobody could connect".to_owned(),
            "name the addresses that the proxy connects from, such as trusted_proxies = [\"127.0.0.1\"]",
        );
    }
    if !required && !believed_for_more && !trusted.is_empty() {
        section.problem(
            "trusted_proxies",
            "trusted_proxies has entries, and nothing is asked of these proxies".to_owned(),
            "set proxy_protocol = \"require\", or leave trusted_proxies out",
        );
    }
    no_strangers(section, trusted);
}

/// Whether no proxy is named; one that is named and cannot be read is told of as that.
pub(super) fn believes_nobody(section: &Section<'_>, trusted: &[IpNetwork]) -> bool {
    trusted.is_empty() && !section.is_refused("trusted_proxies")
}

/// Whoever may claim any address is not to be a stranger.
pub(super) fn no_strangers(section: &mut Section<'_>, trusted: &[IpNetwork]) {
    let wide = trusted.iter().find(|network| network.holds_strangers());
    if let Some(wide) = wide {
        section.problem(
            "trusted_proxies",
            format!("{wide} is more than one site can have, and whoever is there could claim any address"),
            "name the addresses of the proxies only",
        );
    }
}
