//! Holds a configuration of nginx that passes TLS through to the backend against what it expects.

use std::time::Duration;

use viworks_common::network::IpNetwork;

use super::directive::{Directive, in_force, named, span};
use super::place::Place;
use super::render::reached_at;
use super::whole::{Findings, Targets, Way, Whole, comes_from, host};
use crate::config::ProxyProtocol;

/// A listener to which TLS is passed through, with what its section says of proxies.
struct Listener<'l> {
    place: Place,
    address: String,
    section: &'static str,
    protocol: ProxyProtocol,
    trusted: &'l [IpNetwork],
    public_url: Option<&'l str>,
    words: Words,
}

/// What is said about it.
struct Words {
    /// Who comes.
    who: &'static str,
    /// What they do with its name.
    dial: &'static str,
    /// What happens when nothing gets through.
    nobody: &'static str,
    /// What happens when nobody says who connects.
    all_for_one: &'static str,
}

const OF_AGENTS: Words = Words {
    who: "gateways",
    dial: "gateways dial",
    nobody: "no gateway could connect",
    all_for_one: "the backend would take all gateways for one, at the address of nginx: its limits for each address are for all of them",
};

const OF_DOOR: Words = Words {
    who: "machines that enrol",
    dial: "machines enrol at",
    nobody: "no machine could enrol",
    all_for_one: "the backend would take all machines that enrol for one, at the address of nginx: a ticket's networks and the limits for each address are about nginx",
};

/// What is known of the ways to a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ways {
    Found,
    /// Where some word leads is for DNS to say.
    Unknown,
    None,
}

/// How gateways come to the agents' listener.
pub(super) fn agents(whole: &Whole<'_>, findings: &mut Findings) {
    let agents = &whole.config.agents;
    let placed = Place::of_listener(agents.listen).zip(reached_at(agents.listen));
    let Some((place, address)) = placed else {
        findings.unseen_port("gateways", "agents");
        return;
    };
    let listener = Listener {
        place,
        address,
        section: "[agents]",
        protocol: agents.proxy_protocol,
        trusted: &agents.trusted_proxies,
        public_url: agents.public_url.as_deref(),
        words: OF_AGENTS,
    };
    if listener.check(whole, findings, silence) == Ways::None {
        let address = &listener.address;
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
        findings.nothing_leads(whole, "stream", &missing, address, write);
    }
}

/// How machines come to the door for new gateways, which may be by another way than this nginx.
pub(super) fn door(whole: &Whole<'_>, findings: &mut Findings) {
    let door = &whole.config.enrolment;
    let Some(listen) = door.listen else {
        return;
    };
    let placed = Place::of_listener(listen).zip(reached_at(listen));
    let Some((place, address)) = placed else {
        findings.unseen_port("machines that enrol", "enrolment");
        return;
    };
    let listener = Listener {
        place,
        address,
        section: "[enrolment]",
        protocol: door.proxy_protocol,
        trusted: &door.trusted_proxies,
        public_url: door.public_url.as_deref(),
        words: OF_DOOR,
    };
    if listener.check(whole, findings, |_whole, _blocks, _findings| {}) == Ways::None {
        findings.unseen.push(format!(
            "not looked at: how machines that enrol come to {}, for no server in a stream block leads there",
            listener.address
        ));
    }
}

impl Listener<'_> {
    /// Looks at every way to it, with `more` at each.
    fn check(
        &self,
        whole: &Whole<'_>,
        findings: &mut Findings,
        more: impl Fn(&Whole<'_>, &[&[Directive]], &mut Findings),
    ) -> Ways {
        let mut found = Ways::None;
        for stream in whole.blocks("stream") {
            let targets = Targets::of(stream, &self.place);
            if found == Ways::None && targets.may_lead() {
                found = Ways::Unknown;
            }
            for way in targets.ways(findings) {
                found = Ways::Found;
                let blocks = way.blocks();
                way.everybody_is_believed(findings);
                self.header(&blocks, &way, findings);
                self.ends_here(&blocks, findings);
                more(whole, &blocks, findings);
                let by = targets.chooses(way.pass.value());
                if let Some(map) = by.filter(|by| by.name == "map") {
                    self.names(&blocks, map, |word| targets.means(word), findings);
                }
            }
        }
        if found == Ways::Found {
            let (who, address) = (self.words.who, &self.address);
            let right = format!("{who} are passed through to {address}");
            findings.right.push(right);
        }
        found
    }

    /// Whether what says who connects is sent and taken.
    fn header(&self, blocks: &[&[Directive]], way: &Way<'_>, findings: &mut Findings) {
        let (section, nobody, pass) = (self.section, self.words.nobody, way.pass);
        let problems = &mut findings.problems;
        let header = in_force(blocks, "proxy_protocol").filter(|it| it.value() == "on");
        match (self.protocol, header) {
            (ProxyProtocol::Require, None) => problems.push(pass.problem(
                format!("the backend requires a header of the PROXY protocol, and none is sent: {nobody}"),
                "write proxy_protocol on; in this server",
            )),
            (ProxyProtocol::Off, Some(header)) => problems.push(header.problem(
                format!("a header of the PROXY protocol is sent, and the backend takes none: {nobody}"),
                format!("set proxy_protocol = \"require\" and trusted_proxies in {section}, or remove this line"),
            )),
            (ProxyProtocol::Off, None) => problems.push(pass.problem(
                self.words.all_for_one,
                format!("write proxy_protocol on; here, and set proxy_protocol = \"require\" and trusted_proxies in {section}"),
            )),
            (ProxyProtocol::Require, Some(_)) => {
                let from = in_force(blocks, "proxy_bind").map(Directive::value);
                if let Some(from) = comes_from(way.by, from)
                    && !self.trusted.iter().any(|network| network.contains(from))
                {
                    problems.push(pass.problem(
                        format!("nginx connects from {from}, which is not among trusted_proxies in {section}: {nobody}"),
                        format!("add \"{from}\" to trusted_proxies"),
                    ));
                }
            }
        }
    }

    /// Whether TLS would end in nginx.
    fn ends_here(&self, blocks: &[&[Directive]], findings: &mut Findings) {
        let own = blocks.last().copied().unwrap_or_default();
        for listen in named(own, "listen") {
            if listen.arguments.iter().any(|word| word == "ssl") {
                findings.problems.push(listen.problem(
                    format!(
                        "TLS of {} would end here, and with it what the backend needs of it",
                        self.words.who
                    ),
                    "remove ssl: it is passed through, and told apart by ssl_preread on;",
                ));
            }
        }
    }

    /// Whether the name that is asked for leads to the backend.
    fn names(
        &self,
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
        let Some(host) = self.public_url.and_then(host) else {
            return;
        };
        let default = named(&map.block, "default");
        let own = map
            .block
            .iter()
            .find(|entry| entry.name.eq_ignore_ascii_case(host));
        let leads = own.or_else(|| default.last());
        if !leads.is_some_and(|entry| leads_here(entry.value())) {
            let (dial, section) = (self.words.dial, self.section);
            findings.problems.push(map.problem(
                format!("{dial} {host} (public_url in {section}), and that name does not lead to the backend"),
                format!("write a line {host} with the upstream that has {}", self.address),
            ));
        }
    }
}

/// Whether nginx cuts sessions that may be silent.
fn silence(whole: &Whole<'_>, blocks: &[&[Directive]], findings: &mut Findings) {
    let agents = &whole.config.agents;
    if let Some(timeout) = in_force(blocks, "proxy_timeout")
        && let Some(found) = span(timeout.value())
        && found <= agents.silence
    {
        findings.problems.push(timeout.problem(
            format!(
                "a session may be silent for {} s (silence_ms), and nginx cuts it after {}",
                agents.silence.as_secs_f64(),
                timeout.value()
            ),
            format!("write proxy_timeout {}s;", silence_allowed(agents.silence)),
        ));
    }
}

/// How many seconds nginx should let a session be silent that ends itself after `silence`.
const fn silence_allowed(silence: Duration) -> u64 {
    silence.as_secs().saturating_mul(2)
}
