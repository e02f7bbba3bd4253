//! Holds a configuration of nginx that ends the gateways' TLS against what the backend believes.

use viworks_common::pin::SpkiPin;
use viworks_runtime::config::url_host as host;

use super::directive::{Directive, in_force, span};
use super::gate;
use super::lists;
use super::place::Place;
use super::render::reached_at;
use super::renewal::pin;
use super::sources::{self, Clients};
use super::strength;
use super::whole::{Findings, Targets, Way, Whole, comes_from, header};
use crate::pki::crl;

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
    let listen = whole.config.agents.listen;
    let Some((place, address)) = Place::of_listener(listen).zip(reached_at(listen)) else {
        findings.unseen_port("gateways", "agents");
        return;
    };
    let mut found = false;
    let mut perhaps = false;
    for http in whole.blocks("http") {
        let targets = Targets::of(http, &place);
        perhaps |= targets.may_lead();
        let mut last: Option<&Directive> = None;
        for way in targets.ways(findings) {
            found = true;
            way.everybody_is_believed(findings);
            gate::check_http(&targets, &way, gate::GATEWAYS, findings);
            // Once for each server, whatever leads on from there.
            if !last.is_some_and(|last| std::ptr::eq(last, way.server())) {
                sources::check(whole, &way, Clients::Gateways, findings);
                strength::check(way.server(), &way.blocks(), findings);
            }
            last = Some(way.server());
            certificates(whole, &way, pins, findings);
            lists::check(whole, &way.blocks(), findings);
            sessions(whole, &way, findings);
        }
    }
    for stream in whole.blocks("stream") {
        let ways = Targets::of(stream, &place).ways(findings);
        let past = |way: Way<'_>| {
            let message = format!(
                "leads to {address} past the place where the gateways' TLS ends: whoever connects here could claim the \
                 certificate of any gateway"
            );
            way.pass.problem(
                message,
                "remove this server: gateways come by a location in http alone",
            )
        };
        findings.problems.extend(ways.into_iter().map(past));
    }
    if found {
        findings.right.push(format!(
            "the TLS of gateways ends in nginx, which leads to {address}"
        ));
    } else if !perhaps {
        let missing =
            format!("no location in an http block leads to {address}, where gateways are taken");
        let write = "viworks-backend-agent nginx render --mode terminate writes one that does";
        findings.nothing_leads(whole, "http", &missing, &address, write.to_owned());
    }
}

fn certificates(whole: &Whole<'_>, way: &Way<'_>, pins: &[SpkiPin], findings: &mut Findings) {
    let (server, blocks) = (way.server(), &*way.blocks());
    let shown = whole.certificates(blocks, findings);
    let (problems, warnings) = (&mut findings.problems, &mut findings.warnings);
    let asks = in_force(blocks, "ssl_verify_client");
    if !asks.is_some_and(|it| matches!(it.value(), "on" | "optional" | "optional_no_ca")) {
        problems.push(server.problem(
            "gateways are not asked for their certificate, and no session could be opened",
            "write ssl_verify_client on; and ssl_client_certificate with the file of client_ca_file",
        ));
    }
    // One that is not of every authority is left out, or gateways are refused.
    if let Some(list) = &whole.config.keys.crl_file
        && in_force(blocks, "ssl_crl").is_none()
        && crl::warning(whole.config).is_none()
    {
        let problem = server.problem(
            "the list of revoked certificates that the backend keeps is not looked at here: the backend alone refuses them",
            format!("write ssl_crl {};", list.display()),
        );
        if !warnings.contains(&problem) {
            warnings.push(problem);
        }
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
    for (certificate, path) in shown {
        match pin(&path) {
            Ok(shown) if pins.contains(&shown) => {}
            Ok(shown) => findings.problems.push(certificate.problem(
                format!(
                    "nginx shows the key {shown}, which is none that gateways pin: they would refuse it"
                ),
                "name the certificate and the key of certificate_file and key_file in [agents], and no other",
            )),
            Err(why) => findings.unseen(certificate, &why),
        }
    }
}

fn sessions(whole: &Whole<'_>, way: &Way<'_>, findings: &mut Findings) {
    let agents = &whole.config.agents;
    let (server, pass, blocks) = (way.server(), way.pass, &*way.blocks());
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
    if let Some(from) = comes_from(way.by, bound)
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
