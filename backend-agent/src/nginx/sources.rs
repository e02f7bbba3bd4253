//! Whether a server of `http` knows where its clients are, where another part of nginx passes their TLS on to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::directive::{Directive, all_in_force, in_force, named};
use super::whole::{Findings, Targets, Way, Whole};

/// Who comes by a server.
#[derive(Debug, Clone, Copy)]
pub(super) enum Clients {
    Gateways,
    Operators,
}

impl Clients {
    /// What whoever claims an address has of it.
    const fn claimed(self) -> &'static str {
        match self {
            Self::Gateways => "no limit of one address would hold",
            Self::Operators => "would be there in the audit trail",
        }
    }

    /// What it costs that all come from one address.
    const fn in_one_place(self) -> &'static str {
        match self {
            Self::Gateways => {
                "the backend would have all gateways where the part is that passes TLS through, and its limits for \
                 each address would be for all of them"
            }
            Self::Operators => {
                "the audit trail would have all operators where the part is that passes TLS through"
            }
        }
    }
}

/// The server of this way: whom it believes, and how another part of nginx leads to it.
pub(super) fn check(whole: &Whole<'_>, way: &Way<'_>, clients: Clients, findings: &mut Findings) {
    believed(way, clients, findings);
    led(whole, way.server(), clients, findings);
}

fn takes_header(listen: &Directive) -> bool {
    listen.arguments.iter().any(|it| it == "proxy_protocol")
}

/// Whether a word names loopback addresses: one of them, or a network of them.
fn is_of_this_machine(word: &str) -> bool {
    let address = word.split('/').next().unwrap_or(word);
    address.parse::<IpAddr>().is_ok_and(|it| it.is_loopback())
}

fn believed(way: &Way<'_>, clients: Clients, findings: &mut Findings) {
    let Some(listen) = named(&way.server().block, "listen").find(|it| takes_header(it)) else {
        return;
    };
    let blocks = way.blocks();
    let header = in_force(&blocks, "real_ip_header");
    // As nginx has it where nothing is said.
    let name = header.map_or("X-Real-IP", Directive::value);
    if name != "proxy_protocol" {
        findings.problems.push(header.unwrap_or(listen).problem(
            format!(
                "whoever connects can claim any address in {name}, and {}",
                clients.claimed()
            ),
            "write real_ip_header proxy_protocol; beside set_real_ip_from",
        ));
    }
    let mut believed = all_in_force(&blocks, "set_real_ip_from").map(Directive::value);
    let is_seen = match listen.value().rsplit_once(':') {
        Some(("unix", _path)) => believed.any(|it| it == "unix:"),
        Some((host, _port)) => match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            // By whichever of these addresses the other part connects.
            Ok(host) if host.is_loopback() => believed.any(is_of_this_machine),
            _ => believed.next().is_some(),
        },
        None => believed.next().is_some(),
    };
    if !is_seen {
        findings.problems.push(listen.problem(
            clients.in_one_place(),
            "write set_real_ip_from with the address from which that part connects, such as 127.0.0.1",
        ));
    }
}

/// Whether every server in `stream` that leads to this one says who connects, and is heard.
fn led(whole: &Whole<'_>, server: &Directive, clients: Clients, findings: &mut Findings) {
    for listen in named(&server.block, "listen") {
        let Some(address) = reached_from_here(listen.value()) else {
            continue;
        };
        for stream in whole.blocks("stream") {
            let ways = Targets::of(stream, &address.to_string());
            for way in ways.map(|it| it.ways(findings)).unwrap_or_default() {
                let sent = in_force(&way.blocks(), "proxy_protocol");
                let is_sent = sent.is_some_and(|it| it.value() == "on");
                let (message, help) = match (is_sent, takes_header(listen)) {
                    (true, true) => continue,
                    (true, false) => (
                        format!(
                            "sends a header of the PROXY protocol to {address}, which takes none: nobody could connect"
                        ),
                        "write proxy_protocol behind that listen, real_ip_header proxy_protocol; and set_real_ip_from",
                    ),
                    (false, true) => (
                        format!(
                            "sends no header of the PROXY protocol to {address}, which requires one: nobody could connect"
                        ),
                        "write proxy_protocol on; in this server",
                    ),
                    (false, false) => (
                        format!(
                            "leads to {address} without a word about who connects: {}",
                            clients.in_one_place()
                        ),
                        "remove this server; or write proxy_protocol on; here and proxy_protocol behind that listen, \
                         with real_ip_header proxy_protocol; and set_real_ip_from",
                    ),
                };
                findings.problems.push(way.pass.problem(message, help));
            }
        }
    }
}

/// Where a `listen` is reached from this machine; `None` for a socket that is no address.
fn reached_from_here(listen: &str) -> Option<SocketAddr> {
    if let Ok(port) = listen.parse::<u16>() {
        return Some((Ipv4Addr::LOCALHOST, port).into());
    }
    let (host, port) = listen.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host: IpAddr = match host.trim_matches(['[', ']']) {
        "*" | "localhost" => Ipv4Addr::LOCALHOST.into(),
        host => host.parse().ok()?,
    };
    let host = match host {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => host,
    };
    Some((host, port).into())
}
