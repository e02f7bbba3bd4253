//! Holds the part of a configuration of nginx that leads operators to the API against what they need.

use std::collections::BTreeSet;
use std::time::Duration;

use viworks_common::limits::REQUEST_BODY_BYTES_MAX;

use super::directive::{Directive, in_force, named, size, span};
use super::gate;
use super::place::Place;
use super::render::reached_at;
use super::sources::{self, Clients};
use super::strength;
use super::whole::{Findings, Targets, Way, Whole, comes_from, header};
use crate::pki::issue::is_for;

/// After how much silence an event stream says that it is there.
const STREAM_SILENCE: Duration = Duration::from_secs(15);

/// How operators come to the API.
pub(super) fn check(whole: &Whole<'_>, findings: &mut Findings) {
    let listen = whole.config.api.listen;
    let Some((place, address)) = Place::of_listener(listen).zip(reached_at(listen)) else {
        findings.unseen_port("operators", "api");
        return;
    };
    let mut found = false;
    let mut perhaps = false;
    for http in whole.blocks("http") {
        let targets = Targets::of(http, &place);
        perhaps |= targets.may_lead();
        let ways = targets.ways(findings);
        found |= !ways.is_empty();
        for way in &ways {
            gate::check_http(&targets, way, gate::OPERATORS, findings);
        }
        for ways in ways.chunk_by(|one, other| std::ptr::eq(one.server(), other.server())) {
            encryption(whole, ways, findings);
            events(ways, findings);
            origins(whole, ways, findings);
        }
    }
    for stream in whole.blocks("stream") {
        let ways = Targets::of(stream, &place).ways(findings);
        let past = |way: Way<'_>| {
            way.pass.problem(
                format!(
                    "leads to the API at {address} as it comes: API keys would cross the network in plain text, or \
                     whoever has one could be anywhere in the audit trail"
                ),
                "remove this server: operators come by a location in http",
            )
        };
        findings.problems.extend(ways.into_iter().map(past));
    }
    if found {
        findings
            .right
            .push(format!("operators reach the API at {address}"));
    } else if !perhaps {
        let missing = format!("no location in an http block leads to {address}, where the API is");
        let write = format!(
            "write location / {{ proxy_pass http://{address}; }} in a server of http that ends TLS, or have \
             viworks-backend-agent nginx render write the whole file"
        );
        findings.nothing_leads(whole, "http", &missing, &address, write);
    }
}

/// Whether the backend knows where operators are. These ways are of one server.
fn origins(whole: &Whole<'_>, ways: &[Way<'_>], findings: &mut Findings) {
    let mut unknown = BTreeSet::new();
    if let Some(way) = ways.first() {
        sources::check(whole, way, Clients::Operators, findings);
    }
    for way in ways {
        let blocks = way.blocks();
        way.everybody_is_believed(findings);
        if header(&blocks, "X-Real-IP") != Some("$remote_addr") {
            findings.problems.push(way.pass.problem(
                "X-Real-IP goes on as the client wrote it, who could be anywhere in the audit trail",
                "write proxy_set_header X-Real-IP $remote_addr; in this location",
            ));
        }
        let bound = in_force(&blocks, "proxy_bind").map(Directive::value);
        let trusted = &whole.config.api.trusted_proxies;
        if let Some(from) = comes_from(way.by, bound)
            && !trusted.iter().any(|network| network.contains(from))
            && unknown.insert(from)
        {
            findings.problems.push(way.pass.problem(
                format!("the audit trail would have all operators at {from}, the address of nginx"),
                format!("add \"{from}\" to trusted_proxies in [api]"),
            ));
        }
    }
}

/// Whether what operators send is encrypted, and fits. These ways are of one server.
fn encryption(whole: &Whole<'_>, ways: &[Way<'_>], findings: &mut Findings) {
    let Some(way) = ways.first() else {
        return;
    };
    let (server, blocks) = (way.server(), way.blocks());
    let blocks = blocks.get(..2).unwrap_or_default();
    let certificates = whole.certificates(blocks, findings);
    strength::check(server, blocks, findings);
    let problems = &mut findings.problems;
    let is_plain = |listen: &&Directive| {
        // QUIC is never without TLS, and a socket of this machine is no network.
        let encrypts = |word: &String| word == "ssl" || word == "quic";
        !listen.value().starts_with("unix:") && !listen.arguments.iter().any(encrypts)
    };
    let mut listens = named(&server.block, "listen").peekable();
    // Without one it listens on port 80.
    let plain = if listens.peek().is_none() {
        Some(server)
    } else {
        listens.find(is_plain)
    };
    if let Some(plain) = plain {
        problems.push(plain.problem(
            "API keys would cross the network in plain text",
            "write listen with ssl, and serve nothing at a port without it but a redirection",
        ));
    }
    if let Some(limit) = in_force(blocks, "client_max_body_size")
        && size(limit.value()).is_some_and(|size| size != 0 && size < REQUEST_BODY_BYTES_MAX as u64)
    {
        problems.push(limit.problem(
            "a run for many gateways has up to 1 MiB",
            "write client_max_body_size 1m;",
        ));
    }
    let names = in_force(blocks, "server_name")
        .map(|it| it.arguments.as_slice())
        .unwrap_or_default();
    let names = names
        .iter()
        .filter(|name| !name.contains(['*', '~', '$', '_']));
    for (name, (certificate, path)) in
        names.flat_map(|name| certificates.iter().map(move |it| (name, it)))
    {
        match is_for(path, name) {
            Ok(true) => {}
            Ok(false) => findings.problems.push(certificate.problem(
                format!("the certificate in {} is not for {name}", path.display()),
                "name the certificate of this server, or have one made for its name",
            )),
            Err(error) => findings.unseen(certificate, &error.problem(path).message),
        }
    }
}

/// Whether events of a run arrive as they happen. These ways are of one server.
fn events(ways: &[Way<'_>], findings: &mut Findings) {
    const PATH: &str = "events";
    let is_own = |way: &&Way<'_>| {
        let mut words = way.around.iter().flat_map(|directive| &directive.arguments);
        words.any(|word| word.contains(PATH))
    };
    let Some(way) = ways.iter().find(is_own).or_else(|| ways.first()) else {
        return;
    };
    let blocks = way.blocks();
    let is_off = |name| in_force(&blocks, name).is_some_and(|it| it.value() == "off");
    if !is_off("proxy_buffering") {
        findings.problems.push(way.pass.problem(
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
