//! Whether a server of `http` knows where its clients are, where another part of nginx passes their TLS on to it.

use std::net::{IpAddr, SocketAddr};

use super::directive::{Directive, all_in_force, in_force, named};
use super::place::{Place, Reach};
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

/// What stands behind `set_real_ip_from` for whoever connects to this place, such as the other part of nginx.
const fn to_believe(place: &Place) -> &'static str {
    match place {
        // Who connects by the file system has no address.
        Place::Unix(_) => "unix:",
        Place::Address(_) | Place::Everywhere { .. } => "127.0.0.1",
    }
}

fn believed(way: &Way<'_>, clients: Clients, findings: &mut Findings) {
    let listens: Vec<_> = named(&way.server().block, "listen")
        .filter(|it| takes_header(it))
        .collect();
    let Some(first) = listens.first() else {
        return;
    };
    let blocks = way.blocks();
    let header = in_force(&blocks, "real_ip_header");
    // As nginx has it where nothing is said.
    let name = header.map_or("X-Real-IP", Directive::value);
    if name != "proxy_protocol" {
        findings.problems.push(header.unwrap_or(first).problem(
            format!(
                "whoever connects can claim any address in {name}, and {}",
                clients.claimed()
            ),
            "write real_ip_header proxy_protocol; beside set_real_ip_from",
        ));
    }
    for listen in listens {
        let place = Place::of_listen(listen);
        let mut believed = all_in_force(&blocks, "set_real_ip_from").map(Directive::value);
        let is_seen = match &place {
            Some(Place::Unix(_)) => believed.any(|it| it == "unix:"),
            // By whichever of these addresses the other part connects.
            Some(Place::Address(own)) if own.ip().is_loopback() => believed.any(is_of_this_machine),
            Some(Place::Address(_) | Place::Everywhere { .. }) | None => believed.next().is_some(),
        };
        if !is_seen {
            let help = match &place {
                Some(Place::Unix(_)) => {
                    "write set_real_ip_from unix:; for who connects by a socket in the file system has no address"
                }
                Some(Place::Address(_) | Place::Everywhere { .. }) | None => {
                    "write set_real_ip_from with the address from which that part connects, such as 127.0.0.1"
                }
            };
            let problem = listen.problem(clients.in_one_place(), help);
            findings.problems.push(problem);
        }
    }
}

/// Whether every server in `stream` that leads to this one says who connects, and is heard.
fn led(whole: &Whole<'_>, server: &Directive, clients: Clients, findings: &mut Findings) {
    let listens = named(&server.block, "listen");
    let mut places: Vec<_> = listens
        .filter_map(|listen| Some((Place::of_listen(listen)?, takes_header(listen))))
        .collect();
    if named(&server.block, "listen").next().is_none() {
        places.push((Place::of_silence(), false));
    }
    for (place, is_taken) in &places {
        for stream in whole.blocks("stream") {
            for way in Targets::of(stream, place).ways(findings) {
                if is_anothers(whole, place, way.by) {
                    continue;
                }
                let sent = in_force(&way.blocks(), "proxy_protocol");
                let is_sent = sent.is_some_and(|it| it.value() == "on");
                let (message, help) = match (is_sent, is_taken) {
                    (true, true) => continue,
                    (true, false) => (
                        format!(
                            "sends a header of the PROXY protocol to {place}, which takes none: nobody could connect"
                        ),
                        format!(
                            "write proxy_protocol behind that listen, real_ip_header proxy_protocol; and \
                             set_real_ip_from {};",
                            to_believe(place)
                        ),
                    ),
                    (false, true) => (
                        format!(
                            "sends no header of the PROXY protocol to {place}, which requires one: nobody could connect"
                        ),
                        "write proxy_protocol on; in this server".to_owned(),
                    ),
                    (false, false) => (
                        format!(
                            "leads to {place} without a word about who connects: {}",
                            clients.in_one_place()
                        ),
                        format!(
                            "remove this server; or write proxy_protocol on; here and proxy_protocol behind that listen, \
                             with real_ip_header proxy_protocol; and set_real_ip_from {};",
                            to_believe(place)
                        ),
                    ),
                };
                findings.problems.push(way.pass.problem(message, help));
            }
        }
    }
}

/// Whether a connection goes to a `listen` that has this very address, and not to the one that has all of them.
fn is_anothers(whole: &Whole<'_>, place: &Place, by: Reach) -> bool {
    let (Place::Everywhere { port, .. }, Reach::By(ip)) = (place, by) else {
        return false;
    };
    let exact = Some(Place::Address(SocketAddr::new(ip, *port)));
    let servers = whole
        .blocks("http")
        .flat_map(|http| named(&http.block, "server"));
    let mut listens = servers.flat_map(|server| named(&server.block, "listen"));
    listens.any(|listen| Place::of_listen(listen) == exact)
}
