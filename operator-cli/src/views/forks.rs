//! Second holders of a gateway's identity, each beside the one that was accepted, and what the comparison says.

use viworks_api::{Fork, ForkEnd, ForkHolder, ForkList, ForkResolved, KeptBy};
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};
use crate::program;

/// What else is known of a gateway with second holders.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// It was thrown out, so that nothing is to be decided.
    pub revoked: bool,
    /// Who decided last, where that is known.
    pub decided_by: Option<String>,
}

/// Prints all of them.
pub fn list(
    list: &ForkList,
    gateway: &str,
    beside: &Beside,
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    for (number, fork) in list.items.iter().enumerate() {
        if number > 0 {
            output::line("")?;
        }
        side_by_side(fork, now)?;
    }
    output::note(&counted(list));
    for told in ways_on(list, gateway, beside) {
        output::note(&one_line(&told));
    }
    Ok(())
}

/// Who decided what is decided, and how the others are decided about.
fn ways_on(list: &ForkList, gateway: &str, beside: &Beside) -> Vec<String> {
    let program = program::name();
    let is_decided = |fork: &Fork| fork.resolution.is_some();
    let mut told = Vec::new();
    if list.items.iter().any(is_decided) {
        told.push(match &beside.decided_by {
            Some(who) => format!("decided by {who}"),
            None => {
                format!("who decided: {program} audit ls -g {gateway} --action identity.resolve")
            }
        });
    }
    if !list.items.iter().all(is_decided) {
        told.push(if beside.revoked {
            format!(
                "the gateway is revoked, so that nobody keeps its identity and nothing is to be decided; to let one of \
                 the machines in again: {program} gateway replace {gateway}"
            )
        } else {
            format!(
                "to decide: {program} gateway resolve {gateway} --keep PROCESS, or --replace where the refused one is to \
                 get an identity of its own"
            )
        });
    }
    told
}

/// When the last of them was decided about.
pub fn decided_at(list: &ForkList) -> Option<Timestamp> {
    list.items.iter().filter_map(|fork| fork.resolved_at).max()
}

/// Whether somebody is to decide about one of them, unless the gateway is revoked.
pub fn is_open(list: &ForkList) -> bool {
    list.items.iter().any(|fork| fork.resolution.is_none())
}

/// How many holders somebody has to decide about, and about how many somebody has.
fn counted(list: &ForkList) -> String {
    let all = list.items.len();
    let decided = list.items.iter().filter(|fork| fork.resolution.is_some());
    let decided = decided.count();
    let holders = |count| {
        let counted = human::counted(count, "second holder", "second holders");
        format!("{counted} of this identity")
    };
    match (all - decided, decided) {
        (open, 0) => holders(open),
        (0, 1) => format!(
            "nothing is to be decided: {}, which is decided about",
            holders(1)
        ),
        (0, all) => format!(
            "nothing is to be decided: {}, and all are decided about",
            holders(all)
        ),
        (open, others) => {
            let others = human::counted(others, "more is", "more are");
            format!("{}; {others} decided about", holders(open))
        }
    }
}

/// Says who keeps the identity, who stays out, and what is to be done on the other machine.
pub fn resolved(
    resolved: &ForkResolved,
    replace: bool,
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(resolved);
    }
    output::line(&one_line(&fate(resolved, now)))?;
    if replace {
        for step in new_identity(resolved) {
            output::note(&step);
        }
    }
    Ok(())
}

fn fate(resolved: &ForkResolved, now: Timestamp) -> String {
    let name = &resolved.gateway.name;
    let named = |holder: &ForkHolder| {
        let (process, address) = (holder.agent_run_id, &holder.peer_address);
        format!("the process {process} at {address}")
    };
    let mut parts = Vec::new();
    if let Some(kept) = &resolved.kept {
        let already = if resolved.already { " already" } else { "" };
        parts.push(format!("{} keeps {name}{already}", named(kept)));
    }
    if resolved.gateway.session.is_none() {
        parts.push(comes_back(resolved, now));
    }
    if let Some(out) = &resolved.out {
        parts.push(format!("{} stays out", named(out)));
    }
    if resolved.session_ended {
        parts.push("its session is ended".to_owned());
    }
    parts.join("; ")
}

/// What has to be there still, so that the one that keeps the identity comes back.
fn comes_back(resolved: &ForkResolved, now: Timestamp) -> String {
    let condition = match resolved.kept_by {
        Some(KeptBy::Process) => {
            ", only if that very process still runs: one that is started anew has to be decided about again"
        }
        Some(KeptBy::Boot) => ", only if that machine was not booted anew since",
        Some(KeptBy::Install) => ", only if its state folder is still there",
        None => "",
    };
    let seen = resolved.kept.as_ref().and_then(|kept| kept.last_seen);
    let seen = seen.map(|at| {
        let at = human::relative_and_exact(at, now);
        format!(" (it was last seen {at})")
    });
    let seen = seen.unwrap_or_default();
    let when = "within a minute, or with its next attempt within the hour if the other renewed the certificate meanwhile \
                (SIGHUP to its agent makes that at once)";
    format!("it is let in when it comes back, {when}{condition}{seen}")
}

/// What gives the other machine an identity of its own. Nothing of the one that goes on is revoked.
fn new_identity(resolved: &ForkResolved) -> Vec<String> {
    let address = resolved
        .out
        .as_ref()
        .map_or("the other machine", |out| out.peer_address.as_str());
    let program = program::name();
    let name = &resolved.gateway.name;
    vec![
        format!("here, under a name of its own: {program} ticket create --name {name}-2"),
        format!(
            "on the machine at {address}: systemctl stop viworks-gateway-agent, and put its identity and state folder aside"
        ),
        "there: viworks-gateway-agent enroll, with that ticket, then start it".to_owned(),
    ]
}

/// The row of what the key of a certificate has now; there is none where neither key got another one at the door.
const REISSUED: &str = "its key has now";

/// The certificate that a holder's key has now, where it got another one at the door since it was seen.
fn reissued(holder: &ForkHolder, now: Timestamp) -> Option<String> {
    let serial = holder.reissued_serial.as_ref()?;
    let ends = holder.reissued_not_after.map(|at| {
        let word = if at <= now { "ended" } else { "ends" };
        format!(", {word} {}", human::relative_and_exact(at, now))
    });
    Some(format!("{serial}{}", ends.unwrap_or_default()))
}

/// Both holders in columns, and what the comparison says.
pub fn side_by_side(fork: &Fork, now: Timestamp) -> Result<(), Failure> {
    let time = |at: Option<Timestamp>| {
        at.map_or_else(|| "–".to_owned(), |at| human::relative_and_exact(at, now))
    };
    let cells = |holder: &ForkHolder| {
        [
            holder.peer_address.clone(),
            holder.epoch.to_string(),
            holder.install_id.to_string(),
            holder.boot_id.to_string(),
            holder.agent_run_id.to_string(),
            holder.certificate_sha256.clone(),
            holder
                .certificate_serial
                .clone()
                .unwrap_or_else(|| "–".to_owned()),
            time(holder.certificate_not_after),
            reissued(holder, now).unwrap_or_else(|| "–".to_owned()),
            time(holder.since),
            time(holder.last_seen),
        ]
    };
    let refused = cells(&fork.refused);
    let accepted = fork.accepted.as_ref().map(cells).unwrap_or_default();
    let names = [
        "address",
        "epoch",
        "installation",
        "boot",
        "process",
        "certificate",
        "serial",
        "ends",
        REISSUED,
        "since",
        "last seen",
    ];
    let holders = [Some(&fork.refused), fork.accepted.as_ref()];
    let is_known = holders
        .into_iter()
        .flatten()
        .any(|holder| reissued(holder, now).is_some());
    let rows = names.into_iter().zip(refused.into_iter().zip(accepted));
    let rows = rows.filter(|(name, _cells)| is_known || *name != REISSUED);
    output::table(
        ["HOLDER", "REFUSED", "ACCEPTED"],
        rows.map(|(name, (refused, accepted))| {
            [name.to_owned(), one_line(&refused), one_line(&accepted)]
        }),
    )?;
    output::note(&format!(
        "it was refused {}; {}",
        human::counted_all(fork.times, "time", "times"),
        verdict(fork)
    ));
    if let Some((at, end)) = fork.resolved_at.zip(fork.resolution) {
        let decided = human::relative_and_exact(at, now);
        output::note(&format!("decided {decided}: {}", ended(end)));
    }
    Ok(())
}

/// What was decided about the one that was refused.
const fn ended(end: ForkEnd) -> &'static str {
    match end {
        ForkEnd::Kept => "the refused one keeps the identity",
        ForkEnd::Out => "the refused one stays out",
        ForkEnd::Replaced => "the refused one stays out, and is to get an identity of its own",
    }
}

/// What the two have in common says whether there are two machines.
fn verdict(fork: &Fork) -> &'static str {
    let Some(accepted) = &fork.accepted else {
        return "nobody holds this identity with a session";
    };
    let refused = &fork.refused;
    match (
        refused.boot_id == accepted.boot_id,
        refused.install_id == accepted.install_id,
    ) {
        (true, false) => {
            "one boot and two installations: the same machine; either its state folder was lost or replaced, or two agents run there (two containers have one boot): look for the second before anything is revoked"
        }
        (true, true) => {
            "one boot and one installation: the same machine, whose state folder was restored, or is used twice"
        }
        (false, true) => {
            "one installation and two boots: a copied disk, or an older state that was restored"
        }
        (false, false) => {
            "neither boot nor installation is the same: another machine, or a state folder that was lost with the old boot"
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn holder(run: u8, address: &str) -> Value {
        json!({
            "epoch": 1, "peer_address": address, "certificate_sha256": "aa",
            "install_id": "00000000-0000-4000-8000-000000000001",
            "boot_id": "00000000-0000-4000-8000-000000000002",
            "agent_run_id": format!("00000000-0000-4000-8000-0000000000{run:02}"),
            "since": null, "last_seen": null,
        })
    }

    fn decided(session_ended: bool, already: bool) -> ForkResolved {
        let resolved = json!({
            "kind": "ForkResolved", "already": already, "session_ended": session_ended,
            "kept": holder(10, "192.0.2.1:1"), "out": holder(20, "192.0.2.2:2"),
            "gateway": {
                "kind": "Gateway", "id": "00000000-0000-4000-8000-000000000009", "name": "gw-1", "status": "offline",
                "created_at": "2026-01-01T00:00:00Z", "since": "2026-01-02T00:00:00Z", "labels": [],
                "queued_commands": 0, "forks": 1,
            },
        });
        serde_json::from_value(resolved).unwrap()
    }

    #[test]
    fn what_is_decided_is_not_counted_as_open() {
        let fork = |resolution: Option<&str>| {
            json!({
                "times": 1, "refused": holder(10, "192.0.2.1:1"), "accepted": holder(20, "192.0.2.2:2"),
                "resolved_at": resolution.map(|_decided| "1970-01-01T00:00:01Z"), "resolution": resolution,
            })
        };
        let told = |resolutions: &[Option<&str>]| {
            let forks: Vec<Value> = resolutions.iter().copied().map(fork).collect();
            let items = serde_json::from_value(Value::from(forks)).unwrap();
            counted(&ForkList::new(items, None))
        };
        assert_eq!(told(&[]), "0 second holders of this identity");
        assert_eq!(told(&[None, None]), "2 second holders of this identity");
        let mixed = told(&[None, Some("out")]);
        assert_eq!(
            mixed,
            "1 second holder of this identity; 1 more is decided about"
        );
        let all = told(&[Some("kept"), Some("out")]);
        assert_eq!(
            all,
            "nothing is to be decided: 2 second holders of this identity, and all are decided about"
        );
    }

    #[test]
    fn who_decided_is_told_and_a_revoked_gateway_is_not_decided_about() {
        let fork = |resolution: Option<&str>| {
            json!({
                "times": 1, "refused": holder(10, "192.0.2.1:1"), "accepted": holder(20, "192.0.2.2:2"),
                "resolved_at": resolution.map(|_decided| "1970-01-01T00:00:01Z"), "resolution": resolution,
            })
        };
        let told = |forks: Value, beside: &Beside| {
            let list = ForkList::new(serde_json::from_value(forks).unwrap(), None);
            ways_on(&list, "gw-1", beside).join("; ")
        };
        let open = told(json!([fork(None)]), &Beside::default());
        assert!(open.contains("gateway resolve gw-1 --keep"), "{open}");
        let revoked = Beside {
            revoked: true,
            decided_by: Some("desk".to_owned()),
        };
        let gone = told(json!([fork(None)]), &revoked);
        assert!(!gone.contains("resolve"), "{gone}");
        assert!(gone.ends_with("gateway replace gw-1"), "{gone}");
        assert_eq!(
            told(json!([fork(Some("out"))]), &revoked),
            "decided by desk"
        );
        let unknown = told(json!([fork(Some("out"))]), &Beside::default());
        assert!(unknown.contains("--action identity.resolve"), "{unknown}");
    }

    #[test]
    fn who_keeps_an_identity_and_who_stays_out_is_told() {
        let now = Timestamp::from_unix_micros(0);
        let told = fate(&decided(true, false), now);
        assert!(
            told.contains("00000000-0000-4000-8000-000000000010 at 192.0.2.1:1 keeps gw-1; "),
            "{told}"
        );
        assert!(told.contains("within a minute"), "{told}");
        assert!(
            told.ends_with("at 192.0.2.2:2 stays out; its session is ended"),
            "{told}"
        );
        let again = fate(&decided(false, true), now);
        assert!(again.contains("keeps gw-1 already"), "{again}");
        assert!(!again.contains("ended"), "{again}");
    }

    #[test]
    fn a_holder_that_may_be_gone_is_said_to_come_back_only_if_it_is_there() {
        let mut resolved = decided(true, false);
        let at = Timestamp::from_unix_micros(1_000_000);
        resolved.kept_by = Some(KeptBy::Process);
        resolved.kept.as_mut().unwrap().last_seen = Some(at);
        let now = Timestamp::from_unix_micros(8_000_000);
        let told = fate(&resolved, now);
        assert!(
            told.contains("only if that very process still runs"),
            "{told}"
        );
        assert!(told.contains("(it was last seen 7 s ago"), "{told}");
        resolved.kept_by = Some(KeptBy::Install);
        let told = fate(&resolved, now);
        assert!(!told.contains("process still runs"), "{told}");
    }

    #[test]
    fn which_certificate_the_key_of_a_holder_has_now_is_told() {
        let now = Timestamp::from_unix_micros(0);
        let mut seen = holder(10, "192.0.2.1:1");
        let told = |seen: &Value| reissued(&serde_json::from_value(seen.clone()).unwrap(), now);
        assert_eq!(told(&seen), None);
        seen["reissued_serial"] = json!("0b2e");
        assert_eq!(told(&seen).as_deref(), Some("0b2e"));
        seen["reissued_not_after"] = json!("1970-01-01T01:00:00Z");
        let told = told(&seen).unwrap();
        assert!(told.starts_with("0b2e, ends "), "{told}");
        seen["reissued_not_after"] = json!("1969-12-31T23:00:00Z");
        let told = reissued(&serde_json::from_value(seen).unwrap(), now).unwrap();
        assert!(told.starts_with("0b2e, ended "), "{told}");
    }

    #[test]
    fn the_other_machine_gets_a_name_of_its_own() {
        let steps = new_identity(&decided(false, false)).join("\n");
        assert!(steps.contains("ticket create --name gw-1-2"), "{steps}");
        assert!(steps.contains("on the machine at 192.0.2.2:2"), "{steps}");
        assert!(!steps.contains("revoke"), "{steps}");
    }
}
