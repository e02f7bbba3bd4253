//! Authorities: which of them gateways are given, and who has them.

use std::collections::BTreeMap;

use viworks_api::{Authority, AuthorityGateway, AuthorityStatus};
use viworks_common::human;
use viworks_common::id::AgentId;
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

/// What is no reason to take an authority out.
const NOT_TOLD: &str = "whose own certificate is of which is not told here: before one is taken out of client_ca_file, \
                        wait until every gateway has renewed under the other (viworks gateway ls has when each ends)";

fn standing(status: &AuthorityStatus) -> String {
    if status.lacking == 0 {
        let gateways = human::counted_all(status.gateways, "gateway", "gateways");
        let served = format!(
            "nobody would be cut off by a server's certificate of one of these: {gateways}"
        );
        return if status.authorities.len() > 1 {
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
    use viworks_api::AuthorityBackend;

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
}
