//! Holds a configuration of nginx that passes TLS through to the backend against what it expects.

use std::time::Duration;

use viworks_common::network::IpNetwork;
use viworks_runtime::config::{Problem, url_host as host};

use super::directive::{Directive, in_force, named, span};
use super::gate::{self, Comers};
use super::names::{self, Chosen, Source};
use super::place::Place;
use super::render::reached_at;
use super::whole::{Findings, Targets, Way, Whole, comes_from, port, variable};
use crate::config::ProxyProtocol;

/// Less time to say a name than a slow network takes for it.
const PREREAD_MIN: Duration = Duration::from_secs(1);

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
    comers: Comers,
    /// What they do with its name.
    dial: &'static str,
    /// What happens when nothing gets through.
    nobody: &'static str,
    /// What happens when nobody says who connects.
    all_for_one: &'static str,
}

const OF_AGENTS: Words = Words {
    comers: gate::GATEWAYS,
    dial: "gateways dial",
    nobody: "no gateway could connect",
    all_for_one: "the backend would take all gateways for one, at the address of nginx: its limits for each address are for all of them",
};

const OF_DOOR: Words = Words {
    comers: Comers {
        who: "machines that enrol",
        from_anywhere: true,
    },
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
        if let Some(problem) = listener.led_elsewhere(whole) {
            findings.refuse(problem);
            return;
        }
        if let Some(problem) = listener.ended_in_http(whole, findings) {
            findings.refuse(problem);
            return;
        }
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
        // By another way than this nginx they may come only where their name does not lead into it.
        if let Some(problem) = listener.led_elsewhere(whole) {
            findings.refuse(problem);
            return;
        }
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
                let comers = self.words.comers;
                gate::check(&targets, &way, comers, findings);
                gate::check_stream(&way, comers, self.words.nobody, findings);
                more(whole, &blocks, findings);
                let by = targets.chooses(way.pass.value());
                if let Some(map) = by.filter(|by| by.name == "map") {
                    self.chooses(&blocks, map, &targets, findings);
                }
            }
        }
        if found == Ways::Found {
            let (who, address) = (self.words.comers.who, &self.address);
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
                        self.words.comers.who
                    ),
                    "remove ssl: it is passed through, and told apart by ssl_preread on;",
                ));
            }
        }
    }

    /// Whether a map leads them to the backend.
    fn chooses(
        &self,
        blocks: &[&[Directive]],
        map: &Directive,
        targets: &Targets<'_>,
        findings: &mut Findings,
    ) {
        let by = map.value();
        match names::source(map) {
            Source::Name => self.names(blocks, map, targets, findings),
            Source::Other if !targets.gives(by) => {
                let default = named(&map.block, "default").last();
                if default.is_some_and(|it| targets.means(it.value())) {
                    findings.unseen(map, "who is led elsewhere by it is known to nginx alone");
                    return;
                }
                let (who, nobody) = (self.words.comers.who, self.words.nobody);
                findings.refuse(map.problem(
                    format!("{who} are told apart by {by} and not by the name that they ask for: {nobody} but those \
                         in it"),
                    "write map $ssl_preread_server_name in its place, with their name",
                ));
            }
            Source::Other | Source::Unknown => {
                findings.unseen(map, "where it leads a name is known to nginx alone");
            }
        }
    }

    /// Whether the name that is asked for leads to the backend.
    fn names(
        &self,
        blocks: &[&[Directive]],
        map: &Directive,
        targets: &Targets<'_>,
        findings: &mut Findings,
    ) {
        let preread = in_force(blocks, "ssl_preread").filter(|it| it.value() == "on");
        if preread.is_none() {
            findings.problems.push(map.problem(
                "the name that a client asks for is not looked at, and every connection goes where the default leads",
                "write ssl_preread on; in the server",
            ));
        }
        if let Some(timeout) = in_force(blocks, "preread_timeout")
            && span(timeout.value()).is_some_and(|found| found < PREREAD_MIN)
        {
            findings.refuse(timeout.problem(
                format!(
                    "{} have {} to say which name they ask for, and are cut then",
                    self.words.comers.who,
                    timeout.value()
                ),
                "write preread_timeout 5s;",
            ));
        }
        let Some(host) = self.public_url.and_then(host) else {
            return;
        };
        match names::chosen(map, host) {
            Chosen::Line(line) if targets.means(line.value()) => {}
            // What an expression has found in the name, or a line that nginx alone can read.
            Chosen::Line(line) if line.value().contains('$') => {
                findings.unseen(line, "where it leads is not known before nginx runs");
            }
            Chosen::Perhaps(line) => {
                findings.unseen(
                    line,
                    "whether its expression takes the name is for nginx to say",
                );
            }
            Chosen::Line(_) | Chosen::Nothing => {
                findings.problems.push(self.not_led(map, host));
            }
        }
    }

    fn not_led(&self, map: &Directive, host: &str) -> Problem {
        let (dial, section) = (self.words.dial, self.section);
        let own = format!("the upstream that has {}", self.address);
        let help = match names::chosen(map, host) {
            // A second line of one name is none, and the one that is there may be somebody else's by right.
            Chosen::Line(line) if line.name == host => format!(
                "the line {host} leads to {}: write {own} into it, or where others are led by that name, give these a \
                 name of their own in public_url in {section}, and a line with {own}",
                line.value()
            ),
            Chosen::Line(_) | Chosen::Perhaps(_) | Chosen::Nothing => {
                format!("write a line {host} with {own}")
            }
        };
        map.problem(
            format!(
                "{dial} {host} (public_url in {section}), and that name does not lead to the backend"
            ),
            help,
        )
    }

    /// That a location leads there, as it should where nginx ends their TLS, of which the backend was not told.
    fn ended_in_http(&self, whole: &Whole<'_>, findings: &mut Findings) -> Option<Problem> {
        let mut ways = whole
            .blocks("http")
            .flat_map(|http| Targets::of(http, &self.place).ways(findings));
        let way = ways.next()?;
        Some(way.pass.problem(
            format!(
                "leads to {}, where gateways are taken, from a place where nginx ends their TLS, and tls_ends_at in \
                 {} says that the backend ends it",
                self.address, self.section
            ),
            "write tls_ends_at = \"proxy\" in [agents], with the other settings that check-config asks for then, and \
             restart the backend; or have viworks-backend-agent nginx render write a file that leaves their TLS to the \
             backend",
        ))
    }

    /// That their name leads to something else of this backend, or of this nginx, where nothing leads to the listener.
    fn led_elsewhere(&self, whole: &Whole<'_>) -> Option<Problem> {
        let url = self.public_url?;
        let (host, port) = (host(url)?, port(url));
        let config = whole.config;
        let listeners = [
            Some(config.agents.listen),
            Some(config.api.listen),
            config.enrolment.listen,
        ];
        let own = listeners
            .into_iter()
            .flatten()
            .filter_map(Place::of_listener);
        let servers = whole
            .blocks("http")
            .flat_map(|http| named(&http.block, "server"));
        let listens = servers.flat_map(|server| named(&server.block, "listen"));
        let others: Vec<_> = own.chain(listens.filter_map(Place::of_listen)).collect();
        for stream in whole.blocks("stream") {
            let maps = named(&stream.block, "map");
            for map in maps.filter(|map| names::source(map) == Source::Name) {
                let Chosen::Line(line) = names::chosen(map, host) else {
                    continue;
                };
                let is_used = named(&stream.block, "server").any(|it| takes_by(it, map, port));
                let mut others = others.iter().map(|place| Targets::of(stream, place));
                if is_used && others.any(|targets| targets.means(line.value())) {
                    return Some(self.not_led(map, host));
                }
            }
        }
        None
    }
}

/// Whether a server takes connections at this port, and leads them by this map.
fn takes_by(server: &Directive, map: &Directive, port: u16) -> bool {
    let given = map.arguments.last().and_then(|given| variable(given));
    let mut passes = named(&server.block, "proxy_pass");
    let mut listens = named(&server.block, "listen").filter_map(Place::of_listen);
    given.is_some()
        && passes.any(|pass| variable(pass.value()) == given)
        && listens.any(|place| place.port() == Some(port))
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
