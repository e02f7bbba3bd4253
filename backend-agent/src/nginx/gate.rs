//! What stands at a way of nginx and lets nobody through, though the way leads to the backend.

use super::directive::{Directive, in_force, named};
use super::whole::{Findings, Targets, Way};

/// Who comes by a way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comers {
    /// What they are called.
    pub(super) who: &'static str,
    /// Whether they come from anywhere, so that a list of networks may lack some of theirs.
    pub(super) from_anywhere: bool,
}

/// Operators, whom a site lets in from where it likes.
pub(super) const OPERATORS: Comers = Comers {
    who: "operators",
    from_anywhere: false,
};

/// Gateways.
pub(super) const GATEWAYS: Comers = Comers {
    who: "gateways",
    from_anywhere: true,
};

/// Whether they get through by this way, whichever part of nginx it is in.
pub(super) fn check(targets: &Targets<'_>, way: &Way<'_>, comers: Comers, findings: &mut Findings) {
    let who = comers.who;
    match refusing(&way.blocks()) {
        Some((rule, true)) => findings.refuse(rule.problem(
            format!("everybody is refused here: {who} do not get through"),
            "remove this line, or write allow in front of it with the networks from which they come",
        )),
        Some((rule, false)) if comers.from_anywhere => findings.warn(rule.problem(
            format!("{who} get through from the networks only that are allowed in front of this"),
            "see that all of theirs are there",
        )),
        Some((_, false)) | None => {}
    }
    for (server, is_whole) in targets.out_of_use(way.pass.value()) {
        if is_whole {
            findings.refuse(server.problem(
                format!("every server of this group is marked as down: {who} do not get through"),
                "remove down",
            ));
        } else {
            findings.warn(server.problem(
                "this backend is marked as down, and everybody is led to the others of the group",
                "remove down once it is to be used",
            ));
        }
    }
}

/// The same for a way in `http`, where the backend takes plain HTTP.
pub(super) fn check_http(
    targets: &Targets<'_>,
    way: &Way<'_>,
    comers: Comers,
    findings: &mut Findings,
) {
    check(targets, way, comers, findings);
    let who = comers.who;
    let scheme = way.pass.value().split_once("://");
    if scheme.is_some_and(|(scheme, _rest)| scheme.eq_ignore_ascii_case("https")) {
        findings.refuse(way.pass.problem(
            format!("nginx would speak TLS to the backend, which takes plain HTTP from it: {who} do not get through"),
            "write http:// in place of https://",
        ));
    }
    // What is asked in an `if` is for nginx to know; and a location within another one has nothing of its answers.
    let around = || way.around.iter().filter(|it| it.name != "http");
    let is_plain = |it: &&Directive| matches!(it.name.as_str(), "server" | "location");
    let own = [Some(way.server()), way.around.last().copied()];
    let mut answers = own.into_iter().flatten();
    if around().all(is_plain)
        && let Some(answer) = answers.find_map(|it| named(&it.block, "return").next())
    {
        findings.refuse(answer.problem(
            format!(
                "nginx answers here itself, before it passes anything on: {who} do not get through"
            ),
            "remove this line, or the proxy_pass beside it",
        ));
    }
}

/// Whether TLS that is passed through arrives as it was sent; `nobody` is what happens where it does not.
pub(super) fn check_stream(way: &Way<'_>, comers: Comers, nobody: &str, findings: &mut Findings) {
    let (who, blocks) = (comers.who, way.blocks());
    let on = |name| in_force(&blocks, name).filter(|it| it.value() == "on");
    if let Some(wrapped) = on("proxy_ssl") {
        findings.refuse(wrapped.problem(
            format!("nginx begins TLS of its own with the backend, within which is that of {who}: {nobody}"),
            "remove this line: TLS is passed through as it comes",
        ));
    }
    let listens = || named(&way.server().block, "listen");
    let has = |listen: &&Directive, wanted: &str| listen.arguments.iter().any(|it| it == wanted);
    let is_behind_another = in_force(&blocks, "set_real_ip_from").is_some();
    if let Some(listen) = listens().find(|it| has(it, "proxy_protocol"))
        && !is_behind_another
    {
        findings.refuse(listen.problem(
            format!("only who sends a header of the PROXY protocol is taken here, and {who} send none: {nobody}"),
            "remove proxy_protocol behind listen; or, where another proxy stands in front and sends one, write \
             set_real_ip_from with its address",
        ));
    }
    if let Some(listen) = listens().next()
        && listens().all(|it| has(&it, "udp"))
    {
        findings.refuse(listen.problem(
            format!("datagrams are taken here, and {who} come by TCP: {nobody}"),
            "remove udp",
        ));
    }
}

/// The rule by which strangers are refused where these blocks are in force, one inside the other, and whether nobody
/// was allowed in front of it.
fn refusing<'d>(blocks: &[&'d [Directive]]) -> Option<(&'d Directive, bool)> {
    let is_rule = |it: &&Directive| matches!(it.name.as_str(), "allow" | "deny");
    // Those of an outer block are in force only where an inner one has none.
    let own = blocks.iter().rev().copied();
    let mut own = own.filter(|block| block.iter().any(|it| is_rule(&it)));
    let mut is_allowed = false;
    for rule in own.next()?.iter().filter(is_rule) {
        let is_all = matches!(rule.value(), "all" | "0.0.0.0/0");
        if rule.name == "deny" && is_all {
            return Some((rule, !is_allowed));
        }
        if rule.name == "allow" && is_all {
            return None;
        }
        is_allowed |= rule.name == "allow";
    }
    None
}
