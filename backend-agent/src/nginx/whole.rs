//! A configuration of nginx beside what it is held against, and what was found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use viworks_runtime::config::Problem;

use super::directive::{Directive, named};
use crate::config::Config;

#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) right: Vec<String>,
    pub(super) problems: Vec<Problem>,
}

impl Findings {
    /// Something is wrong with a file as a whole.
    pub(super) fn tell(&mut self, file: &Path, message: String, help: &str) {
        self.problems.push(Problem::of_file(file, message, help));
    }
}

/// A configuration with what it is held against.
pub(super) struct Whole<'w> {
    pub(super) config: &'w Config,
    pub(super) file: &'w Path,
    pub(super) directives: &'w [Directive],
}

impl<'w> Whole<'w> {
    /// The blocks of this name.
    pub(super) fn blocks(
        &self,
        name: &'static str,
    ) -> impl Iterator<Item = &'w [Directive]> + use<'w> {
        named(self.directives, name).map(|directive| directive.block.as_slice())
    }
}

/// The upstreams that have this server.
pub(super) fn leading_to<'d>(block: &'d [Directive], address: &str) -> Vec<&'d str> {
    let has =
        |upstream: &&Directive| named(&upstream.block, "server").any(|it| it.value() == address);
    named(block, "upstream")
        .filter(has)
        .map(Directive::value)
        .collect()
}

/// Whether a `proxy_pass` means one of these upstreams, or the address itself.
pub(super) fn is_upstream(pass: &str, upstreams: &[&str], address: &str) -> bool {
    let target = pass.split_once("://").map_or(pass, |(_scheme, rest)| rest);
    let target = target.split_once('/').map_or(target, |(host, _path)| host);
    target == address || upstreams.contains(&target)
}

/// The address from which nginx connects; `None` where that is for the routes of its machine to know.
pub(super) fn comes_from(address: &str, bound: Option<&str>) -> Option<IpAddr> {
    if let Some(bound) = bound {
        return bound.parse().ok();
    }
    let address: SocketAddr = address.parse().ok()?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Some(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_loopback() => Some(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// What a request is given in a header, where blocks are one inside the other.
pub(super) fn header<'d>(blocks: &[&'d [Directive]], name: &str) -> Option<&'d str> {
    // Headers of an outer block are in force only where an inner one sets none.
    let set = blocks.iter().rev().find_map(|block| {
        let mut set = named(block, "proxy_set_header").peekable();
        set.peek().is_some().then_some(set)
    });
    let own = set?.find(|header| header.value().eq_ignore_ascii_case(name))?;
    own.arguments.get(1).map(String::as_str)
}

/// The host of a URL.
pub(crate) fn host(url: &str) -> Option<&str> {
    let (_scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next()?,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}
