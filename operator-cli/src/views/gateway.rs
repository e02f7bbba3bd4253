//! Gateways: who they are and whether they answer.

use viworks_api::{Gateway, GatewayList, GatewayStatus};
use viworks_common::human;
use viworks_common::time::Timestamp;

use super::authority::short;
use crate::failure::Failure;
use crate::output::{self, Format, one_line};
use crate::program;

pub mod farewell;
mod refusal;

/// Prints a row for each, and how many of them are how. `only` says of which kind they are, where some may have been
/// left out.
pub fn list(list: &GatewayList, only: &str, format: Format, now: Timestamp) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(list),
        Format::Table => {
            output::table(
                [
                    "NAME",
                    "STATUS",
                    "VERSION",
                    "PINS",
                    "RTT",
                    "QUEUE",
                    "CERT ENDS",
                    "LAST SEEN",
                    "LABELS",
                ],
                list.items.iter().map(|gateway| {
                    [
                        gateway.name.to_string(),
                        standing(gateway, now),
                        gateway
                            .agent_version
                            .clone()
                            .unwrap_or_else(|| "–".to_owned()),
                        gateway.pin_set_version.to_string(),
                        gateway
                            .round_trip_us
                            .map_or_else(|| "–".to_owned(), milliseconds),
                        gateway.queued_commands.to_string(),
                        certificate_ends(gateway, now),
                        gateway
                            .last_seen
                            .map_or_else(|| "never".to_owned(), |at| human::relative(at, now)),
                        labels(gateway),
                    ]
                }),
            )?;
            output::note(&counts(&list.items, only));
            let notes = [undecided(&list.items), cut_off(&list.items)];
            for told in notes.into_iter().flatten() {
                output::note(&told);
            }
            Ok(())
        }
    }
}

fn counts(gateways: &[Gateway], only: &str) -> String {
    if gateways.is_empty() {
        return format!("no gateways{only}");
    }
    let with = |status: GatewayStatus| {
        let same = gateways.iter().filter(|gateway| gateway.status == status);
        same.count()
    };
    let counts: Vec<String> = GatewayStatus::ALL
        .iter()
        .map(|status| (with(*status), status.name()))
        .filter(|(count, _name)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    format!(
        "{}: {}",
        human::counted(gateways.len(), "gateway", "gateways"),
        counts.join(", ")
    )
}

fn milliseconds(us: u64) -> String {
    format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
}

/// Of one that was thrown out, when that was: nothing else of it matters. One with a second holder about which nobody
/// has decided is marked.
fn standing(gateway: &Gateway, now: Timestamp) -> String {
    let word = word(gateway.status);
    if gateway.status == GatewayStatus::Revoked {
        return format!("{word} {}", human::relative(gateway.since, now));
    }
    match gateway.undecided_forks {
        0 => word.to_owned(),
        forks => format!("{word}, {}", human::counted_all(forks, "fork", "forks")),
    }
}

/// Gateways of which there is something to say that are named below the list.
const NAMED_MAX: usize = 5;

/// The first few of them, and how many others there are.
fn first_few(names: &[&str]) -> String {
    let named = names.get(..NAMED_MAX).unwrap_or(names).join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// About whose second holders somebody has to decide, and how.
fn undecided(gateways: &[Gateway]) -> Option<String> {
    let open = gateways
        .iter()
        .filter(|gateway| gateway.undecided_forks > 0);
    let open: Vec<&str> = open.map(|gateway| gateway.name.as_str()).collect();
    let first = open.first()?;
    let named = first_few(&open);
    let begin = match open.len() {
        1 => "",
        _ => ", and so on",
    };
    Some(format!(
        "a second holder of the identity waits for a decision: {named}; see both: {} gateway forks {first}{begin}",
        program::name()
    ))
}

/// Who is refused because an authority that the backend does not trust signed the certificate, and where it is said
/// what to do.
fn cut_off(gateways: &[Gateway]) -> Option<String> {
    let out = gateways.iter().filter(|gateway| is_cut_off(gateway));
    let out: Vec<&str> = out.map(|gateway| gateway.name.as_str()).collect();
    let first = out.first()?;
    let gateways = human::counted(out.len(), "gateway is", "gateways are");
    Some(format!(
        "{gateways} cut off, because an authority that is not in client_ca_file signed the certificate: {}; what \
         helps: {} gateway show {first}",
        first_few(&out),
        program::name()
    ))
}

/// A backend of before does not tell. Of several backends another one may trust what signed its certificate.
fn is_cut_off(gateway: &Gateway) -> bool {
    gateway.certificate_unknown_ca == Some(true) && gateway.session.is_none()
}

/// When its certificate ends, or that there is none because it was revoked, or that it is of an authority that is not
/// trusted.
fn certificate_ends(gateway: &Gateway, now: Timestamp) -> String {
    if is_cut_off(gateway) {
        return "unknown CA".to_owned();
    }
    match (
        gateway.certificate_not_after,
        gateway.certificate_revoked_at,
    ) {
        (Some(at), _) => human::relative(at, now),
        (None, Some(at)) => format!("revoked {}", human::relative(at, now)),
        (None, None) => "–".to_owned(),
    }
}

const fn word(status: GatewayStatus) -> &'static str {
    match status {
        GatewayStatus::Online => "● online",
        GatewayStatus::Offline => "○ offline",
        GatewayStatus::Never => "◌ never",
        GatewayStatus::Revoked => "✕ revoked",
        GatewayStatus::Blocked => "✕ blocked",
    }
}

fn labels(gateway: &Gateway) -> String {
    let labels: Vec<String> = gateway
        .labels
        .iter()
        .map(|label| format!("{}={}", label.key, label.value))
        .collect();
    one_line(&labels.join(","))
}

/// Prints everything that is known of one.
pub fn show(gateway: &Gateway, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(gateway);
    }
    let unknown = || "–".to_owned();
    let times = |at| human::relative_and_exact(at, now);
    let mut rows = vec![
        ("name", gateway.name.to_string()),
        ("id", gateway.id.to_string()),
        (
            "status",
            format!("{} since {}", word(gateway.status), times(gateway.since)),
        ),
    ];
    if gateway.status == GatewayStatus::Revoked {
        rows.extend(revocation(gateway));
    }
    rows.extend(refusal::rows(gateway, now));
    rows.extend([
        (
            "version",
            gateway.agent_version.clone().unwrap_or_else(unknown),
        ),
        (
            "certificate",
            match (
                gateway.certificate_not_after,
                gateway.certificate_revoked_at,
            ) {
                (Some(at), _) => certificate(at, now),
                (None, Some(at)) => no_certificate(gateway, at, now),
                (None, None) => unknown(),
            },
        ),
    ]);
    rows.extend(expired(gateway, now));
    rows.extend(unknown_ca(gateway));
    rows.extend([
        ("pins", pins(gateway)),
        ("authorities", authorities(gateway, now)),
        ("agent key", agent_key(gateway)),
        ("labels", labels(gateway)),
        (
            "last seen",
            gateway.last_seen.map_or_else(|| "never".to_owned(), times),
        ),
        (
            "round trip",
            gateway.round_trip_us.map_or_else(unknown, milliseconds),
        ),
        (
            "clock skew",
            gateway
                .clock_skew_ms
                .map_or_else(unknown, |ms| format!("{ms} ms")),
        ),
        ("queued", gateway.queued_commands.to_string()),
        (
            "running",
            gateway
                .running_commands
                .map_or_else(unknown, |count| count.to_string()),
        ),
        (
            "catalogue",
            gateway
                .catalogue_digest
                .clone()
                .unwrap_or_else(|| "not reported yet".to_owned()),
        ),
        ("forks", forks(gateway)),
    ]);
    rows.extend(work(gateway));
    rows.into_iter()
        .try_for_each(|(name, value)| output::line(&format!("{name:<11} {}", one_line(&value))))
}

/// What it did and does: results that nobody knows, its session, and what waits in its spool.
fn work(gateway: &Gateway) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if gateway.orphans > 0 {
        rows.push((
            "orphans",
            format!(
                "{}: {} gateway orphans {}",
                human::counted_all(
                    gateway.orphans,
                    "result of a command that the backend does not have",
                    "results of commands that the backend does not have"
                ),
                program::name(),
                gateway.name
            ),
        ));
    }
    if let Some(session) = &gateway.session {
        rows.push((
            "session",
            format!(
                "{} epoch {} from {}",
                session.id, session.epoch, session.peer_address
            ),
        ));
        if let Some(backend) = &session.backend {
            rows.push(("backend", backend.clone()));
        }
    }
    if let Some(spool) = &gateway.spool {
        rows.push((
            "spool",
            format!(
                "{} waiting, {} bytes",
                human::counted_all(spool.records, "record", "records"),
                human::count(spool.bytes)
            ),
        ));
    }
    rows
}

/// Which pin set it trusts.
fn pins(gateway: &Gateway) -> String {
    match gateway.pin_set_version {
        0 => "as configured there".to_owned(),
        version => format!("version {version}"),
    }
}

/// Which bundle of authorities it has.
fn authorities(gateway: &Gateway, now: Timestamp) -> String {
    let Some(has) = &gateway.authorities else {
        return "those of its ca_file".to_owned();
    };
    let current = if has.current {
        "current"
    } else {
        "not the current one"
    };
    let since = has
        .since
        .map(|at| format!(", since {}", human::relative_and_exact(at, now)));
    let bundle = short(&has.bundle);
    format!("bundle {bundle} ({current}{})", since.unwrap_or_default())
}

/// The generation of its key, and the one that it is to use.
fn agent_key(gateway: &Gateway) -> String {
    let Some(key) = gateway.key else {
        // A backend of before says this much.
        return format!("generation {}", gateway.key_generation);
    };
    let generation = key.generation;
    match key.wanted {
        Some(wanted) => format!("generation {generation}, {wanted} is wanted"),
        None => format!("generation {generation}"),
    }
}

/// Who threw it out, and why.
fn revocation(gateway: &Gateway) -> Vec<(&'static str, String)> {
    let Some(known) = &gateway.revocation else {
        // Of what one of an earlier version revoked, the backend looks through the latest records only.
        let (program, name) = (program::name(), &gateway.name);
        let place =
            format!("in the audit trail: {program} audit ls -g {name} --action gateway.revoke");
        return vec![("revoked by", place)];
    };
    let reason = known.reason.as_deref().unwrap_or("none was given");
    // A key by its name, where it has one.
    let by = known.by_name.as_ref().unwrap_or(&known.by);
    vec![("revoked by", by.clone()), ("reason", reason.to_owned())]
}

/// When its certificate ends, or that it has ended.
fn certificate(not_after: Timestamp, now: Timestamp) -> String {
    let when = human::relative_and_exact(not_after, now);
    if not_after <= now {
        format!("has ended {when}")
    } else {
        format!("ends {when}")
    }
}

/// That it has none that is accepted, and what lets it in again.
fn no_certificate(gateway: &Gateway, revoked_at: Timestamp, now: Timestamp) -> String {
    let when = human::relative_and_exact(revoked_at, now);
    let (program, name) = (program::name(), &gateway.name);
    format!(
        "none is accepted: the last one was revoked {when} ({program} gateway certificates {name}); to let a machine in \
         again: {program} gateway replace {name}"
    )
}

/// How many second holders there were, and about how many somebody has to decide.
fn forks(gateway: &Gateway) -> String {
    let all = human::count(gateway.forks);
    match gateway.undecided_forks {
        0 => all,
        open => format!(
            "{all}, to decide about: {} ({} gateway forks {})",
            human::count(open),
            program::name(),
            gateway.name
        ),
    }
}

/// What to do where an authority signed its certificate that the backend does not trust: as with one that has ended,
/// there is no record of who was refused with it.
fn unknown_ca(gateway: &Gateway) -> Option<(&'static str, String)> {
    if !is_cut_off(gateway) {
        return None;
    }
    let (program, name) = (program::name(), &gateway.name);
    let door = if gateway.renews_at_door == Some(false) {
        ""
    } else {
        "wait until it has ended, from when on it gets another one at the door, where its door_url is set, "
    };
    let fix = format!(
        "an authority that is not in client_ca_file signed its certificate, and TLS refuses it: put that one's \
         certificate back behind the others in that file and reload (SIGHUP); where it was taken out on purpose, have \
         a certificate signed by hand for the key that it has (docs/errors/cert_untrusted.md), {door}or let a machine \
         take its place: {program} gateway replace {name}"
    );
    Some(("unknown CA", fix))
}

/// What to do where its certificate has ended: whoever shows it is refused before anybody knows whose it is, so that
/// there is no record of that.
fn expired(gateway: &Gateway, now: Timestamp) -> Option<(&'static str, String)> {
    let name = &gateway.name;
    let has_ended = gateway.certificate_not_after.is_some_and(|at| at <= now);
    let fix = match gateway.status {
        GatewayStatus::Never | GatewayStatus::Offline | GatewayStatus::Blocked
            if has_ended && gateway.renews_at_door == Some(false) =>
        {
            format!(
                "no session is opened with it, and this backend has no door at which it would get another one: sign a \
                 request for the key that it has (docs/errors/cert_untrusted.md), or let a machine take its place: {} \
                 gateway replace {name}",
                program::name()
            )
        }
        GatewayStatus::Never | GatewayStatus::Offline | GatewayStatus::Blocked if has_ended => {
            format!(
                "no session is opened with it. Where door_url is set in its configuration, it gets another one at the \
                 door by itself, once it is on; status of its agent says what is in the way. Otherwise set door_url to \
                 the public_url of [enrolment], or sign a request for the key that it has \
                 (docs/errors/cert_untrusted.md), or let a machine take its place: {} gateway replace {name}",
                program::name()
            )
        }
        GatewayStatus::Online if has_ended => {
            "its session ends with it unless it is renewed now: see the log of the gateway"
                .to_owned()
        }
        GatewayStatus::Online
        | GatewayStatus::Never
        | GatewayStatus::Offline
        | GatewayStatus::Blocked
        | GatewayStatus::Revoked => return None,
    };
    Some(("to renew it", fix))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(super) fn gateway(more: &Value) -> Gateway {
        let mut gateway = json!({
            "kind": "Gateway", "id": "00000000-0000-4000-8000-000000000001", "name": "gw-1", "status": "revoked",
            "created_at": "2026-01-01T00:00:00Z", "since": "2026-01-02T00:00:00Z", "labels": [],
            "queued_commands": 0, "forks": 0,
        });
        for (key, value) in more.as_object().unwrap() {
            gateway[key] = value.clone();
        }
        serde_json::from_value(gateway).unwrap()
    }

    #[test]
    fn who_and_why_are_shown_or_where_they_stand() {
        let known = json!({"revocation": {"by": "api_key:1", "reason": "stolen"}});
        let rows = revocation(&gateway(&known));
        assert_eq!(rows[0], ("revoked by", "api_key:1".to_owned()));
        let named = json!({"revocation": {"by": "api_key:1", "by_name": "desk"}});
        assert_eq!(revocation(&gateway(&named))[0].1, "desk");
        assert_eq!(rows[1], ("reason", "stolen".to_owned()));
        let silent = json!({"revocation": {"by": "local:uid 0"}});
        assert_eq!(revocation(&gateway(&silent))[1].1, "none was given");
        let unknown = revocation(&gateway(&json!({})));
        assert!(unknown[0].1.contains("gateway.revoke"), "{unknown:?}");
    }

    #[test]
    fn the_generation_of_the_agent_key_is_told_by_backends_of_before_as_well() {
        let before = gateway(&json!({"key_generation": 3}));
        assert_eq!(agent_key(&before), "generation 3");
        let rotated = json!({"key_generation": 3, "key": {"generation": 3, "wanted": 4}});
        let told = agent_key(&gateway(&rotated));
        assert_eq!(told, "generation 3, 4 is wanted");
    }

    #[test]
    fn which_bundle_of_authorities_it_has_is_told() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let told = |more: &Value| authorities(&gateway(more), now);
        assert_eq!(told(&json!({})), "those of its ca_file");
        let has = |current: bool| json!({"authorities": {"bundle": "a".repeat(64), "current": current, "since": null}});
        assert_eq!(told(&has(true)), "bundle aaaaaaaaaaaaaaaa (current)");
        assert_eq!(
            told(&has(false)),
            "bundle aaaaaaaaaaaaaaaa (not the current one)"
        );
    }

    #[test]
    fn a_certificate_that_has_ended_is_told_with_the_way_to_another_one() {
        let now = Timestamp::parse("2026-03-01T00:00:00Z").unwrap();
        let told = |status: &str, until: &str| {
            let more = json!({"status": status, "certificate_not_after": until});
            expired(&gateway(&more), now).map(|(_name, fix)| fix)
        };
        let (before, after) = ("2026-02-01T00:00:00Z", "2026-04-01T00:00:00Z");
        for status in ["offline", "never", "blocked"] {
            let fix = told(status, before).unwrap();
            for way in ["door_url", "sign a request", "gateway replace gw-1"] {
                assert!(fix.contains(way), "{status}: {fix}");
            }
            assert_eq!(told(status, after), None, "{status}");
        }
        let more =
            json!({"status": "never", "certificate_not_after": before, "renews_at_door": false});
        let (_name, fix) = expired(&gateway(&more), now).unwrap();
        assert!(!fix.contains("door_url"), "{fix}");
        assert!(told("online", before).is_some());
        assert_eq!(told("online", after), None);
        assert_eq!(told("revoked", before), None);
        let ended = certificate(Timestamp::parse(before).unwrap(), now);
        assert!(ended.starts_with("has ended "), "{ended}");
        let ends = certificate(Timestamp::parse(after).unwrap(), now);
        assert!(ends.starts_with("ends "), "{ends}");
    }

    #[test]
    fn one_that_is_cut_off_by_its_authority_is_marked_and_told_what_helps() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let of = |name: &str, unknown: &Value| {
            gateway(&json!({
                "status": "offline", "name": name, "certificate_not_after": "2026-04-01T00:00:00Z",
                "certificate_unknown_ca": unknown,
            }))
        };
        let (out, well) = (of("gw-1", &json!(true)), of("gw-2", &json!(false)));
        let before = of("gw-3", &Value::Null);
        assert_eq!(certificate_ends(&out, now), "unknown CA");
        for fine in [&well, &before] {
            assert!(certificate_ends(fine, now).starts_with("in "));
            assert_eq!(unknown_ca(fine), None);
        }
        let (_name, fix) = unknown_ca(&out).unwrap();
        for way in [
            "reload (SIGHUP)",
            "signed by hand",
            "door_url",
            "gateway replace gw-1",
        ] {
            assert!(fix.contains(way), "{fix}");
        }
        let mut away = out.clone();
        away.renews_at_door = Some(false);
        let (_name, fix) = unknown_ca(&away).unwrap();
        assert!(!fix.contains("door_url"), "{fix}");
        assert_eq!(cut_off(&[well, before]), None);
        let told = cut_off(&[out]).unwrap();
        assert!(told.starts_with("1 gateway is cut off"), "{told}");
        assert!(told.ends_with("gateway show gw-1"), "{told}");
        let many: Vec<_> = (0..7)
            .map(|n| of(&format!("gw-{n}"), &json!(true)))
            .collect();
        let told = cut_off(&many).unwrap();
        assert!(told.contains("gw-4 and 2 more; "), "{told}");
    }

    #[test]
    fn the_list_says_since_when_one_is_revoked() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let revoked = standing(&gateway(&json!({})), now);
        let ago = human::relative(gateway(&json!({})).since, now);
        assert_eq!(revoked, format!("✕ revoked {ago}"));
        let online = gateway(&json!({"status": "online"}));
        assert_eq!(standing(&online, now), "● online");
    }

    #[test]
    fn a_second_holder_that_waits_for_a_decision_is_marked_and_the_command_is_said() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let forked = |name: &str, open: u64| {
            gateway(&json!({"status": "online", "name": name, "forks": 2, "undecided_forks": open}))
        };
        let (one, none) = (forked("gw-1", 1), forked("gw-2", 0));
        assert_eq!(standing(&one, now), "● online, 1 fork");
        assert_eq!(standing(&none, now), "● online");
        assert_eq!(forks(&none), "2");
        let told = forks(&one);
        assert!(told.starts_with("2, to decide about: 1 ("), "{told}");
        assert!(told.ends_with("gateway forks gw-1)"), "{told}");
        assert_eq!(undecided(std::slice::from_ref(&none)), None);
        let told = undecided(&[none, one]).unwrap();
        assert!(told.ends_with("gateway forks gw-1"), "{told}");
        let many: Vec<_> = (0..7).map(|n| forked(&format!("gw-{n}"), 1)).collect();
        let told = undecided(&many).unwrap();
        assert!(told.contains("gw-4 and 2 more; "), "{told}");
        assert!(!told.contains("gw-5"), "{told}");
    }

    #[test]
    fn that_the_only_certificate_was_revoked_is_said() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let revoked =
            json!({"status": "offline", "certificate_revoked_at": "2026-01-02T01:59:00Z"});
        let revoked = gateway(&revoked);
        assert_eq!(certificate_ends(&revoked, now), "revoked 1 min 0 s ago");
        let at = revoked.certificate_revoked_at.unwrap();
        let told = no_certificate(&revoked, at, now);
        assert!(told.ends_with("gateway replace gw-1"), "{told}");
        let unknown = gateway(&json!({"status": "never"}));
        assert_eq!(certificate_ends(&unknown, now), "–");
    }
}
