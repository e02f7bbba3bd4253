//! `pki rotate-master-key`: moves a site from one master key to another, while both are accepted.

use viworks_common::human::counted;
use viworks_common::id::{Tenant, TicketId};
use viworks_common::key::{MASTER_ID_BYTES, MasterKey};
use viworks_runtime::exit::ExitCode;

use super::super::views::{print, say};
use super::open::{actor, line, open};
use crate::config::Config;
use crate::data::{
    AuditOutcome, Gateway, GatewayFilter, KeyHolder, MasterIds, NewAuditRecord, Page, SiteClaim,
    Store, StoreError, StoredTicket,
};
use crate::enrolment::has_secret_of;
use crate::pki::issue::load_masters;

/// Gateways that are read at once.
const PAGE: usize = 500;
/// Gateways, and backends, that are named.
const NAMED_MAX: usize = 20;

/// What is wanted.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Nothing is to be changed.
    pub(super) dry_run: bool,
    /// The overlap is to end.
    pub(super) finish: bool,
    /// Also where gateways or backends are left.
    pub(super) force: bool,
    /// Why, where that is so.
    pub(super) reason: Option<String>,
}

pub(super) async fn rotate(config: &Config, wanted: &Wanted) -> anyhow::Result<ExitCode> {
    let master = load_masters(&config.keys)?;
    let Some(previous) = master.other() else {
        return with_one(config, &master, wanted).await;
    };
    let store = open(config).await?;
    let done = carry_out(&*store, &master, &previous, wanted).await;
    store.close().await;
    done
}

/// Without a key beside it nothing is rotated: the rotation is over, or was not begun.
async fn with_one(
    config: &Config,
    master: &MasterKey,
    wanted: &Wanted,
) -> anyhow::Result<ExitCode> {
    if wanted.finish {
        let store = open(config).await?;
        let belongs_to = store.site_key_check().await;
        store.close().await;
        if belongs_to? == Some(master.check()) {
            print(
                "nothing is left to do: there is one master key in [keys], and the database belongs to it",
            )?;
            return Ok(ExitCode::Ok);
        }
    }
    say(
        "error: there is one master key in [keys]. Where a rotation is over, nothing is left to do; to begin one, name \
         the new one in master_key_file and the one so far in previous_master_key_file on every backend, and start each \
         anew; then give this command again",
    );
    Ok(ExitCode::Config)
}

async fn carry_out(
    store: &dyn Store,
    master: &MasterKey,
    previous: &MasterKey,
    wanted: &Wanted,
) -> anyhow::Result<ExitCode> {
    let belongs_to = store.site_key_check().await?;
    let moved = belongs_to == Some(master.check());
    let (left, cannot) = left(store, master).await?;
    let holders = store.key_holders().await?;
    let behind = behind(&holders, (master, previous), moved);
    let tickets = tickets(store, (master, previous)).await?;
    if wanted.finish {
        return finish(store, moved, (&left, &behind, &tickets), wanted).await;
    }
    if moved {
        print("the site belongs to the new master key already")?;
    } else if belongs_to != Some(previous.check()) {
        say("error: the database belongs to neither of the two master keys in [keys]");
        return Ok(ExitCode::Config);
    } else if wanted.dry_run {
        print("the site would belong to the new master key; nothing was changed")?;
    } else {
        store
            .claim_site(&master.check(), SiteClaim::Replaced)
            .await?;
        note(store, "site.rotate_master_key", serde_json::json!({})).await?;
        print("the site belongs to the new master key")?;
        say(
            "start each backend anew: gateways are given keys of the new one over the sessions that follow, and the old \
             one is accepted until previous_master_key_file is taken out",
        );
    }
    name("still to move", &left)?;
    name("cannot, before their agents are updated", &cannot)?;
    name_backends(&behind)?;
    name_tickets(&tickets)?;
    Ok(ExitCode::Ok)
}

/// Says whether the old key can go.
async fn finish(
    store: &dyn Store,
    moved: bool,
    (left, behind, tickets): (&[Gateway], &[String], &[TicketId]),
    wanted: &Wanted,
) -> anyhow::Result<ExitCode> {
    if !moved {
        say(
            "error: the site was not moved to the new master key: give this command without --finish first",
        );
        return Ok(ExitCode::Conflict);
    }
    name("still to move", left)?;
    name_backends(behind)?;
    name_tickets(tickets)?;
    let is_ready = left.is_empty() && behind.is_empty();
    if !is_ready && !wanted.force {
        if !left.is_empty() {
            say(
                "error: these gateways would be cut off for good, and need new identities then: let them connect, \
                 revoke them, or add --force --reason TEXT",
            );
        }
        if !behind.is_empty() {
            say(
                "error: these backends do not go on with the new master key and the old one beside it: name both in \
                 [keys] of each and start it anew, or add --force --reason TEXT",
            );
        }
        return Ok(ExitCode::Conflict);
    }
    if !wanted.dry_run {
        let detail = serde_json::json!({
            "forced": wanted.force,
            "reason": wanted.reason,
            "gateways_left": left.len(),
            "backends_behind": behind.len(),
        });
        note(store, "site.finish_master_key", detail).await?;
    }
    print(
        "take previous_master_key_file out of [keys] on every backend, start each anew, and remove the file",
    )?;
    if !tickets.is_empty() {
        say(
            "no machine enrols any more by tickets that were made with the old master key once that is done: make others \
             (viworks ticket create), and revoke these (viworks ticket revoke ID)",
        );
    }
    Ok(ExitCode::Ok)
}

/// Backends that lack one of both keys, and once the site has moved those that do not make keys by the new one, each
/// with what it has.
fn behind(
    holders: &[KeyHolder],
    (master, previous): (&MasterKey, &MasterKey),
    moved: bool,
) -> Vec<String> {
    let (new, old) = (master.id(), previous.id());
    let behind = holders.iter().filter_map(|holder| {
        let why = lacks(holder.masters, (new, old), moved)?;
        let name = holder.name.as_deref().unwrap_or("the backend of this site");
        Some(format!("{name} ({why})"))
    });
    behind.collect()
}

/// What is wrong with the master keys of a backend, if anything is.
fn lacks(
    told: Option<MasterIds>,
    (new, old): ([u8; MASTER_ID_BYTES], [u8; MASTER_ID_BYTES]),
    moved: bool,
) -> Option<&'static str> {
    let Some(told) = told else {
        return Some("has not said which it has");
    };
    let has = |id| told.makes == id || told.beside == Some(id);
    match (has(new), has(old)) {
        (true, true) if told.makes == new || !moved => None,
        (true, true) => Some("makes keys by the old one: it was not started since the site moved"),
        (true, false) => Some("has the new one alone"),
        (false, true) => Some("has the old one alone"),
        (false, false) => Some("has neither"),
    }
}

/// Gateways that still depend on the old key, and those of them that cannot be given another one.
async fn left(
    store: &dyn Store,
    master: &MasterKey,
) -> Result<(Vec<Gateway>, Vec<Gateway>), StoreError> {
    let tenant = Tenant::default_tenant();
    let filter = GatewayFilter {
        revoked: Some(false),
        ..GatewayFilter::default()
    };
    let mut left = Vec::new();
    let mut page = Page::first(PAGE);
    loop {
        let listing = store.list_gateways(&tenant, &filter, page).await?;
        let of_old = |gateway: &Gateway| gateway.key_master != Some(master.id());
        left.extend(listing.items.into_iter().filter(of_old));
        let Some(after) = listing.next else {
            break;
        };
        page = Page {
            after: Some(after),
            limit: PAGE,
        };
    }
    let cannot = left
        .iter()
        .filter(|gateway| gateway.takes_keys == Some(false))
        .cloned()
        .collect();
    Ok((left, cannot))
}

/// Tickets by which a machine could still become a gateway, with secrets of the old key.
async fn tickets(
    store: &dyn Store,
    (master, previous): (&MasterKey, &MasterKey),
) -> Result<Vec<TicketId>, StoreError> {
    let (tenant, now) = (Tenant::default_tenant(), line(store).await?);
    let of_old = |ticket: &StoredTicket| {
        let is_active =
            ticket.revoked_at.is_none() && ticket.expires_at > now && ticket.uses < ticket.uses_max;
        is_active
            && has_secret_of(previous, &tenant, ticket)
            && !has_secret_of(master, &tenant, ticket)
    };
    let (mut found, mut page) = (Vec::new(), Page::first(PAGE));
    loop {
        let listing = store.list_tickets(&tenant, page).await?;
        found.extend(
            listing
                .items
                .iter()
                .filter(|ticket| of_old(ticket))
                .map(|ticket| ticket.id),
        );
        match listing.next {
            Some(next) => page = Page::after(next, PAGE),
            None => return Ok(found),
        }
    }
}

fn name_tickets(tickets: &[TicketId]) -> anyhow::Result<()> {
    let ids: Vec<String> = tickets.iter().map(ToString::to_string).collect();
    let number = counted(ids.len(), "active ticket", "active tickets");
    print_named("to end with the old master key", &number, &ids)
}

fn name(what: &str, gateways: &[Gateway]) -> anyhow::Result<()> {
    let names = gateways.iter().map(|gateway| gateway.name.to_string());
    let names: Vec<String> = names.collect();
    print_named(what, &counted(names.len(), "gateway", "gateways"), &names)
}

fn name_backends(behind: &[String]) -> anyhow::Result<()> {
    let number = counted(behind.len(), "backend", "backends");
    print_named("to be started anew with both", &number, behind)
}

fn print_named(what: &str, number: &str, names: &[String]) -> anyhow::Result<()> {
    if names.is_empty() {
        // Nobody is a good answer, too.
        return print(&format!("{what}: {number}"));
    }
    let more = match names.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = names.get(..NAMED_MAX).unwrap_or(names).join(", ");
    print(&format!("{what}: {number}: {named}{more}"))
}

async fn note(
    store: &dyn Store,
    action: &str,
    detail: serde_json::Value,
) -> Result<(), StoreError> {
    let record = NewAuditRecord {
        actor: actor(),
        action: action.to_owned(),
        object: "site".to_owned(),
        outcome: AuditOutcome::Done,
        detail,
    };
    let now = line(store).await?;
    store
        .append_audit(&Tenant::default_tenant(), record, now)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_ready_once_it_makes_keys_by_the_new_one_and_accepts_the_old_one() {
        let (new, old, other) = ([1; 8], [2; 8], [3; 8]);
        let told = |makes, beside| Some(MasterIds { makes, beside });
        assert_eq!(lacks(told(new, Some(old)), (new, old), true), None);
        assert_eq!(lacks(told(old, Some(new)), (new, old), false), None);
        for (told, why) in [
            (None, "not said"),
            (told(old, Some(new)), "not started since"),
            (told(new, None), "new one alone"),
            (told(new, Some(other)), "new one alone"),
            (told(old, None), "old one alone"),
            (told(other, Some(old)), "old one alone"),
            (told(other, None), "neither"),
        ] {
            let said = lacks(told, (new, old), true).unwrap();
            assert!(said.contains(why), "{told:?}: {said}");
        }
    }

    #[test]
    fn which_master_keys_a_backend_has_is_stored_as_it_is_said() {
        for beside in [None, Some([2; 8])] {
            let told = MasterIds {
                makes: [1; 8],
                beside,
            };
            assert_eq!(MasterIds::of_bytes(&told.to_bytes()), Some(told));
        }
        for bytes in [0, 7, 9, 24] {
            assert_eq!(MasterIds::of_bytes(&vec![1; bytes]), None);
        }
    }
}
