//! Authorities: which of them gateways are given, who has them, and whose certificates need which.

use std::collections::BTreeMap;

use viworks_api::{Authority, AuthorityGateway, AuthorityStatus};
use viworks_common::human;
use viworks_common::id::{AgentId, GatewayName};
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};
use crate::program;

/// Digits of a digest that tell one from another on screen.
const DIGITS: usize = 16;

/// Prints a row for each, and one for each gateway that lacks any.
pub fn status(status: &AuthorityStatus, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(status);
    }
    output::table(
        ["AUTHORITY", "SUBJECT", "ENDS", "KNOWN TO"],
        status.authorities.iter().map(|authority| {
            [
                short(&authority.authority),
                one_line(&authority.subject),
                authority
                    .not_after
                    .map_or_else(|| "–".to_owned(), |at| human::relative(at, now)),
                format!(
                    "{} of {}",
                    human::count(authority.known_to),
                    human::count(status.gateways)
                ),
            ]
        }),
    )?;
    output::note(&together(status));
    output::note(&standing(status));
    for needed in needed(status) {
        output::note(&needed);
    }
    if let Some(differ) = differ(status) {
        output::note(&differ);
    }
    let lacking = lacking(status);
    if lacking.is_empty() {
        return Ok(());
    }
    let shown = u64::try_from(lacking.len()).unwrap_or(u64::MAX);
    output::table(
        ["GATEWAY", "LACKS", "LAST CONNECTED", "HAS BUNDLE"],
        lacking.into_values().map(|(gateway, lacks)| {
            let lacks: Vec<String> = lacks.into_iter().map(|one| short(&one.authority)).collect();
            [
                gateway.name.to_string(),
                lacks.join(", "),
                connected(gateway, now),
                gateway
                    .bundle
                    .as_deref()
                    .map_or_else(|| "nothing that it reported".to_owned(), short),
            ]
        }),
    )?;
    let more = status.lacking.saturating_sub(shown);
    if more > 0 {
        let more = human::counted_all(more, "more gateway", "more gateways");
        output::note(&format!("and {more}"));
    }
    Ok(())
}

/// Those that are named, each with what it lacks.
fn lacking(status: &AuthorityStatus) -> BTreeMap<AgentId, (&AuthorityGateway, Vec<&Authority>)> {
    let mut all = BTreeMap::new();
    for authority in &status.authorities {
        for gateway in &authority.missing {
            let (_gateway, lacks) = all.entry(gateway.id).or_insert((gateway, Vec::new()));
            lacks.push(authority);
        }
    }
    all
}

/// What ties the rows to what is shown of a gateway.
fn together(status: &AuthorityStatus) -> String {
    let authorities = human::counted(status.authorities.len(), "authority is", "authorities are");
    format!(
        "{authorities} the bundle {}, as which `{} gateway show` names what a gateway has",
        short(&status.bundle),
        program::name()
    )
}

/// What a backend of an earlier version does not know, and is no reason to take an authority out.
const NOT_TOLD: &str = "whose own certificate is of which this backend does not tell: before one is taken out of client_ca_file, \
                        wait until every gateway has renewed under the other (viworks gateway ls has when each ends)";

fn standing(status: &AuthorityStatus) -> String {
    if status.lacking == 0 {
        let gateways = human::counted_all(status.gateways, "gateway", "gateways");
        let served = format!(
            "nobody would be cut off by a server's certificate of one of these: {gateways}"
        );
        return if status.authorities.len() > 1 && status.signers.is_none() {
            format!("{served}; {NOT_TOLD}")
        } else {
            served
        };
    }
    let gateways = human::counted_all(
        status.lacking,
        "gateway lacks one of these",
        "gateways lack one of these",
    );
    let off = human::count(status.lacking_off);
    format!("{gateways}, {off} of them off; a server's certificate of it would cut them off")
}

/// Gateways that are named in one line.
const NAMED_MAX: usize = 5;

/// Whether each authority may be taken out of `client_ca_file` as far as gateways' own certificates go, where there are
/// several, and who is cut off because one is out.
fn needed(status: &AuthorityStatus) -> Vec<String> {
    let Some(signers) = &status.signers else {
        return Vec::new();
    };
    let mut told = Vec::new();
    if status.authorities.len() > 1 {
        told.extend(status.authorities.iter().map(needed_by));
        if signers.unknown > 0 {
            let gateways = human::counted_all(signers.unknown, "gateway", "gateways");
            told.push(format!(
                "of {gateways} it is unknown until each next connects which authority signed the certificate, so each \
                 of these may be needed: {}",
                first(signers.unknown, &signers.unknown_first)
            ));
        }
    }
    if signers.cut_off > 0 {
        let gateways = human::counted_all(signers.cut_off, "gateway is", "gateways are");
        told.push(format!(
            "{gateways} cut off, because an authority that is not in client_ca_file signed the certificate: {}; put its \
             certificate back there and reload, sign a certificate for each by hand, wait until theirs have ended, from \
             when on a door gives them another one, or revoke those that are gone",
            first(signers.cut_off, &signers.cut_off_first)
        ));
    }
    told
}

/// Whether one may be taken out.
fn needed_by(authority: &Authority) -> String {
    let (id, subject) = (short(&authority.authority), one_line(&authority.subject));
    match authority.needed_by.unwrap_or_default() {
        0 => format!(
            "{id} ({subject}): no gateway is known to need it for its own certificate; that counts once no backend \
             signs by it"
        ),
        gateways => format!(
            "{id} ({subject}): {} of it: not yet to be taken out of client_ca_file: {}",
            human::counted_all(
                gateways,
                "gateway still has a certificate",
                "gateways still have certificates"
            ),
            first(gateways, &authority.needed_by_first)
        ),
    }
}

/// The first few of so many, and how many others there are.
fn first(all: u64, named: &[GatewayName]) -> String {
    let named: Vec<String> = named
        .iter()
        .take(NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    let told = u64::try_from(named.len()).unwrap_or(u64::MAX);
    match all.saturating_sub(told) {
        0 => named.join(", "),
        more => format!("{} and {} more", named.join(", "), human::count(more)),
    }
}

/// Which other backends give others: what is said here is what one of them has.
fn differ(status: &AuthorityStatus) -> Option<String> {
    let others = status.backends.iter();
    let others = others.map(|one| format!("{} ({})", one_line(&one.name), short(&one.bundle)));
    let others: Vec<String> = others.collect();
    if others.is_empty() {
        return None;
    }
    let backends = human::counted(
        others.len(),
        "other backend has another bundle",
        "other backends have another bundle",
    );
    Some(format!(
        "{backends}: {}; a gateway that one lets in another one refuses: put the same certificates into client_ca_file \
         on each, and reload each",
        others.join("; ")
    ))
}

fn connected(gateway: &AuthorityGateway, now: Timestamp) -> String {
    if gateway.online {
        return "is connected".to_owned();
    }
    gateway
        .last_seen
        .map_or_else(|| "never".to_owned(), |at| human::relative(at, now))
}

/// The beginning of a digest.
pub fn short(digest: &str) -> String {
    digest.chars().take(DIGITS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use viworks_api::{AuthorityBackend, AuthoritySigners};

    use super::*;

    fn of(missing: &Value) -> AuthorityStatus {
        let authority = |id: &str, missing: &Value| {
            json!({"authority": id.repeat(64), "subject": "CN=one", "not_after": null, "known_to": 1,
                   "missing_off": 1, "missing": missing})
        };
        let count = missing.as_array().unwrap().len();
        let status = json!({
            "kind": "AuthorityStatus", "bundle": "c".repeat(64), "gateways": 3, "lacking": count, "lacking_off": 1,
            "authorities": [authority("a", &json!([])), authority("b", missing)],
        });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn each_gateway_that_lacks_one_is_named_with_when_it_was_connected() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let gateway = |name: &str, online: bool, seen: Option<&str>| {
            json!({"id": format!("00000000-0000-4000-8000-00000000000{}", name.len()), "name": name, "bundle": null,
                   "since": null, "online": online, "last_seen": seen})
        };
        let status = of(&json!([
            gateway("gw-1", true, Some("2026-01-02T02:00:00Z")),
            gateway("gw-22", false, None),
        ]));
        let named = lacking(&status);
        let told: Vec<_> = named
            .values()
            .map(|(gateway, lacks)| (gateway.name.as_str(), connected(gateway, now), lacks.len()))
            .collect();
        assert_eq!(
            told,
            [
                ("gw-1", "is connected".to_owned(), 1),
                ("gw-22", "never".to_owned(), 1)
            ]
        );
        assert_eq!(
            standing(&status),
            "2 gateways lack one of these, 1 of them off; a server's certificate of it would cut them off"
        );
        let served =
            "nobody would be cut off by a server's certificate of one of these: 3 gateways";
        let mut trusted = of(&json!([]));
        assert_eq!(standing(&trusted), format!("{served}; {NOT_TOLD}"));
        assert!(needed(&trusted).is_empty(), "it does not say");
        trusted.authorities.pop();
        assert_eq!(standing(&trusted), served);
        let mut apart = of(&json!([]));
        assert_eq!(differ(&apart), None);
        apart.backends.push(AuthorityBackend {
            name: "host-b, process 7".to_owned(),
            bundle: "d".repeat(64),
        });
        let told = differ(&apart).unwrap();
        let begins = format!(
            "1 other backend has another bundle: host-b, process 7 ({}); ",
            "d".repeat(DIGITS)
        );
        assert!(told.starts_with(&begins), "{told}");
        let bundle = "c".repeat(DIGITS);
        assert_eq!(short(&status.bundle), bundle);
        let told = together(&status);
        let begins = format!("2 authorities are the bundle {bundle}, ");
        assert!(told.starts_with(&begins), "{told}");
    }

    #[test]
    fn whoever_needs_an_authority_is_named_before_it_is_taken_out() {
        let mut status = of(&json!([]));
        let names = |names: &[&str]| -> Vec<GatewayName> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        status.authorities[0].needed_by = Some(7);
        status.authorities[0].needed_by_first =
            names(&["gw-1", "gw-2", "gw-3", "gw-4", "gw-5", "gw-6"]);
        status.authorities[1].needed_by = Some(0);
        status.signers = Some(AuthoritySigners {
            cut_off: 0,
            cut_off_first: Vec::new(),
            unknown: 0,
            unknown_first: Vec::new(),
        });
        let (one, other) = ("a".repeat(DIGITS), "b".repeat(DIGITS));
        assert_eq!(
            needed(&status),
            [
                format!(
                    "{one} (CN=one): 7 gateways still have certificates of it: not yet to be taken out of \
                     client_ca_file: gw-1, gw-2, gw-3, gw-4, gw-5 and 2 more"
                ),
                format!(
                    "{other} (CN=one): no gateway is known to need it for its own certificate; that counts once no \
                     backend signs by it"
                ),
            ]
        );
        assert!(!standing(&status).contains(NOT_TOLD), "it tells");
        let signers = status.signers.as_mut().unwrap();
        (signers.unknown, signers.unknown_first) = (1, names(&["gw-8"]));
        (signers.cut_off, signers.cut_off_first) = (1, names(&["gw-9"]));
        let told = needed(&status);
        assert!(told[2].ends_with("may be needed: gw-8"), "{told:?}");
        assert!(told[3].starts_with("1 gateway is cut off"), "{told:?}");
        assert!(
            told[3].contains("signed the certificate: gw-9; "),
            "{told:?}"
        );
        // Where there is one, nobody asks whether it may be taken out.
        status.authorities.pop();
        assert_eq!(needed(&status).len(), 1);
    }
}
