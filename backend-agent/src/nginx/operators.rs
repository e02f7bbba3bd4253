//! Holds the part of a configuration of nginx that leads operators to the API against what they need.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use viworks_common::limits::REQUEST_BODY_BYTES_MAX;
use viworks_runtime::config::Problem;

use super::directive::{Directive, in_force, named, size, span};
use super::render::reached_at;
use super::whole::{Findings, Whole, comes_from, header, is_upstream, leading_to};
use crate::pki::issue::is_for;

/// After how much silence an event stream says that it is there.
const STREAM_SILENCE: Duration = Duration::from_secs(15);

/// Protocols that no browser and no command line needs any more.
const OLD_TLS: [&str; 4] = ["SSLv2", "SSLv3", "TLSv1", "TLSv1.1"];

/// How operators come to the API.
pub(super) fn check(whole: &Whole<'_>, findings: &mut Findings) {
    let Some(address) = reached_at(whole.config.api.listen) else {
        return;
    };
    let mut found = false;
    for http in whole.blocks("http") {
        let upstreams = leading_to(http, &address);
        for server in named(http, "server") {
            let leads = |location: &&Directive| {
                let pass = named(&location.block, "proxy_pass").next();
                pass.is_some_and(|pass| is_upstream(pass.value(), &upstreams, &address))
            };
            let locations: Vec<_> = named(&server.block, "location").filter(leads).collect();
            if locations.is_empty() {
                continue;
            }
            found = true;
            encryption(http, server, findings);
            events(http, server, &locations, findings);
            origins(whole, http, server, &locations, &address, findings);
        }
    }
    if found {
        findings
            .right
            .push(format!("operators reach the API at {address}"));
    } else {
        let message = format!("no location in an http block leads to {address}, where the API is");
        let help = "viworks-backend-agent nginx render writes one that does";
        findings
            .problems
            .push(Problem::of_file(whole.file, message, help));
    }
}

/// Whether the backend knows where operators are.
fn origins(
    whole: &Whole<'_>,
    http: &[Directive],
    server: &Directive,
    locations: &[&Directive],
    address: &str,
    findings: &mut Findings,
) {
    let mut unknown = BTreeSet::new();
    for location in locations {
        let blocks = [http, server.block.as_slice(), location.block.as_slice()];
        if header(&blocks, "X-Real-IP") != Some("$remote_addr") {
            findings.problems.push(location.problem(
                "X-Real-IP goes on as the client wrote it, who could be anywhere in the audit trail",
                "write proxy_set_header X-Real-IP $remote_addr; in this location",
            ));
        }
        let bound = in_force(&blocks, "proxy_bind").map(Directive::value);
        let trusted = &whole.config.api.trusted_proxies;
        if let Some(from) = comes_from(address, bound)
            && !trusted.iter().any(|network| network.contains(from))
            && unknown.insert(from)
        {
            findings.problems.push(location.problem(
                format!("the audit trail would have all operators at {from}, the address of nginx"),
                format!("add \"{from}\" to trusted_proxies in [api]"),
            ));
        }
    }
}

fn encryption(http: &[Directive], server: &Directive, findings: &mut Findings) {
    let blocks = [http, server.block.as_slice()];
    let problems = &mut findings.problems;
    let encrypted = named(&server.block, "listen")
        .any(|listen| listen.arguments.iter().any(|word| word == "ssl"));
    if !encrypted {
        problems.push(server.problem(
            "API keys would cross the network in plain text",
            "write listen with ssl, and serve nothing at a port without it but a redirection",
        ));
    }
    if let Some(protocols) = in_force(&blocks, "ssl_protocols")
        && let Some(old) = protocols
            .arguments
            .iter()
            .find(|it| OLD_TLS.contains(&it.as_str()))
    {
        problems.push(protocols.problem(
            format!("{old} is broken"),
            "write ssl_protocols TLSv1.2 TLSv1.3;",
        ));
    }
    if let Some(limit) = in_force(&blocks, "client_max_body_size")
        && size(limit.value()).is_some_and(|size| size != 0 && size < REQUEST_BODY_BYTES_MAX as u64)
    {
        problems.push(limit.problem(
            "a run for many gateways has up to 1 MiB",
            "write client_max_body_size 1m;",
        ));
    }
    let names = in_force(&blocks, "server_name")
        .map(|it| it.arguments.as_slice())
        .unwrap_or_default();
    if let Some(certificate) = in_force(&blocks, "ssl_certificate") {
        for name in names
            .iter()
            .filter(|name| !name.contains(['*', '~', '$', '_']))
        {
            let path = PathBuf::from(certificate.value());
            // Only root may be able to look.
            let Ok(path) = path.canonicalize() else {
                continue;
            };
            if is_for(&path, name).is_ok_and(|is_for| !is_for) {
                problems.push(certificate.problem(
                    format!("the certificate in {} is not for {name}", path.display()),
                    "name the certificate of this server, or have one made for its name",
                ));
            }
        }
    }
}

/// Whether events of a run arrive as they happen.
fn events(
    http: &[Directive],
    server: &Directive,
    locations: &[&Directive],
    findings: &mut Findings,
) {
    const PATH: &str = "events";
    let own = locations
        .iter()
        .find(|location| location.arguments.iter().any(|it| it.contains(PATH)));
    let location = own.or_else(|| locations.first());
    let Some(location) = location else {
        return;
    };
    let blocks = [http, server.block.as_slice(), location.block.as_slice()];
    let is_off = |name| in_force(&blocks, name).is_some_and(|it| it.value() == "off");
    if !is_off("proxy_buffering") {
        findings.problems.push(location.problem(
            "events of a run are kept back until a buffer is full",
            "write a location ~ ^/v1/runs/[^/]+/events$ with proxy_buffering off;",
        ));
    }
    if let Some(gzip) = in_force(&blocks, "gzip").filter(|it| it.value() == "on") {
        findings.problems.push(gzip.problem(
            "events of a run are kept back until there are enough of them to be compressed",
            "write gzip off; in the location of event streams",
        ));
    }
    if let Some(timeout) = in_force(&blocks, "proxy_read_timeout")
        && span(timeout.value()).is_some_and(|found| found < STREAM_SILENCE * 2)
    {
        findings.problems.push(timeout.problem(
            format!(
                "a silent event stream is heard of every {} s, and nginx cuts it after {}",
                STREAM_SILENCE.as_secs(),
                timeout.value()
            ),
            "write proxy_read_timeout 90s;",
        ));
    }
}
