//! A configuration of nginx beside what it is held against, and what was found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use viworks_common::network::IpNetwork;
use viworks_runtime::config::Problem;

use super::directive::{Directive, all_in_force, named};
use crate::config::Config;

#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) right: Vec<String>,
    /// What could not be looked at, and is neither right nor wrong therefore.
    pub(super) unseen: Vec<String>,
    pub(super) problems: Vec<Problem>,
}

impl Findings {
    /// Something is wrong with a file as a whole.
    pub(super) fn tell(&mut self, file: &Path, message: String, help: &str) {
        self.problems.push(Problem::of_file(file, message, help));
    }

    /// Something could not be looked at, for this reason.
    pub(super) fn unseen(&mut self, directive: &Directive, why: &str) {
        let place = directive.problem("", "").place;
        let line = format!("not looked at: {}, {place}: {why}", directive.value());
        if !self.unseen.contains(&line) {
            self.unseen.push(line);
        }
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
    ) -> impl Iterator<Item = &'w Directive> + use<'w> {
        named(self.directives, name)
    }

    /// The certificates that are shown where these blocks are in force, one inside the other. There is one for each
    /// kind of key, and a client has a say in which it gets.
    pub(super) fn certificates<'d>(
        &self,
        blocks: &[&'d [Directive]],
        findings: &mut Findings,
    ) -> Vec<(&'d Directive, PathBuf)> {
        let mut found = Vec::new();
        for directive in all_in_force(blocks, "ssl_certificate") {
            let value = directive.value();
            if value.contains('$') || value.starts_with("data:") || value.starts_with("engine:") {
                findings.unseen(directive, "it is no file that is known before nginx runs");
                continue;
            }
            // As nginx does: from the folder of its first file.
            let folder = self.file.parent().unwrap_or_else(|| Path::new("/"));
            match folder.join(value).canonicalize() {
                Ok(path) => found.push((directive, path)),
                Err(error) => findings.unseen(directive, &error.to_string()),
            }
        }
        found
    }
}

/// A `proxy_pass` with what stands around it, outermost first.
#[derive(Debug)]
pub(super) struct Way<'d> {
    pub(super) around: Vec<&'d Directive>,
    pub(super) pass: &'d Directive,
}

impl<'d> Way<'d> {
    /// The blocks around it, each within the one before it.
    pub(super) fn blocks(&self) -> Vec<&'d [Directive]> {
        let around = self.around.iter();
        around.map(|it| it.block.as_slice()).collect()
    }

    /// The server around it.
    pub(super) fn server(&self) -> &'d Directive {
        let server = self.around.iter().find(|it| it.name == "server");
        server.copied().unwrap_or(self.pass)
    }

    /// Whether a client may say itself where it is, because everybody is believed about that.
    pub(super) fn everybody_is_believed(&self, findings: &mut Findings) {
        for believed in all_in_force(&self.blocks(), "set_real_ip_from") {
            let network = believed.value().parse::<IpNetwork>();
            if network.is_ok_and(|network| network.holds_strangers()) {
                findings.problems.push(believed.problem(
                    format!(
                        "{} is more than one site can have, and whoever is there can claim any address",
                        believed.value()
                    ),
                    "name the addresses of the proxies only that are in front of this nginx",
                ));
            }
        }
    }
}

/// What leads to an address within `stream` or `http`.
pub(super) struct Targets<'d> {
    part: &'d Directive,
    upstreams: Vec<&'d str>,
    address: SocketAddr,
}

impl<'d> Targets<'d> {
    /// `None` for an address that is none.
    pub(super) fn of(part: &'d Directive, address: &str) -> Option<Self> {
        let address = address.parse().ok()?;
        let has = |upstream: &&Directive| {
            named(&upstream.block, "server").any(|it| is_address(it.value(), address))
        };
        let upstreams = named(&part.block, "upstream").filter(has);
        Some(Self {
            part,
            upstreams: upstreams.map(Directive::value).collect(),
            address,
        })
    }

    /// Whether a word means the address, or an upstream that has it.
    pub(super) fn means(&self, word: &str) -> bool {
        let target = target(word);
        let is_here =
            |target: &str| is_address(target, self.address) || self.upstreams.contains(&target);
        // What a variable adds behind it is a path, or is not known before nginx runs.
        let before = target.split_once('$').map(|(before, _variable)| before);
        is_here(target) || before.is_some_and(is_here)
    }

    /// Whether a `proxy_pass` can lead there.
    fn leads(&self, pass: &str) -> bool {
        self.means(pass) || self.chooses(pass).is_some()
    }

    /// By what a `proxy_pass` with a variable can lead there.
    pub(super) fn chooses(&self, pass: &str) -> Option<&'d Directive> {
        self.givers(pass).into_iter().find(|giver| {
            let values = giver.block.iter().map(Directive::value);
            let own = (giver.name == "set")
                .then(|| giver.arguments.get(1))
                .flatten();
            values
                .chain(own.map(String::as_str))
                .any(|value| self.means(value))
        })
    }

    /// What gives the variable its value that a `proxy_pass` consists of.
    fn givers(&self, pass: &str) -> Vec<&'d Directive> {
        let Some(wanted) = variable(target(pass)) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        walk(&mut vec![self.part], &mut |around, directive| {
            let given = match (directive.name.as_str(), around.len()) {
                ("map" | "geo" | "split_clients", 1) => directive.arguments.last(),
                ("set", _) => directive.arguments.first(),
                _ => None,
            };
            if given.and_then(|given| variable(given)) == Some(wanted) {
                found.push(directive);
            }
        });
        found
    }

    /// Every `proxy_pass` that can lead there, at whatever depth. Where nobody can tell before nginx runs, that is
    /// said.
    pub(super) fn ways(&self, findings: &mut Findings) -> Vec<Way<'d>> {
        let mut found = Vec::new();
        walk(&mut vec![self.part], &mut |around, directive| {
            if directive.name != "proxy_pass" {
                return;
            }
            let pass = directive.value();
            if self.leads(pass) {
                found.push(Way {
                    around: around.to_vec(),
                    pass: directive,
                });
            } else if target(pass).contains('$') && self.givers(pass).is_empty() {
                findings.unseen(directive, "where it leads is not known before nginx runs");
            }
        });
        found
    }
}

/// Shows every directive within the last of these, with all that is around it.
fn walk<'d>(
    around: &mut Vec<&'d Directive>,
    look: &mut impl FnMut(&[&'d Directive], &'d Directive),
) {
    let Some(last) = around.last().copied() else {
        return;
    };
    for directive in &last.block {
        look(around, directive);
        if !directive.block.is_empty() {
            around.push(directive);
            walk(around, look);
            around.pop();
        }
    }
}

/// Variables that begin with what ends a host and port.
const PATHS: [&str; 4] = ["request_uri", "uri", "document_uri", "is_args"];

/// The host and port of a `proxy_pass`, or what stands for them.
fn target(pass: &str) -> &str {
    let target = pass.split_once("://").map_or(pass, |(_scheme, rest)| rest);
    let is_path = |(at, letter): &(usize, char)| match *letter {
        '/' | '?' => true,
        '$' if *at > 0 => {
            let rest = target.get(*at..).unwrap_or_default();
            let name = rest.trim_start_matches(['$', '{']);
            let end = name.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            PATHS.contains(&name.get(..end.unwrap_or(name.len())).unwrap_or_default())
        }
        _ => false,
    };
    let end = target.char_indices().find(is_path);
    end.and_then(|(end, _)| target.get(..end)).unwrap_or(target)
}

/// The name of a variable, where a text is one and nothing else.
fn variable(text: &str) -> Option<&str> {
    let name = text.strip_prefix('$')?;
    let name = name
        .strip_prefix('{')
        .map_or(Some(name), |name| name.strip_suffix('}'))?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!name.is_empty() && name.bytes().all(is_name)).then_some(name)
}

/// Whether `HOST:PORT` is an address of this machine, in whatever way it is written.
fn is_address(text: &str, address: SocketAddr) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_host = if host.eq_ignore_ascii_case("localhost") {
        address.ip().is_loopback()
    } else {
        let reached = |ip: IpAddr| match ip.to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
        };
        let own = address.ip().to_canonical();
        host.parse().is_ok_and(|ip| reached(ip) == own)
    };
    is_host && port.parse() == Ok(address.port())
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
    let mut set = all_in_force(blocks, "proxy_set_header");
    let own = set.find(|header| header.value().eq_ignore_ascii_case(name))?;
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
