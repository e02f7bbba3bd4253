//! Holds a configuration of nginx that ends the gateways' TLS against what the backend believes.

use std::path::Path;

use viworks_common::pin::SpkiPin;

use super::directive::{Directive, in_force, named, span};
use super::render::reached_at;
use super::renewal::pin;
use super::whole::{Findings, Whole, comes_from, header, host, is_upstream, leading_to};

/// Headers that the location of gateways has to set, with what.
const HEADERS: [(&str, &str, &str); 4] = [
    (
        "X-Client-Cert",
        "$ssl_client_escaped_cert",
        "the backend could not tell whose session it is",
    ),
    (
        "X-Real-IP",
        "$remote_addr",
        "the backend could not tell where a gateway is",
    ),
    (
        "Upgrade",
        "$http_upgrade",
        "a session could not be opened: the upgrade is not passed on",
    ),
    (
        "Connection",
        "",
        "a session could not be opened: the upgrade is not passed on",
    ),
];

/// How gateways come to the agents' listener.
pub(super) fn check(whole: &Whole<'_>, pins: &[SpkiPin], findings: &mut Findings) {
    let Some(address) = reached_at(whole.config.agents.listen) else {
        return;
    };
    let mut found = false;
    for http in whole.blocks("http") {
        let upstreams = leading_to(http, &address);
        for server in named(http, "server") {
            for location in named(&server.block, "location") {
                let pass = named(&location.block, "proxy_pass").next();
                let Some(pass) = pass.filter(|it| is_upstream(it.value(), &upstreams, &address))
                else {
                    continue;
                };
                found = true;
                let blocks = [http, server.block.as_slice(), location.block.as_slice()];
                certificates(server, &blocks, pins, findings);
                sessions(whole, server, pass, &address, &blocks, findings);
            }
        }
    }
    if found {
        findings.right.push(format!(
            "the TLS of gateways ends in nginx, which leads to {address}"
        ));
    } else {
        let message =
            format!("no location in an http block leads to {address}, where gateways are taken");
        let help = "viworks-backend-agent nginx render --mode terminate writes one that does";
        findings.tell(whole.file, message, help);
    }
}

fn certificates(
    server: &Directive,
    blocks: &[&[Directive]],
    pins: &[SpkiPin],
    findings: &mut Findings,
) {
    let problems = &mut findings.problems;
    let asks = in_force(blocks, "ssl_verify_client");
    if !asks.is_some_and(|it| matches!(it.value(), "on" | "optional" | "optional_no_ca")) {
        problems.push(server.problem(
            "gateways are not asked for their certificate, and no session could be opened",
            "write ssl_verify_client on; and ssl_client_certificate with the file of client_ca_file",
        ));
    }
    let tickets = in_force(blocks, "ssl_session_tickets");
    if tickets.is_none_or(|it| it.value() != "off") {
        problems.push(server.problem(
            "a TLS session that is taken up again shows no certificate, not even one that was revoked meanwhile",
            "write ssl_session_tickets off; and ssl_session_cache off;",
        ));
    }
    if let Some(cache) =
        in_force(blocks, "ssl_session_cache").filter(|it| !matches!(it.value(), "off" | "none"))
    {
        problems.push(cache.problem(
            "a TLS session that is taken up again shows no certificate, not even one that was revoked meanwhile",
            "write ssl_session_cache off; in this server",
        ));
    }
    if let Some(certificate) = in_force(blocks, "ssl_certificate")
        && let Some(shown) = pin(Path::new(certificate.value()))
        && !pins.contains(&shown)
    {
        problems.push(certificate.problem(
            format!(
                "nginx shows the key {shown}, which is none that gateways pin: they would refuse it"
            ),
            "name the certificate and the key of certificate_file and key_file in [agents]",
        ));
    }
}

fn sessions(
    whole: &Whole<'_>,
    server: &Directive,
    pass: &Directive,
    address: &str,
    blocks: &[&[Directive]],
    findings: &mut Findings,
) {
    let agents = &whole.config.agents;
    let problems = &mut findings.problems;
    for (name, value, without) in HEADERS {
        let given = header(blocks, name);
        if !given.is_some_and(|given| value.is_empty() || given == value) {
            let value = if value.is_empty() {
                "$connection_upgrade"
            } else {
                value
            };
            problems.push(pass.problem(
                format!("{name} is not set to what it should be: {without}"),
                format!("write proxy_set_header {name} {value}; in this location"),
            ));
        }
    }
    let timeout = in_force(blocks, "proxy_read_timeout");
    // Without the directive it is 60 s.
    let longest = timeout.map_or_else(|| span("60s"), |it| span(it.value()));
    if longest.is_some_and(|longest| longest <= agents.silence) {
        problems.push(timeout.unwrap_or(pass).problem(
            format!(
                "a session may be silent for {} s (silence_ms), and nginx cuts it before that",
                agents.silence.as_secs_f64()
            ),
            format!(
                "write proxy_read_timeout {}s;",
                agents.silence.as_secs().saturating_mul(2)
            ),
        ));
    }
    let bound = in_force(blocks, "proxy_bind").map(Directive::value);
    if let Some(from) = comes_from(address, bound)
        && !agents
            .trusted_proxies
            .iter()
            .any(|network| network.contains(from))
    {
        problems.push(pass.problem(
            format!("nginx connects from {from}, which is not among trusted_proxies in [agents]: no gateway could connect"),
            format!("add \"{from}\" to trusted_proxies"),
        ));
    }
    let name = agents.public_url.as_deref().and_then(host);
    let names = in_force(blocks, "server_name")
        .map(|it| it.arguments.as_slice())
        .unwrap_or_default();
    if let Some(name) = name
        && !names.iter().any(|own| own.eq_ignore_ascii_case(name))
    {
        problems.push(server.problem(
            format!(
                "gateways dial {name} (public_url in [agents]), and this server has another name"
            ),
            format!("write server_name {name};"),
        ));
    }
}
