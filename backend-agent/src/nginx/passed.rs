//! Holds a configuration of nginx that passes the gateways' TLS through against what the backend expects.

use std::time::Duration;

use super::directive::{Directive, in_force, named, span};
use super::place::Place;
use super::render::reached_at;
use super::whole::{Findings, Targets, Way, Whole, comes_from, host};
use crate::config::ProxyProtocol;

/// How gateways come to the agents' listener.
pub(super) fn check(whole: &Whole<'_>, findings: &mut Findings) {
    let agents = &whole.config.agents;
    let placed = Place::of_listener(agents.listen).zip(reached_at(agents.listen));
    let Some((place, address)) = placed else {
        findings.unseen_port("gateways", "agents");
        return;
    };
    let mut found = false;
    let mut perhaps = false;
    for stream in whole.blocks("stream") {
        let targets = Targets::of(stream, &place);
        perhaps |= targets.may_lead();
        for way in targets.ways(findings) {
            found = true;
            let blocks = way.blocks();
            way.everybody_is_believed(findings);
            pass_through(whole, &blocks, &way, findings);
            let by = targets.chooses(way.pass.value());
            if let Some(map) = by.filter(|by| by.name == "map") {
                names(whole, &blocks, map, |word| targets.means(word), findings);
            }
        }
    }
    if found {
        findings
            .right
            .push(format!("gateways are passed through to {address}"));
    } else if !perhaps {
        let missing =
            format!("no server in a stream block leads to {address}, where gateways are taken");
        let header = match agents.proxy_protocol {
            ProxyProtocol::Require => "proxy_protocol on; ",
            ProxyProtocol::Off => "",
        };
        let write = format!(
            "write server {{ listen 443; proxy_pass {address}; {header}proxy_timeout {}s; }} in a stream block, or have \
             viworks-backend-agent nginx render write the whole file",
            silence_allowed(agents.silence)
        );
        findings.nothing_leads(whole, "stream", &missing, &address, write);
    }
}

fn pass_through(
    whole: &Whole<'_>,
    blocks: &[&[Directive]],
    way: &Way<'_>,
    findings: &mut Findings,
) {
    let (agents, pass) = (&whole.config.agents, way.pass);
    let problems = &mut findings.problems;
    let header = in_force(blocks, "proxy_protocol").filter(|it| it.value() == "on");
    match (agents.proxy_protocol, header) {
        (ProxyProtocol::Require, None) => problems.push(pass.problem(
            "the backend requires a header of the PROXY protocol, and none is sent: no gateway could connect",
            "write proxy_protocol on; in this server",
        )),
        (ProxyProtocol::Off, Some(header)) => problems.push(header.problem(
            "a header of the PROXY protocol is sent, and the backend takes none: no gateway could connect",
            "set proxy_protocol = \"require\" and trusted_proxies in [agents], or remove this line",
        )),
        (ProxyProtocol::Off, None) => problems.push(pass.problem(
            "the backend would take all gateways for one, at the address of nginx: its limits for each address are for all of them",
            "write proxy_protocol on; here, and set proxy_protocol = \"require\" and trusted_proxies in [agents]",
        )),
        (ProxyProtocol::Require, Some(_)) => {
            let from = in_force(blocks, "proxy_bind").map(Directive::value);
            if let Some(from) = comes_from(way.by, from)
                && !agents.trusted_proxies.iter().any(|network| network.contains(from))
            {
                problems.push(pass.problem(
                    format!("nginx connects from {from}, which is not among trusted_proxies in [agents]: no gateway could connect"),
                    format!("add \"{from}\" to trusted_proxies"),
                ));
            }
        }
    }
    if let Some(timeout) = in_force(blocks, "proxy_timeout")
        && let Some(found) = span(timeout.value())
        && found <= agents.silence
    {
        problems.push(timeout.problem(
            format!(
                "a session may be silent for {} s (silence_ms), and nginx cuts it after {}",
                agents.silence.as_secs_f64(),
                timeout.value()
            ),
            format!("write proxy_timeout {}s;", silence_allowed(agents.silence)),
        ));
    }
    let own = blocks.last().copied().unwrap_or_default();
    for listen in named(own, "listen") {
        if listen.arguments.iter().any(|word| word == "ssl") {
            problems.push(listen.problem(
                "TLS of gateways would end here, and with it their certificates",
                "remove ssl: it is passed through, and told apart by ssl_preread on;",
            ));
        }
    }
}

/// How many seconds nginx should let a session be silent that ends itself after `silence`.
const fn silence_allowed(silence: Duration) -> u64 {
    silence.as_secs().saturating_mul(2)
}

/// Whether the name that gateways dial leads to the backend.
fn names(
    whole: &Whole<'_>,
    blocks: &[&[Directive]],
    map: &Directive,
    leads_here: impl Fn(&str) -> bool,
    findings: &mut Findings,
) {
    let preread = in_force(blocks, "ssl_preread").filter(|it| it.value() == "on");
    if preread.is_none() {
        findings.problems.push(map.problem(
            "the name that a client asks for is not looked at, and every connection goes where the default leads",
            "write ssl_preread on; in the server",
        ));
    }
    let url = whole.config.agents.public_url.as_deref();
    let Some(host) = url.and_then(host) else {
        return;
    };
    let default = named(&map.block, "default");
    let own = map
        .block
        .iter()
        .find(|entry| entry.name.eq_ignore_ascii_case(host));
    let leads = own.or_else(|| default.last());
    if !leads.is_some_and(|entry| leads_here(entry.value())) {
        findings.problems.push(map.problem(
            format!("gateways dial {host} (public_url in [agents]), and that name does not lead to the backend"),
            format!("write a line {host} with the upstream of the backend's agents"),
        ));
    }
}
